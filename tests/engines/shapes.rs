//! Inputs and outputs of every kind that TensorRT has: types, shapes that depend on values, none at all, odd names.

use std::{collections::BTreeMap, path::Path};

use trtcalib::{
    backend::tensorrt::{EngineOptions, OptimizationProfile, RunnerOptions, build_engine, require_library, run_engine},
    tensor::{Tensor, TensorMap, Values},
};

use super::{inside, models};

/// What an engine of the model gives for these inputs; its inputs' first extents go from 1 to 8.
fn run(folder: &Path, model: &str, calls: &[Vec<(&str, Tensor)>]) -> Result<Vec<TensorMap>, String> {
    let library = require_library(None).unwrap();
    let mut options = EngineOptions::default();
    for (name, tensor) in &calls[0] {
        let with = |batch| [&[batch], &tensor.shape()[1..]].concat();
        if !name.starts_with("to") {
            options.profile.shapes.insert((*name).to_owned(), [with(1), with(4), with(8)]);
        }
    }
    let _: &OptimizationProfile = &options.profile;
    let path = folder.join(format!("{model}.onnx"));
    let built = build_engine(&library, &path, &options, |_| true).map_err(|error| error.to_string())?;
    let plan = folder.join(format!("{model}.plan"));
    std::fs::write(&plan, built.bytes).unwrap();
    let mut runner = run_engine(&plan, &RunnerOptions { cuda_graph: calls.len() > 2, ..RunnerOptions::default() })
        .map_err(|error| error.to_string())?;
    let call = |inputs: &Vec<(&str, Tensor)>| {
        let inputs: BTreeMap<String, Tensor> = inputs.iter().map(|(name, t)| ((*name).to_owned(), t.clone())).collect();
        runner.infer(&inputs).map_err(|error| error.to_string())
    };
    calls.iter().map(call).collect()
}

fn floats(rows: usize) -> Tensor {
    Tensor::new(vec![rows, 4], Values::F32((0..rows * 4).map(|i| i as f32).collect())).unwrap()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    models::save_kinds(folder.path());
    folder
}

#[test]
fn tensors_of_every_kind() {
    inside("shapes::kinds_of_tensors", "");
    inside("shapes::shapes_by_values", "shape-values");
    inside("shapes::formats_that_are_packed", "packed=x");
    inside("shapes::formats_that_are_packed", "packed=as half");
}

#[test]
#[ignore = "run by another test, with the stand-ins"]
fn kinds_of_tensors() {
    let folder = folder();
    let found = run(folder.path(), "types", &[vec![("x", floats(2))]]).unwrap();
    let values = |name: &str| found[0][name].values().clone();
    assert_eq!(values("as int64"), Values::I64((0..8).collect()));
    assert_eq!(values("as int32"), Values::I32((0..8).collect()));
    assert_eq!(values("as uint8"), Values::U8((0..8).collect()));
    for name in ["as half", "as bf16", "as bool"] {
        assert_eq!(found[0][name].shape(), [2, 4], "{name}");
    }
    // 8-bit floats are given and shown in `float32`: to the nearest of three bits, ties to even, 448 at most.
    let odd = [1.06, -17.0, 19.0, 0.001, 450.0, -1e6, 3.0, 0.0];
    let near = [1.0, -16.0, 20.0, 0.001_953_125, 448.0, -448.0, 3.0, 0.0];
    let eight = |values: [f32; 8]| Tensor::from_f32(vec![2, 4], values.to_vec()).unwrap();
    for (model, input) in [("narrow", "x"), ("from fp8", "b")] {
        let found = run(folder.path(), model, &[vec![(input, eight(odd))], vec![(input, eight(near))]]).unwrap();
        assert_eq!([&found[0]["y"], &found[1]["y"]], [&eight(near); 2], "{model}");
    }

    for (model, name) in [("from bf16", "as bf16"), ("from int64", "as int64")] {
        let found = run(folder.path(), model, &[vec![("b", found[0][name].clone())]]).unwrap();
        assert_eq!(found[0]["y"].values(), floats(2).values(), "{model}");
    }

    let found = run(folder.path(), "empty", &[vec![("x", floats(3))]]).unwrap();
    assert_eq!((found[0]["none"].shape(), found[0]["y"].shape()), (&[3, 0][..], &[3, 4][..]));

    // Shapes change from call to call, back again, and again with graphs.
    let rows = [1, 3, 8, 3, 1, 1];
    let calls: Vec<_> = rows.iter().map(|&rows| vec![("an input", floats(rows))]).collect();
    for (found, rows) in run(folder.path(), "doubled", &calls).unwrap().iter().zip(rows) {
        let Values::F32(values) = floats(rows).values().clone() else { panic!("floats") };
        assert_eq!(found["the sum"].values(), &Values::F32(values.iter().map(|value| value * 2.0).collect()));
    }
    let error = run(folder.path(), "doubled", &[vec![("an input", floats(9))]]).unwrap_err();
    assert!(error.contains("input `an input` cannot have the shape [9, 4]") && error.contains("--profile"), "{error}");
    let error = run(folder.path(), "found", &[vec![("x", floats(2))]]).unwrap_err();
    assert!(error.contains("the shape of output `y` depends on values"), "{error}");
    let error = run(folder.path(), "reshaped", &[vec![("x", floats(2)), ("to", shape(&[4, 2]))]]).unwrap_err();
    assert!(error.contains("shape input to"), "{error}");
}

fn shape(extents: &[i64]) -> Tensor {
    Tensor::new(vec![extents.len()], Values::I64(extents.to_vec())).unwrap()
}

/// A shape that an input holds is read in host memory, before the outputs' shapes are asked for, and again when it changes
/// while no input's own shape does.
#[test]
#[ignore = "run by another test, with the stand-ins"]
fn shapes_by_values() {
    let folder = folder();
    let calls: Vec<_> =
        [[4, 2], [2, 4], [8, 1], [4, 2]].iter().map(|to| vec![("x", floats(2)), ("to", shape(to))]).collect();
    let found = run(folder.path(), "reshaped", &calls).unwrap();
    let shapes: Vec<&[usize]> = found.iter().map(|outputs| outputs["y"].shape()).collect();
    assert_eq!(shapes, [[4, 2], [2, 4], [8, 1], [4, 2]]);
    assert!(found.iter().all(|outputs| outputs["y"].values() == floats(2).values()));

    let rows = |to: [i64; 2]| vec![("x", floats(2)), ("to rows", shape(&to[..1])), ("to columns", shape(&to[1..]))];
    let found = run(folder.path(), "joined", &[rows([4, 2]), rows([1, 8])]).unwrap();
    assert_eq!([found[0]["y"].shape(), found[1]["y"].shape()], [[4, 2], [1, 8]]);
    for (model, shapes) in [("sliced", [[1, 4], [2, 4]]), ("best", [[2, 1], [2, 2]])] {
        let calls = [1, 2].map(|to| vec![("x", floats(2)), ("to", shape(&[to]))]);
        let found = run(folder.path(), model, &calls).unwrap();
        assert_eq!([found[0]["y"].shape(), found[1]["y"].shape()], shapes, "{model}");
    }
    let calls = [3, 5].map(|to| vec![("to", Tensor::new(vec![], Values::I64(vec![to])).unwrap())]);
    let found = run(folder.path(), "range", &calls).unwrap();
    assert_eq!(
        [found[0]["y"].values(), found[1]["y"].values()],
        [3, 5].map(|to| Values::I64((0..to).collect())).each_ref()
    );
}

/// Values that lie in groups of channels would be taken for others.
#[test]
#[ignore = "run by another test, with the stand-ins"]
fn formats_that_are_packed() {
    let folder = folder();
    let error = run(folder.path(), "types", &[vec![("x", floats(2))]]).unwrap_err();
    let packed = std::env::var("STAND_IN").unwrap().replace("packed=", "");
    assert!(error.contains(&format!("`{packed}`")) && error.contains("kCHW32"), "{error}");
}
