//! The noise that each operator makes at the outputs when it alone is quantized.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{
    RecoverError,
    network::{Network, Operator, Unit},
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
) -> Result<Vec<Ranked>, RecoverError> {
    let operators: Vec<(usize, &Operator)> =
        (0..network.units.len()).filter_map(|index| Some((index, network.units[index].operator.as_ref()?))).collect();
    // Samples alone would leave most cores idle.
    let share = operators.len().div_ceil(rayon::current_num_threads().div_ceil(samples.len().max(1))).max(1);
    // Noise and multiply-accumulates of every operator.
    let by_sample = samples.par_iter().map(|sample| {
        let mut float: Lane = sample.clone().into_iter().collect();
        for unit in &network.units {
            let made = run_changed(unit, &float, TensorMap::new())?;
            float.extend(made);
        }
        let few = operators.chunks(share).collect::<Vec<_>>();
        let few = few.into_par_iter().map(|few| {
            few.iter().map(|&(start, operator)| one(network, start, operator, &float, state, parts)).collect()
        });
        Ok(few.collect::<Result<Vec<Vec<_>>, RecoverError>>()?.concat())
    });
    let by_sample = by_sample.collect::<Result<Vec<Vec<(f64, f64)>>, RecoverError>>()?;
    let ranked = operators.iter().enumerate().map(|(place, &(_, operator))| {
        let noise = by_sample.iter().map(|of| of[place].0).sum::<f64>() / by_sample.len().max(1) as f64;
        let macs = by_sample.first().map_or(1.0, |of| of[place].1);
        let weights = operator.weight.as_ref().map_or(0.0, |weight| weight.values.len() as f64);
        Ranked { node: operator.node.clone(), noise, macs, weights }
    });
    Ok(ranked.collect())
}

/// The noise at the outputs when the operator of unit `start` alone is quantized, and its multiply-accumulates.
fn one(
    network: &Network<'_>,
    start: usize,
    operator: &Operator,
    float: &Lane,
    state: &State,
    parts: &Parts,
) -> Result<(f64, f64), RecoverError> {
    network.check()?;
    let Some((name, tensor)) = alone(&network.units[start], operator, float, state)? else {
        return Ok((0.0, 1.0));
    };
    let macs = operator.macs(tensor.view().values.len());
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
    Ok((objective.noise().unwrap_or(0.0), macs))
}

/// Runs a unit in float with other values for some inputs.
fn run_changed(unit: &Unit, float: &Lane, mut changed: TensorMap) -> Result<TensorMap, RecoverError> {
    if let Some(operator) = &unit.operator {
        let weight = operator.weight.as_ref().map(|weight| &weight.values[..]);
        changed.append(&mut operator.parameters(weight, operator.bias.as_deref()));
    }
    unit.run(float, changed)
}
