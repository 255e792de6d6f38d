//! A small detector that INT8 spoils at one node: gates on boxes decide runs and bisections.

use std::path::Path;

use super::{calib, json, made};
use calib_test_support::calib_path;

/// Squares of 8 × 8 pixels in red and green, and a detector of them in the form of YOLOv8. Its first convolution has, beside the
/// colours, a channel that is hundreds of times as large: with one scale for all of them the colours are gone in what `second` reads.
const MAKE: &str = r#"
import os, sys, numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
folder = sys.argv[1]
rng = np.random.default_rng(7)
for part in ("images", "labels"):
    os.makedirs(f"{folder}/{part}")
for index in range(24):
    picture = np.full((64, 64, 3), 25, np.uint8)
    lines = []
    for cell in rng.choice(64, 4, replace=False):
        y, x, kind = cell // 8, cell % 8, int(rng.integers(2))
        picture[8 * y:8 * y + 8, 8 * x:8 * x + 8, kind] = 230
        lines.append(f"{kind} {(x + 0.5) / 8} {(y + 0.5) / 8} 0.125 0.125")
    Image.fromarray(picture).save(f"{folder}/images/{index:02}.png")
    if index:
        open(f"{folder}/labels/{index:02}.txt", "w").write("\n".join(lines))
Image.new("RGB", (64, 64), (25, 25, 25)).save(f"{folder}/images/00.png")
open(f"{folder}/data.yaml", "w").write("train: images\nval: images\nnames: [red, green]\n")

first = np.zeros((8, 3, 1, 1), np.float32)
first[0, 0] = first[1, 1] = first[2, 2] = 1
first[3] = 300
second = np.zeros((16, 8, 8, 8), np.float32)
second[0, 0] = second[1, 1] = 1 / 64
third = np.zeros((16, 16, 1, 1), np.float32)
third[0, 0] = third[1, 1] = 20
bias = np.full(16, -10, np.float32)
grid = np.array([((x + 0.5) * s, (y + 0.5) * s, s, s) for s in (8, 16, 32) for y in range(64 // s) for x in range(64 // s)], np.float32)
shape = np.array([1, 16, 64], np.int64)
one = lambda v: np.array([v], np.int64)
constants = dict(first_w=first, second_w=second, third_w=third, third_b=bias, shape=shape, begin=one(0), end=one(2), axis=one(1),
                 none=np.full((1, 2, 20), -10, np.float32), boxes=grid.T[None].copy())
node = lambda op, inputs, name, **a: helper.make_node(op, inputs, [name], name=name, **a)
nodes = [
    node("Conv", ["images", "first_w"], "first"), node("Relu", ["first"], "relu"),
    node("Conv", ["relu", "second_w"], "second", strides=[8, 8]), node("Relu", ["second"], "means"),
    node("Conv", ["means", "third_w", "third_b"], "third"), node("Reshape", ["third", "shape"], "rows"),
    node("Slice", ["rows", "begin", "end", "axis"], "logits"), node("Concat", ["logits", "none"], "levels", axis=2),
    node("Sigmoid", ["levels"], "scores"), node("Concat", ["boxes", "scores"], "output0", axis=1),
]
info = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
graph = helper.make_graph(nodes, "squares", [info("images", [1, 3, 64, 64])], [info("output0", [1, 6, 84])], tensors)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
for key, value in dict(task="detect", names="{0: 'red', 1: 'green'}", imgsz="[64, 64]", stride="32", end2end="False").items():
    model.metadata_props.add(key=key, value=value)
onnx.save(model, f"{folder}/squares.onnx")
"#;

/// Arguments of a command on the detector; no flag tells what it is.
fn arguments(folder: &Path, command: &str, out: &str, extra: &[&str]) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let fixed =
        [command, "--tensorrt", "off", "--method", "minmax", "--bias-correction", "off", "--calib-samples", "8"];
    let paths = [
        "--model".to_owned(),
        path("squares.onnx"),
        "--data".to_owned(),
        path("data.yaml"),
        "--out".to_owned(),
        path(out),
    ];
    fixed.iter().chain(extra).map(|&word| word.to_owned()).chain(paths).collect()
}

#[test]
fn gates_on_boxes_find_the_node_that_int8_spoils() {
    let Some(folder) = made(MAKE) else { return };
    let gates = [
        "map50_95=0.9",
        "map50=0.9",
        "map50_95_drop=0.05",
        "detection_precision=0.95",
        "detection_recall=0.95",
        "detection_iou=0.9",
        "sqnr_db[scores]=15",
        "map50_95_drop<=0.05@95%",
    ];
    for (index, gate) in gates.into_iter().enumerate() {
        let out = format!("bisect{index}");
        let output =
            calib().unwrap().args(arguments(folder.path(), "bisect", &out, &["--gate", gate])).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let out = folder.path().join(out);
        let found = json(&out.join("bisect.json"));
        assert_eq!(output.status.code(), Some(0), "{gate}: {said}");
        let trials = found["plan"]["search"]["trials"].as_array().unwrap();
        assert!(trials.len() > 1 && trials[0]["verdict"]["passed"] == false, "{gate}: {found:#}");
        let plan = json(&out.join("plan.json"));
        assert_eq!(plan["assignments"], serde_json::json!([{ "node": "second", "precision": "fp32" }]), "{gate}");
        // The plan passes the same gate in a run.
        if index == 0 {
            let plan = out.join("plan.json").display().to_string();
            let extra = ["--plan", &plan, "--gate", gate, "--precisions", "fp32,int8", "--bench-seconds", "0"];
            let status = std::process::Command::new(calib_path())
                .args(arguments(folder.path(), "run", "run", &extra))
                .output()
                .unwrap();
            assert_eq!(status.status.code(), Some(0), "{}", String::from_utf8_lossy(&status.stderr));
            let report = json(&folder.path().join("run/report.json"));
            assert_eq!(report["precisions"][1]["detection"]["map50_95"], 1.0);
        }
    }
}
