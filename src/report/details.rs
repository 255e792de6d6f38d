//! The smaller tables of a report: calibration methods, outputs, timings.

use super::{
    CandidateResult, LatencyMs, Precision, Recovery, RecoveryRow, Report, Speedup, Timing,
    assemble::figures,
    format,
    metrics::{decibels, share, speedup_cell, title},
    table::{Cell, Column, Table, Tone},
};
use crate::{
    bench::{Mode, Throughput},
    calibrate::Method,
    compare::{Accuracy, FIVE, Metric, OutputMetrics},
};

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
    let biases = if candidate.bias_correction { ", biases corrected" } else { "" };
    format!("{method}{biases}{}", if candidate.final_thresholds { ", final thresholds" } else { "" })
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
                Some(a) => [
                    share(a.top1, a.samples).note(format::percent_interval(a.top1_interval, a.samples)),
                    share(a.top5_overlap, a.samples),
                ],
                None => [Cell::missing(), Cell::missing()],
            });
        }
        let sqnr = OutputMetrics::worst_sqnr_db(&candidate.outputs).map_or_else(Cell::missing, decibels);
        row.push(match candidate.sqnr_db_interval {
            Some(interval) => sqnr.note(figures(Metric::SqnrDb, interval)),
            None => sqnr,
        });
        row.push(Cell::number(candidate.samples as f64, candidate.samples.to_string()));
        row
    };
    Table { rows: all.iter().map(row).collect(), columns }
}

/// What recovery tried, in order; empty without any.
pub(super) fn recovery(recovery: Option<&Recovery>) -> Table {
    let columns = vec![
        Column::text("Step", "step"),
        Column::text("Kept", "kept"),
        Column::number("Before", "before_db", "Signal to noise of the worst part of the outputs, on held-out samples"),
        Column::number("With it", "after_db", "The same with the step"),
        Column::number(
            "Gain",
            "gain_db",
            "What the step gains, with its 95 % interval over pairs of held-out calls: where that has 0 in it, it may be chance",
        ),
        Column::number("Seconds", "seconds", "Wall time"),
        Column::text("What it did", "what"),
    ];
    let row = |step: &RecoveryRow| {
        let kept = if step.kept { Cell::text("kept").tone(Tone::Good) } else { Cell::text("no") };
        let [before, after] = [step.before_db, step.after_db].map(|db| db.map_or_else(Cell::missing, decibels));
        let gain = step.before_db.zip(step.after_db).map(|(before, after)| after - before);
        let gain = gain.filter(|gain| gain.is_finite()).map_or_else(Cell::missing, |gain| {
            let interval = step.gain_interval_db.map(|interval| figures(Metric::SqnrDb, interval));
            Cell::number(gain, format!("{gain:+.1}\u{a0}dB")).note(interval.unwrap_or_default())
        });
        let seconds = Cell::number(step.seconds, format!("{:.1}", step.seconds));
        vec![Cell::text(step.name.as_str()), kept, before, after, gain, seconds, Cell::text(step.what.as_str())]
    };
    let steps = recovery.map_or(&[][..], |recovery| &recovery.steps);
    Table { rows: steps.iter().map(row).collect(), columns }
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
            for part in &output.parts {
                rows.push(vec![
                    Cell::text(title(precision)),
                    Cell::text(format!("{}/{}", output.name, part.name)),
                    decibels(part.sqnr_db.unwrap_or(f64::INFINITY)),
                    Cell::number(part.cosine, format!("{:.6}", part.cosine)),
                    small(part.rel_l2),
                    small(part.mean_abs),
                    small(part.max_abs),
                ]);
            }
        }
    }
    Table { columns, rows }
}

/// Every latency and throughput with the conditions they were measured under.
pub(super) fn timings(report: &Report) -> Table {
    let mut columns = vec![
        Column::text("Precision", "precision"),
        Column::text("Timing", "timing"),
        Column::text("Mode", "mode"),
        Column::number("Batch", "batch", "Samples in a call"),
        Column::number("Threads", "threads", "Threads on the CPU, streams on a GPU"),
    ];
    let latency = ["Median", "Mean", "Std", "Jitter", "p90", "p95", "p99"];
    columns.extend(
        latency.map(|name| Column::number(name, &format!("{}_ms", name.to_lowercase()), "Milliseconds a call")),
    );
    columns.push(Column::number(
        "± p99",
        "p99_uncertainty_ms",
        "Half-width of the 95 % interval of the 99th percentile",
    ));
    columns.extend([
        Column::number("Samples/s", "fps_median", "Median samples a second"),
        Column::number("Mean", "fps_mean", "Mean samples a second"),
        Column::number("±", "fps_uncertainty", "Half-width of the 95 % interval of the mean samples a second"),
        Column::number("Jitter", "fps_jitter", "Most less fewest samples a second"),
        Column::number("Speed-up", "speedup", "How many times faster than the reference, with its 95 % interval"),
        Column::number("Calls", "count", "Calls measured"),
    ]);
    let mut rows = Vec::new();
    for p in &report.precisions {
        let first = p.latency_ms.iter().map(|latency| (latency, &p.throughput_fps, &p.speedup));
        let further = p.speed_at.iter().map(|at| (&at.latency_ms, &at.throughput_fps, &at.speedup));
        rows.extend(
            first.chain(further).map(|(latency, fps, speedup)| timing(p, latency, fps.as_ref(), speedup.as_ref())),
        );
    }
    let mut table = Table { columns, rows };
    table.drop_empty_columns();
    table
}

/// What makes latencies doubtful, each once with all that it is about.
pub(super) fn warnings(report: &Report) -> Vec<String> {
    let mut said: Vec<(&str, Vec<String>)> = Vec::new();
    for p in &report.precisions {
        for latency in p.latency_ms.iter().chain(p.speed_at.iter().map(|at| &at.latency_ms)) {
            let (batch, threads) = (latency.figures.batch, latency.mode.threads);
            let about = format!("{} (batch {batch}, {threads} threads or streams)", title(p));
            for warning in &latency.warnings {
                match said.iter_mut().find(|(other, _)| other == warning) {
                    Some((_, all)) => all.push(about.clone()),
                    None => said.push((warning, vec![about.clone()])),
                }
            }
        }
    }
    said.into_iter().map(|(warning, about)| format!("{}: {warning}", about.join(", "))).collect()
}

fn timing(p: &Precision, latency: &LatencyMs, fps: Option<&Throughput>, speedup: Option<&Speedup>) -> Vec<Cell> {
    let f = &latency.figures;
    let (timing, tone) = match latency.timing {
        Timing::Measured => (Cell::text("measured"), Tone::Plain),
        Timing::Emulated => (Cell::text("emulated").note("says nothing about its speed").tone(Tone::Bad), Tone::Dim),
    };
    let figure = |value: f64| Cell::number(value, format::significant(value, 3)).tone(tone);
    let whole = |value: usize| Cell::number(value as f64, value.to_string());
    let mut row = vec![Cell::text(title(p)), timing, Cell::text(latency.conditions())];
    row.extend([f.batch, latency.mode.threads].map(whole));
    row.extend([f.median, f.mean, f.std, f.jitter, f.p90, f.p95, f.p99, f.p99_uncertainty].map(figure));
    match fps {
        Some(fps) => row.extend([fps.median, fps.mean, fps.uncertainty, fps.jitter].map(figure)),
        None => row.extend([(); 4].map(|()| Cell::missing())),
    }
    row.push(match speedup {
        Some(speedup) if latency.timing == Timing::Measured => speedup_cell(&speedup.figures),
        _ => Cell::missing(),
    });
    row.push(whole(f.count));
    row
}

/// Every output by its kind, and every further k; empty where the table of precisions says it all.
pub(super) fn tasks(report: &Report) -> Table {
    let columns = vec![
        Column::text("Precision", "precision"),
        Column::text("Output", "output"),
        Column::text("Kind", "kind"),
        Column::number("k", "k", "Best classes looked at"),
        Column::number("Overlap", "overlap", "Mean share of the best k in common with the reference"),
        Column::number("Same set", "set", "Share of samples with the same best k as the reference"),
        Column::number(
            "Ref. first in k",
            "ref_top1_in",
            "Share of samples whose reference's first is among the best k",
        ),
        Column::number("Accuracy", "accuracy", "Share of labelled samples whose label is among the best k"),
        Column::number("Ref. accuracy", "reference_accuracy", "The same of the reference"),
        Column::number("Pixel agr.", "pixel_agreement", "Share of pixels with the same class as the reference"),
        Column::number("Mean IoU", "mean_iou", "With the reference, mean over classes"),
    ];
    let mut rows = Vec::new();
    for precision in &report.precisions {
        for task in &precision.tasks {
            let head = |kind| vec![Cell::text(title(precision)), Cell::text(&task.output), Cell::text(kind)];
            let cell = |value: Option<f64>, samples| value.map_or_else(Cell::missing, |value| share(value, samples));
            let mut classes = |k: usize, shares: [Option<f64>; 5], samples: usize| {
                let mut row = head("classification");
                row.push(Cell::number(k as f64, k.to_string()));
                row.extend(shares.map(|value| cell(value, samples)));
                row.extend([Cell::missing(), Cell::missing()]);
                rows.push(row);
            };
            let samples = task.agreement.as_ref().map_or(0, |a| a.samples);
            let right = |of: fn(&Accuracy) -> f64| task.accuracy.as_ref().map(of);
            if let Some(a) = &task.agreement {
                classes(1, [Some(a.top1), Some(a.top1), Some(a.top1), right(|r| r.top1), None], samples);
                let five = [Some(a.top5_overlap), Some(a.top5_set), Some(a.ref_top1_in_top5), right(|r| r.top5), None];
                classes(FIVE, five, samples);
            }
            for k in &task.top_k {
                let accuracy = [k.target_accuracy, k.reference_accuracy];
                classes(k.k, [Some(k.overlap), Some(k.set), Some(k.ref_top1_in), accuracy[0], accuracy[1]], samples);
            }
            if let Some(map) = &task.segmentation {
                let mut row = head("map");
                row.extend([(); 6].map(|()| Cell::missing()));
                row.extend([Some(map.pixel_agreement), Some(map.mean_iou)].map(|value| cell(value, 0)));
                rows.push(row);
            }
        }
    }
    let mut table = Table { columns, rows };
    table.drop_empty_columns();
    table
}

impl LatencyMs {
    /// The conditions in a line: provider, batch, threads, transfers, CUDA graph.
    pub fn conditions(&self) -> String {
        let Mode { provider, threads, transfers, cuda_graph } = &self.mode;
        let transfers = if *transfers { "with transfers" } else { "without transfers" };
        let graph = if *cuda_graph { "CUDA graph" } else { "no CUDA graph" };
        format!("{provider}, batch {}, {threads} threads or streams, {transfers}, {graph}", self.figures.batch)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        compare::{OutputKind, Segmentation, TopK},
        report::{
            OutputTask, SpeedAt,
            example::{Size, report},
        },
    };

    #[test]
    fn further_batch_sizes_stand_under_the_first_and_emulated_ones_have_no_speed_up() {
        let mut report = report(&Size { layers: 0, flips: 0 });
        let int8 = &mut report.precisions[4];
        let mut at = SpeedAt {
            latency_ms: int8.latency_ms.clone().unwrap(),
            throughput_fps: int8.throughput_fps.clone(),
            speedup: int8.speedup.clone(),
        };
        at.latency_ms.figures.batch = 32;
        int8.speed_at = vec![at.clone()];
        at.latency_ms.timing = Timing::Emulated;
        report.precisions[3].speed_at = vec![at];
        let text = timings(&report).csv().unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let headers = reader.headers().unwrap().clone();
        let column = |name: &str| headers.iter().position(|h| h == name).unwrap();
        let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        let found: Vec<_> =
            rows[3..].iter().map(|r| (&r[0], &r[1], &r[column("batch")], &r[column("speedup")])).collect();
        assert_eq!(
            found,
            [
                ("int8 · onnxruntime-cpu", "emulated", "1", ""),
                ("int8 · onnxruntime-cpu", "emulated", "32", ""),
                ("int8 · tensorrt", "measured", "1", "2.85"),
                ("int8 · tensorrt", "measured", "32", "2.85"),
            ]
        );
    }

    #[test]
    fn every_output_and_every_k_has_its_row() {
        let mut report = report(&Size { layers: 0, flips: 0 });
        assert!(tasks(&report).rows.is_empty());
        let agreement = report.precisions[4].agreement.clone();
        let k = TopK {
            k: 3,
            overlap: 0.9,
            set: 0.7,
            ref_top1_in: 0.99,
            reference_accuracy: Some(0.8),
            target_accuracy: Some(0.75),
        };
        let kind = OutputKind::Classification;
        let logits =
            OutputTask { output: "a".into(), kind, agreement, top_k: vec![k], accuracy: None, segmentation: None };
        let class_iou = BTreeMap::from([(0, 0.5), (7, 1.0)]);
        let label_class_iou = BTreeMap::from([(7, 0.25)]);
        let map = Segmentation {
            pixel_agreement: 0.8,
            mean_iou: 0.75,
            class_iou,
            pixel_accuracy: Some(0.7),
            label_mean_iou: Some(0.25),
            label_class_iou,
            standard_errors: None,
        };
        let mask = OutputTask {
            output: "b".into(),
            kind: OutputKind::Map,
            agreement: None,
            top_k: Vec::new(),
            segmentation: Some(map),
            ..logits.clone()
        };
        report.precisions[4].tasks = vec![logits, mask];
        let table = tasks(&report);
        let shown: Vec<_> = table.rows.iter().map(|row| (row[1].text.as_str(), row[3].text.as_str())).collect();
        assert_eq!(shown, [("a", "1"), ("a", "5"), ("a", "3"), ("b", "–")]);
        assert!(table.csv().unwrap().contains("int8 · tensorrt,a,classification,3,0.9,0.7,0.99,0.75,0.8,,\n"));
    }
}
