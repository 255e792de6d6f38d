//! Inputs on their way to the device: through page-locked memory, on a stream of their own, so that the copy of one
//! batch runs while another is computed. A tensor goes piece by piece: one is copied to the device while the next is
//! written to page-locked memory.

use std::sync::Arc;

use super::{CudaError, CudaSlice, CudaStream, Device, DeviceView, PinnedHostSlice, wait};
use crate::tensor::{ElementType, Tensor, TensorMap};

/// Bytes of a piece.
const PIECE: usize = 1 << 20;

/// Copies tensors to the device. Clones share their stream.
#[derive(Clone)]
pub struct Uploader {
    device: Device,
    stream: Arc<CudaStream>,
}

/// Inputs of one batch on the device, or on their way there.
pub struct Staged {
    /// Index of the GPU.
    device: u32,
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
    /// Pieces, all but the last of [`PIECE`] bytes; together as long as `bytes`.
    pinned: Vec<PinnedHostSlice<u8>>,
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
        Ok(Staged { device: self.device.info().index, tensors: tensors.collect::<Result<_, _>>()? })
    }

    fn stage(
        &self,
        name: &str,
        tensor: &Tensor,
        rows: Option<usize>,
        used: Option<StagedTensor>,
    ) -> Result<StagedTensor, CudaError> {
        let bytes = tensor.view().values.bytes();
        let (name, shape) = (name.to_owned(), filled_shape(tensor.shape(), rows));
        let size = shape.iter().product::<usize>() * tensor.element_type().size();
        let (mut pinned, mut on_device) = if let Some(used) = used.filter(|used| used.bytes.len() >= size) {
            (used.pinned, used.bytes)
        } else {
            let room = size.max(1);
            let pieces = (0..room).step_by(PIECE).map(|first| self.device.pinned(PIECE.min(room - first)));
            (pieces.collect::<Result<_, _>>()?, self.stream.alloc_zeros(room)?)
        };
        let row = shape.first().map_or(size, |rows| size / rows.max(&1));
        let mut copy = |(first, piece): (usize, &mut PinnedHostSlice<u8>)| {
            // Waits until the copy that used this piece before is over.
            let begin = piece.as_mut_slice()?;
            let end = begin.len().min(size - first);
            fill(&mut begin[..end], bytes, row, first);
            self.stream.memcpy_htod(&*piece, &mut on_device.slice_mut(first..first + piece.len()))
        };
        let copied = (0..size).step_by(PIECE).zip(&mut pinned).try_for_each(&mut copy);
        // Also where only the event failed that tells when a copy is over.
        let copied = copied.and_then(|()| self.device.context().check_err());
        if copied.is_err() {
            // Neither side must be given up while it is copied; why copying failed says more than that waiting did.
            let _waited = wait(&self.stream);
        }
        copied?;
        Ok(StagedTensor { name, shape, element_type: tensor.element_type(), pinned, bytes: on_device })
    }
}

/// The shape of a tensor of fewer than `rows` rows that is filled up to as many.
fn filled_shape(shape: &[usize], rows: Option<usize>) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let (Some(extent), Some(rows)) = (shape.first_mut(), rows)
        && (1..rows).contains(extent)
    {
        *extent = rows;
    }
    shape
}

/// Writes what lies behind `at`: the rest of `bytes`, then its last `row` bytes over and over.
fn fill(mut to: &mut [u8], bytes: &[u8], row: usize, mut at: usize) {
    while !to.is_empty() {
        let from = match at.checked_sub(bytes.len()) {
            None => &bytes[at..],
            Some(behind) => &bytes[bytes.len() - row + behind % row..],
        };
        let (now, later) = to.split_at_mut(from.len().min(to.len()));
        now.copy_from_slice(&from[..now.len()]);
        at += now.len();
        to = later;
    }
}

impl Staged {
    /// All of them, by name.
    pub fn tensors(&self) -> &[StagedTensor] {
        &self.tensors
    }

    /// Whether it was made on `device` of inputs with the names, types and shapes of these, filled up to `rows`.
    pub fn is_like(&self, device: &Device, inputs: &TensorMap, rows: Option<usize>) -> bool {
        let like = |((name, tensor), staged): ((&String, &Tensor), &StagedTensor)| {
            *name == staged.name
                && tensor.element_type() == staged.element_type
                && filled_shape(tensor.shape(), rows) == staged.shape
        };
        self.device == device.info().index
            && inputs.len() == self.tensors.len()
            && inputs.iter().zip(&self.tensors).all(like)
    }
}

impl StagedTensor {
    /// The tensor for work on `stream`, which waits for the copy.
    pub fn view(&self, stream: &CudaStream) -> Result<DeviceView<'_>, CudaError> {
        let view = DeviceView::of_bytes(&self.bytes, stream, &self.shape, self.element_type);
        view.ok_or_else(|| CudaError::Call(format!("input `{}` is larger than its buffer", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_repeated_wherever_a_piece_begins() {
        let bytes = [1, 2, 3, 4, 5, 6];
        let whole = [1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5, 6];
        for piece in 1..=whole.len() {
            let mut found = [0; 12];
            for (index, to) in found.chunks_mut(piece).enumerate() {
                fill(to, &bytes, 3, index * piece);
            }
            assert_eq!(found, whole, "pieces of {piece}");
        }
        assert_eq!(filled_shape(&[2, 3], Some(4)), [4, 3]);
        assert_eq!(filled_shape(&[2, 3], Some(2)), [2, 3]);
        assert_eq!((filled_shape(&[2], None), filled_shape(&[], Some(4))), (vec![2], vec![]));
        // Without samples there is nothing to repeat, and more than asked for stays as it is.
        assert_eq!((filled_shape(&[0, 3], Some(4)), filled_shape(&[5], Some(4))), (vec![0, 3], vec![5]));
    }
}
