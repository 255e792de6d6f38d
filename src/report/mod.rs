//! What a run found, as one serializable value ([`Report`], `report.json`), and its renderings for people and machines.
//!
//! The types stand in `model`, one file for each rendering beside it. Rendering never measures or computes a metric: a
//! report read back from its JSON gives the same pages, byte for byte.

mod assemble;
mod bisection;
mod charts;
mod classes;
mod csv;
mod details;
pub(crate) mod elsewhere;
mod engines;
#[cfg(test)]
mod example;
mod format;
mod graph;
mod html;
mod json;
mod junit;
mod metrics;
mod model;
mod model_explorer;
mod regression;
mod runs;
mod summary;
mod table;

pub use bisection::bisection_html;
pub use csv::layers_csv;
pub use format::{bytes, rfc3339, shell_word};
pub use graph::{Drawn, NodeTimes, graph_html};
pub use html::{html, html_with};
pub use json::schema;
pub use junit::{failed_junit, junit};
pub use model::{
    ArtifactFile, Calibration, CandidateResult, DatasetInfo, Elsewhere, EngineInside, EngineLayerTime, EngineOutputs,
    Environment, Gate, Gpu, Histogram, Labels, LatencyMs, Layer, Machine, ModelInfo, NodeTime, OutputTask, Precision,
    Recovery, RecoveryRow, Report, SkippedSample, SpeedAt, Speedup, StageTime, TiedBy, Verdict,
};

pub use model_explorer::{OVERLAYS, model_explorer};
pub use regression::{LATENCY_NOISE, Regressions, SHARE_NOISE, SQNR_NOISE_DB, regressions, unlike};
pub use runs::{Run, runs_html, runs_table, trend_html};
pub use summary::{failed_page, failed_summary, failed_table, summary, worst_layers};
pub use table::Table;

pub use crate::{
    analyse::advice::{Advice, AdviceLevel},
    bench::Timing,
};

/// Format version of [`Report`].
pub const REPORT_FORMAT_VERSION: u32 = 1;
