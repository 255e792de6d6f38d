//! Every tensor of the target against the same tensor of the reference: where the error accumulates.
//!
//! Both run side by side, a sample at a time, and tensors are compared in the target's own buffers; what is kept are
//! sums. Memory is that of one sample's tensors, whatever the number of samples. The target may also be a file with
//! saved tensors.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::layerwise::{AnalysisError, Samples, plain};
use crate::{
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, Runner, TensorInfo,
        cuda::{CudaError, Device, PairComparer, Uploader, in_parts},
        onnxruntime::{DeviceRunner, OnnxRuntime},
    },
    compare::{
        SavedOutputs,
        graphwise::{Graphwise as Accumulator, TensorDifference},
    },
    dataset::Batch,
    onnx::{GraphError, GraphView, Model},
    tensor::{ElementType, part},
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

    /// SQNR in decibels; infinite without any error, and negative where values are not finite or shapes differ.
    pub fn off(&self) -> f64 {
        let TensorDifference { non_finite, shape_mismatch, sqnr_db, .. } = &self.difference;
        if non_finite.differing > 0 || shape_mismatch.is_some() {
            return f64::NEG_INFINITY;
        }
        sqnr_db.unwrap_or(f64::INFINITY)
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
        let build = BuildOptions { extra_outputs: tensors, provider: self.provider, ..plain(threads) };
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

/// Compares `sites` over `samples`.
///
/// # Errors
/// A model cannot be built or run, a sample cannot be read, or there are no samples.
pub fn graphwise(
    reference: Side<'_>,
    target: Side<'_>,
    sites: &[TensorSite],
    samples: Samples<'_>,
    options: GraphwiseOptions,
) -> Result<Graphwise, AnalysisError> {
    let mut tensors = Vec::with_capacity(sites.len());
    let mut read = 0;
    for sites in sites.chunks(options.tensors_per_pass.max(1)) {
        let names: Vec<String> = sites.iter().map(|site| site.tensor.clone()).collect();
        let mut reference = reference.build(names.clone(), options.threads)?;
        let mut target = target.build(names, options.threads)?;
        let found = run(&mut *reference, Source::Runner(&mut *target), sites, samples)?;
        tensors.extend(found.tensors);
        read = found.samples;
    }
    Ok(Graphwise::new(tensors, read))
}

/// [`graphwise`] on a GPU, which no tensor leaves. Batches that do not fit into its memory are halved; also tells to which
/// size, if that was so.
///
/// # Errors
/// As [`graphwise`].
pub fn graphwise_on_device(
    runtime: &OnnxRuntime,
    provider: ExecutionProvider,
    [reference, target]: [&Model; 2],
    sites: &[TensorSite],
    samples: Samples<'_>,
    options: GraphwiseOptions,
) -> Result<(Graphwise, Option<usize>), AnalysisError> {
    let cuda = |error: CudaError| BackendError::from(error);
    let device = &Device::open(provider.gpu().unwrap_or_default()).map_err(cuda)?;
    let stream = device.stream().map_err(cuda)?;
    let (comparer, uploader) =
        (PairComparer::new(device, &stream).map_err(cuda)?, Uploader::new(device).map_err(cuda)?);
    let mut tensors = Vec::with_capacity(sites.len());
    let (mut read, mut most) = (0, usize::MAX);
    for sites in sites.chunks(options.tensors_per_pass.max(1)) {
        let extra_outputs = sites.iter().map(|site| site.tensor.clone()).collect();
        let build = BuildOptions { extra_outputs, provider, ..plain(options.threads) };
        let both = || -> Result<[DeviceRunner; 2], BackendError> {
            let runner = |model| runtime.build_on_device(model, &build, device, &stream);
            Ok([runner(reference)?, runner(target)?])
        };
        let first = both()?;
        let (names, mut accumulator) = accumulator(first[0].outputs(), &floats(first[1].outputs()), sites);
        let mut runners = Some(first);
        let send = |batch: &Batch, used| uploader.upload(&batch.inputs, None, used).ok();
        read = samples.for_each_sent(send, |batch, mut sent| {
            let ids: Vec<&str> = batch.ids.iter().map(String::as_str).collect();
            in_parts(&mut most, ids.len(), BackendError::is_out_of_memory, |range, _| {
                let [reference, target] = match &mut runners {
                    Some(runners) => runners,
                    none => none.insert(both()?),
                };
                let inputs = part(&batch.inputs, ids.len(), range.clone()).ok_or(CudaError::OutOfMemory)?;
                reference.check(&inputs, None)?;
                let staged = match sent.take().filter(|sent| sent.is_like(device, &inputs, None)) {
                    Some(sent) => sent,
                    None => uploader.upload(&inputs, None, None)?,
                };
                let ids = &ids[range];
                let ran = accumulator.run_batch_on_device(ids, &staged, reference, target, &comparer, &names);
                if ran.is_err() {
                    // A session keeps the memory that it has taken: what one took, the other would lack.
                    runners = None;
                }
                sent = Some(staged).filter(|_| ids.len() == batch.ids.len() && ran.is_ok());
                ran
            })?;
            Ok(sent)
        })?;
        tensors.extend(divergences(sites, accumulator));
    }
    Ok((Graphwise::new(tensors, read), Some(most).filter(|&most| most < usize::MAX)))
}

/// What both give as floating-point numbers, target's name and reference's, and what adds their differences up.
fn accumulator(
    reference: &[TensorInfo],
    given: &BTreeSet<String>,
    sites: &[TensorSite],
) -> (BTreeMap<String, String>, Accumulator) {
    let known = floats(reference);
    let both =
        sites.iter().map(|site| &site.tensor).filter(|tensor| known.contains(*tensor) && given.contains(*tensor));
    let names = both.map(|tensor| (tensor.clone(), tensor.clone())).collect();
    let thresholds = sites.iter().filter_map(|site| Some((site.tensor.clone(), site.amax?))).collect();
    (names, Accumulator::new(thresholds))
}

/// Names of the outputs that are floating-point numbers.
fn floats(outputs: &[TensorInfo]) -> BTreeSet<String> {
    let floats = outputs.iter().filter(|output| output.element_type.is_some_and(ElementType::is_float));
    floats.map(|output| output.name.clone()).collect()
}

fn divergences(sites: &[TensorSite], accumulator: Accumulator) -> Vec<TensorDivergence> {
    let differences = accumulator.finish();
    let divergence = |site: &TensorSite| {
        Some(TensorDivergence { site: site.clone(), difference: differences.get(&site.tensor)?.clone() })
    };
    sites.iter().filter_map(divergence).collect()
}

/// One pass of a runner that gives `sites` among its outputs and of the target. Tensors that are no floating-point
/// numbers, or that one of the two does not give, are left out.
///
/// # Errors
/// As [`graphwise`]; a sample is missing in a file.
pub fn run(
    reference: &mut dyn Runner,
    mut target: Source<'_>,
    sites: &[TensorSite],
    samples: Samples<'_>,
) -> Result<Graphwise, AnalysisError> {
    let given = match &target {
        Source::Runner(target) => floats(target.outputs()),
        Source::Saved(saved) => saved.outputs().into_iter().collect(),
    };
    let (names, mut accumulator) = accumulator(reference.outputs(), &given, sites);
    let mut first = 0;
    let count = samples.for_each(|batch| {
        let ids: Vec<&str> = batch.ids.iter().map(String::as_str).collect();
        match &mut target {
            Source::Runner(target) => accumulator.run_batch(&ids, &batch.inputs, reference, &mut **target, &names)?,
            Source::Saved(saved) => {
                let tensors = saved.batch(first, &ids)?;
                reference.visit(&batch.inputs, &mut |name, view| match tensors.get(name) {
                    Some(tensor) if names.contains_key(name) => Ok(accumulator.add(name, &ids, view, tensor.view())?),
                    _ => Ok(()),
                })?;
            }
        }
        first += ids.len();
        Ok(())
    })?;
    Ok(Graphwise::new(divergences(sites, accumulator), count))
}

#[cfg(test)]
mod tests;
