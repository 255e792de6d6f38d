//! What takes memory, and what is said where there is no more.

use std::{fs, time::Duration};

use calib_test_support::python;

use super::{calib, demo, error_of, json, root, verdicts::command};

/// 40 and 160 samples of 0.7 MB, and a model that reads them.
const MAKE_LARGE: &str = r#"
import sys
import numpy as np, onnx
from onnx import TensorProto as T, helper as h, numpy_helper as nh
folder = sys.argv[1]
io = lambda n, s: h.make_tensor_value_info(n, T.FLOAT, s)
nodes = [h.make_node("Conv", ["x", "w"], ["c"], "c", strides=[8, 8]), h.make_node("GlobalAveragePool", ["c"], ["y"], "y")]
weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
graph = h.make_graph(nodes, "g", [io("x", ["n", 3, 242, 242])], [io("y", ["n", 8, 1, 1])], [nh.from_array(weight, "w")])
onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), f"{folder}/large.onnx")
for count in 40, 400:
    np.savez(f"{folder}/{count}.npz", x=np.full((count, 3, 242, 242), 0.5, np.float32))
"#;

#[test]
fn memory_does_not_grow_with_arrays_and_its_end_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    if calib().is_none() || python(MAKE_LARGE, &[folder.path()]).is_none() {
        return;
    }
    let folder = folder.path();
    let peak = |data: &str| {
        let output = command(folder, "calibrate", "large", data, &["-o", "t.json", "--json"]).assert().success();
        let found: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        found["peak_rss_bytes"].as_u64().unwrap() >> 20
    };
    let (few, many) = (peak("40"), peak("400"));
    assert!(many < few + 10 && many < 100, "{few} MiB with 40 samples, {many} MiB with 400");
    // JSON of other content takes no tree of many times its size.
    let numbers = "0,".repeat(10 << 20) + "0";
    fs::write(folder.join("numbers.json"), format!("{{\"lst\": [{{\"x\": {{\"array\": [{numbers}]}}}}]}}")).unwrap();
    let limited = |words: &[&str]| {
        let mut command = calib().unwrap();
        error_of(command.current_dir(folder).args(words).args(["--max-memory-mb", "250"]))
    };
    let error = limited(&["calibrate", "--model", "large.onnx", "-o", "t.json", "--data", "numbers.json"]);
    assert!(error.contains("entry 0: `x` holds no base64 `array`"), "{error}");
    let entries = vec![r#"{"x": [0]}"#; 1 << 20].join(",");
    fs::write(folder.join("entries.json"), format!("[{entries}]")).unwrap();
    let error = limited(&["calibrate", "--model", "large.onnx", "-o", "t.json", "--data", "entries.json"]);
    assert!(error.contains("entry 0: `x` holds no base64 `array`"), "{error}");
    let saved = ["--model", "large.onnx", "--data", "40.npz", "--ref", "ort", "--target", "saved:numbers.json"];
    let error = limited(&[&["compare"], &saved[..]].concat());
    assert!(error.contains("neither trtexec's --exportOutput nor Polygraphy's --save-outputs"), "{error}");
    assert!(limited(&["inspect", "numbers.json"]).contains("not a calibration table"), "{error}");
    let error = limited(&["bench", "ort", "--model", "large.onnx", "--batch", "10000"]);
    assert!(error.contains("--batch 10000 takes 6702 MB for its inputs"), "{error}");
    // A hole of 400 MB, which would be read whole. A backtrace takes memory, too, and must not be waited for.
    let file = fs::File::create(folder.join("inputs.json")).unwrap();
    file.set_len(400 << 20).unwrap();
    let mut calibrate = calib().unwrap();
    calibrate.current_dir(folder).env("RUST_BACKTRACE", "1").timeout(Duration::from_mins(2));
    calibrate.args([
        "calibrate",
        "--max-memory-mb",
        "250",
        "--model",
        "large.onnx",
        "--data",
        "inputs.json",
        "-o",
        "t.json",
    ]);
    let error = error_of(&mut calibrate);
    assert!(error.contains("out of memory") && error.contains("while reading inputs.json"), "{error}");
    let table = ["quantize", "--model", "large.onnx", "-o", "q.onnx", "--table", "inputs.json"];
    let error = limited(&table);
    assert!(error.contains("out of memory") && error.contains("while reading inputs.json"), "{error}");
    // Some of the threads start: what those that do not leave behind is not waited for.
    for megabytes in ["64", "80", "96"] {
        let more = ["-o", "t.json", "--threads", "16", "--max-memory-mb", megabytes];
        let error = error_of(command(folder, "calibrate", "large", "40", &more).timeout(Duration::from_mins(1)));
        assert!(error.contains("no thread could be started"), "{megabytes}: {error}");
    }
    // Several threads may find no memory at once: one of them says so.
    for megabytes in ["64", "80", "100", "120"] {
        let mut command = command(folder, "calibrate", "large", "40", &["-o", "t.json", "--max-memory-mb", megabytes]);
        let output = command.timeout(Duration::from_mins(2)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || output.status.code() == Some(2), "{megabytes}: {said}");
        assert!(said.matches("out of memory").count() <= 1, "{megabytes}: {said}");
    }
}

/// Every command says which file it was about when memory ended, and JSON of more entries than can be is refused.
#[test]
fn the_end_of_memory_names_the_file_that_was_read() {
    let Some(mut inspect) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let entry = |index: usize| format!(r#"{{"name": "layer {index}", "timeMs": 1, "averageMs": 1, "percentage": 0}}"#);
    let entries: Vec<String> = (0..400_000).map(entry).collect();
    fs::write(at("profile.json"), format!(r#"[{{"count": 1}}, {}]"#, entries.join(","))).unwrap();
    inspect.args(["inspect", "--max-memory-mb", "64", "--graph"]).arg(demo("demo.onnx"));
    let error = error_of(inspect.arg("--profile").arg(at("profile.json")).arg("-o").arg(at("graph.html")));
    let (ended, named) = ("out of memory", format!("while reading {}", at("profile.json").display()));
    assert!(error.contains(ended) && error.contains(&named), "{error}");

    fs::write(at("layers.json"), format!(r#"{{"Layers": [{}]}}"#, vec![r#"{"Name": "c"}"#; 300_000].join(",")))
        .unwrap();
    let mut inspect = calib().unwrap();
    let error = error_of(inspect.args(["inspect", "--graph"]).arg(at("layers.json")).arg("-o").arg(at("graph.html")));
    assert!(error.contains("layers.json") && error.contains("more than 262144 layers and tensors"), "{error}");

    let mut report = json(&root().join("reports/example/report.json"));
    report["notes"] = vec![""; 5 << 20].into();
    fs::write(at("report.json"), report.to_string()).unwrap();
    let error = error_of(calib().unwrap().arg("report").arg(at("report.json")).arg("-o").arg(at("report.html")));
    assert!(error.contains("report.json is not a valid report: it holds 52"), "{error}");
    assert!(error.contains("4194304 are the most"), "{error}");
}
