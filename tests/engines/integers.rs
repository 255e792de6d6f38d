//! Integers that engines give: a fault in them is named, wherever it is, and nothing agrees that was not compared. Inputs in 16 bits
//! that NumPy has no name for.

use std::path::Path;

use serde_json::Value;
use trtcalib::{
    npz::write_npz,
    tensor::{Tensor, TensorMap, Values},
};

use super::{calib_command, ends, error_of, json, models, succeeds, text};

/// Writes `x` with these extents and values.
fn save_data(path: &Path, shape: &[usize], values: Values) {
    write_npz(path, &TensorMap::from([("x".to_owned(), Tensor::new(shape.to_vec(), values).unwrap())])).unwrap();
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 53 % 97) as f32 - 48.0) / 4.0).collect()
}

#[test]
fn a_fault_in_integers_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    models::save_integers(folder.path());
    save_data(&folder.path().join("pictures.npz"), &[6, 3, 8, 8], Values::F32(numbers(6 * 192)));
    save_data(&folder.path().join("tokens.npz"), &[6, 7], Values::I64((0..42).map(|i| i * 13 % 50).collect()));
    save_data(&folder.path().join("floats.npz"), &[6, 7], Values::F32(numbers(42)));
    let cases: [(&str, &str, usize, &[&str]); 6] = [
        ("classes", "pictures.npz", 5, &["conv2", "argmax", "labels"]),
        ("tokens", "tokens.npz", 4, &["mean", "class"]),
        ("looked up", "floats.npz", 6, &["as ids", "abs", "clip", "gather"]),
        ("to int32", "floats.npz", 2, &["add", "z"]),
        ("to uint8", "floats.npz", 2, &["z"]),
        ("to int8", "floats.npz", 2, &["z"]),
    ];
    for (name, data, tensors, nodes) in cases {
        let (model, data, plan) = (at(&format!("{name}.onnx")), at(data), at(&format!("{name}.plan")));
        succeeds(&["build", "--model", &model, "--data", &data, "-o", &plan]);
        let out = at("out");
        let bisect = ["bisect", "--target", &plan, "--data", &data, "--find", "first", "--samples", "6", "--out", &out];
        for node in nodes {
            let told = ends(0, &format!("fault={node}"), &bisect);
            assert!(told.contains(&format!("first divergence: `{node}` (")), "{name}, {node}: {told}");
            let is_integer = !matches!(*node, "conv2" | "mean" | "gather" | "add");
            assert_eq!(told.contains("values are not equal"), is_integer, "{name}, {node}: {told}");
        }
        let clean = succeeds(&bisect);
        assert!(clean.contains(&format!("all {tensors} tensors are within it")), "{name}: {clean}");

        // Without a sidecar only the outputs are there, and the last node's is one of them.
        let (bare, last) = (at("bare.plan"), nodes.last().unwrap());
        std::fs::copy(&plan, &bare).unwrap();
        let bare = [&["bisect", "--target", &bare, "--model", &model], &bisect[3..]].concat();
        let found = json(&format!("fault={last}"), &bare);
        assert_eq!(
            found["first"]["culprit"]["node"],
            if *last == "gather" { "product" } else { last },
            "{name}: {found}"
        );
    }
}

/// A shape that the values decide on is another one, or the same with the same integers in it; where an engine cannot be run
/// for it, nothing agrees.
#[test]
fn nothing_agrees_that_was_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    models::save_kinds(folder.path());
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let (model, plan) = (at("found.onnx"), at("found.plan"));
    succeeds(&["build", "--model", &model, "-o", &plan]);
    let bisect = ["bisect", "--target", &plan, "--model", &model, "--random-data", "--find", "first", "--samples", "2"];
    let error = ends(2, "", &[&bisect[..], &["--out", &at("out")]].concat());
    assert!(error.contains("the shape of output `y` depends on values"), "{error}");
}

#[test]
fn inputs_in_bfloat16_are_given_as_float32_or_as_ml_dtypes_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    models::save_integers(folder.path());
    save_data(&folder.path().join("x.npz"), &[12, 7], Values::F32(numbers(84).iter().map(|x| x * 1.01).collect()));
    // What `numpy.save` writes for an array of `ml_dtypes.bfloat16`.
    let header = format!("{:<117}\n", "{'descr': '<V2', 'fortran_order': False, 'shape': (12, 7), }");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(numbers(84).iter().flat_map(|x| half_bits(*x * 1.01).to_le_bytes()));
    std::fs::write(folder.path().join("x.npy"), bytes).unwrap();
    let (model, plan) = (at("takes bf16.onnx"), at("bf16.plan"));
    succeeds(&["build", "--model", &model, "--data", &at("x.npz"), "-o", &plan]);
    let sqnr = |found: &Value| found["targets"][0]["result"]["outputs"][0]["sqnr_db"].as_f64().unwrap_or(f64::INFINITY);
    let mut saved = Vec::new();
    for (data, rounds) in [("x.npz", true), ("x.npy", false)] {
        let outputs = at(&format!("{data}.outputs.npz"));
        let compare = ["compare", "--ref", "ort", "--target", &plan, "--data", &at(data), "--batch", "4"];
        let compare = [&compare[..], &["--save-target", &outputs]].concat();
        let found = json("", &compare);
        assert!(sqnr(&found) > 80.0 && found["targets"][0]["result"]["samples"] == 12, "{data}: {found}");
        let told = error_of(&calib_command("", &compare).output().unwrap());
        let count = told.matches("`x` (float32) is rounded to the nearest bfloat16").count();
        assert_eq!(count, usize::from(rounds), "{data}: {told}");
        saved.push(trtcalib::npz::read_npz(Path::new(&outputs)).unwrap());
    }
    assert_eq!(saved[0], saved[1], "the same numbers");

    let run = ["run", "--model", &model, "--data", &at("x.npz"), "--out", &at("run"), "--tensorrt", "require"];
    let few = ["--precisions", "fp32", "--calib-samples", "4", "--bench-seconds", "0.02", "--effort", "fast"];
    succeeds(&[&run[..], &few].concat());
    let report: Value = serde_json::from_slice(&std::fs::read(at("run/report.json")).unwrap()).unwrap();
    let engines = report["precisions"].as_array().unwrap().iter().filter(|row| row["backend"] != "onnxruntime-cpu");
    assert!(engines.clone().count() == 1 && engines.clone().all(|row| row["error"].is_null()), "{report}");
}

#[test]
fn inputs_and_outputs_in_8_bit_floats_are_given_and_shown_as_float32() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    models::save_kinds(folder.path());
    let x = Tensor::from_f32(vec![12, 4], numbers(48).iter().map(|x| x * 1.01).collect()).unwrap();
    for (name, input) in [("from fp8", "b"), ("narrow", "x")] {
        write_npz(&folder.path().join("x.npz"), &TensorMap::from([(input.to_owned(), x.clone())])).unwrap();
        let (model, plan) = (at(&format!("{name}.onnx")), at("fp8.plan"));
        succeeds(&["build", "--model", &model, "--data", &at("x.npz"), "-o", &plan]);
        let compare = ["compare", "--ref", "ort", "--target", &plan, "--model", &model, "--samples", "8"];
        let (data, saved) = (at("x.npz"), at("y.npz"));
        for data in [&["--random-data"][..], &["--data", &data, "--batch", "3"]] {
            let compare = [&compare[..], data, &["--save-target", &saved]].concat();
            let found = json("", &compare);
            assert_eq!(found["targets"][0]["result"]["outputs"][0]["max_abs"], 0.0, "{name}: {found}");
            let told = error_of(&calib_command("", &compare).output().unwrap());
            assert_eq!(
                told.contains("`b` takes 8-bit floats (E4M3): what is given in float32"),
                input == "b",
                "{told}"
            );
        }
        let off = json("fault=y", &[&compare[..], &["--data", &data]].concat());
        assert!(off["targets"][0]["result"]["outputs"][0]["max_abs"].as_f64().unwrap() > 1.0, "{name}: {off}");
        // Three bits behind the first one.
        let saved = trtcalib::npz::read_npz(Path::new(&saved)).unwrap();
        let is_narrow = |value: &f32| value.to_bits().trailing_zeros() >= 20;
        assert!(saved["y"].to_f32().iter().all(is_narrow) && !x.to_f32().iter().all(is_narrow), "{name}");
        let timed = json("", &["bench", &plan, "--model", &model, "--seconds", "0.02"]);
        assert!(timed["measurements"][0]["times"]["batch"].is_u64(), "{timed}");
    }
}

/// The bits of the nearest `bfloat16`, ties to even.
fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
