//! What happens when something goes wrong: interrupts, kills, full disks, damaged and hostile files.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says why it skips")]

mod disk;
mod formats;
mod hostile;
mod interrupts;
mod kill;
mod memory;
mod models;
mod mutate;
mod mutations;
mod round_trips;
mod soak;

use std::{path::Path, process::Command};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// The project's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the project holds cli/")
}

/// A command of the binary under test; `None`, with a message, where the runtime libraries were not fetched.
fn calib() -> Option<Command> {
    if !root().join(".runtime/onnxruntime").is_dir() && std::env::var_os("ORT_DYLIB_PATH").is_none() {
        println!("skipped: no ONNX Runtime; run `make setup`");
        return None;
    }
    Some(Command::new(env!("CARGO_BIN_EXE_calib")))
}

/// A run of the embedded model and images into `out`, without timing and engines.
fn demo_run(out: &Path) -> Option<Command> {
    let mut command = calib()?;
    command.arg("run").arg("--config").arg(root().join("configs/demo.toml"));
    command.args(["--bench-seconds", "0", "--tensorrt", "off", "--out"]).arg(out);
    Some(command)
}
