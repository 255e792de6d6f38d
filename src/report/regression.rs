//! Two states of the same models side by side, for release reviews.
//!
//! A change counts only beyond the noise: shares by the baseline's 95 % interval (mAP by that of its drop, which is paired),
//! SQNR by [`SQNR_NOISE_DB`] too, latency by [`LATENCY_NOISE`] and only when machine and mode are the same.

use std::{cmp::Reverse, collections::BTreeSet};

use super::{
    Report,
    assemble::figures,
    format,
    metrics::{Quality, Subject, outcome},
    runs::Run,
    table::{Cell, Column, Table, Tone},
};
use crate::compare::Metric;

/// Decibels by which SQNR may differ, and by more where the baseline's 95 % interval is wider.
pub const SQNR_NOISE_DB: f64 = 1.0;

/// Share by which a median latency may differ.
pub const LATENCY_NOISE: f64 = 0.05;

/// Shares without an interval (mean IoU) may differ by this.
pub const SHARE_NOISE: f64 = 0.005;

/// What changed against a baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Regressions {
    /// A row for each precision that both or one of them have.
    pub table: Table,
    /// Precisions that got worse, or are gone.
    pub worse: usize,
    /// Precisions compared.
    pub compared: usize,
}

/// A precision is found again by its model's file name, its own name and its backend.
fn key<'a>(subject: &Subject<'a>) -> (&'a str, &'a str, &'a str) {
    let p = subject.precision;
    (format::file_name(&subject.report.model.path), &p.precision, &p.backend)
}

fn all<'a>(runs: &[Run<'a>]) -> Vec<(Run<'a>, Subject<'a>)> {
    runs.iter().flat_map(|&run| Subject::all(run.report).map(move |subject| (run, subject))).collect()
}

/// Compares every precision of every run of `runs` with its like in `baseline`.
pub fn regressions(runs: &[Run<'_>], baseline: &[Run<'_>]) -> Regressions {
    let columns = vec![
        Column::text("Model", "model"),
        Column::text("Precision", "precision"),
        Column::hidden("Backend", "backend"),
        Column::text("Change", "change"),
        Column::text("Result", "result"),
        Column::number("Δ accuracy", "accuracy_top1_change", "Percentage points"),
        Column::number("Δ mAP 50-95", "detection_map50_95_change", "Percentage points"),
        Column::number("Δ label IoU", "label_mean_iou_change", "Percentage points"),
        Column::number("Δ agreement", "agreement_top1_change", "Percentage points"),
        Column::number(
            "Δ boxes",
            "detection_f1_change",
            "Agreement of boxes with the reference (F1), percentage points",
        ),
        Column::number("Δ mean IoU", "mean_iou_change", "Percentage points"),
        Column::number("Δ SQNR", "sqnr_db_change", "Decibels"),
        Column::number("Δ latency", "latency_change", "Relative change of the median"),
        Column::number("Δ size", "size_change", "Relative change"),
        Column::hidden("Run", "run"),
        Column::hidden("Differs in", "differs_in"),
    ];
    let (new, old) = (all(runs), all(baseline));
    let mut result = Regressions { table: Table { columns, rows: Vec::new() }, worse: 0, compared: 0 };
    for subject in &new {
        let mut like = old.iter().filter(|(_, other)| key(other) == key(&subject.1)).peekable();
        if like.peek().is_none() {
            result.add(subject.0, Some(*subject), None);
        }
        like.for_each(|before| result.add(subject.0, Some(*subject), Some(*before)));
    }
    for run in runs {
        let has = |other: &Subject<'_>| Subject::all(run.report).any(|subject| key(&subject) == key(other));
        // Of several runs in the baseline, the one that made most of the same: others may be of other precisions.
        let common = |base: &Run<'_>| Subject::all(base.report).filter(has).count();
        let likeness = |base: &&Run<'_>| (common(base), Reverse(base.report.precisions.len()));
        let like = baseline.iter().rev().max_by_key(likeness).filter(|base| common(base) > 0);
        if let Some(base) = like {
            let gone = Subject::all(base.report).filter(|other| !has(other));
            gone.for_each(|other| result.add(*run, None, Some((*base, other))));
        }
    }
    // What no run has, nor misses by its like.
    let told: BTreeSet<[String; 3]> =
        result.table.rows.iter().map(|row| [0, 1, 2].map(|column: usize| row[column].text.clone())).collect();
    for gone in &old {
        let (model, precision, backend) = key(&gone.1);
        if !told.contains(&[model, precision, backend].map(str::to_owned)) {
            result.add(gone.0, None, Some(*gone));
        }
    }
    // The worst news first; columns that say nothing not at all.
    result
        .table
        .rows
        .sort_by_key(|row| ["worse", "gone", "better", "new"].iter().position(|w| row[3].shows(w)).unwrap_or(9));
    result.table.drop_empty_columns();
    result
}

/// What makes figures of a run and of its like in the baseline no measure of each other, in sentences.
pub fn unlike(runs: &[Run<'_>], baseline: &[Run<'_>]) -> Vec<String> {
    let name = |run: &Run<'_>| format::file_name(&run.report.model.path).to_owned();
    let mut sentences = Vec::new();
    for run in runs {
        for base in baseline.iter().filter(|base| name(base) == name(run)) {
            sentences.extend(
                differences(run.report, base.report)
                    .iter()
                    .map(|what| format!("{} and its baseline {} differ in {what}", run.name, base.name)),
            );
        }
    }
    sentences
}

/// What two runs of a model differ in beside their figures.
fn differences(new: &Report, old: &Report) -> Vec<String> {
    let gates = |report: &Report| {
        let asked = report.verdict.gates.iter().map(super::Gate::condition);
        asked.collect::<BTreeSet<_>>()
    };
    let mut found = Vec::new();
    if new.rests_on_random_data() || old.rests_on_random_data() {
        found.push("nothing that counts: the inputs or ranges of at least one are random".to_owned());
    }
    let (samples, before) = (&new.dataset.evaluation, &old.dataset.evaluation);
    if samples.len() != before.len() {
        found.push(format!("the number of evaluation samples: {} and {}", samples.len(), before.len()));
    } else if samples != before {
        found.push("their evaluation samples".to_owned());
    } else if (new.dataset.evaluation_hash.as_ref().zip(old.dataset.evaluation_hash.as_ref()))
        .is_some_and(|(new, old)| new != old)
    {
        found.push("what their evaluation samples of the same names, or the labels of these, are".to_owned());
    }
    if new.dataset.preprocess != old.dataset.preprocess {
        found.push("their preprocessing".to_owned());
    }
    if gates(new) != gates(old) {
        found.push("their gates".to_owned());
    }
    found
}

impl Regressions {
    fn add(&mut self, run: Run<'_>, new: Option<(Run<'_>, Subject<'_>)>, old: Option<(Run<'_>, Subject<'_>)>) {
        let Some((_, any)) = new.or(old) else { return };
        let differing = new.zip(old).map(|((new, _), (old, _))| differences(new.report, old.report).join("; "));
        let (new, old) = (new.map(|(_, subject)| subject), old.map(|(_, subject)| subject));
        let cells = match (old, new) {
            (Some(old), Some(new)) => changes(old, new),
            _ => (0..10).map(|_| Cell::missing()).collect(),
        };
        let tones = || cells.iter().map(|cell| cell.tone);
        let (word, tone) = match (old, new) {
            (None, _) => ("new", Tone::Plain),
            (_, None) => ("gone", Tone::Bad),
            _ if tones().any(|tone| tone == Tone::Bad) => ("worse", Tone::Bad),
            _ if tones().any(|tone| tone == Tone::Good) => ("better", Tone::Good),
            _ => ("same", Tone::Dim),
        };
        self.worse += usize::from(tone == Tone::Bad);
        self.compared += 1;
        let (model, precision, backend) = key(&any);
        let mut row = vec![Cell::text(model).note(run.name), Cell::text(precision).note(backend), Cell::text(backend)];
        row.push(Cell::text(word).tone(tone));
        row.extend(cells);
        row.extend([Cell::text(run.name), Cell::text(differing.unwrap_or_default())]);
        self.table.rows.push(row);
    }
}

/// Result, accuracy, mAP, IoU with labels, agreement, of boxes too, mean IoU, SQNR, latency, size.
fn changes(old: Subject<'_>, new: Subject<'_>) -> Vec<Cell> {
    let measure = |quality| share_change(old, new, quality);
    vec![
        outcome_change(old, new),
        measure(Quality::Accuracy),
        measure(Quality::Map),
        measure(Quality::LabelMeanIou),
        measure(Quality::Agreement),
        measure(Quality::Boxes),
        measure(Quality::MeanIou),
        sqnr_change(old, new),
        latency_change(old, new),
        match (old.bytes(), new.bytes()) {
            (Some(old), Some(new)) if old > 0 => relative(old as f64, new as f64, format::bytes(new)),
            _ => Cell::missing(),
        },
    ]
}

fn outcome_change(old: Subject<'_>, new: Subject<'_>) -> Cell {
    let (before, now) = (outcome(old), outcome(new));
    if before.text == now.text {
        return Cell { tone: Tone::Plain, ..now };
    }
    let tone = if now.tone == Tone::Bad {
        Tone::Bad
    } else if before.tone == Tone::Bad {
        Tone::Good
    } else {
        Tone::Plain
    };
    Cell::text(format!("{} → {}", before.text, now.text)).tone(tone)
}

/// Exactly the same value on both sides.
fn unchanged(value: String) -> Cell {
    Cell::number(0.0, "=").note(value).tone(Tone::Dim)
}

/// Bad below `-noise`, good above it.
fn judge(change: f64, noise: f64) -> Tone {
    if change < -noise {
        Tone::Bad
    } else if change > noise {
        Tone::Good
    } else {
        Tone::Plain
    }
}

fn share_change(old: Subject<'_>, new: Subject<'_>, measure: Quality) -> Cell {
    if old.precision.reference && measure.is_against_reference() {
        return Cell::missing();
    }
    let (Some(before), Some(now)) = (old.quality(measure), new.quality(measure)) else { return Cell::missing() };
    let noise = old.quality_noise(measure).unwrap_or(SHARE_NOISE);
    let change = now - before;
    if change == 0.0 {
        return unchanged(format::percent(now, 0));
    }
    Cell::number(change, format!("{:+.2}\u{a0}pp", change * 100.0))
        .note(format!("{:.1} → {}, ±{:.1}\u{a0}pp is noise", before * 100.0, format::percent(now, 0), noise * 100.0))
        .tone(judge(change, noise))
}

fn sqnr_change(old: Subject<'_>, new: Subject<'_>) -> Cell {
    match (old.sqnr_db(), new.sqnr_db()) {
        (Some(before), Some(now)) if before.is_finite() && now.is_finite() => {
            if before == now {
                return unchanged(format::decibels(now));
            }
            // What scatters less over the samples than this is of no account either.
            let noise = old.quality_noise(Quality::Sqnr).unwrap_or(0.0).max(SQNR_NOISE_DB);
            let between = |subject: Subject<'_>| subject.quality_interval(Quality::Sqnr);
            let interval = |subject| between(subject).map(|own| format!(" ({})", figures(Metric::SqnrDb, own)));
            let [before_interval, now_interval] = [old, new].map(|subject| interval(subject).unwrap_or_default());
            let note = format!(
                "{before:.1}{before_interval} → {}{now_interval}, ±{}\u{a0}dB is noise",
                format::decibels(now),
                format::significant(noise, 2)
            );
            Cell::number(now - before, format!("{:+.1}\u{a0}dB", now - before))
                .note(note)
                .tone(judge(now - before, noise))
        }
        _ => Cell::missing(),
    }
}

fn latency_change(old: Subject<'_>, new: Subject<'_>) -> Cell {
    let (Some(before), Some(now)) = (old.speed(), new.speed()) else { return Cell::missing() };
    let conditions = |s: Subject<'_>| {
        let machine = &s.report.environment;
        let mode = s.precision.latency_ms.as_ref().map(super::LatencyMs::conditions);
        (machine.cpu_model.clone(), machine.gpu.as_ref().map(|gpu| gpu.name.clone()), mode)
    };
    if conditions(old) != conditions(new) {
        return Cell::text("not comparable").note("other machine or mode").tone(Tone::Dim);
    }
    let note = format!("{} → {}", format::significant(before, 3), format::milliseconds(now));
    let cell = relative(before, now, note);
    let tone = judge(-cell.value.unwrap_or(0.0), LATENCY_NOISE);
    cell.tone(tone)
}

fn relative(before: f64, now: f64, note: String) -> Cell {
    let change = now / before - 1.0;
    if change == 0.0 {
        return unchanged(note);
    }
    Cell::number(change, format!("{:+.1}\u{a0}%", change * 100.0)).note(note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        Report,
        example::{Size, report},
    };

    /// Applies `change` to int8 on TensorRT and gives its row and the number of worse precisions.
    fn changed(change: impl FnOnce(&mut Report)) -> (Vec<Cell>, usize) {
        let old = report(&Size { layers: 0, flips: 0 });
        let mut new = old.clone();
        change(&mut new);
        let result = regressions(&[Run { name: "new", report: &new }], &[Run { name: "old", report: &old }]);
        (
            result.table.rows.iter().find(|row| row[1].shows("int8") && row[2].shows("tensorrt")).unwrap().clone(),
            result.worse,
        )
    }

    #[test]
    fn runs_over_other_data_or_gates_are_said_to_be_unlike() {
        use crate::report::example::{Size, report};
        let old = report(&Size { layers: 0, flips: 0 });
        let said = |new: &Report| {
            let said = unlike(&[Run { name: "new", report: new }], &[Run { name: "old", report: &old }]);
            said.into_iter()
                .map(|s| s.replace("new and its baseline old differ in ", ""))
                .collect::<Vec<_>>()
                .join("; ")
        };
        let mut new = old.clone();
        assert_eq!(said(&new), "");
        new.dataset.evaluation_hash = None;
        assert_eq!(said(&new), "", "nothing is known of an older report");
        new.dataset.evaluation_hash = Some(crate::artifact::ContentHash::of_bytes(b"other pictures"));
        assert_eq!(said(&new), "what their evaluation samples of the same names, or the labels of these, are");
        new.dataset.evaluation_hash.clone_from(&old.dataset.evaluation_hash);
        new.verdict.gates.pop();
        assert_eq!(said(&new), "their gates");
        new.dataset.preprocess = None;
        new.dataset.evaluation.push("one more".to_owned());
        assert!(said(&new).starts_with("the number of evaluation samples: "), "{}", said(&new));
        assert!(said(&new).ends_with("their preprocessing; their gates"), "{}", said(&new));
        new.model.path = "other.onnx".to_owned();
        assert_eq!(said(&new), "");
    }

    #[test]
    fn every_run_of_a_model_is_judged_in_whatever_order() {
        let good = report(&Size { layers: 0, flips: 0 });
        let mut bad = good.clone();
        bad.precisions[4].agreement.as_mut().unwrap().top1 -= 0.5;
        bad.dataset.evaluation.push("one more".to_owned());
        let (good, bad) = (Run { name: "good", report: &good }, Run { name: "bad", report: &bad });
        for runs in [[good, bad], [bad, good]] {
            let found = regressions(&runs, &[Run { name: "old", ..good }]);
            assert_eq!((found.worse, found.compared), (1, 2 * good.report.precisions.len()));
            let worst: Vec<&str> = found.table.rows[0].iter().map(|cell| cell.text.as_str()).collect();
            assert!(worst.contains(&"worse") && worst.contains(&"bad"), "{worst:?}");
            assert!(found.table.rows.iter().all(|row| !row[3].shows("new")));
            // What makes them no measure of each other stands in the table as well, and on the page.
            let csv = found.table.csv().unwrap();
            assert_eq!(csv.matches("the number of evaluation samples: ").count(), good.report.precisions.len());
            let page = super::super::runs_html(&runs, &[Run { name: "old", ..good }]).unwrap();
            assert!(page.contains("bad and its baseline old differ in the number of evaluation samples: "), "{page}");
        }
    }

    #[test]
    fn what_is_gone_from_one_of_several_runs_is_named_with_the_run() {
        let whole = report(&Size { layers: 0, flips: 0 });
        let mut less = whole.clone();
        less.precisions.retain(|row| row.precision != "fp16");
        let (whole, less) = (Run { name: "whole", report: &whole }, Run { name: "less", report: &less });
        let gone = |runs: &[Run<'_>], baseline: &[Run<'_>]| {
            let found = regressions(runs, baseline);
            let rows = found.table.rows.iter().filter(|row| row[3].shows("gone"));
            let rows: Vec<String> = rows.map(|row| format!("{} of {}", row[1].text, row[0].note)).collect();
            assert_eq!(found.worse, rows.len());
            rows
        };
        assert_eq!(gone(&[whole, less], &[Run { name: "old", ..whole }]), ["fp16 of less"]);
        // Runs of different precisions are compared with their likes.
        let olds = [Run { name: "old", ..whole }, Run { name: "old less", ..less }];
        assert!(gone(&[less, whole], &olds).is_empty());
        let mut other = whole.report.clone();
        other.model.path = "other.onnx".to_owned();
        let other = Run { name: "other", report: &other };
        assert_eq!(gone(&[whole], &[whole, other]).len(), other.report.precisions.len());
    }

    #[test]
    fn a_change_counts_beyond_the_noise_only() {
        let (row, worse) = changed(|_| {});
        assert_eq!((row[3].text.as_str(), worse), ("same", 0));
        // The baseline's interval is ± 0.9 points.
        let agreement = |by: f64| changed(|r: &mut Report| r.precisions[4].agreement.as_mut().unwrap().top1 += by);
        assert_eq!(agreement(-0.008).1, 0);
        let (row, worse) = agreement(-0.010);
        assert_eq!((row[3].text.as_str(), row[6].text.as_str(), worse), ("worse", "-1.00\u{a0}pp", 1));
        assert_eq!(agreement(0.010).0[3].text, "better");
        // The SQNR of a baseline that scatters by more than a decibel may differ by as much.
        let sqnr = |by: f64, half: f64| {
            let mut old = report(&Size { layers: 0, flips: 0 });
            let before = old.precisions[4].outputs[0].sqnr_db.unwrap();
            old.precisions[4].sqnr_db_interval = Some([before - half, before + half]);
            let mut new = old.clone();
            new.precisions[4].outputs[0].sqnr_db = Some(before + by);
            sqnr_change(
                Subject { report: &old, precision: &old.precisions[4] },
                Subject { report: &new, precision: &new.precisions[4] },
            )
        };
        assert_eq!(
            (sqnr(-1.5, 0.2).tone, sqnr(-1.5, 2.0).tone, sqnr(-2.5, 2.0).tone),
            (Tone::Bad, Tone::Plain, Tone::Bad)
        );
        assert!(sqnr(-0.5, 2.0).note.contains("(16.4…20.4)"), "{}", sqnr(-0.5, 2.0).note);
    }

    #[test]
    fn boxes_count_as_classes_do() {
        let detection = |map: f64, recall: f64| {
            serde_json::from_value(serde_json::json!({
                "head": "yolox", "labelled_pictures": 64, "map50_95": map, "map50_95_interval": [map - 0.1, map + 0.1],
                "map50": null, "map75": null, "map_small": null, "map_medium": null, "map_large": null, "mar_1": null,
                "mar_10": null, "mar_100": null, "mar_small": null, "mar_medium": null, "mar_large": null,
                "per_class": [], "confidence": { "confidence": [], "precision": [], "recall": [], "f1": [] },
                "reference_map50_95": 0.354, "map50_95_drop_interval": [0.354 - map - 0.03, 0.354 - map + 0.03],
                "agreement": {
                    "confidence": 0.25, "precision": 0.7, "precision_interval": [0.66, 0.74], "recall": recall,
                    "recall_interval": [recall - 0.05, recall + 0.05], "precision_75": 0.5, "recall_75": 0.5,
                    "mean_iou": 0.8, "score_shift": 0.0, "lost": 1, "gained": 1, "common": 1, "pictures": 64
                }
            }))
            .unwrap()
        };
        let tone = |map: f64, recall: f64| {
            let old = &mut report(&Size { layers: 0, flips: 0 });
            let new = &mut old.clone();
            for (report, map, recall) in [(&mut *old, 0.24, 0.7), (&mut *new, map, recall)] {
                report.precisions.iter_mut().for_each(|precision| precision.detection = Some(detection(map, recall)));
            }
            let found = regressions(&[Run { name: "new", report: new }], &[Run { name: "old", report: old }]);
            let at = |key: &str| found.table.columns.iter().position(|column| column.key == key).unwrap();
            let row = found.table.rows.iter().find(|row| row[1].shows("int8") && row[2].shows("tensorrt")).unwrap();
            let is_reference = |row: &&Vec<Cell>| row[1].shows("fp32") && row[2].shows("onnxruntime-cpu");
            let reference = found.table.rows.iter().find(is_reference).unwrap();
            assert!(reference[at("detection_map50_95_change")].value.is_some());
            assert!(reference[at("detection_f1_change")].value.is_none(), "it is that of the reference with itself");
            ["detection_map50_95_change", "detection_f1_change"].map(|key| row[at(key)].tone)
        };
        assert_eq!(tone(0.24, 0.7), [Tone::Dim, Tone::Dim]);
        // 4 points of mAP are within the interval over pictures, and beyond that of the drop on the same pictures.
        assert_eq!(tone(0.20, 0.68), [Tone::Bad, Tone::Plain]);
        assert_eq!(tone(0.28, 0.5), [Tone::Good, Tone::Bad]);
    }

    #[test]
    fn latencies_of_another_machine_are_not_compared() {
        let slower = |r: &mut Report| r.precisions[4].latency_ms.as_mut().unwrap().figures.median *= 1.5;
        let (row, worse) = changed(slower);
        assert_eq!((row[8].text.as_str(), worse), ("+50.0\u{a0}%", 1));
        let (row, worse) = changed(|r| {
            slower(r);
            r.environment.gpu = None;
        });
        assert_eq!((row[8].text.as_str(), worse), ("not comparable", 0));
    }

    #[test]
    fn what_no_longer_runs_or_is_gone_is_worse() {
        assert_eq!(changed(|r| r.precisions[4].error = Some("no".into())).1, 1);
        assert_eq!(
            changed(|r| {
                r.precisions.pop();
            })
            .1,
            1
        );
    }
}
