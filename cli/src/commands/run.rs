//! `calib run`: the whole job. Calibrate, quantize, compare every precision with the reference, time, report.

mod artifacts;
mod assemble;
mod engines;
mod layers;
mod times;

use std::time::SystemTime;

use super::{
    ExitStatus, Printer,
    bench::counted,
    calibrate::warn_halved,
    check_interrupt,
    output::{OutputFolder, check_folders},
    settings::{Apply, Session, control, require_operators, scheme, warn_unmatched},
};
use crate::args::{GlobalArgs, RunArgs};
use trtcalib::{
    backend::{Backend, BuildOptions, Runner},
    calibrate::{Histograms, Provenance, Shards},
    compare::Gate,
    config::RunConfig,
    dataset::Split,
    quantize::Precision,
    session::{
        Control,
        calibration::{Chosen, hold_out},
        checkpoint::Checkpoints,
        data::Provenance as Found,
        evaluation::{EvaluateOptions, Evaluation, Outputs, evaluate_pairs},
    },
};

/// Does the job.
pub(super) fn run(printer: &Printer, global: &GlobalArgs, args: &RunArgs) -> anyhow::Result<ExitStatus> {
    let config = configuration(args)?;
    if args.print_config {
        printer.outcome(&config, || config.to_toml().unwrap_or_default())?;
        return Ok(ExitStatus::Passed);
    }
    config.validate()?;
    let gates = config.gate.iter().map(|gate| gate.parse()).collect::<Result<Vec<Gate>, _>>()?;
    engines::check(&config.tensorrt)?;
    check_folders(args.summary.as_deref())?;
    let session = Session::open(config, global.ort_library.as_deref(), printer)?;
    times::check(&session)?;
    let out = OutputFolder::open(&session.config)?;
    let mut job = Job::new(printer, session, out)?;
    job.write_config()?;
    let calibrated = job.calibrate()?;
    let targets = job.targets(calibrated.as_ref())?;
    let report = job.measure(calibrated, targets, &gates)?;
    let status = job.write_report(&report, args.summary.as_deref())?;
    job.checkpoints.finish()?;
    Ok(status)
}

/// The configuration file, and the flags over it.
fn configuration(args: &RunArgs) -> anyhow::Result<RunConfig> {
    let mut config = match &args.config {
        Some(path) => RunConfig::load(path)?,
        None => RunConfig::default(),
    };
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.outputs.apply(&mut config)?;
    if let Some(model) = &args.model {
        config.model = Some(model.clone());
    }
    if let Some(out) = &args.out {
        config.out = Some(out.clone());
    }
    if let Some(samples) = args.eval_samples {
        config.eval_samples = samples;
    }
    if !args.precisions.is_empty() {
        config.precisions.clone_from(&args.precisions);
    }
    if !args.gate.is_empty() {
        config.gate.clone_from(&args.gate);
    }
    if let Some(when) = &args.tensorrt {
        config.tensorrt.clone_from(when);
    }
    if let Some(seconds) = args.bench_seconds {
        config.bench_seconds = seconds;
    }
    Ok(config)
}

/// A precision that is to be compared with the reference.
struct Target {
    precision: Precision,
    /// The model's file within the output folder.
    artifact: Option<trtcalib::report::ArtifactFile>,
    quantized_nodes: Option<usize>,
    model: Option<trtcalib::onnx::Model>,
    /// What runs in its stead.
    imitation: Option<trtcalib::onnx::Model>,
    runner: Option<Box<dyn Runner>>,
    error: Option<String>,
}

/// Ranges and how they were found.
struct Calibrated {
    histograms: Histograms,
    chosen: Chosen,
    seconds: f64,
    peak_rss_bytes: u64,
    skipped: Vec<trtcalib::dataset::SampleError>,
}

/// True when an error is about the disk and not about a model.
fn is_about_the_disk(error: &anyhow::Error) -> bool {
    error.chain().any(<dyn std::error::Error>::is::<std::io::Error>)
}

/// A run in progress.
struct Job<'a> {
    printer: &'a Printer,
    session: Session,
    out: OutputFolder,
    checkpoints: Checkpoints,
    split: Split,
    notes: Vec<String>,
    /// TensorRT and its version, where engines are built.
    tensorrt: Option<(String, String)>,
}

impl<'a> Job<'a> {
    fn new(printer: &'a Printer, session: Session, out: OutputFolder) -> anyhow::Result<Self> {
        let checkpoints = session.checkpoints(printer, &out, "run")?;
        let config = &session.config;
        let split = session.data.split(config.seed, config.calib_samples, config.eval_samples);
        let mut job = Self { printer, split, session, out, checkpoints, notes: Vec::new(), tensorrt: None };
        job.note_data();
        Ok(job)
    }

    fn note(&mut self, text: String) {
        self.printer.warn(&text);
        self.notes.push(text);
    }

    fn note_data(&mut self) {
        let config = &self.session.config;
        let (calibration, evaluation) = (self.split.calibration.len(), self.split.evaluation.len());
        if config.random_data {
            self.note("the inputs are random: no figure says anything about the model's accuracy".to_owned());
        }
        if self.split.overlapping > 0 {
            self.note(format!("{} samples calibrate and evaluate, since there are no others", self.split.overlapping));
        } else if calibration < self.session.config.calib_samples {
            self.note(format!(
                "the data set is small: {calibration} samples calibrate (fewer than the {} asked for), {evaluation} evaluate",
                self.session.config.calib_samples
            ));
        }
        self.note_labels();
        self.notes.extend(self.session.data.collection.notes.iter().cloned());
        if let Found::Measured(..) | Found::Assumed(_) | Found::BesideModel(_) = self.session.data.provenance {
            self.notes.push(format!("preprocessing: {}", self.session.data.provenance.describe()));
        }
    }

    /// Says how many of the samples to evaluate have no label, where there are labels.
    fn note_labels(&mut self) {
        let collection = &self.session.data.collection;
        let dataset = &*collection.dataset;
        let is_unlabelled = |index: usize| {
            dataset.label(index).is_none() && dataset.mask_file(index).is_none() && !dataset.has_boxes(index)
        };
        let mut unlabelled = self.split.evaluation.iter().filter(|&&index| is_unlabelled(index));
        if let (Some(&first), Some(_)) = (unlabelled.next(), &collection.label_source) {
            let text = format!(
                "{} of {} evaluation samples have no label and do not count for accuracy; the first is {}",
                unlabelled.count() + 1,
                self.split.evaluation.len(),
                dataset.id(first)
            );
            self.note(text);
        }
    }

    /// Observes ranges and chooses thresholds, when a precision needs them.
    fn calibrate(&mut self) -> anyhow::Result<Option<Calibrated>> {
        let precisions = self.precisions()?;
        if precisions.iter().all(|&precision| precision == Precision::Fp32) {
            return Ok(None);
        }
        let session = &self.session;
        // INT8 and FP8 observe the same tensors.
        let scheme = scheme(&session.config, Precision::Int8)?;
        let placement = session.subject.place(&scheme)?;
        warn_unmatched(self.printer, &session.config, &session.subject, &placement);
        let tensors = placement.tensors_to_observe();
        if precisions.contains(&Precision::Int8) {
            require_operators(&placement).map_err(|error| {
                anyhow::anyhow!("{error}; leave int8 and fp8 out of --precisions to compare the others")
            })?;
        }
        let provenance = Provenance {
            model_hash: session.subject.float.hash.clone(),
            data_hash: session.data_hash(&self.split.calibration),
            random_data: session.config.random_data,
            shards: Shards::whole(),
        };
        let bar = self.printer.progress(self.split.calibration.len() as u64, "calibrating");
        let progress = |samples: usize| bar.inc(samples as u64);
        let options = session.observe_options();
        let calibrator = session.calibrator(&options, &progress, Some(&self.checkpoints));
        let observation = calibrator.observe(&tensors, &hold_out(&self.split.calibration), &provenance);
        bar.finish_and_clear();
        let observation = observation?;
        warn_halved(self.printer, "calibration", observation.device.and_then(|usage| usage.halved_to));
        let peak_rss_bytes = trtcalib::session::environment::peak_rss_bytes();
        self.save_histograms(&observation.histograms)?;
        check_interrupt()?;
        let choose = session.choose_options(&scheme)?;
        let chosen = self
            .checkpoints
            .once("choice", || calibrator.choose(&observation.histograms, &self.split.calibration, &choose))?;
        self.save_table(&chosen.table)?;
        if session.config.method == "auto" && chosen.candidates.is_empty() {
            self.note(format!("too few calibration samples to measure methods on: {} was taken", chosen.choice));
        }
        self.printer.note(&format!(
            "calibrated {} tensors on {} samples in {:.1} s, method {}",
            chosen.table.tensors.len(),
            observation.histograms.samples(),
            observation.seconds,
            chosen.choice
        ));
        Ok(Some(Calibrated {
            histograms: observation.histograms,
            chosen,
            seconds: observation.seconds,
            peak_rss_bytes,
            skipped: observation.summary.skipped,
        }))
    }

    fn precisions(&self) -> anyhow::Result<Vec<Precision>> {
        let mut precisions = Vec::new();
        for name in &self.session.config.precisions {
            let precision: Precision = name.parse().map_err(anyhow::Error::msg)?;
            if !precisions.contains(&precision) {
                precisions.push(precision);
            }
        }
        Ok(precisions)
    }

    /// Makes the model of every precision but the reference's. What cannot be made is reported; what cannot be written
    /// ends the run.
    fn targets(&self, calibrated: Option<&Calibrated>) -> anyhow::Result<Vec<Target>> {
        let precisions = self.precisions().unwrap_or_default();
        precisions
            .into_iter()
            .filter(|&precision| precision != Precision::Fp32)
            .map(|precision| {
                let mut target = Target {
                    precision,
                    artifact: None,
                    quantized_nodes: None,
                    model: None,
                    imitation: None,
                    runner: None,
                    error: None,
                };
                if let Err(error) = self.fill(&mut target, calibrated) {
                    if is_about_the_disk(&error) {
                        return Err(error);
                    }
                    self.printer.warn(&format!("{precision} cannot run: {}", super::describe(&error)));
                    target.error = Some(super::describe(&error));
                }
                Ok(target)
            })
            .collect()
    }

    fn fill(&self, target: &mut Target, calibrated: Option<&Calibrated>) -> anyhow::Result<()> {
        let quantized = self.make_model(target.precision, calibrated)?;
        target.artifact = Some(self.save_model(&quantized.model, target.precision)?);
        target.quantized_nodes = Some(quantized.placement.quantized_nodes());
        target.imitation = self.imitation(&quantized, target.precision)?;
        let model = target.model.insert(quantized.model);
        let build =
            BuildOptions { threads: self.session.threads, provider: self.session.provider, ..BuildOptions::default() };
        target.runner = Some(self.session.runtime.build(target.imitation.as_ref().unwrap_or(model), &build)?);
        Ok(())
    }

    /// Compares, looks into the layers, times, and puts the report together.
    fn measure(
        &mut self,
        calibrated: Option<Calibrated>,
        mut targets: Vec<Target>,
        gates: &[Gate],
    ) -> anyhow::Result<trtcalib::report::Report> {
        let imitated: Vec<&str> =
            targets.iter().filter(|target| target.imitation.is_some()).map(|target| target.precision.name()).collect();
        if !imitated.is_empty() {
            self.notes.push(format!(
                "imitated on the CPU: {}; operators compute in 32 bits, and their inputs and results are rounded",
                imitated.join(", ")
            ));
        }
        for target in &targets {
            if let Some(operators) = target.runner.as_ref().and_then(|runner| runner.in_float32()) {
                let (precision, operators) = (target.precision, counted(operators));
                self.note(format!("{precision}: ONNX Runtime has no kernel for {operators}, which compute in fp32"));
            }
        }
        let mut engines = self.engines(&targets)?;
        let evaluation = self.evaluate(&mut targets, &mut engines)?;
        for warning in self.session.label_warnings(&evaluation.reference) {
            self.note(warning);
        }
        self.note_non_finite(&targets, &engines, &evaluation);
        check_interrupt()?;
        let layers = self.layers(&targets, calibrated.as_ref())?;
        layers.iter().flat_map(|layers| layers.graphwise.notes()).for_each(|note| self.note(note));
        check_interrupt()?;
        let times = self.time(&mut targets)?;
        self.time_engines(&mut engines)?;
        check_interrupt()?;
        self.assemble(assemble::Found {
            calibrated,
            targets,
            evaluation,
            layers,
            times,
            engines,
            gates,
            created: SystemTime::now(),
        })
    }

    /// Says which precisions give NaN or infinities that the reference does not, which no figure of the table shows.
    fn note_non_finite(&mut self, targets: &[Target], engines: &[engines::Engine], evaluation: &Evaluation) {
        let ran =
            targets.iter().filter(|target| target.runner.is_some()).map(|target| target.precision.name().to_owned());
        let models = ran.zip(evaluation.targets.iter().map(|result| result.as_ref().ok()));
        let engines = engines
            .iter()
            .map(|engine| (format!("{} · {}", engine.row.precision, engine.row.backend), engine.measured.as_ref()));
        let warnings =
            models.chain(engines).filter_map(|(name, result)| Some((name, result?))).flat_map(|(name, result)| {
                let warnings = result.non_finite_warnings();
                warnings.into_iter().map(move |warning| format!("{name}: {warning}"))
            });
        for warning in warnings.collect::<Vec<_>>() {
            self.note(warning);
        }
    }

    /// One pass of the reference, every target and every engine over the evaluation samples.
    fn evaluate(&mut self, targets: &mut [Target], engines: &mut [engines::Engine]) -> anyhow::Result<Evaluation> {
        let session = &mut self.session;
        let options =
            EvaluateOptions { batch: session.batch, policy: session.policy, compare: session.compare_options() };
        let ran = targets.iter().filter(|target| target.runner.is_some());
        let names: Vec<&str> = ran.map(|target| target.precision.name()).collect();
        let mut runners: Vec<&mut dyn Outputs> = targets
            .iter_mut()
            .filter_map(|target| target.runner.as_mut())
            .map(|runner| runner as &mut dyn Outputs)
            .collect();
        let models = runners.len();
        let pairs = engines::pairs(&names, engines);
        runners.extend(engines.iter_mut().filter_map(engines::Engine::outputs));
        // An engine that is built again is not the same engine, so what another one gave is of no use.
        let checkpoints = Some(&self.checkpoints).filter(|_| runners.len() == models);
        let bar = self.printer.progress(self.split.evaluation.len() as u64, "comparing");
        let progress = |samples: usize| bar.inc(samples as u64);
        let evaluation = evaluate_pairs(
            &mut session.reference,
            &mut runners,
            &pairs,
            &*session.data.collection.dataset,
            &self.split.evaluation,
            &options,
            Control { checkpoints, ..control(session.threads, &progress) },
        );
        bar.finish_and_clear();
        let mut evaluation = evaluation?;
        warn_halved(self.printer, "the comparison", evaluation.halved_to);
        self.notes.extend(engines::errors(&names, &pairs, &evaluation));
        let measured = evaluation.targets.split_off(models);
        for (engine, result) in engines.iter_mut().filter(|engine| engine.runner.is_some()).zip(measured) {
            engine.take(result);
        }
        Ok(evaluation)
    }
}
