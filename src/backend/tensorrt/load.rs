//! Loads the shared libraries, once a process.

use std::path::Path;

use super::{Library, TensorRtError};

/// Loads the library that runs engines.
pub(super) fn runtime(library: &Library) -> Result<(), TensorRtError> {
    let (version, major) = (library.version()?, library.flavour.major());
    if version.split('.').next() != Some(major) {
        let reason = format!("it calls itself version {version}; {} {major} is needed", library.flavour);
        return Err(TensorRtError::Load { path: library.file.clone(), reason });
    }
    trtx::dynamically_load_tensorrt(Some(library.file.as_os_str())).map_err(|e| failed(&library.file, &e))
}

/// Loads the library that runs engines, and the ONNX parser.
pub(super) fn builder(library: &Library) -> Result<(), TensorRtError> {
    let parser = library.parser.as_deref().ok_or_else(|| TensorRtError::Runtime {
        flavour: library.flavour,
        reason: format!(
            "{} only runs engines; building needs the full library with its ONNX parser; {}",
            library.file.display(),
            library.flavour.hint()
        ),
    })?;
    runtime(library)?;
    trtx::dynamically_load_tensorrt_onnxparser(Some(parser.as_os_str())).map_err(|e| failed(parser, &e))
}

fn failed(path: &Path, error: &trtx::Error) -> TensorRtError {
    TensorRtError::Load { path: path.to_owned(), reason: error.to_string() }
}
