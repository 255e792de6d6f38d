//! Tensors to ONNX Runtime's values and back, without copies.

use ort::{
    session::SessionInputValue,
    value::{DynValue, TensorElementType, TensorRef, ValueType},
};

use crate::{
    backend::TensorInfo,
    tensor::{ElementType, TensorView, ValuesView},
};

macro_rules! conversions {
    ($($variant:ident: $ty:ty, $ort:ident;)*) => {
        pub(super) fn element_type(ort: TensorElementType) -> Option<ElementType> {
            match ort { $(TensorElementType::$ort => Some(ElementType::$variant),)* _ => None }
        }

        pub(super) fn ort_type(element_type: ElementType) -> TensorElementType {
            match element_type { $(ElementType::$variant => TensorElementType::$ort,)* }
        }

        /// Lends a tensor to ONNX Runtime.
        pub(super) fn lend(tensor: TensorView<'_>) -> ort::Result<SessionInputValue<'_>> {
            match tensor.values {
                $(ValuesView::$variant(values) => {
                    Ok(TensorRef::from_array_view((tensor.shape, values))?.into())
                })*
            }
        }

        /// Looks at a value in ONNX Runtime's own buffer; `None` for what is no tensor of a known type.
        pub(super) fn look(value: &DynValue) -> ort::Result<Option<(Vec<usize>, ValuesView<'_>)>> {
            let ValueType::Tensor { ty, .. } = value.dtype() else { return Ok(None) };
            Ok(match ty {
                $(TensorElementType::$ort => {
                    let (shape, values) = value.try_extract_tensor::<$ty>()?;
                    Some((shape.iter().map(|&extent| extent as usize).collect(), ValuesView::$variant(values)))
                })*
                _ => None,
            })
        }
    };
}

conversions! {
    F32: f32, Float32;
    F64: f64, Float64;
    F16: half::f16, Float16;
    Bf16: half::bf16, Bfloat16;
    Bool: bool, Bool;
    I8: i8, Int8;
    I16: i16, Int16;
    I32: i32, Int32;
    I64: i64, Int64;
    U8: u8, Uint8;
    U16: u16, Uint16;
    U32: u32, Uint32;
    U64: u64, Uint64;
}

/// Describes an input or output.
pub(super) fn info(name: &str, dtype: &ValueType) -> TensorInfo {
    let (element_type, shape) = match dtype {
        ValueType::Tensor { ty, shape, .. } => {
            (element_type(*ty), shape.iter().map(|&extent| usize::try_from(extent).ok()).collect())
        }
        _ => (None, Vec::new()),
    };
    TensorInfo { name: name.to_owned(), element_type, shape }
}
