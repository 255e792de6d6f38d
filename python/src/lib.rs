//! The extension module `trtcalib._trtcalib`.

use std::ffi::OsString;

use pyo3::{prelude::*, types::PyModule};

/// Runs the program `calib` with the words of a command line, the program's name first; returns its exit status.
#[pyfunction]
fn calib(py: Python<'_>, words: Vec<OsString>) -> u8 {
    py.detach(|| calib_cli::calib(words))
}

/// Runs the program `compare`, which is the same as `calib compare`.
#[pyfunction]
fn compare_program(py: Python<'_>, words: Vec<OsString>) -> u8 {
    py.detach(|| calib_cli::compare(words))
}

#[pymodule]
fn _trtcalib(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(calib, module)?)?;
    module.add_function(wrap_pyfunction!(compare_program, module)?)?;
    Ok(())
}
