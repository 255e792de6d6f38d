//! Every consumer of a pass comes to the same figures, however the samples get to it: in batches that are free or fixed,
//! whole or not, cut down for want of memory, on the host or on a device.

use std::{collections::BTreeSet, sync::atomic::AtomicBool};

use super::{
    Control,
    evaluation::{EvaluateOptions, evaluate},
};
use crate::{
    analyse::{
        bias::mean_errors,
        cost::macs,
        fixture,
        graphwise::{GraphwiseOptions, Side, graphwise, shared_tensors},
        layerwise::{LayerwiseOptions, OutputNoiseOptions, layerwise, output_noise},
        operators::Pair,
    },
    artifact::ContentHash,
    backend::{Backend, BuildOptions, ExecutionProvider, cuda::fake::FakeBackend, onnxruntime::OnnxRuntime},
    bisect::lift::{Judge, JudgeOptions},
    calibrate::{Histograms, Observing, Provenance, Shards},
    compare::{CompareOptions, ComparisonResult},
    dataset::{BadPolicy, InputSpec, PrefetchOptions, RandomDataset},
    onnx::{
        Model,
        proto::{DimensionProto, DimensionValue, TypeValue},
    },
    pass::{Outputs, Samples},
};

/// The fixture with another batch; `None` leaves it free.
fn batched(mut model: Model, batch: Option<usize>) -> Model {
    let graph = model.graph_mut();
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        let Some(TypeValue::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) else { continue };
        let value = batch.map_or(DimensionValue::DimParam("n".to_owned()), |n| DimensionValue::DimValue(n as i64));
        tensor.shape.as_mut().unwrap().dim[0] = DimensionProto { value: Some(value), ..DimensionProto::default() };
    }
    model
}

/// How samples get to a consumer.
#[derive(Clone, Copy, Debug)]
struct Way {
    fixed: Option<usize>,
    device: bool,
    /// Rows that fit.
    most: usize,
    batch: usize,
}

impl Way {
    /// What a batch is cut down to.
    fn fitting(self) -> Option<usize> {
        (self.fixed.is_none() && self.batch > self.most).then_some(self.batch / 2)
    }
}

fn results(result: &ComparisonResult) -> Vec<f64> {
    let mut figures = vec![result.samples as f64];
    for output in &result.outputs {
        figures.extend([output.max_abs, output.mean_abs, output.sqnr_db.unwrap(), output.cosine]);
    }
    figures
}

/// The figures of every consumer, by its name.
fn figures(runtime: OnnxRuntime, samples: usize, way: Way) -> Vec<(&'static str, Vec<f64>)> {
    let backend = FakeBackend { inner: &runtime, most: way.most, device: way.device };
    let (float, quantized) = (batched(fixture::float(), way.fixed), batched(fixture::quantized(), way.fixed));
    let dataset = RandomDataset::new(
        &[InputSpec { name: "x".to_owned(), element_type: None, shape: vec![None, Some(3), Some(8), Some(8)] }],
        samples,
        3,
    )
    .unwrap();
    let indices: Vec<usize> = (0..samples).collect();
    let (policy, stop) = (BadPolicy { max_share: 0.0, strict: true }, AtomicBool::new(false));
    let reading = PrefetchOptions { batch: way.batch, threads: 2, policy, stop: &stop, skipped: &[] };
    let passed = Samples { dataset: &dataset, indices: &indices, reading };
    let provider = ExecutionProvider::Cpu;
    let side = |model| Side { backend: &backend, provider, model };
    let pair = Pair::new(&float, &quantized).unwrap();
    let mut all = Vec::new();

    let tensors: BTreeSet<String> = ["x", "first_relu", "flat"].map(str::to_owned).into();
    let options = BuildOptions { extra_outputs: vec!["first_relu".into(), "flat".into()], ..BuildOptions::default() };
    let mut runner = backend.build(&float, &options).unwrap();
    let hash = ContentHash::of_bytes(b"x");
    let provenance =
        Provenance { model_hash: hash.clone(), data_hash: hash, random_data: true, shards: Shards::whole() };
    let mut observing = Observing::new(&*runner, &tensors, Histograms::new(provenance)).unwrap();
    observing.hold_out(true).unwrap();
    let ran = passed.run(&mut [&mut runner], &mut observing).unwrap();
    assert_eq!((ran.samples, ran.fitting_batch, ran.on_device), (samples, way.fitting(), way.device), "{way:?}");
    let counts = observing.finish().unwrap();
    assert_eq!((counts.fit_samples, counts.held_out_samples), (0, samples));
    let histogram = |name: &String| {
        let histogram = &counts.held_out[name];
        [histogram.count() as f64, f64::from(histogram.min()), f64::from(histogram.max())]
    };
    all.push(("calibration", tensors.iter().flat_map(histogram).collect()));

    let sites = shared_tensors(&float, &quantized).unwrap();
    let (found, fitting) =
        graphwise(side(&float), side(&quantized), &sites, passed, GraphwiseOptions::default()).unwrap();
    assert_eq!((found.samples, fitting), (samples, way.fitting()), "{way:?}");
    let of_tensor = |tensor: &crate::analyse::graphwise::TensorDivergence| {
        let d = &tensor.difference;
        [d.count as f64, d.sqnr_db.unwrap_or(999.0), d.cosine, d.max_abs, d.saturated.unwrap_or(-1.0)]
    };
    all.push(("errors of tensors", found.tensors.iter().flat_map(of_tensor).collect()));

    let (layers, fitting) = layerwise(&backend, &pair, passed, LayerwiseOptions::default()).unwrap();
    assert_eq!(fitting, way.fitting(), "{way:?}");
    let mut of_layers = Vec::new();
    for layer in &layers {
        of_layers
            .extend([layer.layerwise_sqnr_db, layer.weight_sqnr_db, layer.relative_noise].map(|f| f.unwrap_or(-1.0)));
        for activation in &layer.activations {
            of_layers.extend([activation.noise.unwrap(), activation.saturated, activation.saturation_noise]);
            of_layers.extend(activation.outlier.map(|outlier| outlier.amax));
        }
    }
    all.push(("errors of operators", of_layers));

    let nodes: Vec<String> = pair.operators.iter().map(|operator| operator.node.clone()).collect();
    let noise = output_noise(&backend, &pair, &nodes, passed, &OutputNoiseOptions::default()).unwrap();
    all.push(("what reaches the outputs", noise.iter().map(|noise| noise.sqnr_db.unwrap()).collect()));
    let means = mean_errors(&backend, &pair, passed, 1).unwrap();
    all.push(("mean errors", means.into_values().flatten().map(f64::from).collect()));
    all.push(("costs", macs(&backend, &pair, passed).unwrap().into_values().collect()));

    let mut judge = Judge::new(side(&float), passed, JudgeOptions::default()).unwrap();
    // The second trial takes the reference's outputs from memory.
    for _ in 0..2 {
        all.push(("trials", results(&judge.compare(&quantized).unwrap())));
    }

    let mut reference = backend.build(&float, &BuildOptions::default()).unwrap();
    let mut target = backend.build(&quantized, &BuildOptions::default()).unwrap();
    let options = EvaluateOptions { batch: way.batch, policy, compare: CompareOptions::default() };
    let control = Control { threads: 2, stop: &stop, progress: &|_| {}, checkpoints: None };
    let mut targets: [&mut dyn Outputs; 1] = [&mut target];
    let found = evaluate(&mut reference, &mut targets, &dataset, &indices, &options, control).unwrap();
    assert_eq!((found.ids.len(), found.fitting_batch), (samples, way.fitting()), "{way:?}");
    all.push(("evaluation", results(found.targets[0].as_ref().unwrap())));
    all
}

#[test]
fn batches_devices_and_want_of_memory_change_no_figure() {
    let Some(runtime) = fixture::runtime() else { return };
    for samples in [7, 9] {
        let plain = Way { fixed: None, device: false, most: usize::MAX, batch: 1 };
        let expected = figures(runtime, samples, plain);
        for (fixed, device) in [(None, false), (None, true), (Some(3), false), (Some(3), true)] {
            for (most, batch) in [(usize::MAX, 4), (3, 4), (3, 1), (3, 6)] {
                let way = Way { fixed, device, most, batch };
                let found = figures(runtime, samples, way);
                for ((name, found), (_, expected)) in found.iter().zip(&expected) {
                    assert_eq!(found.len(), expected.len(), "{name}, {way:?}");
                    for (a, b) in found.iter().zip(expected) {
                        assert!(
                            (a - b).abs() <= 1e-4 * b.abs().max(1e-3),
                            "{name} of {samples}, {way:?}: {a} is not {b}"
                        );
                    }
                }
            }
        }
    }
}

/// A sample may be what a call takes: all of its rows count, in every way that a call is filled up.
#[test]
fn a_sample_that_is_a_whole_batch_counts_with_all_its_rows() {
    let Some(runtime) = fixture::runtime() else { return };
    let spec = InputSpec { name: "x".to_owned(), element_type: None, shape: [3, 3, 8, 8].map(Some).to_vec() };
    let dataset = RandomDataset::new(&[spec], 2, 3).unwrap().of_whole_inputs(true);
    let stop = AtomicBool::new(false);
    let control = || Control { threads: 1, stop: &stop, progress: &|_| {}, checkpoints: None };
    let policy = BadPolicy { max_share: 0.0, strict: true };
    let options = EvaluateOptions { batch: 4, policy, compare: CompareOptions::default() };
    let figures = |fixed, device| {
        let backend = FakeBackend { inner: &runtime, most: usize::MAX, device };
        let build = |model| backend.build(&batched(model, fixed), &BuildOptions::default()).unwrap();
        let (mut reference, mut target) = (build(fixture::float()), build(fixture::quantized()));
        let mut targets: [&mut dyn Outputs; 1] = [&mut target];
        let found = evaluate(&mut reference, &mut targets, &dataset, &[0, 1], &options, control()).unwrap();
        results(found.targets[0].as_ref().unwrap())
    };
    let expected = figures(None, false);
    for (fixed, device) in [(None, true), (Some(3), false), (Some(3), true)] {
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * b.abs().max(1e-3);
        let found = figures(fixed, device);
        assert!(found.iter().zip(&expected).all(close), "{fixed:?}, {device}: {found:?} is not {expected:?}");
    }
}
