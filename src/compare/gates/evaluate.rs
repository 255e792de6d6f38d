//! What a gate says about the figures of a target.

use super::{Direction, Gate, GateResult, Metric, Needs, percent};
use crate::{
    compare::{ComparisonResult, DetectionAgreement, Figures, OutputMetrics},
    stats::{half_width, paired_difference, wilson_at},
};

/// What is noted of a gate where there is no difference.
pub(crate) const EQUAL: &str = "equal to the reference";
const NO_BOX: &str = "the reference has no box from the confidence on at which boxes count";
const NO_TIMES: &str = "no latency was measured that says anything about this precision";

/// What a target costs, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Footprint {
    /// Median latency.
    pub latency_ms: Option<f64>,
    /// 95 % interval of `latency_ms`.
    pub latency_ms_interval: Option<[f64; 2]>,
    /// Latency by that of FP32 on the same backend.
    pub latency_ratio: Option<f64>,
    /// 95 % interval of `latency_ratio`.
    pub latency_ratio_interval: Option<[f64; 2]>,
    /// Size of its file with external data, in 10^6 bytes.
    pub size_mb: Option<f64>,
}

/// What a comparison says about a metric.
enum Measured {
    Value(f64),
    /// No difference at all: an infinite SQNR.
    Equal,
    Missing(String),
}

impl Gate {
    /// Tests the figures of a comparison, and of a model's time and size.
    ///
    /// A metric of numeric differences does not pass when NaN or infinities differ, which no such figure shows. What other
    /// verdicts rest on is noted.
    pub fn evaluate(&self, result: &ComparisonResult, footprint: &Footprint) -> GateResult {
        let Self { metric, threshold, confidence, .. } = *self;
        let direction = metric.direction();
        let part = self.part.as_deref();
        let outcome = |value, passed, note: Option<String>| GateResult {
            metric,
            part: self.part.clone(),
            direction,
            threshold,
            confidence,
            value,
            interval: None,
            bound: None,
            passed,
            note,
        };
        let concerned = Figures::of(&result.outputs, part).unwrap_or_default();
        // Such values decide classes and boxes as well, in whatever way comparisons with NaN come out.
        let concerns = |output: &str| match metric.needs() {
            Needs::Times | Needs::Size => false,
            _ => part.is_none() || concerned.iter().any(|figures| figures.output.name == output),
        };
        let beside = result.non_finite.iter().filter(|(output, _)| concerns(output));
        let beside = beside.max_by_key(|(_, counts)| counts.differing);
        let note = beside.map(|(output, counts)| counts.beside(output));
        let differs = metric.is_numeric() && beside.is_some_and(|(_, counts)| counts.differing > 0);
        match measure(metric, part, result, footprint) {
            Measured::Missing(why) => outcome(None, false, Some(why)),
            Measured::Equal => outcome(None, !differs, note.or_else(|| Some(EQUAL.to_owned()))),
            Measured::Value(value) if value.is_nan() => outcome(None, false, Some("it is not a number".to_owned())),
            Measured::Value(value) => {
                let towards_failing = |[low, high]: [f64; 2]| match direction {
                    Direction::AtLeast => low,
                    Direction::AtMost => high,
                };
                let bound = confidence.map(|level| self.interval(value, result, footprint, level).map(towards_failing));
                let within = match bound.unwrap_or(Some(value)) {
                    Some(tested) if direction == Direction::AtLeast => tested >= threshold,
                    Some(tested) => tested <= threshold,
                    None => {
                        return outcome(
                            Some(value),
                            false,
                            Some("there is no interval: so few samples have none".to_owned()),
                        );
                    }
                };
                GateResult {
                    interval: self.interval(value, result, footprint, 0.95),
                    bound: bound.flatten(),
                    ..outcome(Some(value), within && !differs, note)
                }
            }
        }
    }

    /// Whether the outputs tell it, so that recovery may end where it holds.
    pub(crate) fn ends_recovery(&self) -> bool {
        self.metric != Metric::Own && !matches!(self.metric.needs(), Needs::Times | Needs::Size)
    }

    /// Whether it holds at 95 %, or at the higher confidence that was asked for.
    pub(crate) fn clearly_holds(&self, result: &ComparisonResult) -> bool {
        let gate = Self { confidence: Some(self.confidence.unwrap_or(0.0).max(0.95)), ..self.clone() };
        gate.evaluate(result, &Footprint::default()).passed
    }

    /// The interval of a value at a confidence, where there is one. Those of boxes and times are at 95 % only.
    fn interval(&self, value: f64, result: &ComparisonResult, footprint: &Footprint, level: f64) -> Option<[f64; 2]> {
        let Self { metric, .. } = *self;
        let detection = result.detection.as_ref();
        let labelled = || detection?.accuracy.as_ref();
        match metric {
            // A mean of shares scatters at most as widely as if each were 0 or 1.
            _ if metric.is_counted() || metric == Metric::Top5 => {
                Some(wilson_at(share_of(value, metric, result), level))
            }
            Metric::AccuracyDrop => {
                let samples = result.classification()?.accuracy.as_ref()?.samples as u64;
                Some(paired_difference(result.classification()?.only_one_right?, samples, level))
            }
            Metric::PixelAgreement | Metric::MeanIou | Metric::PixelAccuracy | Metric::LabelMeanIou => {
                of_map(value, metric, result, level)
            }
            Metric::Map5095 => labelled()?.map50_95_interval,
            Metric::Map50 => labelled()?.map50_interval,
            Metric::Map5095Drop => detection?.map50_95_drop_interval,
            Metric::DetectionPrecision => detection?.agreement.precision_interval,
            Metric::DetectionRecall => detection?.agreement.recall_interval,
            Metric::DetectionIou => detection?.agreement.mean_iou_interval,
            Metric::LatencyMs => footprint.latency_ms_interval,
            Metric::LatencyRatio => footprint.latency_ratio_interval,
            _ => {
                let concerned = Figures::of(&result.outputs, self.part.as_deref())?;
                numeric(value, metric, &concerned, result, level)
            }
        }
    }

    /// Why so few samples cannot decide it: even if all of them agree (are right, answer alike), the figure over all that
    /// there are may lie beyond the threshold. `samples` are those that count, for accuracy those with a label.
    pub fn undecidable(&self, samples: usize) -> Option<String> {
        let Self { metric, threshold, .. } = *self;
        let level = self.confidence.unwrap_or(0.95);
        // Interval's bound at the best, and how many samples bring it to the threshold.
        let (best, bound, needed) = match metric {
            // Without a confidence, all of them is a clear wish.
            _ if metric.is_counted() || metric == Metric::Top5 => {
                let lowest = |n: u64| wilson_at((n, n), level)[0];
                // With all n right, the bound is n / (n + z²).
                let z2 = 1.0 / lowest(1) - 1.0;
                ("all of them right the true share", lowest(samples as u64), threshold * z2 / (1.0 - threshold))
            }
            Metric::AccuracyDrop => {
                let highest = |n: u64| paired_difference([0, 0], n, level)[1];
                // With no answer changed, the bound is z / (n + 2).
                let z = highest(98) * 100.0;
                ("no answer changed the true drop", highest(samples as u64), z / threshold - 2.0)
            }
            Metric::Own => return None,
            _ => {
                let sampled = !matches!(metric.needs(), Needs::Times | Needs::Size);
                return (self.confidence.is_some() && sampled && samples < 2).then(|| {
                    format!("{samples} sample has no interval, so the gate {self} cannot pass; at least 2 are needed")
                });
            }
        };
        let decided = match metric.direction() {
            Direction::AtLeast => bound >= threshold,
            Direction::AtMost => bound <= threshold,
        };
        if decided || !(needed.is_finite() && needed >= 0.0) {
            return None;
        }
        let outcome = if self.confidence.is_some() { "the gate cannot pass" } else { "passing shows little" };
        Some(format!(
            "{samples} samples cannot decide the gate {self}: even with {best} may be {bound:.3} (at {} confidence), so \
             {outcome}; at least {} samples are needed",
            percent(level),
            needed.ceil()
        ))
    }
}

impl ComparisonResult {
    /// The 95 % interval of the SQNR of the worst output or part of one, in decibels, where it is known how that scatters.
    pub fn sqnr_db_interval(&self) -> Option<[f64; 2]> {
        let value = OutputMetrics::worst_sqnr_db(&self.outputs).filter(|value| value.is_finite())?;
        numeric(value, Metric::SqnrDb, &Figures::of(&self.outputs, None)?, self, 0.95)
    }
}

/// The interval of a figure of maps of classes.
fn of_map(value: f64, metric: Metric, result: &ComparisonResult, level: f64) -> Option<[f64; 2]> {
    let errors = result.map()?.segmentation.as_ref()?.standard_errors?;
    let error = match metric {
        Metric::PixelAgreement => errors.pixel_agreement,
        Metric::MeanIou => errors.mean_iou,
        Metric::PixelAccuracy => errors.pixel_accuracy?,
        _ => errors.label_mean_iou?,
    };
    let half = half_width(error, errors.groups, level)?;
    Some([(value - half).max(0.0), (value + half).min(1.0)])
}

/// The interval of a figure of numeric differences over all elements of an output, or of a part of one.
fn numeric(
    value: f64,
    metric: Metric,
    concerned: &[Figures<'_>],
    result: &ComparisonResult,
    level: f64,
) -> Option<[f64; 2]> {
    let Figures { output, part } = concerned.iter().find(|figures| value_of(metric, figures) == value)?;
    let whole = result.standard_errors.get(&output.name)?;
    let errors = part.map_or(Some(whole), |part| whole.parts.get(&part.name))?;
    let around = |error: f64| half_width(error, errors.samples, level);
    match metric {
        Metric::SqnrDb => around(errors.sqnr_db?).map(|half| [value - half, value + half]),
        // The relative error is 10^(-SQNR / 20).
        Metric::RelL2 => {
            let factor = around(errors.sqnr_db?).map(|half| 10f64.powf(half / 20.0))?;
            Some([value / factor, value * factor])
        }
        Metric::Cosine => around(errors.cosine?).map(|half| [(value - half).max(-1.0), (value + half).min(1.0)]),
        Metric::MeanAbs => around(errors.mean_abs?).map(|half| [(value - half).max(0.0), value + half]),
        _ => None,
    }
}

/// A figure of numeric differences.
fn value_of(metric: Metric, figures: &Figures<'_>) -> f64 {
    match metric {
        Metric::Cosine => figures.cosine(),
        Metric::RelL2 => figures.rel_l2(),
        Metric::MaxAbs => figures.max_abs(),
        Metric::MeanAbs => figures.mean_abs(),
        _ => figures.sqnr_db(),
    }
}

/// Successes and trials behind a share that counts samples.
fn share_of(share: f64, metric: Metric, result: &ComparisonResult) -> (u64, u64) {
    let task = result.classification();
    let samples = match metric.needs() {
        Needs::Labels => task.and_then(|task| task.accuracy.as_ref()).map(|accuracy| accuracy.samples),
        _ => task.and_then(|task| task.agreement.as_ref()).map(|agreement| agreement.samples),
    };
    let samples = samples.unwrap_or(0) as u64;
    ((share * samples as f64).round() as u64, samples)
}

fn measure(metric: Metric, part: Option<&str>, result: &ComparisonResult, footprint: &Footprint) -> Measured {
    let classification = result.classification();
    let agreement = classification.and_then(|task| task.agreement.as_ref()).ok_or("no output is a classification");
    let accuracy = classification.and_then(|task| task.accuracy.as_ref()).ok_or("no sample has a label");
    let reference = classification.and_then(|task| task.reference_accuracy.as_ref()).ok_or("no sample has a label");
    let map = result.map().and_then(|task| task.segmentation.as_ref()).ok_or("no output is a map of classes");
    let no_masks = "no sample has a label mask";
    let detection = result.detection.as_ref().ok_or("the model has no detection head that is known");
    let boxes = detection.and_then(|d| d.accuracy.as_ref().map(|a| a.figures).ok_or("no sample has labelled boxes"));
    let no_map = "no labelled box is of a class that counts";
    let worst = || {
        let concerned = Figures::of(&result.outputs, part)
            .ok_or("no output that is compared, and no part of one, has this name")?;
        let values =
            concerned.into_iter().filter(|figures| !figures.output.empty).map(|figures| value_of(metric, &figures));
        match metric.direction() {
            Direction::AtLeast => values.reduce(f64::min),
            Direction::AtMost => values.reduce(f64::max),
        }
        .ok_or("no output that it is for has an element")
    };
    let value = match metric {
        Metric::Top1 => agreement.map(|a| a.top1),
        Metric::Top5 => agreement.map(|a| a.top5_overlap),
        Metric::Top5Set => agreement.map(|a| a.top5_set),
        Metric::RefTop1InTop5 => agreement.map(|a| a.ref_top1_in_top5),
        Metric::Accuracy => accuracy.map(|a| a.top1),
        Metric::AccuracyTop5 => accuracy.map(|a| a.top5),
        Metric::AccuracyDrop => accuracy.and_then(|a| reference.map(|r| r.top1 - a.top1)),
        Metric::SqnrDb | Metric::Cosine | Metric::RelL2 | Metric::MaxAbs | Metric::MeanAbs => worst(),
        Metric::PixelAgreement => map.map(|m| m.pixel_agreement),
        Metric::MeanIou => map.map(|m| m.mean_iou),
        Metric::PixelAccuracy => map.and_then(|m| m.pixel_accuracy.ok_or(no_masks)),
        Metric::LabelMeanIou => map.and_then(|m| m.label_mean_iou.ok_or(no_masks)),
        Metric::Map5095 => boxes.and_then(|figures| figures.map50_95.ok_or(no_map)),
        Metric::Map50 => boxes.and_then(|figures| figures.map50.ok_or(no_map)),
        Metric::Map5095Drop => boxes.and_then(|figures| {
            let reference = detection?.reference_map50_95.ok_or(no_map)?;
            Ok(reference - figures.map50_95.ok_or(no_map)?)
        }),
        Metric::DetectionPrecision => detection.and_then(|d| {
            let DetectionAgreement { precision, common, lost, gained, .. } = d.agreement;
            if common + lost + gained > 0 { Ok(precision) } else { Err(NO_BOX) }
        }),
        Metric::DetectionRecall => detection.and_then(|d| {
            let DetectionAgreement { recall, common, lost, .. } = d.agreement;
            if common + lost > 0 { Ok(recall) } else { Err(NO_BOX) }
        }),
        Metric::DetectionIou => {
            detection.and_then(|d| d.agreement.mean_iou.ok_or("reference and target have no box in common"))
        }
        Metric::LatencyMs => footprint.latency_ms.ok_or(NO_TIMES),
        Metric::LatencyRatio => footprint.latency_ratio.ok_or(NO_TIMES),
        Metric::Own => result.own_metric.ok_or("no metric of one's own was given"),
        Metric::SizeMb => footprint.size_mb.ok_or("no file was made"),
    };
    match value {
        _ if result.samples == 0 && !matches!(metric.needs(), Needs::Times | Needs::Size) => {
            Measured::Missing("no sample was compared".to_owned())
        }
        Ok(value) if value == f64::INFINITY => Measured::Equal,
        Ok(value) => Measured::Value(value),
        Err(why) => Measured::Missing(why.to_owned()),
    }
}
