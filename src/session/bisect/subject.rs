//! What is looked into: the float model, its ranges, the model in the lower precision, and the samples.

use super::{BisectOptions, Find, plan::parts};
use crate::{
    analyse::{advice::Commands, graphwise::Side, layerwise::Samples},
    backend::ExecutionProvider,
    calibrate::CalibrationTable,
    dataset::Split,
    onnx::Model,
    quantize::{QuantizeOptions, calibrated_on, moved_like},
    session::{
        CalibrateOptions, OutputFolder, PipelineError, Session, Target, checkpoint::Checkpoints,
        folder::set_table_aside, quantize_options, set_findings_aside, suggest::Suggest,
    },
    tensor::ElementType,
};

/// A float model, its ranges, and the samples to judge on.
pub(super) struct Bisection<'a> {
    pub(super) session: &'a Session,
    pub(super) args: &'a BisectOptions,
    pub(super) out: OutputFolder,
    pub(super) split: Split,
    /// Why no plan can pass the gates on so few samples.
    pub(super) undecided: Option<String>,
    /// Absent for FP16 and BF16, which need none, and for another target.
    pub(super) table: Option<CalibrationTable>,
    /// Where calibration is kept until the end, unless the table was given.
    pub(super) checkpoints: Option<Checkpoints>,
    /// How the lower precision is made.
    pub(super) options: QuantizeOptions,
    /// The float model as the quantizer leaves it (same operator set).
    pub(super) float: Model,
    /// The same in the lower precision, or the model that `--target` names: with Q/DQ, or with operators that round to 16 bits.
    /// Not the converted model, whose
    /// casts ONNX Runtime may drop on the CPU, and an overflow with them.
    pub(super) quantized: Model,
}

/// The file that repeats a bisection; that of a run, which may lie in the same folder, stays.
const REPEATS: &str = "bisect.toml";

/// Refuses gates that cannot be tested, and says where plans are judged on too few samples for one; returns why no plan passes it.
fn undecided(session: &Session, split: &Split, samples: usize) -> Result<Option<String>, PipelineError> {
    let [search_on, check_on] = parts(&split.evaluation, samples);
    let judged = if check_on.is_empty() || search_on.len() < check_on.len() { &search_on } else { &check_on };
    let gates = &session.config.gate;
    let why = session.check_gates(gates, judged)?.into_iter().next();
    session.check_gated_outputs(gates, &session.subject.outputs)?;
    if why.is_some() {
        session.host.warn(&format!(
            "plans are searched on {} of the {} samples that no range was calibrated on (--samples, at most half of them) \
             and checked on the other {}",
            search_on.len(),
            split.evaluation.len(),
            check_on.len()
        ));
    }
    Ok(why)
}

impl<'a> Bisection<'a> {
    pub(super) fn open(session: &'a Session, args: &'a BisectOptions, find: Find) -> Result<Self, PipelineError> {
        let precision = args.precision;
        let mut split = session.split_for(0);
        let mut named = None;
        match args.target.as_deref().map(Target::parse).transpose()? {
            Some(Target::Saved(path)) => {
                let (saved, data) = (session.open_saved(&path)?, session.dataset());
                let held: Vec<usize> = (0..data.len()).filter(|&index| saved.holds(index, data.id(index))).collect();
                if !held.is_empty() {
                    split.evaluation = held;
                }
            }
            Some(Target::Model(Some(path), _)) => {
                let target = named.insert(Model::load(&path)?);
                session.leave_out(&mut split, &calibrated_on(target), "target");
            }
            _ => {}
        }
        let options = quantize_options(&session.config, precision)?;
        if precision.is_quantized() && args.target.is_none() {
            session.require_operators(precision)?;
        }
        let given = session.config.table.as_ref().map(|path| session.read_table(path)).transpose()?;
        if let Some(table) = &given {
            session.leave_out_calibrated(&mut split, table, 0);
        }
        let undecided = if find == Find::Plan { undecided(session, &split, args.samples)? } else { None };
        let out = OutputFolder::open(&session.config)?;
        set_findings_aside(&session.config, find == Find::Plan)?;
        out.write_config(REPEATS, &session.repeatable(&out))?;
        let mut checkpoints = None;
        let table = if given.is_some() {
            given
        } else if precision.is_quantized() && args.target.is_none() {
            checkpoints = session.checkpoints(&out, &format!("bisect-{precision}"))?;
            let calibrate = CalibrateOptions {
                samples: Some(&split.calibration),
                checkpoints: checkpoints.as_ref(),
                ..CalibrateOptions::default()
            };
            let calibrated = session.calibrate(precision, calibrate)?;
            session.host.info(&calibrated.describe());
            let table = calibrated.chosen.table;
            if set_table_aside(&out, &table)? {
                session.host.info(
                    "calibration.json was another: it is in the folder former, and what was made from it is as it was",
                );
            }
            table.save(&out.join("calibration.json"))?;
            Some(table)
        } else {
            None
        };
        session.host.stage("quantizing");
        let subject = &session.subject;
        let (float, quantized) = match (named, &table, precision.half_type()) {
            (Some(target), ..) if find == Find::Layers => subject.pair_with(&target)?,
            // Shown as it is.
            (Some(target), ..) => (moved_like(&subject.folded, &subject.shapes, &target)?, target),
            (None, _, Some(half)) => subject.rounded_pair(half, &|_| true)?,
            (None, Some(table), None) => subject.analysis_pair(table, &options)?,
            (None, None, None) => (subject.folded.clone(), subject.folded.clone()),
        };
        Ok(Self { session, args, out, split, undecided, table, checkpoints, options, float, quantized })
    }

    /// Whether the samples, or those that gave the ranges, are random numbers.
    pub(super) fn rests_on_random_data(&self) -> bool {
        self.session.config.random_data || self.table.as_ref().is_some_and(|table| table.random_data)
    }

    pub(super) fn first_of(&self, count: usize) -> Samples<'_> {
        let evaluation = &self.split.evaluation;
        let first = &evaluation[..evaluation.len().min(count)];
        self.session.dataset().keep(first);
        self.session.samples(first)
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
