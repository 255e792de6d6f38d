//! Shifted graphs give what they gave, and what is quantized lies around 0.

use super::*;
use crate::{
    backend::{Backend, BuildOptions, onnxruntime::OnnxRuntime},
    calibrate::Recovered,
    onnx::Model,
    quantize::{
        QuantizeOptions, place, quantize,
        testing::{TestModel, no_shapes, table},
    },
    tensor::TensorMap,
};

/// A padded convolution, a depthwise one with SAME padding and none without bias, SiLU, and a product with its Add.
fn model() -> Model {
    let conv = |name: &str, inputs: &[&str], output: &str| NodeProto::new("Conv", name, inputs, &[output]);
    let mut model = TestModel::new(17).input("x", &[1, 16, 9, 9]).output("y", &[1, 81, 16]);
    let bound = |name: &str, value: f32| TensorProto::from_tensor(name, Tensor::from_f32(vec![], vec![value]).unwrap());
    let shape = Tensor::new(vec![3], Values::I64(vec![1, 81, 16])).unwrap();
    model.graph_mut().initializer.extend([bound("zero", 0.0), bound("six", 6.0)]);
    model.graph_mut().initializer.push(TensorProto::from_tensor("rows", shape));
    model
        .weight("w0", &[16, 16, 3, 3])
        .weight("b0", &[16])
        .node(conv("first", &["x", "w0", "b0"], "a").with(AttributeProto::ints("pads", &[1, 1, 1, 1])))
        .op("Clip", &["a", "zero", "six"], "clipped")
        .weight("w1", &[16, 1, 3, 3])
        .node(
            conv("depthwise", &["clipped", "w1"], "b")
                .with(AttributeProto::int("group", 16))
                .with(AttributeProto::string("auto_pad", "SAME_LOWER")),
        )
        .op("Relu", &["b"], "relu")
        .weight("w2", &[16, 16, 3, 3])
        .node(conv("second", &["relu", "w2"], "c").with(AttributeProto::ints("pads", &[1, 0, 1, 2])))
        .weight("w3", &[16, 16, 1, 1])
        .node(conv("third", &["relu", "w3"], "d"))
        .op("Sigmoid", &["d"], "gate")
        .op("Mul", &["d", "gate"], "silu")
        .op("Reshape", &["silu", "rows"], "rows_of_silu")
        .weight("w4", &[16, 16])
        .weight("b4", &[16])
        .op("MatMul", &["rows_of_silu", "w4"], "product")
        .op("Add", &["product", "b4"], "y")
        .output("c", &[1, 16, 7, 9])
        .build()
}

fn shifts(tensors: &[(&str, f32)]) -> BTreeMap<String, Shift> {
    tensors.iter().map(|&(tensor, offset)| (tensor.to_owned(), Shift { offset, amax: offset })).collect()
}

/// The shape that decides what SAME pads.
fn shapes() -> BTreeMap<String, TensorInfo> {
    let name = "clipped".to_owned();
    [(name.clone(), TensorInfo { name, element_type: None, shape: [1, 16, 9, 9].map(Some).to_vec() })].into()
}

fn shifted(shifts: &BTreeMap<String, Shift>) -> (Model, Placement, BTreeMap<String, Shifted>) {
    let mut model = model();
    let mut placement = place(&model, &no_shapes(), &crate::quantize::SchemeOptions::default()).unwrap();
    let made = shift(model.graph_mut(), &shapes(), &mut placement, shifts).unwrap();
    (model, placement, made)
}

fn run(runtime: OnnxRuntime, model: &Model, extra: &[&str]) -> TensorMap {
    let extra_outputs = extra.iter().map(|&name| name.to_owned()).collect();
    let mut runner = runtime.build(model, &BuildOptions { extra_outputs, ..BuildOptions::default() }).unwrap();
    let values = (0..16 * 81).map(|index| ((index * 7919) % 1999) as f32 / 600.0 - 1.5).collect();
    runner.infer(&[("x".to_owned(), Tensor::from_f32(vec![1, 16, 9, 9], values).unwrap())].into()).unwrap()
}

const ALL: [(&str, f32); 4] = [("x", 0.4), ("clipped", 3.0), ("relu", 2.5), ("rows_of_silu", 1.75)];

#[test]
fn a_shifted_graph_gives_what_it_gave() {
    let Some(runtime) = calib_test_support::Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
    let (shifted, placement, made) = shifted(&shifts(&ALL));
    let names: Vec<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "clipped_padded",
            "clipped_shifted",
            "relu_padded",
            "relu_shifted",
            "rows_of_silu_shifted",
            "x_padded",
            "x_shifted"
        ]
    );
    let edges: Vec<&str> = placement.activations.iter().map(|edge| edge.tensor.as_str()).collect();
    assert_eq!(edges, ["x_padded", "clipped_padded", "relu_padded", "relu_shifted", "rows_of_silu_shifted"]);
    let (before, after) = (run(runtime, &model(), &["clipped"]), run(runtime, &shifted, &["clipped_shifted"]));
    for output in ["y", "c"] {
        let (before, after) = (before[output].to_f32(), after[output].to_f32());
        let size = before.iter().fold(0f32, |max, value| max.max(value.abs()));
        let worst = before.iter().zip(&after).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(worst < 1e-5 * size, "{output}: {worst} of {size}");
    }
    let values = after["clipped_shifted"].to_f32();
    assert!(values.iter().all(|value| (-3.0..=3.0).contains(value)) && values.contains(&-3.0) && values.contains(&3.0));
    let count = |op_type: &str| shifted.graph().node.iter().filter(|node| node.op_type() == op_type).count();
    assert_eq!(
        (count("Clip"), count("Relu"), count("Sub"), count("Pad")),
        (2, 0, 2, 3),
        "clips carry the shift for free"
    );
}

#[test]
fn what_cannot_take_a_shift_back_is_not_shifted() {
    let model = TestModel::new(17)
        .input("x", &[1, 16, 8, 8])
        .weight("w0", &[16, 16, 1, 1])
        .op("Conv", &["x", "w0"], "a")
        .op("Relu", &["a"], "shared")
        .op("Conv", &["shared", "w0"], "b")
        .op("Add", &["b", "shared"], "sum")
        .weight("w1", &[16, 16, 2, 2])
        .op("ConvTranspose", &["sum", "w1"], "up")
        .op("Relu", &["up"], "given")
        .op("Conv", &["given", "w0"], "y")
        .output("y", &[1, 16, 9, 9])
        .output("given", &[1, 16, 9, 9])
        .build();
    let placement = place(&model, &no_shapes(), &crate::quantize::SchemeOptions::default()).unwrap();
    assert!(placement.tensors_to_observe().contains("shared") && placement.tensors_to_observe().contains("given"));
    let found = shiftable(model.graph(), &no_shapes(), &placement).unwrap();
    assert_eq!(
        found,
        [("x".to_owned(), Shiftable::Unpadded)].into(),
        "the others have an Add, a graph output, overlaps"
    );
}

#[test]
fn padding_decides_what_tensorrt_may_get() {
    let model = model();
    let placement = place(&model, &no_shapes(), &crate::quantize::SchemeOptions::default()).unwrap();
    let found = shiftable(model.graph(), &no_shapes(), &placement).unwrap();
    let padded: Vec<&str> =
        found.iter().filter(|(_, needs)| **needs == Shiftable::Padded).map(|(name, _)| name.as_str()).collect();
    // Without shapes nobody knows what SAME pads: `clipped` is not one of them.
    assert_eq!((padded, found.len()), (vec!["relu", "x"], 3));
}

#[test]
fn a_tensor_between_0_and_6_regains_one_bit() {
    let Some(runtime) = calib_test_support::Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
    let error = |shift: Option<f32>| {
        let mut table = table(&[("x", 4.0), ("clipped", 6.0), ("relu", 6.0), ("rows_of_silu", 6.0)]);
        let step = 6.0 / 255.0;
        let shifts = shift.map(|_| [("clipped".to_owned(), Shift { offset: 128.0 * step, amax: 127.0 * step })].into());
        table.recovered = shifts.map(|shifts| Recovered { shifts, ..Recovered::default() });
        let mut options = QuantizeOptions::default();
        options.scheme.include = vec!["depthwise".to_owned()];
        let quantized = quantize(&model(), &shapes(), Some(&table), &options).unwrap();
        assert_eq!(quantized.defects(), None);
        let of = |model: &Model, tensor: &str| run(runtime, model, &[tensor])[tensor].to_f32();
        let consumer = quantized.model.graph().node.iter().find(|node| node.name() == "depthwise").unwrap();
        let (exact, rounded) = match shift {
            Some(_) => (of(&quantized.float, "clipped_padded"), of(&quantized.model, &consumer.input[0])),
            None => (of(&quantized.float, "clipped"), of(&quantized.model, &consumer.input[0])),
        };
        let squares: f64 = exact.iter().zip(&rounded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        // Padding and zeros are exact either way.
        (squares / exact.len() as f64).sqrt()
    };
    let (plain, shifted) = (error(None), error(Some(3.0)));
    let gain = 20.0 * (plain / shifted).log10();
    assert!(gain > 5.0, "{gain} dB");
}

#[test]
fn what_the_model_reads_no_more_is_not_written() {
    let mut model = model();
    model.graph_mut().initializer.push(TensorProto::from_tensor("idle", Tensor::from_f32(vec![1], vec![0.0]).unwrap()));
    let mut table = table(&[("x", 4.0), ("clipped", 6.0), ("relu", 6.0), ("rows_of_silu", 6.0)]);
    table.recovered = Some(Recovered { shifts: shifts(&[("clipped", 3.0)]), ..Recovered::default() });
    table.bias_corrections = [("first".to_owned(), vec![0.1; 16])].into();
    let quantized = quantize(&model, &shapes(), Some(&table), &QuantizeOptions::default()).unwrap().model;
    // Shifted and corrected, the first bias has been replaced twice. What the model came with is its own matter.
    let named = |name: &str| quantized.graph().initializer.iter().any(|tensor| tensor.name() == name);
    assert_eq!(["b0", "b0_shifted", "b0_shifted_corrected", "six"].map(named), [false, false, true, false]);
    assert_eq!(crate::quantize::constants::unread(quantized.graph()), ["idle".to_owned()].into());
}
