//! How far outputs are from those of the float model: noise by part and position, so that large numbers do not drown small
//! ones, nor boxes scores. The worst part of the worst output counts.

use std::collections::BTreeMap;

use super::{PairSums, Part, PartSums, by_scale};
use crate::tensor::TensorView;

/// The parts of outputs whose values mean unlike things, by output.
pub type Parts = BTreeMap<String, Vec<Part>>;

/// Positions of a part with less than this share of their mean signal count as if they had it: what says nothing in float
/// says nothing about noise.
const LEAST_SIGNAL: f64 = 0.1;

/// The outputs of the same call have other shapes in two models.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shape of output `{output}` depends on the data")]
pub struct ShapeDependsOnData {
    /// The output.
    pub output: String,
}

/// Noise of outputs over any number of samples, by output and part.
#[derive(Clone, Default)]
pub struct Objective {
    parts: Parts,
    outputs: BTreeMap<String, Output>,
}

#[derive(Clone, Default)]
struct Output {
    whole: PairSums,
    sums: PartSums,
    /// The axis of a sample whose positions are unlike each other.
    channels: Option<(usize, usize)>,
}

impl Objective {
    /// Without parts for an output, they follow from the size of its values.
    pub fn new(parts: Parts) -> Self {
        Self { parts, outputs: BTreeMap::new() }
    }

    /// Adds one output of one call, whose first axis is the batch.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn add(
        &mut self,
        name: &str,
        float: TensorView<'_>,
        quantized: TensorView<'_>,
    ) -> Result<(), ShapeDependsOnData> {
        if !float.values.element_type().is_float() {
            return Ok(());
        }
        if float.shape != quantized.shape {
            return Err(ShapeDependsOnData { output: name.to_owned() });
        }
        let Some((&rows, shape)) = float.shape.split_first().filter(|&(&rows, _)| rows > 0) else { return Ok(()) };
        let output = self.outputs.entry(name.to_owned()).or_default();
        output.channels = channels(shape);
        output.whole.add(&PairSums::of(float.values, quantized.values, f32::INFINITY));
        let row = float.values.len() / rows;
        for at in (0..rows).map(|index| index * row..(index + 1) * row) {
            let [float, quantized] =
                [float, quantized].map(|view| TensorView { shape, values: view.values.slice(at.clone()) });
            output.sums.push(float, quantized);
        }
        Ok(())
    }

    /// Adds what was added up over other calls.
    pub fn append(&mut self, later: &Self) {
        for (name, more) in &later.outputs {
            let output = self.outputs.entry(name.clone()).or_default();
            output.channels = more.channels;
            output.whole.add(&more.whole);
            output.sums.append(&more.sums);
        }
    }

    /// Leaves an output out again.
    pub fn leave_out(&mut self, name: &str) {
        self.outputs.remove(name);
    }

    /// Noise relative to signal. `None` without any number; infinite with NaN.
    pub fn noise(&self) -> Option<f64> {
        let noises = self.outputs.iter().map(|(name, output)| {
            let parts = self.parts.get(name).cloned().unwrap_or_else(|| by_scale(&output.sums));
            output.noise(&parts)
        });
        noises.max_by(f64::total_cmp)
    }

    /// The same in decibels of signal to noise.
    pub fn decibels(&self) -> Option<f64> {
        self.noise().map(|noise| -10.0 * noise.max(1e-30).log10())
    }
}

impl Output {
    fn noise(&self, parts: &[Part]) -> f64 {
        if self.whole.non_finite.differing > 0 {
            return f64::INFINITY;
        }
        let whole = self.channels.map(|(axis, extent)| Part::new("", axis, 0..extent));
        let parts = if parts.is_empty() { whole.as_slice() } else { parts };
        let positions =
            |part: &Part| self.sums.figures(&part.positions()).into_iter().map(|(_, sums)| sums).collect::<Vec<_>>();
        let noises = parts.iter().map(positions).filter(|positions| !positions.is_empty());
        let worst = noises.map(|positions| mean_noise(&positions)).max_by(f64::total_cmp);
        worst.unwrap_or_else(|| mean_noise(&[self.whole]))
    }
}

/// The mean over positions of their noise relative to their signal.
fn mean_noise(positions: &[PairSums]) -> f64 {
    let count = positions.len() as f64;
    let least = LEAST_SIGNAL * positions.iter().map(|sums| sums.reference_squares).sum::<f64>() / count;
    let ratio = |sums: &PairSums| match sums.error_squares {
        0.0 => 0.0,
        noise => noise / sums.reference_squares.max(least),
    };
    positions.iter().map(ratio).sum::<f64>() / count
}

/// The axis of a sample whose entries are unlike each other, and how many there are: maps have it first; lists of
/// candidates have it where there are fewer entries; other outputs have none.
fn channels(shape: &[usize]) -> Option<(usize, usize)> {
    let axis = match shape {
        [] | [_] => return None,
        &[a, b] => usize::from(a >= b),
        _ => 0,
    };
    Some((axis, shape[axis])).filter(|_| PartSums::suits(shape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn decibels(parts: Parts, shape: &[usize], float: &[f32], quantized: &[f32]) -> f64 {
        let tensor = |values: &[f32]| Tensor::from_f32(shape.to_vec(), values.to_vec()).unwrap();
        let mut objective = Objective::new(parts);
        objective.add("y", tensor(float).view(), tensor(quantized).view()).unwrap();
        objective.decibels().unwrap()
    }

    #[test]
    fn boxes_do_not_drown_scores() {
        // Rows of a box in pixels and a score that is wrong by half of itself: 6 dB on scores, 47 dB or more in all.
        let (float, quantized) = ([400.0, 0.8, 300.0, 0.6], [401.0, 0.4, 300.0, 0.3]);
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 0.1, "{found} and {expected}");
        let parts = vec![Part::new("boxes", 1, 0..1), Part::new("scores", 1, 1..2)];
        close(decibels([("y".to_owned(), parts)].into(), &[1, 2, 2], &float, &quantized), 6.02);
        close(decibels(Parts::new(), &[1, 2, 2], &float, &quantized), 6.02);
        close(decibels(Parts::new(), &[1, 4], &[1.0, 1.0, 1.0, 1.0], &[1.1, 0.9, 1.0, 1.0]), 23.0);
    }

    #[test]
    fn positions_without_signal_do_not_decide() {
        // The second channel says nothing in float; its noise counts as against a tenth of the mean signal.
        let found =
            decibels(Parts::new(), &[1, 2, 3], &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], &[1.0, 1.0, 1.0, 0.1, 0.1, 0.1]);
        assert!((found - 10.0).abs() < 0.01, "{found}");
    }

    #[test]
    fn nan_is_the_worst_there_is() {
        assert_eq!(decibels(Parts::new(), &[1, 2], &[1.0, 1.0], &[f32::NAN, 1.0]), f64::NEG_INFINITY);
    }
}
