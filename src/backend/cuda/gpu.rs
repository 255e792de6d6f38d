//! A GPU as an [`Accelerator`]: the kernels and copies of this module on one stream.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    CudaError, CudaStream, Device, DeviceView, Landing, MagnitudeCounter, Magnitudes, NonFinite, Pair, PairComparer,
    PieceSums, Staged, Uploader,
};
use crate::{
    backend::{Accelerator, BackendError, Counter, Sent},
    tensor::TensorMap,
};

/// A GPU, a stream for work on what lies there, and one for inputs on their way.
pub struct Gpu {
    device: Device,
    stream: Arc<CudaStream>,
    /// What copies inputs there.
    pub uploader: Uploader,
    /// Made when it is first needed: that compiles kernels.
    comparer: Mutex<Option<PairComparer>>,
}

impl Gpu {
    /// Work on `device` that runs on `stream`.
    pub fn new(device: &Device, stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        let uploader = Uploader::new(device)?;
        Ok(Self { device: device.clone(), stream: stream.clone(), uploader, comparer: Mutex::new(None) })
    }

    fn compare<R>(&self, work: impl FnOnce(&PairComparer) -> Result<R, CudaError>) -> Result<R, BackendError> {
        let mut comparer = self.comparer.lock().unwrap_or_else(PoisonError::into_inner);
        let comparer = match &mut *comparer {
            Some(comparer) => comparer,
            none => none.insert(PairComparer::new(&self.device, &self.stream)?),
        };
        Ok(work(comparer)?)
    }
}

impl Accelerator for Gpu {
    fn index(&self) -> u32 {
        self.device.info().index
    }

    fn send(&self, inputs: &TensorMap, rows: Option<usize>, used: Option<Sent>) -> Result<Sent, BackendError> {
        let used = used.and_then(Sent::take::<Staged>);
        Ok(Sent::new(self.uploader.upload(inputs, rows, used)?))
    }

    fn to_host(&self, tensors: &[(&str, DeviceView<'_>)]) -> Result<TensorMap, BackendError> {
        let mut landing = Landing::default();
        landing.fetch(&self.device, &self.stream, tensors)?;
        let mut copied = TensorMap::new();
        landing.visit(|name, view| {
            copied.insert(name.to_owned(), view.to_owned());
            Ok::<_, CudaError>(())
        })?;
        Ok(copied)
    }

    fn counter(&self, tensors: usize) -> Result<Box<dyn Counter>, BackendError> {
        Ok(Box::new(MagnitudeCounter::new(&self.device, &self.stream, tensors)?))
    }

    fn sums(&self, pairs: &[Pair<'_>]) -> Result<Vec<Vec<PieceSums>>, BackendError> {
        self.compare(|comparer| comparer.sum(pairs))
    }

    fn top_k(&self, rows: &[DeviceView<'_>], k: usize) -> Result<Vec<Vec<(u32, f64)>>, BackendError> {
        self.compare(|comparer| comparer.top_k(rows, k))
    }
}

impl Counter for MagnitudeCounter {
    fn count(&mut self, batch: &[(usize, DeviceView<'_>)]) -> Result<Option<NonFinite>, BackendError> {
        Ok(Self::count(self, batch)?)
    }

    fn finish(self: Box<Self>) -> Result<Vec<Magnitudes>, BackendError> {
        Ok(Self::finish(*self)?)
    }
}
