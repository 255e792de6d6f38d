//! Drives the real binary: exit status, standard output, standard error and the files it leaves.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and says why it skips"
)]

mod bench;
mod bisect;
mod errors;
mod example;
mod real_model;
mod said;
mod segmentation;
mod unusual_models;
mod workflow;

use std::path::{Path, PathBuf};

use assert_cmd::Command;

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
    Some(Command::cargo_bin("calib").expect("cargo builds the binary"))
}

fn demo(file: &str) -> PathBuf {
    root().join("calib_data").join(file)
}

/// Flags that name the embedded model, its images and their preprocessing.
fn demo_flags() -> Vec<String> {
    let config = root().join("configs/demo.toml");
    vec!["--config".into(), config.display().to_string(), "--tensorrt".into(), "off".into()]
}

/// Standard error of a command that must fail with status 2.
fn error_of(command: &mut Command) -> String {
    let output = command.output().expect("the binary runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(!error.contains("internal error"), "{error}");
    error
}

fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("valid JSON")
}

/// Runs a Python script with the fetched packages; `None`, with a message, where they are missing.
fn python(script: &str, arguments: &[&Path]) -> Option<String> {
    let packages = root().join(".runtime/python");
    if !packages.is_dir() {
        println!("skipped: no Python packages; run `make test`");
        return None;
    }
    let output = std::process::Command::new("python3")
        .arg("-c")
        .arg(script)
        .args(arguments)
        .env("PYTHONPATH", packages)
        .output()
        .expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
