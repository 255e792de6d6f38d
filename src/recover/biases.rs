//! What a bias takes back, so that the mean of every channel is right behind the activation that follows.
//!
//! Means in front of a clip follow values that the clip cuts off: taking those back shifts all others.

use std::ops::Range;

use rayon::prelude::*;

use super::network::{Operator, Tail};
use crate::tensor::Tensor;

/// Positions of one channel of a sample that are looked at, about.
const POSITIONS: usize = 512;

/// Rounds of the fixed-point iteration.
const ROUNDS: usize = 4;
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
    let (tail, mut shift) = (operator.tail, vec![0.0f32; channels]);
    let exact = means(operator, &shift, &float[..fit]);
    for _ in 0..if tail == Tail::None { 1 } else { ROUNDS } {
        let now = means(operator, &shift, &quantized[..fit]);
        for ((shift, exact), now) in shift.iter_mut().zip(&exact).zip(&now) {
            // Where the function is flat, a change in front of it moves less behind it.
            *shift += ((exact.value - now.value) / now.slope.clamp(0.1, 1.0)) as f32;
        }
    }
    if shift.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let held_out = if fit < float.len() { fit..float.len() } else { 0..float.len() };
    let error = |shift: &[f32]| -> f64 {
        let of = |index: usize| squares(operator, shift, &float[index], &quantized[index]);
        held_out.clone().into_par_iter().map(of).collect::<Vec<_>>().iter().sum()
    };
    (error(&shift) < CLEARLY * error(&vec![0.0; channels])).then_some(shift)
}

/// Some values of every channel, evenly spread: their places in a tensor of `length` values, block by block.
fn some(length: usize, inner: usize) -> impl Iterator<Item = (usize, std::iter::StepBy<Range<usize>>)> {
    let step = inner.div_ceil(POSITIONS);
    (0..length / inner.max(1)).map(move |block| (block, (block * inner..(block + 1) * inner).step_by(step)))
}

/// Mean behind the activation, and how steep that is in the mean.
#[derive(Clone, Copy, Default)]
struct Mean {
    value: f64,
    slope: f64,
}

fn means(operator: &Operator, shift: &[f32], samples: &[Tensor]) -> Vec<Mean> {
    /// The step that a slope is measured over, relative to nothing: activations are of the order of 1.
    const STEP: f32 = 1e-2;
    let of = |tensor: &Tensor| {
        let mut sums = vec![Mean::default(); shift.len()];
        let values = tensor.view().to_f32();
        let inner = operator.inner(tensor.shape());
        for (block, places) in some(values.len(), inner) {
            let channel = block % shift.len();
            let (mut sum, mut rise) = (0.0f32, 0.0f32);
            for place in places {
                let number = values[place] + shift[channel];
                let at = operator.tail.apply(number);
                sum += at;
                rise += operator.tail.apply(number + STEP) - at;
            }
            sums[channel].value += f64::from(sum);
            sums[channel].slope += f64::from(rise / STEP);
        }
        let count = some(values.len(), inner).map(|(_, places)| places.len()).sum::<usize>();
        (sums, count)
    };
    let sums: Vec<_> = samples.par_iter().map(of).collect();
    let count: usize = sums.iter().map(|(_, count)| count).sum();
    let each = (count as f64 / shift.len() as f64).max(1.0);
    let mut means = vec![Mean::default(); shift.len()];
    for (channel, sum) in sums.iter().flat_map(|(sums, _)| sums.iter().enumerate()) {
        means[channel].value += sum.value / each;
        means[channel].slope += sum.slope / each;
    }
    means
}

fn squares(operator: &Operator, shift: &[f32], float: &Tensor, quantized: &Tensor) -> f64 {
    let (shape, float, quantized) = (float.shape(), float.view().to_f32(), quantized.view().to_f32());
    let of = |(block, places): (usize, std::iter::StepBy<Range<usize>>)| {
        let add = shift[block % shift.len()];
        let tail = operator.tail;
        let error = |at: usize| (tail.apply(float[at]) - tail.apply(quantized[at] + add)).powi(2);
        f64::from(places.map(error).sum::<f32>())
    };
    some(float.len(), operator.inner(shape)).map(of).sum()
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
