//! Outputs kept for later: a runner that remembers what it gives, and one that gives what was remembered.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::PipelineError;
use crate::{
    backend::{BackendError, Runner, TensorInfo, Visit},
    tensor::{Tensor, TensorMap},
};

/// Outputs of all batches so far, by name.
pub type Log = Arc<Mutex<Vec<TensorMap>>>;

/// Passes everything on and keeps a copy of every output.
pub struct Recorder {
    inner: Box<dyn Runner>,
    log: Log,
}

impl Recorder {
    /// An empty log.
    pub fn log() -> Log {
        Log::default()
    }

    /// Records what `inner` gives into `log`.
    pub fn new(inner: Box<dyn Runner>, log: Log) -> Self {
        Self { inner, log }
    }

    /// All outputs, joined along the first axis in the order they came.
    pub fn take(log: &Log) -> Result<TensorMap, PipelineError> {
        let batches = std::mem::take(&mut *log.lock().unwrap_or_else(PoisonError::into_inner));
        let mut joined = TensorMap::new();
        let mut parts = batches.into_iter();
        let Some(first) = parts.next() else { return Ok(joined) };
        let rest: Vec<TensorMap> = parts.collect();
        for (name, tensor) in first {
            let (mut shape, mut values) = (tensor.shape().to_vec(), tensor.values().clone());
            for batch in &rest {
                let next = batch.get(&name).filter(|next| next.shape().get(1..) == shape.get(1..));
                let extended = next.is_some_and(|next| values.extend(next.values().view()));
                let rows = next.and_then(|next| next.shape().first().copied());
                match (extended, shape.first_mut(), rows) {
                    (true, Some(total), Some(rows)) => *total += rows,
                    _ => {
                        return Err(PipelineError::Input(format!(
                            "the shape of output `{name}` changes between samples; such outputs cannot be saved together"
                        )));
                    }
                }
            }
            let tensor = Tensor::new(shape, values).map_err(|error| PipelineError::Input(error.to_string()))?;
            joined.insert(name, tensor);
        }
        Ok(joined)
    }
}

impl Runner for Recorder {
    fn inputs(&self) -> &[TensorInfo] {
        self.inner.inputs()
    }

    fn outputs(&self) -> &[TensorInfo] {
        self.inner.outputs()
    }

    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
        let mut copies = TensorMap::new();
        self.inner.visit(inputs, &mut |name, view| {
            copies.insert(name.to_owned(), view.to_owned());
            visit(name, view)
        })?;
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(copies);
        Ok(())
    }
}

/// Gives saved outputs, batch after batch, in the order they were saved: for the same samples in the same order.
pub struct SavedOutputs {
    outputs: TensorMap,
    infos: Vec<TensorInfo>,
    name: String,
    samples: usize,
    next: usize,
}

impl SavedOutputs {
    /// Outputs whose first axis counts samples.
    pub fn new(outputs: TensorMap, path: &Path) -> Result<Self, PipelineError> {
        let name = path.display().to_string();
        let counts: Vec<usize> = outputs.values().map(|tensor| tensor.shape().first().copied().unwrap_or(0)).collect();
        let samples = counts.first().copied().unwrap_or(0);
        if samples == 0 || counts.iter().any(|&count| count != samples) {
            return Err(PipelineError::Input(format!(
                "{name}: the first axis of every array must count the same samples"
            )));
        }
        let infos = outputs
            .iter()
            .map(|(name, tensor)| TensorInfo {
                name: name.clone(),
                element_type: Some(tensor.element_type()),
                shape: std::iter::once(None).chain(tensor.shape()[1..].iter().map(|&extent| Some(extent))).collect(),
            })
            .collect();
        Ok(Self { outputs, infos, name, samples, next: 0 })
    }
}

impl Runner for SavedOutputs {
    fn inputs(&self) -> &[TensorInfo] {
        &[]
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
        let batch = inputs.values().next().and_then(|tensor| tensor.shape().first().copied()).unwrap_or(1);
        let end = self.next + batch;
        if end > self.samples {
            return Err(BackendError::Run {
                runtime: "saved outputs",
                reason: format!(
                    "{} holds {} samples, more were asked for: use the samples it was made from",
                    self.name, self.samples
                ),
            });
        }
        for (name, tensor) in &self.outputs {
            let step: usize = tensor.shape()[1..].iter().product();
            let mut shape = tensor.shape().to_vec();
            shape[0] = batch;
            let values = tensor.values().view().slice(self.next * step..end * step);
            visit(name, crate::tensor::TensorView { shape: &shape, values }).map_err(BackendError::Visitor)?;
        }
        self.next = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_given_again() {
        let batch = |values: &[f32]| {
            TensorMap::from([("y".to_owned(), Tensor::from_f32(vec![values.len(), 1], values.to_vec()).unwrap())])
        };
        let log = Recorder::log();
        log.lock().unwrap().extend([batch(&[1.0, 2.0]), batch(&[3.0])]);
        let joined = Recorder::take(&log).unwrap();
        assert_eq!(joined["y"], Tensor::from_f32(vec![3, 1], vec![1.0, 2.0, 3.0]).unwrap());
        let mut saved = SavedOutputs::new(joined, Path::new("y.npz")).unwrap();
        assert_eq!(saved.infer(&batch(&[0.0, 0.0])).unwrap(), batch(&[1.0, 2.0]));
        assert_eq!(saved.infer(&batch(&[0.0])).unwrap(), batch(&[3.0]));
        assert!(saved.infer(&batch(&[0.0])).unwrap_err().to_string().contains("holds 3 samples"));
    }
}
