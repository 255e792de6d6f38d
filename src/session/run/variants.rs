//! The models of a run, one a precision, made of the float model, and the samples that judge them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{Calibrated, ahead::Ahead};
use crate::{
    backend::{Backend, BuildOptions, ExecutionProvider, Runner},
    calibrate::CalibrationTable,
    compare::ComparisonResult,
    dataset::Split,
    onnx::Model,
    quantize::{Halved, Placement, Precision, Quantized, Rule, Shifted, quantize, table_for},
    report::ArtifactFile,
    session::{PipelineError, Session, describe, quantize_options},
    words::counted,
};

/// Nodes of a plan that are named, at most.
const PLANNED_SHOWN: usize = 50;

/// A precision that is to be compared with the reference.
pub(super) struct Variant {
    pub(super) precision: Precision,
    /// The model's file within the output folder.
    pub(super) artifact: Option<ArtifactFile>,
    pub(super) quantized_nodes: Option<usize>,
    /// What became of the float part, where it is converted.
    pub(super) halved: Option<Halved>,
    /// What was decided for every node.
    pub(super) placement: Option<Placement>,
    /// Scale by quantized activation.
    pub(super) scales: BTreeMap<String, f32>,
    /// What tensors around another centre were in the model that was given.
    pub(super) shifted: BTreeMap<String, Shifted>,
    pub(super) model: Option<Model>,
    /// What runs in its stead.
    pub(super) imitation: Option<Model>,
    pub(super) runner: Option<Box<dyn Runner>>,
    /// Why there is none.
    pub(super) error: Option<String>,
    /// What comparing it gave, or why it failed on the way; absent where it was not compared.
    pub(super) measured: Option<Result<ComparisonResult, String>>,
}

impl Variant {
    /// The model, where its precision is a quantized one.
    pub(super) fn quantized(&self) -> Option<(Precision, &Model)> {
        Some((self.precision, self.model.as_ref().filter(|_| self.precision.is_quantized())?))
    }

    /// What it gave, where it was compared to the end.
    pub(super) fn result(&self) -> Option<&ComparisonResult> {
        self.measured.as_ref()?.as_ref().ok()
    }
}

/// Gives those of `variants` that run what comparing them found, in their order; what failed does not run again.
pub(super) fn take_results(variants: &mut [Variant], results: Vec<Result<ComparisonResult, PipelineError>>) {
    for (variant, result) in variants.iter_mut().filter(|variant| variant.runner.is_some()).zip(results) {
        variant.runner.take_if(|_| result.is_err());
        variant.measured = Some(result.map_err(|error| error.to_string()));
    }
}

/// Writes the model of a precision, where it is kept.
pub(super) type Save<'a> = dyn Fn(&Model, Precision) -> Result<Option<ArtifactFile>, PipelineError> + 'a;

impl Session {
    /// The precisions that a run makes, each once: those asked for but the one that the model is of.
    pub(super) fn precisions(&self) -> Vec<Precision> {
        let mut precisions = Vec::new();
        for &precision in &self.config.precisions {
            let is_there = precision == Precision::Fp32 || precision.name() == self.subject.float_types.name();
            if !is_there && !precisions.contains(&precision) {
                precisions.push(precision);
            }
        }
        precisions
    }

    /// The ranges of a run that takes them from the table in `path`.
    pub(super) fn given_ranges(&self, path: &Path, split: &Split) -> Result<Calibrated, PipelineError> {
        let calibrated = self.calibrated_before(path)?;
        let table = &calibrated.chosen.table;
        if table.calibrated_on.is_empty() && table.data_hash != self.data_hash(&split.calibration) {
            self.host.warn(
                "the table was made on other samples than those set aside here, so that samples which calibrated may be \
                 among those evaluated",
            );
        }
        Ok(calibrated)
    }

    /// Makes the model of every precision but the reference's. What cannot be made is reported; what cannot be written
    /// ends the run.
    pub(super) fn variants(
        &mut self,
        calibrated: Option<&Calibrated>,
        mut ahead: Option<Ahead>,
        save: &Save<'_>,
    ) -> Result<Vec<Variant>, PipelineError> {
        if self.provider.gpu().is_none() {
            let build = BuildOptions { side_by_side: true, ..self.build_options(self.threads) };
            *self.reference() = self.subject.reference(self.runtime, &build)?;
        }
        let make = |precision| {
            let mut variant = Variant {
                precision,
                artifact: None,
                quantized_nodes: None,
                halved: None,
                placement: None,
                scales: BTreeMap::new(),
                shifted: BTreeMap::new(),
                model: None,
                imitation: None,
                runner: None,
                error: None,
                measured: None,
            };
            let ahead = if precision == Precision::Fp16 { ahead.take() } else { None };
            if let Err(error) = self.fill(&mut variant, calibrated, ahead, save) {
                if error.is_about_the_disk() {
                    return Err(error);
                }
                self.host.warn(&format!("{precision} cannot run: {}", describe(&error)));
                variant.error = Some(describe(&error));
            }
            Ok(variant)
        };
        self.precisions().into_iter().map(make).collect()
    }

    fn fill(
        &self,
        variant: &mut Variant,
        calibrated: Option<&Calibrated>,
        ahead: Option<Ahead>,
        save: &Save<'_>,
    ) -> Result<(), PipelineError> {
        let table = calibrated.map(|calibrated| &calibrated.chosen.table);
        let quantized = self.make_model(variant.precision, table)?;
        variant.artifact = save(&quantized.model, variant.precision)?;
        let table = table.map(|table| table_for(table, variant.precision));
        let recovered = table.as_ref().and_then(|table| table.recovered.as_ref());
        let lifted = recovered.is_some_and(|recovered| !recovered.lifted.is_empty());
        self.note_plan(variant.precision, &quantized.placement, lifted);
        variant.quantized_nodes = Some(quantized.placement.quantized_nodes());
        variant.scales = quantized.activation_scales();
        variant.shifted.clone_from(&quantized.shifted);
        variant.imitation = self.imitation(&quantized, variant.precision)?;
        self.note_kept(variant.precision, quantized.halved.as_ref());
        variant.halved = quantized.halved;
        variant.placement = Some(quantized.placement);
        let model = variant.model.insert(quantized.model);
        let build = BuildOptions { side_by_side: self.reference().at_once() > 1, ..self.build_options(self.threads) };
        let runs = variant.imitation.as_ref().unwrap_or(model);
        let called = ahead.and_then(|ahead| ahead.of(runs));
        variant.runner = Some(called.map_or_else(|| self.runtime.build(runs, &build), Ok)?);
        Ok(())
    }

    /// The model in a precision.
    pub(super) fn make_model(
        &self,
        precision: Precision,
        table: Option<&CalibrationTable>,
    ) -> Result<Quantized, PipelineError> {
        if precision.is_quantized() {
            self.require_operators(precision)?;
        }
        let options = quantize_options(&self.config, precision)?;
        let quantized = quantize(&self.subject.folded, &self.subject.shapes, table, &options)?;
        if let Some(defects) = quantized.defects() {
            return Err(PipelineError::Input(defects));
        }
        Ok(quantized)
    }

    /// What computes a model in 16 bits where it has to be imitated: ONNX Runtime's CPU provider computes such models in 32 bits
    /// (or not at all), and rounds and overflows nowhere in between.
    fn imitation(&self, quantized: &Quantized, precision: Precision) -> Result<Option<Model>, PipelineError> {
        let half = precision.half_type().filter(|_| self.provider == ExecutionProvider::Cpu);
        let kept: BTreeSet<&str> = quantized.kept_fp32().iter().map(|kept| kept.node.as_str()).collect();
        let imitate = |half| self.subject.rounded_pair(half, &|node| !kept.contains(node));
        Ok(half.map(imitate).transpose()?.map(|(_, rounded)| rounded))
    }

    /// Says what a conversion left in FP32.
    fn note_kept(&self, precision: Precision, halved: Option<&Halved>) {
        let Some((halved, told)) = halved.and_then(|halved| Some((halved, halved.told()?))) else { return };
        let part = if precision.is_quantized() { ", the float part" } else { "" };
        let text = format!("{precision}{part}: {told}");
        if halved.nodes == 0 { self.host.warn(&text) } else { self.host.note(&text) }
    }

    /// Names the nodes that the precision plan decided for.
    fn note_plan(&self, precision: Precision, placement: &Placement, recovered: bool) {
        let planned = placement
            .decisions
            .iter()
            .filter(|decision| decision.rule == Rule::Planned && decision.precision != precision);
        let planned: Vec<String> =
            planned.map(|decision| format!("{} ({})", decision.node, decision.precision)).collect();
        if !planned.is_empty() && precision.is_quantized() {
            let more = planned.len().saturating_sub(PLANNED_SHOWN);
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            let shown = planned[..planned.len() - more].join(", ");
            let by = match (self.config.plan.is_some(), recovered) {
                (true, true) => "the plan and recovery lift",
                (false, true) => "recovery lifts",
                _ => "the plan lifts",
            };
            self.host.note(&format!("{precision}: {by} {}: {shown}{rest}", counted(planned.len(), "node")));
        }
    }
}
