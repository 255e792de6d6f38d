//! The quantized weight of an operator, and how it lies in memory.

use rayon::prelude::*;

use super::{
    RecoverError,
    network::{Operator, Weight},
    rounding::CHUNK,
    state::State,
};
use crate::{
    calibrate::Equalized,
    qparams::{Granularity, QParams},
    quantize::Reads,
    tensor::Tensor,
};

/// The quantized weight of an operator.
#[derive(Default)]
pub(super) struct Quantized {
    /// What is multiplied with the activation.
    pub values: Option<Tensor>,
    /// What is rounded: the weight, divided by the factors of the activation's channels where they change its codes.
    pub exact: Vec<f32>,
    factors: Option<(Reads, Vec<f32>)>,
    pub params: Option<QParams>,
    pub nearest: Vec<i32>,
    pub codes: Vec<i32>,
}

impl Quantized {
    pub fn of(operator: &Operator, state: &State) -> Result<Self, RecoverError> {
        let Some(weight) = &operator.weight else {
            return Ok(Self::default());
        };
        let equalized = operator.quantized.first().and_then(|tensor| state.equalized.get(tensor));
        let dense = weight.reads.filter(|reads| !reads.depthwise);
        let mut new = Self { factors: dense.zip(equalized.map(Equalized::factors)), ..Self::default() };
        let values = weight.values();
        let exact = values.par_iter().with_min_len(CHUNK).enumerate();
        let exact = exact.map(|(place, value)| value / new.factor(place)).collect::<Vec<f32>>();
        let kind = state.weights();
        let largest = || exact.iter().fold(0f32, |max, value| max.max(value.abs()));
        let params = weight
            .axis
            .and_then(|axis| QParams::per_channel(kind, axis, weight.shape(), &exact))
            .unwrap_or_else(|| QParams::per_tensor(kind, largest()));
        let codes = params.quantize(weight.shape(), &exact)?;
        let nearest: Vec<i32> = codes.into_iter().map(|code| i32::from(code as i8)).collect();
        (new.params, new.codes, new.nearest, new.exact) = (Some(params), nearest.clone(), nearest, exact);
        if let Some(differences) = state.rounding.get(&weight.name) {
            new.codes.iter_mut().zip(differences).for_each(|(code, &difference)| *code += i32::from(difference));
        }
        new.values = Some(new.with_codes(&new.codes, weight)?);
        Ok(new)
    }

    /// What the channel of the activation is multiplied with that a number of the weight reads, where that changes codes.
    fn factor(&self, place: usize) -> f32 {
        self.factors.as_ref().map_or(1.0, |(reads, factors)| factors[reads.channel(place)])
    }

    /// `moments` of rows of the activation, as they are once its channels are multiplied: of what the codes are for.
    pub fn scaled(&self, moments: &mut [f32], layout: Layout) {
        let Some((reads, factors)) = &self.factors else { return };
        let of = |column: usize| factors[column / (layout.columns / reads.channels).max(1)];
        for (place, moment) in moments.iter_mut().enumerate() {
            *moment *= of(place / layout.columns) * of(place % layout.columns);
        }
    }

    /// The weight with other codes.
    pub fn with_codes(&self, codes: &[i32], weight: &Weight) -> Result<Tensor, RecoverError> {
        let Some(params) = &self.params else { return Ok(weight.tensor.clone()) };
        let scale = |index: usize| match params.granularity {
            Granularity::PerTensor => params.scales[0],
            Granularity::PerChannel { axis } => {
                let inner: usize = weight.shape()[axis + 1..].iter().product::<usize>().max(1);
                params.scales[(index / inner) % params.scales.len()]
            }
        };
        let value =
            |(index, &code): (usize, &i32)| params.quant_type.dequantize(code as u8, scale(index)) * self.factor(index);
        let values = codes.par_iter().with_min_len(CHUNK).enumerate().map(value).collect();
        Ok(Tensor::from_f32(weight.shape().to_vec(), values)?)
    }
}

/// How a weight lies: a row of columns for each output channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub channels: usize,
    pub columns: usize,
    /// Whether the columns of a channel lie apart.
    transposed: bool,
}

impl Layout {
    /// Of weights that can be rounded: those of two-dimensional convolutions and of matrix products.
    pub fn of(operator: &Operator, weight: &Weight) -> Option<Self> {
        Self::of_any(operator, weight).filter(|_| operator.op_type != "Conv" || operator.window.is_some())
    }

    pub fn of_any(operator: &Operator, weight: &Weight) -> Option<Self> {
        match (operator.op_type.as_str(), weight.axis, weight.shape()) {
            ("Conv", Some(0), &[channels, ref rest @ ..]) => {
                Some(Self { channels, columns: rest.iter().product(), transposed: false })
            }
            ("Gemm" | "MatMul", Some(0), &[channels, columns]) => Some(Self { channels, columns, transposed: false }),
            ("Gemm" | "MatMul", Some(1), &[columns, channels]) => Some(Self { channels, columns, transposed: true }),
            _ => None,
        }
    }

    pub fn rows<T: Copy>(self, values: &[T]) -> Vec<Vec<T>> {
        let at = |channel: usize, column: usize| {
            if self.transposed {
                values[column * self.channels + channel]
            } else {
                values[channel * self.columns + column]
            }
        };
        (0..self.channels).map(|channel| (0..self.columns).map(|column| at(channel, column)).collect()).collect()
    }

    pub fn join(self, rows: &[Vec<i32>]) -> Vec<i32> {
        if self.transposed {
            (0..self.columns).flat_map(|column| rows.iter().map(move |row| row[column])).collect()
        } else {
            rows.concat()
        }
    }
}
