//! What a run found, as one serializable value ([`Report`], `report.json`), and its renderings for people and machines.
//!
//! The types stand in `model`, one file for each rendering beside it. Rendering never measures or computes a metric: a
//! report read back from its JSON gives the same pages, byte for byte.

mod model;

pub use model::{
    Advice, AdviceLevel, ArtifactFile, Bound, Calibration, CandidateResult, DatasetInfo, Environment, Gate, Gpu,
    Histogram, Labels, LatencyMs, Layer, ModelInfo, Precision, Report, SkippedSample, Speedup, Timing, Verdict,
};

/// Format version of [`Report`].
pub const REPORT_FORMAT_VERSION: u32 = 1;
