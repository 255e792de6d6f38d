//! The stages of a run put together: prepare a model, open its data, observe, choose thresholds, compare, time.
//!
//! [`Session::open`] resolves a configuration once; the stages are its methods. None prints: a [`Host`] hears what happens
//! as [`Event`]s, and warnings and notes are kept for the report.

/// Returns an error about what was given, with a formatted message.
macro_rules! bail {
    ($($message:tt)*) => {
        return Err($crate::session::PipelineError::Input(format!($($message)*)))
    };
}

/// The same unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            bail!($($message)*);
        }
    };
}

mod batch;
mod benchmark;
mod bisect;
pub mod calibration;
pub mod checkpoint;
mod compared;
mod comparison;
pub(crate) mod data;
pub(crate) mod detector;
mod engine;
pub mod environment;
pub mod evaluation;
mod events;
mod folder;
mod formats;
mod gates;
mod given;
mod inputs;
pub mod model;
mod opened;
mod outputs;
mod quantization;
mod ranges;
mod resume;
mod run;
#[cfg(test)]
mod same_figures;
mod scheme;
mod shard;
mod suggest;
mod target;
mod timings;

pub use benchmark::{BenchOptions, BenchOutcome, counted};
pub use bisect::{BisectOptions, BisectOutcome, Find, TrialCounter, TrialPart};
pub use compared::{CompareOutcome, Compared, TargetOutcome};
pub use comparison::CompareRequest;
pub use engine::{EngineOrder, declared};
pub use events::{Event, Host, Interrupted, Sink};
pub use folder::{OutputFolder, check_folders, is_result};
pub use formats::FloatTypes;
pub use given::outputs_for;
pub use inputs::Inputs;
pub use opened::Session;
pub use quantization::{QuantizeOutcome, QuantizeRequest, check_rules, quantize_file, read_table};
pub use ranges::{CalibrateOptions, Calibrated};
pub use run::{
    RunOutcome, UNFINISHED, check_tensorrt, page_of, record_beginning, record_failure, set_findings_aside, write_report,
};
pub use scheme::{quantize_options, scheme, unmatched};
pub use shard::Shard;
pub use target::{Target, fill_from_sidecar};

use std::sync::atomic::AtomicBool;

use crate::{
    analyse::{layerwise::AnalysisError, operators::OperatorError},
    artifact::ArtifactError,
    backend::{
        BackendError,
        cuda::CudaError,
        tensorrt::{InspectorError, TensorRtError},
    },
    bench::BenchError,
    calibrate::CalibrateError,
    compare::{CompareError, GateError, SavedError, heads::HeadError},
    config::ConfigError,
    dataset::{DatasetError, PassError},
    onnx::{GraphError, ModelError},
    quantize::QuantizeError,
};

/// Why a stage failed. Variants carry the message of the module that refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each wraps the error of one module")]
pub enum PipelineError {
    #[error(transparent)]
    Recover(#[from] crate::recover::RecoverError),
    #[error(transparent)]
    Deploy(#[from] crate::deploy::DeployError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    Analysis(#[from] AnalysisError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Engine(#[from] TensorRtError),
    #[error(transparent)]
    Inspector(#[from] InspectorError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Bench(#[from] BenchError<BackendError>),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("a result cannot be written out")]
    Render(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Input(String),
    #[error("{what}")]
    Within { what: String, source: Box<PipelineError> },
}

impl PipelineError {
    /// What is wrong with what was given.
    pub(crate) fn input(reason: impl Into<String>) -> Self {
        Self::Input(reason.into())
    }

    pub(crate) fn render(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Render(Box::new(error))
    }

    /// True when an error is about the disk and not about a model.
    fn is_about_the_disk(&self) -> bool {
        chain(self).any(<dyn std::error::Error>::is::<std::io::Error>)
    }
}

impl From<OperatorError> for PipelineError {
    fn from(error: OperatorError) -> Self {
        Self::Analysis(error.into())
    }
}

impl From<CudaError> for PipelineError {
    fn from(error: CudaError) -> Self {
        Self::Backend(error.into())
    }
}

/// Says what was being done when something failed.
pub(crate) trait Within<T> {
    fn within(self, what: impl FnOnce() -> String) -> Result<T, PipelineError>;
}

impl<T, E: Into<PipelineError>> Within<T> for Result<T, E> {
    fn within(self, what: impl FnOnce() -> String) -> Result<T, PipelineError> {
        self.map_err(|error| PipelineError::Within { what: what(), source: Box::new(error.into()) })
    }
}

fn chain<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// An error with its causes, each said once.
pub fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in chain(error).skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// What all stages need to know of the machine and the user's patience.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Threads that read samples.
    pub threads: usize,
    /// Ends a stage between batches when set.
    pub stop: &'a AtomicBool,
    /// Called with the number of samples done since the last call.
    pub progress: &'a (dyn Fn(usize) + Sync),
    /// Where a stage keeps what it has done so far, if anywhere.
    pub checkpoints: Option<&'a checkpoint::Checkpoints>,
}
