//! `report.json` and its published schema.

use std::path::Path;

use serde::Deserialize;

use super::{REPORT_FORMAT_VERSION, Report};
use crate::artifact::{ArtifactError, read_json, write_json};

impl Report {
    /// Whether figures rest on random inputs: those that were evaluated, or those that gave the ranges.
    pub fn rests_on_random_data(&self) -> bool {
        self.dataset.random_data || self.calibration.as_ref().is_some_and(|calibration| calibration.random_data)
    }

    /// Reads a report; one of another format version is refused by its number.
    pub fn read(path: &Path) -> Result<Self, ArtifactError> {
        read_json(path, "report", REPORT_FORMAT_VERSION)
    }

    /// Writes `report.json`, whole or not at all. A report that could not be read back (JSON has no NaN) is an error.
    pub fn write(&self, path: &Path) -> Result<(), ArtifactError> {
        let value = serde_json::to_value(self).and_then(Self::deserialize);
        if let Err(error) = value {
            let reason = format!("a figure is not finite or cannot be written ({error}); this is a mistake of calib");
            return Err(ArtifactError::Format { path: path.to_owned(), kind: "report", reason });
        }
        write_json(path, self)
    }
}

/// The JSON Schema of `report.json`, as it is published in `docs/report.schema.json`.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Report)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::report::{
        example::{Size, report},
        html, junit, layers_csv,
    };

    /// Compares a committed file with what it should be, or writes it when `CALIB_UPDATE` is set.
    fn committed(path: &str, expected: &[u8]) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("CALIB_UPDATE").is_some() {
            crate::artifact::write_atomic(&path, expected).unwrap();
        }
        let found = std::fs::read(&path).unwrap_or_default();
        assert!(found == expected, "{} is not current: run the tests with CALIB_UPDATE=1", path.display());
    }

    #[test]
    fn the_published_schema_is_current_and_holds_for_a_report() {
        let schema = serde_json::to_value(schema()).unwrap();
        committed("docs/report.schema.json", format!("{schema:#}\n").as_bytes());
        let validator = jsonschema::validator_for(&schema).unwrap();
        let mut value = serde_json::to_value(report(&Size { layers: 3, flips: 2 })).unwrap();
        assert_eq!(validator.iter_errors(&value).map(|e| e.to_string()).collect::<Vec<_>>(), Vec::<String>::new());
        value["precisions"][0]["latency_ms"]["timing"] = "guessed".into();
        assert!(!validator.is_valid(&value));
    }

    #[test]
    fn the_committed_example_is_what_its_report_gives() {
        // `report.json` itself is recorded by `make example`; tests/command_line/example.rs runs the demo against it.
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("reports/example");
        let report = Report::read(&folder.join("report.json")).unwrap();
        committed("reports/example/report.html", html(&report).unwrap().as_bytes());
        let mut xml = Vec::new();
        junit(&report, &mut xml).unwrap();
        committed("reports/example/report.junit.xml", &xml);
        let mut csv = Vec::new();
        layers_csv(&report, &mut csv).unwrap();
        committed("reports/example/layers.csv", &csv);
    }

    #[test]
    fn a_report_reads_back_equal_and_one_that_would_not_is_never_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let mut written = report(&Size { layers: 5, flips: 3 });
        written.write(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap(), written);
        written.precisions[1].outputs[0].rel_l2 = f64::NAN;
        let error = written.write(&path).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{error}");
        assert!(Report::read(&path).is_ok(), "the old report is still there");
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let mut report = report(&Size { layers: 0, flips: 0 });
        report.format_version = 9;
        report.write(&path).unwrap();
        assert!(Report::read(&path).unwrap_err().to_string().contains("format version is 9"));
    }
}
