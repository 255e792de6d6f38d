//! The folder that a command leaves its files in, held by one process at a time.

use std::{
    fs::{File, TryLockError},
    io,
    ops::Deref,
    path::{Path, PathBuf},
};

use super::{Inputs, PipelineError, Within};
use crate::{
    artifact::{KnownFiles, check_free, is_input, remove_unfinished, write_atomic},
    calibrate::CalibrationTable,
    config::RunConfig,
    deploy::DEPLOY,
};

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

    /// Writes the configuration that repeats a job. The one that the job itself was told by stays, in [`FORMER`] where it says
    /// something else.
    pub(super) fn write_config(&self, name: &str, config: &RunConfig) -> Result<(), PipelineError> {
        let (path, text) = (self.join(name), config.to_toml().map_err(PipelineError::render)?);
        if is_input(&path) {
            let there = std::fs::read(&path).within(|| format!("cannot read {}", path.display()))?;
            if there == text.as_bytes() {
                return Ok(());
            }
            set_aside(self, name)?;
        }
        Ok(write_atomic(&path, text.as_bytes())?)
    }
}

/// Where files of a former job go.
const FORMER: &str = "former";

/// Moves a file of a folder into [`FORMER`], if it is there.
pub(super) fn set_aside(out: &Path, name: &str) -> Result<(), PipelineError> {
    let (file, former) = (out.join(name), out.join(FORMER));
    if file.exists() {
        let context = || format!("cannot move {} into {}", file.display(), former.display());
        if former.is_symlink() {
            bail!("{}: it is a link, which is not followed; remove it", context());
        }
        std::fs::create_dir_all(&former).within(context)?;
        check_free(&former.join(name)).within(context)?;
        std::fs::rename(&file, former.join(name)).within(context)?;
    }
    Ok(())
}

/// Moves a `calibration.json` of before into [`FORMER`], where it is another than `table`; true where it was.
pub(super) fn set_table_aside(out: &Path, table: &CalibrationTable) -> Result<bool, PipelineError> {
    let path = out.join("calibration.json");
    let text = serde_json::to_string_pretty(table).map_err(PipelineError::render)?;
    let is_other = path.exists() && std::fs::read_to_string(&path).ok().is_none_or(|there| there.trim_end() != text);
    if is_other {
        set_aside(out, "calibration.json")?;
    }
    Ok(is_other)
}

/// The folder of a configuration: `out`, or `runs/<model>`.
pub(super) fn out_folder(config: &RunConfig) -> PathBuf {
    config.out.clone().unwrap_or_else(|| {
        let model = config.model.as_deref().and_then(|path| path.file_stem()).unwrap_or("model".as_ref());
        PathBuf::from("runs").join(model)
    })
}

/// Refuses a folder of results whose files take the places of inputs, or that lie in what a run clears.
fn check_inputs(config: &RunConfig, folder: &Path) -> Result<(), PipelineError> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let there: Vec<(String, PathBuf)> =
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    let results = there.iter().filter(|(name, file)| is_result(name) && file.is_file()).map(|(_, file)| file.clone());
    let results: KnownFiles = results.collect();
    let cleared = there.iter().filter(|(name, _)| is_cleared(name));
    let mut inputs = Inputs::default();
    inputs.add(config);
    let mut found = None;
    if !results.is_empty() {
        inputs.each(&mut |input| {
            if found.is_none() && results.name_of(input).is_some() {
                found = Some(input.to_owned());
            }
        });
    }
    if let Some(input) = found {
        bail!(
            "{} is an input and would be written over: a file of this name is a result; choose another --out",
            input.display()
        );
    }
    for cleared in cleared.filter_map(|(_, folder)| folder.canonicalize().ok()) {
        let mut given = inputs.given().chain([&config.table, &config.plan].into_iter().flatten().map(PathBuf::as_path));
        if let Some(input) = given.find(|input| input.canonicalize().is_ok_and(|file| file.starts_with(&cleared))) {
            bail!(
                "{} is an input and would be removed: {} is made anew; move it, or choose another --out",
                input.display(),
                cleared.display()
            );
        }
    }
    Ok(())
}

/// Names that `run` and `bisect` write.
pub fn is_result(name: &str) -> bool {
    const FIXED: [&str; 10] = [
        "calibration.json",
        "calibration.cache",
        "histograms.calib",
        "layers.csv",
        "report.json",
        "report.html",
        "report.junit.xml",
        "bisect.json",
        "bisect.html",
        "trials.json",
    ];
    let precisions = ["fp32", "fp16", "bf16", "int8", "fp8", "plan", "float"];
    let model = name.strip_prefix("model.").and_then(|rest| rest.split('.').next());
    FIXED.contains(&name) || model.is_some_and(|kind| precisions.contains(&kind))
}

/// Folders that `run` and `bisect` empty.
fn is_cleared(name: &str) -> bool {
    name == DEPLOY || name.starts_with("checkpoints-")
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

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_former_files_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [out, elsewhere] = ["out", "elsewhere"].map(|name| folder.path().join(name));
        for folder in [&out, &elsewhere] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("report.json"), folder.display().to_string()).unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, out.join(FORMER)).unwrap();
        let error = set_aside(&out, "report.json").unwrap_err().to_string();
        assert!(error.contains("former: it is a link"), "{error}");
        for folder in [&out, &elsewhere] {
            assert_eq!(std::fs::read_to_string(folder.join("report.json")).unwrap(), folder.display().to_string());
        }
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

    #[test]
    fn folders_that_are_made_anew_hold_no_inputs() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["checkpoints-run", "deploy", "mine"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("x.npz"), b"").unwrap();
        }
        let check = |name: &str| {
            let data = Some(folder.path().join(name));
            check_inputs(&RunConfig { data, ..RunConfig::default() }, folder.path()).map_err(|error| error.to_string())
        };
        check("mine/x.npz").unwrap();
        for name in ["checkpoints-run/x.npz", "deploy/x.npz", "deploy"] {
            assert!(check(name).unwrap_err().contains("is an input and would be removed"), "{name}");
        }
    }
}
