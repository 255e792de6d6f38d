//! Tensors on their way back from the device.

use super::{CudaError, CudaStream, Device, DeviceView, PinnedHostSlice, wait};
use crate::tensor::{ElementType, TensorView, ValuesView};

/// Page-locked memory that tensors come back to, used again where it is large enough.
#[derive(Default)]
pub struct Landing {
    landed: Vec<Landed>,
}

struct Landed {
    name: String,
    shape: Vec<usize>,
    element_type: ElementType,
    bytes: PinnedHostSlice<u8>,
}

impl Landing {
    /// Copies `views` behind what is on `stream`, and waits for them.
    pub fn fetch(
        &mut self,
        device: &Device,
        stream: &CudaStream,
        views: &[(&str, DeviceView<'_>)],
    ) -> Result<(), CudaError> {
        let mut used = std::mem::take(&mut self.landed);
        let fetched = views.iter().try_for_each(|(name, view)| {
            let size = view.len() * view.element_type().size();
            let index = used.iter().position(|old| old.bytes.len() >= size);
            let mut bytes = match index {
                Some(index) => used.remove(index).bytes,
                None => device.pinned(size.max(1))?,
            };
            view.copy_to_host(&mut bytes.as_mut_slice()?[..size], stream)?;
            let (name, shape) = ((*name).to_owned(), view.shape().to_vec());
            self.landed.push(Landed { name, shape, element_type: view.element_type(), bytes });
            Ok(())
        });
        // Neither side must be given up while it is copied, whatever became of the others.
        wait(stream)?;
        fetched
    }

    /// Shows what was fetched last.
    pub fn visit<E: From<CudaError>>(
        &self,
        mut visit: impl FnMut(&str, TensorView<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for Landed { name, shape, element_type, bytes } in &self.landed {
            let size = shape.iter().product::<usize>() * element_type.size();
            let bytes = &bytes.as_slice().map_err(CudaError::from)?[..size];
            let values = ValuesView::from_bytes(*element_type, bytes)
                .ok_or_else(|| CudaError::Call(format!("`{name}` holds no values of type {element_type}")))?;
            visit(name, TensorView { shape, values })?;
        }
        Ok(())
    }
}
