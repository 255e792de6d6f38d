//! Q/DQ that is checked wherever it lies, and what counts as a sample by the clock.

use std::fs;

use super::{calib, json, made, output};

/// Models that are checked: `product.onnx` has a scale that is multiplied from constants, `branch.onnx` Q/DQ in a branch only, and
/// `state.onnx` the batch on the second axis of a state.
const CHECKED: &str = r#"
import sys
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
folder = sys.argv[1]
rng = np.random.default_rng(5)
info = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
node = lambda op, inputs, output, **more: helper.make_node(op, inputs.split(), [output], name=output, **more)
def save(name, nodes, inputs, outputs, **constants):
    graph = helper.make_graph(nodes, "g", [info(*i) for i in inputs], [info(*o) for o in outputs],
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), f"{folder}/{name}.onnx")
pair = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d")]
for name, half in ("product", 0.5), ("negative", -0.5):
    save(name, [node("Mul", "half half_too", "s"), *pair, node("Relu", "d", "y")], [("x", ["n", 4])], [("y", ["n", 4])],
         half=np.float32(half), half_too=np.float32(0.5), z=np.int8(0))
branch = helper.make_graph(pair, "then", [], [info("d", ["n", 4])])
other = helper.make_graph([node("Relu", "x", "r")], "else", [], [info("r", ["n", 4])])
save("branch", [node("If", "yes", "y", then_branch=branch, else_branch=other)], [("x", ["n", 4])], [("y", ["n", 4])],
     yes=np.bool_(True), s=np.float32(0.5), z=np.int8(0))
body = [node("Constant", "", "s", value_float=0.5), helper.make_node("Constant", [], ["z"], value=numpy_helper.from_array(np.int8(4))), *pair]
function = helper.make_function("own", "Pair", ["x"], ["d"], body, [helper.make_opsetid("", 17)])
graph = helper.make_graph([node("Pair", "x", "p", domain="own"), node("Relu", "p", "y")], "g", [info("x", ["n", 4])], [info("y", ["n", 4])])
onnx.save(helper.make_model(graph, functions=[function], ir_version=8,
                            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]), f"{folder}/function.onnx")
w = lambda *shape: rng.normal(size=shape).astype(np.float32)
save("steps", [helper.make_node("RNN", ["x", "rw", "rr", "", "", "h"], ["all"], hidden_size=8)], [("x", ["t", 1, 6]), ("h", [1, 1, 8])], [("all", ["t", 1, 1, 8])],
     rw=w(1, 8, 6), rr=w(1, 8, 8))
save("rows", [node("Relu", "x", "y")], [("x", [5, 4])], [("y", [5, 4])])
for i in range(9):
    np.savez(f"{folder}/rows_{i}.npz", x=w(5, 4))
layers = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Split", "h", "first", axis=0)]
layers[1].output.append("second")
layers += [helper.make_node("GRU", ["t", "gw", "gr", "", "", "first"], ["", "last"], "gru", hidden_size=8), node("Add", "last second", "u"),
           node("Squeeze", "u zero", "v"), node("MatMul", "v w", "m"), node("Mul", "m by", "y")]
save("state", layers, [("x", ["n", 5, 6]), ("h", [2, "n", 8]), ("by", [])], [("y", ["n", 4])],
     gw=w(1, 24, 6), gr=w(1, 24, 8), w=w(8, 4), zero=np.array([0]))
"#;

#[test]
fn constants_are_computed_and_branches_looked_into_for_a_check() {
    let Some(folder) = made(CHECKED) else { return };
    let check = |status: i32, name: &str| {
        output(status, calib().unwrap().args(["inspect", "--check"]).arg(folder.path().join(name)))
    };
    assert!(check(0, "product.onnx").0.contains("every Q/DQ pair follows"));
    assert!(check(1, "negative.onnx").0.contains("its scale 0 is -0.25"));
    let (out, error) = check(1, "function.onnx");
    assert!(out.contains("zero point") && !out.contains("second input"), "{out}");
    assert!(!error.contains("nothing to check"), "{error}");
    let (out, error) = check(0, "branch.onnx");
    assert!(out.contains("every Q/DQ pair follows") && !error.contains("nothing to check"), "{out}{error}");
}

#[test]
fn recurrent_models_are_timed_at_any_batch() {
    let Some(folder) = made(CHECKED) else { return };
    let mut bench = calib().unwrap();
    bench.args(["bench", "ort", "--random-data", "--batch", "1,4", "--seconds", "0.02", "--json", "--model"]);
    let (out, error) = output(0, bench.arg(folder.path().join("state.onnx")));
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["measurements"].as_array().unwrap().len(), 2, "{out}");
    assert!(!error.contains("dynamic first axis"), "{error}");
    // Time is not a batch.
    let mut bench = calib().unwrap();
    bench.args(["bench", "ort", "--random-data", "--shape", "x=7x1x6", "--batch", "4", "--seconds", "0.02", "--model"]);
    let (_, error) = output(2, bench.arg(folder.path().join("steps.onnx")));
    assert!(error.contains("a call of the model takes one sample"), "{error}");
}

#[test]
fn a_file_that_fills_a_call_is_one_sample_by_the_clock_too() {
    let Some(folder) = made(CHECKED) else { return };
    let (out, data) = (folder.path().join("out"), folder.path().join("data"));
    fs::create_dir(&data).unwrap();
    for i in 0..9 {
        let name = format!("rows_{i}.npz");
        fs::rename(folder.path().join(&name), data.join(name)).unwrap();
    }
    let mut run = calib().unwrap();
    run.args([
        "run",
        "--precisions",
        "fp16",
        "--calib-samples",
        "4",
        "--bench-seconds",
        "0.01",
        "--tensorrt",
        "off",
        "--model",
    ]);
    run.arg(folder.path().join("rows.onnx")).arg("--data").arg(&data).arg("--out").arg(&out).assert().success();
    let report = json(&out.join("report.json"));
    assert_eq!(report["dataset"]["evaluation"].as_array().unwrap().len(), 5);
    assert_eq!(report["precisions"][0]["latency_ms"]["batch"], 1, "{}", report["precisions"][0]);
}
