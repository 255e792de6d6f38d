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
fn only_what_depthwise_convolutions_alone_read_can_be_equalized() {
    let model = model();
    let placement = place(&model, &no_shapes(), &scheme()).unwrap();
    let found = equalizable(model.graph(), &no_shapes(), &placement).unwrap();
    assert_eq!(found, [("silu".to_owned(), Equalizable { channels: 16, pointwise: true })].into());
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
