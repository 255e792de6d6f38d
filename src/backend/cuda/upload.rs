//! Inputs on their way to the device: through page-locked memory, on a stream of their own, so that the copy of one
//! batch runs while another is computed.

use std::sync::Arc;

use super::{CudaError, CudaSlice, CudaStream, Device, DeviceView, PinnedHostSlice};
use crate::tensor::{ElementType, Tensor, TensorMap};

/// Copies tensors to the device.
pub struct Uploader {
    device: Device,
    stream: Arc<CudaStream>,
}

/// Inputs of one batch on the device, or on their way there.
pub struct Staged {
    tensors: Vec<StagedTensor>,
}

/// One of them.
pub struct StagedTensor {
    /// Name of the input.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub element_type: ElementType,
    pinned: PinnedHostSlice<u8>,
    bytes: CudaSlice<u8>,
}

impl Uploader {
    /// An uploader with a stream of its own.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self { device: device.clone(), stream: device.stream()? })
    }

    /// Begins to copy `inputs`, into the memory of `used` inputs where that is large enough.
    pub fn upload(&self, inputs: &TensorMap, used: Option<Staged>) -> Result<Staged, CudaError> {
        let mut used = used.map_or_else(Vec::new, |staged| staged.tensors);
        let tensors = inputs.iter().map(|(name, tensor)| {
            let index = used.iter().position(|old| old.name == *name);
            self.stage(name, tensor, index.map(|index| used.swap_remove(index)))
        });
        Ok(Staged { tensors: tensors.collect::<Result<_, _>>()? })
    }

    fn stage(&self, name: &str, tensor: &Tensor, used: Option<StagedTensor>) -> Result<StagedTensor, CudaError> {
        let bytes = tensor.view().values.bytes();
        let (mut pinned, mut on_device) = if let Some(used) = used.filter(|used| used.bytes.len() >= bytes.len()) {
            (used.pinned, used.bytes)
        } else {
            let size = bytes.len().max(1);
            (self.device.pinned(size)?, self.stream.alloc_zeros(size)?)
        };
        // Waits until the copy that used this memory before is over.
        pinned.as_mut_slice()?[..bytes.len()].copy_from_slice(bytes);
        self.stream.memcpy_htod(&pinned, &mut on_device)?;
        let (name, shape) = (name.to_owned(), tensor.shape().to_vec());
        Ok(StagedTensor { name, shape, element_type: tensor.element_type(), pinned, bytes: on_device })
    }
}

impl Staged {
    /// All of them, by name.
    pub fn tensors(&self) -> &[StagedTensor] {
        &self.tensors
    }
}

impl StagedTensor {
    /// The tensor for work on `stream`, which waits for the copy.
    pub fn view(&self, stream: &CudaStream) -> Result<DeviceView<'_>, CudaError> {
        let view = DeviceView::of_bytes(&self.bytes, stream, &self.shape, self.element_type);
        view.ok_or_else(|| CudaError::Call(format!("input `{}` is larger than its buffer", self.name)))
    }
}
