//! Plain tensors: an element type, a shape and typed values, owned ([`Tensor`]) or borrowed ([`TensorView`]).
//!
//! Everything that crosses a module boundary with numbers in it is one of these two.

use std::{borrow::Cow, collections::BTreeMap, fmt, ops::Range, sync::Arc};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Named tensors, in the order of their names. Inputs and outputs of a [`crate::backend::Runner`].
pub type TensorMap = BTreeMap<String, Tensor>;

/// Tensors of several samples: those that follow each other and are of one shape lie together.
pub type Blocks = Vec<TensorMap>;

/// Samples `range` of a batch of `samples`; `None` for tensors whose first axis is not the batch.
pub fn rows(tensors: &TensorMap, samples: usize, range: Range<usize>) -> Option<TensorMap> {
    let cut = |(name, tensor): (&String, &Tensor)| {
        let (&extent, rest) = tensor.shape().split_first()?;
        let values = tensor.values().view();
        let row = values.len().checked_div(samples)?;
        let shape = std::iter::once(range.len()).chain(rest.iter().copied()).collect();
        let tensor = Tensor::new(shape, values.slice(row * range.start..row * range.end).to_owned()).ok()?;
        (extent == samples).then_some((name.clone(), tensor))
    };
    tensors.iter().map(cut).collect()
}

/// The same, without a copy when `range` is all of them.
pub fn part(tensors: &TensorMap, samples: usize, range: Range<usize>) -> Option<Cow<'_, TensorMap>> {
    if range == (0..samples) { Some(Cow::Borrowed(tensors)) } else { rows(tensors, samples, range).map(Cow::Owned) }
}

/// Tensors of several samples one behind the other along the first axis; all have the same names, types and shapes. One
/// without axes is that of the first.
pub fn stacked(samples: impl IntoIterator<Item = TensorMap>) -> TensorMap {
    let mut samples = samples.into_iter();
    let mut all = samples.next().unwrap_or_default();
    for (name, tensor) in samples.flatten() {
        if let Some(Tensor { shape, values }) = all.get_mut(&name)
            && let (Some(extent), Some(more)) = (shape.first_mut(), tensor.shape.first())
            && Arc::make_mut(values).extend(tensor.values.view())
        {
            *extent += more;
        }
    }
    all
}

/// What [`stacked`] made of as many `samples`, with the samples along `axis` instead, or that of the first sample alone;
/// `None` for what has no axes.
pub fn along(stacked: &Tensor, samples: usize, axis: Option<usize>) -> Option<Tensor> {
    let all = stacked.values.view();
    let mut shape = stacked.shape.clone();
    let first = shape.first_mut()?;
    *first = first.checked_div(samples)?;
    let Some(axis) = axis else { return Tensor::new(shape, all.slice(0..all.len() / samples).to_owned()).ok() };
    let part = shape.get(axis..)?.iter().product::<usize>();
    let parts = (all.len() / samples).checked_div(part)?;
    let mut values = Values::zeros(stacked.element_type(), 0);
    for (part_of_sample, sample) in (0..parts).flat_map(|at| (0..samples).map(move |sample| (at, sample))) {
        let at = (sample * parts + part_of_sample) * part;
        // The same type, so this cannot fail.
        let _same_type = values.extend(all.slice(at..at + part));
    }
    shape[axis] *= samples;
    Tensor::new(shape, values).ok()
}

/// Tensors of fewer than `rows` rows with their last row repeated up to as many; others stay as they are.
pub fn filled(tensors: &TensorMap, rows: usize) -> TensorMap {
    let fill = |(name, tensor): (&String, &Tensor)| {
        let Tensor { mut shape, mut values } = tensor.clone();
        if let Some(extent) = shape.first_mut().filter(|extent| (1..rows).contains(*extent)) {
            let all = tensor.values.view();
            let last = all.slice(all.len() - all.len() / *extent..all.len());
            for _ in *extent..rows {
                // The same type, so this cannot fail.
                let _same_type = Arc::make_mut(&mut values).extend(last);
            }
            *extent = rows;
        }
        (name.clone(), Tensor { shape, values })
    };
    tensors.iter().map(fill).collect()
}

macro_rules! element_types {
    ($($variant:ident $ty:ty, $name:literal, $onnx:literal;)*) => {
        /// Type of one element, named as in ONNX and NumPy.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "lowercase")]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum ElementType { $(#[serde(rename = $name)] $variant,)* }

        impl ElementType {
            /// Lowercase name, as NumPy writes it (`float32`, `int8`).
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
            /// Size of one element in bytes.
            pub fn size(self) -> usize { match self { $(Self::$variant => size_of::<$ty>(),)* } }
            /// Value of `TensorProto.DataType`.
            pub fn onnx(self) -> i32 { match self { $(Self::$variant => $onnx,)* } }
            /// The type for a value of `TensorProto.DataType`; `None` for strings, complex and sub-byte types.
            pub fn from_onnx(data_type: i32) -> Option<Self> { match data_type { $($onnx => Some(Self::$variant),)* _ => None } }
        }

        /// Owned values of a tensor.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum Values { $($variant(Vec<$ty>),)* }

        /// Borrowed values of a tensor.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum ValuesView<'a> { $($variant(&'a [$ty]),)* }

        impl Values {
            /// Type of the elements.
            pub fn element_type(&self) -> ElementType { match self { $(Self::$variant(_) => ElementType::$variant,)* } }
            /// Borrows the values.
            pub fn view(&self) -> ValuesView<'_> { match self { $(Self::$variant(v) => ValuesView::$variant(v),)* } }
            /// `count` zeros (or `false`) of a type.
            pub fn zeros(element_type: ElementType, count: usize) -> Self {
                match element_type { $(ElementType::$variant => Self::$variant(vec![<$ty>::default(); count]),)* }
            }
            /// Appends the values of `other`; false (and unchanged) when the types differ.
            #[must_use]
            pub fn extend(&mut self, other: ValuesView<'_>) -> bool {
                match (self, other) { $((Self::$variant(a), ValuesView::$variant(b)) => { a.extend_from_slice(b); true })* _ => false }
            }
        }

        impl<'a> ValuesView<'a> {
            /// Type of the elements.
            pub fn element_type(self) -> ElementType { match self { $(Self::$variant(_) => ElementType::$variant,)* } }
            /// Number of elements.
            pub fn len(self) -> usize { match self { $(Self::$variant(v) => v.len(),)* } }
            /// True without elements.
            pub fn is_empty(self) -> bool { self.len() == 0 }
            /// Copies the values.
            pub fn to_owned(self) -> Values { match self { $(Self::$variant(v) => Values::$variant(v.to_vec()),)* } }
            /// The elements `range`, which must lie within the view.
            #[must_use]
            pub fn slice(self, range: std::ops::Range<usize>) -> Self { match self { $(Self::$variant(v) => Self::$variant(&v[range]),)* } }
            /// The values as they lie in memory.
            pub fn bytes(self) -> &'a [u8] { match self { $(Self::$variant(v) => bytemuck::cast_slice(v),)* } }
            /// Looks at bytes as values; `None` when they are misaligned, cut short or no values of the type.
            pub fn from_bytes(element_type: ElementType, bytes: &'a [u8]) -> Option<Self> {
                match element_type { $(ElementType::$variant => bytemuck::checked::try_cast_slice(bytes).ok().map(Self::$variant),)* }
            }
        }
    };
}

element_types! {
    F32 f32, "float32", 1;
    U8 u8, "uint8", 2;
    I8 i8, "int8", 3;
    U16 u16, "uint16", 4;
    I16 i16, "int16", 5;
    I32 i32, "int32", 6;
    I64 i64, "int64", 7;
    Bool bool, "bool", 9;
    F16 f16, "float16", 10;
    F64 f64, "float64", 11;
    U32 u32, "uint32", 12;
    U64 u64, "uint64", 13;
    Bf16 bf16, "bfloat16", 16;
}

impl ElementType {
    /// True for the floating-point types.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::F64 | Self::Bf16)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An owned, dense, row-major tensor. Clones share the values.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    values: Arc<Values>,
}

/// A borrowed tensor; its data usually lies in a runtime's own buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    /// Extents, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// Row-major values.
    pub values: ValuesView<'a>,
}

/// The shape and the number of values do not agree.
#[derive(Debug, thiserror::Error)]
#[error("a tensor of shape {shape:?} cannot hold {count} values")]
pub struct ShapeError {
    /// The shape asked for.
    pub shape: Vec<usize>,
    /// The number of values given.
    pub count: usize,
}

impl Tensor {
    /// A tensor of `shape` over row-major `values`.
    pub fn new(shape: Vec<usize>, values: Values) -> Result<Self, ShapeError> {
        let count = values.view().len();
        if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(count) {
            return Err(ShapeError { shape, count });
        }
        Ok(Self { shape, values: Arc::new(values) })
    }

    /// A `float32` tensor.
    pub fn from_f32(shape: Vec<usize>, values: Vec<f32>) -> Result<Self, ShapeError> {
        Self::new(shape, Values::F32(values))
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Takes the tensor apart into its shape and its values, which are copied where a clone still has them.
    pub fn into_parts(self) -> (Vec<usize>, Values) {
        (self.shape, Arc::unwrap_or_clone(self.values))
    }

    /// Type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.values.element_type()
    }

    /// Size of the values in bytes.
    pub fn bytes(&self) -> usize {
        self.values.view().len() * self.element_type().size()
    }

    /// Borrows the tensor.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { shape: &self.shape, values: self.values.view() }
    }

    /// The values of a tensor of 32-bit or 64-bit integers, which shapes are written in; `None` for other types.
    pub fn to_integers(&self) -> Option<Vec<i64>> {
        match self.values() {
            Values::I32(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Values::I64(values) => Some(values.clone()),
            _ => None,
        }
    }

    /// The same tensor as `float32` values.
    pub fn to_f32(&self) -> Vec<f32> {
        self.view().to_f32().into_owned()
    }
}

impl<'a> ValuesView<'a> {
    /// The values as `float64`: borrowed when they are, converted otherwise (64-bit integers are rounded to nearest).
    pub fn to_f64(self) -> Cow<'a, [f64]> {
        let owned: Vec<f64> = match self {
            Self::F64(v) => return Cow::Borrowed(v),
            Self::F32(v) => v.iter().map(|&x| x.into()).collect(),
            Self::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Self::Bf16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Self::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Self::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Self::I16(v) => v.iter().map(|&x| x.into()).collect(),
            Self::U16(v) => v.iter().map(|&x| x.into()).collect(),
            Self::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Self::U32(v) => v.iter().map(|&x| x.into()).collect(),
            Self::I64(v) => v.iter().map(|&x| x as f64).collect(),
            Self::U64(v) => v.iter().map(|&x| x as f64).collect(),
            Self::Bool(v) => v.iter().map(|&x| u8::from(x).into()).collect(),
        };
        Cow::Owned(owned)
    }
}

impl<'a> TensorView<'a> {
    /// The values as `float32`: borrowed when they are, converted (rounded to nearest) otherwise.
    pub fn to_f32(self) -> Cow<'a, [f32]> {
        use ValuesView as V;
        let owned: Vec<f32> = match self.values {
            V::F32(v) => return Cow::Borrowed(v),
            V::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            V::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
            V::F64(v) => v.iter().map(|&x| x as f32).collect(),
            V::I8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            V::U8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            V::I16(v) => v.iter().map(|&x| f32::from(x)).collect(),
            V::U16(v) => v.iter().map(|&x| f32::from(x)).collect(),
            V::I32(v) => v.iter().map(|&x| x as f32).collect(),
            V::U32(v) => v.iter().map(|&x| x as f32).collect(),
            V::I64(v) => v.iter().map(|&x| x as f32).collect(),
            V::U64(v) => v.iter().map(|&x| x as f32).collect(),
            V::Bool(v) => v.iter().map(|&x| f32::from(u8::from(x))).collect(),
        };
        Cow::Owned(owned)
    }

    /// Copies into an owned tensor.
    pub fn to_owned(self) -> Tensor {
        Tensor { shape: self.shape.to_vec(), values: Arc::new(self.values.to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_batch_are_its_rows() {
        let x = Tensor::from_f32(vec![4, 2], (0..8).map(|i| i as f32).collect()).unwrap();
        let inputs = TensorMap::from([("x".to_owned(), x)]);
        let half = rows(&inputs, 4, 1..3).unwrap();
        assert_eq!(part(&inputs, 4, 1..3).as_deref(), Some(&half));
        assert!(matches!(part(&inputs, 4, 0..4), Some(Cow::Borrowed(_))));
        assert_eq!((half["x"].shape(), half["x"].to_f32()), (&[2, 2][..], vec![2.0, 3.0, 4.0, 5.0]));
        let shared = TensorMap::from([("scale".to_owned(), Tensor::from_f32(vec![1], vec![2.0]).unwrap())]);
        assert!(rows(&shared, 4, 0..2).is_none());
    }
}
