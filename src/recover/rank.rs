//! The noise that each operator makes at the outputs when it alone is quantized.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{
    RecoverError,
    network::{Network, Operator, Unit},
    peers::Peers,
    state::{Lane, State, alone},
};
use crate::{
    compare::{Objective, Parts},
    tensor::TensorMap,
};

/// A quantized operator, what it costs and what it does.
pub(super) struct Ranked {
    pub node: String,
    pub noise: f64,
    /// Multiply-accumulates of one sample.
    pub macs: f64,
    /// Elements of its weight.
    pub weights: f64,
}

/// Quantizes one operator after the other over `samples` and carries its error on to the outputs; what does not change is
/// computed once.
pub(super) fn rank(
    network: &Network<'_>,
    samples: &[TensorMap],
    state: &State,
    parts: &Parts,
    peers: &Peers,
) -> Result<Vec<Ranked>, RecoverError> {
    let operators: Vec<(usize, &Operator)> =
        (0..network.units.len()).filter_map(|index| Some((index, network.units[index].operator.as_ref()?))).collect();
    let floats = samples.par_iter().map(|sample| {
        let mut float: Lane = sample.clone().into_iter().collect();
        for unit in &network.units {
            let made = run_changed(unit, &float, TensorMap::new())?;
            float.extend(made);
        }
        Ok(float)
    });
    let floats = floats.collect::<Result<Vec<Lane>, RecoverError>>()?;
    let noise = peers.share(operators.len(), |part| {
        // Samples alone would leave most cores idle.
        let share = part.len().div_ceil(rayon::current_num_threads().div_ceil(samples.len().max(1))).max(1);
        let by_sample = floats.par_iter().map(|float| {
            let few = part.par_chunks(share).map(|few| {
                let noise = |&place: &usize| one(network, operators[place], float, state, parts);
                few.iter().map(noise).collect()
            });
            Ok(few.collect::<Result<Vec<Vec<f64>>, RecoverError>>()?.concat())
        });
        let by_sample = by_sample.collect::<Result<Vec<Vec<f64>>, RecoverError>>()?;
        let mean = |place| by_sample.iter().map(|of| of[place]).sum::<f64>() / by_sample.len().max(1) as f64;
        Ok((0..part.len()).map(mean).collect())
    })?;
    let ranked = operators.iter().zip(noise).map(|(&(place, operator), noise)| {
        let made = floats.first().zip(network.units[place].outputs.first()).and_then(|(float, name)| float.get(name));
        let macs = made.map_or(1.0, |made| operator.macs(made.view().values.len()));
        let weights = operator.weight.as_ref().map_or(0.0, |weight| weight.values.len() as f64);
        Ranked { node: operator.node.clone(), noise, macs, weights }
    });
    Ok(ranked.collect())
}

/// The noise at the outputs when the operator of unit `start` alone is quantized.
fn one(
    network: &Network<'_>,
    (start, operator): (usize, &Operator),
    float: &Lane,
    state: &State,
    parts: &Parts,
) -> Result<f64, RecoverError> {
    network.check()?;
    let Some((name, tensor)) = alone(&network.units[start], operator, float, state)? else {
        return Ok(0.0);
    };
    let mut changed = HashMap::from([(name, tensor)]);
    for (index, unit) in network.units.iter().enumerate().skip(start + 1) {
        let inputs = unit.inputs.iter().filter_map(|name| Some((name.clone(), changed.get(name)?.clone())));
        let inputs: TensorMap = inputs.collect();
        if inputs.is_empty() {
            continue;
        }
        let made = run_changed(unit, float, inputs)?;
        changed.retain(|name, _| network.last_use.get(name) != Some(&index));
        changed.extend(made);
    }
    let mut objective = Objective::new(parts.clone());
    for name in &network.outputs {
        if let (Some(exact), Some(found)) = (float.get(name), changed.get(name).or(float.get(name))) {
            objective.add(name, exact.view(), found.view())?;
        }
    }
    Ok(objective.noise().unwrap_or(0.0))
}

/// Runs a unit in float with other values for some inputs.
fn run_changed(unit: &Unit, float: &Lane, mut changed: TensorMap) -> Result<TensorMap, RecoverError> {
    if let Some(operator) = &unit.operator {
        let weight = operator.weight.as_ref().map(|weight| &weight.values[..]);
        changed.append(&mut operator.parameters(weight, operator.bias.as_deref()));
    }
    unit.run(float, changed)
}
