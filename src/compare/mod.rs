//! Reference and target over the same samples: how far apart, and does it matter.
//!
//! Result types stand here; each file computes one of them, streaming, in memory constant in the number of samples.

mod accuracy;
mod agreement;
mod append;
pub(crate) mod average_precision;
pub(crate) mod boxes;
mod classes;
mod detection;
mod device;
mod driver;
mod exported;
mod gates;
pub mod graphwise;
mod groups;
pub(crate) mod heads;
mod kind;
mod metrics;
mod objective;
mod own;
mod parts;
mod saved;
mod segmentation;
mod spread;
mod task;
mod totals;

pub use agreement::{FIVE, TopK, top_k};
pub use classes::{ClassAccuracy, Classes, Confusion};
pub use detection::{ChangedPicture, DetectionAccuracy, DetectionAgreement, DetectionResult};
pub use driver::{CompareOptions, Comparison, Sample};
pub use gates::{Direction, Footprint, Gate, GateError, GateResult, Metric, Needs};
pub(crate) use gates::{EQUAL, percent};
pub use kind::OutputKind;
pub use metrics::PairSums;
pub use objective::{Objective, Parts, ShapeDependsOnData};
pub use own::{Answers, OwnMetric};
pub use parts::{Part, PartSums, by_scale};
pub use saved::{OutputsWriter, SavedError, SavedOutputs};
pub use segmentation::ClassMap;
pub use spread::StandardErrors;
pub use task::{Accuracy, Agreement, Flip, Scored, Segmentation, SegmentationErrors, TaskResult};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::BackendError;

/// Differences between reference and target of one output, over all its values in all samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OutputMetrics {
    /// Name of the output.
    pub name: String,
    /// max |r - t|.
    pub max_abs: f64,
    /// mean |r - t|.
    pub mean_abs: f64,
    /// ‖r - t‖₂ / ‖r‖₂.
    pub rel_l2: f64,
    /// Cosine of the angle between r and t.
    pub cosine: f64,
    /// 10·log₁₀(Σr² / Σ(r - t)²), in decibels; absent when r and t are equal (infinite).
    pub sqnr_db: Option<f64>,
    /// The values are integers or flags.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub integers: bool,
    /// No sample has a value of it, so that nothing of it can be judged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty: bool,
    /// The same by part, where the output joins parts that mean something else or are of another size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartMetrics>,
}

/// Differences of one part of an output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PartMetrics {
    /// `boxes`, `objectness`, `scores`, or positions along the axis where only the size of the values tells parts apart.
    pub name: String,
    /// Axis of a sample, without the batch.
    pub axis: usize,
    /// Positions along it: the first of each run of neighbours, and the position behind its last.
    #[serde(default)]
    pub ranges: Vec<[usize; 2]>,
    /// max |r - t|.
    pub max_abs: f64,
    /// mean |r - t|.
    pub mean_abs: f64,
    /// ‖r - t‖₂ / ‖r‖₂.
    pub rel_l2: f64,
    /// Cosine of the angle between r and t.
    pub cosine: f64,
    /// As [`OutputMetrics::sqnr_db`].
    pub sqnr_db: Option<f64>,
}

impl PartMetrics {
    fn new(part: &Part, sums: &PairSums) -> Self {
        let OutputMetrics { name, max_abs, mean_abs, rel_l2, cosine, sqnr_db, .. } = sums.metrics(&part.name);
        Self {
            name,
            axis: part.axis,
            ranges: part.ranges.iter().map(|range| [range.start, range.end]).collect(),
            max_abs,
            mean_abs,
            rel_l2,
            cosine,
            sqnr_db,
        }
    }
}

/// Figures of an output, or of one of its parts.
#[derive(Clone, Copy, Debug)]
pub struct Figures<'a> {
    /// The output.
    pub output: &'a OutputMetrics,
    /// The part; `None` for an output of one piece.
    pub part: Option<&'a PartMetrics>,
}

impl Figures<'_> {
    /// As [`OutputMetrics::max_abs`].
    pub fn max_abs(&self) -> f64 {
        self.part.map_or(self.output.max_abs, |part| part.max_abs)
    }

    /// As [`OutputMetrics::mean_abs`].
    pub fn mean_abs(&self) -> f64 {
        self.part.map_or(self.output.mean_abs, |part| part.mean_abs)
    }

    /// As [`OutputMetrics::rel_l2`].
    pub fn rel_l2(&self) -> f64 {
        self.part.map_or(self.output.rel_l2, |part| part.rel_l2)
    }

    /// As [`OutputMetrics::cosine`].
    pub fn cosine(&self) -> f64 {
        self.part.map_or(self.output.cosine, |part| part.cosine)
    }

    /// As [`OutputMetrics::sqnr_db`], but infinite where nothing differs.
    pub fn sqnr_db(&self) -> f64 {
        self.part.map_or(self.output.sqnr_db, |part| part.sqnr_db).unwrap_or(f64::INFINITY)
    }

    /// True for the output or part that a gate names: the output, the part, or `output/part`.
    fn is(&self, name: &str) -> bool {
        let part = self.part.map(|part| part.name.as_str());
        self.output.name == name
            || part == Some(name)
            || part.is_some_and(|part| {
                name.strip_suffix(part).and_then(|name| name.strip_suffix('/')) == Some(&self.output.name)
            })
    }
}

impl<'a> Figures<'a> {
    /// The figures that count: those of every part of the outputs that are judged, or those of `name`, an output or part
    /// of one; `None` where there is nothing of this name.
    pub fn of(outputs: &'a [OutputMetrics], name: Option<&str>) -> Option<Vec<Self>> {
        let Some(name) = name else { return Some(OutputMetrics::judged_parts(outputs).collect()) };
        let named: Vec<Self> =
            outputs.iter().flat_map(OutputMetrics::by_part).filter(|figures| figures.is(name)).collect();
        (!named.is_empty()).then_some(named)
    }
}

impl OutputMetrics {
    /// The figures of every part of those outputs that are judged; an output without parts is one.
    pub fn judged_parts(outputs: &[Self]) -> impl Iterator<Item = Figures<'_>> {
        Self::judged(outputs).flat_map(Self::by_part)
    }

    /// Name of the part with the least SQNR, `output/part`; `None` where an output of one piece has it.
    pub fn worst_part(outputs: &[Self]) -> Option<String> {
        let worst = Self::judged_parts(outputs).min_by(|a, b| a.sqnr_db().total_cmp(&b.sqnr_db()))?;
        worst.part.map(|part| format!("{}/{}", worst.output.name, part.name))
    }

    /// The figures of its parts; its own without any.
    fn by_part(&self) -> impl Iterator<Item = Figures<'_>> {
        let whole = self.parts.is_empty().then_some(None);
        whole.into_iter().chain(self.parts.iter().map(Some)).map(|part| Figures { output: self, part })
    }

    /// Those of `outputs` that say how close two models are: integers (indices, counts, flags), whose differences mean
    /// nothing, only where there is nothing else; none without a value.
    pub fn judged(outputs: &[Self]) -> impl Iterator<Item = &Self> {
        let filled = || outputs.iter().filter(|output| !output.empty);
        let all = filled().all(|output| output.integers);
        filled().filter(move |output| all || !output.integers)
    }

    /// The least SQNR of the outputs that are judged, and of their parts, in decibels: infinite where nothing differs.
    pub fn worst_sqnr_db(outputs: &[Self]) -> Option<f64> {
        Self::judged_parts(outputs).map(|figures| figures.sqnr_db()).reduce(f64::min)
    }
}

/// Values that are not finite, counted on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NonFinite {
    /// NaN in the reference.
    pub reference_nan: u64,
    /// ±∞ in the reference.
    pub reference_infinite: u64,
    /// NaN in the target.
    pub target_nan: u64,
    /// ±∞ in the target.
    pub target_infinite: u64,
    /// Places where the two sides are not the same NaN or infinity: an error that no other figure shows.
    pub differing: u64,
}

impl NonFinite {
    /// What has to be known of figures of `output`, which leave such values out.
    fn beside(&self, output: &str) -> String {
        match self.differing {
            0 => format!(
                "{} values of output `{output}` are NaN or infinite on both sides alike",
                self.reference_nan + self.reference_infinite
            ),
            differing => format!("output `{output}` differs in {differing} NaN or infinite values besides"),
        }
    }
}

/// Everything a [`Comparison`] found. What concerns one output bears the reference's name of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ComparisonResult {
    /// Samples compared.
    pub samples: usize,
    /// Numeric differences of every output, in the reference's order.
    pub outputs: Vec<OutputMetrics>,
    /// Outputs with values that are not finite.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub non_finite: BTreeMap<String, NonFinite>,
    /// How far the differences of an output scatter over the samples.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub standard_errors: BTreeMap<String, StandardErrors>,
    /// Figures of the outputs that are classifications or maps, in the reference's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskResult>,
    /// Boxes of a detector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<DetectionResult>,
    /// What the metric of the caller's own gives, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_metric: Option<f64>,
    /// Which output was compared with which.
    pub pairs: Vec<OutputPair>,
    /// Outputs that were not compared: the target's that the reference lacks, and those whose kind is `ignored`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_outputs: Vec<String>,
}

impl ComparisonResult {
    /// The first output that is a classification.
    pub fn classification(&self) -> Option<&TaskResult> {
        self.tasks.iter().find(|task| task.agreement.is_some())
    }

    /// How near the target is to the reference in decibels: the SQNR of the worst output or part of one, infinite where
    /// nothing differs. Boxes that were chosen in the model have no such figure: there it is -10·log₁₀(1 - F1), in the
    /// same direction.
    pub fn closeness_db(&self) -> f64 {
        match (&self.detection, OutputMetrics::worst_sqnr_db(&self.outputs)) {
            (_, Some(sqnr_db)) => sqnr_db,
            (Some(detection), None) => -10.0 * (1.0 - detection.agreement.f1()).log10(),
            (None, None) => f64::INFINITY,
        }
    }

    /// The first output that is a map.
    pub fn map(&self) -> Option<&TaskResult> {
        self.tasks.iter().find(|task| task.segmentation.is_some())
    }

    /// A sentence for every output with NaN or infinities: the numeric differences leave them out. And one for every
    /// output without values.
    pub fn warnings(&self) -> Vec<String> {
        let sentence = |(output, counts): (&String, &NonFinite)| match counts.differing {
            0 => format!("{}; all figures leave them out", counts.beside(output)),
            _ => format!(
                "output `{output}` has {} values that are NaN or infinite in one model and not in the other ({} NaN and {} \
                 infinite in the reference, {} and {} in the target); SQNR and the other differences leave them out",
                counts.differing,
                counts.reference_nan,
                counts.reference_infinite,
                counts.target_nan,
                counts.target_infinite
            ),
        };
        let empty = self.outputs.iter().filter(|output| output.empty);
        let nothing = |output: &OutputMetrics| format!("output `{}` has no elements, and is not judged", output.name);
        self.non_finite.iter().map(sentence).chain(empty.map(nothing)).collect()
    }
}

/// Two outputs that were compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OutputPair {
    /// Its name in the reference.
    pub reference: String,
    /// Its name in the target.
    pub target: String,
    /// They were paired by their position, since no name is shared.
    pub by_position: bool,
}

/// Why two sets of outputs cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// An output of the reference has no counterpart.
    #[error("the {side} has no output `{name}` (it has: {available}); compare models with the same outputs")]
    MissingOutput {
        /// `reference` or `target`.
        side: &'static str,
        /// The output.
        name: String,
        /// What there is.
        available: String,
    },
    /// An option names an output that the reference lacks.
    #[error("a kind is set for output `{name}`, which the reference does not have (it has: {known})")]
    UnknownOutput {
        /// The output.
        name: String,
        /// What there is.
        known: String,
    },
    /// The metric of the caller's own, with its reason.
    #[error("the metric failed: {0}")]
    OwnMetric(String),
    /// The kind of every output is `ignored`.
    #[error("the kind of every output is `ignored`: nothing is left to compare; leave one out of --output-kind")]
    AllIgnored,
    /// Shapes differ.
    #[error(
        "output `{output}` has shape {reference:?} in the reference and {target:?} in the target; where its shape depends on \
         the data, as behind NonMaxSuppression, leave it out with --output-kind {output}=ignored"
    )]
    OutputShape {
        /// The output.
        output: String,
        /// Its shape in the reference.
        reference: Vec<usize>,
        /// Its shape in the target.
        target: Vec<usize>,
    },
    /// The GPU failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The leading extent is not the batch.
    #[error(
        "output `{output}` of shape {shape:?} does not begin with the batch of {samples} samples; use --batch 1, or, where it \
         says nothing about the samples, leave it out with --output-kind {output}=ignored"
    )]
    Batch {
        /// The output.
        output: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Samples in the batch.
        samples: usize,
    },
    /// The values do not fit the detection head.
    #[error("sample {sample}: {reason}; set [detection] head, or --head none for a model that is not a detector")]
    Boxes {
        /// The sample.
        sample: String,
        /// What does not fit.
        reason: String,
    },
    /// Two comparisons do not go on from each other.
    #[error("output `{output}` {reason}; join parts of one comparison, of the same models and options")]
    Parts {
        /// The output.
        output: String,
        /// What differs.
        reason: String,
    },
    /// The values do not fit the output's kind.
    #[error("output `{output}`, sample {sample}: {reason}; set the output's kind to `generic` if it is something else")]
    Kind {
        /// The output.
        output: String,
        /// The sample.
        sample: String,
        /// What does not fit.
        reason: String,
    },
}
