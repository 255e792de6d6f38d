//! Trials of a bisection that other processes count, each over a part of the samples.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use pyo3::{prelude::*, types::PyBytes};
use trtcalib::{
    onnx::Model,
    session::{TrialCounter, TrialPart},
};

use crate::{data, errors::Raised, host, json, open, settings};

/// Counts trials for a process that searches, with the same settings and samples.
#[pyclass(frozen)]
pub struct Trials(Mutex<TrialCounter>);

#[pymethods]
impl Trials {
    #[new]
    #[pyo3(signature = (settings_json, file, samples, listener))]
    fn new(
        py: Python<'_>,
        settings_json: &str,
        file: Option<PathBuf>,
        samples: Option<Py<data::Samples>>,
        listener: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let config = settings(settings_json, file)?;
        let counter = host::run(py, listener, move |host| TrialCounter::new(open(config, samples, host)?))?;
        Ok(Self(Mutex::new(counter)))
    }

    /// What is counted of a model over the samples of these indices.
    fn count(&self, py: Python<'_>, model: Vec<u8>, samples: Vec<usize>) -> PyResult<String> {
        host::run(py, None, |_| {
            let mut counter = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            json(&counter.count(&Model::from_bytes(model)?, &samples)?)
        })
    }
}

/// Asks a callable what all parts of the samples counted of a model: from the bytes of the model and the indices of the samples
/// to what [`Trials::count`] gives for each part. What it raises is kept.
pub fn counted_by(
    count: Py<PyAny>,
    raised: Raised,
) -> impl Fn(&Model, &[usize]) -> Result<Vec<TrialPart>, String> + Send + Sync + 'static {
    move |model, samples| {
        let bytes = model.to_bytes().map_err(|error| error.to_string())?;
        let parts: Vec<String> = Python::attach(|py| {
            let call = || count.bind(py).call1((PyBytes::new(py, &bytes), samples.to_vec()))?.extract();
            call().map_err(|error| raised.keep(error))
        })?;
        parts.iter().map(|part| serde_json::from_str(part).map_err(|error| error.to_string())).collect()
    }
}
