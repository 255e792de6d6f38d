//! One walk through a network in lockstep: every operator in float and quantized, on the same samples.
//!
//! On the way each operator may choose its ranges, the rounding of its weights and its bias by what they do to its own
//! result. What comes before it is quantized already, so that it answers for the errors that reach it as well.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use rayon::prelude::*;

use super::{
    RecoverError,
    biases::correction,
    network::{Network, Operator, Unit},
    patches::Patches,
    ranges::fake_quantize,
    rounding::descend,
    scales::{channel_maxima, exponents},
    weights::{Layout, Quantized},
};
use crate::{
    calibrate::{Equalized, Shift},
    compare::{Objective, Parts},
    stats::{half_width, jackknife},
    tensor::{Tensor, TensorMap},
};

/// Samples that ranges are compared on, at most.
const RANGED: usize = 4;
/// Held-out samples that decide about the rounding of a weight, or the channels of a tensor, at most.
const JUDGED: usize = 8;
/// What is left of the error of a weight when it is rounded anew, at most.
const ROUNDS_CLEARLY: f64 = 0.95;
/// A choice must lower the error of the result by this share.
const CLEARLY: f64 = 0.995;

/// How a network is quantized.
#[derive(Clone, Default)]
pub(super) struct State {
    /// Of every quantized tensor.
    pub ranges: BTreeMap<String, Shift>,
    /// By tensor, what its channels are multiplied with before that.
    pub equalized: BTreeMap<String, Equalized>,
    /// By node, what its bias takes back.
    pub biases: BTreeMap<String, Vec<f32>>,
    /// By weight, differences of its codes from the nearest.
    pub rounding: BTreeMap<String, Vec<i8>>,
    /// Nodes in float.
    pub lifted: BTreeSet<String>,
}

impl State {
    /// What the quantizer of `tensor` leaves of its values; `None` where it has none.
    fn quantized(&self, tensor: &str, values: &Tensor) -> Option<Result<Tensor, RecoverError>> {
        let range = *self.ranges.get(tensor)?;
        let mut numbers = values.to_f32();
        match self.equalized.get(tensor).map(Equalized::factors) {
            Some(factors) => {
                let blocks = numbers.chunks_mut(inner(values.shape())).zip(factors.iter().cycle());
                blocks.for_each(|(values, &factor)| fake_quantize(values, range, factor));
            }
            None => fake_quantize(&mut numbers, range, 1.0),
        }
        Some(Tensor::from_f32(values.shape().to_vec(), numbers).map_err(Into::into))
    }
}

/// What a walk decides.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    /// Ranges to choose from, by tensor.
    pub candidates: BTreeMap<String, Vec<Shift>>,
    /// Tensors that may be equalized, with their channels and the ranges around 0 to do it in.
    pub equalize: BTreeMap<String, (usize, Vec<Shift>)>,
    pub biases: bool,
    /// Weights are rounded anew where an operator has at most this many columns; 0 for none.
    pub rounding: usize,
    /// How outputs are judged.
    pub parts: Parts,
    /// Whether the quantized outputs of the measured samples are kept.
    pub answers: bool,
}

/// What the outputs of a walk are like.
pub(super) struct Walked {
    /// Of every measured call.
    pub objectives: Objectives,
    /// The quantized outputs of every measured call, all of them, where asked for.
    pub answers: Vec<TensorMap>,
}

/// How far the outputs of several calls are from those of the float model.
#[derive(Clone, Default)]
pub(super) struct Objectives(Vec<Objective>);

impl Objectives {
    /// Over all calls, or without one of them.
    fn whole(&self, without: Option<usize>) -> Option<f64> {
        let mut whole: Option<Objective> = None;
        for (_, call) in self.0.iter().enumerate().filter(|(index, _)| Some(*index) != without) {
            match &mut whole {
                Some(whole) => whole.append(call),
                None => whole = Some(call.clone()),
            }
        }
        whole?.decibels()
    }

    /// Signal to noise over all calls, in decibels.
    pub fn decibels(&self) -> Option<f64> {
        self.whole(None)
    }

    /// The 95 % interval of what these gain over the same calls before, in decibels: each call is left out of both in turn.
    pub fn gain_interval(&self, before: &Self) -> Option<[f64; 2]> {
        let gain = |without| Some(self.whole(without)? - before.whole(without)?).filter(|gain| gain.is_finite());
        let calls = self.0.len();
        let left: Vec<f64> = (0..calls).map(|call| gain(Some(call))).collect::<Option<_>>()?;
        let half = half_width(jackknife(&left)?, calls as u64, 0.95)?;
        let all = gain(None)?;
        Some([all - half, all + half])
    }
}

/// Tensors of one sample on one side.
pub(super) type Lane = HashMap<String, Tensor>;

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
    lanes: &[Lane],
    run: impl Fn(&Lane) -> Result<TensorMap, RecoverError> + Sync,
) -> Result<Vec<Tensor>, RecoverError> {
    let nothing = || RecoverError::Unsupported("an operator gives nothing".to_owned());
    lanes.par_iter().map(|lane| run(lane)?.into_values().next().ok_or_else(nothing)).collect()
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
            Step { unit, operator, lanes: &mut lanes, fit, state, tasks, patches }.run(&mut decided)?;
            lanes.float.iter_mut().chain(&mut lanes.quantized).for_each(forget);
        } else {
            let both = lanes.float.par_iter_mut().chain(&mut lanes.quantized);
            both.try_for_each(|lane| {
                let made = unit.run(lane, TensorMap::new())?;
                lane.extend(made);
                forget(lane);
                Ok::<_, RecoverError>(())
            })?;
        }
    }
    let (mut objectives, mut answers) = (Objectives::default(), Vec::new());
    let measured = if fit < samples.len() { fit..samples.len() } else { 0..samples.len() };
    for index in measured {
        let mut objective = Objective::new(tasks.parts.clone());
        for name in &network.outputs {
            if let (Some(float), Some(quantized)) = (lanes.float[index].get(name), lanes.quantized[index].get(name)) {
                objective.add(name, float.view(), quantized.view())?;
            }
        }
        objectives.0.push(objective);
        if tasks.answers {
            let lane = &lanes.quantized[index];
            answers.push(network.answers.iter().filter_map(|name| lane.get_key_value(name)).map(owned).collect());
        }
    }
    Ok(Walked { objectives, answers })
}

/// A tensor with its name.
fn owned((name, tensor): (&String, &Tensor)) -> (String, Tensor) {
    (name.clone(), tensor.clone())
}

/// One operator of a walk.
struct Step<'a> {
    unit: &'a Unit,
    operator: &'a Operator,
    lanes: &'a mut Lanes,
    fit: usize,
    state: &'a mut State,
    tasks: &'a Tasks,
    patches: &'a Patches,
}

impl Step<'_> {
    fn run(&mut self, decided: &mut BTreeSet<String>) -> Result<(), RecoverError> {
        let (unit, operator) = (self.unit, self.operator);
        let weights = operator.weight.as_ref().map(|weight| &weight.values[..]);
        let exact = operator.parameters(weights, operator.bias.as_deref());
        let plain = |lane: &Lane| unit.run(lane, exact.clone());
        let mut results = Results { float: each(&self.lanes.float, plain)?, quantized: Vec::new() };
        if self.state.lifted.contains(&operator.node) {
            self.state.biases.remove(&operator.node);
            results.quantized = each(&self.lanes.quantized, plain)?;
            self.keep(results);
            return Ok(());
        }
        let mut quantized = Quantized::of(operator, self.state)?;
        for tensor in &operator.quantized {
            if !decided.insert(tensor.clone()) {
                continue;
            }
            if let Some(possible) = self.tasks.equalize.get(tensor) {
                self.equalize(tensor, possible, &quantized, &results)?;
            }
            if let Some(candidates) = self.tasks.candidates.get(tensor) {
                self.choose_range(tensor, candidates, &quantized, &results)?;
            }
        }
        if self.tasks.rounding > 0 {
            self.round(&mut quantized, &results)?;
        }
        results.quantized = self.results(0..self.lanes.quantized.len(), quantized.values.as_deref())?;
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
    fn results(&self, samples: Range<usize>, weight: Option<&[f32]>) -> Result<Vec<Tensor>, RecoverError> {
        let parameters = self.operator.parameters(weight, self.operator.bias.as_deref());
        each(&self.lanes.quantized[samples], |lane| {
            run_quantized(self.unit, self.operator, lane, self.state, &parameters)
        })
    }

    /// How far the results on `samples` are from the float ones.
    fn error(&self, samples: Range<usize>, weight: Option<&[f32]>, exact: &[Tensor]) -> Result<f64, RecoverError> {
        let made = self.results(samples, weight)?;
        let mut error = ChannelErrors::default();
        for (made, exact) in made.iter().zip(exact) {
            error.add(self.operator, exact, made);
        }
        Ok(error.total(self.operator.bias.is_some()))
    }

    /// Multiplies the channels of `tensor` where held-out samples gain by it, perhaps with another one of `ranges` around 0:
    /// large values cost less once small ones no longer pay for them.
    fn equalize(
        &mut self,
        tensor: &str,
        (channels, ranges): &(usize, Vec<Shift>),
        weights: &Quantized,
        results: &Results,
    ) -> Result<(), RecoverError> {
        let Some(plain) = self.state.ranges.get(tensor).copied().filter(|range| range.offset == 0.0) else {
            return Ok(());
        };
        let maxima = channel_maxima(self.lanes.float[..self.fit].iter().filter_map(|lane| lane.get(tensor)), *channels);
        let judged = self.judged(results.float.len());
        let exact = &results.float[judged.clone()];
        let mut best = (self.error(judged.clone(), weights.values.as_deref(), exact)? * CLEARLY, plain, None);
        for round in 0..2 {
            // What is to come may be larger than what was seen, so that some is left over in the end.
            let tried: Vec<(Shift, i32, u8)> = match round {
                0 => ranges.iter().map(|&range| (range, 0, Equalized::MOST)).collect(),
                _ => vec![(best.1, 1, Equalized::MOST), (best.1, 0, Equalized::MOST / 2)],
            };
            for (range, spare, most) in tried {
                let Some(found) = exponents(&maxima, range.amax, spare, most) else { continue };
                self.state.ranges.insert(tensor.to_owned(), range);
                self.state.equalized.insert(tensor.to_owned(), found.clone());
                let error = self.error(judged.clone(), weights.values.as_deref(), exact)?;
                if error < best.0 {
                    best = (error, range, Some(found));
                }
            }
        }
        self.state.ranges.insert(tensor.to_owned(), best.1);
        match best.2 {
            Some(found) => self.state.equalized.insert(tensor.to_owned(), found),
            None => self.state.equalized.remove(tensor),
        };
        Ok(())
    }

    /// The samples that single choices are judged on: held-out ones, or, without any, those that fit.
    fn judged(&self, samples: usize) -> Range<usize> {
        let held_out = if self.fit < samples { self.fit..samples } else { 0..self.fit };
        held_out.start..held_out.end.min(held_out.start + JUDGED)
    }

    /// Takes the range of `tensor` whose effect on the result is smallest.
    fn choose_range(
        &mut self,
        tensor: &str,
        candidates: &[Shift],
        weights: &Quantized,
        results: &Results,
    ) -> Result<(), RecoverError> {
        let mut best: Option<(f64, Shift)> = None;
        for &candidate in candidates {
            self.state.ranges.insert(tensor.to_owned(), candidate);
            let error = self.error(0..self.fit.min(RANGED), weights.values.as_deref(), &results.float)?;
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

    /// Rounds the weight by what it is multiplied with, and keeps that where held-out samples gain.
    fn round(&mut self, quantized: &mut Quantized, results: &Results) -> Result<(), RecoverError> {
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
        let inputs = self.lanes.quantized[..self.fit].par_iter();
        let inputs = inputs.filter_map(|lane| state.quantized(tensor, lane.get(tensor)?));
        let inputs = inputs.collect::<Result<Vec<Tensor>, _>>()?;
        let Some(moments) = self.patches.moments(&inputs, operator.window.as_ref(), &weight.shape, layout)? else {
            return Ok(());
        };
        drop(inputs);
        let mut codes = layout.rows(&quantized.codes);
        let rows = layout.rows(&weight.values);
        let per_group = (codes.len() / moments.len().max(1)).max(1);
        let moved: usize = (codes.par_iter_mut().zip(&rows).enumerate())
            .map(|(channel, (codes, weights))| {
                let scale = params.scales.get(channel).or(params.scales.first()).copied().unwrap_or(1.0);
                descend(weights, scale, codes, moments.get(channel / per_group).unwrap_or(&moments[0]))
            })
            .sum();
        if moved == 0 {
            return Ok(());
        }
        let new = quantized.with_codes(layout.join(&codes), weight);
        let held_out = self.judged(results.float.len());
        // Errors that come in are no matter of the weights.
        let exact = self.results(held_out.clone(), Some(&weight.values))?;
        let before = self.error(held_out.clone(), Some(values), &exact)?;
        let after = self.error(held_out, Some(&new.0), &exact)?;
        if after < before * ROUNDS_CLEARLY {
            let (values, codes) = new;
            let differences: Vec<i8> =
                codes.iter().zip(&quantized.nearest).map(|(code, nearest)| (code - nearest) as i8).collect();
            self.state.rounding.insert(weight.name.clone(), differences);
            (quantized.values, quantized.codes) = (Some(values), codes);
        }
        Ok(())
    }

    /// Adds to the quantized results what the bias takes back, found anew or known.
    fn correct(&mut self, results: &mut Results) {
        let operator = self.operator;
        let Some(bias) = &operator.bias else { return };
        if self.tasks.biases {
            let found = correction(operator.tail, bias.len(), &results.float, &results.quantized, self.fit);
            match found {
                Some(found) => self.state.biases.insert(operator.node.clone(), found),
                None => self.state.biases.remove(&operator.node),
            };
        }
        if let Some(values) = self.state.biases.get(&operator.node) {
            results.quantized.par_iter_mut().for_each(|tensor| add_by_channel(tensor, values));
        }
    }
}

/// Adds a number to every channel of a result.
fn add_by_channel(tensor: &mut Tensor, values: &[f32]) {
    let shape = tensor.shape().to_vec();
    let inner = inner(&shape);
    let mut sums = tensor.to_f32();
    for (block, numbers) in sums.chunks_mut(inner).enumerate() {
        let value = values[block % values.len()];
        for number in numbers {
            *number += value;
        }
    }
    if let Ok(new) = Tensor::from_f32(shape, sums) {
        *tensor = new;
    }
}

/// Numbers of one channel that lie together in a result: maps have channels second, rows have them last.
pub(super) fn inner(shape: &[usize]) -> usize {
    if shape.len() > 2 { shape[2..].iter().product::<usize>().max(1) } else { 1 }
}

/// Errors of results by channel, behind what is fused with the operator.
#[derive(Default)]
struct ChannelErrors {
    count: f64,
    sums: Vec<(f64, f64)>,
}

impl ChannelErrors {
    fn add(&mut self, operator: &Operator, float: &Tensor, quantized: &Tensor) {
        let channels = operator.bias.as_ref().map_or(1, Vec::len);
        self.sums.resize(channels, (0.0, 0.0));
        let inner = inner(float.shape());
        let (float, quantized) = (float.view().to_f32(), quantized.view().to_f32());
        self.count += float.len() as f64 / channels as f64;
        for (block, (f, q)) in float.chunks(inner).zip(quantized.chunks(inner)).enumerate() {
            let (mut sum, mut squares) = (0.0f32, 0.0f32);
            for (&f, &q) in f.iter().zip(q) {
                let error = f - q;
                (sum, squares) = (sum + error, squares + error * error);
            }
            let total = &mut self.sums[block % channels];
            *total = (total.0 + f64::from(sum), total.1 + f64::from(squares));
        }
    }

    /// Sum of squares; without the part that a bias takes back.
    fn total(&self, corrected: bool) -> f64 {
        let of = |&(sum, squares): &(f64, f64)| if corrected { squares - sum * sum / self.count } else { squares };
        self.sums.iter().map(of).sum()
    }
}

/// Runs an operator with its weight and bias in `parameters` on quantized activations.
fn run_quantized(
    unit: &Unit,
    operator: &Operator,
    lane: &Lane,
    state: &State,
    parameters: &TensorMap,
) -> Result<TensorMap, RecoverError> {
    let mut given = parameters.clone();
    for tensor in &operator.quantized {
        if let Some(left) = lane.get(tensor).and_then(|values| state.quantized(tensor, values)) {
            given.insert(tensor.clone(), left?);
        }
    }
    unit.run(lane, given)
}

/// The result of one operator that alone is quantized, with the name of its tensor.
pub(super) fn alone(
    unit: &Unit,
    operator: &Operator,
    float: &Lane,
    state: &State,
) -> Result<Option<(String, Tensor)>, RecoverError> {
    let weights = Quantized::of(operator, state)?;
    let parameters = operator.parameters(weights.values.as_deref(), operator.bias.as_deref());
    let made = run_quantized(unit, operator, float, state, &parameters)?;
    let Some((name, mut tensor)) = made.into_iter().next() else { return Ok(None) };
    if let Some(bias) = state.biases.get(&operator.node) {
        add_by_channel(&mut tensor, bias);
    }
    Ok(Some((name, tensor)))
}

/// What the bias of an operator must take back in all, when its input is quantized around `offset`: the rounding of the
/// weights moves what the offset contributes. `None` for nothing.
pub(super) fn whole_correction(operator: &Operator, state: &State) -> Result<Option<Vec<f32>>, RecoverError> {
    let (Some(bias), Some(weight)) = (&operator.bias, &operator.weight) else { return Ok(None) };
    if state.lifted.contains(&operator.node) {
        return Ok(None);
    }
    let mut whole: Vec<f64> = state
        .biases
        .get(&operator.node)
        .map_or_else(|| vec![0.0; bias.len()], |known| known.iter().map(|&v| v.into()).collect());
    let tensor = operator.quantized.first();
    let offset = tensor.and_then(|tensor| state.ranges.get(tensor)).map_or(0.0, |range| range.offset);
    let factors = tensor.and_then(|tensor| state.equalized.get(tensor)).map(Equalized::factors);
    if let (true, Some(layout)) = (offset != 0.0, Layout::of_any(operator, weight)) {
        let rounded = Quantized::of(operator, state)?.values.unwrap_or_default();
        let (exact, rounded) = (layout.rows(&weight.values), layout.rows(&rounded));
        let each = factors.as_ref().map_or(1, |factors| layout.channels / factors.len());
        for (channel, ((sum, exact), rounded)) in whole.iter_mut().zip(exact).zip(rounded).enumerate() {
            let factor = factors.as_ref().map_or(1.0, |factors| factors[channel / each]);
            let moved: f64 = rounded.iter().zip(&exact).map(|(r, e)| f64::from(*r) - f64::from(*e)).sum();
            *sum += f64::from(offset / factor) * moved;
        }
    }
    Ok(whole.iter().any(|&value| value != 0.0).then(|| whole.into_iter().map(|value| value as f32).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls with one value each: 1 in float, and with this error.
    fn calls(errors: &[f32]) -> Objectives {
        let tensor = |value: f32| Tensor::from_f32(vec![1, 1], vec![value]).unwrap();
        let call = |&error: &f32| {
            let mut objective = Objective::new(Parts::new());
            objective.add("y", tensor(1.0).view(), tensor(1.0 + error).view()).unwrap();
            objective
        };
        Objectives(errors.iter().map(call).collect())
    }

    #[test]
    fn gains_are_told_from_chance_by_pairs_of_calls() {
        // However unlike calls are, a tenth of the error in each of them is 20 dB.
        let (before, after) = (calls(&[0.5, 0.25, 0.125, 1.0]), calls(&[0.05, 0.025, 0.0125, 0.1]));
        let [low, high] = after.gain_interval(&before).unwrap();
        assert!((low - 20.0).abs() < 1e-3 && (high - 20.0).abs() < 1e-3, "{low} {high}");
        assert!((after.decibels().unwrap() - before.decibels().unwrap() - 20.0).abs() < 1e-3);
        // Half of the calls gain as much as the others lose: without each the gain is ±10·log₁₀(9 / 6), and so
        // is the pseudo-value: s = 1.7609 · √(4/3), times (n - 1) / √n and Student's 3.1824 for three degrees.
        let (before, after) = (calls(&[0.5, 0.5, 0.25, 0.25]), calls(&[0.25, 0.25, 0.5, 0.5]));
        let [low, high] = after.gain_interval(&before).unwrap();
        let half = 3.182_446 * (0.75f64 * 4.0).sqrt() * 10.0 * 1.5f64.log10();
        assert!((low + half).abs() < 1e-3 && (high - half).abs() < 1e-3, "{low} {high} {half}");
        assert_eq!(calls(&[0.5]).gain_interval(&calls(&[0.25])), None, "one call tells nothing");
    }
}
