//! `calib quantize`: a model with explicit Q/DQ, or converted to a 16-bit float type.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::{ExitStatus, Printer, settings::Apply};
use crate::args::{GlobalArgs, QuantizeArgs};
use trtcalib::{
    artifact::ContentHash,
    backend::onnxruntime::OnnxRuntime,
    calibrate::{CalibrationTable, cache::CalibrationCache},
    config::{RunConfig, parse_shape},
    quantize::{Decision, KeptFp32, Placement, Precision, quantize as quantize_model},
    session::{check_folders, model::Subject, quantize_options, scheme, unmatched},
};

#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a Path,
    precision: Precision,
    /// Nodes that compute in the precision.
    nodes: usize,
    quantized_nodes: usize,
    quantized_tensors: usize,
    kept_fp32: &'a [KeptFp32],
    bytes: u64,
    hash: ContentHash,
}

/// Quantizes or explains.
pub(super) fn quantize(printer: &Printer, global: &GlobalArgs, args: &QuantizeArgs) -> anyhow::Result<ExitStatus> {
    let mut config = RunConfig::default();
    args.scheme.apply(&mut config)?;
    config.shape = args.shape.iter().map(|shape| parse_shape(shape)).collect::<Result<_, _>>()?;
    config.validate()?;
    let precision: Precision = args.precision.parse().map_err(anyhow::Error::msg)?;
    let runtime = OnnxRuntime::load(global.ort_library.as_deref())?;
    let subject = Subject::load(runtime, &args.model, &config.shape)?;
    for finding in &subject.findings {
        printer.warn(&format!("{}; {}", finding.message, finding.hint));
    }
    let scheme = scheme(&config, precision)?;
    if args.explain {
        let placement = subject.place(&scheme)?;
        for warning in unmatched(&config, &subject, &placement) {
            printer.warn(&warning);
        }
        printer.outcome(&placement.decisions, || explain(&placement))?;
        return Ok(ExitStatus::Passed);
    }
    let output = args.output.as_deref().context("no output was given; name it with -o FILE")?;
    check_folders([output])?;
    let is_same =
        args.model.canonicalize().is_ok_and(|model| output.canonicalize().is_ok_and(|output| output == model));
    anyhow::ensure!(
        !is_same,
        "{} would be written over the model it is made from; choose another -o",
        output.display()
    );
    let table = args.table.as_deref().map(|path| read_table(path, &subject)).transpose()?;
    anyhow::ensure!(
        table.is_some() || !precision.is_quantized(),
        "{precision} needs ranges; make a table with `calib calibrate` and name it with --table FILE"
    );
    let mut options = quantize_options(&config, precision)?;
    options.keep_io_types = !args.convert_io;
    if !precision.is_quantized() {
        // Exclusions of a float conversion are nodes that stay in FP32.
        options.keep_fp32.clone_from(&config.nodes_to_exclude);
        options.keep_fp32_op_types = config.op_types_to_exclude.iter().cloned().collect();
    }
    let quantized = quantize_model(&subject.folded, &subject.shapes, table.as_ref(), &options)?;
    if let Some(defects) = quantized.defects() {
        anyhow::bail!(defects);
    }
    for warning in unmatched(&config, &subject, &quantized.placement) {
        printer.warn(&warning);
    }
    quantized.model.save(output)?;
    let outcome = Outcome {
        model: output,
        precision,
        nodes: quantized.placement.nodes_in(precision),
        quantized_nodes: quantized.placement.quantized_nodes(),
        quantized_tensors: quantized.placement.tensors_to_observe().len(),
        kept_fp32: &quantized.kept_fp32,
        bytes: std::fs::metadata(output)?.len(),
        hash: ContentHash::of_file(output)?,
    };
    printer.outcome(&outcome, || {
        let kept: Vec<String> =
            outcome.kept_fp32.iter().map(|kept| format!("\n  in FP32: {} ({})", kept.node, kept.reason)).collect();
        let done = if precision.is_quantized() {
            format!("{} nodes and {} activations", outcome.quantized_nodes, outcome.quantized_tensors)
        } else {
            format!("{} of {} nodes", outcome.nodes, quantized.placement.decisions.len())
        };
        let size = outcome.bytes as f64 / 1e6;
        format!("{}: {done} in {precision}, {size:.2} MB{}", output.display(), kept.join(""))
    })?;
    Ok(ExitStatus::Passed)
}

/// A calibration table of ours, or TensorRT's cache, which does not say which model it is of.
fn read_table(path: &Path, subject: &Subject) -> anyhow::Result<CalibrationTable> {
    let start = {
        use std::io::Read;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).with_context(|| format!("cannot read the table {}", path.display()))?;
        file.take(4).read_to_end(&mut bytes)?;
        bytes
    };
    if start == b"TRT-" {
        return Ok(CalibrationCache::load(path)?.to_table(subject.float.hash.clone()));
    }
    let table = CalibrationTable::load(path)?;
    table.check_model(&subject.float.hash)?;
    Ok(table)
}

fn explain(placement: &Placement) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["node", "operator", "precision", "rule"]);
    for Decision { node, op_type, precision, rule } in &placement.decisions {
        table.add_row([node.as_str(), op_type.as_str(), precision.name(), rule.describe()]);
    }
    let observed = placement.tensors_to_observe().len();
    format!(
        "{table}\n{} of {} nodes quantized, {observed} activations to calibrate",
        placement.quantized_nodes(),
        placement.decisions.len()
    )
}
