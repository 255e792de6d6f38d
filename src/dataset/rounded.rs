//! A caller's own arrays for inputs in bfloat16, which NumPy has no name for: rounded, as those of files are.

use super::{
    Dataset, InputSpec, SampleError, Scene,
    arrays::{is_rounded, rounded, types},
    forward::forward,
};
use crate::tensor::{ElementType, TensorMap};

/// Samples whose floats are rounded to the nearest bfloat16 where the model takes that.
pub struct Rounded {
    inner: Box<dyn Dataset>,
    inputs: Vec<InputSpec>,
}

impl Rounded {
    /// The samples of `inner`, and a sentence where the first one shows that they are rounded.
    pub fn of(inner: Box<dyn Dataset>, inputs: &[InputSpec]) -> (Box<dyn Dataset>, Option<String>) {
        let is_asked_for = inputs.iter().any(|input| input.element_type == Some(ElementType::Bf16));
        // Samples may lie elsewhere: none is read in vain.
        let first = if is_asked_for && !inner.is_empty() { inner.sample(0).ok() } else { None };
        let names: Vec<String> = first
            .iter()
            .flat_map(types)
            .filter(|(name, found)| is_rounded(name, *found, inputs))
            .map(|(name, found)| format!("`{name}` ({found})"))
            .collect();
        if names.is_empty() {
            return (inner, None);
        }
        let note = format!("{} is rounded to the nearest bfloat16, which the model takes", names.join(" and "));
        (Box::new(Self { inner, inputs: inputs.to_vec() }), Some(note))
    }
}

impl Dataset for Rounded {
    forward!(len id label mask_file mask keep has_boxes truth_hash file picture);

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        Ok(rounded(self.inner.sample(index)?, &self.inputs))
    }

    fn read(&self, index: usize) -> Result<(TensorMap, Option<Scene>), SampleError> {
        let (arrays, scene) = self.inner.read(index)?;
        Ok((rounded(arrays, &self.inputs), scene))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Tensor, Values};

    struct One;

    impl Dataset for One {
        fn len(&self) -> usize {
            1
        }

        fn id(&self, _: usize) -> &'static str {
            "0"
        }

        fn label(&self, _: usize) -> Option<u32> {
            None
        }

        fn sample(&self, _: usize) -> Result<TensorMap, SampleError> {
            // 1 + 2⁻⁸ lies half between two of bfloat16, and goes to the even one.
            let array = Tensor::new(vec![1, 2], Values::F32(vec![1.0 + 1.0 / 256.0, 3.0])).unwrap();
            Ok([("x".to_owned(), array)].into_iter().collect())
        }
    }

    #[test]
    fn arrays_of_a_caller_are_rounded_where_the_model_takes_bfloat16_and_that_is_said() {
        let input = |element_type| {
            vec![InputSpec { name: "x".to_owned(), element_type: Some(element_type), shape: vec![None, Some(2)] }]
        };
        let (dataset, note) = Rounded::of(Box::new(One), &input(ElementType::Bf16));
        assert_eq!(note.unwrap(), "`x` (float32) is rounded to the nearest bfloat16, which the model takes");
        let given = dataset.sample(0).unwrap();
        assert_eq!(given["x"].element_type(), ElementType::Bf16);
        assert_eq!(given["x"].view().to_f32().as_ref(), [1.0, 3.0]);
        assert_eq!(dataset.read(0).unwrap().0["x"].element_type(), ElementType::Bf16);
        let (plain, note) = Rounded::of(Box::new(One), &input(ElementType::F32));
        assert_eq!((plain.sample(0).unwrap()["x"].element_type(), note), (ElementType::F32, None));
    }
}
