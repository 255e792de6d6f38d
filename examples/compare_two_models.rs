//! What a model loses against another one, on the data of a configuration.
//!
//! `cargo run --example compare_two_models -- calib_data/demo.onnx int8.onnx configs/demo.toml`

#![expect(clippy::print_stdout, reason = "an example tells what it did")]

use std::{error::Error, path::Path};

use trtcalib::{
    config::RunConfig,
    session::{CompareOutcome, CompareRequest, Host, Session},
};

/// Compares `target` with `reference`, which passes where the worst of its outputs has an SQNR of 10 dB.
pub fn run(reference: &str, target: &str, config: &Path) -> Result<CompareOutcome, Box<dyn Error>> {
    let request = CompareRequest {
        reference: reference.to_owned(),
        targets: vec![target.to_owned()],
        gates: vec!["sqnr_db=10".parse()?],
        ..CompareRequest::default()
    };
    let mut config = RunConfig::load(config)?;
    request.complete(&mut config)?;
    Ok(Session::open(config, None, &Host::default())?.compare(&request)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [reference, target, config] = &arguments[..] else {
        return Err("usage: compare_two_models REFERENCE TARGET CONFIG".into());
    };
    let outcome = run(reference, target, config.as_ref())?;
    for target in &outcome.targets {
        let Some(result) = &target.result else { continue };
        for output in &result.outputs {
            println!(
                "{}: {} has an SQNR of {:?} dB over {} samples",
                target.target, output.name, output.sqnr_db, outcome.samples
            );
        }
    }
    println!("passed: {:?}", outcome.passed);
    Ok(())
}
