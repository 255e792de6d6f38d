use super::*;

fn tensor(name: &str, format: &str) -> Value {
    serde_json::json!({"Name": name, "Location": "Device", "Dimensions": [1, 16, 8, 8], "Format/Datatype": format})
}

/// A quantized convolution as TensorRT 8.6 to 10 print it: sentences for formats, metadata with separators.
fn engine() -> String {
    serde_json::json!({
        "Layers": [
            {"Name": "input_QuantizeLinear", "LayerType": "Reformat", "Origin": "QDQ",
             "Inputs": [tensor("input", "Row major linear FP32 format")],
             "Outputs": [tensor("q", "Thirty-two wide channel vectorized row major Int8 format")],
             "TacticName": "", "Metadata": "[ONNX Layer: input_QuantizeLinear]"},
            {"Name": "w_Q + conv1 + PWN(relu1)", "LayerType": "CaskConvolution",
             "Inputs": [tensor("q", "Thirty-two wide channel vectorized row major Int8 format")],
             "Outputs": [tensor("c", "Thirty-two wide channel vectorized row major Int8 format")],
             "Weights": {"Type": "Int8", "Count": 2304},
             "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
             "Metadata": "[ONNX Layer: w_Q]\u{1e}[ONNX Layer: conv1]\u{1e}[ONNX Layer: relu1]"},
            {"Name": "Reformatting CopyNode for Input Tensor 0 to conv2", "LayerType": "Reformat", "Origin": "REFORMAT",
             "Inputs": [tensor("c", "Thirty-two wide channel vectorized row major Int8 format")],
             "Outputs": [tensor("c2", "Channel major FP16 format where channel % 8 == 0")], "Metadata": ""},
            {"Name": "conv2", "LayerType": "CaskConvolution",
             "Inputs": [tensor("c2", "Channel major FP16 format where channel % 8 == 0")],
             "Outputs": [tensor("d", "Channel major FP16 format where channel % 8 == 0")], "Metadata": ""},
            {"Name": "gap", "LayerType": "Pooling", "Inputs": [tensor("d", "Half")],
             "Outputs": [tensor("e", "Float")], "Metadata": "[ONNX Layer: gap]"}
        ],
        "Bindings": ["input", "output"]
    })
    .to_string()
}

fn operators() -> BTreeMap<String, String> {
    let pairs = [
        ("input_QuantizeLinear", "QuantizeLinear"),
        ("w_Q", "QuantizeLinear"),
        ("conv1", "Conv"),
        ("relu1", "Relu"),
        ("conv2", "Conv"),
        ("gap", "GlobalAveragePool"),
    ];
    pairs.into_iter().map(|(node, operator)| (node.to_owned(), operator.to_owned())).collect()
}

#[test]
fn layers_are_sorted_by_what_they_do_and_mapped_to_onnx() {
    use LayerKind::{Compute, Other, QuantizeDequantize, Reformat};
    for operators in [operators(), BTreeMap::new()] {
        let engine = EngineLayers::parse(&engine(), &operators).unwrap();
        let kinds: Vec<LayerKind> = engine.layers.iter().map(|layer| layer.kind).collect();
        assert_eq!(kinds, [QuantizeDequantize, Compute, Reformat, Compute, Other]);
        assert_eq!(engine.layers[1].nodes, ["w_Q", "conv1", "relu1"]);
        assert_eq!(engine.layers[1].precision, NumberType::Int8);
        assert_eq!(engine.layers[3].precision, NumberType::Fp16);
        assert_eq!(engine.layers[1].inputs[0].shape, [1, 16, 8, 8]);
        let summary = engine.summary();
        assert_eq!((summary.layers, summary.compute_layers, summary.reformat_layers), (5, 2, 1));
        assert_eq!(summary.unfused_qdq, ["input_QuantizeLinear"]);
        assert_eq!((summary.share(NumberType::Int8), summary.share(NumberType::Fp32)), (0.5, 0.0));
    }
    let engine = EngineLayers::parse(&engine(), &operators()).unwrap();
    assert_eq!(engine.layers[3].nodes, ["conv2"], "without metadata, names are looked up in the model");
}

#[test]
fn names_of_types_in_every_documented_form() {
    let cases = [
        ("Float", NumberType::Fp32),
        ("Half", NumberType::Fp16),
        ("BFloat16", NumberType::Bf16),
        ("Int8", NumberType::Int8),
        ("FP8", NumberType::Fp8),
        ("Float8E4M3FN", NumberType::Fp8),
        ("Float8E5M2", NumberType::Fp8),
        ("Float4E2M1", NumberType::Fp4),
        ("Row major linear FP32 format (kLINEAR)", NumberType::Fp32),
        ("Two wide channel vectorized row major FP16 format", NumberType::Fp16),
        ("Row major Int8 format", NumberType::Int8),
        ("Row major linear BOOL", NumberType::Bool),
        ("Row major Int32 format", NumberType::Int32),
        ("N/A due to dynamic shapes", NumberType::Unknown),
        ("", NumberType::Unknown),
    ];
    for (text, expected) in cases {
        assert_eq!(NumberType::of(text), expected, "{text}");
    }
}

#[test]
fn fields_of_version_11_and_compilers_that_fuse_everything() {
    let json = r#"{"Layers": [
        {"Name": "{ForeignNode[a...b]}", "LayerType": "kgen", "Metadata": "[ONNX Layer: /fc/MatMul][ONNX Layer: b]",
         "Inputs": [{"Name": "x", "DataType": "FP8", "Format": "Row major linear", "Dimensions": [-1, 4]}], "Outputs": []}],
        "I/O Tensors": [{"Name": "x", "IOMode": "Input"}]}"#;
    let operators = BTreeMap::from([("/fc/MatMul".to_owned(), "MatMul".to_owned())]);
    let engine = EngineLayers::parse(json, &operators).unwrap();
    assert_eq!(engine.layers[0].nodes, ["/fc/MatMul", "b"]);
    assert_eq!((engine.layers[0].kind, engine.layers[0].precision), (LayerKind::Compute, NumberType::Fp8));
    assert_eq!(engine.layers[0].inputs[0].shape, [-1, 4]);
}

/// The form of the examples of NVIDIA's engine explorer (TensorRT 8.2 to 8.6): no metadata, depthwise convolutions of
/// a type of their own and without a kernel's name, a residual addition within a convolution, names of compilers.
#[test]
fn fields_of_the_engine_explorers_examples() {
    use LayerKind::{Compute, Other, QuantizeDequantize, Reformat};
    const INT8: &str = "Thirty-two wide channel vectorized row major Int8 format";
    let convolution = |name: &str, layer_type: &str, inputs: Value| {
        serde_json::json!({"Name": name, "LayerType": layer_type, "Inputs": inputs, "Outputs": [tensor("o", INT8)],
            "ParameterType": "Convolution", "Kernel": [3, 3], "Groups": 32, "Weights": {"Type": "Int8", "Count": 288},
            "Bias": {"Type": "Float", "Count": 32}, "HasBias": 1, "TacticValue": "0x0000000000000001"})
    };
    let (one, two) =
        (serde_json::json!([tensor("a", INT8)]), serde_json::json!([tensor("a", INT8), tensor("b", INT8)]));
    let json = serde_json::json!({
        "Layers": [
            {"Name": "QuantizeLinear_2", "LayerType": "Reformat", "Inputs": [tensor("x", "Row major linear FP32")],
             "Outputs": [tensor("a", "Four wide channel vectorized row major Int8 format")],
             "ParameterType": "Reformat", "Origin": "QDQ", "TacticValue": "0x0000000000000000"},
            convolution("w.0 + QuantizeLinear_7 + Conv_9 + PWN(Clip_13)", "CudaDepthwiseConvolution", one),
            convolution("w.1 + QuantizeLinear_21 + Conv_23 + Add_25", "CaskConvolution", two),
            {"Name": "Reformatting CopyNode for Input Tensor 0 to Pool_30", "LayerType": "NoOp", "Inputs": [tensor("o", INT8)],
             "Outputs": [tensor("p", INT8)], "TacticValue": "0x0000000000000000"},
            {"Name": "{ForeignNode[Reshape_31...Softmax_33]}", "LayerType": "Myelin", "Inputs": [tensor("p", "Row major linear FP32")],
             "Outputs": [tensor("y", "Row major linear FP32")], "TacticValue": "0x0000000000000000"}
        ],
        "Bindings": ["x", "y"]
    });
    let operators =
        [("QuantizeLinear_7", "QuantizeLinear"), ("Conv_9", "Conv"), ("Clip_13", "Clip"), ("Add_25", "Add")];
    let operators = operators.map(|(node, operator)| (node.to_owned(), operator.to_owned())).into();
    let engine = EngineLayers::parse(&json.to_string(), &operators).unwrap();
    let kinds: Vec<LayerKind> = engine.layers.iter().map(|layer| layer.kind).collect();
    assert_eq!(kinds, [QuantizeDequantize, Compute, Compute, Reformat, Other]);
    assert_eq!(engine.layers[1].nodes, ["QuantizeLinear_7", "Conv_9", "Clip_13"]);
    assert_eq!((engine.layers[1].precision, engine.layers[2].inputs.len()), (NumberType::Int8, 2));
    assert_eq!(engine.summary().unfused_qdq, ["QuantizeLinear_2"]);
}

/// The forms that Polygraphy's tests and its reader of engines tell apart: layers of each profile one after the other
/// before version 10, names with its number; kernels by a value; type and format in two fields since version 11.
#[test]
fn fields_that_polygraphy_reads() {
    let reformat = |name: &str, x: &str, y: &str| {
        let end = |name: &str| serde_json::json!({"Name": name, "Dimensions": [1, 2, -1, -1], "Format/Datatype": "N/A due to dynamic shapes"});
        serde_json::json!({"Name": name, "LayerType": "Reformat", "Inputs": [end(x)], "Outputs": [end(y)],
            "ParameterType": "Reformat", "Origin": "IDENTITY", "TacticValue": "0x0000000000000000"})
    };
    let json = serde_json::json!({
        "Layers": [reformat("copy [a]", "x", "y"), reformat("copy [a] [profile 1]", "x [profile 1]", "y [profile 1]")],
        "Bindings": ["x", "y", "x [profile 1]", "y [profile 1]"]
    });
    let engine = EngineLayers::parse(&json.to_string(), &BTreeMap::new()).unwrap();
    let [only] = &engine.layers[..] else { panic!("{engine:?}") };
    assert_eq!((only.name.as_str(), only.kind), ("copy [a]", LayerKind::Reformat));
    assert_eq!((only.inputs[0].number_type, &only.inputs[0].shape[..]), (NumberType::Unknown, &[1, 2, -1, -1][..]));

    let end = |name: &str, data_type: &str| serde_json::json!({"Name": name, "Dimensions": [8, 16], "Datatype": data_type, "Format": "Row major linear"});
    let json = serde_json::json!({"Layers": [
        {"Name": "fc", "LayerType": "gemm", "Inputs": [end("a", "Float8E4M3FN")], "Outputs": [end("b", "BFloat16")], "TacticName": ""},
        {"Name": "gap", "LayerType": "kgen", "Inputs": null, "Outputs": [end("c", "Half")]}
    ]});
    let engine = EngineLayers::parse(&json.to_string(), &BTreeMap::new()).unwrap();
    assert_eq!(engine.layers[0].precision, NumberType::Fp8);
    assert_eq!(engine.layers[0].outputs[0].number_type, NumberType::Bf16);
    assert_eq!(engine.layers[0].inputs[0].format, "Row major linear");
    assert_eq!(engine.summary().wide_outputs, 1);
}

#[test]
fn answers_that_tell_nothing() {
    let parse = |json: &str| EngineLayers::parse(json, &BTreeMap::new()).map_err(|error| error.to_string());
    assert!(parse(r#"{"Layers": ["conv1", "conv2"]}"#).unwrap_err().contains("profiling verbosity"));
    for nothing in ["{}", r#"{"Layers": []}"#] {
        let error = parse(nothing).unwrap_err();
        assert!(error.contains("no layers") && error.contains("profiling verbosity"), "{error}");
    }
    assert!(parse("").unwrap_err().contains("not valid JSON"));
    let tensors = format!(r#"{{"Inputs": [{}]}}"#, vec!["{}"; 200_000].join(","));
    let many = parse(&format!(r#"{{"Layers": [{tensors}, {tensors}]}}"#)).unwrap_err();
    assert!(many.contains("more than 262144 layers and tensors"), "{many}");
    let large = parse(&format!(r#"{{"Layers": [{{}}, {{"Name": "{}"}}]}}"#, "n".repeat(2 << 20))).unwrap_err();
    assert!(large.contains("layer 2 of the engine inspector's answer takes more than 1048576 bytes"), "{large}");
    let summary = EngineLayers::default().summary();
    assert_eq!(summary.share(NumberType::Int8), 0.0);
    assert_eq!(summary.to_string(), "0, of which none multiplies; 0 only move values");
}
