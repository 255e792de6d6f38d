use super::*;
use crate::{
    onnx::{Folded, proto::AttributeProto},
    quantize::testing::{TestModel, no_shapes},
};

fn place_with(model: &Model, options: &SchemeOptions) -> Placement {
    place(model, &no_shapes(), options).unwrap()
}

fn placed(model: TestModel) -> Placement {
    place_with(&model.build(), &SchemeOptions::default())
}

fn rule(placement: &Placement, node: &str) -> Rule {
    placement.decisions.iter().find(|decision| decision.node == node).unwrap().rule
}

/// `tensor@node#input` of every quantized activation.
fn edges(placement: &Placement) -> Vec<String> {
    let edge =
        |edge: &ActivationEdge| format!("{}@{}#{}", edge.tensor, placement.decisions[edge.node].node, edge.input);
    placement.activations.iter().map(edge).collect()
}

fn axes(placement: &Placement) -> Vec<Option<usize>> {
    placement.weights.iter().map(|edge| edge.axis).collect()
}

fn conv(input: &str, weight: &str, output: &str) -> NodeProto {
    NodeProto::new("Conv", output, &[input, weight], &[output])
}

#[test]
fn activations_are_quantized_at_the_consumer_behind_the_fused_activation() {
    let placement = placed(
        TestModel::new(17)
            .input("x", &[1, 3, 8, 8])
            .weight("w1", &[16, 3, 3, 3])
            .weight("w2", &[16, 16, 1, 1])
            .node(conv("x", "w1", "c1"))
            .op("Sigmoid", &["c1"], "sigmoid")
            .op("Mul", &["c1", "sigmoid"], "silu")
            .op("MaxPool", &["silu"], "pooled")
            .node(conv("pooled", "w2", "c2"))
            .output("c2", &[1, 16, 8, 8]),
    );
    assert_eq!(edges(&placement), ["x@c1#0", "pooled@c2#0"]);
    assert_eq!(axes(&placement), [Some(0), Some(0)]);
    assert_eq!(["c1", "silu", "pooled"].map(|n| rule(&placement, n)), [Rule::Convolution, Rule::Fused, Rule::Copies]);
    assert_eq!(placement.tensors_to_observe().into_iter().collect::<Vec<_>>(), ["pooled", "x"]);
    assert_eq!(placement.quantized_nodes(), 2);
}

#[test]
fn weight_axes_follow_the_operator() {
    let transposed = |name: &str, weight: &str, group: i64| {
        NodeProto::new("ConvTranspose", name, &["x", weight], &[name]).with(AttributeProto::int("group", group))
    };
    let gemm = |name: &str, weight: &str, flag: i64| {
        NodeProto::new("Gemm", name, &["m", weight], &[name]).with(AttributeProto::int("transB", flag))
    };
    let placement = placed(
        TestModel::new(17)
            .input("x", &[1, 32, 8, 8])
            .input("m", &[4, 32])
            .weight("t1", &[32, 16, 2, 2])
            .weight("t2", &[32, 16, 3, 3])
            .weight("g", &[32, 32])
            .weight("left", &[24, 16])
            .input("deep", &[2, 16, 20])
            .node(transposed("plain", "t1", 1))
            .node(transposed("grouped", "t2", 2))
            .node(gemm("rows", "g", 1))
            .node(gemm("columns", "g", 0))
            .op("MatMul", &["m", "g"], "matmul")
            .op("MatMul", &["left", "deep"], "from_left"),
    );
    assert_eq!(axes(&placement), [Some(1), None, Some(0), Some(1), Some(1), None]);
    assert_eq!(edges(&placement)[5], "deep@from_left#1");
}

#[test]
fn small_convolutions_keep_8_bits_only_where_a_kernel_exists() {
    // Weight shape, group, quantized.
    let cases: [(&[usize], i64, bool); 9] = [
        (&[16, 3, 3, 3], 1, true),   // first convolution: output channels a multiple of 8
        (&[12, 3, 3, 3], 1, false),  // neither is
        (&[8, 3, 3, 1], 1, false),   // kernel not square
        (&[32, 1, 3, 3], 32, true),  // depthwise 3×3
        (&[32, 1, 1, 3], 32, false), // a side below 3
        (&[36, 1, 3, 3], 36, false), // no multiple of 8
        (&[32, 8, 1, 1], 4, false),  // grouped 1×1
        (&[36, 17, 3, 1], 1, true),  // not small at all
        (&[36, 18, 1, 3], 2, true),  // neither is a grouped one with many channels in each group
    ];
    for (shape, group, quantized) in cases {
        let node = conv("x", "w", "y").with(AttributeProto::int("group", group));
        let placement = placed(TestModel::new(17).input("x", &[1, -1, 8, 8]).weight("w", shape).node(node));
        assert_eq!(placement.quantized_nodes() == 1, quantized, "{shape:?} in {group} groups");
    }
}

#[test]
fn gates_of_channels_stay_float_and_heads_on_pooled_values_do_not() {
    let model = |scaled: &str| {
        TestModel::new(17)
            .input("x", &[-1, 32, 8, 8])
            .weight("w", &[32, 32, 1, 1])
            .node(conv("x", "w", "stem"))
            .op("GlobalAveragePool", &["stem"], "pooled")
            .node(conv("pooled", "w", "squeezed"))
            .op("Relu", &["squeezed"], "relu")
            .node(conv("relu", "w", "excited"))
            .op("Sigmoid", &["excited"], "gate")
            .op("Mul", &[scaled, "gate"], "weighed")
            .output("stem", &[-1, 32, 8, 8])
            .output("pooled", &[-1, 32, 1, 1])
            .output("squeezed", &[-1, 32, 1, 1])
            .output("relu", &[-1, 32, 1, 1])
            .output("excited", &[-1, 32, 1, 1])
            .output("gate", &[-1, 32, 1, 1])
    };
    let rules = |placement: &Placement| ["stem", "squeezed", "excited"].map(|node| rule(placement, node));
    let gates = placed(model("stem").output("weighed", &[-1, 32, 8, 8]));
    assert_eq!(rules(&gates), [Rule::Convolution, Rule::Gate, Rule::Gate]);
    // The same product of two vectors (a SiLU in a classifier's head) weighs no map.
    let head = placed(model("excited").output("weighed", &[-1, 32, 1, 1]));
    assert_eq!(rules(&head), [Rule::Convolution; 3]);
}

/// Stem, then a block of two convolutions with a shortcut, itself with a convolution when `projected`.
fn residual(projected: bool) -> TestModel {
    let model = TestModel::new(17)
        .input("x", &[1, 16, 8, 8])
        .weight("w", &[16, 16, 3, 3])
        .node(conv("x", "w", "stem"))
        .op("Relu", &["stem"], "relu")
        .node(conv("relu", "w", "a1"))
        .op("Relu", &["a1"], "a1_relu")
        .node(conv("a1_relu", "w", "a2"))
        .op("BatchNormalization", &["a2", "b", "b", "b", "b"], "bn")
        .weight("b", &[16]);
    let model = if projected { model.node(conv("relu", "w", "short")) } else { model };
    model.op("Add", &[if projected { "short" } else { "relu" }, "bn"], "sum").op("Relu", &["sum"], "y")
}

#[test]
fn only_the_shortcut_of_a_residual_add_is_quantized() {
    let placement = placed(residual(false));
    assert_eq!(edges(&placement), ["x@stem#0", "relu@a1#0", "a1_relu@a2#0", "relu@sum#0"]);
    assert_eq!(rule(&placement, "sum"), Rule::ResidualAdd);
    // Both branches end in a convolution: the one with the longer way stays raw, whichever side it is on.
    assert_eq!(edges(&placed(residual(true)))[4], "short@sum#0");
    let mut swapped = residual(true).build();
    swapped.graph_mut().node.iter_mut().find(|node| node.name() == "sum").unwrap().input.swap(0, 1);
    assert_eq!(edges(&place_with(&swapped, &SchemeOptions::default()))[4], "short@sum#1");
}

#[test]
fn an_add_is_lifted_with_the_convolution_that_recovery_lifts_in_front_of_it() {
    use crate::{
        calibrate::{Lifted, Recovered},
        quantize::{Precision, QuantizeOptions, quantize, testing::table},
    };
    // Without `a2` the sum would be fused with the other convolution, and `bn` quantized, which nobody observed.
    let mut table = table(&[("x", 1.0), ("relu", 1.0), ("a1_relu", 1.0), ("short", 1.0)]);
    let lifted = vec![Lifted { node: "a2".to_owned(), noise: 0.5, macs: 0.01 }];
    table.recovered = Some(Recovered { lifted, ..Recovered::default() });
    let quantized = |options: &QuantizeOptions| quantize(&residual(true).build(), &no_shapes(), Some(&table), options);
    let placement = quantized(&QuantizeOptions::default()).unwrap().placement;
    assert_eq!(edges(&placement), ["x@stem#0", "relu@a1#0", "relu@short#0"]);
    assert_eq!([rule(&placement, "a2"), rule(&placement, "sum")], [Rule::Planned; 2]);
    // What a plan needs by itself is still asked for.
    let mut options = QuantizeOptions::default();
    options.scheme.plan.assign("a2", Precision::Fp32);
    let message = quantized(&options).unwrap_err().to_string();
    assert!(message.contains("`bn`") && message.contains("`sum`"), "{message}");
}

#[test]
fn an_add_without_a_quantized_convolution_stays_float() {
    let options = SchemeOptions { exclude: vec!["a2".to_owned()], ..SchemeOptions::default() };
    let placement = place_with(&residual(false).build(), &options);
    assert_eq!(edges(&placement), ["x@stem#0", "relu@a1#0"]);
    assert_eq!(rule(&placement, "a2"), Rule::Excluded);
    let bias = TestModel::new(17).input("x", &[1, 16, 8, 8]).weight("w", &[16, 16, 1, 1]).weight("b", &[1, 16, 1, 1]);
    let placement = placed(bias.node(conv("x", "w", "c")).op("Add", &["c", "b"], "y"));
    assert_eq!(edges(&placement), ["x@c#0"]);
}

#[test]
fn pooling_is_quantized_between_quantized_neighbours_only() {
    let model = |tail: bool| {
        let model = TestModel::new(17)
            .input("x", &[1, 16, 8, 8])
            .weight("w", &[16, 16, 1, 1])
            .weight("fc", &[16, 32])
            .node(conv("x", "w", "c"))
            .op("Relu", &["c"], "relu")
            .op("GlobalAveragePool", &["relu"], "pool")
            .op("Flatten", &["pool"], "flat");
        if tail { model.op("MatMul", &["flat", "fc"], "y") } else { model.op("Exp", &["flat"], "y") }
    };
    let placement = placed(model(true));
    assert_eq!(edges(&placement), ["x@c#0", "relu@pool#0", "flat@y#0"]);
    assert_eq!(rule(&placement, "pool"), Rule::BetweenQuantized);
    assert_eq!(rule(&placed(model(false)), "pool"), Rule::NotBetweenQuantized);
    // Squeeze-and-excitation: the pooled tensor is also scaled in float.
    assert_eq!(rule(&placed(model(true).op("Exp", &["relu"], "other")), "pool"), Rule::NotBetweenQuantized);
}

/// Scores and weighted values of attention over `length` positions with heads of `head`.
fn attention(length: i64, head: i64) -> TestModel {
    TestModel::new(17)
        .input("q", &[1, 4, length, head])
        .input("k", &[1, 4, head, length])
        .input("v", &[1, 4, length, head])
        .input("mask", &[1, 1, length, length])
        .weight("scale", &[])
        .op("MatMul", &["q", "k"], "scores")
        .op("Mul", &["scores", "scale"], "scaled")
        .op("Add", &["scaled", "mask"], "masked")
        .op("Softmax", &["masked"], "weights")
        .op("MatMul", &["weights", "v"], "y")
}

#[test]
fn attention_is_quantized_within_its_limits_and_the_mask_never() {
    let placement = placed(attention(64, 32));
    assert_eq!(edges(&placement), ["q@scores#0", "k@scores#1", "weights@y#0", "v@y#1"]);
    let both = |placement: Placement| ["scores", "y"].map(|node| rule(&placement, node));
    assert_eq!(both(placement), [Rule::Attention; 2]);
    assert_eq!(both(placed(attention(513, 32))), [Rule::LongAttention; 2]);
    assert_eq!(both(placed(attention(-1, 32))), [Rule::UnknownShape; 2]);
    assert_eq!(both(placed(attention(64, 8))), [Rule::SmallMatrix; 2]);
    let half = SchemeOptions { exclude: vec!["scores".to_owned()], ..SchemeOptions::default() };
    let placement = place_with(&attention(64, 32).build(), &half);
    assert_eq!(both(placement), [Rule::Excluded, Rule::HalfAttention]);
    let fp8 = SchemeOptions { precision: Precision::Fp8, ..SchemeOptions::default() };
    assert_eq!(both(place_with(&attention(1024, 32).build(), &fp8)), [Rule::Attention; 2]);
    assert_eq!(both(place_with(&attention(64, 320).build(), &fp8)), [Rule::AttentionHead; 2]);
}

#[test]
fn matrix_vector_and_small_products_stay_float() {
    let product = |rows: &[i64], weight: &[usize]| {
        rule(&placed(TestModel::new(17).input("x", rows).weight("w", weight).op("MatMul", &["x", "w"], "y")), "y")
    };
    assert_eq!(product(&[8, 1, 64], &[64, 64]), Rule::MatrixVector);
    assert_eq!(product(&[8, 64], &[64]), Rule::MatrixVector);
    assert_eq!(product(&[8, 64], &[64, 10]), Rule::SmallMatrix);
    assert_eq!(product(&[8, 12], &[12, 64]), Rule::SmallMatrix);
    // A batch of one before the classifier is not a vector: the batch may grow.
    assert_eq!(product(&[1, 64], &[64, 64]), Rule::MatrixProduct);
    assert_eq!(product(&[-1, -1, 64], &[64, 64]), Rule::MatrixProduct);
}

#[test]
fn inclusion_exclusion_and_plan() {
    let model = residual(false).build();
    let quantized = |options: &SchemeOptions| {
        let placement = place_with(&model, options);
        let names = placement.decisions.iter().filter(|d| d.precision.is_quantized()).map(|d| d.node.clone());
        (names.collect::<Vec<_>>(), placement.unmatched_patterns)
    };
    let options = SchemeOptions { include: vec!["a.*".to_owned(), "b9".to_owned()], ..SchemeOptions::default() };
    assert_eq!(quantized(&options), (vec!["a1".to_owned(), "a2".to_owned()], vec!["b9".to_owned()]));
    let options = SchemeOptions { exclude_op_types: ["Add".to_owned()].into(), ..SchemeOptions::default() };
    assert_eq!(quantized(&options).0, ["stem", "a1", "a2"]);
    let options = SchemeOptions { op_types: ["Add".to_owned()].into(), ..SchemeOptions::default() };
    assert_eq!(quantized(&options).0, Vec::<String>::new());
    // What ONNX's operators are folded into goes by its own, the body of a function by the function's.
    let mut folded = model.clone();
    let into = |op_type: &str| Folded { op_type: op_type.to_owned(), into: ["a1".to_owned()].into() };
    folded.stands_for = [("n".to_owned(), into("BatchNormalization")), ("f".to_owned(), into("Block"))].into();
    for (op_type, expected) in
        [("BatchNormalization", vec!["stem", "a1", "a2", "sum"]), ("Block", vec!["stem", "a2", "sum"])]
    {
        let options = SchemeOptions { exclude_op_types: [op_type.to_owned()].into(), ..SchemeOptions::default() };
        let decisions = place_with(&folded, &options).decisions;
        let names = decisions.iter().filter(|d| d.precision.is_quantized()).map(|d| d.node.as_str());
        assert_eq!(names.collect::<Vec<_>>(), expected, "{op_type}");
    }
    let mut options = SchemeOptions { exclude: vec![".*".to_owned()], ..SchemeOptions::default() };
    options.plan.assign("a1", Precision::Int8);
    assert_eq!(quantized(&options).0, ["a1"]);
    let mut options = SchemeOptions::default();
    options.plan.assign("a2", Precision::Fp16);
    assert_eq!(quantized(&options).0, ["stem", "a1"]);
}

#[test]
fn the_plan_overrules_what_pays_but_not_what_is_possible() {
    let mut options = SchemeOptions::default();
    options.plan.assign("y", Precision::Int8);
    let model = |weight: bool| {
        let model = TestModel::new(17).input("x", &[1, 3, 8, 8]);
        if weight { model.weight("w", &[4, 3, 3, 3]) } else { model.input("w", &[4, 3, 3, 3]) }
    };
    let small = place_with(&model(true).node(conv("x", "w", "y")).build(), &options);
    assert_eq!(rule(&small, "y"), Rule::Convolution);
    let variable = place_with(&model(false).node(conv("x", "w", "y")).build(), &options);
    assert_eq!(rule(&variable, "y"), Rule::VariableWeight);
}

#[test]
fn concats_share_scales_when_asked() {
    let model = TestModel::new(17)
        .input("a", &[1, 16, 8, 8])
        .input("b", &[1, 16, 8, 8])
        .weight("w", &[16, 16, 1, 1])
        .weight("w2", &[16, 32, 1, 1])
        .node(conv("a", "w", "ca"))
        .op("Concat", &["a", "b"], "ab")
        .node(conv("ab", "w2", "cab"))
        .op("Concat", &["ab", "ca"], "all")
        .node(conv("all", "w2", "y"))
        .build();
    assert!(place_with(&model, &SchemeOptions::default()).shared_scales.is_empty());
    let options = SchemeOptions { share_concat_scales: true, ..SchemeOptions::default() };
    assert_eq!(place_with(&model, &options).shared_scales, [["a", "ab", "all"]]);
}

#[test]
fn quantized_models_are_refused_by_node() {
    let model = TestModel::new(17).input("x", &[4]).op("DynamicQuantizeLinear", &["x"], "q").build();
    let error = place(&model, &no_shapes(), &SchemeOptions::default()).unwrap_err().to_string();
    assert!(error.contains("node `q` is a DynamicQuantizeLinear"), "{error}");
}

#[test]
fn what_has_no_kernel_says_so() {
    let placement = placed(
        TestModel::new(17)
            .input("x", &[1, 16])
            .weight("s", &[16])
            .op("LayerNormalization", &["x", "s"], "norm")
            .op("Exp", &["norm"], "exp")
            .node(NodeProto { domain: Some("com.example".to_owned()), ..conv("exp", "s", "custom") }),
    );
    let rules = ["norm", "exp", "custom"].map(|node| rule(&placement, node));
    assert_eq!(rules, [Rule::HighPrecision, Rule::NoKernel, Rule::NoKernel]);
}
