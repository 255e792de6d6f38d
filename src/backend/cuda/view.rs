//! Tensors in device memory.

use std::marker::PhantomData;

use cudarc::driver::DevicePtr;

use super::{CudaError, CudaSlice, CudaStream};
use crate::tensor::ElementType;

/// A dense, row-major tensor in device memory, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct DeviceView<'a> {
    address: u64,
    shape: &'a [usize],
    element_type: ElementType,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> DeviceView<'a> {
    /// A tensor at an address.
    ///
    /// # Safety
    /// For the lifetime `'a` the address must be that of device memory with all elements of `shape`, aligned for
    /// their type. Whatever writes them must be finished, or be on the stream that the view is used on.
    pub unsafe fn from_raw(address: u64, shape: &'a [usize], element_type: ElementType) -> Self {
        Self { address, shape, element_type, memory: PhantomData }
    }

    /// The tensor in a buffer of bytes; `None` when that is too small for the shape. Work on `stream` from now on comes
    /// after what was written to the buffer before.
    pub fn of_bytes(
        buffer: &'a CudaSlice<u8>,
        stream: &CudaStream,
        shape: &'a [usize],
        element_type: ElementType,
    ) -> Option<Self> {
        let count = shape.iter().try_fold(1_usize, |n, &extent| n.checked_mul(extent))?;
        if count.checked_mul(element_type.size())? > buffer.len() {
            return None;
        }
        let (address, _recorded) = buffer.device_ptr(stream);
        Some(Self { address, shape, element_type, memory: PhantomData })
    }

    /// Row `index` of `rows` along the first axis, which must have that extent; a tensor of one row may lack the axis.
    pub fn row(&self, index: usize, rows: usize) -> Option<Self> {
        match self.shape.split_first() {
            Some((&extent, shape)) if extent == rows && index < rows => {
                let length = (self.len() / rows * self.element_type.size()) as u64;
                Some(Self { address: self.address + index as u64 * length, shape, ..*self })
            }
            _ if rows == 1 && index == 0 => Some(*self),
            _ => None,
        }
    }

    /// Its first elements in another shape; `None` when that has more than there are.
    pub fn begin<'b>(&self, shape: &'b [usize]) -> Option<DeviceView<'b>>
    where
        'a: 'b,
    {
        (shape.iter().product::<usize>() <= self.len()).then_some(DeviceView { shape, ..*self })
    }

    /// Begins to copy its bytes, of which `to` has as many, on `stream`; that must be waited for before view or `to` end.
    pub(super) fn copy_to_host(self, to: &mut [u8], stream: &CudaStream) -> Result<(), CudaError> {
        if to.len() != self.len() * self.element_type.size() {
            return Err(CudaError::Call(format!("{} bytes do not hold {} values", to.len(), self.len())));
        }
        if !to.is_empty() {
            // SAFETY: as many bytes on both sides, which stay until the stream was waited for, as the caller promises.
            unsafe { cudarc::driver::result::memcpy_dtoh_async(to, self.address, stream.cu_stream()) }?;
        }
        Ok(())
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.element_type
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the kernels number the floating-point types; `None` for all others.
    pub(super) fn kernel_type(&self) -> Option<u32> {
        match self.element_type {
            ElementType::F32 => Some(0),
            ElementType::F16 => Some(1),
            ElementType::Bf16 => Some(2),
            ElementType::F64 => Some(3),
            _ => None,
        }
    }
}
