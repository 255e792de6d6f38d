//! A small network for tests, in float and by hand quantized: every kind of operator, tail and branch there is.
//!
//! ```text
//! x ─ Conv first ─ Relu ─┬─ Conv second ─ SiLU ─ Add join ─ GlobalAveragePool ─ Flatten ─ Gemm head ─ y
//!                        └───────────────────────┘ (quantized shortcut)
//! ```

use std::{collections::BTreeMap, sync::atomic::AtomicBool};

use calib_test_support::Need;

use crate::{
    artifact::ContentHash,
    backend::onnxruntime::OnnxRuntime,
    dataset::{BadPolicy, Dataset, PrefetchOptions, SampleError},
    onnx::{
        Model,
        proto::{
            AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto,
            TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
        },
    },
    qparams::{QParams, QuantType},
    tensor::{Tensor, TensorMap, Values},
};

/// Ranges of the quantized activations.
const AMAX: [(&str, f32); 3] = [("x", 1.0), ("first_relu", 3.25), ("flat", 0.65)];

/// Weights, and the axis of their channels.
const WEIGHTS: [(&str, [usize; 4], usize); 3] =
    [("first.w", [8, 3, 3, 3], 0), ("second.w", [8, 8, 1, 1], 0), ("head.w", [5, 8, 0, 0], 0)];

/// Numbers in [-1, 1) that are the same everywhere.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; 4 * count];
    reader.fill(&mut bytes);
    bytes.as_chunks().0.iter().map(|&b| (u32::from_le_bytes(b) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn weight(name: &str) -> (Vec<usize>, Vec<f32>, usize) {
    let (index, &(_, extents, axis)) = WEIGHTS.iter().enumerate().find(|(_, (w, ..))| *w == name).unwrap();
    let shape: Vec<usize> = extents.into_iter().filter(|&extent| extent > 0).collect();
    let values = numbers(index as u64, shape.iter().product()).into_iter().map(|x| 0.5 * x).collect();
    (shape, values, axis)
}

fn float_tensor(name: &str, shape: Vec<usize>, values: Vec<f32>) -> TensorProto {
    TensorProto::from_tensor(name, Tensor::from_f32(shape, values).unwrap())
}

fn info(name: &str, shape: &[i64]) -> ValueInfoProto {
    let dim = |&extent: &i64| DimensionProto { value: Some(DimensionValue::DimValue(extent)), ..Default::default() };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(1), shape: Some(shape) };
    let r#type = Some(TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..Default::default() }
}

fn nodes() -> Vec<NodeProto> {
    vec![
        NodeProto::new("Conv", "first", &["x", "first.w", "first.b"], &["first_out"])
            .with(AttributeProto::ints("pads", &[1, 1, 1, 1])),
        NodeProto::new("Relu", "first/relu", &["first_out"], &["first_relu"]),
        NodeProto::new("Conv", "second", &["first_relu", "second.w"], &["second_out"]),
        NodeProto::new("Sigmoid", "second/sigmoid", &["second_out"], &["second_sigmoid"]),
        NodeProto::new("Mul", "second/mul", &["second_out", "second_sigmoid"], &["second_silu"]),
        NodeProto::new("Add", "join", &["second_silu", "first_relu"], &["join_out"]),
        NodeProto::new("GlobalAveragePool", "pool", &["join_out"], &["pool_out"]),
        NodeProto::new("Flatten", "flatten", &["pool_out"], &["flat"]),
        NodeProto::new("Gemm", "head", &["flat", "head.w"], &["y"]).with(AttributeProto::int("transB", 1)),
    ]
}

fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Model {
    let graph = GraphProto {
        node,
        name: Some("fixture".to_owned()),
        initializer,
        input: vec![info("x", &[1, 3, 8, 8])],
        output: vec![info("y", &[1, 5])],
        ..Default::default()
    };
    let mut proto = ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() };
    proto.set_opset("", 17);
    Model {
        proto,
        path: None,
        hash: ContentHash::of_bytes(b"fixture"),
        external_data: false,
        stands_for: BTreeMap::new(),
    }
}

/// The float network.
pub(crate) fn float() -> Model {
    let weights = WEIGHTS.map(|(name, ..)| {
        let (shape, values, _) = weight(name);
        float_tensor(name, shape, values)
    });
    model(nodes(), [weights.to_vec(), vec![bias()]].concat())
}

fn bias() -> TensorProto {
    float_tensor("first.b", vec![8], numbers(9, 8).into_iter().map(|x| 0.1 * x).collect())
}

/// The quantized network.
pub(crate) fn quantized() -> Model {
    quantized_with(&mut |_, _| {}, &mut |_, _, _| {})
}

/// Changes the codes of a weight, given its name and shape.
type CodesFault<'a> = dyn FnMut(&str, &[usize], &mut [i8]) + 'a;

/// The quantized network with faults: `scale` may change an activation's scale, `codes` a weight's INT8 values.
pub(crate) fn quantized_with(scale: &mut dyn FnMut(&str, &mut f32), codes: &mut CodesFault<'_>) -> Model {
    let mut all = Vec::new();
    let mut initializers = vec![bias()];
    let zero = |name: &str| TensorProto::from_tensor(name, Tensor::new(vec![], Values::I8(vec![0])).unwrap());
    for (tensor, amax) in AMAX {
        let mut step = amax / 127.0;
        scale(tensor, &mut step);
        let [q, dq, s, z] = ["q", "dq", "scale", "zero"].map(|suffix| format!("{tensor}/{suffix}"));
        initializers.extend([float_tensor(&s, vec![], vec![step]), zero(&z)]);
        all.push(NodeProto::new("QuantizeLinear", &q, &[tensor, &s, &z], &[&q]));
        all.push(NodeProto::new("DequantizeLinear", &dq, &[&q, &s, &z], &[&dq]));
    }
    for (name, ..) in WEIGHTS {
        let (shape, values, axis) = weight(name);
        let params = QParams::per_channel(QuantType::Int8Narrow, axis, &shape, &values).unwrap();
        let mut quantized: Vec<i8> = params.quantize(&shape, &values).unwrap().into_iter().map(|c| c as i8).collect();
        codes(name, &shape, &mut quantized);
        let [q, dq, s] = ["q", "dq", "scale"].map(|suffix| format!("{name}/{suffix}"));
        initializers.push(TensorProto::from_tensor(&q, Tensor::new(shape, Values::I8(quantized)).unwrap()));
        initializers.push(float_tensor(&s, vec![params.scales.len()], params.scales));
        let node = NodeProto::new("DequantizeLinear", &dq, &[&q, &s], &[&dq]);
        all.push(node.with(AttributeProto::int("axis", axis as i64)));
    }
    let mut float = nodes();
    for (node, index) in [(0, 0), (0, 1), (2, 0), (2, 1), (5, 1), (8, 0), (8, 1)] {
        let input = &mut float[node].input[index];
        *input = format!("{input}/dq");
    }
    all.extend(float);
    let sorted = crate::onnx::GraphView::new(&GraphProto { node: all.clone(), ..Default::default() })
        .unwrap()
        .topological_order()
        .iter()
        .map(|id| all[id.0].clone())
        .collect();
    model(sorted, initializers)
}

/// Samples of the network, as many as are asked for.
pub(crate) struct Data(pub usize);

impl Dataset for Data {
    fn len(&self) -> usize {
        self.0
    }

    fn id(&self, index: usize) -> &str {
        ["0", "1", "2", "3"][index]
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        let input = Tensor::from_f32(vec![1, 3, 8, 8], numbers(100 + index as u64, 192)).unwrap();
        Ok(TensorMap::from([("x".to_owned(), input)]))
    }
}

static NEVER: AtomicBool = AtomicBool::new(false);

/// One sample at a time; the network's batch is fixed.
pub(crate) const READING: PrefetchOptions<'static> = PrefetchOptions {
    batch: 1,
    threads: 1,
    policy: BadPolicy { max_share: 0.0, strict: true },
    stop: &NEVER,
    skipped: &[],
};

/// ONNX Runtime, where it is at hand.
pub(crate) fn runtime() -> Option<OnnxRuntime> {
    Need::OnnxRuntime.or_skip(OnnxRuntime::load(None))
}
