//! Engines that `calib` does not load: those of TensorRT 8.6 to 10, compared by what their own tools save.

use std::{collections::BTreeMap, fs, path::Path};

use base64::Engine as _;
use calib_test_support::root;
use serde_json::{Value, json};
use trtcalib::{
    npz::{read_npz, write_npz},
    onnx::proto::NodeProto,
    tensor::{ElementType, Tensor, TensorMap},
};

use super::{Engines, FLAVOUR, calib_command, ends, error_of, json, models, succeeds, text};

/// What `trtexec --exportOutput` writes: one batch, numbers of six digits as C++ prints them.
fn exported_by_trtexec(outputs: &TensorMap) -> String {
    let output = |(name, tensor): (&String, &Tensor)| {
        let extents: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
        let values: Vec<String> = tensor.to_f32().iter().map(|value| format!("{value:.5e}")).collect();
        let (extents, values) = (extents.join("x"), values.join(", "));
        format!("{{ \"name\" : \"{name}\"\n  , \"dimensions\" : \"{extents}\"\n  , \"values\" : [ {values} ]\n  }}")
    };
    format!("[\n  {}\n]\n", outputs.iter().map(output).collect::<Vec<_>>().join("\n, "))
}

/// An array in Polygraphy's JSON.
fn encoded(tensor: &Tensor) -> Value {
    let shape: String = tensor.shape().iter().map(|extent| format!("{extent}, ")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(tensor.to_f32().iter().flat_map(|value| value.to_le_bytes()));
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    json!({"values": {"array": text, "polygraphy_class": "ndarray"}, "polygraphy_class": "LazyArray"})
}

/// One iteration in what Polygraphy's `--save-outputs` writes.
fn iteration(outputs: &TensorMap) -> Value {
    let outputs: BTreeMap<&String, Value> = outputs.iter().map(|(name, tensor)| (name, encoded(tensor))).collect();
    json!({"outputs": outputs, "runtime": 0.1, "runner_name": "trt-runner", "polygraphy_class": "IterationResult"})
}

/// The whole file: one iteration for every `batch` samples.
fn saved_by_polygraphy(outputs: &TensorMap, batch: usize) -> Value {
    let samples = outputs.values().next().unwrap().shape()[0];
    let part = |first: usize| {
        let rows = |tensor: &Tensor| {
            let width: usize = tensor.shape()[1..].iter().product();
            let shape = [&[batch.min(samples - first)], &tensor.shape()[1..]].concat();
            let values = tensor.to_f32()[first * width..][..shape.iter().product()].to_vec();
            Tensor::from_f32(shape, values).unwrap()
        };
        iteration(&outputs.iter().map(|(name, tensor)| (name.clone(), rows(tensor))).collect())
    };
    let iterations: Vec<Value> = (0..samples).step_by(batch).map(part).collect();
    json!({"lst": [["trt-runner-N0-11/27/26", iterations]], "polygraphy_class": "RunResults"})
}

/// A folder of the first `count` pictures, in the order of their names.
fn pictures(folder: &Path, count: usize) -> String {
    let to = folder.join(format!("pictures {count}"));
    fs::create_dir(&to).unwrap();
    let mut files: Vec<_> =
        fs::read_dir(root().join("calib_data/images")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "png"));
    files.sort();
    for file in &files[..count] {
        fs::copy(file, to.join(file.file_name().unwrap())).unwrap();
    }
    text(&to).to_owned()
}

/// What the float model gives for twelve pictures, as trtexec would write it, beside whatever narrows them down: only the
/// same pictures' rows are as good as equal.
#[test]
fn rows_belong_to_the_samples_of_the_data_whichever_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let model = root().join("calib_data/demo.onnx");
    let (model, data, all, rows) = (text(&model), pictures(folder.path(), 12), at("all.npz"), at("rows.json"));
    let compare = ["compare", "--ref", "ort", "--model", model, "--preset", "clip", "--data", &data];
    succeeds(&[&compare[..], &["--target", model, "--save-target", &all]].concat());
    let outputs = read_npz(Path::new(&all)).unwrap();
    fs::write(&rows, exported_by_trtexec(&outputs)).unwrap();
    // The same arrays without the names of the samples.
    let nameless = at("nameless.npz");
    write_npz(Path::new(&nameless), &outputs).unwrap();
    let saved = format!("saved:{rows}");
    let as_good_as_equal = |found: &Value, samples: usize, how: &str| {
        let result = &found["targets"][0]["result"];
        assert_eq!(result["samples"], samples, "{how}: {found}");
        assert!(result["outputs"][0]["sqnr_db"].as_f64().unwrap_or(f64::INFINITY) > 80.0, "{how}: {found}");
    };
    for file in [&saved, &format!("saved:{nameless}")] {
        for (samples, count) in [("0", 12), ("11", 11), ("5", 5)] {
            as_good_as_equal(
                &json("", &[&compare[..], &["--target", file, "--samples", samples]].concat()),
                count,
                file,
            );
        }
    }
    let swapped =
        ["compare", "--ref", &saved, "--target", model, "--model", model, "--preset", "clip", "--data", &data];
    as_good_as_equal(&json("", &[&swapped[..], &["--samples", "5"]].concat()), 5, "as the reference");

    let parts = [at("1.json"), at("2.json")];
    for (part, shard) in parts.iter().zip(["1/2", "2/2"]) {
        succeeds(&[&compare[..], &["--target", &saved, "--samples", "9", "--shard", shard, "--part", part]].concat());
    }
    as_good_as_equal(&json("", &["merge", &parts[0], &parts[1]]), 9, "shards");

    let damaged = at("damaged");
    fs::rename(&data, &damaged).unwrap();
    let third = Path::new(&damaged).join("0003.png");
    let whole = fs::read(&third).unwrap();
    fs::write(&third, &whole[..100]).unwrap();
    let with_damage = [&compare[..7], &["--data", &damaged, "--max-bad", "50%", "--target", &saved]].concat();
    as_good_as_equal(&json("", &with_damage), 11, "a damaged picture");
    fs::write(&third, whole).unwrap();
    fs::rename(&damaged, &data).unwrap();

    let (table, int8) = (at("table.json"), at("int8.onnx"));
    let calibrate = ["calibrate", "--model", model, "--data", &data, "--preset", "clip", "--calib-samples", "4"];
    succeeds(&[&calibrate[..], &["-o", &table]].concat());
    succeeds(&["quantize", "--model", model, "--table", &table, "-o", &int8]);
    as_good_as_equal(
        &json("", &[&compare[..], &["--target", &saved, "--target", &int8]].concat()),
        8,
        "calibration samples left out",
    );

    let bisect = ["bisect", "--model", model, "--data", &data, "--preset", "clip", "--find", "tensors"];
    let bisected = json("", &[&bisect[..], &["--target", &saved, "--out", &at("bisected")]].concat());
    let tensor = &bisected["tensors"]["tensors"][0];
    assert_eq!(tensor["tensor"], "logits", "{bisected}");
    assert!(tensor["sqnr_db"].as_f64().unwrap_or(f64::INFINITY) > 80.0, "{bisected}");

    // One batch of a larger folder: its first samples.
    let more = pictures(folder.path(), 20);
    let of_more = [&compare[..7], &["--data", &more, "--target", &saved]].concat();
    let told = error_of(&calib_command("", &of_more).output().unwrap());
    assert!(told.contains("12 rows are taken for the first 12 of the 20 samples of the data"), "{told}");
    for samples in ["0", "12"] {
        as_good_as_equal(&json("", &[&of_more[..], &["--samples", samples]].concat()), 12, "one batch");
    }
    as_good_as_equal(&json("", &[&of_more[..], &["--samples", "7"]].concat()), 7, "samples of one batch");
    let bisect = [&bisect[..3], &["--data", &more], &bisect[5..]].concat();
    succeeds(&[&bisect[..], &["--target", &saved, "--out", &at("bisected")]].concat());
    // What holds more than the data is of other data.
    let fewer = pictures(folder.path(), 11);
    let error = ends(2, "", &[&compare[..7], &["--data", &fewer, "--target", &saved]].concat());
    assert!(error.contains("rows.json: it names no samples") && error.contains("has 12 rows"), "{error}");
}

#[test]
fn outputs_that_other_programs_saved_are_compared_like_the_engine_itself() {
    let engines = Engines::build();
    let (model, data) = (root().join("calib_data/demo.onnx"), pictures(engines.folder.path(), 20));
    let (int8, npz) = (engines.path("int8.plan"), engines.path("saved.npz"));
    let compare = ["compare", "--ref", "ort", "--model", text(&model), "--data", &data];
    let bare = engines.path("bare.plan");
    fs::copy(&int8, &bare).unwrap();
    let engine = json("", &[&compare[..], &["--target", &bare, "--save-target", &npz]].concat());
    let outputs = read_npz(Path::new(&npz)).unwrap();
    assert_eq!(outputs["logits"].shape()[0], 20);

    let polygraphy = engines.path("polygraphy.json");
    fs::write(&polygraphy, saved_by_polygraphy(&outputs, 8).to_string()).unwrap();
    let of = |found: &Value| found["targets"][0]["result"].clone();
    let found = json("", &[&compare[..], &["--target", &format!("saved:{polygraphy}")]].concat());
    assert_eq!(of(&found)["outputs"], of(&engine)["outputs"]);

    let trtexec = engines.path("trtexec.json");
    fs::write(&trtexec, exported_by_trtexec(&outputs)).unwrap();
    let found = json("", &[&compare[..], &["--target", &format!("saved:{trtexec}"), "--gate", "top1=0.5"]].concat());
    let sqnr = |found: &Value| of(found)["outputs"][0]["sqnr_db"].as_f64().unwrap();
    assert!((sqnr(&found) - sqnr(&engine)).abs() < 0.01, "{found}");
    assert_eq!(of(&found)["tasks"][0]["top_k"], of(&engine)["tasks"][0]["top_k"]);
    let failed = ends(1, "", &[&compare[..], &["--target", &trtexec, "--gate", "sqnr_db=60"]].concat());
    assert!(failed.contains("FAILED"), "{failed}");

    // What does not fit is an error that says so.
    fs::write(&trtexec, "[1, 2]").unwrap();
    let error = ends(2, "", &[&compare[..], &["--target", &trtexec]].concat());
    assert!(error.contains("neither trtexec's --exportOutput nor Polygraphy's --save-outputs"), "{error}");
}

/// Files that Polygraphy itself wrote, of a batch of two and one of one (`tests/fixtures/polygraphy`), beside an engine.
#[test]
fn what_polygraphy_wrote_is_compared_with_its_own_inputs_and_with_the_pictures() {
    let engines = Engines::build();
    let model = root().join("calib_data/demo.onnx");
    let written = |name: &str| text(&root().join("tests/fixtures/polygraphy").join(name)).to_owned();
    let (inputs, outputs) = (written("inputs.json"), format!("saved:{}", written("outputs.json")));
    let pictures = engines.path("pictures");
    fs::create_dir(&pictures).unwrap();
    for name in ["0000.png", "0001.png", "0002.png"] {
        fs::copy(root().join("calib_data/images").join(name), format!("{pictures}/{name}")).unwrap();
    }
    let preprocess = ["--scale", "0.00392156862745098", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"];
    for data in [&["--data", inputs.as_str()][..], &[&["--data", pictures.as_str()], &preprocess[..]].concat()] {
        let compare = ["compare", "--ref", "ort", "--model", text(&model)];
        let targets =
            ["--target", &outputs, "--target", &engines.path("fp32.plan"), "--target", &engines.path("int8.plan")];
        let found = json("", &[&compare[..], data, &targets].concat());
        let sqnr = |target: usize| {
            let output = &found["targets"][target]["result"]["outputs"][0];
            output["sqnr_db"].as_f64().unwrap_or(f64::INFINITY)
        };
        assert_eq!(found["targets"][0]["result"]["samples"], 3, "{found}");
        assert!(sqnr(0) > 80.0 && sqnr(1) > 80.0 && sqnr(2) < 60.0, "{} {} {}", sqnr(0), sqnr(1), sqnr(2));
        let found = json("", &[&compare[..], data, &["--target", &outputs, "--samples", "2"]].concat());
        let two = &found["targets"][0]["result"];
        assert_eq!(two["samples"], 2, "{found}");
        assert!(two["outputs"][0]["sqnr_db"].as_f64().unwrap_or(f64::INFINITY) > 80.0, "{found}");
    }
    let nothing = engines.path("nothing.json");
    fs::write(&nothing, "[]").unwrap();
    let compare = ["compare", "--ref", "ort", "--model", text(&model), "--data", &inputs];
    let error = ends(2, "", &[&compare[..], &["--target", &format!("saved:{nothing}")]].concat());
    assert!(error.contains("nothing.json: it holds no outputs"), "{error}");
    let other =
        ends(2, "", &["compare", "--ref", "ort", "--model", text(&model), "--data", &inputs, "--target", &inputs]);
    assert!(other.contains("inputs.json"), "{other}");
}

/// Polygraphy's inputs of a model that fixes its batch, beside an engine that is wrong in every row but the first.
#[test]
fn every_row_of_a_fixed_batch_is_a_sample() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let save = |name: &str, errors: [f32; 4]| {
        let add = NodeProto::new("Add", "add", &["x", "w"], &["y"]);
        let weights = vec![models::weight("w", &[4, 1], errors.to_vec())];
        let (x, y) = (vec![models::float("x", &[4, 8])], vec![models::float("y", &[4, 8])]);
        models::save(folder.path(), name, vec![add], x, y, weights);
    };
    save("right", [0.0; 4]);
    save("wrong", [0.0, 50.0, 50.0, 50.0]);
    let (model, plan) = (at("right.onnx"), at("wrong.plan"));
    let numbers = (0..96).map(|i| ((i * 53 % 97) as f32 - 48.0) / 4.0).collect();
    let rows = Tensor::from_f32(vec![12, 8], numbers).unwrap();
    write_npz(Path::new(&at("x.npz")), &TensorMap::from([("x".to_owned(), rows.clone())])).unwrap();
    // Three calls of four rows, and what they give, which is what they are.
    let calls = saved_by_polygraphy(&TensorMap::from([("y".to_owned(), rows)]), 4);
    fs::write(at("y.json"), calls.to_string()).unwrap();
    let feed = |call: &Value| json!({"x": call["outputs"]["y"]["values"]});
    let feeds: Vec<Value> = calls["lst"][0][1].as_array().unwrap().iter().map(feed).collect();
    fs::write(at("x.json"), Value::from(feeds).to_string()).unwrap();
    succeeds(&["build", "--model", &at("wrong.onnx"), "--reference", &model, "--data", &at("x.json"), "-o", &plan]);
    let of = |data: &str, samples: &str| {
        let compare = ["compare", "--ref", "ort", "--model", &model, "--data", &at(data), "--samples", samples];
        let found = json("", &[&compare[..], &["--target", &plan, "--target", &at("y.json")]].concat());
        [0, 1].map(|target| found["targets"][target]["result"].clone())
    };
    for samples in ["0", "7"] {
        let [engine, saved] = of("x.json", samples);
        assert_eq!(engine["samples"], if samples == "0" { 12 } else { 7 });
        assert!(engine["outputs"][0]["max_abs"].as_f64().unwrap() > 49.0, "{engine}");
        assert_eq!(saved["outputs"][0]["max_abs"], 0.0, "{saved}");
        assert_eq!([engine, saved], of("x.npz", samples));
    }
}

/// What Polygraphy saves of inputs whose shapes change: each iteration has its own.
#[test]
fn outputs_whose_shapes_change_from_one_iteration_to_the_next_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let relu = NodeProto::new("Relu", "relu", &["x"], &["y"]);
    let (x, y) = (vec![models::float("x", &[-1, 2, -2, -3])], vec![models::float("y", &[-1, 2, -2, -3])]);
    models::save(folder.path(), "any", vec![relu], x, y, vec![]);
    let shapes = [[2, 2, 4, 6], [1, 2, 4, 6], [3, 2, 8, 5], [1, 2, 4, 6]];
    let call = |shape: [usize; 4], of: fn(f32) -> f32| {
        let values = (0..shape.iter().product()).map(|i| of(((i * 53 % 97) as f32 - 48.0) / 4.0)).collect();
        let outputs = TensorMap::from([("y".to_owned(), Tensor::from_f32(shape.to_vec(), values).unwrap())]);
        saved_by_polygraphy(&outputs, shape[0])["lst"][0][1][0].take()
    };
    let feeds = shapes.map(|shape| json!({"x": call(shape, |x| x)["outputs"]["y"]["values"]}));
    fs::write(at("x.json"), Value::from(feeds.to_vec()).to_string()).unwrap();
    let save = |name: &str, calls: &[Value]| fs::write(at(name), json!({"lst": [["trt", calls]]}).to_string()).unwrap();
    let mut calls = shapes.map(|shape| call(shape, |x| x.max(0.0)));
    save("right.json", &calls);
    calls[2] = call(shapes[2], |x| x.max(0.0) + f32::from(x > 11.9));
    save("wrong.json", &calls);
    calls[1]["outputs"] = json!({"z": calls[1]["outputs"]["y"]});
    save("other.json", &calls);
    let compare = ["compare", "--ref", "ort", "--model", &at("any.onnx"), "--data", &at("x.json")];
    for batch in ["1", "4"] {
        let targets = ["--target", &at("right.json"), "--target", &at("wrong.json"), "--batch", batch];
        let found = json("", &[&compare[..], &targets].concat());
        for (target, max_abs) in [(0, 0.0), (1, 1.0)] {
            let result = &found["targets"][target]["result"];
            assert_eq!(result["samples"], 7, "{result}");
            assert_eq!(result["outputs"][0]["max_abs"], max_abs, "{result}");
        }
    }
    let error = ends(2, "", &[&compare[..], &["--target", &at("other.json")]].concat());
    assert!(error.contains("iteration 1") && error.contains("other names"), "{error}");
}

/// What is found in a sample has any number of rows: each call is of one sample, whether other outputs show that or not.
#[test]
fn outputs_with_as_many_rows_as_were_found_are_compared_call_by_call() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let relu = || NodeProto::new("Relu", "relu", &["x"], &["r"]);
    let found = || NodeProto::new("NonZero", "found", &["r"], &["f"]);
    let by_rows = || NodeProto::new("Transpose", "by_rows", &["f"], &["y"]);
    let (x, y) = (|| vec![models::float("x", &[1, 4])], models::value("y", ElementType::I64.onnx(), &[-2, 2]));
    models::save(folder.path(), "alone", vec![relu(), found(), by_rows()], x(), vec![y.clone()], vec![]);
    let both = vec![y, models::float("r", &[1, 4])];
    models::save(folder.path(), "both", vec![relu(), found(), by_rows()], x(), both, vec![]);
    let samples = [[1.0, -1.0, 2.0, 3.0], [-1.0, -2.0, -3.0, 4.0], [-1.0, -1.0, -1.0, -1.0]];
    let rows = Tensor::from_f32(vec![3, 4], samples.concat()).unwrap();
    write_npz(Path::new(&at("x.npz")), &TensorMap::from([("x".to_owned(), rows)])).unwrap();
    let one = Tensor::from_f32(vec![1, 4], samples[0].to_vec()).unwrap();
    write_npz(Path::new(&at("one.npz")), &TensorMap::from([("x".to_owned(), one)])).unwrap();
    let outputs = |sample: [f32; 4], count: usize| {
        let places: Vec<f32> = (0..4).filter(|&at| sample[at] > 0.0).flat_map(|at| [0.0, at as f32]).collect();
        let y = Tensor::from_f32(vec![places.len() / 2, 2], places).unwrap();
        let r = Tensor::from_f32(vec![1, 4], sample.map(|value| value.max(0.0)).to_vec()).unwrap();
        [("y".to_owned(), y), ("r".to_owned(), r)].into_iter().take(count).collect::<TensorMap>()
    };
    for (model, count) in [("alone", 1), ("both", 2)] {
        let of = |sample| outputs(sample, count);
        let calls = samples.map(|sample| iteration(&of(sample)));
        let (polygraphy, trtexec, onnx) = (at("polygraphy.json"), at("trtexec.json"), at(&format!("{model}.onnx")));
        fs::write(&polygraphy, json!({"lst": [["trt", calls]]}).to_string()).unwrap();
        fs::write(&trtexec, exported_by_trtexec(&of(samples[0]))).unwrap();
        for (file, data, samples) in [(&polygraphy, "x.npz", 3), (&trtexec, "one.npz", 1)] {
            let compare = ["compare", "--ref", "ort", "--model", &onnx, "--data", &at(data), "--target", file];
            // The columns are not classes.
            let result = &json("", &[&compare[..], &["--output-kind", "y=generic"]].concat())["targets"][0]["result"];
            assert_eq!(result["samples"], samples, "{model}, {file}: {result}");
            let outputs = result["outputs"].as_array().unwrap();
            assert_eq!(outputs.len(), count);
            assert!(outputs.iter().all(|output| output["max_abs"] == 0.0), "{model}, {file}: {result}");
        }
    }
}

/// Plans of TensorRT 8.6 and 10 begin as those of 11 do and tell no version.
#[test]
fn an_engine_of_an_older_tensorrt_is_refused_with_the_way_that_works() {
    let engines = Engines::build();
    let (model, data) = (root().join("calib_data/demo.onnx"), root().join("calib_data/images"));
    let old = engines.path("old.plan");
    let bytes = [b"ftrt".to_vec(), vec![0; 28], (0..4096_u32).flat_map(u32::to_le_bytes).collect()].concat();
    fs::write(&old, bytes).unwrap();
    let compare = ["compare", "--ref", "ort", "--target", &old, "--model", text(&model), "--data", text(&data)];
    let bench: [&str; 4] = ["bench", &old, "--model", text(&model)];
    // Naming the model would not help: it is not asked for.
    for command in [&compare[..], &compare[..5], &bench, &bench[..2], &["inspect", &old], &["bisect", "--target", &old]]
    {
        let error = ends(2, "", command);
        assert!(error.contains("old.plan") && error.contains("TensorRT 8.6 to 10"), "{error}");
        assert!(
            error.contains("trtexec --loadEngine=FILE --loadInputs=NAME:FILE.bin --exportOutput=outputs.json"),
            "{error}"
        );
        assert!(error.contains("--target saved:outputs.json"), "{error}");
        assert_eq!(error.contains("`make build TENSORRT=11`"), FLAVOUR == "rtx", "{error}");
    }
}
