//! Batches that an engine takes, and models that are put together in less common ways.

use std::{fs, path::Path};

use calib_test_support::root;
use prost::Message;
use serde_json::Value;
use trtcalib::{
    npz::write_npz,
    onnx::proto::{ModelProto, NodeProto, StringStringEntryProto},
    tensor::{Tensor, TensorMap},
};

use super::{Engines, calib_command, ends, error_of, json, models, succeeds, text};

fn sqnr(found: &Value) -> f64 {
    found["targets"][0]["result"]["outputs"][0]["sqnr_db"].as_f64().unwrap_or(f64::INFINITY)
}

/// The last of nine samples is a batch of one, which is filled up and cut.
#[test]
fn a_profile_that_does_not_begin_at_one_fills_the_last_batch() {
    let engines = Engines::build();
    let (model, data) = (root().join("calib_data/demo.onnx"), root().join("calib_data/images"));
    for (profile, usual) in [("4x3x64x64:4x3x64x64:4x3x64x64", 4), ("2x3x64x64:4x3x64x64:6x3x64x64", 2)] {
        let (plan, bare) = (engines.path("some.plan"), engines.path("bare.plan"));
        let build = ["build", "--model", text(&model), "--data", text(&data), "-o", &plan];
        succeeds(&[&build[..], &["--profile", &format!("input={profile}")]].concat());
        fs::copy(&plan, &bare).unwrap();
        let compare = ["compare", "--ref", "ort", "--samples", "9", "--target"];
        let named = ["--model", text(&model), "--data", text(&data), "--batch", "4"];
        for found in
            [json("", &[&compare[..], &[&plan]].concat()), json("", &[&compare[..], &[&bare], &named].concat())]
        {
            assert_eq!(found["targets"][0]["result"]["samples"], 9, "{profile}: {found}");
            assert!(sqnr(&found) > 80.0, "{profile}: {found}");
        }
        let timed = json("", &["bench", &plan, "--seconds", "0.02"]);
        assert_eq!(timed["measurements"][0]["times"]["batch"], usual, "{timed}");
        let bare = json("", &["bench", &bare, "--model", text(&model), "--seconds", "0.02"]);
        assert_eq!(bare["measurements"][0]["times"]["batch"], usual, "{bare}");
        let error = ends(2, "", &["bench", &plan, "--seconds", "0.02", "--batch", "1"]);
        assert!(error.contains("batch"), "{error}");
    }
}

/// The same where only the samples tell what the profile is for.
#[test]
fn a_last_batch_is_filled_where_other_extents_are_open_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let mean = NodeProto::new("GlobalAveragePool", "mean", &["x"], &["y"]);
    let (x, y) = (vec![models::float("x", &[-1, 2, -2, -3])], vec![models::float("y", &[-1, 2, 1, 1])]);
    models::save(folder.path(), "any", vec![mean], x, y, vec![]);
    let numbers = (0..9 * 48).map(|i| ((i * 53 % 97) as f32 - 48.0) / 4.0).collect();
    let pictures = Tensor::from_f32(vec![9, 2, 4, 6], numbers).unwrap();
    write_npz(Path::new(&at("x.npz")), &TensorMap::from([("x".to_owned(), pictures)])).unwrap();
    let (model, plan, bare) = (at("any.onnx"), at("any.plan"), at("bare.plan"));
    let build = ["build", "--model", &model, "--data", &at("x.npz"), "-o", &plan];
    succeeds(&[&build[..], &["--profile", "x=3x2x4x4:4x2x4x6:4x2x8x8"]].concat());
    fs::copy(&plan, &bare).unwrap();
    let named = ["--model", &model, "--data", &at("x.npz")];
    for plan in [&plan, &bare] {
        let compare = ["compare", "--ref", "ort", "--target", plan, "--batch", "4", "--gate", "top1=1"];
        let found = json("", &[&compare[..], &named].concat());
        assert_eq!(found["targets"][0]["result"]["samples"], 9, "{found}");
        assert!(sqnr(&found) > 80.0, "{found}");
        let out = at("out");
        let bisect = ["bisect", "--target", plan, "--find", "first", "--samples", "5", "--batch", "4", "--out", &out];
        let told = succeeds(&[&bisect[..], &named].concat());
        assert!(told.contains("nothing probed is beyond the threshold"), "{told}");
    }
    let timed = json("", &[&["bench", &bare, "--seconds", "0.02"], &named[..]].concat());
    assert_eq!(timed["measurements"][0]["times"]["batch"], 3, "{timed}");
}

/// The model that an engine was built from is another one by now: it explains nothing of the engine.
#[test]
fn a_model_that_was_changed_since_does_not_explain_its_engine() {
    let engines = Engines::build();
    let (int8, fp32) = (engines.path("int8.plan"), engines.path("fp32.plan"));
    let compare = ["compare", "--ref", "ort", "--samples", "4", "--target"];
    let before = json("", &[&compare[..], &[&int8]].concat());
    assert_eq!(before["engine_errors"].as_array().map(Vec::len), Some(1), "{before}");
    // Another range of the same model, as if it was quantized again.
    let (float, data, table) =
        (root().join("calib_data/demo.onnx"), root().join("calib_data/images"), engines.path("t.json"));
    let again = ["calibrate", "--model", text(&float), "--data", text(&data), "--calib-samples", "2", "-o", &table];
    succeeds(&[&again[..], &["--method", "minmax"]].concat());
    succeeds(&["quantize", "--model", text(&float), "--table", &table, "-o", &engines.path("int8.onnx")]);
    let after = json("", &[&compare[..], &[&int8]].concat());
    assert_eq!(after["engine_errors"], Value::Null, "{after}");
    assert_eq!(after["targets"].as_array().map(Vec::len), Some(1), "{after}");
    let told = error_of(&calib_command("", &[&compare[..], &[&int8]].concat()).output().unwrap());
    assert!(told.contains("int8.onnx was changed since it was built from it"), "{told}");
    // So is the float model that an engine stands beside.
    let own = engines.path("own.onnx");
    fs::copy(&float, &own).unwrap();
    succeeds(&["build", "--model", &own, "--data", text(&data), "-o", &fp32]);
    fs::copy(engines.path("int8.onnx"), &own).unwrap();
    let told = error_of(&calib_command("", &[&compare[..], &[&fp32]].concat()).output().unwrap());
    assert!(told.contains("own.onnx was changed since it was built from it") && told.contains("two models"), "{told}");
}

#[test]
fn an_output_without_elements_is_told_and_not_judged() {
    let folder = tempfile::tempdir().unwrap();
    models::save_kinds(folder.path());
    let (model, plan) = (folder.path().join("empty.onnx"), folder.path().join("empty.plan"));
    succeeds(&["build", "--model", text(&model), "-o", text(&plan)]);
    let compare = ["compare", "--ref", "ort", "--target", text(&plan), "--model", text(&model), "--random-data"];
    let compare = [&compare[..], &["--samples", "3"]].concat();
    let told = succeeds(&[&compare[..], &["--gate", "top1=0.9"]].concat());
    assert!(told.contains("output `none` has no elements, and is not judged"), "{told}");
    assert!(told.contains("gate top1 ") && told.contains("y: top-1 agreement 1.0000"), "{told}");
    let refused = ends(1, "", &[&compare[..], &["--gate", "sqnr_db[none]=20"]].concat());
    assert!(refused.contains("FAILED (no output that it is for has an element)"), "{refused}");
}

#[test]
fn weights_in_another_file_are_part_of_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(root().join("calib_data/demo.onnx")).unwrap();
    let mut model = ModelProto::decode(&bytes[..]).unwrap();
    let mut weights = Vec::new();
    for weight in &mut model.graph.as_mut().unwrap().initializer {
        let Some(values) = weight.raw_data.take() else { continue };
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
        let (offset, length) = (weights.len().to_string(), values.len().to_string());
        weight.external_data =
            vec![entry("location", "weights.bin".to_owned()), entry("offset", offset), entry("length", length)];
        weight.data_location = Some(1);
        weights.extend(values);
    }
    assert!(weights.len() > 100_000);
    let (path, plan) = (folder.path().join("apart.onnx"), folder.path().join("apart.plan"));
    fs::write(&path, model.encode_to_vec()).unwrap();
    fs::write(folder.path().join("weights.bin"), weights).unwrap();
    let data = root().join("calib_data/images");
    let build = ["build", "--model", text(&path), "--data", text(&data), "-o", text(&plan)];
    succeeds(&build);
    // The engine holds them.
    let original = root().join("calib_data/demo.onnx");
    fs::remove_file(folder.path().join("weights.bin")).unwrap();
    let compare = ["compare", "--ref", "ort", "--target", text(&plan), "--model", text(&original), "--samples", "4"];
    assert!(sqnr(&json("", &compare)) > 80.0);
    let error = ends(2, "", &build);
    assert!(error.contains("weights.bin"), "{error}");
}

/// Beside a number, inputs do not come in batches: one sample is a call, whatever the profile would hold.
#[test]
fn the_profile_tells_no_batch_where_an_input_has_none() {
    let folder = tempfile::tempdir().unwrap();
    models::save_kinds(folder.path());
    let (model, plan) = (folder.path().join("scaled.onnx"), folder.path().join("scaled.plan"));
    ends(0, "", &["build", "--model", text(&model), "-o", text(&plan)]);
    let compare = ["compare", "--ref", "ort", "--target", text(&plan), "--random-data", "--samples", "4"];
    let found = json("", &compare);
    assert_eq!(found["targets"][0]["result"]["outputs"][0]["max_abs"], 0.0, "{found}");
}
