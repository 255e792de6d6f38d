//! What the tests of all packages need from the machine, and the one way to skip.
//!
//! A test that lacks something says so through [`Need::skip`] and returns. With `CALIB_REQUIRE_ALL` set, as `.ci/run`
//! does, it fails instead, unless `CALIB_MAY_LACK` names the need: no test passes by skipping unseen.

#![expect(clippy::panic, clippy::print_stderr, reason = "a test fails by panicking and says why it skips")]

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    process::Command,
};

/// What a test may need beyond the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// ONNX Runtime; `make setup` fetches it.
    OnnxRuntime,
    /// TensorRT's libraries; `make setup-test` fetches them.
    TensorRt,
    /// NVIDIA's run-time compiler; `make setup` fetches it.
    Nvrtc,
    /// Python with the packages that `make setup-test` fetches.
    Python,
    /// Real models and photos, in `../shared` or in the folder that `CALIB_SHARED` names.
    Models,
    /// A headless Chromium.
    Browser,
    /// The right to mount a small file system in memory.
    Tmpfs,
    /// A machine without a GPU: what happens there cannot be seen elsewhere.
    NoGpu,
}

impl Need {
    /// The word for it in `CALIB_MAY_LACK`.
    fn word(self) -> &'static str {
        match self {
            Self::OnnxRuntime => "onnxruntime",
            Self::TensorRt => "tensorrt",
            Self::Nvrtc => "nvrtc",
            Self::Python => "python",
            Self::Models => "models",
            Self::Browser => "browser",
            Self::Tmpfs => "tmpfs",
            Self::NoGpu => "no-gpu",
        }
    }

    /// Says that a test skips, and why.
    ///
    /// # Panics
    /// With `CALIB_REQUIRE_ALL`, for a need that `CALIB_MAY_LACK` does not name.
    pub fn skip(self, why: impl Display) {
        let word = self.word();
        let may_lack = std::env::var("CALIB_MAY_LACK").unwrap_or_default();
        let excused = may_lack.split_whitespace().any(|lacking| lacking == word);
        assert!(
            excused || std::env::var_os("CALIB_REQUIRE_ALL").is_none(),
            "this test would skip ({word}: {why}), and CALIB_REQUIRE_ALL forbids it; supply what is missing, or name \
             `{word}` in CALIB_MAY_LACK"
        );
        eprintln!("skipped ({word}): {why}");
    }

    /// What is there, or a skip with the error.
    pub fn or_skip<T, E: Display>(self, found: Result<T, E>) -> Option<T> {
        found.map_err(|error| self.skip(error)).ok()
    }
}

/// The project's folder.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// A file or folder of the shared models and photos.
pub fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CALIB_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let path = folder.join(name);
    Need::Models.or_skip(if path.exists() { Ok(path) } else { Err(format!("there is no {}", path.display())) })
}

/// The folder that holds EfficientNet-Lite0 under `models/efficientnet_lite0.onnx` and 500 photos under `imagenet/`.
pub fn efficientnet() -> Option<PathBuf> {
    shared("imagenet")?;
    Some(shared("models/efficientnet_lite0.onnx")?.parent()?.parent()?.to_owned())
}

/// The program `calib`, for tests of the package that builds it, where it finds ONNX Runtime.
///
/// # Panics
/// Where cargo did not build it: in another package's tests.
pub fn calib() -> Option<Command> {
    if !root().join(".runtime/onnxruntime").is_dir() && std::env::var_os("ORT_DYLIB_PATH").is_none() {
        Need::OnnxRuntime.skip("no ONNX Runtime; run `make setup`");
        return None;
    }
    Some(Command::new(calib_path()))
}

/// Where the program `calib` is: beside the folder of the tests.
///
/// # Panics
/// See [`calib`].
pub fn calib_path() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let path = test.ancestors().nth(2).unwrap_or(&test).join(format!("calib{}", std::env::consts::EXE_SUFFIX));
    assert!(path.is_file(), "there is no {}; only tests of calib-cli may run the program", path.display());
    path
}

/// What a Python script prints, run with the fetched packages and those of `scripts/`.
///
/// # Panics
/// When the script fails.
pub fn python(script: &str, arguments: &[&Path]) -> Option<String> {
    let packages = root().join(".runtime/python");
    if !packages.is_dir() {
        Need::Python.skip("no Python packages; run `make setup-test`");
        return None;
    }
    let path = std::env::join_paths([packages, root().join("scripts")]).unwrap_or_default();
    let mut command = Command::new("python3");
    let output = match command.arg("-c").arg(script).args(arguments).env("PYTHONPATH", path).output() {
        Ok(output) => output,
        Err(error) => panic!("python3: {error}"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
