//! The same samples through a reference and any number of targets, batch by batch.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use serde::{Deserialize, Serialize};

pub use super::outputs::{Given, Outputs, Recorder, Sender};
use super::{Control, PipelineError, checkpoint::Checkpoints};
use crate::{
    backend::{
        BackendError,
        cuda::{PairComparer, Staged, send_ahead},
    },
    compare::{CompareOptions, Comparison, ComparisonResult, Sample},
    dataset::{BadPolicy, Batch, Dataset, PassError, PassSummary, PrefetchOptions, SampleError, prefetch},
};

/// Options of [`evaluate`].
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// Samples in one call.
    pub batch: usize,
    /// How many bad samples are tolerated.
    pub policy: BadPolicy,
    /// What is compared, and how.
    pub compare: CompareOptions,
}

/// What [`evaluate`] found.
pub struct Evaluation {
    /// The reference against itself: its accuracy on labelled samples.
    pub reference: ComparisonResult,
    /// One for each target, in order; a target that fails does not stop the others.
    pub targets: Vec<Result<ComparisonResult, PipelineError>>,
    /// One for each pair of targets, in order (see [`evaluate_pairs`]).
    pub pairs: Vec<Result<ComparisonResult, PipelineError>>,
    /// What the pass over the samples was like.
    pub summary: PassSummary,
    /// Names of the samples compared, in order.
    pub ids: Vec<String>,
    /// The batch that the GPU was cut down to for lack of memory, if it was.
    pub halved_to: Option<usize>,
}

/// Compares targets with a reference over the samples `indices`.
///
/// A sample that the reference cannot run is an error; a target that fails is given up and reported.
pub fn evaluate(
    reference: &mut dyn Outputs,
    targets: &mut [&mut dyn Outputs],
    dataset: &dyn Dataset,
    indices: &[usize],
    options: &EvaluateOptions,
    control: Control<'_>,
) -> Result<Evaluation, PipelineError> {
    evaluate_pairs(reference, targets, &[], dataset, indices, options, control)
}

/// The same, and compares targets with each other: `(a, b)` takes target `a` as the reference of target `b`. What a
/// quantized model loses in one runtime is told apart this way from what an engine built from it adds.
pub fn evaluate_pairs(
    reference: &mut dyn Outputs,
    targets: &mut [&mut dyn Outputs],
    pairs: &[(usize, usize)],
    dataset: &dyn Dataset,
    indices: &[usize],
    options: &EvaluateOptions,
    control: Control<'_>,
) -> Result<Evaluation, PipelineError> {
    let names = reference.names();
    let new = |a: &[String], b: &[String]| Ok(Comparison::new(a, b, options.compare.clone())?);
    let mut state = State {
        position: Position::default(),
        own: Comparison::new(&names, &names, options.compare.clone())?,
        targets: targets.iter().map(|target| new(&names, &target.names())).collect(),
        pairs: pairs.iter().map(|&(a, b)| new(&targets[a].names(), &targets[b].names())).collect(),
    };
    // What a target failed with is not kept: after a failure the checkpoint stays as it was before.
    let failures = state.failures();
    if let Some(checkpoints) = control.checkpoints {
        state.resume(checkpoints)?;
        (control.progress)(state.position.ids.len());
    }
    let (begin, known) = (state.position.done, state.position.skipped.clone());
    let rest = indices.get(begin..).unwrap_or_default();
    let reading = PrefetchOptions {
        batch: options.batch,
        threads: control.threads,
        policy: options.policy,
        stop: control.stop,
        skipped: &known,
    };
    let mut differences = Differences::default();
    let sender = reference.sender().or_else(|| targets.iter_mut().find_map(|target| target.sender()));
    let mut stopped = false;
    let (outcome, summary) = prefetch(dataset, rest, reading, |batches| {
        let mut compare = |mut batch: Batch, mut sent: Option<Staged>| {
            // Batches that were sent ahead may be there still.
            stopped |= control.stop.load(Ordering::Relaxed);
            if stopped {
                return Ok(sent);
            }
            let first = state.position.ids.len();
            let expected = reference.give(&batch, &mut sent, first)?;
            let samples = Sample::of_batch(&batch);
            differences.push(&mut state.own, &samples, &expected, &expected)?;
            let mut outputs: Vec<Option<Given>> = targets.iter().map(|_| None).collect();
            for ((target, comparison), output) in targets.iter_mut().zip(&mut state.targets).zip(&mut outputs) {
                push(comparison, |running| {
                    let given = target.give(&batch, &mut sent, first)?;
                    differences.push(running, &samples, &expected, &given)?;
                    *output = Some(given);
                    Ok(())
                });
            }
            for (&(a, b), comparison) in pairs.iter().zip(&mut state.pairs) {
                push(comparison, |running| match (&outputs[a], &outputs[b]) {
                    (Some(a), Some(b)) => differences.push(running, &samples, a, b),
                    _ => Err(PipelineError::Input("one of both targets could not be run".to_owned())),
                });
            }
            (control.progress)(batch.ids.len());
            state.position.done = begin + batch.done;
            state.position.ids.append(&mut batch.ids);
            state.position.skipped.append(&mut batch.skipped);
            if let Some(checkpoints) = control.checkpoints.filter(|checkpoints| checkpoints.is_due())
                && state.failures() == failures
            {
                state.save(checkpoints)?;
            }
            Ok::<_, PipelineError>(sent)
        };
        if let Some(sender) = &sender {
            return send_ahead(batches, |batch, used| sender.send(batch, used), compare).map(drop);
        }
        for batch in batches {
            compare(batch, None)?;
        }
        Ok(())
    });
    outcome?;
    let summary = if stopped { Err(PassError::Stopped) } else { summary };
    if let Some(checkpoints) = control.checkpoints
        && state.failures() == failures
        && matches!(summary, Ok(_) | Err(PassError::Stopped))
    {
        state.save(checkpoints)?;
    }
    let summary = summary?;
    let halved = reference.halved_to().into_iter().chain(targets.iter_mut().filter_map(|target| target.halved_to()));
    let halved_to = halved.min();
    let finish = |comparisons: Vec<Result<Comparison, PipelineError>>| {
        comparisons.into_iter().map(|comparison| comparison.map(Comparison::finish)).collect()
    };
    let State { position, own, targets, pairs } = state;
    let (reference, targets, pairs) = (own.finish(), finish(targets), finish(pairs));
    Ok(Evaluation { reference, targets, pairs, summary, ids: position.ids, halved_to })
}

/// What compares outputs on a GPU, once it is needed.
#[derive(Default)]
struct Differences {
    on_gpu: Option<PairComparer>,
}

impl Differences {
    /// Adds a batch to a comparison: on the GPU where both sides were left there.
    fn push(
        &mut self,
        comparison: &mut Comparison,
        samples: &[Sample<'_>],
        reference: &Given,
        target: &Given,
    ) -> Result<(), PipelineError> {
        let both = reference.device().zip(target.device());
        let Some((reference, target)) = both.filter(|(a, b)| a.device().info().index == b.device().info().index) else {
            return Ok(comparison.push(samples, reference.host()?, target.host()?)?);
        };
        let comparer = match &mut self.on_gpu {
            Some(comparer) => comparer,
            none => {
                let device = reference.device();
                let stream = device.stream().map_err(BackendError::from)?;
                none.insert(PairComparer::new(device, &stream).map_err(BackendError::from)?)
            }
        };
        Ok(comparison.push_on_device(samples, reference, target, comparer)?)
    }
}

/// Name of the checkpoint.
const STAGE: &str = "evaluation";

/// Where an evaluation stands.
struct State {
    position: Position,
    own: Comparison,
    targets: Vec<Result<Comparison, PipelineError>>,
    pairs: Vec<Result<Comparison, PipelineError>>,
}

#[derive(Default, Serialize, Deserialize)]
struct Position {
    /// Samples that are done, bad ones included.
    done: usize,
    /// The bad ones.
    skipped: Vec<SampleError>,
    /// Names of the others.
    ids: Vec<String>,
}

impl State {
    fn failures(&self) -> usize {
        self.targets.iter().chain(&self.pairs).filter(|comparison| comparison.is_err()).count()
    }

    fn save(&self, checkpoints: &Checkpoints) -> Result<(), PipelineError> {
        let running = self.targets.iter().chain(&self.pairs).map(|comparison| comparison.as_ref().ok());
        let kept = (&self.position, &self.own, running.collect::<Vec<Option<&Comparison>>>());
        Ok(checkpoints.save(STAGE, &kept, &[])?)
    }

    /// Takes over what an interrupted evaluation of the same targets left, if anything.
    fn resume(&mut self, checkpoints: &Checkpoints) -> Result<(), PipelineError> {
        let kept = checkpoints.load::<(Position, Comparison, Vec<Option<Comparison>>)>(STAGE)?;
        let Some(((position, own, running), _)) = kept else { return Ok(()) };
        if running.len() != self.targets.len() + self.pairs.len() {
            return Ok(());
        }
        for (mine, kept) in self.targets.iter_mut().chain(&mut self.pairs).zip(running) {
            if let Some(kept) = kept {
                *mine = Ok(kept);
            }
        }
        (self.position, self.own) = (position, own);
        Ok(())
    }
}

/// Goes on with a comparison that has not failed; a failure ends it.
fn push(
    comparison: &mut Result<Comparison, PipelineError>,
    step: impl FnOnce(&mut Comparison) -> Result<(), PipelineError>,
) {
    let failed = comparison.as_mut().ok().and_then(|running| step(running).err());
    if let Some(error) = failed {
        *comparison = Err(error);
    }
}

/// Class names as a list by index; classes without a name keep an empty place.
pub fn class_names(names: &BTreeMap<u32, String>) -> Vec<String> {
    let count = names.keys().next_back().map_or(0, |&last| last as usize + 1);
    // A hostile index must not decide how much memory is taken.
    let count = count.min(1 << 20);
    (0..count).map(|index| names.get(&(index as u32)).cloned().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::{
        dataset::{InputSpec, RandomDataset},
        tensor::{Tensor, TensorMap},
    };

    #[test]
    fn missing_class_names_stay_empty() {
        let names = BTreeMap::from([(1, "b".to_owned()), (3, "d".to_owned())]);
        assert_eq!(class_names(&names), ["", "b", "", "d"]);
    }

    /// Gives its input, multiplied; or nothing.
    struct Scaled(Option<f32>);

    impl Outputs for Scaled {
        fn names(&self) -> Vec<String> {
            vec!["y".to_owned()]
        }

        fn give(&mut self, batch: &Batch, _sent: &mut Option<Staged>, _first: usize) -> Result<Given, PipelineError> {
            let factor = self.0.ok_or_else(|| PipelineError::Input("it does not run".to_owned()))?;
            let x = &batch.inputs["x"];
            let values = x.to_f32().iter().map(|value| value * factor).collect();
            Ok(TensorMap::from([("y".to_owned(), Tensor::from_f32(x.shape().to_vec(), values).unwrap())]).into())
        }
    }

    #[test]
    fn the_error_of_quantization_is_told_from_what_an_engine_adds() {
        let input = InputSpec { name: "x".to_owned(), element_type: None, shape: vec![None, Some(8)] };
        let dataset = RandomDataset::new(&[input], 5, 1).unwrap();
        let options = EvaluateOptions {
            batch: 2,
            policy: BadPolicy { max_share: 0.0, strict: true },
            compare: CompareOptions::default(),
        };
        let control = Control { threads: 1, stop: &AtomicBool::new(false), progress: &|_| {}, checkpoints: None };
        let (mut reference, mut model) = (Scaled(Some(1.0)), Scaled(Some(1.25)));
        let (mut engine, mut broken) = (Scaled(Some(1.5)), Scaled(None));
        let mut targets: [&mut dyn Outputs; 3] = [&mut engine, &mut broken, &mut model];
        let pairs = [(2, 0), (2, 1)];
        let found = evaluate_pairs(&mut reference, &mut targets, &pairs, &dataset, &[0, 1, 2, 3, 4], &options, control)
            .unwrap();
        let sqnr_db = |result: &Result<ComparisonResult, PipelineError>| {
            result.as_ref().ok().and_then(|result| Some(result.outputs[0].sqnr_db? as f32))
        };
        // Errors of 0.5 and 0.25 of the reference, and of 0.25 of 1.25 of it.
        let expected = [1.0 / 0.5, 1.0 / 0.25, 1.25 / 0.25].map(|ratio: f32| 20.0 * ratio.log10());
        let close = |measured: Option<f32>, expected: f32| (measured.unwrap() - expected).abs() < 1e-4;
        assert!(close(sqnr_db(&found.targets[0]), expected[0]));
        assert!(close(sqnr_db(&found.targets[2]), expected[1]));
        assert!(close(sqnr_db(&found.pairs[0]), expected[2]));
        assert!(found.targets[1].is_err() && found.pairs[1].is_err(), "one failure leaves the others alone");
        assert_eq!(found.ids.len(), 5);
    }
}
