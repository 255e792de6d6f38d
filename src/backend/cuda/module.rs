//! Kernels: CUDA C++ source, compiled for the GPU at hand by NVRTC when they are first needed.

use std::{
    ffi::CString,
    path::{Path, PathBuf},
    sync::{Arc, Once},
};

use cudarc::{
    driver::{CudaFunction, CudaModule},
    nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts, sys},
};

use super::{CudaError, Device};
use crate::backend::installed::runtime_folders;

/// Oldest GPUs that CUDA 13 compiles for (Turing).
const OLDEST_ARCHITECTURE: (u32, u32) = (7, 5);

/// CUDA C++ text under a name for messages.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Name of the file.
    pub name: &'static str,
    /// Its content; every kernel is `extern "C"`.
    pub text: &'static str,
}

/// Kernels on a device.
#[derive(Clone, Debug)]
pub struct Kernels {
    module: Arc<CudaModule>,
}

/// Compiles to PTX for a compute capability. Needs no GPU and no driver.
///
/// Arithmetic is IEEE: denormal numbers are kept, and products are not fused with sums.
pub fn compile(source: Source, (major, minor): (u32, u32)) -> Result<Ptx, CudaError> {
    load_compiler()?;
    let options = CompileOptions {
        ftz: Some(false),
        fmad: Some(false),
        name: Some(source.name.to_owned()),
        options: vec![format!("--gpu-architecture=compute_{major}{minor}"), "--std=c++17".to_owned()],
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(source.text, options).map_err(|error| {
        let log = match error {
            CompileError::CompileError { log, .. } => log.to_string_lossy().trim().to_owned(),
            other => other.to_string(),
        };
        CudaError::Compile { name: source.name, log }
    })
}

impl Kernels {
    /// Compiles for a device and loads the result.
    pub fn load(device: &Device, source: Source) -> Result<Self, CudaError> {
        let capability = device.info().compute_capability;
        if capability < OLDEST_ARCHITECTURE {
            let (major, minor) = capability;
            let reason =
                format!("{} has compute capability {major}.{minor}, and CUDA 13 needs 7.5", device.info().name);
            return Err(CudaError::Call(reason));
        }
        Ok(Self { module: device.context().load_module(compile(source, capability)?)? })
    }

    /// A kernel by its name.
    pub fn function(&self, name: &str) -> Result<CudaFunction, CudaError> {
        Ok(self.module.load_function(name)?)
    }
}

/// Makes NVRTC loadable, from `.runtime/cuda-nvrtc` where that exists and by the system's loader otherwise.
pub fn load_compiler() -> Result<(), CudaError> {
    static PRELOAD: Once = Once::new();
    PRELOAD.call_once(|| {
        let folders = runtime_folders().into_iter().map(|folder| folder.join("cuda-nvrtc"));
        if let Some(folder) = folders.into_iter().find(|folder| folder.is_dir()) {
            preload(&folder);
        }
    });
    // SAFETY: only opens and closes the library; the calls behind this one panic without it.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(CudaError::NoCompiler) }
}

/// Opens the libraries of a folder by their full path: whoever asks for them by name then gets these.
fn preload(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut libraries: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    libraries.retain(|path| path.to_string_lossy().contains(".so"));
    // `libnvrtc-builtins` comes before `libnvrtc`, which asks for it.
    libraries.sort();
    for library in libraries {
        if let Ok(path) = CString::new(library.into_os_string().into_encoded_bytes()) {
            // SAFETY: a null-terminated path to one of NVIDIA's libraries; it stays open for good.
            unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        }
    }
}
