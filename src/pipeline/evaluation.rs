//! The same samples through a reference and any number of targets, batch by batch.

use std::collections::BTreeMap;

use super::{Control, PipelineError};
use crate::{
    backend::Runner,
    compare::{CompareOptions, Comparison, ComparisonResult, Sample},
    dataset::{BadPolicy, Dataset, PassSummary, PrefetchOptions, prefetch},
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
    /// What the pass over the samples was like.
    pub summary: PassSummary,
    /// Names of the samples compared, in order.
    pub ids: Vec<String>,
}

/// Compares targets with a reference over the samples `indices`.
///
/// A sample that the reference cannot run is an error; a target that fails is given up and reported.
pub fn evaluate(
    reference: &mut dyn Runner,
    targets: &mut [Box<dyn Runner>],
    dataset: &dyn Dataset,
    indices: &[usize],
    options: &EvaluateOptions,
    control: Control<'_>,
) -> Result<Evaluation, PipelineError> {
    let names = |runner: &dyn Runner| runner.outputs().iter().map(|info| info.name.clone()).collect::<Vec<_>>();
    let reference_names = names(reference);
    let mut comparisons: Vec<Result<Comparison, PipelineError>> = targets
        .iter()
        .map(|target| Ok(Comparison::new(&reference_names, &names(&**target), options.compare.clone())?))
        .collect();
    let mut own = Comparison::new(&reference_names, &reference_names, options.compare.clone())?;
    let mut ids = Vec::new();
    let prefetch_options =
        PrefetchOptions { batch: options.batch, threads: control.threads, policy: options.policy, stop: control.stop };
    let (outcome, summary) = prefetch(dataset, indices, prefetch_options, |batches| {
        for batch in batches {
            let expected = reference.infer(&batch.inputs)?;
            let samples: Vec<Sample<'_>> = batch
                .indices
                .iter()
                .zip(&batch.ids)
                .map(|(&index, id)| Sample { id, label: dataset.label(index), mask: None })
                .collect();
            own.push(&samples, &expected, &expected)?;
            for (target, comparison) in targets.iter_mut().zip(&mut comparisons) {
                let Ok(running) = comparison else { continue };
                if let Err(error) = push(running, &mut **target, &samples, &batch.inputs, &expected) {
                    *comparison = Err(error);
                }
            }
            (control.progress)(batch.ids.len());
            ids.extend(batch.ids);
        }
        Ok::<(), PipelineError>(())
    });
    outcome?;
    let summary = summary?;
    let targets = comparisons.into_iter().map(|comparison| comparison.map(Comparison::finish)).collect();
    Ok(Evaluation { reference: own.finish(), targets, summary, ids })
}

fn push(
    comparison: &mut Comparison,
    target: &mut dyn Runner,
    samples: &[Sample<'_>],
    inputs: &TensorMap,
    expected: &TensorMap,
) -> Result<(), PipelineError> {
    let given = target.infer(inputs)?;
    Ok(comparison.push(samples, expected, &given)?)
}

/// Class names as a list by index; classes without a name keep an empty place.
pub fn class_names(names: &BTreeMap<u32, String>) -> Vec<String> {
    let count = names.keys().next_back().map_or(0, |&last| last as usize + 1);
    // A hostile index must not decide how much memory is taken.
    let count = count.min(1 << 20);
    (0..count).map(|index| names.get(&(index as u32)).cloned().unwrap_or_default()).collect()
}
