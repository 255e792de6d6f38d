//! What is looked into: the float model, its ranges, the model in the lower precision, and the samples.

use super::super::{
    INTERRUPTED, Printer,
    output::OutputFolder,
    settings::{Session, quantize_options, require_operators},
    suggest::Suggest,
};
use crate::args::{BisectArgs, Find, GlobalArgs};
use trtcalib::{
    analyse::{advice::Commands, graphwise::Side, layerwise::Samples},
    artifact::write_atomic,
    backend::ExecutionProvider,
    calibrate::{CalibrationTable, Provenance, Shards},
    config::RunConfig,
    dataset::{PrefetchOptions, Split},
    onnx::Model,
    quantize::{Precision, QuantizeOptions},
    session::{calibration::hold_out, checkpoint::Checkpoints},
};

/// A float model, its ranges, and the samples to judge on.
pub(super) struct Bisection<'a> {
    pub(super) printer: &'a Printer,
    pub(super) args: &'a BisectArgs,
    pub(super) session: Session,
    pub(super) out: OutputFolder,
    pub(super) split: Split,
    /// Absent for FP16 and BF16, which need none, and for tensors of another target.
    pub(super) table: Option<CalibrationTable>,
    /// Where calibration is kept until the end, unless the table was given.
    pub(super) checkpoints: Option<Checkpoints>,
    /// How the lower precision is made.
    pub(super) options: QuantizeOptions,
    pub(super) lift: Precision,
    /// The float model as the quantizer leaves it (same operator set).
    pub(super) float: Model,
    /// The same in the lower precision (the float model once more where `--target` names what to look into instead): with Q/DQ, or with operators that round to 16 bits. Not the converted model, whose
    /// casts ONNX Runtime may drop on the CPU, and an overflow with them.
    pub(super) quantized: Model,
}

impl<'a> Bisection<'a> {
    pub(super) fn open(
        printer: &'a Printer,
        global: &GlobalArgs,
        args: &'a BisectArgs,
        config: RunConfig,
        find: Find,
    ) -> anyhow::Result<Self> {
        let precision: Precision = args.precision.parse().map_err(anyhow::Error::msg)?;
        let lift: Precision = args.lift.parse().map_err(anyhow::Error::msg)?;
        anyhow::ensure!(precision != Precision::Fp32, "--precision takes int8, fp8, fp16 or bf16");
        anyhow::ensure!(!lift.is_quantized(), "--lift takes fp32, fp16 or bf16, not {lift}");
        anyhow::ensure!(
            precision.is_quantized() || lift == Precision::Fp32,
            "nodes of a model in {precision} can only be lifted to fp32"
        );
        let session = Session::open(config, global.ort_library.as_deref(), printer)?;
        let out = OutputFolder::open(&session.config)?;
        write_atomic(&out.join("run.toml"), session.repeatable(&out).to_toml()?.as_bytes())?;
        let split = session.data.split(session.config.seed, session.config.calib_samples, 0);
        let options = quantize_options(&session.config, precision)?;
        if precision.is_quantized() && args.target.is_none() {
            require_operators(&session.subject.place(&options.scheme)?)?;
        }
        // Tensors of something that was made elsewhere need no ranges.
        let elsewhere = args.target.is_some() && matches!(find, Find::First | Find::Tensors);
        let mut checkpoints = None;
        let table = if let Some(path) = &args.table {
            let table = CalibrationTable::load(path)?;
            table.check_model(&session.subject.float.hash)?;
            Some(table)
        } else if precision.is_quantized() && !elsewhere {
            let kept = checkpoints.insert(session.checkpoints(printer, &out, &format!("bisect-{precision}"))?);
            let table = calibrate(printer, &session, &split, &options, kept)?;
            table.save(&out.join("calibration.json"))?;
            Some(table)
        } else {
            None
        };
        let (float, quantized) = match (&table, precision.half_type()) {
            (_, Some(half)) => session.subject.rounded_pair(half, &|_| true)?,
            (Some(table), None) => session.subject.analysis_pair(table, &options)?,
            (None, None) => (session.subject.folded.clone(), session.subject.folded.clone()),
        };
        Ok(Self { printer, args, session, out, split, table, checkpoints, options, lift, float, quantized })
    }

    pub(super) fn samples<'s>(&'s self, indices: &'s [usize]) -> Samples<'s> {
        let reading = PrefetchOptions {
            batch: self.session.subject.fixed_batch().unwrap_or(1),
            threads: self.session.threads,
            policy: self.session.policy,
            stop: &INTERRUPTED,
            skipped: &[],
        };
        Samples { dataset: &*self.session.data.collection.dataset, indices, reading }
    }

    pub(super) fn first_of(&self, count: usize) -> Samples<'_> {
        let evaluation = &self.split.evaluation;
        self.samples(&evaluation[..evaluation.len().min(count)])
    }

    /// A model in ONNX Runtime on the CPU.
    pub(super) fn side<'s>(&'s self, model: &'s Model) -> Side<'s> {
        Side { backend: &self.session.runtime, provider: ExecutionProvider::Cpu, model }
    }

    pub(super) fn commands(&self) -> Commands {
        let table = self.args.table.clone().unwrap_or_else(|| self.out.join("calibration.json"));
        let (config, out, precision) = (&self.session.config, &self.out, self.options.scheme.precision);
        let gate = self.session.default_gate();
        Suggest { config, out, table: &table, lift: self.lift, precision, gate }.commands()
    }
}

/// Ranges from the calibration samples.
fn calibrate(
    printer: &Printer,
    session: &Session,
    split: &Split,
    options: &QuantizeOptions,
    checkpoints: &Checkpoints,
) -> anyhow::Result<CalibrationTable> {
    let tensors = session.subject.place(&options.scheme)?.tensors_to_observe();
    let provenance = Provenance {
        model_hash: session.subject.float.hash.clone(),
        data_hash: session.data_hash(&split.calibration),
        random_data: session.config.random_data,
        shards: Shards::whole(),
    };
    let bar = printer.progress(split.calibration.len() as u64, "calibrating");
    let progress = |samples: usize| bar.inc(samples as u64);
    let observe = session.observe_options();
    let calibrator = session.calibrator(&observe, &progress, Some(checkpoints));
    let indices = &split.calibration;
    let observed = calibrator.observe(&tensors, &hold_out(indices), &provenance);
    bar.finish_and_clear();
    let (histograms, choose) = (observed?.histograms, session.choose_options(&options.scheme)?);
    let chosen = checkpoints.once("choice", || calibrator.choose(&histograms, indices, &choose))?;
    printer.note(&format!("calibrated {} tensors, method {}", chosen.table.tensors.len(), chosen.choice));
    Ok(chosen.table)
}
