//! What is left out, not used or not a number is said, in the terminal and in the report.

use std::{fs, path::Path};

use calib_test_support::Need;

use super::{calib, demo, demo_flags, error_of, json, made, output};

/// `log.onnx` gives infinities where a product is negative; `shifted.onnx` gives them elsewhere. `grid.onnx` has an output
/// that is neither scores nor a map, and a tensor with a line break in its name. `sum.onnx` has nothing to quantize. How many rows
/// `found` of `boxes.onnx` and `indices.onnx` has depends on the data, as behind NonMaxSuppression.
const MAKE: &str = r#"
import sys
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
folder = sys.argv[1]
rng = np.random.default_rng(5)
weight = rng.normal(size=(32, 32)).astype(np.float32)
info = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
def save(name, nodes, output, *constants):
    graph = helper.make_graph([helper.make_node(*node[:3], name=node[1][0] + node[0]) for node in nodes], "g",
                              [info("x", ["n", 32])], [info("y", output)],
                              [numpy_helper.from_array(value, name) for name, value in constants])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), f"{folder}/{name}.onnx")
product = ("MatMul", ["x", "w"], ["p"])
save("log", [product, ("Relu", ["p"], ["r"]), ("Log", ["r"], ["y"])], ["n", 32], ("w", weight))
save("shifted", [product, ("Add", ["p", "one"], ["s"]), ("Relu", ["s"], ["r"]), ("Log", ["r"], ["y"])], ["n", 32],
     ("w", weight), ("one", np.float32(1)))
save("grid", [("MatMul", ["x", "w"], ["line\nbreak"]), ("MatMul", ["line\nbreak", "w"], ["q"]), ("Reshape", ["q", "to"], ["y"])],
     ["n", 4, 8], ("w", weight), ("to", np.array([-1, 4, 8])))
save("sum", [("Add", ["x", "x"], ["y"])], ["n", 32])
for name, kind in ("indices", TensorProto.INT64), ("boxes", TensorProto.FLOAT):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product"), helper.make_node("Greater", ["y", "one"], ["over"], "over"),
             helper.make_node("NonZero", ["over"], ["at"], "at"), helper.make_node("Transpose", ["at"], ["rows"], "rows"),
             helper.make_node("Cast", ["rows"], ["found"], "found", to=kind)]
    graph = helper.make_graph(nodes, "g", [info("x", [1, 32])],
                              [info("y", [1, 32]), helper.make_tensor_value_info("found", kind, ["count", 2])],
                              [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(1), "one")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), f"{folder}/{name}.onnx")
x = rng.normal(size=(400, 32)).astype(np.float32)
np.savez(f"{folder}/x.npz", x=x)
np.savez(f"{folder}/more.npz", x=x, label=np.arange(400), note=x[:, :2])
np.savez(f"{folder}/renamed.npz", pixels=x)
np.savez(f"{folder}/other.npz", pixels=x, label=np.arange(400))
"#;

fn compare(folder: &Path, data: &str, more: &[&str]) -> assert_cmd::Command {
    let mut command = calib().unwrap();
    let file = |name: &str| folder.join(name);
    command.arg("compare").arg("--ref").arg(file("log.onnx")).arg("--target").arg(file("shifted.onnx"));
    command.arg("--data").arg(file(data)).args(more);
    command
}

fn run(folder: &Path, model: &str, more: &[&str]) -> assert_cmd::Command {
    let mut command = calib().unwrap();
    command.arg("run").arg("--model").arg(folder.join(model)).arg("--data").arg(folder.join("x.npz"));
    command.args(["--bench-seconds", "0", "--out"]).arg(folder.join("out")).args(more);
    command
}

#[test]
fn infinities_that_differ_are_told_beside_the_figures_that_leave_them_out() {
    let Some(folder) = made(MAKE) else { return };
    let (out, _) = output(0, &mut compare(folder.path(), "x.npz", &[]));
    assert!(
        out.contains("output `y` has ") && out.contains("NaN or infinite in one model and not in the other"),
        "{out}"
    );
    let (_, error) = output(0, &mut run(folder.path(), "log.onnx", &["--tensorrt", "off", "--precisions", "int8"]));
    assert!(error.contains("warning: int8: output `y` has "), "{error}");
    let report = json(&folder.path().join("out/report.json"));
    let notes = report["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note.as_str().unwrap().starts_with("int8: output `y` has ")), "{notes:?}");
}

#[test]
fn arrays_that_are_not_used_are_named() {
    let Some(folder) = made(MAKE) else { return };
    let (_, error) = output(0, &mut compare(folder.path(), "more.npz", &[]));
    assert!(error.contains("the arrays `label`, `note`, which are not used"), "{error}");
    let (_, error) = output(0, &mut compare(folder.path(), "renamed.npz", &[]));
    assert!(error.contains("its only array `pixels` is taken for the input `x`"), "{error}");
    let missing = error_of(&mut compare(folder.path(), "missing", &[]));
    assert!(missing.contains("missing: ") && !missing.contains("images feed"), "{missing}");
    let error = error_of(&mut compare(folder.path(), "other.npz", &[]));
    assert!(error.contains("the inputs `x` are missing; the arrays are `label`, `pixels`"), "{error}");
    let (_, error) = output(0, &mut compare(folder.path(), "x.npz", &["--preset", "imagenet"]));
    assert!(error.contains("the preprocessing is not applied"), "{error}");
}

#[test]
fn labels_that_cannot_be_used_are_told() {
    let Some(mut command) = calib() else { return };
    let demo_compare = |command: &mut assert_cmd::Command, labels: &Path| {
        command
            .args(["compare", "--samples", "8", "--preset", "unit", "--ref", "ort", "--model"])
            .arg(demo("demo.onnx"));
        command.arg("--target").arg(demo("demo.onnx")).arg("--data").arg(demo("images")).arg("--labels").arg(labels);
    };
    // Pictures of one channel are read as masks.
    let folder = tempfile::tempdir().unwrap();
    let gray = [0x89, b'P', b'N', b'G'];
    assert!(fs::read(demo("images/0000.png")).unwrap().starts_with(&gray));
    demo_compare(&mut command, &demo("images"));
    let text = String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
    assert!(
        text.contains("the label masks of") && text.contains("no output of the model is a map of classes"),
        "{text}"
    );
    let labels = folder.path().join("labels.csv");
    let rows = fs::read_to_string(demo("labels.csv")).unwrap();
    fs::write(&labels, rows.lines().skip(1).map(|row| row.replacen(',', ",9", 1) + "\n").collect::<String>()).unwrap();
    let mut command = calib().unwrap();
    demo_compare(&mut command, &labels);
    let (out, error) = output(0, &mut command);
    assert!(error.contains("8 of 8 labels lie beyond the model's 20 classes"), "{error}");
    assert!(out.contains("accuracy on 8 labelled samples top-1 0.0000"), "{out}");
    let mut random = calib().unwrap();
    random.args(["run", "--random-data", "--model"]).arg(demo("demo.onnx")).arg("--labels").arg(demo("labels.csv"));
    let error = error_of(random.arg("--out").arg(folder.path()));
    assert!(error.contains("random inputs have no right answers"), "{error}");
}

#[test]
fn what_did_not_run_stands_under_the_table() {
    let Some(mut command) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    command.arg("run").args(demo_flags()).args(["--calib-samples", "8", "--eval-samples", "8", "--bench-seconds", "0"]);
    // Two 16-bit types in one model are refused.
    let plan = folder.path().join("plan.json");
    fs::write(&plan, r#"{"format_version": 1, "assignments": [{"pattern": ".*fc", "precision": "fp16"}]}"#).unwrap();
    command.args(["--precisions", "bf16,int8", "--plan"]).arg(&plan).arg("--out").arg(folder.path());
    // What did not run passes no gate of the demo.
    let (out, _) = output(1, &mut command);
    let notes: Vec<&str> = out.lines().filter(|line| line.starts_with("[1] ")).collect();
    assert!(out.contains("not run [1]") && notes.len() == 1, "{out}");
    assert!(notes[0].contains("both asked for"), "{out}");
    let mut table = out.lines().filter(|line| line.starts_with([' ', '─', '═']));
    assert!(table.all(|line| line.chars().count() < 140), "{out}");
}

#[test]
fn a_float_model_has_no_pairs_to_check_and_names_no_producer() {
    let Some(folder) = made(MAKE) else { return };
    let model = folder.path().join("log.onnx");
    let (out, _) = output(0, calib().unwrap().arg("inspect").arg(&model));
    assert!(out.contains("producer    not named, IR 8, opset 17"), "{out}");
    let (_, error) = output(0, calib().unwrap().args(["inspect", "--check"]).arg(&model));
    assert!(error.contains("there is nothing to check"), "{error}");
    let mut quantize = calib().unwrap();
    quantize.args(["quantize", "--precision", "fp16", "--model"]).arg(&model);
    let (out, _) = output(0, quantize.arg("-o").arg(folder.path().join("fp16.onnx")));
    assert!(out.contains("fp16.onnx: 3 of 3 nodes in fp16"), "{out}");
}

#[test]
fn sixteen_bits_that_are_computed_in_thirty_two_are_told() {
    let Some(folder) = made(MAKE) else { return };
    let at = |name: &str| folder.path().join(name);
    let mut quantize = calib().unwrap();
    quantize.args(["quantize", "--precision", "fp16", "--model"]).arg(at("grid.onnx")).arg("-o").arg(at("halves.onnx"));
    output(0, &mut quantize);
    let compare = |target: &str| {
        let mut compare = calib().unwrap();
        compare.args(["compare", "--model"]).arg(at("grid.onnx")).arg("--data").arg(at("x.npz"));
        output(0, compare.args(["--ref", "ort", "--target"]).arg(at(target))).1
    };
    assert!(compare("halves.onnx").contains("computes 16-bit numbers in 32 bits"));
    assert!(!compare("grid.onnx").contains("16-bit"));
}

#[test]
fn a_bisection_that_has_nothing_to_find_or_to_judge_says_so() {
    let Some(folder) = made(MAKE) else { return };
    let bisect = |model: &str, gate: &str| {
        let mut command = calib().unwrap();
        command.args(["bisect", "--tensorrt", "off", "--gate", gate, "--model"]).arg(folder.path().join(model));
        command.arg("--data").arg(folder.path().join("x.npz")).arg("--out").arg(folder.path().join("bisect"));
        command
    };
    let error = error_of(&mut bisect("grid.onnx", "top1=0.99"));
    assert!(error.contains("gate top1=0.99 cannot be tested: no output of the model is a classification"), "{error}");
    for (gate, why) in [("accuracy=0.5", "no sample has a label"), ("latency_ms=1", "neither timed nor weighed")] {
        assert!(error_of(&mut bisect("grid.onnx", gate)).contains(why), "{gate}");
        assert!(!folder.path().join("bisect/calibration.json").exists(), "{gate}: before the work");
    }
    let error = error_of(&mut bisect("sum.onnx", "sqnr_db=20"));
    assert!(error.contains("nothing in this model is to be quantized"), "{error}");
    let (out, _) = output(0, &mut bisect("grid.onnx", "sqnr_db=90"));
    assert!(out.contains("lifted  cost        sqnr_db\n     0  0           "), "{out}");
    assert!(out.contains("the plan passes: sqnr_db equal to the reference"), "{out}");
}

/// The format has no line for such a name; nothing else needs the file.
#[test]
fn a_run_goes_on_without_the_cache_of_tensorrt_10() {
    let Some(folder) = made(MAKE) else { return };
    let cache = folder.path().join("out/calibration.cache");
    fs::create_dir(folder.path().join("out")).unwrap();
    fs::write(&cache, "of another model").unwrap();
    let more = ["--tensorrt", "off", "--precisions", "int8"];
    let (_, error) = output(0, &mut run(folder.path(), "grid.onnx", &more));
    assert!(error.contains("no calibration cache was written") && error.contains("line\\nbreak"), "{error}");
    assert!(!cache.exists() && folder.path().join("out/report.html").exists());
}

/// `fp32` is built from the file as it was given, whose inputs `--shape` does not bind.
#[test]
fn engines_are_built_with_a_bound_batch() {
    let Some(folder) = made(MAKE) else { return };
    let more = ["--precisions", "int8", "--shape", "x=4x32"];
    let (_, error) = output(0, &mut run(folder.path(), "log.onnx", &more));
    assert!(!error.contains("could not build"), "{error}");
    if folder.path().join("out/engines").exists() {
        assert!(folder.path().join("out/engines/fp32.plan").exists());
    } else {
        Need::TensorRt.skip("this program builds no engines");
    }
}

#[test]
fn files_that_cannot_or_must_not_be_written_are_refused_at_once() {
    let Some(folder) = made(MAKE) else { return };
    let (model, data) = (folder.path().join("log.onnx"), folder.path().join("x.npz"));
    let before = fs::read(&model).unwrap();
    let mut quantize = calib().unwrap();
    quantize.args(["quantize", "--precision", "fp16", "--model"]).arg(&model).arg("-o").arg(&model);
    let error = error_of(&mut quantize);
    assert!(error.contains("is an input and would be written over"), "{error}");
    assert_eq!(fs::read(&model).unwrap(), before);
    let mut calibrate = calib().unwrap();
    calibrate.arg("calibrate").arg("--model").arg(&model).arg("--data").arg(&data);
    let error = error_of(calibrate.arg("-o").arg(folder.path().join("none/table.json")));
    assert!(error.contains("there is no folder") && error.contains("none"), "{error}");
    let mut report = calib().unwrap();
    report.arg("report").arg(super::root().join("reports/example")).arg("-o").arg(folder.path().join("report.pdf"));
    let error = error_of(&mut report);
    assert!(error.contains("reports are written as .html, .md or .csv"), "{error}");
}

#[test]
fn operator_types_that_the_model_has_not_are_told() {
    if calib().is_none() {
        return;
    }
    for flag in ["--op-types", "--op-types-to-exclude"] {
        let said = format!("{flag} conv: the model has no node of this operator type; it has Add");
        for (job, to) in
            [("quantize", ["--output", "q.onnx"]), ("run", ["--out", "out"]), ("calibrate", ["-o", "t.json"])]
        {
            let mut command = calib().unwrap();
            command.args([job, flag, "Gemm,conv"]).args(to).arg("--model").arg(demo("demo.onnx"));
            if job != "quantize" {
                command.arg("--random-data");
            }
            let error = error_of(command.current_dir(std::env::temp_dir()));
            assert!(error.contains(&said), "{job}: {error}");
        }
    }
}

/// Commands that are recommended are about the precision that was looked into; 16-bit floats have no table to name.
#[test]
fn what_a_bisection_recommends_is_of_its_precision() {
    let Some(folder) = made(MAKE) else { return };
    let bisect = |precision: &str| {
        let mut command = calib().unwrap();
        command
            .args(["bisect", "--find", "layers", "--precision", precision, "--model"])
            .arg(folder.path().join("grid.onnx"));
        command.arg("--data").arg(folder.path().join("x.npz")).arg("--out").arg(folder.path().join("bisect"));
        output(0, &mut command).0
    };
    let fp8 = bisect("fp8");
    let recommended: Vec<&str> = fp8.lines().filter(|line| line.starts_with("   calib bisect ")).collect();
    assert!(!recommended.is_empty(), "{fp8}");
    assert!(
        recommended.iter().all(|line| line.contains("--gate sqnr_db=20") && line.contains("--precision fp8")),
        "{fp8}"
    );
    assert!(!bisect("fp16").contains("   calib "), "{fp8}");
}

#[test]
fn an_output_whose_shape_depends_on_the_data_can_be_left_out_everywhere() {
    let Some(folder) = made(MAKE) else { return };
    let of = |model: &str, name: &str, more: &[&str]| {
        let mut command = calib().unwrap();
        command.arg(name).arg("--model").arg(folder.path().join(model));
        command.arg("--data").arg(folder.path().join("x.npz")).args(more);
        command
    };
    let command = |name: &str, more: &[&str]| of("boxes.onnx", name, more);
    let table = folder.path().join("table.json");
    let calibrate = ["-o", table.to_str().unwrap()];
    let error = error_of(command("calibrate", &calibrate).args(["--effort", "off"]));
    assert!(error.contains("output `found` has shape") && error.contains("--output-kind found=ignored"), "{error}");
    // Indices take no part in the choice of a method beside an output of floats.
    output(0, &mut of("indices.onnx", "calibrate", &calibrate));
    let ignored = ["--output-kind", "found=ignored"];
    output(0, command("calibrate", &calibrate).args(ignored));
    let out = folder.path().join("out");
    let run = ["--tensorrt", "off", "--bench-seconds", "0", "--out", out.to_str().unwrap()];
    let (text, _) = output(0, command("run", &run).args(ignored));
    assert!(!text.contains("not run"), "{text}");
    let bisect = ["--tensorrt", "off", "--gate", "sqnr_db=90", "--out", out.to_str().unwrap()];
    output(0, command("bisect", &bisect).args(ignored));
}

/// The lines of tables: all but sentences that name a file.
fn fits(text: &str) {
    let wide = text.lines().find(|line| line.chars().count() > 80);
    assert!(wide.is_none(), "{}: {text}", wide.unwrap_or_default());
}

#[test]
fn tables_fit_eighty_columns_and_say_what_is_emulated() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut command = calib().unwrap();
    command.arg("run").args(demo_flags()).args(["--calib-samples", "32", "--eval-samples", "16", "--effort", "fast"]);
    command.args(["--bench-seconds", "0.05", "--out"]).arg(path("out"));
    let (text, said) = output(0, &mut command);
    fits(text.split("report: ").next().unwrap());
    // The rows of FP16 and of INT8 say so, the float model's does not.
    assert_eq!(text.matches("emulated").count(), 2, "{text}");
    assert_eq!(said.matches("calibrated ").count(), 1, "{said}");
    let report = json(&folder.path().join("out/report.json"));
    let timings: Vec<&str> = report["precisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["latency_ms"]["timing"].as_str().unwrap())
        .collect();
    assert_eq!(timings, ["measured", "emulated", "emulated"]);

    let (demo, int8, table) = (demo("demo.onnx"), path("out/model.int8.onnx"), path("out/calibration.json"));
    let demo = demo.to_str().unwrap();
    let bench = ["bench", "ort", &int8, "--model", demo, "--seconds", "0"];
    let (text, _) = output(0, calib().unwrap().args(bench));
    let (_, tables) = text.split_once("latency of a call").unwrap();
    fits(tables.split("is emulated: ").next().unwrap().rsplit_once('\n').unwrap().0);
    assert_eq!(text.matches("(emulated)").count(), 2, "once a table: {text}");
    assert!(text.contains("is emulated: Q/DQ"), "{text}");

    let (text, _) = output(0, calib().unwrap().args(["quantize", "--explain", "--model", demo, "--table", &table]));
    fits(&text);
    let (text, _) = output(0, calib().unwrap().args(["inspect", "--all", &table]));
    fits(text.split_once('\n').unwrap().1);
    let (text, _) = output(0, calib().unwrap().args(["quantize", "--explain", "--model", demo]));
    assert!(text.contains("Conv") && text.contains("per output"), "{text}");
}

#[test]
fn a_missing_library_is_status_1_of_the_doctor_and_told_once() {
    if calib().is_none() {
        return;
    }
    let (text, _) = output(0, calib().unwrap().arg("doctor"));
    assert!(text.contains("ok       ONNX Runtime: "), "{text}");
    let (text, _) = output(1, calib().unwrap().args(["doctor", "--ort-library", "/nowhere/libonnxruntime.so"]));
    assert!(text.contains("missing  ONNX Runtime: ") && text.contains("looked at /nowhere"), "{text}");
    let runtime =
        text.lines().filter(|line| line.contains("pip install onnxruntime") || line.contains("`onnxruntime`"));
    assert_eq!(runtime.count(), 1, "{text}");
    let (text, _) =
        output(1, calib().unwrap().args(["doctor", "--json", "--ort-library", "/nowhere/libonnxruntime.so"]));
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(found["onnxruntime"]["loaded"].is_null() && found["onnxruntime"]["error"].is_string(), "{found}");
}

#[test]
fn the_preset_that_wins_is_named_with_what_each_gave() {
    let Some(mut command) = calib() else { return };
    let file = |name: &str| demo(name).display().to_string();
    command.args([
        "compare",
        "--ref",
        "ort",
        "--samples",
        "20",
        "--target",
        &file("demo.onnx"),
        "--model",
        &file("demo.onnx"),
    ]);
    let (_, said) = output(0, command.args(["--data", &file("images"), "--labels", &file("labels.csv")]));
    let (_, told) = said.split_once("preset `").unwrap();
    let (winner, told) = told.split_once("`, the best one on 32 labelled samples (right answers: ").unwrap();
    let (list, _) = told.split_once(')').unwrap();
    let right =
        |entry: &str| entry.rsplit_once(' ').map(|(name, right)| (name.to_owned(), right.parse::<u32>().unwrap()));
    let tried: Vec<(String, u32)> = list.split(", ").filter_map(right).collect();
    let most = tried.iter().map(|(_, right)| *right).max().unwrap();
    assert!(tried.len() > 5 && most > 16, "{list}");
    assert_eq!(tried.iter().find(|(_, right)| *right == most).unwrap().0, winner, "the first of the best: {list}");
}

#[test]
fn caches_of_every_form_are_described() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("some.cache");
    for text in
        ["TRT-8401-X\na: 3f800000\n", "a: 3f800000\n", "a 127\n", "\u{feff}a: 3f800000\n", "TRT-8401-X\ra: 3f800000\r"]
    {
        fs::write(&cache, text).unwrap();
        let (out, _) = output(0, calib().unwrap().arg("inspect").arg(&cache));
        assert!(out.contains("127.000000  a"), "{text:?}: {out}");
    }
}

#[test]
fn copies_of_what_calibrates_are_not_evaluated() {
    let Some(mut run) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    fs::create_dir(&data).unwrap();
    let mut pictures: Vec<_> = fs::read_dir(demo("images")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    pictures.sort();
    for name in &pictures[..30] {
        for copy in [name.clone(), format!("copy of {}", name.display()).into()] {
            fs::copy(demo("images").join(name), data.join(copy)).unwrap();
        }
    }
    run.args([
        "run",
        "--effort",
        "off",
        "--bench-seconds",
        "0",
        "--calib-samples",
        "8",
        "--eval-samples",
        "20",
        "--data",
    ]);
    let (_, said) = output(0, run.arg(&data).arg("--out").arg(&out).args(demo_flags()));
    assert!(said.contains("copies of samples that calibrate are not evaluated: "), "{said}");
    let report = json(&out.join("report.json"));
    let contents = |part: &str| -> Vec<Vec<u8>> {
        let names = report["dataset"][part].as_array().unwrap().iter();
        names.map(|name| fs::read(data.join(name.as_str().unwrap())).unwrap()).collect()
    };
    let (calibration, evaluation) = (contents("calibration"), contents("evaluation"));
    assert_eq!((calibration.len(), evaluation.len()), (8, 20));
    assert!(evaluation.iter().all(|picture| !calibration.contains(picture)));
}
