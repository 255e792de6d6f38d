//! The search for the smallest plan on real models: what judges a plan and what ranks the candidates.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    search::{Candidate, SearchOptions, SearchResult, search},
    trials::{NodeSet, Progress, Trial, Verdict},
};
use crate::{
    analyse::{
        graphwise::Side,
        layerwise::{AnalysisError, LayerError, OutputNoise, Samples, some},
    },
    backend::{Accelerator, BackendError, BuildOptions, Given, Inputs, Runner, Show, TensorInfo},
    calibrate::CalibrationTable,
    compare::{CompareOptions, Comparison, ComparisonResult, Direction, Footprint, Gate, Sample},
    onnx::Model,
    pass::{Consumer, Outputs, Part, Ran, Taking},
    quantize::{Precision, PrecisionPlan, QuantizeOptions, quantize_following},
    tensor::{Tensor, TensorMap},
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
    /// The reference's outputs are kept in memory up to this size; beyond it they are made again in every trial.
    pub memory_bytes: usize,
}

impl Default for JudgeOptions {
    fn default() -> Self {
        Self { gates: Vec::new(), compare: CompareOptions::default(), threads: 0, memory_bytes: 1 << 30 }
    }
}

/// Counts a target.
type Count<'a> = dyn FnMut(&Model) -> Result<Comparison, AnalysisError> + 'a;

/// Compares targets with one reference over the same samples.
pub struct Judge<'a> {
    gates: Vec<Gate>,
    count: Box<Count<'a>>,
}

impl<'a> Judge<'a> {
    /// Builds the reference; targets execute where it does.
    ///
    /// # Errors
    /// The backend refuses the reference.
    pub fn new(side: Side<'a>, samples: Samples<'a>, options: JudgeOptions) -> Result<Self, AnalysisError> {
        let mut reference = Reference::new(side, &options)?;
        Ok(Self::by(options.gates, move |target| {
            let (counted, ran) = reference.count(Side { model: target, ..side }, samples)?;
            some(ran)?;
            Ok(counted)
        }))
    }

    /// Tests `gates` on what `count` gives for a target.
    pub fn by(gates: Vec<Gate>, count: impl FnMut(&Model) -> Result<Comparison, AnalysisError> + 'a) -> Self {
        Self { gates, count: Box::new(count) }
    }

    /// All figures of a target. Batches that do not fit into memory are halved.
    ///
    /// # Errors
    /// The target cannot be built or run, a sample cannot be read, or the outputs cannot be compared.
    pub fn compare(&mut self, target: &Model) -> Result<ComparisonResult, AnalysisError> {
        Ok((self.count)(target)?.finish())
    }

    /// The verdict of the gates on a target. The score is the first gate's value, negated where less is better.
    ///
    /// # Errors
    /// As [`Judge::compare`].
    pub fn verdict(&mut self, target: &Model) -> Result<Verdict, AnalysisError> {
        let result = self.compare(target)?;
        let outcomes: Vec<_> = self.gates.iter().map(|gate| gate.evaluate(&result, &Footprint::default())).collect();
        let metrics = outcomes.iter().filter_map(|outcome| Some((outcome.subject(), outcome.value?)));
        let sign = |direction| if direction == Direction::AtLeast { 1.0 } else { -1.0 };
        Ok(Verdict {
            passed: outcomes.iter().all(|outcome| outcome.passed),
            score: outcomes.first().and_then(|outcome| Some(sign(outcome.direction) * outcome.value?)),
            metrics: metrics.collect(),
            notes: result.warnings(),
            intervals: outcomes.iter().filter_map(|outcome| Some((outcome.subject(), outcome.interval?))).collect(),
        })
    }
}

/// A reference that targets are counted against. It keeps its outputs.
pub struct Reference {
    outputs: Remembered,
    compare: CompareOptions,
    threads: usize,
}

impl Reference {
    /// Builds the reference.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn new(side: Side<'_>, options: &JudgeOptions) -> Result<Self, AnalysisError> {
        let outputs = Remembered::new(build(side, options.threads, true)?, options.memory_bytes);
        Ok(Self { outputs, compare: options.compare.clone(), threads: options.threads })
    }

    /// What is counted of a target over `samples` of one data set, and what the pass was like.
    ///
    /// # Errors
    /// As [`Judge::compare`].
    pub fn count(&mut self, target: Side<'_>, samples: Samples<'_>) -> Result<(Comparison, Ran), AnalysisError> {
        let mut target = build(target, self.threads, self.outputs.runner.at_once() > 1)?;
        let names = [self.outputs.names(), target.names()];
        let mut trial = Trying(Comparison::new(&names[0], &names[1], self.compare.clone())?);
        let ran = samples.run(&mut [&mut self.outputs, &mut target], &mut trial)?;
        Ok((trial.0, ran))
    }
}

fn build(side: Side<'_>, threads: usize, side_by_side: bool) -> Result<Box<dyn Runner>, BackendError> {
    let options = BuildOptions { threads, provider: side.provider, side_by_side, ..BuildOptions::default() };
    side.backend.build(side.model, &options)
}

/// One trial.
struct Trying(Comparison);

impl Consumer for Trying {
    type Error = AnalysisError;

    fn take(&mut self, part: &Part<'_>, given: &[Option<&Given<'_>>]) -> Result<(), AnalysisError> {
        if let [Some(reference), Some(target)] = given {
            let samples = Sample::of_part(part);
            self.0.push(&samples, &reference.outputs, &target.outputs)?;
        }
        Ok(())
    }
}

/// A runner whose outputs are kept in host memory up to a size, by the samples they belong to.
struct Remembered {
    runner: Box<dyn Runner>,
    kept: BTreeMap<(Vec<usize>, Option<usize>), TensorMap>,
    /// Bytes that may still be kept.
    room: usize,
}

impl Remembered {
    fn new(runner: Box<dyn Runner>, room: usize) -> Self {
        Self { runner, kept: BTreeMap::new(), room }
    }
}

impl Outputs for Remembered {
    fn names(&self) -> Vec<String> {
        self.runner.names()
    }

    fn give(&mut self, part: &Part<'_>, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        let Self { runner, kept, room } = self;
        let key = (part.indices.to_vec(), inputs.rows);
        if let Some(outputs) = kept.get(&key) {
            let given = Given { inputs: part.inputs.into(), outputs: outputs.into() };
            return show(&given).map_err(BackendError::Visitor);
        }
        let mut made = None;
        runner.show(inputs, &mut |given| {
            // The same figures whether they are kept or not: they are compared in host memory.
            let outputs = &*made.insert(given.outputs.to_host()?);
            show(&Given { inputs: given.inputs.clone(), outputs: outputs.into() })
        })?;
        let size = made.iter().flat_map(TensorMap::values).map(Tensor::bytes).sum();
        if let (Some(outputs), Some(rest)) = (made, room.checked_sub(size)) {
            kept.insert(key, outputs);
            *room = rest;
        }
        Ok(())
    }

    fn taking(&self) -> Taking {
        self.runner.taking()
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.runner.accelerator()
    }
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
fn lifted_plan(base: &PrecisionPlan, lifted: &NodeSet, precision: Precision) -> PrecisionPlan {
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
    /// Ranges; not needed for FP16 and BF16.
    pub table: Option<&'a CalibrationTable>,
    /// How it is quantized with nothing lifted.
    pub quantize: &'a QuantizeOptions,
    /// What nodes are lifted to.
    pub precision: Precision,
}

impl Start<'_> {
    /// The plan with `lifted` in the higher precision, and the model it gives. An operator that was fused with a lifted
    /// one (an Add behind a convolution) may need a range that the table lacks, since nothing was quantized there
    /// before: it is lifted too.
    ///
    /// # Errors
    /// The model cannot be quantized.
    pub fn plan(&self, lifted: &NodeSet) -> Result<(PrecisionPlan, Model), AnalysisError> {
        let mut options = self.quantize.clone();
        options.scheme.plan = lifted_plan(&self.quantize.scheme.plan, lifted, self.precision);
        let may_lack = |_: &str| !lifted.is_empty();
        let (quantized, _) =
            quantize_following(self.model, self.shapes, self.table, &mut options, self.precision, &may_lack)?;
        Ok((options.scheme.plan, quantized.model))
    }

    /// The model with `lifted` in the higher precision.
    ///
    /// # Errors
    /// As [`Start::plan`].
    pub fn model(&self, lifted: &NodeSet) -> Result<Model, AnalysisError> {
        Ok(self.plan(lifted)?.1)
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
