//! Inputs and outputs of every kind that TensorRT has: types, shapes that depend on values, none at all, odd names.

use std::{collections::BTreeMap, path::Path};

use calib_test_support::python;
use trtcalib::{
    backend::tensorrt::{EngineOptions, OptimizationProfile, RunnerOptions, build_engine, require_library, run_engine},
    tensor::{Tensor, TensorMap, Values},
};

use super::inside;

const MAKE: &str = r#"
import sys
import numpy as np, onnx
from onnx import TensorProto as T, helper as h, numpy_helper as n
def save(name, nodes, inputs, outputs, weights=(), opset=19):
    info = lambda values: [h.make_tensor_value_info(*value) for value in values]
    graph = h.make_graph(nodes, "g", info(inputs), info(outputs), [n.from_array(w, k) for k, w in weights])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=9), f"{sys.argv[1]}/{name}.onnx")
x = ("x", T.FLOAT, ["n", 4])
save("reshaped", [h.make_node("Reshape", ["x", "to"], ["y"], "reshape")], [x, ("to", T.INT64, [2])], [("y", T.FLOAT, [None, None])])
save("found", [h.make_node("NonZero", ["x"], ["y"], "nonzero")], [x], [("y", T.INT64, [2, None])])
save("types", [h.make_node("Cast", ["x"], [f"as {name}"], name, to=kind) for name, kind in
     (("int64", T.INT64), ("int32", T.INT32), ("half", T.FLOAT16), ("bf16", T.BFLOAT16), ("bool", T.BOOL), ("uint8", T.UINT8))],
     [x], [(f"as {name}", kind, ["n", 4]) for name, kind in (("int64", T.INT64), ("int32", T.INT32), ("half", T.FLOAT16),
      ("bf16", T.BFLOAT16), ("bool", T.BOOL), ("uint8", T.UINT8))])
save("narrow", [h.make_node("Cast", ["x"], ["y"], "cast", to=T.FLOAT8E4M3FN)], [x], [("y", T.FLOAT8E4M3FN, ["n", 4])])
save("wide", [h.make_node("Cast", ["b"], ["y"], "cast", to=T.FLOAT)], [("b", T.BFLOAT16, ["n", 4])], [("y", T.FLOAT, ["n", 4])])
save("empty", [h.make_node("Slice", ["x", "from", "to", "axes"], ["none"], "slice"), h.make_node("Neg", ["x"], ["y"], "neg")],
     [x], [("none", T.FLOAT, ["n", 0]), ("y", T.FLOAT, ["n", 4])], [(k, np.array([v], np.int64)) for k, v in (("from", 0), ("to", 0), ("axes", 1))])
save("doubled", [h.make_node("Add", ["an input", "an input"], ["the sum"], "sum of both")], [("an input", T.FLOAT, ["n", 4])],
     [("the sum", T.FLOAT, ["n", 4])])
"#;

/// What an engine of the model gives for these inputs; its inputs' first extents go from 1 to 8.
fn run(folder: &Path, model: &str, calls: &[Vec<(&str, Tensor)>]) -> Result<Vec<TensorMap>, String> {
    let library = require_library(None).unwrap();
    let mut options = EngineOptions::default();
    for (name, tensor) in &calls[0] {
        let with = |batch| [&[batch], &tensor.shape()[1..]].concat();
        if *name != "to" {
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

fn folder() -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    python(MAKE, &[folder.path()])?;
    Some(folder)
}

#[test]
fn tensors_of_every_kind() {
    inside("shapes::kinds_of_tensors", "");
    inside("shapes::shapes_by_values", "shape-values");
    inside("shapes::formats_that_are_packed", "packed=x");
}

#[test]
#[ignore = "run by another test, with the stand-ins"]
fn kinds_of_tensors() {
    let Some(folder) = folder() else { return };
    let found = run(folder.path(), "types", &[vec![("x", floats(2))]]).unwrap();
    let values = |name: &str| found[0][name].values().clone();
    assert_eq!(values("as int64"), Values::I64((0..8).collect()));
    assert_eq!(values("as int32"), Values::I32((0..8).collect()));
    assert_eq!(values("as uint8"), Values::U8((0..8).collect()));
    for name in ["as half", "as bf16", "as bool"] {
        assert_eq!(found[0][name].shape(), [2, 4], "{name}");
    }
    let error = run(folder.path(), "narrow", &[vec![("x", floats(2))]]).unwrap_err();
    assert!(error.contains("output `y` has a type that has no counterpart here"), "{error}");

    let found = run(folder.path(), "wide", &[vec![("b", found[0]["as bf16"].clone())]]).unwrap();
    assert_eq!(found[0]["y"].values(), floats(2).values());
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
    let Some(folder) = folder() else { return };
    let calls: Vec<_> =
        [[4, 2], [2, 4], [8, 1], [4, 2]].iter().map(|to| vec![("x", floats(2)), ("to", shape(to))]).collect();
    let found = run(folder.path(), "reshaped", &calls).unwrap();
    let shapes: Vec<&[usize]> = found.iter().map(|outputs| outputs["y"].shape()).collect();
    assert_eq!(shapes, [[4, 2], [2, 4], [8, 1], [4, 2]]);
    assert!(found.iter().all(|outputs| outputs["y"].values() == floats(2).values()));
}

/// Values that lie in groups of channels would be taken for others.
#[test]
#[ignore = "run by another test, with the stand-ins"]
fn formats_that_are_packed() {
    let Some(folder) = folder() else { return };
    let error = run(folder.path(), "types", &[vec![("x", floats(2))]]).unwrap_err();
    assert!(error.contains("`x`") && error.contains("kCHW32"), "{error}");
}
