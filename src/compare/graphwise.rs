//! Graphwise error: every tensor of the quantized run against the same tensor of the float run, so that one sees the
//! error accumulate along the graph.
//!
//! Tensors go by the name they have in the float model. Where the quantized model passes a tensor through Q and DQ, the
//! caller says whether the tensor itself or the DQ's output is compared.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{CompareError, NonFinite, PairSums, driver::row};
use crate::{
    backend::{
        BackendError, Runner,
        cuda::{DeviceView, Pair, PairComparer, Staged},
        onnxruntime::{DeviceOutput, DeviceRunner},
    },
    tensor::{TensorMap, TensorView},
};

/// Difference of one tensor between the float and the quantized run, over all samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TensorDifference {
    /// Values compared.
    pub count: u64,
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
pub struct Graphwise {
    thresholds: BTreeMap<String, f32>,
    tensors: BTreeMap<String, State>,
}

#[derive(Debug, Default)]
struct State {
    sums: PairSums,
    first_non_finite: Option<String>,
    shape_mismatch: Option<ShapeMismatch>,
}

impl Graphwise {
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
            self.push(tensor, sample, &PairSums::of(r.values, t.values, threshold));
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

    fn push(&mut self, tensor: &str, sample: &str, sums: &PairSums) {
        let state = self.tensors.entry(tensor.to_owned()).or_default();
        if state.first_non_finite.is_none() && !sums.non_finite.is_empty() {
            state.first_non_finite = Some(sample.to_owned());
        }
        state.sums.add(sums);
    }

    /// Runs both models on a batch and adds the tensors in `names`, which gives the name in the float model by the name
    /// in the quantized one. The float tensors are held during the quantized run, whose tensors are read in place.
    pub fn run_batch(
        &mut self,
        samples: &[&str],
        inputs: &TensorMap,
        reference: &mut dyn Runner,
        target: &mut dyn Runner,
        names: &BTreeMap<String, String>,
    ) -> Result<(), BackendError> {
        let float = reference.infer(inputs)?;
        let mut added = 0;
        target.visit(inputs, &mut |name, view| {
            if let Some(tensor) = names.get(name) {
                let reference =
                    float.get(tensor).ok_or_else(|| missing("reference", tensor, float.keys().map(String::as_str)))?;
                self.add(tensor, samples, reference.view(), view)?;
                added += 1;
            }
            Ok(())
        })?;
        let outputs = target.outputs();
        match names.keys().find(|&name| !outputs.iter().any(|output| output.name == *name)) {
            Some(name) if added < names.len() => {
                let error = missing("target", name, outputs.iter().map(|output| output.name.as_str()));
                Err(BackendError::Visitor(Box::new(error)))
            }
            _ => Ok(()),
        }
    }

    /// Like [`Self::run_batch`], with both models and all their tensors on one GPU and one stream.
    pub fn run_batch_on_device(
        &mut self,
        samples: &[&str],
        inputs: &Staged,
        reference: &mut DeviceRunner,
        target: &mut DeviceRunner,
        comparer: &PairComparer,
        names: &BTreeMap<String, String>,
    ) -> Result<(), BackendError> {
        let refused = |error: CompareError| BackendError::Visitor(Box::new(error));
        let count = samples.len();
        reference.run(inputs, |float| {
            target.run(inputs, |quantized| {
                let mut pairs = Vec::with_capacity(names.len() * count);
                let mut places = Vec::with_capacity(pairs.capacity());
                for (theirs, tensor) in names {
                    let r = named(float, "reference", tensor).map_err(refused)?;
                    let t = named(quantized, "target", theirs).map_err(refused)?;
                    if !self.same_shape(tensor, samples, r.shape(), t.shape()) {
                        continue;
                    }
                    for (index, sample) in samples.iter().enumerate() {
                        let rows = r.row(index, count).zip(t.row(index, count)).ok_or_else(|| {
                            let shape = r.shape().to_vec();
                            refused(CompareError::Batch { output: tensor.clone(), shape, samples: count })
                        });
                        let (reference, target) = rows?;
                        pairs.push(Pair { reference, target, threshold: self.threshold(tensor) });
                        places.push((tensor, sample));
                    }
                }
                let sums = comparer.sum(&pairs)?;
                for ((tensor, sample), pieces) in places.into_iter().zip(sums) {
                    let mut total = PairSums::default();
                    for piece in &pieces {
                        total.add(&PairSums::of_piece(piece));
                    }
                    self.push(tensor, sample, &total);
                }
                Ok(())
            })
        })
    }

    /// The figures by tensor.
    pub fn finish(self) -> BTreeMap<String, TensorDifference> {
        let Self { thresholds, tensors } = self;
        let difference = |(tensor, State { sums, first_non_finite, shape_mismatch }): (String, State)| {
            let share = sums.beyond as f64 / sums.count.max(1) as f64;
            let difference = TensorDifference {
                count: sums.count,
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

fn named<'a>(views: &[DeviceOutput<'a>], side: &'static str, name: &str) -> Result<DeviceView<'a>, CompareError> {
    let found = views.iter().find(|(found, _)| *found == name).map(|(_, view)| *view);
    found.ok_or_else(|| missing(side, name, views.iter().map(|(name, _)| *name)))
}

fn missing<'a>(side: &'static str, name: &str, available: impl Iterator<Item = &'a str>) -> CompareError {
    let available = available.collect::<Vec<_>>().join(", ");
    CompareError::MissingOutput { side, name: name.to_owned(), available }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{TensorInfo, Visit},
        tensor::Tensor,
    };

    /// Gives what it was made with, whatever the input.
    struct Fixed(Vec<TensorInfo>, TensorMap);

    impl Fixed {
        fn new(outputs: &[(&str, &[f32])]) -> Self {
            let info = |name: &str| TensorInfo { name: name.to_owned(), element_type: None, shape: vec![] };
            let tensor = |v: &[f32]| Tensor::from_f32(vec![2, v.len() / 2], v.to_vec()).unwrap();
            Self(
                outputs.iter().map(|(name, _)| info(name)).collect(),
                outputs.iter().map(|(name, v)| ((*name).to_owned(), tensor(v))).collect(),
            )
        }
    }

    impl Runner for Fixed {
        fn inputs(&self) -> &[TensorInfo] {
            &[]
        }
        fn outputs(&self) -> &[TensorInfo] {
            &self.0
        }
        fn visit(&mut self, _: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
            self.1.iter().try_for_each(|(name, tensor)| visit(name, tensor.view())).map_err(BackendError::Visitor)
        }
    }

    fn names(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn tensors_are_matched_by_their_float_name_and_summed_over_batches() {
        let mut float = Fixed::new(&[("a", &[1.0, 2.0, -3.0, 4.0]), ("b", &[1.0, 1.0])]);
        let mut quantized =
            Fixed::new(&[("a_dq", &[1.0, 2.0, -3.0, 3.0]), ("b", &[f32::INFINITY, 1.0]), ("c", &[0.0; 2])]);
        let pairs = names(&[("a_dq", "a"), ("b", "b")]);
        let mut graphwise = Graphwise::new(BTreeMap::from([("a".to_owned(), 2.5)]));
        for samples in [["0", "1"], ["2", "3"]] {
            graphwise.run_batch(&samples, &TensorMap::new(), &mut float, &mut quantized, &pairs).unwrap();
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
        let mut reference = Fixed::new(&[("a", &[1.0; 4])]);
        let (alike, longer): (&[f32], &[f32]) = (&[0.5; 4], &[2.0; 6]);
        let mut graphwise = Graphwise::default();
        for (samples, values) in [(["0", "1"], alike), (["2", "3"], longer), (["4", "5"], longer)] {
            let (inputs, mut target) = (TensorMap::new(), Fixed::new(&[("a", values)]));
            graphwise.run_batch(&samples, &inputs, &mut reference, &mut target, &names(&[("a", "a")])).unwrap();
        }
        let a = &graphwise.finish()["a"];
        assert_eq!((a.count, a.max_abs), (4, 0.5));
        assert_eq!(
            a.shape_mismatch.as_ref().unwrap().to_string(),
            "shape [2, 2] in the reference and [2, 3] in the target for sample 2"
        );
    }

    #[test]
    fn a_tensor_that_is_missing_is_named() {
        let run = |float: &[(&str, &[f32])], pairs: &[(&str, &str)]| {
            let (mut float, mut quantized) = (Fixed::new(float), Fixed::new(&[("q", &[0.0; 4])]));
            let mut graphwise = Graphwise::default();
            let result = graphwise.run_batch(&["0", "1"], &TensorMap::new(), &mut float, &mut quantized, &names(pairs));
            result.unwrap_err().to_string()
        };
        assert!(run(&[("a", &[0.0; 4])], &[("q", "b")]).contains("the reference has no output `b` (it has: a)"));
        assert!(
            run(&[("a", &[0.0; 4])], &[("q", "a"), ("x", "a")]).contains("the target has no output `x` (it has: q)")
        );
    }
}
