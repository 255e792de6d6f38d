//! `calib doctor`: what was found on this machine, what it lacks and how to get it.

use serde::Serialize;

use super::ExitStatus;
use crate::{
    backend::{
        onnxruntime::{LibrarySearch, OnnxRuntime, search},
        tensorrt::{Flavour, Library, compiled_flavour, find_library, searched_folders},
    },
    cli::GlobalArgs,
    printer::Printer,
};

#[derive(Serialize)]
struct Findings {
    calib: &'static str,
    onnxruntime: OnnxRuntimeFindings,
    cuda_driver: bool,
    gpus: Vec<String>,
    tensorrt: Vec<TensorRtFindings>,
}

#[derive(Serialize)]
struct OnnxRuntimeFindings {
    search: LibrarySearch,
    loaded: Option<String>,
    cuda_provider: bool,
    error: Option<String>,
}

#[derive(Serialize)]
struct TensorRtFindings {
    flavour: Flavour,
    compiled_in: bool,
    library: Option<Library>,
    searched: Vec<String>,
}

/// Looks around; never fails for what is missing.
pub(super) fn doctor(printer: &Printer, global: &GlobalArgs) -> anyhow::Result<ExitStatus> {
    let runtime = OnnxRuntime::load(global.ort_library.as_deref());
    let gpus = gpu_names();
    let findings = Findings {
        calib: env!("CARGO_PKG_VERSION"),
        onnxruntime: OnnxRuntimeFindings {
            search: search(global.ort_library.as_deref()),
            loaded: runtime.as_ref().ok().map(|runtime| runtime.library().display().to_string()),
            cuda_provider: runtime.as_ref().is_ok_and(OnnxRuntime::has_cuda),
            error: runtime.as_ref().err().map(ToString::to_string),
        },
        cuda_driver: gpus.is_some(),
        gpus: gpus.unwrap_or_default(),
        tensorrt: [Flavour::TensorRt, Flavour::TensorRtRtx].map(tensorrt).into(),
    };
    printer.outcome(&findings, || describe(&findings))?;
    Ok(ExitStatus::Passed)
}

fn tensorrt(flavour: Flavour) -> TensorRtFindings {
    TensorRtFindings {
        flavour,
        compiled_in: compiled_flavour() == Some(flavour),
        library: find_library(flavour, None),
        searched: searched_folders(flavour, None).iter().map(|folder| folder.display().to_string()).collect(),
    }
}

/// Names of the GPUs; `None` without a CUDA driver.
fn gpu_names() -> Option<Vec<String>> {
    use cudarc::driver::{CudaContext, result, sys};
    // SAFETY: looks whether the driver's library can be opened; the other calls below panic without it.
    if !unsafe { sys::is_culib_present() } || result::init().is_err() {
        return None;
    }
    let count = CudaContext::device_count().unwrap_or(0);
    let name = |index: i32| {
        let context = CudaContext::new(index as usize).ok()?;
        let (major, minor) = context.compute_capability().ok()?;
        Some(format!("{} (compute capability {major}.{minor})", context.name().ok()?))
    };
    Some((0..count).map(|index| name(index).unwrap_or_else(|| format!("GPU {index} does not answer"))).collect())
}

fn describe(findings: &Findings) -> String {
    let mut lines = vec![format!("calib {}", findings.calib), String::new()];
    let runtime = &findings.onnxruntime;
    match (&runtime.loaded, &runtime.error) {
        (Some(path), _) => lines.push(format!("ok       ONNX Runtime: {path}")),
        (None, error) => {
            lines.push(format!("missing  ONNX Runtime: {}", error.as_deref().unwrap_or("not loaded")));
            lines.push("         get it with `make setup`, or set ORT_DYLIB_PATH to libonnxruntime.so".to_owned());
        }
    }
    for place in &runtime.search.places {
        lines.push(format!("         looked at {}", place.path.display()));
    }
    if runtime.loaded.is_some() {
        lines.push(if runtime.cuda_provider {
            "ok       CUDA provider: part of this ONNX Runtime".to_owned()
        } else {
            "-        CUDA provider: not part of this ONNX Runtime; it is in the package onnxruntime-gpu".to_owned()
        });
    }
    if findings.cuda_driver {
        lines.push("ok       CUDA driver".to_owned());
        lines.extend(findings.gpus.iter().map(|gpu| format!("ok       GPU: {gpu}")));
    } else {
        lines.push(
            "-        CUDA driver: none (no GPU here, or install the NVIDIA driver); the CPU path works".to_owned(),
        );
    }
    for found in &findings.tensorrt {
        let compiled = if found.compiled_in { "" } else { "; this program was built without it" };
        if let Some(library) = &found.library {
            let parser = if library.parser.is_some() { "" } else { ", runtime only: it cannot build engines" };
            lines.push(format!("ok       {}: {}{parser}{compiled}", found.flavour, library.library.display()));
        } else {
            lines.push(format!("-        {}: not found{compiled}", found.flavour));
            lines.push(format!("         looked in {}", found.searched.join(", ")));
            lines.push(format!("         {}", found.flavour.hint()));
        }
    }
    lines.join("\n")
}
