//! Errors of tensors and operators computed on the GPU against the CPU's, and batches that do not fit.

use std::{collections::BTreeMap, sync::atomic::AtomicBool};

use trtcalib::{
    analyse::{
        graphwise::{Graphwise, GraphwiseOptions, Side, graphwise, shared_tensors},
        layerwise::{LayerError, LayerwiseOptions, OutputNoiseOptions, Samples, layerwise, output_noise},
        operators::Pair,
    },
    artifact::ContentHash,
    backend::{ExecutionProvider, onnxruntime::OnnxRuntime},
    calibrate::{Choice, Method, Provenance, Shards},
    compare::CompareOptions,
    dataset::{BadPolicy, PrefetchOptions, RandomDataset},
    onnx::Model,
    quantize::{QuantizeOptions, SchemeOptions},
    session::{
        Control,
        calibration::{Calibrator, ChooseOptions, ObserveOptions, hold_out},
        model::Subject,
    },
};

use super::values::on_memory_left;

const POLICY: BadPolicy = BadPolicy { max_share: 0.0, strict: true };
const GPU: ExecutionProvider = ExecutionProvider::Cuda(0);
static NEVER: AtomicBool = AtomicBool::new(false);

/// The demo model, the same in INT8 with ranges from the CPU, and random samples.
struct Fixture {
    runtime: OnnxRuntime,
    float: Model,
    quantized: Model,
    dataset: RandomDataset,
    indices: Vec<usize>,
}

impl Fixture {
    fn new(samples: usize) -> Self {
        let runtime = OnnxRuntime::load(None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("demo.onnx");
        std::fs::write(&path, include_bytes!("../../calib_data/demo.onnx")).unwrap();
        let subject = Subject::load(runtime, &path, &BTreeMap::new()).unwrap();
        let dataset = RandomDataset::new(&subject.input_specs(), samples, 5).unwrap();
        let scheme = SchemeOptions::default();
        let hash = ContentHash::of_bytes(b"gpu");
        let provenance =
            Provenance { model_hash: hash.clone(), data_hash: hash, random_data: true, shards: Shards::whole() };
        let options = ObserveOptions { batch: 1, threads: 2, provider: ExecutionProvider::Cpu, policy: POLICY };
        let control = Control { threads: 2, stop: &NEVER, progress: &|_| {}, checkpoints: None };
        let calibrator = Calibrator { runtime, subject: &subject, dataset: &dataset, options: &options, control };
        let few: Vec<usize> = (0..16).collect();
        let tensors = subject.place(&scheme).unwrap().tensors_to_observe();
        let histograms = calibrator.observe(&tensors, &hold_out(&few), &provenance).unwrap().histograms;
        let choose = ChooseOptions {
            choice: Choice::Method(Method::Mse),
            percentile: 99.99,
            bias_correction: false,
            recovery: None,
            scheme: scheme.clone(),
            compare: CompareOptions::default(),
            gates: Vec::new(),
            fp8: None,
        };
        let table = calibrator.choose(&histograms, &few, &choose).unwrap().table;
        let options = QuantizeOptions { scheme, ..QuantizeOptions::default() };
        let (float, quantized) = subject.analysis_pair(&table, &options).unwrap();
        Self { runtime, float, quantized, dataset, indices: (0..samples).collect() }
    }

    fn samples(&self, batch: usize) -> Samples<'_> {
        let reading = PrefetchOptions { batch, threads: 2, policy: POLICY, stop: &NEVER, skipped: &[] };
        Samples { dataset: &self.dataset, indices: &self.indices, reading }
    }

    fn layers(&self, provider: ExecutionProvider, batch: usize) -> (Vec<LayerError>, Option<usize>) {
        let pair = Pair::new(&self.float, &self.quantized).unwrap();
        let options = LayerwiseOptions { threads: 2, provider, ..LayerwiseOptions::default() };
        layerwise(&self.runtime, &pair, self.samples(batch), options).unwrap()
    }

    fn tensors(&self, batch: usize) -> (Graphwise, Option<usize>) {
        let sites = shared_tensors(&self.float, &self.quantized).unwrap();
        let side = |model| Side { backend: &self.runtime, provider: GPU, model };
        let (float, quantized) = (side(&self.float), side(&self.quantized));
        graphwise(float, quantized, &sites, self.samples(batch), GraphwiseOptions::default()).unwrap()
    }
}

fn assert_near(what: &str, found: Option<f64>, expected: Option<f64>, tolerance: f64) {
    let near = match (found, expected) {
        (Some(a), Some(b)) => (a - b).abs() <= tolerance,
        (a, b) => a == b,
    };
    assert!(near, "{what}: {found:?} is not {expected:?}");
}

/// Another order of sums, and values that another last bit rounds to the next code.
fn assert_same(found: &[LayerError], expected: &[LayerError]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let node = &expected.node;
        assert_eq!((&found.node, &found.tensor), (node, &expected.tensor));
        assert_near(node, found.layerwise_sqnr_db, expected.layerwise_sqnr_db, 0.05);
        assert_near(node, found.weight_sqnr_db, expected.weight_sqnr_db, 0.05);
        assert_near(node, found.activation_sqnr_db, expected.activation_sqnr_db, 0.05);
        assert_eq!(found.dead_channels, expected.dead_channels, "{node}");
        let share = |layer: &LayerError| layer.worst_channel.map(|worst| worst.noise_share);
        assert_near(node, share(found), share(expected), 0.01);
        assert_eq!(found.activations.len(), expected.activations.len(), "{node}");
        for (found, expected) in found.activations.iter().zip(&expected.activations) {
            assert_eq!((&found.tensor, &found.dead_channels), (&expected.tensor, &expected.dead_channels), "{node}");
            assert_near(node, Some(found.saturated), Some(expected.saturated), 1e-4);
            assert_near(node, Some(found.saturation_noise), Some(expected.saturation_noise), 0.01);
            let amax = |error: f64| Some(error.log2());
            let outliers = found.outlier.zip(expected.outlier);
            assert_eq!(found.outlier.is_some(), expected.outlier.is_some(), "{node}");
            if let Some((found, expected)) = outliers {
                assert_near(node, amax(found.amax), amax(expected.amax), 1e-4);
                assert_near(node, amax(found.median_amax), amax(expected.median_amax), 1e-4);
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn errors_of_operators_on_the_device_are_those_of_the_cpu() {
    let fixture = Fixture::new(200);
    let (expected, _) = fixture.layers(ExecutionProvider::Cpu, 1);
    assert!(expected.len() > 20 && expected.iter().all(|layer| layer.layerwise_sqnr_db.is_some()), "{expected:?}");
    for batch in [1, 64] {
        let (found, fitting_batch) = fixture.layers(GPU, batch);
        assert_eq!(fitting_batch, None);
        assert_same(&found, &expected);
    }
    let pair = Pair::new(&fixture.float, &fixture.quantized).unwrap();
    let nodes: Vec<String> = expected.iter().take(5).map(|layer| layer.node.clone()).collect();
    let noise = |provider| {
        let options = OutputNoiseOptions { threads: 2, provider, ..OutputNoiseOptions::default() };
        output_noise(&fixture.runtime, &pair, &nodes, fixture.samples(1), &options).unwrap()
    };
    for (found, expected) in noise(GPU).iter().zip(noise(ExecutionProvider::Cpu)) {
        assert_eq!(found.node, expected.node);
        assert_near(&expected.node, found.sqnr_db, expected.sqnr_db, 0.1);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn analyses_that_do_not_fit_go_on_in_halves() {
    const BATCH: usize = 2048;
    let fixture = Fixture::new(BATCH + 7);
    let (tensors, fitting_batch) = fixture.tensors(BATCH);
    assert!(fitting_batch.is_none() && tensors.tensors.len() > 40, "{fitting_batch:?}");
    let (layers, fitting_batch) = fixture.layers(GPU, BATCH);
    assert_eq!(fitting_batch, None);
    // Every sample takes more than 3 MB.
    let taken = on_memory_left(1 << 30);
    let (found, tensors_fitting_batch) = fixture.tensors(BATCH);
    let (found_layers, layers_fitting_batch) = fixture.layers(GPU, BATCH);
    drop(taken);
    assert!(tensors_fitting_batch.is_some_and(|batch| batch < BATCH), "{tensors_fitting_batch:?}");
    assert!(layers_fitting_batch.is_some_and(|batch| batch < BATCH), "{layers_fitting_batch:?}");
    assert_eq!((found.samples, found.tensors.len()), (BATCH + 7, tensors.tensors.len()));
    for (found, expected) in found.tensors.iter().zip(&tensors.tensors) {
        let (node, found) = (&expected.site.node, &found.difference);
        assert_eq!(found.count, expected.difference.count, "{node}");
        assert_near(node, found.sqnr_db, expected.difference.sqnr_db, 0.1);
    }
    assert_same(&found_layers, &layers);
}
