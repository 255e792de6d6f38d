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
    /// Makes and locks the folder of a configuration: `out`, or `runs/<model>`. What a killed process was writing there
    /// is removed.
    pub fn open(config: &RunConfig) -> Result<Self, PipelineError> {
        let path = config.out.clone().unwrap_or_else(|| {
            let model = config.model.as_deref().and_then(|path| path.file_stem()).unwrap_or("model".as_ref());
            PathBuf::from("runs").join(model)
        });
        std::fs::create_dir_all(&path).within(|| format!("cannot make the output folder {}", path.display()))?;
        let lock_path = path.join(".lock");
        let cannot_lock = || format!("cannot lock {}", lock_path.display());
        let lock = File::create(&lock_path).within(cannot_lock)?;
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
}
