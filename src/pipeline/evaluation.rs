//! The same samples through a reference and any number of targets, batch by batch.

use std::{collections::BTreeMap, path::Path};

use super::{Control, PipelineError};
use crate::{
    backend::Runner,
    compare::{CompareOptions, Comparison, ComparisonResult, OutputsWriter, Sample, SavedOutputs},
    dataset::{BadPolicy, Batch, Dataset, PassSummary, PrefetchOptions, prefetch},
    tensor::TensorMap,
};

/// Gives the outputs of samples: by running a model, or from a file.
pub trait Outputs {
    /// Names of the outputs, in order.
    fn names(&self) -> Vec<String>;

    /// Outputs of a batch, of which `first` samples were asked for before.
    fn give(&mut self, batch: &Batch, first: usize) -> Result<TensorMap, PipelineError>;
}

impl Outputs for Box<dyn Runner> {
    fn names(&self) -> Vec<String> {
        self.outputs().iter().map(|info| info.name.clone()).collect()
    }

    fn give(&mut self, batch: &Batch, _first: usize) -> Result<TensorMap, PipelineError> {
        Ok(self.infer(&batch.inputs)?)
    }
}

impl Outputs for SavedOutputs {
    fn names(&self) -> Vec<String> {
        self.outputs()
    }

    fn give(&mut self, batch: &Batch, first: usize) -> Result<TensorMap, PipelineError> {
        Ok(self.batch(first, &names_of(batch))?)
    }
}

/// Passes outputs on and saves them.
pub struct Recorder {
    inner: Box<dyn Outputs>,
    writer: OutputsWriter,
}

impl Recorder {
    /// Records what `inner` gives.
    pub fn new(inner: Box<dyn Outputs>) -> Result<Self, PipelineError> {
        let writer = OutputsWriter::new(&inner.names())?;
        Ok(Self { inner, writer })
    }

    /// Writes what was recorded.
    pub fn finish(self, path: &Path) -> Result<(), PipelineError> {
        Ok(self.writer.finish(path)?)
    }
}

impl Outputs for Recorder {
    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn give(&mut self, batch: &Batch, first: usize) -> Result<TensorMap, PipelineError> {
        let outputs = self.inner.give(batch, first)?;
        self.writer.push(&names_of(batch), &outputs)?;
        Ok(outputs)
    }
}

fn names_of(batch: &Batch) -> Vec<&str> {
    batch.ids.iter().map(String::as_str).collect()
}

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
    reference: &mut dyn Outputs,
    targets: &mut [&mut dyn Outputs],
    dataset: &dyn Dataset,
    indices: &[usize],
    options: &EvaluateOptions,
    control: Control<'_>,
) -> Result<Evaluation, PipelineError> {
    let names = reference.names();
    let mut own = Comparison::new(&names, &names, options.compare.clone())?;
    let mut comparisons: Vec<Result<Comparison, PipelineError>> =
        targets.iter().map(|target| Ok(Comparison::new(&names, &target.names(), options.compare.clone())?)).collect();
    let mut ids = Vec::new();
    let prefetch_options =
        PrefetchOptions { batch: options.batch, threads: control.threads, policy: options.policy, stop: control.stop };
    let (outcome, summary) = prefetch(dataset, indices, prefetch_options, |batches| {
        for batch in batches {
            let expected = reference.give(&batch, ids.len())?;
            let samples: Vec<Sample<'_>> = batch
                .indices
                .iter()
                .zip(&batch.ids)
                .map(|(&index, id)| Sample { id, label: dataset.label(index), mask: None })
                .collect();
            own.push(&samples, &expected, &expected)?;
            for (target, comparison) in targets.iter_mut().zip(&mut comparisons) {
                let Ok(running) = comparison else { continue };
                let given = target.give(&batch, ids.len());
                let pushed = given.and_then(|given| Ok(running.push(&samples, &expected, &given)?));
                if let Err(error) = pushed {
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

/// Class names as a list by index; classes without a name keep an empty place.
pub fn class_names(names: &BTreeMap<u32, String>) -> Vec<String> {
    let count = names.keys().next_back().map_or(0, |&last| last as usize + 1);
    // A hostile index must not decide how much memory is taken.
    let count = count.min(1 << 20);
    (0..count).map(|index| names.get(&(index as u32)).cloned().unwrap_or_default()).collect()
}
