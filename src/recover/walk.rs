//! One walk through a network in lockstep: every operator in float and quantized, on the same samples.
//!
//! On the way each operator may choose its ranges, the rounding of its weights and its bias by what they do to its own
//! result. What comes before it is quantized already, so that it answers for the errors that reach it as well.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use rayon::prelude::*;

use super::{
    RecoverError,
    biases::correction,
    errors::{ChannelErrors, Objectives, sums},
    network::{Network, Operator},
    patches::Patches,
    peers::Peers,
    rounding::{Slopes, descend},
    scales::{Amount, Sizes},
    state::{State, activations, add_by_channel, run_quantized},
    unit::{Bound, Lane, Unit},
    weights::{Layout, Quantized},
};
use crate::{
    calibrate::{Equalized, Shift},
    compare::{Objective, Parts},
    quantize::Equalizable,
    tensor::{Tensor, TensorMap},
};

/// Samples that ranges are compared on, at most.
const RANGED: usize = 4;
/// Samples on which the best of what may equalize a tensor are found, and how many of them all held-out samples judge.
const FIRST: usize = 3;
const BEST: usize = 3;
/// Held-out samples that decide about the rounding of a weight, at most.
const JUDGED: usize = 8;
/// What is left of the error of a weight when it is rounded anew, at most.
const ROUNDS_CLEARLY: f64 = 0.95;
/// A choice must lower the error of the result by this share.
const CLEARLY: f64 = 0.995;

/// What a walk decides.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    /// Ranges to choose from, by tensor.
    pub candidates: BTreeMap<String, Vec<Shift>>,
    /// Tensors that may be equalized, with what it takes and the ranges around 0 to do it in.
    pub equalize: BTreeMap<String, (Equalizable, Vec<Shift>)>,
    pub biases: bool,
    /// Weights are rounded anew where an operator has at most this many columns; 0 for none.
    pub rounding: usize,
    /// Whether that takes back errors which reach them.
    pub compensates: bool,
    /// How outputs are judged.
    pub parts: Parts,
    /// Whether the outputs of the measured samples are kept.
    pub answers: bool,
    /// Who tries part of the candidates.
    pub peers: Peers,
}

/// What the outputs of a walk are like.
pub(super) struct Walked {
    /// Of every measured call.
    pub objectives: Objectives,
    /// The outputs of every measured call, all of them, where asked for.
    pub answers: Answered,
}

/// The outputs of calls.
#[derive(Default)]
pub(super) struct Answered {
    pub float: Vec<TensorMap>,
    pub quantized: Vec<TensorMap>,
}

/// Both sides of all samples.
struct Lanes {
    float: Vec<Lane>,
    quantized: Vec<Lane>,
}

/// The results of an operator on both sides.
struct Results {
    float: Vec<Tensor>,
    quantized: Vec<Tensor>,
}

/// What `run` gives for every lane, on all workers, in order.
fn each(
    lanes: &[impl Borrow<Lane> + Sync],
    run: impl Fn(&Lane) -> Result<TensorMap, RecoverError> + Sync,
) -> Result<Vec<Tensor>, RecoverError> {
    let nothing = || RecoverError::Unsupported("an operator gives nothing".to_owned());
    lanes.par_iter().map(|lane| run(lane.borrow())?.into_values().next().ok_or_else(nothing)).collect()
}

/// Runs `network` over `samples`, the first `fit` of which decide; the others are measured, all where there are no others.
pub(super) fn walk(
    network: &Network<'_>,
    samples: &[TensorMap],
    fit: usize,
    state: &mut State,
    tasks: &Tasks,
    patches: &Patches,
) -> Result<Walked, RecoverError> {
    let lane = |sample: &TensorMap| sample.clone().into_iter().collect::<Lane>();
    let mut lanes = Lanes { float: samples.iter().map(lane).collect(), quantized: samples.iter().map(lane).collect() };
    let mut decided: BTreeSet<String> = BTreeSet::new();
    let last_use = &network.last_use;
    for (index, unit) in network.units.iter().enumerate() {
        network.check()?;
        let over = unit.inputs.iter().chain(&unit.outputs);
        let over = over.filter(|name| last_use.get(*name).is_none_or(|&last| last <= index));
        let over: Vec<&String> = over.collect();
        let forget = |lane: &mut Lane| over.iter().for_each(|name| drop(lane.remove(*name)));
        if let Some(operator) = &unit.operator {
            let behind = &network.units[index + 1..];
            Step { unit, operator, behind, lanes: &mut lanes, fit, state, tasks, patches }.run(&mut decided)?;
            lanes.float.iter_mut().chain(&mut lanes.quantized).for_each(forget);
        } else {
            let both = lanes.float.par_iter_mut().chain(&mut lanes.quantized);
            both.try_for_each(|lane| {
                let made = unit.run(lane, &unit.exact, TensorMap::new())?;
                lane.extend(made);
                forget(lane);
                Ok::<_, RecoverError>(())
            })?;
        }
    }
    let (mut objectives, mut answers) = (Objectives::default(), Answered::default());
    for index in held_out(fit, samples.len()) {
        let mut objective = Objective::new(tasks.parts.clone());
        for name in &network.outputs {
            if let (Some(float), Some(quantized)) = (lanes.float[index].get(name), lanes.quantized[index].get(name)) {
                objective.add(name, float.view(), quantized.view())?;
            }
        }
        objectives.0.push(objective);
        if tasks.answers {
            let of =
                |lane: &Lane| network.answers.iter().filter_map(|name| lane.get_key_value(name)).map(owned).collect();
            answers.float.push(of(&lanes.float[index]));
            answers.quantized.push(of(&lanes.quantized[index]));
        }
    }
    Ok(Walked { objectives, answers })
}

/// The samples that are measured: those behind the first `fit`, or, without any, all.
fn held_out(fit: usize, samples: usize) -> Range<usize> {
    if fit < samples { fit..samples } else { 0..samples }
}

/// How far `other` is from `exact`.
fn difference(exact: &Tensor, other: &Tensor) -> Result<Tensor, RecoverError> {
    let (exact_values, other_values) = (exact.to_f32(), other.to_f32());
    let values = exact_values.iter().zip(&other_values).map(|(exact, other)| exact - other).collect();
    Ok(Tensor::from_f32(exact.shape().to_vec(), values)?)
}

/// A tensor with its name.
fn owned((name, tensor): (&String, &Tensor)) -> (String, Tensor) {
    (name.clone(), tensor.clone())
}

/// How far a unit's results on lanes are from those beside them.
fn error_on(
    lanes: &[(&Lane, &Tensor)],
    (unit, operator): (&Unit<'_>, &Operator),
    state: &State,
    bound: &Bound,
) -> Result<f64, RecoverError> {
    let of = |&(lane, exact): &(&Lane, &Tensor)| {
        let mut error = ChannelErrors::default();
        unit.visit(lane, bound, activations(operator, lane, state)?, |made| {
            error = ChannelErrors::of(operator, exact.view(), made);
        })?;
        Ok(error)
    };
    let errors = lanes.par_iter().map(of).collect::<Result<Vec<_>, RecoverError>>()?;
    let mut all = ChannelErrors::default();
    for error in &errors {
        all.add(error);
    }
    Ok(all.total(operator.channels.is_some()))
}

/// An operator that reads a tensor which is decided about.
struct Reader<'a> {
    unit: &'a Unit<'a>,
    operator: &'a Operator,
    /// Its quantized weight.
    bound: Bound,
    /// Its results in float, by the places of the samples that are looked at.
    float: BTreeMap<usize, Tensor>,
    /// The sum of their squares.
    power: f64,
}

impl<'a> Reader<'a> {
    fn new(
        unit: &'a Unit<'a>,
        operator: &'a Operator,
        float: BTreeMap<usize, Tensor>,
        state: &State,
    ) -> Result<Self, RecoverError> {
        let squares = |(_, tensor): (&usize, &Tensor)| {
            let values = tensor.view().to_f32();
            sums(&values, &values, |value, _| [f64::from(value).powi(2), 0.0])[0]
        };
        let power = float.par_iter().map(squares).collect::<Vec<f64>>().iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let mut reader = Self { unit, operator, bound: unit.exact.clone(), float, power };
        reader.quantize(state)?;
        Ok(reader)
    }

    /// Quantizes the weight for the factors in `state`.
    fn quantize(&mut self, state: &State) -> Result<(), RecoverError> {
        self.bound = self.unit.bound(Quantized::of(self.operator, state)?.values.as_ref())?;
        Ok(())
    }
}

/// One operator of a walk.
struct Step<'a> {
    unit: &'a Unit<'a>,
    operator: &'a Operator,
    /// What runs after it.
    behind: &'a [Unit<'a>],
    lanes: &'a mut Lanes,
    fit: usize,
    state: &'a mut State,
    tasks: &'a Tasks,
    patches: &'a Patches,
}

impl<'a> Step<'a> {
    fn run(&mut self, decided: &mut BTreeSet<String>) -> Result<(), RecoverError> {
        let (unit, operator) = (self.unit, self.operator);
        let plain = |lane: &Lane| unit.run(lane, &unit.exact, TensorMap::new());
        let mut results = Results { float: each(&self.lanes.float, plain)?, quantized: Vec::new() };
        if self.state.lifted.contains(&operator.node) {
            self.state.biases.remove(&operator.node);
            results.quantized = each(&self.lanes.quantized, plain)?;
            self.keep(results);
            return Ok(());
        }
        for tensor in &operator.quantized {
            let tasks = self.tasks;
            let (possible, candidates) = (tasks.equalize.get(tensor), tasks.candidates.get(tensor));
            if !decided.insert(tensor.clone()) || (possible.is_none() && candidates.is_none()) {
                continue;
            }
            let mut readers = self.readers(tensor, &results)?;
            if let Some(possible) = possible {
                self.equalize(tensor, possible, &mut readers)?;
            }
            if let Some(candidates) = candidates {
                self.choose_range(tensor, candidates, &readers)?;
            }
        }
        let mut quantized = Quantized::of(operator, self.state)?;
        if self.tasks.rounding > 0 {
            self.round(&mut quantized, &results.float)?;
        }
        results.quantized = self.results(0..self.lanes.quantized.len(), &unit.bound(quantized.values.as_ref())?)?;
        self.correct(&mut results);
        self.keep(results);
        Ok(())
    }

    fn keep(&mut self, results: Results) {
        let Some(name) = self.unit.outputs.first() else { return };
        for (lane, tensor) in self.lanes.float.iter_mut().zip(results.float) {
            lane.insert(name.clone(), tensor);
        }
        for (lane, tensor) in self.lanes.quantized.iter_mut().zip(results.quantized) {
            lane.insert(name.clone(), tensor);
        }
    }

    /// The results on `samples` from quantized inputs.
    fn results(&self, samples: Range<usize>, bound: &Bound) -> Result<Vec<Tensor>, RecoverError> {
        each(&self.lanes.quantized[samples], |lane| run_quantized(self.unit, self.operator, lane, self.state, bound))
    }

    /// The samples that judge what is chosen.
    fn judged(&self) -> Range<usize> {
        held_out(self.fit, self.lanes.float.len())
    }

    /// Whatever reads `tensor` quantized: this operator, and later ones that need nothing else.
    fn readers(&self, tensor: &str, results: &Results) -> Result<Vec<Reader<'a>>, RecoverError> {
        let ranged = self.fit.min(RANGED);
        let looked_at = (0..results.float.len()).filter(|at| *at < ranged || self.judged().contains(at));
        let looked_at: Vec<usize> = looked_at.collect();
        let own = looked_at.iter().map(|&at| (at, results.float[at].clone())).collect();
        let mut readers = vec![Reader::new(self.unit, self.operator, own, self.state)?];
        for unit in self.behind {
            let Some(operator) = unit.operator.as_ref().filter(|operator| operator.quantized == [tensor]) else {
                continue;
            };
            if operator.weight.is_none() || self.state.lifted.contains(&operator.node) {
                continue;
            }
            let lanes: Vec<&Lane> = looked_at.iter().map(|&at| &self.lanes.float[at]).collect();
            let float = each(&lanes, |lane| unit.run(lane, &unit.exact, TensorMap::new()))?;
            let float = looked_at.iter().copied().zip(float).collect();
            readers.push(Reader::new(unit, operator, float, self.state)?);
        }
        Ok(readers)
    }

    /// How far all of `readers` are from their float results on `samples`, each relative to these.
    fn error_of(&self, readers: &[Reader<'_>], samples: &Range<usize>) -> Result<f64, RecoverError> {
        let of = |Reader { unit, operator, bound, float, power }: &Reader<'_>| {
            let lanes: Vec<_> =
                float.range(samples.clone()).map(|(&at, exact)| (&self.lanes.quantized[at], exact)).collect();
            Ok(error_on(&lanes, (unit, operator), self.state, bound)? / power)
        };
        readers.iter().map(of).sum()
    }

    /// Multiplies the channels of `tensor` where held-out samples gain by it, perhaps with a wider one of `ranges` around 0:
    /// large values cost less once small ones no longer pay for them, and what few samples show of clipping is mostly chance.
    fn equalize(
        &mut self,
        tensor: &str,
        (possible, ranges): &(Equalizable, Vec<Shift>),
        readers: &mut [Reader<'_>],
    ) -> Result<(), RecoverError> {
        let tasks = self.tasks;
        let Some(plain) = self.state.ranges.get(tensor).copied().filter(|range| range.offset == 0.0) else {
            return Ok(());
        };
        let lanes = self.lanes.float[..self.fit].iter().filter_map(|lane| lane.get(tensor));
        let sizes = Sizes::of(self.operator, lanes, possible);
        // A channel that is rarely active has its largest values in other samples, which must show what cutting them costs.
        let judged = self.judged();
        let mut best = (self.error_of(readers, &judged)? * CLEARLY, plain, None);
        for round in 0..2 {
            let wider = ranges.iter().filter(|range| range.amax >= plain.amax);
            // What is to come may be larger than what was seen: half of the range is left over, or three quarters.
            let tried: Vec<(Shift, Amount)> = match round {
                0 => wider.map(|&range| (range, Amount::default())).collect(),
                _ => sizes.amounts().map(|amount| (best.1, amount)).collect(),
            };
            let found = |(range, amount): (Shift, Amount)| Some((range, sizes.exponents(range.amax, amount)?));
            let tried: Vec<(Shift, Equalized)> = tried.into_iter().filter_map(found).collect();
            let mut errors_on = |places: &[usize], samples: &Range<usize>| {
                let error = |place: usize| {
                    let (range, found) = &tried[places[place]];
                    self.state.ranges.insert(tensor.to_owned(), *range);
                    self.state.equalized.insert(tensor.to_owned(), found.clone());
                    readers.iter_mut().try_for_each(|reader| reader.quantize(self.state))?;
                    self.error_of(readers, samples)
                };
                tasks.peers.share(places.len(), |part| part.into_iter().map(error).collect())
            };
            let mut places: Vec<usize> = (0..tried.len()).collect();
            if tried.len() > BEST && judged.len() > FIRST {
                let errors = errors_on(&places, &(judged.start..judged.start + FIRST))?;
                places.sort_by(|&a, &b| errors[a].total_cmp(&errors[b]).then(a.cmp(&b)));
                places.truncate(BEST);
            }
            for (&place, error) in places.iter().zip(errors_on(&places, &judged)?) {
                if error < best.0 {
                    best = (error, tried[place].0, Some(tried[place].1.clone()));
                }
            }
        }
        self.state.ranges.insert(tensor.to_owned(), best.1);
        match best.2 {
            Some(found) => self.state.equalized.insert(tensor.to_owned(), found),
            None => self.state.equalized.remove(tensor),
        };
        readers.iter_mut().try_for_each(|reader| reader.quantize(self.state))
    }

    /// Takes the range of `tensor` whose effect on the results of `readers` is smallest.
    fn choose_range(&mut self, tensor: &str, candidates: &[Shift], readers: &[Reader<'_>]) -> Result<(), RecoverError> {
        let (tasks, mut best) = (self.tasks, None::<(f64, Shift)>);
        let error = |place: usize| {
            self.state.ranges.insert(tensor.to_owned(), candidates[place]);
            self.error_of(readers, &(0..self.fit.min(RANGED)))
        };
        let errors = tasks.peers.share(candidates.len(), |part| part.into_iter().map(error).collect())?;
        for (&candidate, error) in candidates.iter().zip(errors) {
            let before = best.map_or(f64::INFINITY, |(error, _)| error);
            if error < before * CLEARLY || best.is_none() {
                best = Some((error, candidate));
            }
        }
        if let Some((_, range)) = best {
            self.state.ranges.insert(tensor.to_owned(), range);
        }
        Ok(())
    }

    /// Rounds the weight by what it is multiplied with, and keeps that where held-out samples gain. `float` are the results of all.
    fn round(&mut self, quantized: &mut Quantized, float: &[Tensor]) -> Result<(), RecoverError> {
        let operator = self.operator;
        let (Some(weight), Some(values), Some(params)) = (&operator.weight, &quantized.values, &quantized.params)
        else {
            return Ok(());
        };
        let [tensor] = &operator.quantized[..] else { return Ok(()) };
        let Some(layout) =
            Layout::of(operator, weight).filter(|layout| weight.own && layout.columns <= self.tasks.rounding)
        else {
            return Ok(());
        };
        let state = &*self.state;
        let compensates = self.tasks.compensates;
        let inputs = self.lanes.quantized[..self.fit].par_iter();
        let inputs = inputs.filter_map(|lane| state.quantized(operator, tensor, lane.get(tensor)?));
        let inputs = inputs.collect::<Result<Vec<Tensor>, _>>()?;
        let errors = inputs.par_iter().zip(&self.lanes.float[..self.fit]);
        let errors = errors.filter_map(|(input, lane)| Some(difference(lane.get(tensor)?, input)));
        let errors = compensates.then(|| errors.collect::<Result<Vec<Tensor>, _>>()).transpose()?;
        let window = operator.window.as_ref();
        let Some(mut slopes) = self.patches.slopes(&inputs, errors.as_deref(), window, weight.shape(), layout)? else {
            return Ok(());
        };
        drop((inputs, errors));
        for Slopes { moments, errors } in &mut slopes {
            quantized.scaled(moments, layout);
            if let Some(errors) = errors {
                quantized.scaled(errors, layout);
            }
        }
        let mut codes = layout.rows(&quantized.nearest);
        let rows = layout.rows(&quantized.exact);
        let per_group = (codes.len() / slopes.len().max(1)).max(1);
        let moved: usize = (codes.par_iter_mut().zip(&rows).enumerate())
            .map(|(channel, (codes, weights))| {
                let scale = params.scales.get(channel).or(params.scales.first()).copied().unwrap_or(1.0);
                descend(weights, scale, codes, slopes.get(channel / per_group).unwrap_or(&slopes[0]))
            })
            .sum();
        if moved == 0 {
            return Ok(());
        }
        let codes = layout.join(&codes);
        let new = quantized.with_codes(&codes, weight)?;
        let judged = self.judged();
        let judged = judged.start..judged.end.min(judged.start + JUDGED);
        // Errors that come in are no matter of the weights, unless they take them back.
        let exact = if compensates { Vec::new() } else { self.results(judged.clone(), &self.unit.exact)? };
        let exact = if compensates { &float[judged.clone()] } else { &exact };
        let lanes: Vec<_> = self.lanes.quantized[judged].iter().zip(exact).collect();
        let error = |place: usize| {
            let bound = self.unit.bound(Some([values, &new][place]))?;
            error_on(&lanes, (self.unit, operator), self.state, &bound)
        };
        let errors = self.tasks.peers.share(2, |part| part.into_iter().map(error).collect())?;
        if errors[1] < errors[0] * if compensates { CLEARLY } else { ROUNDS_CLEARLY } {
            let differences: Vec<i8> =
                codes.iter().zip(&quantized.nearest).map(|(code, nearest)| (code - nearest) as i8).collect();
            self.state.rounding.insert(weight.name.clone(), differences);
            (quantized.values, quantized.codes) = (Some(new), codes);
        }
        Ok(())
    }

    /// Adds to the quantized results what the bias takes back, found anew or known.
    fn correct(&mut self, results: &mut Results) {
        let operator = self.operator;
        let Some(channels) = operator.channels else { return };
        if self.tasks.biases {
            let found = correction(operator, channels, &results.float, &results.quantized, self.fit);
            match found {
                Some(found) => self.state.biases.insert(operator.node.clone(), found),
                None => self.state.biases.remove(&operator.node),
            };
        }
        if let Some(values) = self.state.biases.get(&operator.node) {
            results.quantized.par_iter_mut().for_each(|tensor| add_by_channel(operator, tensor, values));
        }
    }
}
