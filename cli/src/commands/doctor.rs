//! `calib doctor`: what was found on this machine, what it lacks and how to get it.

use serde::Serialize;

use super::ExitStatus;
use crate::{args::GlobalArgs, printer::Printer};
use trtcalib::backend::{
    cuda::{CudaError, Device, DeviceInfo, device_count, load_compiler},
    onnxruntime::{LibrarySearch, OnnxRuntime, Origin, search},
    tensorrt::{Flavour, Library, RTX_CAPABILITIES, compiled_flavour, find_library, rtx_runs_on, searched_folders},
};

#[derive(Serialize)]
struct Findings {
    calib: &'static str,
    onnxruntime: OnnxRuntimeFindings,
    gpus: Vec<DeviceInfo>,
    gpu_error: Option<String>,
    cuda_compiler: Option<String>,
    tensorrt: Vec<TensorRtFindings>,
}

#[derive(Serialize)]
struct OnnxRuntimeFindings {
    search: LibrarySearch,
    loaded: Option<String>,
    cuda_provider: bool,
    cuda_error: Option<String>,
    error: Option<String>,
}

#[derive(Serialize)]
struct TensorRtFindings {
    flavour: Flavour,
    compiled_in: bool,
    library: Option<Library>,
    version: Option<String>,
    /// Why the version is not known, or what stands against running engines here.
    problem: Option<String>,
    searched: Vec<String>,
}

/// Looks around. What every command needs, or what a CUDA provider that is there lacks, gives exit status 1; what is there
/// for engines alone may be missing.
pub(super) fn doctor(printer: &Printer, global: &GlobalArgs) -> anyhow::Result<ExitStatus> {
    let runtime = OnnxRuntime::load(global.ort_library.as_deref());
    let gpus = device_count().and_then(|count| {
        (0..count).map(|index| Ok(Device::open(index)?.info().clone())).collect::<Result<Vec<_>, CudaError>>()
    });
    let findings = Findings {
        calib: env!("CARGO_PKG_VERSION"),
        onnxruntime: OnnxRuntimeFindings {
            search: search(global.ort_library.as_deref()),
            loaded: runtime.as_ref().ok().map(|runtime| runtime.file().display().to_string()),
            cuda_provider: runtime.as_ref().is_ok_and(OnnxRuntime::has_cuda),
            cuda_error: runtime
                .as_ref()
                .ok()
                .filter(|_| gpus.is_ok())
                .and_then(|runtime| runtime.check_cuda(0).err().map(|error| error.to_string())),
            error: runtime.as_ref().err().map(ToString::to_string),
        },
        tensorrt: [Flavour::TensorRt, Flavour::TensorRtRtx]
            .map(|flavour| tensorrt(flavour, gpus.as_deref().unwrap_or_default()))
            .into(),
        cuda_compiler: load_compiler().err().map(|error| error.to_string()),
        gpu_error: gpus.as_ref().err().map(ToString::to_string),
        gpus: gpus.unwrap_or_default(),
    };
    printer.outcome(&findings, || describe(&findings))?;
    let runtime = &findings.onnxruntime;
    // A folder that was named is not there for nothing.
    let is_named = std::env::var_os("CALIB_TENSORRT_DIR").is_some_and(|folder| !folder.is_empty());
    let lacks = runtime.loaded.is_none()
        || (runtime.cuda_provider && runtime.cuda_error.is_some())
        || (is_named && findings.tensorrt.iter().all(|TensorRtFindings { library, .. }| library.is_none()));
    Ok(if lacks { ExitStatus::GateFailed } else { ExitStatus::Passed })
}

fn tensorrt(flavour: Flavour, gpus: &[DeviceInfo]) -> TensorRtFindings {
    let library = find_library(flavour, None);
    let version = library.as_ref().map(Library::version);
    let problem = match &version {
        Some(Err(error)) => Some(error.to_string()),
        Some(Ok(_)) => gpu_problem(flavour, gpus),
        None => None,
    };
    TensorRtFindings {
        flavour,
        compiled_in: compiled_flavour() == Some(flavour),
        version: version.and_then(Result::ok),
        library,
        problem,
        searched: searched_folders(flavour, None).iter().map(|folder| folder.display().to_string()).collect(),
    }
}

/// Why no GPU here runs engines of a flavour.
fn gpu_problem(flavour: Flavour, gpus: &[DeviceInfo]) -> Option<String> {
    if gpus.is_empty() {
        return Some("no GPU here to run engines on".to_owned());
    }
    let unfit = |gpu: &DeviceInfo| flavour == Flavour::TensorRtRtx && !rtx_runs_on(gpu.compute_capability);
    gpus.iter().all(unfit).then(|| {
        format!("no GPU here runs its engines: they run on compute capability {RTX_CAPABILITIES}; TensorRT 11 runs on others")
    })
}

fn describe(findings: &Findings) -> String {
    let mut lines = vec![format!("calib {}", findings.calib), String::new()];
    let runtime = &findings.onnxruntime;
    match (&runtime.loaded, &runtime.error) {
        (Some(path), _) => lines.push(format!("ok       ONNX Runtime: {path}")),
        // The error names the cure.
        (None, error) => lines.push(format!("missing  ONNX Runtime: {}", error.as_deref().unwrap_or("not loaded"))),
    }
    for place in &runtime.search.places {
        let package = if place.origin == Origin::Python { " (the Python package onnxruntime)" } else { "" };
        lines.push(format!("         looked at {}{package}", place.path.display()));
    }
    if runtime.loaded.is_some() {
        lines.push(if let (true, Some(error)) = (runtime.cuda_provider, &runtime.cuda_error) {
            format!("missing  CUDA provider: {error}")
        } else if runtime.cuda_provider {
            "ok       CUDA provider: part of this ONNX Runtime".to_owned()
        } else {
            "-        CUDA provider: not part of this ONNX Runtime; it is in the package onnxruntime-gpu".to_owned()
        });
    }
    for gpu in &findings.gpus {
        let (major, minor) = gpu.compute_capability;
        lines.push(format!(
            "ok       GPU {}: {} (compute capability {major}.{minor}, {} MiB, driver for CUDA {})",
            gpu.index,
            gpu.name,
            gpu.memory_bytes >> 20,
            gpu.driver_version
        ));
    }
    lines.push(match &findings.cuda_compiler {
        None => "ok       CUDA compiler (NVRTC)".to_owned(),
        Some(error) => format!("-        CUDA compiler (NVRTC): {error}"),
    });
    if let Some(error) = &findings.gpu_error {
        lines.push(format!("-        GPU: {error}; everything but TensorRT engines and --provider cuda works without"));
    }
    for found in &findings.tensorrt {
        let compiled = if found.compiled_in { "" } else { "; this program was built without it" };
        if let TensorRtFindings { library: Some(library), .. } = found {
            let parser = if library.parser.is_some() { "" } else { ", runtime only: it cannot build engines" };
            let version = found.version.as_deref().unwrap_or("of unknown version");
            let path = library.file.display();
            lines.push(format!("ok       {} {version}: {path}{parser}{compiled}", found.flavour));
            lines.extend(found.problem.iter().map(|problem| format!("         {problem}")));
        } else {
            lines.push(format!("-        {}: not found{compiled}", found.flavour));
            lines.push(format!("         looked in {}", found.searched.join(", ")));
            lines.push(format!("         {}", found.flavour.hint()));
        }
    }
    lines.join("\n")
}
