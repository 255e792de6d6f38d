//! NVIDIA GPUs through the CUDA driver: devices, streams, memory, graphs, and kernels compiled at run time.
//!
//! The driver's library is loaded when a [`Device`] is opened, never before: the program starts and works without it.
//! Streams, events and buffers are `cudarc`'s own, which track what each buffer still waits for; this module adds the
//! checks before the first call, errors that say what to do, and what is missing there.

mod device;
#[cfg(test)]
pub(crate) mod fake;
mod gpu;
mod graph;
mod landing;
mod magnitudes;
mod management;
mod module;
mod pairs;
#[cfg(test)]
mod tests;
mod upload;
mod view;

pub use cudarc::driver::{CudaEvent, CudaGraph, CudaSlice, CudaStream, PinnedHostSlice};
pub use device::{Device, DeviceInfo, Timer, device_count, wait};
pub use gpu::Gpu;
pub use graph::capture;
pub use landing::Landing;
pub use magnitudes::{BINS, MAGNITUDES, MIN_EXPONENT, MagnitudeCounter, Magnitudes, NonFinite};
pub use management::DeviceState;
pub use module::{Kernels, Source, compile, load_compiler};
pub use pairs::{PAIRS, PIECE, Pair, PairComparer, PieceSums};
pub use upload::{Staged, StagedTensor, Uploader};
pub use view::DeviceView;

/// Oldest driver interface that works: CUDA 13.0, as major · 1000 + minor · 10.
const OLDEST_DRIVER: i32 = 13_000;

/// Why a GPU cannot be used, or a call failed on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No `libcuda`.
    #[error(
        "there is no CUDA driver: libcuda.so.1 was not found; install the NVIDIA driver (580 or newer) on a machine \
         with an NVIDIA GPU, or use the CPU"
    )]
    NoDriver,
    /// The driver is older than CUDA 13.
    #[error("the CUDA driver is too old: it offers CUDA {}, and 13.0 is needed; install driver 580 or newer", version(*.found))]
    OldDriver {
        /// What `cuDriverGetVersion` says.
        found: i32,
    },
    /// The driver sees no GPU.
    #[error("the CUDA driver finds no GPU; check that `nvidia-smi` lists one, and that a container was given it")]
    NoGpu,
    /// `CUDA_VISIBLE_DEVICES` leaves none.
    #[error("CUDA_VISIBLE_DEVICES=`{visible}` leaves no GPU to use; unset it or name a GPU that exists")]
    Hidden {
        /// The variable's value.
        visible: String,
    },
    /// The index is beyond the GPUs that are visible.
    #[error("there is no GPU {index}: {count} can be seen (CUDA_VISIBLE_DEVICES counts), numbered from 0")]
    NoSuchDevice {
        /// Index asked for.
        index: u32,
        /// Number of visible GPUs.
        count: u32,
    },
    /// Not enough memory on the GPU.
    #[error("the GPU is out of memory; use a smaller --batch, or end other programs on it (`nvidia-smi` lists them)")]
    OutOfMemory,
    /// Any other call that failed.
    #[error("CUDA: {0}")]
    Call(String),
    /// No `libnvrtc`.
    #[error(
        "the CUDA compiler library libnvrtc.so.13 was not found; install the PyPI package nvidia-cuda-nvrtc and put its \
         nvidia/cu13/lib on LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// A kernel did not compile.
    #[error("the CUDA kernels `{name}` do not compile: {log}")]
    Compile {
        /// Which kernels.
        name: &'static str,
        /// The compiler's messages.
        log: String,
    },
}

fn version(found: i32) -> String {
    format!("{}.{}", found / 1000, found % 1000 / 10)
}

impl From<cudarc::driver::DriverError> for CudaError {
    fn from(error: cudarc::driver::DriverError) -> Self {
        if error.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Self::OutOfMemory;
        }
        let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
        Self::Call(format!("{} ({:?})", text.unwrap_or_else(|_| "an unknown error".to_owned()), error.0))
    }
}
