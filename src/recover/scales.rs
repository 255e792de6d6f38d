//! Factors that bring the channels of an activation to like sizes: what a tensor's range leaves unused by a channel is used.

use crate::{calibrate::Equalized, tensor::Tensor};

use super::state::inner;

/// The largest magnitude of each of `channels` over all of `tensors`.
pub(super) fn channel_maxima<'t>(tensors: impl Iterator<Item = &'t Tensor>, channels: usize) -> Vec<f32> {
    let mut maxima = vec![0.0f32; channels];
    for tensor in tensors {
        let view = tensor.view();
        for (block, values) in view.to_f32().chunks(inner(tensor.shape())).enumerate() {
            let most = &mut maxima[block % channels];
            *most = values.iter().fold(*most, |most, value| most.max(value.abs()));
        }
    }
    maxima
}

/// Powers of two that keep every channel within `amax`, with `spare` of them left over and at most `most`; `None` where no
/// channel gains by it. A channel that showed nothing stays as it is.
pub(super) fn exponents(maxima: &[f32], amax: f32, spare: i32, most: u8) -> Option<Equalized> {
    let exponent = |&max: &f32| {
        let room = if max > 0.0 { (amax / max).log2().floor() as i32 - spare } else { 0 };
        room.clamp(0, most.into()) as u8
    };
    let found: Vec<u8> = maxima.iter().map(exponent).collect();
    found.iter().any(|&exponent| exponent > 0).then_some(Equalized(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_channels_are_multiplied_until_they_fill_the_range() {
        let tensor = |values: [f32; 6]| Tensor::from_f32(vec![1, 3, 1, 2], values.to_vec()).unwrap();
        let samples = [tensor([6.0, -1.0, 0.7, 0.1, 0.0, 0.0]), tensor([1.0, 5.0, -0.75, 0.2, 0.0, 0.0])];
        let maxima = channel_maxima(samples.iter(), 3);
        assert_eq!(maxima, [6.0, 0.75, 0.0]);
        assert_eq!(exponents(&maxima, 6.0, 0, 6), Some(Equalized(vec![0, 3, 0])));
        assert_eq!(exponents(&maxima, 6.0, 1, 6), Some(Equalized(vec![0, 2, 0])));
        assert_eq!(exponents(&maxima, 6.0, 0, 2), Some(Equalized(vec![0, 2, 0])));
        assert_eq!(exponents(&[6.0, 4.0], 6.0, 0, 6), None);
        // What the range cuts off anyway is not cut more.
        assert_eq!(exponents(&[100.0, 1.0], 6.0, 0, 6), Some(Equalized(vec![0, 2])));
    }
}
