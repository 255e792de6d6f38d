//! The noise that each operator makes at the outputs when it alone is quantized.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{
    RecoverError,
    network::{Network, Operator},
    peers::Peers,
    state::{State, alone},
    unit::Lane,
};
use crate::{
    compare::{Objective, Parts},
    qparams::QuantType,
    tensor::{Tensor, TensorMap},
};

/// A quantized operator, what it costs and what it does.
pub(super) struct Ranked {
    pub node: String,
    pub noise: f64,
    /// Multiply-accumulates of one sample.
    pub macs: f64,
    /// Elements of its weight.
    pub weights: f64,
    /// Whether it multiplies with the result of a Softmax most values of which are below half a step of its range.
    pub drowned: bool,
}

/// Whether most of `values` are below half a step of `amax`, and every row of them sums up to 1: what attention multiplies with.
fn is_drowned(values: &Tensor, kind: QuantType, amax: f32) -> bool {
    const NEAR: f32 = 1e-3;
    let row = values.shape().last().copied().unwrap_or(0).max(1);
    let view = values.view();
    let values = view.to_f32();
    let is_share = |row: &[f32]| row.iter().all(|&value| value >= 0.0) && (row.iter().sum::<f32>() - 1.0).abs() < NEAR;
    let half = kind.smallest_step(amax) / 2.0;
    let below = values.iter().filter(|&&value| value < half).count();
    row > 1 && 2 * below > values.len() && values.chunks(row).all(is_share)
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
    network.quantize(state)?;
    let operators: Vec<(usize, &Operator)> =
        (0..network.units.len()).filter_map(|index| Some((index, network.units[index].operator.as_ref()?))).collect();
    let floats = samples.par_iter().map(|sample| {
        let mut float: Lane = sample.clone().into_iter().collect();
        for unit in &network.units {
            let made = unit.run(&float, &unit.exact, TensorMap::new())?;
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
    let nothing = Lane::new();
    let lane = floats.first().unwrap_or(&nothing);
    let ranked = operators.iter().zip(noise).map(|(&(place, operator), noise)| {
        let made = network.units[place].outputs.first().and_then(|name| lane.get(name));
        let macs = made.map_or(1.0, |made| operator.macs(lane, made.view().values.len()));
        let weights = operator.weight.as_ref().map_or(0.0, |weight| weight.values().len() as f64);
        let drowned = operator.left.as_ref().and_then(|left| Some((lane.get(left)?, state.ranges.get(left)?)));
        let drowned = drowned.is_some_and(|(values, range)| is_drowned(values, state.activations(), range.amax));
        Ranked { node: operator.node.clone(), noise, macs, weights, drowned }
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
        let made = unit.run(float, &unit.exact, inputs)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_drowns_where_most_shares_are_below_half_a_step() {
        let rows = |rows: Vec<Vec<f32>>| {
            let shape = vec![rows.len(), rows[0].len()];
            Tensor::from_f32(shape, rows.concat()).unwrap()
        };
        // A step of [0, 1] is 1/127. Of 300 equal shares each is 0.0033, of 100 it is 0.01.
        let equal = |count: usize| rows(vec![vec![1.0 / count as f32; count]; 2]);
        assert!(is_drowned(&equal(300), QuantType::Int8, 1.0) && !is_drowned(&equal(100), QuantType::Int8, 1.0));
        assert!(!is_drowned(&equal(300), QuantType::Int8, 0.01), "a range of its own size holds them");
        assert!(!is_drowned(&rows(vec![vec![0.001; 300]]), QuantType::Int8, 1.0), "no shares of one");
    }
}
