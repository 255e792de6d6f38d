//! What an engine's profile allows: shapes, and values of inputs that hold shapes.

use std::ffi::CString;

use trtx::{OptProfileSelector, trtx_sys::nvinfer1::ICudaEngine};

use crate::{
    backend::TensorInfo,
    tensor::{ElementType, Tensor, Values},
};

/// The one that an execution context begins with, and keeps here.
const PROFILE: i32 = 0;

const SELECTORS: [OptProfileSelector; 3] =
    [OptProfileSelector::kMIN, OptProfileSelector::kOPT, OptProfileSelector::kMAX];

/// The engine itself, for calls that the binding (trtx, whose version is fixed) does not wrap.
fn unwrapped<'a>(engine: &'a trtx::CudaEngine<'static>) -> &'a ICudaEngine {
    // The wrapper is the pointer that it owns, and has no room for anything else.
    const { assert!(size_of::<trtx::CudaEngine<'_>>() == size_of::<*const ICudaEngine>()) };
    // SAFETY: by the line above, the wrapper's bytes are those of a pointer to an engine, which is not null since it was
    // deserialized, and lives as long as the wrapper.
    unsafe { &**std::ptr::from_ref(engine).cast::<*const ICudaEngine>() }
}

/// The least, likely and largest shape of an input; `None` for what is none.
fn shapes(engine: &trtx::CudaEngine<'static>, input: &str) -> Option<[Vec<usize>; 3]> {
    let name = CString::new(input).ok()?;
    let shape = |selector: OptProfileSelector| {
        // SAFETY: the name ends with a zero byte and lives during the call.
        let shape = unsafe { unwrapped(engine).getProfileShape(name.as_ptr(), PROFILE, selector.into()) };
        let extents = shape.d.get(..usize::try_from(shape.nbDims).ok()?)?;
        extents.iter().map(|&extent| usize::try_from(extent).ok()).collect::<Option<Vec<_>>>()
    };
    let [Some(min), Some(opt), Some(max)] = SELECTORS.map(shape) else { return None };
    Some([min, opt, max])
}

/// The shape that the profile calls likely.
pub(super) fn likely_shape(engine: &trtx::CudaEngine<'static>, input: &str) -> Option<Vec<usize>> {
    shapes(engine, input).map(|[_, likely, _]| likely)
}

/// The least batch that the profile allows; 1 where not all inputs come in batches. Inputs whose profile allows no other get it as
/// their extent, as if the model had fixed it.
pub(super) fn least_batch(engine: &trtx::CudaEngine<'static>, inputs: &mut [TensorInfo]) -> usize {
    let extents = |info: &TensorInfo| {
        let [min, _, max] = shapes(engine, &info.name).filter(|_| info.shape.first() == Some(&None))?;
        Some((*min.first()?, *max.first()?))
    };
    let Some(extents) = inputs.iter().map(extents).collect::<Option<Vec<_>>>() else { return 1 };
    let least = extents.iter().map(|(least, _)| *least).max().unwrap_or(1);
    if least > 1 && extents.iter().any(|(_, most)| *most == least) {
        for info in inputs {
            info.shape[0] = Some(least);
        }
    }
    least
}

/// The least, likely and largest values of an input that holds a shape, whose own shape is fixed; `None` for any other.
pub(super) fn values(engine: &trtx::CudaEngine<'static>, info: &TensorInfo) -> trtx::Result<Option<[Vec<i64>; 3]>> {
    let Some(count) = info.shape.iter().copied().product::<Option<usize>>() else { return Ok(None) };
    if !engine.is_shape_inference_io(&info.name)? {
        return Ok(None);
    }
    let name = CString::new(&*info.name)?;
    let of = |selector: OptProfileSelector| {
        // SAFETY: as above.
        let values = unsafe { unwrapped(engine).getProfileTensorValuesV2(name.as_ptr(), PROFILE, selector.into()) };
        // SAFETY: the engine keeps as many values as the input has, unless it returns null.
        (!values.is_null()).then(|| unsafe { std::slice::from_raw_parts(values, count) }.to_vec())
    };
    let [Some(min), Some(opt), Some(max)] = SELECTORS.map(of) else { return Ok(None) };
    Ok(Some([min, opt, max]))
}

/// An input that holds these integers; `None` for other types.
pub(super) fn holding(info: &TensorInfo, integers: &[i64]) -> Option<Tensor> {
    let values = match info.element_type? {
        ElementType::I32 => {
            Values::I32(integers.iter().map(|&value| i32::try_from(value).ok()).collect::<Option<_>>()?)
        }
        ElementType::I64 => Values::I64(integers.to_vec()),
        _ => return None,
    };
    Tensor::new(info.shape.iter().copied().collect::<Option<_>>()?, values).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_hold_shapes_are_integers_of_either_size() {
        for element_type in [ElementType::I32, ElementType::I64] {
            let info = TensorInfo { name: "to".to_owned(), element_type: Some(element_type), shape: vec![Some(2)] };
            let tensor = holding(&info, &[-1, 7]).unwrap();
            assert_eq!((tensor.element_type(), tensor.to_integers()), (element_type, Some(vec![-1, 7])));
            assert_eq!(holding(&info, &[1]), None);
        }
        let info = TensorInfo { name: "to".to_owned(), element_type: Some(ElementType::F32), shape: vec![] };
        assert_eq!(holding(&info, &[1]), None);
        assert_eq!(Tensor::from_f32(vec![], vec![1.0]).unwrap().to_integers(), None);
    }
}
