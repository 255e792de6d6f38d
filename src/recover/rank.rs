//! The noise that each operator makes at the outputs when it alone is quantized.

use std::collections::HashMap;

use super::{
    RecoverError,
    network::Network,
    objective::Objective,
    walk::{State, alone},
};
use crate::tensor::{Tensor, TensorMap};

/// A quantized operator, what it costs and what it does.
pub(super) struct Ranked {
    pub node: String,
    pub noise: f64,
    pub macs: f64,
}

/// Quantizes one operator after the other over `samples` and carries its error on to the outputs; what does not change is
/// computed once.
pub(super) fn rank(network: &mut Network, samples: &[TensorMap], state: &State) -> Result<Vec<Ranked>, RecoverError> {
    let operators: Vec<usize> =
        (0..network.units.len()).filter(|&index| network.units[index].operator.is_some()).collect();
    let mut objectives = vec![Objective::default(); operators.len()];
    let mut macs = vec![0.0; operators.len()];
    for sample in samples {
        let mut float: HashMap<String, Tensor> = sample.clone().into_iter().collect();
        for index in 0..network.units.len() {
            let made = run_float(network, index, &mut float, HashMap::new())?;
            float.extend(made);
        }
        for (place, &start) in operators.iter().enumerate() {
            let unit = &mut network.units[start];
            let Some(operator) = unit.operator.take() else { continue };
            let made = alone(unit, &operator, &mut float, state);
            macs[place] =
                made.as_ref().ok().and_then(Option::as_ref).map_or(1.0, |(_, t)| operator.macs(t.view().values.len()));
            unit.operator = Some(operator);
            let Some((name, tensor)) = made? else { continue };
            let mut changed = HashMap::from([(name, tensor)]);
            for index in start + 1..network.units.len() {
                let unit = &network.units[index];
                let inputs: Vec<String> =
                    unit.inputs.iter().filter(|name| changed.contains_key(*name)).cloned().collect();
                if inputs.is_empty() {
                    continue;
                }
                let last = &network.last_use;
                let done: Vec<String> = inputs.iter().filter(|name| last.get(*name) == Some(&index)).cloned().collect();
                let replaced = inputs.iter().filter_map(|name| changed.remove_entry(name)).collect();
                let (made, back) = run_changed(network, index, &mut float, replaced)?;
                changed.extend(back.into_iter().filter(|(name, _)| !done.contains(name)));
                changed.extend(made);
            }
            for name in &network.outputs {
                if let (Some(exact), Some(found)) = (float.get(name), changed.get(name).or(float.get(name))) {
                    objectives[place].add(name, exact, found);
                }
            }
        }
    }
    let ranked = operators.iter().zip(objectives).zip(macs).filter_map(|((&index, objective), macs)| {
        let node = network.units[index].operator.as_ref()?.node.clone();
        Some(Ranked { node, noise: objective.noise().unwrap_or(0.0), macs })
    });
    Ok(ranked.collect())
}

fn run_float(
    network: &mut Network,
    index: usize,
    float: &mut HashMap<String, Tensor>,
    changed: HashMap<String, Tensor>,
) -> Result<TensorMap, RecoverError> {
    Ok(run_changed(network, index, float, changed)?.0)
}

/// Runs a unit in float with other values for some inputs, which come back.
fn run_changed(
    network: &mut Network,
    index: usize,
    float: &mut HashMap<String, Tensor>,
    changed: HashMap<String, Tensor>,
) -> Result<(TensorMap, TensorMap), RecoverError> {
    let unit = &mut network.units[index];
    let mut replaced = match &unit.operator {
        Some(operator) => {
            operator.parameters(operator.weight.as_ref().map(|weight| &weight.values[..]), operator.bias.as_deref())
        }
        None => TensorMap::new(),
    };
    let parameters: Vec<String> = replaced.keys().cloned().collect();
    replaced.extend(changed);
    let made = unit.run(float, &mut replaced)?;
    for name in &parameters {
        replaced.remove(name);
    }
    Ok((made, replaced))
}
