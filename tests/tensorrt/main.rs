//! The real TensorRT-RTX without a GPU: what its parser and builder accept and refuse, and what happens to engines where
//! they cannot run.

#![cfg(feature = "tensorrt-rtx")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod errors;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use calib_test_support::{Need, python, root};
use serde_json::Value;
use trtcalib::{
    analyse::graphwise::shared_tensors,
    backend::{
        cuda::Device,
        tensorrt::{EngineLayers, EngineSidecar, EngineSummary, Flavour, NumberType, Plan, build_engine, find_library},
    },
    bisect::probes::with_outputs,
    onnx::Model,
};

/// What engines are built for, since there is no GPU to ask.
const CAPABILITY: [&str; 2] = ["--compute-capability", "8.9"];

/// False, with a message, where the libraries were not fetched.
fn libraries() -> bool {
    let library = find_library(Flavour::TensorRtRtx, None).ok_or("no TensorRT-RTX; run `make setup-test`");
    Need::TensorRt.or_skip(library).is_some() && calib_test_support::calib().is_some() && python("", &[]).is_some()
}

fn calib(arguments: &[&str]) -> Output {
    let mut command = calib_test_support::calib().unwrap();
    command.current_dir(root()).args(arguments).output().unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = calib(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "calib {}: {error}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error of a command that must fail with status 2, by an error of ours.
fn fails(arguments: &[&str]) -> String {
    let output = calib(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "calib {}: {error}", arguments.join(" "));
    assert!(!error.contains("internal error"), "{error}");
    error
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Builds an engine and checks what was written.
fn build(model: &Path, extra: &[&str]) -> PathBuf {
    let engine = model.with_extension("plan");
    let mut arguments = vec!["build", "--model", text(model), "-o", text(&engine)];
    arguments.extend(CAPABILITY);
    arguments.extend(extra);
    succeeds(&arguments);
    let plan = Plan::read(&engine, Flavour::TensorRtRtx).unwrap();
    assert!(plan.bytes.len() > 10_000, "{}", engine.display());
    assert_eq!(plan.sidecar.unwrap().options.compute_capabilities, ["8.9"]);
    engine
}

/// Calibrates, and builds the float model and those of other precisions.
fn build_all(model: &Path, precisions: &[&str], data: &[&str], shapes: &[&str]) {
    build(model, shapes);
    let table = model.with_extension("json");
    let mut arguments = vec!["calibrate", "--model", text(model), "-o", text(&table)];
    let histograms = model.with_extension("calib");
    arguments.extend(["--histograms", text(&histograms), "--method", "minmax", "--calib-samples", "2"]);
    arguments.extend(data);
    succeeds(&arguments);
    for &precision in precisions {
        let quantized = quantize(model, precision);
        let engine = build(&quantized, shapes);
        assert_eq!(EngineSidecar::load(&engine).unwrap().precision.as_deref(), Some(precision));
    }
}

/// What the builder made of the model in `precision`.
fn summary(model: &Path, precision: &str) -> EngineSummary {
    let ending = if precision == "fp32" { "plan".to_owned() } else { format!("{precision}.plan") };
    let sidecar = EngineSidecar::load(&model.with_extension(ending)).unwrap();
    EngineLayers { layers: sidecar.layers }.summary()
}

/// Makes a model of another precision by the table beside the model.
fn quantize(model: &Path, precision: &str) -> PathBuf {
    let (table, quantized) = (model.with_extension("json"), model.with_extension(format!("{precision}.onnx")));
    let mut arguments = vec!["quantize", "--model", text(model), "--precision", precision];
    arguments.extend(["--table", text(&table), "-o", text(&quantized)]);
    succeeds(&arguments);
    quantized
}

/// A folder with the embedded model.
fn demo() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("demo.onnx");
    fs::copy(root().join("calib_data/demo.onnx"), &model).unwrap();
    (folder, model)
}

#[test]
fn the_embedded_model_in_every_precision() {
    if !libraries() {
        return;
    }
    let (_folder, model) = demo();
    let data = root().join("calib_data/images");
    build_all(&model, &["fp16", "bf16", "int8", "fp8"], &["--data", text(&data)], &["--batch", "4"]);
    let sidecar = EngineSidecar::load(&model.with_extension("plan")).unwrap();
    let (input, [min, opt, max]) = sidecar.options.profile.shapes.first_key_value().unwrap();
    assert_eq!(input, &sidecar.inputs[0].name);
    assert_eq!((min[0], opt[0], max[0]), (1, 4, 4));
    let types = [
        ("fp32", NumberType::Fp32),
        ("fp16", NumberType::Fp16),
        ("bf16", NumberType::Bf16),
        ("int8", NumberType::Int8),
        ("fp8", NumberType::Fp8),
    ];
    for (precision, number_type) in types {
        let summary = summary(&model, precision);
        // Its 25 convolutions and the classifier.
        assert_eq!(summary.compute_by_type, BTreeMap::from([(number_type, 26)]), "{precision}");
        assert_eq!(summary.wide_outputs, if number_type.is_8_bit() { 26 } else { 0 }, "{precision}");
        assert_eq!(summary.unfused_qdq.len(), usize::from(number_type.is_8_bit()), "{precision}: the input's alone");
    }
    let told = succeeds(&["inspect", text(&model.with_extension("int8.plan"))]);
    assert!(told.contains("of which 26 multiply: INT8 26 (100 %)"), "{told}");
    let told = succeeds(&["inspect", "--json", text(&model.with_extension("int8.plan"))]);
    assert!(told.contains("/stem/conv/Conv") && told.contains("input_QuantizeLinear"), "{told}");
}

#[test]
fn architectures_with_fixed_and_dynamic_batch() {
    if !libraries() {
        return;
    }
    let models: [(&str, &[&str]); 4] = [
        ("torchvision_resnet18.dynamo18", &["int8", "fp8"]),
        ("torchvision_mobilenet_v3_small.torchscript17.dynamic", &["int8", "fp16"]),
        ("timm_vit_tiny_patch16_224.dynamo18.dynamic", &["int8", "bf16"]),
        ("unet_transposed.torchscript15.dynamic", &["int8", "fp16"]),
    ];
    let fill = "import sys, gzip, onnx, zoo_skeleton\n\
        model = onnx.load_from_string(gzip.open(sys.argv[1]).read())\n\
        zoo_skeleton.fill(model)\n\
        onnx.save(model, sys.argv[2])";
    for (name, precisions) in models {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.onnx");
        python(fill, &[&root().join(format!("tests/fixtures/zoo/{name}.onnx.gz")), &model]);
        let shapes: &[&str] = if name.ends_with("dynamic") { &["--batch", "2"] } else { &[] };
        build_all(&model, precisions, &["--random-data"], shapes);
        if name.starts_with("unet") {
            // TensorRT-RTX has no transposed convolution in 8 bits, whatever the Q/DQ around it says.
            let types = BTreeMap::from([(NumberType::Int8, 6), (NumberType::Fp32, 2)]);
            assert_eq!(summary(&model, "int8").compute_by_type, types);
            let bf16 = quantize(&model, "bf16");
            let error = fails(&["build", "--model", text(&bf16), "-o", text(&folder.path().join("bf16.plan"))]);
            assert!(error.contains("ConvTranspose") && error.contains("use FP16"), "{error}");
        }
    }
}

#[test]
fn a_run_reports_what_is_inside_its_engines() {
    if !libraries() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let config = root().join("configs/demo.toml");
    let run = ["run", "--config", text(&config), "--out", text(&out), "--bench-seconds", "0"];
    let few = ["--calib-samples", "16", "--eval-samples", "8", "--precisions", "fp32,int8", "--gate", "top1=0"];
    succeeds(&[&run[..], &few].concat());
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let rows = report["precisions"].as_array().unwrap();
    let engines: Vec<&Value> = rows.iter().filter(|row| row["backend"] == "tensorrt-rtx").collect();
    for (row, number_type) in engines.iter().zip(["fp32", "int8"]) {
        let engine = &row["engine"];
        assert_eq!(engine["summary"]["compute_by_type"][number_type], 26, "{engine}");
        let layers = engine["layers"].as_array().unwrap();
        assert_eq!(layers.len() as u64, engine["summary"]["layers"].as_u64().unwrap());
        assert!(layers.iter().any(|layer| layer["nodes"][0] == "/classifier/Gemm"), "{layers:?}");
    }
    assert_eq!(engines.len(), 2);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Inside the engines") && page.contains("multiplies in INT8"));
    if let Err(missing) = Device::open(0) {
        let required = fails(&[&run[..], &few, &["--tensorrt", "require"]].concat());
        assert!(required.contains("--tensorrt require") && required.contains(&missing.to_string()), "{required}");
    }
}

/// `calib bisect` looks at tensors of an engine by building it with a few more outputs. No engine runs here, but every
/// one of these must be built.
#[test]
fn every_tensor_of_an_engine_can_be_made_an_output() {
    if !libraries() {
        return;
    }
    let (folder, model) = demo();
    let data = root().join("calib_data/images");
    build_all(&model, &["fp16", "int8"], &["--data", text(&data)], &["--batch", "4"]);
    let float = Model::load(&model).unwrap();
    for precision in ["fp16", "int8"] {
        let target = Model::load(&model.with_extension(format!("{precision}.onnx"))).unwrap();
        let options = EngineSidecar::load(&model.with_extension(format!("{precision}.plan"))).unwrap().options;
        let sites = shared_tensors(&float, &target).unwrap();
        assert!(sites.len() > 40, "{}", sites.len());
        for chunk in sites.chunks(4) {
            let marked: Vec<String> = chunk.iter().map(|site| site.tensor.clone()).collect();
            let probe = folder.path().join("probe.onnx");
            with_outputs(&target, &marked, &BTreeMap::new()).save(&probe).unwrap();
            let library = find_library(Flavour::TensorRtRtx, None).unwrap();
            let built = build_engine(&library, &probe, &options, |_| true);
            let built = built.unwrap_or_else(|error| panic!("{marked:?}: {error}"));
            let layers = built.layers(&target.op_types()).unwrap().unwrap().layers;
            let written: Vec<&str> =
                layers.iter().flat_map(|layer| &layer.outputs).map(|output| output.name.as_str()).collect();
            assert!(marked.iter().all(|tensor| written.contains(&tensor.as_str())), "{marked:?} in {written:?}");
        }
    }
}

#[test]
fn models_that_tensorrt_refuses_are_explained_by_their_node() {
    if !libraries() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let write = "import sys, pathlib, numpy as np, onnx\n\
        from onnx import helper as h, numpy_helper as n, TensorProto as T\n\
        folder = pathlib.Path(sys.argv[1])\n\
        def save(name, nodes, weights=(), shape=(1, 4), out=(1, 4)):\n\
        \x20   graph = h.make_graph(nodes, 'g', [h.make_tensor_value_info('x', T.FLOAT, shape)],\n\
        \x20       [h.make_tensor_value_info('y', T.FLOAT, out)], [n.from_array(v, k) for k, v in weights])\n\
        \x20   opsets = [h.make_opsetid('', 17), h.make_opsetid('acme', 1)]\n\
        \x20   onnx.save(h.make_model(graph, opset_imports=opsets, ir_version=8), folder / f'{name}.onnx')\n\
        f = lambda *shape: np.ones(shape, np.float32)\n\
        save('operator', [h.make_node('Frobnicate', ['x'], ['y'], name='strange_node', domain='acme')])\n\
        save('zero_point', [h.make_node('QuantizeLinear', ['x', 's', 'z'], ['q'], name='shifted_q'),\n\
        \x20   h.make_node('DequantizeLinear', ['q', 's', 'z'], ['y'], name='shifted_dq')],\n\
        \x20   [('s', np.array(0.1, np.float32)), ('z', np.array(3, np.int8))])\n\
        save('rank', [h.make_node('MatMul', ['x', 'w'], ['y'], name='wrong_product')], [('w', f(5, 4))])\n\
        save('dynamic', [h.make_node('Relu', ['x'], ['y'], name='r')], shape=('n', 'm'), out=('n', 'm'))\n\
        save('plain', [h.make_node('Relu', ['x'], ['y'], name='r')])";
    python(write, &[folder.path()]);
    let refused = |name: &str, extra: &[&str]| {
        let (model, engine) = (folder.path().join(format!("{name}.onnx")), folder.path().join(format!("{name}.plan")));
        let arguments = [&["build", "--model", text(&model), "-o", text(&engine)], extra].concat();
        let error = fails(&arguments);
        assert!(!engine.exists(), "nothing is written when a build fails");
        error
    };
    let error = refused("operator", &CAPABILITY);
    assert!(error.contains("strange_node") || error.contains("Frobnicate"), "{error}");
    let error = refused("zero_point", &CAPABILITY);
    assert!(error.contains("shifted_") && error.contains("quantize symmetrically"), "{error}");
    let error = refused("rank", &CAPABILITY);
    assert!(error.contains("wrong_product"), "{error}");
    let error = refused("dynamic", &CAPABILITY);
    assert!(error.contains("`x`") && error.contains("--profile x="), "{error}");
    let error = refused("plain", &["--compute-capability", "9.0"]);
    assert!(error.contains("not for 9.0"), "{error}");
}

#[test]
fn engines_that_cannot_run_here_end_with_an_explanation() {
    if !libraries() {
        return;
    }
    let (folder, model) = demo();
    let data = root().join("calib_data/images");
    let engine = build(&model, &["--data", text(&data), "--batch", "4"]);
    let bytes = fs::read(&engine).unwrap();
    let (compare, bench) = (["compare", "--ref", "ort", "--target"], ["bench"]);
    let both = |engine: &Path| {
        let target = format!("trt:{}", engine.display());
        let compared = fails(&[&compare[..], &[&target]].concat());
        assert_eq!(compared.replace("trt:", ""), fails(&[&compare[..], &[text(engine)]].concat()));
        [compared, fails(&[&bench[..], &[text(engine), "--model", text(&model)]].concat())]
    };
    if let Err(missing) = Device::open(0) {
        for error in both(&engine) {
            assert!(error.contains(&missing.to_string()), "{error}");
        }
        let out = folder.path().join("bisect");
        for find in ["first", "tensors"] {
            let error = fails(&["bisect", "--target", text(&engine), "--find", find, "--out", text(&out)]);
            assert!(error.contains(&missing.to_string()), "{error}");
        }
        assert!(!out.join("calibration.json").exists(), "an engine needs no ranges");
        let told = succeeds(&["inspect", text(&engine)]);
        assert!(told.contains("for         8.9") && told.contains(&missing.to_string()), "{told}");
    }
    let damage = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::copy(folder.path().join("demo.plan.json"), folder.path().join(format!("{name}.json"))).unwrap();
        path
    };
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let cases = [
        (damage("empty.plan", b""), "is empty"),
        (damage("short.plan", &bytes[..bytes.len() / 2]), "truncated"),
        (damage("foreign.plan", b"\x08\x08\x12\x07pytorch"), "not a TensorRT engine"),
        (damage("flipped.plan", &flipped), "its hash is another"),
        (damage("other.plan", b"ftrt\0\0\0\0 an engine of TensorRT"), "TENSORRT=11"),
    ];
    for (path, expected) in cases {
        for error in both(&path).into_iter().chain([fails(&["inspect", text(&path)])]) {
            assert!(error.contains(expected), "{error}");
        }
    }
    let missing = folder.path().join("no-such.plan");
    assert!(both(&missing)[0].contains("there is no engine"));
}
