//! The files that a run leaves, each written as soon as its content is known.

use std::path::Path;

use super::{Job, set_findings_aside};
use crate::{
    artifact::{ArtifactError, ContentHash, read_json, same_file, write_atomic},
    bisect::findings::{FINDINGS_FORMAT_VERSION, Findings},
    calibrate::{CalibrationTable, cache::CalibrationCache},
    onnx::{Model, file_bytes},
    quantize::Precision,
    report::{ArtifactFile, Report, bisection_html, html, html_with, junit, layers_csv},
    session::{PipelineError, Within, folder::set_table_aside},
};

impl Job<'_> {
    /// `run.toml`: repeats the run from anywhere.
    pub(super) fn write_config(&self) -> Result<(), PipelineError> {
        self.out.write_config("run.toml", &self.session.repeatable(&self.out))
    }

    /// `calibration.json` and, for TensorRT 10 and older, `calibration.cache`.
    pub(super) fn save_table(&self, table: &CalibrationTable) -> Result<(), PipelineError> {
        // The table that the ranges are taken from may lie there, and stays.
        let given = |path: &Path| self.session.config.table.as_deref().is_some_and(|table| same_file(table, path));
        let path = self.out.join("calibration.json");
        if !given(&path) {
            // A plan goes with the ranges that it was found with.
            if set_table_aside(&self.out, table)? && set_findings_aside(&self.session.config, true)? {
                self.session.host.info(
                    "what a bisection found with other ranges is in the folder former, with their calibration.json",
                );
            }
            table.save(&path)?;
        }
        let path = self.out.join("calibration.cache");
        if given(&path) {
            return Ok(());
        }
        match CalibrationCache::from_table(table).save(&path) {
            // Only TensorRT 10 and older need it.
            Err(error @ ArtifactError::Format { .. }) => {
                self.session.host.warn(&format!("no calibration cache was written: {error}"));
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                    _ => Ok(()),
                }
            }
            saved => Ok(saved?),
        }
    }

    /// Everything that is made from the report.
    pub(super) fn write_report(&self, report: &Report) -> Result<(), PipelineError> {
        write_report(report, &self.out, &|path| self.session.host.wrote(path))
    }
}

/// `model.int8.onnx` and its like in the output folder.
pub(super) fn save_model(out: &Path, model: &Model, precision: Precision) -> Result<ArtifactFile, PipelineError> {
    let name = format!("model.{precision}.onnx");
    let path = out.join(&name);
    model.save(&path)?;
    Ok(ArtifactFile { bytes: file_bytes(&path)?, ..file_facts(&path, name)? })
}

/// Writes `report.json` and everything that is made from it into a folder, and tells of every file but the first.
///
/// # Errors
/// A file cannot be written.
pub fn write_report(report: &Report, out: &Path, wrote: &dyn Fn(&Path)) -> Result<(), PipelineError> {
    let (mut tests, mut layers) = (Vec::new(), Vec::new());
    report.write(&out.join("report.json"))?;
    junit(report, &mut tests).map_err(PipelineError::render)?;
    layers_csv(report, &mut layers).map_err(PipelineError::render)?;
    let found = bisection_in(out, report);
    let page = page(report, found.as_ref())?;
    if let Some(found) = found {
        let page = bisection_html(&found, Some(report)).map_err(PipelineError::render)?;
        write_atomic(&out.join("bisect.html"), page.as_bytes())?;
    }
    for (name, bytes) in
        [("report.html", page.as_bytes()), ("report.junit.xml", &tests[..]), ("layers.csv", &layers[..])]
    {
        let path = out.join(name);
        write_atomic(&path, bytes)?;
        wrote(&path);
    }
    Ok(())
}

/// The page of a report in its folder: with the trade-off of a bisection of the same model, where one lies there.
///
/// # Errors
/// The page cannot be made.
pub fn page_of(report: &Report, out: &Path) -> Result<String, PipelineError> {
    page(report, bisection_in(out, report).as_ref())
}

fn page(report: &Report, found: Option<&Findings>) -> Result<String, PipelineError> {
    found.map_or_else(|| html(report), |found| html_with(report, found)).map_err(PipelineError::render)
}

/// The bisection of a report's model in its folder.
fn bisection_in(out: &Path, report: &Report) -> Option<Findings> {
    let found: Option<Findings> = read_json(&out.join("bisect.json"), "bisection", FINDINGS_FORMAT_VERSION).ok();
    found.filter(|found| found.model_hash == report.model.hash)
}

/// Size and hash of a file that was written.
pub(super) fn file_facts(path: &Path, name: String) -> Result<ArtifactFile, PipelineError> {
    let context = || format!("cannot read {}", path.display());
    let hash = ContentHash::of_file(path).within(context)?;
    let bytes = std::fs::metadata(path).within(context)?.len();
    Ok(ArtifactFile { path: name, hash, bytes })
}
