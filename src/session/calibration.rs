//! Ranges from data: one pass over the calibration samples, then the choice of the method.

use std::{collections::BTreeSet, time::Instant};

use serde::{Deserialize, Serialize};

use super::{Control, PipelineError, checkpoint::Checkpoints, model::Subject};
use crate::{
    backend::{Backend, BuildOptions, ExecutionProvider, Given, onnxruntime::OnnxRuntime},
    calibrate::{CalibrateError, Histograms, Observing, Provenance},
    dataset::{BadPolicy, Dataset, PassError, PrefetchOptions, SampleError},
    pass::{self, Consumer, Part, Ran, Samples},
};

mod choice;
mod magnitudes;
mod recovering;

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
    /// Where that part stands.
    at: pass::Position,
    /// Bad samples of the parts before.
    of_parts: Vec<SampleError>,
    /// Time spent.
    seconds: f64,
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
    /// What the pass was like.
    pub ran: Ran,
    /// Wall time, reading included.
    pub seconds: f64,
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

/// Counts activations and keeps the counts.
struct Keeping<'a, 'o> {
    observing: Observing<'o>,
    calibrator: &'a Calibrator<'a>,
    at: Position,
    started: Instant,
    /// Time spent before.
    earlier: f64,
}

impl Keeping<'_, '_> {
    fn keep(&mut self) -> Result<(), PipelineError> {
        self.at.seconds = self.earlier + self.started.elapsed().as_secs_f64();
        let Some(checkpoints) = self.calibrator.control.checkpoints else { return Ok(()) };
        let bytes = self.observing.histograms()?.to_bytes();
        let bytes = bytes.map_err(|error| PipelineError::Input(error.to_string()))?;
        Ok(checkpoints.save(STAGE, &self.at, &bytes)?)
    }
}

impl Consumer for Keeping<'_, '_> {
    type Error = PipelineError;

    fn take(&mut self, part: &Part<'_>, given: &[Option<&Given<'_>>]) -> Result<(), PipelineError> {
        Ok(self.observing.take(part, given)?)
    }

    fn done(&mut self, at: &pass::Position) -> Result<(), PipelineError> {
        // Counts come from a device only when they are kept.
        if self.calibrator.control.checkpoints.is_some_and(Checkpoints::is_due) {
            self.at.at = at.clone();
            self.keep()?;
        }
        Ok(())
    }

    fn may_repeat(&self, error: &PipelineError) -> bool {
        matches!(error, PipelineError::Calibrate(error) if self.observing.may_repeat(error))
    }
}

impl Calibrator<'_> {
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
        let mut runner = self.runtime.build(&self.subject.folded, &build)?;
        let (at, histograms) = self.resume(provenance)?;
        let observing = Observing::new(&*runner, tensors, histograms)?;
        let earlier = at.seconds;
        let mut keeping = Keeping { observing, calibrator: self, at, started: Instant::now(), earlier };
        let mut total = Ran::default();
        for (index, part) in [&parts.fit, &parts.held_out].into_iter().enumerate().skip(keeping.at.part) {
            keeping.observing.hold_out(index == 1)?;
            let samples = Samples { dataset: self.dataset, indices: part, reading: self.reading() };
            let mut at = keeping.at.at.clone();
            let ran = samples.go_on(&mut at, self.control.progress, &mut [&mut runner], &mut keeping);
            keeping.at.at = at;
            if matches!(ran, Err(PipelineError::Pass(PassError::Stopped))) {
                keeping.keep()?;
            }
            total.add(ran?);
            if index == 0 && keeping.observing.histograms()?.fit_samples == 0 && !part.is_empty() {
                return Err(keeping.at.at.skipped.first().map_or_else(
                    || CalibrateError::NoData.into(),
                    |first| {
                        PipelineError::Input(format!("no sample to calibrate on can be read; the first is {first}"))
                    },
                ));
            }
            let done = std::mem::take(&mut keeping.at.at);
            keeping.at.of_parts.extend(done.skipped);
            keeping.at.part = index + 1;
        }
        keeping.keep()?;
        let Keeping { observing, at, .. } = keeping;
        total.summary.skipped = at.of_parts;
        Ok(Observation { histograms: observing.finish()?, ran: total, seconds: at.seconds })
    }

    fn reading(&self) -> PrefetchOptions<'_> {
        PrefetchOptions {
            batch: self.options.batch,
            threads: self.control.threads,
            policy: self.options.policy,
            stop: self.control.stop,
            skipped: &[],
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
