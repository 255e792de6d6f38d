//! Sessions whose inputs and outputs stay on the GPU.
//!
//! The session works on a stream of ours, so kernels that are put on the same stream see its outputs complete and in
//! place. Output buffers are reused from run to run: they are shown, never given away.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use ort::{
    memory::{AllocationDevice, Allocator, AllocatorType, DeviceType, MemoryInfo, MemoryType},
    session::IoBinding,
    value::{DynTensor, DynTensorValueType, ValueType},
};

use super::{
    OnnxRuntime, RUNTIME,
    runner::{check_inputs, run_failed},
    session::{self, Built},
    values::{element_type, info, ort_type},
};
use crate::{
    backend::{
        BackendError, BuildOptions, ExecutionProvider, TensorInfo,
        cuda::{CudaError, CudaStream, Device, DeviceView, Staged, Uploader, wait},
    },
    onnx::Model,
    tensor::TensorMap,
};

/// Executes one model on a GPU and leaves its outputs there.
pub struct DeviceRunner {
    // Dropped in this order: what is bound, the session, and then the stream that it works on.
    bound: Vec<Bound>,
    built: Built,
    stream: Arc<CudaStream>,
    device: Device,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    /// Shapes of inputs whose buffers are kept.
    shapes: usize,
}

/// As many shapes of inputs keep their buffers, where a model gives nothing but its own outputs.
const SHAPES: usize = 4;

/// Inputs of one shape, bound to a session.
struct Bound {
    binding: IoBinding,
    inputs: Vec<(String, DynTensor)>,
}

/// The library's refusal to run on a GPU. Running out of memory is told apart: a smaller batch may fit.
fn refused(error: &ort::Error) -> BackendError {
    const OUT_OF_MEMORY: [&str; 6] = [
        "out of memory",
        "Failed to allocate memory",
        "is smaller than requested bytes",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
        // The same, as the provider writes it.
        "CUBLAS failure 3:",
    ];
    if OUT_OF_MEMORY.iter().any(|sign| error.message().contains(sign)) {
        return CudaError::OutOfMemory.into();
    }
    run_failed(error)
}

/// An output by its name.
pub type DeviceOutput<'a> = (&'a str, DeviceView<'a>);

impl OnnxRuntime {
    /// Prepares `model` for execution on `device` (whatever GPU the options name), on `stream`.
    pub fn build_on_stream(
        &self,
        model: &Model,
        options: &BuildOptions,
        device: &Device,
        stream: &Arc<CudaStream>,
    ) -> Result<DeviceRunner, BackendError> {
        let index = device.info().index;
        let provider = match options.provider {
            ExecutionProvider::CudaTf32(_) => ExecutionProvider::CudaTf32(index),
            ExecutionProvider::Cpu | ExecutionProvider::Cuda(_) => ExecutionProvider::Cuda(index),
        };
        let options = BuildOptions { provider, ..options.clone() };
        let built = session::build(self.loaded, model, &options, Some(stream))?;
        let session = &built.session;
        Ok(DeviceRunner {
            inputs: session.inputs().iter().map(|outlet| info(outlet.name(), outlet.dtype())).collect(),
            outputs: session.outputs().iter().map(|outlet| info(outlet.name(), outlet.dtype())).collect(),
            bound: Vec::new(),
            // The outputs of one shape can take most of the memory when every tensor is one.
            shapes: if options.extra_outputs.is_empty() { SHAPES } else { 1 },
            built,
            stream: stream.clone(),
            device: device.clone(),
        })
    }
}

impl DeviceRunner {
    /// What the model takes.
    pub fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    /// What the model gives, extra outputs last.
    pub fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stream that the model runs on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Whether a batch can be filled up with samples whose results are left out: the number of samples is the first
    /// extent of all inputs and of `outputs`, and nothing else in their shapes varies.
    pub fn fills<'i>(&self, outputs: impl IntoIterator<Item = &'i TensorInfo>) -> bool {
        let of_samples = |info: &TensorInfo| matches!(&info.shape[..], [None, rest @ ..] if !rest.contains(&None));
        self.inputs.iter().all(of_samples) && outputs.into_iter().all(of_samples)
    }

    /// Checks inputs against what the model takes; with `rows`, they are filled up to as many samples.
    pub fn check(&self, inputs: &TensorMap, rows: Option<usize>) -> Result<(), BackendError> {
        let mut expected = Cow::Borrowed(&self.inputs);
        if rows.is_some() {
            // They have their number of samples only when they are filled up.
            expected
                .to_mut()
                .iter_mut()
                .for_each(|info| info.shape.iter_mut().take(1).for_each(|extent| *extent = None));
        }
        check_inputs(&expected, inputs)
    }

    /// Checks inputs and begins to copy them to the device.
    pub fn upload(
        &self,
        uploader: &Uploader,
        inputs: &TensorMap,
        rows: Option<usize>,
        used: Option<Staged>,
    ) -> Result<Staged, BackendError> {
        self.check(inputs, rows)?;
        Ok(uploader.upload(inputs, rows, used)?)
    }

    /// See [`Runner::in_float32`](crate::backend::Runner::in_float32).
    pub fn in_float32(&self) -> &BTreeMap<String, usize> {
        &self.built.in_float32
    }

    pub(super) fn built(&mut self) -> &mut Built {
        &mut self.built
    }

    /// Runs once and shows the outputs, which are valid during the call and for work on the runner's stream; outputs
    /// that are not tensors of numbers are left out. Returns when that stream is idle.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] when the batch does not fit.
    pub fn run<R, E: From<BackendError>>(
        &mut self,
        inputs: &Staged,
        visit: impl FnOnce(&[DeviceOutput<'_>]) -> Result<R, E>,
    ) -> Result<R, E> {
        let ran = self.bind(inputs).map_err(E::from).and_then(|index| self.run_bound(index, visit));
        if ran.is_err() {
            // A smaller batch may need the room, and what was launched before the failure may still read it. The failure
            // says more than that waiting failed, too.
            let _ = wait(&self.stream);
            self.bound.clear();
        }
        ran
    }

    fn run_bound<R, E: From<BackendError>>(
        &mut self,
        index: usize,
        visit: impl FnOnce(&[DeviceOutput<'_>]) -> Result<R, E>,
    ) -> Result<R, E> {
        let binding = &self.bound[index].binding;
        let outputs = self.built.session.run_binding(binding).map_err(|error| refused(&error))?;
        let values: Vec<_> = outputs.iter().collect();
        let mut tensors = Vec::with_capacity(values.len());
        for (name, value) in &values {
            let ValueType::Tensor { ty, shape, .. } = value.dtype() else { continue };
            let Some(element_type) = element_type(*ty) else { continue };
            let shape: Vec<usize> = shape.iter().map(|&extent| extent as usize).collect();
            let tensor = value.view().downcast::<DynTensorValueType>().map_err(|error| run_failed(&error))?;
            if tensor.memory_info().device_type() != DeviceType::GPU {
                let reason = format!("its output `{name}` is not on the GPU");
                return Err(BackendError::Run { runtime: RUNTIME, reason }.into());
            }
            tensors.push((*name, tensor.data_ptr() as u64, shape, element_type));
        }
        let views: Vec<DeviceOutput<'_>> = tensors
            .iter()
            .map(|(name, address, shape, element_type)| {
                // SAFETY: ONNX Runtime's own tensor of that shape and type, which `outputs` keeps until the stream, on
                // which the session writes it, has been waited for.
                (*name, unsafe { DeviceView::from_raw(*address, shape, *element_type) })
            })
            .collect();
        let visited = visit(&views);
        // On a stream of ours the session does not wait for its own end.
        wait(&self.stream).map_err(BackendError::from)?;
        visited
    }

    /// Copies the inputs to where the session takes them from; which of [`Self::bound`] that is.
    fn bind(&mut self, inputs: &Staged) -> Result<usize, BackendError> {
        let failed = |error: ort::Error| refused(&error);
        let fits = |bound: &Bound| {
            let same = |(name, value): &(String, DynTensor)| {
                inputs.tensors().iter().any(|tensor| {
                    tensor.name == *name
                        && value.shape().iter().map(|&extent| extent as usize).eq(tensor.shape.iter().copied())
                })
            };
            bound.inputs.iter().all(same)
        };
        let index = if let Some(index) = self.bound.iter().position(fits) {
            index
        } else {
            // The oldest buffers go before new ones are made.
            self.bound.drain(..(self.bound.len() + 1).saturating_sub(self.shapes));
            let bound = self.new_binding(inputs).map_err(failed)?;
            self.bound.push(bound);
            self.bound.len() - 1
        };
        let bound = &mut self.bound[index];
        for (name, value) in &mut bound.inputs {
            let Some(staged) = inputs.tensors().iter().find(|tensor| tensor.name == *name) else { continue };
            let view = staged.view(&self.stream)?;
            let bytes = view.len() * view.element_type().size();
            if bytes > 0 {
                // SAFETY: both have `bytes` bytes of device memory: the session's tensor was made with this shape and
                // type, and `view` was checked against its buffer. The synchronization below comes before either goes.
                let copied = unsafe {
                    let to = value.data_ptr_mut() as u64;
                    cudarc::driver::result::memcpy_dtod_async(to, view.address(), bytes, self.stream.cu_stream())
                };
                copied.map_err(CudaError::from)?;
            }
        }
        wait(&self.stream)?;
        for (name, value) in &bound.inputs {
            // Inputs that the session wants on the host are copied there now, the others are only named.
            bound.binding.bind_input(name.as_str(), value).map_err(failed)?;
        }
        Ok(index)
    }

    fn new_binding(&self, inputs: &Staged) -> ort::Result<Bound> {
        let session = &self.built.session;
        let index = self.device.info().index as i32;
        let memory = || MemoryInfo::new(AllocationDevice::CUDA, index, AllocatorType::Device, MemoryType::Default);
        let allocator = Allocator::new(session, memory()?)?;
        let tensors = inputs.tensors().iter().map(|tensor| {
            let value = DynTensor::new(&allocator, ort_type(tensor.element_type), tensor.shape.clone())?;
            Ok((tensor.name.clone(), value))
        });
        let inputs = tensors.collect::<ort::Result<Vec<_>>>()?;
        let mut binding = session.create_binding()?;
        for output in session.outputs() {
            binding.bind_output_to_device(output.name(), &memory()?)?;
        }
        Ok(Bound { binding, inputs })
    }
}
