//! The search for the smallest plan on real models: what judges a plan, what ranks the candidates, what they cost.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use serde::{Deserialize, Serialize};

use super::{
    layerwise::{AnalysisError, LayerError, OutputNoise, Samples, plain},
    operators::Pair,
    search::{Candidate, SearchOptions, SearchResult, search},
    trials::{NodeSet, Progress, Trial, Verdict},
};
use crate::{
    backend::{Backend, BuildOptions, Runner, TensorInfo},
    calibrate::CalibrationTable,
    compare::{CompareOptions, Comparison, ComparisonResult, Direction, Gate, Sample},
    dataset::{Batch, PassError},
    onnx::Model,
    quantize::{Precision, PrecisionPlan, QuantizeOptions, quantize},
    tensor::TensorMap,
};

/// How a target is judged.
#[derive(Clone, Debug)]
pub struct JudgeOptions {
    /// All must pass; the first gives the score.
    pub gates: Vec<Gate>,
    /// Passed on to the comparison.
    pub compare: CompareOptions,
    /// Threads inside an operator; 0 for all cores.
    pub threads: usize,
    /// Samples and the reference's outputs are kept in memory up to this size; beyond it they are made again in every
    /// trial.
    pub memory_bytes: usize,
}

impl Default for JudgeOptions {
    fn default() -> Self {
        Self { gates: Vec::new(), compare: CompareOptions::default(), threads: 0, memory_bytes: 1 << 30 }
    }
}

/// Compares targets with one reference over the same samples.
pub struct Judge<'a> {
    backend: &'a dyn Backend,
    samples: Samples<'a>,
    options: JudgeOptions,
    reference: Box<dyn Runner>,
    /// The first batches and the reference's outputs for them.
    kept: Vec<(Batch, TensorMap)>,
    kept_bytes: usize,
    /// How many of the indices those batches cover; the others are read again each time.
    covered: usize,
}

impl<'a> Judge<'a> {
    /// Builds the reference.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn new(
        backend: &'a dyn Backend,
        reference: &Model,
        samples: Samples<'a>,
        options: JudgeOptions,
    ) -> Result<Self, AnalysisError> {
        let reference =
            backend.build(reference, &BuildOptions { threads: options.threads, ..BuildOptions::default() })?;
        Ok(Self { backend, samples, options, reference, kept: Vec::new(), kept_bytes: 0, covered: 0 })
    }

    /// All figures of a target.
    ///
    /// # Errors
    /// The target cannot be built or run, a sample cannot be read, or the outputs cannot be compared.
    pub fn compare(&mut self, target: &Model) -> Result<ComparisonResult, AnalysisError> {
        let build = BuildOptions { threads: self.options.threads, ..BuildOptions::default() };
        let mut target = self.backend.build(target, &build)?;
        let names = |runner: &dyn Runner| runner.outputs().iter().map(|output| output.name.clone()).collect::<Vec<_>>();
        let mut comparison = Comparison::new(&names(&*self.reference), &names(&*target), self.options.compare.clone())?;
        let Self { samples, options, reference, kept, kept_bytes, covered, .. } = self;
        let mut push = |batch: &Batch, expected: &TensorMap| -> Result<(), AnalysisError> {
            let label = |&index| samples.dataset.label(index);
            let names = batch.ids.iter().zip(batch.indices.iter().map(label));
            let names: Vec<Sample<'_>> = names.map(|(id, label)| Sample { id, label, mask: None }).collect();
            Ok(comparison.push(&names, expected, &target.infer(&batch.inputs)?)?)
        };
        for (batch, expected) in kept.iter() {
            if samples.reading.stop.load(Ordering::Relaxed) {
                return Err(PassError::Stopped.into());
            }
            push(batch, expected)?;
        }
        let rest = &samples.indices[*covered..];
        if !rest.is_empty() || kept.is_empty() {
            let mut full = *covered > 0;
            Samples { indices: rest, ..*samples }.for_each(|batch| {
                let expected = reference.infer(&batch.inputs)?;
                push(&batch, &expected)?;
                let bytes = *kept_bytes + bytes(&batch.inputs) + bytes(&expected);
                let last = batch.indices.last().and_then(|last| samples.indices.iter().position(|index| index == last));
                full |= bytes > options.memory_bytes;
                if let Some(last) = last.filter(|_| !full) {
                    (*kept_bytes, *covered) = (bytes, last + 1);
                    kept.push((batch, expected));
                }
                Ok(())
            })?;
            if !full {
                *covered = samples.indices.len();
            }
        }
        Ok(comparison.finish())
    }

    /// The verdict of the gates on a target. The score is the first gate's value, negated where less is better.
    ///
    /// # Errors
    /// As [`Judge::compare`].
    pub fn verdict(&mut self, target: &Model) -> Result<Verdict, AnalysisError> {
        let result = self.compare(target)?;
        let outcomes: Vec<_> = self.options.gates.iter().map(|gate| gate.evaluate(&result)).collect();
        let metrics = outcomes.iter().filter_map(|outcome| Some((outcome.metric.name().to_owned(), outcome.value?)));
        let sign = |direction| if direction == Direction::AtLeast { 1.0 } else { -1.0 };
        Ok(Verdict {
            passed: outcomes.iter().all(|outcome| outcome.passed),
            score: outcomes.first().and_then(|outcome| Some(sign(outcome.direction) * outcome.value?)),
            metrics: metrics.collect(),
        })
    }
}

fn bytes(tensors: &TensorMap) -> usize {
    tensors.values().map(|tensor| tensor.values().view().len() * tensor.element_type().size()).sum()
}

/// What lifting a candidate costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cost {
    /// Each node costs the same.
    #[default]
    Nodes,
    /// Multiply-accumulates of one sample.
    Macs,
}

/// Multiply-accumulates of each operator for one sample, by node; the elements of its result where it has no weights.
///
/// # Errors
/// The float model cannot be built or run, or the samples (one is enough) cannot be read.
pub fn macs(
    backend: &dyn Backend,
    pair: &Pair<'_>,
    samples: Samples<'_>,
) -> Result<BTreeMap<String, f64>, AnalysisError> {
    let result = |index: usize| pair.float.node(pair.operators[index].float).output.first();
    let extra_outputs = (0..pair.operators.len()).filter_map(|index| result(index).cloned()).collect();
    let mut runner = backend.build(pair.model, &BuildOptions { extra_outputs, ..plain(0) })?;
    let mut sizes = BTreeMap::new();
    samples.for_each(|batch| {
        runner.visit(&batch.inputs, &mut |name, view| {
            sizes.insert(name.to_owned(), view.values.len() as f64 / batch.ids.len() as f64);
            Ok(())
        })?;
        Ok(())
    })?;
    let cost = |index: usize| {
        let operator = &pair.operators[index];
        let node = pair.float.node(operator.float);
        let &elements = sizes.get(result(index)?)?;
        let weight = node.input.get(1).and_then(|name| pair.float.initializer(name));
        let extent = |axis: usize| weight.and_then(|w| w.dims.get(axis)).map_or(1.0, |&extent| extent.max(1) as f64);
        let weights = weight.map_or(1.0, |w| w.dims.iter().map(|&extent| extent.max(1) as f64).product());
        // Every element of the result takes the weights of its channel.
        let each = match (operator.op_type.as_str(), node.attr_i("transB")) {
            ("Conv", _) | ("Gemm", Some(1)) => weights / extent(0),
            ("ConvTranspose", _) => weights / extent(1),
            ("Gemm" | "MatMul", _) => extent(0),
            _ => 1.0,
        };
        Some((operator.node.clone(), (elements * each).max(1.0)))
    };
    Ok((0..pair.operators.len()).filter_map(cost).collect())
}

/// One candidate for each layer, with its operator type: what it sends to the outputs ranks it where that was measured;
/// the others follow behind, by the noise they make themselves.
pub fn candidates(
    layers: &[LayerError],
    outputs: &[OutputNoise],
    costs: &BTreeMap<String, f64>,
) -> Vec<(Candidate, String)> {
    let measured: BTreeMap<&str, Option<f64>> =
        outputs.iter().map(|output| (output.node.as_str(), output.relative_noise)).collect();
    let least = measured.values().flatten().copied().fold(f64::INFINITY, f64::min).clamp(0.0, 1.0);
    let candidate = |layer: &LayerError| {
        let unmeasured = || layer.relative_noise.map(|noise| least * noise / (1.0 + noise));
        // What is not finite is the worst there is.
        let sensitivity = measured.get(layer.node.as_str()).copied().unwrap_or_else(unmeasured);
        let candidate = Candidate {
            name: layer.node.clone(),
            nodes: NodeSet::from([layer.node.clone()]),
            sensitivity: sensitivity.unwrap_or(f64::MAX),
            cost: costs.get(&layer.node).copied().unwrap_or(1.0),
        };
        (candidate, layer.op_type.clone())
    };
    layers.iter().map(candidate).collect()
}

/// `base` with `lifted` in a higher precision.
pub fn lifted_plan(base: &PrecisionPlan, lifted: &NodeSet, precision: Precision) -> PrecisionPlan {
    let mut plan = base.clone();
    for node in lifted {
        plan.assign(node, precision);
    }
    plan
}

/// Where plans start from.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The float model.
    pub model: &'a Model,
    /// Shapes that it does not declare.
    pub shapes: &'a BTreeMap<String, TensorInfo>,
    /// Ranges.
    pub table: &'a CalibrationTable,
    /// How it is quantized with nothing lifted.
    pub quantize: &'a QuantizeOptions,
    /// What nodes are lifted to.
    pub precision: Precision,
}

impl Start<'_> {
    /// The model with `lifted` in the higher precision.
    ///
    /// # Errors
    /// The model cannot be quantized.
    pub fn model(&self, lifted: &NodeSet) -> Result<Model, AnalysisError> {
        let mut options = self.quantize.clone();
        options.scheme.plan = lifted_plan(&options.scheme.plan, lifted, self.precision);
        Ok(quantize(self.model, self.shapes, Some(self.table), &options)?.model)
    }
}

/// Searches the smallest set of candidates to lift (see [`search`]).
///
/// # Errors
/// A plan cannot be made or judged.
pub fn smallest_plan(
    judge: &mut Judge<'_>,
    start: Start<'_>,
    candidates: &[Candidate],
    options: SearchOptions,
    log: &[Trial],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SearchResult, AnalysisError> {
    search(candidates, options, log, &mut |lifted| judge.verdict(&start.model(lifted)?), progress)
}

#[cfg(test)]
mod tests;
