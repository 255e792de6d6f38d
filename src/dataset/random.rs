//! Random inputs, for when there is no data and that is said on everything made from them.

use super::{Dataset, InputSpec, SampleError};
use crate::{
    stats::SplitMix64,
    tensor::{ElementType, Tensor, TensorMap, Values},
};

/// Most samples that are made.
const MOST: usize = 1 << 24;

/// Samples of seeded random numbers.
pub struct RandomDataset {
    ids: Vec<String>,
    inputs: Vec<InputSpec>,
    seed: u64,
    whole: bool,
}

impl RandomDataset {
    /// `count` samples: floats uniform in [-1, 1), integers and booleans 0 or 1. Every extent but the first must be
    /// fixed; the error names all that are not.
    pub fn new(inputs: &[InputSpec], count: usize, seed: u64) -> Result<Self, String> {
        if count > MOST {
            return Err(format!("{count} random samples are more than {MOST}; ask for fewer, with a smaller batch"));
        }
        let is_open = |input: &&InputSpec| input.shape.iter().skip(1).any(Option::is_none);
        let open: Vec<&InputSpec> = inputs.iter().filter(is_open).collect();
        if !open.is_empty() {
            let names: Vec<String> = open.iter().map(|input| format!("`{}`", input.name)).collect();
            let bind = open.iter().map(|input| {
                let extents = input.shape.iter().enumerate().map(|(axis, extent)| match extent {
                    Some(extent) => extent.to_string(),
                    None => if axis == 0 { "1" } else { "N" }.to_owned(),
                });
                format!("--shape {}={}", input.name, extents.collect::<Vec<_>>().join("x"))
            });
            return Err(format!(
                "dynamic axes of {} are not bound; bind them with {} (a number for each N)",
                names.join(", "),
                bind.collect::<Vec<_>>().join(" ")
            ));
        }
        Ok(Self {
            ids: (0..count).map(|index| format!("random-{index}")).collect(),
            inputs: inputs.to_vec(),
            seed,
            whole: false,
        })
    }

    /// With `whole`, a sample is what a call takes: the first extent is the input's own, and not 1 for a batch.
    #[must_use]
    pub fn of_whole_inputs(self, whole: bool) -> Self {
        Self { whole, ..self }
    }
}

impl Dataset for RandomDataset {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> &str {
        &self.ids[index]
    }

    fn label(&self, _index: usize) -> Option<u32> {
        None
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        let mut random = SplitMix64::new(self.seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let tensors = self.inputs.iter().map(|input| {
            let mut shape: Vec<usize> = input.shape.iter().map(|extent| extent.unwrap_or(1)).collect();
            if let Some(batch) = shape.first_mut().filter(|_| !self.whole) {
                *batch = 1;
            }
            let bad = |reason: String| SampleError { sample: self.ids[index].clone(), reason };
            let count = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
            let count = count
                .filter(|&count| count <= 1 << 30)
                .ok_or_else(|| bad(format!("input `{}` would be too large", input.name)))?;
            let mut float = || (random.next_u64() >> 40) as f64 / f64::from(1 << 23) - 1.0;
            let values = match input.element_type.unwrap_or(ElementType::F32) {
                ElementType::F32 => Values::F32((0..count).map(|_| float() as f32).collect()),
                ElementType::F16 => Values::F16((0..count).map(|_| half::f16::from_f64(float())).collect()),
                ElementType::Bf16 => Values::Bf16((0..count).map(|_| half::bf16::from_f64(float())).collect()),
                ElementType::F64 => Values::F64((0..count).map(|_| float()).collect()),
                ElementType::U8 => Values::U8((0..count).map(|_| (random.next_u64() >> 56) as u8).collect()),
                ElementType::I8 => Values::I8((0..count).map(|_| (random.next_u64() >> 56) as i8).collect()),
                ElementType::I32 => Values::I32((0..count).map(|_| (random.next_u64() >> 63) as i32).collect()),
                ElementType::I64 => Values::I64((0..count).map(|_| (random.next_u64() >> 63) as i64).collect()),
                ElementType::Bool => Values::Bool((0..count).map(|_| random.next_u64() >> 63 == 1).collect()),
                other => return Err(bad(format!("random values of type {other} are not supported"))),
            };
            let tensor = Tensor::new(shape, values).map_err(|error| bad(error.to_string()))?;
            Ok((input.name.clone(), tensor))
        });
        tensors.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_input_keeps_its_first_extent() {
        let spec = InputSpec { name: "state".to_owned(), element_type: None, shape: vec![Some(2), None, Some(3)] };
        let other = InputSpec { name: "x".to_owned(), shape: vec![None, None, None], ..spec.clone() };
        let error = RandomDataset::new(&[spec.clone(), other], 1, 0).err().unwrap();
        let all = "dynamic axes of `state`, `x` are not bound; bind them with --shape state=2xNx3 --shape x=1xNxN (a number for each N)";
        assert_eq!(error, all);
        let spec = InputSpec { shape: vec![Some(2), Some(1), Some(3)], ..spec };
        let shape = |whole: bool| {
            let data = RandomDataset::new(std::slice::from_ref(&spec), 1, 0).unwrap().of_whole_inputs(whole);
            data.sample(0).unwrap()["state"].shape().to_vec()
        };
        assert_eq!([shape(false), shape(true)], [[1, 1, 3], [2, 1, 3]]);
    }
}
