//! Inputs and outputs of every kind that TensorRT has: types, shapes that depend on values, none at all, odd names.

use std::{collections::BTreeMap, path::Path};

use trtcalib::{
    backend::tensorrt::{EngineOptions, EngineSidecar, RunnerOptions, build_engine, require_library, run_engine},
    npz::write_npz,
    onnx::proto::NodeProto,
    tensor::{ElementType, Tensor, TensorMap, Values},
};

use super::{ends, inside, json, models, succeeds, text};

/// What an engine of the model gives for these inputs; its inputs' first extents go from 1 to 8.
fn run(folder: &Path, model: &str, calls: &[Vec<(&str, Tensor)>]) -> Result<Vec<TensorMap>, String> {
    let library = require_library(None).unwrap();
    let mut options = EngineOptions::default();
    for (name, tensor) in &calls[0] {
        let with = |batch| [&[batch], &tensor.shape()[1..]].concat();
        if name.starts_with("to") {
            let likely = tensor.to_integers().unwrap();
            let each = |value| vec![value; likely.len()];
            options.profile.values.insert((*name).to_owned(), [each(1), likely.clone(), each(8)]);
        } else {
            options.profile.shapes.insert((*name).to_owned(), [with(1), with(tensor.shape()[0].min(8)), with(8)]);
        }
    }
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
    inside("shapes::shapes_by_values", "");
    inside("shapes::formats_that_are_packed", "packed=x");
    inside("shapes::formats_that_are_packed", "packed=as half");
    inside("shapes::types_that_are_narrow", "four-bits=x");
    inside("shapes::types_that_are_narrow", "four-bits=as half");
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

/// An input whose values are a shape: `build` takes them in the profile and says what is wrong with it, and `bench` without data
/// takes them from the engine, with a sidecar or without.
#[test]
fn values_of_shape_inputs_in_the_profile() {
    let folder = folder();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let (model, plan, bare) = (at("reshaped.onnx"), at("reshaped.plan"), at("bare.plan"));
    let build = |profile: &[&str]| [&["build", "--model", &model, "-o", &plan], profile].concat().join("\n");
    let refused = |profile: &[&str]| ends(2, "", &build(profile).split('\n').collect::<Vec<_>>());
    let error = refused(&[]);
    assert!(error.contains("the values of input `to` decide shapes") && error.contains("--profile to=MIN"), "{error}");
    let error = refused(&["--profile", "to=2:4:8"]);
    assert!(error.contains("of its values: 2 in each of MIN:OPT:MAX, and not 1 as in 2"), "{error}");
    let error = refused(&["--profile", "to=4x2:2x2:8x2"]);
    assert!(error.contains("`to=4x2:2x2:8x2` is not in the order"), "{error}");
    let error = refused(&["--profile", "to=4x2:4xtwo:8x2"]);
    assert!(error.contains("`to=4x2:4xtwo:8x2` does not read like"), "{error}");
    let error = refused(&["--profile", "to=1x1:2x2:8x8"]);
    assert!(error.contains("kOPT values for profile 0 violate shape constraints"), "{error}");
    let error = refused(&["--profile", "x=-1x4:1x4:8x4", "--profile", "to=1x1:4x2:8x8"]);
    assert!(error.contains("`x` cannot have extents below 0"), "{error}");
    succeeds(&build(&["--profile", "x=1x4:2x4:8x4", "--profile", "to=1x2:2x4:8x4"]).split('\n').collect::<Vec<_>>());
    let told = succeeds(&["inspect", &plan]);
    assert!(told.contains("values of to: [1, 2] [2, 4] [8, 4]"), "{told}");

    std::fs::copy(&plan, &bare).unwrap();
    for plan in [&plan, &bare] {
        let plan = format!("trt:{plan}");
        let bench = ["bench", &plan, "ort", "--model", &model, "--seconds", "0.02"];
        for bench in [&bench[..], &[&bench[..], &["--shape", "x=2x4"]].concat()] {
            let found = json("", bench);
            assert_eq!(found["measurements"].as_array().map(Vec::len), Some(2), "{found}");
        }
    }
    let data = at("data");
    std::fs::create_dir(&data).unwrap();
    for (to, sentence) in [
        ([1, 8], "input `to` cannot hold 1x8: the engine's profile goes from 1x2 to 8x4"),
        ([3, 3], "no shape of output `y` follows from these inputs"),
    ] {
        let inputs = TensorMap::from([("x".to_owned(), floats(2)), ("to".to_owned(), shape(&to))]);
        write_npz(&Path::new(&data).join("0.npz"), &inputs).unwrap();
        let error = ends(2, "", &["bench", &plan, "--data", &data, "--seconds", "0.02"]);
        assert!(error.contains(sentence), "{error}");
    }

    // An integer that decides no shape has no profile.
    let error = ends(2, "", &["build", "--model", &at("added.onnx"), "-o", &plan, "--profile", "k=1:2:3"]);
    assert!(error.contains("the values of input `k` decide no shape"), "{error}");
}

/// TensorRT tells such a shape to a C++ class only: each command names the output, and what works instead.
#[test]
fn an_output_whose_shape_depends_on_values_is_refused_with_the_way_that_works() {
    let folder = folder();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let (model, plan, out) = (at("found.onnx"), at("found.plan"), at("out"));
    succeeds(&["build", "--model", &model, "-o", &plan]);
    let commands: [&[&str]; 4] = [
        &["compare", "--ref", "ort", "--target", &plan, "--random-data", "--samples", "3", "--batch", "1"],
        &["bench", &plan, "--seconds", "0.02"],
        &["bench", &plan, "--seconds", "0.02", "--cuda-graph", "--layer-times"],
        &["bisect", "--target", &plan, "--random-data", "--out", &out],
    ];
    let names_both = |told: &str| {
        assert!(told.contains("the shape of output `y` depends on values"), "{told}");
        assert!(told.contains("remove it from the model's outputs") && told.contains("--target saved:"), "{told}");
    };
    for command in commands {
        names_both(&ends(2, "", command));
    }
    assert!(succeeds(&["inspect", &plan]).contains("nonzero"));

    // A run goes on without the engine, and its report says why.
    let (x, y) = (vec![models::float("x", &[1, 4])], vec![models::value("y", ElementType::I64.onnx(), &[2, -2])]);
    models::save(folder.path(), "one", vec![NodeProto::new("NonZero", "nonzero", &["x"], &["y"])], x, y, vec![]);
    let run = ["run", "--model", &at("one.onnx"), "--random-data", "--out", &out, "--precisions", "fp32"];
    succeeds(&[&run[..], &["--eval-samples", "4", "--bench-seconds", "0"]].concat());
    names_both(&std::fs::read_to_string(Path::new(&out).join("report.json")).unwrap());
}

/// A run takes the values for its engines' profiles from its samples.
#[test]
fn a_run_with_shape_inputs_builds_engines_for_its_samples() {
    let folder = folder();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let (data, out) = (at("samples"), at("out"));
    std::fs::create_dir(&data).unwrap();
    let samples = [(2, [4, 2]), (1, [2, 2]), (2, [2, 4]), (8, [8, 4]), (2, [8, 1])];
    for (index, (rows, to)) in samples.iter().enumerate() {
        let inputs = TensorMap::from([("x".to_owned(), floats(*rows)), ("to".to_owned(), shape(to))]);
        write_npz(&Path::new(&data).join(format!("{index}.npz")), &inputs).unwrap();
    }
    let run = ["run", "--model", &at("reshaped.onnx"), "--data", &data, "--out", &out, "--precisions", "fp32,fp16"];
    succeeds(&[&run[..], &["--tensorrt", "require"]].concat());
    let profile = EngineSidecar::load(&Path::new(&out).join("engines/fp32.plan")).unwrap().options.profile;
    assert_eq!(profile.shapes["x"], [[1, 4], [2, 4], [8, 4]]);
    let [min, likely, max] = &profile.values["to"];
    assert_eq!((min, max), (&vec![2, 1], &vec![8, 4]));
    assert_eq!(likely.iter().product::<i64>(), 8, "{likely:?}");
}

/// Values below a byte are refused before any call.
#[test]
#[ignore = "run by another test, with the stand-ins"]
fn types_that_are_narrow() {
    let folder = folder();
    let error = run(folder.path(), "types", &[vec![("x", floats(2))]]).unwrap_err();
    let narrow = std::env::var("STAND_IN").unwrap().replace("four-bits=", "");
    assert!(error.contains(&format!("takes or gives `{narrow}` in the type kINT4")), "{error}");
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
