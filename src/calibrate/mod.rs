//! Ranges of activations, from data: observe once, choose a threshold by any method afterwards.
//!
//! [`Observing`] streams batches through a runner and counts every tensor's magnitudes ([`Histograms`]); [`tables`]
//! turns the counts into thresholds. Shards of the data may be observed apart and [merged](Histograms::merge): the
//! result is the same to the last bit.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::{ArtifactError, ContentHash, Tool},
    backend::BackendError,
    dataset::PassError,
    tensor::ElementType,
};

pub mod cache;
pub(crate) mod entropy;
pub mod histogram;
mod histograms;
mod kernel;
pub(crate) mod mse;
mod observe;
pub(crate) mod percentile;
mod recovered;
#[cfg(test)]
mod samples;
mod table;

pub use histograms::{Histograms, Provenance, Shards};
pub use observe::{Batch, Observing, check_complete, observe};
pub use recovered::{
    BiasCorrection, DeployTo, Effort, Equalized, Lifted, Recovered, RecoveredFp8, RecoveryStep, Rounding, Shift,
    ShiftPolicy, StepKind,
};
pub use table::tables;

/// Why tensors could not be calibrated, or a calibration not be used.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The model could not be run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Too many samples cannot be read, or the user stopped.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A file could not be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// There were no samples.
    #[error("there is no sample to calibrate on; ranges without data would mean nothing")]
    NoData,
    /// A tensor to calibrate does not come out of the runner.
    #[error("tensor `{tensor}` is neither an input nor an output of the model that runs; name it as an extra output")]
    NoSuchTensor {
        /// The tensor.
        tensor: String,
    },
    /// The tensor does not hold floating-point numbers.
    #[error("tensor `{tensor}` holds {element_type}, which cannot be calibrated; leave it out")]
    NotFloat {
        /// The tensor.
        tensor: String,
        /// What it holds.
        element_type: ElementType,
    },
    /// NaN or an infinity.
    #[error("tensor `{tensor}` holds NaN or an infinity for {sample}; check the preprocessing and the float model")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// The sample, or all samples of the batch where they cannot be told apart.
        sample: String,
    },
    /// The model ran, but never gave a value of the tensor.
    #[error("tensor `{tensor}` had no value in any sample, so it has no range; leave it out")]
    NeverObserved {
        /// The tensor.
        tensor: String,
    },
    /// `auto` without samples to measure on.
    #[error("method `auto` measures on held-out calibration samples, and there are none; give more or name a method")]
    NoHeldOut,
    /// Not a share of the values.
    #[error("percentile {0} is not above 0 and at most 100")]
    Percentile(f64),
    /// The calibration was made for another model.
    #[error("this calibration was made for model {made_for}, but the model at hand is {model}; calibrate again")]
    OtherModel {
        /// Hash of the model that was calibrated.
        made_for: ContentHash,
        /// Hash of the model to use it for.
        model: ContentHash,
    },
    /// The table does not cover a tensor.
    #[error("the calibration table has no range for tensor `{tensor}`; calibrate again with this model and plan")]
    NoRange {
        /// The tensor.
        tensor: String,
    },
    /// Histograms that cannot be added up.
    #[error("these histograms cannot be merged: {0}")]
    Merge(String),
    /// Some shards are not there yet.
    #[error("shard {missing} of {count} is missing; merge all shards before making a table")]
    Incomplete {
        /// The first missing shard, from 1.
        missing: u32,
        /// Number of shards.
        count: u32,
    },
}

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

impl Method {
    /// Every method.
    pub const ALL: [Self; 4] = [Self::MinMax, Self::Percentile, Self::Entropy, Self::Mse];

    /// The threshold of a histogram; `percentile` in percent. 0 for a tensor of zeros.
    pub fn threshold(self, histogram: &histogram::Histogram, percentile: f64) -> f32 {
        match self {
            Self::MinMax => histogram.amax(),
            Self::Percentile => percentile::threshold(histogram, percentile),
            Self::Entropy => entropy::threshold(histogram),
            Self::Mse => mse::threshold(histogram),
        }
    }

    /// As written in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::MinMax => "minmax",
            Self::Percentile => "percentile",
            Self::Entropy => "entropy",
            Self::Mse => "mse",
        }
    }
}

/// One method for all tensors, or the best for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// For every tensor the method whose threshold has the least quantization error on held-out samples.
    #[default]
    Auto,
    /// The same for all.
    #[serde(untagged)]
    Method(Method),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Method(method) => method.name(),
        })
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let choices = [Self::Auto].into_iter().chain(Method::ALL.map(Self::Method));
        choices.into_iter().find(|choice| choice.to_string() == name).ok_or_else(|| {
            format!("`{name}` is not a calibration method; use auto, entropy, percentile, mse or minmax")
        })
    }
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
    /// By node name, for each output channel what to add to the bias of the node when it runs in INT8: the mean of the
    /// float result minus that of the quantized one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bias_corrections: BTreeMap<String, Vec<f32>>,
    /// Largest finite magnitudes of the other FP32 tensors, seen over a few samples; those between 2⁻¹⁰ and 1024, and 0, are
    /// left out. Absent where they were not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub magnitudes: Option<BTreeMap<String, f32>>,
    /// The samples observed, by name, with the first 16 digits of a hash of what each of them is; empty where they were random or are not known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calibrated_on: BTreeMap<String, String>,
    /// What recovery found beyond ranges; absent where it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<Recovered>,
    /// The same for FP8, whose ranges and biases are others; absent where it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp8: Option<RecoveredFp8>,
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
