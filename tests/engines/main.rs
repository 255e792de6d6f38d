//! The engine path from end to end, against the stand-ins for TensorRT and for the CUDA driver (`tests/stand_in`): what is
//! run here is calib, and not TensorRT. `make test-engines` runs it for both flavours.
//!
//! With `CALIB_REAL_DRIVER` set, NVIDIA's driver and GPU are used, and only TensorRT is stood in for. `CALIB_UNDER` may then
//! name a program with its options that runs every command, such as `compute-sanitizer --error-exitcode 99`. `CALIB_STAND_IN` names a folder
//! of stand-ins that were built elsewhere.

#![cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod batches;
mod deployed;
mod device;
mod driver;
mod faults;
mod integers;
mod models;
mod outputs;
mod path;
mod refusals;
mod samples;
mod saved;
mod shapes;
mod strict;
mod told;
mod tried;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use calib_test_support::{calib_path, root};
use serde_json::Value;

/// The name of the flavour under test in `target/stand_in/`.
const FLAVOUR: &str = if cfg!(feature = "tensorrt") { "11" } else { "rtx" };

/// Folder of the stand-ins, which are built where they are missing or older than their sources.
fn stand_in() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(built) = std::env::var_os("CALIB_STAND_IN") {
            return built.into();
        }
        let built = Command::new(root().join("tests/stand_in/build.sh")).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        root().join("target/stand_in")
    })
}

/// True on NVIDIA's driver: what the stand-in's can be ordered to do cannot be had there.
fn real_driver() -> bool {
    std::env::var_os("CALIB_REAL_DRIVER").is_some()
}

/// Lets a program find the stand-ins; `orders` make them misbehave (`tests/stand_in/README.md` lists them).
fn with_stand_in(command: &mut Command, orders: &str) {
    command.current_dir(root()).env("CALIB_TENSORRT_DIR", stand_in().join(FLAVOUR)).env("STAND_IN", orders);
    if !real_driver() {
        command.env("LD_LIBRARY_PATH", stand_in().join("cuda"));
    }
}

/// A program to run, under the one that `CALIB_UNDER` names.
fn under(program: &Path) -> Command {
    let words = std::env::var("CALIB_UNDER").unwrap_or_default();
    let mut words = words.split_whitespace();
    let Some(outer) = words.next() else { return Command::new(program) };
    let mut command = Command::new(outer);
    command.args(words).arg(program);
    command
}

fn calib_command(orders: &str, arguments: &[&str]) -> Command {
    let mut command = under(&calib_path());
    with_stand_in(&mut command, orders);
    command.args(arguments);
    command
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether a command ended with this status. A program around it may change that, and ends with 99 for what it found
/// itself (`--error-exitcode 99`).
fn has_ended(code: Option<i32>, status: i32) -> bool {
    if std::env::var_os("CALIB_UNDER").is_some() { code != Some(99) } else { code == Some(status) }
}

/// What a command must print, with this exit status.
fn ends(status: i32, orders: &str, arguments: &[&str]) -> String {
    let output = calib_command(orders, arguments).output().unwrap();
    let error = error_of(&output);
    let code = output.status.code();
    assert!(has_ended(code, status), "calib {} ({orders}): {code:?}, {error}", arguments.join(" "));
    assert!(!error.contains("stand-in: ") && !error.contains("internal error"), "{error}");
    String::from_utf8_lossy(if status == 2 { &output.stderr } else { &output.stdout }).into_owned()
}

fn succeeds(arguments: &[&str]) -> String {
    ends(0, "", arguments)
}

fn json(orders: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&ends(0, orders, &[arguments, &["--json"]].concat())).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with engines of the embedded model: `fp32.plan` of the float model, `int8.plan` of the one with Q/DQ.
struct Engines {
    folder: tempfile::TempDir,
}

impl Engines {
    fn build() -> Self {
        let engines = Self { folder: tempfile::tempdir().unwrap() };
        let (float, data) = (root().join("calib_data/demo.onnx"), root().join("calib_data/images"));
        let (table, quantized) = (engines.path("table.json"), engines.path("int8.onnx"));
        succeeds(&["calibrate", "--model", text(&float), "--data", text(&data), "--calib-samples", "8", "-o", &table]);
        succeeds(&["quantize", "--model", text(&float), "--table", &table, "-o", &quantized]);
        succeeds(&["build", "--model", text(&float), "--data", text(&data), "-o", &engines.path("fp32.plan")]);
        let reference = ["--reference", text(&float), "--data", text(&data)];
        let build = ["build", "--model", &quantized, "-o", &engines.path("int8.plan")];
        succeeds(&[&build[..], &reference].concat());
        engines
    }

    fn path(&self, name: &str) -> String {
        text(&self.folder.path().join(name)).to_owned()
    }
}

/// Runs a test of this binary that is marked `#[ignore]`, in a process of its own with the stand-ins.
fn inside(name: &str, orders: &str) {
    let mut command = under(&std::env::current_exe().unwrap());
    with_stand_in(&mut command, orders);
    let output = command.args([name, "--exact", "--ignored", "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(has_ended(output.status.code(), 0) && said.contains("1 passed"), "{name}: {said}{}", error_of(&output));
}
