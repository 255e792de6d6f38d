//! Putting a report together from what other stages found.

use std::collections::BTreeMap;

use super::{EngineInside, Gate, Histogram, Layer, OutputTask, Precision, Verdict, format, metrics::title};
use crate::{
    backend::tensorrt::{EngineLayer, EngineLayers},
    bench::Timing,
    calibrate::{Shift, TensorRange},
    compare::{self, ComparisonResult, Direction, Footprint, GateResult, Metric, TaskResult, percent},
    quantize::Halved,
    words::counted,
};

impl Precision {
    /// A precision of which nothing is known yet.
    pub fn new(precision: impl Into<String>, backend: impl Into<String>) -> Self {
        Self {
            precision: precision.into(),
            backend: backend.into(),
            reference: false,
            artifact: None,
            quantized_nodes: None,
            halved: None,
            agreement: None,
            accuracy: None,
            classes: None,
            segmentation: None,
            detection: None,
            tasks: Vec::new(),
            outputs: Vec::new(),
            sqnr_db_interval: None,
            metric: None,
            latency_ms: None,
            throughput_fps: None,
            speedup: None,
            speed_at: Vec::new(),
            flips: Vec::new(),
            flips_total: 0,
            engine: None,
            measured_elsewhere: Vec::new(),
            required: false,
            error: None,
        }
    }

    /// Takes over what a comparison with the reference found.
    #[must_use]
    pub fn with_comparison(mut self, result: &ComparisonResult) -> Self {
        if let Some(task) = result.classification() {
            self.agreement.clone_from(&task.agreement);
            self.accuracy.clone_from(&task.accuracy);
            self.classes.clone_from(&task.classes);
            self.flips.clone_from(&task.flips);
            self.flips_total = task.flipped.len();
        }
        self.detection.clone_from(&result.detection);
        self.segmentation = result.map().and_then(|task| task.segmentation.clone());
        if result.tasks.len() > 1 || result.tasks.iter().any(|task| !task.top_k.is_empty()) {
            self.tasks = result.tasks.iter().map(OutputTask::new).collect();
        }
        self.outputs.clone_from(&result.outputs);
        self.sqnr_db_interval = result.sqnr_db_interval();
        self.metric = result.own_metric;
        self
    }
}

impl EngineInside {
    /// Layers and their figures.
    pub fn new(layers: Vec<EngineLayer>) -> Self {
        let layers = EngineLayers { layers };
        Self { summary: layers.summary(), layers: layers.layers }
    }
}

impl OutputTask {
    fn new(task: &TaskResult) -> Self {
        Self {
            output: task.output.clone(),
            kind: task.kind,
            agreement: task.agreement.clone(),
            top_k: task.top_k.clone(),
            accuracy: task.accuracy.clone(),
            segmentation: task.segmentation.clone(),
        }
    }
}

impl Precision {
    /// The outcome of every gate that is for it.
    pub fn judge(&self, gates: &[compare::Gate], measured: &ComparisonResult) -> Vec<Gate> {
        let footprint = self.footprint();
        let nothing = self.halved.as_ref().filter(|halved| halved.precision.name() == self.precision);
        let nothing = nothing.and_then(Halved::nothing);
        let judged = gates.iter().filter(|gate| gate.is_for(&self.precision)).map(|gate| {
            let mut result = gate.evaluate(measured, &footprint);
            // A figure of FP32 says nothing about this precision.
            let notes = result.note.take().into_iter().chain(nothing.clone());
            result.note = notes.reduce(|note, nothing| format!("{note}, but {nothing}"));
            Gate { precision: self.precision.clone(), backend: self.backend.clone(), result }
        });
        judged.collect()
    }

    /// What it costs. The time of an imitation says nothing about the precision.
    fn footprint(&self) -> Footprint {
        let measured = self.latency_ms.as_ref().filter(|latency| latency.timing == Timing::Measured);
        Footprint {
            latency_ms: measured.map(|latency| latency.figures.median),
            latency_ms_interval: measured.and_then(|latency| latency.figures.median_interval),
            latency_ratio: self.speedup.as_ref().map(|speedup| speedup.figures.ratio.recip()),
            latency_ratio_interval: self.speedup.as_ref().map(|speedup| {
                let [low, high] = speedup.figures.interval;
                [high.recip(), low.recip()]
            }),
            size_mb: self.artifact.as_ref().map(|artifact| artifact.bytes as f64 / 1e6),
        }
    }
}

impl Layer {
    /// A layer of which nothing is measured yet.
    pub fn new(node: &str, op_type: &str, tensor: &str, precision: &str) -> Self {
        Self {
            node: node.to_owned(),
            op_type: op_type.to_owned(),
            tensor: tensor.to_owned(),
            precision: precision.to_owned(),
            operators: Vec::new(),
            graphwise_sqnr_db: None,
            layerwise_sqnr_db: None,
            cosine: None,
            weight_sqnr_db: None,
            min: None,
            max: None,
            amax: None,
            offset: None,
            scale: None,
            method: None,
            candidates: BTreeMap::new(),
            clipped: None,
            histogram: None,
            times: Vec::new(),
        }
    }

    /// Takes over what calibration found of the layer's tensor, and the scale that the model has for it.
    #[must_use]
    pub fn with_range(mut self, range: &TensorRange, scale: Option<f32>) -> Self {
        (self.min, self.max, self.clipped) = (Some(range.min), Some(range.max), Some(range.clipped));
        (self.amax, self.scale, self.method) = (Some(range.amax), scale, Some(range.method));
        self.candidates.clone_from(&range.candidates);
        self
    }

    /// Takes over the range around another centre that the tensor has, which cuts the share `clipped` of its values.
    #[must_use]
    pub fn with_shift(self, shift: Shift, clipped: f64) -> Self {
        let (amax, offset, clipped) = (Some(shift.amax), Some(shift.offset), Some(clipped));
        Self { amax, offset, clipped, method: None, ..self }
    }
}

impl Histogram {
    /// Most bins of a histogram in a report.
    pub const MAX_BINS: usize = 64;

    /// Coarsens equally wide bins that begin at 0: neighbours are merged, empty ones at the end left out.
    pub fn coarse(bin_width: f64, counts: &[u64]) -> Self {
        let used = counts.iter().rposition(|&count| count > 0).map_or(1, |last| last + 1);
        let merged = used.div_ceil(Self::MAX_BINS);
        let counts: Vec<u64> = counts[..used.min(counts.len())].chunks(merged).map(|bins| bins.iter().sum()).collect();
        Self { limit: (bin_width * (merged * counts.len()) as f64) as f32, counts }
    }
}

impl Verdict {
    /// Passed when every gate did and what is required ran; the sentence names what did not, and what could not run.
    pub fn new(gates: Vec<Gate>, precisions: &[Precision]) -> Self {
        let failed: Vec<_> = gates.iter().filter(|gate| !gate.result.passed).collect();
        let remarks: Vec<_> = gates.iter().filter_map(Gate::remark).collect();
        let mut sentences = vec![match (gates.len(), failed.len()) {
            (0, _) => "No gates were set.".to_owned(),
            (1, 0) => "The gate passed.".to_owned(),
            (all, 0) => format!("All {all} gates passed."),
            (all, n) => format!("{n} of {} failed: {}.", counted(all, "gate"), failures(&failed)),
        }];
        if !remarks.is_empty() {
            sentences.push(format!("{}.", remarks.join("; ")));
        }
        let errors: Vec<_> = precisions.iter().filter(|p| p.error.is_some()).map(title).collect();
        if !errors.is_empty() {
            sentences.push(format!("{} did not run.", errors.join(", ")));
        }
        let missed = precisions.iter().any(|p| p.required && p.error.is_some());
        let passed = (missed || !gates.is_empty()).then_some(!missed && failed.is_empty());
        Self { passed, sentence: sentences.join(" "), gates }
    }
}

/// The first three failed gates in words.
fn failures(failed: &[&Gate]) -> String {
    let mut words: Vec<_> = failed
        .iter()
        .take(3)
        .map(|gate| {
            let GateResult { direction, value, .. } = gate.result;
            let what = gate.result.subject();
            let subject = format!("{} on {}", gate.precision, gate.backend);
            if value.is_none() {
                return format!("{subject} has no {what} ({})", gate.result.shown());
            }
            let side = if direction == Direction::AtLeast { "at least" } else { "at most" };
            let (value, threshold) = (gate.result.shown(), gate.result.shown_threshold());
            format!("{subject} has {what} {value}, {side} {threshold} is asked for")
        })
        .collect();
    if failed.len() > 3 {
        words.push(format!("and {} more", failed.len() - 3));
    }
    words.join("; ")
}

impl Gate {
    /// What has to be known of a gate that passed, in words.
    pub(super) fn remark(&self) -> Option<String> {
        let note = self.result.note.as_deref().filter(|note| self.result.passed && *note != compare::EQUAL)?;
        let shown = self.result.value.map_or_else(|| note.to_owned(), |_| self.result.shown());
        Some(format!("{} on {} passed {}: {shown}", self.precision, self.backend, self.result.subject()))
    }

    /// The condition as one reads it: `int8 tensorrt top1 ≥ 0.98`.
    pub fn condition(&self) -> String {
        let GateResult { threshold, .. } = self.result;
        let (subject, sign, level) = (self.result.subject(), self.result.symbol(), self.result.level());
        format!("{} {} {subject} {sign} {threshold}{level}", self.precision, self.backend)
    }
}

impl GateResult {
    /// `≥` or `≤`.
    pub(super) fn symbol(&self) -> char {
        match self.direction {
            Direction::AtLeast => '≥',
            Direction::AtMost => '≤',
        }
    }

    /// What was asked for: `≥ 98 %`, with the confidence where there is one.
    pub fn asked(&self) -> String {
        format!("{} {}{}", self.symbol(), self.shown_threshold(), self.level())
    }

    fn level(&self) -> String {
        self.confidence.map_or_else(String::new, |level| format!(" at {} confidence", percent(level)))
    }

    /// What was measured, or why there is no figure.
    pub fn shown(&self) -> String {
        let value = self.value.map(|value| {
            let shown = shown_beside(self.metric, value, self.threshold);
            if let Some((bound, level)) = self.bound.zip(self.confidence) {
                let bound = shown_beside(self.metric, bound, self.threshold);
                let side = if self.direction == Direction::AtLeast { "more" } else { "less" };
                return format!("{shown} (at {} confidence {bound} or {side})", percent(level));
            }
            self.interval.map_or(shown.clone(), |interval| format!("{shown} ({})", figures(self.metric, interval)))
        });
        match (value, &self.note) {
            (Some(value), Some(note)) => format!("{value}, but {note}"),
            (value, note) => value.or_else(|| note.clone()).unwrap_or_else(|| "not measured".to_owned()),
        }
    }

    /// The threshold as people read it.
    pub(super) fn shown_threshold(&self) -> String {
        figure(self.metric, self.threshold)
    }
}

/// A value as it stands beside its threshold: rounding must not hide on which side of it the value lies.
pub(super) fn shown_beside(metric: Metric, value: f64, threshold: f64) -> String {
    let rounded = figure(metric, value);
    if value == threshold || rounded != figure(metric, threshold) {
        return rounded;
    }
    let precise = |value: f64, digits: usize| match metric {
        Metric::SqnrDb => format!("{value:.digits$}\u{a0}dB"),
        _ if is_share(metric) => format!("{:.digits$}\u{a0}%", 100.0 * value),
        _ => format::significant(value, 2 + digits),
    };
    let telling = (2..16).find(|&digits| precise(value, digits) != precise(threshold, digits));
    telling.map_or_else(|| value.to_string(), |digits| precise(value, digits))
}

/// A figure of a metric in its unit.
pub(super) fn figure(metric: Metric, value: f64) -> String {
    match metric {
        Metric::SqnrDb => format::decibels(value),
        _ if is_share(metric) => format::exact_percent(value),
        _ => format::significant(value, 4),
    }
}

/// An interval of a metric without its unit, which stands at the value.
pub(super) fn figures(metric: Metric, [low, high]: [f64; 2]) -> String {
    match metric {
        Metric::SqnrDb => format!("{low:.1}…{high:.1}"),
        _ if is_share(metric) => format::percent_interval([low, high], 0),
        _ => format!("{}…{}", format::significant(low, 4), format::significant(high, 4)),
    }
}

/// True for what is shown in percent.
pub(super) fn is_share(metric: Metric) -> bool {
    use Metric::{LatencyMs, LatencyRatio, Own, SizeMb};
    !metric.is_numeric() && ![LatencyMs, LatencyRatio, Own, SizeMb].contains(&metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(metric: Metric, threshold: f64, value: Option<f64>, passed: bool) -> Gate {
        let result = GateResult {
            metric,
            part: None,
            direction: metric.direction(),
            threshold,
            confidence: None,
            value,
            interval: None,
            bound: None,
            passed,
            note: None,
        };
        Gate { precision: "int8".into(), backend: "tensorrt".into(), result }
    }

    #[test]
    fn coarse_histograms_keep_every_value_and_their_edges() {
        let mut counts = vec![0; 2048];
        counts[..130].fill(1);
        let coarse = Histogram::coarse(0.5, &counts);
        // 130 bins become 44 of three: the last holds one value and two bins that were empty.
        assert_eq!((coarse.counts.len(), coarse.limit, coarse.counts[43]), (44, 66.0, 1));
        assert_eq!(coarse.counts.iter().sum::<u64>(), 130);
        assert_eq!(Histogram::coarse(0.5, &[0, 0]), Histogram { limit: 0.5, counts: vec![0] });
        assert_eq!(Histogram::coarse(0.5, &[]).counts, Vec::<u64>::new());
    }

    #[test]
    fn the_verdict_says_which_gate_failed_and_what_did_not_run() {
        let broken = Precision { error: Some("no kernel".into()), ..Precision::new("fp8", "tensorrt") };
        let failed = gate(Metric::Top1, 0.98, Some(0.9765), false);
        let verdict = Verdict::new(vec![failed, gate(Metric::SqnrDb, 15.0, Some(18.44), true)], &[broken]);
        assert_eq!((verdict.passed, Verdict::new(Vec::new(), &[]).passed), (Some(false), None));
        assert_eq!(
            verdict.sentence,
            "1 of 2 gates failed: int8 on tensorrt has top1 97.65\u{a0}%, at least 98\u{a0}% is asked for. \
             fp8 · tensorrt did not run."
        );
        assert_eq!(Verdict::new(vec![gate(Metric::MaxAbs, 0.1, Some(0.05), true)], &[]).passed, Some(true));
        assert_eq!(gate(Metric::Top1, 0.98, Some(0.97998), false).result.shown(), "97.998\u{a0}%");
        assert_eq!(gate(Metric::SqnrDb, 24.0, Some(23.995_627_4), false).result.shown(), "23.996\u{a0}dB");
        let unmeasured = Verdict::new(vec![gate(Metric::Accuracy, 0.1, None, false)], &[]);
        assert_eq!(unmeasured.sentence, "1 of 1 gate failed: int8 on tensorrt has no accuracy (not measured).");
        let mut bounded = gate(Metric::Top1, 0.98, Some(0.99), false);
        (bounded.result.confidence, bounded.result.bound) = (Some(0.95), Some(0.961));
        assert_eq!(bounded.condition(), "int8 tensorrt top1 ≥ 0.98 at 95% confidence");
        assert_eq!(bounded.result.shown(), "99\u{a0}% (at 95% confidence 96.1\u{a0}% or more)");
    }
}
