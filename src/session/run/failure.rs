//! A run that fails leaves nothing behind that says it passed.

use std::path::Path;

use crate::{
    artifact::{check_free, is_input, write_atomic},
    config::RunConfig,
    report::{failed_junit, failed_page},
    session::{
        OutputFolder, PipelineError, Within,
        folder::{out_folder, set_aside},
    },
};

/// What a report is made of: the files that tell an outcome.
const OUTCOME: [&str; 4] = ["report.json", "report.html", "report.junit.xml", "layers.csv"];

/// What a bisection tells its outcome by, and what a search for a plan leaves. Trials stay: a search goes on from them.
const FINDINGS: [&str; 2] = ["bisect.json", "bisect.html"];
const PLAN: [&str; 4] = ["plan.json", "model.plan.onnx", "model.plan.engine", "model.plan.engine.json"];

/// What stands in the place of a report until there is one: whatever ends the process, nothing green is left.
pub const UNFINISHED: &str = "it has not come to its end: it still goes on, or its process was ended";

/// Moves the outcome of a former run into the folder `former`, and leaves one that says that this run has none yet.
pub(super) fn begin(out: &Path, config: &RunConfig) -> Result<(), PipelineError> {
    replace(out, config, UNFINISHED)
}

/// The same before a session is opened, where there is such a folder.
///
/// # Errors
/// As of [`record_failure`].
pub fn record_beginning(config: &RunConfig) -> Result<(), PipelineError> {
    record_failure(config, UNFINISHED)
}

/// The same for what a bisection found, and for its plan unless that is an input; true where there was something.
///
/// # Errors
/// A file cannot be moved.
pub fn set_findings_aside(config: &RunConfig, with_plan: bool) -> Result<bool, PipelineError> {
    let out = out_folder(config);
    let plan = if with_plan && !is_input(&out.join(PLAN[0])) { &PLAN[..] } else { &[] };
    let there = [&FINDINGS[..], plan].concat();
    let is_there = there.iter().any(|name| out.join(name).exists());
    move_away(&out, &there)?;
    Ok(is_there)
}

fn move_away(out: &Path, names: &[&str]) -> Result<(), PipelineError> {
    for name in names {
        let file = out.join(name);
        check_free(&file).within(|| format!("cannot move {}", file.display()))?;
    }
    for name in names {
        set_aside(out, name)?;
    }
    Ok(())
}

/// Puts a report that says `reason` in the place of what a former run left in the folder of `config`, if there is one.
///
/// # Errors
/// A file cannot be moved or written, or another run holds the folder.
pub fn record_failure(config: &RunConfig, reason: &str) -> Result<(), PipelineError> {
    let is_known = config.out.is_some() || config.model.is_some();
    if !is_known || !out_folder(config).is_dir() {
        return Ok(());
    }
    replace(&OutputFolder::open(config)?, config, reason)
}

fn replace(out: &Path, config: &RunConfig, reason: &str) -> Result<(), PipelineError> {
    // What a failed run left tells nothing that is worth keeping, and does not take the place of what does.
    let has_report = out.join(OUTCOME[0]).exists();
    move_away(out, if has_report { &OUTCOME } else { &OUTCOME[3..] })?;
    let model = config.model.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let mut tests = Vec::new();
    failed_junit(&model, reason, &mut tests).map_err(PipelineError::render)?;
    write_atomic(&out.join("report.junit.xml"), &tests)?;
    write_atomic(&out.join("report.html"), failed_page(&model, "run", reason).as_bytes())?;
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
        // The next one fails as well, or its process is ended in the middle.
        record_beginning(&config).unwrap();
        assert!(read("report.junit.xml").unwrap().contains("errors=\"1\""));
        assert!(read("report.html").unwrap().contains("has not come to its end"));
        assert_eq!(read("former/report.junit.xml").unwrap(), "green");
    }
}
