//! A session on a GPU as a [`Runner`]: inputs and outputs pass through page-locked memory, or the outputs stay there.

use std::collections::BTreeMap;

use super::{DeviceRunner, OnnxRuntime, runner::no_numbers, session::require_cuda};
use crate::{
    backend::{
        BackendError, BuildOptions, LayerTime, Runner, TensorInfo, Visit,
        cuda::{Device, DeviceTensors, Landing, Staged, Uploader},
    },
    onnx::Model,
    tensor::TensorMap,
};

/// Executes one model on a GPU for callers in host memory.
pub struct GpuRunner {
    runner: DeviceRunner,
    uploader: Uploader,
    staged: Option<Staged>,
    landing: Landing,
    /// Samples that fit into one call, as far as is known.
    pub most: usize,
}

impl GpuRunner {
    pub(super) fn new(
        runtime: OnnxRuntime,
        model: &Model,
        options: &BuildOptions,
        device: u32,
    ) -> Result<Self, BackendError> {
        require_cuda()?;
        let device = Device::open(device)?;
        let runner = runtime.build_on_device(model, options, &device, &device.stream()?)?;
        let uploader = Uploader::new(&device)?;
        Ok(Self { runner, uploader, staged: None, landing: Landing::default(), most: usize::MAX })
    }

    /// How batches are filled up.
    pub fn filling(&self) -> Filling {
        let fixed = self.runner.inputs().first().and_then(|input| input.shape.first().copied().flatten());
        Filling { fixed, fills: self.runner.fills(self.runner.outputs().iter()) }
    }

    /// What copies inputs to where they are run.
    pub fn uploader(&self) -> Uploader {
        self.uploader.clone()
    }

    /// Runs `samples` samples once and leaves the outputs on the GPU. With `rows` (see [`Filling::rows`]) the batch is
    /// filled up to as many samples; only the outputs of the real ones are kept. Inputs that are in `sent` already are
    /// not sent again.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`](crate::backend::cuda::CudaError::OutOfMemory) when the batch does not fit.
    pub fn infer_on_device(
        &mut self,
        inputs: &TensorMap,
        samples: usize,
        rows: Option<usize>,
        sent: Option<&Staged>,
    ) -> Result<DeviceTensors, BackendError> {
        self.runner.check(inputs, rows)?;
        let (device, stream) = (self.runner.device().clone(), self.runner.stream().clone());
        let sent = sent.filter(|sent| sent.is_like(&device, inputs, rows));
        let staged = if let Some(sent) = sent {
            sent
        } else {
            let used = self.staged.take();
            &*self.staged.insert(self.uploader.upload(inputs, rows, used)?)
        };
        self.runner.run(staged, |outputs| {
            let shapes: Vec<Vec<usize>> = outputs.iter().map(|(_, view)| cut(view.shape(), rows, samples)).collect();
            let views = outputs.iter().zip(&shapes);
            let views: Vec<_> = views.filter_map(|((name, view), shape)| Some((*name, view.begin(shape)?))).collect();
            Ok::<_, BackendError>(DeviceTensors::of(&device, &stream, &views)?)
        })
    }
}

/// How the batches of a model are filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filling {
    /// The batch that the model fixes.
    pub fixed: Option<usize>,
    /// See [`DeviceRunner::fills`].
    pub fills: bool,
}

impl Filling {
    /// What a batch of `samples` is filled up to: what the model fixes, or `whole`, which libraries may round otherwise
    /// than other sizes.
    pub fn rows(self, samples: usize, whole: usize) -> Option<usize> {
        match self.fixed {
            Some(fixed) => Some(fixed).filter(|&fixed| fixed > samples),
            None => self.fills.then_some(whole),
        }
    }
}

/// The shape of a tensor without the rows that filled the batch up.
pub(crate) fn cut(shape: &[usize], rows: Option<usize>, samples: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let (Some(extent), Some(rows)) = (shape.first_mut(), rows)
        && *extent == rows
    {
        *extent = samples.min(rows);
    }
    shape
}

impl Runner for GpuRunner {
    fn inputs(&self) -> &[TensorInfo] {
        self.runner.inputs()
    }

    fn outputs(&self) -> &[TensorInfo] {
        self.runner.outputs()
    }

    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
        let used = self.staged.take();
        let staged = self.runner.upload(&self.uploader, inputs, None, used)?;
        let (device, stream) = (self.runner.device().clone(), self.runner.stream().clone());
        let no_tensor = self.runner.outputs().iter().find(|info| info.element_type.is_none());
        if let Some(info) = no_tensor {
            return Err(no_numbers(&info.name));
        }
        self.runner.run(&staged, |outputs| Ok::<_, BackendError>(self.landing.fetch(&device, &stream, outputs)?))?;
        self.staged = Some(staged);
        self.landing.visit(|name, view| visit(name, view).map_err(BackendError::Visitor))
    }

    fn layer_times(&mut self, inputs: &TensorMap, calls: usize) -> Result<Option<Vec<LayerTime>>, BackendError> {
        let Some(folder) = self.runner.built().layer_times.take() else { return Ok(None) };
        for _ in 0..calls {
            self.visit(inputs, &mut |_, _| Ok(()))?;
        }
        self.runner.built().read_layer_times(folder)
    }

    fn in_float32(&self) -> Option<&BTreeMap<String, usize>> {
        Some(self.runner.in_float32()).filter(|operators| !operators.is_empty())
    }

    fn on_gpu(&mut self) -> Option<&mut GpuRunner> {
        Some(self)
    }
}
