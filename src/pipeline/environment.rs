//! The machine that runs, for reports.

use std::collections::BTreeMap;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::{backend::onnxruntime::OnnxRuntime, report::Environment};

/// Largest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}

/// Operating system, processor, memory and libraries.
pub fn environment(runtime: OnnxRuntime) -> Environment {
    let kinds =
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(kinds).ok();
    let os = [System::name(), System::kernel_version()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    Environment {
        os: format!("{os} {}", std::env::consts::ARCH),
        cpu_model: system
            .as_ref()
            .and_then(|system| system.cpus().first())
            .map_or_else(|| "unknown".to_owned(), |cpu| cpu.brand().trim().to_owned()),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_bytes: system.as_ref().map_or(0, System::total_memory),
        libraries: BTreeMap::from([("ONNX Runtime".to_owned(), library_version(runtime))]),
        gpu: None,
    }
}

/// The version in the library's file name, or the name itself.
fn library_version(runtime: OnnxRuntime) -> String {
    let path = runtime.library();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split_once(".so.").map_or(name.clone(), |(_, version)| version.to_owned())
}
