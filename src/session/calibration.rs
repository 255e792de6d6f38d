//! Ranges from data: one pass over the calibration samples, then the choice of the method.

use std::{collections::BTreeSet, time::Instant};

use serde::{Deserialize, Serialize};

use super::{Control, PipelineError, checkpoint::Checkpoints, model::Subject};
use crate::{
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, Runner,
        cuda::Device,
        onnxruntime::{DeviceRunner, OnnxRuntime},
    },
    calibrate::{
        self, CalibrateError, DeviceUse, Histograms, Observing, Provenance, check_complete, observe_on_device,
    },
    dataset::{BadPolicy, Dataset, PassError, PassSummary, PrefetchOptions, SampleError, prefetch},
};

mod choice;
mod magnitudes;

pub use choice::{Candidate, ChooseOptions, Chosen, judged_kinds, worst_sqnr};

/// Every n-th calibration sample is held out to measure methods on: with fewer, the choice is left to chance, while
/// thresholds hardly change with the other half.
const HOLD_OUT: usize = 2;
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
    /// GPU convolutions may round otherwise in another batch, so smaller ones are filled up to this.
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
        let Some(index) = self.options.provider.gpu() else {
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
                // Counts come from the device only when they are kept.
                Observer::Device(runner) => {
                    let mut used = None;
                    loop {
                        let begun = at.done;
                        let until_due = std::iter::from_fn(|| {
                            let is_due = self.control.checkpoints.is_some_and(Checkpoints::is_due);
                            let batch = if at.done > begun && is_due { None } else { batches.next() }?;
                            (self.control.progress)(batch.ids.len());
                            at.done = begin + batch.done;
                            at.skipped.extend(batch.skipped);
                            Some(calibrate::Batch { ids: batch.ids, inputs: batch.inputs, held_out })
                        });
                        let whole = self.options.batch;
                        match observe_on_device(runner, tensors, provenance.clone(), whole, until_due) {
                            Ok((found, usage)) => {
                                histograms.add(found);
                                used.get_or_insert_with(DeviceUse::default).add(usage);
                            }
                            Err(CalibrateError::NoData) => return Ok(used),
                            Err(error) => return Err(error.into()),
                        }
                        at.seconds = earlier_seconds + started.elapsed().as_secs_f64();
                        self.keep(&at, &histograms, Moment::WhenDue)?;
                    }
                }
            });
            if matches!(pass, Err(PassError::Stopped)) && observed.is_ok() {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_sample_is_held_out_and_a_single_one_never() {
        let indices: Vec<usize> = (10..20).collect();
        let parts = |fit: &[usize], held_out: &[usize]| Parts { fit: fit.to_vec(), held_out: held_out.to_vec() };
        assert_eq!(hold_out(&indices), parts(&[10, 12, 14, 16, 18], &[11, 13, 15, 17, 19]));
        assert_eq!(hold_out(&[3]), parts(&[3], &[]));
        assert_eq!(hold_out(&[3, 4]), parts(&[3], &[4]));
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
