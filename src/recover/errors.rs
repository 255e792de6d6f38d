//! How far results are from those of the float model: of an operator by channel, and of the whole model by call.

use super::network::Operator;
use crate::{
    compare::Objective,
    stats::{half_width, jackknife},
    tensor::TensorView,
};

/// How far the outputs of several calls are from those of the float model.
#[derive(Clone, Default)]
pub(super) struct Objectives(pub Vec<Objective>);

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

    /// The interval of what these gain over the same calls before, in decibels: each call is left out of both in turn.
    pub fn gain_interval(&self, before: &Self, confidence: f64) -> Option<[f64; 2]> {
        let gain = |without| Some(self.whole(without)? - before.whole(without)?).filter(|gain| gain.is_finite());
        let calls = self.0.len();
        let left: Vec<f64> = (0..calls).map(|call| gain(Some(call))).collect::<Option<_>>()?;
        let half = half_width(jackknife(&left)?, calls as u64, confidence)?;
        let all = gain(None)?;
        Some([all - half, all + half])
    }
}

/// What `of` gives for all pairs of `a` and `b`, added up in 16 lanes: as wide as processors add, and the same on all.
#[inline]
pub(super) fn sums(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> [f64; 2]) -> [f64; 2] {
    const LANES: usize = 16;
    let mut lanes = [[0.0f64; LANES]; 2];
    let mut add = |lane: usize, a: f32, b: f32| {
        let [first, second] = of(a, b);
        lanes[0][lane] += first;
        lanes[1][lane] += second;
    };
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        (0..LANES).for_each(|lane| add(lane, a[lane], b[lane]));
    }
    (0..a_rest.len().min(b_rest.len())).for_each(|lane| add(lane, a_rest[lane], b_rest[lane]));
    lanes.map(|lanes| lanes.iter().sum())
}

/// Errors of results by channel, behind what is fused with the operator.
#[derive(Default)]
pub(super) struct ChannelErrors {
    count: f64,
    /// Of every channel the sum of its errors, and of their squares.
    sums: Vec<[f64; 2]>,
}

impl ChannelErrors {
    /// Of results that should be `float`.
    pub fn of(operator: &Operator, float: TensorView<'_>, quantized: TensorView<'_>) -> Self {
        let channels = operator.channels.unwrap_or(1);
        let (shape, float, quantized) = (float.shape, float.to_f32(), quantized.to_f32());
        let inner = operator.channels.map_or(usize::MAX, |_| operator.inner(shape)).min(float.len().max(1));
        let mut totals = vec![[0.0; 2]; channels];
        for (block, (f, q)) in float.chunks(inner).zip(quantized.chunks(inner)).enumerate() {
            let found = sums(f, q, |f, q| {
                let error = f64::from(f - q);
                [error, error * error]
            });
            totals[block % channels].iter_mut().zip(found).for_each(|(total, found)| *total += found);
        }
        Self { count: float.len() as f64 / channels as f64, sums: totals }
    }

    /// Adds those of another sample.
    pub fn add(&mut self, other: &Self) {
        self.sums.resize(other.sums.len(), [0.0; 2]);
        self.count += other.count;
        for (total, found) in self.sums.iter_mut().flatten().zip(other.sums.iter().flatten()) {
            *total += found;
        }
    }

    /// Sum of squares; without the part that a bias takes back.
    pub fn total(&self, corrected: bool) -> f64 {
        let of = |&[sum, squares]: &[f64; 2]| if corrected { squares - sum * sum / self.count } else { squares };
        self.sums.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compare::Parts, tensor::Tensor};

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
        let [low, high] = after.gain_interval(&before, 0.95).unwrap();
        assert!((low - 20.0).abs() < 1e-3 && (high - 20.0).abs() < 1e-3, "{low} {high}");
        assert!((after.decibels().unwrap() - before.decibels().unwrap() - 20.0).abs() < 1e-3);
        // Half of the calls gain as much as the others lose: without each the gain is ±10·log₁₀(9 / 6), and so
        // is the pseudo-value: s = 1.7609 · √(4/3), times (n - 1) / √n and Student's 3.1824 for three degrees.
        let (before, after) = (calls(&[0.5, 0.5, 0.25, 0.25]), calls(&[0.25, 0.25, 0.5, 0.5]));
        let [low, high] = after.gain_interval(&before, 0.95).unwrap();
        let half = 3.182_446 * (0.75f64 * 4.0).sqrt() * 10.0 * 1.5f64.log10();
        assert!((low + half).abs() < 1e-3 && (high - half).abs() < 1e-3, "{low} {high} {half}");
        assert_eq!(calls(&[0.5]).gain_interval(&calls(&[0.25]), 0.95), None, "one call tells nothing");
    }
}
