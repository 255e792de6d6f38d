//! `calib run`: the whole job. Calibrate, quantize, compare every precision with the reference, time, report.

mod ahead;
mod artifacts;
mod assemble;
mod deploying;
mod engines;
mod failure;
mod layers;
mod parts;
mod times;
mod variants;

pub use artifacts::{page_of, write_report};
pub use engines::check as check_tensorrt;
pub use failure::{UNFINISHED, record_beginning, record_failure, set_findings_aside};

use std::{cell::Cell, panic::resume_unwind, path::PathBuf, thread, time::SystemTime};

use super::{
    CalibrateOptions, Calibrated, Compared, Control, OutputFolder, PipelineError, Session,
    benchmark::counted,
    checkpoint::Checkpoints,
    describe,
    evaluation::{Evaluation, Outputs, evaluate_pairs},
    scheme,
};
use crate::{
    analyse::layerwise::SHARING,
    backend::{Backend, Runner},
    calibrate::Histograms,
    compare::Gate,
    dataset::Split,
    deploy::{DEPLOY, check_free},
    onnx::Model,
    quantize::{Placement, Precision},
    report::Report,
};
use ahead::Ahead;
use artifacts::save_model;
use variants::{Variant, take_results};

/// What a run made.
pub struct RunOutcome {
    /// All figures.
    pub report: Report,
    /// Folder that holds the report and every other file.
    pub out: PathBuf,
}

impl Session {
    /// The whole job: calibrates, quantizes, compares every precision with the reference, times, and leaves all of it in
    /// the output folder. `command` is what stands in the report as what was called.
    ///
    /// # Errors
    /// A value of the configuration cannot be used, the reference cannot be run, a file cannot be written, or the host
    /// stopped it: then a report that says so takes the place of a former one. A precision that cannot be made or run is no
    /// error: the report says so.
    pub fn run(&mut self, command: Vec<String>) -> Result<RunOutcome, PipelineError> {
        self.recorded_run(command, None)
    }

    /// The whole job, but for the evaluation, which was counted in parts: see [`Session::evaluate_part`]. The session is one of
    /// the parts' own configuration, [`Compared::config`].
    ///
    /// # Errors
    /// As [`Session::run`]; the parts are of other samples or models than are found here.
    pub fn run_joined(&mut self, joined: Compared, command: Vec<String>) -> Result<RunOutcome, PipelineError> {
        self.recorded_run(command, Some(joined))
    }

    fn recorded_run(&mut self, command: Vec<String>, joined: Option<Compared>) -> Result<RunOutcome, PipelineError> {
        let outcome = self.whole_run(command, joined);
        if let Err(error) = outcome.as_ref().map_err(|error| describe(error))
            && let Err(second) = record_failure(&self.config, &error).map_err(|error| describe(&error))
            && second != error
        {
            self.host.warn(&format!("that this run failed could not be written down: {second}"));
        }
        outcome
    }

    fn whole_run(&mut self, command: Vec<String>, joined: Option<Compared>) -> Result<RunOutcome, PipelineError> {
        let gates = self.config.gate.clone();
        check_tensorrt(self.config.tensorrt)?;
        times::check(self)?;
        let out = OutputFolder::open(&self.config)?;
        engines::check_runtime_cache(self, &out)?;
        check_free(&out.join(DEPLOY))?;
        failure::begin(&out, &self.config)?;
        let mut job = Job::new(self, out, command)?;
        let names: Vec<&str> = job.session.precisions().iter().map(|precision| precision.name()).collect();
        job.session.check_run_gates(&gates, &names)?;
        job.session.check_gates(&gates, &job.split.evaluation)?;
        job.session.check_gated_outputs(&gates, &job.session.subject.outputs)?;
        job.write_config()?;
        let (calibrated, ahead) = job.calibrate()?;
        if let Some(calibrated) = &calibrated {
            let most = job.session.config.eval_samples;
            job.session.leave_out_calibrated(&mut job.split, &calibrated.chosen.table, most);
        }
        job.session.host.stage("quantizing");
        let save = |model: &Model, precision| save_model(&job.out, model, precision).map(Some);
        let variants = job.session.variants(calibrated.as_ref(), ahead, &save)?;
        let report = job.measure(calibrated, variants, &gates, joined)?;
        job.write_report(&report)?;
        job.checkpoints.map(Checkpoints::finish).transpose()?;
        Ok(RunOutcome { report, out: job.out.to_path_buf() })
    }
}

/// A run in progress.
struct Job<'a> {
    session: &'a mut Session,
    out: OutputFolder,
    command: Vec<String>,
    checkpoints: Option<Checkpoints>,
    split: Split,
    /// TensorRT and its version, where engines are built.
    tensorrt: Option<(String, String)>,
}

impl<'a> Job<'a> {
    fn new(session: &'a mut Session, out: OutputFolder, command: Vec<String>) -> Result<Self, PipelineError> {
        let checkpoints = session.checkpoints(&out, "run")?;
        let split = session.split();
        // They are read again when layers are looked into.
        session.dataset().keep(layers::samples(&split.evaluation));
        let job = Self { split, session, out, command, checkpoints, tensorrt: None };
        job.note_data();
        Ok(job)
    }

    fn note_data(&self) {
        let config = &self.session.config;
        let reference = self.session.subject.float_types.name();
        if reference != "fp32" {
            self.session.host.note(&format!(
                "the model is {reference} as it was given, which the others are compared with; it is not converted to that again"
            ));
        }
        let (calibration, evaluation) = (self.split.calibration.len(), self.split.evaluation.len());
        if config.random_data {
            self.session.host.warn("the inputs are random: no figure says anything about the model's accuracy");
        }
        if self.split.overlapping > 0 {
            self.session
                .host
                .warn(&format!("{} samples calibrate and evaluate, since there are no others", self.split.overlapping));
        } else if calibration < self.session.config.calib_samples && self.session.config.table.is_none() {
            self.session.host.warn(&format!(
                "the data set is small: {calibration} samples calibrate (fewer than the {} asked for), {evaluation} evaluate",
                self.session.config.calib_samples
            ));
        }
        self.note_labels();
    }

    /// Says how many of the samples to evaluate have no label, where there are labels.
    fn note_labels(&self) {
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
            self.session.host.warn(&text);
        }
    }

    /// Observes ranges and chooses thresholds, when a precision needs them; with what was called ahead meanwhile.
    fn calibrate(&self) -> Result<(Option<Calibrated>, Option<Ahead>), PipelineError> {
        if self.session.precisions().is_empty() {
            return Ok((None, None));
        }
        // INT8 and FP8 observe the same tensors; FP16 asks for magnitudes even where there are none.
        let placed =
            scheme(&self.session.config, Precision::Int8).and_then(|scheme| self.session.subject.place(&scheme));
        let is_of_use = |placement: Placement| {
            !placement.tensors_to_observe().is_empty() || self.session.precisions().contains(&Precision::Fp16)
        };
        if !placed.is_ok_and(is_of_use) {
            // The rows of the 8-bit precisions say so.
            return Ok((None, None));
        }
        if let Some(path) = &self.session.config.table {
            let calibrated = self.session.given_ranges(path, &self.split)?;
            self.save_table(&calibrated.chosen.table)?;
            return Ok((Some(calibrated), None));
        }
        let ahead = Cell::new(None);
        let beside = |histograms: &Histograms| ahead.set(self.ahead(histograms));
        let histograms = self.out.join("histograms.calib");
        let options = CalibrateOptions {
            samples: Some(&self.split.calibration),
            histograms: Some(&histograms),
            checkpoints: self.checkpoints.as_ref(),
            beside: self.session.provider.gpu().map(|_| &beside as _),
        };
        let calibrated = self.session.calibrate(Precision::Int8, options)?;
        self.session.host.info(&calibrated.describe());
        self.save_table(&calibrated.chosen.table)?;
        Ok((Some(calibrated), ahead.take()))
    }

    /// Compares, looks into the layers, times, and puts the report together.
    fn measure(
        &mut self,
        calibrated: Option<Calibrated>,
        mut variants: Vec<Variant>,
        gates: &[Gate],
        joined: Option<Compared>,
    ) -> Result<Report, PipelineError> {
        let imitated: Vec<&str> = variants
            .iter()
            .filter(|variant| variant.imitation.is_some())
            .map(|variant| variant.precision.name())
            .collect();
        if !imitated.is_empty() {
            self.session.host.note(&format!(
                "imitated on the CPU: {}; operators compute in 32 bits, and their inputs and results are rounded",
                imitated.join(", ")
            ));
        }
        let emulated: Vec<&str> = variants
            .iter()
            .filter(|variant| variant.precision.is_quantized() && variant.runner.is_some())
            .map(|variant| variant.precision.name())
            .collect();
        if !emulated.is_empty() {
            self.session.host.note(&format!(
                "emulated by ONNX Runtime: {}; the figures show what quantization costs, and the latency is not an estimate of TensorRT's",
                emulated.join(", ")
            ));
        }
        for variant in &variants {
            if let Some(operators) = variant.runner.as_ref().and_then(|runner| runner.in_float32()) {
                let (precision, operators) = (variant.precision, counted(operators));
                self.session
                    .host
                    .warn(&format!("{precision}: ONNX Runtime has no kernel for {operators}, which compute in fp32"));
            }
        }
        self.session.host.stage("building engines");
        let mut engines = self.engines(&variants)?;
        self.session.host.stage("comparing");
        let (mut evaluation, ahead) = match joined {
            Some(joined) => (self.take_joined(joined, &variants, &mut engines)?, None),
            None => self.evaluate(&mut variants, &mut engines, calibrated.as_ref())?,
        };
        for warning in self.session.label_warnings(&evaluation.reference) {
            self.session.host.warn(&warning);
        }
        take_results(&mut variants, std::mem::take(&mut evaluation.targets));
        self.warn_of_outputs(&variants, &engines);
        self.session.host.check()?;
        self.session.host.stage("looking into layers");
        let layers = if let Some(found) = ahead {
            found?
        } else {
            let quantized = layers::quantized(&variants).and_then(|index| variants[index].quantized());
            self.layers(quantized, calibrated.as_ref())?
        };
        if let Some(layers) = &layers {
            layers.graphwise.notes().iter().for_each(|note| self.session.host.warn(note));
            layers.of_plan.iter().for_each(|note| self.session.host.note(note));
        }
        self.session.host.check()?;
        self.session.host.stage("measuring latency");
        let times = self.time(&mut variants)?;
        self.time_engines(&mut engines)?;
        self.session.host.check()?;
        self.session.host.stage("reporting");
        // What was measured is not lost for want of room for this.
        if let Err(error) = self.deploy(&mut variants) {
            self.session.host.warn(&format!("deploy/ was not written: {}", describe(&error)));
        }
        self.assemble(assemble::Found {
            calibrated,
            variants,
            evaluation,
            layers,
            times,
            engines,
            gates,
            created: SystemTime::now(),
        })
    }

    /// Says which precisions give NaN or infinities that the reference does not, which no figure of the table shows.
    fn warn_of_outputs(&self, variants: &[Variant], engines: &[engines::Engine]) {
        let models = variants.iter().map(|variant| (variant.precision.name().to_owned(), variant.result()));
        let engines = engines
            .iter()
            .map(|engine| (format!("{} · {}", engine.row.precision, engine.row.backend), engine.measured.as_ref()));
        let warnings =
            models.chain(engines).filter_map(|(name, result)| Some((name, result?))).flat_map(|(name, result)| {
                let warnings = result.warnings();
                warnings.into_iter().map(move |warning| format!("{name}: {warning}"))
            });
        for warning in warnings.collect::<Vec<_>>() {
            self.session.host.warn(&warning);
        }
    }

    /// One pass of the reference, every variant and every engine over the evaluation samples. Layers are looked into beside it
    /// where there are more cores than that takes: on few it would take as long as one after the other, and more memory.
    fn evaluate(
        &self,
        variants: &mut [Variant],
        engines: &mut [engines::Engine],
        calibrated: Option<&Calibrated>,
    ) -> Result<(Evaluation, Option<layers::Found>), PipelineError> {
        let session = &*self.session;
        // An engine that runs in the same pass has samples come as it takes them.
        if session.reference().at_once() > 1 && engines.iter().any(|engine| engine.runner.is_some()) {
            let build = session.build_options(session.threads);
            *session.reference() = session.subject.reference(session.runtime, &build)?;
            for variant in variants.iter_mut().filter(|variant| variant.runner.is_some()) {
                if let Some(model) = variant.imitation.as_ref().or(variant.model.as_ref()) {
                    variant.runner = Some(session.runtime.build(model, &build)?);
                }
            }
        }
        let quantized = layers::quantized(variants);
        let mut runners: Vec<_> =
            variants.iter_mut().map(|variant| (variant.precision, variant.runner.take())).collect();
        let quantized = quantized.and_then(|index| variants[index].quantized());
        let has_cores_left = session.threads > SHARING;
        let (evaluation, layers) = thread::scope(|scope| {
            let layers = has_cores_left.then(|| scope.spawn(|| self.layers(quantized, calibrated)));
            let evaluation = self.compare(&mut runners, engines);
            if layers.is_some() {
                self.call_timed(&mut runners);
            }
            (evaluation, layers.map(|layers| layers.join().unwrap_or_else(|panic| resume_unwind(panic))))
        });
        for (variant, (_, runner)) in variants.iter_mut().zip(runners) {
            variant.runner = runner;
        }
        Ok((evaluation?, layers))
    }

    fn compare(
        &self,
        runners: &mut [(Precision, Option<Box<dyn Runner>>)],
        engines: &mut [engines::Engine],
    ) -> Result<Evaluation, PipelineError> {
        let session = &*self.session;
        let options = session.evaluate_options(session.compared_at_once(self.split.evaluation.len()));
        let (names, mut runners): (Vec<&str>, Vec<&mut dyn Outputs>) = runners
            .iter_mut()
            .filter_map(|(precision, runner)| Some((precision.name(), runner.as_mut()? as &mut dyn Outputs)))
            .unzip();
        let models = runners.len();
        let pairs = engines::pairs(&names, engines);
        runners.extend(engines.iter_mut().filter_map(engines::Engine::outputs));
        // An engine that is built again is not the same engine, so what another one gave is of no use.
        let checkpoints = self.checkpoints.as_ref().filter(|_| runners.len() == models);
        let host = session.host.clone();
        let work = host.begin("comparing", self.split.evaluation.len());
        let progress = |samples: usize| work.advance(samples);
        let evaluation = evaluate_pairs(
            &mut *session.reference(),
            &mut runners,
            &pairs,
            &*session.data.collection.dataset,
            &self.split.evaluation,
            &options,
            Control { threads: session.threads, stop: host.stop(), progress: &progress, checkpoints },
        );
        drop(work);
        let mut evaluation = evaluation?;
        session.warn_halved("the comparison", evaluation.fitting_batch);
        for note in engines::errors(&names, &pairs, &evaluation) {
            host.note(&note);
        }
        let measured = evaluation.targets.split_off(models);
        for (engine, result) in engines.iter_mut().filter(|engine| engine.runner.is_some()).zip(measured) {
            engine.take(result);
        }
        Ok(evaluation)
    }
}
