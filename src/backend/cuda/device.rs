//! Opening a GPU, and what belongs to one: streams, pinned host memory, timers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, result,
    sys::{self, CUevent_flags, CUresult},
};
use serde::Serialize;

use super::{CudaError, Kernels, OLDEST_DRIVER, Source};

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Index among the visible GPUs.
    pub index: u32,
    /// The vendor's name.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// CUDA version that the driver offers, as `13.0`.
    pub driver_version: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

/// A GPU whose primary context is held. ONNX Runtime and TensorRT use the same context, so buffers are shared freely.
#[derive(Clone, Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    info: DeviceInfo,
    kernels: Arc<Mutex<BTreeMap<&'static str, Kernels>>>,
}

/// Loads the driver and checks it. Returns the version it offers.
fn load_driver() -> Result<i32, CudaError> {
    // SAFETY: only opens and closes the library; all other calls panic without it.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes one integer; may be called before `cuInit` and exists in every driver. Functions of CUDA 13 are
    // only looked up after this check, since a missing one panics.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    if version < OLDEST_DRIVER {
        return Err(CudaError::OldDriver { found: version });
    }
    match result::init() {
        Ok(()) => Ok(version),
        Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => Err(none_visible()),
        Err(error) => Err(error.into()),
    }
}

fn none_visible() -> CudaError {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(visible) => CudaError::Hidden { visible },
        Err(_) => CudaError::NoGpu,
    }
}

/// Number of visible GPUs; at least one.
pub fn device_count() -> Result<u32, CudaError> {
    load_driver()?;
    match CudaContext::device_count()? {
        0 => Err(none_visible()),
        count => Ok(count as u32),
    }
}

impl Device {
    /// Opens a GPU by its index among the visible ones.
    pub fn open(index: u32) -> Result<Self, CudaError> {
        let version = load_driver()?;
        let count = device_count()?;
        if index >= count {
            return Err(CudaError::NoSuchDevice { index, count });
        }
        let context = CudaContext::new(index as usize)?;
        let (major, minor) = context.compute_capability()?;
        let multiprocessors = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let info = DeviceInfo {
            index,
            name: context.name()?,
            compute_capability: (major as u32, minor as u32),
            driver_version: super::version(version),
            memory_bytes: context.total_mem()? as u64,
            multiprocessors: multiprocessors as u32,
        };
        Ok(Self { context, info, kernels: Arc::default() })
    }

    /// What the GPU is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The context that everything on this GPU lives in.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// A new queue of work. Device memory comes from its `alloc_zeros`, `clone_htod` and the like.
    pub fn stream(&self) -> Result<Arc<CudaStream>, CudaError> {
        Ok(self.context.new_stream()?)
    }

    /// Bytes of device memory that are free.
    pub fn free_memory(&self) -> Result<u64, CudaError> {
        Ok(self.context.mem_get_info()?.0 as u64)
    }

    /// `len` zeros of page-locked host memory: copies to and from it run beside everything else. It may be read as
    /// well as written at full speed. `len` of 0 is an error.
    pub fn pinned<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<PinnedHostSlice<T>, CudaError> {
        if len == 0 || len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(CudaError::Call(format!("{len} values of pinned memory cannot be allocated")));
        }
        // SAFETY: filled with zeros, which are valid values of `T`, before anyone sees it.
        let mut pinned = unsafe { self.context.alloc_pinned_with_flags::<T>(len, 0)? };
        let begin = pinned.as_mut_ptr()?;
        // SAFETY: `begin` points to `len` values that are ours alone.
        unsafe { begin.write_bytes(0, len) };
        Ok(pinned)
    }

    /// The kernels of a source, compiled when they are first asked for.
    pub fn kernels(&self, source: Source) -> Result<Kernels, CudaError> {
        let mut loaded = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = loaded.get(source.name) {
            return Ok(kernels.clone());
        }
        let kernels = Kernels::load(self, source)?;
        loaded.insert(source.name, kernels.clone());
        Ok(kernels)
    }

    /// Measures time on a stream.
    pub fn timer(&self) -> Result<Timer, CudaError> {
        let event = || self.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Timer { start: event()?, end: event()? })
    }
}

/// Waits for everything that is on a stream: then memory that it works on can be given up.
///
/// `CudaStream::synchronize` tells an error of an earlier call *instead* of waiting (where an event could not be recorded behind a
/// copy, for one), and the memory would be gone under the copy. Here such an error is told once the stream was waited for.
///
/// # Errors
/// A failure of the GPU, now or before. One that is lost has no work left that could be waited for.
pub fn wait(stream: &CudaStream) -> Result<(), CudaError> {
    let context = stream.context();
    let earlier = context.bind_to_thread();
    let bound = if earlier.is_err() { context.bind_to_thread() } else { Ok(()) };
    // SAFETY: the stream is alive while it is borrowed.
    let waited = unsafe { result::stream::synchronize(stream.cu_stream()) };
    if waited.is_err() {
        // Whatever the call failed for, the work may still run.
        let _all = result::ctx::synchronize();
    }
    Ok(earlier.and(bound).and(waited)?)
}

/// Time between two moments of a stream, taken by the GPU itself.
#[derive(Debug)]
pub struct Timer {
    start: CudaEvent,
    end: CudaEvent,
}

impl Timer {
    /// Marks the beginning, behind the work that is on the stream.
    pub fn start(&self, stream: &CudaStream) -> Result<(), CudaError> {
        Ok(self.start.record(stream)?)
    }

    /// Marks the end.
    pub fn stop(&self, stream: &CudaStream) -> Result<(), CudaError> {
        Ok(self.end.record(stream)?)
    }

    /// Waits for the end and tells the time between. Both must have been marked.
    pub fn elapsed_ms(&self) -> Result<f64, CudaError> {
        Ok(f64::from(self.start.elapsed_ms(&self.end)?))
    }
}
