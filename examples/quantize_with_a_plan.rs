//! An INT8 model from a table, some nodes of which stay in FP32.
//!
//! `cargo run --example quantize_with_a_plan -- calib_data/demo.onnx table.json int8.onnx '/stem/conv/Conv'`

#![expect(clippy::print_stdout, reason = "an example tells what it did")]

use std::{collections::BTreeMap, error::Error, path::Path};

use trtcalib::{
    backend::onnxruntime::OnnxRuntime,
    calibrate::CalibrationTable,
    quantize::{Precision, PrecisionPlan, QuantizeOptions, SchemeOptions, quantize},
    session::model::Subject,
};

/// Writes `model` in INT8, but for the nodes in `lifted`; returns the number of nodes that are quantized.
pub fn run(model: &Path, table: &Path, output: &Path, lifted: &[String]) -> Result<usize, Box<dyn Error>> {
    let subject = Subject::load(OnnxRuntime::load(None)?, model, &BTreeMap::new())?;
    let table = CalibrationTable::load(table)?;
    table.check_model(&subject.float.hash)?;
    let mut plan = PrecisionPlan::default();
    for node in lifted {
        plan.assign(node, Precision::Fp32);
    }
    let options =
        QuantizeOptions { scheme: SchemeOptions { plan, ..SchemeOptions::default() }, ..QuantizeOptions::default() };
    let quantized = quantize(&subject.folded, &subject.shapes, Some(&table), &options)?;
    if let Some(defects) = quantized.defects() {
        return Err(defects.into());
    }
    quantized.model.save(output)?;
    Ok(quantized.placement.quantized_nodes())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, table, output, lifted @ ..] = &arguments[..] else {
        return Err("usage: quantize_with_a_plan MODEL TABLE OUTPUT [NODE...]".into());
    };
    println!("{} nodes are quantized", run(model.as_ref(), table.as_ref(), output.as_ref(), lifted)?);
    Ok(())
}
