//! ONNX Runtime: the float reference, and the first target of every precision.
//!
//! The shared library is loaded at run time ([`search`] shows from where). Everything is deterministic on the CPU:
//! one stream of operators, a fixed number of threads inside each.

mod device;
mod emulation;
mod float_kernels;
mod fold;
mod gpu_runner;
mod layer_times;
mod library;
mod own_codes;
mod runner;
mod said;
mod session;
mod side_by_side;
#[cfg(test)]
mod tests;
mod values;
mod wide_ends;

use std::path::Path;

pub use device::{DeviceOutput, DeviceRunner};
pub use emulation::{emulation, lowest_bits, widens_halves};
pub use library::{LIBRARY_VARIABLE, LibrarySearch, Origin, Place, search};
use ort::ep::ExecutionProvider as _;
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
pub(crate) use runner::check_inputs;
pub use session::{panic_is_expected, sessions_built};
pub(crate) use wide_ends::is_e4m3;

use super::{Backend, BackendError, BuildOptions, ExecutionProvider, Runner};
use crate::onnx::Model;

const RUNTIME: &str = "ONNX Runtime";

/// ONNX Runtime, loaded.
#[derive(Clone, Copy, Debug)]
pub struct OnnxRuntime {
    loaded: &'static library::Loaded,
}

impl OnnxRuntime {
    /// Loads the shared library: `library`, or what [`search`] finds. A process loads one library once.
    pub fn load(library: Option<&Path>) -> Result<Self, BackendError> {
        Ok(Self { loaded: library::load(library)? })
    }

    /// The library in use.
    pub fn file(&self) -> &Path {
        &self.loaded.path
    }

    /// Whether this build of ONNX Runtime has the CUDA execution provider. It can still fail to load.
    pub fn has_cuda(&self) -> bool {
        ort::ep::CUDA::is_available().unwrap_or(false)
    }

    /// Whether the CUDA execution provider works on a GPU, without a model; the error says what is missing.
    pub fn check_cuda(&self, device: u32) -> Result<(), BackendError> {
        let options = BuildOptions { provider: ExecutionProvider::Cuda(device), ..BuildOptions::default() };
        session::builder(self.loaded, &options, None).map(drop)
    }

    /// Branch, commit and compiler flags of the library.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }
}

impl Backend for OnnxRuntime {
    fn build(&self, model: &Model, options: &BuildOptions) -> Result<Box<dyn Runner>, BackendError> {
        if let Some(device) = options.provider.gpu() {
            return Ok(Box::new(gpu_runner::GpuRunner::new(*self, model, options, device)?));
        }
        if options.side_by_side {
            return side_by_side::build(self.loaded, model, options);
        }
        let built = session::build(self.loaded, model, options, None)?;
        Ok(Box::new(runner::SessionRunner::new(built)))
    }
}
