//! What gives the outputs of samples: a model that runs, or anything else that knows them.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    backend::{Accelerator, BackendError, Given, Inputs, Runner, Show, TensorInfo},
    dataset::{Batch, Scene},
    tensor::{Tensor, TensorMap},
};

/// Samples that go through the sources of a pass together.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Good samples of the pass before these.
    pub first: usize,
    /// Indices in the data set.
    pub indices: &'a [usize],
    /// Names of the samples.
    pub ids: &'a [String],
    /// Their right classes, where they are known.
    pub labels: &'a [Option<u32>],
    /// Right classes of their pixels, where they are known.
    pub masks: &'a [Option<Tensor>],
    /// What is to be found in them, where that is known.
    pub scenes: &'a [Option<Scene>],
    /// The model's inputs, stacked along the first axis.
    pub inputs: &'a TensorMap,
    /// How often the last sample ran: more than once where the first source's batch was filled up.
    pub copies: usize,
}

impl<'a> Part<'a> {
    /// Samples `range` of a batch, with their inputs.
    pub(super) fn of(batch: &'a Batch, range: std::ops::Range<usize>, first: usize, inputs: &'a TensorMap) -> Self {
        Self {
            first: first + range.start,
            indices: &batch.indices[range.clone()],
            ids: &batch.ids[range.clone()],
            labels: &batch.labels[range.clone()],
            masks: &batch.masks[range.clone()],
            scenes: &batch.scenes[range],
            inputs,
            copies: 1,
        }
    }

    /// Rows of the inputs: as many as samples, but for a sample that is a batch itself.
    pub(super) fn rows(&self) -> usize {
        let samples = self.ids.len();
        let mut extents = self.inputs.values().map(|tensor| tensor.shape().first().copied());
        let first = extents.next().flatten().filter(|_| samples == 1);
        first.filter(|_| extents.all(|extent| extent == first)).unwrap_or(samples)
    }

    /// Names of the samples.
    pub fn names(&self) -> Vec<&'a str> {
        self.ids.iter().map(String::as_str).collect()
    }
}

/// Gives the outputs of samples: by running a model, or from a file.
pub trait Outputs {
    /// Names of the outputs, in order.
    fn names(&self) -> Vec<String>;

    /// Shows the outputs of a part, whose inputs a model takes from `inputs`.
    ///
    /// # Errors
    /// The model cannot be run, or the samples are not known.
    fn give(&mut self, part: &Part<'_>, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError>;

    /// What batches it takes.
    fn taking(&self) -> Taking {
        Taking::default()
    }

    /// The device that it runs on and leaves its outputs on, if any.
    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        None
    }

    /// Gives memory back: a batch did not fit, and others may need the room.
    fn release(&mut self) {}
}

/// What batches a source takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taking {
    /// Samples of every batch, where the model fixes it.
    pub fixed: Option<usize>,
    /// Samples of a batch at least: fewer are filled up.
    pub least: usize,
    /// Whether smaller batches are to be filled up, as libraries may round otherwise in them, and can be: the number of
    /// samples is the first extent of all inputs and outputs, and nothing else in their shapes varies.
    pub fills: bool,
    /// Samples that it runs side by side, 0 where it runs nothing.
    pub at_once: usize,
}

impl Taking {
    /// What a runner takes.
    pub fn of(runner: &(impl Runner + ?Sized)) -> Self {
        let of_samples = |info: &TensorInfo| matches!(&info.shape[..], [None, rest @ ..] if !rest.contains(&None));
        // Inputs that do not agree (states, whose first axis counts layers) have no axis of samples.
        let extents: BTreeSet<_> = runner.inputs().iter().map(|input| input.shape.first().copied()).collect();
        let fixed = if let [Some(extent)] = Vec::from_iter(extents)[..] { extent } else { None };
        Self {
            fixed,
            least: runner.least_batch(),
            at_once: runner.at_once(),
            fills: runner.accelerator().is_some() && runner.inputs().iter().chain(runner.outputs()).all(of_samples),
        }
    }

    /// What a batch of `samples` is filled up to, if it is.
    pub(super) fn rows(self, samples: usize, whole: usize) -> Option<usize> {
        match self.fixed {
            Some(fixed) => Some(fixed).filter(|&fixed| fixed > samples),
            None if samples < self.least => Some(self.least),
            None => self.fills.then_some(whole),
        }
    }
}

/// A runner that is lent to a pass.
pub struct Running<'a>(pub &'a mut dyn Runner);

impl Outputs for Running<'_> {
    fn names(&self) -> Vec<String> {
        self.0.outputs().iter().map(|info| info.name.clone()).collect()
    }

    fn give(&mut self, _part: &Part<'_>, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        self.0.show(inputs, show)
    }

    fn taking(&self) -> Taking {
        Taking::of(&*self.0)
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.0.accelerator()
    }
}

impl Outputs for Box<dyn Runner> {
    fn names(&self) -> Vec<String> {
        self.outputs().iter().map(|info| info.name.clone()).collect()
    }

    fn give(&mut self, _part: &Part<'_>, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        self.show(inputs, show)
    }

    fn taking(&self) -> Taking {
        Taking::of(&**self)
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        (**self).accelerator()
    }
}

/// A source with what a pass knows of it.
pub(super) struct Lane<'a> {
    source: &'a mut dyn Outputs,
    pub(super) taking: Taking,
}

impl<'a> Lane<'a> {
    pub(super) fn new(source: &'a mut dyn Outputs) -> Self {
        let taking = source.taking();
        Self { source, taking }
    }

    pub(super) fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.source.accelerator()
    }

    pub(super) fn release(&mut self) {
        self.source.release();
    }

    /// Shows what the samples of a part give, without the fillers: `whole` is what batches are filled up to where that is
    /// wanted. Tensors of a model that fixes its batch whose first extent is another keep what fillers gave.
    pub(super) fn give(
        &mut self,
        part: &Part<'_>,
        whole: usize,
        sent: Option<&crate::backend::Sent>,
        show: &mut Show<'_>,
    ) -> Result<(), BackendError> {
        let samples = part.rows();
        let rows = self.taking.rows(samples, whole);
        let Some(filled) = rows.filter(|&rows| rows > samples) else {
            return self.source.give(part, Inputs { tensors: part.inputs, rows, sent }, show);
        };
        let may_not_fit = self.taking.fixed.is_none();
        let mut misfit = false;
        let given = self.source.give(part, Inputs { tensors: part.inputs, rows, sent }, &mut |given| {
            misfit = may_not_fit && given.outputs.shapes().iter().any(|shape| shape.first() != Some(&filled));
            if misfit {
                return Err("not batches".into());
            }
            given.inputs.cut(filled, samples, |inputs| {
                given
                    .outputs
                    .cut(filled, samples, |outputs| show(&Given { inputs: inputs.clone(), outputs: outputs.clone() }))
            })
        });
        if misfit {
            self.taking.fills = false;
            return self.source.give(part, Inputs::plain(part.inputs), show);
        }
        given
    }
}
