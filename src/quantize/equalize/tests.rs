//! Equalized graphs give what they gave, to the bit, and codes of weights stay what they are.

use super::*;
use crate::{
    backend::{Backend, BuildOptions, onnxruntime::OnnxRuntime},
    calibrate::{Recovered, Shift},
    onnx::{GraphView, Model, proto::AttributeProto},
    quantize::{
        Precision, QuantizeOptions, Quantized, SchemeOptions, place, quantize,
        testing::{TestModel, no_shapes, table},
    },
};

/// `x ─ Conv ─ SiLU ─ depthwise (2 results a channel, SAME) ─ Relu ─ depthwise and 1 by 1 convolution`.
fn model() -> Model {
    let conv = |name: &str, inputs: &[&str], group: i64| {
        NodeProto::new("Conv", name, inputs, &[name]).with(AttributeProto::int("group", group))
    };
    TestModel::new(17)
        .input("x", &[1, 16, 8, 8])
        .weight("w0", &[16, 16, 1, 1])
        .node(conv("a", &["x", "w0"], 1))
        .op("Sigmoid", &["a"], "gate")
        .op("Mul", &["a", "gate"], "silu")
        .weight("w1", &[32, 1, 3, 3])
        .weight("b1", &[32])
        .node(conv("b", &["silu", "w1", "b1"], 16).with(AttributeProto::string("auto_pad", "SAME_UPPER")))
        .op("Relu", &["b"], "relu")
        .weight("w2", &[32, 1, 3, 3])
        .node(conv("c", &["relu", "w2"], 32))
        .weight("w3", &[16, 32, 1, 1])
        .node(conv("d", &["relu", "w3"], 1))
        .output("c", &[1, 32, 6, 6])
        .output("d", &[1, 16, 8, 8])
        .build()
}

/// Depthwise convolutions of 16 channels are too small for INT8 kernels by the rules; a plan quantizes all the same.
fn scheme() -> SchemeOptions {
    let mut scheme = SchemeOptions::default();
    for node in ["a", "b", "c", "d"] {
        scheme.plan.assign(node, Precision::Int8);
    }
    scheme
}

fn exponents() -> Equalized {
    Equalized((0..16).map(|channel| channel % 7).collect())
}

/// Quantized with `recovered`, as all of the table.
fn quantized(recovered: Recovered) -> Quantized {
    let mut table = table(&[("x", 1.0), ("silu", 2.0), ("relu", 3.0)]);
    table.recovered = Some(recovered);
    let options = QuantizeOptions { scheme: scheme(), ..QuantizeOptions::default() };
    let shape = [1, 16, 8, 8].map(Some).to_vec();
    let info = TensorInfo { name: "silu".to_owned(), element_type: Some(ElementType::F32), shape };
    let shapes = BTreeMap::from([("silu".to_owned(), info)]);
    quantize(&model(), &shapes, Some(&table), &options).unwrap()
}

#[test]
fn what_operators_read_alike_can_be_equalized() {
    let model = model();
    let placement = place(&model, &no_shapes(), &scheme()).unwrap();
    let found = equalizable(model.graph(), &no_shapes(), &placement).unwrap();
    // What a depthwise and another convolution read cannot.
    let silu = Equalizable { channels: 16, pointwise: true, depthwise: true };
    assert_eq!(found, [("silu".to_owned(), silu)].into());
}

#[test]
fn an_equalized_graph_gives_what_it_gave_and_keeps_its_codes() {
    let plain = quantized(Recovered::default());
    let given = BTreeMap::from([("silu".to_owned(), exponents())]);
    let equalized = quantized(Recovered { equalized: given, ..Recovered::default() });
    let shifted = &equalized.shifted["silu_equalized"];
    assert_eq!((shifted.tensor.as_str(), shifted.shift), ("silu", Shift { offset: 0.0, amax: 2.0 }));
    assert_eq!(equalized.activation_scales(), plain.activation_scales());
    assert_eq!(equalized.findings, plain.findings);
    let weight = |of: &Quantized| {
        let view = GraphView::new(of.model.graph()).unwrap();
        let written = of.scales.iter().find(|written| written.tensor == "w1").unwrap().clone();
        let codes = view.initializer("w1_quantized").unwrap();
        (codes.raw_data.clone().unwrap(), written.scales)
    };
    let ((codes, scales), (same, divided)) = (weight(&plain), weight(&equalized));
    assert_eq!(codes, same);
    let factors = exponents().factors();
    for (row, (scale, divided)) in scales.iter().zip(&divided).enumerate() {
        assert_eq!(*divided, scale / factors[row / 2], "row {row}");
    }
    let Some(runtime) = calib_test_support::Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
    let values: Vec<f32> = (0..16 * 64).map(|index| ((index * 7919) % 1999) as f32 / 600.0 - 1.5).collect();
    let input = BTreeMap::from([("x".to_owned(), Tensor::from_f32(vec![1, 16, 8, 8], values).unwrap())]);
    let run = |model: &Model| runtime.build(model, &BuildOptions::default()).unwrap().infer(&input).unwrap();
    let (before, after) = (run(&model()), run(&equalized.float));
    for output in ["c", "d"] {
        assert_eq!(before[output].to_f32(), after[output].to_f32(), "{output}");
    }
}

#[test]
fn an_equalized_tensor_can_be_shifted_as_well() {
    let recovered = Recovered {
        equalized: [("silu".to_owned(), exponents())].into(),
        shifts: [("silu".to_owned(), Shift { offset: 0.75, amax: 1.25 })].into(),
        ..Recovered::default()
    };
    let quantized = quantized(recovered);
    let names: Vec<&str> = quantized.shifted.keys().map(String::as_str).collect();
    assert_eq!(names, ["silu_equalized_padded", "silu_equalized_shifted"]);
    assert!(quantized.shifted.values().all(|shifted| shifted.tensor == "silu" && shifted.shift.offset == 0.75));
    assert!((quantized.activation_scales()["silu"] - 1.25 / 127.0).abs() < 1e-9);
}

#[test]
fn factors_that_do_not_fit_name_the_tensor() {
    let mut table = table(&[("x", 1.0), ("silu", 2.0), ("relu", 3.0)]);
    let equalized = [("silu".to_owned(), Equalized(vec![1; 3]))].into();
    table.recovered = Some(Recovered { equalized, ..Recovered::default() });
    let options = QuantizeOptions { scheme: scheme(), ..QuantizeOptions::default() };
    let message = quantize(&model(), &no_shapes(), Some(&table), &options).unwrap_err().to_string();
    assert!(message.contains("`silu` by 3 numbers, and it has 16"), "{message}");
}

/// `x ─ LayerNorm in pieces ─ two products`, whose weights have 16 rows, and `─ SiLU ─ Gemm with a transposed weight`.
fn products() -> Model {
    TestModel::new(17)
        .input("x", &[1, 4, 16])
        .weight("gamma", &[16])
        .weight("beta", &[16])
        .op("Mul", &["x", "gamma"], "scaled")
        .op("Add", &["scaled", "beta"], "norm")
        .weight("q", &[16, 32])
        .op("MatMul", &["norm", "q"], "query")
        .weight("k", &[16, 16])
        .op("MatMul", &["norm", "k"], "key")
        .op("Sigmoid", &["query"], "gate")
        .op("Mul", &["query", "gate"], "silu")
        .op("Flatten", &["silu"], "flat")
        .op("Mul", &["flat", "flat"], "square")
        .weight("w", &[16, 128])
        .node(NodeProto::new("Gemm", "y", &["square", "w"], &["y"]).with(AttributeProto::int("transB", 1)))
        .output("key", &[1, 4, 16])
        .output("y", &[1, 16])
        .build()
}

#[test]
fn products_give_what_they_gave_to_the_bit() {
    let model = products();
    let mut table = table(&[("norm", 2.0), ("square", 4.0)]);
    let factors = |channels: u8| Equalized((0..channels).map(|channel| channel % 7).collect());
    let equalized = [("norm".to_owned(), factors(16)), ("square".to_owned(), factors(128))].into();
    table.recovered = Some(Recovered { equalized, ..Recovered::default() });
    let mut scheme = SchemeOptions::default();
    for node in ["query", "key", "y"] {
        scheme.plan.assign(node, Precision::Int8);
    }
    let placement = place(&model, &no_shapes(), &scheme).unwrap();
    let found = equalizable(model.graph(), &no_shapes(), &placement).unwrap();
    let dense = |channels| Equalizable { channels, pointwise: true, depthwise: false };
    assert_eq!(found, [("norm".to_owned(), dense(16)), ("square".to_owned(), dense(128))].into());
    let options = QuantizeOptions { scheme, ..QuantizeOptions::default() };
    let quantized = quantize(&model, &no_shapes(), Some(&table), &options).unwrap();
    assert!(quantized.findings.is_empty(), "{:?}", quantized.findings);
    let given = |tensor: &str, by: usize| {
        let values = |model: &Model| {
            let view = GraphView::new(model.graph()).unwrap();
            view.initializer(tensor).unwrap().to_tensor().unwrap().to_f32()
        };
        let (before, after) = (values(&model), values(&quantized.float));
        before.iter().zip(after).position(|(before, after)| before / after == by as f32)
    };
    // Channel 1 is multiplied by 2: the second row of `q` and `k`, the second column of `w`.
    assert_eq!([given("q", 2), given("k", 2), given("w", 2)], [Some(32), Some(16), Some(1)]);
    let Some(runtime) = calib_test_support::Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
    let values: Vec<f32> = (0..64).map(|index| ((index * 7919) % 1999) as f32 / 600.0 - 1.5).collect();
    let input = BTreeMap::from([("x".to_owned(), Tensor::from_f32(vec![1, 4, 16], values).unwrap())]);
    let run = |model: &Model| runtime.build(model, &BuildOptions::default()).unwrap().infer(&input).unwrap();
    let (before, after) = (run(&model), run(&quantized.float));
    for output in ["key", "y"] {
        assert_eq!(before[output].to_f32(), after[output].to_f32(), "{output}");
    }
}
