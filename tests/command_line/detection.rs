//! Detectors on COCO photos, where they are at hand (`../shared`, or the folder in CALIB_SHARED).

use std::path::{Path, PathBuf};

use calib_test_support::shared;

use super::{calib, json, python, root};

/// `mAP 50-95` of the float YOLOX-Nano and FastestDet on all 128 photos, by OpenCV, NumPy, ONNX Runtime and pycocotools
/// (`scripts/evaluate_detection.py`).
const YOLOX_MAP: f64 = 0.340_195;
const FASTESTDET_MAP: f64 = 0.209_383;

fn yolox() -> Option<(PathBuf, PathBuf)> {
    Some((shared("models/yolox_nano.onnx")?, shared("coco")?))
}

fn compared(model: &Path, arguments: &[&str]) -> Option<serde_json::Value> {
    let mut command = calib()?;
    command.args(["compare", "--ref", "ort", "--json", "--target"]).arg(format!("ort:{}", model.display()));
    let output = command.arg("--model").arg(model).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// `model` with the decoding of its boxes appended, as `into`.
fn decoded(model: &Path, into: &Path) -> Option<()> {
    let script = format!(
        "import runpy, sys; sys.argv[0] = 'x'; sys.argv[1:] = [sys.argv[1], {:?}]; runpy.run_path({:?}, run_name='__main__'); print('ok')",
        into.display().to_string(),
        root().join("scripts/append_decoding.py").display().to_string()
    );
    let done = python(&script, &[model])?;
    assert_eq!(done.trim(), "ok");
    Some(())
}

fn detection(result: &serde_json::Value) -> &serde_json::Value {
    let found = &result["targets"][0]["result"]["detection"];
    assert!(found.is_object(), "{result:#}");
    found
}

#[test]
fn the_float_map_is_that_of_python() {
    let Some((model, coco)) = yolox() else { return };
    let data = coco.join("data.yaml");
    let Some(result) = compared(&model, &["--preset", "yolox", "--data", &data.display().to_string()]) else { return };
    let found = detection(&result);
    let map = found["map50_95"].as_f64().unwrap();
    assert!((map - YOLOX_MAP).abs() < 0.001, "{map}");
    assert_eq!(found["agreement"]["lost"], 0);
    // The same labels as a folder, and the preset that is assumed for this head.
    let (images, labels) = (coco.join("images"), coco.join("labels"));
    let arguments = ["--data", &images.display().to_string(), "--labels", &labels.display().to_string()];
    let found = compared(&model, &arguments).unwrap();
    assert_eq!(detection(&found)["map50_95"].as_f64().unwrap(), map);
}

#[test]
fn boxes_that_are_named_have_the_float_map_of_python() {
    let (Some(model), Some(coco)) = (shared("models/fastestdet.onnx"), shared("coco")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let boxes = folder.path().join("fastestdet_boxes.onnx");
    if decoded(&model, &boxes).is_none() {
        return;
    }
    let config = folder.path().join("fastestdet.toml");
    let settings = "[preprocess]\nresize = [352, 352]\ninterpolation = \"opencv\"\nchannel_order = \"bgr\"\n\
                    [detection]\nhead = \"boxes\"\nboxes = \"boxes\"\nscores = \"scores\"\nformat = \"cxcywh\"\nshares = true\n";
    std::fs::write(&config, settings).unwrap();
    let (data, config) = (coco.join("data.yaml").display().to_string(), config.display().to_string());
    let Some(result) = compared(&boxes, &["--config", &config, "--data", &data]) else { return };
    let map = detection(&result)["map50_95"].as_f64().unwrap();
    assert!((map - FASTESTDET_MAP).abs() < 0.001, "{map}");
}

#[test]
fn a_head_that_joins_boxes_and_scores_gets_the_verdict_it_deserves() {
    let Some((model, coco)) = yolox() else { return };
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let joined = folder.path().join("yolov8_form.onnx");
    if decoded(&model, &joined).is_none() {
        return;
    }
    command.args([
        "run",
        "--precisions",
        "fp32,int8",
        "--bench-seconds",
        "0",
        "--tensorrt",
        "off",
        "--preset",
        "yolox",
    ]);
    command.args(["--calib-samples", "32", "--eval-samples", "32", "--method", "minmax", "--bias-correction", "off"]);
    command.args(["--gate", "sqnr_db=15", "--gate", "sqnr_db[boxes]=5", "--gate", "detection_recall=0.9"]);
    // No labels at all.
    command.arg("--model").arg(&joined).arg("--data").arg(coco.join("images")).arg("--out").arg(folder.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&folder.path().join("report.json"));
    let gates = report["verdict"]["gates"].as_array().unwrap();
    let passed: Vec<bool> = gates.iter().map(|gate| gate["passed"].as_bool().unwrap()).collect();
    assert_eq!(passed, [false, true, false], "{gates:#?}");
    let int8 = &report["precisions"][1];
    let parts: Vec<&str> =
        int8["outputs"][0]["parts"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(parts, ["boxes", "scores"]);
    assert!(int8["outputs"][0]["sqnr_db"].as_f64().unwrap() > gates[0]["value"].as_f64().unwrap() + 5.0);
    assert!(int8["detection"]["agreement"]["lost"].as_u64().unwrap() > 0);
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("<image href=\"data:image/jpeg;base64,") && page.len() < 3 << 20);
    // CSV has every figure of boxes, Markdown a table of those that the page's has no room for.
    let exported = |name: &str| {
        let file = folder.path().join(name);
        calib().unwrap().arg("report").arg(folder.path()).arg("-o").arg(&file).assert().success();
        std::fs::read_to_string(file).unwrap()
    };
    let csv = exported("figures.csv");
    let (header, rows) = csv.split_once('\n').unwrap();
    let lost = header.split(',').position(|key| key == "detection_lost").unwrap();
    let row = rows.lines().find(|row| row.contains(",int8,")).unwrap();
    let expected = int8["detection"]["agreement"]["lost"].as_u64().unwrap();
    assert_eq!(row.split(',').nth(lost).unwrap().parse::<f64>().unwrap(), expected as f64);
    assert!(exported("figures.md").contains("| Score shift | Lost | Gained |"));
}

#[test]
fn a_data_yaml_keeps_training_and_validation_apart() {
    let Some((model, coco)) = yolox() else { return };
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<PathBuf> = {
        let mut names: Vec<PathBuf> =
            std::fs::read_dir(coco.join("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    for (part, files) in [("train", &names[..4]), ("val", &names[4..7])] {
        let at = folder.path().join("images").join(part);
        std::fs::create_dir_all(&at).unwrap();
        for file in files {
            std::fs::copy(file, at.join(file.file_name().unwrap())).unwrap();
        }
    }
    // Of 80 classes, 0 to 79.
    let labels = folder.path().join("labels/val");
    std::fs::create_dir_all(&labels).unwrap();
    let label = labels.join(names[4].file_name().unwrap()).with_extension("txt");
    std::fs::write(label, "93 0.5 0.5 0.2 0.2\n").unwrap();
    let data = folder.path().join("data.yaml");
    std::fs::write(&data, "train: images/train\nval: images/val\nnames: [person]\n").unwrap();
    command.args(["run", "--precisions", "fp32", "--bench-seconds", "0", "--tensorrt", "off", "--preset", "yolox"]);
    // A list of classes that contradicts the labels.
    let classes = folder.path().join("classes.txt");
    std::fs::write(&classes, "car\nbus\n").unwrap();
    let out = folder.path().join("out");
    command.arg("--classes").arg(&classes);
    command.arg("--model").arg(&model).arg("--data").arg(&data).arg("--out").arg(&out).assert().success();
    let report = json(&out.join("report.json"));
    let notes = report["notes"].to_string();
    assert!(
        notes.contains("the labels call class 0 `person`, which the model, or the list of classes, calls `car`"),
        "{notes}"
    );
    assert!(notes.contains("labels have classes up to 93, and the model has 80 (0 to 79)"), "{notes}");
    let ids = |key: &str| report["dataset"][key].as_array().unwrap().clone();
    assert_eq!((ids("calibration").len(), ids("evaluation").len()), (4, 3));
    assert!(ids("calibration").iter().all(|id| id.as_str().unwrap().starts_with("images/train/")));
    assert!(ids("evaluation").iter().all(|id| id.as_str().unwrap().starts_with("images/val/")));
}

/// Two of 113 nodes make most of the noise on the scores; boxes, of which the whole output's error is made, rank others first.
#[test]
fn a_bisection_lifts_what_costs_boxes() {
    let Some((model, coco)) = yolox() else { return };
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    command.args([
        "bisect",
        "--preset",
        "yolox",
        "--method",
        "minmax",
        "--bias-correction",
        "off",
        "--tensorrt",
        "off",
    ]);
    command.args(["--calib-samples", "16", "--samples", "8", "--gate", "detection_recall=0.8"]);
    command.arg("--model").arg(model).arg("--data").arg(coco.join("images")).arg("--out").arg(folder.path());
    let output = command.output().unwrap();
    assert!(output.status.code() < Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    let plan = json(&folder.path().join("plan.json"));
    let lifted: Vec<&str> =
        plan["assignments"].as_array().unwrap().iter().map(|one| one["node"].as_str().unwrap()).collect();
    assert!(lifted.len() < 6 && lifted.contains(&"Conv_44"), "{lifted:?}");
}
