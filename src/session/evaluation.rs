//! The same samples through a reference and any number of targets, batch by batch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::outputs::Recorder;
use super::{Control, PipelineError, checkpoint::Checkpoints};
pub use crate::pass::Outputs;
use crate::{
    backend::{BackendError, Given},
    compare::{Answers, CompareOptions, Comparison, ComparisonResult, OutputsWriter, Sample},
    dataset::{BadPolicy, Dataset, PassError, PassSummary, PrefetchOptions},
    pass::{self, Consumer, Part, Ran, Samples},
    tensor::TensorMap,
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
    /// The batch that had to be cut down to for lack of memory, if it was.
    pub fitting_batch: Option<usize>,
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
    let (counted, ran) = count(reference, targets, pairs, dataset, indices, options, control)?;
    let finish = |comparisons: Vec<Result<Comparison, PipelineError>>| {
        comparisons.into_iter().map(|comparison| comparison.map(Comparison::finish)).collect::<Vec<_>>()
    };
    let Counted { ids, own, targets, pairs, kept } = counted;
    let (mut reference, mut targets, pairs) = (own.finish(), finish(targets), finish(pairs));
    if let Some(metric) = &options.compare.metric {
        // The outputs of one source at a time are in memory.
        let results =
            std::iter::once(Some(&mut reference)).chain(targets.iter_mut().map(|result| result.as_mut().ok()));
        for (result, writer) in results.zip(kept).filter_map(|(result, writer)| Some((result?, writer))) {
            let (ids, outputs) = writer.read_back()?;
            let [outputs] = <[TensorMap; 1]>::try_from(outputs).map_err(|_| PipelineError::input(CHANGING))?;
            result.own_metric = Some(metric.value(vec![Answers { ids, outputs }])?);
        }
    }
    let Ran { summary, fitting_batch, .. } = ran;
    Ok(Evaluation { reference, targets, pairs, summary, ids, fitting_batch })
}

const CHANGING: &str = "a metric of one's own takes each output of all samples as one array, and their shapes change from sample \
                        to sample; leave the metric out";

/// What [`evaluate_pairs`] counted, before figures are made of it: parts of the samples go on from each other.
pub(super) struct Counted {
    /// Names of the samples compared, in order.
    pub ids: Vec<String>,
    /// The reference against itself.
    pub own: Comparison,
    pub targets: Vec<Result<Comparison, PipelineError>>,
    pub pairs: Vec<Result<Comparison, PipelineError>>,
    /// The outputs of reference and targets, where a metric of the caller's own is to see all of them.
    pub kept: Vec<OutputsWriter>,
}

/// Counts; see [`evaluate_pairs`].
pub(super) fn count(
    reference: &mut dyn Outputs,
    targets: &mut [&mut dyn Outputs],
    pairs: &[(usize, usize)],
    dataset: &dyn Dataset,
    indices: &[usize],
    options: &EvaluateOptions,
    control: Control<'_>,
) -> Result<(Counted, Ran), PipelineError> {
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
    let reading = PrefetchOptions {
        batch: options.batch,
        threads: control.threads,
        policy: options.policy,
        stop: control.stop,
        skipped: &[],
    };
    let mut at = std::mem::take(&mut state.position.at);
    let mut sources: Vec<&mut dyn Outputs> = Vec::with_capacity(1 + targets.len());
    sources.push(reference);
    sources.extend(targets.iter_mut().map(|target| &mut **target as &mut dyn Outputs));
    let keeps = options.compare.metric.is_some();
    let kept = sources.iter().filter(|_| keeps).map(|source| OutputsWriter::new(&source.names()));
    let kept = kept.collect::<Result<_, _>>()?;
    let mut evaluating = Evaluating { state, pairs, failures, checkpoints: control.checkpoints, kept };
    let samples = Samples { dataset, indices, reading };
    let ran = samples.go_on(&mut at, control.progress, &mut sources, &mut evaluating);
    if matches!(ran, Ok(_) | Err(PipelineError::Pass(PassError::Stopped))) {
        evaluating.save(&at)?;
    }
    let Evaluating { state: State { position, own, targets, pairs }, kept, .. } = evaluating;
    Ok((Counted { ids: position.ids, own, targets, pairs, kept }, ran?))
}

/// Compares what the sources of one pass give: the reference, then the targets.
struct Evaluating<'a> {
    state: State,
    pairs: &'a [(usize, usize)],
    /// Targets that had failed before there was a checkpoint.
    failures: usize,
    checkpoints: Option<&'a Checkpoints>,
    /// As [`Counted::kept`].
    kept: Vec<OutputsWriter>,
}

impl Evaluating<'_> {
    fn save(&mut self, at: &pass::Position) -> Result<(), PipelineError> {
        match self.checkpoints {
            Some(checkpoints) if self.state.failures() == self.failures => {
                self.state.position.at = at.clone();
                self.state.save(checkpoints)
            }
            _ => Ok(()),
        }
    }
}

impl Consumer for Evaluating<'_> {
    type Error = PipelineError;

    fn take(&mut self, part: &Part<'_>, given: &[Option<&Given<'_>>]) -> Result<(), PipelineError> {
        let State { position, own, targets, pairs } = &mut self.state;
        for (writer, given) in self.kept.iter_mut().zip(given).filter_map(|(writer, given)| Some((writer, (*given)?))) {
            writer.push_part(part, &given.outputs.to_host()?)?;
        }
        let Some((Some(expected), given)) = given.split_first() else { return Ok(()) };
        let samples = Sample::of_part(part);
        own.push(&samples, &expected.outputs, &expected.outputs)?;
        for (comparison, given) in targets.iter_mut().zip(given) {
            if let Some(given) = given {
                push(comparison, |running| Ok(running.push(&samples, &expected.outputs, &given.outputs)?));
            }
        }
        for (&(a, b), comparison) in self.pairs.iter().zip(pairs) {
            push(comparison, |running| match (given[a], given[b], &targets[a], &targets[b]) {
                (Some(a), Some(b), Ok(_), Ok(_)) => Ok(running.push(&samples, &a.outputs, &b.outputs)?),
                _ => Err(PipelineError::Input("one of both targets could not be run".to_owned())),
            });
        }
        position.ids.extend_from_slice(part.ids);
        Ok(())
    }

    fn done(&mut self, at: &pass::Position) -> Result<(), PipelineError> {
        if self.checkpoints.is_some_and(Checkpoints::is_due) { self.save(at) } else { Ok(()) }
    }

    fn wants(&self, source: usize) -> bool {
        source.checked_sub(1).is_none_or(|target| self.state.targets[target].is_ok())
    }

    fn failed(&mut self, source: usize, error: BackendError) -> Result<(), PipelineError> {
        match source.checked_sub(1) {
            None => Err(error.into()),
            Some(target) => {
                self.state.targets[target] = Err(error.into());
                Ok(())
            }
        }
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
    at: pass::Position,
    /// Names of the good samples.
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
        backend::{Inputs, Show},
        dataset::{InputSpec, RandomDataset},
        tensor::Tensor,
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

        fn give(&mut self, part: &Part<'_>, _: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
            let factor = self.0.ok_or_else(|| BackendError::Library("it does not run".to_owned()))?;
            let x = &part.inputs["x"];
            let values = x.to_f32().iter().map(|value| value * factor).collect();
            let outputs = TensorMap::from([("y".to_owned(), Tensor::from_f32(x.shape().to_vec(), values).unwrap())]);
            show(&Given { inputs: part.inputs.into(), outputs: (&outputs).into() }).map_err(BackendError::Visitor)
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
