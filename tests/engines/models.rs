//! Small models, written for what an engine does with their inputs and outputs.

use std::path::Path;

use prost::Message;
use trtcalib::{
    onnx::proto::{
        AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto,
        TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
    },
    tensor::{ElementType, Tensor, Values},
};

/// ONNX's number of the 8-bit float E4M3.
pub const FP8: i32 = 17;

/// An input or output; extents below 0 are open.
pub fn value(name: &str, data_type: i32, extents: &[i64]) -> ValueInfoProto {
    let dim = |&extent: &i64| DimensionProto {
        value: Some(if extent < 0 {
            DimensionValue::DimParam(format!("n{extent}"))
        } else {
            DimensionValue::DimValue(extent)
        }),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: extents.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(data_type), shape: Some(shape) };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..Default::default() }
}

pub fn float(name: &str, extents: &[i64]) -> ValueInfoProto {
    value(name, ElementType::F32.onnx(), extents)
}

pub fn weight(name: &str, shape: &[usize], values: Vec<f32>) -> TensorProto {
    TensorProto::from_tensor(name, Tensor::from_f32(shape.to_vec(), values).unwrap())
}

fn scalar(name: &str, value: i64) -> TensorProto {
    TensorProto::from_tensor(name, Tensor::new(vec![], Values::I64(vec![value])).unwrap())
}

/// Writes models that make integers: `classes` of pixels, `tokens` whose classes stand beside their scores, `looked up` by
/// numbers that are made of floats, and what is cast to the types of `NARROW`.
pub fn save_integers(folder: &Path) {
    let (i32, i64) = (ElementType::I32.onnx(), ElementType::I64.onnx());
    let numbers = |count: usize| (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect::<Vec<_>>();
    let nodes = vec![
        NodeProto::new("Conv", "conv1", &["x", "k1"], &["a"]),
        NodeProto::new("Relu", "relu", &["a"], &["b"]),
        NodeProto::new("Conv", "conv2", &["b", "k2"], &["s"]),
        NodeProto::new("ArgMax", "argmax", &["s"], &["l"])
            .with(AttributeProto::int("axis", 1))
            .with(AttributeProto::int("keepdims", 0)),
        cast("l", "labels", i32),
    ];
    let weights = vec![weight("k1", &[8, 3, 1, 1], numbers(24)), weight("k2", &[5, 8, 1, 1], numbers(40))];
    let (x, labels) = (vec![float("x", &[-1, 3, 8, 8])], vec![value("labels", i32, &[-1, 8, 8])]);
    save(folder, "classes", nodes, x, labels, weights);

    let look_up = |ids: &str| {
        vec![
            NodeProto::new("Gather", "gather", &["embedding", ids], &["e"]),
            NodeProto::new("ReduceMean", "mean", &["e", "axes"], &["m"]).with(AttributeProto::int("keepdims", 0)),
            NodeProto::new("MatMul", "product", &["m", "w"], &["y"]),
        ]
    };
    let weights =
        || vec![weight("embedding", &[50, 16], numbers(800)), weight("w", &[16, 10], numbers(160)), integer("axes", 1)];
    let class = NodeProto::new("ArgMax", "class", &["y"], &["best"])
        .with(AttributeProto::int("axis", 1))
        .with(AttributeProto::int("keepdims", 0));
    let nodes = [look_up("x"), vec![class]].concat();
    let outputs = vec![float("y", &[-1, 10]), value("best", i64, &[-1])];
    save(folder, "tokens", nodes, vec![value("x", i64, &[-1, 7])], outputs, weights());

    let ids = vec![
        cast("x", "as ids", i64),
        NodeProto::new("Abs", "abs", &["as ids"], &["not negative"]),
        NodeProto::new("Clip", "clip", &["not negative", "low", "high"], &["ids"]),
    ];
    let nodes = [ids, look_up("ids")].concat();
    let weights = [weights(), vec![scalar("low", 0), scalar("high", 20)]].concat();
    save(folder, "looked up", nodes, vec![float("x", &[-1, 7])], vec![float("y", &[-1, 10])], weights);

    for (name, element_type) in NARROW {
        let nodes = vec![NodeProto::new("Add", "add", &["x", "x"], &["y"]), cast("y", "z", element_type.onnx())];
        let outputs = vec![float("y", &[-1, 7]), value("z", element_type.onnx(), &[-1, 7])];
        save(folder, name, nodes, vec![float("x", &[-1, 7])], outputs, vec![]);
    }
    let (bf16, w) = (ElementType::Bf16.onnx(), vec![weight("w", &[7, 4], numbers(28))]);
    let nodes = vec![cast("x", "f", ElementType::F32.onnx()), NodeProto::new("MatMul", "product", &["f", "w"], &["y"])];
    save(folder, "takes bf16", nodes, vec![value("x", bf16, &[-1, 7])], vec![float("y", &[-1, 4])], w);
}

/// Types that floats are cast to in models of these names.
pub const NARROW: [(&str, ElementType); 3] =
    [("to int32", ElementType::I32), ("to uint8", ElementType::U8), ("to int8", ElementType::I8)];

fn integer(name: &str, value: i64) -> TensorProto {
    TensorProto::from_tensor(name, Tensor::new(vec![1], Values::I64(vec![value])).unwrap())
}

fn cast(from: &str, to: &str, data_type: i32) -> NodeProto {
    NodeProto::new("Cast", to, &[from], &[to]).with(AttributeProto::int("to", i64::from(data_type)))
}

/// Writes a model as `name.onnx`.
pub fn save(
    folder: &Path,
    name: &str,
    node: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
) {
    let graph = GraphProto { name: Some("g".to_owned()), node, initializer, input, output, ..Default::default() };
    let mut model = ModelProto { ir_version: Some(9), graph: Some(graph), ..Default::default() };
    model.set_opset("", 19);
    std::fs::write(folder.join(format!("{name}.onnx")), model.encode_to_vec()).unwrap();
}

/// Types that the model `types` casts its input to.
pub const TYPES: [(&str, ElementType); 6] = [
    ("as int64", ElementType::I64),
    ("as int32", ElementType::I32),
    ("as half", ElementType::F16),
    ("as bf16", ElementType::Bf16),
    ("as bool", ElementType::Bool),
    ("as uint8", ElementType::U8),
];

/// Writes the models of `shapes.rs`.
pub fn save_kinds(folder: &Path) {
    let x = || vec![float("x", &[-1, 4])];
    let (f32, i64) = (ElementType::F32.onnx(), ElementType::I64.onnx());
    let reshape = NodeProto::new("Reshape", "reshape", &["x", "to"], &["y"]);
    let inputs = vec![float("x", &[-1, 4]), value("to", i64, &[2])];
    save(folder, "reshaped", vec![reshape], inputs, vec![float("y", &[-2, -3])], vec![]);
    // A number beside what comes in batches.
    let inputs = vec![float("x", &[-1, 4]), float("k", &[])];
    save(
        folder,
        "scaled",
        vec![NodeProto::new("Mul", "mul", &["x", "k"], &["y"])],
        inputs,
        vec![float("y", &[-1, 4])],
        vec![],
    );
    let inputs = vec![value("x", i64, &[-1, 4]), value("k", i64, &[])];
    let add = NodeProto::new("Add", "add", &["x", "k"], &["y"]);
    save(folder, "added", vec![add], inputs, vec![value("y", i64, &[-1, 4])], vec![]);
    // Shapes that inputs decide through another node, and by other operators.
    let concat =
        NodeProto::new("Concat", "concat", &["to rows", "to columns"], &["to"]).with(AttributeProto::int("axis", 0));
    let reshape = NodeProto::new("Reshape", "reshape", &["x", "to"], &["y"]);
    let inputs = vec![float("x", &[-1, 4]), value("to rows", i64, &[1]), value("to columns", i64, &[1])];
    save(folder, "joined", vec![concat, reshape], inputs, vec![float("y", &[-2, -3])], vec![]);
    let slice = NodeProto::new("Slice", "slice", &["x", "from", "to"], &["y"]);
    let inputs = vec![float("x", &[-1, 4]), value("to", i64, &[1])];
    save(folder, "sliced", vec![slice], inputs, vec![float("y", &[-2, 4])], vec![integer("from", 0)]);
    let best = NodeProto::new("TopK", "best", &["x", "to"], &["y", "places"]);
    let inputs = vec![float("x", &[-1, 4]), value("to", i64, &[1])];
    let outputs = vec![float("y", &[-1, -2]), value("places", i64, &[-1, -2])];
    save(folder, "best", vec![best], inputs, outputs, vec![]);
    let range = NodeProto::new("Range", "range", &["from", "to", "by"], &["y"]);
    let bounds = vec![scalar("from", 0), scalar("by", 1)];
    save(folder, "range", vec![range], vec![value("to", i64, &[])], vec![value("y", i64, &[-1])], bounds);
    let nonzero = NodeProto::new("NonZero", "nonzero", &["x"], &["y"]);
    save(folder, "found", vec![nonzero], x(), vec![value("y", i64, &[2, -1])], vec![]);
    let casts = TYPES.iter().map(|(name, kind)| cast("x", name, kind.onnx())).collect();
    let outputs = TYPES.iter().map(|(name, kind)| value(name, kind.onnx(), &[-1, 4])).collect();
    save(folder, "types", casts, x(), outputs, vec![]);
    save(folder, "narrow", vec![cast("x", "y", FP8)], x(), vec![value("y", FP8, &[-1, 4])], vec![]);
    let nodes = vec![cast("x", "as fp8", FP8), cast("as fp8", "y", f32)];
    save(folder, "through fp8", nodes, x(), vec![float("y", &[-1, 4])], vec![]);
    for (name, data_type) in [("from bf16", ElementType::Bf16.onnx()), ("from int64", i64), ("from fp8", FP8)] {
        let (input, output) = (vec![value("b", data_type, &[-1, 4])], vec![float("y", &[-1, 4])]);
        save(folder, name, vec![cast("b", "y", f32)], input, output, vec![]);
    }
    let slice = NodeProto::new("Slice", "slice", &["x", "from", "to", "axes"], &["none"]);
    let nodes = vec![slice, NodeProto::new("Neg", "neg", &["x"], &["y"])];
    let bounds = vec![integer("from", 0), integer("to", 0), integer("axes", 1)];
    save(folder, "empty", nodes, x(), vec![float("none", &[-1, -2]), float("y", &[-1, 4])], bounds);
    let add = NodeProto::new("Add", "sum of both", &["an input", "an input"], &["the sum"]);
    save(folder, "doubled", vec![add], vec![float("an input", &[-1, 4])], vec![float("the sum", &[-1, 4])], vec![]);
}
