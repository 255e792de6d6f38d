//! What quantization adds to the mean of each operator's result: what a bias can take back.

use std::collections::BTreeMap;

use super::{
    layerwise::{AnalysisError, Samples, plain, some},
    operators::Pair,
    twins::{Figure, Measure, measure_shifts},
};
use crate::backend::{Backend, ExecutionProvider};

/// Operators measured in one pass.
const PER_PASS: usize = 128;
/// Means of samples are added up as multiples of this, so that their sum does not depend on their order.
const UNIT: f64 = 1.0 / (1u64 << 40) as f64;

/// For every quantized Conv, ConvTranspose and Gemm of `pair`, by node name: the mean over `samples` of the float result
/// minus the quantized one, a number an output channel, each operator by itself on float inputs. Those whose mean is
/// not finite are left out.
///
/// # Errors
/// The backend refuses the measuring graph or a run fails; a sample cannot be read; there are no samples.
pub fn mean_errors(
    backend: &dyn Backend,
    pair: &Pair<'_>,
    samples: Samples<'_>,
    threads: usize,
) -> Result<BTreeMap<String, Vec<f32>>, AnalysisError> {
    let mut means = BTreeMap::new();
    for start in (0..pair.operators.len()).step_by(PER_PASS) {
        let Measure { model, figures } = measure_shifts(pair, start..(start + PER_PASS).min(pair.operators.len()));
        if figures.is_empty() {
            continue;
        }
        let mut runner = backend.build(&model, &plain(threads, ExecutionProvider::Cpu))?;
        let mut sums: BTreeMap<usize, Option<Vec<i128>>> = BTreeMap::new();
        let ran = some(samples.each_sum(&mut *runner, |part, outputs| {
            let weight = part.ids.len() as i128;
            outputs.on_host(|outputs| {
                for (name, view) in outputs {
                    let Some(&Figure::Shift { operator }) = figures.get(*name) else { continue };
                    let values = view.to_f32();
                    let sum = sums.entry(operator).or_insert_with(|| Some(vec![0; values.len()]));
                    let fits = values.iter().all(|value| value.is_finite() && value.abs() < 1e9);
                    match sum {
                        Some(sum) if fits && sum.len() == values.len() => {
                            for (sum, &value) in sum.iter_mut().zip(values.iter()) {
                                *sum += weight * (f64::from(value) / UNIT).round() as i128;
                            }
                        }
                        _ => *sum = None,
                    }
                }
                Ok::<_, AnalysisError>(())
            })
        })?)?;
        for (operator, sum) in sums {
            if let Some(sum) = sum {
                let mean = |sum: i128| (sum as f64 * UNIT / ran.samples as f64) as f32;
                means.insert(pair.operators[operator].node.clone(), sum.into_iter().map(mean).collect());
            }
        }
    }
    Ok(means)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analyse::fixture::{self, Data},
        backend::{Backend, BuildOptions, onnxruntime::OnnxRuntime},
        onnx::{GraphView, Model, proto::TensorProto},
        tensor::Tensor,
    };

    fn measured(runtime: OnnxRuntime, quantized: &Model, indices: &[usize]) -> BTreeMap<String, Vec<f32>> {
        let float = fixture::float();
        let pair = Pair::new(&float, quantized).unwrap();
        let samples = Samples { dataset: &Data(4), indices, reading: fixture::READING };
        mean_errors(&runtime, &pair, samples, 1).unwrap()
    }

    fn initializer(model: &Model, name: &str) -> Vec<f32> {
        GraphView::new(model.graph()).unwrap().initializer(name).unwrap().to_tensor().unwrap().to_f32()
    }

    /// Mean over samples and positions of each channel of a tensor of the float model, as it is and fake-quantized.
    fn channel_means(runtime: OnnxRuntime, tensor: &str, scale: f64, channels: usize) -> [Vec<f64>; 2] {
        let extra_outputs = [tensor.to_owned()].into();
        let mut runner =
            runtime.build(&fixture::float(), &BuildOptions { extra_outputs, ..BuildOptions::default() }).unwrap();
        let mut means = [vec![0.0; channels], vec![0.0; channels]];
        for index in 0..4 {
            let inputs = crate::dataset::Dataset::sample(&Data(4), index).unwrap();
            let values = runner.infer(&inputs).unwrap()[tensor].to_f32();
            let positions = values.len() / channels;
            for (place, &value) in values.iter().enumerate() {
                let value = f64::from(value);
                let quantized = (value / scale).round_ties_even().clamp(-128.0, 127.0) * scale;
                means[0][place / positions] += value / (4 * positions) as f64;
                means[1][place / positions] += quantized / (4 * positions) as f64;
            }
        }
        means
    }

    #[test]
    fn mean_errors_match_a_computation_by_hand() {
        let Some(runtime) = fixture::runtime() else { return };
        let (float, quantized) = (fixture::float(), fixture::quantized());
        let found = measured(runtime, &quantized, &[0, 1, 2, 3]);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["first", "head", "second"]);
        // A 1x1 convolution and a product are linear: the mean of the result is the result of the mean.
        for (node, input, weight) in [("second", "first_relu", "second.w"), ("head", "flat", "head.w")] {
            let scale = f64::from(initializer(&quantized, &format!("{input}/scale"))[0]);
            let [exact, rounded] = channel_means(runtime, input, scale, 8);
            let weights = initializer(&float, weight);
            let codes = initializer(&quantized, &format!("{weight}/q"));
            let scales = initializer(&quantized, &format!("{weight}/scale"));
            for (channel, &found) in found[node].iter().enumerate() {
                let expected: f64 = (0..8)
                    .map(|k| {
                        let (w, code) = (weights[channel * 8 + k], codes[channel * 8 + k]);
                        f64::from(w) * exact[k] - f64::from(code) * f64::from(scales[channel]) * rounded[k]
                    })
                    .sum();
                assert!((f64::from(found) - expected).abs() < 2e-6, "{node} {channel}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn the_order_of_the_samples_changes_no_bit() {
        let Some(runtime) = fixture::runtime() else { return };
        let quantized = fixture::quantized();
        assert_eq!(measured(runtime, &quantized, &[0, 1, 2, 3]), measured(runtime, &quantized, &[2, 0, 3, 1]));
    }

    #[test]
    fn a_corrected_bias_leaves_no_mean_error() {
        let Some(runtime) = fixture::runtime() else { return };
        let mut quantized = fixture::quantized();
        let means = measured(runtime, &quantized, &[0, 1, 2, 3]);
        let graph = quantized.graph_mut();
        for (node, mean) in &means {
            let node = graph.node.iter_mut().find(|other| other.name() == node).unwrap();
            let old = node.input.get(2).map(|old| graph.initializer.iter().find(|i| i.name() == old).unwrap());
            let old = old.map_or(vec![0.0; mean.len()], |old| old.to_tensor().unwrap().to_f32());
            let bias: Vec<f32> = old.iter().zip(mean).map(|(old, mean)| old + mean).collect();
            node.input.truncate(2);
            node.input.push(format!("{}/corrected", node.name()));
            let tensor = Tensor::from_f32(vec![bias.len()], bias).unwrap();
            graph.initializer.push(TensorProto::from_tensor(&node.input[2].clone(), tensor));
        }
        let left = measured(runtime, &quantized, &[0, 1, 2, 3]);
        let largest = |means: &BTreeMap<String, Vec<f32>>| means.values().flatten().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest(&means) > 1e-4, "{means:?}");
        assert!(largest(&left) < 1e-6, "{left:?}");
    }
}
