//! Quantized models in ONNX Runtime, against their float originals. Skipped with a note where the library is missing.

use std::{collections::BTreeMap, path::Path};

use calib_test_support::{Need, python, root, shared};

use super::{Precision, QuantizeOptions, Quantized, SchemeOptions, place, quantize, testing, upgrade};
use crate::{
    backend::{Backend, BuildOptions, OptimizationLevel, TensorInfo, onnxruntime::OnnxRuntime},
    calibrate::CalibrationTable,
    onnx::{
        Model,
        proto::{AttributeProto, NodeProto, TensorProto},
    },
    tensor::{ElementType, Tensor, TensorMap, Values},
};

fn runtime() -> Option<OnnxRuntime> {
    Need::OnnxRuntime.or_skip(OnnxRuntime::load(None))
}

/// Values between -2 and 2 that look random.
fn sample(name: &str, shape: &[usize], seed: u64) -> TensorMap {
    let count = shape.iter().product::<usize>() as u64;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 22) as f32 - 2.0
    };
    let values = (0..count).map(&mut next).collect();
    TensorMap::from([(name.to_owned(), Tensor::from_f32(shape.to_vec(), values).unwrap())])
}

fn infer(runtime: OnnxRuntime, model: &Model, inputs: &TensorMap, extra: &[String]) -> TensorMap {
    let options = BuildOptions { threads: 1, extra_outputs: extra.to_vec(), ..BuildOptions::default() };
    runtime.build(model, &options).unwrap().infer(inputs).unwrap()
}

/// 10·log₁₀ of signal over noise, over all outputs.
fn sqnr_db(reference: &TensorMap, target: &TensorMap) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for (name, reference) in reference {
        for (r, t) in reference.to_f32().iter().zip(target[name].to_f32()) {
            signal += f64::from(r * r);
            noise += f64::from((r - t) * (r - t));
        }
    }
    10.0 * (signal / noise).log10()
}

/// A folded model, its shapes, and the ranges of its quantized tensors over four samples.
struct Calibrated {
    model: Model,
    shapes: BTreeMap<String, TensorInfo>,
    table: CalibrationTable,
    inputs: TensorMap,
}

fn calibrated(runtime: OnnxRuntime, path: &Path, input: &str, shape: &[usize]) -> Calibrated {
    let model = runtime.fold(&Model::load(path).unwrap()).unwrap();
    let tensors: Vec<String> = model.graph().node.iter().flat_map(|node| node.output.clone()).collect();
    let shapes = runtime.infer_shapes(&model, &tensors).unwrap();
    let placement = place(&model, &shapes, &SchemeOptions::default()).unwrap();
    let observed: Vec<String> = placement.tensors_to_observe().into_iter().filter(|tensor| tensor != input).collect();
    let mut amax: BTreeMap<String, f32> = BTreeMap::new();
    for seed in 0..4 {
        let inputs = sample(input, shape, seed);
        for (name, tensor) in infer(runtime, &model, &inputs, &observed).into_iter().chain(inputs) {
            let slot = amax.entry(name).or_default();
            *slot = tensor.to_f32().iter().fold(*slot, |m, x| m.max(x.abs()));
        }
    }
    let ranges: Vec<(&str, f32)> = amax.iter().map(|(name, amax)| (name.as_str(), *amax)).collect();
    Calibrated { table: testing::table(&ranges), model, shapes, inputs: sample(input, shape, 9) }
}

fn quantized(calibrated: &Calibrated, precision: Precision, high_precision: Precision) -> Quantized {
    let scheme = SchemeOptions { precision, ..SchemeOptions::default() };
    let options = QuantizeOptions { scheme, high_precision, ..QuantizeOptions::default() };
    quantize(&calibrated.model, &calibrated.shapes, Some(&calibrated.table), &options).unwrap()
}

/// `onnx.checker` of the Python package, where it is installed.
fn check_with_python(model: &Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    model.save(&path).unwrap();
    python("import onnx, sys; onnx.checker.check_model(sys.argv[1], full_check=True)", &[&path]);
}

#[test]
fn every_precision_of_the_demo_model_runs_and_stays_close() {
    let Some(runtime) = runtime() else { return };
    let path = root().join("calib_data/demo.onnx");
    let float = Model::load(&path).unwrap();
    let input = float.graph().input[0].name().to_owned();
    let runner = runtime.build(&float, &BuildOptions::default()).unwrap();
    let shape: Vec<usize> = runner.inputs()[0].shape.iter().map(|extent| extent.unwrap_or(1)).collect();
    let calibrated = calibrated(runtime, &path, &input, &shape);
    let reference = infer(runtime, &float, &calibrated.inputs, &[]);
    for (precision, high_precision, floor_db) in [
        (Precision::Int8, Precision::Fp32, 5.0),
        (Precision::Int8, Precision::Fp16, 5.0),
        (Precision::Fp8, Precision::Fp32, 2.0),
        (Precision::Fp16, Precision::Fp32, 40.0),
    ] {
        let result = quantized(&calibrated, precision, high_precision);
        let sqnr_db = sqnr_db(&reference, &infer(runtime, &result.model, &calibrated.inputs, &[]));
        assert!(sqnr_db > floor_db, "{precision} over {high_precision}: {sqnr_db} dB");
        assert_eq!(result.findings, [], "{precision} over {high_precision}");
        check_with_python(&result.model);
    }
    check_with_python(&quantized(&calibrated, Precision::Int8, Precision::Bf16).model);
}

#[test]
fn efficientnet_lite0_shrinks_to_a_quarter() {
    let Some(runtime) = runtime() else { return };
    let Some(path) = shared("models/efficientnet_lite0.onnx") else { return };
    let calibrated = calibrated(runtime, &path, "input", &[1, 3, 224, 224]);
    let result = quantized(&calibrated, Precision::Int8, Precision::Fp32);
    // 49 convolutions, 9 residual adds, the pooling and the classifier; shortcuts are inputs of convolutions as well.
    assert_eq!(result.placement.quantized_nodes(), 60);
    assert_eq!(result.placement.tensors_to_observe().len(), 51);
    assert_eq!(result.model.opset(""), Some(17));
    assert_eq!(result.findings, []);
    let bytes = result.model.to_bytes().unwrap().len() as f64;
    let share = bytes / std::fs::metadata(&path).unwrap().len() as f64;
    assert!(share < 0.27, "the file has {share} of its size");
    check_with_python(&result.model);
}

#[test]
fn raised_models_compute_the_same() {
    let Some(runtime) = runtime() else { return };
    let node = |op_type: &str, input: &str, output: &str, attributes: Vec<AttributeProto>| NodeProto {
        attribute: attributes,
        ..NodeProto::new(op_type, output, &[input], &[output])
    };
    let axes = |axes: &[i64]| AttributeProto::ints("axes", axes);
    let scales =
        AttributeProto { floats: vec![1.0, 1.0, 2.0, 2.0], r#type: Some(6), ..AttributeProto::ints("scales", &[]) };
    let model = testing::TestModel::new(8)
        .input("x", &[1, 4, 6, 6])
        .node(node("Clip", "x", "clip", vec![AttributeProto::float("min", -1.0), AttributeProto::float("max", 1.5)]))
        .node(node("Pad", "clip", "pad", vec![AttributeProto::ints("pads", &[0, 0, 1, 0, 0, 0, 0, 1])]))
        .node(node("Dropout", "pad", "drop", vec![AttributeProto::float("ratio", 0.3)]))
        .node(node("Upsample", "drop", "up", vec![AttributeProto::string("mode", "linear"), scales]))
        .node(node(
            "Slice",
            "up",
            "slice",
            vec![AttributeProto::ints("starts", &[1, 1]), AttributeProto::ints("ends", &[9, -1]), axes(&[2, 3])],
        ))
        .node(node("Softmax", "slice", "soft", vec![AttributeProto::int("axis", 1)]))
        .node(node("ReduceSum", "slice", "sum", vec![axes(&[1]), AttributeProto::int("keepdims", 0)]))
        .node(node("Unsqueeze", "sum", "unsqueezed", vec![axes(&[0])]))
        .node(node("ReduceMean", "slice", "mean", vec![axes(&[2, 3])]))
        .node(node("Squeeze", "mean", "squeezed", vec![axes(&[2, 3])]))
        .output("soft", &[1, 4, 8, 12])
        .output("unsqueezed", &[1, 1, 8, 12])
        .output("squeezed", &[1, 4])
        .build();
    let inputs = sample("x", &[1, 4, 6, 6], 1);
    let before = infer(runtime, &model, &inputs, &[]);
    for to in [13, 19, 22] {
        let mut raised = model.clone();
        upgrade::raise_opset(&mut raised, to, &BTreeMap::new()).unwrap();
        let after = infer(runtime, &raised, &inputs, &[]);
        for (name, before) in &before {
            let close = before.to_f32().iter().zip(after[name].to_f32()).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(close && before.shape() == after[name].shape(), "opset {to}: {name}");
        }
        check_with_python(&raised);
    }
}

#[test]
fn constants_are_rounded_to_16_bits_as_onnx_runtime_rounds_them() {
    let Some(runtime) = runtime() else { return };
    // Every exponent that FP16 has, its subnormals and halves of its last digit among them.
    let values: Vec<f32> = (0x3280_0000..0x477f_e000_u32).step_by(0x1_7000).map(f32::from_bits).collect();
    let values: Vec<f32> = values.iter().flat_map(|&x| [x, -x]).collect();
    let count = values.len();
    for (precision, data_type) in [(Precision::Fp16, 10), (Precision::Bf16, 16)] {
        let mut float = testing::TestModel::new(22).input("x", &[count as i64]).weight("w", &[count]);
        float.graph_mut().initializer[0] =
            TensorProto::from_tensor("w", Tensor::from_f32(vec![count], values.clone()).unwrap());
        let float = float.op("Add", &["x", "w"], "y").output("y", &[count as i64]).build();
        let scheme = SchemeOptions { precision, ..SchemeOptions::default() };
        let options = QuantizeOptions { scheme, ..QuantizeOptions::default() };
        let converted = quantize(&float, &BTreeMap::new(), None, &options).unwrap();
        let ours = converted.model.graph().initializer[0].to_tensor().unwrap().to_f32();

        let cast = |name: &str, input: &str, output: &str, to: i64| {
            NodeProto::new("Cast", name, &[input], &[output]).with(AttributeProto::int("to", to))
        };
        let there_and_back = testing::TestModel::new(22)
            .input("x", &[count as i64])
            .node(cast("there", "x", "half", data_type))
            .node(cast("back", "half", "y", 1))
            .output("y", &[count as i64])
            .build();
        let options = BuildOptions { optimization: OptimizationLevel::Disabled, ..BuildOptions::default() };
        let inputs = TensorMap::from([("x".to_owned(), Tensor::from_f32(vec![count], values.clone()).unwrap())]);
        let theirs = runtime.build(&there_and_back, &options).unwrap().infer(&inputs).unwrap()["y"].to_f32();
        assert_eq!(ours, theirs, "{precision}");
        assert_ne!(ours, values);
    }
}

#[test]
fn parts_in_sixteen_bits_keep_their_type() {
    let Some(runtime) = runtime() else { return };
    let cast = |name: &str, input: &str, output: &str, to: i64| {
        NodeProto::new("Cast", name, &[input], &[output]).with(AttributeProto::int("to", to))
    };
    let conv = |name: &str, inputs: &[&str], output: &str| NodeProto::new("Conv", name, inputs, &[output]);
    let mut model = testing::TestModel::new(17)
        .input("x", &[1, 16, 8, 8])
        .weight("w", &[16, 16, 3, 3])
        .weight("v", &[16, 16, 3, 3])
        .node(conv("first", &["x", "w"], "a"))
        .node(cast("down", "a", "half", 10))
        .node(conv("second", &["half", "v"], "b"))
        .node(cast("up", "b", "y", 1))
        .output("y", &[1, 16, 4, 4]);
    let values = model.graph_mut().initializer[1].to_tensor().unwrap().to_f32();
    let values = Values::F16(values.into_iter().map(half::f16::from_f32).collect());
    model.graph_mut().initializer[1] = TensorProto::from_tensor("v", Tensor::new(vec![16, 16, 3, 3], values).unwrap());
    let model = model.build();
    let inputs = sample("x", &[1, 16, 8, 8], 3);
    let reference = infer(runtime, &model, &inputs, &["half".to_owned()]);
    let amax = |tensor: &Tensor| tensor.to_f32().iter().fold(0.0_f32, |amax, value| amax.max(value.abs()));
    let table = testing::table(&[("x", amax(&inputs["x"])), ("half", amax(&reference["half"]))]);
    let made = quantize(&model, &BTreeMap::new(), Some(&table), &QuantizeOptions::default()).unwrap();
    let type_of = |name: &str| {
        let found = made.model.graph().initializer.iter().find(|tensor| tensor.name() == name);
        found.map(|tensor| tensor.element_type().unwrap())
    };
    let found = ["x_scale", "w_scale", "half_scale", "v_scale"].map(type_of);
    assert_eq!(found, [ElementType::F32, ElementType::F32, ElementType::F16, ElementType::F16].map(Some));
    let db = sqnr_db(&reference, &infer(runtime, &made.model, &inputs, &["half".to_owned()]));
    assert!(db > 30.0, "{db}");
}
