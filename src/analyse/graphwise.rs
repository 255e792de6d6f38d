//! Every tensor of the target against the same tensor of the reference: where the error accumulates.
//!
//! Both run side by side, a sample at a time, and tensors are compared in the target's own buffers; what is kept are
//! sums. Memory is that of one sample's tensors, whatever the number of samples. The target may also be a file with
//! saved tensors.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::layerwise::{AnalysisError, Samples, plain, some};
use crate::{
    backend::{
        Accelerator, Backend, BackendError, BuildOptions, ExecutionProvider, Given, Inputs, Runner, Show, TensorInfo,
    },
    compare::{
        CompareError, SavedOutputs,
        graphwise::{TensorDifference, TensorSums},
    },
    onnx::{GraphError, GraphView, Model},
    pass::{Consumer, Outputs, Part, Ran, Running, Taking},
};

/// A tensor that both models make, by the reference's node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TensorSite {
    /// The tensor.
    pub tensor: String,
    /// The reference's node that makes it.
    pub node: String,
    /// Its operator type.
    pub op_type: String,
    /// The largest magnitude that the target's quantizer of the tensor can give; absent where it has none.
    pub amax: Option<f32>,
}

/// How far one tensor of the target is off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TensorDivergence {
    /// The tensor.
    #[serde(flatten)]
    pub site: TensorSite,
    /// Its figures over all samples.
    #[serde(flatten)]
    pub difference: TensorDifference,
}

impl TensorDivergence {
    /// True when the target is further off than `sqnr_db`, not finite where the reference is, or of another shape.
    pub fn diverged(&self, sqnr_db: f64) -> bool {
        self.off() < sqnr_db
    }

    /// SQNR in decibels; infinite without any error, and negative where values are not finite or shapes differ. Integers have no
    /// SQNR to speak of: the share of those that are not equal stands for it, so that one in a hundred is 20 dB.
    pub fn off(&self) -> f64 {
        let TensorDifference { non_finite, shape_mismatch, sqnr_db, count, unequal, .. } = &self.difference;
        if non_finite.differing > 0 || shape_mismatch.is_some() {
            return f64::NEG_INFINITY;
        }
        match unequal {
            Some(0) => f64::INFINITY,
            Some(unequal) => 10.0 * (*count as f64 / *unequal as f64).log10(),
            None => sqnr_db.unwrap_or(f64::INFINITY),
        }
    }

    /// True where integers are not equal, be it one of them.
    pub fn has_other_integers(&self) -> bool {
        self.difference.unequal.is_some_and(|unequal| unequal > 0)
    }
}

/// Result of [`graphwise`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Graphwise {
    /// In the order of execution.
    pub tensors: Vec<TensorDivergence>,
    /// The first node whose output is NaN or infinite in the target and not in the reference.
    pub first_non_finite: Option<String>,
    /// Samples compared.
    pub samples: usize,
}

impl Graphwise {
    pub(crate) fn new(tensors: Vec<TensorDivergence>, samples: usize) -> Self {
        let bad = |tensor: &&TensorDivergence| tensor.difference.non_finite.differing > 0;
        let first_non_finite = tensors.iter().find(bad).map(|tensor| tensor.site.node.clone());
        Self { tensors, first_non_finite, samples }
    }

    /// Sentences on the tensors whose figures are not of all samples.
    pub fn notes(&self) -> Vec<String> {
        let note = |TensorDivergence { site, difference }: &TensorDivergence| {
            let mismatch = difference.shape_mismatch.as_ref()?;
            Some(format!("tensor `{}` has {mismatch}: its figures leave such samples out", site.tensor))
        };
        self.tensors.iter().filter_map(note).collect()
    }
}

/// Options of [`graphwise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GraphwiseOptions {
    /// Tensors compared in one pass: fewer take more passes and less memory.
    pub tensors_per_pass: usize,
    /// Threads inside an operator; 0 for all cores.
    pub threads: usize,
}

impl Default for GraphwiseOptions {
    fn default() -> Self {
        Self { tensors_per_pass: 1024, threads: 0 }
    }
}

/// A model and what executes it.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The runtime.
    pub backend: &'a dyn Backend,
    /// Where it executes.
    pub provider: ExecutionProvider,
    /// The model.
    pub model: &'a Model,
}

impl Side<'_> {
    /// A runner that also gives `tensors`.
    ///
    /// # Errors
    /// The backend refuses the model.
    pub fn build(self, tensors: Vec<String>, threads: usize) -> Result<Box<dyn Runner>, BackendError> {
        let build = BuildOptions { extra_outputs: tensors, ..plain(threads, self.provider) };
        self.backend.build(self.model, &build)
    }
}

/// What gives the target's tensors.
pub enum Source<'a> {
    /// By running.
    Runner(&'a mut dyn Runner),
    /// From a file.
    Saved(&'a SavedOutputs),
}

/// The tensors that nodes of both models make under the same name, in the reference's order of execution.
///
/// # Errors
/// A malformed graph.
pub fn shared_tensors(reference: &Model, target: &Model) -> Result<Vec<TensorSite>, GraphError> {
    let reference = GraphView::new(reference.graph())?;
    let target = GraphView::new(target.graph())?;
    let mut sites = Vec::new();
    for &id in reference.topological_order() {
        let node = reference.node(id);
        for tensor in node.output.iter().filter(|tensor| target.producer(tensor).is_some()) {
            let (node, op_type) = (node.label(id.0), node.op_type().to_owned());
            sites.push(TensorSite { tensor: tensor.clone(), node, op_type, amax: quantizer_amax(&target, tensor) });
        }
    }
    Ok(sites)
}

/// Those of `tensors` that nodes of the reference make, in its order of execution.
///
/// # Errors
/// A malformed graph.
pub fn sites_of(reference: &Model, tensors: &BTreeSet<String>) -> Result<Vec<TensorSite>, GraphError> {
    let mut sites = shared_tensors(reference, reference)?;
    sites.retain(|site| tensors.contains(&site.tensor));
    Ok(sites)
}

/// The largest value of the quantizer that reads `tensor`.
fn quantizer_amax(target: &GraphView<'_>, tensor: &str) -> Option<f32> {
    let nodes = target.consumers(tensor).iter().map(|u| target.node(u.node));
    let quantize = nodes.into_iter().find(|node| node.op_type() == "QuantizeLinear")?;
    super::operators::quantizer_range(target, quantize).map(|[_, high]| high)
}

/// Compares `sites` over `samples`, on the GPU where both run there. Batches that do not fit into memory are halved; also
/// tells to which size, if that was so.
///
/// # Errors
/// A model cannot be built or run, a sample cannot be read, or there are no samples.
pub fn graphwise(
    reference: Side<'_>,
    target: Side<'_>,
    sites: &[TensorSite],
    samples: Samples<'_>,
    options: GraphwiseOptions,
) -> Result<(Graphwise, Option<usize>), AnalysisError> {
    let mut tensors = Vec::with_capacity(sites.len());
    let (mut read, mut fitting_batch) = (0, None);
    for sites in sites.chunks(options.tensors_per_pass.max(1)) {
        let names: Vec<String> = sites.iter().map(|site| site.tensor.clone()).collect();
        let mut reference = Rebuilt::new(|| reference.build(names.clone(), options.threads))?;
        let mut target = Rebuilt::new(|| target.build(names.clone(), options.threads))?;
        let outputs = [reference.runner()?.outputs().to_vec(), target.runner()?.outputs().to_vec()];
        let (found, ran) =
            run_through(&mut reference, &outputs[0], &mut target, &numbers(&outputs[1]), sites, samples)?;
        tensors.extend(found);
        read = ran.samples;
        fitting_batch = fitting_batch.into_iter().chain(ran.fitting_batch).min();
    }
    Ok((Graphwise::new(tensors, read), fitting_batch))
}

/// What both give as numbers, target's name and reference's, and what adds their differences up.
fn accumulator(
    reference: &[TensorInfo],
    given: &BTreeSet<String>,
    sites: &[TensorSite],
) -> (BTreeMap<String, String>, TensorSums) {
    let known = numbers(reference);
    let both =
        sites.iter().map(|site| &site.tensor).filter(|tensor| known.contains(*tensor) && given.contains(*tensor));
    let names = both.map(|tensor| (tensor.clone(), tensor.clone())).collect();
    let thresholds = sites.iter().filter_map(|site| Some((site.tensor.clone(), site.amax?))).collect();
    (names, TensorSums::new(thresholds))
}

/// Names of the outputs that are numbers or truth values.
fn numbers(outputs: &[TensorInfo]) -> BTreeSet<String> {
    outputs.iter().filter(|output| output.element_type.is_some()).map(|output| output.name.clone()).collect()
}

fn divergences(sites: &[TensorSite], accumulator: TensorSums) -> Vec<TensorDivergence> {
    let differences = accumulator.finish();
    let divergence = |site: &TensorSite| {
        Some(TensorDivergence { site: site.clone(), difference: differences.get(&site.tensor)?.clone() })
    };
    sites.iter().filter_map(divergence).collect()
}

/// One pass of a runner that gives `sites` among its outputs and of the target. Tensors of a type that has
/// no counterpart here, or that one of the two does not give, are left out.
///
/// # Errors
/// As [`graphwise`]; a sample is missing in a file.
pub fn run(
    reference: &mut dyn Runner,
    target: Source<'_>,
    sites: &[TensorSite],
    samples: Samples<'_>,
) -> Result<Graphwise, AnalysisError> {
    let made = reference.outputs().to_vec();
    let reference = &mut Running(reference);
    let (found, ran) = match target {
        Source::Runner(target) => {
            let given = numbers(target.outputs());
            run_through(reference, &made, &mut Running(target), &given, sites, samples)?
        }
        Source::Saved(mut saved) => {
            let given = saved.outputs().into_iter().collect();
            run_through(reference, &made, &mut saved, &given, sites, samples)?
        }
    };
    Ok(Graphwise::new(found, ran.samples))
}

/// One pass of both; `made` are the reference's outputs, `given` the names of the target's that count.
fn run_through(
    reference: &mut dyn Outputs,
    made: &[TensorInfo],
    target: &mut dyn Outputs,
    given: &BTreeSet<String>,
    sites: &[TensorSite],
    samples: Samples<'_>,
) -> Result<(Vec<TensorDivergence>, Ran), AnalysisError> {
    let (names, accumulator) = accumulator(made, given, sites);
    let mut differences = Differences { names, accumulator };
    let ran = some(samples.run(&mut [reference, target], &mut differences)?)?;
    Ok((divergences(sites, differences.accumulator), ran))
}

/// Adds up what tensors differ by.
struct Differences {
    /// Names in the target, and in the reference.
    names: BTreeMap<String, String>,
    accumulator: TensorSums,
}

impl Consumer for Differences {
    type Error = AnalysisError;

    fn take(&mut self, part: &Part<'_>, given: &[Option<&Given<'_>>]) -> Result<(), AnalysisError> {
        if let [Some(reference), Some(target)] = given {
            self.accumulator.push(&part.names(), &reference.outputs, &target.outputs, &self.names)?;
        }
        Ok(())
    }

    /// The device adds up in one go, or not at all.
    fn may_repeat(&self, error: &AnalysisError) -> bool {
        matches!(error, AnalysisError::Compare(CompareError::Backend(error)) if error.is_out_of_memory())
    }
}

/// A runner that is built again where it gave its memory up: a session keeps the memory that it has taken, and what one
/// took, another would lack.
struct Rebuilt<F> {
    build: F,
    runner: Option<Box<dyn Runner>>,
}

impl<F: Fn() -> Result<Box<dyn Runner>, BackendError>> Rebuilt<F> {
    fn new(build: F) -> Result<Self, BackendError> {
        let runner = Some(build()?);
        Ok(Self { build, runner })
    }

    fn runner(&mut self) -> Result<&mut Box<dyn Runner>, BackendError> {
        match &mut self.runner {
            Some(runner) => Ok(runner),
            none => Ok(none.insert((self.build)()?)),
        }
    }
}

impl<F: Fn() -> Result<Box<dyn Runner>, BackendError>> Outputs for Rebuilt<F> {
    fn names(&self) -> Vec<String> {
        self.runner.as_ref().map_or_else(Vec::new, Outputs::names)
    }

    fn give(&mut self, part: &Part<'_>, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        self.runner()?.give(part, inputs, show)
    }

    fn taking(&self) -> Taking {
        self.runner.as_ref().map_or_else(Taking::default, Outputs::taking)
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.runner.as_ref()?.accelerator()
    }

    fn release(&mut self) {
        self.runner = None;
    }
}

#[cfg(test)]
mod tests;
