//! Data whose shapes change from sample to sample: engines that hold all of them, and outputs that are saved of them.

use std::{fs, path::Path};

use calib_test_support::root;
use serde_json::Value;
use trtcalib::{
    npz::{read_npz, write_npz},
    onnx::proto::NodeProto,
    tensor::{Tensor, TensorMap},
};

use super::{Engines, ends, json, models, succeeds, text};

/// Twelve samples of three shapes, the second the most frequent, in a folder of one file each.
fn save_samples(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for index in 0..12_usize {
        let shape = [[1, 2, 16, 6], [1, 2, 8, 8], [1, 2, 8, 8], [1, 2, 4, 12]][index % 4];
        let value = |i: usize| (((i + 7 * index) * 53 % 97) as f32 - 48.0) / 16.0;
        let x = Tensor::from_f32(shape.to_vec(), (0..shape.iter().product()).map(value).collect()).unwrap();
        write_npz(&folder.join(format!("{index:02}.npz")), &TensorMap::from([("x".to_owned(), x)])).unwrap();
    }
}

/// Writes `name.onnx`, which takes pictures of any size; `nodes` make `y`, of the extents `y`, of what convolutions give.
fn save_model(folder: &Path, name: &str, nodes: Vec<NodeProto>, y: &[i64]) {
    let convs = vec![
        NodeProto::new("Conv", "conv1", &["x", "k1"], &["a"]),
        NodeProto::new("Relu", "relu", &["a"], &["b"]),
        NodeProto::new("Conv", "conv2", &["b", "k2"], &["c"]),
    ];
    let numbers = |count: usize| (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let weights = vec![
        models::weight("k1", &[8, 2, 1, 1], numbers(16)),
        models::weight("k2", &[4, 8, 1, 1], numbers(32)),
        models::weight("w", &[4, 5], numbers(20)),
    ];
    let (x, y) = (vec![models::float("x", &[-1, 2, -2, -3])], vec![models::float("y", y)]);
    models::save(folder, name, [convs, nodes].concat(), x, y, weights);
}

#[test]
fn a_run_builds_engines_for_all_shapes_of_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    save_samples(&folder.path().join("data"));
    let nodes = vec![
        NodeProto::new("GlobalAveragePool", "pool", &["c"], &["p"]),
        NodeProto::new("Flatten", "flat", &["p"], &["f"]),
        NodeProto::new("Gemm", "gemm", &["f", "w"], &["y"]),
    ];
    save_model(folder.path(), "any", nodes, &[-1, 5]);
    let run = ["run", "--model", &at("any.onnx"), "--data", &at("data"), "--out", &at("out"), "--tensorrt", "require"];
    let few = ["--calib-samples", "4", "--eval-samples", "8", "--bench-seconds", "0.02", "--precisions", "fp32,int8"];
    succeeds(&[&run[..], &few, &["--batch", "4"]].concat());
    let report: Value = serde_json::from_slice(&fs::read(folder.path().join("out/report.json")).unwrap()).unwrap();
    let profile = "x=1x2x4x6:4x2x8x8:4x2x16x12";
    let notes = report["notes"].to_string();
    assert!(notes.contains(&format!("engines are built for the shapes that the data have: {profile}")), "{notes}");
    for number_type in ["fp32", "int8"] {
        let is_engine = |row: &&Value| row["backend"].to_string().contains("stand-in");
        let rows = report["precisions"].as_array().unwrap().iter().filter(is_engine);
        let row = rows.clone().find(|row| row["precision"] == number_type).unwrap();
        assert_eq!(row["error"], Value::Null, "{row}");
        assert!(row["outputs"][0]["sqnr_db"].as_f64().unwrap_or(f64::INFINITY) > 15.0, "{row}");
        assert!(row["latency_ms"]["median"].as_f64().is_some_and(|ms| ms > 0.0), "{row}");
    }
    // The engine takes the same shapes on its own.
    let plan = at("out/engines/fp32.plan");
    let found = json("", &["compare", "--ref", "ort", "--target", &plan]);
    assert_eq!(found["targets"][0]["result"]["samples"], 12, "{found}");
}

/// Outputs are as large as the pictures: they are saved in blocks, and read back as what they were.
#[test]
fn outputs_whose_shapes_change_are_saved_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let data = at("data");
    save_samples(Path::new(&data));
    save_model(folder.path(), "map", vec![NodeProto::new("Neg", "neg", &["c"], &["y"])], &[-1, 4, -2, -3]);
    let model = at("map.onnx");
    let run = ["run", "--model", &model, "--data", &data, "--out", &at("out"), "--calib-samples", "4"];
    succeeds(&[&run[..], &["--bench-seconds", "0", "--precisions", "fp32,int8"]].concat());

    let (plan, saved, reference) = (at("out/engines/int8.plan"), at("int8.npz"), at("ort.npz"));
    let compare = ["compare", "--model", &model, "--data", &data, "--batch", "2", "--calibration-samples"];
    let with_engine = ["--ref", "ort", "--target", &plan, "--save-target", &saved, "--save-reference", &reference];
    let engine = json("", &[&compare[..], &with_engine].concat());
    let of = |found: &Value| found["targets"][0]["result"]["outputs"].clone();
    assert!(of(&engine)[0]["sqnr_db"].as_f64().unwrap() > 10.0, "{engine}");
    for batch in ["1", "2", "12"] {
        let again = ["compare", "--model", &model, "--data", &data, "--calibration-samples", "--batch", batch];
        let from_files = ["--ref", &format!("saved:{reference}"), "--target", &format!("saved:{saved}")];
        let found = json("", &[&again[..], &from_files].concat());
        assert_eq!(found["targets"][0]["result"]["samples"], 12, "{found}");
        assert_eq!(of(&found), of(&engine));
    }
    // In a report, as outputs from another machine.
    let outputs = ["--outputs", &format!("int8={saved}"), "--inputs", &data, "--machine", "another"];
    succeeds(&[&["report", &at("out")], &outputs[..]].concat());
    let report: Value = serde_json::from_slice(&fs::read(at("out/report.json")).unwrap()).unwrap();
    let is_int8 = |row: &&Value| row["precision"] == "int8" && row["measured_elsewhere"] != Value::Null;
    let row = report["precisions"].as_array().unwrap().iter().find(is_int8).unwrap();
    let found = &row["measured_elsewhere"][0]["outputs"];
    assert_eq!(found["samples"], 12, "{row}");
    let [all, alone] = [&found["together"][0], &of(&engine)[0]].map(|output| output["sqnr_db"].as_f64().unwrap());
    assert!((all - alone).abs() < 0.01, "{all} {alone}");
    let error = ends(2, "", &[&["report", &at("out")], &outputs[..3], &[&reference], &outputs[4..]].concat());
    assert!(error.contains("ort.npz"), "{error}");
}

/// A part of the outputs would pass for all of them.
#[test]
fn an_engine_that_fails_on_its_way_leaves_no_outputs() {
    let engines = Engines::build();
    let (plan, saved, reference) = (engines.path("fp32.plan"), engines.path("saved.npz"), engines.path("ort.npz"));
    let compare = ["compare", "--ref", "ort", "--target", &plan, "--samples", "17", "--save-target", &saved];
    let compare = [&compare[..], &["--save-reference", &reference]].concat();
    let fails = || ends(2, "enqueue-fails=2", &compare);
    let error = fails();
    assert!(error.contains(&format!("{saved} is not written: the target failed")), "{error}");
    assert!(!Path::new(&saved).exists());
    let rows = |path: &str| read_npz(Path::new(path)).unwrap()["logits"].shape()[0];
    assert_eq!(rows(&reference), 17);

    // What an earlier comparison saved stays.
    succeeds(&compare);
    let before = fs::read(&saved).unwrap();
    assert_eq!(rows(&saved), 17);
    fails();
    assert!(fs::read(&saved).unwrap() == before);
    // A reference that fails ends all of it.
    fs::remove_file(&saved).unwrap();
    let turned = ["compare", "--ref", &plan, "--target", "ort", "--samples", "17", "--save-target", &saved];
    ends(2, "enqueue-fails=2", &[&turned[..], &["--save-reference", &engines.path("no.npz")]].concat());
    assert!(!Path::new(&saved).exists() && !Path::new(&engines.path("no.npz")).exists());
}

/// A sample may have several rows where the first extent is open: calls then have as many for each sample.
#[test]
fn a_run_builds_engines_for_samples_of_several_rows() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    fs::create_dir(at("data")).unwrap();
    for (index, rows) in [1, 2, 2, 2, 3, 5, 8, 2].into_iter().enumerate() {
        let x = Tensor::from_f32(vec![rows, 4], (0..rows * 4).map(|i| i as f32).collect()).unwrap();
        write_npz(Path::new(&at(&format!("data/{index}.npz"))), &TensorMap::from([("x".to_owned(), x)])).unwrap();
    }
    let (x, y) = (vec![models::float("x", &[-1, 4])], vec![models::float("y", &[-1, 4])]);
    models::save(folder.path(), "rows", vec![NodeProto::new("Relu", "relu", &["x"], &["y"])], x, y, vec![]);
    let run = ["run", "--model", &at("rows.onnx"), "--data", &at("data"), "--out", &at("out"), "--precisions", "fp32"];
    let few = ["--output-kind", "y=generic", "--batch", "4", "--bench-seconds", "0", "--tensorrt", "require"];
    succeeds(&[&run[..], &few].concat());
    let report = fs::read_to_string(at("out/report.json")).unwrap();
    assert!(report.contains("engines are built for the shapes that the data have: x=1x4:8x4:32x4"), "{report}");
}

/// A batch that is only timed is larger than those that are compared.
#[test]
fn a_run_builds_engines_for_the_batches_that_it_times() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    fs::write(at("run.toml"), "bench_batch = [1, 16]").unwrap();
    let (model, data) = (root().join("calib_data/demo.onnx"), root().join("calib_data/images"));
    let run = ["run", "--config", &at("run.toml"), "--model", text(&model), "--data", text(&data), "--preset", "unit"];
    let few = ["--precisions", "fp32", "--batch", "4", "--eval-samples", "20", "--bench-seconds", "0.02"];
    succeeds(&[&run[..], &few, &["--tensorrt", "require", "--out", &at("out")]].concat());
    let sidecar: Value = serde_json::from_slice(&fs::read(at("out/engines/fp32.plan.json")).unwrap()).unwrap();
    let profile = serde_json::json!([[1, 3, 64, 64], [16, 3, 64, 64], [16, 3, 64, 64]]);
    assert_eq!(sidecar["options"]["profile"]["shapes"]["input"], profile, "{sidecar}");
}
