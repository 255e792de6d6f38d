//! Calibration and recovery in `report.json`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    calibrate::{DeployTo, Effort, Lifted, Recovered, RecoveryStep},
    compare::{Agreement, OutputMetrics},
};

/// How the ranges were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Calibration {
    /// The method in force; `mixed` when tensors differ.
    pub method: String,
    /// Percentile of the percentile method, in percent.
    pub percentile: f64,
    /// Samples observed.
    pub samples: usize,
    /// The ranges come from random inputs, here or where the table was made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_data: bool,
    /// Wall time of the pass over the data and of the choice of ranges.
    pub seconds: f64,
    /// Samples a second of the pass.
    pub images_per_second: f64,
    /// Largest resident memory of the process up to the end of calibration.
    pub peak_rss_bytes: u64,
    /// What every method gives on held-out samples.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<CandidateResult>,
}

/// What recovery tried, and what it made of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recovery {
    /// How far it went.
    pub effort: Effort,
    /// The runtime that it was made for.
    pub deploy_to: DeployTo,
    /// What was tried, in order.
    pub steps: Vec<RecoveryRow>,
    /// Activations that are quantized around another centre than 0.
    pub shifted: Vec<String>,
    /// Activations whose channels are multiplied by powers of two before they are quantized.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub equalized: Vec<String>,
    /// Weights whose codes are not the nearest ones.
    pub rounded: Vec<String>,
    /// Nodes that stay in the high precision, those that gain most first.
    pub lifted: Vec<Lifted>,
}

/// One step of recovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecoveryRow {
    /// `biases`, `ranges`, `equalization`, `shift`, `descent`, `rounding`, `lifting`, `compensation`, or several that were tried at once; `gates` where these hold, so that nothing more was tried; `methods` for what the methods alone give; `recovery` with the reason where it could not be tried at all.
    pub name: String,
    /// Whether its result is in the model.
    pub kept: bool,
    /// Signal to noise of the worst part of the outputs before it, in decibels, on held-out samples.
    pub before_db: Option<f64>,
    /// The same with it.
    pub after_db: Option<f64>,
    /// 95 % interval of the difference of both, over pairs of held-out calls; absent for fewer than two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain_interval_db: Option<[f64; 2]>,
    /// Wall time; 0 where an earlier run did it.
    pub seconds: f64,
    /// What it changed, or why it was not kept.
    pub what: String,
}

impl Recovery {
    /// What a calibration table tells of it.
    pub fn new(recovered: &Recovered) -> Self {
        let row = |step: &RecoveryStep| RecoveryRow {
            name: step.name.clone(),
            kept: step.kept,
            before_db: step.before_db,
            after_db: step.after_db,
            gain_interval_db: step.gain_interval_db,
            seconds: step.seconds,
            what: step.what.clone(),
        };
        Self {
            effort: recovered.effort,
            deploy_to: recovered.deploy_to,
            steps: recovered.steps.iter().map(row).collect(),
            shifted: recovered.shifts.keys().cloned().collect(),
            equalized: recovered.equalized.keys().cloned().collect(),
            rounded: recovered.rounding.keys().cloned().collect(),
            lifted: recovered.lifted.clone(),
        }
    }
}

/// One calibration method on held-out samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CandidateResult {
    /// The method's name; `auto` for the best method of each tensor by itself.
    pub method: String,
    /// True with biases that take back the mean error of quantization.
    #[serde(default)]
    pub bias_correction: bool,
    /// True with the thresholds of all calibration samples, among which the last choice is made; otherwise with those of
    /// the samples that were not held out.
    #[serde(default)]
    pub final_thresholds: bool,
    /// True for the method in force.
    pub chosen: bool,
    /// Held-out samples.
    pub samples: usize,
    /// Agreement with the reference, for classifiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Differences from the reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputMetrics>,
    /// 95 % interval of the SQNR of the worst output or part of one, in decibels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db_interval: Option<[f64; 2]>,
}
