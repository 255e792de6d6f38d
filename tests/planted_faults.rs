//! Faults planted into real models are named exactly: by every tensor compared, by the local errors, by the search for
//! the first divergence, and by the smallest plan. On the model that comes with the repository, and on
//! EfficientNet-Lite0 with photos where they are at hand (`../shared`, or the folder in CALIB_SHARED).

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::atomic::AtomicBool,
};

use calib_test_support::{Need, efficientnet, root};
use trtcalib::{
    analyse::{
        graphwise::{Graphwise, GraphwiseOptions, Side, TensorDivergence, graphwise, shared_tensors},
        layerwise::{
            AnalysisError, LayerError, LayerwiseOptions, OutputNoiseOptions, Samples, layerwise, output_noise, worst,
        },
        operators::Pair,
        rounded::rounded,
    },
    artifact::ContentHash,
    backend::{Backend, BuildOptions, ExecutionProvider, onnxruntime::OnnxRuntime},
    bisect::{
        first::{FirstOptions, Scan, first_divergence, flow},
        lift::{Judge, JudgeOptions, Start, candidates, smallest_plan},
        search::{Outcome, SearchOptions},
    },
    calibrate::{CalibrationTable, Choice, Method, Provenance, Shards},
    compare::CompareOptions,
    config::RunConfig,
    dataset::{BadPolicy, Collection, DataOptions, PrefetchOptions, Preprocess, open},
    onnx::{GraphView, Model, proto::TensorProto},
    quantize::{Precision, PrecisionPlan, QuantizeOptions, quantize},
    session::{
        Control,
        calibration::{Calibrator, ChooseOptions, ObserveOptions, Parts},
        model::Subject,
    },
    tensor::{ElementType, Tensor, Values},
};

static NEVER: AtomicBool = AtomicBool::new(false);

/// Samples to calibrate on and, behind them, samples to compare on.
const CALIBRATION: usize = 8;
const COMPARED: usize = 2;
const THREADS: usize = 2;
const POLICY: BadPolicy = BadPolicy { max_share: 0.0, strict: true };

/// Where faults are planted. A model without faults is nowhere further off than the threshold.
struct Site {
    threshold_db: f64,
    /// A quantized activation with one reader, and that reader; twice.
    activations: [(&'static str, &'static str); 2],
    /// A convolution that loses its strongest channel, and how that is searched for: binary where the outputs show it.
    zeroed: (&'static str, Scan),
    /// An operator behind which nothing bounds what it gives.
    overflowing: &'static str,
    /// What a model without faults passes, and one with a single fault does not.
    gate: &'static str,
}

const DEMO: Site = Site {
    threshold_db: 9.0,
    activations: [
        ("/blocks/blocks.1/expand/act/Relu_output_0", "/blocks/blocks.1/depthwise/conv/Conv"),
        ("/blocks/blocks.7/depthwise/act/HardSwish_output_0", "/blocks/blocks.7/project/conv/Conv"),
    ],
    zeroed: ("/blocks/blocks.0/depthwise/conv/Conv", Scan::Exhaustive),
    overflowing: "/blocks/blocks.7/project/conv/Conv",
    gate: "sqnr_db=12",
};

const EFFICIENTNET: Site = Site {
    threshold_db: 10.0,
    activations: [("block1/depthwise/relu6_out", "block1/project"), ("block15/depthwise/relu6_out", "block15/project")],
    zeroed: ("block0/project", Scan::Binary),
    overflowing: "block15/project",
    gate: "sqnr_db=12",
};

/// A float model with its samples and ranges.
struct Bench {
    runtime: OnnxRuntime,
    subject: Subject,
    collection: Collection,
    table: CalibrationTable,
    site: &'static Site,
}

impl Bench {
    fn open(model: &Path, data: &Path, preprocess: &Preprocess, site: &'static Site) -> Option<Self> {
        let runtime = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None))?;
        let subject = Subject::load(runtime, model, &BTreeMap::new()).unwrap();
        let inputs = subject.input_specs();
        let options = DataOptions {
            path: data,
            labels: None,
            classes: &BTreeMap::new(),
            category_ids: &[],
            key_points: None,
            inputs: &inputs,
            preprocess: Some(preprocess),
        };
        let collection = open(&options).unwrap();
        let table = calibrate(runtime, &subject, &collection);
        Some(Self { runtime, subject, collection, table, site })
    }

    fn demo() -> Option<Self> {
        let config = RunConfig::load(&root().join("configs/demo.toml")).unwrap();
        Self::open(&config.model.unwrap(), &config.data.unwrap(), &config.preprocess.unwrap(), &DEMO)
    }

    fn efficientnet() -> Option<Self> {
        let shared = efficientnet()?;
        let (model, data) = (shared.join("models/efficientnet_lite0.onnx"), shared.join("imagenet"));
        Self::open(&model, &data, &Preprocess::preset("imagenet-lite", 224, 224).unwrap(), &EFFICIENTNET)
    }

    fn samples<'a>(&'a self, indices: &'a [usize]) -> Samples<'a> {
        let reading = PrefetchOptions { batch: 1, threads: THREADS, policy: POLICY, stop: &NEVER, skipped: &[] };
        Samples { dataset: &*self.collection.dataset, indices, reading }
    }

    fn side<'a>(&'a self, model: &'a Model) -> Side<'a> {
        Side { backend: &self.runtime, provider: ExecutionProvider::Cpu, model }
    }

    /// The model in `options`, with a table whose ranges of `faults` are thirty times too large.
    fn quantized(&self, faults: &[&str], options: &QuantizeOptions) -> Model {
        let table = self.faulty_table(faults);
        quantize(&self.subject.folded, &self.subject.shapes, Some(&table), options).unwrap().model
    }

    fn faulty_table(&self, faults: &[&str]) -> CalibrationTable {
        let mut table = self.table.clone();
        for &fault in faults {
            table.tensors.get_mut(fault).unwrap_or_else(|| panic!("`{fault}` is not quantized")).amax *= 30.0;
        }
        table
    }

    /// The float model with the operators' set of a quantized one.
    fn float(&self) -> Model {
        let mut options = QuantizeOptions::default();
        options.scheme.plan = PrecisionPlan { default: Some(Precision::Fp32), ..PrecisionPlan::default() };
        self.quantized(&[], &options)
    }

    fn graphwise(&self, float: &Model, target: &Model) -> Graphwise {
        let sites = shared_tensors(float, target).unwrap();
        let indices: Vec<usize> = (CALIBRATION..CALIBRATION + COMPARED).collect();
        let options = GraphwiseOptions { threads: THREADS, ..GraphwiseOptions::default() };
        graphwise(self.side(float), self.side(target), &sites, self.samples(&indices), options).unwrap().0
    }

    /// The first tensor beyond the threshold, by its node.
    fn first_in_order(&self, float: &Model, target: &Model) -> Option<String> {
        let all = self.graphwise(float, target);
        all.tensors.into_iter().find(|t| t.diverged(self.site.threshold_db)).map(|tensor| tensor.site.node)
    }

    /// The same by few probes.
    fn first_by_probes(&self, float: &Model, target: &Model, scan: Scan) -> String {
        let sites = shared_tensors(float, target).unwrap();
        let mut probe = |tensors: &[String]| {
            let some: Vec<_> = sites.iter().filter(|site| tensors.contains(&site.tensor)).cloned().collect();
            let samples = self.samples(&[CALIBRATION]);
            let options = GraphwiseOptions { threads: THREADS, ..GraphwiseOptions::default() };
            let found = graphwise(self.side(float), self.side(target), &some, samples, options)?.0;
            Ok::<_, AnalysisError>(found.tensors.into_iter().map(|t| (t.site.tensor.clone(), t)).collect())
        };
        let options = FirstOptions { scan, ..FirstOptions::default() };
        let diverged = |tensor: &TensorDivergence| tensor.diverged(self.site.threshold_db);
        let found = first_divergence(&flow(float).unwrap(), options, &diverged, &mut probe).unwrap();
        assert!(scan == Scan::Exhaustive || found.probes <= 10, "{} probes", found.probes);
        found.culprit.expect("the outputs diverge").node
    }

    fn layers(&self, pair: &Pair<'_>) -> Vec<LayerError> {
        let options = LayerwiseOptions { threads: THREADS, ..LayerwiseOptions::default() };
        layerwise(&self.runtime, pair, self.samples(&[CALIBRATION]), options).unwrap().0
    }

    /// A fault in the quantized model is named by all three.
    fn names(&self, target: &Model, node: &str, scan: Scan) -> LayerError {
        let float = self.float();
        assert_eq!(self.first_in_order(&float, target).as_deref(), Some(node));
        assert_eq!(self.first_by_probes(&float, target, scan), node);
        let layers = self.layers(&Pair::new(&float, target).unwrap());
        assert_eq!(worst(&layers, 1), [node]);
        layers.into_iter().find(|layer| layer.node == node).unwrap()
    }
}

fn calibrate(runtime: OnnxRuntime, subject: &Subject, collection: &Collection) -> CalibrationTable {
    let options = QuantizeOptions::default();
    let observe = ObserveOptions { batch: 1, threads: THREADS, provider: ExecutionProvider::Cpu, policy: POLICY };
    let control = Control { threads: THREADS, stop: &NEVER, progress: &|_| {}, checkpoints: None };
    let calibrator = Calibrator { runtime, subject, dataset: &*collection.dataset, options: &observe, control };
    let parts = Parts { fit: (0..CALIBRATION).collect(), held_out: Vec::new() };
    let provenance = Provenance {
        model_hash: subject.float.hash.clone(),
        data_hash: ContentHash::of_bytes(b"samples"),
        random_data: false,
        shards: Shards::whole(),
    };
    let tensors = subject.place(&options.scheme).unwrap().tensors_to_observe();
    let observed = calibrator.observe(&tensors, &parts, &provenance).unwrap().histograms;
    let choose = ChooseOptions {
        compare: CompareOptions::default(),
        choice: Choice::Method(Method::MinMax),
        percentile: 99.99,
        bias_correction: false,
        recovery: None,
        scheme: options.scheme,
        gates: Vec::new(),
        fp8: None,
    };
    calibrator.choose(&observed, &parts.fit, &choose).unwrap().table
}

/// Changes the values of an initializer.
fn edit(model: &mut Model, name: &str, change: impl FnOnce(&[usize], Values) -> Values) {
    let tensor = model.graph_mut().initializer.iter_mut().find(|tensor| tensor.name() == name).unwrap();
    let (shape, values) = tensor.to_tensor().unwrap().into_parts();
    let values = change(&shape, values);
    *tensor = TensorProto::from_tensor(name, Tensor::new(shape, values).unwrap());
}

/// Inputs of a node.
fn inputs(model: &Model, node: &str) -> Vec<String> {
    model.graph().node.iter().find(|found| found.name() == node).unwrap().input.clone()
}

/// The channel of a convolution's result with the largest sum of squares.
fn loudest_channel(bench: &Bench, node: &str) -> usize {
    let model = &bench.subject.folded;
    let tensor = model.graph().node.iter().find(|found| found.name() == node).unwrap().output[0].clone();
    let build = BuildOptions { extra_outputs: vec![tensor.clone()], ..BuildOptions::default() };
    let mut runner = bench.runtime.build(model, &build).unwrap();
    let outputs = runner.infer(&bench.collection.dataset.sample(CALIBRATION).unwrap()).unwrap();
    let result = &outputs[&tensor];
    let values = result.to_f32();
    let power = values.chunks(values.len() / result.shape()[1]).map(|c| c.iter().map(|x| x * x).sum::<f32>());
    power.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
}

fn a_healthy_model_stays_within_the_threshold(bench: &Bench) {
    let target = bench.quantized(&[], &QuantizeOptions::default());
    assert_eq!(bench.first_in_order(&bench.float(), &target), None);
}

fn a_scale_thirty_times_too_large(bench: &Bench) {
    let (tensor, node) = bench.site.activations[0];
    let layer = bench.names(&bench.quantized(&[tensor], &QuantizeOptions::default()), node, Scan::Binary);
    let (weights, inputs) = (layer.weight_sqnr_db.unwrap(), layer.activation_sqnr_db.unwrap());
    assert!(weights > inputs + 10.0 && layer.activations[0].saturation_noise < 0.1, "rounding of the input: {layer:?}");
}

fn a_zeroed_weight_channel(bench: &Bench) {
    let (node, scan) = bench.site.zeroed;
    let channel = loudest_channel(bench, node);
    let mut target = bench.quantized(&[], &QuantizeOptions::default());
    let view = GraphView::new(target.graph()).unwrap();
    let dequantize = view.node(view.producer(&inputs(&target, node)[1]).unwrap());
    let codes = dequantize.input[0].clone();
    edit(&mut target, &codes, |shape, values| {
        let Values::I8(mut codes) = values else { panic!("weights are INT8") };
        let length = codes.len() / shape[0];
        codes[channel * length..][..length].fill(0);
        Values::I8(codes)
    });
    let layer = bench.names(&target, node, scan);
    let worst = layer.worst_channel.unwrap();
    assert_eq!(worst.channel, channel);
    assert!(worst.noise_share > 0.9 && layer.weight_sqnr_db.unwrap() < layer.activation_sqnr_db.unwrap(), "{layer:?}");
}

fn the_smallest_plan_for_two_faults_is_these_two(bench: &Bench) {
    let faults = bench.site.activations.map(|(tensor, _)| tensor);
    let table = bench.faulty_table(&faults);
    let options = QuantizeOptions::default();
    let subject = &bench.subject;
    let start = Start {
        model: &subject.folded,
        shapes: &subject.shapes,
        table: Some(&table),
        quantize: &options,
        precision: Precision::Fp32,
    };
    let (float, target) = (bench.float(), start.model(&BTreeSet::new()).unwrap());
    let pair = Pair::new(&float, &target).unwrap();
    let layers = bench.layers(&pair);
    let outputs = output_noise(
        &bench.runtime,
        &pair,
        &worst(&layers, 6),
        bench.samples(&[CALIBRATION]),
        &OutputNoiseOptions { threads: THREADS, ..OutputNoiseOptions::default() },
    )
    .unwrap();
    let candidates: Vec<_> =
        candidates(&layers, &outputs, &BTreeMap::new()).into_iter().map(|(candidate, _)| candidate).collect();
    let indices: Vec<usize> = (CALIBRATION..CALIBRATION + 2 * COMPARED).collect();
    let judged =
        JudgeOptions { gates: vec![bench.site.gate.parse().unwrap()], threads: THREADS, ..JudgeOptions::default() };
    let mut judge = Judge::new(bench.side(&subject.float), bench.samples(&indices), judged).unwrap();
    let search = SearchOptions { max_trials: 12, ..SearchOptions::default() };
    let found = smallest_plan(&mut judge, start, &candidates, search, &[], &mut |_| {}).unwrap();
    let Outcome::Found { trial, minimal: true } = &found.outcome else { panic!("{:?}", found.outcome) };
    let nodes = bench.site.activations.map(|(_, node)| node.to_owned());
    assert_eq!(trial.lifted, BTreeSet::from(nodes));
    assert!(found.trials.len() <= 12, "{} trials", found.trials.len());
}

fn an_overflow_in_fp16(bench: &mut Bench) {
    let node = bench.site.overflowing;
    let weight = inputs(&bench.subject.folded, node)[1].clone();
    let folded = &mut bench.subject.folded;
    // As large as 16 bits allow, so that what they give no longer fits; FP32 holds it.
    edit(folded, &weight, |_, values| {
        let Values::F32(values) = values else { panic!("weights are float32") };
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        Values::F32(values.iter().map(|value| value * 6e4 / largest).collect())
    });
    let mut options = QuantizeOptions::default();
    options.scheme.precision = Precision::Fp16;
    let converted = quantize(folded, &bench.subject.shapes, None, &options).unwrap().model;
    let float = &bench.subject.folded;
    let halved = rounded(float, &bench.subject.shapes, ElementType::F16, &|_| true).unwrap();
    for target in [&converted, &halved] {
        assert_eq!(bench.graphwise(float, target).first_non_finite.as_deref(), Some(node));
        assert_eq!(bench.first_in_order(float, target).as_deref(), Some(node));
    }
    assert_eq!(bench.first_by_probes(float, &halved, Scan::Binary), node);
    let layers = bench.layers(&Pair::new(float, &halved).unwrap());
    // Those behind it read what 16 bits cannot hold, and overflow as well; it comes first.
    assert_eq!(worst(&layers, 1), [node]);
}

fn all(bench: Option<Bench>) {
    let Some(mut bench) = bench else { return };
    a_healthy_model_stays_within_the_threshold(&bench);
    a_scale_thirty_times_too_large(&bench);
    a_zeroed_weight_channel(&bench);
    the_smallest_plan_for_two_faults_is_these_two(&bench);
    an_overflow_in_fp16(&mut bench);
}

#[test]
fn faults_in_the_model_of_the_repository() {
    all(Bench::demo());
}

#[test]
fn faults_in_efficientnet() {
    all(Bench::efficientnet());
}
