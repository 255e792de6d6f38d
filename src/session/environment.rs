//! The machine that runs, for reports.

use std::collections::BTreeMap;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::{
    backend::{cuda::Device, onnxruntime::OnnxRuntime, threads_or_cores},
    report::{Environment, Gpu},
};

/// Largest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}

/// Operating system, processor, memory, libraries, and the GPU that was used.
pub fn environment(runtime: OnnxRuntime, gpu: Option<u32>) -> Environment {
    let cpu = CpuRefreshKind::nothing().with_frequency();
    let kinds = RefreshKind::nothing().with_cpu(cpu).with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(kinds).ok();
    // What a distribution appends to the kernel's version says nothing here.
    let kernel = System::kernel_version().map(|version| version.split('-').next().unwrap_or("").to_owned());
    let os = [System::name(), kernel].into_iter().flatten().collect::<Vec<_>>().join(" ");
    Environment {
        os: format!("{os} {}", std::env::consts::ARCH),
        cpu_model: system
            .as_ref()
            .and_then(|system| system.cpus().first())
            .map_or_else(|| "unknown".to_owned(), |cpu| cpu.brand().trim().to_owned()),
        cores: threads_or_cores(0),
        cpu_mhz: system
            .as_ref()
            .and_then(|system| system.cpus().iter().map(|cpu| cpu.frequency() as u32).max())
            .filter(|&mhz| mhz > 0),
        cpu_temperature_c: cpu_temperature_c(),
        memory_bytes: system.as_ref().map_or(0, System::total_memory),
        libraries: BTreeMap::from([("ONNX Runtime".to_owned(), library_version(runtime))]),
        gpu: gpu.and_then(|index| Device::open(index).ok()).map(|device| describe_gpu(&device)),
    }
}

fn describe_gpu(device: &Device) -> Gpu {
    let (info, state) = (device.info(), device.state());
    let (major, minor) = info.compute_capability;
    let driver = state.driver_version.map_or_else(String::new, |version| format!("{version}, "));
    Gpu {
        name: info.name.clone(),
        compute_capability: format!("{major}.{minor}"),
        memory_bytes: info.memory_bytes,
        driver: format!("{driver}CUDA {}", info.driver_version),
        clock_mhz: state.clock_mhz,
        temperature_c: state.temperature_c,
    }
}

/// Temperature of the processor in degrees Celsius, where the system tells it (virtual machines do not).
fn cpu_temperature_c() -> Option<u32> {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let sensors = std::fs::read_dir("/sys/class/hwmon").ok()?.flatten().map(|entry| entry.path());
    let of_cpu = sensors.filter(|sensor| {
        read(sensor.join("name")).is_some_and(|name| ["coretemp", "k10temp", "zenpower"].contains(&name.as_str()))
    });
    let milli: Option<u32> = of_cpu.filter_map(|sensor| read(sensor.join("temp1_input"))?.parse().ok()).max();
    milli.map(|milli| milli / 1000)
}

/// The version in the library's file name, or the name itself.
fn library_version(runtime: OnnxRuntime) -> String {
    let path = runtime.file();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split_once(".so.").map_or(name.clone(), |(_, version)| version.to_owned())
}
