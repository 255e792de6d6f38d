//! Reference and target over the same samples: how far apart, and does it matter.
//!
//! Result types stand here; each file computes one of them, streaming, in memory constant in the number of samples.

mod metrics;

pub use metrics::PairSums;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
}

/// Shares of samples, each between 0 and 1, on which reference and target agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Agreement {
    /// Same arg-max.
    pub top1: f64,
    /// Wilson 95 % confidence interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Mean of |top5(reference) ∩ top5(target)| / 5.
    pub top5_overlap: f64,
    /// Same set of five.
    pub top5_set: f64,
    /// The reference's first is among the target's five.
    pub ref_top1_in_top5: f64,
    /// Samples compared.
    pub samples: usize,
}

/// Shares of labelled samples, each between 0 and 1, that a model gets right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Accuracy {
    /// The label is the arg-max.
    pub top1: f64,
    /// Wilson 95 % confidence interval of `top1`.
    pub top1_interval: [f64; 2],
    /// The label is among the five largest.
    pub top5: f64,
    /// Wilson 95 % confidence interval of `top5`.
    pub top5_interval: [f64; 2],
    /// Labelled samples.
    pub samples: usize,
    /// McNemar's test of `top1` against the reference: the probability of a difference this large if both were
    /// equally good. Absent for the reference itself.
    pub mcnemar_p: Option<f64>,
}

/// Agreement of outputs that are maps of classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Segmentation {
    /// Share of pixels with the same class as the reference.
    pub pixel_agreement: f64,
    /// Mean over classes of intersection over union with the reference.
    pub mean_iou: f64,
    /// Intersection over union of every class that occurs, by class index.
    pub class_iou: BTreeMap<u32, f64>,
    /// Share of pixels that match the label masks, where masks were given.
    pub pixel_accuracy: Option<f64>,
    /// Mean intersection over union with the label masks, where masks were given.
    pub label_mean_iou: Option<f64>,
}

/// One class and its score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Scored {
    /// Class index.
    pub class: u32,
    /// Class name, where names are known.
    pub name: Option<String>,
    /// The output's value (a logit, usually).
    pub score: f32,
}

/// A sample whose arg-max changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Flip {
    /// The sample (its file, usually).
    pub sample: String,
    /// The right class, where it is known.
    pub label: Option<u32>,
    /// The reference's five best, best first.
    pub reference: Vec<Scored>,
    /// The target's five best, best first.
    pub target: Vec<Scored>,
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
