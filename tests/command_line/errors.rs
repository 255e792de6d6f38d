//! Wrong arguments and broken inputs: each its own clear message, never a panic.

use std::fs;

use trtcalib::{
    onnx::{
        Model,
        proto::{AttributeProto, NodeProto, TensorProto},
    },
    tensor::{Tensor, Values},
};

use super::{calib, demo, demo_flags, error_of, root};

#[test]
fn what_does_not_exist_is_named() {
    let Some(mut command) = calib() else { return };
    let error = error_of(command.args(["run", "--model", "no-such.onnx", "--data", "."]));
    assert!(error.contains("no-such.onnx"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for job in [["run"].as_slice(), &["bisect", "--gate", "top1=0.9"]] {
        let mut command = calib().unwrap();
        command.args(job).args(demo_flags()).args(["--data", "no/such/folder", "--out"]).arg(&out);
        let error = error_of(&mut command);
        assert!(error.contains("no/such/folder"), "{error}");
        assert!(!out.exists(), "nothing was done, and nothing is left");
    }
    let error = error_of(calib().unwrap().args(["run", "--config", "no-such.toml"]));
    assert!(error.contains("no-such.toml"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let Some(mut command) = calib_test_support::calib() else { return };
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.arg("inspect").arg(demo("demo.onnx")).stdout(full).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && error.contains("cannot be written to standard output"), "{error}");
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let help = calib_test_support::calib().unwrap().arg("--help").stdout(full()).status().unwrap();
    assert_eq!(help.code(), Some(2));
    // Nobody hears why it does not begin, and what tells of a former run goes nevertheless.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("report.html"), "green").unwrap();
    let mut run = calib_test_support::calib().unwrap();
    run.args(["run", "--no-such-option", "--out"]).arg(folder.path()).stderr(full());
    assert_eq!(run.status().unwrap().code(), Some(2));
    assert!(!fs::read_to_string(folder.path().join("report.html")).unwrap().contains("green"));
    // A run whose result nobody gets ends with an error, in JUnit, too.
    let Some(mut run) = calib_test_support::calib() else { return };
    run.args(["run", "--bench-seconds", "0", "--effort", "off", "--out"]).arg(folder.path()).args(demo_flags());
    assert_eq!(run.stdout(full()).stderr(full()).status().unwrap().code(), Some(2));
    let tests = fs::read_to_string(folder.path().join("report.junit.xml")).unwrap();
    assert!(tests.contains("errors=\"1\"") && folder.path().join("former/report.json").exists(), "{tests}");
}

#[test]
fn a_folder_of_tensorrt_that_is_named_in_vain_is_told() {
    let Some(mut command) = calib() else { return };
    let output = command.arg("doctor").env("CALIB_TENSORRT_DIR", "/no/such/folder").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_demonstration_with_wrong_options_replaces_what_tells_of_a_former_one() {
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let demo =
        |more: &[&str]| [&["demo", "d", "--"], more].concat().iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let quick = [
        "--bench-seconds",
        "0",
        "--tensorrt",
        "off",
        "--precisions",
        "fp16",
        "--calib-samples",
        "8",
        "--eval-samples",
        "8",
    ];
    command.current_dir(folder.path()).args(demo(&quick)).assert().success();
    let report = || fs::read_to_string(folder.path().join("d/runs/demo/report.junit.xml")).unwrap();
    assert!(report().contains(r#"errors="0""#), "{}", report());
    let error = error_of(calib().unwrap().current_dir(folder.path()).args(demo(&["--gate", "foo=1"])));
    assert!(error.contains("foo") && !error.contains("error: error"), "{error}");
    assert!(report().contains(r#"errors="1""#), "{}", report());
}

#[test]
fn a_cache_or_a_table_where_none_is_taken_says_what_to_do() {
    let Some(mut run) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("cache"), "TRT-8601-EntropyCalibration2\ninput: 3c010a14\n").unwrap();
    run.current_dir(folder.path()).args(["run", "--random-data", "--table", "cache", "--out", "out"]);
    let error = error_of(run.arg(demo("demo.onnx")));
    assert!(error.contains("cache is a calibration cache of TensorRT"), "{error}");
    assert!(error.contains("`calib quantize --table` takes it"), "{error}");
    fs::write(folder.path().join("calib.toml"), "table = \"t.json\"\n").unwrap();
    let calibrate = |more: &[&str]| {
        let mut command = calib().unwrap();
        command.current_dir(folder.path()).args(["calibrate", "--random-data", "--calib-samples", "2"]);
        command.args(["--method", "minmax", "--effort", "off", "-o", "new.json"]).args(more).arg(demo("demo.onnx"));
        command
    };
    let error = error_of(&mut calibrate(&[]));
    assert!(error.contains("`table` in the configuration names") && error.contains("t.json"), "{error}");
    calibrate(&["--config", "none"]).assert().success();
}

#[test]
fn what_is_no_scale_in_a_cache_matters_where_it_is_needed() {
    let Some(mut calibrate) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    calibrate.current_dir(folder.path()).args([
        "calibrate",
        "--random-data",
        "--calib-samples",
        "2",
        "--method",
        "minmax",
    ]);
    calibrate.args(["--cache", "good"]).arg(demo("demo.onnx")).assert().success();
    let good = fs::read_to_string(folder.path().join("good")).unwrap();
    let needed = good.lines().last().unwrap().rsplit_once(':').unwrap().0;
    let quantize = |cache: String| {
        fs::write(folder.path().join("cache"), cache).unwrap();
        let mut quantize = calib().unwrap();
        quantize
            .current_dir(folder.path())
            .args(["quantize", "--table", "cache", "-o", "q.onnx"])
            .arg(demo("demo.onnx"));
        quantize
    };
    for (bits, range) in [("7f800000", "inf"), ("7fc00000", "NaN"), ("bf800000", "-127"), ("00000000", "")] {
        quantize(format!("{good}nobody's: {bits}\n")).assert().success();
        let (before, _) = good.trim_end().rsplit_once(':').unwrap();
        let mut quantize = quantize(format!("{before}: {bits}\n"));
        if range.is_empty() {
            quantize.assert().success();
        } else {
            let error = error_of(&mut quantize);
            assert!(error.contains(&format!("the range {range} for tensor `{needed}`")), "{error}");
        }
    }
}

#[test]
fn a_run_without_model_or_data_says_what_to_pass() {
    let Some(mut command) = calib() else { return };
    let error = error_of(command.arg("run"));
    assert!(error.contains("--model"), "{error}");
    let error = error_of(calib().unwrap().args(["run", "--model"]).arg(demo("demo.onnx")));
    assert!(error.contains("--data") && error.contains("--random-data"), "{error}");
}

#[test]
fn wrong_values_list_the_right_ones() {
    let Some(mut command) = calib() else { return };
    let error = error_of(command.arg("run").args(demo_flags()).args(["--method", "kl"]));
    assert!(error.contains("`kl`") && error.contains("entropy"), "{error}");
    let error = error_of(calib().unwrap().arg("run").args(demo_flags()).args(["--gate", "top2=1"]));
    assert!(error.contains("`top2`") && error.contains("top1"), "{error}");
    let error = error_of(calib().unwrap().arg("run").args(demo_flags()).args(["--preset", "imagnet"]));
    assert!(error.contains("`imagnet`") && error.contains("imagenet"), "{error}");
    let error = error_of(calib().unwrap().arg("run").args(demo_flags()).args(["--precisions", "int4"]));
    assert!(error.contains("`int4`"), "{error}");
    let error = error_of(calib().unwrap().arg("run").args(demo_flags()).args(["--shape", "image=1x3x64x64"]));
    assert!(error.contains("`image`") && error.contains("`input`"), "{error}");
}

#[test]
fn a_model_that_is_no_model() {
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.onnx");
    fs::write(&file, b"this is not a protobuf at all").unwrap();
    let error = error_of(command.args(["inspect"]).arg(&file));
    assert!(error.contains("model.onnx"), "{error}");
    let whole = fs::read(demo("demo.onnx")).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let error = error_of(
        calib().unwrap().arg("run").args(demo_flags()).arg("--model").arg(&file).arg("--out").arg(folder.path()),
    );
    assert!(error.contains("model.onnx"), "{error}");
}

#[test]
fn what_onnx_runtime_says_is_said_once_and_without_colours() {
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::copy(demo("images/0000.png"), data.join("0000.png")).unwrap();
    // ONNX Runtime finds out while it runs.
    let mut model = Model::load(&demo("demo.onnx")).unwrap();
    let conv = model.proto.graph.as_mut().unwrap().node.iter_mut().find(|node| node.op_type() == "Conv").unwrap();
    conv.attribute.push(AttributeProto::int("group", 0));
    let file = folder.path().join("group.onnx");
    model.save(&file).unwrap();
    command.args(["run", "--bench-seconds", "0", "--tensorrt", "off", "--preset", "unit", "--model"]).arg(&file);
    let error = error_of(command.arg("--data").arg(&data).arg("--out").arg(folder.path().join("out")));
    assert!(error.contains("group"), "{error}");
    assert!(!error.contains('\u{1b}') && !error.contains("ort::logging"), "{error}");
}

/// Adds to the output of the demo model the largest value of a tensor of 1000 × 10 × 10 times the size of its input.
#[test]
#[cfg(target_os = "linux")]
fn a_shape_that_the_model_computes_takes_no_more_memory_than_it_may() {
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::load(&demo("demo.onnx")).unwrap();
    let graph = model.proto.graph.as_mut().unwrap();
    let (input, output) = (graph.input[0].name().to_owned(), graph.output[0].name().to_owned());
    let factors = Tensor::new(vec![4], Values::I64(vec![1, 1000, 10, 10])).unwrap();
    graph.initializer.push(TensorProto::from_tensor("factors", factors));
    for (op_type, inputs, made) in [
        ("Shape", [input.as_str()].as_slice(), "shape"),
        ("Mul", &["shape", "factors"], "many"),
        ("ConstantOfShape", &["many"], "huge"),
        ("ReduceMax", &["huge"], "largest"),
        ("Add", &[output.as_str(), "largest"], "sum"),
    ] {
        let node = NodeProto::new(op_type, &format!("{made}_node"), inputs, &[made]);
        graph.node.push(if op_type == "ReduceMax" { node.with(AttributeProto::int("keepdims", 0)) } else { node });
    }
    graph.output[0].name = Some("sum".to_owned());
    let file = folder.path().join("huge.onnx");
    model.save(&file).unwrap();
    command.args(["compare", "--max-memory-mb", "1000", "--random-data", "--samples", "1", "--preset", "unit"]);
    let error = error_of(command.args(["--ref", "ort", "--target"]).arg(&file).arg("--model").arg(&file));
    assert!(error.contains("huge_node") && error.contains("--max-memory-mb"), "{error}");
    assert!(error.contains("while working on") && error.contains("huge.onnx"), "{error}");
}

#[test]
fn a_folder_without_images_and_labels_that_match_nothing() {
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let error = error_of(
        command.arg("run").args(demo_flags()).arg("--data").arg(folder.path()).arg("--out").arg(folder.path()),
    );
    assert!(error.contains("holds no samples"), "{error}");
    let labels = folder.path().join("labels.csv");
    fs::write(&labels, "stranger.png,3\n").unwrap();
    let error = error_of(
        calib().unwrap().arg("run").args(demo_flags()).arg("--labels").arg(&labels).arg("--out").arg(folder.path()),
    );
    assert!(error.contains("stranger.png") && error.contains("none of its names"), "{error}");
}

#[test]
fn bad_images_are_skipped_and_listed_or_fail_the_run() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("images"), folder.path().join("out"));
    fs::create_dir(&data).unwrap();
    for entry in fs::read_dir(demo("images")).unwrap().take(60) {
        let entry = entry.unwrap();
        fs::copy(entry.path(), data.join(entry.file_name())).unwrap();
    }
    fs::write(data.join("broken.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
    fs::write(data.join("empty.jpg"), b"").unwrap();
    let run = |extra: &[&str]| {
        let mut command = calib().unwrap();
        command.arg("run").args(demo_flags()).arg("--data").arg(&data).arg("--out").arg(&out);
        command.args(["--calib-samples", "20", "--bench-seconds", "0"]).args(extra);
        command
    };
    let error = error_of(&mut run(&["--strict"]));
    assert!(error.contains("--strict") && (error.contains("broken.png") || error.contains("empty.jpg")), "{error}");
    let error = error_of(&mut run(&["--max-bad", "0.1%"]));
    assert!(error.contains("--max-bad"), "{error}");
    run(&["--max-bad", "10%", "--gate", "top1=0.5"]).assert().success();
    let report = super::json(&out.join("report.json"));
    let skipped: Vec<&str> =
        report["dataset"]["skipped"].as_array().unwrap().iter().map(|s| s["sample"].as_str().unwrap()).collect();
    assert!(skipped.contains(&"broken.png") && skipped.contains(&"empty.jpg"), "{skipped:?}");
}

#[test]
fn random_data_only_when_asked_and_then_marked() {
    let Some(mut command) = calib() else { return };
    let out = tempfile::tempdir().unwrap();
    command
        .args([
            "run",
            "--random-data",
            "--calib-samples",
            "4",
            "--eval-samples",
            "4",
            "--bench-seconds",
            "0",
            "--model",
        ])
        .arg(demo("demo.onnx"))
        .arg("--out")
        .arg(out.path())
        .assert()
        .success();
    assert_eq!(super::json(&out.path().join("report.json"))["dataset"]["random_data"], true);
    for name in ["calibration.json", "deploy/deploy.json"] {
        assert_eq!(super::json(&out.path().join(name))["random_data"], true, "{name}");
    }
    let page = fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.to_lowercase().contains("random"));
    for name in ["calibration.json", "calibration.cache", "histograms.calib", "model.int8.onnx"] {
        let output = calib().unwrap().arg("inspect").arg(out.path().join(name)).assert().success();
        let said = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
        assert!(said.lines().next().unwrap().ends_with("FROM RANDOM DATA"), "{name}: {said}");
    }
    // Nor is it taken for a calibrated model where it is compared on real data.
    let mut compare = calib().unwrap();
    compare.arg("compare").args(&demo_flags()[..2]).args(["--ref", "ort", "--samples", "4", "--target"]);
    let output = compare.arg(out.path().join("model.int8.onnx")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("model.int8.onnx was calibrated on random numbers"), "{told}");
}

#[test]
fn inputs_that_only_show_when_they_are_opened_are_not_written_over() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut list = String::new();
    for file in fs::read_dir(demo("images")).unwrap().flatten() {
        fs::copy(file.path(), path(&file.file_name().to_string_lossy())).unwrap();
        list.push_str(&format!("{}\n", file.file_name().display()));
    }
    fs::write(path("list.txt"), list).unwrap();
    let before = fs::read(path("0003.png")).unwrap();
    for outputs in [&["calibrate", "-o"][..], &["compare", "--ref", "ort", "--target", "ort", "--save-target"]] {
        let mut command = calib().unwrap();
        command.args(&outputs[..1]).args(&demo_flags()[..2]).arg("--data").arg(path("list.txt")).args(&outputs[1..]);
        let error = error_of(command.arg(path("0003.png")));
        assert!(error.contains("0003.png is an input and would be written over"), "{error}");
        assert_eq!(fs::read(path("0003.png")).unwrap(), before);
    }
    // A line of millions of columns is not a list of labels, and is not taken apart.
    fs::write(path("labels.csv"), ",".repeat(1 << 20)).unwrap();
    let mut command = calib().unwrap();
    command.args(["compare", "--ref", "ort", "--target", "ort"]).args(&demo_flags()[..2]);
    let error = error_of(command.arg("--labels").arg(path("labels.csv")));
    assert!(error.contains("labels.csv") && error.contains("line 1 has more than"), "{error}");
}

#[test]
fn two_runs_into_one_folder_are_refused() {
    let Some(mut command) = calib() else { return };
    let out = tempfile::tempdir().unwrap();
    let lock = fs::File::create(out.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let summary = out.path().join("s.md");
    fs::write(&summary, "### ✅ calib: m.onnx\n").unwrap();
    command.arg("run").args(demo_flags()).arg("--summary").arg(&summary).arg("--out").arg(out.path());
    let error = error_of(&mut command);
    assert!(error.contains("another run"), "{error}");
    // A summary of before says nothing of this one.
    let told = fs::read_to_string(&summary).unwrap();
    assert!(!told.contains('✅') && told.contains("another run is writing"), "{told}");
}

#[test]
fn unknown_flags_exit_with_2_and_help_with_0() {
    let Some(mut command) = calib() else { return };
    command.arg("--frobnicate").assert().code(2);
    calib().unwrap().arg("--help").assert().success();
    for command in ["run", "calibrate", "merge", "quantize", "build", "compare", "inspect", "report", "doctor"] {
        calib().unwrap().args([command, "--help"]).assert().success();
    }
    calib().unwrap().args(["completions", "bash"]).assert().success();
    let page = calib().unwrap().arg("man").assert().success();
    assert!(String::from_utf8_lossy(&page.get_output().stdout).contains(".TH calib"));
    assert!(root().is_dir());
}

/// C++ ends the process by a signal where it lacks memory and cannot say so.
#[test]
#[cfg(target_os = "linux")]
fn a_library_that_gives_up_under_a_limit_of_memory_is_an_error() {
    let Some(mut command) = calib() else { return };
    let error = error_of(command.args(["inspect", "--max-memory-mb", "1"]).arg(demo("demo.onnx")));
    assert!(error.contains("64.."), "{error}");
    ["-ABRT", "-SEGV"].into_iter().for_each(gives_up);
}

#[cfg(target_os = "linux")]
fn gives_up(by: &str) {
    let mut bench = calib_test_support::calib().unwrap();
    bench.args(["bench", "ort", "--random-data", "--seconds", "60", "--max-memory-mb", "4000", "--model"]);
    bench.arg(demo("demo.onnx")).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let mut bench = bench.spawn().unwrap();
    let status = format!("/proc/{}/status", bench.id());
    let handles_abort = || {
        let status = fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&caught, 16).unwrap() & (1 << 5) != 0
    };
    while !handles_abort() {
        assert!(bench.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(std::process::Command::new("kill").args([by, &bench.id().to_string()]).status().unwrap().success());
    let output = bench.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a library gave up"));
}
