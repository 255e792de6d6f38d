//! Conversions to 16 bits: what stays in FP32 is said, and the file of a run is that of `quantize`.

use std::path::Path;

use super::{calib, json, made};

/// Models of `x` of shape [n, 16, 6, 6], and 8 samples.
const MODELS: &str = r#"
import sys, numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
out = sys.argv[1]
rng = np.random.default_rng(0)
def weight(name, factor):
    return numpy_helper.from_array((rng.normal(0, 1, (16, 16, 3, 3)) * factor).astype(np.float32), name)
def save(name, nodes, constants):
    io = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16, 6, 6])
    graph = helper.make_graph(nodes, "g", [io("x")], [io("y")], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), f"{out}/{name}.onnx")
node = helper.make_node
conv = lambda x, w, y, name: node("Conv", [x, w], [y], name=name, pads=[1] * 4)
save("large", [conv("x", "w", "a", "one"), node("Relu", ["a"], ["r"], name="relu"), conv("r", "v", "y", "two")],
     [weight("w", 8000), weight("v", 0.1)])
save("partly", [conv("x", "w", "a", "one"), node("Tanh", ["a"], ["t"], name="tanh"), conv("t", "v", "y", "two")],
     [weight("w", 8000), weight("v", 0.1)])
scalar = lambda name, value: numpy_helper.from_array(np.float32(value), name)
save("products", [node("Mul", ["x", "up"], ["m"], name="up"), node("Mul", ["m", "down"], ["y"], name="down")],
     [scalar("up", 60000), scalar("down", 1e-4)])
np.savez(f"{out}/x.npz", x=rng.normal(0, 1, (8, 16, 6, 6)).astype(np.float32))
"#;

fn run(folder: &Path, model: &str, more: &[&str]) -> (String, serde_json::Value) {
    let mut run = calib().unwrap();
    run.current_dir(folder).args([
        "run",
        "--data",
        "x.npz",
        "--bench-seconds",
        "0",
        "--tensorrt",
        "off",
        "--out",
        "out",
    ]);
    let output = run.args(["--effort", "fast", "--model", &format!("{model}.onnx")]).args(more).assert().success();
    let told = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
    (told, json(&folder.join("out/report.json")))
}

#[test]
fn what_stays_in_fp32_is_counted_and_named() {
    let Some(folder) = made(MODELS) else { return };
    let folder = folder.path();
    let (told, report) = run(folder, "large", &["--precisions", "fp16,int8", "--gate", "fp16:sqnr_db=30"]);
    assert!(told.contains("fp16 (0 of 3 nodes)"), "{told}");
    let nothing = "fp16 on onnxruntime-cpu passed sqnr_db: equal to the reference, but nothing computes in fp16";
    assert!(report["verdict"]["sentence"].as_str().unwrap().contains(nothing), "{}", report["verdict"]);
    assert!(report["notes"].to_string().contains("all of it stays in fp32: one (reached "), "{}", report["notes"]);
    let halved = &report["precisions"][1]["halved"];
    let kept: Vec<&str> = halved["kept_fp32"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap()).collect();
    assert_eq!((halved["nodes"].as_u64(), kept), (Some(0), vec!["one", "relu", "two"]));
    // One conversion: the file of `quantize` with the run's table is the run's; without one, what it does not know is said.
    let quantize = |more: &[&str]| {
        let mut quantize = calib().unwrap();
        quantize.current_dir(folder).args(["quantize", "large.onnx", "--precision", "fp16", "-o", "q.onnx"]);
        let output = quantize.args(more).assert().success();
        String::from_utf8_lossy(&output.get_output().stderr).into_owned()
    };
    let told = quantize(&["--table", "out/calibration.json"]);
    assert!(!told.contains("--table"), "{told}");
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    assert!(read("q.onnx") == read("out/model.fp16.onnx"));
    let told = quantize(&[]);
    assert!(told.contains("none stays in fp32 for them") && told.contains("--table FILE"), "{told}");

    let (told, report) = run(folder, "partly", &["--precisions", "fp16", "--gate", "sqnr_db=30"]);
    assert!(told.contains("fp16 (1 of 3 nodes)"), "{told}");
    assert!(
        report["notes"].to_string().contains("fp16: 2 of 3 nodes stay in fp32: one (reached "),
        "{}",
        report["notes"]
    );
    assert_eq!(report["verdict"]["sentence"], "The gate passed.");
    // Magnitudes are looked at where nothing is quantized, too.
    let (_, report) = run(folder, "products", &["--precisions", "fp16,int8"]);
    assert_eq!(report["precisions"][1]["halved"]["nodes"], 0, "{}", report["precisions"][1]);
    // A model that is in INT8 already is called so, and says why it is not converted.
    run(folder, "partly", &["--precisions", "int8"]);
    std::fs::rename(folder.join("out/model.int8.onnx"), folder.join("int8.onnx")).unwrap();
    let (_, report) = run(folder, "int8", &["--precisions", "fp16"]);
    let model = &report["model"];
    assert_eq!(report["precisions"][0]["precision"], "int8");
    assert_eq!(
        (&model["weights"]["int8"], &model["arithmetic"]),
        (&4608.into(), &serde_json::json!(["float32", "int8"]))
    );
    assert!(report["precisions"][1]["error"].as_str().unwrap().contains("quantized already"));
}
