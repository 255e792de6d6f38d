//! What was measured of a precision on another machine, where its model was built and run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EngineInside, LatencyMs, Speedup};
use crate::{bench::Throughput, compare::OutputMetrics};

/// Figures of a precision from another machine, and how they were told to be of this model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Elsewhere {
    /// Where it ran.
    pub machine: Machine,
    /// Files that the figures come from.
    pub files: Vec<String>,
    /// Those of them that name neither model nor precision, or not both: who gave them vouches for that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_word: Vec<String>,
    /// What ties the others to this model and precision.
    pub tied_by: TiedBy,
    /// Time of one call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<LatencyMs>,
    /// Samples a second, from the same calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput_fps: Option<Throughput>,
    /// Against the reference on the same machine. The runs are not paired: the interval goes from the low end of one median's
    /// 95 % interval to the high end of the other's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup: Option<Speedup>,
    /// The layers that the builder made there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineInside>,
    /// Time of every layer of the engine, in the order of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layer_times: Vec<EngineLayerTime>,
    /// The engine's outputs on the given inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<EngineOutputs>,
}

/// A machine, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// GPU or board.
    pub name: String,
    /// Version of TensorRT; of TensorRT-RTX, and of what only stands in for TensorRT, with that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensorrt: Option<String>,
    /// Version of the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Operating system and architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// When it was measured (RFC 3339, UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// What ties a file from elsewhere to a model of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TiedBy {
    /// SHA-256 of the model file there.
    Hash,
    /// Names of nodes or tensors, and shapes, in one of the files.
    Shapes,
    /// Nothing but the word of who gave the files: times tell no model.
    Word,
}

/// Time of a layer of an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EngineLayerTime {
    /// TensorRT's name of the layer.
    pub layer: String,
    /// Mean of a call.
    pub mean_ms: f64,
    /// Median of a call, where it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_ms: Option<f64>,
    /// Share of the time of all layers, between 0 and 1.
    pub share: f64,
}

/// Differences on the given inputs, told apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EngineOutputs {
    /// Samples in the given inputs.
    pub samples: usize,
    /// The engine against the same model in ONNX Runtime: the engine's own error.
    pub engine: Vec<OutputMetrics>,
    /// The model against the float model, both in ONNX Runtime: the error of quantization or conversion.
    pub model: Vec<OutputMetrics>,
    /// The engine against the float model: both together.
    pub together: Vec<OutputMetrics>,
    /// Places where the engine gives NaN or infinities and the same model in ONNX Runtime does not, or the other way round.
    /// No other figure shows them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub non_finite: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Time of the engine's layer that a node became part of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeTime {
    /// The machine's name.
    pub machine: String,
    /// TensorRT's name of the layer.
    pub engine_layer: String,
    /// Mean time of the whole layer in a call.
    pub ms: f64,
    /// Its share of the time of all layers, between 0 and 1.
    pub share: f64,
    /// ONNX nodes in the layer, which share the time.
    pub nodes: usize,
}
