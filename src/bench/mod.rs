//! Latency and throughput: the protocol of the measurement and the figures that summarise it.

mod export;
mod protocol;
mod slower;
mod summary;

pub use export::profile_json;
pub use protocol::{BenchError, Clock, Protocol, SystemClock, Timed, measure};
pub use slower::slowdowns;
pub use summary::run;

use serde::{Deserialize, Serialize};

pub use crate::backend::Phases;

/// Calls over which layers are timed.
pub const LAYER_CALLS: usize = 20;

/// Time of one inference call, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Latency {
    /// Median.
    pub median: f64,
    /// 95 % interval of the median (order statistics).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_interval: Option<[f64; 2]>,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation.
    pub std: f64,
    /// Largest minus smallest.
    pub jitter: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Half-width of the 95 % confidence interval of `p99` (order statistics).
    pub p99_uncertainty: f64,
    /// Calls measured.
    pub count: usize,
    /// Samples in each call.
    pub batch: usize,
}

/// Samples per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Throughput {
    /// Median.
    pub median: f64,
    /// All samples by the time that their calls took together.
    pub mean: f64,
    /// Half-width of the 95 % confidence interval of the mean, from that of the mean time of a call.
    pub uncertainty: f64,
    /// Largest minus smallest.
    pub jitter: f64,
}

/// How many times faster than the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SpeedUp {
    /// Ratio of the median times for a sample.
    pub ratio: f64,
    /// 95 % confidence interval (paired bootstrap over the rounds).
    pub interval: [f64; 2],
}

/// What a latency is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Timing {
    /// The precision's own kernels.
    Measured,
    /// A float runtime that imitates the precision: never a statement about its speed.
    Emulated,
}

/// The conditions of a measurement, without which its figures mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Mode {
    /// Execution provider or runtime.
    pub provider: String,
    /// Threads (CPU) or streams (GPU).
    pub threads: usize,
    /// Copies between host and device are part of the time.
    pub transfers: bool,
    /// The call was replayed as a CUDA graph.
    #[serde(default)]
    pub cuda_graph: bool,
}

/// Begin and end of one call, in milliseconds since the measurement began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Call {
    /// Begin.
    pub start_ms: f64,
    /// End.
    pub end_ms: f64,
    /// The parts of the call on a device, where the backend tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phases: Option<Phases>,
}

/// All measured calls of one target, in their order: the n-th calls of all targets are one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Times {
    /// Name of the target.
    pub name: String,
    /// Samples in each call.
    pub batch: usize,
    /// How they were made.
    pub mode: Mode,
    /// What they are of.
    pub timing: Timing,
    /// Calls before the measurement.
    pub warm_up_calls: usize,
    /// Whether the times had settled by then.
    pub settled: bool,
    /// The calls.
    pub calls: Vec<Call>,
}

/// What was measured of one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Measurement {
    /// The calls.
    pub times: Times,
    /// Time of a call; absent without calls.
    pub latency: Option<Latency>,
    /// Samples per second; absent without calls.
    pub throughput: Option<Throughput>,
    /// Against the reference of the same batch size and thread count; absent for the reference, where there is none, and
    /// where one of both is emulated.
    pub speed_up: Option<SpeedUp>,
    /// What makes the figures doubtful, in sentences.
    pub warnings: Vec<String>,
}
