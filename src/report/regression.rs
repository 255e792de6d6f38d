//! Two states of the same models side by side, for release reviews.
//!
//! A change counts only beyond the noise: shares by the baseline's 95 % interval (mAP by that of its drop, which is paired),
//! SQNR by [`SQNR_NOISE_DB`] too, latency by [`LATENCY_NOISE`] and only when machine and mode are the same.

use std::{cmp::Reverse, collections::BTreeSet};

use super::{
    OutputTask, Report,
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
        Column::number("Δ pixel acc.", "pixel_accuracy_change", "Percentage points"),
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
        Column::number("Gone", "gone", "Figures that the baseline has and the run lacks; in CSV their number"),
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
            if of_random(run.report, base.report) {
                sentences.push(format!("{} is not a measure of {}: {OF_RANDOM}", base.name, run.name));
            }
        }
    }
    sentences
}

/// Why figures mean nothing.
const OF_RANDOM: &str = "inputs or ranges are random";

fn of_random(new: &Report, old: &Report) -> bool {
    new.rests_on_random_data() || old.rests_on_random_data()
}

/// What two runs of a model differ in beside their figures.
fn differences(new: &Report, old: &Report) -> Vec<String> {
    let gates = |report: &Report| {
        let asked = report.verdict.gates.iter().map(super::Gate::condition);
        asked.collect::<BTreeSet<_>>()
    };
    let mut found = Vec::new();
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
    let labelled = |report: &Report| report.dataset.labels.as_ref().map_or(0, |labels| labels.labelled);
    let are_others = || {
        let truths = new.dataset.truth_hash.as_ref().zip(old.dataset.truth_hash.as_ref());
        truths.is_some_and(|(new, old)| new != old)
    };
    if samples != before {
        // Other samples have other labels.
    } else if labelled(new) != labelled(old) {
        let (now, then) = (labelled(new), labelled(old));
        found.push(format!("how many of their evaluation samples have labels: {now} and {then}"));
    } else if are_others() {
        found.push("the label masks or labelled boxes of their evaluation samples".to_owned());
    }
    if new.dataset.preprocess != old.dataset.preprocess {
        found.push("their preprocessing".to_owned());
    }
    if gates(new) != gates(old) {
        found.push("their gates".to_owned());
    }
    let configs = [new, old].map(|report| report.config.parse::<toml::Table>().unwrap_or_default());
    for (key, what) in [
        ("output_kind", "the kinds that were given for outputs (`output_kind`)"),
        ("ignore_label", "the class of label masks that takes no part (`ignore_label`)"),
        ("detection", "how boxes are read and judged (`detection`)"),
    ] {
        let [now, then] = [0, 1].map(|run: usize| configs[run].get(key));
        if now != then {
            found.push(what.to_owned());
        }
    }
    found
}

impl Regressions {
    fn add(&mut self, run: Run<'_>, new: Option<(Run<'_>, Subject<'_>)>, old: Option<(Run<'_>, Subject<'_>)>) {
        let Some((_, any)) = new.or(old) else { return };
        let differing = new.zip(old).map(|((new, _), (old, _))| {
            let random = of_random(new.report, old.report).then(|| OF_RANDOM.to_owned());
            differences(new.report, old.report).into_iter().chain(random).collect::<Vec<_>>().join("; ")
        });
        let (new, old) = (new.map(|(_, subject)| subject), old.map(|(_, subject)| subject));
        let cells = match (old, new) {
            (Some(old), Some(new)) => changes(old, new),
            _ => (0..12).map(|_| Cell::missing()).collect(),
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

/// Result, accuracy, mAP, IoU and pixels with labels, agreement, of boxes too, mean IoU, SQNR, latency, size, and what is gone.
fn changes(old: Subject<'_>, new: Subject<'_>) -> Vec<Cell> {
    let measure = |quality| share_change(old, new, quality);
    vec![
        outcome_change(old, new),
        measure(Quality::Accuracy),
        measure(Quality::Map),
        measure(Quality::LabelMeanIou),
        measure(Quality::PixelAccuracy),
        measure(Quality::Agreement),
        measure(Quality::Boxes),
        measure(Quality::MeanIou),
        sqnr_change(old, new),
        latency_change(old, new),
        match (old.bytes(), new.bytes()) {
            (Some(old), Some(new)) if old > 0 => relative(old as f64, new as f64, format::bytes(new)),
            _ => Cell::missing(),
        },
        gone(old, new),
    ]
}

/// What the baseline judged and the run does not, although the precision ran.
fn gone(old: Subject<'_>, new: Subject<'_>) -> Cell {
    if new.precision.error.is_some() {
        return Cell::missing();
    }
    let lacks = |measure: &Quality| {
        let says_nothing = old.precision.reference && measure.is_against_reference();
        !says_nothing && old.quality(*measure).is_some() && new.quality(*measure).is_none()
    };
    // An infinite SQNR is not a figure; whether there is one is told by the outputs.
    let measures = Quality::ALL.into_iter().filter(|measure| *measure != Quality::Sqnr && lacks(measure));
    let (before, now) = (&old.precision.outputs, &new.precision.outputs);
    let outputs = before.iter().filter(|output| now.iter().all(|other| other.name != output.name));
    let figures = |task: &OutputTask| {
        let map = task.segmentation.as_ref();
        let of_labels = map.is_some_and(|map| map.label_mean_iou.is_some());
        [task.agreement.is_some(), task.accuracy.is_some(), map.is_some(), of_labels]
    };
    let now = &new.precision.tasks;
    let is_there = |task: &&OutputTask| new.precision.outputs.iter().any(|output| output.name == task.output);
    let before: Vec<&OutputTask> = old.precision.tasks.iter().filter(is_there).collect();
    let is_less = |task: &&&OutputTask| {
        let like = now.iter().find(|other| other.output == task.output);
        let like = like.map_or([false; 4], figures);
        figures(task).into_iter().zip(like).any(|(before, now)| before && !now)
    };
    // The figures of a single output stand in those of the precision.
    let counts = !now.is_empty() || before.len() > 1;
    let tasks: Vec<String> =
        before.iter().filter(is_less).filter(|_| counts).map(|task| format!("`{}`", task.output)).collect();
    let tasks = (!tasks.is_empty()).then(|| {
        let some = if now.is_empty() { "all but one of " } else { "" };
        format!("figures of {some}{}", tasks.join(", "))
    });
    let own = old.precision.metric.is_some() && new.precision.metric.is_none();
    let own = own.then(|| "the metric of one's own".to_owned());
    let named = outputs.map(|output| format!("output `{}`", output.name));
    let measures = measures.map(|measure| measure.name().to_owned());
    let gone: Vec<String> = measures.chain(own).chain(named).chain(tasks).collect();
    if gone.is_empty() { Cell::missing() } else { Cell::number(gone.len() as f64, gone.join(", ")).tone(Tone::Bad) }
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
mod tests;
