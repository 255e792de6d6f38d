//! What gives the outputs of samples: a model that runs, or a file.

use std::{cell::OnceCell, path::Path};

use super::PipelineError;
use crate::{
    backend::{
        BackendError, Runner,
        cuda::{CudaError, DeviceTensors, Staged, Uploader, in_parts},
        onnxruntime::{Filling, GpuRunner},
    },
    compare::{OutputsWriter, SavedOutputs},
    dataset::Batch,
    tensor::{self, Tensor, TensorMap},
};

/// Outputs of a batch, in host memory or on a GPU.
#[derive(Default)]
pub struct Given {
    device: Option<DeviceTensors>,
    host: OnceCell<TensorMap>,
}

impl Given {
    /// The outputs where a GPU left them, if one did.
    pub fn device(&self) -> Option<&DeviceTensors> {
        self.device.as_ref()
    }

    /// The outputs in host memory; they come from the GPU when they are first asked for.
    pub fn host(&self) -> Result<&TensorMap, PipelineError> {
        if let (None, Some(device)) = (self.host.get(), &self.device) {
            let copied = device.to_host().map_err(BackendError::from)?;
            return Ok(self.host.get_or_init(|| copied));
        }
        Ok(self.host.get_or_init(TensorMap::new))
    }
}

impl From<TensorMap> for Given {
    fn from(host: TensorMap) -> Self {
        Self { device: None, host: host.into() }
    }
}

impl From<DeviceTensors> for Given {
    fn from(device: DeviceTensors) -> Self {
        Self { device: Some(device), host: OnceCell::new() }
    }
}

/// Gives the outputs of samples: by running a model, or from a file.
pub trait Outputs {
    /// Names of the outputs, in order.
    fn names(&self) -> Vec<String>;

    /// Outputs of a batch, of which `first` samples were asked for before. Its inputs may be on a GPU already; they are
    /// taken away where they have to make room.
    fn give(&mut self, batch: &Batch, sent: &mut Option<Staged>, first: usize) -> Result<Given, PipelineError>;

    /// What sends batches ahead, where they run on a GPU.
    fn sender(&mut self) -> Option<Sender> {
        None
    }

    /// The batch that had to be cut down to for lack of memory, if any had.
    fn halved_to(&mut self) -> Option<usize> {
        None
    }
}

/// Sends the inputs of batches to a GPU before they are asked for.
pub struct Sender {
    uploader: Uploader,
    filling: Filling,
}

impl Sender {
    /// Begins to copy the inputs, into the memory of `used` ones where that is large enough. Who needs them sends them
    /// again when that fails, and tells why.
    pub fn send(&self, batch: &Batch, used: Option<Staged>) -> Option<Staged> {
        let rows = self.filling.rows(batch.ids.len(), batch.whole);
        self.uploader.upload(&batch.inputs, rows, used).ok()
    }
}

impl Outputs for Box<dyn Runner> {
    fn names(&self) -> Vec<String> {
        self.outputs().iter().map(|info| info.name.clone()).collect()
    }

    /// A model that fixes its batch gets the last sample again to fill it up; the surplus outputs are cut off. On a GPU
    /// other models do too, as other sizes may round otherwise.
    fn give(&mut self, batch: &Batch, sent: &mut Option<Staged>, _first: usize) -> Result<Given, PipelineError> {
        if let Some(gpu) = self.on_gpu() {
            return give_on_gpu(gpu, batch, sent);
        }
        let fixed = self.inputs().first().and_then(|input| input.shape.first().copied().flatten());
        let samples = batch.ids.len();
        match fixed {
            Some(fixed) if fixed > samples => {
                let filled = resized(&batch.inputs, samples, fixed)?;
                Ok(resized(&self.infer(&filled)?, fixed, samples)?.into())
            }
            _ => Ok(self.infer(&batch.inputs)?.into()),
        }
    }

    fn sender(&mut self) -> Option<Sender> {
        self.on_gpu().map(|gpu| Sender { uploader: gpu.uploader(), filling: gpu.filling() })
    }

    fn halved_to(&mut self) -> Option<usize> {
        self.on_gpu().map(|gpu| gpu.most).filter(|&most| most < usize::MAX)
    }
}

/// Outputs that stay on the GPU. A batch that does not fit runs in halves, as do all after it; their outputs are put
/// together in host memory.
fn give_on_gpu(gpu: &mut GpuRunner, batch: &Batch, sent: &mut Option<Staged>) -> Result<Given, PipelineError> {
    let samples = batch.ids.len();
    let filling = gpu.filling();
    if filling.fixed.is_some() {
        let rows = filling.rows(samples, batch.whole);
        return Ok(gpu.infer_on_device(&batch.inputs, samples, rows, sent.as_ref())?.into());
    }
    let mut parts = Vec::new();
    let mut most = gpu.most;
    in_parts(&mut most, samples, BackendError::is_out_of_memory, |range, most| {
        let count = range.len();
        let inputs = tensor::part(&batch.inputs, samples, range).ok_or(CudaError::OutOfMemory)?;
        let staged = sent.take().filter(|_| count == samples);
        let rows = filling.rows(count, batch.whole.min(most));
        let given = gpu.infer_on_device(&inputs, count, rows, staged.as_ref())?;
        // Parts give their place on the GPU up to those behind them.
        parts.push(if count == samples { Given::from(given) } else { Given::from(given.to_host()?) });
        *sent = staged;
        Ok(())
    })?;
    gpu.most = most;
    let [whole] = &mut parts[..] else {
        let mut joined = TensorMap::new();
        for part in &parts {
            append(&mut joined, part.host()?)?;
        }
        return Ok(joined.into());
    };
    Ok(std::mem::take(whole))
}

/// Puts the rows of `tensors` behind those that are there.
fn append(joined: &mut TensorMap, tensors: &TensorMap) -> Result<(), PipelineError> {
    for (name, tensor) in tensors {
        let Some(before) = joined.remove(name) else {
            joined.insert(name.clone(), tensor.clone());
            continue;
        };
        let (mut shape, mut values) = before.into_parts();
        let differs = || PipelineError::Input(format!("output `{name}` has another shape in a part of the batch"));
        if shape.get(1..) != tensor.shape().get(1..) || !values.extend(tensor.values().view()) {
            return Err(differs());
        }
        if let (Some(extent), Some(more)) = (shape.first_mut(), tensor.shape().first()) {
            *extent += more;
        }
        joined.insert(name.clone(), Tensor::new(shape, values).map_err(|_| differs())?);
    }
    Ok(())
}

/// Tensors of `from` rows with `to` rows: cut, or with the last row repeated. Others stay as they are.
fn resized(tensors: &TensorMap, from: usize, to: usize) -> Result<TensorMap, PipelineError> {
    let resize = |(name, tensor): (&String, &Tensor)| {
        if tensor.shape().first() != Some(&from) || from == 0 {
            return Ok((name.clone(), tensor.clone()));
        }
        let view = tensor.values().view();
        let row = view.len() / from;
        let mut values = view.slice(0..row * from.min(to)).to_owned();
        for _ in from..to {
            // The same type, so this cannot fail.
            let _same_type = values.extend(view.slice(row * (from - 1)..row * from));
        }
        let mut shape = tensor.shape().to_vec();
        shape[0] = to;
        let tensor = Tensor::new(shape, values).map_err(|error| PipelineError::Input(error.to_string()))?;
        Ok((name.clone(), tensor))
    };
    tensors.iter().map(resize).collect()
}

impl Outputs for SavedOutputs {
    fn names(&self) -> Vec<String> {
        self.outputs()
    }

    fn give(&mut self, batch: &Batch, _sent: &mut Option<Staged>, first: usize) -> Result<Given, PipelineError> {
        Ok(self.batch(first, &names_of(batch))?.into())
    }
}

/// Passes outputs on and saves them.
pub struct Recorder {
    inner: Box<dyn Outputs>,
    writer: OutputsWriter,
}

impl Recorder {
    /// Records what `inner` gives.
    pub fn new(inner: Box<dyn Outputs>) -> Result<Self, PipelineError> {
        let writer = OutputsWriter::new(&inner.names())?;
        Ok(Self { inner, writer })
    }

    /// Writes what was recorded.
    pub fn finish(self, path: &Path) -> Result<(), PipelineError> {
        Ok(self.writer.finish(path)?)
    }
}

impl Outputs for Recorder {
    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn give(&mut self, batch: &Batch, sent: &mut Option<Staged>, first: usize) -> Result<Given, PipelineError> {
        let outputs = self.inner.give(batch, sent, first)?;
        self.writer.push(&names_of(batch), outputs.host()?)?;
        Ok(outputs)
    }

    fn sender(&mut self) -> Option<Sender> {
        self.inner.sender()
    }

    fn halved_to(&mut self) -> Option<usize> {
        self.inner.halved_to()
    }
}

fn names_of(batch: &Batch) -> Vec<&str> {
    batch.ids.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_filled_with_the_last_sample_and_cut_again() {
        let tensors =
            TensorMap::from([("x".to_owned(), Tensor::from_f32(vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap())]);
        let filled = resized(&tensors, 2, 4).unwrap();
        assert_eq!(filled["x"].to_f32(), [1.0, 2.0, 3.0, 4.0, 3.0, 4.0, 3.0, 4.0]);
        assert_eq!(resized(&filled, 4, 2).unwrap(), tensors);
    }

    #[test]
    fn parts_of_a_batch_are_put_together_in_their_order() {
        let part = |values: &[f32]| {
            let rows = values.len() / 2;
            TensorMap::from([("y".to_owned(), Tensor::from_f32(vec![rows, 2], values.to_vec()).unwrap())])
        };
        let mut joined = TensorMap::new();
        append(&mut joined, &part(&[1.0, 2.0, 3.0, 4.0])).unwrap();
        append(&mut joined, &part(&[5.0, 6.0])).unwrap();
        assert_eq!(joined, part(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let other = TensorMap::from([("y".to_owned(), Tensor::from_f32(vec![1, 3], vec![0.0; 3]).unwrap())]);
        assert!(append(&mut joined, &other).unwrap_err().to_string().contains("output `y`"));
    }
}
