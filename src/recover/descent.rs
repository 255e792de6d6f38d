//! Ranges of the tensors that matter most, by what they do to the outputs of the whole model.
//!
//! What is best for the operators that read a tensor need not be best for the model: of an output with parts that mean unlike
//! things, or where errors of several operators cancel. One range is changed at a time; only what depends on it runs again.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::{
    RecoverError,
    network::Network,
    peers::Peers,
    state::{State, add_by_channel, run_quantized},
    unit::{Bound, Lane, Unit},
    weights::Quantized,
};
use crate::{
    calibrate::Shift,
    compare::{Objective, Parts},
    tensor::TensorMap,
};

/// The noise at the outputs must fall to this share for a range to be taken.
const CLEARLY: f64 = 0.98;
/// Samples that tensors are ranked on.
const RANKED_ON: usize = 2;

/// A quantized network on some samples.
pub(super) struct Descent<'a> {
    network: &'a Network<'a>,
    state: &'a mut State,
    parts: &'a Parts,
    peers: &'a Peers,
    /// The weight of every unit.
    weights: Vec<Bound>,
    /// Every tensor, in float and quantized.
    lanes: Vec<[Lane; 2]>,
}

impl<'a> Descent<'a> {
    /// Runs `network` as `state` quantizes it.
    pub fn new(
        network: &'a Network<'a>,
        samples: &[TensorMap],
        state: &'a mut State,
        parts: &'a Parts,
        peers: &'a Peers,
    ) -> Result<Self, RecoverError> {
        let weight = |unit: &Unit<'_>| match &unit.operator {
            Some(operator) if !state.lifted.contains(&operator.node) => {
                unit.bound(Quantized::of(operator, state)?.values.as_ref())
            }
            _ => Ok(unit.exact.clone()),
        };
        let weights = network.units.iter().map(weight).collect::<Result<_, RecoverError>>()?;
        let mut new = Self { network, state, parts, peers, weights, lanes: Vec::new() };
        let both = |sample: &TensorMap| {
            let mut float: Lane = sample.clone().into_iter().collect();
            let mut quantized = float.clone();
            for (index, unit) in network.units.iter().enumerate() {
                network.check()?;
                let made = unit.run(&float, &unit.exact, TensorMap::new())?;
                float.extend(made);
                float.retain(|name, _| network.last_use.get(name).is_some_and(|&last| last > index));
                quantized.extend(new.run(index, &quantized, new.state)?);
            }
            Ok([float, quantized])
        };
        new.lanes = samples.par_iter().map(both).collect::<Result<_, RecoverError>>()?;
        Ok(new)
    }

    /// What unit `index` gives from the tensors of `lane`, quantized.
    fn run(&self, index: usize, lane: &Lane, state: &State) -> Result<TensorMap, RecoverError> {
        let (unit, weight) = (&self.network.units[index], &self.weights[index]);
        let Some(operator) = unit.operator.as_ref().filter(|operator| !state.lifted.contains(&operator.node)) else {
            return unit.run(lane, weight, TensorMap::new());
        };
        let mut made = run_quantized(unit, operator, lane, state, weight)?;
        if let Some(bias) = state.biases.get(&operator.node) {
            for tensor in made.values_mut() {
                add_by_channel(operator, tensor, bias);
            }
        }
        Ok(made)
    }

    /// The tensors of a sample that differ once `tensor` is quantized as in `state`.
    fn changed(&self, sample: usize, tensor: &str, state: &State) -> Result<Lane, RecoverError> {
        let known = &self.lanes[sample][1];
        let mut changed: Lane = HashMap::new();
        for (index, unit) in self.network.units.iter().enumerate() {
            let reads =
                unit.operator.as_ref().is_some_and(|operator| operator.quantized.iter().any(|own| own == tensor));
            if !reads && !unit.inputs.iter().any(|name| changed.contains_key(name)) {
                continue;
            }
            self.network.check()?;
            let of = |name: &String| Some((name.clone(), changed.get(name).or_else(|| known.get(name))?.clone()));
            let inputs: Lane = unit.inputs.iter().filter_map(of).collect();
            changed.extend(self.run(index, &inputs, state)?);
        }
        Ok(changed)
    }

    /// The noise at the outputs of the first `samples` once `tensor` is quantized as in `state`.
    fn noise(&self, samples: usize, tensor: &str, state: &State) -> Result<f64, RecoverError> {
        let of = |sample: usize| {
            let ([float, quantized], changed) = (&self.lanes[sample], self.changed(sample, tensor, state)?);
            let mut objective = Objective::new(self.parts.clone());
            for name in &self.network.outputs {
                if let (Some(exact), Some(found)) = (float.get(name), changed.get(name).or_else(|| quantized.get(name)))
                {
                    objective.add(name, exact.view(), found.view())?;
                }
            }
            Ok(objective)
        };
        let samples = 0..samples.min(self.lanes.len());
        let objectives = samples.into_par_iter().map(of).collect::<Result<Vec<Objective>, RecoverError>>()?;
        let mut whole = Objective::new(self.parts.clone());
        for objective in &objectives {
            whole.append(objective);
        }
        Ok(whole.noise().unwrap_or(0.0))
    }

    /// The `most` of `tensors` whose quantization makes most of the noise, those first that make more.
    fn ranked(&self, tensors: &[&String], most: usize) -> Result<Vec<String>, RecoverError> {
        let without = |place: usize| {
            let mut state = self.state.clone();
            state.ranges.remove(tensors[place]);
            self.noise(RANKED_ON, tensors[place], &state)
        };
        let left = self.peers.share(tensors.len(), |part| part.into_iter().map(without).collect())?;
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by(|&a, &b| left[a].total_cmp(&left[b]).then(a.cmp(&b)));
        Ok(order.into_iter().take(most).map(|place| tensors[place].clone()).collect())
    }

    /// Gives each of the `most` tensors that matter most that of its `candidates` with which the outputs have least noise.
    pub fn descend(mut self, candidates: &BTreeMap<String, Vec<Shift>>, most: usize) -> Result<(), RecoverError> {
        for tensor in self.ranked(&candidates.keys().collect::<Vec<_>>(), most)? {
            let of = |place: usize| {
                let mut state = self.state.clone();
                state.ranges.insert(tensor.clone(), candidates[&tensor][place]);
                self.noise(usize::MAX, &tensor, &state)
            };
            let now = self.noise(usize::MAX, &tensor, self.state)?;
            let count = candidates[&tensor].len();
            let noises = self.peers.share(count, |part| part.into_iter().map(of).collect())?;
            let best = (0..count).min_by(|&a, &b| noises[a].total_cmp(&noises[b]).then(a.cmp(&b)));
            let Some(best) = best.filter(|&best| noises[best] < now * CLEARLY) else { continue };
            self.state.ranges.insert(tensor.clone(), candidates[&tensor][best]);
            let state = &*self.state;
            let all = (0..self.lanes.len()).into_par_iter().map(|sample| self.changed(sample, &tensor, state));
            let all = all.collect::<Result<Vec<Lane>, _>>()?;
            self.lanes.iter_mut().zip(all).for_each(|([_, quantized], changed)| quantized.extend(changed));
        }
        Ok(())
    }
}
