//! The quantized weight of an operator, and how it lies in memory.

use super::{
    RecoverError,
    network::{Operator, Weight},
    state::State,
};
use crate::qparams::{Granularity, QParams, QuantType};

/// The quantized weight of an operator.
pub(super) struct Quantized {
    pub values: Option<Vec<f32>>,
    pub params: Option<QParams>,
    pub nearest: Vec<i32>,
    pub codes: Vec<i32>,
}

impl Quantized {
    pub fn of(operator: &Operator, state: &State) -> Result<Self, RecoverError> {
        let Some(weight) = &operator.weight else {
            return Ok(Self { values: None, params: None, nearest: Vec::new(), codes: Vec::new() });
        };
        let kind = QuantType::Int8Narrow;
        let largest = || weight.values.iter().fold(0f32, |max, value| max.max(value.abs()));
        let params = weight
            .axis
            .and_then(|axis| QParams::per_channel(kind, axis, &weight.shape, &weight.values))
            .unwrap_or_else(|| QParams::per_tensor(kind, largest()));
        let codes = params.quantize(&weight.shape, &weight.values)?;
        let nearest: Vec<i32> = codes.into_iter().map(|code| i32::from(code as i8)).collect();
        let mut new = Self { values: None, params: Some(params), codes: nearest.clone(), nearest };
        if let Some(differences) = state.rounding.get(&weight.name) {
            new.codes.iter_mut().zip(differences).for_each(|(code, &difference)| *code += i32::from(difference));
        }
        new.values = Some(new.with_codes(new.codes.clone(), weight).0);
        Ok(new)
    }

    /// The weight with other codes.
    pub fn with_codes(&self, codes: Vec<i32>, weight: &Weight) -> (Vec<f32>, Vec<i32>) {
        let Some(params) = &self.params else { return (Vec::new(), codes) };
        let scale = |index: usize| match params.granularity {
            Granularity::PerTensor => params.scales[0],
            Granularity::PerChannel { axis } => {
                let inner: usize = weight.shape[axis + 1..].iter().product::<usize>().max(1);
                params.scales[(index / inner) % params.scales.len()]
            }
        };
        (codes.iter().enumerate().map(|(index, &code)| code as f32 * scale(index)).collect(), codes)
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
        match (operator.op_type.as_str(), weight.axis, &weight.shape[..]) {
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
