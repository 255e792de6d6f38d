//! Drives the real binary: exit status, standard output, standard error and the files it leaves.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;
mod bisect;
mod checked;
mod configuration;
mod deploy;
mod detection;
mod detector;
mod errors;
mod example;
mod halves;
mod memory;
mod real_model;
mod recovery;
mod said;
mod segmentation;
mod stays;
mod unusual_models;
mod verdicts;
mod workflow;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use calib_test_support::{python, root};

/// A folder with the files that a Python script makes there; `None`, with a message, where libraries are missing.
fn made(script: &str) -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    calib()?;
    python(script, &[folder.path()])?;
    Some(folder)
}

/// A command of the binary under test; `None` where the runtime libraries were not fetched.
fn calib() -> Option<Command> {
    calib_test_support::calib().map(Command::from_std)
}

fn demo(file: &str) -> PathBuf {
    root().join("calib_data").join(file)
}

/// Flags that name the embedded model, its images and their preprocessing.
fn demo_flags() -> Vec<String> {
    let config = root().join("configs/demo.toml");
    vec!["--config".into(), config.display().to_string(), "--tensorrt".into(), "off".into()]
}

/// Standard output and error of a command with this exit status.
fn output(status: i32, command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{out}{error}");
    (out, error)
}

/// Standard error of a command that must fail with status 2.
fn error_of(command: &mut Command) -> String {
    let (_, error) = output(2, command);
    assert!(!error.contains("internal error"), "{error}");
    error
}

fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("valid JSON")
}
