//! The findings for people.

use std::{fmt::Write, ops::Range};

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use crate::table::table;
use trtcalib::{
    analyse::{
        advice::AdviceLevel,
        graphwise::{Graphwise, TensorDivergence},
        layerwise::LayerError,
    },
    bisect::{
        findings::Findings,
        first::Culprit,
        search::Outcome,
        trials::{Phase, Progress},
    },
    compare::Gate,
    words::counted,
};

/// Layers shown; the file has all.
const SHOWN: usize = 20;

/// One trial as it ends.
pub(in crate::commands) fn trial(progress: Progress<'_>, gates: &[Gate]) -> String {
    let trial = progress.trial;
    let why = match trial.phase {
        Phase::Nothing => "nothing lifted",
        Phase::Everything => "everything lifted",
        Phase::Prefix => "the worst",
        Phase::Shrink => "some put back",
        Phase::Verify => "one put back",
        Phase::Curve => "for the curve",
    };
    let values = gates.iter().map(|gate| trial.verdict.measured(gate));
    format!(
        "trial {:>3} {:<17} {:>4} lifted  {}  {}{}",
        progress.number,
        why,
        trial.lifted.len(),
        values.collect::<Vec<_>>().join("  "),
        if trial.verdict.passed { "passed" } else { "failed" },
        if progress.replayed { " (known)" } else { "" }
    )
}

/// A number of nodes, multiply-accumulates or milliseconds.
fn cost(value: f64) -> String {
    if value.fract() == 0.0 && value < 1e9 { format!("{value:.0}") } else { format!("{value:.4e}") }
}

/// Everything found.
pub(in crate::commands) fn describe(findings: &Findings) -> String {
    let mut text = String::new();
    if findings.random_data {
        text.push_str("RANDOM DATA: these figures say nothing about real inputs\n");
    }
    if !findings.layers.is_empty() {
        layers(&mut text, findings);
    }
    if let Some(first) = &findings.first {
        let probes = first.probes;
        let _ = match &first.culprit {
            None if first.compared() == 0 => {
                writeln!(text, "none of the tensors could be compared: nothing is known of them")
            }
            // Where nodes were judged one by one, all were.
            None if findings.probes.as_ref().is_some_and(|probes| probes.judged.is_by_itself()) => {
                writeln!(text, "nothing probed is beyond the threshold: all {} tensors are within it", first.compared())
            }
            None => writeln!(
                text,
                "nothing probed is beyond the threshold ({probes} probes); raise --threshold-db, or look at every \
                 tensor with --exhaustive"
            ),
            Some(culprit) => {
                let difference = &culprit.divergence.difference;
                let shapes = difference.shape_mismatch.as_ref().map(|mismatch| format!(", {mismatch}"));
                writeln!(
                    text,
                    "first divergence: `{}` ({}), tensor `{}`: {}, {} values not finite{} ({})",
                    culprit.node,
                    culprit.divergence.site.op_type,
                    culprit.tensor,
                    difference.figure(),
                    difference.non_finite.differing,
                    shapes.unwrap_or_default(),
                    counted(probes, "probe")
                )
            }
        };
        if let Some(sentence) = first.culprit.as_ref().and_then(Culprit::instead) {
            text.push_str(&format!("{sentence}\n"));
        }
    }
    if let Some(graphwise) = &findings.tensors {
        tensors(&mut text, graphwise);
    }
    if let Some(report) = &findings.probes {
        report.sentences().iter().for_each(|sentence| text.push_str(&format!("{sentence}\n")));
    }
    if let Some(plan) = &findings.plan {
        // A single point is what the advice says.
        let curve = if plan.curve.len() > 1 { &plan.curve[..] } else { &[] };
        if !curve.is_empty() {
            let subject = plan.gates.first().map_or_else(|| "score".to_owned(), Gate::subject);
            let _ = writeln!(text, "\nlifted  {:<10}  {subject}", "cost");
        }
        for point in curve {
            let passed = if point.passed { "  passes" } else { "" };
            let value = plan.gates.first().map_or(point.score, |gate| gate.value_of(point.score));
            let _ = writeln!(text, "{:>6}  {:<10}  {value:.4}{passed}", point.lifted, cost(point.cost));
        }
        if let Outcome::Found { trial, .. } = &plan.search.outcome {
            let names: Vec<&str> = trial.lifted.iter().map(String::as_str).collect();
            let _ = writeln!(text, "\nlift {}: {}", counted(names.len(), "node"), names.join(", "));
        }
        // One that does not pass is what the advice says.
        if let Some(check) = plan.check.as_ref().filter(|check| check.passed) {
            let metrics: Vec<String> = plan.gates.iter().map(|gate| check.measured(gate)).collect();
            let (samples, metrics) = (plan.check_samples, metrics.join(", "));
            let _ = writeln!(text, "on {samples} samples that were not used to find it, the plan passes: {metrics}");
        }
    }
    for advice in &findings.advice {
        let mark = match advice.level {
            AdviceLevel::Problem => "!!",
            AdviceLevel::Warning => "! ",
            AdviceLevel::Info => "- ",
        };
        let _ = write!(text, "\n{mark} {}", advice.text);
        if let Some(command) = &advice.command {
            let _ = write!(text, "\n   {command}");
        }
    }
    text
}

/// The layers that hurt most, by what reaches the outputs where that was measured.
fn layers(text: &mut String, findings: &Findings) {
    let output = |layer: &LayerError| findings.outputs.iter().find(|output| output.node == layer.node);
    let noise = |layer: &LayerError| output(layer).map_or(0.0, |o| o.relative_noise.unwrap_or(f64::INFINITY));
    let mut worst: Vec<&LayerError> = findings.layers.iter().collect();
    worst.sort_by(|a, b| noise(b).total_cmp(&noise(a)));
    let mut table = table(NOTHING);
    table.set_header(["node\n  operator", "outputs dB", "local dB", "weights dB", "inputs dB"]);
    for layer in worst.iter().take(SHOWN) {
        let reaches = output(layer).map_or_else(|| "-".to_owned(), |output| decibels(output.sqnr_db));
        let own = [layer.layerwise_sqnr_db, layer.weight_sqnr_db, layer.activation_sqnr_db].map(decibels);
        let figures = std::iter::once(reaches).chain(own);
        table.add_row(std::iter::once(format!("{}\n  {}", layer.node, layer.op_type)).chain(figures));
    }
    lay_out(&mut table, 1..5);
    let _ = writeln!(text, "{table}");
    if worst.len() > SHOWN {
        let _ = writeln!(text, "... and {} more in bisect.json", worst.len() - SHOWN);
    }
}

/// Columns two spaces apart, `figures` of them to the right.
fn lay_out(table: &mut Table, figures: Range<usize>) {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if figures.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The tensors that are furthest off, in the order of execution.
fn tensors(text: &mut String, graphwise: &Graphwise) {
    let mut sqnr: Vec<f64> = graphwise.tensors.iter().map(TensorDivergence::off).collect();
    sqnr.sort_by(f64::total_cmp);
    let limit = sqnr.get(SHOWN - 1).copied().unwrap_or(f64::INFINITY);
    let mut table = table(NOTHING);
    table.set_header(["SQNR dB", "cosine", "saturated", "tensor"]);
    for tensor in graphwise.tensors.iter().filter(|tensor| tensor.off() <= limit) {
        let TensorDivergence { site, difference } = tensor;
        let unequal = difference.unequal.map_or_else(String::new, |_| format!(" ({})", difference.figure()));
        table.add_row([
            decibels(difference.sqnr_db),
            format!("{:.5}", difference.cosine),
            difference.saturated.map_or_else(|| "-".to_owned(), |share| format!("{:.3} %", 100.0 * share)),
            format!("{}{unequal}", site.tensor),
        ]);
    }
    lay_out(&mut table, 0..3);
    let _ = writeln!(text, "{table}");
    let (count, samples) = (graphwise.tensors.len(), graphwise.samples);
    let _ = writeln!(text, "the furthest of {count} tensors over {samples} samples; bisect.json has all");
    graphwise.notes().iter().for_each(|note| text.push_str(&format!("{note}\n")));
    if let Some(node) = &graphwise.first_non_finite {
        let _ = writeln!(text, "the first NaN or infinity comes from `{node}`");
    }
}

fn decibels(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}
