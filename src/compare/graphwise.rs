//! Graphwise error: every tensor of the quantized run against the same tensor of the float run, so that one sees the
//! error accumulate along the graph.
//!
//! Tensors go by the name they have in the float model. Where the quantized model passes a tensor through Q and DQ, the
//! caller says whether the tensor itself or the DQ's output is compared.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{
    CompareError, NonFinite, PairSums,
    driver::{find, row},
};
use crate::{
    backend::{Accelerator, DeviceView, Pair, Tensors},
    tensor::{TensorView, ValuesView},
};

/// Difference of one tensor between the float and the quantized run, over all samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TensorDifference {
    /// Values compared.
    pub count: u64,
    /// Those that are not equal, of a tensor of integers or truth values: there, each is one too many. Absent for floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unequal: Option<u64>,
    /// 10·log₁₀(Σr² / Σ(r - t)²); absent without any error.
    pub sqnr_db: Option<f64>,
    /// Cosine of the angle between the two.
    pub cosine: f64,
    /// max |r - t|.
    pub max_abs: f64,
    /// Share of float values beyond the tensor's threshold, between 0 and 1; absent without a threshold.
    pub saturated: Option<f64>,
    /// Values that are not finite.
    pub non_finite: NonFinite,
    /// The first sample with such a value.
    pub first_non_finite: Option<String>,
    /// The first sample for which both disagree on the tensor's shape, where that follows from the data. No such sample is
    /// in the figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape_mismatch: Option<ShapeMismatch>,
}

impl TensorDifference {
    /// How far it is off, for people: `SQNR 31.2 dB`, or for integers `3 of 1024 values are not equal`.
    pub fn figure(&self) -> String {
        match (self.unequal, self.sqnr_db) {
            (Some(unequal), _) => format!("{unequal} of {} values are not equal", self.count),
            (None, Some(sqnr_db)) => format!("SQNR {sqnr_db:.1} dB"),
            (None, None) => "SQNR -".to_owned(),
        }
    }
}

/// Two shapes of one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ShapeMismatch {
    /// The sample.
    pub sample: String,
    /// Shape in the float run.
    pub reference: Vec<usize>,
    /// Shape in the quantized run.
    pub target: Vec<usize>,
}

impl fmt::Display for ShapeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sample, reference, target } = self;
        write!(f, "shape {reference:?} in the reference and {target:?} in the target for sample {sample}")
    }
}

/// Streaming accumulator over the tensors of a graph. Memory is constant in the number of samples, and the result
/// depends neither on how they are put into batches nor on threads.
#[derive(Debug, Default)]
pub struct TensorSums {
    thresholds: BTreeMap<String, f32>,
    tensors: BTreeMap<String, State>,
}

#[derive(Debug, Default)]
struct State {
    sums: PairSums,
    first_non_finite: Option<String>,
    shape_mismatch: Option<ShapeMismatch>,
    unequal: Option<u64>,
}

impl TensorSums {
    /// An accumulator; `thresholds` holds `amax` by tensor for the tensors that are quantized.
    pub fn new(thresholds: BTreeMap<String, f32>) -> Self {
        Self { thresholds, tensors: BTreeMap::new() }
    }

    /// Adds `tensor` (its name in the float model) for a batch of samples.
    pub fn add(
        &mut self,
        tensor: &str,
        samples: &[&str],
        reference: TensorView<'_>,
        target: TensorView<'_>,
    ) -> Result<(), CompareError> {
        if !self.same_shape(tensor, samples, reference.shape, target.shape) {
            return Ok(());
        }
        let threshold = self.threshold(tensor);
        for (index, sample) in samples.iter().enumerate() {
            let r = row(reference, tensor, index, samples.len())?;
            let t = row(target, tensor, index, samples.len())?;
            self.push_sums(tensor, sample, &PairSums::of(r.values, t.values, threshold));
            if !r.values.element_type().is_float() {
                let state = self.tensors.entry(tensor.to_owned()).or_default();
                *state.unequal.get_or_insert(0) += unequal(r.values, t.values);
            }
        }
        Ok(())
    }

    fn threshold(&self, tensor: &str) -> f32 {
        self.thresholds.get(tensor).copied().unwrap_or(f32::INFINITY)
    }

    /// Whether both have the same shape; keeps the first time that they have not.
    fn same_shape(&mut self, tensor: &str, samples: &[&str], reference: &[usize], target: &[usize]) -> bool {
        let same = reference == target;
        if !same {
            let state = self.tensors.entry(tensor.to_owned()).or_default();
            state.shape_mismatch.get_or_insert_with(|| ShapeMismatch {
                sample: samples.first().copied().unwrap_or_default().to_owned(),
                reference: reference.to_vec(),
                target: target.to_vec(),
            });
        }
        same
    }

    fn push_sums(&mut self, tensor: &str, sample: &str, sums: &PairSums) {
        let state = self.tensors.entry(tensor.to_owned()).or_default();
        if state.first_non_finite.is_none() && !sums.non_finite.is_empty() {
            state.first_non_finite = Some(sample.to_owned());
        }
        state.sums.add(sums);
    }

    /// Adds what both runs gave for a batch of samples: the tensors in `names`, which gives the name in the float model by the
    /// name in the quantized one. They are compared on the device where both lie on the same.
    ///
    /// # Errors
    /// A tensor is missing or is not a batch of the samples, or the device fails.
    pub fn push<'a>(
        &mut self,
        samples: &[&str],
        reference: impl Into<Tensors<'a>>,
        target: impl Into<Tensors<'a>>,
        names: &BTreeMap<String, String>,
    ) -> Result<(), CompareError> {
        let (reference, target) = (reference.into(), target.into());
        if let (Tensors::Device(device, reference), Tensors::Device(other, target)) = (&reference, &target)
            && device.index() == other.index()
        {
            // Sums are made there of floats only.
            let is_float = |tensor: &String| {
                let view = reference.iter().find(|(name, _)| name == tensor);
                view.is_none_or(|(_, view)| view.element_type().is_float())
            };
            let (there, here): (BTreeMap<String, String>, BTreeMap<String, String>) =
                names.clone().into_iter().partition(|(_, tensor)| is_float(tensor));
            self.push_there(samples, *device, [reference, target], &there)?;
            if here.is_empty() {
                return Ok(());
            }
            let reference = reference.iter().filter(|(name, _)| here.values().any(|tensor| tensor == name));
            let target = target.iter().filter(|(name, _)| here.contains_key(*name));
            let (reference, target) = (
                device.to_host(&reference.copied().collect::<Vec<_>>())?,
                device.to_host(&target.copied().collect::<Vec<_>>())?,
            );
            return self.push(samples, &reference, &target, &here);
        }
        reference.on_host(|reference| {
            target.on_host(|target| {
                for (theirs, tensor) in names {
                    let (r, t) = (find(reference, tensor, "reference")?, find(target, theirs, "target")?);
                    self.add(tensor, samples, r, t)?;
                }
                Ok(())
            })
        })
    }

    fn push_there(
        &mut self,
        samples: &[&str],
        device: &dyn Accelerator,
        [float, quantized]: [&[(&str, DeviceView<'_>)]; 2],
        names: &BTreeMap<String, String>,
    ) -> Result<(), CompareError> {
        let count = samples.len();
        let mut pairs = Vec::with_capacity(names.len() * count);
        let mut places = Vec::with_capacity(pairs.capacity());
        for (theirs, tensor) in names {
            let (r, t) = (find(float, tensor, "reference")?, find(quantized, theirs, "target")?);
            if !self.same_shape(tensor, samples, r.shape(), t.shape()) {
                continue;
            }
            for (index, sample) in samples.iter().enumerate() {
                let rows = r.row(index, count).zip(t.row(index, count)).ok_or_else(|| {
                    let shape = r.shape().to_vec();
                    CompareError::Batch { output: tensor.clone(), shape, samples: count }
                });
                let (reference, target) = rows?;
                pairs.push(Pair { reference, target, threshold: self.threshold(tensor) });
                places.push((tensor, sample));
            }
        }
        for ((tensor, sample), pieces) in places.into_iter().zip(device.sums(&pairs)?) {
            let mut total = PairSums::default();
            for piece in &pieces {
                total.add(&PairSums::of_piece(piece));
            }
            self.push_sums(tensor, sample, &total);
        }
        Ok(())
    }

    /// The figures by tensor.
    pub fn finish(self) -> BTreeMap<String, TensorDifference> {
        let Self { thresholds, tensors } = self;
        let difference = |(tensor, state): (String, State)| {
            let State { sums, first_non_finite, shape_mismatch, unequal } = state;
            let share = sums.beyond as f64 / sums.count.max(1) as f64;
            let difference = TensorDifference {
                count: sums.count,
                unequal,
                sqnr_db: sums.sqnr_db(),
                cosine: sums.cosine(),
                max_abs: sums.error_max.min(f64::MAX),
                saturated: thresholds.contains_key(&tensor).then_some(share),
                non_finite: sums.non_finite,
                first_non_finite,
                shape_mismatch,
            };
            (tensor, difference)
        };
        tensors.into_iter().map(difference).collect()
    }
}

/// Values that are not equal, in two views of equal length.
fn unequal(reference: ValuesView<'_>, target: ValuesView<'_>) -> u64 {
    let count = match (reference, target) {
        // 64 bits of an integer do not fit into a float.
        (ValuesView::I64(r), ValuesView::I64(t)) => r.iter().zip(t).filter(|(r, t)| r != t).count(),
        _ => reference.to_f64().iter().zip(target.to_f64().iter()).filter(|(r, t)| r != t).count(),
    };
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Tensor, TensorMap, Values};

    fn fixed(outputs: &[(&str, &[f32])]) -> TensorMap {
        let tensor = |v: &[f32]| Tensor::from_f32(vec![2, v.len() / 2], v.to_vec()).unwrap();
        outputs.iter().map(|(name, v)| ((*name).to_owned(), tensor(v))).collect()
    }

    fn names(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn tensors_are_matched_by_their_float_name_and_summed_over_batches() {
        let float = fixed(&[("a", &[1.0, 2.0, -3.0, 4.0]), ("b", &[1.0, 1.0])]);
        let quantized = fixed(&[("a_dq", &[1.0, 2.0, -3.0, 3.0]), ("b", &[f32::INFINITY, 1.0]), ("c", &[0.0; 2])]);
        let pairs = names(&[("a_dq", "a"), ("b", "b")]);
        let mut graphwise = TensorSums::new(BTreeMap::from([("a".to_owned(), 2.5)]));
        for samples in [["0", "1"], ["2", "3"]] {
            graphwise.push(&samples, &float, &quantized, &pairs).unwrap();
        }
        let differences = graphwise.finish();
        let a = &differences["a"];
        assert_eq!((a.count, a.max_abs, a.saturated, differences.len()), (8, 1.0, Some(0.5), 2));
        // 10·log₁₀(60 / 2), and 52 / √(60·46).
        assert!((a.sqnr_db.unwrap() - 14.771_212_547_196_624).abs() < 1e-12);
        assert!((a.cosine - 52.0 / 2760_f64.sqrt()).abs() < 1e-12);
        let b = &differences["b"];
        assert_eq!(
            (b.count, b.saturated, b.non_finite.differing, b.first_non_finite.as_deref()),
            (2, None, 2, Some("0"))
        );
    }

    #[test]
    fn a_tensor_whose_shape_differs_is_compared_where_it_does_not() {
        let reference = fixed(&[("a", &[1.0; 4])]);
        let (alike, longer): (&[f32], &[f32]) = (&[0.5; 4], &[2.0; 6]);
        let mut graphwise = TensorSums::default();
        for (samples, values) in [(["0", "1"], alike), (["2", "3"], longer), (["4", "5"], longer)] {
            graphwise.push(&samples, &reference, &fixed(&[("a", values)]), &names(&[("a", "a")])).unwrap();
        }
        let a = &graphwise.finish()["a"];
        assert_eq!((a.count, a.max_abs), (4, 0.5));
        assert_eq!(
            a.shape_mismatch.as_ref().unwrap().to_string(),
            "shape [2, 2] in the reference and [2, 3] in the target for sample 2"
        );
    }

    #[test]
    fn integers_are_equal_or_not() {
        let map = |values: Values| TensorMap::from([("a".to_owned(), Tensor::new(vec![2, 2], values).unwrap())]);
        let mut graphwise = TensorSums::default();
        // The first two differ in their last bit, which a 64-bit float does not hold.
        let pushed = [
            (Values::I64(vec![1 << 60, 1, 2, 3]), Values::I64(vec![(1 << 60) + 1, 1, 2, 3])),
            (Values::I64(vec![4, 5, 6, 7]), Values::I32(vec![4, 5, 7, 7])),
        ];
        for (reference, target) in pushed {
            graphwise.push(&["0", "1"], &map(reference), &map(target), &names(&[("a", "a")])).unwrap();
        }
        let found = &graphwise.finish()["a"];
        assert_eq!((found.count, found.unequal), (8, Some(2)));
        assert_eq!(found.figure(), "2 of 8 values are not equal");
    }

    #[test]
    fn a_tensor_that_is_missing_is_named() {
        let run = |float: &[(&str, &[f32])], pairs: &[(&str, &str)]| {
            let (float, quantized) = (fixed(float), fixed(&[("q", &[0.0; 4])]));
            let result = TensorSums::default().push(&["0", "1"], &float, &quantized, &names(pairs));
            result.unwrap_err().to_string()
        };
        assert!(run(&[("a", &[0.0; 4])], &[("q", "b")]).contains("the reference has no output `b` (it has: a)"));
        assert!(
            run(&[("a", &[0.0; 4])], &[("q", "a"), ("x", "a")]).contains("the target has no output `x` (it has: q)")
        );
    }
}
