//! What a bias takes back, so that the mean of every channel is right behind the activation that follows.
//!
//! Means in front of a clip follow values that the clip cuts off: taking those back shifts all others.

use rayon::prelude::*;

use super::{
    errors::sums,
    network::{Operator, Tail},
};
use crate::tensor::Tensor;

/// Values of one channel that are looked at, of all samples that decide together; of one sample this many at least.
const VALUES: usize = 4096;
const LEAST: usize = 64;
/// Rounds of the fixed-point iteration.
const ROUNDS: usize = 3;
/// The error on held-out samples must fall to this share.
const CLEARLY: f64 = 0.999;

/// What to add to each of `channels` results of `operator`, from the first `fit` samples; `None` where the others do not gain
/// by it.
pub(super) fn correction(
    operator: &Operator,
    channels: usize,
    float: &[Tensor],
    quantized: &[Tensor],
    fit: usize,
) -> Option<Vec<f32>> {
    let most = VALUES.div_ceil(fit.max(1)).max(LEAST);
    let picked =
        |tensors: &[Tensor]| tensors.par_iter().map(|tensor| Picked::of(operator, channels, tensor, most)).collect();
    let picked = Both { float: picked(float), quantized: picked(quantized), channels, fit };
    match operator.tail {
        Tail::None => picked.correction(1, |x| [x, 1.0]),
        Tail::Clip(low, high) => {
            picked.correction(ROUNDS, |x| [x.max(low).min(high), if x > low && x < high { 1.0 } else { 0.0 }])
        }
        Tail::Leaky(slope) => {
            picked.correction(ROUNDS, |x| [x.max(0.0) + slope * x.min(0.0), if x > 0.0 { 1.0 } else { slope }])
        }
        Tail::Silu => picked.correction(ROUNDS, |x| {
            let gate = 1.0 / (1.0 + (-x).exp());
            [x * gate, gate * (1.0 + x * (1.0 - gate))]
        }),
    }
}

/// Some results of an operator on both sides; the first `fit` samples decide.
struct Both {
    float: Vec<Picked>,
    quantized: Vec<Picked>,
    channels: usize,
    fit: usize,
}

impl Both {
    /// `tail` gives the value behind the activation and how steep that is; where it is not a straight line it takes some `rounds`.
    fn correction(&self, rounds: usize, tail: impl Fn(f32) -> [f32; 2] + Sync) -> Option<Vec<f32>> {
        let Self { float, quantized, channels, fit } = self;
        // Behind the activation, with `shift` added in front of it.
        let mean = |shift: f32, samples: &[Picked], channel: usize| {
            let of = |sample: &Picked| {
                let values = sample.channel(channel);
                sums(values, values, |value, _| tail(value + shift).map(f64::from))
            };
            let count = samples.iter().map(|sample| sample.each).sum::<usize>().max(1) as f64;
            samples.iter().map(of).fold([0.0; 2], added).map(|sum| sum / count)
        };
        let found = |channel: usize| {
            let ([exact, _], mut shift) = (mean(0.0, &float[..*fit], channel), 0.0);
            for _ in 0..rounds {
                let [value, slope] = mean(shift, &quantized[..*fit], channel);
                // Where the function is flat, a change in front of it moves less behind it.
                shift += ((exact - value) / slope.clamp(0.1, 1.0)) as f32;
            }
            shift
        };
        let shifts: Vec<f32> = (0..*channels).into_par_iter().map(found).collect();
        if shifts.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let held_out = if *fit < float.len() { *fit..float.len() } else { 0..float.len() };
        let errors = |channel: usize| {
            let of = |sample: usize| {
                sums(float[sample].channel(channel), quantized[sample].channel(channel), |float, quantized| {
                    [shifts[channel], 0.0].map(|shift| f64::from(tail(float)[0] - tail(quantized + shift)[0]).powi(2))
                })
            };
            held_out.clone().map(of).fold([0.0; 2], added)
        };
        let errors: Vec<[f64; 2]> = (0..*channels).into_par_iter().map(errors).collect();
        let [corrected, uncorrected] = errors.into_iter().fold([0.0; 2], added);
        (corrected < CLEARLY * uncorrected).then_some(shifts)
    }
}

fn added(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
    [a[0] + b[0], a[1] + b[1]]
}

/// Some values of every channel of a tensor, evenly spread; those of one channel lie together.
struct Picked {
    values: Vec<f32>,
    each: usize,
}

impl Picked {
    /// Some `most` values of every channel.
    fn of(operator: &Operator, channels: usize, tensor: &Tensor, most: usize) -> Self {
        let (view, inner) = (tensor.view(), operator.inner(tensor.shape()));
        let values = view.to_f32();
        let rows = values.len() / (channels * inner).max(1);
        let row_step = rows.div_ceil(most).max(1);
        let step = (rows.div_ceil(row_step) * inner).div_ceil(most).max(1);
        let mut some = Vec::with_capacity(channels * rows.div_ceil(row_step) * inner.div_ceil(step));
        for channel in 0..channels {
            for row in (0..rows).step_by(row_step) {
                let block = (row * channels + channel) * inner;
                match &values[block..block + inner] {
                    [one] => some.push(*one),
                    all if step == 1 => some.extend_from_slice(all),
                    all => some.extend(all.iter().step_by(step)),
                }
            }
        }
        let each = some.len() / channels.max(1);
        Self { values: some, each }
    }

    fn channel(&self, channel: usize) -> &[f32] {
        &self.values[channel * self.each..(channel + 1) * self.each]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A convolution with two channels and this activation behind it.
    fn before(tail: Tail) -> Operator {
        Operator { tail, ..Operator::convolution(&[2, 2, 1, 1]) }
    }

    fn samples(values: &[[f32; 4]]) -> Vec<Tensor> {
        values.iter().map(|values| Tensor::from_f32(vec![1, 2, 1, 2], values.to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_constant_error_is_taken_back_by_channel() {
        let float = samples(&[[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 0.0, 1.0], [0.5, 1.5, 2.0, 2.5]]);
        let quantized = samples(&[[1.5, 2.5, 2.0, 3.0], [2.5, 3.5, -1.0, 0.0], [1.0, 2.0, 1.0, 1.5]]);
        let found = correction(&before(Tail::None), 2, &float, &quantized, 2).unwrap();
        assert!((found[0] + 0.5).abs() < 1e-6 && (found[1] - 1.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn what_a_clip_cuts_off_does_not_count() {
        // One value lies far beyond the clip and is cut in quantization: its plain mean would shift all others.
        let float = samples(&[[1.0, 90.0, 0.0, 0.0], [2.0, 3.0, 0.0, 0.0]]);
        let quantized = samples(&[[1.0, 9.0, 0.0, 0.0], [2.0, 3.0, 0.0, 0.0]]);
        assert_eq!(correction(&before(Tail::Clip(0.0, 6.0)), 2, &float, &quantized, 1), None);
        // Without the clip held-out samples show that it would do harm.
        assert_eq!(correction(&before(Tail::None), 2, &float, &quantized, 1), None);
    }

    #[test]
    fn nothing_is_corrected_that_does_not_hold_elsewhere() {
        let float = samples(&[[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]);
        let quantized = samples(&[[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]);
        assert_eq!(correction(&before(Tail::None), 2, &float, &quantized, 1), None);
    }
}
