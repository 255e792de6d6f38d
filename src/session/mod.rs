//! The stages of a run put together: prepare a model, open its data, observe, choose thresholds, compare, time.
//!
//! Every stage takes plain options and returns a plain result; none prints. `commands` puts them in order.

pub mod calibration;
pub mod checkpoint;
pub mod data;
pub mod detector;
pub mod environment;
pub mod evaluation;
pub mod model;
mod outputs;

use std::sync::atomic::AtomicBool;

use crate::{
    analyse::layerwise::AnalysisError,
    artifact::ArtifactError,
    backend::BackendError,
    calibrate::CalibrateError,
    compare::{CompareError, SavedError, heads::HeadError},
    dataset::{DatasetError, PassError},
    onnx::ModelError,
    quantize::QuantizeError,
};

/// Why a stage failed. Variants carry the message of the module that refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each wraps the error of one module")]
pub enum PipelineError {
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
    #[error("{0}")]
    Input(String),
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
