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
    let mut model = conv();
    for side in ["x", "w"] {
        with_codes(model.graph_mut(), side, FLOAT8E4M3FN);
    }
    let found = errors(&model);
    assert!(found.len() == 3 && found.iter().all(|finding| finding.contains("FP8 needs opset 19")), "{found:?}");
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

/// The good model with the scale of its activation made by `nodes` of the constants `s` (a number) and `list`.
fn made_by(nodes: &[NodeProto]) -> Model {
    let mut model = conv();
    let graph = model.graph_mut();
    graph.initializer.retain(|tensor| tensor.name() != "x_scale");
    for (name, shape) in [("s", vec![]), ("list", vec![1])] {
        let tensor = Tensor::from_f32(shape, vec![0.5]).unwrap();
        graph.initializer.push(TensorProto::from_tensor(name, tensor));
    }
    graph.node.splice(0..0, nodes.iter().cloned());
    model
}

fn op(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto::new(op_type, output, inputs, &[output])
}

#[test]
fn scales_may_be_computed_of_constants_by_what_tensorrt_computes_before_it_builds() {
    let found = |nodes: &[NodeProto], value: Option<(&[usize], f32)>| {
        let compute = |constants: &Model| {
            let (shape, value) = value.ok_or("no runtime")?;
            let names = constants.graph().output.iter().map(|output| output.name().to_owned());
            let tensor = Tensor::from_f32(shape.to_vec(), vec![value]).unwrap();
            Ok(names.map(|name| (name, tensor.clone())).collect())
        };
        validate_with(&made_by(nodes), &compute).unwrap()
    };
    let is = |found: &[Finding], part: &str, stops_builder: bool| {
        let good = |finding: &Finding| finding.message.contains(part) && finding.stops_builder == stops_builder;
        assert!(!found.is_empty() && found.iter().all(good), "{part}: {found:?}");
    };
    let product = op("Mul", &["s", "s"], "x_scale");
    assert_eq!(found(std::slice::from_ref(&product), Some((&[], 0.25))), []);
    is(&found(std::slice::from_ref(&product), Some((&[], -0.25))), "above zero", false);
    is(&found(std::slice::from_ref(&product), Some((&[1], 0.25))), "a list of one number", false);
    is(&found(std::slice::from_ref(&product), None), "could not be looked at: no runtime", false);
    is(&found(&[op("ReduceMax", &["list"], "x_scale")], Some((&[], 0.5))), "computed by ReduceMax", true);
    assert_eq!(found(&[op("Gather", &["list", "s"], "x_scale")], Some((&[], 0.5))), []);
    is(&found(&[op("Gather", &["list", "list"], "x_scale")], Some((&[], 0.5))), "computed by Gather", false);
    is(&found(&[op("ReduceMax", &["x"], "x_scale")], Some((&[], 0.5))), "computed as the model runs", true);
    is(&found(&[op("RandomNormal", &[], "x_scale")], Some((&[], 0.5))), "computed as the model runs", true);
}

#[test]
fn weights_may_be_moved_in_front_of_q_and_codes_may_not() {
    // A float weight of 4 inputs and 16 outputs that is turned, then quantized and dequantized by output.
    let turned = |axis: i64| {
        let mut model = conv();
        let graph = model.graph_mut();
        graph.initializer.retain(|tensor| tensor.name() != "w_quantized");
        let float = Tensor::from_f32(vec![4, 16, 1, 1], vec![1.0; 64]).unwrap();
        graph.initializer.push(TensorProto::from_tensor("float", float));
        let along = AttributeProto::int("axis", axis);
        let q = NodeProto::new("QuantizeLinear", "q", &["turned", "w_scale", "w_zero_point"], &["w_quantized"]);
        graph.node.splice(0..0, [op("Transpose", &["float"], "turned"), q.with(along)]);
        let compute = |constants: &Model| {
            assert_eq!(constants.graph().output[0].name(), "turned");
            Ok(TensorMap::from([("turned".to_owned(), Tensor::from_f32(vec![16, 4, 1, 1], vec![1.0; 64]).unwrap())]))
        };
        let found = validate_with(&model, &compute).unwrap();
        found.into_iter().map(|finding| finding.message).collect::<Vec<_>>()
    };
    assert_eq!(turned(0), Vec::<String>::new());
    assert!(turned(1).iter().any(|message| message.contains("16 scales along axis 1")));
    for mover in ["Identity", "Reshape"] {
        one("its values come through `moved`, and TensorRT takes constants of int8 right in front", |graph| {
            node(graph, "w_DequantizeLinear").input[0] = "moved".to_owned();
            graph.node.insert(0, op(mover, &["w_quantized"], "moved"));
        });
    }
    // Codes of an activation may be moved, as TensorRT moves Q/DQ.
    let mut model = conv();
    node(model.graph_mut(), "x_DequantizeLinear").input[0] = "moved".to_owned();
    model.graph_mut().node.push(op("MaxPool", &["x_quantized"], "moved"));
    assert_eq!(errors(&model), Vec::<String>::new());
}

#[test]
fn zero_points_may_be_cast_and_are_as_many_as_scales() {
    let made = |op_type: &str| {
        let mut model = conv();
        let graph = model.graph_mut();
        let zero_point = graph.initializer.iter_mut().find(|tensor| tensor.name() == "x_zero_point").unwrap();
        zero_point.name = Some("z".to_owned());
        graph.node.insert(0, op(op_type, &["z"], "x_zero_point"));
        errors(&model)
    };
    assert_eq!(made("Cast"), Vec::<String>::new());
    assert!(made("Squeeze").iter().all(|found| found.contains("its zero point is computed")));
    one("16 scales and 1 zero points", |graph| set(graph, "w_zero_point", &[], Values::I8(vec![0])));
    one("has the shape [16, 1, 1, 1]", |graph| set(graph, "w_scale", &[16, 1, 1, 1], Values::F32(vec![1.0; 16])));
}

/// Gives the codes and zero points of one side of a product a type.
fn with_codes(graph: &mut GraphProto, side: &str, kind: i32) {
    let parts = [format!("{side}_quantized"), format!("{side}_zero_point")];
    let tensors = graph.initializer.iter_mut().filter(|tensor| parts.contains(&tensor.name().to_owned()));
    for tensor in tensors {
        tensor.data_type = Some(kind);
    }
}

#[test]
fn products_are_of_two_types_that_tensorrt_multiplies() {
    let found = |kinds: [i32; 2], product: &str| {
        let mut model = conv();
        model.set_opset("", 23);
        let graph = model.graph_mut();
        with_codes(graph, "x", kinds[0]);
        with_codes(graph, "w", kinds[1]);
        if product == "MatMul" {
            let dequantize = node(graph, "w_DequantizeLinear");
            dequantize.attribute = vec![AttributeProto::int("axis", 1)];
            let codes = graph.initializer.iter_mut().find(|tensor| tensor.name() == "w_quantized").unwrap();
            codes.dims = vec![4, 16];
            let product = node(graph, "y");
            (product.op_type, product.attribute) = (Some("MatMul".to_owned()), Vec::new());
        }
        validate(&model).unwrap()
    };
    for (kinds, convolves, multiplies) in [
        ([3, 3], true, true),
        ([17, 17], true, true),
        ([22, 3], false, true),
        ([22, 22], false, true),
        ([3, 17], false, false),
        ([23, 23], false, false),
    ] {
        for (product, good) in [("Conv", convolves), ("MatMul", multiplies)] {
            let found = found(kinds, product);
            let told = found.len() == 1 && found[0].message.contains("does not multiply") && found[0].stops_builder;
            assert!(if good { found.is_empty() } else { told }, "{product} of {kinds:?}: {found:?}");
        }
    }
    for (kind, name) in [(18, "float8e4m3fnuz"), (19, "float8e5m2"), (20, "float8e5m2fnuz"), (21, "uint4")] {
        let found = found([kind, 3], "Conv");
        assert!(found.len() == 2 && found.iter().all(|finding| finding.message.contains(name)), "{found:?}");
    }
}

#[test]
fn scales_of_convolutions_are_by_channel_and_those_of_products_may_be_of_blocks() {
    one("the scale of its input is a list of one number", |graph| set(graph, "x_scale", &[1], Values::F32(vec![1.0])));
    let blocks = |axis: i64| {
        move |graph: &mut GraphProto| {
            set(graph, "w_scale", &[16, 2, 1, 1], Values::F32(vec![1.0; 32]));
            set(graph, "w_zero_point", &[16, 2, 1, 1], Values::I8(vec![0; 32]));
            let attributes = [("axis", axis), ("block_size", 2)];
            node(graph, "w_DequantizeLinear").attribute =
                attributes.map(|(name, v)| AttributeProto::int(name, v)).to_vec();
        }
    };
    one("its weight is scaled in blocks", blocks(3));
    let mut model = conv();
    blocks(1)(model.graph_mut());
    assert!(errors(&model)[0].contains("its blocks lie along axis 1"));
}

#[test]
fn both_of_a_pair_scale_one_axis() {
    let mut model = conv();
    let graph = model.graph_mut();
    graph.initializer.retain(|tensor| tensor.name() != "w_quantized");
    graph
        .initializer
        .push(TensorProto::from_tensor("float", Tensor::from_f32(vec![16, 16, 1, 1], vec![1.0; 256]).unwrap()));
    let q = NodeProto::new("QuantizeLinear", "q", &["float", "w_scale", "w_zero_point"], &["w_quantized"]);
    graph.node.insert(0, q);
    let found = errors(&model);
    assert!(found.len() == 1 && found[0].contains("along axis 0 and those of its QuantizeLinear along 1"), "{found:?}");
}
