//! Maps of classes with PNG masks as labels, beside a classification: figures against NumPy's.

use std::path::Path;

use serde_json::Value;

use super::{calib, error_of, json, python};

/// Writes two models, eight pictures and their masks (a palette, 255 for unknown), and prints the figures of the second
/// model against the first and of both against the masks.
const MAKE: &str = r#"
import json, os, sys
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
folder = sys.argv[1]
rng = np.random.default_rng(3)
size, classes, count = 16, 4, 8
first, middle = (rng.normal(size=(16, inputs)).astype(np.float32) for inputs in (3, 16))
weights = rng.normal(size=(classes, 16)).astype(np.float32)
gemm = rng.normal(size=(3, 6)).astype(np.float32)
hidden = lambda pixels: np.maximum(np.maximum(pixels.reshape(-1, 3).astype(np.float32) / 255 @ first.T, 0) @ middle.T, 0)
# No class wins everywhere.
bias = -(hidden(rng.integers(0, 256, (4096, 3))) @ weights.T).mean(0)
def save(name, weights):
    nodes = [helper.make_node("Conv", ["x", "first"], ["a"], "first_conv"), helper.make_node("Relu", ["a"], ["b"], "first_relu"),
             helper.make_node("Conv", ["b", "middle"], ["c"], "conv"), helper.make_node("Relu", ["c"], ["d"], "relu"),
             helper.make_node("Conv", ["d", "w", "bias"], ["scores"], "last_conv"),
             helper.make_node("GlobalAveragePool", ["x"], ["pooled"], "pool"),
             helper.make_node("Flatten", ["pooled"], ["flat"], "flat"),
             helper.make_node("Gemm", ["flat", "g"], ["kind"], "gemm")]
    info = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [info("x", ["n", 3, size, size])],
                              [info("scores", ["n", classes, size, size]), info("kind", ["n", 6])],
                              [numpy_helper.from_array(kernel[:, :, None, None], name) for kernel, name in
                               ((first, "first"), (middle, "middle"), (weights, "w"))] +
                              [numpy_helper.from_array(bias, "bias"), numpy_helper.from_array(gemm, "g")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), os.path.join(folder, name))
save("float.onnx", weights)
coarse = np.round(weights * 2) / 2
save("coarse.onnx", coarse.astype(np.float32))
os.makedirs(folder + "/images"); os.makedirs(folder + "/masks")
reference, target, labels = [], [], []
for i in range(count):
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(f"{folder}/images/{i}.png")
    reference.append((hidden(pixels) @ weights.T + bias).argmax(1)); target.append((hidden(pixels) @ coarse.T + bias).argmax(1))
    mask = np.where(rng.random(size * size) < 0.7, reference[-1], rng.integers(0, classes, size * size))
    mask = np.where(rng.random(size * size) < 0.1, 255, mask).astype(np.uint8)
    image = Image.fromarray(mask.reshape(size, size), mode="P")
    image.putpalette([v for c in range(256) for v in (c, 255 - c, 90)])
    image.save(f"{folder}/masks/{i}.png")
    labels.append(mask)
reference, target, labels = map(np.concatenate, (reference, target, labels))
def figures(truth, found):
    iou = {}
    for c in np.union1d(truth, found):
        both = ((truth == c) & (found == c)).sum(); iou[int(c)] = both / ((truth == c) | (found == c)).sum()
    return [float((truth == found).mean()), float(np.mean(list(iou.values()))), {str(c): float(v) for c, v in iou.items()}]
known = labels != 255
print(json.dumps([figures(reference, target), figures(labels[known], target[known]), figures(labels[known], reference[known])]))
"#;

fn close(found: &Value, expected: &Value) {
    let (a, b) = (found.as_f64().unwrap_or(f64::NAN), expected.as_f64().unwrap_or(f64::NAN));
    assert!((a - b).abs() < 1e-12, "{found} is not {expected}");
}

fn folder() -> Option<(tempfile::TempDir, Value)> {
    let folder = tempfile::tempdir().unwrap();
    let expected = python(MAKE, &[folder.path()])?;
    Some((folder, serde_json::from_str(&expected).unwrap()))
}

fn arguments(path: &Path) -> Vec<String> {
    let at = |name: &str| path.join(name).display().to_string();
    ["--preset", "unit", "--data", &at("images"), "--labels", &at("masks")].map(str::to_owned).into()
}

#[test]
fn maps_are_compared_with_the_reference_and_with_masks() {
    let Some((folder, expected)) = folder() else { return };
    let at = |name: &str| folder.path().join(name).display().to_string();
    let Some(mut command) = calib() else { return };
    command.args(["compare", "--json", "--batch", "3", "--top-k", "2,6", "--ref", &at("float.onnx")]);
    command.args(["--target", &at("coarse.onnx")]).args(arguments(folder.path()));
    command.args(["--gate", "label_mean_iou=0.3", "--gate", "pixel_agreement=0.5"]);
    let output = command.assert().success();
    let outcome: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let tasks = outcome["targets"][0]["result"]["tasks"].as_array().unwrap();
    let map = &tasks[0]["segmentation"];
    close(&map["pixel_agreement"], &expected[0][0]);
    close(&map["mean_iou"], &expected[0][1]);
    for (labels, figures) in [(map, &expected[1]), (&tasks[0]["reference_segmentation"], &expected[2])] {
        close(&labels["pixel_accuracy"], &figures[0]);
        close(&labels["label_mean_iou"], &figures[1]);
        for (class, iou) in figures[2].as_object().unwrap() {
            close(&labels["label_class_iou"][class], iou);
        }
    }
    // The other output is a classification, with each k that was asked for; over all six the sets are equal.
    assert_eq!((tasks[1]["output"].as_str(), tasks[1]["kind"].as_str()), (Some("kind"), Some("classification")));
    let ks: Vec<_> =
        tasks[1]["top_k"].as_array().unwrap().iter().map(|k| (k["k"].as_u64(), k["set"].as_f64())).collect();
    assert_eq!((ks[0].0, ks[1]), (Some(2), (Some(6), Some(1.0))));
}

#[test]
fn a_run_judges_maps_by_masks_and_takes_kinds_from_its_configuration() {
    let Some((folder, expected)) = folder() else { return };
    let out = folder.path().join("out");
    let config = folder.path().join("calib.toml");
    let text = "model = \"float.onnx\"\nprecisions = [\"int8\"]\ncalib_samples = 4\nbench_seconds = 0\ntensorrt = \"off\"\n\
                [output_kind]\nkind = \"ignored\"\n";
    std::fs::write(&config, text).unwrap();
    let Some(mut command) = calib() else { return };
    command.arg("run").arg("--config").arg(&config).args(arguments(folder.path())).arg("--out").arg(&out);
    command.assert().success();
    let report = json(&out.join("report.json"));
    assert_eq!(report["dataset"]["labels"]["labelled"], report["dataset"]["evaluation"].as_array().unwrap().len());
    let [reference, int8] = [&report["precisions"][0], &report["precisions"][1]];
    // Half of the samples evaluate, so the figure is near that of all.
    let iou = reference["segmentation"]["label_mean_iou"].as_f64().unwrap();
    assert!((iou - expected[2][1].as_f64().unwrap()).abs() < 0.1, "{iou}");
    assert!(int8["segmentation"]["pixel_agreement"].as_f64().unwrap() > 0.9, "{int8}");
    // The other output takes part in nothing: not in the figures, and not in the choice of the method.
    assert!(int8.get("agreement").is_none(), "`kind` is not a classification here");
    let candidates = report["calibration"]["candidates"].as_array().unwrap();
    assert!(candidates.len() > 4, "{candidates:?}");
    for outputs in candidates.iter().chain([int8]).map(|figures| figures["outputs"].as_array().unwrap()) {
        assert!(outputs.len() == 1 && outputs[0]["name"] != "kind", "{outputs:?}");
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Label IoU") && page.contains("Intersection over union by class"));
    plans_are_judged_by_masks(&config, folder.path());
    a_mask_that_cannot_be_read_is_a_bad_sample(&config, folder.path());
}

fn plans_are_judged_by_masks(config: &Path, folder: &Path) {
    let out = folder.join("plan");
    let mut command = calib().unwrap();
    command.arg("bisect").arg("--config").arg(config).args(arguments(folder)).arg("--out").arg(&out);
    command.args(["--gate", "label_mean_iou=0.1"]).assert().success();
    let trial = &json(&out.join("bisect.json"))["plan"]["search"]["trials"][0];
    assert!(trial["verdict"]["metrics"]["label_mean_iou"].as_f64().unwrap() > 0.1, "{trial}");
}

fn a_mask_that_cannot_be_read_is_a_bad_sample(config: &Path, folder: &Path) {
    std::fs::write(folder.join("masks/3.png"), "no picture").unwrap();
    let run = |bad: &str| {
        let mut command = calib().unwrap();
        command.arg("run").arg("--config").arg(config).args(arguments(folder)).args(["--max-bad", bad]);
        command.arg("--out").arg(folder.join(bad));
        command
    };
    run("20%").assert().success();
    let skipped = &json(&folder.join("20%/report.json"))["dataset"]["skipped"];
    assert_eq!((skipped.as_array().unwrap().len(), skipped[0]["sample"].as_str()), (1, Some("3.png")), "{skipped}");
    assert!(skipped[0]["reason"].as_str().unwrap().contains("its mask"), "{skipped}");
    let error = error_of(&mut run("1%"));
    assert!(error.contains("3.png: its mask") && error.contains("--max-bad"), "{error}");
}
