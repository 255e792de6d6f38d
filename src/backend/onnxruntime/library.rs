//! Finding and loading the shared library of ONNX Runtime.
//!
//! Only documented places are searched, in this order: the path that the user gives, `ORT_DYLIB_PATH`, `.runtime/`
//! of the installation, the Python package `onnxruntime` (of the active environment, the user, the system), the system's
//! loader. Never the working folder, nor the model's.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use ort::environment::Environment;
use serde::Serialize;

use crate::backend::{BackendError, installed::runtime_folders};

/// Environment variable naming the library.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
const SYSTEM_NAME: &str = "libonnxruntime.so";

/// Which rule led to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The user's own choice for this call.
    Option,
    /// `ORT_DYLIB_PATH`.
    Environment,
    /// `.runtime/`, where `make setup` puts it.
    Runtime,
    /// The Python package `onnxruntime`, as pip installs it.
    Python,
    /// The system's loader, by name.
    System,
}

/// One place that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Why here.
    pub origin: Origin,
    /// File or folder; a bare name for the system's loader.
    pub path: PathBuf,
    /// Whether a library is there. Always true for the system's loader, which only answers when it loads.
    pub found: bool,
}

/// Where the library was looked for and which one is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LibrarySearch {
    /// All places, in order, up to the one that is used.
    pub places: Vec<Place>,
    /// The library to load; `None` when a place that the user named holds none.
    pub file: Option<PathBuf>,
}

/// Searches for the library. A place that the user names is the only one that counts.
pub fn search(option: Option<&Path>) -> LibrarySearch {
    let variable = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    search_in(option, variable, runtime_folders().into_iter(), python_packages().into_iter())
}

/// Folders that hold the library of an installed Python package: of the active environment, of the `python3` in the path,
/// of the user and of the system.
fn python_packages() -> Vec<PathBuf> {
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    // One that is told from the working folder could be anybody's.
    let active = active.filter(|prefix| prefix.is_absolute());
    let in_path = std::env::var_os("PATH").and_then(|path| {
        let found =
            std::env::split_paths(&path).find(|folder| folder.is_absolute() && folder.join("python3").is_file())?;
        found.parent().map(Path::to_owned)
    });
    let user = std::env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let system = ["/usr/local", "/usr"].map(PathBuf::from);
    let mut found: Vec<PathBuf> = Vec::new();
    for package in active.chain(in_path).chain(user).chain(system).flat_map(|prefix| packages_under(&prefix)) {
        if !found.contains(&package) {
            found.push(package);
        }
    }
    found
}

/// `lib/python3*/{site,dist}-packages/onnxruntime/capi` under a prefix, where it is there; the newest Python first.
fn packages_under(prefix: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().filter_map(Result::ok);
    let is_python = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("python3");
    let mut versions: Vec<PathBuf> =
        versions.filter(|entry| is_python(&entry.file_name())).map(|entry| entry.path()).collect();
    versions.sort_by_key(|path| std::cmp::Reverse(version(path, "python")));
    let capi = |path: &PathBuf| {
        ["site-packages", "dist-packages"].map(|packages| path.join(packages).join("onnxruntime").join("capi"))
    };
    versions.iter().flat_map(capi).filter(|folder| folder.is_dir()).collect()
}

/// The numbers behind the last `mark` in a path.
fn version(path: &Path, mark: &str) -> Vec<u64> {
    let name = path.to_string_lossy().into_owned();
    let numbers = name.rsplit(mark).next().unwrap_or_default();
    numbers.split('.').map(|number| number.parse().unwrap_or(0)).collect()
}

fn search_in(
    option: Option<&Path>,
    variable: Option<PathBuf>,
    runtime: impl Iterator<Item = PathBuf>,
    python: impl Iterator<Item = PathBuf>,
) -> LibrarySearch {
    let named = option.map(|path| (Origin::Option, path.to_owned()));
    if let Some((origin, path)) = named.or_else(|| Some((Origin::Environment, variable?))) {
        let library = if path.is_dir() { library_in(&path) } else { Some(path.clone()).filter(|path| path.is_file()) };
        return LibrarySearch { places: vec![Place { origin, path, found: library.is_some() }], file: library };
    }
    let mut places = Vec::new();
    let runtime = runtime.map(|path| (Origin::Runtime, library_in(&path.join("onnxruntime")), path));
    for (origin, library, path) in runtime.chain(python.map(|path| (Origin::Python, library_in(&path), path))) {
        places.push(Place { origin, path, found: library.is_some() });
        if library.is_some() {
            return LibrarySearch { places, file: library };
        }
    }
    let system = PathBuf::from(SYSTEM_NAME);
    places.push(Place { origin: Origin::System, path: system.clone(), found: true });
    LibrarySearch { places, file: Some(system) }
}

/// `libonnxruntime.so` or the highest `libonnxruntime.so.VERSION` of a folder.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == SYSTEM_NAME || name.starts_with("libonnxruntime.so.")
    };
    entries.filter(is_library).max_by_key(|path| version(path, ".so"))
}

/// A loaded library. One process has at most one.
#[derive(Debug)]
pub(super) struct Loaded {
    pub environment: Environment,
    pub path: PathBuf,
}

static LOADED: OnceLock<Loaded> = OnceLock::new();

/// Loads the library, once a process.
pub(super) fn load(option: Option<&Path>) -> Result<&'static Loaded, BackendError> {
    static LOADING: Mutex<()> = Mutex::new(());
    let _guard = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let search = search(option);
    let Some(path) = search.file.clone() else {
        return Err(BackendError::Library(missing(&search)));
    };
    if let Some(loaded) = LOADED.get() {
        if option.is_some() && path != loaded.path {
            return Err(BackendError::Library(format!(
                "ONNX Runtime was already loaded from {}; one process cannot load {} too",
                loaded.path.display(),
                path.display()
            )));
        }
        return Ok(loaded);
    }
    let failed = |reason: String| BackendError::Library(format!("{reason}; {}", missing(&search)));
    // An absolute path: the crate looks for a relative one beside the executable first.
    let absolute = if path.as_os_str() == SYSTEM_NAME { Ok(path.clone()) } else { path.canonicalize() };
    let absolute = absolute.map_err(|error| failed(format!("{}: {error}", path.display())))?;
    let builder = ort::init_from(&absolute).map_err(|error| failed(error.to_string()))?;
    let environment = builder.with_name("calib").with_telemetry(false).build();
    let environment = environment.map_err(|error| failed(error.to_string()))?;
    // The environment is created as chatty as can be; what a user should see starts at warnings.
    environment.set_log_level(ort::logging::LogLevel::Warning);
    Ok(LOADED.get_or_init(|| Loaded { environment, path }))
}

/// What to say when the library is not there or does not load.
fn missing(search: &LibrarySearch) -> String {
    let places: Vec<String> = search.places.iter().map(|place| place.path.display().to_string()).collect();
    format!(
        "ONNX Runtime's shared library was looked for in: {}; fetch it with `make setup`, or install the Python \
         package `onnxruntime` (1.{} or newer), or set {LIBRARY_VARIABLE} to libonnxruntime.so",
        places.join(", "),
        ort::MINOR_VERSION
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_names_wins_and_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = folder.path().join(".runtime");
        let libraries = runtime.join("onnxruntime");
        std::fs::create_dir_all(&libraries).unwrap();
        for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.31.1", "libonnxruntime_providers_shared.so"] {
            std::fs::write(libraries.join(name), b"").unwrap();
        }
        let newest = libraries.join("libonnxruntime.so.1.31.1");
        let elsewhere = folder.path().join("elsewhere");

        let found = search_in(None, None, [elsewhere.clone(), runtime.clone()].into_iter(), std::iter::empty());
        assert_eq!(found.file.as_deref(), Some(&*newest));
        assert_eq!(found.places.iter().map(|place| place.found).collect::<Vec<_>>(), [false, true]);

        let named =
            search_in(Some(&elsewhere), Some(newest.clone()), [runtime.clone()].into_iter(), std::iter::empty());
        assert_eq!((named.file.clone(), named.places[0].origin), (None, Origin::Option));
        assert!(missing(&named).contains("elsewhere; fetch it with `make setup`"));
        let variable = search_in(None, Some(libraries.clone()), std::iter::empty(), std::iter::empty());
        assert_eq!((variable.file.as_deref(), variable.places[0].origin), (Some(&*newest), Origin::Environment));
        let system = search_in(None, None, [elsewhere].into_iter(), std::iter::empty());
        assert_eq!(system.file.as_deref(), Some(Path::new("libonnxruntime.so")));
    }

    #[test]
    fn a_package_that_pip_installed_is_found_behind_the_runtime_folder() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["3.9", "3.12"] {
            let capi = folder.path().join(format!("lib/python{version}/site-packages/onnxruntime/capi"));
            std::fs::create_dir_all(&capi).unwrap();
            std::fs::write(capi.join("libonnxruntime.so.1.26.0"), b"").unwrap();
        }
        let packages = packages_under(folder.path());
        let newest = folder.path().join("lib/python3.12/site-packages/onnxruntime/capi");
        assert_eq!((packages.len(), &packages[0]), (2, &newest));
        let found = search_in(None, None, [folder.path().join(".runtime")].into_iter(), packages.into_iter());
        assert_eq!(found.file, Some(newest.join("libonnxruntime.so.1.26.0")));
        assert_eq!(
            found.places.iter().map(|place| place.origin).collect::<Vec<_>>(),
            [Origin::Runtime, Origin::Python]
        );
        assert!(packages_under(&folder.path().join("none")).is_empty());
    }
}
