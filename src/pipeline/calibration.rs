//! Ranges from data: one pass over the calibration samples, then the choice of the method.

use std::{collections::BTreeSet, time::Instant};

use serde::{Deserialize, Serialize};

use super::{
    Control, PipelineError,
    evaluation::{EvaluateOptions, Outputs, evaluate},
    model::Subject,
};
use crate::{
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, Runner,
        cuda::Device,
        onnxruntime::{DeviceRunner, OnnxRuntime},
    },
    bisect::{
        bias::mean_errors,
        layerwise::{AnalysisError, Samples},
        operators::{OperatorError, Pair},
    },
    calibrate::{
        self, CalibrateError, CalibrationTable, Choice, DeviceUse, Histograms, Method, Observing, Provenance,
        check_complete, observe_on_device, tables,
    },
    compare::{CompareOptions, ComparisonResult},
    dataset::{BadPolicy, Dataset, PassError, PassSummary, PrefetchOptions, SampleError, prefetch},
    quantize::{Precision, QuantizeOptions, SchemeOptions, quantize},
};

/// Every n-th calibration sample is held out to measure methods on: with fewer, the choice is left to chance, while
/// thresholds hardly change with the other half.
const HOLD_OUT: usize = 2;
/// Held-out samples that whole models are measured on, at most.
const MEASURED: usize = 128;
/// Samples that bias corrections are measured on, at most.
const CORRECTED: usize = 64;

/// Name of the checkpoint.
const STAGE: &str = "calibration";

/// How far a pass over the calibration samples has come.
#[derive(Default, Serialize, Deserialize)]
struct Position {
    /// 0: fitting samples, 1: held-out samples, 2: done.
    part: usize,
    /// Samples of the part that are done.
    done: usize,
    /// Bad samples of the part.
    skipped: Vec<SampleError>,
    /// Bad samples of the parts before.
    of_parts: Vec<SampleError>,
    /// Time spent.
    seconds: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Now,
    WhenDue,
}

/// Options of a [`Calibrator`].
#[derive(Clone, Debug)]
pub struct ObserveOptions {
    /// Samples in one call: what the model fixes, else 1 on the CPU, where larger batches only need more memory. On a
    /// GPU convolutions may round otherwise in another batch.
    pub batch: usize,
    /// Threads of ONNX Runtime.
    pub threads: usize,
    /// Where to execute.
    pub provider: ExecutionProvider,
    /// How many bad samples are tolerated.
    pub policy: BadPolicy,
}

/// What a pass over the calibration samples gave.
pub struct Observation {
    /// The counts.
    pub histograms: Histograms,
    /// What reading was like.
    pub summary: PassSummary,
    /// Wall time, reading included.
    pub seconds: f64,
    /// What the GPU was doing, where one observed.
    pub device: Option<DeviceUse>,
}

/// Calibration samples, in two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Samples to fit thresholds on.
    pub fit: Vec<usize>,
    /// Samples to measure thresholds on.
    pub held_out: Vec<usize>,
}

impl Parts {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.fit.len() + self.held_out.len()
    }

    /// True without samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every `count`-th sample of each part, from `index` on: shards that together are all samples, each in its part.
    #[must_use]
    pub fn shard(&self, index: usize, count: usize) -> Self {
        let pick = |part: &[usize]| part.iter().skip(index).step_by(count.max(1)).copied().collect();
        Self { fit: pick(&self.fit), held_out: pick(&self.held_out) }
    }
}

/// Holds out every second of `indices`, if there is more than one.
pub fn hold_out(indices: &[usize]) -> Parts {
    let held = |position: &usize| indices.len() > 1 && position % HOLD_OUT == HOLD_OUT - 1;
    let pick = |wanted: bool| {
        let chosen = indices.iter().enumerate().filter(move |(position, _)| held(position) == wanted);
        chosen.map(|(_, &index)| index).collect()
    };
    Parts { fit: pick(false), held_out: pick(true) }
}

/// One way to choose thresholds, measured on held-out samples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Candidate {
    /// The way; [`Choice::Auto`] takes the best method for each tensor by itself.
    pub choice: Choice,
    /// True with corrected biases.
    pub bias_correction: bool,
    /// Against the float model.
    pub result: ComparisonResult,
}

/// The table in force and what else was tried.
#[derive(Serialize, Deserialize)]
pub struct Chosen {
    /// The table, from all calibration samples.
    pub table: CalibrationTable,
    /// The way its thresholds were chosen.
    pub choice: Choice,
    /// Every way, measured on held-out samples; empty when there was nothing to choose.
    pub candidates: Vec<Candidate>,
    /// Held-out samples measured on.
    pub measured_on: usize,
}

/// How a table is made of histograms.
#[derive(Clone, Debug)]
pub struct ChooseOptions {
    /// How thresholds are chosen.
    pub choice: Choice,
    /// Percentile of [`Method::Percentile`], in percent.
    pub percentile: f64,
    /// Whether biases take back the mean error of quantization, where that helps on held-out samples.
    pub bias_correction: bool,
    /// What will be quantized.
    pub scheme: SchemeOptions,
}

/// Observes a model over samples and makes its calibration table.
#[derive(Clone, Copy)]
pub struct Calibrator<'a> {
    /// What executes the model.
    pub runtime: OnnxRuntime,
    /// The model.
    pub subject: &'a Subject,
    /// The samples.
    pub dataset: &'a dyn Dataset,
    /// How it runs.
    pub options: &'a ObserveOptions,
    /// Progress and interruption.
    pub control: Control<'a>,
}

/// What runs the model that is observed.
enum Observer {
    /// Activations are counted in host memory.
    Host(Box<dyn Runner>),
    /// They never leave the GPU.
    Device(Box<DeviceRunner>),
}

impl Calibrator<'_> {
    fn runner(&self, build: &BuildOptions) -> Result<Observer, PipelineError> {
        let ExecutionProvider::Cuda(index) = self.options.provider else {
            return Ok(Observer::Host(self.runtime.build(&self.subject.folded, build)?));
        };
        let device = Device::open(index).map_err(BackendError::from)?;
        let stream = device.stream().map_err(BackendError::from)?;
        let runner = self.runtime.build_on_device(&self.subject.folded, build, &device, &stream)?;
        Ok(Observer::Device(Box::new(runner)))
    }

    /// Observes `tensors` of the folded model over the calibration samples.
    pub fn observe(
        &self,
        tensors: &BTreeSet<String>,
        parts: &Parts,
        provenance: &Provenance,
    ) -> Result<Observation, PipelineError> {
        let inputs: BTreeSet<&str> = self.subject.inputs.iter().map(|info| info.name.as_str()).collect();
        let outputs: BTreeSet<&str> = self.subject.outputs.iter().map(|info| info.name.as_str()).collect();
        let extra_outputs = tensors
            .iter()
            .filter(|name| !inputs.contains(name.as_str()) && !outputs.contains(name.as_str()))
            .cloned()
            .collect();
        let build = BuildOptions {
            threads: self.options.threads,
            provider: self.options.provider,
            extra_outputs,
            ..BuildOptions::default()
        };
        let mut runner = self.runner(&build)?;
        // A sample that is repeated to fill a batch would be counted twice, so only whole batches run.
        let fixed = self.subject.fixed_batch().unwrap_or(1).max(1);
        let whole = |part: &[usize]| part.len() / fixed * fixed;
        if whole(&parts.fit) == 0 && fixed > 1 {
            let (batch, samples) = (self.options.batch, parts.fit.len());
            let reason =
                format!("the model fixes its batch to {batch}, and there are only {samples} samples to calibrate on");
            return Err(PipelineError::Input(reason));
        }
        let started = Instant::now();
        let (mut at, mut histograms) = self.resume(provenance)?;
        let earlier_seconds = at.seconds;
        let mut summary = PassSummary::default();
        let mut device = None;
        let on_host = matches!(runner, Observer::Host(_));
        for (index, part) in [&parts.fit, &parts.held_out].into_iter().enumerate().skip(at.part) {
            let part = &part[..whole(part)];
            let (begin, known) = (at.done, at.skipped.clone());
            let rest = part.get(begin..).unwrap_or_default();
            let held_out = index == 1;
            let (observed, pass) = prefetch(self.dataset, rest, self.reading(&known), |batches| match &mut runner {
                Observer::Host(runner) => {
                    let mut observing = Observing::new(&mut **runner, tensors)?;
                    for batch in batches {
                        (self.control.progress)(batch.ids.len());
                        at.done = begin + batch.done;
                        at.seconds = earlier_seconds + started.elapsed().as_secs_f64();
                        at.skipped.extend(batch.skipped);
                        let batch = calibrate::Batch { ids: batch.ids, inputs: batch.inputs, held_out };
                        observing.push(&mut histograms, &batch)?;
                        self.keep(&at, &histograms, Moment::WhenDue)?;
                    }
                    Ok::<_, PipelineError>(None)
                }
                // Counts stay on the device until the part is done, so there is nothing to keep before.
                Observer::Device(runner) => {
                    let batches = batches.map(|batch| {
                        (self.control.progress)(batch.ids.len());
                        calibrate::Batch { ids: batch.ids, inputs: batch.inputs, held_out }
                    });
                    match observe_on_device(runner, tensors, provenance.clone(), batches) {
                        Ok((found, usage)) => {
                            histograms.add(found);
                            Ok(Some(usage))
                        }
                        Err(CalibrateError::NoData) => Ok(None),
                        Err(error) => Err(error.into()),
                    }
                }
            });
            if matches!(pass, Err(PassError::Stopped)) && observed.is_ok() && on_host {
                self.keep(&at, &histograms, Moment::Now)?;
            }
            // Why the samples ended early says more than that there were none.
            let pass = pass?;
            if let Some(usage) = observed? {
                device.get_or_insert_with(DeviceUse::default).add(usage);
            }
            if index == 0 && histograms.fit_samples == 0 && !part.is_empty() {
                return Err(CalibrateError::NoData.into());
            }
            at.of_parts.extend(pass.skipped);
            (at.part, at.done, at.skipped) = (index + 1, 0, Vec::new());
            summary.waited += pass.waited;
            summary.reading += pass.reading;
        }
        check_complete(&histograms, tensors)?;
        at.seconds = earlier_seconds + started.elapsed().as_secs_f64();
        self.keep(&at, &histograms, Moment::Now)?;
        summary.skipped = at.of_parts;
        Ok(Observation { histograms, summary, seconds: at.seconds, device })
    }

    fn reading<'b>(&'b self, skipped: &'b [SampleError]) -> PrefetchOptions<'b> {
        PrefetchOptions {
            batch: self.options.batch,
            threads: self.control.threads,
            policy: self.options.policy,
            stop: self.control.stop,
            skipped,
        }
    }

    /// What an interrupted pass left, or nothing done.
    fn resume(&self, provenance: &Provenance) -> Result<(Position, Histograms), PipelineError> {
        let kept = self.control.checkpoints.map(|checkpoints| checkpoints.load::<Position>(STAGE)).transpose()?;
        let Some((at, bytes)) = kept.flatten() else {
            return Ok((Position::default(), Histograms::new(provenance.clone())));
        };
        let histograms = Histograms::from_bytes(&bytes)
            .map_err(|reason| PipelineError::Input(format!("the checkpoint of calibration is damaged: {reason}")))?;
        (self.control.progress)(histograms.samples());
        Ok((at, histograms))
    }

    fn keep(&self, at: &Position, histograms: &Histograms, moment: Moment) -> Result<(), PipelineError> {
        match self.control.checkpoints {
            Some(checkpoints) if moment == Moment::Now || checkpoints.is_due() => {
                let bytes = histograms.to_bytes().map_err(|error| PipelineError::Input(error.to_string()))?;
                Ok(checkpoints.save(STAGE, at, &bytes)?)
            }
            _ => Ok(()),
        }
    }

    /// Makes the table from the histograms of the samples `indices`. For [`Choice::Auto`] every method, and the best
    /// method of each tensor by itself, is fitted on part of the samples; the quantized models run over the held-out
    /// part, and the one whose outputs are nearest to the float model's (highest SQNR of the worst output) wins. Its
    /// thresholds then come from all samples. Bias corrections are judged in the same way.
    pub fn choose(
        &self,
        histograms: &Histograms,
        indices: &[usize],
        options: &ChooseOptions,
    ) -> Result<Chosen, PipelineError> {
        let mut chosen = self.choose_method(histograms, indices, options)?;
        if options.bias_correction && options.scheme.precision == Precision::Int8 {
            self.correct_biases(&mut chosen, &hold_out(indices), &options.scheme)?;
        }
        Ok(chosen)
    }

    /// Measures bias corrections on the fitting samples, and keeps them if they help on the held-out ones.
    fn correct_biases(&self, chosen: &mut Chosen, parts: &Parts, scheme: &SchemeOptions) -> Result<(), PipelineError> {
        let fit = &parts.fit[..parts.fit.len().min(CORRECTED) / self.options.batch.max(1) * self.options.batch.max(1)];
        if fit.is_empty() || parts.held_out.is_empty() {
            return Ok(());
        }
        let quantize_options = QuantizeOptions { scheme: scheme.clone(), ..QuantizeOptions::default() };
        let (float, quantized) = self.subject.analysis_pair(&chosen.table, &quantize_options)?;
        let pair = match Pair::new(&float, &quantized) {
            Err(OperatorError::NothingQuantized { .. }) => return Ok(()),
            pair => pair.map_err(AnalysisError::from)?,
        };
        let samples = Samples { dataset: self.dataset, indices: fit, reading: self.reading(&[]) };
        let bias_corrections = mean_errors(&self.runtime, &pair, samples, self.options.threads)?;
        if bias_corrections.is_empty() {
            return Ok(());
        }
        let corrected = CalibrationTable { bias_corrections, ..chosen.table.clone() };
        let (mut results, measured_on) = self.measure(&[&chosen.table, &corrected], &parts.held_out, scheme)?;
        let (Some(with), Some(without)) = (results.pop(), results.pop()) else { return Ok(()) };
        let helps = worst_sqnr(&with) > worst_sqnr(&without) + margin(measured_on);
        if chosen.candidates.is_empty() {
            let result = without;
            chosen.candidates.push(Candidate { choice: chosen.choice, bias_correction: false, result });
        }
        chosen.candidates.push(Candidate { choice: chosen.choice, bias_correction: true, result: with });
        chosen.measured_on = measured_on;
        if helps {
            chosen.table = corrected;
        }
        Ok(())
    }

    /// Compares the model quantized with each of `tables` with the float model, over at most [`MEASURED`] samples.
    fn measure(
        &self,
        tables: &[&CalibrationTable],
        samples: &[usize],
        scheme: &SchemeOptions,
    ) -> Result<(Vec<ComparisonResult>, usize), PipelineError> {
        let build =
            BuildOptions { threads: self.options.threads, provider: self.options.provider, ..BuildOptions::default() };
        let quantize_options = QuantizeOptions { scheme: scheme.clone(), ..QuantizeOptions::default() };
        let mut runners = tables
            .iter()
            .map(|table| {
                let quantized = quantize(&self.subject.folded, &self.subject.shapes, Some(table), &quantize_options)?;
                Ok(self.runtime.build(&quantized.model, &build)?)
            })
            .collect::<Result<Vec<Box<dyn Runner>>, PipelineError>>()?;
        let mut reference = self.subject.reference(self.runtime, self.options.provider, self.options.threads)?;
        let evaluate_options = EvaluateOptions {
            batch: self.options.batch,
            policy: self.options.policy,
            compare: CompareOptions::default(),
        };
        let quiet = Control { progress: &|_| {}, checkpoints: None, ..self.control };
        let mut targets: Vec<&mut dyn Outputs> = runners.iter_mut().map(|runner| runner as &mut dyn Outputs).collect();
        let samples = &samples[..samples.len().min(MEASURED)];
        let evaluation = evaluate(&mut reference, &mut targets, self.dataset, samples, &evaluate_options, quiet)?;
        let measured_on = evaluation.ids.len();
        let results = evaluation.targets.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok((results, measured_on))
    }

    fn choose_method(
        &self,
        histograms: &Histograms,
        indices: &[usize],
        options: &ChooseOptions,
    ) -> Result<Chosen, PipelineError> {
        let &ChooseOptions { choice, percentile, ref scheme, .. } = options;
        let measurable = histograms.held_out_samples > 0 && histograms.fit_samples > 0;
        if choice != Choice::Auto || !measurable {
            let choice = if choice == Choice::Auto { Choice::Method(Method::Mse) } else { choice };
            let table = single(tables(histograms, percentile, &[choice])?)?;
            return Ok(Chosen { table, choice, candidates: Vec::new(), measured_on: 0 });
        }
        let choices: Vec<Choice> =
            std::iter::once(Choice::Auto).chain(Method::ALL.into_iter().map(Choice::Method)).collect();
        let finals = tables(histograms, percentile, &choices)?;
        let fitted = fitted_tables(histograms, percentile, &finals)?;
        let fitted: Vec<&CalibrationTable> = fitted.iter().collect();
        let (results, measured_on) = self.measure(&fitted, &hold_out(indices).held_out, scheme)?;
        let candidates: Vec<Candidate> = choices
            .iter()
            .zip(results)
            .map(|(&choice, result)| Candidate { choice, bias_correction: false, result })
            .collect();
        let best = best(&candidates, measured_on);
        let table = finals.into_iter().nth(best).ok_or(CalibrateError::NoData)?;
        Ok(Chosen { table, choice: choices[best], candidates, measured_on })
    }
}

/// The same choices with thresholds from the fitting samples only; `auto` keeps the method it picked for each tensor.
fn fitted_tables(
    histograms: &Histograms,
    percentile: f64,
    finals: &[CalibrationTable],
) -> Result<Vec<CalibrationTable>, PipelineError> {
    let mut fit_only = histograms.clone();
    fit_only.held_out.clear();
    fit_only.held_out_samples = 0;
    let fitted = single(tables(&fit_only, percentile, &[Choice::Method(Method::MinMax)])?)?;
    let pick = |table: &CalibrationTable| {
        let mut picked = table.clone();
        for (name, range) in &mut picked.tensors {
            if let Some(amax) = fitted.tensors.get(name).and_then(|fit| fit.candidates.get(&range.method)) {
                range.amax = *amax;
            }
        }
        picked
    };
    Ok(finals.iter().map(pick).collect())
}

fn single(tables: Vec<CalibrationTable>) -> Result<CalibrationTable, PipelineError> {
    tables.into_iter().next().ok_or_else(|| CalibrateError::NoData.into())
}

/// Decibels by which something has to be better on `samples` samples to be taken for better: what few tell is mostly
/// chance.
fn margin(samples: usize) -> f64 {
    1.0 / (samples.max(1) as f64).sqrt()
}

/// The candidate with the highest SQNR of the worst output; min-max unless another leads it by the [`margin`].
fn best(candidates: &[Candidate], measured_on: usize) -> usize {
    let score = |candidate: &Candidate| {
        let lead = if candidate.choice == Choice::Method(Method::MinMax) { margin(measured_on) } else { 0.0 };
        worst_sqnr(&candidate.result) + lead
    };
    let ranked = candidates.iter().enumerate().max_by(|(i, a), (j, b)| score(a).total_cmp(&score(b)).then(j.cmp(i)));
    ranked.map_or(0, |(index, _)| index)
}

/// SQNR of the worst output in decibels; infinite when all are equal, minus infinite with NaN.
pub fn worst_sqnr(result: &ComparisonResult) -> f64 {
    if result.non_finite.values().any(|counts| counts.differing > 0) {
        return f64::NEG_INFINITY;
    }
    result.outputs.iter().map(|output| output.sqnr_db.unwrap_or(f64::INFINITY)).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::OutputMetrics;

    #[test]
    fn every_second_sample_is_held_out_and_a_single_one_never() {
        let indices: Vec<usize> = (10..20).collect();
        let parts = |fit: &[usize], held_out: &[usize]| Parts { fit: fit.to_vec(), held_out: held_out.to_vec() };
        assert_eq!(hold_out(&indices), parts(&[10, 12, 14, 16, 18], &[11, 13, 15, 17, 19]));
        assert_eq!(hold_out(&[3]), parts(&[3], &[]));
        assert_eq!(hold_out(&[3, 4]), parts(&[3], &[4]));
    }

    #[test]
    fn few_samples_must_tell_methods_clearly_apart_from_min_max() {
        let candidate = |choice, sqnr_db| {
            let (name, [max_abs, mean_abs, rel_l2, cosine]) = ("y".to_owned(), [0.0; 4]);
            let outputs = vec![OutputMetrics { name, max_abs, mean_abs, rel_l2, cosine, sqnr_db: Some(sqnr_db) }];
            let result = ComparisonResult { outputs, ..ComparisonResult::default() };
            Candidate { choice, bias_correction: false, result }
        };
        let [auto, minmax, mse] = [Choice::Auto, Choice::Method(Method::MinMax), Choice::Method(Method::Mse)];
        let candidates = [candidate(auto, 20.1), candidate(minmax, 20.0), candidate(mse, 20.4)];
        assert_eq!(best(&candidates, 4), 1);
        assert_eq!(best(&candidates, 100), 2);
        assert_eq!(best(&[candidate(auto, 20.4), candidate(minmax, 19.0), candidate(mse, 20.4)], 1), 0);
    }

    #[test]
    fn shards_hold_out_what_a_single_run_holds_out() {
        for samples in [1, 4, 6, 7, 123] {
            let whole = hold_out(&(100..100 + samples).collect::<Vec<_>>());
            let mut joined = Parts { fit: Vec::new(), held_out: Vec::new() };
            for index in 0..4 {
                let shard = whole.shard(index, 4);
                joined.fit.extend(shard.fit);
                joined.held_out.extend(shard.held_out);
            }
            joined.fit.sort_unstable();
            joined.held_out.sort_unstable();
            assert_eq!(joined, whole);
        }
    }
}
