//! Finding TensorRT's shared libraries: in the folder of a flag or of `CALIB_TENSORRT_DIR` and nowhere else, or without
//! either in `.runtime/` of the installation and in the system's folders.

use std::{
    ffi::{CStr, CString, c_void},
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{TensorRtError, compiled_flavour};
use crate::backend::installed::runtime_folders;

/// Which TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// TensorRT 11.x (data centre, Jetson).
    #[serde(rename = "tensorrt")]
    TensorRt,
    /// TensorRT-RTX 1.x (RTX GPUs; builds without a GPU).
    #[serde(rename = "tensorrt-rtx")]
    TensorRtRtx,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TensorRt => "TensorRT",
            Self::TensorRtRtx => "TensorRT-RTX",
        })
    }
}

impl Flavour {
    /// How to get the libraries.
    pub fn hint(self) -> &'static str {
        match self {
            Self::TensorRt => {
                "install TensorRT 11 and set CALIB_TENSORRT_DIR to the folder of libnvinfer.so.11 and libnvonnxparser.so.11"
            }
            Self::TensorRtRtx => {
                "run `make setup`, or with the wheel `pip install 'trtcalib[rtx]'`, or set CALIB_TENSORRT_DIR to the folder of libtensorrt_rtx.so.1 and libtensorrt_onnxparser_rtx.so.1"
            }
        }
    }

    fn other(self) -> Self {
        match self {
            Self::TensorRt => Self::TensorRtRtx,
            Self::TensorRtRtx => Self::TensorRt,
        }
    }

    /// What the Makefile calls it.
    pub(super) fn make_name(self) -> &'static str {
        match self {
            Self::TensorRt => "11",
            Self::TensorRtRtx => "rtx",
        }
    }

    /// Major version whose headers this program was built with.
    #[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
    pub(super) fn major(self) -> &'static str {
        match self {
            Self::TensorRt => "11",
            Self::TensorRtRtx => "1",
        }
    }

    /// File names of the library, the best first.
    fn file_names(self) -> &'static [&'static str] {
        match self {
            Self::TensorRt => &["libnvinfer.so.11", "libnvinfer_lean.so.11"],
            Self::TensorRtRtx => &["libtensorrt_rtx.so.1"],
        }
    }

    fn parser_name(self) -> &'static str {
        match self {
            Self::TensorRt => "libnvonnxparser.so.11",
            Self::TensorRtRtx => "libtensorrt_onnxparser_rtx.so.1",
        }
    }

    fn runtime_folders(self) -> &'static [&'static str] {
        match self {
            Self::TensorRt => &["tensorrt", "tensorrt-lean"],
            Self::TensorRtRtx => &["tensorrt-rtx"],
        }
    }
}

/// Libraries that were found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Library {
    /// Which TensorRT.
    pub flavour: Flavour,
    /// The builder and runtime.
    pub file: PathBuf,
    /// The ONNX parser; absent beside a lean runtime, which only runs engines.
    pub parser: Option<PathBuf>,
}

/// What a test double of TensorRT adds to its version and to the backend's name: no result that it is named beside is one
/// of TensorRT.
const STAND_IN: &str = " (stand-in)";

impl Library {
    /// What reports call it, as `tensorrt-rtx`.
    pub fn backend(&self) -> String {
        self.flavour.to_string().to_lowercase() + self.mark()
    }

    /// Flavour and version, as `TensorRT-RTX 1.7.1`.
    pub fn name(&self) -> Result<String, TensorRtError> {
        Ok(format!("{} {}", self.flavour, self.version()?))
    }

    /// Loads the library and asks for its version, e.g. `1.7.1`. Needs no driver.
    pub fn version(&self) -> Result<String, TensorRtError> {
        let symbol = self
            .symbol(c"getInferLibVersion")?
            .ok_or_else(|| self.failed("it has no function `getInferLibVersion`, so it is not a TensorRT library"))?;
        // SAFETY: every TensorRT declares this function so: no arguments, no state, a constant number.
        let version = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> i32>(symbol) }();
        Ok(format!("{}.{}.{}{}", version / 10_000, version / 100 % 100, version % 100, self.mark()))
    }

    /// A test double (`tests/stand_in`) has a function that no TensorRT has.
    fn mark(&self) -> &'static str {
        if let Ok(Some(_)) = self.symbol(c"stand_in_for_tensorrt") { STAND_IN } else { "" }
    }

    fn failed(&self, reason: &str) -> TensorRtError {
        TensorRtError::Load { path: self.file.clone(), reason: reason.to_owned() }
    }

    /// Loads the library and looks a function up.
    fn symbol(&self, name: &CStr) -> Result<Option<*mut c_void>, TensorRtError> {
        let path = CString::new(self.file.as_os_str().as_encoded_bytes());
        let path = path.map_err(|error| self.failed(&error.to_string()))?;
        // SAFETY: `path` ends with a null byte; the library is one of the vendor's that `find_library` knows by name. It
        // stays open, so that no code is unloaded that something may still point to.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(self.failed("the loader refused it; is it complete, and for this processor?"));
        }
        // SAFETY: the handle was just opened, the name ends with a null byte.
        let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
        Ok((!symbol.is_null()).then_some(symbol))
    }
}

/// Folders in which libraries of a flavour are looked for, in order. `explicit` comes from a flag. Who names a folder gets
/// what is in there or an error, never another library.
pub fn searched_folders(flavour: Flavour, explicit: Option<&Path>) -> Vec<PathBuf> {
    let named = || std::env::var_os("CALIB_TENSORRT_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if let Some(folder) = explicit.map(Path::to_owned).or_else(named) {
        return vec![folder];
    }
    let mut folders = Vec::new();
    for root in runtime_folders() {
        folders.extend(flavour.runtime_folders().iter().map(|name| root.join(name)));
    }
    for system in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/local/tensorrt/lib", "/usr/lib"] {
        folders.push(PathBuf::from(system));
    }
    folders
}

/// The first folder that holds the library of a flavour.
pub fn find_library(flavour: Flavour, explicit: Option<&Path>) -> Option<Library> {
    searched_folders(flavour, explicit).into_iter().find_map(|folder| {
        let file = flavour.file_names().iter().map(|name| folder.join(name)).find(|path| path.is_file())?;
        let parser = Some(folder.join(flavour.parser_name())).filter(|path| path.is_file());
        Some(Library { flavour, file, parser })
    })
}

/// The library of the flavour that this program was compiled for, or why there is none.
pub fn require_library(explicit: Option<&Path>) -> Result<Library, TensorRtError> {
    let flavour = compiled_flavour().ok_or(TensorRtError::NotCompiled)?;
    let searched = || {
        let folder = |folder: &PathBuf| {
            let other = flavour.other().file_names().iter().map(|name| folder.join(name)).find(|path| path.is_file());
            let other = other.map(|path| {
                let (name, make) =
                    (path.file_name().unwrap_or_default().display().to_string(), flavour.other().make_name());
                format!(" (which holds {name}: that is for a program made by `make build TENSORRT={make}`)")
            });
            format!("{}{}", folder.display(), other.unwrap_or_default())
        };
        searched_folders(flavour, explicit).iter().map(folder).collect::<Vec<_>>().join(", ")
    };
    find_library(flavour, explicit).ok_or_else(|| TensorRtError::NotFound {
        flavour,
        searched: searched(),
        hint: flavour.hint(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libtensorrt_rtx.so.1");
        std::fs::write(&file, b"not a library").unwrap();
        let found = find_library(Flavour::TensorRtRtx, Some(folder.path())).unwrap();
        assert!(found.version().unwrap_err().to_string().contains("libtensorrt_rtx.so.1"));
    }

    #[test]
    fn an_explicit_folder_is_the_only_one_and_a_lean_runtime_has_no_parser() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(searched_folders(Flavour::TensorRt, Some(folder.path())), [folder.path()]);
        std::fs::write(folder.path().join("libnvinfer_lean.so.11"), b"").unwrap();
        let found = find_library(Flavour::TensorRt, Some(folder.path())).unwrap();
        assert_eq!(found.file, folder.path().join("libnvinfer_lean.so.11"));
        assert_eq!(found.parser, None);
        std::fs::write(folder.path().join("libnvinfer.so.11"), b"").unwrap();
        std::fs::write(folder.path().join("libnvonnxparser.so.11"), b"").unwrap();
        let found = find_library(Flavour::TensorRt, Some(folder.path())).unwrap();
        assert!(found.file.ends_with("libnvinfer.so.11") && found.parser.is_some());
    }
}
