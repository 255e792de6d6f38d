//! How far outputs are from those of the float model: noise by channel, so that large numbers do not drown small ones.

use std::collections::BTreeMap;

use crate::tensor::Tensor;

/// Sums over samples, by output and channel.
#[derive(Clone, Default)]
pub(super) struct Objective(BTreeMap<String, Vec<(f64, f64)>>);

/// The axis of an output whose entries are unlike each other: maps have it second; lists of candidates have it where there
/// are fewer entries; other outputs have none.
fn channels(shape: &[usize]) -> Option<usize> {
    match shape.len() {
        0..=2 => None,
        3 => Some(if shape[1] < shape[2] { 1 } else { 2 }),
        _ => Some(1),
    }
}

impl Objective {
    /// Adds one output of one call.
    pub fn add(&mut self, name: &str, float: &Tensor, quantized: &Tensor) {
        let shape = float.shape();
        if !float.element_type().is_float() || shape != quantized.shape() {
            return;
        }
        let axis = channels(shape);
        let count = axis.map_or(1, |axis| shape[axis]).max(1);
        let inner: usize = axis.map_or(usize::MAX, |axis| shape[axis + 1..].iter().product::<usize>().max(1));
        let sums = self.0.entry(name.to_owned()).or_insert_with(|| vec![(0.0, 0.0); count]);
        if sums.len() != count {
            return;
        }
        for (index, (f, q)) in float.to_f32().into_iter().zip(quantized.to_f32()).enumerate() {
            let (f, error) = (f64::from(f), f64::from(f) - f64::from(q));
            let sum = &mut sums[(index / inner) % count];
            *sum = (sum.0 + f * f, sum.1 + error * error);
        }
    }

    /// Noise of the worst output, relative to its signal: channels count alike, down to those with a thousandth of the mean
    /// signal. `None` without any number; infinite with NaN.
    pub fn noise(&self) -> Option<f64> {
        let of = |sums: &Vec<(f64, f64)>| {
            let floor = 1e-3 * sums.iter().map(|sum| sum.0).sum::<f64>() / sums.len() as f64;
            let ratios = sums.iter().map(|&(signal, noise)| if noise == 0.0 { 0.0 } else { noise / signal.max(floor) });
            let noise = ratios.sum::<f64>() / sums.len() as f64;
            if noise.is_nan() { f64::INFINITY } else { noise }
        };
        self.0.values().map(of).max_by(f64::total_cmp)
    }

    /// The same in decibels of signal to noise.
    pub fn decibels(&self) -> Option<f64> {
        self.noise().map(|noise| -10.0 * noise.max(1e-30).log10())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decibels(shape: &[usize], float: &[f32], quantized: &[f32]) -> f64 {
        let tensor = |values: &[f32]| Tensor::from_f32(shape.to_vec(), values.to_vec()).unwrap();
        let mut objective = Objective::default();
        objective.add("y", &tensor(float), &tensor(quantized));
        objective.decibels().unwrap()
    }

    #[test]
    fn boxes_do_not_drown_scores() {
        // Rows of a box in pixels and a score: a score that is wrong by half of itself counts.
        let (float, quantized) = ([400.0, 0.8, 300.0, 0.6], [400.0, 0.4, 300.0, 0.3]);
        assert!((decibels(&[1, 2, 2], &float, &quantized) - 10.0 * (1.0 / 0.125f64).log10()).abs() < 40.0);
        assert!(decibels(&[1, 2, 2], &float, &quantized) < decibels(&[1, 4], &float, &quantized));
        assert!((decibels(&[1, 4], &[1.0, 1.0, 1.0, 1.0], &[1.1, 0.9, 1.0, 1.0]) - 23.0).abs() < 0.1);
    }

    #[test]
    fn nan_is_the_worst_there_is() {
        assert_eq!(decibels(&[1, 2], &[1.0, 1.0], &[f32::NAN, 1.0]), f64::NEG_INFINITY);
    }
}
