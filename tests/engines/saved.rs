//! Engines that `calib` does not load: those of TensorRT 8.6 to 10, compared by what their own tools save.

use std::{collections::BTreeMap, fs};

use base64::Engine as _;
use calib_test_support::root;
use serde_json::{Value, json};
use trtcalib::{
    npz::read_npz,
    tensor::{Tensor, TensorMap},
};

use super::{Engines, FLAVOUR, ends, json, text};

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

/// What Polygraphy's `--save-outputs` writes: one iteration for every eight samples.
fn saved_by_polygraphy(outputs: &TensorMap) -> Value {
    let samples = outputs.values().next().unwrap().shape()[0];
    let array = |tensor: &Tensor, first: usize, rows: usize| {
        let width: usize = tensor.shape()[1..].iter().product();
        let mut shape = tensor.shape().to_vec();
        shape[0] = rows;
        let shape: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        let values = &tensor.to_f32()[first * width..(first + rows) * width];
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        json!({"values": {"array": text, "polygraphy_class": "ndarray"}, "polygraphy_class": "LazyArray"})
    };
    let iteration = |first: usize| {
        let rows = 8.min(samples - first);
        let outputs: BTreeMap<&String, Value> =
            outputs.iter().map(|(name, tensor)| (name, array(tensor, first, rows))).collect();
        json!({"outputs": outputs, "runtime": 0.1, "runner_name": "trt-runner", "polygraphy_class": "IterationResult"})
    };
    let iterations: Vec<Value> = (0..samples).step_by(8).map(iteration).collect();
    json!({"lst": [["trt-runner-N0-11/27/26", iterations]], "polygraphy_class": "RunResults"})
}

#[test]
fn outputs_that_other_programs_saved_are_compared_like_the_engine_itself() {
    let engines = Engines::build();
    let (model, data) = (root().join("calib_data/demo.onnx"), root().join("calib_data/images"));
    let (int8, npz) = (engines.path("int8.plan"), engines.path("saved.npz"));
    let compare = ["compare", "--ref", "ort", "--model", text(&model), "--data", text(&data), "--samples", "20"];
    let bare = engines.path("bare.plan");
    fs::copy(&int8, &bare).unwrap();
    let engine = json("", &[&compare[..], &["--target", &bare, "--save-target", &npz]].concat());
    let outputs = read_npz(std::path::Path::new(&npz)).unwrap();
    assert_eq!(outputs["logits"].shape()[0], 20);

    let polygraphy = engines.path("polygraphy.json");
    fs::write(&polygraphy, saved_by_polygraphy(&outputs).to_string()).unwrap();
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
    let more = [&compare[..7], &["--samples", "21", "--target", &trtexec]].concat();
    let error = ends(2, "", &more);
    assert!(error.contains("trtexec.json") && error.contains("20"), "{error}");
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
