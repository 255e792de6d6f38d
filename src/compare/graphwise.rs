//! Graphwise error: every tensor of the quantized run against the same tensor of the float run, so that one sees the
//! error accumulate along the graph.
//!
//! Tensors go by the name they have in the float model. Where the quantized model passes a tensor through Q and DQ, the
//! caller says whether the tensor itself or the DQ's output is compared.

use std::collections::BTreeMap;

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
        if reference.shape != target.shape {
            return Err(CompareError::Shape {
                output: tensor.to_owned(),
                reference: reference.shape.to_vec(),
                target: target.shape.to_vec(),
            });
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
                for (theirs, tensor) in names {
                    let r = named(float, "reference", tensor).map_err(refused)?;
                    let t = named(quantized, "target", theirs).map_err(refused)?;
                    if r.shape() != t.shape() {
                        let (reference, target) = (r.shape().to_vec(), t.shape().to_vec());
                        return Err(refused(CompareError::Shape { output: tensor.clone(), reference, target }));
                    }
                    for index in 0..count {
                        let rows = r.row(index, count).zip(t.row(index, count)).ok_or_else(|| {
                            let shape = r.shape().to_vec();
                            refused(CompareError::Batch { output: tensor.clone(), shape, samples: count })
                        });
                        let (reference, target) = rows?;
                        pairs.push(Pair { reference, target, threshold: self.threshold(tensor) });
                    }
                }
                let sums = comparer.sum(&pairs)?;
                let places = names.values().flat_map(|tensor| samples.iter().map(move |sample| (tensor, sample)));
                for ((tensor, sample), pieces) in places.zip(sums) {
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
        let difference = |(tensor, State { sums, first_non_finite }): (String, State)| {
            let share = sums.beyond as f64 / sums.count.max(1) as f64;
            let difference = TensorDifference {
                count: sums.count,
                sqnr_db: sums.sqnr_db(),
                cosine: sums.cosine(),
                max_abs: sums.error_max.min(f64::MAX),
                saturated: thresholds.contains_key(&tensor).then_some(share),
                non_finite: sums.non_finite,
                first_non_finite,
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
    fn a_tensor_that_is_missing_or_of_another_shape_is_named() {
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
        assert!(run(&[("a", &[0.0; 6])], &[("q", "a")]).contains("shape [2, 3] in the reference and [2, 2]"));
    }
}
