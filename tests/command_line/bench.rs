//! `calib bench`: every batch size and thread count, the mode, what is emulated, and the files for other tools.

use serde_json::Value;

use super::{calib, demo, json, python};

#[test]
fn every_target_is_measured_at_every_size_and_its_mode_stated() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let Some(mut command) = calib() else { return };
    let model = demo("demo.onnx").display().to_string();
    command.args(["quantize", "--precision", "fp16", "--model", &model, "-o", &path("fp16.onnx")]).assert().success();
    let fp16 = path("fp16.onnx");
    let mut command = calib().unwrap();
    command.args(["bench", "ort", &model, &fp16, "--model", &model, "--batch", "1,4", "--threads", "2,1", "--json"]);
    command.args([
        "--seconds",
        "0.05",
        "--export-times",
        &path("times.json"),
        "--export-profile",
        &path("profile.json"),
    ]);
    let output = command.assert().success();
    let outcome: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let measurements = outcome["measurements"].as_array().unwrap();
    let key = |m: &Value| (m["times"]["batch"].as_u64(), m["times"]["mode"]["threads"].as_u64());
    let keys: Vec<_> = measurements.iter().map(key).collect();
    let expected = [(1, 1), (1, 2), (4, 1), (4, 2)].map(|(batch, threads)| [(Some(batch), Some(threads)); 3]);
    assert_eq!(keys, expected.concat());
    for group in measurements.chunks(3) {
        let [base, same, half] = group else { panic!("three targets: {group:?}") };
        assert!(group.iter().all(|m| m["latency"]["median"].as_f64().is_some_and(|ms| ms > 0.0)));
        assert!(base["speed_up"].is_null() && same["speed_up"]["ratio"].is_f64());
        // The CPU computes FP16 in float, so its time is not that of FP16.
        assert_eq!((half["times"]["timing"].as_str(), &half["speed_up"]), (Some("emulated"), &Value::Null));
        assert_eq!(base["times"]["mode"]["provider"], "onnxruntime-cpu");
        assert_eq!(base["times"]["mode"]["transfers"], false);
    }
    assert!(outcome["emulated"][&fp16].as_str().unwrap().contains("FP16"));
    assert!(outcome["environment"]["libraries"]["ONNX Runtime"].is_string());

    let times = json(folder.path().join("times.json").as_path());
    assert_eq!(times.as_array().unwrap().len(), 12);
    assert!(times[0]["times"].as_array().unwrap().len() >= 10 && times[0]["times"][0]["latencyMs"].is_f64());
    let profile = json(folder.path().join("profile.json").as_path());
    let layers = profile[0]["profile"].as_array().unwrap();
    assert_eq!((profile[0]["target"].as_str(), layers[0]["count"].as_u64()), (Some("ort"), Some(20)));
    let shares: f64 = layers[1..].iter().map(|layer| layer["percentage"].as_f64().unwrap()).sum();
    assert!(layers.len() > 10 && (shares - 100.0).abs() < 1e-6, "{shares}");
    let plain = calib().unwrap().args(["bench", "ort", &fp16, "--model", &model, "--seconds", "0"]).assert().success();
    let text = String::from_utf8_lossy(&plain.get_output().stdout).into_owned();
    for part in ["clock", "temperature", "transfers", "no CUDA graph", "random inputs", "± p99", "(emulated)"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Ten rounds of each target are too few for a 99th percentile, and that is said of both.
    let warned =
        text.lines().filter(|line| line.starts_with("warning: ") && line.contains("the 99th percentile of 10 calls"));
    assert_eq!(warned.count(), 2, "{text}");
}

/// An INT8 model that ONNX Runtime runs in integer kernels of its own, with much more to do than its float sibling.
const SLOW: &str = r#"
import sys
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
def save(path, nodes, weights):
    info = lambda name, kind: helper.make_tensor_value_info(name, kind, [64, 64])
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT)], [info("y", TensorProto.FLOAT)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
rng = np.random.default_rng(1)
save(sys.argv[1], [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
     [numpy_helper.from_array(rng.normal(size=(64, 64)).astype(np.float32), "w")])
nodes, last = [], "x"
for i in range(40):
    nodes += [helper.make_node("DynamicQuantizeLinear", [last], [f"q{i}", f"s{i}", f"z{i}"], f"quantize{i}"),
              helper.make_node("MatMulInteger", [f"q{i}", "w", f"z{i}"], [f"m{i}"], f"m{i}"),
              helper.make_node("Cast", [f"m{i}"], [f"c{i}"], f"cast{i}", to=TensorProto.FLOAT),
              helper.make_node("Mul", [f"c{i}", f"s{i}"], [f"p{i}"], f"scale{i}")]
    last = f"p{i}"
nodes[-1].output[0] = "y"
save(sys.argv[2], nodes, [numpy_helper.from_array(rng.integers(-9, 9, (64, 64)).astype(np.int8), "w")])
"#;

#[test]
fn int8_that_is_slower_than_float_is_said_first_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let [float, int8, out] = ["float.onnx", "int8.onnx", "profile.json"].map(|name| folder.path().join(name));
    if python(SLOW, &[&float, &int8]).is_none() {
        return;
    }
    let Some(mut command) = calib() else { return };
    command.arg("bench").args([&float, &int8]).args([
        "--seconds",
        "0.1",
        "--rounds",
        "100",
        "--layer-times",
        "--threads",
        "1",
        "--batch",
        "64",
    ]);
    let text = String::from_utf8_lossy(&command.assert().success().get_output().stdout).into_owned();
    let first = text.lines().next().unwrap();
    let expected = format!("{} is slower than {}: ", int8.display(), float.display());
    assert!(first.starts_with(&expected) && first.contains("likely because"), "{text}");
    // Of one target, the profile is trtexec's own array.
    let mut command = calib().unwrap();
    command
        .arg("bench")
        .arg(&int8)
        .args(["--batch", "64", "--seconds", "0", "--export-profile"])
        .arg(&out)
        .assert()
        .success();
    let profile = json(&out);
    assert_eq!(profile[0]["count"], 20);
    for layer in &profile.as_array().unwrap()[1..] {
        let [time, average] = ["timeMs", "averageMs"].map(|key| layer[key].as_f64().unwrap());
        assert!(
            (time - 20.0 * average).abs() < 1e-9 && layer["medianMs"].is_f64() && layer["name"].is_string(),
            "{layer}"
        );
    }
}

#[test]
fn a_run_measures_at_every_batch_size_that_it_is_asked_for() {
    let out = tempfile::tempdir().unwrap();
    let Some(mut command) = calib() else { return };
    command.arg("run").args(super::demo_flags()).args([
        "--precisions",
        "int8",
        "--eval-samples",
        "40",
        "--batch",
        "1,8",
    ]);
    command.args(["--bench-seconds", "0.0001", "--out"]).arg(out.path()).assert().success();
    let report = json(&out.path().join("report.json"));
    for precision in report["precisions"].as_array().unwrap() {
        let batches = [&precision["latency_ms"]["batch"], &precision["speed_at"][0]["latency_ms"]["batch"]];
        assert_eq!(batches.map(Value::as_u64), [Some(1), Some(8)], "{precision}");
        // Three rounds, which is the least, are too few for a 99th percentile.
        let warnings = precision["latency_ms"]["warnings"].as_array().unwrap();
        assert!(warnings.iter().any(|text| text.as_str().unwrap().contains("the 99th percentile of 3 calls")));
    }
    let page = std::fs::read_to_string(out.path().join("report.html")).unwrap();
    assert_eq!(page.matches("the 99th percentile of 3 calls").count(), 1, "once for two precisions at two sizes");
    assert_eq!(report["precisions"][1]["speed_at"][0]["latency_ms"]["timing"], "emulated");
    let schema = json(&super::root().join("docs/report.schema.json"));
    assert!(jsonschema::is_valid(&schema, &report), "{:?}", jsonschema::validate(&schema, &report));
    // Two sizes say nothing to a command that measures no latency.
    let mut command = calib().unwrap();
    command.args(["calibrate", "--batch", "1,8", "--preset", "unit", "--model"]).arg(demo("demo.onnx"));
    assert!(super::error_of(command.arg("--data").arg(demo("images"))).contains("give one"));
}
