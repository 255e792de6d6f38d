//! Latency and throughput: the protocol of the measurement and the figures that summarise it.

use serde::{Deserialize, Serialize};

/// Time of one inference call, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Latency {
    /// Median.
    pub median: f64,
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
    /// Mean.
    pub mean: f64,
    /// Half-width of the 95 % confidence interval of the mean.
    pub uncertainty: f64,
    /// Largest minus smallest.
    pub jitter: f64,
}
