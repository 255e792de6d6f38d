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

    /// Begins to copy `inputs`, into the memory of `used` inputs where that is large enough. With `rows`, tensors of fewer
    /// rows are filled up with their last one.
    pub fn upload(&self, inputs: &TensorMap, rows: Option<usize>, used: Option<Staged>) -> Result<Staged, CudaError> {
        let mut used = used.map_or_else(Vec::new, |staged| staged.tensors);
        let tensors = inputs.iter().map(|(name, tensor)| {
            let index = used.iter().position(|old| old.name == *name);
            self.stage(name, tensor, rows, index.map(|index| used.swap_remove(index)))
        });
        Ok(Staged { tensors: tensors.collect::<Result<_, _>>()? })
    }

    fn stage(
        &self,
        name: &str,
        tensor: &Tensor,
        rows: Option<usize>,
        used: Option<StagedTensor>,
    ) -> Result<StagedTensor, CudaError> {
        let bytes = tensor.view().values.bytes();
        let (name, mut shape) = (name.to_owned(), tensor.shape().to_vec());
        let mut size = bytes.len();
        if let (Some(extent), Some(rows)) = (shape.first_mut(), rows)
            && (1..rows).contains(extent)
        {
            size = size / *extent * rows;
            *extent = rows;
        }
        let (mut pinned, mut on_device) = if let Some(used) = used.filter(|used| used.bytes.len() >= size) {
            (used.pinned, used.bytes)
        } else {
            (self.device.pinned(size.max(1))?, self.stream.alloc_zeros(size.max(1))?)
        };
        // Waits until the copy that used this memory before is over.
        let begin = &mut pinned.as_mut_slice()?[..size];
        begin[..bytes.len()].copy_from_slice(bytes);
        if size > bytes.len() {
            let row = size / shape[0];
            let last = bytes.len() - row..bytes.len();
            (bytes.len()..size).step_by(row).for_each(|at| begin.copy_within(last.clone(), at));
        }
        self.stream.memcpy_htod(&pinned, &mut on_device)?;
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
