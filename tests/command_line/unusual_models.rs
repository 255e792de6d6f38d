//! Models of unusual form, made by `tests/fixtures/unusual_models.py`: control flow, functions, tied and hidden weights,
//! several integer inputs of any length, and every operator set from 9 to 23.

use std::{fs, path::Path};

use super::{calib, demo, error_of, json, python, root};

/// Runs the script with the fetched packages; false, with a message, where they are missing.
fn script(task: &str, folder: &Path) -> bool {
    let path = root().join("tests/fixtures/unusual_models.py");
    let code = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')";
    python(code, &[&path, Path::new(task), folder]).is_some()
}

#[test]
fn all_are_quantized_and_run() {
    let folder = tempfile::tempdir().unwrap();
    if calib().is_none() || !script("make", folder.path()) {
        return;
    }
    let mut models: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|ending| ending == "onnx"));
    assert_eq!(models.len(), 21);
    for model in &models {
        let table = model.with_extension("json");
        let mut calibrate = calib().unwrap();
        calibrate.args(["calibrate", "--calib-samples", "8", "--data"]).arg(model.with_extension("npz"));
        calibrate.arg("--model").arg(model).arg("-o").arg(&table).arg("--histograms").arg(folder.path().join("counts"));
        calibrate.assert().success();
        for precision in ["int8", "fp16"] {
            let output = model.with_extension(format!("{precision}.onnx"));
            let mut quantize = calib().unwrap();
            quantize.args(["quantize", "--precision", precision, "--model"]).arg(model).arg("-o").arg(&output);
            quantize.arg("--table").arg(&table).assert().success();
            calib().unwrap().args(["inspect", "--check"]).arg(&output).assert().success();
        }
    }
    assert!(script("check", folder.path()));
    control_flow_is_explained(&folder.path().join("control_flow.onnx"));
    let magnitudes = &json(&folder.path().join("massive.json"))["magnitudes"];
    let large: Vec<&String> = magnitudes.as_object().unwrap().keys().collect();
    assert_eq!(large, ["centred", "guarded", "large", "squares", "variance"], "{magnitudes}");
    sixteen_bits_are_computed_as_such(folder.path());
    lengths_vary_or_are_bound(folder.path());
    a_selection_that_differs_is_told(folder.path());
}

fn control_flow_is_explained(model: &Path) {
    let output = calib().unwrap().args(["quantize", "--explain", "--json", "--model"]).arg(model).assert().success();
    let decisions: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let rule = |name: &str| {
        let decision = decisions.as_array().unwrap().iter().find(|decision| decision["node"] == name);
        decision.unwrap_or_else(|| panic!("no decision about {name}"))["rule"].as_str().unwrap().to_owned()
    };
    let nodes = ["first", "sum", "positive", "if", "loop", "scan", "last"].map(rule);
    let expected =
        ["matrix_product", "no_kernel", "no_kernel", "has_subgraph", "has_subgraph", "has_subgraph", "matrix_product"];
    assert_eq!(nodes, expected);
}

/// ONNX Runtime computes FP16 in 32 bits on the CPU, and BF16 not at all; the figures of a run are those of 16 bits.
fn sixteen_bits_are_computed_as_such(folder: &Path) {
    let report = |model: &str, out: &Path| {
        let at = |ending: &str| folder.join(model).with_extension(ending);
        let mut run = calib().unwrap();
        run.arg("run").arg("--model").arg(at("onnx")).arg("--data").arg(at("npz")).arg("--out").arg(out);
        run.args([
            "--precisions",
            "fp32,fp16,bf16",
            "--calib-samples",
            "6",
            "--bench-seconds",
            "0",
            "--tensorrt",
            "off",
        ]);
        run.assert().success();
        json(&out.join("report.json"))
    };
    let sqnr_db = |report: &serde_json::Value, row: usize| {
        let value = report["precisions"][row]["outputs"][0]["sqnr_db"].as_f64();
        value.unwrap_or_else(|| panic!("{}", report["precisions"][row]))
    };
    // BF16 is younger than this operator set.
    assert!(sqnr_db(&report("opset9", &folder.join("old_halves")), 2) > 40.0);
    let out = folder.join("halves");
    let report = report("massive", &out);
    let sqnr_db = |row: usize| sqnr_db(&report, row);
    let evaluator = "
import json, sys, numpy as np
from onnx.reference import ReferenceEvaluator
folder, out = sys.argv[1:]
data = np.load(folder + '/massive.npz')['x']
exact, halved = (ReferenceEvaluator(path) for path in (folder + '/massive.onnx', out + '/model.fp16.onnx'))
signal = noise = 0.0
for sample in json.load(open(out + '/report.json'))['dataset']['evaluation']:
    feed = {'x': data[int(sample)][None]}
    r, t = (np.asarray(model.run(None, feed)[0], np.float64) for model in (exact, halved))
    signal, noise = signal + (r * r).sum(), noise + ((r - t) ** 2).sum()
print(10 * np.log10(signal / noise))";
    let expected: f64 = python(evaluator, &[folder, &out]).unwrap().parse().unwrap();
    assert!((sqnr_db(1) - expected).abs() < 0.5, "{} for {expected}", sqnr_db(1));
    // Eight bits of mantissa instead of eleven.
    assert!((sqnr_db(2) - (sqnr_db(1) - 18.0)).abs() < 3.0, "{} and {}", sqnr_db(1), sqnr_db(2));
    assert!(report["notes"].to_string().contains("imitated on the CPU: fp16, bf16"), "{}", report["notes"]);
}

/// Where the INT8 model selects other candidates, tensors behind have another shape: what can be compared is, and `first`
/// names the node that selects.
fn a_selection_that_differs_is_told(folder: &Path) {
    let bisect = |find: &str| {
        let mut bisect = calib().unwrap();
        bisect.args(["bisect", "--threshold-db", "37", "--find", find, "--model"]).arg(folder.join("selection.onnx"));
        bisect.arg("--data").arg(folder.join("selection.npz")).arg("--table").arg(folder.join("selection.json"));
        let output = bisect.arg("--out").arg(folder.join(find)).assert().success();
        let text = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
        (text, json(&folder.join(find).join("bisect.json")))
    };
    let (text, found) = bisect("tensors");
    assert!(text.contains("tensor `kept` has shape [1, 1"), "{text}");
    let tensors = found["tensors"]["tensors"].as_array().unwrap();
    let mismatched: Vec<_> = tensors.iter().filter(|t| t["shape_mismatch"].is_object()).map(|t| &t["tensor"]).collect();
    assert_eq!(mismatched, ["kept", "positive", "refined"]);
    let (text, found) = bisect("first");
    assert!(text.contains("first divergence: `chosen` (Greater), tensor `chosen`"), "{text}");
    assert_eq!(found["first"]["culprit"]["node"], "chosen");
}

/// Integer inputs of different lengths calibrate as they are; `--shape` makes a static model.
fn lengths_vary_or_are_bound(folder: &Path) {
    let model = folder.join("tied_embedding.onnx");
    let table = folder.join("lengths.json");
    let mut calibrate = calib().unwrap();
    calibrate.args(["calibrate", "--calib-samples", "12", "--data"]).arg(folder.join("lengths"));
    calibrate.arg("--model").arg(&model).arg("-o").arg(&table).assert().success();
    assert_eq!(json(&table)["samples"], 12);
    let output = folder.join("bound.onnx");
    let quantize = |shapes: &[&str]| {
        let mut quantize = calib().unwrap();
        quantize.args(["quantize", "--model"]).arg(&model).arg("--table").arg(&table).arg("-o").arg(&output);
        quantize.args(shapes.iter().flat_map(|shape| ["--shape", shape]));
        quantize
    };
    quantize(&["tokens=1x7", "segments=1x7", "mask=1x7x1"]).assert().success();
    let shapes = "import sys, onnx; m = onnx.load(sys.argv[1]); print([[d.dim_value for d in i.type.tensor_type.shape.dim] \
                  for i in m.graph.input])";
    assert_eq!(python(shapes, &[&output]).unwrap(), "[[1, 7], [1, 7], [1, 7, 1]]");
    let error = error_of(&mut quantize(&["token=1x7"]));
    assert!(error.contains("token"), "{error}");
}

#[test]
fn a_plan_with_patterns_is_read_by_quantize_and_run() {
    let out = tempfile::tempdir().unwrap();
    let Some(mut run) = calib() else { return };
    let plan = out.path().join("plan.json");
    let text = r#"{"format_version": 1, "assignments": [{"pattern": ".*[Cc]onv.*", "precision": "fp32"}]}"#;
    fs::write(&plan, text).unwrap();
    run.arg("run")
        .args(super::demo_flags())
        .args(["--bench-seconds", "0", "--precisions", "int8", "--plan"])
        .arg(&plan);
    run.args(["--calib-samples", "20", "--out"]).arg(out.path().join("run")).assert().success();
    let quantized = |plan: &[&Path]| {
        let mut command = calib().unwrap();
        command.args(["quantize", "--explain", "--json", "--model"]).arg(demo("demo.onnx"));
        command.args(plan.iter().flat_map(|plan| [Path::new("--plan"), plan]));
        let output = command.assert().success();
        let decisions: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        let decisions = decisions.as_array().unwrap().iter();
        let convolutions = decisions.filter(|decision| decision["op_type"] == "Conv");
        convolutions.filter(|decision| decision["precision"] == "int8").count()
    };
    assert!(quantized(&[]) > 5);
    assert_eq!(quantized(&[&plan]), 0);
    // What a plan asks for in vain is said.
    let named = out.path().join("named.json");
    let text =
        r#"{"format_version": 1, "default": "fp8", "assignments": [{"node": "/stem/conv/Conv", "precision": "fp8"}]}"#;
    fs::write(&named, text).unwrap();
    let mut command = calib().unwrap();
    command
        .arg("quantize")
        .arg("--model")
        .arg(demo("demo.onnx"))
        .arg("--table")
        .arg(out.path().join("run/calibration.json"));
    let (_, said) = super::output(0, command.arg("--plan").arg(&named).arg("-o").arg(out.path().join("q.onnx")));
    assert!(said.contains("the plan asks for fp8 at the node `/stem/conv/Conv`, which is in int8 here"), "{said}");
    assert!(said.contains("the plan asks for fp8, in which no node is here"), "{said}");
    let report = json(&out.path().join("run/report.json"));
    let layers = report["layers"].as_array().unwrap();
    assert!(layers.iter().all(|layer| layer["op_type"] != "Conv" || layer["precision"] != "int8"), "{layers:?}");
}
