//! Ranges of activations, from data: observe once, choose a threshold by any method afterwards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::artifact::{ContentHash, Tool};

/// How the threshold (`amax`) of a tensor is chosen from its histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The largest magnitude.
    MinMax,
    /// The magnitude below which a share of all values lies.
    Percentile,
    /// Least Kullback-Leibler divergence between the histogram and its 128-level version.
    Entropy,
    /// Least mean squared error of fake quantization.
    Mse,
}

/// Format version of [`CalibrationTable`].
pub const TABLE_FORMAT_VERSION: u32 = 1;

/// `calibration.json`: the range and scale of every tensor that will be quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CalibrationTable {
    /// [`TABLE_FORMAT_VERSION`].
    pub format_version: u32,
    /// What wrote the table.
    pub tool: Tool,
    /// Hash of the model the ranges belong to.
    pub model_hash: ContentHash,
    /// Hash over the names of the samples and their preprocessing.
    pub data_hash: ContentHash,
    /// `auto` or a method's name: what was asked for.
    pub method: String,
    /// Percentile of [`Method::Percentile`], in percent (99.99).
    pub percentile: f64,
    /// Number of samples observed.
    pub samples: usize,
    /// True when the data was random (`--random-data`); every report made from the table says so.
    pub random_data: bool,
    /// By tensor name.
    pub tensors: BTreeMap<String, TensorRange>,
}

/// What was seen of one tensor and what was made of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TensorRange {
    /// Smallest value seen.
    pub min: f32,
    /// Largest value seen.
    pub max: f32,
    /// Values seen.
    pub count: u64,
    /// The threshold in force; `scale` for INT8 is `amax / 127`.
    pub amax: f32,
    /// The method that `amax` comes from.
    pub method: Method,
    /// Every method's threshold.
    pub candidates: BTreeMap<Method, f32>,
    /// Share of values beyond `amax`, between 0 and 1.
    pub clipped: f64,
}
