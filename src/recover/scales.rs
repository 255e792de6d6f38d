//! Factors that bring the channels of an activation to like sizes: what a tensor's range leaves unused by a channel is used.

use super::network::Operator;
use crate::{calibrate::Equalized, quantize::Equalizable, tensor::Tensor};

/// The largest magnitude of each of the `channels` that `operator` reads, over all of `tensors`.
fn channel_maxima<'t>(operator: &Operator, tensors: impl Iterator<Item = &'t Tensor>, channels: usize) -> Vec<f32> {
    let mut maxima = vec![0.0f32; channels];
    for tensor in tensors {
        let view = tensor.view();
        for (block, values) in view.to_f32().chunks(operator.inner(tensor.shape())).enumerate() {
            let most = &mut maxima[block % channels];
            *most = values.iter().fold(*most, |most, value| most.max(value.abs()));
        }
    }
    maxima
}

/// How far channels are equalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Amount {
    /// Powers of two that are left over: what is to come may be larger than what was seen.
    pub spare: i32,
    /// Powers of two at most.
    pub most: u8,
    /// Which share of the way the activation goes, between 0 and 1; weights that add up many channels gain by less.
    pub share: f32,
}

impl Default for Amount {
    fn default() -> Self {
        Self { spare: 1, most: Equalized::MOST, share: 1.0 }
    }
}

/// How large the channels of an activation are, and what they are multiplied with.
pub(super) struct Sizes {
    activation: Vec<f32>,
    /// Of the weights, where their codes depend on factors.
    weight: Option<Vec<f32>>,
}

impl Sizes {
    /// Of the `tensors` that `operator` reads.
    pub fn of<'t>(operator: &Operator, tensors: impl Iterator<Item = &'t Tensor>, possible: &Equalizable) -> Self {
        let activation = channel_maxima(operator, tensors, possible.channels);
        let weight = operator.weight.as_ref().and_then(|weight| Some((weight, weight.reads?)));
        let weight = weight.filter(|_| !possible.depthwise).map(|(weight, reads)| {
            let mut maxima = vec![0.0f32; possible.channels];
            for (place, value) in weight.values().iter().enumerate() {
                let most = &mut maxima[reads.channel(place)];
                *most = most.max(value.abs());
            }
            maxima
        });
        Self { activation, weight }
    }

    /// What to try once a range is found.
    pub fn amounts(&self) -> impl Iterator<Item = Amount> {
        let usual = Amount::default();
        let shares = [0.75, 0.5, 0.25].map(|share| Amount { share, ..usual });
        let shares = self.weight.is_some().then_some(shares).into_iter().flatten();
        [Amount { spare: 2, ..usual }, Amount { most: usual.most / 2, ..usual }].into_iter().chain(shares)
    }

    /// Powers of two that keep every channel within `amax`; `None` where no channel gains by it. A channel that showed nothing
    /// stays as it is.
    pub fn exponents(&self, amax: f32, amount: Amount) -> Option<Equalized> {
        let largest = self.weight.iter().flatten().copied().fold(0.0f32, f32::max);
        let exponent = |(channel, &max): (usize, &f32)| {
            if max <= 0.0 {
                return 0;
            }
            let room = (amax / max).log2();
            // SmoothQuant: the ratio of both sizes, each to its power.
            let smaller =
                self.weight.as_ref().map_or(0.0, |weight| (largest / weight[channel]).log2().clamp(0.0, 16.0));
            let wanted = amount.share * room - (1.0 - amount.share) * smaller;
            (wanted.floor() as i32).min(room.floor() as i32 - amount.spare).clamp(0, amount.most.into()) as u8
        };
        let found: Vec<u8> = self.activation.iter().enumerate().map(exponent).collect();
        found.iter().any(|&exponent| exponent > 0).then_some(Equalized(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(activation: &[f32], weight: Option<&[f32]>) -> Sizes {
        Sizes { activation: activation.to_vec(), weight: weight.map(<[f32]>::to_vec) }
    }

    #[test]
    fn small_channels_are_multiplied_until_they_fill_the_range() {
        let tensor = |values: [f32; 6]| Tensor::from_f32(vec![1, 3, 1, 2], values.to_vec()).unwrap();
        let samples = [tensor([6.0, -1.0, 0.7, 0.1, 0.0, 0.0]), tensor([1.0, 5.0, -0.75, 0.2, 0.0, 0.0])];
        let maxima = channel_maxima(&Operator::convolution(&[4, 3, 1, 1]), samples.iter(), 3);
        assert_eq!(maxima, [6.0, 0.75, 0.0]);
        let sizes_of = |maxima: &[f32]| sizes(maxima, None);
        let amount = |spare, most| Amount { spare, most, share: 1.0 };
        assert_eq!(sizes_of(&maxima).exponents(6.0, amount(0, 6)), Some(Equalized(vec![0, 3, 0])));
        assert_eq!(sizes_of(&maxima).exponents(6.0, amount(1, 6)), Some(Equalized(vec![0, 2, 0])));
        assert_eq!(sizes_of(&maxima).exponents(6.0, amount(0, 2)), Some(Equalized(vec![0, 2, 0])));
        assert_eq!(sizes_of(&[6.0, 4.0]).exponents(6.0, amount(0, 6)), None);
        // What the range cuts off anyway is not cut more.
        assert_eq!(sizes_of(&[100.0, 1.0]).exponents(6.0, amount(0, 6)), Some(Equalized(vec![0, 2])));
    }

    #[test]
    fn weights_of_many_channels_take_their_share_of_the_way() {
        // The second channel is 16 times smaller than the range. With half of the way its weight would be worth 4 times less
        // in the scale of its row: where it is small already it goes by half of that less.
        let amount = |share| Amount { spare: 0, most: 6, share };
        let alike = sizes(&[16.0, 1.0], Some(&[1.0, 1.0]));
        assert_eq!(alike.exponents(16.0, amount(1.0)), Some(Equalized(vec![0, 4])));
        assert_eq!(alike.exponents(16.0, amount(0.5)), Some(Equalized(vec![0, 2])));
        let small = sizes(&[16.0, 1.0], Some(&[1.0, 0.25]));
        assert_eq!(small.exponents(16.0, amount(1.0)), Some(Equalized(vec![0, 4])));
        assert_eq!(small.exponents(16.0, amount(0.5)), Some(Equalized(vec![0, 1])));
        assert_eq!(sizes(&[16.0, 1.0], Some(&[1.0, 0.0])).exponents(16.0, amount(0.5)), None);
    }
}
