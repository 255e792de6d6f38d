//! The folder that a command leaves its files in, held by one process at a time.

use std::{
    fs::{File, TryLockError},
    io,
    ops::Deref,
    path::{Path, PathBuf},
};

use super::{PipelineError, Within};
use crate::{artifact::remove_unfinished, config::RunConfig};

/// Refuses files that cannot be written for want of their folder, before any work is done.
pub fn check_folders<'p>(files: impl IntoIterator<Item = &'p Path>) -> Result<(), PipelineError> {
    for file in files {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            bail!("cannot write {}: there is no folder {}", file.display(), folder.display());
        }
        if file.is_dir() {
            bail!("cannot write {}: it is a folder", file.display());
        }
    }
    Ok(())
}

/// A folder for results, locked until this is dropped. The system takes the lock back when the process ends, however
/// that happens, so a lock is never stale.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    _lock: File,
}

impl OutputFolder {
    /// Makes and locks the folder of a configuration. What a killed process was writing there
    /// is removed.
    pub fn open(config: &RunConfig) -> Result<Self, PipelineError> {
        let path = out_folder(config);
        std::fs::create_dir_all(&path).within(|| format!("cannot make the output folder {}", path.display()))?;
        check_inputs(config, &path)?;
        let lock_path = path.join(".lock");
        let cannot_lock = || format!("cannot lock {}", lock_path.display());
        let lock = open_lock(&lock_path).within(cannot_lock)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                let reason = format!("another run is writing into {path}; wait for it or choose another --out");
                return Err(PipelineError::Input(reason));
            }
            // Some network file systems know no locks; one run at a time is then up to the user.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error).within(cannot_lock),
        }
        for folder in [path.clone(), path.join("engines")] {
            remove_unfinished(&folder)?;
        }
        Ok(Self { path, _lock: lock })
    }
}

/// The folder of a configuration: `out`, or `runs/<model>`.
pub(super) fn out_folder(config: &RunConfig) -> PathBuf {
    config.out.clone().unwrap_or_else(|| {
        let model = config.model.as_deref().and_then(|path| path.file_stem()).unwrap_or("model".as_ref());
        PathBuf::from("runs").join(model)
    })
}

/// Refuses a folder of results whose files take the places of the inputs that lie in it.
fn check_inputs(config: &RunConfig, folder: &Path) -> Result<(), PipelineError> {
    let inputs = [&config.model, &config.data, &config.labels, &config.classes, &config.preprocessor];
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    for input in inputs.into_iter().flatten() {
        let Ok(file) = input.canonicalize() else { continue };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if file.parent() == Some(&*folder) && is_result(&name) {
            bail!(
                "{} is an input and would be written over: a file of this name is a result; choose another --out",
                input.display()
            );
        }
    }
    Ok(())
}

/// Names that `run` and `bisect` write.
fn is_result(name: &str) -> bool {
    let fixed =
        ["calibration.json", "calibration.cache", "histograms.calib", "layers.csv", "bisect.json", "bisect.html"];
    let precisions = ["fp32", "fp16", "bf16", "int8", "fp8", "plan"];
    let model = name.strip_prefix("model.").and_then(|rest| rest.split('.').next());
    fixed.contains(&name) || name.starts_with("report.") || model.is_some_and(|kind| precisions.contains(&kind))
}

/// Opens the file that is locked, and never what a link in its place leads to.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).write(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path)
}

impl Deref for OutputFolder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_need_a_folder_to_lie_in() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str| check_folders([&*folder.path().join(name)]).map_err(|error| error.to_string());
        check("a.json").unwrap();
        check_folders([Path::new("a.json")]).unwrap();
        assert!(check("none/a.json").unwrap_err().contains("there is no folder"));
        assert!(check("").unwrap_err().contains("it is a folder"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let precious = folder.path().join("precious");
        std::fs::write(&precious, "content").unwrap();
        std::os::unix::fs::symlink(&precious, folder.path().join(".lock")).unwrap();
        let config = RunConfig { out: Some(folder.path().to_owned()), ..RunConfig::default() };
        assert!(OutputFolder::open(&config).unwrap_err().to_string().contains("cannot lock"));
        assert_eq!(std::fs::read(&precious).unwrap(), b"content");
    }

    #[test]
    fn one_at_a_time_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let config = RunConfig { out: Some(folder.path().join("out")), ..RunConfig::default() };
        let held = OutputFolder::open(&config).unwrap();
        assert!(OutputFolder::open(&config).unwrap_err().to_string().contains("another run is writing"));
        std::fs::write(held.join(".report.json.Ab3.calib.tmp"), "half").unwrap();
        std::fs::write(held.join("mine.tmp"), "kept").unwrap();
        drop(held);
        let again = OutputFolder::open(&config).unwrap();
        assert!(!again.join(".report.json.Ab3.calib.tmp").exists() && again.join("mine.tmp").exists());
    }

    #[test]
    fn results_do_not_take_the_place_of_a_model_in_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str| {
            let model = folder.path().join(name);
            std::fs::write(&model, b"").unwrap();
            check_inputs(&RunConfig { model: Some(model), ..RunConfig::default() }, folder.path()).is_ok()
        };
        assert!(!check("model.int8.onnx") && !check("model.plan.onnx") && !check("report.json"));
        assert!(check("model.onnx") && check("resnet.onnx"));
    }
}
