//! Constants as 8-bit initializers: the file keeps the codes and their scales, nothing in float.

use std::collections::BTreeMap;

use bytes::Bytes;
use half::{bf16, f16};

use super::{QuantizeError, placement::WeightEdge};
use crate::{
    calibrate::Rounding,
    onnx::proto::TensorProto,
    qparams::{Granularity, QParams, QuantType, ZERO_SCALE},
    tensor::{ElementType, Tensor, Values},
};

/// A quantized constant: inputs of its DequantizeLinear.
pub(super) struct QuantizedWeight {
    pub codes: TensorProto,
    pub scale: TensorProto,
    pub zero_point: TensorProto,
}

impl QuantizedWeight {
    /// Moves the INT8 codes of weight `tensor` by what recovery found.
    pub fn round_anew(&mut self, tensor: &str, rounding: &Rounding) -> Result<(), QuantizeError> {
        let codes = self.codes.raw_data.take().unwrap_or_default();
        let differences = rounding
            .differences(codes.len())
            .ok_or_else(|| QuantizeError::Rounding { tensor: tensor.to_owned(), codes: codes.len() })?;
        let moved = |(&code, difference): (&u8, i8)| (code as i8).saturating_add(difference).max(-127) as u8;
        self.codes.raw_data = Some(codes.iter().zip(differences).map(moved).collect());
        Ok(())
    }
}

/// Float types of scales.
#[derive(Clone, Debug)]
pub(super) struct ScaleTypes {
    /// The types of the model's tensors, in which their scales are stored.
    pub tensors: BTreeMap<String, ElementType>,
    /// The type of a tensor that is not among them.
    pub usual: ElementType,
    /// The type that the model is converted to later, which scales must survive.
    pub half: Option<ElementType>,
}

impl ScaleTypes {
    /// The type in which the scales of a tensor are stored.
    pub fn stored(&self, tensor: &str) -> ElementType {
        self.tensors.get(tensor).copied().unwrap_or(self.usual)
    }

    /// The smallest numbers that are at least `scales`, which belong to one tensor, in the type that they must survive. Scales that
    /// FP16 has no numbers for stay as they are: what they belong to stays in FP32.
    pub fn rounded_up(&self, tensor: &str, scales: &mut [f32]) {
        let largest = scales.iter().copied().fold(0.0, f32::max);
        let half = self.half.filter(|&half| half != ElementType::F16 || largest == ZERO_SCALE || fits_f16(largest));
        let exact = half.unwrap_or_else(|| self.stored(tensor));
        for scale in scales {
            *scale = round_scale_up(*scale, exact);
        }
    }
}

/// Whether FP16 has a number that is at least `scale`, the largest of a tensor, and at most 1 % more.
pub(super) fn fits_f16(scale: f32) -> bool {
    (f16::MIN_POSITIVE_SUBNORMAL.to_f32() * 128.0..=f16::MAX.to_f32()).contains(&scale)
}

/// The names of the three tensors.
pub(super) struct WeightNames {
    pub codes: String,
    pub scale: String,
    pub zero_point: String,
}

/// Quantizes one constant along the edge's axis.
///
/// `floors`, one a channel, are the smallest scales allowed. Scales are rounded before the codes are computed, so codes and scales always belong together.
pub(super) fn quantize_weight(
    weight: &TensorProto,
    edge: &WeightEdge,
    quant_type: QuantType,
    types: &ScaleTypes,
    floors: &[f32],
    names: &WeightNames,
) -> Result<QuantizedWeight, QuantizeError> {
    let tensor = weight.to_tensor()?;
    let (shape, values) = (tensor.shape(), tensor.view().to_f32());
    if values.iter().any(|value| !value.is_finite()) {
        return Err(QuantizeError::NonFiniteWeight { tensor: edge.tensor.clone() });
    }
    let mut params = match edge.axis {
        Some(axis) => QParams::per_channel(quant_type, axis, shape, &values)
            .ok_or_else(|| QuantizeError::WeightAxis { tensor: edge.tensor.clone(), axis, shape: shape.to_vec() })?,
        None => QParams::per_tensor(quant_type, values.iter().fold(0.0, |amax, value| amax.max(value.abs()))),
    };
    for (index, scale) in params.scales.iter_mut().enumerate() {
        let floor = floors.get(index).copied().filter(|floor| floor.is_finite()).unwrap_or(0.0);
        *scale = scale.max(floor);
    }
    types.rounded_up(&edge.tensor, &mut params.scales);
    let codes = params.quantize(shape, &values)?;
    let scale_shape = match params.granularity {
        Granularity::PerTensor => Vec::new(),
        Granularity::PerChannel { .. } => vec![params.scales.len()],
    };
    let zeros = vec![0; params.scales.len()];
    Ok(QuantizedWeight {
        codes: codes_tensor(&names.codes, shape, quant_type, codes),
        scale: scale_tensor(&names.scale, scale_shape.clone(), params.scales, types.stored(&edge.tensor))?,
        zero_point: codes_tensor(&names.zero_point, &scale_shape, quant_type, zeros),
    })
}

/// An initializer of 8-bit codes.
pub(super) fn codes_tensor(name: &str, shape: &[usize], quant_type: QuantType, codes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: shape.iter().map(|&extent| extent as i64).collect(),
        data_type: Some(quant_type.onnx()),
        raw_data: Some(Bytes::from(codes)),
        ..TensorProto::default()
    }
}

/// An initializer of scales.
pub(super) fn scale_tensor(
    name: &str,
    shape: Vec<usize>,
    scales: Vec<f32>,
    stored: ElementType,
) -> Result<TensorProto, QuantizeError> {
    let values = match stored {
        ElementType::F16 => Values::F16(scales.into_iter().map(f16::from_f32).collect()),
        ElementType::Bf16 => Values::Bf16(scales.into_iter().map(bf16::from_f32).collect()),
        _ => Values::F32(scales),
    };
    Ok(TensorProto::from_tensor(name, Tensor::new(shape, values)?))
}

/// The smallest value of `element_type` that is at least `scale`: nothing is clipped by rounding.
///
/// In `float16` a scale below the smallest normal number keeps its subnormal steps; what has no magnitude at all gets
/// the smallest normal number.
fn round_scale_up(scale: f32, element_type: ElementType) -> f32 {
    let up = |rounded: f32, next: f32| if rounded < scale { next } else { rounded };
    match element_type {
        ElementType::F16 if scale <= ZERO_SCALE => f16::MIN_POSITIVE.to_f32(),
        ElementType::F16 => {
            let rounded = f16::from_f32(scale.min(f16::MAX.to_f32()));
            up(rounded.to_f32(), f16::from_bits(rounded.to_bits() + 1).to_f32()).min(f16::MAX.to_f32())
        }
        ElementType::Bf16 => {
            let rounded = bf16::from_f32(scale);
            up(rounded.to_f32(), bf16::from_bits(rounded.to_bits() + 1).to_f32())
        }
        _ => scale,
    }
}

/// Smallest weight scales by channel: those that keep `bias / (input_scale · weight_scale)` inside 31 bits, and the product a
/// normal `float32`, by which integer kernels multiply their sums.
///
/// ONNX Runtime turns the bias of an integer convolution into INT32 with that scale: a channel of tiny weights with an
/// ordinary bias would overflow.
pub(super) fn scale_floors(bias: Option<&TensorProto>, input_scale: f32, channels: usize) -> Vec<f32> {
    let bias = bias.and_then(|bias| bias.to_tensor().ok()).map(|bias| bias.to_f32()).unwrap_or_default();
    // Divided twice: the product of the divisors may lie beyond what there is.
    let of_bias =
        |channel: usize| bias.get(channel).map_or(0.0, |value| value.abs() / input_scale / (1u32 << 30) as f32);
    (0..channels).map(|channel| of_bias(channel).max(2.0 * f32::MIN_POSITIVE / input_scale)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: ScaleTypes = ScaleTypes { tensors: BTreeMap::new(), usual: ElementType::F32, half: None };

    fn names() -> WeightNames {
        WeightNames { codes: "q".to_owned(), scale: "s".to_owned(), zero_point: "z".to_owned() }
    }

    fn quantize(shape: &[usize], values: &[f32], axis: Option<usize>, floors: &[f32]) -> QuantizedWeight {
        let tensor = Tensor::from_f32(shape.to_vec(), values.to_vec()).unwrap();
        let edge = WeightEdge { tensor: "w".to_owned(), node: 0, input: 1, axis };
        let proto = TensorProto::from_tensor("w", tensor);
        quantize_weight(&proto, &edge, QuantType::Int8Narrow, &F32, floors, &names()).unwrap()
    }

    #[test]
    fn scales_follow_the_axis_and_codes_the_scales() {
        let weight = quantize(&[2, 2], &[127.0, -254.0, 12.7, 0.1], Some(1), &[]);
        assert_eq!(weight.scale.to_tensor().unwrap().to_f32(), [1.0, 2.0]);
        assert_eq!(weight.codes.raw_data.unwrap().as_ref(), [127, 129, 13, 0]);
        assert_eq!((weight.zero_point.dims, weight.zero_point.data_type), (vec![2], Some(3)));
        let weight = quantize(&[2, 2], &[127.0, -254.0, 12.7, 0.1], None, &[]);
        assert_eq!(weight.scale.dims, Vec::<i64>::new());
        assert_eq!(weight.codes.raw_data.unwrap().as_ref(), [64, 129, 6, 0]);
    }

    #[test]
    fn floors_raise_scales() {
        let weight = quantize(&[2, 1], &[0.0, 1.27], Some(0), &scale_floors(None, 1.0, 2));
        assert_eq!(weight.scale.to_tensor().unwrap().to_f32(), [ZERO_SCALE, 0.01]);
        let bias = TensorProto::from_tensor("b", Tensor::from_f32(vec![2], vec![-8.0, 8.0]).unwrap());
        let weight = quantize(&[2, 1], &[0.0, 1.27], Some(0), &scale_floors(Some(&bias), 0.5, 2));
        let scales = weight.scale.to_tensor().unwrap().to_f32();
        assert_eq!(scales, [16.0 / (1u32 << 30) as f32, 0.01]);
        assert!(8.0 / (0.5 * scales[0]) < i32::MAX as f32);
        // A product that processors take for zero would leave nothing of the result.
        let tiny = 1e-33f32;
        let weight = quantize(&[2, 1], &[1e-9, 1.27], Some(0), &scale_floors(None, tiny, 2));
        let scales = weight.scale.to_tensor().unwrap().to_f32();
        assert!((scales[0] * tiny).is_normal() && scales[1] == 0.01, "{scales:?}");
    }

    #[test]
    fn scales_survive_the_half_types_without_shrinking() {
        for scale in [1.0, 0.1, 3.3e-5, 1.0e-7, 7.7e-3, 65500.0] {
            let half = round_scale_up(scale, ElementType::F16);
            assert!(half >= scale && f16::from_f32(half).to_f32() == half, "{scale} became {half}");
            let brain = round_scale_up(scale, ElementType::Bf16);
            assert!(brain >= scale && bf16::from_f32(brain).to_f32() == brain && brain <= scale * 1.01);
        }
        assert_eq!(round_scale_up(ZERO_SCALE, ElementType::F16), f16::MIN_POSITIVE.to_f32());
    }

    #[test]
    fn scales_that_fp16_has_no_numbers_for_stay_as_they_are() {
        let types = ScaleTypes { half: Some(ElementType::F16), ..F32 };
        let rounded = |scales: &[f32]| {
            let mut scales = scales.to_vec();
            types.rounded_up("w", &mut scales);
            scales
        };
        for scales in [[1e-32, 1e-30], [1e-9, 3e-6], [1.0, 7e4], [1e28, 0.1]] {
            assert_eq!(rounded(&scales), scales);
        }
        // What is far below the others, and what has no magnitude, take what FP16 has.
        assert_eq!(rounded(&[0.5, 1e-9]), [0.5, f16::MIN_POSITIVE_SUBNORMAL.to_f32()]);
        assert_eq!(rounded(&[ZERO_SCALE]), [f16::MIN_POSITIVE.to_f32()]);
        assert!((0.1..0.1001).contains(&rounded(&[0.1])[0]));
    }

    #[test]
    fn infinite_weights_are_refused_by_name() {
        let proto = TensorProto::from_tensor("w", Tensor::from_f32(vec![1, 2], vec![1.0, f32::NAN]).unwrap());
        let edge = WeightEdge { tensor: "w".to_owned(), node: 0, input: 1, axis: Some(0) };
        let result = quantize_weight(&proto, &edge, QuantType::Int8Narrow, &F32, &[], &names());
        assert!(result.err().unwrap().to_string().contains("`w`"));
    }
}
