//! What a model's file itself tells of its nodes: what each computes in, read off its Q/DQ nodes and types, and
//! fingerprints of its weights, scales and attributes, by which two models are told apart.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::{ModelGraph, Precision, types::element_types};
use crate::{
    onnx::{
        Fact, GraphView, Model,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    },
    tensor::ElementType,
};

/// ONNX's numbers of the floating-point types of 8 bits.
const FLOAT8: std::ops::RangeInclusive<i32> = 17..=20;

/// Fingerprints of what belongs to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Values of the constants that it reads, behind quantizers too.
    pub weights: u64,
    /// Scales, zero points and types of the quantizers that it reads, or that it is.
    pub scales: u64,
    /// Its attributes.
    pub attributes: u64,
}

impl ModelGraph {
    /// The main graph of a model with what the file tells of every node: a model that is quantized shows where.
    pub fn read(model: &Model) -> Self {
        let mut graph = Self::of(model);
        let Ok(view) = GraphView::new(model.graph()) else { return graph };
        let precisions = precisions(&view);
        for (place, node) in graph.nodes.iter_mut().enumerate() {
            let proto = &model.graph().node[place];
            node.precision = precisions.get(&place).copied();
            node.contents = Some(contents(&view, proto));
        }
        graph
    }
}

/// INT8 and FP8, where a graph has nodes that compute in them.
pub(crate) fn quantized_in(graph: &GraphProto) -> BTreeSet<Precision> {
    let found = GraphView::new(graph).map(|view| precisions(&view)).unwrap_or_default();
    found.into_values().filter(|precision| precision.is_quantized()).collect()
}

/// What every node computes in, by its place; absent where it computes no floats, and of quantizers.
fn precisions(view: &GraphView<'_>) -> BTreeMap<usize, Precision> {
    let types = element_types(view, &BTreeMap::new());
    let mut found: BTreeMap<usize, Precision> = BTreeMap::new();
    for &id in view.topological_order() {
        let node = view.node(id);
        if node.is(Fact::Quantizer) {
            continue;
        }
        let producer = |input: &str| Some((view.producer(input)?.0, view.node(view.producer(input)?)));
        // The type of the codes behind a DequantizeLinear.
        let codes = |input: &str| {
            let (_, before) = producer(input).filter(|(_, before)| before.op_type() == "DequantizeLinear")?;
            let zero_point = before.input.get(2).and_then(|name| constant(view, name));
            let is_float = zero_point.is_some_and(|zero_point| FLOAT8.contains(&zero_point.data_type()));
            Some(if is_float { Precision::Fp8 } else { Precision::Int8 })
        };
        let float = |input: &&String| types.get(*input).is_none_or(|kind| kind.is_float());
        let read: Vec<&str> =
            node.input.iter().filter(|name| !name.is_empty()).filter(float).map(String::as_str).collect();
        let activations = || read.iter().filter(|name| view.initializer(name).is_none());
        let quantized = |input: &&&str| {
            producer(input).and_then(|(place, _)| found.get(&place)).is_some_and(|own| own.is_quantized())
        };
        let narrow = if node.is(Fact::Weighted) {
            read.iter()
                .take(2)
                .map(|input| codes(input))
                .collect::<Option<Vec<_>>>()
                .and_then(|both| both.first().copied())
        } else if node.is(Fact::Joins) {
            let any = activations().find_map(|input| codes(input));
            any.filter(|_| activations().all(|input| codes(input).is_some() || quantized(&input)))
        } else if node.is(Fact::Fuses) {
            // Computed where its operator's result is, which nobody else reads.
            let before = activations().next().filter(|input| view.consumers(input).len() == 1 && quantized(input));
            before.and_then(|input| found.get(&view.producer(input)?.0).copied())
        } else if node.is(Fact::Copies) || node.is(Fact::Between) {
            activations().map(|input| codes(input)).collect::<Option<Vec<_>>>().and_then(|all| all.first().copied())
        } else {
            None
        };
        let wide = || match types.get(node.output.first()?)? {
            ElementType::F32 => Some(Precision::Fp32),
            ElementType::F16 => Some(Precision::Fp16),
            ElementType::Bf16 => Some(Precision::Bf16),
            _ => None,
        };
        if let Some(precision) = narrow.or_else(wide) {
            found.insert(id.0, precision);
        }
    }
    found
}

fn contents(view: &GraphView<'_>, node: &NodeProto) -> Contents {
    let [mut weights, mut scales, mut attributes] = [(); 3].map(|()| blake3::Hasher::new());
    let quantizes = |node: &NodeProto| node.is(Fact::Quantizer);
    for (place, input) in node.input.iter().enumerate() {
        let mut tensor = input.as_str();
        if quantizes(node) && place > 0 {
            constant(view, tensor).inspect(|value| add(&mut scales, place, value));
            continue;
        }
        // Through DequantizeLinear and QuantizeLinear to what they quantize; a chain of them ends somewhere.
        for _ in 0..2 {
            let Some(before) = view.producer(tensor).map(|id| view.node(id)).filter(|before| quantizes(before)) else {
                break;
            };
            for parameter in before.input.iter().skip(1) {
                constant(view, parameter).inspect(|value| add(&mut scales, place, value));
            }
            tensor = before.input.first().map_or("", String::as_str);
        }
        constant(view, tensor).inspect(|value| add(&mut weights, place, value));
    }
    let mut own: Vec<_> = node.attribute.iter().filter(|attribute| !is_default(node, attribute)).collect();
    own.sort_by(|a, b| a.name().cmp(b.name()));
    for attribute in own {
        attributes.update(&attribute.encode_to_vec());
    }
    let [weights, scales, attributes] = [weights, scales, attributes].map(|hasher| {
        let bytes = *hasher.finalize().as_bytes();
        bytes.iter().take(8).fold(0, |all, &byte| all << 8 | u64::from(byte))
    });
    Contents { weights, scales, attributes }
}

/// Whole numbers that ONNX takes where an attribute is left out; of several the same number each.
const DEFAULTS: [(&str, i64); 15] = [
    ("group", 1),
    ("dilations", 1),
    ("strides", 1),
    ("keepdims", 1),
    ("saturate", 1),
    ("pads", 0),
    ("output_padding", 0),
    ("transA", 0),
    ("transB", 0),
    ("ceil_mode", 0),
    ("count_include_pad", 0),
    ("storage_order", 0),
    ("noop_with_empty_axes", 0),
    ("training_mode", 0),
    ("allowzero", 0),
];

/// Whether leaving the attribute out means the same: some tools write defaults out.
fn is_default(node: &NodeProto, attribute: &AttributeProto) -> bool {
    let numbers = || attribute.i.iter().chain(&attribute.ints);
    match attribute.name() {
        "auto_pad" => attribute.s.as_deref() == Some(b"NOTSET"),
        "alpha" | "beta" => node.op_type() == "Gemm" && attribute.f == Some(1.0),
        name => DEFAULTS.iter().any(|(known, value)| *known == name && numbers().all(|own| own == value)),
    }
}

/// An initializer, or what a Constant holds.
fn constant<'a>(view: &GraphView<'a>, tensor: &str) -> Option<&'a TensorProto> {
    let held = || view.node(view.producer(tensor)?).attr_t("value");
    view.initializer(tensor).or_else(held)
}

/// What a constant holds, wherever its bytes lie.
fn add(hasher: &mut blake3::Hasher, place: usize, value: &TensorProto) {
    hasher.update(&place.to_le_bytes()).update(&value.data_type().to_le_bytes());
    value.dims.iter().for_each(|extent| {
        hasher.update(&extent.to_le_bytes());
    });
    match value.to_tensor() {
        Ok(tensor) => hasher.update(tensor.values().view().bytes()),
        Err(_) => hasher.update(value.raw_data.as_deref().unwrap_or_default()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{
        QuantizeOptions, place, quantize,
        testing::{TestModel, no_shapes, table},
    };

    fn model() -> Model {
        let model = TestModel::new(17).input("x", &[1, 32, 8, 8]).output("y", &[1, 32, 8, 8]);
        let model = model.weight("w", &[32, 32, 1, 1]).weight("v", &[32, 32, 1, 1]);
        model
            .op("Conv", &["x", "w"], "a")
            .op("Relu", &["a"], "b")
            .op("Conv", &["b", "v"], "c")
            .op("Softmax", &["c"], "y")
            .build()
    }

    fn quantized(ranges: &[(&str, f32)]) -> Model {
        quantize(&model(), &no_shapes(), Some(&table(ranges)), &QuantizeOptions::default()).unwrap().model
    }

    #[test]
    fn a_file_tells_what_was_decided() {
        let model = model();
        let placed = place(&model, &no_shapes(), &QuantizeOptions::default().scheme).unwrap();
        let decided = ModelGraph::of(&model).decided(&placed);
        let told = ModelGraph::read(&quantized(&[("x", 1.0), ("b", 2.0)]));
        let words = |graph: &ModelGraph, op_type: &str| {
            let own = graph.nodes.iter().filter(|node| node.op_type == op_type);
            own.map(|node| node.precision.unwrap().to_string()).collect::<Vec<_>>()
        };
        for (op_type, precisions) in [("Conv", &["int8", "int8"][..]), ("Relu", &["int8"]), ("Softmax", &["fp32"])] {
            assert_eq!(words(&decided, op_type), precisions, "{op_type}, decided");
            assert_eq!(words(&told, op_type), precisions, "{op_type}, told by the file");
            let float = vec!["fp32"; precisions.len()];
            assert_eq!(words(&ModelGraph::read(&model), op_type), float, "{op_type}, before");
        }
        assert!(
            told.nodes
                .iter()
                .filter(|node| node.op_type.ends_with("QuantizeLinear"))
                .all(|node| node.precision.is_none())
        );
    }

    #[test]
    fn scales_and_weights_are_told_apart() {
        let conv = |model: &Model| {
            ModelGraph::read(model).nodes.iter().find(|node| node.op_type == "Conv").unwrap().contents.unwrap()
        };
        let own = conv(&quantized(&[("x", 1.0), ("b", 2.0)]));
        assert_eq!(conv(&quantized(&[("x", 1.0), ("b", 3.0)])), own, "another layer's scale is not its own");
        let other = conv(&quantized(&[("x", 1.5), ("b", 2.0)]));
        assert!(other.scales != own.scales && other.weights == own.weights && other.attributes == own.attributes);
        let mut changed = model();
        let raw = changed.graph_mut().initializer[0].raw_data.as_mut().unwrap();
        let mut bytes = raw.to_vec();
        bytes[3] ^= 0x80;
        *raw = bytes.into();
        let (float, changed) = (conv(&model()), conv(&changed));
        assert!(changed.weights != float.weights && changed.scales == float.scales);
        // A default that is written out is no other operation.
        let with = |attribute: AttributeProto| {
            let mut model = model();
            model.graph_mut().node[0].attribute.push(attribute);
            conv(&model).attributes == float.attributes
        };
        assert!(with(AttributeProto::string("auto_pad", "NOTSET")) && with(AttributeProto::ints("strides", &[1, 1])));
        assert!(!with(AttributeProto::ints("strides", &[2, 2])) && !with(AttributeProto::string("auto_pad", "VALID")));
    }
}
