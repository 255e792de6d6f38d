//! What a bias takes back, so that the mean of every channel is right behind the activation that follows.
//!
//! Means in front of a clip follow values that the clip cuts off: taking those back shifts all others.

use super::{network::Tail, walk::inner};
use crate::tensor::Tensor;

/// Rounds of the fixed-point iteration.
const ROUNDS: usize = 4;
/// The error on held-out samples must fall to this share.
const CLEARLY: f64 = 0.999;

/// What to add to each of `channels` results, from the first `fit` samples; `None` where the others do not gain by it.
pub(super) fn correction(
    tail: Tail,
    channels: usize,
    float: &[Tensor],
    quantized: &[Tensor],
    fit: usize,
) -> Option<Vec<f32>> {
    let mut shift = vec![0.0f32; channels];
    let exact = means(tail, &shift, &float[..fit]);
    for _ in 0..if tail == Tail::None { 1 } else { ROUNDS } {
        let now = means(tail, &shift, &quantized[..fit]);
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
        held_out.clone().map(|index| squares(tail, shift, &float[index], &quantized[index])).sum()
    };
    (error(&shift) < CLEARLY * error(&vec![0.0; channels])).then_some(shift)
}

/// Mean behind the activation, and how steep that is in the mean.
#[derive(Clone, Copy, Default)]
struct Mean {
    value: f64,
    slope: f64,
}

fn means(tail: Tail, shift: &[f32], samples: &[Tensor]) -> Vec<Mean> {
    /// The step that a slope is measured over, relative to nothing: activations are of the order of 1.
    const STEP: f32 = 1e-2;
    let mut means = vec![Mean::default(); shift.len()];
    let mut count = 0usize;
    for tensor in samples {
        let inner = inner(tensor.shape());
        let values = tensor.view().to_f32();
        count += values.len();
        for (block, numbers) in values.chunks(inner).enumerate() {
            let channel = block % shift.len();
            let (mut sum, mut rise) = (0.0f32, 0.0f32);
            for &number in numbers {
                let at = tail.apply(number + shift[channel]);
                sum += at;
                rise += tail.apply(number + shift[channel] + STEP) - at;
            }
            means[channel].value += f64::from(sum);
            means[channel].slope += f64::from(rise / STEP);
        }
    }
    let each = (count as f64 / shift.len() as f64).max(1.0);
    for mean in &mut means {
        *mean = Mean { value: mean.value / each, slope: mean.slope / each };
    }
    means
}

fn squares(tail: Tail, shift: &[f32], float: &Tensor, quantized: &Tensor) -> f64 {
    let inner = inner(float.shape());
    let (float, quantized) = (float.view().to_f32(), quantized.view().to_f32());
    let blocks = float.chunks(inner).zip(quantized.chunks(inner)).enumerate();
    let of = |(block, (f, q)): (usize, (&[f32], &[f32]))| {
        let add = shift[block % shift.len()];
        let error = |(&f, &q): (&f32, &f32)| (tail.apply(f) - tail.apply(q + add)).powi(2);
        f64::from(f.iter().zip(q).map(error).sum::<f32>())
    };
    blocks.map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[[f32; 4]]) -> Vec<Tensor> {
        values.iter().map(|values| Tensor::from_f32(vec![1, 2, 1, 2], values.to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_constant_error_is_taken_back_by_channel() {
        let float = samples(&[[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 0.0, 1.0], [0.5, 1.5, 2.0, 2.5]]);
        let quantized = samples(&[[1.5, 2.5, 2.0, 3.0], [2.5, 3.5, -1.0, 0.0], [1.0, 2.0, 1.0, 1.5]]);
        let found = correction(Tail::None, 2, &float, &quantized, 2).unwrap();
        assert!((found[0] + 0.5).abs() < 1e-6 && (found[1] - 1.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn what_a_clip_cuts_off_does_not_count() {
        // One value lies far beyond the clip and is cut in quantization: its plain mean would shift all others.
        let float = samples(&[[1.0, 90.0, 0.0, 0.0], [2.0, 3.0, 0.0, 0.0]]);
        let quantized = samples(&[[1.0, 9.0, 0.0, 0.0], [2.0, 3.0, 0.0, 0.0]]);
        assert_eq!(correction(Tail::Clip(0.0, 6.0), 2, &float, &quantized, 1), None);
        // Without the clip held-out samples show that it would do harm.
        assert_eq!(correction(Tail::None, 2, &float, &quantized, 1), None);
    }

    #[test]
    fn nothing_is_corrected_that_does_not_hold_elsewhere() {
        let float = samples(&[[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]);
        let quantized = samples(&[[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]);
        assert_eq!(correction(Tail::None, 2, &float, &quantized, 1), None);
    }
}
