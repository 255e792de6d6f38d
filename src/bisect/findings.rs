//! What `calib bisect` found, as one serializable value: `bisect.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    first::FirstDivergence,
    probes::ProbeReport,
    search::{CurvePoint, Outcome, SearchResult},
    trials::Verdict,
};
use crate::{
    analyse::{
        advice::Advice,
        cost::Cost,
        graphwise::{Graphwise, TensorDivergence},
        layerwise::{LayerError, OutputNoise},
    },
    artifact::{ContentHash, Tool},
    compare::Gate,
    quantize::{ModelGraph, Precision},
};

/// Format version of [`Findings`].
pub const FINDINGS_FORMAT_VERSION: u32 = 1;

/// Everything found; what was not looked for is empty or absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// [`FINDINGS_FORMAT_VERSION`].
    pub format_version: u32,
    /// What wrote the file.
    pub tool: Tool,
    /// The float model's file.
    pub model: String,
    /// Its hash.
    pub model_hash: ContentHash,
    /// Whether the samples, or those that gave the ranges, are random numbers: it says nothing about real data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_data: bool,
    /// What was looked into: a precision, or another model or file.
    pub target: String,
    /// What computed the target: `onnxruntime-cpu`, `onnxruntime-cuda`, an engine's `tensorrt-rtx`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// What every operator does by itself, in the order of execution.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerError>,
    /// What the worst operators do to the outputs, each quantized alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputNoise>,
    /// SQNR of the result of every operator with all of them quantized, in decibels, by node; absent without error.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accumulated_sqnr_db: BTreeMap<String, f64>,
    /// Median milliseconds of every operator in float, each alone on this machine's processor, where lifting costs time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub float_ms: BTreeMap<String, f64>,
    /// The first divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<FirstDivergence<TensorDivergence>>,
    /// Every tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Graphwise>,
    /// Engines that were built to look into one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<ProbeReport>,
    /// The search for the smallest plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanFindings>,
    /// The model's graph, to show all of this in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<ModelGraph>,
    /// What follows.
    pub advice: Vec<Advice>,
    /// Wall time of all of it.
    pub seconds: f64,
}

/// The search and its check on other samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanFindings {
    /// What had to pass; the first gives the score.
    pub gates: Vec<Gate>,
    /// What nodes are lifted to.
    pub lift: Precision,
    /// What lifting a node costs.
    pub cost: Cost,
    /// How the search went.
    pub search: SearchResult,
    /// The trade-off: plans that no cheaper one equals.
    pub curve: Vec<CurvePoint>,
    /// Samples searched on.
    pub samples: usize,
    /// The plan on samples that were not used to find it.
    pub check: Option<Verdict>,
    /// How many of them.
    pub check_samples: usize,
    /// Why no plan can pass on so few samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undecided: Option<String>,
}

impl PlanFindings {
    /// A plan was found that passes where it was searched, and on the other samples too.
    pub fn passed(&self) -> bool {
        matches!(self.search.outcome, Outcome::AlreadyPasses { .. } | Outcome::Found { .. })
            && self.check.as_ref().is_none_or(|check| check.passed)
    }
}
