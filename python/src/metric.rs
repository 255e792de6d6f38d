//! A metric that Python has: a callable over the outputs of all samples and their names.

use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};
use trtcalib::{
    compare::{Answers, OwnMetric},
    tensor::{Tensor, Values},
};

use crate::errors::Raised;

/// The metric of a callable. What it raises is kept.
pub fn own(function: Py<PyAny>, raised: Raised) -> OwnMetric {
    OwnMetric::new(move |answers| {
        Python::attach(|py| {
            let call = || function.bind(py).call1(arguments(py, answers)?)?.extract();
            call().map_err(|error| raised.keep(error))
        })
    })
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
