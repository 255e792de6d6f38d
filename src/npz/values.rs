//! The values of an array, from and to bytes.

use std::io::{self, Write};

use half::f16;

use crate::tensor::{ElementType, Values, ValuesView};

/// Values from bytes; a rest that makes no whole value is left out.
pub(super) fn decode(data: &[u8], element_type: ElementType, big: bool) -> Values {
    use ElementType as E;
    match element_type {
        E::F32 => Values::F32(convert(data, big, f32::from_le_bytes)),
        E::F16 => Values::F16(convert(data, big, f16::from_le_bytes)),
        E::Bf16 => Values::Bf16(convert(data, big, half::bf16::from_le_bytes)),
        E::F64 => Values::F64(convert(data, big, f64::from_le_bytes)),
        E::I8 => Values::I8(convert(data, big, i8::from_le_bytes)),
        E::I16 => Values::I16(convert(data, big, i16::from_le_bytes)),
        E::I32 => Values::I32(convert(data, big, i32::from_le_bytes)),
        E::I64 => Values::I64(convert(data, big, i64::from_le_bytes)),
        E::U8 => Values::U8(data.to_vec()),
        E::U16 => Values::U16(convert(data, big, u16::from_le_bytes)),
        E::U32 => Values::U32(convert(data, big, u32::from_le_bytes)),
        E::U64 => Values::U64(convert(data, big, u64::from_le_bytes)),
        E::Bool => Values::Bool(data.iter().map(|&byte| byte != 0).collect()),
    }
}

fn convert<T, const N: usize>(data: &[u8], big: bool, value: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>()
        .0
        .iter()
        .map(|&bytes| {
            let mut bytes = bytes;
            if big {
                bytes.reverse();
            }
            value(bytes)
        })
        .collect()
}

/// Values in column-major order to row-major.
pub(super) fn row_major(values: ValuesView<'_>, shape: &[usize]) -> Values {
    let mut result = values.slice(0..0).to_owned();
    let mut index = vec![0; shape.len()];
    for _ in 0..values.len() {
        let at = index.iter().zip(shape).rev().fold(0, |at, (&i, &extent)| at * extent + i);
        let extended = result.extend(values.slice(at..at + 1));
        debug_assert!(extended, "the same type");
        for (i, &extent) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < extent {
                break;
            }
            *i = 0;
        }
    }
    result
}

/// Writes values as the little-endian machines that this program runs on hold them. bfloat16, which NumPy lacks, becomes
/// float32 (see `stored_type`).
pub fn write_values(writer: &mut impl Write, values: ValuesView<'_>) -> io::Result<()> {
    match values {
        ValuesView::Bf16(v) => v.iter().try_for_each(|x| writer.write_all(&x.to_f32().to_le_bytes())),
        values => writer.write_all(values.bytes()),
    }
}

/// The type that an array of `element_type` is written with.
pub fn stored_type(element_type: ElementType) -> ElementType {
    if element_type == ElementType::Bf16 { ElementType::F32 } else { element_type }
}
