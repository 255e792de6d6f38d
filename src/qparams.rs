//! Scales, and the arithmetic of quantization: exactly what ONNX `QuantizeLinear` and `DequantizeLinear` compute.
//!
//! Everything is symmetric (the zero point is 0), as TensorRT requires: `q = saturate(round(x / scale))` with ties to
//! the even neighbour, `x' = q · scale`. INT8 has `scale = amax / 127`; E4M3 has `scale = amax / 448`.

use serde::{Deserialize, Serialize};

/// The scale of channels and tensors without any magnitude, instead of zero, which TensorRT rejects; the product of two
/// such scales is a normal `float32`.
pub const ZERO_SCALE: f32 = 1.0 / (1u64 << 40) as f32;

/// The smallest scale of what has a magnitude, 2⁻¹¹⁰: ranges from 10⁻³⁰ on have steps of their own, and what is smaller
/// (what folding left of a dead channel, often) does not reach the numbers that processors take for zero.
pub const MIN_SCALE: f32 = f32::from_bits((127 - 110) << 23);

/// The largest magnitude of E4M3.
pub const E4M3_MAX: f32 = 448.0;

/// What the quantized values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuantType {
    /// 8-bit integers in [-128, 127]: activations.
    Int8,
    /// 8-bit integers in [-127, 127]: weights.
    Int8Narrow,
    /// 8-bit floats with 4 exponent and 3 mantissa bits, no infinity (`float8e4m3fn`).
    E4m3,
}

impl QuantType {
    /// The quantized magnitude that `amax` maps to.
    pub fn max(self) -> f32 {
        match self {
            Self::Int8 | Self::Int8Narrow => 127.0,
            Self::E4m3 => E4M3_MAX,
        }
    }

    /// Value of `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        match self {
            Self::Int8 | Self::Int8Narrow => 3,
            Self::E4m3 => 17,
        }
    }

    /// The scale for values up to `amax`: `amax / max`, and never below [`MIN_SCALE`]; [`ZERO_SCALE`] for 0.
    pub fn scale(self, amax: f32) -> f32 {
        if amax == 0.0 { ZERO_SCALE } else { (amax / self.max()).max(MIN_SCALE) }
    }

    /// The code of `value`; for the integers the two's complement.
    pub fn quantize(self, value: f32, scale: f32) -> u8 {
        let ratio = value / scale;
        match self {
            Self::Int8 => nearest(ratio, -128.0) as i8 as u8,
            Self::Int8Narrow => nearest(ratio, -127.0) as i8 as u8,
            Self::E4m3 => e4m3_from_f32(ratio),
        }
    }

    /// The value of a code.
    pub fn dequantize(self, code: u8, scale: f32) -> f32 {
        match self {
            Self::Int8 | Self::Int8Narrow => f32::from(code as i8) * scale,
            Self::E4m3 => e4m3_to_f32(code) * scale,
        }
    }

    /// `dequantize(quantize(value))`.
    #[cfg(test)]
    pub fn fake_quantize(self, value: f32, scale: f32) -> f32 {
        self.dequantize(self.quantize(value, scale), scale)
    }

    /// The smallest step between values up to `amax`.
    pub(crate) fn smallest_step(self, amax: f32) -> f32 {
        match self {
            Self::Int8 | Self::Int8Narrow => self.scale(amax),
            Self::E4m3 => self.scale(amax) / 512.0,
        }
    }
}

/// The nearest whole number between `low` and 127, ties to even.
pub(crate) fn nearest(value: f32, low: f32) -> f32 {
    /// Adding and subtracting it rounds: floats of its size are whole numbers.
    const ROUNDS: f32 = 12_582_912.0;
    (value.clamp(low, 127.0) + ROUNDS) - ROUNDS
}

/// The nearest E4M3 value, as [`e4m3_from_f32`] and [`e4m3_to_f32`] find it, without branches.
pub(crate) fn nearest_e4m3(value: f32) -> f32 {
    const ROUNDS: f32 = 12_582_912.0;
    let magnitude = if value.abs() > E4M3_MAX { E4M3_MAX } else { value.abs() };
    let bits = magnitude.to_bits();
    let normal = f32::from_bits((bits + 0x7_ffff + ((bits >> 20) & 1)) & !0xf_ffff);
    let subnormal = ((magnitude * 512.0 + ROUNDS) - ROUNDS) / 512.0;
    (if magnitude < 1.0 / 64.0 { subnormal } else { normal }).copysign(value)
}

/// Rounds to the nearest E4M3 value, ties to even; magnitudes beyond 448 saturate, as ONNX does by default.
pub fn e4m3_from_f32(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let magnitude = value.abs();
    let code = if magnitude.is_nan() {
        0x7f
    } else if magnitude >= E4M3_MAX {
        0x7e
    } else if magnitude < 1.0 / 64.0 {
        // Subnormals are multiples of 2^-9; rounding up to 8 of them gives the code of the smallest normal, 2^-6.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits();
        let rounded = (bits + 0x7_ffff + ((bits >> 20) & 1)) >> 20;
        (rounded - ((127 - 7) << 3)) as u8
    };
    sign | code
}

/// The value of an E4M3 code.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let magnitude = match code & 0x7f {
        0x7f => f32::NAN,
        subnormal @ 0..8 => f32::from(subnormal) / 512.0,
        normal => f32::from_bits((u32::from(normal) + ((127 - 7) << 3)) << 20),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Which values share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// All of them.
    PerTensor,
    /// Those with the same index along one axis.
    PerChannel {
        /// The axis, from 0.
        axis: usize,
    },
}

/// How one tensor is quantized. The zero point is always 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct QParams {
    /// Type of the quantized values.
    pub quant_type: QuantType,
    /// What the scales belong to.
    pub granularity: Granularity,
    /// One scale, or one a channel; finite and at least [`MIN_SCALE`].
    pub scales: Vec<f32>,
}

/// The scales do not fit the tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{scales} scales with {granularity:?} do not fit {values} values of shape {shape:?}")]
pub struct QParamsError {
    /// Number of scales.
    pub scales: usize,
    /// What they belong to.
    pub granularity: Granularity,
    /// Number of values.
    pub values: usize,
    /// The tensor's extents.
    pub shape: Vec<usize>,
}

impl QParams {
    /// One scale for values up to `amax`.
    pub fn per_tensor(quant_type: QuantType, amax: f32) -> Self {
        Self { quant_type, granularity: Granularity::PerTensor, scales: vec![quant_type.scale(amax)] }
    }

    /// One scale a channel, from the largest magnitude of each; `None` when `axis` is not an axis of `shape` or the
    /// values do not fill it.
    pub fn per_channel(quant_type: QuantType, axis: usize, shape: &[usize], values: &[f32]) -> Option<Self> {
        let (channels, inner) = layout(axis, shape, values.len())?;
        let mut amax = vec![0f32; channels];
        for (index, row) in values.chunks_exact(inner).enumerate() {
            let slot = &mut amax[index % channels];
            *slot = row.iter().fold(*slot, |m, x| m.max(x.abs()));
        }
        let scales = amax.iter().map(|&a| quant_type.scale(a)).collect();
        Some(Self { quant_type, granularity: Granularity::PerChannel { axis }, scales })
    }

    /// The codes of a row-major tensor.
    pub fn quantize(&self, shape: &[usize], values: &[f32]) -> Result<Vec<u8>, QParamsError> {
        let mut codes = vec![0; values.len()];
        self.for_each_row(shape, values.len(), |range, scale| {
            for (code, &value) in codes[range.clone()].iter_mut().zip(&values[range]) {
                *code = self.quant_type.quantize(value, scale);
            }
        })?;
        Ok(codes)
    }

    /// Calls `row` with each run of values that share a scale.
    fn for_each_row(
        &self,
        shape: &[usize],
        count: usize,
        mut row: impl FnMut(std::ops::Range<usize>, f32),
    ) -> Result<(), QParamsError> {
        let error = || QParamsError {
            scales: self.scales.len(),
            granularity: self.granularity,
            values: count,
            shape: shape.to_vec(),
        };
        let (channels, inner) = match self.granularity {
            Granularity::PerTensor => (1, count.max(1)),
            Granularity::PerChannel { axis } => layout(axis, shape, count).ok_or_else(error)?,
        };
        if self.scales.len() != channels {
            return Err(error());
        }
        for (index, start) in (0..count).step_by(inner).enumerate() {
            row(start..start + inner, self.scales[index % channels]);
        }
        Ok(())
    }
}

/// Number of channels along `axis` and length of the runs of values that share one (never 0).
fn layout(axis: usize, shape: &[usize], count: usize) -> Option<(usize, usize)> {
    let channels = *shape.get(axis)?;
    let total = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let inner = shape[axis + 1..].iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (total == count).then_some((channels, inner.max(1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// FNV-1a: a checksum short enough to state in a test.
    fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
        bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    }

    /// Every finite float whose upper 16 bits are arbitrary and whose lower 16 bits are `low`.
    fn patterns(low: u32) -> impl Iterator<Item = f32> {
        (0..=0xffffu32).map(move |high| f32::from_bits(high << 16 | low)).filter(|x| x.is_finite())
    }

    #[test]
    fn e4m3_rounds_like_ml_dtypes() {
        // Checksums over ml_dtypes 0.6 `float8_e4m3fn` of the same values, clipped to ±448.
        for (low, checksum) in [(0, 0x0ca6_58a6_c47f_9c95), (1, 0x1921_b0c8_efb2_77c5), (0xffff, 0x1921_b0c8_efb2_77c5)]
        {
            assert_eq!(fnv(patterns(low).map(e4m3_from_f32)), checksum, "low bits {low:#x}");
        }
        let values = (0..=255u8).map(e4m3_to_f32).map(|x| if x.is_nan() { 1e9f32 } else { x });
        assert_eq!(fnv(values.flat_map(f32::to_le_bytes)), 0x1d90_8b2c_d68a_a121);
    }

    #[test]
    fn e4m3_by_hand() {
        let rounded = |x: f32| e4m3_to_f32(e4m3_from_f32(x));
        // Steps are 1/8 in [1, 2): 1.0625 ties down to the even 1.0, 1.1875 up to the even 1.25.
        assert_eq!([1.0625, 1.1875, 1.07].map(rounded), [1.0, 1.25, 1.125]);
        assert_eq!([460.0, f32::INFINITY, f32::NEG_INFINITY].map(rounded), [448.0, 448.0, -448.0]);
        assert_eq!([0.000_977, 0.000_976, 0.0156].map(rounded), [1.0 / 512.0, 0.0, 1.0 / 64.0]);
        assert!(rounded(f32::NAN).is_nan());
    }

    #[test]
    fn int8_rounds_like_quantize_linear() {
        // Checksums over the outputs of ONNX Runtime 1.31 `QuantizeLinear` for the same values and scales.
        let expected = [
            (0x3c01_0204, [0xb742_2ed2_e890_6f1a, 0xb742_2ed2_e890_6f1a, 0x9a09_861c_0371_b53b]),
            (0x3c01_09eb, [0xe2f8_44c7_f1e6_1736, 0xe2f8_44c7_f1e6_1736, 0x6a7c_341c_cc91_f649]),
            (0x4053_3333, [0x28fc_3542_9f01_34da, 0xafdc_5030_86de_5bb2, 0xddc6_d75a_f6ed_108b]),
            (0x3a80_0000, [0x3f41_98a8_dd84_3ea8, 0x3018_bd7a_21b2_7168, 0x3018_bd7a_21b2_7168]),
        ];
        for (bits, checksums) in expected {
            let scale = f32::from_bits(bits);
            let ours = [0, 1, 0xffff].map(|low| fnv(patterns(low).map(|x| QuantType::Int8.quantize(x, scale))));
            assert_eq!(ours, checksums, "scale {scale}");
        }
    }

    #[test]
    fn int8_by_hand() {
        let q =
            |t: QuantType| [0.5, 1.5, 2.5, -0.5, -1.5, 127.4, -128.4, -200.0, 300.0].map(|x| t.quantize(x, 1.0) as i8);
        assert_eq!(q(QuantType::Int8), [0, 2, 2, 0, -2, 127, -128, -128, 127]);
        assert_eq!(q(QuantType::Int8Narrow), [0, 2, 2, 0, -2, 127, -127, -127, 127]);
    }

    #[test]
    fn dead_channels_have_a_tiny_positive_scale() {
        let weights = [0.0, 0.0, 127.0, -254.0, 1e-40, 0.0, 1.27e-30, -1e-32];
        let params = QParams::per_channel(QuantType::Int8Narrow, 0, &[4, 2], &weights).unwrap();
        assert_eq!(params.scales, [ZERO_SCALE, 2.0, MIN_SCALE, 1.27e-30 / 127.0]);
        assert!((ZERO_SCALE * ZERO_SCALE).is_normal() && MIN_SCALE == 2f32.powi(-110));
        assert_eq!(params.quantize(&[4, 2], &weights).unwrap(), [0, 0, 64, 129, 0, 0, 127, 255]);
    }

    #[test]
    fn channels_follow_the_axis() {
        // Shape [2, 2, 2]; along axis 1 the channels are {1, 2, 5, 6} and {3, 4, 7, 8}.
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let amax = |axis| {
            let params = QParams::per_channel(QuantType::Int8Narrow, axis, &[2, 2, 2], &values).unwrap();
            params.scales.iter().map(|s| (s * 127.0).round()).collect::<Vec<_>>()
        };
        assert_eq!([amax(0), amax(1), amax(2)], [[4.0, 8.0], [6.0, 8.0], [7.0, 8.0]]);
        assert_eq!(QParams::per_channel(QuantType::Int8Narrow, 3, &[2, 2, 2], &values), None);
        assert_eq!(QParams::per_channel(QuantType::Int8Narrow, 0, &[2, 3], &values), None);
        let wrong = QParams { scales: vec![1.0; 3], ..QParams::per_tensor(QuantType::Int8, 1.0) };
        assert!(wrong.quantize(&[8], &values).is_err());
        let empty = QParams::per_channel(QuantType::Int8Narrow, 1, &[0, 2], &[]).unwrap();
        assert!(empty.quantize(&[0, 2], &[]).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn values_within_range_move_by_half_a_step_at_most(values in prop::collection::vec(-1e3f32..1e3, 12)) {
            let params = QParams::per_channel(QuantType::Int8Narrow, 1, &[2, 3, 2], &values).unwrap();
            let codes = params.quantize(&[2, 3, 2], &values).unwrap();
            for (index, (x, &code)) in values.iter().zip(&codes).enumerate() {
                let scale = params.scales[index / 2 % 3];
                let y = params.quant_type.dequantize(code, scale);
                prop_assert!((x - y).abs() <= scale * 0.5001, "{x} became {y} with scale {scale}");
            }
        }

        #[test]
        fn e4m3_is_its_own_fixed_point(code in 0u8..=255) {
            let value = e4m3_to_f32(code);
            prop_assert!(value.is_nan() || e4m3_from_f32(value) == code);
        }
    }
}
