use super::*;
use crate::{
    onnx::proto::AttributeProto,
    quantize::{
        QuantizeOptions, quantize,
        testing::{TestModel, no_shapes, table},
    },
    tensor::{Tensor, Values},
};

/// A quantized convolution with 4 input and 16 output channels, ours.
fn conv() -> Model {
    let model = TestModel::new(17)
        .input("x", &[1, 4, 8, 8])
        .weight("w", &[16, 4, 1, 1])
        .op("Conv", &["x", "w"], "y")
        .output("y", &[1, 16, 8, 8])
        .build();
    quantize(&model, &no_shapes(), Some(&table(&[("x", 1.0)])), &QuantizeOptions::default()).unwrap().model
}

fn errors(model: &Model) -> Vec<String> {
    validate(model).unwrap().into_iter().map(|finding| format!("{}: {}", finding.node, finding.message)).collect()
}

/// Findings after a change of the good model, which must be exactly one that says `part`.
fn one(part: &str, change: impl Fn(&mut GraphProto)) {
    let mut model = conv();
    change(model.graph_mut());
    let found = errors(&model);
    assert!(found.len() == 1 && found[0].contains(part), "{found:?} should be one finding with `{part}`");
}

fn set(graph: &mut GraphProto, name: &str, shape: &[usize], values: Values) {
    let tensor = graph.initializer.iter_mut().find(|tensor| tensor.name() == name).unwrap();
    *tensor = TensorProto::from_tensor(name, Tensor::new(shape.to_vec(), values).unwrap());
}

fn node<'g>(graph: &'g mut GraphProto, name: &str) -> &'g mut NodeProto {
    graph.node.iter_mut().find(|node| node.name() == name).unwrap()
}

#[test]
fn what_we_write_is_clean() {
    assert_eq!(errors(&conv()), Vec::<String>::new());
}

#[test]
fn scales_are_finite_positive_constants() {
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut model = conv();
        set(model.graph_mut(), "x_scale", &[], Values::F32(vec![value]));
        let found = errors(&model);
        assert!(found.len() == 2 && found.iter().all(|f| f.contains("above zero")), "{value}: {found:?}");
    }
    one("w_DequantizeLinear: its scale 3 is 0", |graph| {
        let mut scales = vec![1.0; 16];
        scales[3] = 0.0;
        set(graph, "w_scale", &[16], Values::F32(scales));
    });
    one("so small", |graph| set(graph, "w_scale", &[16], Values::F32(vec![1e-40; 16])));
    one("its scale is computed", |graph| node(graph, "w_DequantizeLinear").input[1] = "x".to_owned());
}

#[test]
fn zero_points_are_zero_and_fit_the_values() {
    one("is not 0", |graph| {
        let mut zeros = vec![0; 16];
        zeros[15] = 1;
        set(graph, "w_zero_point", &[16], Values::I8(zeros));
    });
    one("differ in type", |graph| set(graph, "w_zero_point", &[16], Values::U8(vec![0; 16])));
    one("gives unsigned values", |graph| drop(node(graph, "x_QuantizeLinear").input.pop()));
    one("FP8 needs opset 19", |graph| {
        let fp8 = |tensor: &mut TensorProto| tensor.data_type = Some(FLOAT8E4M3FN);
        let parts = ["w_quantized", "w_zero_point"];
        graph.initializer.iter_mut().filter(|tensor| parts.contains(&tensor.name())).for_each(fp8);
    });
}

#[test]
fn activations_have_one_scale_and_weights_those_of_their_channels() {
    let mut model = conv();
    set(model.graph_mut(), "x_scale", &[4], Values::F32(vec![1.0; 4]));
    assert!(errors(&model).iter().all(|found| found.contains("an activation has 4 scales")));
    assert_eq!(errors(&model).len(), 2);
    let axis = |graph: &mut GraphProto, axis| {
        node(graph, "w_DequantizeLinear").attribute = vec![AttributeProto::int("axis", axis)];
    };
    one("it has 16 scales along axis 1", |graph| axis(graph, 1));
    one("along axis 1, and `y` has its channels on axis 0", |graph| {
        axis(graph, 1);
        set(graph, "w_scale", &[4], Values::F32(vec![1.0; 4]));
        set(graph, "w_zero_point", &[4], Values::I8(vec![0; 4]));
    });
}

#[test]
fn weight_axes_of_matrix_products_and_transposed_convolutions() {
    let square = |op_type: &str, attribute: Option<AttributeProto>, shape: &[usize], axis: i64| {
        let mut product = NodeProto::new(op_type, "y", &["xd", "wd"], &["y"]);
        product.attribute.extend(attribute);
        let mut model = TestModel::new(17)
            .input("x", &[4, 16])
            .weight("w", shape)
            .weight("s", &[])
            .weight("ws", &[16])
            .op("QuantizeLinear", &["x", "s", "z"], "xq")
            .op("DequantizeLinear", &["xq", "s", "z"], "xd")
            .node(
                NodeProto::new("DequantizeLinear", "wd", &["w", "ws"], &["wd"]).with(AttributeProto::int("axis", axis)),
            )
            .node(product)
            .weight("z", &[])
            .build();
        let count = shape.iter().product();
        let graph = model.graph_mut();
        set(graph, "w", shape, Values::I8(vec![1; count]));
        set(graph, "z", &[], Values::I8(vec![0]));
        set(graph, "s", &[], Values::F32(vec![1.0]));
        set(graph, "ws", &[16], Values::F32(vec![1.0; 16]));
        errors(&model)
    };
    let flag = || Some(AttributeProto::int("transB", 1));
    for (op_type, attribute, shape, right) in [
        ("MatMul", None, &[16, 16][..], 1),
        ("Gemm", None, &[16, 16], 1),
        ("Gemm", flag(), &[16, 16], 0),
        ("ConvTranspose", None, &[16, 16, 1, 1], 1),
    ] {
        assert_eq!(square(op_type, attribute.clone(), shape, right), Vec::<String>::new(), "{op_type}");
        let wrong = square(op_type, attribute, shape, 1 - right);
        assert!(wrong.len() == 1 && wrong[0].contains(&format!("channels on axis {right}")), "{op_type}: {wrong:?}");
    }
}

#[test]
fn one_sided_and_mixed_operators_are_found() {
    one("first input is quantized and its second is not", |graph| {
        node(graph, "y").input[1] = "w_float".to_owned();
        graph.node.retain(|node| node.name() != "w_DequantizeLinear");
    });
    let mut model = conv();
    model.set_opset("", 19);
    set(model.graph_mut(), "w_scale", &[16], Values::F16(vec![half::f16::ONE; 16]));
    let found = errors(&model);
    assert!(found.len() == 1 && found[0].contains("two sides differ in type"), "{found:?}");
}

#[test]
fn integer_operators_and_biases_are_rejected() {
    let model = TestModel::new(17).input("x", &[1]).op("QLinearConv", &["x"], "y").build();
    assert!(errors(&model)[0].contains("TensorRT does not take this operator"));
    one("32-bit integers", |graph| {
        let mut bias = NodeProto::new("DequantizeLinear", "b_dq", &["b", "b_scale"], &["b_float"]);
        bias.attribute.push(AttributeProto::int("axis", 0));
        graph.node.insert(0, bias);
        for (name, values) in [("b", Values::I32(vec![1; 16])), ("b_scale", Values::F32(vec![1.0; 16]))] {
            graph.initializer.push(TensorProto::from_tensor(name, Tensor::new(vec![16], values).unwrap()));
        }
    });
}

#[test]
fn pairs_are_complete() {
    one("takes its 8-bit values directly", |graph| {
        graph.node.push(NodeProto::new("Cast", "cast", &["x_quantized"], &["cast"]));
    });
}

#[test]
fn branches_are_checked_with_the_constants_around_them() {
    let mut model = conv();
    let mut branch = NodeProto::new("If", "if", &["c"], &["out"]);
    let mut inner = GraphProto::default();
    inner.node.push(NodeProto::new("DequantizeLinear", "inner", &["v", "x_scale", "w_zero_point"], &["o"]));
    branch.attribute.push(AttributeProto::graph("then_branch", inner));
    model.graph_mut().node.push(branch);
    assert_eq!(errors(&model), Vec::<String>::new());
    set(model.graph_mut(), "w_zero_point", &[16], Values::I8(vec![1; 16]));
    assert!(errors(&model).iter().any(|found| found.starts_with("inner: ")));
}

#[test]
fn codes_that_tensorrt_reads_otherwise_are_errors() {
    let zero_point = |values: Values| {
        move |graph: &mut GraphProto| {
            set(graph, "x_zero_point", &[], values.clone());
        }
    };
    for (values, part) in
        [(Values::U8(vec![0]), "unsigned"), (Values::I16(vec![0]), "int16"), (Values::U16(vec![0]), "uint16")]
    {
        let mut model = conv();
        zero_point(values)(model.graph_mut());
        let found = errors(&model);
        assert!(found.len() == 2 && found.iter().all(|finding| finding.contains(part)), "{part}: {found:?}");
    }
    one("int16", |graph| {
        let q = node(graph, "x_QuantizeLinear");
        q.input.pop();
        q.attribute.push(AttributeProto::int("output_dtype", 5));
    });
}

#[test]
fn scales_are_constants_also_through_identity_and_as_numbers_of_a_node() {
    for made in [
        NodeProto::new("Identity", "scale", &["s"], &["x_scale"]),
        NodeProto::new("Constant", "scale", &[], &["x_scale"]).with(AttributeProto::float("value_float", 0.03)),
    ] {
        let mut model = conv();
        let graph = model.graph_mut();
        let scale = graph.initializer.iter_mut().find(|tensor| tensor.name() == "x_scale").unwrap();
        scale.name = Some("s".to_owned());
        graph.node.insert(0, made);
        assert_eq!(errors(&model), Vec::<String>::new());
    }
}

#[test]
fn pairs_of_the_contributed_domain_are_checked_as_the_standard_ones() {
    let contributed = |change: &dyn Fn(&mut GraphProto)| {
        let mut model = conv();
        change(model.graph_mut());
        for node in model.graph_mut().node.iter_mut().filter(|node| node.op_type().ends_with("Linear")) {
            node.domain = Some("com.microsoft".to_owned());
        }
        model.set_opset("", 9);
        model.set_opset("com.microsoft", 1);
        errors(&model)
    };
    assert_eq!(contributed(&|_| {}), Vec::<String>::new());
    let found = contributed(&|graph| set(graph, "x_zero_point", &[], Values::I8(vec![3])));
    assert!(found.len() == 2 && found[0].contains("zero point is not 0"), "{found:?}");
}

#[test]
fn scales_are_followed_through_a_transpose() {
    let through = |axis: i64| {
        let mut model = conv();
        let graph = model.graph_mut();
        // Stored as [in, out, h, w], and turned to [out, in, h, w] behind the DequantizeLinear.
        let codes = graph.initializer.iter_mut().find(|tensor| tensor.name() == "w_quantized").unwrap();
        codes.dims = vec![if axis == 1 { 4 } else { 16 }, if axis == 1 { 16 } else { 4 }, 1, 1];
        let dequantize = node(graph, "w_DequantizeLinear");
        dequantize.attribute.retain(|attribute| attribute.name() != "axis");
        dequantize.attribute.push(AttributeProto::int("axis", axis));
        let made = dequantize.output[0].clone();
        let turn = NodeProto::new("Transpose", "turn", &[&made], &["turned"]);
        let conv = node(graph, "y");
        *conv.input.iter_mut().find(|input| **input == made).unwrap() = "turned".to_owned();
        let at = graph.node.iter().position(|node| node.name() == "y").unwrap();
        graph.node.insert(at, turn.with(AttributeProto::ints("perm", &[1, 0, 2, 3])));
        errors(&model)
    };
    assert_eq!(through(1), Vec::<String>::new());
    let found = through(0);
    assert!(
        found.len() == 1 && found[0].contains("scales lie along axis 1, and `y` has its channels on axis 0"),
        "{found:?}"
    );
}

#[test]
fn scales_are_followed_through_a_reshape() {
    let through = |stored: &[i64], axis: i64| {
        let mut model = conv();
        let graph = model.graph_mut();
        let codes = graph.initializer.iter_mut().find(|tensor| tensor.name() == "w_quantized").unwrap();
        codes.dims = stored.to_vec();
        let dequantize = node(graph, "w_DequantizeLinear");
        dequantize.attribute.retain(|attribute| attribute.name() != "axis");
        dequantize.attribute.push(AttributeProto::int("axis", axis));
        let made = dequantize.output[0].clone();
        let conv = node(graph, "y");
        *conv.input.iter_mut().find(|input| **input == made).unwrap() = "shaped".to_owned();
        let at = graph.node.iter().position(|node| node.name() == "y").unwrap();
        graph.node.insert(at, NodeProto::new("Reshape", "shape", &[&made, "extents"], &["shaped"]));
        let extents = Tensor::new(vec![4], Values::I64(vec![16, -1, 1, 1])).unwrap();
        graph.initializer.push(TensorProto::from_tensor("extents", extents));
        errors(&model)
    };
    assert_eq!(through(&[16, 4], 0), Vec::<String>::new());
    assert_eq!(through(&[1, 16, 4], 1), Vec::<String>::new());
    let found = through(&[4, 16], 1);
    assert!(
        found.len() == 1 && found[0].contains("mixes with others, and `y` has its channels on axis 0"),
        "{found:?}"
    );
}

#[test]
fn a_pair_with_two_scales_multiplies() {
    let scaled = |by: f32| {
        let mut model = conv();
        let graph = model.graph_mut();
        let scale = graph.initializer.iter().find(|tensor| tensor.name() == "x_scale").unwrap().to_tensor().unwrap();
        let other = Tensor::from_f32(vec![], vec![scale.to_f32()[0] * by]).unwrap();
        graph.initializer.push(TensorProto::from_tensor("other", other));
        node(graph, "x_DequantizeLinear").input[1] = "other".to_owned();
        errors(&model)
    };
    assert_eq!(scaled(1.001), Vec::<String>::new());
    let found = scaled(2.0);
    assert!(found.len() == 1 && found[0].contains("every value is multiplied by their ratio"), "{found:?}");
}
