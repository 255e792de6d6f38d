//! Gates: thresholds on the figures of a target, written `[precision:]metric[[part]]=threshold[@confidence]`.
//!
//! `top1=0.98`, `top1>=0.98` (the same; a metric is bounded on one side only), `int8:top1=0.98` (for INT8 alone),
//! `sqnr_db[boxes]=15` (one output, or one part of an output, alone), `top1>=0.98@95%` (the bound of the 95 % interval that lies towards failing).

mod evaluate;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub(crate) use evaluate::EQUAL;
pub use evaluate::Footprint;

/// Which side of a threshold is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The value must not be smaller.
    AtLeast,
    /// The value must not be larger.
    AtMost,
}

macro_rules! metrics {
    ($($variant:ident $name:literal $direction:ident $doc:literal;)*) => {
        /// A figure that a gate can test.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Metric { $(#[doc = $doc] #[serde(rename = $name)] $variant,)* }

        impl Metric {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// Its name in `metric=threshold`.
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
            /// Whether its threshold is the least or the most.
            pub fn direction(self) -> Direction { match self { $(Self::$variant => Direction::$direction,)* } }
            /// What it is, in a few words.
            pub fn description(self) -> &'static str { match self { $(Self::$variant => $doc,)* } }
        }
    };
}

metrics! {
    Top1 "top1" AtLeast "share of samples with the same arg-max as the reference";
    Top5 "top5" AtLeast "mean overlap of the five best classes";
    Top5Set "top5_set" AtLeast "share of samples with the same set of five best classes";
    RefTop1InTop5 "ref_top1_in_top5" AtLeast "share of samples whose reference arg-max is among the target's five";
    Accuracy "accuracy" AtLeast "top-1 accuracy on labelled samples";
    AccuracyTop5 "accuracy_top5" AtLeast "top-5 accuracy on labelled samples";
    AccuracyDrop "accuracy_drop" AtMost "top-1 accuracy of the reference less that of the target";
    SqnrDb "sqnr_db" AtLeast "signal to quantization noise in decibels, of the worst output or part of one";
    Cosine "cosine" AtLeast "cosine between reference and target, of the worst output or part of one";
    RelL2 "rel_l2" AtMost "relative error in the 2-norm, of the worst output or part of one";
    MaxAbs "max_abs" AtMost "largest absolute difference, of the worst output or part of one";
    MeanAbs "mean_abs" AtMost "mean absolute difference, of the worst output or part of one";
    PixelAgreement "pixel_agreement" AtLeast "share of pixels with the same class as the reference";
    MeanIou "mean_iou" AtLeast "mean intersection over union with the reference";
    PixelAccuracy "pixel_accuracy" AtLeast "share of pixels that match the label masks";
    LabelMeanIou "label_mean_iou" AtLeast "mean intersection over union with the label masks";
    Map5095 "map50_95" AtLeast "mean average precision over IoU 0.5 to 0.95, on labelled boxes";
    Map50 "map50" AtLeast "mean average precision at IoU 0.5, on labelled boxes";
    Map5095Drop "map50_95_drop" AtMost "map50_95 of the reference less that of the target";
    DetectionPrecision "detection_precision" AtLeast "share of the target's boxes that the reference has too";
    DetectionRecall "detection_recall" AtLeast "share of the reference's boxes that the target has too";
    DetectionIou "detection_iou" AtLeast "mean overlap of the boxes that reference and target have";
    LatencyMs "latency_ms" AtMost "median latency in milliseconds";
    LatencyRatio "latency_ratio" AtMost "latency by that of fp32 on the same backend";
    Own "metric" AtLeast "metric of one's own: a function that is given in Python";
    SizeMb "size_mb" AtMost "size of the model or engine in megabytes (10^6 bytes)";
}

/// What must be there before a metric can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing but the outputs of both sides.
    Outputs,
    /// Samples with a class.
    Labels,
    /// Samples with label masks.
    Masks,
    /// Samples with labelled boxes.
    Boxes,
    /// A benchmark.
    Times,
    /// A file.
    Size,
}

impl Metric {
    /// The least value of a metric that is a share of something, 1 being the most; `None` for others.
    fn least(self) -> Option<i8> {
        match self {
            Self::SqnrDb
            | Self::RelL2
            | Self::MaxAbs
            | Self::MeanAbs
            | Self::LatencyMs
            | Self::LatencyRatio
            | Self::Own
            | Self::SizeMb => None,
            Self::Cosine | Self::AccuracyDrop | Self::Map5095Drop => Some(-1),
            Self::Top1
            | Self::Top5
            | Self::Top5Set
            | Self::RefTop1InTop5
            | Self::Accuracy
            | Self::AccuracyTop5
            | Self::PixelAgreement
            | Self::MeanIou
            | Self::PixelAccuracy
            | Self::LabelMeanIou
            | Self::Map5095
            | Self::Map50
            | Self::DetectionPrecision
            | Self::DetectionRecall
            | Self::DetectionIou => Some(0),
        }
    }

    /// True for a figure of every output, of which the worst counts; a gate may name one of them.
    pub fn is_numeric(self) -> bool {
        matches!(self, Self::SqnrDb | Self::Cosine | Self::RelL2 | Self::MaxAbs | Self::MeanAbs)
    }

    /// True for a count of samples by their number: such a share has a confidence interval.
    pub fn is_counted(self) -> bool {
        matches!(self, Self::Top1 | Self::Top5Set | Self::RefTop1InTop5 | Self::Accuracy | Self::AccuracyTop5)
    }

    /// True for a figure whose 95 % interval comes from drawing the pictures anew.
    pub fn is_resampled(self) -> bool {
        matches!(
            self,
            Self::Map5095
                | Self::Map50
                | Self::Map5095Drop
                | Self::DetectionPrecision
                | Self::DetectionRecall
                | Self::DetectionIou
        )
    }

    /// True for a figure whose interval follows from how the samples scatter.
    pub fn is_estimated(self) -> bool {
        matches!(
            self,
            Self::Top5
                | Self::AccuracyDrop
                | Self::SqnrDb
                | Self::Cosine
                | Self::RelL2
                | Self::MeanAbs
                | Self::PixelAgreement
                | Self::MeanIou
                | Self::PixelAccuracy
                | Self::LabelMeanIou
        )
    }

    /// What must be there to measure it.
    pub fn needs(self) -> Needs {
        match self {
            Self::Accuracy | Self::AccuracyTop5 | Self::AccuracyDrop => Needs::Labels,
            Self::PixelAccuracy | Self::LabelMeanIou => Needs::Masks,
            Self::Map5095 | Self::Map50 | Self::Map5095Drop => Needs::Boxes,
            Self::LatencyMs | Self::LatencyRatio => Needs::Times,
            Self::SizeMb => Needs::Size,
            _ => Needs::Outputs,
        }
    }
}

/// A gate could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// There is no such metric.
    #[error("unknown metric `{name}` in gate `{gate}`; known are {}", known())]
    Unknown {
        /// The metric.
        name: String,
        /// The whole text.
        gate: String,
    },
    /// Not of the form `metric=threshold`.
    #[error(
        "gate `{0}` is not of the form [precision:]metric[[output]]=threshold[@confidence] with a finite number, as in \
         top1=0.98, int8:top1=0.98, sqnr_db[logits]=15 or top1>=0.98@95%"
    )]
    Form(String),
    /// A threshold that no value of the metric, or every one, passes.
    #[error("gate `{gate}`: {metric} lies between {least} and 1; write {metric}=0.98 for 98 %")]
    Range {
        /// The whole text.
        gate: String,
        /// The metric's name.
        metric: &'static str,
        /// The least value there is.
        least: i8,
    },
    /// Bounded on the side where every better value fails.
    #[error("gate `{gate}`: of {metric} {better} is better; write {metric}{sign}{threshold}", better = better(*.direction), sign = .direction.sign())]
    Side {
        /// The whole text.
        gate: String,
        /// The metric's name.
        metric: &'static str,
        /// The side that it may be bounded on.
        direction: Direction,
        /// The threshold as it was written.
        threshold: String,
    },
    /// A part of a metric that has none.
    #[error("gate `{gate}`: {metric} is not a figure of a single output; leave out the brackets")]
    Part {
        /// The whole text.
        gate: String,
        /// The metric's name.
        metric: &'static str,
    },
    /// A confidence that cannot be had.
    #[error("gate `{gate}`: {reason}")]
    Confidence {
        /// The whole text.
        gate: String,
        /// Why not.
        reason: String,
    },
}

fn known() -> String {
    Metric::ALL.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ")
}

fn better(direction: Direction) -> &'static str {
    if direction == Direction::AtLeast { "more" } else { "less" }
}

impl Direction {
    /// As it is typed: `>=` or `<=`.
    pub fn sign(self) -> &'static str {
        match self {
            Self::AtLeast => ">=",
            Self::AtMost => "<=",
        }
    }
}

/// A threshold on a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Gate {
    /// The precision that it is for; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// What is tested.
    pub metric: Metric,
    /// The output, the part of an output, or `output/part` that it is for; absent for the worst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// The least or the most allowed, by [`Metric::direction`].
    pub threshold: f64,
    /// The level of the interval whose bound is tested instead of the value, between 0 and 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// Confidence of intervals that come from drawing the pictures anew.
const RESAMPLED_LEVEL: f64 = 0.95;

/// The outcome of a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GateResult {
    /// What was tested.
    pub metric: Metric,
    /// The output that it was tested on; absent for the worst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Whether the threshold is the least or the most.
    pub direction: Direction,
    /// The threshold.
    pub threshold: f64,
    /// The level of the interval whose bound was tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// What was measured; absent when `note` says why.
    pub value: Option<f64>,
    /// The 95 % interval of the value, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// The bound of the interval, where that was tested instead of the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// The outcome. What could not be measured does not pass.
    pub passed: bool,
    /// Why there is no value, or why it does not count.
    pub note: Option<String>,
}

impl FromStr for Gate {
    type Err = GateError;

    fn from_str(text: &str) -> Result<Self, GateError> {
        let form = || GateError::Form(text.to_owned());
        let (subject, bound) = text.rsplit_once('=').ok_or_else(form)?;
        let (subject, written) = match subject.trim_end() {
            subject if subject.ends_with('>') => (&subject[..subject.len() - 1], Some(Direction::AtLeast)),
            subject if subject.ends_with('<') => (&subject[..subject.len() - 1], Some(Direction::AtMost)),
            subject => (subject, None),
        };
        let (name, part) = match subject.trim().strip_suffix(']') {
            Some(rest) => rest.split_once('[').map(|(name, part)| (name, Some(part.trim()))).ok_or_else(form)?,
            None => (subject, None),
        };
        let (precision, name) = match name.split_once(':') {
            Some((precision, name)) => (Some(precision.trim().to_lowercase()), name.trim()),
            None => (None, name.trim()),
        };
        if part == Some("") || precision.as_deref() == Some("") {
            return Err(form());
        }
        let metric = Metric::ALL.iter().copied().find(|metric| metric.name() == name);
        let metric = metric.ok_or_else(|| GateError::Unknown { name: name.to_owned(), gate: text.to_owned() })?;
        let (threshold, confidence) = match bound.split_once('@') {
            Some((threshold, level)) => (threshold.trim(), Some(level.trim())),
            None => (bound.trim(), None),
        };
        let (gate, name) = (text.to_owned(), metric.name());
        let direction = metric.direction();
        if written.is_some_and(|written| written != direction) {
            return Err(GateError::Side { gate, metric: name, direction, threshold: threshold.to_owned() });
        }
        if part.is_some() && !metric.is_numeric() {
            return Err(GateError::Part { gate, metric: name });
        }
        let threshold = threshold.parse().ok().filter(|x: &f64| x.is_finite()).ok_or_else(form)?;
        if let Some(least) = metric.least().filter(|&least| !(f64::from(least)..=1.0).contains(&threshold)) {
            return Err(GateError::Range { gate, metric: name, least });
        }
        let confidence = confidence
            .map(|level| confidence_of(metric, threshold, level))
            .transpose()
            .map_err(|reason| GateError::Confidence { gate, reason })?;
        Ok(Self { precision, metric, part: part.map(str::to_owned), threshold, confidence })
    }
}

/// The level of `95%` or `0.95`.
fn confidence_of(metric: Metric, threshold: f64, level: &str) -> Result<f64, String> {
    // Intervals that are worked out at one level only.
    let at_one_level = metric.is_resampled() || metric.needs() == Needs::Times;
    let has_one = |metric: &Metric| {
        metric.is_counted() || metric.is_resampled() || metric.is_estimated() || metric.needs() == Needs::Times
    };
    if !has_one(&metric) {
        let known = Metric::ALL.iter().copied().filter(has_one);
        let known: Vec<&str> = known.map(Metric::name).collect();
        return Err(format!("{} has no confidence interval; {} have one", metric.name(), known.join(", ")));
    }
    if threshold >= 1.0 && metric.least().is_some() {
        return Err("no number of samples shows a share of 1 with any confidence; ask for less".to_owned());
    }
    let share = match level.strip_suffix('%') {
        Some(percent) => percent.trim().parse().map(|percent: f64| percent / 100.0),
        None => level.parse(),
    };
    let share = share
        .ok()
        .filter(|share| (0.5..=0.9999).contains(share))
        .ok_or_else(|| format!("`{level}` is not a confidence between 50% and 99.99%; write @95%"))?;
    if at_one_level && share != RESAMPLED_LEVEL {
        return Err(format!(
            "intervals of {} are at {} confidence; write @95%",
            metric.name(),
            percent(RESAMPLED_LEVEL)
        ));
    }
    Ok(share)
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(precision) = &self.precision {
            write!(f, "{precision}:")?;
        }
        write!(f, "{}={}", self.subject(), self.threshold)?;
        self.confidence.map_or(Ok(()), |level| write!(f, "@{}", percent(level)))
    }
}

impl Gate {
    /// What is tested, for people and as a key: `top1`, `sqnr_db[boxes]`.
    pub fn subject(&self) -> String {
        subject(self.metric, self.part.as_deref())
    }

    /// Whether it asks for an interval that takes drawing the pictures anew.
    pub fn resamples(&self) -> bool {
        self.confidence.is_some() && self.metric.is_resampled()
    }

    /// The value behind a score, which is negated where less is better.
    pub fn value_of(&self, score: f64) -> f64 {
        if self.metric.direction() == Direction::AtMost { 0.0 - score } else { score }
    }

    /// Whether it is for a precision.
    pub fn is_for(&self, precision: &str) -> bool {
        self.precision.as_deref().is_none_or(|of| of == precision)
    }
}

impl GateResult {
    /// What was tested, for people: `top1`, `sqnr_db[boxes]`.
    pub fn subject(&self) -> String {
        subject(self.metric, self.part.as_deref())
    }
}

fn subject(metric: Metric, part: Option<&str>) -> String {
    part.map_or_else(|| metric.name().to_owned(), |part| format!("{}[{part}]", metric.name()))
}

/// `95%`.
pub(crate) fn percent(level: f64) -> String {
    // Six digits hide what multiplying by 100 adds.
    let rounded = (level * 1e8).round() / 1e6;
    format!("{rounded}%")
}

#[cfg(test)]
mod tests;
