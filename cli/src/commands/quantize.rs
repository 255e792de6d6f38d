//! `calib quantize`: a model with explicit Q/DQ, or converted to a 16-bit float type.

use anyhow::Context;
use serde::Serialize;

use super::{ExitStatus, Printer, host, settings::Apply};
use crate::args::{GlobalArgs, QuantizeArgs};
use crate::printer::size;
use trtcalib::{
    backend::onnxruntime::OnnxRuntime,
    config::{RunConfig, parse_shape},
    quantize::{Decision, Placement, explained, table_for},
    session::{QuantizeRequest, model::Subject, quantize_file, read_table, scheme, unmatched},
    words::counted,
};

/// Quantizes or explains.
pub(super) fn quantize(printer: &Printer, global: &GlobalArgs, args: &QuantizeArgs) -> anyhow::Result<ExitStatus> {
    let mut config = RunConfig::default();
    args.scheme.apply(&mut config)?;
    config.shape = args.shape.iter().map(|shape| parse_shape(shape)).collect::<Result<_, _>>()?;
    config.validate()?;
    config.model = Some(args.model.path());
    let precision = args.precision;
    if args.explain {
        let subject =
            Subject::load(OnnxRuntime::load(global.ort_library.as_deref())?, &args.model.path(), &config.shape)?;
        let placement = subject.place(&scheme(&config, precision)?)?;
        for warning in unmatched(&config, &subject, &placement)? {
            printer.warn(&warning);
        }
        let table = args.table.as_deref().map(|path| read_table(path, &subject)).transpose()?;
        let done = table
            .map(|table| explained(subject.folded.graph(), &placement, &table_for(&table, precision)))
            .unwrap_or_default();
        let told = |decision| Told { decision, done: done.get(&decision.node).map_or(&[][..], |done| done) };
        let told: Vec<Told<'_>> = placement.decisions.iter().map(told).collect();
        printer.outcome(&told, || explain(&placement, &told))?;
        return Ok(ExitStatus::Passed);
    }
    let output = args.output.clone().context("no output was given; name it with -o FILE")?;
    let request = QuantizeRequest { precision, table: args.table.clone(), output, convert_io: args.convert_io };
    let outcome = quantize_file(&config, &request, global.ort_library.as_deref(), &host(printer))?;
    printer.outcome(&outcome, || {
        let kept: Vec<String> = outcome
            .kept_fp32
            .iter()
            .map(|kept| format!("\n  {}: {} ({})", kept.kept_in(), kept.node, kept.reason))
            .collect();
        let done = if precision.is_quantized() {
            let (nodes, activations) = (outcome.quantized_nodes, outcome.quantized_tensors);
            format!("{} and {}", counted(nodes, "node"), counted(activations, "activation"))
        } else {
            format!("{} of {}", outcome.nodes, counted(outcome.all_nodes, "node"))
        };
        let size = size(outcome.bytes);
        format!("{}: {done} in {precision}, {size}{}", outcome.model.display(), kept.join(""))
    })?;
    Ok(ExitStatus::Passed)
}

/// What is decided about a node, and what the table does to it.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    decision: &'a Decision,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    done: &'a [String],
}

fn explain(placement: &Placement, told: &[Told<'_>]) -> String {
    let mut table = crate::table::table(comfy_table::presets::NOTHING);
    table.set_header(["node\n  operator", "precision", "rule"]);
    for Told { decision: Decision { node, op_type, precision, rule }, done } in told {
        let why: Vec<&str> = std::iter::once(rule.describe()).chain(done.iter().map(String::as_str)).collect();
        table.add_row([format!("{node}\n  {op_type}"), precision.name().to_owned(), why.join("\n")]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    let observed = placement.tensors_to_observe().len();
    format!(
        "{table}\n{} of {} quantized, {} to calibrate",
        placement.quantized_nodes(),
        counted(placement.decisions.len(), "node"),
        counted(observed, "activation")
    )
}
