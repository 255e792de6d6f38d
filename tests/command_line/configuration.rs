//! What is said by flags, by a named file and by `calib.toml`; and what is refused before anything runs.

use std::{collections::BTreeSet, fs};

use super::{calib, demo, demo_flags, error_of, json, root};

/// What `run --print-config` prints in `folder`, and what it says meanwhile.
fn printed(folder: &std::path::Path, flags: &[&str]) -> (String, String) {
    let output = calib().unwrap().current_dir(folder).args(["run", "--print-config"]).args(flags).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), error)
}

#[test]
fn calib_toml_of_the_working_folder_is_read_and_said() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("calib.toml"), "calib_samples = 77\nmodel = \"a.onnx\"\n").unwrap();
    let (config, said) = printed(folder.path(), &[]);
    assert!(config.contains("calib_samples = 77") && config.contains("a.onnx"), "{config}");
    assert!(said.contains("reading calib.toml"), "{said}");
    let (config, said) = printed(folder.path(), &["b.onnx", "--calib-samples", "5"]);
    assert!(config.contains("calib_samples = 5\n") && config.contains("b.onnx"), "{config}");
    assert!(!config.contains("a.onnx") && !said.is_empty());
    let (config, said) = printed(folder.path(), &["--config", "none"]);
    assert!(config.contains("calib_samples = 512") && said.is_empty(), "{config}{said}");
}

#[test]
fn flags_on_preprocessing_are_the_keys_of_the_file() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("p.toml"),
        "[preprocess]\nresize = 256\ncrop = [224, 320]\ninterpolation = \"bicubic\"\nscale = 1.0\nmean = [1.0, 2.0, 3.0]\n\
         std = [4.0, 4.0, 4.0]\nchannel_order = \"bgr\"\nlayout = \"nhwc\"\n",
    )
    .unwrap();
    let (file, _) = printed(folder.path(), &["--config", "p.toml"]);
    let flags = "--resize 256 --crop 224x320 --interpolation bicubic --scale 1 --mean 1,2,3 --std 4 --channel-order bgr --layout nhwc";
    let (flags, _) = printed(folder.path(), &flags.split(' ').collect::<Vec<_>>());
    assert_eq!(file, flags);
    let error = error_of(calib().unwrap().args(["run", "--print-config", "--resize", "wide"]));
    assert!(error.contains("`resize`") && error.contains("224x320"), "{error}");
    let error = error_of(calib().unwrap().args(["run", "--print-config", "--mean", "1,2"]));
    assert!(error.contains("`mean`"), "{error}");
}

#[test]
fn printing_the_configuration_refuses_what_a_run_refuses() {
    if calib().is_none() {
        return;
    }
    for (flag, value) in [
        ("--gate", "topp=1"),
        ("--provider", "tpu"),
        ("--method", "median"),
        ("--preset", "imagenette"),
        ("--precisions", "int4"),
        ("--tensorrt", "maybe"),
    ] {
        let error = error_of(calib().unwrap().args(["run", "--print-config", flag, value]));
        assert!(error.contains(value.split('=').next().unwrap()), "{error}");
    }
}

#[test]
fn a_run_with_a_table_and_a_plan_calibrates_nothing_and_names_what_is_lifted() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |out: &str, more: &[&str]| {
        let out = folder.path().join(out);
        let mut command = calib().unwrap();
        command.arg("run").args(demo_flags()).args(["--calib-samples", "60", "--eval-samples", "16"]);
        command.args(["--precisions", "fp32,int8", "--bench-seconds", "0", "--out"]).arg(&out).args(more);
        let output = command.output().unwrap();
        assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
        (json(&out.join("report.json")), out)
    };
    let (first, out) = run("first", &[]);
    let table = out.join("calibration.json");
    let table = table.to_str().unwrap();
    let (second, again) = run("second", &["--table", table]);
    let bytes = |folder: &std::path::Path| fs::read(folder.join("model.int8.onnx")).unwrap();
    assert!(bytes(&out) == bytes(&again), "the same ranges give the same model");
    assert_eq!(first["precisions"][1]["outputs"], second["precisions"][1]["outputs"]);
    assert!(!again.join("histograms.calib").exists());
    // Quantized nodes are found by their names, also those whose row is that of the activation they are fused with.
    let nodes = first["graph"]["nodes"].as_array().unwrap().iter().filter(|node| node["precision"] == "int8");
    let names: BTreeSet<_> = nodes.map(|node| node["name"].as_str().unwrap()).collect();
    let rows = first["layers"].as_array().unwrap().iter();
    let operators = |row: &'_ serde_json::Value| row["operators"].as_array().cloned().unwrap_or_default();
    let found: Vec<_> = rows.flat_map(|row| [vec![row["node"].clone()], operators(row)].concat()).collect();
    let found: BTreeSet<_> = found.iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(names.difference(&found).collect::<Vec<_>>(), Vec::<&&str>::new());
    let csv = fs::read_to_string(out.join("layers.csv")).unwrap();
    let found: BTreeSet<_> = csv.split([',', ';', '\n']).collect();
    assert!(names.len() > 40 && names.is_subset(&found), "{csv}");
    let notes = second["notes"].to_string();
    assert!(notes.contains("nothing was calibrated here") && !notes.contains("other samples"), "{notes}");

    // Ranges of other samples: all the rest may be judged, and what calibrated is told.
    let others = folder.path().join("others.json");
    let mut command = calib().unwrap();
    command
        .args(["calibrate", "--config"])
        .arg(root().join("configs/demo.toml"))
        .args(["--effort", "off", "-o"])
        .arg(&others);
    command
        .args(["--seed", "7", "--calib-samples", "30"])
        .arg("--histograms")
        .arg(folder.path().join("others.calib"))
        .assert()
        .success();
    let made_on = json(&others)["calibrated_on"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let (by_others, _) = run("by_others", &["--table", others.to_str().unwrap()]);
    let names = |part: &str| -> BTreeSet<String> {
        by_others["dataset"][part].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    };
    assert!(names("calibration") == made_on && names("evaluation").is_disjoint(&made_on));
    assert_eq!((made_on.len(), names("evaluation").len()), (30, 16));
    // Where there are no others, those that are in both are counted.
    let same = folder.path().join("same.txt");
    fs::write(
        &same,
        made_on.iter().map(|name| format!("{}\n", demo("images").join(name).display())).collect::<String>(),
    )
    .unwrap();
    let (by_same, _) = run("by_same", &["--table", others.to_str().unwrap(), "--data", same.to_str().unwrap()]);
    let count = |part: &str| by_same["dataset"][part].as_array().unwrap().len();
    assert_eq!(count("calibration"), 30, "{}", by_same["dataset"]);
    assert_eq!(by_same["dataset"]["overlapping"], count("evaluation"), "{}", by_same["dataset"]);

    let mut layers = first["layers"].as_array().unwrap().iter();
    let node = layers.find(|layer| layer["op_type"] == "Conv").unwrap()["node"].as_str().unwrap().to_owned();
    let plan = folder.path().join("plan.json");
    let assigned = serde_json::json!({"format_version": 1, "assignments": [{"node": node, "precision": "fp32"}]});
    fs::write(&plan, assigned.to_string()).unwrap();
    let (alone, _) = run("alone", &["--plan", plan.to_str().unwrap(), "--method", "minmax", "--effort", "off"]);
    assert!(
        alone["notes"].to_string().contains("with what the plan lifts the SQNR of the outputs is "),
        "{}",
        alone["notes"]
    );
    let (planned, _) = run("planned", &["--table", table, "--plan", plan.to_str().unwrap()]);
    let notes = planned["notes"].to_string();
    assert!(notes.contains(&format!("the plan lifts 1 node: {node} (fp32)")), "{notes}");
    // What it brings, on the 16 samples that both runs were compared on.
    let (_, told) = notes.split_once("with what the plan lifts the SQNR of the outputs is ").unwrap();
    let figures: Vec<f64> = told.split([' ', '"']).filter_map(|word| word.parse().ok()).take(2).collect();
    let expected = [&planned, &second].map(|report| report["precisions"][1]["outputs"][0]["sqnr_db"].as_f64().unwrap());
    assert!(figures.len() == 2 && expected[0] != expected[1] && told.contains("(16 samples)"), "{told}");
    for (found, expected) in figures.into_iter().zip(expected) {
        assert!((found - expected).abs() < 0.06, "{found} and {expected}: {told}");
    }
}

#[test]
fn flags_that_make_ranges_go_before_a_table_of_the_configuration_and_not_with_one_beside_them() {
    let Some(mut run) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.toml"), "method = \"entropy\"\ntable = \"t.json\"\n").unwrap();
    for job in ["run", "bisect"] {
        for flags in [["--method", "minmax"], ["--effort", "off"], ["--shift", "all"]] {
            let error = error_of(calib().unwrap().arg(job).args(["--table", "t.json"]).args(flags));
            assert!(error.contains("'--table <FILE>' cannot be used with") && error.contains(flags[0]), "{error}");
        }
    }
    let given = ["run", "--print-config", "--config", "run.toml"];
    let kept = String::from_utf8(run.current_dir(folder.path()).args(given).output().unwrap().stdout).unwrap();
    assert!(kept.contains("t.json") && kept.contains("method = \"entropy\""), "{kept}");
    let mut run = calib().unwrap();
    let anew = run.current_dir(folder.path()).args(given).args(["--method", "minmax"]).output().unwrap();
    let [config, said] = [anew.stdout, anew.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(!config.contains("t.json") && config.contains("method = \"minmax\""), "{config}");
    assert!(said.contains("calibrating anew") && said.contains("t.json"), "{said}");
}

#[test]
fn models_are_named_by_place_as_well() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = demo("demo.onnx");
    let mut command = calib().unwrap();
    command.current_dir(folder.path()).arg("compare").args([&model, &model]).args(["--random-data", "--json"]);
    let output = command.args(["--samples", "2"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["targets"].as_array().map(Vec::len), Some(1));
    let error = error_of(calib().unwrap().arg("compare").arg(&model));
    assert!(error.contains("--target"), "{error}");
    let config = root().join("configs/demo.toml");
    // Of 640 images; nothing is evaluated, so none are kept for that.
    for samples in [10, 600] {
        let mut command = calib().unwrap();
        command.current_dir(folder.path()).arg("calibrate").arg(&model).arg("--config").arg(&config);
        let output = command.args(["--calib-samples", &samples.to_string(), "--method", "minmax"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(json(&folder.path().join("calibration.json"))["samples"], samples);
    }
}
