//! How a network is quantized, and what an operator gives then.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    RecoverError,
    network::Operator,
    ranges::{self, fake_quantized},
    unit::{Bound, Lane, Unit},
    weights::{Layout, Quantized},
};
use crate::{
    calibrate::{CalibrationTable, Equalized, Shift},
    qparams::QuantType,
    tensor::{Tensor, TensorMap},
};

/// How a network is quantized.
#[derive(Clone, Default)]
pub(super) struct State {
    /// In 8-bit floats, or else in integers.
    pub floats: bool,
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
    /// That of the ranges of a table alone.
    pub fn of(table: &CalibrationTable, floats: bool) -> Self {
        let ranges = table.tensors.iter().map(|(name, range)| (name.clone(), ranges::plain(range))).collect();
        Self { floats, ranges, ..Self::default() }
    }

    /// What activations become.
    pub fn activations(&self) -> QuantType {
        if self.floats { QuantType::E4m3 } else { QuantType::Int8 }
    }

    /// What weights become.
    pub fn weights(&self) -> QuantType {
        if self.floats { QuantType::E4m3 } else { QuantType::Int8Narrow }
    }

    /// What the quantizer of `tensor`, which `operator` reads, leaves of its values; `None` where it has none.
    pub fn quantized(
        &self,
        operator: &Operator,
        tensor: &str,
        values: &Tensor,
    ) -> Option<Result<Tensor, RecoverError>> {
        let range = *self.ranges.get(tensor)?;
        let (view, factors) = (values.view(), self.equalized.get(tensor).map(Equalized::factors));
        let numbers = view.to_f32();
        let (kind, mut quantized) = (self.activations(), Vec::with_capacity(numbers.len()));
        match factors {
            Some(factors) => {
                let blocks = numbers.chunks(operator.inner(values.shape())).zip(factors.iter().cycle());
                blocks.for_each(|(values, &factor)| fake_quantized(&mut quantized, values, kind, range, factor));
            }
            None => fake_quantized(&mut quantized, &numbers, kind, range, 1.0),
        }
        Some(Tensor::from_f32(values.shape().to_vec(), quantized).map_err(Into::into))
    }
}

/// The quantized activations of an operator.
pub(super) fn activations(operator: &Operator, lane: &Lane, state: &State) -> Result<TensorMap, RecoverError> {
    let of = |tensor: &String| {
        let quantized = state.quantized(operator, tensor, lane.get(tensor)?)?;
        Some(quantized.map(|quantized| (tensor.clone(), quantized)))
    };
    operator.quantized.iter().filter_map(of).collect()
}

/// Runs an operator on quantized activations.
pub(super) fn run_quantized(
    unit: &Unit<'_>,
    operator: &Operator,
    lane: &Lane,
    state: &State,
    bound: &Bound,
) -> Result<TensorMap, RecoverError> {
    unit.run(lane, bound, activations(operator, lane, state)?)
}

/// The result of one operator that alone is quantized, with the name of its tensor.
pub(super) fn alone(
    unit: &Unit<'_>,
    operator: &Operator,
    float: &Lane,
    state: &State,
) -> Result<Option<(String, Tensor)>, RecoverError> {
    let bound = unit.bound(Quantized::of(operator, state)?.values.as_ref())?;
    let made = run_quantized(unit, operator, float, state, &bound)?;
    let Some((name, mut tensor)) = made.into_iter().next() else { return Ok(None) };
    if let Some(bias) = state.biases.get(&operator.node) {
        add_by_channel(operator, &mut tensor, bias);
    }
    Ok(Some((name, tensor)))
}

/// What the bias of an operator must take back in all, when its input is quantized around `offset`: the rounding of the
/// weights moves what the offset contributes. `None` for nothing.
pub(super) fn whole_correction(operator: &Operator, state: &State) -> Result<Option<Vec<f32>>, RecoverError> {
    let (Some(channels), Some(weight)) = (operator.channels, &operator.weight) else { return Ok(None) };
    if state.lifted.contains(&operator.node) {
        return Ok(None);
    }
    let mut whole: Vec<f64> = state
        .biases
        .get(&operator.node)
        .map_or_else(|| vec![0.0; channels], |known| known.iter().map(|&v| v.into()).collect());
    let tensor = operator.quantized.first();
    let offset = tensor.and_then(|tensor| state.ranges.get(tensor)).map_or(0.0, |range| range.offset);
    let factors = tensor.and_then(|tensor| state.equalized.get(tensor)).map(Equalized::factors);
    if let (true, Some(layout)) = (offset != 0.0, Layout::of_any(operator, weight)) {
        // What each number of the weight moves the result by: all that it reads is `offset` up, before factors are taken back.
        let factor = |place| match (&factors, &weight.reads) {
            (Some(factors), Some(reads)) => factors[reads.channel(place)],
            _ => 1.0,
        };
        let rounded = Quantized::of(operator, state)?.values.map_or_else(Vec::new, |values| values.to_f32());
        let exact = weight.values();
        let moved = rounded.iter().zip(&*exact).enumerate();
        let moved =
            moved.map(|(place, (rounded, exact))| (f64::from(*rounded) - f64::from(*exact)) / f64::from(factor(place)));
        for (sum, moved) in whole.iter_mut().zip(layout.rows(&moved.collect::<Vec<f64>>())) {
            *sum += f64::from(offset) * moved.iter().sum::<f64>();
        }
    }
    Ok(whole.iter().any(|&value| value != 0.0).then(|| whole.into_iter().map(|value| value as f32).collect()))
}

/// Adds a number to every channel of a result.
pub(super) fn add_by_channel(operator: &Operator, tensor: &mut Tensor, values: &[f32]) {
    let shape = tensor.shape().to_vec();
    let inner = operator.inner(&shape);
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
