//! Tests on the real library; skipped with a note where it is not at hand.

use calib_test_support::Need;
use half::{bf16, f16};
use prost::Message;

use super::*;
use crate::{
    backend::{ExecutionProvider, OptimizationLevel, Purpose},
    onnx::{
        proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeValue, ValueInfoProto},
        tests::{float_info, mutate, small_model, thin_model},
    },
    tensor::{ElementType, Tensor, TensorMap, Values},
};

pub(super) fn runtime() -> Option<OnnxRuntime> {
    Need::OnnxRuntime.or_skip(OnnxRuntime::load(None))
}

/// A model of one graph, opset 17.
pub(super) fn model(
    nodes: Vec<NodeProto>,
    input: ValueInfoProto,
    output: &str,
    initializer: Vec<TensorProto>,
) -> Model {
    let output = ValueInfoProto { name: Some(output.to_owned()), ..Default::default() };
    let graph = GraphProto {
        name: Some("g".to_owned()),
        node: nodes,
        initializer,
        input: vec![input],
        output: vec![output],
        ..Default::default()
    };
    let mut proto = ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() };
    proto.set_opset("", 17);
    Model::from_bytes(proto.encode_to_vec()).unwrap()
}

pub(super) fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape.to_vec(), values.to_vec()).unwrap()
}

#[test]
fn every_element_type_goes_in_and_out() {
    let Some(runtime) = runtime() else { return };
    let all = [
        Values::F32(vec![1.5, -2.0]),
        Values::F64(vec![1.5, -2.0]),
        Values::F16(vec![f16::from_f32(1.5), f16::from_f32(-2.0)]),
        Values::Bf16(vec![bf16::from_f32(1.5), bf16::from_f32(-2.0)]),
        Values::I8(vec![-128, 127]),
        Values::I16(vec![-32768, 5]),
        Values::I32(vec![-7, 5]),
        Values::I64(vec![i64::MIN, 5]),
        Values::U8(vec![255, 5]),
        Values::U16(vec![65535, 5]),
        Values::U32(vec![u32::MAX, 5]),
        Values::U64(vec![u64::MAX, 5]),
        Values::Bool(vec![true, false]),
    ];
    for values in all {
        let tensor = Tensor::new(vec![2], values).unwrap();
        let mut input = float_info("x", &[-1]);
        if let Some(TypeValue::TensorType(declared)) = &mut input.r#type.as_mut().unwrap().value {
            declared.elem_type = Some(tensor.element_type().onnx());
        }
        let model = model(vec![NodeProto::new("Identity", "i", &["x"], &["y"])], input, "y", vec![]);
        let mut runner = runtime.build(&model, &BuildOptions::default()).unwrap();
        assert_eq!(runner.inputs()[0].element_type, Some(tensor.element_type()));
        let outputs = runner.infer(&TensorMap::from([("x".to_owned(), tensor.clone())])).unwrap();
        assert_eq!(outputs["y"], tensor);
        let empty = Tensor::new(vec![0], Values::zeros(tensor.element_type(), 0)).unwrap();
        assert_eq!(runner.infer(&TensorMap::from([("x".to_owned(), empty.clone())])).unwrap()["y"], empty);
    }
}

#[test]
fn extra_outputs_come_last_and_hold_the_intermediate_values() {
    let Some(runtime) = runtime() else { return };
    let weight = TensorProto::from_tensor("w", floats(&[2, 1], &[3.0, -4.0]));
    let nodes = vec![NodeProto::new("MatMul", "m", &["x", "w"], &["p"]), NodeProto::new("Relu", "r", &["p"], &["y"])];
    let model = model(nodes, float_info("x", &[-1, 2]), "y", vec![weight]);
    for optimization in [OptimizationLevel::Disabled, OptimizationLevel::Basic, OptimizationLevel::All] {
        let extra_outputs = ["p", "y", "x"].map(str::to_owned).to_vec();
        let options = BuildOptions { threads: 1, extra_outputs, optimization, ..Default::default() };
        let mut runner = runtime.build(&model, &options).unwrap();
        assert_eq!(runner.outputs().iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["y", "p", "x"]);
        assert_eq!(runner.outputs()[1].shape, [None, Some(1)]);
        let inputs = TensorMap::from([("x".to_owned(), floats(&[2, 2], &[1.0, 2.0, 2.0, 1.0]))]);
        let outputs = runner.infer(&inputs).unwrap();
        assert_eq!(outputs["p"], floats(&[2, 1], &[-5.0, 2.0]));
        assert_eq!(outputs["y"], floats(&[2, 1], &[0.0, 2.0]));
        assert_eq!(outputs["x"], inputs["x"]);
    }
    let options = BuildOptions { extra_outputs: vec!["nowhere".to_owned()], ..Default::default() };
    let error = runtime.build(&model, &options).map(drop).unwrap_err().to_string();
    assert!(error.contains("it has no tensor `nowhere`"), "{error}");
}

#[test]
fn inputs_that_do_not_fit_are_explained() {
    let Some(runtime) = runtime() else { return };
    let node = NodeProto::new("Relu", "r", &["x"], &["y"]);
    let model = model(vec![node], float_info("x", &[-1, 3, 224, 320]), "y", vec![]);
    let mut runner = runtime.build(&model, &BuildOptions::default()).unwrap();
    let mut refused = |name: &str, tensor: Tensor| {
        runner.infer(&TensorMap::from([(name.to_owned(), tensor)])).unwrap_err().to_string()
    };
    let zeros = |shape: &[usize]| floats(shape, &vec![0.0; shape.iter().product()]);
    let error = refused("image", zeros(&[1]));
    assert_eq!(error, "input `x`: it is missing; the data has `image`");
    let error = refused("x", zeros(&[1, 3, 224, 224]));
    assert!(error.contains("takes the shape [any, 3, 224, 320], but [1, 3, 224, 224] was given"), "{error}");
    assert!(error.ends_with("for images set resize and crop in [preprocess] to it"), "{error}");
    assert!(refused("x", zeros(&[1, 224, 320, 3])).contains("NCHW and NHWC"));
    assert!(refused("x", zeros(&[3, 224, 320])).contains("it needs 4 axes, not 3"));
    let bytes = Tensor::new(vec![1, 3, 1, 1], Values::zeros(ElementType::U8, 3)).unwrap();
    let error = refused("x", bytes);
    assert!(error.contains("the model takes float32, but uint8 was given; convert the array"), "{error}");
    let two = TensorMap::from([("x".to_owned(), zeros(&[1, 3, 224, 320])), ("z".to_owned(), zeros(&[1]))]);
    let error = runner.infer(&two).unwrap_err().to_string();
    assert_eq!(error, "input `z`: the model has no such input; it takes `x`");
}

#[test]
fn a_run_that_fails_on_open_sizes_says_how_to_bind_them() {
    let Some(runtime) = runtime() else { return };
    let refused = |declared: &[i64], given: &[usize]| {
        let node = NodeProto::new("Reshape", "r", &["x", "shape"], &["y"]);
        let shape = Tensor::new(vec![1], Values::I64(vec![8])).unwrap();
        let model = model(vec![node], float_info("x", declared), "y", vec![TensorProto::from_tensor("shape", shape)]);
        let mut runner = runtime.build(&model, &BuildOptions::default()).unwrap();
        let x = floats(given, &vec![0.0; given.iter().product()]);
        runner.infer(&TensorMap::from([("x".to_owned(), x)])).unwrap_err().to_string()
    };
    let error = refused(&[-1, 2, -1], &[1, 2, 3]);
    assert!(error.contains("`x` is declared as [any, 2, any] and got [1, 2, 3]"), "{error}");
    assert!(error.contains("--shape x=Nx2xN"), "{error}");
    assert!(refused(&[-1, 8], &[2, 8]).ends_with("if the model works with single samples only, use --batch 1"));
    assert!(!refused(&[1, 3], &[1, 3]).contains("--"));
}

#[test]
fn a_refused_model_gives_the_message_of_the_library() {
    let Some(runtime) = runtime() else { return };
    let unknown = model(vec![NodeProto::new("Frobnicate", "f", &["x"], &["y"])], float_info("x", &[1]), "y", vec![]);
    let error = runtime.build(&unknown, &BuildOptions::default()).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("ONNX Runtime cannot load the model") && error.contains("Frobnicate"), "{error}");
}

#[test]
fn a_provider_that_is_not_there_is_an_error() {
    let Some(runtime) = runtime() else { return };
    if runtime.has_cuda() {
        return Need::NoGpu.skip("this ONNX Runtime has CUDA");
    }
    let options = BuildOptions { provider: ExecutionProvider::Cuda(0), ..Default::default() };
    let error = runtime.build(&small_model(), &options).map(drop).unwrap_err();
    assert!(matches!(&error, BackendError::Provider { .. }), "{error}");
    assert!(error.to_string().contains("onnxruntime-gpu"), "{error}");
}

#[test]
fn a_visitor_can_stop_the_run() {
    let Some(runtime) = runtime() else { return };
    let mut runner = runtime.build(&small_model(), &BuildOptions::default()).unwrap();
    let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 4], &[1.0; 4]))]);
    let error = runner.visit(&inputs, &mut |name, _| Err(format!("no more after {name}").into())).unwrap_err();
    assert_eq!(error.to_string(), "no more after y");
}

#[test]
fn the_weights_of_large_models_go_through_a_file() {
    let Some(runtime) = runtime() else { return };
    let rows = session::IN_MEMORY_BYTES / 4096 + 1;
    let weight: Vec<f32> = (0..rows * 1024).map(|index| (index / 1024) as f32).collect();
    let weight = TensorProto::from_tensor("w", Tensor::from_f32(vec![rows, 1024], weight).unwrap());
    let mut input = float_info("x", &[1]);
    if let Some(TypeValue::TensorType(declared)) = &mut input.r#type.as_mut().unwrap().value {
        declared.elem_type = Some(ElementType::I64.onnx());
    }
    let model = model(vec![NodeProto::new("Gather", "g", &["w", "x"], &["y"])], input, "y", vec![weight]);
    let mut runner = runtime.build(&model, &BuildOptions::default()).unwrap();
    let index = Tensor::new(vec![1], Values::I64(vec![rows as i64 - 1])).unwrap();
    let outputs = runner.infer(&TensorMap::from([("x".to_owned(), index)])).unwrap();
    assert_eq!(outputs["y"], floats(&[1, 1024], &[(rows - 1) as f32; 1024]));
}

#[test]
fn broken_models_are_refused_or_run_and_never_end_the_process() {
    let Some(runtime) = runtime() else { return };
    let bytes = thin_model();
    let options = BuildOptions { threads: 1, ..Default::default() };
    let mut built = 0;
    for model in (0..1500).filter_map(|seed| Model::from_bytes(mutate(&bytes, seed)).ok()) {
        let Ok(mut runner) = runtime.build(&model, &options) else { continue };
        built += 1;
        let inputs = TensorMap::from([("x".to_owned(), floats(&[2, 4], &[0.5; 8]))]);
        drop(runner.infer(&inputs));
        drop(runtime.fold(&model));
    }
    assert!(built > 50, "{built}");
}

/// Two depthwise convolutions that double the channels, added: with all optimizations ONNX Runtime merges the sum into
/// the first, though its own result is asked for (timm's FastViT).
#[test]
fn a_convolution_that_a_sum_follows_can_be_returned() {
    let Some(runtime) = runtime() else { return };
    let weight = |name: &str| TensorProto::from_tensor(name, floats(&[16, 1, 3, 3], &[0.125; 144]));
    let bias = TensorProto::from_tensor("bias", floats(&[16], &[1.0; 16]));
    let convolution = |weight: &str, output: &str| {
        NodeProto::new("Conv", output, &["x", weight, "bias"], &[output])
            .with(AttributeProto::int("group", 8))
            .with(AttributeProto::ints("kernel_shape", &[3, 3]))
            .with(AttributeProto::ints("pads", &[1, 1, 1, 1]))
    };
    let nodes = vec![convolution("v", "a"), convolution("w", "b"), NodeProto::new("Add", "sum", &["a", "b"], &["y"])];
    let model = model(nodes, float_info("x", &[1, 8, 8, 8]), "y", vec![weight("v"), weight("w"), bias]);
    let options = BuildOptions { extra_outputs: vec!["a".to_owned()], ..BuildOptions::default() };
    let mut runner = runtime.build(&model, &options).unwrap();
    let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 8, 8, 8], &[0.0; 512]))]);
    let outputs = runner.infer(&inputs).unwrap();
    assert_eq!((outputs["a"].to_f32()[0], outputs["y"].to_f32()[0]), (1.0, 2.0));
}

/// A quantized convolution whose bias is not a multiple of the products' scale: integer kernels round it, TensorRT does not.
#[test]
fn quantizers_round_in_float_unless_a_session_is_for_times() {
    let Some(runtime) = runtime() else { return };
    let scale = |name: &str, value: f32| TensorProto::from_tensor(name, floats(&[], &[value]));
    let codes = |name: &str, shape: &[usize], values: &[i8]| {
        TensorProto::from_tensor(name, Tensor::new(shape.to_vec(), Values::I8(values.to_vec())).unwrap())
    };
    let quantize = |x: &str, scale: &str, y: &str| NodeProto::new("QuantizeLinear", y, &[x, scale, "zero"], &[y]);
    let dequantize = |x: &str, scale: &str, y: &str| NodeProto::new("DequantizeLinear", y, &[x, scale, "zero"], &[y]);
    let nodes = vec![
        quantize("x", "xs", "xq"),
        dequantize("xq", "xs", "xd"),
        dequantize("w", "ws", "wd"),
        NodeProto::new("Conv", "conv", &["xd", "wd", "bias"], &["c"]),
        quantize("c", "ys", "yq"),
        dequantize("yq", "ys", "y"),
    ];
    let constants = vec![
        scale("xs", 0.25),
        scale("ws", 0.01),
        scale("ys", 0.0005),
        codes("zero", &[], &[0]),
        codes("w", &[1, 1, 1, 1], &[3]),
        TensorProto::from_tensor("bias", floats(&[1], &[0.0312])),
    ];
    let model = model(nodes, float_info("x", &[1, 1, 2, 2]), "y", constants);
    let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 1, 2, 2], &[1.0; 4]))]);
    let code = |purpose| {
        let options = BuildOptions { purpose, ..BuildOptions::default() };
        let y = runtime.build(&model, &options).unwrap().infer(&inputs).unwrap()["y"].to_f32()[0];
        (y / 0.0005).round()
    };
    // 0.03 + 0.0312 are 122.4 steps of the result; with the bias in whole steps of 0.0025 they are 120.
    assert_eq!([code(Purpose::Analysis), code(Purpose::Deployed)], [122.0, 120.0]);
}

#[test]
fn layers_are_timed() {
    let Some(runtime) = runtime() else { return };
    let options = BuildOptions { layer_times: true, ..BuildOptions::default() };
    let mut runner = runtime.build(&small_model(), &options).unwrap();
    let inputs = runner.inputs().to_vec();
    let zeros = inputs.iter().map(|info| {
        let shape: Vec<usize> = info.shape.iter().map(|extent| extent.unwrap_or(1)).collect();
        (info.name.clone(), floats(&shape, &vec![0.0; shape.iter().product()]))
    });
    let zeros: TensorMap = zeros.collect();
    let layers = runner.layer_times(&zeros, 3).unwrap().unwrap();
    assert!(!layers.is_empty());
    assert!(layers.iter().all(|layer| layer.median_ms >= 0.0 && layer.layer.ends_with(']')), "{layers:?}");
    assert_eq!(runner.layer_times(&zeros, 3).unwrap(), None, "they are taken once");
}
