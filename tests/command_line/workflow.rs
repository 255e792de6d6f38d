//! The commands in the order a user types them, on the embedded model.

use std::{collections::BTreeSet, ffi::OsString, fs, path::Path};

use serde_json::Value;

use super::{calib, demo, demo_flags, json, python, root};

/// A run without timing, into `out`.
fn run(out: &Path, extra: &[&str]) -> Option<assert_cmd::Command> {
    let mut command = calib()?;
    command.arg("run").args(demo_flags()).args(["--bench-seconds", "0", "--out"]).arg(out).args(extra);
    Some(command)
}

#[test]
fn a_run_leaves_everything_that_it_promises() {
    let out = tempfile::tempdir().unwrap();
    let Some(mut command) = run(out.path(), &[]) else { return };
    let output = command.assert().success();
    let text = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
    assert!(text.contains("report.html") && text.contains("int8"), "{text}");
    for file in [
        "report.html",
        "report.json",
        "report.junit.xml",
        "layers.csv",
        "calibration.json",
        "calibration.cache",
        "histograms.calib",
        "model.int8.onnx",
        "model.fp16.onnx",
        "run.toml",
    ] {
        assert!(out.path().join(file).metadata().is_ok_and(|metadata| metadata.len() > 0), "{file}");
    }
    let report = json(&out.path().join("report.json"));
    let schema = json(&root().join("docs/report.schema.json"));
    assert!(jsonschema::is_valid(&schema, &report), "{:?}", jsonschema::validate(&schema, &report));

    // Calibration and evaluation samples are disjoint, and together all samples.
    let list = |key: &str| -> Vec<String> {
        report["dataset"][key].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    };
    let (calibration, evaluation) = (list("calibration"), list("evaluation"));
    assert!(calibration.iter().all(|id| !evaluation.contains(id)));
    assert_eq!((calibration.len(), evaluation.len()), (160, 480));

    let precision =
        |name: &str| report["precisions"].as_array().unwrap().iter().find(|p| p["precision"] == name).unwrap();
    let accuracy = precision("fp32")["accuracy"]["top1"].as_f64().unwrap();
    assert!((0.85..=0.97).contains(&accuracy), "{accuracy}");
    let agreement = precision("int8")["agreement"]["top1"].as_f64().unwrap();
    assert!((0.90..1.0).contains(&agreement), "{agreement}");
    assert!(precision("fp16")["agreement"]["top1"].as_f64().unwrap() > 0.99);
    assert!(report["layers"].as_array().unwrap().len() > 10);

    // Rows are about tensors of the model that was given, around whichever centre INT8 has them.
    let layers = report["layers"].as_array().unwrap();
    let names: BTreeSet<&str> = layers.iter().map(|layer| layer["tensor"].as_str().unwrap()).collect();
    assert_eq!(names.len(), layers.len());
    assert!(names.iter().all(|name| !name.ends_with("_shifted") && !name.ends_with("_padded")), "{names:?}");
    let around: Vec<&Value> = layers.iter().filter(|layer| layer["offset"].is_number()).collect();
    assert_eq!(around.len(), report["recovery"]["shifted"].as_array().unwrap().len());
    let number = |layer: &Value, key: &str| layer[key].as_f64().unwrap();
    assert!(around.iter().all(|one| (number(one, "amax") / 127.0 / number(one, "scale") - 1.0).abs() < 1e-5));

    // INT8 weights: below two thirds of the float file even here, where the graph is a large part of it.
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(size(&out.path().join("model.int8.onnx")) * 3 < size(&demo("demo.onnx")) * 2);
    let checker = "import sys, onnx; [onnx.checker.check_model(m, full_check=True) for m in sys.argv[1:]]; print('ok')";
    let models = [out.path().join("model.int8.onnx"), out.path().join("model.fp16.onnx")];
    if let Some(answer) = python(checker, &[&models[0], &models[1]]) {
        assert_eq!(answer, "ok");
    }

    // What was written can be read by the other commands.
    for file in ["calibration.json", "calibration.cache", "histograms.calib", "report.json", "model.int8.onnx"] {
        calib().unwrap().arg("inspect").arg(out.path().join(file)).assert().success();
    }
    calib().unwrap().args(["inspect", "--check"]).arg(&models[0]).assert().success();

    // The configuration that was left repeats the run, to the same bytes.
    let again = tempfile::tempdir().unwrap();
    calib()
        .unwrap()
        .args(["run", "--bench-seconds", "0", "--config"])
        .arg(out.path().join("run.toml"))
        .arg("--out")
        .arg(again.path())
        .assert()
        .success();
    for file in ["calibration.json", "calibration.cache", "histograms.calib", "model.int8.onnx", "layers.csv"] {
        assert_eq!(fs::read(out.path().join(file)).unwrap(), fs::read(again.path().join(file)).unwrap(), "{file}");
    }
}

#[test]
fn stages_add_up_to_the_time_waited_and_samples_are_read_once() {
    let out = tempfile::tempdir().unwrap();
    let few = ["--calib-samples", "24", "--eval-samples", "40", "--timings", "--threads", "2"];
    let Some(mut command) = run(out.path(), &few) else { return };
    let began = std::time::Instant::now();
    let output = command.assert().success();
    let wall = began.elapsed().as_secs_f64();
    let report = json(&out.path().join("report.json"));
    let timings = report["timings"].as_array().unwrap();
    let sum: f64 = timings.iter().map(|stage| stage["seconds"].as_f64().unwrap()).sum();
    assert!(sum <= wall && sum > wall / 2.0, "{sum} of {wall}: {timings:?}");
    let of = |name: &str, count: &str| {
        let stage =
            timings.iter().find(|stage| stage["stage"] == name).unwrap_or_else(|| panic!("{name}: {timings:?}"));
        stage[count].as_u64().unwrap()
    };
    assert_eq!(["observing", "choosing thresholds"].map(|stage| of(stage, "samples_read")), [24, 0]);
    assert_eq!(["comparing", "looking into layers"].map(|stage| of(stage, "samples_read")), [40, 0]);
    assert_eq!(["observing", "comparing"].map(|stage| of(stage, "sessions")), [1, 0]);
    assert_eq!(["observing", "comparing"].map(|stage| of(stage, "passes")), [2, 1], "fitting and held-out samples");
    assert_eq!(report["layers_samples"], 16);
    let told = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(told.contains("waited s") && told.contains("looking into"), "{told}");
}

/// More than 8 threads look into layers while others compare.
#[test]
fn layers_that_are_looked_into_beside_the_comparison_are_the_same() {
    let report = |threads: &str| {
        let out = tempfile::tempdir().unwrap();
        let few = ["--calib-samples", "24", "--eval-samples", "40", "--threads", threads];
        run(out.path(), &few)?.assert().success();
        Some(json(&out.path().join("report.json")))
    };
    let Some(after) = report("8") else { return };
    let beside = report("9").unwrap();
    let sessions = |report: &Value| {
        let stages = report["timings"].as_array().unwrap();
        let layers = stages.iter().find(|stage| stage["stage"] == "looking into layers").unwrap();
        layers["sessions"].as_u64().unwrap()
    };
    assert!(sessions(&after) > 10 && sessions(&beside) == 0, "{after} {beside}");
    assert!(!after["layers"].as_array().unwrap().is_empty());
    for key in ["layers", "precisions", "verdict", "warnings", "notes"] {
        assert_eq!(after[key], beside[key], "{key}");
    }
}

#[test]
fn batch_and_order_of_files_change_no_byte_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let table = |name: &str, flags: &[&str]| {
        let out = folder.path().join(name);
        let mut command = calib()?;
        command.arg("calibrate").arg("--config").arg(root().join("configs/demo.toml"));
        command.args(["--calib-samples", "40", "-o"]).arg(&out).args(flags).assert().success();
        Some(fs::read(out).unwrap())
    };
    let Some(one) = table("one.json", &["--threads", "1"]) else { return };
    assert_eq!(one, table("two.json", &["--threads", "1", "--batch", "3"]).unwrap());
    // The samples that corrections of biases are measured on fill no batch of 64.
    let corrected = table("corrected.json", &["--method", "mse"]).unwrap();
    assert!(String::from_utf8_lossy(&corrected).contains("bias_corrections"));
    assert_eq!(corrected, table("many.json", &["--method", "mse", "--batch", "64"]).unwrap());
}

#[test]
fn shards_join_to_the_table_of_a_single_run() {
    let folder = tempfile::tempdir().unwrap();
    let data = || {
        let mut args: Vec<OsString> = ["--preset", "unit", "--calib-samples", "60", "--model"].map(Into::into).into();
        args.extend([demo("demo.onnx").into(), "--data".into(), demo("images").into()]);
        args
    };
    let calibrate = |output: &str, histograms: &str, extra: &[&str]| {
        let mut command = calib()?;
        command.arg("calibrate").args(data());
        command.arg("-o").arg(folder.path().join(output)).arg("--histograms").arg(folder.path().join(histograms));
        command.args(extra).assert().success();
        Some(())
    };
    let Some(()) = calibrate("whole.json", "whole.calib", &[]) else { return };
    for index in 1..=3 {
        calibrate("unused.json", &format!("{index}.calib"), &["--shard", &format!("{index}/3")]);
    }
    let merge = |files: &[&str]| {
        let mut command = calib().unwrap();
        command.args(["merge", "-o"]).arg(folder.path().join("merged.json"));
        command.args(files.iter().map(|file| folder.path().join(file)));
        command
    };
    let read = |file: &str| fs::read(folder.path().join(file)).unwrap();
    // Everything that a single run does: the choice of the method, and the correction of biases.
    merge(&["3.calib", "1.calib", "2.calib"]).args(data()).assert().success();
    assert_eq!(read("whole.json"), read("merged.json"));
    // Thresholds by one method need nothing but the histograms.
    let plain = ["--method", "mse", "--bias-correction", "off"];
    calibrate("plain.json", "plain.calib", &plain);
    merge(&["3.calib", "1.calib", "2.calib"]).args(plain).assert().success();
    let mut plain = json(&folder.path().join("plain.json"));
    assert!(plain.as_object_mut().unwrap().remove("magnitudes").is_some(), "those need the model");
    assert_eq!(plain, json(&folder.path().join("merged.json")));
    merge(&["1.calib", "3.calib"]).assert().code(2);
    merge(&["1.calib", "2.calib", "3.calib"]).args(data()).args(["--seed", "5"]).assert().code(2);
}

#[test]
fn parts_without_samples_join_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let data = |command: &mut assert_cmd::Command, output: &str| {
        command.args(["--preset", "unit", "--calib-samples", "3", "--method", "minmax", "--model"]);
        command.arg(demo("demo.onnx")).arg("--data").arg(demo("images")).arg("-o").arg(path(output)).assert()
    };
    let Some(mut whole) = calib() else { return };
    data(whole.arg("calibrate"), "whole.json").success();
    let mut merge = calib().unwrap();
    merge.arg("merge");
    for index in 1..=4 {
        let (part, shard) = (path(&format!("{index}.calib")), format!("{index}/4"));
        let done =
            data(calib().unwrap().args(["calibrate", "--shard", &shard, "--histograms"]).arg(&part), "unused.json");
        let said = String::from_utf8(done.success().get_output().stderr.clone()).unwrap();
        assert_eq!(said.contains("this one has none"), index > 2, "of 3 samples, 2 to fit on and 1 held out: {said}");
        merge.arg(part);
    }
    data(&mut merge, "merged.json").success();
    assert_eq!(fs::read(path("whole.json")).unwrap(), fs::read(path("merged.json")).unwrap());
}

#[test]
fn parts_of_a_run_join_to_the_report_of_a_single_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let Some(mut command) = calib() else { return };
    let data = || [OsString::from("--model"), demo("demo.onnx").into(), "--data".into(), demo("images").into()];
    let table = path("table.json");
    command.arg("calibrate").args(data()).args([
        "--preset",
        "unit",
        "--calib-samples",
        "16",
        "--method",
        "minmax",
        "-o",
    ]);
    command.arg(&table).assert().success();
    let run = |extra: &[&str]| {
        let mut command = calib().unwrap();
        command.arg("run").args(data()).arg("--labels").arg(demo("labels.csv")).arg("--table").arg(&table).args([
            "--preset",
            "unit",
            "--calib-samples",
            "16",
            "--eval-samples",
            "50",
            "--precisions",
            "fp32,fp16,int8",
            "--bench-seconds",
            "0",
            "--tensorrt",
            "off",
            "--gate",
            "top1=0.5",
            "--gate",
            "int8:sqnr_db=99",
        ]);
        command.args(extra).current_dir(folder.path());
        command
    };
    run(&["--out", path("whole").to_str().unwrap()]).assert().code(1);
    for part in 1..=3 {
        run(&["--eval", "--shard", &format!("{part}/3"), "--part", &format!("{part}.json")]).assert().success();
    }
    assert!(!path("runs").exists(), "a part leaves nothing but its file");
    let merge = |files: &[&str]| {
        let mut command = calib().unwrap();
        command.args(["merge", "--out", path("joined").to_str().unwrap()]).args(files).current_dir(folder.path());
        command
    };
    merge(&["2.json", "3.json", "1.json"]).assert().code(1);
    let refused = |files: &[&str], told: &str| {
        let output = merge(files).assert().code(2);
        let text = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(text.contains(told), "{text}");
    };
    let report = |out: &str| {
        let text = fs::read_to_string(path(out).join("report.json")).unwrap();
        let mut report: Value = serde_json::from_str(&text.replace(path(out).to_str().unwrap(), "OUT")).unwrap();
        let keys = report.as_object_mut().unwrap();
        for of_this_call in ["created", "command", "config", "timings"] {
            assert!(keys.remove(of_this_call).is_some());
        }
        assert!(keys["calibration"].as_object_mut().unwrap().remove("peak_rss_bytes").is_some());
        report
    };
    let whole = report("whole");
    assert_eq!(whole, report("joined"));
    assert_eq!(whole["dataset"]["evaluation"].as_array().unwrap().len(), 50);
    for file in ["layers.csv", "model.int8.onnx", "model.fp16.onnx"] {
        assert!(fs::read(path("whole").join(file)).unwrap() == fs::read(path("joined").join(file)).unwrap(), "{file}");
    }
    // Parts under the names of results are not moved away.
    fs::create_dir(path("named")).unwrap();
    for (part, name) in [("1", "report.json"), ("2", "layers.csv"), ("3", "report.junit.xml")] {
        fs::copy(path(&format!("{part}.json")), path("named").join(name)).unwrap();
    }
    let named = ["named/report.json", "named/layers.csv", "named/report.junit.xml"];
    let mut into = calib().unwrap();
    into.args(["merge", "--out", "named"]).args(named).current_dir(folder.path());
    assert!(super::error_of(&mut into).contains("is an input and would be written over"));
    for (part, name) in [("1", named[0]), ("2", named[1]), ("3", named[2])] {
        assert_eq!(fs::read(path(name)).unwrap(), fs::read(path(&format!("{part}.json"))).unwrap());
    }
    // Parts of something else, and parts that are no longer what was written.
    run(&["--eval", "--shard", "3/3", "--part", "other.json", "--seed", "5"]).assert().success();
    refused(&["1.json", "2.json", "other.json"], "different comparisons");
    let text = fs::read_to_string(path("3.json")).unwrap();
    let samples = text.find("\"samples\": 1").unwrap();
    for (edited, told) in [
        (text.replacen("\"samples\": 1", "\"samples\": 2", 1), "does not match its hash"),
        (text[..samples].to_owned(), "3.json is not a valid part of a comparison"),
    ] {
        fs::write(path("3.json"), edited).unwrap();
        refused(&["1.json", "2.json", "3.json"], told);
    }
    // The table is another one now than the parts were made with.
    fs::write(path("3.json"), text).unwrap();
    let mut other = calib().unwrap();
    other.arg("calibrate").args(data()).args(["--preset", "unit", "--calib-samples", "12", "--method", "minmax", "-o"]);
    other.arg(&table).assert().success();
    refused(&["1.json", "2.json", "3.json"], "evaluate them again");
}

#[test]
fn step_by_step_as_in_the_readme() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let Some(mut command) = calib() else { return };
    let config = [("--data", demo("images")), ("--model", demo("demo.onnx"))];
    command.args(["calibrate", "--preset", "unit", "--calib-samples", "50", "-o"]).arg(path("table.json"));
    command.arg("--cache").arg(path("calibration.cache"));
    command.args(config.iter().flat_map(|(flag, value)| [(*flag).into(), value.clone().into_os_string()]));
    command.assert().success();

    let quantize = |table: &str, output: &str, extra: &[&str]| {
        let mut command = calib().unwrap();
        command.args(["quantize", "--model"]).arg(demo("demo.onnx")).arg("--table").arg(path(table));
        command.arg("-o").arg(path(output)).args(extra);
        command
    };
    quantize("table.json", "int8.onnx", &[]).assert().success();
    quantize("calibration.cache", "cache.onnx", &[]).assert().success();
    quantize("table.json", "mixed.onnx", &["--high-precision", "fp16"]).assert().success();
    quantize("table.json", "fp8.onnx", &["--precision", "fp8"]).assert().success();
    // An Add that is fused with what is excluded needs a range that calibration did not look for: it stays in float, too.
    let exclude = ["--nodes-to-exclude", "/blocks/blocks.7/project/conv/Conv"];
    let output = quantize("table.json", "excluded.onnx", &exclude).assert().success();
    let warned = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(warned.contains("node `/blocks/blocks.7/Add` stays in fp32, too"), "{warned}");
    // Quantizing twice is a mistake.
    calib()
        .unwrap()
        .args(["quantize", "--model"])
        .arg(path("int8.onnx"))
        .arg("--table")
        .arg(path("table.json"))
        .arg("-o")
        .arg(path("twice.onnx"))
        .assert()
        .code(2);
    assert!(!path("twice.onnx").exists());
    // A table of another model is refused.
    let error = super::error_of(
        calib()
            .unwrap()
            .args(["quantize", "--table"])
            .arg(path("table.json"))
            .arg("--model")
            .arg(path("fp8.onnx"))
            .arg("-o")
            .arg(path("x.onnx")),
    );
    assert!(!error.is_empty());

    let explained =
        calib().unwrap().args(["quantize", "--explain", "--model"]).arg(demo("demo.onnx")).assert().success();
    let text = String::from_utf8_lossy(&explained.get_output().stdout).into_owned();
    assert!(text.contains("residual add") && text.contains("nodes quantized"), "{text}");

    let compare = |target: &str, extra: &[&str]| {
        let mut command = calib().unwrap();
        command.args(["compare", "--preset", "unit", "--samples", "40", "--json", "--ref"]);
        command.arg(format!("ort:{}", demo("demo.onnx").display())).arg("--data").arg(demo("images"));
        command.arg("--target").arg(path(target)).args(extra);
        command
    };
    let saved = path("reference.npz").display().to_string();
    let output = compare("int8.onnx", &["--gate", "top1=0.5", "--save-reference", &saved]).assert().success();
    let outcome: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!((outcome["passed"].as_bool(), outcome["samples"].as_u64()), (Some(true), Some(40)));
    compare("int8.onnx", &["--gate", "top1=1.0", "--gate", "sqnr_db=90"]).assert().code(1);
    // The float model against its own saved outputs: equal.
    let output = compare("reference.npz", &["--gate", "top1=1.0"]).assert().success();
    let outcome: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(outcome["targets"][0]["result"]["outputs"][0]["max_abs"].as_f64(), Some(0.0));
}

#[test]
fn a_failed_gate_is_exit_status_1_and_a_printed_config_runs_nothing() {
    let out = tempfile::tempdir().unwrap();
    let Some(mut command) = run(out.path(), &["--precisions", "int8", "--gate", "top1=1.0"]) else { return };
    command.assert().code(1);
    assert_eq!(json(&out.path().join("report.json"))["verdict"]["passed"], false);
    let other = tempfile::tempdir().unwrap();
    let printed = run(&other.path().join("none"), &["--print-config"]).unwrap().assert().success();
    let text = String::from_utf8_lossy(&printed.get_output().stdout).into_owned();
    assert!(text.contains("calib_samples = 160") && !other.path().join("none").exists(), "{text}");
}

#[test]
fn the_report_has_the_scales_of_the_model() {
    let Some(mut command) = calib() else { return };
    let out = tempfile::tempdir().unwrap();
    command.arg("run").args(demo_flags()).args([
        "--precisions",
        "int8",
        "--high-precision",
        "fp16",
        "--bench-seconds",
        "0",
    ]);
    command.args(["--calib-samples", "16", "--eval-samples", "8", "--method", "minmax", "--out"]).arg(out.path());
    // The gate of the demo may fail on so few samples.
    assert!(command.output().unwrap().status.code().is_some_and(|code| code < 2));
    let model = trtcalib::onnx::Model::load(&out.path().join("model.int8.onnx")).unwrap();
    let constant = |name: &str| model.graph().initializer.iter().find(|tensor| tensor.name() == name);
    let mut written = std::collections::BTreeMap::new();
    for node in model.graph().node.iter().filter(|node| node.op_type() == "QuantizeLinear") {
        // The scale is named after the tensor that it belongs to, whatever casts lie between.
        let scale = constant(&node.input[1]).unwrap();
        let tensor = scale.name().split("_scale").next().unwrap().to_owned();
        written.insert(tensor, scale.to_tensor().unwrap().to_f32()[0]);
    }
    let report = json(&out.path().join("report.json"));
    let layers = report["layers"].as_array().unwrap().iter();
    let told: Vec<_> = layers.filter_map(|layer| Some((layer["tensor"].as_str()?, layer["scale"].as_f64()?))).collect();
    assert!(told.len() > 10, "{told:?}");
    for (tensor, scale) in told {
        assert_eq!(Some(&(scale as f32)), written.get(tensor), "{tensor}");
    }
}

#[test]
fn pictures_of_the_same_names_and_another_content_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("images")).unwrap();
    let images: Vec<_> = (0..6).map(|index| format!("{index:04}.png")).collect();
    for name in &images {
        fs::copy(demo("images").join(name), path("images").join(name)).unwrap();
    }
    let Some(mut calibrate) = calib() else { return };
    let data = |command: &mut assert_cmd::Command| {
        command.arg("--data").arg(path("images")).args(["--preset", "unit", "--model"]).arg(demo("demo.onnx")).assert()
    };
    data(calibrate.args(["calibrate", "--method", "minmax", "--calib-samples", "4", "-o"]).arg(path("t.json")))
        .success();
    let mut quantize = calib().unwrap();
    quantize.arg("quantize").arg(demo("demo.onnx")).arg("--table").arg(path("t.json")).arg("-o").arg(path("q.onnx"));
    quantize.assert().success();
    let told = || {
        let done = data(calib().unwrap().args(["compare", "--ref", "ort", "--target"]).arg(path("q.onnx"))).success();
        String::from_utf8_lossy(&done.get_output().stderr).into_owned()
    };
    assert!(told().contains("4 samples that a target was calibrated on are left out"));
    for name in &images {
        // What follows the picture changes no pixel.
        let file = path("images").join(name);
        let content = [fs::read(&file).unwrap(), vec![0]].concat();
        fs::write(file, content).unwrap();
    }
    assert!(told().contains("4 samples are named as those that a target was calibrated on"), "{}", told());
}
