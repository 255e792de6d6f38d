//! What a model gave on a GPU, kept there beyond its next run.

use std::sync::Arc;

use super::{CudaError, CudaSlice, CudaStream, Device, DeviceView, PinnedHostSlice};
use crate::tensor::{ElementType, TensorMap, TensorView, ValuesView};

/// Named tensors in device memory. Nothing that writes them is still running.
pub struct DeviceTensors {
    device: Device,
    stream: Arc<CudaStream>,
    tensors: Vec<DeviceTensor>,
}

struct DeviceTensor {
    name: String,
    shape: Vec<usize>,
    element_type: ElementType,
    bytes: CudaSlice<u8>,
}

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

impl DeviceTensors {
    /// Copies of `views`, behind what is on `stream`, and waits for them.
    pub fn of(device: &Device, stream: &Arc<CudaStream>, views: &[(&str, DeviceView<'_>)]) -> Result<Self, CudaError> {
        let copy = |(name, view): &(&str, DeviceView<'_>)| {
            let bytes = view.copied(stream)?;
            let (name, shape) = ((*name).to_owned(), view.shape().to_vec());
            Ok(DeviceTensor { name, shape, element_type: view.element_type(), bytes })
        };
        let tensors = views.iter().map(copy).collect::<Result<_, CudaError>>();
        // The views must not be given up while they are read, whatever became of the others.
        stream.synchronize()?;
        Ok(Self { device: device.clone(), stream: stream.clone(), tensors: tensors? })
    }

    /// The GPU they are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// One of them.
    pub fn view(&self, name: &str) -> Option<DeviceView<'_>> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name)?;
        DeviceView::of_bytes(&tensor.bytes, &self.stream, &tensor.shape, tensor.element_type)
    }

    /// Copies of all of them in host memory.
    pub fn to_host(&self) -> Result<TensorMap, CudaError> {
        let views: Vec<_> = self.names().filter_map(|name| Some((name, self.view(name)?))).collect();
        let mut landing = Landing::default();
        landing.fetch(&self.device, &self.stream, &views)?;
        let mut tensors = TensorMap::new();
        landing.visit(|name, view| {
            tensors.insert(name.to_owned(), view.to_owned());
            Ok::<_, CudaError>(())
        })?;
        Ok(tensors)
    }
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
        stream.synchronize()?;
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
