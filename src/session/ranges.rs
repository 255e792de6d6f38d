//! Ranges of a session's model: observe its calibration samples, then choose how thresholds are made of the counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::resume_unwind,
    path::Path,
    thread,
    time::Instant,
};

use super::{
    PipelineError, Session, Shard,
    calibration::{ChooseOptions, Chosen, Observation, hold_out},
    checkpoint::Checkpoints,
    environment::peak_rss_bytes,
    quantization::is_cache,
    scheme::{require_operators, scheme},
};
use crate::{
    artifact::ContentHash,
    calibrate::{
        BiasCorrection, CalibrationTable, Choice, Effort, Histograms, Method, Provenance, Recovered, Shards, StepKind,
    },
    dataset::{Dataset, SampleError, Split, holds_images, split},
    pass::Ran,
    quantize::{Precision, PrecisionPlan, SchemeOptions},
    recover::RecoverOptions,
};

/// What [`Session::calibrate`] works on and leaves on the way.
#[derive(Clone, Copy, Default)]
pub struct CalibrateOptions<'a> {
    /// Samples; without, [`Session::calibration_samples`].
    pub samples: Option<&'a [usize]>,
    /// File that the histograms are written to as soon as they are known.
    pub histograms: Option<&'a Path>,
    /// Where it is kept what is done, to go on with after a stop.
    pub checkpoints: Option<&'a Checkpoints>,
    /// What is done in this thread while another chooses thresholds.
    pub beside: Option<&'a dyn Fn(&Histograms)>,
}

/// Ranges and how they were found.
pub struct Calibrated {
    /// The counts; absent where the table was given.
    pub histograms: Option<Histograms>,
    /// The table, and what else was tried.
    pub chosen: Chosen,
    /// Wall time of the pass over the samples.
    pub seconds: f64,
    /// Wall time of everything: the pass, and the choice of thresholds.
    pub all_seconds: f64,
    /// Largest resident memory up to the end of the choice.
    pub peak_rss_bytes: u64,
    /// Samples that could not be read.
    pub skipped: Vec<SampleError>,
    /// What the pass was like that observed.
    pub ran: Ran,
}

impl Calibrated {
    /// In a sentence.
    pub fn describe(&self) -> String {
        format!(
            "calibrated {} tensors on {} samples in {:.1} s, method {}",
            self.chosen.table.tensors.len(),
            self.chosen.table.samples,
            self.all_seconds,
            self.chosen.choice
        )
    }
}

impl Session {
    /// All samples, up to the number asked for, where nothing is evaluated.
    pub fn calibration_samples(&self) -> Vec<usize> {
        let count = self.dataset().len();
        if self.config.calib_samples >= count {
            return (0..count).collect();
        }
        self.data.calibration(self.config.seed, self.config.calib_samples)
    }

    /// Refuses a configuration by which nothing of the model is quantized to `precision`.
    ///
    /// # Errors
    /// There is nothing to quantize, or the configuration's plan or patterns cannot be used.
    pub fn require_operators(&self, precision: Precision) -> Result<(), PipelineError> {
        let placement = self.subject.place(&scheme(&self.config, precision)?)?;
        if placement.tensors_to_observe().is_empty() {
            // Patterns that match nothing may be why.
            self.warn_unmatched(&placement)?;
        }
        require_operators(&placement)
    }

    /// Counts the values of every tensor that `precision` quantizes over the calibration samples among `samples`, or over
    /// one shard of them. INT8 and FP8 observe the same tensors.
    ///
    /// # Errors
    /// The model cannot be run, too many samples cannot be read, or the host stopped it.
    pub fn observe(
        &self,
        precision: Precision,
        samples: &[usize],
        shard: Option<&Shard>,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<Observation, PipelineError> {
        self.host.stage("observing");
        let scheme = scheme(&self.config, precision)?;
        let placement = self.subject.place(&scheme)?;
        self.warn_unmatched(&placement)?;
        let mut tensors = placement.tensors_to_observe();
        if scheme.plan != PrecisionPlan::default() {
            // What the plan brings is measured against the same ranges without it.
            let unplanned = SchemeOptions { plan: PrecisionPlan::default(), ..scheme };
            tensors.extend(self.subject.place(&unplanned)?.tensors_to_observe());
        }
        let provenance = Provenance {
            model_hash: self.subject.float.hash.clone(),
            data_hash: self.data_hash(samples),
            random_data: self.config.random_data,
            shards: shard.map_or_else(Shards::whole, |shard| shard.shards.clone().of(self.content_hash(samples))),
        };
        let whole = hold_out(samples);
        let parts = shard.map_or_else(|| whole.clone(), |shard| whole.shard(shard.index, shard.count));
        if parts.is_empty() && !whole.is_empty() {
            self.host.info(
                "there are more parts than pairs of samples: this one has none, and its file is needed all the same",
            );
            return Ok(Observation { histograms: Histograms::new(provenance), ran: Ran::default(), seconds: 0.0 });
        }
        let work = self.host.begin("calibrating", parts.len());
        let progress = |samples: usize| work.advance(samples);
        let options = self.observe_options(self.provider);
        let calibrator = self.calibrator(&options, &progress, checkpoints);
        let mut observation = calibrator.observe(&tensors, &parts, &provenance)?;
        observation.histograms.calibrated_on = self.sample_hashes(parts.fit.iter().chain(&parts.held_out));
        drop(work);
        self.warn_halved("calibration", observation.ran.fitting_batch);
        Ok(observation)
    }

    /// Makes the table of histograms over `samples`: every method tried on held-out ones, where the configuration leaves
    /// the choice.
    ///
    /// # Errors
    /// As [`Session::observe`].
    pub fn choose(
        &self,
        precision: Precision,
        histograms: &Histograms,
        samples: &[usize],
        checkpoints: Option<&Checkpoints>,
    ) -> Result<Chosen, PipelineError> {
        self.host.stage("choosing thresholds");
        self.dataset().keep(samples);
        let choose = self.choose_options(precision)?;
        let options = self.observe_options(self.analyst(samples.len()));
        let calibrator = self.calibrator(&options, &|_| {}, None);
        let make = || calibrator.choose(histograms, samples, &choose);
        let mut chosen = match checkpoints {
            Some(checkpoints) => checkpoints.once("choice", make)?,
            None => make()?,
        };
        // Histograms of an older version do not tell.
        if chosen.table.calibrated_on.is_empty() {
            chosen.table.calibrated_on = self.sample_hashes(samples);
        }
        if self.config.method == Choice::Auto
            && chosen.choice != Choice::Auto
            && chosen.candidates.is_empty()
            && !chosen.table.tensors.is_empty()
        {
            self.host.note(&format!("too few calibration samples to measure methods on: {} was taken", chosen.choice));
        }
        for step in chosen.table.recovered.iter().flat_map(|recovered| &recovered.steps) {
            // The report has its steps in a table.
            let told = format!("recovery, {step}");
            if step.name == Recovered::GATES { self.host.note(&told) } else { self.host.info(&told) }
        }
        for step in chosen.table.fp8.iter().flat_map(|fp8| &fp8.recovered.steps) {
            self.host.info(&format!("recovery for FP8, {step}"));
        }
        Ok(chosen)
    }

    /// The largest values of the histograms, and of what these do not count: all that 16 bits need of the table that
    /// [`Session::choose`] makes of them.
    pub(super) fn observed(
        &self,
        histograms: &Histograms,
        samples: &[usize],
    ) -> Result<CalibrationTable, PipelineError> {
        let options = ChooseOptions {
            choice: Choice::Method(Method::MinMax),
            bias_correction: false,
            recovery: None,
            fp8: None,
            ..self.choose_options(Precision::Int8)?
        };
        let observe = self.observe_options(self.analyst(samples.len()));
        Ok(self.calibrator(&observe, &|_| {}, None).choose(histograms, samples, &options)?.table)
    }

    /// How far INT8 is to be brought nearer to float: who names a method, or wants biases as they are, gets just that.
    fn recover_options(&self) -> Option<RecoverOptions> {
        let config = &self.config;
        let as_asked = config.method != Choice::Auto || config.bias_correction == BiasCorrection::Off;
        let effort = config.effort.unwrap_or(if as_asked { Effort::Off } else { Effort::Default });
        let is_asked = |step: &StepKind| match step {
            StepKind::Ranges => config.method == Choice::Auto,
            StepKind::Biases => config.bias_correction != BiasCorrection::Off,
            _ => true,
        };
        let named = Some(&config.recovery_steps[..]).filter(|named| !named.is_empty()).unwrap_or(&StepKind::ALL);
        (effort != Effort::Off).then(|| RecoverOptions {
            fp8: false,
            effort,
            deploy_to: config.deploy_to,
            shift: config.shift.unwrap_or(config.deploy_to.shifts()),
            lift_budget: config.lift_budget,
            lift_nodes: config.lift_nodes.unwrap_or(usize::MAX),
            steps: named.iter().copied().filter(is_asked).collect(),
            threads: self.threads,
            peers: self.peers.clone(),
        })
    }

    /// How the table is to be made of the histograms.
    fn choose_options(&self, precision: Precision) -> Result<ChooseOptions, PipelineError> {
        let wants_fp8 = precision == Precision::Fp8 || self.config.precisions.contains(&Precision::Fp8);
        Ok(ChooseOptions {
            choice: self.config.method,
            percentile: self.config.percentile,
            bias_correction: self.config.bias_correction != BiasCorrection::Off,
            recovery: self.recover_options(),
            scheme: scheme(&self.config, precision)?,
            fp8: wants_fp8.then(|| scheme(&self.config, Precision::Fp8)).transpose()?,
            compare: self.compare_options(),
            gates: self.config.gate.clone(),
        })
    }

    /// Splits the samples anew by the ones that a given `table` was made on: all others may be judged, `most` of them (0: all).
    pub(super) fn leave_out_calibrated(&self, parts: &mut Split, table: &CalibrationTable, most: usize) {
        if self.config.table.is_none() || table.calibrated_on.is_empty() {
            return;
        }
        let seed = self.config.seed;
        let looked_at = if most == 0 { 0 } else { most + table.calibrated_on.len() };
        let mut all = self.data.split(seed, 0, looked_at).evaluation;
        let dataset = self.dataset();
        all.extend((0..dataset.len()).filter(|&index| table.calibrated_on.contains_key(dataset.id(index))));
        let by_name = |index: &usize| (dataset.id(*index), *index);
        all.sort_unstable_by(|a, b| by_name(a).cmp(&by_name(b)));
        all.dedup();
        let same = same_samples(dataset, &table.calibrated_on, &all);
        let (calibration, others): (Vec<usize>, Vec<usize>) = all.into_iter().partition(|index| same.contains(index));
        if others.is_empty() {
            self.leave_out(parts, &table.calibrated_on, "table");
            (parts.overlapping, parts.calibration) = (parts.evaluation.len(), calibration);
            return;
        }
        if parts.evaluation.iter().any(|index| same.contains(index)) {
            self.host.info(&format!("{} samples that the table was made on are not evaluated", calibration.len()));
        }
        let chosen = split(others.len(), |at| dataset.id(others[at]), seed, 0, most).evaluation;
        let evaluation = chosen.into_iter().map(|at| others[at]).collect();
        *parts = Split { calibration, evaluation, overlapping: 0 };
    }

    /// Which samples calibrate and which evaluate. Copies of those that calibrate, under other names, do not.
    pub fn split(&self) -> Split {
        self.split_for(self.config.eval_samples)
    }

    /// The same with `asked` samples to evaluate; 0 for all that are left.
    pub(super) fn split_for(&self, asked: usize) -> Split {
        let (seed, calibration) = (self.config.seed, self.config.calib_samples);
        let mut parts = self.data.split(seed, calibration, asked);
        if parts.overlapping > 0 || self.config.table.is_some() {
            return parts;
        }
        let known = self.sample_hashes(&parts.calibration);
        let mut looked_at = asked;
        let copies = loop {
            let all = parts.evaluation.len();
            let same = same_samples(self.dataset(), &known, &parts.evaluation);
            if same.len() == all {
                parts.overlapping = all;
                return parts;
            }
            parts.evaluation.retain(|index| !same.contains(index));
            // Larger numbers only add to a split.
            if parts.evaluation.len() >= asked || all < looked_at {
                break same.len();
            }
            looked_at += asked - parts.evaluation.len();
            parts = self.data.split(seed, calibration, looked_at);
        };
        if copies > 0 {
            self.host.info(&format!("copies of samples that calibrate are not evaluated: {copies}"));
        }
        parts
    }

    /// Takes the samples that `what` was made on, by name with their hashes, out of those that are judged.
    pub(super) fn leave_out(&self, split: &mut Split, made_on: &BTreeMap<String, String>, what: &str) {
        let same = same_samples(self.dataset(), made_on, &split.evaluation);
        let (left_out, others): (Vec<usize>, Vec<usize>) =
            split.evaluation.iter().copied().partition(|index| same.contains(index));
        if others.is_empty() && !left_out.is_empty() {
            self.host.warn(&format!(
                "the {what} was made on all of the samples that are evaluated: its figures are better here than on others"
            ));
        } else if !left_out.is_empty() {
            self.host.info(&format!("{} samples that the {what} was made on are not evaluated", left_out.len()));
            split.evaluation = others;
        }
    }

    /// Samples by name, with the beginning of a hash of each; nothing where they are random.
    fn sample_hashes<'s>(&self, samples: impl IntoIterator<Item = &'s usize>) -> BTreeMap<String, String> {
        if self.config.random_data {
            return BTreeMap::new();
        }
        let dataset = self.dataset();
        let known = |&i: &usize| Some((dataset.id(i).to_owned(), sample_hash(dataset, i)?));
        samples.into_iter().filter_map(known).collect()
    }

    /// Observes and chooses.
    ///
    /// # Errors
    /// As [`Session::observe`]; the histograms cannot be written.
    pub fn calibrate(&self, precision: Precision, options: CalibrateOptions<'_>) -> Result<Calibrated, PipelineError> {
        let all;
        let samples = if let Some(samples) = options.samples {
            samples
        } else {
            all = self.calibration_samples();
            &all
        };
        self.check_gated_outputs(&self.config.gate, &self.subject.outputs)?;
        let started = Instant::now();
        // They are read again when thresholds are chosen.
        self.dataset().keep(samples);
        let Observation { histograms, ran, seconds } = self.observe(precision, samples, None, options.checkpoints)?;
        if let Some(path) = options.histograms {
            histograms.save(path)?;
            self.host.wrote(path);
        }
        self.host.check()?;
        let choose = || self.choose(precision, &histograms, samples, options.checkpoints);
        let chosen = match options.beside {
            None => choose(),
            Some(beside) => thread::scope(|scope| {
                let chosen = scope.spawn(choose);
                beside(&histograms);
                chosen.join().unwrap_or_else(|panic| resume_unwind(panic))
            }),
        }?;
        let skipped = ran.summary.skipped.clone();
        let (all_seconds, peak_rss_bytes) = (started.elapsed().as_secs_f64(), peak_rss_bytes());
        Ok(Calibrated { histograms: Some(histograms), chosen, seconds, all_seconds, peak_rss_bytes, skipped, ran })
    }

    /// The table in `path`, if it is of this model.
    ///
    /// # Errors
    /// It cannot be read, or is another model's.
    pub fn read_table(&self, path: &Path) -> Result<CalibrationTable, PipelineError> {
        ensure!(
            !is_cache(path)?,
            "{} is a calibration cache of TensorRT, which does not tell its model and samples; `calib quantize --table` takes it, and \
             `calib compare` judges the model that it writes",
            path.display()
        );
        let table = CalibrationTable::load(path)?;
        table.check_model(&self.subject.float.hash)?;
        if table.random_data {
            self.host.warn(&format!("the ranges of {} come from random inputs", path.display()));
        }
        Ok(table)
    }

    /// Takes the ranges from the table in `path`: nothing is observed.
    ///
    /// # Errors
    /// As [`Session::read_table`].
    pub fn calibrated_before(&self, path: &Path) -> Result<Calibrated, PipelineError> {
        let table = self.read_table(path)?;
        let choice = table.method.parse().map_err(PipelineError::Input)?;
        let samples = table.samples;
        self.host.note(&format!(
            "the ranges come from {}, made on {samples} samples; nothing was calibrated here",
            path.display()
        ));
        let chosen = Chosen { table, choice, candidates: Vec::new(), measured_on: 0 };
        let (seconds, skipped, ran) = (0.0, Vec::new(), Ran::default());
        let (all_seconds, peak_rss_bytes) = (0.0, peak_rss_bytes());
        Ok(Calibrated { histograms: None, chosen, seconds, all_seconds, peak_rss_bytes, skipped, ran })
    }

    /// The table of a single run over all samples, from the joined histograms of its shards.
    ///
    /// # Errors
    /// The histograms are of another model or of other samples.
    pub fn choose_from_shards(&self, merged: &Histograms) -> Result<CalibrationTable, PipelineError> {
        self.check_gated_outputs(&self.config.gate, &self.subject.outputs)?;
        let samples = self.calibration_samples();
        let made_for = &merged.provenance;
        if made_for.model_hash != self.subject.float.hash {
            bail!("the histograms were made for another model; give the one that the shards observed");
        }
        if made_for.data_hash != self.data_hash(&samples) || made_for.random_data != self.config.random_data {
            return Err(PipelineError::input(
                "the histograms were made from other samples; give the data, preprocessing, seed and number of samples of \
                 the shards",
            ));
        }
        let known = &merged.calibrated_on;
        let is_other = |&&index: &&usize| {
            let hash = known.get(self.dataset().id(index));
            hash.is_some_and(|hash| sample_hash(self.dataset(), index).as_ref() != Some(hash))
        };
        if let Some(&other) = samples.iter().find(is_other) {
            return Err(PipelineError::input(format!(
                "{} is not what the shards observed under this name; give the data of the shards",
                self.dataset().id(other)
            )));
        }
        Ok(self.choose(Precision::Int8, merged, &samples, None)?.table)
    }
}

/// The beginning of a hash of what a sample is: of its picture's file, or of its values, in whatever file they lie; `None`
/// where it cannot be read.
pub(super) fn sample_hash(dataset: &dyn Dataset, index: usize) -> Option<String> {
    let hash = if let Some(file) = dataset.file(index).filter(|file| holds_images(file)) {
        ContentHash::of_file(&file).ok()?
    } else {
        let inputs = dataset.sample(index).ok()?;
        let bytes: Vec<u8> = inputs.values().flat_map(|tensor| tensor.view().values.bytes()).copied().collect();
        ContentHash::of_bytes(&bytes)
    };
    Some(hash.as_str()[..16].to_owned())
}

/// Those `among` the samples that have the content of those in `known`, by name and hash, whatever they are called: the same
/// files may be named from another folder or list, and be there twice. Where names find all, of other pictures only those of
/// their sizes are read.
pub(super) fn same_samples(
    dataset: &dyn Dataset,
    known: &BTreeMap<String, String>,
    among: &[usize],
) -> BTreeSet<usize> {
    if known.is_empty() {
        return BTreeSet::new();
    }
    let is = |index: usize, hash: &String| sample_hash(dataset, index).as_ref() == Some(hash);
    let is_named = |&index: &usize| known.get(dataset.id(index)).is_some_and(|hash| is(index, hash));
    let size = |index: usize| Some(dataset.file(index).filter(|file| holds_images(file))?.metadata().ok()?.len());
    let named: BTreeSet<usize> = (0..dataset.len()).filter(is_named).collect();
    let sizes: BTreeSet<u64> = named.iter().filter_map(|&index| size(index)).collect();
    let mut same: BTreeSet<usize> = among.iter().copied().filter(|index| named.contains(index)).collect();
    let may_be = |index: &usize| named.len() < known.len() || size(*index).is_none_or(|size| sizes.contains(&size));
    let hashes: BTreeSet<&String> = known.values().collect();
    let is_same = |&index: &usize| sample_hash(dataset, index).is_some_and(|hash| hashes.contains(&hash));
    let others = among.iter().copied().filter(|index| !same.contains(index));
    let others: Vec<usize> = others.filter(may_be).filter(is_same).collect();
    same.extend(others);
    same
}
