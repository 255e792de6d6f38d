//! `calib bench`: every batch size and thread count, the mode, what is emulated, and the files for other tools.

use serde_json::Value;

use super::{calib, demo, json};

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
        // The CPU computes FP16 in float, so its time is no speed of FP16.
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
    let plain =
        calib().unwrap().args(["bench", "ort", &fp16, "--model", &model, "--seconds", "0.05"]).assert().success();
    let text = String::from_utf8_lossy(&plain.get_output().stdout).into_owned();
    for part in ["clock", "temperature", "transfers", "no CUDA graph", "random inputs", "± p99", "(emulated)"] {
        assert!(text.contains(part), "{part}: {text}");
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
    command.args(["--bench-seconds", "0.05", "--out"]).arg(out.path()).assert().success();
    let report = json(&out.path().join("report.json"));
    for precision in report["precisions"].as_array().unwrap() {
        let batches = [&precision["latency_ms"]["batch"], &precision["speed_at"][0]["latency_ms"]["batch"]];
        assert_eq!(batches.map(Value::as_u64), [Some(1), Some(8)], "{precision}");
    }
    assert_eq!(report["precisions"][1]["speed_at"][0]["latency_ms"]["timing"], "emulated");
    let schema = json(&super::root().join("docs/report.schema.json"));
    assert!(jsonschema::is_valid(&schema, &report), "{:?}", jsonschema::validate(&schema, &report));
    // Two sizes say nothing to a command that measures no latency.
    let mut command = calib().unwrap();
    command.args(["calibrate", "--batch", "1,8", "--preset", "unit", "--model"]).arg(demo("demo.onnx"));
    assert!(super::error_of(command.arg("--data").arg(demo("images"))).contains("give one"));
}
