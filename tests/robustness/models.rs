//! Models made by hand.

use prost::Message;
use trtcalib::{
    onnx::proto::{
        AttributeProto, DimensionProto, DimensionValue, FunctionProto, GraphProto, ModelProto, NodeProto,
        OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
        TypeValue, ValueInfoProto,
    },
    tensor::{Tensor, Values},
};

/// A float tensor of the given extents; a negative one is dynamic.
pub fn float(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&extent: &i64| DimensionProto {
        value: Some(if extent < 0 {
            DimensionValue::DimParam("batch".to_owned())
        } else {
            DimensionValue::DimValue(extent)
        }),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(1), shape: Some(shape) };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..Default::default() }
}

/// A weight of the given extents, all 0.5.
pub fn weight(name: &str, dims: &[usize]) -> TensorProto {
    let values = vec![0.5; dims.iter().product()];
    TensorProto::from_tensor(name, Tensor::from_f32(dims.to_vec(), values).unwrap())
}

/// A model of nodes, from `x` to `y`.
pub fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    let graph = GraphProto {
        name: Some("g".to_owned()),
        node,
        initializer,
        input: vec![float("x", &[-1, 3, 4, 4])],
        output: vec![float("y", &[-1, 5])],
        ..Default::default()
    };
    let mut model = ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() };
    model.set_opset("", 17);
    model
}

/// Convolution, residual addition, pooling, a branch and a matrix product.
pub fn small() -> Vec<u8> {
    let branch = |name: &str, node: NodeProto| GraphProto {
        name: Some(name.to_owned()),
        output: vec![float(&node.output[0], &[-1, 3])],
        node: vec![node],
        ..Default::default()
    };
    let nodes = vec![
        NodeProto::new("Conv", "conv", &["x", "w"], &["c"]).with(AttributeProto::ints("pads", &[1, 1, 1, 1])),
        NodeProto::new("Relu", "relu", &["c"], &["r"]),
        NodeProto::new("Add", "add", &["r", "x"], &["s"]),
        NodeProto::new("GlobalAveragePool", "pool", &["s"], &["p"]),
        NodeProto::new("Flatten", "flat", &["p"], &["f"]).with(AttributeProto::int("axis", 1)),
        NodeProto::new("If", "choose", &["flag"], &["h"])
            .with(AttributeProto::graph("then_branch", branch("then", NodeProto::new("Neg", "neg", &["f"], &["n"]))))
            .with(AttributeProto::graph(
                "else_branch",
                branch("else", NodeProto::new("Identity", "same", &["f"], &["i"])),
            )),
        NodeProto::new("Gemm", "gemm", &["h", "v", "b"], &["y"]).with(AttributeProto::int("transB", 1)),
    ];
    let flag = TensorProto::from_tensor("flag", Tensor::new(vec![], Values::Bool(vec![true])).unwrap());
    let weights = vec![weight("w", &[3, 3, 3, 3]), weight("v", &[5, 3]), weight("b", &[5]), flag];
    model(nodes, weights).encode_to_vec()
}

/// A tensor whose data lies in another file.
pub fn external(name: &str, dims: &[i64], location: &str, length: u64) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(1),
        data_location: Some(1),
        external_data: vec![
            entry("location", location.to_owned()),
            entry("offset", "0".to_owned()),
            entry("length", length.to_string()),
        ],
        ..Default::default()
    }
}

/// A model with functions each of which calls the next one twice.
fn growing_functions() -> Vec<u8> {
    let call = |level: usize, input: &str, output: &str| {
        let mut node = NodeProto::new(&format!("F{level}"), output, &[input], &[output]);
        node.domain = Some("local".to_owned());
        node
    };
    let mut model = model(vec![call(0, "x", "y")], vec![]);
    model.set_opset("local", 1);
    model.functions = (0..31)
        .map(|level| FunctionProto {
            name: Some(format!("F{level}")),
            domain: Some("local".to_owned()),
            input: vec!["a".to_owned()],
            output: vec!["b".to_owned()],
            node: match level {
                30 => vec![NodeProto::new("Relu", "relu", &["a"], &["b"])],
                _ => vec![call(level + 1, "a", "t"), call(level + 1, "t", "b")],
            },
            opset_import: model.opset_import.clone(),
            ..Default::default()
        })
        .collect();
    model.encode_to_vec()
}

/// Models with one defect each: what it is, a word that its error must hold, and the model.
pub fn broken() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let healthy = || ModelProto::decode(small().as_slice()).unwrap();
    let with = |change: &dyn Fn(&mut GraphProto)| {
        let mut model = healthy();
        change(model.graph.as_mut().unwrap());
        model.encode_to_vec()
    };
    let initializer = |tensor: TensorProto| with(&move |graph| graph.initializer[0] = tensor.clone());
    let truncated = small()[..small().len() / 2].to_vec();
    let mut flipped = small();
    let middle = flipped.len() / 4;
    flipped.iter_mut().skip(middle).take(40).for_each(|byte| *byte ^= 0x55);
    let mut wrong = weight("w", &[3, 3, 3, 3]);
    wrong.dims = vec![3, 3, 3, 4];
    let mut huge = weight("w", &[3, 3, 3, 3]);
    huge.dims = vec![1 << 40, 1 << 40, 3, 3];
    let mut typed = weight("w", &[3, 3, 3, 3]);
    typed.data_type = Some(7);
    let deep = (0..3000).fold(NodeProto::new("Identity", "leaf", &["x"], &["y"]), |inner, _| {
        let graph = GraphProto { node: vec![inner], ..Default::default() };
        NodeProto::new("If", "outer", &["x"], &["y"]).with(AttributeProto::graph("then_branch", graph))
    });
    let mut no_opset = healthy();
    no_opset.opset_import.clear();
    let mut two_opsets = healthy();
    two_opsets.opset_import.push(OperatorSetIdProto { domain: Some("ai.onnx".to_owned()), version: Some(12) });
    let fill = TensorProto::from_tensor("shape", Tensor::new(vec![2], Values::I64(vec![40_000, 40_000])).unwrap());
    vec![
        ("truncated", "m.onnx", truncated),
        ("bits flipped", "m.onnx", flipped),
        ("a cycle", "cycle", with(&|graph| "s".clone_into(&mut graph.node[0].input[0]))),
        ("two producers of a tensor", "`r`", with(&|graph| "r".clone_into(&mut graph.node[2].output[0]))),
        ("a tensor that nothing makes", "`nowhere`", with(&|graph| "nowhere".clone_into(&mut graph.node[1].input[0]))),
        ("a missing initializer", "`w`", with(&|graph| drop(graph.initializer.remove(0)))),
        ("a weight of the wrong shape", "`w`", initializer(wrong)),
        ("a weight of the wrong type", "`w`", initializer(typed)),
        ("a weight of 2^80 values", "`w`", initializer(huge)),
        (
            "an operator that does not exist",
            "Frobnicate",
            with(&|graph| {
                graph.node[1].op_type = Some("Frobnicate".to_owned());
            }),
        ),
        ("no inputs", "input", with(&|graph| graph.input.clear())),
        ("no outputs", "output", with(&|graph| graph.output.clear())),
        ("no operator set", "opset", no_opset.encode_to_vec()),
        ("two operator sets", "several versions", two_opsets.encode_to_vec()),
        ("functions that stand for 2^30 nodes", "1048576 nodes", growing_functions()),
        (
            "a constant of 6 GB",
            "`fill`",
            with(&|graph| {
                graph.initializer.push(fill.clone());
                graph.node.push(NodeProto::new("ConstantOfShape", "fill", &["shape"], &["filled"]));
                graph.output.push(float("filled", &[40_000, 40_000]));
            }),
        ),
        (
            "copies that overflow",
            "m.onnx",
            with(&|graph| {
                let times = Tensor::new(vec![4], Values::I64(vec![1, 1, i64::MAX, i64::MAX])).unwrap();
                graph.initializer.push(TensorProto::from_tensor("times", times));
                graph.node.push(NodeProto::new("Tile", "tile", &["x", "times"], &["tiled"]));
                graph.output.push(float("tiled", &[-1, 3, -1, -1]));
            }),
        ),
        (
            "a batch of 2^63 - 1 samples",
            "9223372036854775807",
            with(&|graph| {
                graph.input[0] = float("x", &[i64::MAX, 3, 4, 4]);
                graph.output[0] = float("y", &[i64::MAX, 5]);
            }),
        ),
        ("pictures of 2^63 - 1 pixels", "`x`", with(&|graph| graph.input[0] = float("x", &[-1, 3, i64::MAX, 4]))),
        ("a checkpoint of PyTorch", "it is a Zip archive", b"PK\x03\x04\x14\0\0\0".to_vec()),
        ("a picture", "it is a PNG image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec()),
        ("a model of TensorFlow Lite", "it is a TensorFlow Lite model", b"\x1c\0\0\0TFL3\0\0".to_vec()),
        ("a page instead of a model", "it is text", b"<html><body>404 Not Found</body></html>".to_vec()),
        ("no graph", "graph", ModelProto { ir_version: Some(8), ..Default::default() }.encode_to_vec()),
        ("3000 nested graphs", "deep", model(vec![deep], vec![]).encode_to_vec()),
        ("an empty file", "m.onnx", Vec::new()),
        ("missing external data", "none.bin", initializer(external("w", &[3, 3, 3, 3], "none.bin", 324))),
        (
            "external data that is too short",
            "only 100 bytes",
            initializer(external("w", &[3, 3, 3, 3], "short.bin", 324)),
        ),
        (
            "external data outside by `..`",
            "../secret.bin",
            initializer(external("w", &[3, 3, 3, 3], "../secret.bin", 324)),
        ),
        (
            "external data outside by a path",
            "/etc/hostname",
            initializer(external("w", &[3, 3, 3, 3], "/etc/hostname", 4)),
        ),
        ("external data outside by a link", "link.bin", initializer(external("w", &[3, 3, 3, 3], "link.bin", 324))),
        ("external data of an exabyte", "only 100 bytes", initializer(external("w", &[1 << 58], "short.bin", 1 << 60))),
    ]
}
