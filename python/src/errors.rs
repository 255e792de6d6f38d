//! Exceptions, with the messages of the program.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::{create_exception, exceptions::PyException, prelude::*};
use trtcalib::{
    artifact::ArtifactError,
    backend::BackendError,
    session::{PipelineError, describe},
};

create_exception!(
    trtcalib,
    CalibError,
    PyException,
    "Something that was asked for cannot be done; the message names the cure."
);
create_exception!(trtcalib, ModelError, CalibError, "A model cannot be read, quantized or run.");
create_exception!(trtcalib, DataError, CalibError, "Samples, labels or calibration tables cannot be used.");
create_exception!(trtcalib, RuntimeLibraryError, CalibError, "ONNX Runtime, TensorRT or a GPU cannot be used.");

/// The exception for a failed stage.
pub fn exception(error: &PipelineError) -> PyErr {
    let text = describe(error);
    match root(error) {
        PipelineError::Model(_) | PipelineError::Quantize(_) | PipelineError::Graph(_) => ModelError::new_err(text),
        PipelineError::Dataset(_)
        | PipelineError::Pass(_)
        | PipelineError::Calibrate(_)
        | PipelineError::Saved(_)
        | PipelineError::Artifact(ArtifactError::Read { .. } | ArtifactError::Format { .. })
        | PipelineError::Backend(BackendError::Input { .. }) => DataError::new_err(text),
        PipelineError::Backend(_) | PipelineError::Engine(_) => RuntimeLibraryError::new_err(text),
        _ => CalibError::new_err(text),
    }
}

fn root(error: &PipelineError) -> &PipelineError {
    match error {
        PipelineError::Within { source, .. } => root(source),
        other => other,
    }
}

/// What a callable of Python raised while the library worked.
#[derive(Clone, Default)]
pub struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    /// Keeps it, and gives its reason.
    pub fn keep(&self, error: PyErr) -> String {
        let reason = error.to_string();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        reason
    }

    /// Raises it again as it was, instead of the error that it led to.
    pub fn again<T>(&self, result: PyResult<T>) -> PyResult<T> {
        result.map_err(|error| self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(error))
    }
}

/// Adds the exceptions to a module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("CalibError", py.get_type::<CalibError>())?;
    module.add("ModelError", py.get_type::<ModelError>())?;
    module.add("DataError", py.get_type::<DataError>())?;
    module.add("RuntimeLibraryError", py.get_type::<RuntimeLibraryError>())
}
