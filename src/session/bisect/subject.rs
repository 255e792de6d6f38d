//! What is looked into: the float model, its ranges, the model in the lower precision, and the samples.

use super::{BisectOptions, Find};
use crate::{
    analyse::{advice::Commands, graphwise::Side, layerwise::Samples},
    backend::ExecutionProvider,
    calibrate::CalibrationTable,
    dataset::{PrefetchOptions, Split},
    onnx::Model,
    quantize::QuantizeOptions,
    session::{
        CalibrateOptions, OutputFolder, PipelineError, Session, Spec, checkpoint::Checkpoints, quantize_options,
        set_findings_aside, suggest::Suggest,
    },
    tensor::ElementType,
};

/// A float model, its ranges, and the samples to judge on.
pub(super) struct Bisection<'a> {
    pub(super) session: &'a Session,
    pub(super) args: &'a BisectOptions,
    pub(super) out: OutputFolder,
    pub(super) split: Split,
    /// Absent for FP16 and BF16, which need none, and for tensors of another target.
    pub(super) table: Option<CalibrationTable>,
    /// Where calibration is kept until the end, unless the table was given.
    pub(super) checkpoints: Option<Checkpoints>,
    /// How the lower precision is made.
    pub(super) options: QuantizeOptions,
    /// The float model as the quantizer leaves it (same operator set).
    pub(super) float: Model,
    /// The same in the lower precision (the float model once more where `--target` names what to look into instead): with Q/DQ, or with operators that round to 16 bits. Not the converted model, whose
    /// casts ONNX Runtime may drop on the CPU, and an overflow with them.
    pub(super) quantized: Model,
}

/// The file that repeats a bisection; that of a run, which may lie in the same folder, stays.
const REPEATS: &str = "bisect.toml";

impl<'a> Bisection<'a> {
    pub(super) fn open(session: &'a Session, args: &'a BisectOptions, find: Find) -> Result<Self, PipelineError> {
        let precision = args.precision;
        let out = OutputFolder::open(&session.config)?;
        set_findings_aside(&session.config)?;
        out.write_config(REPEATS, &session.repeatable(&out))?;
        let mut split = session.data.split(session.config.seed, session.config.calib_samples, 0);
        if let Some(Spec::Saved(path)) = args.target.as_deref().map(Spec::parse).transpose()? {
            let (saved, data) = (session.open_saved(&path)?, session.dataset());
            let held: Vec<usize> = (0..data.len()).filter(|&index| saved.holds(index, data.id(index))).collect();
            if !held.is_empty() {
                split.evaluation = held;
            }
        }
        let options = quantize_options(&session.config, precision)?;
        if precision.is_quantized() && args.target.is_none() {
            session.require_operators(precision)?;
        }
        // Tensors of something that was made elsewhere need no ranges.
        let elsewhere = args.target.is_some() && matches!(find, Find::First | Find::Tensors);
        let mut checkpoints = None;
        let table = if let Some(path) = &session.config.table {
            Some(session.read_table(path)?)
        } else if precision.is_quantized() && !elsewhere {
            checkpoints = session.checkpoints(&out, &format!("bisect-{precision}"))?;
            let calibrate = CalibrateOptions {
                samples: Some(&split.calibration),
                checkpoints: checkpoints.as_ref(),
                ..CalibrateOptions::default()
            };
            let calibrated = session.calibrate(precision, calibrate)?;
            session.host.info(&calibrated.describe());
            let table = calibrated.chosen.table;
            table.save(&out.join("calibration.json"))?;
            Some(table)
        } else {
            None
        };
        session.host.stage("quantizing");
        let (float, quantized) = match (&table, precision.half_type()) {
            (_, Some(half)) => session.subject.rounded_pair(half, &|_| true)?,
            (Some(table), None) => session.subject.analysis_pair(table, &options)?,
            (None, None) => (session.subject.folded.clone(), session.subject.folded.clone()),
        };
        Ok(Self { session, args, out, split, table, checkpoints, options, float, quantized })
    }

    /// Whether the samples, or those that gave the ranges, are random numbers.
    pub(super) fn rests_on_random_data(&self) -> bool {
        self.session.config.random_data || self.table.as_ref().is_some_and(|table| table.random_data)
    }

    pub(super) fn samples<'s>(&'s self, indices: &'s [usize]) -> Samples<'s> {
        let reading = PrefetchOptions {
            batch: self.session.subject.fixed_batch().unwrap_or(1),
            threads: self.session.threads,
            policy: self.session.policy,
            stop: self.session.host.stop(),
            skipped: &[],
        };
        Samples { dataset: &*self.session.data.collection.dataset, indices, reading }
    }

    pub(super) fn first_of(&self, count: usize) -> Samples<'_> {
        let evaluation = &self.split.evaluation;
        let first = &evaluation[..evaluation.len().min(count)];
        self.session.dataset().keep(first);
        self.samples(first)
    }

    /// Type of a tensor of the float model, where that is known.
    pub(super) fn element_type(&self, tensor: &str) -> Option<ElementType> {
        self.session.subject.shapes.get(tensor)?.element_type
    }

    /// A model in ONNX Runtime on the CPU.
    pub(super) fn side<'s>(&'s self, model: &'s Model) -> Side<'s> {
        Side { backend: &self.session.runtime, provider: ExecutionProvider::Cpu, model }
    }

    pub(super) fn commands(&self) -> Commands {
        let table = self.session.config.table.clone().unwrap_or_else(|| self.out.join("calibration.json"));
        let (config, out, precision) = (&self.session.config, &self.out, self.options.scheme.precision);
        let gate = self.session.default_gate();
        Suggest { config, repeats: REPEATS, out, table: &table, lift: self.args.lift, precision, gate }.commands()
    }
}
