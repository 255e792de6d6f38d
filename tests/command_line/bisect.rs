//! `calib bisect` on the embedded model: interrupt and resume, budget, groups, costs, targets, and the commands it advises.

use std::{
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use calib_test_support::calib_path;
use serde_json::Value;

use super::{calib, json, root};

/// The images of the example, in order.
fn examples() -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(super::demo("images")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Calibrated once, on few images.
struct Demo {
    folder: tempfile::TempDir,
}

impl Demo {
    fn open() -> Option<Self> {
        let demo = Self { folder: tempfile::tempdir().unwrap() };
        demo.calibrate(16)?;
        Some(demo)
    }

    /// Makes the table anew, on so many images.
    fn calibrate(&self, samples: usize) -> Option<()> {
        let mut command = calib()?;
        command
            .args(["calibrate", "-q", "--model"])
            .arg(super::demo("demo.onnx"))
            .arg("--data")
            .arg(super::demo("images"));
        command.args(["--calib-samples", &samples.to_string(), "--method", "minmax", "--bias-correction", "off"]);
        command.arg("--preprocessor").arg(self.preprocessor());
        command.arg("-o").arg(self.path("table.json")).assert().success();
        Some(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder with copies of images.
    fn images(&self, files: &[PathBuf]) -> PathBuf {
        let folder = self.path("images");
        std::fs::create_dir(&folder).unwrap();
        for file in files {
            std::fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
        }
        folder
    }

    /// The preprocessing of `configs/demo.toml` in the form of Hugging Face.
    fn preprocessor(&self) -> PathBuf {
        let path = self.path("preprocessor_config.json");
        let text = r#"{"do_resize": false, "do_center_crop": false, "do_rescale": true, "rescale_factor": 0.00392156862745098,
            "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}"#;
        std::fs::write(&path, text).unwrap();
        path
    }

    fn arguments(&self, out: &str, extra: &[&str]) -> Vec<String> {
        let config = root().join("configs/demo.toml");
        let fixed = ["bisect", "--config", config.to_str().unwrap(), "--calib-samples", "16", "--samples", "24"];
        let (table, out) = (self.path("table.json"), self.path(out));
        let paths = ["--tensorrt", "off", "--table", table.to_str().unwrap(), "--out", out.to_str().unwrap()];
        fixed.iter().chain(&paths).chain(extra).map(|&word| word.to_owned()).collect()
    }

    /// What a bisection found, with its exit status and what it said on the way.
    fn bisect(&self, out: &str, extra: &[&str]) -> (Value, i32, String) {
        let output = calib().unwrap().args(self.arguments(out, extra)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().unwrap();
        assert!(code < 2, "{said}");
        let found = json(&self.path(out).join("bisect.json"));
        for (file, text) in [("bisect.json", Some(&output.stdout)), ("plan.json", None)] {
            let path = self.path(out).join(file);
            if path.exists() {
                let again = calib().unwrap().arg("inspect").arg(path).output().unwrap();
                assert!(again.status.success() && text.is_none_or(|text| *text == again.stdout), "{again:?}");
            }
        }
        let page = std::fs::read_to_string(self.path(out).join("bisect.html")).unwrap();
        let charts = page.matches("<svg ").count();
        assert!(charts >= 2 || !found["layers"].is_array(), "a chart in two widths: {charts}");
        assert_eq!(page.contains("What lifting gives"), found["plan"].is_object());
        (found, code, said)
    }
}

fn trials(found: &Value) -> Vec<Vec<String>> {
    let lifted = |trial: &Value| {
        trial["lifted"].as_array().unwrap().iter().map(|node| node.as_str().unwrap().to_owned()).collect()
    };
    found["plan"]["search"]["trials"].as_array().unwrap().iter().map(lifted).collect()
}

/// A gate between plain INT8 and float that takes a few nodes.
const GATE: [&str; 2] = ["--gate", "sqnr_db=28"];

#[test]
fn a_gate_that_passes_is_told_before_layers_are_measured() {
    let Some(demo) = Demo::open() else { return };
    let (found, code, said) = demo.bisect("passes", &["--gate", "sqnr_db=3", "--timings"]);
    assert_eq!((code, found["plan"]["search"]["outcome"].as_str()), (0, Some("already_passes")));
    assert_eq!(trials(&found), vec![Vec::<String>::new()]);
    assert!(said.contains("trying plans") && !said.contains("looking into"), "{said}");
    assert!(found["layers"].as_array().is_none_or(Vec::is_empty), "{found}");
    let (_, _, said) = demo.bisect("fails", &["--gate", "sqnr_db=28", "--max-trials", "2", "--timings"]);
    assert_eq!((said.matches("nothing lifted").count(), said.contains("looking into")), (1, true), "{said}");
}

#[test]
fn samples_that_gave_the_ranges_do_not_judge_plans() {
    let Some(demo) = Demo::open() else { return };
    let judged = |out: &str| demo.bisect(out, &["--gate", "sqnr_db=3"]).2;
    let told = "samples that the table was made on are not evaluated";
    // The table is of the 16 images that are set aside here, too; then of most of them; then of all.
    assert!(!judged("apart").contains(told));
    demo.calibrate(200).unwrap();
    let said = judged("most");
    assert!(said.contains(&format!("200 {told}")), "{said}");
    demo.calibrate(100_000).unwrap();
    let said = judged("all");
    assert!(said.contains("the table was made on all of the samples that are evaluated"), "{said}");
}

#[test]
fn a_plan_goes_with_its_search_and_with_its_ranges() {
    let Some(demo) = Demo::open() else { return };
    let folder = demo.path("out");
    let plan = |folder: &Path| ["plan.json", "model.plan.onnx"].map(|name| folder.join(name).exists());
    let found = || {
        assert_eq!(demo.bisect("out", &GATE).1, 0);
        assert_eq!(plan(&folder), [true; 2]);
    };
    found();
    // One that finds none leaves none under its name.
    assert_eq!(demo.bisect("out", &["--gate", "sqnr_db=500", "--max-trials", "1"]).1, 1);
    assert_eq!((plan(&folder), plan(&folder.join("former"))), ([false; 2], [true; 2]));
    found();
    std::fs::copy(demo.path("table.json"), folder.join("calibration.json")).unwrap();
    let run = |more: &[&str]| {
        let mut run = calib().unwrap();
        run.args(["run", "--effort", "off", "--bench-seconds", "0", "--calib-samples", "8", "--eval-samples", "8"]);
        run.args(super::demo_flags()).args(more).arg("--out").arg(&folder).output().unwrap();
    };
    // A run with its ranges leaves it where it is, one with others does not.
    run(&["--table", folder.join("calibration.json").to_str().unwrap()]);
    assert_eq!(plan(&folder), [true; 2]);
    run(&["--method", "percentile", "--percentile", "95"]);
    assert_eq!(plan(&folder), [false; 2]);
    let former = folder.join("former/calibration.json");
    assert_eq!(std::fs::read(former).unwrap(), std::fs::read(demo.path("table.json")).unwrap());
}

#[test]
fn an_interrupted_search_goes_on_and_ends_with_the_same_plan() {
    let Some(demo) = Demo::open() else { return };
    let (whole, code, _) = demo.bisect("whole", &GATE);
    assert_eq!((code, whole["plan"]["search"]["outcome"].as_str()), (0, Some("found")));
    assert!(trials(&whole).len() > 5, "{whole}");

    let log = demo.path("parts").join("trials.json");
    let known = |log: &Path| {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let log: Value = serde_json::from_str(&text).unwrap_or_default();
        log["trials"].as_array().map_or(0, Vec::len)
    };
    let program = calib_path();
    let mut child: Child = std::process::Command::new(program)
        .args(demo.arguments("parts", &GATE))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while known(&log) < 3 && started.elapsed() < Duration::from_mins(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    let kept = known(&log);
    assert!((3..trials(&whole).len()).contains(&kept), "{kept} trials were kept");

    let (resumed, code, said) = demo.bisect("parts", &GATE);
    assert_eq!(code, 0);
    assert_eq!(said.matches("(known)").count(), kept, "{said}");
    assert_eq!(resumed["plan"], whole["plan"]);
    let plan = |out: &str| std::fs::read(demo.path(out).join("plan.json")).unwrap();
    assert_eq!(plan("parts"), plan("whole"));

    // Another gate is another search: nothing of this one is taken.
    let (_, _, said) = demo.bisect("parts", &["--gate", "sqnr_db=22", "--max-trials", "2"]);
    assert!(!said.contains("(known)"), "{said}");
}

#[test]
fn the_budget_holds_and_a_gate_at_fault_is_said() {
    let Some(demo) = Demo::open() else { return };
    for budget in ["1", "3"] {
        let (found, code, _) = demo.bisect("out", &[&GATE[..], &["--max-trials", budget]].concat());
        assert_eq!(trials(&found).len(), budget.parse::<usize>().unwrap());
        assert_eq!((code, found["plan"]["search"]["outcome"].as_str()), (1, Some("budget_exhausted")));
    }
    let (found, code, _) = demo.bisect("out", &["--gate", "accuracy_drop=-0.5"]);
    assert_eq!((code, found["plan"]["search"]["outcome"].as_str()), (1, Some("gate_at_fault")));
    assert!(found["advice"][0]["text"].as_str().unwrap().contains("the gate is at fault, not the quantization"));
}

#[test]
fn a_look_into_layers_tells_what_has_added_up_too() {
    let Some(demo) = Demo::open() else { return };
    let (layers, ..) = demo.bisect("layers", &["--find", "layers"]);
    // Layers are looked into on 16 samples.
    let arguments = demo.arguments("tensors", &["--find", "tensors"]).into_iter();
    let arguments = arguments.map(|word| if word == "24" { "16".to_owned() } else { word });
    calib().unwrap().args(arguments).assert().success();
    let tensors = json(&demo.path("tensors").join("bisect.json"));
    let tensors = tensors["tensors"]["tensors"].as_array().unwrap();
    let added_up = layers["accumulated_sqnr_db"].as_object().unwrap();
    let mut compared = 0;
    for layer in layers["layers"].as_array().unwrap() {
        let there = tensors.iter().find(|tensor| tensor["tensor"] == layer["tensor"]).unwrap();
        let db = added_up[layer["node"].as_str().unwrap()].as_f64().unwrap();
        assert!((db - there["sqnr_db"].as_f64().unwrap()).abs() < 1e-9, "{layer} {there}");
        compared += 1;
    }
    assert!(compared > 10);
    let page = std::fs::read_to_string(demo.path("layers").join("bisect.html")).unwrap();
    assert!(page.contains("data-key=\"accumulated_sqnr_db\""));
}

#[test]
fn groups_costs_and_strategies_lead_to_plans_that_pass() {
    let Some(demo) = Demo::open() else { return };
    for extra in [
        &["--group-by", "block", "--cost", "macs"][..],
        &["--group-by", "op-type"],
        &["--group-by", r"blocks\.(\d+)", "--cost", "time"],
        &["--strategy", "linear", "--lift", "fp16"],
    ] {
        let (found, code, _) = demo.bisect(&extra.concat().replace(['\\', '(', ')'], ""), &[&GATE[..], extra].concat());
        assert_eq!(found["plan"]["search"]["outcome"], "found", "{extra:?}");
        // Which nodes are cheap to lift depends on the machine where times tell, and so does what a plan gives on other samples.
        let passes = !extra.contains(&"time") || found["plan"]["check"]["passed"] != false;
        assert_eq!(code, i32::from(!passes), "{extra:?}");
        let plan = found["plan"]["search"]["trial"]["lifted"].as_array().unwrap();
        if extra[1] == "block" {
            let blocks = |prefix: &str| plan.iter().filter(|node| node.as_str().unwrap().starts_with(prefix)).count();
            assert!(
                (0..8).all(|block| blocks(&format!("/blocks/blocks.{block}/")) != 1),
                "blocks stay whole: {plan:?}"
            );
        }
        let times = found["float_ms"].as_object();
        assert_eq!(times.is_some(), extra.contains(&"time"), "{extra:?}");
        if let Some(times) = times {
            let page = std::fs::read_to_string(demo.path("--group-byblocks.d+--costtime").join("bisect.html")).unwrap();
            assert!(times.values().all(|ms| ms.as_f64() > Some(0.0)) && page.contains("this processor, in float"));
        }
        let curve = found["plan"]["curve"].as_array().unwrap();
        let of = |key: &str| curve.iter().map(|point| point[key].as_f64().unwrap()).collect::<Vec<_>>();
        assert!(curve.len() >= 2 && of("cost").is_sorted() && of("score").is_sorted(), "{curve:?}");
    }
}

#[test]
fn a_target_may_be_a_model_or_saved_tensors() {
    let Some(demo) = Demo::open() else { return };
    let (model, saved) = (demo.path("int8.onnx"), demo.path("int8.npz"));
    let mut command = calib().unwrap();
    command.args(["quantize", "-q", "--model"]).arg(super::demo("demo.onnx"));
    command.arg("--table").arg(demo.path("table.json")).arg("-o").arg(&model).assert().success();
    let mut command = calib().unwrap();
    command.args(["compare", "-q", "--ref", "ort", "--model"]).arg(super::demo("demo.onnx"));
    command.arg("--data").arg(super::demo("images")).arg("--preprocessor").arg(demo.preprocessor());
    command.arg("--target").arg(&model).arg("--save-target").arg(&saved).assert().success();

    let last = |target: &Path| {
        let (found, _, _) = demo.bisect("out", &["--find", "tensors", "--target", target.to_str().unwrap()]);
        found["tensors"]["tensors"].as_array().unwrap().last().unwrap().clone()
    };
    let (by_model, by_file) = (last(&model), last(&saved));
    assert_eq!((by_model["tensor"].as_str(), by_file["tensor"].as_str()), (Some("logits"), Some("logits")));
    // The file holds what integer kernels gave.
    let sqnr = |tensor: &Value| tensor["sqnr_db"].as_f64().unwrap();
    assert!((sqnr(&by_model) - sqnr(&by_file)).abs() < 1.0, "{by_model} {by_file}");

    // Only the outputs are in the file, so nothing before them can be told apart.
    let far = ["--find", "first", "--threshold-db", "90", "--target", saved.to_str().unwrap()];
    let (found, _, _) = demo.bisect("out", &far);
    assert_eq!(found["first"]["culprit"]["tensor"], "logits");
    let far = ["--find", "first", "--threshold-db", "90", "--target", model.to_str().unwrap()];
    let (found, _, _) = demo.bisect("out", &far);
    assert_eq!(found["first"]["culprit"]["node"], "/stem/conv/Conv");
    let (found, _, _) = demo.bisect("out", &["--find", "layers", "--precision", "fp16"]);
    let layers = found["layers"].as_array().unwrap();
    let rounding = |layer: &Value| layer["layerwise_sqnr_db"].as_f64().unwrap();
    assert!(layers.len() > 20 && layers.iter().all(|layer| rounding(layer) > 50.0), "{layers:?}");
}

/// Models that `calib quantize` wrote, each with the flags that look into the same made in place of it.
fn written(demo: &Demo) -> Vec<(PathBuf, Vec<String>)> {
    let table = |name: &str, effort: &str| {
        let mut command = calib().unwrap();
        command.args(["calibrate", "-q", "--calib-samples", "16", "--effort", effort, "--model"]);
        command.arg(super::demo("demo.onnx")).arg("--data").arg(super::demo("images"));
        command.arg("--preprocessor").arg(demo.preprocessor()).arg("-o").arg(demo.path(name)).assert().success();
        vec!["--table".to_owned(), demo.path(name).display().to_string()]
    };
    let (plain, recovered) = (table("plain.json", "off"), table("recovered.json", "default"));
    let precision = |name: &str| vec!["--precision".to_owned(), name.to_owned()];
    let models = [("plain", plain), ("recovered", recovered), ("fp16", precision("fp16")), ("bf16", precision("bf16"))];
    let write = |(name, flags): (&str, Vec<String>)| {
        let model = demo.path(&format!("{name}.onnx"));
        let mut command = calib().unwrap();
        command.args(["quantize", "-q", "--model"]).arg(super::demo("demo.onnx")).args(&flags).arg("-o").arg(&model);
        command.assert().success();
        (model, flags)
    };
    models.into_iter().map(write).collect()
}

#[test]
fn layers_of_every_model_that_is_written_are_measured_without_calibrating() {
    let Some(demo) = Demo::open() else { return };
    let look = |out: &str, find: &str, flags: &[String]| {
        let mut command = calib().unwrap();
        command.arg("bisect").arg("--config").arg(root().join("configs/demo.toml"));
        command.args(["--calib-samples", "16", "--tensorrt", "off", "--find", find, "--out"]).arg(demo.path(out));
        let output = command.args(flags).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{flags:?}: {said}");
        (json(&demo.path(out).join("bisect.json")), said)
    };
    let written = written(&demo);
    for (model, flags) in &written {
        let target = ["--target".to_owned(), model.display().to_string()];
        let (found, said) = look("named", "layers", &target);
        assert!(!said.contains("calibrat") && !said.contains("not compared"), "{said}");
        assert!(!demo.path("named/calibration.json").exists());
        let (made, _) = look("made", "layers", flags);
        assert!(found["layers"].as_array().unwrap().len() > 20, "{found}");
        for key in ["layers", "outputs", "accumulated_sqnr_db"] {
            assert_eq!(found[key], made[key], "{key} of {}", model.display());
        }
        let told = found["advice"].as_array().unwrap();
        assert!(told.iter().all(|advice| advice["command"].is_null()), "{told:?}");
    }
    // What recovery shifts is compared with the same shifted.
    let (found, _) = look("named", "tensors", &["--target".to_owned(), written[1].0.display().to_string()]);
    let tensors = found["tensors"]["tensors"].as_array().unwrap();
    let sqnr = |tensor: &Value| tensor["sqnr_db"].as_f64().unwrap_or(f64::INFINITY);
    assert!(tensors.len() > 50 && tensors.iter().all(|tensor| sqnr(tensor) > 10.0), "{tensors:?}");
}

#[test]
fn a_gate_that_the_samples_of_a_plan_cannot_decide_is_told_before_and_not_blamed() {
    let Some(demo) = Demo::open() else { return };
    // 195 of the 200 images are not calibrated on; 24 of them are searched on, and the others check.
    let flags = ["--max-trials", "4", "--gate", "top1>=0.98@95%"];
    let few = demo.images(&examples()[..200]);
    let arguments = [&flags[..], &["--data", few.to_str().unwrap()]].concat();
    let (found, code, said) = demo.bisect("few", &arguments);
    assert_eq!(code, 1, "{said}");
    let why = "samples cannot decide the gate top1=0.98@95%";
    assert_eq!((&found["plan"]["samples"], &found["plan"]["check_samples"]), (&24.into(), &171.into()));
    let before = said.find(&format!("24 {why}")).unwrap();
    assert!(said.contains("at least 189 samples are needed") && said.contains("searched on 24 of the 195"), "{said}");
    assert!(before < said.find("nothing lifted").unwrap(), "{said}");
    let advice = &found["advice"][0];
    assert!(advice["text"].as_str().unwrap().contains(why) && advice["command"].is_null(), "{advice}");
    let page = std::fs::read_to_string(demo.path("few/bisect.html")).unwrap();
    assert!(!said.contains("at fault") && !page.contains("at fault"), "{said}");
}

#[test]
fn advised_commands_work_as_printed() {
    let Some(demo) = Demo::open() else { return };
    let run = demo.path("a run");
    let mut command = calib().unwrap();
    command.arg("run").arg("--config").arg(root().join("configs/demo.toml")).arg("--out").arg(&run);
    command.args(["--precisions", "fp32,int8", "--tensorrt", "off", "--bench-seconds", "0"]);
    command.args(["--calib-samples", "16", "--eval-samples", "40", "--method", "entropy", "--gate", "top1=0.99"]);
    command.assert().code(1);
    let (found, _, _) = demo.bisect("found", &GATE);
    let report = json(&run.join("report.json"));
    let advice = report["advice"].as_array().unwrap().iter().chain(found["advice"].as_array().unwrap());
    let mut commands: Vec<&str> = advice.filter_map(|advice| advice["command"].as_str()).collect();
    commands.sort_unstable();
    commands.dedup();
    assert!(commands.iter().any(|command| command.starts_with("calib quantize")), "{commands:?}");
    assert!(commands.iter().any(|command| command.starts_with("calib bisect")), "{commands:?}");
    let program = calib_path();
    let mut path = vec![program.parent().unwrap().to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    for command in commands {
        let mut shell = std::process::Command::new("sh");
        let output = shell.arg("-c").arg(command).env("PATH", std::env::join_paths(&path).unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code < 2), "{command}\n{said}");
    }
}

#[test]
fn trials_on_other_pictures_of_the_same_names_are_not_taken() {
    let Some(demo) = Demo::open() else { return };
    let files = examples();
    let images = demo.images(&files[..48]);
    let arguments = [&GATE[..], &["--max-trials", "2", "--data", images.to_str().unwrap()]].concat();
    demo.bisect("out", &arguments);
    let (_, _, said) = demo.bisect("out", &arguments);
    assert_eq!(said.matches("(known)").count(), 2, "{said}");
    for file in &files[..48] {
        std::fs::copy(&files[100], images.join(file.file_name().unwrap())).unwrap();
    }
    let (_, _, said) = demo.bisect("out", &arguments);
    assert!(!said.contains("(known)") && said.contains("starting a new search"), "{said}");
    // One that cannot begin leaves no findings that could be taken for its own.
    let arguments = [&arguments[..], &["--ort-library", "/nowhere.so"]].concat();
    calib().unwrap().args(demo.arguments("out", &arguments)).assert().code(2);
    assert!(!demo.path("out/bisect.json").exists() && demo.path("out/former/bisect.html").exists());
}
