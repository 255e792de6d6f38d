//! What happens when something goes wrong: interrupts, kills, full disks, damaged and hostile files.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it did")]

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

use calib_test_support::{calib, root};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// A run of the embedded model and images into `out`, without timing and engines.
fn demo_run(out: &Path) -> Option<Command> {
    let mut command = calib()?;
    command.arg("run").arg("--config").arg(root().join("configs/demo.toml"));
    command.args(["--max-memory-mb", "4096", "--bench-seconds", "0", "--tensorrt", "off", "--out"]).arg(out);
    Some(command)
}
