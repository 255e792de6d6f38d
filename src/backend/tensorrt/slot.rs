//! The places of an engine's inputs and outputs.

use std::ffi::c_void;

use super::{Flavour, TensorRtError, log::Turn};
use crate::{
    backend::cuda::{CudaError, CudaSlice, CudaStream, PinnedHostSlice},
    qparams::{e4m3_from_f32, e4m3_to_f32},
    tensor::{ElementType, Tensor, TensorView, ValuesView},
};

/// A tensor's place in host and device memory, of exactly its size (but at least a byte).
pub(super) struct Slot {
    pub name: String,
    pub element_type: ElementType,
    /// Whether it lies there in E4M3, which is `float32` to everyone else.
    pub is_e4m3: bool,
    pub shape: Vec<usize>,
    pub host: PinnedHostSlice<u8>,
    /// Absent for tensors that TensorRT itself reads and writes in host memory (shapes).
    pub device: Option<CudaSlice<u8>>,
}

impl Slot {
    /// Whether the tensor can take this place as it is: of its shape, and with the same values where these lie in host
    /// memory, since TensorRT reads shapes from them.
    pub fn fits(&self, tensor: &Tensor) -> Result<bool, CudaError> {
        let values = tensor.view().values.bytes();
        let same = tensor.shape() == self.shape;
        Ok(same && (self.device.is_some() || !self.is_e4m3 && self.host.as_slice()?[..values.len()] == *values))
    }

    pub fn fill(&mut self, tensor: &Tensor) -> Result<(), CudaError> {
        let host = self.host.as_mut_slice()?;
        if self.is_e4m3 {
            host.iter_mut().zip(&*tensor.view().to_f32()).for_each(|(code, &value)| *code = e4m3_from_f32(value));
            return Ok(());
        }
        let values = tensor.view().values.bytes();
        host[..values.len()].copy_from_slice(values);
        Ok(())
    }

    /// Tells TensorRT where the tensor lies.
    pub fn show_to(
        &mut self,
        context: &mut trtx::ExecutionContext<'static>,
        stream: &CudaStream,
        flavour: Flavour,
        turn: &Turn,
    ) -> Result<(), TensorRtError> {
        let address = self.address(stream)?;
        // SAFETY: the memory is as large as the tensor and lives in `EngineRunner::bound` until other shapes are bound,
        // which waits for the stream first. Where that is not reached, all addresses are set again before anything runs.
        let set = unsafe { context.set_tensor_address(&self.name, address) };
        set.map_err(|error| TensorRtError::Runtime { flavour, reason: turn.reason(&error.to_string()) })
    }

    fn address(&mut self, stream: &CudaStream) -> Result<*mut c_void, TensorRtError> {
        use cudarc::driver::DevicePtrMut;
        match &mut self.device {
            Some(device) => Ok(device.device_ptr_mut(stream).0 as *mut c_void),
            None => Ok(self.host.as_mut_ptr().map_err(CudaError::from)?.cast()),
        }
    }

    /// Shows the values in host memory; those in E4M3 are widened.
    pub fn show<R>(&self, show: &mut dyn FnMut(TensorView<'_>) -> R) -> Result<R, TensorRtError> {
        let bytes = self.host.as_slice().map_err(CudaError::from)?;
        let elements = self.shape.iter().product::<usize>();
        if self.is_e4m3 {
            let values: Vec<f32> = bytes[..elements].iter().map(|&code| e4m3_to_f32(code)).collect();
            return Ok(show(TensorView { shape: &self.shape, values: ValuesView::F32(&values) }));
        }
        let values = ValuesView::from_bytes(self.element_type, &bytes[..elements * self.element_type.size()]);
        let values = values.ok_or_else(|| {
            TensorRtError::Option(format!(
                "output `{}` holds bytes that are not of type {}",
                self.name, self.element_type
            ))
        })?;
        Ok(show(TensorView { shape: &self.shape, values }))
    }
}

/// The element type that a type of TensorRT corresponds to; `None` for types below a byte. E4M3 is widened.
pub(super) fn element_type(data_type: trtx::DataType) -> Option<ElementType> {
    use trtx::DataType as T;
    match data_type {
        T::kFLOAT | T::kFP8 => Some(ElementType::F32),
        T::kHALF => Some(ElementType::F16),
        T::kBF16 => Some(ElementType::Bf16),
        T::kINT8 => Some(ElementType::I8),
        T::kUINT8 => Some(ElementType::U8),
        T::kINT32 => Some(ElementType::I32),
        T::kINT64 => Some(ElementType::I64),
        T::kBOOL => Some(ElementType::Bool),
        _ => None,
    }
}
