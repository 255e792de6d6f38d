//! A run without a GPU, completed by what another machine measured: its `deploy.sh` runs here against a stand-in for trtexec
//! that answers with files in the forms that NVIDIA documents, made by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use trtcalib::npz::read_npz;

use super::{calib, demo_flags, error_of, json};

/// Copies the file that it is asked to export from the folder beside it, and knows nothing of FP16.
const TRTEXEC: &str = r#"#!/bin/sh
case "$*" in
  --help) echo "--stronglyTyped --skipInference"; exit 0 ;;
  *fp16*) echo "[E] Error[9]: no kernel for half"; exit 1 ;;
esac
echo "[I] TensorRT version: 10.3.0"
for argument in "$@"; do
  case $argument in --export*) cp "$(dirname "$0")/given/$(basename "${argument#*=}")" "${argument#*=}" || exit 1 ;; esac
done
"#;

fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Calls of `ms` milliseconds, a little more each.
fn times(ms: f64) -> Value {
    let call = |i: u32| {
        let compute = ms + f64::from(i % 5) * 1e-3 - 0.25;
        json!({ "startEnqMs": i, "endEnqMs": i, "startH2dMs": i, "h2dMs": 0.125, "computeMs": compute, "d2hMs": 0.125,
            "latencyMs": compute + 0.25 })
    };
    (0..200).map(call).collect()
}

fn engine(node: &str, format: &str) -> Value {
    let tensor = json!({ "Name": "t", "Dimensions": [1, 8, 8, 8], "Format/Datatype": format });
    json!({ "Layers": [{ "Name": "fused", "LayerType": "CaskConvolution", "Inputs": [tensor.clone()], "Outputs": [tensor],
        "TacticName": "", "Metadata": format!("[ONNX Layer: {node}]\u{1e}[ONNX Layer: other]") }], "Bindings": [] })
}

/// A run on the embedded model, what trtexec shall answer, and a stand-in for it.
fn deployed(folder: &Path) -> Option<(PathBuf, String)> {
    let run = folder.join("run");
    let mut command = calib()?;
    command.arg("run").args(demo_flags()).args(["--bench-seconds", "0", "--eval-samples", "40", "--out"]).arg(&run);
    command.assert().success();
    let report = json(&run.join("report.json"));
    let conv = report["layers"].as_array().unwrap().iter().find(|layer| layer["op_type"] == "Conv").unwrap();
    let node = conv["node"].as_str().unwrap().to_owned();
    let given = folder.join("given");
    fs::create_dir(&given).unwrap();
    let write = |name: &str, value: &Value| fs::write(given.join(name), value.to_string()).unwrap();
    for (precision, ms, format) in
        [("fp32", 2.0, "Row major linear FP32 format"), ("int8", 0.5, "Row major Int8 format")]
    {
        write(&format!("{precision}.times.json"), &times(ms));
        write(&format!("{precision}.layers.json"), &engine(&node, format));
        let profile = json!([{ "count": 10 }, { "name": "fused", "timeMs": 6.0 * ms, "averageMs": 0.6 * ms, "percentage": 75 },
            { "name": "rest", "timeMs": 1.0, "averageMs": 0.1, "medianMs": 0.1, "percentage": 25 }]);
        write(&format!("{precision}.profile.json"), &profile);
        // The engine adds a thousandth of every value: 60 dB.
        let expected = read_npz(&run.join(format!("deploy/expected/{precision}.npz"))).unwrap();
        let outputs = expected.iter().map(|(name, tensor)| {
            let dimensions: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
            let values: Vec<f64> = tensor.to_f32().iter().map(|&value| f64::from(value) * 1.001).collect();
            json!({ "name": name, "dimensions": dimensions.join("x"), "values": values })
        });
        write(&format!("{precision}.outputs.json"), &outputs.collect());
    }
    script(&folder.join("trtexec"), TRTEXEC);
    script(&folder.join("nvidia-smi"), "#!/bin/sh\ncase $1 in *=name) echo 'Test GPU' ;; *) echo 999.1 ;; esac\n");
    Some((run, node))
}

#[test]
fn what_another_machine_measured_completes_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let Some((run, node)) = deployed(folder.path()) else { return };
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let output = Command::new(run.join("deploy/deploy.sh")).env("PATH", &path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "FP16 failed, and the others were packed: {said}");
    assert!(said.contains("no kernel for half") && said.contains("failed: fp16(build)"), "{said}");

    let archive = run.join("deploy/deploy.tar");
    let report = |extra: &[&str]| {
        let mut command = calib().unwrap();
        command.arg("report").arg(&run).args(extra);
        command
    };
    let output = report(&["--measured", archive.to_str().unwrap()]).assert().success();
    let warned = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(warned.contains("fp16: nothing was measured on Test GPU ([E] Error[9]: no kernel for half)"), "{warned}");

    let found = json(&run.join("report.json"));
    let schema = json(&super::root().join("docs/report.schema.json"));
    assert!(jsonschema::is_valid(&schema, &found), "{:?}", jsonschema::validate(&schema, &found));
    let row = |precision: &str| {
        found["precisions"].as_array().unwrap().iter().find(|row| row["precision"] == precision).unwrap().clone()
    };
    let there = &row("int8")["measured_elsewhere"][0];
    assert_eq!((&there["machine"]["name"], &there["machine"]["driver"]), (&json!("Test GPU"), &json!("999.1")));
    assert_eq!((&there["machine"]["tensorrt"], &there["tied_by"]), (&json!("10.3.0"), &json!("hash")));
    let median = there["latency_ms"]["median"].as_f64().unwrap();
    assert!((median - 0.502).abs() < 1e-9, "{median}");
    let ratio = there["speedup"]["ratio"].as_f64().unwrap();
    assert!((ratio - 2.002 / 0.502).abs() < 1e-9, "{ratio}");
    assert_eq!(there["speedup"]["against"], "fp32 on Test GPU");
    assert_eq!(there["engine"]["summary"]["compute_by_type"]["int8"], 1);
    let sqnr = |what: &str| there["outputs"][what][0]["sqnr_db"].as_f64().unwrap();
    assert!((sqnr("engine") - 60.0).abs() < 0.1, "{}", sqnr("engine"));
    assert!(sqnr("model") < 40.0 && (sqnr("together") - sqnr("model")).abs() < 1.0);
    assert_eq!(row("fp16")["measured_elsewhere"], Value::Null);
    let timed: Vec<_> =
        found["layers"].as_array().unwrap().iter().filter(|layer| layer["times"] != Value::Null).collect();
    assert!(!timed.is_empty() && timed.iter().all(|layer| layer["node"] == node.as_str()));
    assert_eq!((&timed[0]["times"][0]["ms"], &timed[0]["times"][0]["nodes"]), (&json!(0.3), &json!(2)));
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    for text in [
        "Measured elsewhere",
        "model checked by its SHA-256",
        "not by the engine",
        "int8 · Test GPU",
        "Quality over latency",
    ] {
        assert!(page.contains(text), "{text}");
    }
    let csv = fs::read_to_string(run.join("layers.csv")).unwrap();
    assert!(csv.contains("0.3,fused,Test GPU"), "{csv}");

    // The script notes what it leaves, so that no file takes the place of another.
    let [times, kept] = ["int8", "fp32"].map(|precision| run.join(format!("deploy/measured/{precision}.times.json")));
    let own = fs::read(&times).unwrap();
    fs::copy(kept, &times).unwrap();
    let error = error_of(&mut report(&["--measured", run.join("deploy").to_str().unwrap()]));
    assert!(error.contains("int8.times.json is not the file that deploy.sh left there"), "{error}");
    fs::write(&times, own).unwrap();

    // Once more changes nothing: a machine has one entry.
    report(&["--measured", archive.to_str().unwrap()]).assert().success();
    assert_eq!(json(&run.join("report.json")), found);
    // Another file of the same name on that machine is found out.
    let sums = run.join("deploy/measured/sha256.txt");
    let text = fs::read_to_string(&sums).unwrap();
    let line = text.lines().find(|line| line.ends_with("model.int8.onnx")).unwrap();
    fs::write(&sums, text.replace(line, &format!("{}  models/model.int8.onnx", "0".repeat(64)))).unwrap();
    let error = error_of(&mut report(&["--measured", run.join("deploy").to_str().unwrap()]));
    assert!(error.contains("models/model.int8.onnx was another file there"), "{error}");
}

#[test]
fn single_files_are_taken_by_precision_and_refused_where_they_tell_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let Some((run, _)) = deployed(folder.path()) else { return };
    let file =
        |precision: &str, name: &str| format!("{precision}={}", folder.path().join("given").join(name).display());
    let report = |extra: &[&str]| {
        let mut command = calib().unwrap();
        command.arg("report").arg(&run).args(extra);
        command
    };
    let times = file("int8", "int8.times.json");
    assert!(error_of(&mut report(&["--times", &times])).contains("--machine"));
    let output = file("int8", "int8.outputs.json");
    report(&["--times", &times, "--outputs", &output, "--machine", "Orin"]).assert().success();
    let found = json(&run.join("report.json"));
    let int8 = found["precisions"].as_array().unwrap().iter().find(|row| row["precision"] == "int8").unwrap();
    let there = &int8["measured_elsewhere"][0];
    assert_eq!((&there["machine"]["name"], &there["tied_by"]), (&json!("Orin"), &json!("shapes")));
    assert_eq!(there["on_word"], json!(["int8.times.json"]));
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("names no model or precision: int8.times.json"), "what is not checked is told");

    // What Polygraphy saved of other inputs: the models run on them here. The outputs are those of the float model.
    let written = |name: &str| super::root().join("tests/fixtures/polygraphy").join(name).display().to_string();
    let [of_fp32, of_int8] = ["fp32", "int8"].map(|precision| format!("{precision}={}", written("outputs.json")));
    let polygraphy = ["--outputs", &of_fp32, "--machine", "Polygraphy"];
    assert!(error_of(&mut report(&polygraphy)).contains("of other inputs"));
    report(&[&polygraphy[..], &["--inputs", &written("inputs.json")]].concat()).assert().success();
    let twice = error_of(&mut report(&[&polygraphy[..], &["--outputs", &of_int8]].concat()));
    assert!(twice.contains("the same file is given for fp32 and int8"), "{twice}");
    let other = ["--outputs", &of_int8, "--machine", "Polygraphy", "--inputs", &written("inputs.json")];
    assert!(error_of(&mut report(&other)).contains("its outputs are those of fp32"));
    let found = json(&run.join("report.json"));
    let rows = found["precisions"].as_array().unwrap();
    let of = |precision: &str| {
        let row = rows.iter().find(|row| row["precision"] == precision).unwrap();
        row["measured_elsewhere"].as_array().unwrap().last().unwrap()
    };
    let sqnr = |precision: &str, what: &str| of(precision)["outputs"][what][0]["sqnr_db"].as_f64();
    assert_eq!(of("fp32")["files"], json!(["outputs.json", "inputs.json"]));
    assert_eq!(of("fp32")["outputs"]["samples"], 3);
    assert!(sqnr("fp32", "engine").is_none_or(|db| db > 80.0), "{:?}", sqnr("fp32", "engine"));
    assert!(error_of(&mut report(&[&polygraphy[..], &["--inputs", "no.json"]].concat())).contains("no.json"));

    fs::write(folder.path().join("given/else.json"), engine("no such node", "Row major Int8 format").to_string())
        .unwrap();
    fs::copy(folder.path().join("given/int8.times.json"), folder.path().join("given/renamed.json")).unwrap();
    fs::write(
        folder.path().join("given/small.json"),
        r#"[{ "name": "output", "dimensions": "1x2", "values": [1, 2] }]"#,
    )
    .unwrap();
    for (flag, given, why) in [
        ("--layers", file("fp16", "int8.layers.json"), "multiply in INT8, so it is not of fp16"),
        ("--layers", file("int8", "fp32.layers.json"), "nothing in it is of 8 bits"),
        ("--layers", file("fp16", "fp32.layers.json"), "multiply in FP32, so it is not of fp16"),
        ("--times", file("fp16", "int8.profile.json"), "--exportTimes"),
        ("--times", file("int8", "fp32.times.json"), "deploy.sh calls a file of fp32 so"),
        ("--times", file("fp32", "renamed.json"), "its times of fp32 are those of int8 to the last digit"),
        ("--profile", file("fp16", "int8.profile.json"), "another model"),
        ("--outputs", file("int8", "small.json"), "another model"),
        ("--outputs", file("fp16", "int8.outputs.json"), "its outputs are those of int8"),
        ("--outputs", file("int8", "fp32.outputs.json"), "its outputs are those of fp32 (60 dB against that model"),
        ("--times", "bf16=x.json".to_owned(), "the report has no bf16, only fp16, fp32, int8"),
        ("--times", "x.json".to_owned(), "not PRECISION=FILE"),
    ] {
        let error = error_of(&mut report(&[flag, &given, "--machine", "Orin"]));
        assert!(error.contains(why), "{flag} {given}: {error}");
    }
}

#[test]
fn outputs_that_are_not_finite_are_the_engines_fault() {
    let folder = tempfile::tempdir().unwrap();
    let Some((run, _)) = deployed(folder.path()) else { return };
    let expected = read_npz(&run.join("deploy/expected/int8.npz")).unwrap();
    let outputs = expected.iter().map(|(name, tensor)| {
        let dimensions: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
        let values: Vec<String> = tensor.to_f32().iter().map(|_| "nan".to_owned()).collect();
        format!(
            r#"{{ "name": "{name}", "dimensions": "{}", "values": [{}] }}"#,
            dimensions.join("x"),
            values.join(", ")
        )
    });
    let file = folder.path().join("overflow.json");
    fs::write(&file, format!("[{}]", outputs.collect::<Vec<_>>().join(", "))).unwrap();
    let mut command = calib().unwrap();
    let given = format!("int8={}", file.display());
    command.arg("report").arg(&run).args(["--outputs", &given, "--machine", "Orin"]);
    let output = command.assert().success();
    let warned = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(warned.contains("int8: the engine's outputs differ in 160 NaN or infinite values"), "{warned}");
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("not finite") && page.contains("lost in the engine, not by quantization"));
    assert!(!page.contains("not by the engine"), "an engine that gives nothing but NaN is not faultless");
}

/// What a page's picture knows: nodes, and the times of every machine.
fn picture(page: &Path) -> Value {
    let text = fs::read_to_string(page).unwrap();
    let data = text.split("data-graph>").nth(1).unwrap().split("</script>").next().unwrap();
    serde_json::from_str(data).unwrap()
}

#[test]
fn pictures_are_coloured_by_what_runs_and_trtexec_tell() {
    let folder = tempfile::tempdir().unwrap();
    let Some((run, node)) = deployed(folder.path()) else { return };
    let given = |name: &str| folder.path().join("given").join(name).to_str().unwrap().to_owned();
    let page = folder.path().join("graph.html");
    let draw = |file: &str, extra: &[&str]| {
        let mut command = calib().unwrap();
        command.args(["inspect", "--graph", file, "-o"]).arg(&page).args(extra);
        command
    };
    // The layers alone are a graph; a profile gives each its time.
    let (layers, profile) = (given("int8.layers.json"), given("int8.profile.json"));
    draw(&layers, &["--profile", &profile]).assert().success();
    let found = picture(&page);
    assert_eq!((&found["n"][0][0], &found["m"]), (&json!("fused"), &json!([["int8.profile.json", [0.3], [0]]])));
    let place = |found: &Value| {
        let nodes = found["n"].as_array().unwrap();
        nodes.iter().position(|drawn| drawn[0] == node.as_str()).unwrap()
    };
    // Of the float model, the run tells errors by the names of nodes, and the layers which nodes have the time.
    let demo = super::demo("demo.onnx");
    let (demo, told) = (demo.to_str().unwrap(), run.to_str().unwrap());
    draw(demo, &["--report", told, "--profile", &profile, "--layers", &layers]).assert().success();
    let found = picture(&page);
    let own = json(&run.join("report.json"))["layers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["node"] == node.as_str())
        .unwrap()
        .clone();
    let [by_itself, added_up] = [4, 5].map(|at| found["n"][place(&found)][at].as_f64().unwrap());
    assert!((by_itself - own["layerwise_sqnr_db"].as_f64().unwrap()).abs() < 0.006, "{own}");
    assert!((added_up - own["graphwise_sqnr_db"].as_f64().unwrap()).abs() < 0.006, "{own}");
    assert_eq!((&found["m"][0][1], &found["m"][0][2][place(&found)]), (&json!([0.3]), &json!(0)));
    // Names that nothing is called by, and a run of another model.
    let error = error_of(&mut draw(demo, &["--profile", &profile]));
    assert!(error.contains("needs the engine's --layers"), "{error}");
    let error = error_of(&mut draw(&layers, &["--report", told]));
    assert!(error.contains("the run is of another model than int8.layers.json"), "{error}");
    fs::write(given("names.json"), r#"{ "Layers": ["a", "b"] }"#).unwrap();
    let error = error_of(&mut draw(&given("names.json"), &[]));
    assert!(error.contains("profilingVerbosity=detailed"), "{error}");

    // Two machines stay apart, in the report and in the page of a bisection beside it.
    let mut bisect = calib().unwrap();
    let config = super::root().join("configs/demo.toml");
    bisect.args(["bisect", "--find", "layers", "--tensorrt", "off", "--config"]).arg(config).arg("--table");
    bisect.arg(run.join("calibration.json")).arg("--out").arg(&run).assert().success();
    assert_eq!(picture(&run.join("bisect.html"))["m"], json!([]));
    for (machine, name) in [("Orin", "int8"), ("RTX", "rtx")] {
        let times = json!([{ "count": 10 }, { "name": "fused", "timeMs": 1, "averageMs": if name == "rtx" { 0.1 } else { 0.3 } }]);
        fs::write(given(&format!("{name}.profile.json")), times.to_string()).unwrap();
        let [profile, layers] = [format!("int8={}", given(&format!("{name}.profile.json"))), format!("int8={layers}")];
        let mut command = calib().unwrap();
        command.arg("report").arg(&run).args(["--profile", &profile, "--layers", &layers, "--machine", machine]);
        command.assert().success();
    }
    let report = json(&run.join("report.json"));
    let row = report["layers"].as_array().unwrap().iter().find(|row| row["node"] == node.as_str()).unwrap();
    let times: Vec<_> = row["times"].as_array().unwrap().iter().map(|time| (&time["machine"], &time["ms"])).collect();
    assert_eq!(times, [(&json!("Orin"), &json!(0.3)), (&json!("RTX"), &json!(0.1))]);
    for page in ["report.html", "bisect.html"] {
        let found = picture(&run.join(page));
        let machines: Vec<_> = found["m"].as_array().unwrap().iter().map(|time| (&time[0], &time[1])).collect();
        assert_eq!(machines, [(&json!("Orin"), &json!([0.3])), (&json!("RTX"), &json!([0.1]))], "{page}");
    }
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("ms on Orin") && page.contains("ms on RTX"));
}

/// Answers with the outputs of whatever input it is given.
const BY_INPUT: &str = r#"#!/bin/sh
if [ "$*" = --help ]; then echo "--stronglyTyped --skipInference"; exit 0; fi
echo "[I] TensorRT version: 10.3.0"
for argument in "$@"; do
  case $argument in
    --loadInputs=*) input=$(basename "${argument#*:}" .bin) ;;
    --exportOutput=*) out=${argument#*=}; name=$(basename "$out"); cp "$(dirname "$0")/given/${name%%.*}.$input.json" "$out" || exit 1 ;;
    --export*) cp "$(dirname "$0")/given/$(basename "${argument#*=}")" "${argument#*=}" || exit 1 ;;
  esac
done
"#;

#[test]
fn a_model_of_a_fixed_batch_is_given_several_calls() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let Some(mut command) = calib() else { return };
    command.arg("run").args(demo_flags()).args([
        "--bench-seconds",
        "0",
        "--eval-samples",
        "20",
        "--shape",
        "input=1x3x64x64",
    ]);
    command.args(["--precisions", "fp32,int8", "--out"]).arg(&run).assert().success();
    let report = json(&run.join("report.json"));
    let conv = report["layers"].as_array().unwrap().iter().find(|layer| layer["op_type"] == "Conv").unwrap();
    let given = folder.path().join("given");
    fs::create_dir(&given).unwrap();
    let write = |name: &str, value: &Value| fs::write(given.join(name), value.to_string()).unwrap();
    let inputs = read_npz(&run.join("deploy/inputs.npz")).unwrap();
    let (_, input) = inputs.first_key_value().unwrap();
    assert_eq!(input.shape()[0], 8, "eight samples, each in a call");
    for (precision, format) in [("fp32", "Row major linear FP32 format"), ("int8", "Row major Int8 format")] {
        write(&format!("{precision}.times.json"), &times(if precision == "int8" { 0.5 } else { 2.0 }));
        write(&format!("{precision}.layers.json"), &engine(conv["node"].as_str().unwrap(), format));
        let ms = if precision == "int8" { 1.0 } else { 3.0 };
        write(
            &format!("{precision}.profile.json"),
            &json!([{ "count": 1 }, { "name": "fused", "timeMs": ms, "averageMs": ms }]),
        );
        let expected = read_npz(&run.join(format!("deploy/expected/{precision}.npz"))).unwrap();
        let (name, output) = expected.first_key_value().unwrap();
        let row = output.to_f32().len() / 8;
        for (call, values) in output.to_f32().chunks(row).enumerate() {
            // The engine adds a thousandth of every value: 60 dB.
            let values: Vec<f64> = values.iter().map(|&value| f64::from(value) * 1.001).collect();
            let dimensions = format!("1x{row}");
            write(
                &format!("{precision}.{call}.0.json"),
                &json!([{ "name": name, "dimensions": dimensions, "values": values }]),
            );
            let bytes = fs::read(run.join(format!("deploy/inputs/{call}.0.bin"))).unwrap();
            let all = input.values().view();
            assert_eq!(bytes, all.slice(call * all.len() / 8..(call + 1) * all.len() / 8).bytes(), "call {call}");
        }
    }
    script(&folder.path().join("trtexec"), BY_INPUT);
    script(
        &folder.path().join("nvidia-smi"),
        "#!/bin/sh\ncase $1 in *=name) echo 'Test GPU' ;; *) echo 999.1 ;; esac\n",
    );
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let output = Command::new(run.join("deploy/deploy.sh")).env("PATH", &path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let measured = run.join("deploy/measured");
    let report = |extra: &[&str]| {
        let mut command = calib().unwrap();
        command.arg("report").arg(&run).args(extra);
        command
    };
    let of_int8 = || {
        let found = json(&run.join("report.json"));
        let rows = found["precisions"].as_array().unwrap();
        let there = &rows.iter().find(|row| row["precision"] == "int8").unwrap()["measured_elsewhere"];
        there.as_array().unwrap().last().unwrap()["outputs"].clone()
    };
    let archive = run.join("deploy/deploy.tar");
    report(&["--measured", archive.to_str().unwrap()]).assert().success();
    let outputs = of_int8();
    assert_eq!(outputs["samples"], 8);
    assert!((outputs["engine"][0]["sqnr_db"].as_f64().unwrap() - 60.0).abs() < 0.1, "{outputs}");
    // The same files by hand, in order; in another order, or without the last, they are of other inputs.
    let call = |call: usize| {
        let name = if call == 0 { "int8.outputs.json".to_owned() } else { format!("int8.outputs.{}.json", call + 1) };
        format!("int8={}", measured.join(name).display())
    };
    let by_hand = |calls: &[usize]| {
        let files: Vec<String> = calls.iter().flat_map(|&of| ["--outputs".to_owned(), call(of)]).collect();
        let mut arguments: Vec<&str> = files.iter().map(String::as_str).collect();
        arguments.extend(["--machine", "by hand"]);
        report(&arguments)
    };
    by_hand(&[0, 1, 2, 3, 4, 5, 6, 7]).assert().success();
    assert_eq!(of_int8(), outputs);
    let error = error_of(&mut by_hand(&[0, 1, 2]));
    assert!(error.contains("not of all calls: give the files of all, in order"), "{error}");
    let error = error_of(&mut by_hand(&[0, 0]));
    assert!(error.contains("the same file is given twice for int8"), "{error}");
    // One that did not come back.
    fs::remove_file(measured.join("int8.outputs.5.json")).unwrap();
    let output = report(&["--measured", run.join("deploy").to_str().unwrap()]).assert().success();
    let warned = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(warned.contains("int8: outputs of 7 of 8 calls came back"), "{warned}");
}
