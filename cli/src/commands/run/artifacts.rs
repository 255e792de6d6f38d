//! The files that a run leaves, each written as soon as its content is known.

use std::{collections::BTreeSet, path::Path};

use anyhow::Context;

use super::{Calibrated, Job};
use crate::commands::{ExitStatus, settings::quantize_options};
use trtcalib::{
    artifact::{ArtifactError, ContentHash, write_atomic, write_atomic_with},
    backend::ExecutionProvider,
    calibrate::{CalibrationTable, Histograms, cache::CalibrationCache},
    onnx::Model,
    quantize::{Precision, Quantized, quantize},
    report::{ArtifactFile, Report, html, junit, layers_csv, summary},
};

impl Job<'_> {
    /// `run.toml`: repeats the run from anywhere.
    pub(super) fn write_config(&self) -> anyhow::Result<()> {
        let config = self.session.repeatable(&self.out);
        Ok(write_atomic(&self.out.join("run.toml"), config.to_toml()?.as_bytes())?)
    }

    pub(super) fn save_histograms(&self, histograms: &Histograms) -> anyhow::Result<()> {
        Ok(histograms.save(&self.out.join("histograms.calib"))?)
    }

    /// `calibration.json` and, for TensorRT 10 and older, `calibration.cache`.
    pub(super) fn save_table(&self, table: &CalibrationTable) -> anyhow::Result<()> {
        table.save(&self.out.join("calibration.json"))?;
        let path = self.out.join("calibration.cache");
        match CalibrationCache::from_table(table).save(&path) {
            // Only TensorRT 10 and older need it.
            Err(error @ ArtifactError::Format { .. }) => {
                self.printer.warn(&format!("no calibration cache was written: {error}"));
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                    _ => Ok(()),
                }
            }
            saved => Ok(saved?),
        }
    }

    /// The model in a precision.
    pub(super) fn make_model(
        &self,
        precision: Precision,
        calibrated: Option<&Calibrated>,
    ) -> anyhow::Result<Quantized> {
        let subject = &self.session.subject;
        let table = calibrated.map(|calibrated| &calibrated.chosen.table);
        let options = quantize_options(&self.session.config, precision)?;
        let quantized = quantize(&subject.folded, &subject.shapes, table, &options)?;
        if let Some(defects) = quantized.defects() {
            anyhow::bail!(defects);
        }
        Ok(quantized)
    }

    /// What computes a model in 16 bits where it has to be imitated: ONNX Runtime's CPU provider computes such models in 32 bits
    /// (or not at all), and rounds and overflows nowhere in between.
    pub(super) fn imitation(&self, quantized: &Quantized, precision: Precision) -> anyhow::Result<Option<Model>> {
        let subject = &self.session.subject;
        let half = precision.half_type().filter(|_| self.session.provider == ExecutionProvider::Cpu);
        let kept: BTreeSet<&str> = quantized.kept_fp32.iter().map(|kept| kept.node.as_str()).collect();
        let imitate = |half| subject.rounded_pair(half, &|node| !kept.contains(node));
        Ok(half.map(imitate).transpose()?.map(|(_, rounded)| rounded))
    }

    /// `model.int8.onnx` and its like.
    pub(super) fn save_model(&self, model: &Model, precision: Precision) -> anyhow::Result<ArtifactFile> {
        let name = format!("model.{precision}.onnx");
        let path = self.out.join(&name);
        model.save(&path)?;
        file_facts(&path, name)
    }

    /// Everything that is made from the report, and the table for people.
    pub(super) fn write_report(&self, report: &Report, summary_file: Option<&Path>) -> anyhow::Result<ExitStatus> {
        report.write(&self.out.join("report.json"))?;
        let page = html(report)?;
        write_atomic(&self.out.join("report.html"), page.as_bytes())?;
        let mut bytes = Vec::new();
        junit(report, &mut bytes)?;
        write_atomic(&self.out.join("report.junit.xml"), &bytes)?;
        let mut bytes = Vec::new();
        layers_csv(&report.layers, &mut bytes)?;
        write_atomic(&self.out.join("layers.csv"), &bytes)?;
        if let Some(path) = summary_file {
            write_atomic_with(path, |writer| std::io::Write::write_all(writer, summary(report).as_bytes()))?;
        }
        let page = self.out.join("report.html");
        self.printer.outcome(report, || format!("{}\n\nreport: {}", super::assemble::table(report), page.display()))?;
        Ok(if report.verdict.passed { ExitStatus::Passed } else { ExitStatus::GateFailed })
    }
}

/// Size and hash of a file that was written.
pub(super) fn file_facts(path: &Path, name: String) -> anyhow::Result<ArtifactFile> {
    let context = || format!("cannot read {}", path.display());
    let hash = ContentHash::of_file(path).with_context(context)?;
    let bytes = std::fs::metadata(path).with_context(context)?.len();
    Ok(ArtifactFile { path: name, hash, bytes })
}
