//! `TensorProto` to [`Tensor`] and back.
//!
//! Nothing a file declares is believed: the number of elements is compared with the data that is there before
//! anything is allocated.

use bytes::Bytes;
use half::{bf16, f16};

use super::{
    mapped::release,
    proto::{DataLocation, TensorProto},
};
use crate::tensor::{ElementType, Tensor, Values, ValuesView};

// `raw_data` is little-endian, and is handed to ONNX Runtime and written as it lies in memory.
const _: () = assert!(cfg!(target_endian = "little"), "big-endian machines are not supported");

/// Why a `TensorProto` has no usable values.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// A type without counterpart here.
    #[error("tensor `{tensor}` has the element type {data_type}, which is not supported")]
    ElementType {
        /// The tensor.
        tensor: String,
        /// Value of `TensorProto.DataType`.
        data_type: i32,
    },
    /// Negative extents, or more elements than memory has addresses for.
    #[error("tensor `{tensor}` has the impossible shape {dims:?}; the file is damaged")]
    Dims {
        /// The tensor.
        tensor: String,
        /// Its extents.
        dims: Vec<i64>,
    },
    /// The data does not fit the shape.
    #[error("tensor `{tensor}` of shape {dims:?} needs {expected} {unit}, but {found} are there; the file is damaged")]
    Length {
        /// The tensor.
        tensor: String,
        /// Its extents.
        dims: Vec<i64>,
        /// What the shape asks for.
        expected: usize,
        /// What the file has.
        found: usize,
        /// `bytes` or `values`.
        unit: &'static str,
    },
    /// A value that its type cannot hold.
    #[error("tensor `{tensor}` holds {value}, which is not of type {element_type}; the file is damaged")]
    Value {
        /// The tensor.
        tensor: String,
        /// The value.
        value: i64,
        /// The tensor's type.
        element_type: ElementType,
    },
    /// The data lies in another file that was not read.
    #[error("tensor `{tensor}` has its data in another file; load the model from its path, not from bytes")]
    External {
        /// The tensor.
        tensor: String,
    },
}

impl TensorProto {
    /// A tensor stored as `raw_data`; the values are moved, not copied.
    pub fn from_tensor(name: &str, tensor: Tensor) -> Self {
        let (shape, values) = tensor.into_parts();
        Self {
            name: Some(name.to_owned()),
            dims: shape.iter().map(|&extent| extent as i64).collect(),
            data_type: Some(values.element_type().onnx()),
            raw_data: Some(Bytes::from_owner(Raw(values))),
            ..Self::default()
        }
    }

    /// Type of the elements.
    pub fn element_type(&self) -> Result<ElementType, TensorError> {
        ElementType::from_onnx(self.data_type())
            .ok_or_else(|| TensorError::ElementType { tensor: self.name().to_owned(), data_type: self.data_type() })
    }

    /// Extents, outermost first; their product fits memory.
    pub fn shape(&self) -> Result<Vec<usize>, TensorError> {
        let shape: Option<Vec<usize>> = self.dims.iter().map(|&extent| usize::try_from(extent).ok()).collect();
        shape
            .filter(|shape| element_count(shape).and_then(|count| count.checked_mul(16)).is_some())
            .ok_or_else(|| TensorError::Dims { tensor: self.name().to_owned(), dims: self.dims.clone() })
    }

    /// True when the data lies in another file that has not been read.
    pub fn is_external(&self) -> bool {
        self.data_location == Some(DataLocation::External as i32)
    }

    /// Checks shape and data without reading the data, as far as that goes.
    ///
    /// # Errors
    /// What [`Self::to_tensor`] would refuse. Types without counterpart pass: nobody here reads them.
    pub fn check(&self) -> Result<(), TensorError> {
        let count: usize = self.shape()?.iter().product();
        match (self.element_type(), &self.raw_data) {
            (Err(_), _) => Ok(()),
            (Ok(element_type), Some(raw)) if raw.len() == count * element_type.size() => Ok(()),
            _ => self.to_tensor().map(drop),
        }
    }

    /// The values, copied.
    ///
    /// # Errors
    /// Types without counterpart, impossible shapes, and data that does not fit the shape.
    pub fn to_tensor(&self) -> Result<Tensor, TensorError> {
        let element_type = self.element_type()?;
        let shape = self.shape()?;
        let count: usize = shape.iter().product();
        if self.is_external() {
            return Err(TensorError::External { tensor: self.name().to_owned() });
        }
        let values = match &self.raw_data {
            Some(raw) if !raw.is_empty() || self.has_no_typed_data() => self.decode_raw(element_type, raw, count)?,
            _ => self.decode_typed(element_type, count)?,
        };
        let found = values.view().len();
        Tensor::new(shape, values).map_err(|_| self.length(count, found, "values"))
    }

    fn has_no_typed_data(&self) -> bool {
        self.float_data.is_empty()
            && self.int32_data.is_empty()
            && self.int64_data.is_empty()
            && self.double_data.is_empty()
            && self.uint64_data.is_empty()
    }

    fn decode_raw(&self, element_type: ElementType, raw: &[u8], count: usize) -> Result<Values, TensorError> {
        let expected = count * element_type.size();
        if raw.len() != expected {
            return Err(self.length(expected, raw.len(), "bytes"));
        }
        macro_rules! read {
            ($variant:ident, $ty:ty) => {
                Values::$variant(raw.as_chunks().0.iter().map(|bytes| <$ty>::from_le_bytes(*bytes)).collect())
            };
        }
        let values = match element_type {
            ElementType::F32 => read!(F32, f32),
            ElementType::F64 => read!(F64, f64),
            ElementType::F16 => read!(F16, f16),
            ElementType::Bf16 => read!(Bf16, bf16),
            ElementType::I8 => read!(I8, i8),
            ElementType::I16 => read!(I16, i16),
            ElementType::I32 => read!(I32, i32),
            ElementType::I64 => read!(I64, i64),
            ElementType::U8 => Values::U8(raw.to_vec()),
            ElementType::U16 => read!(U16, u16),
            ElementType::U32 => read!(U32, u32),
            ElementType::U64 => read!(U64, u64),
            ElementType::Bool => Values::Bool(raw.iter().map(|&byte| byte != 0).collect()),
        };
        release(raw);
        Ok(values)
    }

    /// Values from the typed fields; small types are coded one by one in `int32_data`, the 16-bit floats as bits.
    fn decode_typed(&self, element_type: ElementType, count: usize) -> Result<Values, TensorError> {
        let found = match element_type {
            ElementType::F32 => self.float_data.len(),
            ElementType::F64 => self.double_data.len(),
            ElementType::I64 => self.int64_data.len(),
            ElementType::U32 | ElementType::U64 => self.uint64_data.len(),
            _ => self.int32_data.len(),
        };
        if found != count {
            return Err(self.length(count, found, "values"));
        }
        Ok(match element_type {
            ElementType::F32 => Values::F32(self.float_data.clone()),
            ElementType::F64 => Values::F64(self.double_data.clone()),
            ElementType::I64 => Values::I64(self.int64_data.clone()),
            ElementType::U64 => Values::U64(self.uint64_data.clone()),
            ElementType::I32 => Values::I32(self.int32_data.clone()),
            ElementType::U32 => Values::U32(self.narrow(&self.uint64_data)?),
            ElementType::I8 => Values::I8(self.narrow(&self.int32_data)?),
            ElementType::U8 => Values::U8(self.narrow(&self.int32_data)?),
            ElementType::I16 => Values::I16(self.narrow(&self.int32_data)?),
            ElementType::U16 => Values::U16(self.narrow(&self.int32_data)?),
            ElementType::Bool => Values::Bool(self.int32_data.iter().map(|&value| value != 0).collect()),
            ElementType::F16 => Values::F16(self.narrow(&self.int32_data)?.into_iter().map(f16::from_bits).collect()),
            ElementType::Bf16 => {
                Values::Bf16(self.narrow(&self.int32_data)?.into_iter().map(bf16::from_bits).collect())
            }
        })
    }

    /// Values of a smaller integer type, each checked.
    fn narrow<W: Copy + TryInto<i64>, N: TryFrom<W>>(&self, values: &[W]) -> Result<Vec<N>, TensorError> {
        let wrong = |value: W| TensorError::Value {
            tensor: self.name().to_owned(),
            value: value.try_into().unwrap_or(i64::MAX),
            element_type: ElementType::from_onnx(self.data_type()).unwrap_or(ElementType::I32),
        };
        values.iter().map(|&value| N::try_from(value).map_err(|_| wrong(value))).collect()
    }

    fn length(&self, expected: usize, found: usize, unit: &'static str) -> TensorError {
        TensorError::Length { tensor: self.name().to_owned(), dims: self.dims.clone(), expected, found, unit }
    }
}

/// Product of the extents; `None` where those that are not 0 overflow: then a product in their order may, too.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    let all = shape.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { all })
}

/// Values seen as the bytes that they are.
struct Raw(Values);

impl AsRef<[u8]> for Raw {
    fn as_ref(&self) -> &[u8] {
        bytes_of(self.0.view())
    }
}

/// The values as little-endian bytes, borrowed.
pub fn bytes_of(values: ValuesView<'_>) -> &[u8] {
    use ValuesView as V;
    match values {
        V::F32(v) => bytemuck::cast_slice(v),
        V::F64(v) => bytemuck::cast_slice(v),
        V::F16(v) => bytemuck::cast_slice(v),
        V::Bf16(v) => bytemuck::cast_slice(v),
        V::I8(v) => bytemuck::cast_slice(v),
        V::I16(v) => bytemuck::cast_slice(v),
        V::I32(v) => bytemuck::cast_slice(v),
        V::I64(v) => bytemuck::cast_slice(v),
        V::U8(v) => v,
        V::U16(v) => bytemuck::cast_slice(v),
        V::U32(v) => bytemuck::cast_slice(v),
        V::U64(v) => bytemuck::cast_slice(v),
        V::Bool(v) => bytemuck::cast_slice(v),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proto(element_type: ElementType, dims: &[i64]) -> TensorProto {
        TensorProto {
            name: Some("w".to_owned()),
            dims: dims.to_vec(),
            data_type: Some(element_type.onnx()),
            ..Default::default()
        }
    }

    #[test]
    fn every_type_survives_the_round_trip() {
        let all = [
            Values::F32(vec![1.5, -2.0]),
            Values::F64(vec![1.5, -2.0]),
            Values::F16(vec![f16::from_f32(1.5), f16::from_f32(-2.0)]),
            Values::Bf16(vec![bf16::from_f32(1.5), bf16::from_f32(-2.0)]),
            Values::I8(vec![-128, 127]),
            Values::I16(vec![-32768, 5]),
            Values::I32(vec![-7, 5]),
            Values::I64(vec![i64::MIN, 5]),
            Values::U8(vec![255, 5]),
            Values::U16(vec![65535, 5]),
            Values::U32(vec![u32::MAX, 5]),
            Values::U64(vec![u64::MAX, 5]),
            Values::Bool(vec![true, false]),
        ];
        for values in all {
            let tensor = Tensor::new(vec![2, 1], values).unwrap();
            let proto = TensorProto::from_tensor("w", tensor.clone());
            assert_eq!(proto.to_tensor().unwrap(), tensor);
        }
    }

    #[test]
    fn small_types_are_read_from_int32_data() {
        let half = TensorProto { int32_data: vec![0x3c00, 0xc000], ..proto(ElementType::F16, &[2]) };
        assert_eq!(half.to_tensor().unwrap().to_f32(), [1.0, -2.0]);
        let brain = TensorProto { int32_data: vec![0x3f80], ..proto(ElementType::Bf16, &[1]) };
        assert_eq!(brain.to_tensor().unwrap().to_f32(), [1.0]);
        let bytes = TensorProto { int32_data: vec![-128, 127], ..proto(ElementType::I8, &[2]) };
        assert_eq!(bytes.to_tensor().unwrap().to_f32(), [-128.0, 127.0]);
        let wrong = TensorProto { int32_data: vec![128], ..proto(ElementType::I8, &[1]) };
        assert!(wrong.to_tensor().unwrap_err().to_string().contains("holds 128, which is not of type int8"));
        let wide = TensorProto { uint64_data: vec![1 << 40], ..proto(ElementType::U32, &[1]) };
        assert!(matches!(wide.to_tensor(), Err(TensorError::Value { value: 0x100_0000_0000, .. })));
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_allocated() {
        let huge = proto(ElementType::F32, &[1 << 40, 1 << 10]);
        assert!(matches!(huge.to_tensor(), Err(TensorError::Length { found: 0, .. })));
        for dims in [&[-1, 4][..], &[i64::MAX, i64::MAX], &[i64::MAX, 2], &[1 << 40, 1 << 40, 0]] {
            assert!(proto(ElementType::F32, dims).check().is_err(), "{dims:?}");
            assert!(matches!(proto(ElementType::F32, dims).to_tensor(), Err(TensorError::Dims { .. })), "{dims:?}");
        }
        let short = TensorProto { raw_data: Some(Bytes::from_static(&[0; 7])), ..proto(ElementType::F32, &[2]) };
        let error = short.to_tensor().unwrap_err().to_string();
        assert!(error.contains("tensor `w` of shape [2] needs 8 bytes, but 7 are there"), "{error}");
        let text = TensorProto { data_type: Some(8), ..proto(ElementType::F32, &[0]) };
        assert!(matches!(text.to_tensor(), Err(TensorError::ElementType { data_type: 8, .. })));
    }

    #[test]
    fn scalars_and_empty_tensors_have_one_and_no_value() {
        let scalar = TensorProto { float_data: vec![3.0], ..proto(ElementType::F32, &[]) };
        assert_eq!(scalar.to_tensor().unwrap().to_f32(), [3.0]);
        let empty = proto(ElementType::F32, &[0, 3]);
        assert_eq!(empty.to_tensor().unwrap().shape(), [0, 3]);
        let raw = TensorProto { raw_data: Some(Bytes::new()), ..proto(ElementType::I64, &[0]) };
        assert_eq!(raw.to_tensor().unwrap().shape(), [0]);
    }
}
