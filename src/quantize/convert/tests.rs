use crate::{
    calibrate::CalibrationTable,
    onnx::{
        GraphView, Model,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    },
    quantize::{
        Fp32Reason, Precision, QuantizeOptions, Quantized, SchemeOptions, quantize,
        testing::{TestModel, no_shapes, table},
    },
    tensor::{ElementType, Tensor, Values},
};

const F32: i32 = 1;
const F16: i32 = 10;

fn fp16() -> QuantizeOptions {
    let scheme = SchemeOptions { precision: Precision::Fp16, ..SchemeOptions::default() };
    QuantizeOptions { scheme, ..QuantizeOptions::default() }
}

fn convert(model: TestModel, options: &QuantizeOptions, ranges: &[(&str, f32)]) -> Quantized {
    let result = quantize(&model.build(), &no_shapes(), Some(&table(ranges)), options).unwrap();
    GraphView::new(result.model.graph()).unwrap();
    result
}

fn signatures(model: &Model) -> Vec<String> {
    let signature =
        |node: &NodeProto| format!("{}({}) -> {}", node.op_type(), node.input.join(", "), node.output.join(", "));
    model.graph().node.iter().map(signature).collect()
}

fn data_type(graph: &GraphProto, name: &str) -> Option<i32> {
    graph.initializer.iter().find(|tensor| tensor.name() == name).map(TensorProto::data_type)
}

fn reasons(result: &Quantized) -> Vec<(String, Fp32Reason)> {
    result.kept_fp32().iter().map(|kept| (kept.node.clone(), kept.reason.clone())).collect()
}

fn small() -> TestModel {
    TestModel::new(17)
        .input("x", &[1, 16])
        .weight("w", &[16, 16])
        .op("MatMul", &["x", "w"], "m")
        .op("Relu", &["m"], "y")
        .output("y", &[1, 16])
}

fn constant(model: TestModel, name: &str, values: Values) -> TestModel {
    let mut model = model.weight(name, &[]);
    let shape = vec![values.view().len()];
    let slot = model.graph_mut().initializer.iter_mut().find(|tensor| tensor.name() == name).unwrap();
    *slot = TensorProto::from_tensor(name, Tensor::new(shape, values).unwrap());
    model
}

#[test]
fn inputs_and_outputs_keep_their_types_through_casts() {
    let result = convert(small(), &fp16(), &[]);
    let expected = ["Cast(x) -> x_fp16", "MatMul(x_fp16, w) -> m", "Relu(m) -> y_fp16", "Cast(y_fp16) -> y"];
    assert_eq!(signatures(&result.model), expected);
    let graph = result.model.graph();
    assert_eq!(data_type(graph, "w"), Some(F16));
    assert_eq!([0, 3].map(|node: usize| graph.node[node].attr_i("to").unwrap() as i32), [F16, F32]);
    assert!(result.placement.decisions.iter().all(|decision| decision.precision == Precision::Fp16));
    assert!(result.kept_fp32().is_empty());
}

#[test]
fn inputs_and_outputs_change_when_asked() {
    let options = QuantizeOptions { keep_io_types: false, ..fp16() };
    let result = convert(small(), &options, &[]);
    assert_eq!(signatures(&result.model), ["MatMul(x, w) -> m", "Relu(m) -> y"]);
    let graph = result.model.graph();
    let types = graph.input.iter().chain(&graph.output).map(super::declared_type);
    assert!(types.eq([Some(ElementType::F16); 2]));
}

#[test]
fn what_16_bits_serve_badly_stays_in_fp32_with_a_reason() {
    let model = TestModel::new(17)
        .input("x", &[1, 16])
        .op("Exp", &["x"], "exp")
        .op("Abs", &["exp"], "fine")
        .op("Sigmoid", &["fine"], "tamed")
        .op("ReduceSum", &["tamed"], "unknown_depth")
        .op("Sqrt", &["x"], "asked")
        .op("Neg", &["x"], "by_type")
        .op("Celu", &["x"], "celu")
        .op("Mul", &["x", "big"], "scaled");
    let model = constant(model, "big", Values::F32(vec![1e5, f32::INFINITY]));
    let options = QuantizeOptions {
        keep_fp32: vec!["ask.*".to_owned()],
        keep_fp32_op_types: ["Neg".to_owned()].into(),
        ..fp16()
    };
    let result = convert(model, &options, &[("exp", 20000.0), ("x", 16.0)]);
    let expected = [
        ("exp", Fp32Reason::Range(20000.0)),
        ("fine", Fp32Reason::Range(20000.0)),
        ("tamed", Fp32Reason::Range(20000.0)),
        ("unknown_depth", Fp32Reason::DeepReduction(0)),
        ("asked", Fp32Reason::Asked),
        ("by_type", Fp32Reason::Asked),
        ("celu", Fp32Reason::Operator),
        ("scaled", Fp32Reason::Constant(1e5)),
    ];
    assert_eq!(reasons(&result), expected.map(|(node, reason)| (node.to_owned(), reason)));
    assert_eq!(data_type(result.model.graph(), "big"), Some(F32));
}

#[test]
fn what_the_model_has_in_another_type_is_said_to_stay_so() {
    let cast = |from: &str, to: &str, kind: i32| {
        NodeProto::new("Cast", to, &[from], &[to]).with(AttributeProto::int("to", i64::from(kind)))
    };
    let model = TestModel::new(17)
        .input("x", &[1, 16])
        .node(cast("x", "down", F16))
        .op("Mul", &["down", "halves"], "own")
        .node(cast("own", "up", F32))
        .op("Sigmoid", &["up"], "y");
    let model = constant(model, "halves", Values::F16(vec![half::f16::ONE; 16]));
    let bf16 = QuantizeOptions {
        scheme: SchemeOptions { precision: Precision::Bf16, ..SchemeOptions::default() },
        ..QuantizeOptions::default()
    };
    let result = convert(model, &bf16, &[]);
    assert_eq!(reasons(&result), [("own".to_owned(), Fp32Reason::Own(ElementType::F16))]);
    let told = result.halved.unwrap().told().unwrap();
    assert_eq!(told, "1 of 2 nodes stay as they are: own (float16 in the model)");
}

/// ONNX has no BF16 form of some operators that it has an FP16 form of, and a FP16 form of some in later versions only.
#[test]
fn operators_without_a_16_bit_form_in_this_version_stay_in_fp32() {
    let kept = |opset: i64, precision: Precision| {
        let model = TestModel::new(opset)
            .input("x", &[1, 16])
            .weight("w", &[16, 16])
            .node(
                NodeProto::new("Einsum", "einsum", &["x", "w"], &["e"])
                    .with(AttributeProto::string("equation", "bi,ij->bj")),
            )
            .op("Shrink", &["e"], "shrunk")
            .op("TopK", &["shrunk", "k"], "best")
            .op("CumSum", &["best", "axis"], "sums")
            .node(NodeProto::new("RandomNormalLike", "noise", &["sums"], &["n"]).with(AttributeProto::int("dtype", 1)))
            .op("Mul", &["sums", "n"], "y")
            .output("y", &[1, 4]);
        let model = constant(model, "k", Values::I64(vec![4]));
        let model = constant(model, "axis", Values::I64(vec![1]));
        let scheme = SchemeOptions { precision, ..SchemeOptions::default() };
        let options = QuantizeOptions { scheme, max_reduction_depth: usize::MAX, ..QuantizeOptions::default() };
        let result = convert(model, &options, &[]);
        let operator = result.kept_fp32().iter().filter(|kept| kept.reason == Fp32Reason::Operator);
        operator.map(|kept| kept.node.clone()).collect::<Vec<_>>()
    };
    assert_eq!(kept(13, Precision::Fp16), ["sums", "noise"]);
    assert_eq!(kept(17, Precision::Fp16), ["noise"]);
    assert_eq!(kept(17, Precision::Bf16), ["einsum", "shrunk", "best", "noise"]);
    assert_eq!(kept(24, Precision::Bf16), ["einsum", "shrunk", "noise"]);
}

/// Linear attention: products of products, of which calibration observes the inputs only, divided by their sum.
#[test]
fn large_magnitudes_reach_through_tensors_that_were_not_observed() {
    let model = TestModel::new(17)
        .input("x", &[1, 16])
        .weight("w", &[16, 16])
        .op("MatMul", &["x", "w"], "product")
        .op("Abs", &["product"], "positive")
        .op("Div", &["product", "positive"], "ratio")
        .op("Neg", &["ratio"], "y")
        .output("y", &[1, 16]);
    let large = Fp32Reason::Range(50000.0);
    let expected = ["product", "positive", "ratio"].map(|node| (node.to_owned(), large.clone()));
    assert_eq!(reasons(&convert(model, &fp16(), &[("x", 50000.0)])), expected);
}

/// A cache has the range behind the activation only.
#[test]
fn what_an_activation_reached_its_input_reached_before() {
    let model = TestModel::new(17)
        .input("x", &[1, 16])
        .weight("w", &[16, 16])
        .op("MatMul", &["x", "w"], "product")
        .op("Relu", &["product"], "positive")
        .op("Neg", &["positive"], "y")
        .output("y", &[1, 16]);
    let large = Fp32Reason::Range(50000.0);
    let expected = ["product", "positive", "y"].map(|node| (node.to_owned(), large.clone()));
    assert_eq!(reasons(&convert(model, &fp16(), &[("x", 1.0), ("positive", 50000.0)])), expected);
}

#[test]
fn long_sums_stay_in_fp32() {
    let sum = |extent: i64| {
        let reduce = NodeProto::new("ReduceMean", "y", &["x"], &["y"]).with(AttributeProto::ints("axes", &[-1, 1]));
        reasons(&convert(TestModel::new(17).input("x", &[7, 64, extent]).node(reduce), &fp16(), &[]))
    };
    assert_eq!(sum(64), []);
    assert_eq!(sum(65), [("y".to_owned(), Fp32Reason::DeepReduction(64 * 65))]);
    assert_eq!(sum(-1), [("y".to_owned(), Fp32Reason::DeepReduction(0))]);
}

#[test]
fn shapes_are_computed_exactly() {
    let cast = |from: &str, to: &str, data_type: i64| {
        NodeProto::new("Cast", to, &[from], &[to]).with(AttributeProto::int("to", data_type))
    };
    let model = TestModel::new(17)
        .input("x", &[1, 3, 8, 8])
        .op("Shape", &["x"], "shape")
        .node(cast("shape", "float", 1))
        .weight("two", &[1])
        .op("Mul", &["float", "two"], "twice")
        .node(cast("twice", "sizes", 7))
        .op("Resize", &["x", "", "", "sizes"], "y")
        .weight("scales", &[4])
        .op("Resize", &["x", "", "scales"], "z");
    let result = convert(model, &fp16(), &[]);
    assert_eq!(reasons(&result), [("twice".to_owned(), Fp32Reason::ShapeArithmetic)]);
    let signatures = signatures(&result.model);
    assert!(signatures.contains(&"Mul(float, two) -> twice".to_owned()), "{signatures:?}");
    assert!(signatures.contains(&"Resize(x_fp16, , scales) -> z".to_owned()), "{signatures:?}");
    assert_eq!(["two", "scales"].map(|name| data_type(result.model.graph(), name)), [Some(F32); 2]);
}

#[test]
fn constants_of_both_kinds_of_nodes_are_copied_and_casts_are_shared() {
    let model = TestModel::new(17)
        .input("x", &[16])
        .weight("w", &[16])
        .op("Mul", &["x", "w"], "low")
        .op("Add", &["x", "w"], "low_too")
        .op("Celu", &["low"], "high")
        .op("Sub", &["high", "w"], "kept");
    let result = convert(model, &QuantizeOptions { keep_fp32: vec!["kept".to_owned()], ..fp16() }, &[]);
    let expected = [
        "Cast(x) -> x_fp16",
        "Mul(x_fp16, w_fp16) -> low",
        "Add(x_fp16, w_fp16) -> low_too",
        "Cast(low) -> low_fp32",
        "Celu(low_fp32) -> high",
        "Sub(high, w) -> kept",
    ];
    assert_eq!(signatures(&result.model), expected);
    let graph = result.model.graph();
    assert_eq!((data_type(graph, "w"), data_type(graph, "w_fp16")), (Some(F32), Some(F16)));
}

#[test]
fn branches_keep_what_they_capture() {
    let inner = TestModel::new(17).op("Neg", &["relu"], "inner").output("inner", &[16]).build();
    let branch =
        NodeProto::new("If", "y", &["c"], &["y"]).with(AttributeProto::graph("then_branch", inner.graph().clone()));
    let model = TestModel::new(17).input("x", &[16]).input("c", &[]).op("Relu", &["x"], "relu").node(branch);
    let result = convert(model.op("Neg", &["relu"], "neg").op("Abs", &["y"], "abs"), &fp16(), &[]);
    let expected = [
        "Cast(x) -> x_fp16",
        "Relu(x_fp16) -> relu_fp16",
        "Cast(relu_fp16) -> relu",
        "If(c) -> y",
        "Neg(relu_fp16) -> neg",
        "Cast(y) -> y_fp16",
        "Abs(y_fp16) -> abs",
    ];
    assert_eq!(signatures(&result.model), expected);
    assert_eq!(reasons(&result), [("y".to_owned(), Fp32Reason::Operator)]);
}

#[test]
fn scales_follow_the_tensors_around_them() {
    let model = small().op("MatMul", &["y", "w"], "z").op("MatMul", &["y", "w"], "kept");
    let options = QuantizeOptions {
        high_precision: Precision::Fp16,
        keep_fp32: vec!["kept".to_owned()],
        ..QuantizeOptions::default()
    };
    let result = convert(model, &options, &[("x", 1.0), ("y", 2.0)]);
    assert_eq!((result.model.opset(""), result.findings.len()), (Some(19), 0));
    let signatures = signatures(&result.model);
    for expected in [
        "QuantizeLinear(x, x_scale, x_zero_point) -> x_quantized",
        "DequantizeLinear(x_quantized, x_scale_fp16, x_zero_point) -> x_dequantized",
        "QuantizeLinear(y_fp16, y_scale_fp16, y_zero_point) -> y_quantized",
        "DequantizeLinear(y_quantized, y_scale, y_zero_point) -> y_dequantized_1",
        "DequantizeLinear(w_quantized, w_scale, w_zero_point) -> w_dequantized_2",
        "MatMul(y_dequantized_1, w_dequantized_2) -> kept",
    ] {
        assert!(signatures.contains(&expected.to_owned()), "{expected} in {signatures:#?}");
    }
    // Both copies of a scale are the same number, so that Q and DQ of different types agree.
    let value = |name: &str| {
        let graph = result.model.graph();
        graph.initializer.iter().find(|t| t.name() == name).unwrap().to_tensor().unwrap().to_f32()
    };
    for scale in ["x_scale", "y_scale", "w_scale"] {
        assert_eq!(value(scale), value(&format!("{scale}_fp16")));
    }
}

#[test]
fn the_plan_lifts_single_nodes_to_16_bits() {
    let mut options = QuantizeOptions::default();
    options.scheme.plan.assign("m", Precision::Fp16);
    let result = convert(small(), &options, &[]);
    let expected = ["Cast(x) -> x_fp16", "MatMul(x_fp16, w) -> m", "Cast(m) -> m_fp32", "Relu(m_fp32) -> y"];
    assert_eq!(signatures(&result.model), expected);
    options.scheme.plan.assign("y", Precision::Bf16);
    let error = quantize(&small().build(), &no_shapes(), Some(&table(&[])), &options).unwrap_err();
    assert!(error.to_string().contains("both asked for"), "{error}");
}

#[test]
fn an_epsilon_does_not_vanish() {
    let model = constant(small().op("Add", &["y", "e"], "z"), "e", Values::F32(vec![-1e-12, 0.0, 1e-9]));
    let model = constant(model.op("Mul", &["z", "s"], "p"), "s", Values::F32(vec![1.0, 1e-9]));
    let result = convert(model, &fp16(), &[]);
    let value = |name: &str| {
        let graph = result.model.graph();
        graph.initializer.iter().find(|t| t.name() == name).unwrap().to_tensor().unwrap().to_f32()
    };
    let least = 2f32.powi(-24);
    assert_eq!((value("e"), value("s")), (vec![-least, 0.0, least], vec![1.0, 0.0]));
}

#[test]
fn magnitudes_that_were_measured_decide_instead_of_those_before() {
    let model = || small().op("Mul", &["y", "w"], "z").op("Sub", &["z", "w"], "last");
    let kept = |magnitudes: Option<&[(&str, f32)]>| {
        let magnitudes = magnitudes.map(|known| known.iter().map(|&(name, value)| (name.to_owned(), value)).collect());
        let table = CalibrationTable { magnitudes, ..table(&[("x", 1.0), ("m", 2e4)]) };
        let result = quantize(&model().build(), &no_shapes(), Some(&table), &fp16()).unwrap();
        reasons(&result).into_iter().map(|(node, _)| node).collect::<Vec<_>>()
    };
    assert_eq!(kept(None), ["m", "y", "z", "last"], "each takes over what its input reached");
    assert_eq!(kept(Some(&[])), ["m", "y"]);
    assert_eq!(kept(Some(&[("last", 3e4)])), ["m", "y", "last"]);
}

#[test]
fn bf16_needs_opset_22_and_no_range() {
    let scheme = SchemeOptions { precision: Precision::Bf16, ..SchemeOptions::default() };
    let options = QuantizeOptions { scheme, ..QuantizeOptions::default() };
    let result = convert(small(), &options, &[("m", 1e9)]);
    assert_eq!(result.model.opset(""), Some(22));
    assert_eq!(data_type(result.model.graph(), "w"), Some(16));
    assert!(result.kept_fp32().is_empty());
}

#[test]
fn a_weight_of_which_fp16_would_leave_signs_stays_in_fp32() {
    let model = constant(TestModel::new(17).input("x", &[2, 2]).weight("w", &[2, 2]), "e", Values::F32(vec![1e-9]));
    let mut model = model.op("Mul", &["x", "w"], "m").op("Add", &["m", "e"], "y").output("y", &[2, 2]);
    let weight = Tensor::from_f32(vec![2, 2], vec![1e-9, -2e-9, 0.0, 1e-9]).unwrap();
    model.graph_mut().initializer[0] = TensorProto::from_tensor("w", weight);
    let result = convert(model, &fp16(), &[]);
    assert_eq!(reasons(&result), [("m".to_owned(), Fp32Reason::Vanishing(2e-9))]);
    assert_eq!((data_type(result.model.graph(), "w"), data_type(result.model.graph(), "e")), (Some(F32), Some(F16)));
}

#[test]
fn scales_that_fp16_has_no_numbers_for_stay_float32_with_their_nodes() {
    let options = QuantizeOptions { high_precision: Precision::Fp16, ..QuantizeOptions::default() };
    let model = || {
        let model =
            TestModel::new(17).input("x", &[1, 32, 4, 4]).weight("w", &[32, 32, 1, 1]).weight("v", &[32, 32, 1, 1]);
        model.op("Conv", &["x", "w"], "a").op("Conv", &["a", "v"], "y").output("y", &[1, 32, 4, 4])
    };
    // Codes of 127 for 1.27e-3 are steps of 1e-5, which FP16 has; those of 1.27e-4 it has not.
    for (amax, fits) in [(1.27e-30, false), (1.27e-4, false), (1.27e-3, true), (127.0, true), (1.27e7, false)] {
        let result = convert(model(), &options, &[("x", 1.0), ("a", amax)]);
        let scale = result.activation_scales()["a"];
        assert!((scale / (amax / 127.0) - 1.0).abs() < 0.01, "{amax}: {scale}");
        let graph = result.model.graph();
        assert_eq!(data_type(graph, "a_scale"), Some(if fits { F16 } else { F32 }), "{amax}");
        assert_eq!(data_type(graph, "x_scale"), Some(F32), "Q of a float32 input");
        assert_eq!(reasons(&result).iter().any(|(node, _)| node == "y"), !fits, "{amax}: {:?}", reasons(&result));
    }
}
