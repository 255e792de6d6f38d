//! Samples that Python holds: lists of batches of NumPy arrays, read in place.

use numpy::{Element, PyArrayDyn, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::{prelude::*, types::PyDict};
use trtcalib::{
    dataset::{Dataset, SampleError},
    tensor::{Tensor, TensorMap, Values},
};

use crate::errors::DataError;

/// Batches of arrays by input name, with names and labels of their samples.
///
/// The arrays stay where they are: what is copied is one sample when it is asked for.
#[pyclass(frozen)]
pub struct Samples {
    batches: Vec<Batch>,
    /// Batch and row of every sample.
    places: Vec<(usize, usize)>,
    ids: Vec<String>,
    labels: Vec<Option<u32>>,
}

/// Arrays by input name.
type Arrays = Vec<(String, Py<PyUntypedArray>)>;

/// One batch: arrays whose first axis counts its samples.
enum Batch {
    /// Held by this process.
    Here(Arrays),
    /// What a callable gives, a dict of arrays: blocks of a data set that lies elsewhere.
    Elsewhere(Py<PyAny>),
}

#[pymethods]
impl Samples {
    /// `batches` is a list of dicts from input name to C-contiguous array, or of pairs of a number of samples and a
    /// callable that gives such a dict; `ids` names every sample.
    #[new]
    fn new(batches: Vec<Bound<'_, PyAny>>, ids: Vec<String>, labels: Vec<Option<u32>>) -> PyResult<Self> {
        let mut places = Vec::new();
        let mut held = Vec::new();
        for (number, batch) in batches.into_iter().enumerate() {
            let (rows, batch) = if let Ok(arrays) = batch.cast::<PyDict>() {
                let (rows, arrays) =
                    arrays_of(arrays).map_err(|reason| DataError::new_err(format!("batch {number}: {reason}")))?;
                (rows, Batch::Here(arrays))
            } else {
                let (rows, load): (usize, Py<PyAny>) = batch.extract()?;
                (rows, Batch::Elsewhere(load))
            };
            places.extend((0..rows).map(|row| (number, row)));
            held.push(batch);
        }
        if ids.len() != places.len() || labels.len() != places.len() {
            let reason = format!("{} samples, but {} names and {} labels", places.len(), ids.len(), labels.len());
            return Err(DataError::new_err(reason));
        }
        Ok(Self { batches: held, places, ids, labels })
    }

    fn __len__(&self) -> usize {
        self.places.len()
    }
}

/// The same samples as a data set: many may be made of one.
pub struct Held(pub Py<Samples>);

impl Held {
    fn samples(&self) -> &Samples {
        self.0.get()
    }
}

impl Dataset for Held {
    fn len(&self) -> usize {
        self.samples().places.len()
    }

    fn id(&self, index: usize) -> &str {
        &self.samples().ids[index]
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.samples().labels[index]
    }

    fn is_in_memory(&self) -> bool {
        self.samples().batches.iter().all(|batch| matches!(batch, Batch::Here(_)))
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        let samples = self.samples();
        let (batch, row) = samples.places[index];
        let tensors = Python::attach(|py| {
            let rows = |arrays: &[(String, Py<PyUntypedArray>)]| {
                arrays.iter().map(|(name, array)| Ok((name.clone(), row_of(array.bind(py), row)?))).collect()
            };
            match &samples.batches[batch] {
                Batch::Here(arrays) => rows(arrays),
                Batch::Elsewhere(load) => {
                    let loaded = load.call0(py).map_err(|error| error.to_string())?;
                    let (count, arrays) =
                        arrays_of(loaded.bind(py).cast::<PyDict>().map_err(|error| error.to_string())?)?;
                    if row >= count { Err(format!("its block holds {count} samples only")) } else { rows(&arrays) }
                }
            }
        });
        tensors.map_err(|reason| SampleError { sample: samples.ids[index].clone(), reason })
    }
}

/// The arrays of a batch, and how many samples they hold.
fn arrays_of(batch: &Bound<'_, PyDict>) -> Result<(usize, Arrays), String> {
    let mut arrays = Vec::new();
    let mut rows = None;
    for (name, array) in batch {
        let name: String = name.extract().map_err(|error: PyErr| error.to_string())?;
        let array = array.cast_into::<PyUntypedArray>().map_err(|error| format!("`{name}`: {error}"))?;
        let Some(&extent) = array.shape().first() else {
            return Err(format!("`{name}` is a single value; its first axis must count the samples"));
        };
        if let Some(rows) = rows.filter(|&rows| rows != extent) {
            return Err(format!("`{name}` holds {extent} samples where another array holds {rows}"));
        }
        rows = Some(extent);
        arrays.push((name, array.unbind()));
    }
    Ok((rows.unwrap_or(0), arrays))
}

/// Row `row` of an array, with a leading extent of 1.
fn row_of(array: &Bound<'_, PyUntypedArray>, row: usize) -> Result<Tensor, String> {
    fn copied<T: Element + Clone>(
        array: &Bound<'_, PyUntypedArray>,
        row: usize,
        wrap: fn(Vec<T>) -> Values,
    ) -> Option<Result<Values, String>> {
        let array = array.cast::<PyArrayDyn<T>>().ok()?;
        let view = array.try_readonly().map_err(|error| error.to_string());
        Some(view.and_then(|view| {
            let values = view.as_slice().map_err(|_| "the array is not contiguous".to_owned())?;
            let length = values.len() / array.shape()[0];
            Ok(wrap(values[length * row..length * (row + 1)].to_vec()))
        }))
    }
    let values = copied(array, row, Values::F32)
        .or_else(|| copied(array, row, Values::F16))
        .or_else(|| copied(array, row, Values::F64))
        .or_else(|| copied(array, row, Values::I64))
        .or_else(|| copied(array, row, Values::I32))
        .or_else(|| copied(array, row, Values::I16))
        .or_else(|| copied(array, row, Values::I8))
        .or_else(|| copied(array, row, Values::U8))
        .or_else(|| copied(array, row, Values::U16))
        .or_else(|| copied(array, row, Values::U32))
        .or_else(|| copied(array, row, Values::U64))
        .or_else(|| copied(array, row, Values::Bool))
        .ok_or_else(|| format!("arrays of type {} cannot be read", array.dtype()))??;
    let mut shape = array.shape().to_vec();
    shape[0] = 1;
    Tensor::new(shape, values).map_err(|error| error.to_string())
}
