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
    calibrate::{
        CalibrationTable, DeployTo, Effort, Lifted, Recovered, RecoveryStep, Rounding, Shift, ShiftPolicy, StepKind,
    },
    compare::{Answers, CompareError, OwnMetric, Parts, ShapeDependsOnData},
    onnx::{GraphError, Model},
    qparams::QParamsError,
    quantize::{Equalizable, Placement, QuantizeError, Shiftable, equalizable, shiftable},
    tensor::{ShapeError, TensorMap},
};
use descent::Descent;
use errors::Objectives;
use network::Network;
pub use options::RecoverOptions;
use patches::Patches;
pub use peers::Peers;
use state::{State, whole_correction};
use walk::{Tasks, walk};

/// Decibels by which a step must lower the error on held-out samples to be kept.
const MARGIN_DB: f64 = 0.02;
/// The same for ranges chosen by the outputs of few samples, which follow these samples more than others.
const DESCENT_MARGIN_DB: f64 = 0.3;
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
}

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
    let Material { backend, model, shapes, placement, parts, ignored, stop, mut fit, mut held_out, judge } = material;
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
    let state = State {
        ranges: table.tensors.iter().map(|(name, range)| (name.clone(), ranges::plain(range))).collect(),
        ..State::default()
    };
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
    };
    let may = |step: &StepKind| options.steps.contains(step);
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
    if options.effort == Effort::Fast && TOGETHER.iter().all(may) {
        let candidates = with_shifts(&plain)?;
        let tasks = Tasks { biases: true, candidates, equalize: equalize.clone(), ..Tasks::default() };
        steps.biases = steps.try_out(&TOGETHER, tasks)?;
    }
    if !steps.biases {
        if may(&StepKind::Biases) {
            steps.biases = steps.try_out(&[StepKind::Biases], Tasks { biases: true, ..Tasks::default() })?;
        }
        if may(&StepKind::Ranges) {
            steps.try_out(&[StepKind::Ranges], Tasks { candidates: ranges.clone(), ..Tasks::default() })?;
        }
        if may(&StepKind::Equalization) && !equalize.is_empty() {
            steps.try_out(&[StepKind::Equalization], Tasks { equalize, ..Tasks::default() })?;
        }
        plain.clone_from(&steps.state.ranges);
        let candidates = shifts(&plain)?;
        if may(&StepKind::Shift) && !candidates.is_empty() {
            steps.try_out(&[StepKind::Shift], Tasks { candidates, ..Tasks::default() })?;
        }
    }
    if may(&StepKind::Descent) && options.descended() > 0 {
        steps.descend(&with_shifts(&plain)?, options.descended())?;
    }
    plain.extend(
        steps.state.ranges.iter().filter(|(_, range)| range.offset == 0.0).map(|(name, &range)| (name.clone(), range)),
    );
    if may(&StepKind::Rounding) && options.columns() > 0 {
        steps.try_out(&[StepKind::Rounding], Tasks { rounding: options.columns(), ..Tasks::default() })?;
    }
    let lifted = if may(&StepKind::Lifting) && options.lift_budget > 0.0 && options.effort != Effort::Fast {
        steps.lift(options.lift_budget)?
    } else {
        Vec::new()
    };
    if let Some(first) = steps.rows.first_mut() {
        first.seconds += measuring;
    }
    steps.into_table(table, &plain, lifted, options)
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

/// The steps so far.
struct Steps<'a> {
    network: Network<'a>,
    patches: Patches,
    samples: Vec<TensorMap>,
    fit: usize,
    state: State,
    /// The outputs of the state so far.
    before: Objectives,
    rows: Vec<RecoveryStep>,
    /// Whether biases are corrected, so that later steps correct them anew.
    biases: bool,
    parts: Parts,
    peers: Peers,
    judge: Option<Judge>,
    /// What the judge gives for the state so far.
    value: Option<f64>,
}

impl Steps<'_> {
    /// Measures the state so far on held-out samples.
    fn measure(&mut self) -> Result<(), RecoverError> {
        let held_out = if self.fit < self.samples.len() { &self.samples[self.fit..] } else { &self.samples[..] };
        let tasks = Tasks { parts: self.parts.clone(), answers: self.judge.is_some(), ..Tasks::default() };
        let walked = walk(&self.network, held_out, 0, &mut self.state, &tasks, &self.patches)?;
        (self.before, self.value) = (walked.objectives, self.judged(walked.answers)?);
        Ok(())
    }

    /// What the judge says to the quantized outputs of the held-out calls.
    fn judged(&self, answers: Vec<TensorMap>) -> Result<Option<f64>, RecoverError> {
        let Some(judge) = &self.judge else { return Ok(None) };
        let named = judge.ids.iter().zip(answers).map(|(ids, outputs)| Answers { ids: ids.clone(), outputs });
        Ok(Some(judge.metric.value(named.collect())?))
    }

    /// Tries a step, or some at once, and keeps it where the outputs gain; returns whether it was kept.
    fn try_out(&mut self, steps: &[StepKind], tasks: Tasks) -> Result<bool, RecoverError> {
        self.try_from(steps, self.state.clone(), tasks)
    }

    /// The same from another state. Biases are corrected anew in every step, once they have proved worth it.
    fn try_from(&mut self, steps: &[StepKind], mut next: State, tasks: Tasks) -> Result<bool, RecoverError> {
        let started = Instant::now();
        let (biases, answers) = (tasks.biases || self.biases, self.judge.is_some());
        let tasks = Tasks { biases, answers, parts: self.parts.clone(), peers: self.peers.clone(), ..tasks };
        let walked = walk(&self.network, &self.samples, self.fit, &mut next, &tasks, &self.patches)?;
        let (before_db, after_db) = (self.before.decibels(), walked.objectives.decibels());
        let value = self.judged(walked.answers)?;
        let margin = if steps == [StepKind::Descent] { DESCENT_MARGIN_DB } else { MARGIN_DB };
        let gains = match (before_db, after_db) {
            (Some(before), Some(after)) => after > before + margin,
            _ => false,
        };
        let metric = self.value.zip(value);
        // Of what the metric does not tell apart, the error tells which is better.
        let kept = metric.and_then(|(before, after)| OwnMetric::prefers(before, after)).unwrap_or(gains);
        let what = changes(&self.state, &next);
        let what = metric.map_or(what.clone(), |(before, after)| format!("{what}; metric {before} to {after}"));
        let what = match (kept, &*what) {
            (true, _) | (_, NOTHING) => what,
            _ => format!("{what}; not kept, for held-out samples do not gain by it"),
        };
        let gain_interval_db = walked.objectives.gain_interval(&self.before);
        let name = steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let seconds = started.elapsed().as_secs_f64();
        self.rows.push(RecoveryStep { name, kept, before_db, after_db, gain_interval_db, seconds, what });
        if kept {
            (self.state, self.before, self.value) = (next, walked.objectives, value);
        }
        Ok(kept)
    }

    /// Chooses the ranges of the `most` tensors that matter most among `candidates`, by the outputs of the model.
    fn descend(&mut self, candidates: &BTreeMap<String, Vec<Shift>>, most: usize) -> Result<(), RecoverError> {
        let started = Instant::now();
        let mut next = self.state.clone();
        let few = &self.samples[..self.fit.min(DESCENDED_ON)];
        Descent::new(&self.network, few, &mut next, &self.parts, &self.peers)?.descend(candidates, most)?;
        if next.ranges == self.state.ranges {
            return Ok(());
        }
        let choosing = started.elapsed().as_secs_f64();
        self.try_from(&[StepKind::Descent], next, Tasks::default())?;
        if let Some(row) = self.rows.last_mut() {
            row.seconds += choosing;
        }
        Ok(())
    }

    /// Leaves operators in the high precision where that is worth most.
    fn lift(&mut self, budget: f64) -> Result<Vec<Lifted>, RecoverError> {
        let started = Instant::now();
        let few = self.samples.len().min(RANKED_ON);
        let ranked = rank::rank(&self.network, &self.samples[..few], &self.state, &self.parts, &self.peers)?;
        let picked = lifting::pick(&ranked, budget);
        let (noise, macs) = ranked.iter().fold((0.0, 0.0), |(noise, macs), one| (noise + one.noise, macs + one.macs));
        if picked.is_empty() {
            return Ok(Vec::new());
        }
        let mut next = self.state.clone();
        next.lifted.extend(picked.iter().map(|&index| ranked[index].node.clone()));
        let ranking = started.elapsed().as_secs_f64();
        let kept = self.try_from(&[StepKind::Lifting], next, Tasks::default())?;
        if let Some(row) = self.rows.last_mut() {
            row.seconds += ranking;
        }
        let lifted = |&index: &usize| {
            let one = &ranked[index];
            Lifted { node: one.node.clone(), noise: one.noise / noise, macs: one.macs / macs }
        };
        Ok(if kept { picked.iter().map(lifted).collect() } else { Vec::new() })
    }

    fn into_table(
        self,
        table: &CalibrationTable,
        plain: &BTreeMap<String, Shift>,
        lifted: Vec<Lifted>,
        options: &RecoverOptions,
    ) -> Result<CalibrationTable, RecoverError> {
        let mut table = table.clone();
        for (name, range) in &mut table.tensors {
            // The range around 0 stays for plans that need it: where a consumer cannot take the shift back.
            if let Some(own) = plain.get(name) {
                range.method = ranges::nearest_method(&range.candidates, own.amax, range.method);
                range.amax = own.amax;
            }
        }
        for operator in self.network.units.iter().filter_map(|unit| unit.operator.as_ref()) {
            if let Some(whole) = whole_correction(operator, &self.state)? {
                table.bias_corrections.insert(operator.node.clone(), whole);
            }
        }
        let State { ranges, equalized, rounding, .. } = self.state;
        let moved = |differences: &Vec<i8>| differences.iter().any(|&difference| difference != 0);
        table.recovered = Some(Recovered {
            effort: options.effort,
            deploy_to: options.deploy_to,
            shift: options.shift,
            shifts: ranges.into_iter().filter(|(_, range)| range.offset != 0.0).collect(),
            equalized,
            rounding: (rounding.into_iter().filter(|(_, differences)| moved(differences)))
                .map(|(weight, differences)| (weight, Rounding::new(&differences)))
                .collect(),
            lifted,
            steps: self.rows,
        });
        Ok(table)
    }
}

/// What a step changed that changed nothing.
const NOTHING: &str = "nothing";

/// What a step changed, in words.
fn changes(before: &State, after: &State) -> String {
    let count = |number: usize, one: &str, many: &str| match number {
        0 => None,
        1 => Some(format!("1 {one}")),
        number => Some(format!("{number} {many}")),
    };
    let ranges = after.ranges.iter().filter(|(name, range)| before.ranges.get(*name) != Some(range));
    let (shifted, moved): (Vec<_>, Vec<_>) = ranges.partition(|(_, range)| range.offset != 0.0);
    let equalized = after.equalized.len() - before.equalized.len();
    let biases = after.biases.iter().filter(|(name, values)| before.biases.get(*name) != Some(values)).count();
    let weights = after.rounding.len().saturating_sub(before.rounding.len());
    let parts = [
        count(moved.len(), "range", "ranges"),
        count(equalized, "activation equalized", "activations equalized"),
        count(shifted.len(), "activation shifted", "activations shifted"),
        count(biases, "bias", "biases"),
        count(weights, "weight rounded anew", "weights rounded anew"),
        count(after.lifted.len() - before.lifted.len(), "node lifted", "nodes lifted"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { NOTHING.to_owned() } else { parts.join(", ") }
}
