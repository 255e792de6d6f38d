//! `report.html`: one file that needs no network, for a decision in ten seconds and a study in ten minutes.
//!
//! Everything that comes from a file (names, messages, configuration) is escaped by askama or by plotters; only drawings
//! and our own style sheet and script are inserted as they are. The page's content security policy allows no
//! connection and no script but ours.

mod boxes;
mod facts;
mod layers;
mod samples;

use askama::Template;

use super::{
    AdviceLevel, Report,
    bisection::Plan,
    charts,
    classes::{class_accuracy, class_iou, class_precision, confusions},
    details::{candidates, outputs, recovery, tasks, timings, warnings},
    elsewhere, engines, format,
    graph::Picture,
    metrics::{Quality, Subject, precisions, title},
    table::Table,
};
use crate::{
    bisect::findings::{Findings, PlanFindings},
    words::counted,
};

/// Our own style sheet and script.
pub(super) const STYLE: &str = include_str!("../assets/style.css");
pub(super) const SCRIPT: &str = include_str!("../assets/script.js");

/// The page of one run.
pub fn html(report: &Report) -> Result<String, askama::Error> {
    Page::new(report, None).render()
}

/// The page of one run with the trade-off that a bisection of the same model found.
pub fn html_with(report: &Report, bisection: &Findings) -> Result<String, askama::Error> {
    Page::new(report, bisection.plan.as_ref()).render()
}

/// A chart in two widths: charts keep the size of their text, so a small screen gets its own.
#[derive(Default)]
pub(super) struct Chart {
    pub wide: String,
    pub narrow: String,
}

impl Chart {
    /// Draws both.
    pub fn new(height: u32, draw: impl Fn(charts::Size) -> String) -> Self {
        Self { wide: draw((1200, height)), narrow: draw((360, height * 4 / 5)) }
    }

    /// Draws one of two that stand beside each other.
    pub fn half(height: u32, draw: impl Fn(charts::Size) -> String) -> Self {
        Self { wide: draw((600, height)), narrow: draw((360, height * 4 / 5)) }
    }
}

/// A piece of advice as a page shows it.
pub(super) struct Hint<'a> {
    pub class: &'static str,
    pub level: &'static str,
    pub text: String,
    /// The nodes that the text does not name.
    pub nodes: Vec<&'a str>,
    pub command: Option<&'a str>,
}

impl<'a> Hint<'a> {
    pub fn new(level: AdviceLevel, text: &str, nodes: &'a [String], command: Option<&'a str>) -> Self {
        let (class, level) = match level {
            AdviceLevel::Problem => ("problem", "problem"),
            AdviceLevel::Warning => ("caution", "warning"),
            AdviceLevel::Info => ("info", "note"),
        };
        let named: Vec<&str> = pieces(text).into_iter().filter_map(|(name, piece)| name.then_some(piece)).collect();
        let nodes = nodes.iter().map(String::as_str).filter(|node| !named.contains(node)).collect();
        Self { class, level, text: format::sentence(text), nodes, command }
    }

    /// Every command once, at the first piece of advice that it follows from.
    pub fn once(mut hints: Vec<Self>) -> Vec<Self> {
        let mut told = std::collections::BTreeSet::new();
        for hint in &mut hints {
            hint.command = hint.command.filter(|command| told.insert(*command));
        }
        hints
    }
}

/// The verdict without the figures, which stand at the gates below it.
fn headline(report: &Report) -> String {
    let gates = &report.verdict.gates;
    let failed = gates.iter().filter(|gate| !gate.result.passed).count();
    if failed == 0 {
        return report.verdict.sentence.clone();
    }
    let told = format!("{failed} of {} failed.", counted(gates.len(), "gate"));
    let errors: Vec<_> = report.precisions.iter().filter(|row| row.error.is_some()).map(title).collect();
    if errors.is_empty() { told } else { format!("{told} {} did not run.", errors.join(", ")) }
}

/// Pieces of a sentence in turn: plain text, and names that stand between backquotes in it.
pub(super) fn pieces(text: &str) -> Vec<(bool, &str)> {
    if text.matches('`').count() % 2 == 1 {
        return vec![(false, text)];
    }
    text.split('`').enumerate().map(|(i, piece)| (i % 2 == 1, piece)).collect()
}

/// A nonce for the page's script: no name within `content` can contain a hash over all of it.
pub(super) fn nonce(content: &str) -> String {
    blake3::hash(content.as_bytes()).to_hex().as_str()[..32].to_owned()
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    report: &'a Report,
    name: &'a str,
    nonce: String,
    headline: String,
    urgent: Vec<String>,
    problems: usize,
    facts: Vec<facts::Group>,
    precisions: Table,
    candidates: Table,
    /// By name.
    recovery: [(&'static str, Table); 2],
    outputs: Table,
    tasks: Table,
    timings: Table,
    warnings: Vec<String>,
    class_iou: Table,
    class_precision: Table,
    /// With the number of all classes.
    class_accuracy: (Table, usize),
    confusions: Table,
    boxes: boxes::Boxes<'a>,
    errors: Vec<(String, &'a str)>,
    scatter: Chart,
    legend: Vec<(usize, String)>,
    scatter_note: Option<String>,
    samples: samples::Samples<'a>,
    network: Option<Picture>,
    plan: Option<Plan<'a>>,
    layers: layers::Layers<'a>,
    layers_samples: Option<usize>,
    hints: Vec<Hint<'a>>,
    elsewhere: Table,
    elsewhere_says: Vec<String>,
    profiles: Vec<elsewhere::Profile>,
    engines: Table,
    engine_layers: Vec<engines::Layers>,
    command: String,
    hashes: Vec<(&'a str, &'a str)>,
}

impl<'a> Page<'a> {
    fn new(report: &'a Report, plan: Option<&'a PlanFindings>) -> Self {
        let (scatter, legend, scatter_note) = scatter(report);
        let mut hashes = vec![("model", report.model.hash.as_str()), ("data", report.dataset.hash.as_str())];
        let artifacts = report.precisions.iter().filter_map(|precision| precision.artifact.as_ref());
        hashes.extend(artifacts.map(|artifact| (artifact.path.as_str(), artifact.hash.as_str())));
        Self {
            name: format::file_name(&report.model.path),
            nonce: nonce(&format!("{report:?}")),
            headline: headline(report),
            urgent: report.notes.iter().map(|note| format::sentence(note)).collect(),
            problems: report.advice.iter().filter(|advice| advice.level == AdviceLevel::Problem).count(),
            facts: facts::groups(report),
            precisions: precisions(report),
            candidates: candidates(report),
            recovery: [("Recovery of INT8", &report.recovery), ("Recovery of FP8", &report.recovery_fp8)]
                .map(|(name, steps)| (name, recovery(steps.as_ref()))),
            outputs: outputs(report),
            tasks: tasks(report),
            timings: timings(report),
            warnings: warnings(report),
            class_iou: class_iou(report),
            class_precision: class_precision(report),
            class_accuracy: class_accuracy(report),
            confusions: confusions(report),
            boxes: boxes::Boxes::new(report),
            errors: report.precisions.iter().filter_map(|p| Some((title(p), p.error.as_deref()?))).collect(),
            scatter,
            legend,
            scatter_note,
            samples: samples::Samples::new(report),
            network: Picture::of_report(report),
            plan: plan.map(Plan::new),
            layers: layers::Layers::new(&report.layers),
            layers_samples: report.layers_samples,
            hints: Hint::once(
                report
                    .advice
                    .iter()
                    .map(|advice| Hint::new(advice.level, &advice.text, &advice.nodes, advice.command.as_deref()))
                    .collect(),
            ),
            elsewhere: elsewhere::table(report),
            elsewhere_says: elsewhere::sentences(report),
            profiles: elsewhere::profiles(report),
            engines: engines::summaries(report),
            engine_layers: engines::layers(report),
            command: format::shell_line(&report.command),
            hashes,
            report,
        }
    }
}

/// Quality over latency of every precision whose speed was measured, and why the others are not there. Where other machines
/// measured, theirs are the latencies: those of this one would not stand beside them.
fn scatter(report: &Report) -> (Chart, Vec<(usize, String)>, Option<String>) {
    let subjects: Vec<_> = Subject::all(report).collect();
    let Some(measure) = Quality::of(&subjects) else { return (Chart::default(), Vec::new(), None) };
    let point = |(series, label, subject, latency_ms): (usize, String, &Subject<'_>, f64)| {
        let (quality, interval) = (subject.quality(measure)?, subject.quality_interval(measure));
        Some(charts::Point { label, latency_ms, quality, interval, series })
    };
    let elsewhere = |subject| {
        let Subject { precision, .. } = subject;
        precision.measured_elsewhere.iter().filter_map(move |there| {
            let latency = there.latency_ms.as_ref()?;
            Some((elsewhere::called(precision, there), latency.figures.median))
        })
    };
    let numbered = || subjects.iter().enumerate();
    let there: Vec<_> = numbered()
        .flat_map(|(series, s)| elsewhere(*s).map(move |(label, latency)| (series, label, s, latency)))
        .filter_map(point)
        .collect();
    let (points, note) = if there.is_empty() {
        let here = numbered().filter_map(|(series, s)| Some((series, title(s.precision), s, s.speed()?)));
        let emulated = subjects.iter().filter(|s| s.precision.latency_ms.is_some() && s.speed().is_none());
        let emulated: Vec<String> = emulated.map(|s| title(s.precision)).collect();
        let note = (!emulated.is_empty()).then(|| {
            format!(
                "Left out, since a float runtime emulates them and their times say nothing: {}. The script deploy/deploy.sh \
                 in the run's folder measures them where TensorRT is.",
                emulated.join(", ")
            )
        });
        (here.filter_map(point).collect(), note)
    } else {
        let note =
            "Latencies come from the machines named; quality was measured here, by the backends under Precisions.";
        (there, Some(note.to_owned()))
    };
    if points.len() < 2 {
        return (Chart::default(), Vec::new(), note);
    }
    let legend =
        points.iter().map(|point: &charts::Point| (point.series % charts::SERIES, point.label.clone())).collect();
    let share = measure != Quality::Sqnr;
    (Chart::new(340, |size| charts::scatter(&points, measure.name(), share, size)), legend, note)
}

#[cfg(test)]
mod tests;
