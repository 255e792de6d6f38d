//! Bringing INT8 nearer to float, as far as TensorRT's rules allow.
//!
//! Steps are tried one after the other; each is kept only where the error at the model's outputs falls on held-out samples.
//! The model runs in lockstep (`network`), float and quantized, one operator after the other, so that an operator can be
//! adjusted to the errors that reach it; a step costs about two passes over its samples. What was found stands in the
//! calibration table, and `quantize` makes it true.

mod biases;
mod descent;
mod errors;
mod lifting;
mod network;
mod options;
mod patches;
mod peers;
mod ranges;
mod rank;
mod rounding;
mod scales;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod unit;
mod walk;
mod weights;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::AtomicBool,
    time::Instant,
};

use crate::{
    backend::{Backend, BackendError, BuildOptions, TensorInfo, threads_or_cores},
    calibrate::{CalibrationTable, DeployTo, Effort, Shift, ShiftPolicy, StepKind},
    compare::{CompareError, OwnMetric, Parts, ShapeDependsOnData},
    onnx::{GraphError, Model},
    qparams::QParamsError,
    quantize::{Equalizable, Placement, QuantizeError, Shiftable, equalizable, shiftable},
    tensor::{ShapeError, TensorMap},
};
use errors::Objectives;
use network::Network;
pub use options::RecoverOptions;
use patches::Patches;
pub use peers::Peers;
use state::State;
use steps::Steps;
use walk::Tasks;

/// Decibels by which a step must lower the error on held-out samples to be kept.
const MARGIN_DB: f64 = 0.02;
/// The same for ranges chosen by the outputs of few samples, which follow these samples more than others.
const DESCENT_MARGIN_DB: f64 = 0.3;
/// How sure it has to be that the steps are better than the methods alone.
const CLEARLY_BETTER: f64 = 0.8;
/// Workers at most: each has its own copy of what runs.
const WORKERS: usize = 16;
/// Steps that a fast effort tries at once, and one after the other only where that brings nothing.
const TOGETHER: [StepKind; 4] = [StepKind::Biases, StepKind::Ranges, StepKind::Equalization, StepKind::Shift];
/// Samples that the outputs of the model are compared on to choose ranges.
const DESCENDED_ON: usize = 8;
/// Samples that operators are ranked on.
const RANKED_ON: usize = 2;

/// Why a model could not be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The model is of a kind that lockstep does not know; the reason in words.
    #[error("{0}")]
    Unsupported(String),
    /// The stop flag was set.
    #[error("stopped")]
    Stopped,
    /// The metric of the caller's own failed.
    #[error(transparent)]
    Metric(#[from] CompareError),
    /// Candidates that other processes try do not come; the reason in words.
    #[error("recovery shared between processes: {0}")]
    Peers(String),
    /// A part of the model could not be run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The graph is malformed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The rules could not be applied.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// A tensor does not have the size that it declares.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A weight has no such channels.
    #[error(transparent)]
    Params(#[from] QParamsError),
    /// There is nothing that outputs could be compared by.
    #[error(transparent)]
    Unlike(#[from] ShapeDependsOnData),
}

/// A model and the samples to recover it on.
pub struct Material<'a> {
    /// What runs its parts.
    pub backend: &'a (dyn Backend + Sync),
    /// The folded float model.
    pub model: &'a Model,
    /// Types and shapes of its tensors.
    pub shapes: &'a BTreeMap<String, TensorInfo>,
    /// Where its Q/DQ will be.
    pub placement: &'a Placement,
    /// The parts of outputs whose values mean unlike things; of others they follow from the size of the values.
    pub parts: Parts,
    /// Outputs that are not judged.
    pub ignored: BTreeSet<String>,
    /// Ends the work when set.
    pub stop: &'a AtomicBool,
    /// Inputs of calls to decide on.
    pub fit: Vec<TensorMap>,
    /// Inputs of calls to measure on; without any, steps are measured on those that they were decided on.
    pub held_out: Vec<TensorMap>,
    /// Who judges steps instead of the error of the outputs.
    pub judge: Option<Judge>,
    /// Tells of the outputs of the held-out calls, float and quantized, whether they are as near as anybody asked for: then
    /// nothing more is tried.
    pub reached: Option<&'a Reached<'a>>,
    /// What the methods alone give, which takes the place of all steps unless these are clearly better.
    pub rival: Option<CalibrationTable>,
}

/// Whether quantized outputs, the second, are near enough to those of the float model.
pub type Reached<'a> = dyn Fn(&[TensorMap], &[TensorMap]) -> Result<bool, CompareError> + Sync + 'a;

/// Judges steps by a metric of the caller's own, on held-out samples.
pub struct Judge {
    /// The metric.
    pub metric: OwnMetric,
    /// Names of the samples of every held-out call.
    pub ids: Vec<Vec<String>>,
}

/// Adds to `table` what brings the quantized model nearer to the float one.
///
/// # Errors
/// A model that lockstep does not know, or that cannot be run.
pub fn recover(
    material: Material<'_>,
    table: &CalibrationTable,
    options: &RecoverOptions,
) -> Result<CalibrationTable, RecoverError> {
    let threads = threads_or_cores(options.threads).min(WORKERS);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| RecoverError::Unsupported(format!("no threads to run it on: {error}")))?;
    pool.install(|| on_workers(material, table, options))
}

fn on_workers(
    material: Material<'_>,
    table: &CalibrationTable,
    options: &RecoverOptions,
) -> Result<CalibrationTable, RecoverError> {
    let Material {
        backend,
        model,
        shapes,
        placement,
        parts,
        ignored,
        stop,
        mut fit,
        mut held_out,
        judge,
        reached,
        rival,
    } = material;
    let reached = reached.filter(|_| !held_out.is_empty());
    let judge = judge.filter(|_| !held_out.is_empty());
    let Some(first) = fit.first() else {
        return Err(RecoverError::Unsupported("there is no sample to decide on".to_owned()));
    };
    let shapes = &with_ranks(backend, model, shapes, first)?;
    let network = Network::new(backend, model, shapes, placement, &ignored, stop)?;
    // Both sides of all samples are in memory, and for a moment a copy of what an operator reads and makes.
    let most = (options.memory_bytes() / network.bytes(shapes).saturating_mul(3).max(1)).max(2);
    let share = most.saturating_mul(fit.len()) / (fit.len() + held_out.len()).max(1);
    fit.truncate(share.max(1));
    held_out.truncate(most.saturating_sub(share).max(1));
    let decided_on = fit.len();
    fit.append(&mut held_out);
    let state = State::of(table, options.fp8);
    network.quantize(&state)?;
    let patches = Patches::new(backend)?;
    let started = Instant::now();
    let mut steps = Steps {
        network,
        patches,
        samples: fit,
        fit: decided_on,
        state,
        before: Objectives::default(),
        rows: Vec::new(),
        biases: false,
        parts,
        peers: options.peers.clone(),
        judge,
        value: None,
        reached,
        is_reached: false,
    };
    let may = |steps: &Steps<'_>, step: StepKind| options.may(step) && !steps.is_reached;
    steps.measure()?;
    let measuring = started.elapsed().as_secs_f64();
    let mut plain = steps.state.ranges.clone();
    let ranges: BTreeMap<String, Vec<Shift>> =
        table.tensors.iter().map(|(name, range)| (name.clone(), ranges::candidates(range, false))).collect();
    let possible = equalizable(model.graph(), shapes, placement)?.into_iter();
    let equalize: BTreeMap<String, (Equalizable, Vec<Shift>)> = possible
        .filter(|(_, needs)| needs.pointwise || needs.depthwise && options.deploy_to == DeployTo::Rtx)
        .filter_map(|(name, needs)| ranges.get(&name).map(|ranges| (name.clone(), (needs, ranges.clone()))))
        .collect();
    let shifts = |plain: &_| shifts(model, shapes, placement, table, options.shift, plain);
    let with_shifts = |plain: &_| {
        let mut candidates = ranges.clone();
        for (name, shifted) in shifts(plain)? {
            candidates.entry(name).or_default().extend(shifted.into_iter().filter(|range| range.offset != 0.0));
        }
        Ok::<_, RecoverError>(candidates)
    };
    if options.effort == Effort::Fast && TOGETHER.iter().all(|&step| may(&steps, step)) {
        let candidates = with_shifts(&plain)?;
        let tasks = Tasks { biases: true, candidates, equalize: equalize.clone(), ..Tasks::default() };
        steps.biases = steps.try_out(&TOGETHER, tasks)?;
    }
    if !steps.biases {
        if may(&steps, StepKind::Biases) {
            steps.biases = steps.try_out(&[StepKind::Biases], Tasks { biases: true, ..Tasks::default() })?;
        }
        if may(&steps, StepKind::Ranges) {
            steps.try_out(&[StepKind::Ranges], Tasks { candidates: ranges.clone(), ..Tasks::default() })?;
        }
        if may(&steps, StepKind::Equalization) && !equalize.is_empty() {
            steps.try_out(&[StepKind::Equalization], Tasks { equalize, ..Tasks::default() })?;
        }
        plain.clone_from(&steps.state.ranges);
        let candidates = shifts(&plain)?;
        if may(&steps, StepKind::Shift) && !candidates.is_empty() {
            steps.try_out(&[StepKind::Shift], Tasks { candidates, ..Tasks::default() })?;
        }
    }
    if may(&steps, StepKind::Descent) && options.descended() > 0 {
        steps.descend(&with_shifts(&plain)?, options.descended())?;
    }
    plain.extend(
        steps.state.ranges.iter().filter(|(_, range)| range.offset == 0.0).map(|(name, &range)| (name.clone(), range)),
    );
    if may(&steps, StepKind::Rounding) && options.columns() > 0 {
        steps.try_out(&[StepKind::Rounding], Tasks { rounding: options.columns(), ..Tasks::default() })?;
    }
    let lifted = if may(&steps, StepKind::Lifting) && options.lift_budget > 0.0 && options.effort != Effort::Fast {
        steps.lift(options.lift_budget, options.lift_nodes)?
    } else {
        Vec::new()
    };
    // Errors that lifting ends are not to be taken back.
    if may(&steps, StepKind::Compensation) && options.compensates() {
        let tasks = Tasks { rounding: options.columns(), compensates: true, ..Tasks::default() };
        steps.try_out(&[StepKind::Compensation], tasks)?;
    }
    if let Some(first) = steps.rows.first_mut() {
        first.seconds += measuring;
    }
    steps.tell_reached();
    match rival {
        Some(rival) if steps.yields_to(&rival)? => Ok(steps.without_steps(rival, options)),
        _ => steps.into_table(table, &plain, lifted, options),
    }
}

/// `shapes` with the types and ranks that tensors have on `sample`, where they are not known before the model runs.
fn with_ranks(
    backend: &dyn Backend,
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    sample: &TensorMap,
) -> Result<BTreeMap<String, TensorInfo>, RecoverError> {
    let is_known =
        |name: &String| shapes.get(name).is_some_and(|info| info.element_type.is_some() && !info.shape.is_empty());
    let made = model.graph().node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
    let extra_outputs: Vec<String> = made.filter(|name| !is_known(name)).cloned().collect();
    let mut known = shapes.clone();
    if !extra_outputs.is_empty() {
        let build = BuildOptions { threads: 1, extra_outputs: extra_outputs.clone(), ..BuildOptions::default() };
        let mut found = backend.build(model, &build)?.infer(sample)?;
        for name in extra_outputs {
            if let Some(tensor) = found.remove(&name) {
                let (element_type, shape) = (Some(tensor.element_type()), vec![None; tensor.shape().len()]);
                known.insert(name.clone(), TensorInfo { name, element_type, shape });
            }
        }
    }
    Ok(known)
}

/// Ranges around other centres, with the one in force, of the tensors that may have them.
fn shifts(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    placement: &Placement,
    table: &CalibrationTable,
    policy: ShiftPolicy,
    plain: &BTreeMap<String, Shift>,
) -> Result<BTreeMap<String, Vec<Shift>>, RecoverError> {
    let mut found = BTreeMap::new();
    for (tensor, needs) in shiftable(model.graph(), shapes, placement)? {
        let allowed = match policy {
            ShiftPolicy::All => true,
            ShiftPolicy::Unpadded => needs == Shiftable::Unpadded,
            ShiftPolicy::Off => false,
        };
        if let (true, Some(range), Some(&own)) = (allowed, table.tensors.get(&tensor), plain.get(&tensor)) {
            let mut candidates = ranges::candidates(range, true);
            candidates.retain(|candidate| candidate.offset != 0.0);
            if !candidates.is_empty() {
                candidates.insert(0, own);
                found.insert(tensor, candidates);
            }
        }
    }
    Ok(found)
}
