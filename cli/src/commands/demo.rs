//! `calib demo`: writes out the embedded example and does the whole job on it.

use std::{
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Parser;

use super::{ExitStatus, Printer, not_understood, overwrites, run};
use crate::args::{Cli, Command, DemoArgs, GlobalArgs};
use trtcalib::artifact::write_atomic;

/// The configuration, which names the other files, in the folder.
const CONFIG: &str = "configs/demo.toml";

/// Model, images, labels and configuration, in a tar archive.
static FILES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo.tar"));

/// Writes the files and runs the job.
pub(super) fn demo(printer: &Printer, global: &GlobalArgs, args: &DemoArgs) -> anyhow::Result<ExitStatus> {
    let config = write(&args.folder)?;
    printer.note(&format!("wrote a model, 640 images and {}", config.display()));
    let words = words(config, args);
    let parsed = Cli::try_parse_from(&words).map_err(|error| {
        let text = error.to_string();
        let reason = text.trim_start_matches("error: ").trim_end();
        not_understood(&words, reason.lines().next().unwrap_or_default());
        anyhow::anyhow!("{reason}")
    });
    let command = parsed?.command;
    overwrites::check(&command)?;
    match command {
        Command::Run(args) => run::run(printer, global, &args),
        _ => anyhow::bail!("only options of `calib run` may follow"),
    }
}

/// What follows where a demonstration does not begin.
pub(super) fn refused(args: &DemoArgs, reason: &str) {
    let config = args.folder.join(CONFIG);
    if config.is_file() {
        not_understood(&words(config, args), reason);
    }
}

/// The run of a demonstration as a command line.
fn words(config: PathBuf, args: &DemoArgs) -> Vec<OsString> {
    let words = ["calib".into(), "run".into(), "--config".into(), config.into_os_string()];
    words.into_iter().chain(args.run.iter().cloned()).collect()
}

/// Writes the example into `folder`, and gives the path of its configuration.
fn write(folder: &Path) -> anyhow::Result<PathBuf> {
    let config = folder.join(CONFIG);
    let is_empty = std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
    ensure!(
        is_empty || config.exists(),
        "{} is there and holds something else; name another folder, or an empty one",
        folder.display()
    );
    for entry in tar::Archive::new(FILES).entries()? {
        let mut entry = entry?;
        let path = folder.join(entry.path()?);
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        // What is there already is not written again: other programs may be reading it.
        if std::fs::read(&path).is_ok_and(|there| there == bytes) {
            continue;
        }
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
        write_atomic(&path, &bytes)?;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_that_of_the_repository_and_other_folders_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = write(folder.path()).unwrap();
        for name in [CONFIG, "calib_data/demo.onnx", "calib_data/labels.csv", "calib_data/images/0639.png"] {
            let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
            assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), std::fs::read(original).unwrap(), "{name}");
        }
        assert_eq!(std::fs::read_dir(folder.path().join("calib_data/images")).unwrap().count(), 640);
        assert_eq!(write(folder.path()).unwrap(), config);
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("mine.txt"), "").unwrap();
        assert!(write(other.path()).unwrap_err().to_string().contains("something else"));
    }
}
