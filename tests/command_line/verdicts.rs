//! Verdicts that can be trusted: what is judged is what is named, over samples that decide something, and a run that fails
//! leaves nothing behind that passed.

use std::{fs, path::Path};

use super::{calib, error_of, json, made};

/// `residual.onnx` adds up two convolutions; `half.onnx`, `double.onnx` and `mixed.onnx` are FP16, FP64 and in part FP16. `tiny.onnx`
/// multiplies by 10⁻⁹, which FP16 does not have. `range-N.onnx` reads values of about 10ᴺ and
/// brings its results back to about 1. `first.onnx` imports the operators as `ai.onnx`; `four.onnx` fixes its batch to 4;
/// `time.onnx` has time as its first axis, `picture.onnx` takes a picture without a batch, `state.onnx` a state whose first axis counts
/// layers, and `batched.onnx` the same with an open batch. The extents of `endless.onnx` and `overflowing.onnx` cannot be
/// multiplied.
const MAKE: &str = r#"
import os, sys
import numpy as np, onnx
from onnx import TensorProto as T, helper as h, numpy_helper as nh
folder = sys.argv[1]
rng = np.random.default_rng(7)
c = lambda name, *shape, k=0.1, t=np.float32: nh.from_array((rng.normal(0, 1, shape) * k).astype(t), name)
def save(name, nodes, inputs, outputs, constants, domain="", kind=T.FLOAT):
    io = lambda pairs: [h.make_tensor_value_info(n, kind, s) for n, s in pairs]
    nodes = [h.make_node(op, i, [o], o, **a) for op, i, o, a in nodes]
    m = h.make_model(h.make_graph(nodes, "g", io(inputs), io(outputs), constants), opset_imports=[h.make_opsetid(domain, 17)], ir_version=8)
    onnx.save(m, f"{folder}/{name}.onnx")
conv = lambda i, w, o: ("Conv", [i, w], o, dict(pads=[1] * 4))
x, y = [("x", ["n", 8, 10, 10])], [("y", ["n", 8, 10, 10])]
chain = [conv("x", "a", "p"), ("Relu", ["p"], "r", {}), conv("r", "b", "q"), ("Add", ["q", "r"], "s", {}), conv("s", "d", "y")]
weights = lambda t=np.float32: [c(n, 8, 8, 3, 3, t=t) for n in "abd"]
save("residual", chain, x, y, weights())
save("apart", chain, x, y, weights())
onnx.save(onnx.load(f"{folder}/apart.onnx"), f"{folder}/apart.onnx", save_as_external_data=True, location="apart.bin", size_threshold=0)
save("first", chain, x, y, weights(), "ai.onnx")
save("half", chain, x, y, weights(np.float16), kind=T.FLOAT16)
save("double", [("MatMul", ["x", "a"], "y", {})], [("x", ["n", 32])], [("y", ["n", 32])], [c("a", 32, 32, t=np.float64)], kind=T.DOUBLE)
save("mixed", [("Cast", ["x"], "h", dict(to=T.FLOAT16)), conv("h", "a", "p"), ("Cast", ["p"], "f", dict(to=T.FLOAT)), conv("f", "b", "y")], x, y,
     [c("a", 8, 8, 3, 3, t=np.float16), c("b", 8, 8, 3, 3)])
save("tiny", [conv("x", "a", "p"), ("Relu", ["p"], "r", {}), ("Mul", ["r", "e"], "y", {})], x, y, [c("a", 8, 8, 3, 3), nh.from_array(np.float32(1e-9), "e")])
for n in -30, -20, 20, 30:
    save(f"range{n}", [conv("x", "a", "p"), conv("p", "b", "y")], x, y, [c("a", 8, 8, 3, 3), c("b", 8, 8, 3, 3, k=10.0 ** -n)])
    np.savez(f"{folder}/range{n}.npz", x=(rng.normal(size=(24, 8, 10, 10)) * 10.0 ** n).astype(np.float32))
save("four", [conv("x", "a", "y")], [("x", [4, 8, 10, 10])], [("y", [4, 8, 10, 10])], weights()[:1])
save("time", [("Transpose", ["x"], "t", dict(perm=[1, 0, 2])), ("Reshape", ["t", "s"], "u", {}), ("MatMul", ["u", "w"], "y", {})], [("x", [12, 1, 8])], [("y", [1, 16])],
     [nh.from_array(np.array([1, 96]), "s"), c("w", 96, 16)])
save("picture", [("Unsqueeze", ["x", "z"], "u", {}), conv("u", "a", "c"), ("Squeeze", ["c", "z"], "y", {})], [("x", [8, 10, 10])], [("y", [5, 10, 10])],
     [nh.from_array(np.array([0]), "z"), c("a", 5, 8, 3, 3)])
save("state", [("Reshape", ["h", "s"], "u", {}), ("MatMul", ["u", "v"], "p", {}), ("MatMul", ["x", "w"], "q", {}), ("Add", ["p", "q"], "y", {})],
     [("h", [2, 1, 32]), ("x", [1, 32])], [("y", [1, 16])], [nh.from_array(np.array([1, 64]), "s"), c("v", 64, 16), c("w", 32, 16)])
save("batched", [("Transpose", ["h"], "t", dict(perm=[1, 0, 2])), ("Reshape", ["t", "s"], "u", {}), ("MatMul", ["u", "v"], "p", {}), ("MatMul", ["x", "w"], "q", {}), ("Add", ["p", "q"], "y", {})],
     [("h", [2, "n", 32]), ("x", ["n", 32])], [("y", ["n", 16])], [nh.from_array(np.array([-1, 64]), "s"), c("v", 64, 16), c("w", 32, 16)])
save("relu", [("Relu", ["x"], "y", {})], x, y, [])
for name, shape in ("endless", ["n", 2 ** 63 - 1]), ("overflowing", [1, 2 ** 62, 8]):
    save(name, [("Relu", ["x"], "y", {})], [("x", shape)], [("y", shape)], [])
for count, name in (24, "x"), (40, "more"):
    np.savez(f"{folder}/{name}.npz", x=rng.normal(size=(count, 8, 10, 10)).astype(np.float32))
np.savez(f"{folder}/reversed.npz", x=np.load(f"{folder}/more.npz")["x"][::-1])
np.savez(f"{folder}/half.npz", x=rng.normal(size=(24, 8, 10, 10)).astype(np.float16))
np.savez(f"{folder}/double.npz", x=rng.normal(size=(24, 32)))
"#;

/// A command over a model and data of the folder, whose relative files lie there.
pub(super) fn command(folder: &Path, name: &str, model: &str, data: &str, more: &[&str]) -> assert_cmd::Command {
    let mut command = calib().unwrap();
    command.current_dir(folder).args([name, "--model"]).arg(format!("{model}.onnx"));
    command.arg("--data").arg(format!("{data}.npz")).args(more);
    command
}

fn run(folder: &Path, model: &str, data: &str, more: &[&str]) -> assert_cmd::Command {
    let mut command =
        command(folder, "run", model, data, &["--bench-seconds", "0", "--tensorrt", "off", "--out", "out"]);
    command.args(more);
    command
}

fn report(folder: &Path) -> serde_json::Value {
    json(&folder.join("out/report.json"))
}

fn row<'r>(report: &'r serde_json::Value, precision: &str) -> &'r serde_json::Value {
    let rows = report["precisions"].as_array().unwrap();
    rows.iter().find(|row| row["precision"] == precision).unwrap_or_else(|| panic!("no {precision} in {rows:?}"))
}

#[test]
fn a_model_in_another_precision_is_called_so() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    for (model, data, name, weights) in [
        ("half", "half", "fp16", "float16"),
        ("double", "double", "fp64", "float64"),
        ("mixed", "x", "mixed", "float16"),
    ] {
        run(folder, model, data, &["--precisions", "fp32,fp16,bf16"]).assert().success();
        let report = report(folder);
        assert_eq!(row(&report, name)["reference"], true, "{model}");
        assert!(report["model"]["weights"][weights].as_u64().unwrap() >= 576, "{}", report["model"]);
        let rows = report["precisions"].as_array().unwrap();
        assert_eq!(rows.iter().filter(|row| row["precision"] == "fp16").count(), 1, "{rows:?}");
        let converted = row(&report, "bf16");
        assert_eq!(converted.get("error").is_some(), name != "mixed", "{converted}");
    }
    let error = error_of(command(folder, "quantize", "half", "x", &[]).args(["--precision", "fp16", "-o", "q.onnx"]));
    assert!(error.contains("unexpected argument"), "{error}");
    let mut quantize = calib().unwrap();
    quantize.current_dir(folder).args(["quantize", "--model", "half.onnx", "--precision", "fp16", "-o", "q.onnx"]);
    assert!(error_of(&mut quantize).contains("there is nothing to convert to fp16"));
}

#[test]
fn a_factor_that_leaves_fp16_little_stays_in_fp32_in_a_run_and_in_its_file() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    run(folder, "tiny", "x", &["--precisions", "fp16"]).assert().success();
    let imitated = row(&report(folder), "fp16")["outputs"][0]["sqnr_db"].as_f64().unwrap();
    let more = ["--ref", "ort", "--target", "out/model.fp16.onnx", "--json"];
    let output = command(folder, "compare", "tiny", "x", &more).assert().success();
    let compared: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let of_file = compared["targets"][0]["result"]["outputs"][0]["sqnr_db"].as_f64().unwrap();
    // In FP16 the factor would be 2⁻²⁴, 60 times what it is, and give −35 dB.
    assert!(imitated > 60.0 && of_file > 60.0, "{imitated} {of_file}");
    let report = report(folder);
    let kept = &row(&report, "fp16")["halved"]["kept_fp32"];
    assert!(
        kept[0]["node"] == "y" && kept[1].is_null() && kept[0]["reason"]["small"].as_f64().unwrap() < 1e-7,
        "{kept}"
    );
}

#[test]
fn every_quantized_convolution_has_a_row() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    let flags =
        ["--precisions", "int8", "--gate", "sqnr_db=5", "--bench-seconds", "0.1", "--tensorrt", "off", "--out", "out"];
    let output = command(folder, "run", "residual", "x", &flags).assert().success();
    let shown = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
    assert!(shown.contains("int8") && shown.contains("emulated"), "{shown}");
    assert!(shown.lines().take_while(|line| !line.is_empty()).all(|line| line.chars().count() <= 80), "{shown}");
    let report = report(folder);
    let commands = report["advice"].as_array().unwrap().iter().filter_map(|advice| advice["command"].as_str());
    assert!(commands.clone().all(|command| !command.contains("bisect")), "what passes needs none");
    // Where another precision fails, that is what to bisect.
    let flags =
        ["--precisions", "int8,fp8", "--gate", "int8:sqnr_db=5", "--gate", "fp8:sqnr_db=99", "--bench-seconds", "0"];
    let flags = [&flags[..], &["--tensorrt", "off", "--out", "fp8"]].concat();
    command(folder, "run", "residual", "x", &flags).assert().code(1);
    let advice = json(&folder.join("fp8/report.json"))["advice"].clone();
    let commands = advice.as_array().unwrap().iter().filter_map(|advice| advice["command"].as_str());
    let commands: Vec<&str> = commands.filter(|command| command.contains("bisect")).collect();
    assert!(commands.len() == 1 && commands[0].contains("--precision fp8"), "{advice}");
    let layers = report["layers"].as_array().unwrap();
    let known = ["p", "r", "q", "s", "y"];
    assert!(layers.iter().all(|layer| known.contains(&layer["node"].as_str().unwrap())), "{layers:?}");
    // `q` goes into the sum as it is: only its error tells of its convolution.
    let row = layers.iter().find(|layer| layer["tensor"] == "q").unwrap_or_else(|| panic!("{layers:?}"));
    assert_eq!((&row["node"], &row["op_type"]), (&"q".into(), &"Conv".into()));
    assert!(row["layerwise_sqnr_db"].as_f64().unwrap() > 20.0 && row["weight_sqnr_db"].is_f64(), "{row}");
    assert!(
        fs::read_to_string(folder.join("out/layers.csv")).unwrap().lines().any(|line| line.starts_with("q,Conv,q,"))
    );
}

#[test]
fn ranges_far_from_one_keep_their_accuracy() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    for exponent in [-30, -20, 20, 30] {
        let name = format!("range{exponent}");
        command(folder, "calibrate", &name, &name, &["-o", "t.json"]).assert().success();
        let mut quantize = calib().unwrap();
        quantize.current_dir(folder).args(["quantize", "--table", "t.json", "-o", "q.onnx", "--model"]);
        quantize.arg(format!("{name}.onnx")).assert().success();
        let more = ["--ref", "ort", "--target", "q.onnx", "--calibration-samples", "--json"];
        let output = command(folder, "compare", &name, &name, &more).assert().success();
        let compared: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        let sqnr_db = compared["targets"][0]["result"]["outputs"][0]["sqnr_db"].as_f64().unwrap();
        assert!(sqnr_db > 30.0, "10^{exponent}: {sqnr_db} dB");
    }
}

#[test]
fn a_run_that_fails_leaves_no_report_that_passed() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    let summary = ["--precisions", "fp16", "--gate", "sqnr_db=20", "--summary", "summary.md"];
    run(folder, "residual", "x", &summary).assert().success();
    assert!(fs::read_to_string(folder.join("summary.md")).unwrap().contains('✅'));
    // Data that cannot be read: the session does not even open.
    fs::write(folder.join("bad.npz"), "no archive").unwrap();
    error_of(&mut run(folder, "residual", "bad", &summary));
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert!(read("out/report.junit.xml").contains("errors=\"1\""), "{}", read("out/report.junit.xml"));
    assert!(read("out/report.html").contains("the run failed"));
    assert!(read("summary.md").contains('❌') && !read("summary.md").contains('✅'));
    assert!(!folder.join("out/report.json").exists() && !folder.join("out/layers.csv").exists());
    assert!(read("out/former/report.json").contains("\"passed\": true"));
    // Options that cannot be used: the run does not even begin.
    fs::write(folder.join("bad.toml"), "gate = [\"nonsense=3\"]").unwrap();
    for more in [
        ["--gate", "nonsense=3"],
        ["--config", "bad.toml"],
        ["--samples-of-none", "3"],
        ["--batch", "0"],
        // Ends for want of memory, wherever that is.
        ["--max-memory-mb=64", "--threads=16"],
    ] {
        run(folder, "residual", "x", &summary).assert().success();
        assert!(!read("out/report.junit.xml").contains("errors=\"1\""));
        run(folder, "residual", "x", &[&summary[..], &more].concat()).assert().code(2);
        assert!(read("out/report.junit.xml").contains("errors=\"1\""), "{more:?}");
        assert!(read("summary.md").contains('❌') && !folder.join("out/report.json").exists(), "{more:?}");
    }
    // Folders that only the configuration, or the name of the model tells.
    let told = "data = \"x.npz\"\nbench_seconds = 0\ntensorrt = \"off\"\nprecisions = [\"fp16\"]\n";
    let with_out = format!("out = \"told\"\n{told}");
    for (out, start, bad, more) in [
        ("told", &*with_out, "preset = \"nonsense\"", None),
        ("told", &with_out, "nonsense = 1", None),
        ("told", &with_out, "not = = toml", None),
        ("told", &with_out, "", Some("--gate=nonsense=3")),
        ("runs/residual", told, "", Some("--gate=nonsense=3")),
        ("runs/residual", told, "nonsense = 1", None),
    ] {
        let run = |text: &str, more: Option<&str>| {
            fs::write(folder.join("c.toml"), text).unwrap();
            let mut run = calib().unwrap();
            run.current_dir(folder).args(more.map(|_| "--quiet")).args(["run", "--config", "c.toml", "residual.onnx"]);
            run.args(more);
            run
        };
        run(start, None).assert().success();
        let junit = || fs::read_to_string(folder.join(out).join("report.junit.xml")).unwrap();
        assert!(junit().contains("errors=\"0\""));
        error_of(&mut run(&format!("{start}{bad}\n"), more));
        assert!(junit().contains("errors=\"1\""), "{out}: {bad} {more:?}");
    }
    // What runs nothing changes nothing, and no other file is taken for a summary.
    run(folder, "residual", "x", &summary).assert().success();
    run(folder, "residual", "x", &["--gate", "nonsense=3", "--summary", "bad.toml"]).assert().code(2);
    assert_eq!(read("bad.toml"), "gate = [\"nonsense=3\"]");
    run(folder, "residual", "x", &summary).assert().success();
    run(folder, "residual", "x", &["--print-config", "--gate", "nonsense=3"]).assert().code(2);
    assert!(folder.join("out/report.json").exists());
}

#[test]
fn gates_that_cannot_be_tested_end_before_the_work() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    for (gate, reason) in [
        ("accuracy=0.5", "no sample has a label"),
        ("label_mean_iou=0.5", "no sample has a label mask"),
        ("latency_ratio=0.9", "no latency is measured with --bench-seconds 0"),
        ("int8:sqnr_db=20", "int8 is not made by this run, which makes fp16"),
        ("fp32:sqnr_db=20", "fp32 is what the model is"),
        ("detection_recall=0.9", "no detection head"),
        ("top1=0.9", "no output of the model is a classification"),
        ("sqnr_db[nosuch]=9", "`nosuch` is neither an output of the model nor a part of one; it has y"),
        ("sqnr_db[y/box]=9", "`y/box` is neither an output of the model nor"),
    ] {
        let error = error_of(&mut run(folder, "residual", "x", &["--precisions", "fp16", "--gate", gate]));
        assert!(error.contains(reason), "{gate}: {error}");
        assert!(!folder.join("out/model.fp16.onnx").exists(), "{gate}");
    }
    let vectors = |gate: &str, more: &[&str]| {
        let error = error_of(run(folder, "double", "double", &["--gate", gate]).args(more));
        assert!(!folder.join("out/run.toml").exists(), "{error}");
        error
    };
    for gate in ["mean_iou=0.5", "pixel_agreement=0.5"] {
        assert!(vectors(gate, &["--precisions", "fp16"]).contains("no output of the model is a map of classes"));
    }
    // A gate that no row can be judged by.
    for (model, data, precisions) in [("residual", "x", "fp32"), ("half", "half", "fp32,fp16")] {
        let more = ["--precisions", precisions, "--gate", "sqnr_db=50"];
        let error = error_of(&mut run(folder, model, data, &more));
        assert!(error.contains("nothing is made that could be judged by it"), "{error}");
    }
    // Where no engine runs, low precisions have no latency that says anything.
    let more = ["--precisions", "fp16", "--tensorrt", "off", "--out", "out", "--gate", "latency_ratio=0.9"];
    let error = error_of(&mut command(folder, "run", "residual", "x", &more));
    assert!(error.contains("without a GPU, or with --tensorrt off"), "{error}");
    let more = ["--ref", "ort", "--target", "residual.onnx", "--gate", "accuracy=0.5"];
    let error = error_of(&mut command(folder, "compare", "residual", "x", &more));
    assert!(error.contains("no sample has a label"), "{error}");
    // Whatever gives the reference's outputs, nothing is run and saved first.
    let save = ["--ref", "ort", "--target", "first.onnx", "--save-reference", "saved.npz"];
    command(folder, "compare", "residual", "x", &save).assert().success();
    for reference in ["saved:saved.npz", "ort:first.onnx"] {
        let more =
            ["--ref", reference, "--target", "residual.onnx", "--save-target", "target.npz", "--gate", "top1=0.9"];
        let error = error_of(&mut command(folder, "compare", "residual", "x", &more));
        assert!(error.contains("no output of the model is a classification"), "{reference}: {error}");
        assert!(!folder.join("target.npz").exists());
    }
}

#[test]
fn the_size_of_a_model_is_that_of_all_its_files() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    let bytes = |name: &str| fs::metadata(folder.join(name)).unwrap().len();
    let size = bytes("apart.onnx") + bytes("apart.bin");
    assert!(bytes("apart.bin") > 6000);
    run(folder, "apart", "x", &["--precisions", "fp16", "--gate", "size_mb=0.005"]).assert().code(1);
    let report = report(folder);
    assert_eq!(report["model"]["bytes"].as_u64().unwrap(), size);
    let written = fs::read_dir(folder.join("out")).unwrap().map(|entry| entry.unwrap());
    let written = written.filter(|entry| entry.file_name().to_string_lossy().starts_with("model.fp16.onnx"));
    let written: u64 = written.map(|entry| entry.metadata().unwrap().len()).sum();
    assert_eq!(row(&report, "fp16")["artifact"]["bytes"].as_u64().unwrap(), written);
    let more = ["--ref", "ort", "--target", "apart.onnx", "--gate", "size_mb=0.005", "--json"];
    let output = command(folder, "compare", "residual", "x", &more).assert().code(1);
    let compared: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(compared["targets"][0]["gates"][0]["value"].as_f64().unwrap(), size as f64 / 1e6);
}

#[test]
fn ranges_from_random_inputs_mark_what_is_made_of_them() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    let mut calibrate = calib().unwrap();
    calibrate.current_dir(folder).args(["calibrate", "residual.onnx", "--random-data", "-o", "t.json"]);
    calibrate.args(["--calib-samples", "8"]).assert().success();
    run(folder, "residual", "x", &["--precisions", "int8", "--table", "t.json"]).assert().success();
    let read = |name: &str| fs::read_to_string(folder.join("out").join(name)).unwrap();
    let layers = read("layers.csv");
    assert!(layers.lines().count() > 3 && layers.lines().skip(1).all(|line| line.ends_with(",true")), "{layers}");
    assert!(read("report.junit.xml").contains("name=\"random_data\" value=\"true\""));
    let mut inspect = calib().unwrap();
    let output = inspect.current_dir(folder).args(["inspect", "out/report.json"]).assert().success();
    let shown = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
    assert!(shown.contains("residual.onnx, FROM RANDOM DATA") && shown.contains("int8"), "{shown}");
    let table = shown.lines().filter(|line| line.contains(['│', '─', '═']) || line.contains("onnxruntime-cpu"));
    assert!(table.clone().count() > 3 && table.clone().all(|line| line.chars().count() <= 80), "{shown}");
}

#[test]
fn samples_that_calibrated_are_left_out_of_a_comparison() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    command(folder, "calibrate", "residual", "more", &["-o", "t.json", "--calib-samples", "16"]).assert().success();
    assert_eq!(json(&folder.join("t.json"))["calibrated_on"].as_object().unwrap().len(), 16);
    // Shards tell them as well, to a merge that has no more than their files.
    for shard in ["1/2", "2/2"] {
        let histograms = format!("{}.calib", &shard[..1]);
        let more = ["--calib-samples", "16", "--shard", shard, "--histograms", &histograms, "-o", "unused.json"];
        command(folder, "calibrate", "residual", "more", &more).assert().success();
    }
    let mut merge = calib().unwrap();
    merge.current_dir(folder).args(["merge", "1.calib", "2.calib", "-o", "merged.json"]).assert().success();
    let known = |table: &str| json(&folder.join(table))["calibrated_on"].clone();
    assert_eq!(known("merged.json"), known("t.json"));
    let mut quantize = calib().unwrap();
    quantize.current_dir(folder).args(["quantize", "--table", "t.json", "-o", "q.onnx", "--model", "residual.onnx"]);
    quantize.assert().success();
    let compared = |data: &str, more: &[&str]| {
        let mut compare =
            command(folder, "compare", "residual", data, &["--ref", "ort", "--target", "q.onnx", "--json"]);
        let output = compare.args(more).assert().success();
        let (out, error) = (&output.get_output().stdout, &output.get_output().stderr);
        let found: serde_json::Value = serde_json::from_slice(out).unwrap();
        (found["samples"].as_u64().unwrap(), String::from_utf8_lossy(error).into_owned())
    };
    let (samples, told) = compared("more", &[]);
    assert!(
        samples == 24 && told.contains("16 samples that a target was calibrated on are left out"),
        "{samples} {told}"
    );
    assert_eq!(compared("more", &["--calibration-samples"]).0, 40);
    assert_eq!(compared("more", &["--samples", "10"]).0, 10);
    // The same under other names, and where the model is what others are compared with.
    assert_eq!(compared("reversed", &[]).0, 24);
    assert_eq!(compared("reversed", &["--samples", "30"]).0, 24, "no more are left");
    assert_eq!(compared("reversed", &["--samples", "20"]).0, 20);
    let swapped = ["--ref", "ort:q.onnx", "--target", "residual.onnx", "--json"];
    let output = command(folder, "compare", "residual", "more", &swapped).assert().success();
    let found: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!((&found["samples"], &found["passed"]), (&24.into(), &serde_json::Value::Null));
    // Other data under the same names.
    assert_eq!(compared("x", &[]).0, 24);
}

#[test]
fn what_is_valid_is_taken() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    command(folder, "calibrate", "first", "x", &["-o", "t.json"]).assert().success();
    let quantize = |model: &str, more: &[&str]| {
        let mut quantize = calib().unwrap();
        quantize.current_dir(folder).args(["quantize", "-o", "q.onnx", "--model", model]).args(more);
        quantize
    };
    quantize("first.onnx", &["--table", "t.json"]).assert().success();
    command(folder, "compare", "first", "x", &["--ref", "ort", "--target", "q.onnx"]).assert().success();
    // Nothing to quantize: the model is written, and that is said.
    let output = quantize("relu.onnx", &[]).assert().success();
    let told = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(told.contains("nothing in this model is to be quantized"), "{told}");
    run(folder, "relu", "x", &["--precisions", "fp16,int8"]).assert().success();
    let report = report(folder);
    assert!(row(&report, "fp16").get("error").is_none());
    assert!(row(&report, "int8")["error"].as_str().unwrap().contains("nothing in this model is to be quantized"));
    // A fixed batch, and first axes that are not a batch.
    for model in ["four", "time", "state", "batched"] {
        let mut bench = calib().unwrap();
        bench.current_dir(folder).args(["bench", "ort", "--seconds", "0.1", "--model"]).arg(format!("{model}.onnx"));
        bench.assert().success();
        let mut calibrate = calib().unwrap();
        calibrate.current_dir(folder).args(["calibrate", "--random-data", "-o", "t.json", "--calib-samples", "8"]);
        calibrate.args(["--batch", "1", "--model"]).arg(format!("{model}.onnx")).assert().success();
        assert_eq!(json(&folder.join("t.json"))["samples"], 8);
    }
}

#[test]
fn models_without_a_batch_axis_take_one_sample_a_call() {
    let Some(folder) = made(MAKE) else { return };
    for (model, batch, why) in [
        ("picture", "4", "its inputs have no batch axis"),
        ("picture", "8", "its inputs have no batch axis"),
        ("time", "12", "its inputs have no batch axis"),
        ("state", "2", "its inputs have no batch axis"),
        ("four", "3", "the model fixes its batch to 4"),
    ] {
        for words in [&["bench", "ort", "--seconds", "0.1"][..], &["run", "--random-data", "--out", "out"]] {
            let mut command = calib().unwrap();
            command.current_dir(folder.path()).args(words).args(["--batch", batch]);
            let error = error_of(command.arg("--model").arg(format!("{model}.onnx")));
            assert!(error.contains(&format!("--batch {batch} was asked for, but")) && error.contains(why), "{error}");
        }
    }
    let mut bench = calib().unwrap();
    bench.current_dir(folder.path()).args([
        "bench",
        "ort",
        "--seconds",
        "0.1",
        "--batch",
        "1",
        "--model",
        "picture.onnx",
    ]);
    bench.assert().success();
}

/// Debug builds stop where a product of extents overflows; others would go on with a wrong number.
#[test]
fn extents_that_overflow_are_refused_by_name() {
    let Some(folder) = made(MAKE) else { return };
    let folder = folder.path();
    for model in ["endless", "overflowing"] {
        let mut run = calib().unwrap();
        run.current_dir(folder).args(["run", "--random-data", "--tensorrt", "off", "--bench-seconds", "0"]);
        let error = error_of(run.args(["--out", "out", "--model"]).arg(format!("{model}.onnx")));
        assert!(error.contains("input `x` would be too large") && !error.contains("internal error"), "{error}");
    }
}
