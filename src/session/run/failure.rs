//! A run that fails leaves nothing behind that says it passed.

use std::path::Path;

use crate::{
    artifact::write_atomic,
    config::RunConfig,
    report::{failed_junit, failed_page},
    session::{OutputFolder, PipelineError, Within, folder::out_folder},
};

/// What a report is made of: the files that tell an outcome.
const OUTCOME: [&str; 4] = ["report.json", "report.html", "report.junit.xml", "layers.csv"];
/// Where the former ones go.
const FORMER: &str = "former";

/// What a bisection tells its outcome by. Its plan and trials stay: they are inputs of what follows.
const FINDINGS: [&str; 2] = ["bisect.json", "bisect.html"];

/// Moves the outcome of a former run into the folder `former`.
pub(super) fn set_aside(out: &Path) -> Result<(), PipelineError> {
    move_away(out, &OUTCOME)
}

/// The same for what a bisection found.
///
/// # Errors
/// A file cannot be moved.
pub fn set_findings_aside(config: &RunConfig) -> Result<(), PipelineError> {
    move_away(&out_folder(config), &FINDINGS)
}

fn move_away(out: &Path, names: &[&str]) -> Result<(), PipelineError> {
    for name in names {
        let (file, former) = (out.join(name), out.join(FORMER));
        if file.exists() {
            let context = || format!("cannot move {} into {}", file.display(), former.display());
            std::fs::create_dir_all(&former).within(context)?;
            std::fs::rename(&file, former.join(name)).within(context)?;
        }
    }
    Ok(())
}

/// Puts a report that says `reason` in the place of what a former run left in the folder of `config`, if there is one.
///
/// # Errors
/// A file cannot be moved or written, or another run holds the folder.
pub fn record_failure(config: &RunConfig, reason: &str) -> Result<(), PipelineError> {
    if !out_folder(config).is_dir() {
        return Ok(());
    }
    let out = OutputFolder::open(config)?;
    set_aside(&out)?;
    let model = config.model.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let mut tests = Vec::new();
    failed_junit(&model, reason, &mut tests).map_err(PipelineError::render)?;
    write_atomic(&out.join("report.junit.xml"), &tests)?;
    write_atomic(&out.join("report.html"), failed_page(&model, reason).as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_before_is_moved_and_a_red_report_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let config = RunConfig { out: Some(out.clone()), model: Some("nets/<a>.onnx".into()), ..RunConfig::default() };
        // A run that never began leaves nothing.
        record_failure(&config, "no such model").unwrap();
        assert!(!out.exists());
        std::fs::create_dir(&out).unwrap();
        for name in OUTCOME {
            std::fs::write(out.join(name), "green").unwrap();
        }
        record_failure(&config, "model & data <do> not fit").unwrap();
        let read = |name: &str| std::fs::read_to_string(out.join(name));
        let tests = quick_junit::Report::deserialize_from_str(&read("report.junit.xml").unwrap()).unwrap();
        assert_eq!((tests.errors, tests.tests), (1, 1));
        let page = read("report.html").unwrap();
        assert!(page.contains("model &amp; data &lt;do&gt; not fit") && !page.contains("green"), "{page}");
        assert!(read("report.json").is_err() && read("layers.csv").is_err());
        assert_eq!(read("former/report.json").unwrap(), "green");
    }
}
