//! The smaller tables of a report: calibration methods, outputs, timings.

use std::collections::BTreeSet;

use super::{
    CandidateResult, Report, Timing, format,
    metrics::{decibels, share, title},
    table::{Cell, Column, Table, Tone},
};
use crate::{calibrate::Method, compare::Segmentation};

/// A calibration method's name.
pub(super) fn method_name(method: Method) -> &'static str {
    match method {
        Method::MinMax => "min-max",
        Method::Percentile => "percentile",
        Method::Entropy => "entropy",
        Method::Mse => "MSE",
    }
}

/// The name of what was tried: a method, or the best of each tensor.
fn candidate_name(candidate: &CandidateResult) -> String {
    let name = candidate.method.as_str();
    let method = match Method::ALL.into_iter().find(|method| method.name() == name) {
        Some(method) => method_name(method),
        None if name == "auto" => "best of each tensor",
        None => name,
    };
    format!("{method}{}", if candidate.bias_correction { ", biases corrected" } else { "" })
}

/// What every calibration method gives on held-out samples; empty when only one was tried.
pub(super) fn candidates(report: &Report) -> Table {
    let all = report.calibration.as_ref().map_or(&[][..], |calibration| &calibration.candidates);
    let mut columns = vec![Column::text("Method", "method"), Column::text("Choice", "choice")];
    let agreement = all.iter().any(|candidate| candidate.agreement.is_some());
    if agreement {
        columns.push(Column::number("Top-1 agr.", "agreement_top1", "Share with the reference's first answer"));
        columns.push(Column::number(
            "Top-5 overlap",
            "agreement_top5_overlap",
            "Mean share of the first five in common",
        ));
    }
    columns.push(Column::number("SQNR", "sqnr_db", "Least over the outputs"));
    columns.push(Column::number("Samples", "samples", "Held-out samples"));
    let row = |candidate: &CandidateResult| {
        let chosen = if candidate.chosen { Cell::text("in force").tone(Tone::Good) } else { Cell::text("") };
        let mut row = vec![Cell::text(candidate_name(candidate)), chosen];
        if agreement {
            row.extend(match &candidate.agreement {
                Some(a) => [share(a.top1, a.samples), share(a.top5_overlap, a.samples)],
                None => [Cell::missing(), Cell::missing()],
            });
        }
        let sqnr_db = candidate.outputs.iter().map(|o| o.sqnr_db.unwrap_or(f64::INFINITY)).reduce(f64::min);
        row.push(sqnr_db.map_or_else(Cell::missing, decibels));
        row.push(Cell::number(candidate.samples as f64, candidate.samples.to_string()));
        row
    };
    Table { rows: all.iter().map(row).collect(), columns }
}

/// Every output of every precision, with its numeric differences.
pub(super) fn outputs(report: &Report) -> Table {
    let columns = vec![
        Column::text("Precision", "precision"),
        Column::text("Output", "output"),
        Column::number("SQNR", "sqnr_db", "Signal-to-quantization-noise ratio"),
        Column::number("Cosine", "cosine", "Cosine of the angle between both outputs"),
        Column::number("Relative L2", "rel_l2", "Norm of the difference over norm of the reference"),
        Column::number("Mean |Δ|", "mean_abs", "Mean absolute difference"),
        Column::number("Max |Δ|", "max_abs", "Largest absolute difference"),
    ];
    let mut rows = Vec::new();
    for precision in &report.precisions {
        for output in &precision.outputs {
            let small = |value: f64| Cell::number(value, format::significant(value, 3));
            rows.push(vec![
                Cell::text(title(precision)),
                Cell::text(&output.name),
                decibels(output.sqnr_db.unwrap_or(f64::INFINITY)),
                Cell::number(output.cosine, format!("{:.6}", output.cosine)),
                small(output.rel_l2),
                small(output.mean_abs),
                small(output.max_abs),
            ]);
        }
    }
    Table { columns, rows }
}

/// Every latency with the conditions it was measured under.
pub(super) fn timings(report: &Report) -> Table {
    let mut columns =
        vec![Column::text("Precision", "precision"), Column::text("Timing", "timing"), Column::text("Mode", "mode")];
    let figures = ["Median", "Mean", "Std", "Jitter", "p90", "p95", "p99"];
    columns.extend(
        figures.map(|name| Column::number(name, &format!("{}_ms", name.to_lowercase()), "Milliseconds a call")),
    );
    columns.push(Column::number(
        "± p99",
        "p99_uncertainty_ms",
        "Half-width of the 95 % interval of the 99th percentile",
    ));
    columns.push(Column::number("Calls", "count", "Calls measured"));
    let mut rows = Vec::new();
    for precision in &report.precisions {
        let Some(latency) = &precision.latency_ms else { continue };
        let f = &latency.figures;
        let (timing, tone) = match latency.timing {
            Timing::Measured => (Cell::text("measured"), Tone::Plain),
            Timing::Emulated => {
                (Cell::text("emulated").note("says nothing about its speed").tone(Tone::Bad), Tone::Dim)
            }
        };
        let mut row = vec![Cell::text(title(precision)), timing, Cell::text(latency.mode())];
        let times = [f.median, f.mean, f.std, f.jitter, f.p90, f.p95, f.p99, f.p99_uncertainty];
        row.extend(times.map(|ms| Cell::number(ms, format::significant(ms, 3)).tone(tone)));
        row.push(Cell::number(f.count as f64, f.count.to_string()));
        rows.push(row);
    }
    Table { columns, rows }
}

/// Intersection over union with the reference, class by class, of models whose output is a map.
pub(super) fn class_iou(report: &Report) -> Table {
    let maps: Vec<_> = report.precisions.iter().filter_map(|p| Some((p, p.segmentation.as_ref()?))).collect();
    let mut columns = vec![Column::text("Class", "class")];
    columns.extend(maps.iter().map(|(p, _)| Column::number(&title(p), &title(p), "Intersection over union")));
    let names = report.dataset.labels.as_ref().map(|labels| &labels.names);
    let classes: BTreeSet<u32> = maps.iter().flat_map(|(_, map)| map.class_iou.keys().copied()).collect();
    let row = |class: u32| {
        let name = names.and_then(|names| names.get(&class)).map_or_else(|| class.to_string(), Clone::clone);
        let iou =
            |(_, map): &(_, &Segmentation)| map.class_iou.get(&class).map_or_else(Cell::missing, |&v| share(v, 0));
        [Cell::text(name)].into_iter().chain(maps.iter().map(iou)).collect()
    };
    Table { rows: classes.into_iter().map(row).collect(), columns }
}

impl super::LatencyMs {
    /// The conditions in a line: provider, batch, threads, transfers, CUDA graph.
    pub fn mode(&self) -> String {
        let transfers = if self.transfers { "with transfers" } else { "without transfers" };
        let graph = if self.cuda_graph { ", CUDA graph" } else { "" };
        let threads = self.threads;
        format!("{}, batch {}, {threads} threads or streams, {transfers}{graph}", self.provider, self.figures.batch)
    }
}
