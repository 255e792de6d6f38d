//! The zoo: models of every architecture are quantized, checked, run, compared and built.
//!
//! `cargo test` takes a few; `CALIB_ZOO=all` (`make zoo`) takes all of them and prints the table of `docs/zoo.md`, any
//! other value the models whose name contains it. What is found about a model is kept in `target/zoo/` until the
//! next run of all; with `CALIB_ZOO_KEEP=FOLDER` the models are left there for a look, and `CALIB_ZOO_RECOVERY=off` leaves out
//! recovery, which takes most of the time.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, and reports")]

mod filler;
mod job;
mod samples;
mod table;

use std::path::{Path, PathBuf};

use calib_test_support::{Need, root};
use job::Bench;
use trtcalib::backend::{
    onnxruntime::OnnxRuntime,
    tensorrt::{compiled_flavour, find_library},
};

/// One of each kind, all of them small.
const FEW: &[&str] = &[
    "decoder_tied.dynamo20.dynamic",
    "encoder_masked.torchscript11.dynamic",
    "espcn.dynamo18.dynamic",
    "fsrcnn.torchscript9",
    "lstm_tagger.torchscript15.dynamic",
    "tcn.torchscript13",
    "torchvision_mobilenet_v3_small.torchscript17.dynamic",
    "torchvision_shufflenet_v2_x1_0.torchscript13",
    "unet_transposed.torchscript15.dynamic",
    "yolo_tiny.dynamo18",
];

/// `.runtime/python`, where `onnx` is to be had.
fn python_packages() -> Option<PathBuf> {
    let packages = root().join(".runtime/python");
    let found = packages.join("onnx").is_dir();
    Need::Python.or_skip(if found { Ok(packages) } else { Err("`onnx` checks no model") })
}

#[test]
fn the_zoo_is_quantized() {
    let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
    let library = compiled_flavour().and_then(|flavour| find_library(flavour, None));
    let tensorrt = Need::TensorRt.or_skip(library.ok_or("no engines are built"));
    let recovers = std::env::var("CALIB_ZOO_RECOVERY").as_deref() != Ok("off");
    let bench = Bench { runtime, tensorrt, python: python_packages(), recovers };
    let wanted = std::env::var("CALIB_ZOO").unwrap_or_default();
    let selected = |key: &str| match wanted.as_str() {
        "" => FEW.contains(&key),
        "all" => true,
        part => key.contains(part),
    };
    let results = root().join("target/zoo");
    std::fs::create_dir_all(&results).unwrap();
    let mut outcomes = Vec::new();
    for entry in samples::zoo().into_iter().filter(|entry| selected(entry.key())) {
        let file = results.join(format!("{}.json", entry.key()));
        let known = if wanted == "all" { job::recall(&file) } else { None };
        let outcome = known.unwrap_or_else(|| {
            let temporary = tempfile::tempdir().unwrap();
            let kept = std::env::var_os("CALIB_ZOO_KEEP").map(|folder| Path::new(&folder).join(entry.key()));
            let folder = kept.as_deref().unwrap_or(temporary.path());
            std::fs::create_dir_all(folder).unwrap();
            let outcome = bench.run(&entry, folder);
            job::note(&file, &outcome).unwrap();
            eprintln!("{}: {outcome:?}", entry.key());
            outcome
        });
        outcomes.push((entry.key().to_owned(), outcome));
    }
    assert!(!outcomes.is_empty(), "no model is called `{wanted}`");
    if !wanted.is_empty() {
        eprintln!("{}", table::render(&outcomes, &results.join("peer.json")));
    }
    let failed: Vec<&str> =
        outcomes.iter().filter(|(_, outcome)| table::fails(outcome)).map(|(key, _)| &**key).collect();
    assert!(failed.is_empty(), "these fail: {failed:?}");
}
