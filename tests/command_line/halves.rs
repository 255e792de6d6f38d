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
io = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16, 6, 6])
def save(name, nodes, constants):
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
# Everything that folding takes out: a batch norm, a dropout, an identity, a function of its own, a pad, a factor, a constant, a sum.
vector = lambda name, value: numpy_helper.from_array(np.full(16, value, np.float32), name)
nodes = [conv("x", "w", "c", "conv"), node("BatchNormalization", ["c", "one", "zero", "zero", "one"], ["b"], name="norm"),
         node("Dropout", ["b"], ["o"], name="drop"), node("Identity", ["o"], ["i"], name="same"),
         node("Act", ["i"], ["a"], name="own", domain="local"), node("Pad", ["a", "pads"], ["p"], name="pad"),
         conv("p", "v", "d", "last"), node("Mul", ["d", "k"], ["e"], name="factor"),
         node("Softplus", ["k"], ["s"], name="constant"), node("Add", ["e", "s"], ["y"], name="sum")]
body = [node("Sigmoid", ["a"], ["s"], name="body"), node("Mul", ["a", "s"], ["b"], name="product")]
body = helper.make_function("local", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
constants = [weight("w", 0.1), weight("v", 0.1), vector("one", 1), vector("zero", 0),
             numpy_helper.from_array(np.zeros(8, np.int64), "pads"), numpy_helper.from_array(np.full((16, 1, 1), 2, np.float32), "k")]
graph = helper.make_graph(nodes, "g", [io("x")], [io("y")], constants)
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[body]), f"{out}/folded.onnx")
# A convolution of what is about as large as each of these factors, and one whose weights are.
factors = [10.0 ** exponent for exponent in (-30, -20, -10, -7, -6, -5, -4, -3, 4, 6, 7, 10, 20, 30)]
nodes, constants = [], [weight("w", 0.1)]
for i, factor in enumerate(factors):
    constants += [scalar(f"f{i}", factor), scalar(f"i{i}", 1 / factor), weight(f"w{i}", 0.1 * factor)]
    nodes += [node("Mul", ["x", f"f{i}"], [f"m{i}"], name=f"m{i}"), conv(f"m{i}", "w", f"c{i}", f"c{i}"),
              node("Mul", [f"c{i}", f"i{i}"], [f"y{i}"], name=f"y{i}"),
              conv("x", f"w{i}", f"d{i}", f"d{i}"), node("Mul", [f"d{i}", f"i{i}"], [f"z{i}"], name=f"z{i}")]
graph = helper.make_graph(nodes, "g", [io("x")], [io(name + str(i)) for i in range(len(factors)) for name in "yz"], constants)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), f"{out}/wide.onnx")
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
    let told = quantize(&["--table", "out/calibration.cache"]);
    assert!(told.contains("magnitudes of quantized tensors only") && told.contains("`calib calibrate`"), "{told}");
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

#[test]
fn ranges_from_tiny_to_huge_keep_their_accuracy() {
    let Some(folder) = made(MODELS) else { return };
    let precisions = ["--precisions", "int8,fp16", "--high-precision", "fp16"];
    let (_, report) = run(folder.path(), "wide", &precisions);
    for (row, most) in [(1, 0.05), (2, 0.01)] {
        let row = &report["precisions"][row];
        let outputs = row["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), 28, "{row}");
        let of = |output: &serde_json::Value| (output["name"].to_string(), output["rel_l2"].as_f64().unwrap());
        let poor: Vec<_> = outputs.iter().map(of).filter(|(_, error)| *error > most).collect();
        assert!(poor.is_empty(), "{}: {poor:?}", row["precision"]);
        assert!(row["halved"]["nodes"].as_u64().unwrap() > 0, "{}", row["halved"]);
    }
}

#[test]
fn rules_act_on_what_nodes_are_folded_into() {
    let Some(folder) = made(MODELS) else { return };
    let quantize = |more: &[&str]| {
        let mut quantize = calib().unwrap();
        quantize.current_dir(&folder).args(["quantize", "folded.onnx", "--json", "-o", "q.onnx"]);
        let output = quantize.args(["--precision", "fp16"]).args(more).output().unwrap();
        (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let kept = |stdout: &[u8]| {
        let outcome: serde_json::Value = serde_json::from_slice(stdout).unwrap();
        let kept =
            outcome["kept_fp32"].as_array().unwrap().iter().map(|kept| kept["op_type"].as_str().unwrap().to_owned());
        kept.collect::<Vec<_>>().join(" ")
    };
    let folded = [("norm", "Conv", "conv"), ("factor", "Conv", "last"), ("sum", "Conv", "last")];
    for (name, operators, into) in folded {
        let (_, stdout, told) = quantize(&["--nodes-to-exclude", name]);
        assert_eq!(kept(&stdout), operators, "{name}");
        assert!(told.contains(&format!("`{name}` (now `{into}`)")) && !told.contains("matches no"), "{told}");
    }
    assert_eq!(kept(&quantize(&["--nodes-to-exclude", "own"]).1), "Sigmoid Mul");
    for name in ["drop", "same", "constant"] {
        let (_, stdout, told) = quantize(&["--nodes-to-exclude", name]);
        assert_eq!(kept(&stdout), "", "{name}");
        assert!(told.contains("matches only nodes that copy values, are constant or become part of others"), "{told}");
    }
    assert!(quantize(&["--nodes-to-exclude", "none"]).2.contains("the pattern `none` matches no node"));
    // Operators are rules like names.
    for (op_type, operators, said) in [
        ("BatchNormalization", "Conv", "as `norm` into `conv`: in 16 bits the rule acts"),
        ("Act", "Sigmoid Mul", "`own` (now `own/body`, `own/product`)"),
        ("Dropout", "", "has only nodes that copy values, are constant or become part of others, as `drop`"),
        ("Identity", "", "has only nodes that copy values, are constant or become part of others, as `same`"),
    ] {
        let (_, stdout, told) = quantize(&["--op-types-to-exclude", op_type]);
        assert_eq!(kept(&stdout), operators, "{op_type}");
        assert!(told.contains(said), "{op_type}: {told}");
    }
    for flag in ["--op-types", "--op-types-to-exclude"] {
        let (status, _, told) = quantize(&[flag, "Conv,Other"]);
        let error = format!("error: {flag} Other: the model has no node of this operator type; it has ");
        assert!(status == Some(2) && told.lines().count() == 1 && told.starts_with(&error), "{told}");
    }
    // A plan is for this model, or refused.
    let plan = |node: &str| {
        let text = format!(r#"{{"format_version": 1, "assignments": [{{"node": "{node}", "precision": "fp32"}}]}}"#);
        std::fs::write(folder.path().join("plan.json"), text).unwrap();
        quantize(&["--plan", "plan.json"])
    };
    assert_eq!(kept(&plan("norm").1), "Conv");
    let (status, _, told) = plan("other");
    assert!(status == Some(2) && told.contains("names the node `other`, which the model does not have"), "{told}");
    let mut run = calib().unwrap();
    run.current_dir(&folder).args([
        "run",
        "folded.onnx",
        "--data",
        "x.npz",
        "--tensorrt",
        "off",
        "--plan",
        "plan.json",
    ]);
    assert!(super::error_of(&mut run).contains("names the node `other`"));
}
