//! Every command that runs an engine, as a user runs it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use calib_test_support::{calib_path, root};
use serde_json::Value;

use super::{Engines, FLAVOUR, calib_command, ends, error_of, json, real_driver, succeeds, text, with_stand_in};

/// The node whose result the stand-in doubles where it is told to.
const NODE: &str = "/blocks/blocks.2/depthwise/conv/Conv";

/// The flavour's name in files.
const NAME: &str = if cfg!(feature = "tensorrt") { "tensorrt" } else { "tensorrt-rtx" };

/// What the stand-in says where it builds and where it runs.
const STAND_IN: &str = "stand-in for TensorRT: nothing that it gives is a result or a time of TensorRT";

/// Absent where there is no error.
fn sqnr(target: &Value) -> f64 {
    target["result"]["outputs"][0]["sqnr_db"].as_f64().unwrap_or(f64::INFINITY)
}

#[test]
fn a_run_that_requires_engines_reports_their_quality_times_and_layers() {
    let folder = tempfile::tempdir().unwrap();
    let config = root().join("configs/demo.toml");
    let run = ["run", "--config", text(&config), "--out", text(folder.path()), "--tensorrt", "require"];
    let few = ["--calib-samples", "16", "--eval-samples", "20", "--bench-seconds", "0.05", "--precisions", "fp32,int8"];
    succeeds(&[&run[..], &few, &["--gate", "top1=0.5"]].concat());
    let report: Value = serde_json::from_slice(&fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    let backend = format!("{NAME} (stand-in)");
    let rows: Vec<&Value> =
        report["precisions"].as_array().unwrap().iter().filter(|row| row["backend"] == backend).collect();
    assert_eq!(rows.len(), 2, "{report}");
    for (row, number_type) in rows.iter().zip(["fp32", "int8"]) {
        assert_eq!(row["precision"], number_type);
        assert!(row["latency_ms"]["median"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["engine"]["summary"]["compute_by_type"][number_type], 26, "{row}");
        assert!(row["outputs"][0]["sqnr_db"].as_f64().unwrap() > if number_type == "int8" { 10.0 } else { 80.0 });
    }
    // What quantization costs and what the engine adds stand apart.
    let notes = report["notes"].to_string();
    assert!(
        notes.contains("int8: the model itself has ") && notes.contains("its engine differs from that by "),
        "{notes}"
    );
    // Whatever shows a result says that it is none of TensorRT.
    assert!(notes.contains(STAND_IN), "{notes}");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains(STAND_IN));
    assert!(page.contains("Inside the engines"));
    let chart = page.split_once("Quality over latency").unwrap().1.split_once("</figcaption>").unwrap().0;
    assert!(["fp32", "int8"].iter().all(|number_type| chart.contains(&format!(">{number_type} · {backend}<"))));
    assert!(page.contains("stand-in for an NVIDIA GPU") || real_driver());
    assert_eq!(folder.path().join("engines/runtime.cache").exists(), FLAVOUR == "rtx");
}

#[test]
fn an_engine_is_built_inspected_and_compared_in_three_ways() {
    let engines = Engines::build();
    let int8 = engines.path("int8.plan");
    let sidecar: Value = serde_json::from_slice(&fs::read(format!("{int8}.json")).unwrap()).unwrap();
    assert_eq!((&sidecar["flavour"], &sidecar["precision"]), (&NAME.into(), &"int8".into()), "{sidecar}");
    assert!(sidecar["model"].as_str().unwrap().ends_with("int8.onnx"), "{sidecar}");
    assert!(sidecar["reference"].as_str().unwrap().ends_with("calib_data/demo.onnx"), "{sidecar}");
    assert_eq!(sidecar["options"]["profile"]["shapes"]["input"][2][0], 8, "{sidecar}");
    let inspected = json("", &["inspect", &int8]);
    let told = succeeds(&["inspect", &int8]);
    assert!(told.contains("of which 26 multiply: INT8 26 (100 %)") && told.contains(STAND_IN), "{told}");
    assert!(inspected.to_string().contains("/classifier/Gemm"));
    // Those that it was calibrated on, too: without its sidecar, nobody knows them.
    let three_ways = ["compare", "--ref", "ort", "--target", &int8, "--samples", "20", "--calibration-samples"];
    let found = json("", &three_ways);
    let targets = found["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 2, "the engine, and the model that it was built from: {found}");
    // The stand-in computes what the Q/DQ says, as ONNX Runtime does here; a fault in it is the engine's and not the model's.
    assert!(sqnr(&targets[0]) > 10.0 && sqnr(&found["engine_errors"][0]) > sqnr(&targets[0]) + 3.0, "{found}");
    let orders = format!("fault={NODE}");
    let faulty = json(&orders, &three_ways);
    assert!(sqnr(&faulty["engine_errors"][0]) < sqnr(&targets[0]), "{faulty}");
    assert_eq!(faulty["targets"][1]["result"], targets[1]["result"]);

    // Where the Q/DQ model is gone, the engine is compared alone, and that is said.
    let (moved, sidecar) = (engines.path("moved.plan"), fs::read_to_string(format!("{int8}.json")).unwrap());
    fs::copy(&int8, &moved).unwrap();
    fs::write(format!("{moved}.json"), sidecar.replace("int8.onnx", "gone.onnx")).unwrap();
    let alone = calib_command("", &["compare", "--ref", "ort", "--target", &moved, "--samples", "8"]).output().unwrap();
    let said = error_of(&alone);
    assert!(alone.status.success() && said.contains("gone.onnx, from which it was built, is not there"), "{said}");

    // Without its sidecar, an engine is compared where the model is named, and says so where it is not.
    let bare = engines.path("bare.plan");
    fs::copy(&int8, &bare).unwrap();
    let missing = ends(2, "", &["compare", "--ref", "ort", "--target", &bare]);
    assert!(missing.contains("--model FILE"), "{missing}");
    let model = root().join("calib_data/demo.onnx");
    let data = root().join("calib_data/images");
    let compare = ["compare", "--ref", "ort", "--model", text(&model), "--data", text(&data), "--samples", "20"];
    let two = ["--target", &bare, "--target", &engines.path("fp32.plan")];
    let found = json("", &[&compare[..], &two].concat());
    assert_eq!(found["targets"].as_array().unwrap().len(), 2);
    assert!((sqnr(&found["targets"][0]) - sqnr(&targets[0])).abs() < 1e-5, "{found}");
    assert!(sqnr(&found["targets"][1]) > 80.0);

    // 20 samples in batches of 8 are two shapes; the figures are those of single samples.
    let alone = json("", &[&compare[..], &two, &["--batch", "1"]].concat());
    assert!((sqnr(&alone["targets"][0]) - sqnr(&found["targets"][0])).abs() < 1e-5, "{alone}");
    let failed = ends(1, "", &[&compare[..], &two, &["--gate", "sqnr_db=60"]].concat());
    assert!(failed.contains("FAILED"), "{failed}");
    let saved = engines.path("saved.npz");
    ends(0, "", &[&compare[..], &two[..2], &["--save-target", &saved]].concat());
    let again = json("", &[&compare[..], &["--target", &saved]].concat());
    assert_eq!(again["targets"][0]["result"]["outputs"], found["targets"][0]["result"]["outputs"]);
}

#[test]
fn engines_are_timed_with_and_without_a_graph_by_phase_and_by_layer() {
    let engines = Engines::build();
    let (times, profile) = (engines.path("times.json"), engines.path("profile.json"));
    let engine = format!("trt:{}", engines.path("int8.plan"));
    for graph in [&[][..], &["--cuda-graph"]] {
        let bench = ["bench", &engine, "--seconds", "0.05", "--batch", "1,4", "--layer-times"];
        let found = json("", &[&bench[..], graph].concat());
        let measured = found["measurements"].as_array().unwrap();
        assert_eq!(measured.len(), 2, "{found}");
        for one in measured {
            assert!(one.to_string().contains("compute_ms"), "phases: {one}");
        }
        let layers = found["layers"][0][1].as_array().unwrap();
        assert!(layers.len() > 40, "{found}");
    }
    // An engine that another program built has no sidecar; the model then tells what it takes.
    let bare = engines.path("bare.plan");
    fs::copy(engines.path("int8.plan"), &bare).unwrap();
    let model = root().join("calib_data/demo.onnx");
    let found = json("", &["bench", &bare, "--model", text(&model), "--seconds", "0.05"]);
    assert!(found["measurements"][0].to_string().contains("compute_ms"), "{found}");
    let bench = ["bench", &engine, "--seconds", "0.05", "--export-times", &times, "--export-profile", &profile];
    succeeds(&bench);
    let times: Value = serde_json::from_slice(&fs::read(times).unwrap()).unwrap();
    let first = &times[0];
    for key in ["startEnqMs", "endEnqMs", "latencyMs", "startComputeMs", "computeMs"] {
        assert!(first[key].is_number(), "{key}: {first}");
    }
    let profile: Value = serde_json::from_slice(&fs::read(profile).unwrap()).unwrap();
    assert!(profile[0]["count"].is_number() && profile[1]["averageMs"].is_number(), "{profile}");
}

#[test]
fn a_fault_in_one_layer_of_an_engine_is_found_and_named() {
    let engines = Engines::build();
    let orders = format!("fault={NODE}");
    let out = engines.path("bisect");
    let bisect = ["bisect", "--target", &engines.path("fp32.plan"), "--samples", "4", "--out", &out];
    let search = [&bisect[..], &["--find", "first", "--threshold-db", "40"]].concat();
    let told = ends(0, &orders, &search);
    assert!(told.contains(&format!("first divergence: `{NODE}` (Conv)")), "{told}");
    // That is what is looked for in an engine unless something else is asked for; layers of an engine cannot be.
    assert!(ends(0, &orders, &[&bisect[..], &["--threshold-db", "40"]].concat()).contains(&format!("`{NODE}` (Conv)")));
    let layers = ends(2, "", &[&bisect[..], &["--find", "layers"]].concat());
    assert!(layers.contains("look into this one with --find first or tensors"), "{layers}");
    let clean = succeeds(&search);
    assert!(clean.contains("nothing probed is beyond the threshold"), "{clean}");
    // What quantization costs is not a divergence of the engine, whatever the threshold; what quantizes in front of a node is
    // part of it where the float model is looked at.
    let (int8, quantized) = (engines.path("int8.plan"), engines.path("int8.onnx"));
    let beside_float = ["bisect", "--target", &int8, "--samples", "4", "--out", &out];
    for more in [&[][..], &["--threshold-db", "20"]] {
        let search = [&beside_float[..], more].concat();
        let told = ends(0, &orders, &search);
        assert!(told.contains(&format!("first divergence: `{NODE}` (Conv)")), "{told}");
        let clean = succeeds(&search);
        assert!(clean.contains("nothing probed is beyond the threshold"), "{clean}");
        assert!(clean.contains("the model that the engine was built from "), "{clean}");
    }
    // Beside the Q/DQ model that an engine was built from, what quantization costs is not a divergence, and the fault is.
    let own = ["bisect", "--target", &int8, "--model", &quantized, "--samples", "4", "--out", &out];
    let own = [&own[..], &["--find", "first", "--threshold-db", "20"]].concat();
    let told = ends(0, &orders, &own);
    assert!(told.contains(&format!("first divergence: `{NODE}` (Conv)")), "{told}");
    let clean = succeeds(&own);
    assert!(clean.contains("nothing probed is beyond the threshold"), "{clean}");
    // Codes are not outputs of an engine: a fault in a quantizer shows behind its DequantizeLinear, which says so.
    let quantizer = "/head/act/HardSwish_output_0_QuantizeLinear";
    let told = ends(0, &format!("fault={quantizer}"), &own);
    assert!(told.contains("first divergence: `/head/act/HardSwish_output_0_DequantizeLinear"), "{told}");
    assert!(told.contains(&format!("the fault may also lie in `{quantizer}`")), "{told}");
    // Tensors in FP16 become outputs of probes in FP16.
    let (model, half, plan) =
        (root().join("calib_data/demo.onnx"), engines.path("fp16.onnx"), engines.path("fp16.plan"));
    succeeds(&["quantize", "--precision", "fp16", "--model", text(&model), "-o", &half]);
    let data = root().join("calib_data/images");
    let reference = ["--reference", text(&model), "--data", text(&data), "-o", &plan];
    succeeds(&[&["build", "--model", &half], &reference[..]].concat());
    assert!(succeeds(&["inspect", &plan]).contains("of which 26 multiply: FP16 26 (100 %)"));
    let narrow =
        ["bisect", "--target", &plan, "--samples", "4", "--find", "first", "--threshold-db", "30", "--out", &out];
    let told = ends(0, &orders, &narrow);
    assert!(told.contains(&format!("first divergence: `{NODE}` (Conv)")), "{told}");
    let all = ends(0, &orders, &[&bisect[..], &["--find", "tensors", "--probe-tensors", "8"]].concat());
    assert!(all.contains("engines were built") && all.contains("blocks.2/depthwise/conv/Conv_output_0"), "{all}");
}

#[test]
fn kernels_are_kept_in_the_runtime_cache_and_read_again() {
    let engines = Engines::build();
    let cache = engines.path("kernels.cache");
    let compare = ["compare", "--ref", "ort", "--target", &engines.path("fp32.plan"), "--samples", "2"];
    let compare = [&compare[..], &["--runtime-cache", &cache]].concat();
    if FLAVOUR == "11" {
        let refused = ends(2, "", &compare);
        assert!(refused.contains("--runtime-cache is an option of TensorRT-RTX"), "{refused}");
        return;
    }
    succeeds(&compare);
    let kept = fs::read(&cache).unwrap();
    assert!(kept.starts_with(b"calibrtc") && kept.ends_with(b"kernels (stand-in); compiled"));
    succeeds(&compare);
    assert_eq!(fs::read(&cache).unwrap(), kept, "nothing new was compiled");
    // One that is empty or damaged is made anew, and that is said; another file is left alone.
    for damage in [&|_: &mut Vec<u8>| (), &|kept: &mut Vec<u8>| kept.clear(), &|kept: &mut Vec<u8>| kept[0] ^= 1]
        as [&dyn Fn(&mut Vec<u8>); 3]
    {
        let mut damaged = kept.clone();
        damage(&mut damaged);
        fs::write(&cache, &damaged).unwrap();
        let output = calib_command("", &compare).output().unwrap();
        assert!(output.status.success(), "{}", error_of(&output));
        let is_whole = damaged == kept;
        assert_eq!(error_of(&output).contains("it is made anew"), !is_whole, "{}", error_of(&output));
        assert_eq!(fs::read(&cache).unwrap(), kept);
    }
    let other = engines.path("labels.csv");
    fs::write(&other, "file,label").unwrap();
    let refused = ends(2, "", &[&compare[..compare.len() - 1], &[&other]].concat());
    assert!(
        refused.contains("not a runtime cache of calib") && fs::read(&other).unwrap() == b"file,label",
        "{refused}"
    );
    // Where it could not be kept in the end, nothing is done.
    for lost in ["no such folder/kernels.cache", "labels.csv/kernels.cache"] {
        let lost = engines.path(lost);
        let bench = ["bench", &engines.path("fp32.plan"), "--seconds", "0.02", "--runtime-cache", &lost];
        for command in [&bench[..], &[&compare[..compare.len() - 1], &[&lost]].concat()] {
            let refused = ends(2, "enqueue-fails=1", command);
            assert!(refused.contains(&format!("cannot write {lost}")), "{refused}");
        }
    }
    let refused = ends(2, "null-cache", &[&compare[..compare.len() - 1], &[&engines.path("other.cache")]].concat());
    assert!(refused.contains("Failed to serialize IRuntimeCache"), "{refused}");
}

/// A run says what is wrong with the kernels of an earlier one before it does any work.
#[test]
fn a_run_looks_at_its_runtime_cache_first() {
    if FLAVOUR == "11" {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (config, out) = (root().join("configs/demo.toml"), folder.path().join("run"));
    fs::create_dir_all(out.join("engines")).unwrap();
    fs::write(out.join("engines/runtime.cache"), b"file,label").unwrap();
    let run = ["run", "--config", text(&config), "--out", text(&out), "--tensorrt", "require"];
    let refused = ends(2, "", &[&run[..], &["--calib-samples", "8", "--eval-samples", "8"]].concat());
    assert!(refused.contains("not a runtime cache of calib"), "{refused}");
    assert!(!out.join("calibration.json").exists(), "nothing was done");
}

#[test]
fn an_interrupt_ends_whatever_an_engine_is_at() {
    let engines = Engines::build();
    let (fp32, out, run_out) = (engines.path("fp32.plan"), engines.path("out"), engines.path("run"));
    let model = root().join("calib_data/demo.onnx");
    let config = root().join("configs/demo.toml");
    let (other, quantized) = (engines.path("other.plan"), engines.path("run/model.int8.onnx"));
    let few = ["--calib-samples", "8", "--eval-samples", "8", "--method", "minmax", "--precisions", "fp32,int8"];
    let run = [&["run", "--config", text(&config), "--tensorrt", "require", "--out", &run_out], &few[..]].concat();
    // Orders, the command, and a file that must be there before it is stopped.
    let commands: [(&str, &[&str], Option<&str>); 7] = [
        ("slow-build=200", &["build", "--model", text(&model), "-o", &other], None),
        ("slow=200", &["compare", "--ref", "ort", "--target", &fp32], None),
        ("slow=200", &["bench", &fp32, "--seconds", "60"], None),
        ("slow=200", &["bisect", "--target", &fp32, "--find", "tensors", "--out", &out], None),
        ("slow-build=1000", &run, Some(&quantized)),
        // This one call does not end by itself.
        ("slow-load=60000", &["inspect", &fp32, "--all"], None),
        // And this one ends while it may still end by itself.
        ("slow-load=2300", &["inspect", &fp32], None),
    ];
    for (orders, arguments, first) in commands {
        let mut command = Command::new(calib_path());
        with_stand_in(&mut command, orders);
        let child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        while first.is_some_and(|file| !Path::new(file).exists()) && started.elapsed() < Duration::from_secs(90) {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_millis(1500));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let sent = Instant::now();
        let output = child.wait_with_output().unwrap();
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains("interrupted") && !error.contains("stand-in: "), "{arguments:?}: {error}");
        assert_eq!(error.contains("the same command goes on"), arguments[0] == "run", "{arguments:?}: {error}");
        assert!(sent.elapsed() < Duration::from_secs(5), "{arguments:?}: {:?}", sent.elapsed());
    }
    assert!(!Path::new(&other).exists());
}
