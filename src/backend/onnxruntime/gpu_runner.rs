//! A session on a GPU as a [`Runner`]: inputs and outputs pass through page-locked memory, or the outputs stay there.

use std::{collections::BTreeMap, sync::Arc};

use super::{DeviceRunner, OnnxRuntime, runner::no_numbers, session::require_cuda};
use crate::{
    backend::{
        Accelerator, BackendError, BuildOptions, Given, Inputs, LayerTime, Runner, Sent, Show, TensorInfo, Tensors,
        Visit,
        cuda::{CudaError, Device, Gpu, Landing, Staged, wait},
    },
    onnx::Model,
    tensor::TensorMap,
};

/// Executes one model on a GPU, for callers in host memory or on the GPU.
pub(super) struct GpuRunner {
    runner: DeviceRunner,
    gpu: Arc<Gpu>,
    staged: Option<Staged>,
    landing: Landing,
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
        let stream = device.stream()?;
        let runner = runtime.build_on_stream(model, options, &device, &stream)?;
        let gpu = Arc::new(Gpu::new(&device, &stream)?);
        Ok(Self { runner, gpu, staged: None, landing: Landing::default() })
    }
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
        let staged = self.runner.upload(&self.gpu.uploader, inputs, None, used)?;
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

    /// The outputs are complete when they are shown, on whatever stream they are worked on. Those that are not tensors of
    /// numbers are left out.
    fn show(&mut self, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        let Self { runner, gpu, staged, .. } = self;
        let Inputs { tensors, rows, sent } = inputs;
        runner.check(tensors, rows)?;
        let sent = sent.and_then(Sent::get::<Staged>).filter(|sent| sent.is_like(runner.device(), tensors, rows));
        let staged = if let Some(sent) = sent {
            sent
        } else {
            let used = staged.take();
            &*staged.insert(gpu.uploader.upload(tensors, rows, used)?)
        };
        let stream = runner.stream().clone();
        runner.run(staged, |outputs| {
            wait(&stream)?;
            let views = staged.tensors().iter().map(|tensor| Ok((tensor.name.as_str(), tensor.view(&stream)?)));
            let inputs = views.collect::<Result<_, CudaError>>()?;
            let (inputs, outputs) = (Tensors::Device(&**gpu, inputs), Tensors::Device(&**gpu, outputs.to_vec()));
            show(&Given { inputs, outputs }).map_err(BackendError::Visitor)
        })
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        Some(self.gpu.clone())
    }
}
