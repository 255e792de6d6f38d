//! A metric that Python has: a callable over the outputs of all samples and their names.

use std::sync::{Arc, Mutex, PoisonError};

use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};
use trtcalib::{
    compare::{Answers, OwnMetric},
    tensor::{Tensor, Values},
};

/// A callable, and what it raised.
pub struct Metric {
    function: Py<PyAny>,
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Metric {
    pub fn new(function: Py<PyAny>) -> Self {
        Self { function, raised: Arc::default() }
    }

    /// The same for a session.
    pub fn of_session(&self, py: Python<'_>) -> OwnMetric {
        let (function, raised) = (self.function.clone_ref(py), Arc::clone(&self.raised));
        OwnMetric::new(move |answers| {
            Python::attach(|py| {
                let call = || function.bind(py).call1(arguments(py, answers)?)?.extract();
                call().map_err(|error: PyErr| {
                    let reason = error.to_string();
                    *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    reason
                })
            })
        })
    }

    /// What the metric raised is raised again as it was.
    pub fn raise<T>(&self, result: PyResult<T>) -> PyResult<T> {
        result.map_err(|error| self.raised.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(error))
    }
}

/// A list of dicts from output name to array, one a sample and without the batch axis, and the list of names.
fn arguments(py: Python<'_>, answers: Vec<Answers>) -> PyResult<(Bound<'_, PyList>, Vec<String>)> {
    let (samples, mut names) = (PyList::empty(py), Vec::new());
    for Answers { ids, outputs } in answers {
        let dicts: Vec<_> = ids.iter().map(|_| PyDict::new(py)).collect();
        for (name, tensor) in outputs {
            let is_batch = ids.len() != 1 || tensor.shape().first() == Some(&1);
            let array = array(py, tensor)?;
            for (row, dict) in dicts.iter().enumerate() {
                dict.set_item(&name, if is_batch { array.get_item(row)? } else { array.clone() })?;
            }
        }
        dicts.into_iter().try_for_each(|dict| samples.append(dict))?;
        names.extend(ids);
    }
    Ok((samples, names))
}

/// An array over the values of a tensor. bfloat16, which NumPy lacks, becomes float32.
fn array(py: Python<'_>, tensor: Tensor) -> PyResult<Bound<'_, PyAny>> {
    fn over<T: Element>(py: Python<'_>, values: Vec<T>, shape: Vec<usize>) -> PyResult<Bound<'_, PyAny>> {
        Ok(PyArray1::from_vec(py, values).reshape(shape)?.into_any())
    }
    let shape = tensor.shape().to_vec();
    match tensor.into_parts().1 {
        Values::F32(values) => over(py, values, shape),
        Values::F16(values) => over(py, values, shape),
        Values::Bf16(values) => over(py, values.into_iter().map(f32::from).collect::<Vec<f32>>(), shape),
        Values::F64(values) => over(py, values, shape),
        Values::I64(values) => over(py, values, shape),
        Values::I32(values) => over(py, values, shape),
        Values::I16(values) => over(py, values, shape),
        Values::I8(values) => over(py, values, shape),
        Values::U8(values) => over(py, values, shape),
        Values::U16(values) => over(py, values, shape),
        Values::U32(values) => over(py, values, shape),
        Values::U64(values) => over(py, values, shape),
        Values::Bool(values) => over(py, values, shape),
    }
}
