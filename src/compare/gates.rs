//! Gates: thresholds on the figures of a comparison, written `metric=threshold`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{ComparisonResult, OutputMetrics};

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
    SqnrDb "sqnr_db" AtLeast "signal to quantization noise in decibels, of the worst output";
    Cosine "cosine" AtLeast "cosine between reference and target, of the worst output";
    RelL2 "rel_l2" AtMost "relative error in the 2-norm, of the worst output";
    MaxAbs "max_abs" AtMost "largest absolute difference, of the worst output";
    MeanAbs "mean_abs" AtMost "mean absolute difference, of the worst output";
    PixelAgreement "pixel_agreement" AtLeast "share of pixels with the same class as the reference";
    MeanIou "mean_iou" AtLeast "mean intersection over union with the reference";
    PixelAccuracy "pixel_accuracy" AtLeast "share of pixels that match the label masks";
    LabelMeanIou "label_mean_iou" AtLeast "mean intersection over union with the label masks";
}

impl Metric {
    /// The least value of a metric that is a share of something, 1 being the most; `None` for others.
    fn least(self) -> Option<i8> {
        match self {
            Self::SqnrDb | Self::RelL2 | Self::MaxAbs | Self::MeanAbs => None,
            Self::Cosine | Self::AccuracyDrop => Some(-1),
            Self::Top1
            | Self::Top5
            | Self::Top5Set
            | Self::RefTop1InTop5
            | Self::Accuracy
            | Self::AccuracyTop5
            | Self::PixelAgreement
            | Self::MeanIou
            | Self::PixelAccuracy
            | Self::LabelMeanIou => Some(0),
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
    #[error("gate `{0}` is not of the form metric=threshold with a finite number, as in top1=0.98")]
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
}

fn known() -> String {
    Metric::ALL.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ")
}

/// A threshold on a metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Gate {
    /// What is tested.
    pub metric: Metric,
    /// The least or the most allowed, by [`Metric::direction`].
    pub threshold: f64,
}

/// The outcome of a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GateResult {
    /// What was tested.
    pub metric: Metric,
    /// Whether the threshold is the least or the most.
    pub direction: Direction,
    /// The threshold.
    pub threshold: f64,
    /// What was measured; absent when `note` says why.
    pub value: Option<f64>,
    /// The outcome. What could not be measured does not pass.
    pub passed: bool,
    /// Why there is no value, or why it does not count.
    pub note: Option<String>,
}

impl FromStr for Gate {
    type Err = GateError;

    fn from_str(text: &str) -> Result<Self, GateError> {
        let (name, threshold) = text.split_once('=').ok_or_else(|| GateError::Form(text.to_owned()))?;
        let name = name.trim();
        let metric = Metric::ALL.iter().copied().find(|metric| metric.name() == name);
        let metric = metric.ok_or_else(|| GateError::Unknown { name: name.to_owned(), gate: text.to_owned() })?;
        let threshold = threshold.trim().parse().ok().filter(|x: &f64| x.is_finite());
        let threshold = threshold.ok_or_else(|| GateError::Form(text.to_owned()))?;
        if let Some(least) = metric.least().filter(|&least| !(f64::from(least)..=1.0).contains(&threshold)) {
            return Err(GateError::Range { gate: text.to_owned(), metric: metric.name(), least });
        }
        Ok(Self { metric, threshold })
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.metric.name(), self.threshold)
    }
}

/// What a comparison says about a metric.
enum Measured {
    Value(f64),
    /// No difference at all: an infinite SQNR.
    Equal,
    Missing(&'static str),
}

impl Gate {
    /// Tests the figures of a comparison.
    ///
    /// A metric of numeric differences does not pass when NaN or infinities differ, which no such figure shows.
    pub fn evaluate(&self, result: &ComparisonResult) -> GateResult {
        let Self { metric, threshold } = *self;
        let direction = metric.direction();
        let outcome =
            |value, passed, note: Option<String>| GateResult { metric, direction, threshold, value, passed, note };
        let differing = result.non_finite.iter().find(|(_, counts)| numeric(metric) && counts.differing > 0);
        let note = differing.map(|(output, counts)| {
            format!("output `{output}` differs in {} NaN or infinite values besides", counts.differing)
        });
        match measure(metric, result) {
            Measured::Missing(why) => outcome(None, false, Some(why.to_owned())),
            Measured::Equal if note.is_some() => outcome(None, false, note),
            Measured::Equal => outcome(None, true, Some("equal to the reference".to_owned())),
            Measured::Value(value) => {
                let within = match direction {
                    Direction::AtLeast => value >= threshold,
                    Direction::AtMost => value <= threshold,
                };
                outcome(Some(value), within && note.is_none(), note)
            }
        }
    }
}

fn numeric(metric: Metric) -> bool {
    matches!(metric, Metric::SqnrDb | Metric::Cosine | Metric::RelL2 | Metric::MaxAbs | Metric::MeanAbs)
}

fn measure(metric: Metric, result: &ComparisonResult) -> Measured {
    let classification = result.classification();
    let agreement = classification.and_then(|task| task.agreement.as_ref()).ok_or("no output is a classification");
    let accuracy = classification.and_then(|task| task.accuracy.as_ref()).ok_or("no sample has a label");
    let reference = classification.and_then(|task| task.reference_accuracy.as_ref()).ok_or("no sample has a label");
    let map = result.map().and_then(|task| task.segmentation.as_ref()).ok_or("no output is a map of classes");
    let no_masks = "no sample has a label mask";
    let worst = |of: fn(&OutputMetrics) -> f64| {
        let values = OutputMetrics::judged(&result.outputs).map(of);
        match metric.direction() {
            Direction::AtLeast => values.reduce(f64::min),
            Direction::AtMost => values.reduce(f64::max),
        }
        .ok_or("there are no outputs")
    };
    let value = match metric {
        Metric::Top1 => agreement.map(|a| a.top1),
        Metric::Top5 => agreement.map(|a| a.top5_overlap),
        Metric::Top5Set => agreement.map(|a| a.top5_set),
        Metric::RefTop1InTop5 => agreement.map(|a| a.ref_top1_in_top5),
        Metric::Accuracy => accuracy.map(|a| a.top1),
        Metric::AccuracyTop5 => accuracy.map(|a| a.top5),
        Metric::AccuracyDrop => accuracy.and_then(|a| reference.map(|r| r.top1 - a.top1)),
        Metric::SqnrDb => worst(|output| output.sqnr_db.unwrap_or(f64::INFINITY)),
        Metric::Cosine => worst(|output| output.cosine),
        Metric::RelL2 => worst(|output| output.rel_l2),
        Metric::MaxAbs => worst(|output| output.max_abs),
        Metric::MeanAbs => worst(|output| output.mean_abs),
        Metric::PixelAgreement => map.map(|m| m.pixel_agreement),
        Metric::MeanIou => map.map(|m| m.mean_iou),
        Metric::PixelAccuracy => map.and_then(|m| m.pixel_accuracy.ok_or(no_masks)),
        Metric::LabelMeanIou => map.and_then(|m| m.label_mean_iou.ok_or(no_masks)),
    };
    match value {
        _ if result.samples == 0 => Measured::Missing("no sample was compared"),
        Ok(value) if value == f64::INFINITY => Measured::Equal,
        Ok(value) => Measured::Value(value),
        Err(why) => Measured::Missing(why),
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn accuracy(top1: f64) -> Accuracy {
        Accuracy {
            top1,
            top1_interval: [0.0, 1.0],
            top5: 0.9,
            top5_interval: [0.0, 1.0],
            samples: 100,
            mcnemar_p: None,
        }
    }

    fn output(name: &str, sqnr_db: Option<f64>, max_abs: f64) -> OutputMetrics {
        OutputMetrics {
            name: name.to_owned(),
            max_abs,
            mean_abs: 0.1,
            rel_l2: 0.01,
            cosine: 0.99,
            sqnr_db,
            integers: false,
        }
    }

    fn result() -> ComparisonResult {
        let mut task = TaskResult::new("a", OutputKind::Classification);
        task.agreement = Some(Agreement {
            top1: 0.98,
            top1_interval: [0.9, 1.0],
            top5_overlap: 0.94,
            top5_set: 0.7,
            ref_top1_in_top5: 1.0,
            samples: 100,
        });
        (task.accuracy, task.reference_accuracy) = (Some(accuracy(0.74)), Some(accuracy(0.75)));
        let outputs = vec![output("a", Some(18.0), 0.5), output("b", None, 0.0), output("c", Some(14.5), 0.25)];
        ComparisonResult { samples: 100, outputs, tasks: vec![task], ..ComparisonResult::default() }
    }

    fn evaluate(gate: &str, result: &ComparisonResult) -> (Option<f64>, bool, Option<String>) {
        let outcome = gate.parse::<Gate>().unwrap().evaluate(result);
        (outcome.value, outcome.passed, outcome.note)
    }

    #[test]
    fn each_direction_includes_its_threshold() {
        let result = result();
        assert_eq!(evaluate("top1=0.98", &result), (Some(0.98), true, None));
        assert_eq!(evaluate("top1=0.981", &result), (Some(0.98), false, None));
        assert_eq!(evaluate(" max_abs = 0.5 ", &result), (Some(0.5), true, None));
        assert_eq!(evaluate("max_abs=0.4", &result), (Some(0.5), false, None));
        assert_eq!(evaluate("sqnr_db=15", &result), (Some(14.5), false, None));
        let (value, passed, _) = evaluate("accuracy_drop=0.02", &result);
        assert!(passed && (value.unwrap() - 0.01).abs() < 1e-12);
        assert!(!evaluate("accuracy_drop=0.005", &result).1);
        // Integers do not count beside other outputs.
        let mut indexed = result.clone();
        indexed.outputs[2].integers = true;
        assert_eq!(evaluate("sqnr_db=15", &indexed), (Some(18.0), true, None));
        indexed.outputs.iter_mut().for_each(|output| output.integers = true);
        assert_eq!(evaluate("sqnr_db=15", &indexed), (Some(14.5), false, None));
    }

    #[test]
    fn what_was_not_measured_does_not_pass() {
        let mut result = result();
        assert_eq!(evaluate("mean_iou=0", &result), (None, false, Some("no output is a map of classes".to_owned())));
        result.tasks[0].accuracy = None;
        assert_eq!(evaluate("accuracy_drop=1", &result), (None, false, Some("no sample has a label".to_owned())));
        assert_eq!(evaluate("top1=0", &ComparisonResult::default()).2.unwrap(), "no sample was compared");
        result.outputs.truncate(1);
        result.outputs[0].sqnr_db = None;
        assert_eq!(evaluate("sqnr_db=99", &result), (None, true, Some("equal to the reference".to_owned())));
    }

    #[test]
    fn differing_nan_fails_numeric_gates_only() {
        let mut result = result();
        result.non_finite.insert("b".to_owned(), NonFinite { target_nan: 3, differing: 3, ..NonFinite::default() });
        let (value, passed, note) = evaluate("cosine=0.5", &result);
        assert_eq!((value, passed), (Some(0.99), false));
        assert_eq!(note.unwrap(), "output `b` differs in 3 NaN or infinite values besides");
        result.outputs.retain(|output| output.sqnr_db.is_none());
        assert!(!evaluate("sqnr_db=5", &result).1);
        assert!(evaluate("top1=0.5", &result).1);
    }

    #[test]
    fn gates_that_cannot_be_read_say_what_can() {
        let error = |text: &str| text.parse::<Gate>().unwrap_err().to_string();
        assert!(error("topp=1").starts_with("unknown metric `topp` in gate `topp=1`; known are top1, top5, "));
        assert!(error("top1").contains("metric=threshold"));
        assert!(error("top1=nan").contains("finite number"));
        assert_eq!(error("top1=98"), "gate `top1=98`: top1 lies between 0 and 1; write top1=0.98 for 98 %");
        assert!(
            error("accuracy=-0.1").contains("between 0 and 1") && error("accuracy_drop=2").contains("between -1 and 1")
        );
        assert!("sqnr_db=98".parse::<Gate>().is_ok() && "accuracy_drop=-0.01".parse::<Gate>().is_ok());
        assert_eq!("top1=0.98".parse::<Gate>().unwrap().to_string(), "top1=0.98");
    }
}
