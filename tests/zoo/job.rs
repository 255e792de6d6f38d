//! Everything that is asked of one model: quantize, check, run, compare, build.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::AtomicBool,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use trtcalib::{
    artifact::ContentHash,
    backend::{
        Backend, BuildOptions, ExecutionProvider, Purpose,
        onnxruntime::OnnxRuntime,
        tensorrt::{self, EngineOptions, Library, OptimizationProfile},
    },
    calibrate::{Choice, DeployTo, Effort, Method, Provenance, Shards, StepKind, tables},
    compare::{CompareOptions, ComparisonResult},
    dataset::{BadPolicy, Dataset, SampleError},
    quantize::{Precision, QuantizeOptions, SchemeOptions, quantize},
    recover::{Peers, RecoverOptions},
    session::{
        Control,
        calibration::{Calibrator, ChooseOptions, ObserveOptions, hold_out},
        evaluation::{EvaluateOptions, Outputs, evaluate},
        model::Subject,
    },
    tensor::TensorMap,
};

use crate::samples::{CALIBRATION, EVALUATION, Entry};

const PERCENTILE: f64 = 99.99;
static STOP: AtomicBool = AtomicBool::new(false);
const POLICY: BadPolicy = BadPolicy { max_share: 0.0, strict: true };

/// What came of one model. A stage that failed has an error in its place.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub nodes: usize,
    pub quantized: usize,
    /// The way of choosing thresholds that measured best on held-out calibration samples.
    pub method: String,
    /// Whether corrected biases measured better.
    pub bias_correction: bool,
    /// SQNR of the worst output over the evaluation samples after recovery, with that method, and with min-max; absent
    /// without error.
    pub sqnr_db: Option<f64>,
    pub method_sqnr_db: Option<f64>,
    pub minmax_sqnr_db: Option<f64>,
    /// The first of these as integer kernels compute it: the slower way to the same figure.
    #[serde(default)]
    pub integer_sqnr_db: Option<f64>,
    /// What recovery tried, and the nodes that it left in the high precision.
    pub steps: Vec<String>,
    pub lifted: usize,
    /// The same of the FP16 model.
    #[serde(default)]
    pub fp16_sqnr_db: Option<f64>,
    /// Why `onnx.checker` or ONNX Runtime refuse the model, or what else went wrong.
    pub error: Option<String>,
    /// By precision: seconds to build the engine, or why there is none.
    pub engines: BTreeMap<String, Result<f64, String>>,
    pub seconds: f64,
}

/// Where everything runs.
pub struct Bench {
    pub runtime: OnnxRuntime,
    pub tensorrt: Option<Library>,
    /// The folder of Python packages to check models with.
    pub python: Option<PathBuf>,
    pub recovers: bool,
}

/// Seeded inputs as a data set.
struct Samples<'a> {
    entry: &'a Entry,
    names: Vec<String>,
}

impl Dataset for Samples<'_> {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn id(&self, index: usize) -> &str {
        &self.names[index]
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        Ok(self.entry.sample(index))
    }
}

impl Bench {
    /// Does it all, in `folder`.
    pub fn run(&self, entry: &Entry, folder: &Path) -> Outcome {
        let started = Instant::now();
        let mut outcome = Outcome { nodes: entry.nodes, ..Outcome::default() };
        let [float, int8, fp16] = ["float.onnx", "int8.onnx", "fp16.onnx"].map(|name| folder.join(name));
        entry.model().save(&float).unwrap();
        let quantized = self.quantize(entry, [&float, &int8, &fp16], &mut outcome);
        let checked =
            quantized.and_then(|()| [&int8, &fp16].into_iter().try_for_each(|model| self.check(&float, model)));
        outcome.error = checked.err().map(|error| format!("{error:#}"));
        if let Some(library) = &self.tensorrt {
            for (precision, path) in [("fp32", &float), ("int8", &int8), ("fp16", &fp16)] {
                if path.exists() {
                    outcome.engines.insert(precision.to_owned(), build(library, entry, path));
                }
            }
        }
        outcome.seconds = started.elapsed().as_secs_f64();
        outcome
    }

    fn quantize(&self, entry: &Entry, [float, int8, fp16]: [&Path; 3], outcome: &mut Outcome) -> Result<()> {
        let runtime = self.runtime;
        let subject = Subject::load(runtime, float, &BTreeMap::new())?;
        let scheme = SchemeOptions::default();
        let placement = subject.place(&scheme)?;
        outcome.quantized = placement.quantized_nodes();
        let dataset = Samples { entry, names: (0..EVALUATION.end).map(|number| number.to_string()).collect() };
        let provenance = Provenance {
            model_hash: subject.folded.hash.clone(),
            data_hash: ContentHash::of_bytes(b"seeded"),
            random_data: true,
            shards: Shards::whole(),
        };
        let options = ObserveOptions { batch: 1, threads: 0, provider: ExecutionProvider::Cpu, policy: POLICY };
        let control = Control { threads: 1, stop: &STOP, progress: &|_| {}, checkpoints: None };
        let calibrator = Calibrator { runtime, subject: &subject, dataset: &dataset, options: &options, control };
        let indices: Vec<usize> = CALIBRATION.collect();
        let tensors = placement.tensors_to_observe();
        let histograms = calibrator.observe(&tensors, &hold_out(&indices), &provenance)?.histograms;
        let minmax = tables(&histograms, PERCENTILE, &[Choice::Method(Method::MinMax)])?.remove(0);
        let quantized = |table, scheme: &SchemeOptions| {
            let options = QuantizeOptions { scheme: scheme.clone(), ..QuantizeOptions::default() };
            let quantized = quantize(&subject.folded, &subject.shapes, Some(table), &options)?;
            ensure!(quantized.findings.is_empty(), "our validator: {:?}", quantized.findings);
            Ok(quantized.model)
        };
        let simplest = quantized(&minmax, &scheme)?;
        simplest.save(int8)?;
        let recovery = RecoverOptions {
            fp8: false,
            effort: Effort::Default,
            deploy_to: DeployTo::Rtx,
            shift: DeployTo::Rtx.shifts(),
            lift_budget: 0.01,
            lift_nodes: usize::MAX,
            steps: StepKind::ALL.into(),
            threads: 0,
            peers: Peers::default(),
        };
        let choose = ChooseOptions {
            compare: CompareOptions::default(),
            choice: Choice::Auto,
            percentile: PERCENTILE,
            bias_correction: true,
            recovery: None,
            scheme: scheme.clone(),
            gates: Vec::new(),
            fp8: None,
        };
        let chosen = calibrator.choose(&histograms, &indices, &choose)?;
        outcome.method = chosen.choice.to_string();
        outcome.bias_correction = !chosen.table.bias_corrections.is_empty();
        let choose = ChooseOptions { recovery: self.recovers.then_some(recovery), ..choose };
        let recovered = calibrator.choose(&histograms, &indices, &choose)?.table;
        let steps = recovered.recovered.iter().flat_map(|recovered| &recovered.steps);
        outcome.steps = steps.map(ToString::to_string).collect();
        outcome.lifted = recovered.recovered.as_ref().map_or(0, |recovered| recovered.lifted.len());
        let half = SchemeOptions { precision: Precision::Fp16, ..SchemeOptions::default() };
        let models =
            [quantized(&recovered, &scheme)?, quantized(&chosen.table, &scheme)?, simplest, quantized(&minmax, &half)?];
        models[3].save(fp16)?;
        models[0].save(int8)?;
        let deployed = BuildOptions { purpose: Purpose::Deployed, ..BuildOptions::default() };
        let analysed = models.iter().map(|model| runtime.build(model, &BuildOptions::default()));
        let mut runners = analysed.chain([runtime.build(&models[0], &deployed)]).collect::<Result<Vec<_>, _>>()?;
        let mut reference = subject.reference(runtime, &BuildOptions::default())?;
        let mut targets: Vec<&mut dyn Outputs> = runners.iter_mut().map(|runner| runner as &mut dyn Outputs).collect();
        let compare = EvaluateOptions { batch: 1, policy: POLICY, compare: CompareOptions::default() };
        let evaluation: Vec<usize> = EVALUATION.collect();
        let measured = evaluate(&mut reference, &mut targets, &dataset, &evaluation, &compare, control)?;
        let figures = measured.targets.into_iter().map(|result| worst_sqnr_db(&result?));
        let figures = figures.collect::<Result<Vec<Option<f64>>>>()?;
        outcome.sqnr_db = figures[0];
        (outcome.method_sqnr_db, outcome.minmax_sqnr_db, outcome.fp16_sqnr_db) = (figures[1], figures[2], figures[3]);
        outcome.integer_sqnr_db = figures[4];
        Ok(())
    }

    /// `onnx.checker` takes the model, with all types and shapes where it takes the float model's.
    fn check(&self, float: &Path, model: &Path) -> Result<()> {
        let Some(packages) = &self.python else { return Ok(()) };
        let code = "import sys, onnx.checker\ndef fits(path):\n  try: onnx.checker.check_model(path, full_check=True)\n  \
                    except Exception: return False\n  return True\nonnx.checker.check_model(sys.argv[2], \
                    full_check=fits(sys.argv[1]))";
        let mut python = Command::new("python3");
        let output = python.arg("-c").arg(code).args([float, model]).env("PYTHONPATH", packages).output()?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "onnx.checker: {}", message.trim().lines().last().unwrap_or_default());
        Ok(())
    }
}

/// The smallest SQNR of all outputs, absent when all are equal; what is not finite is an error.
fn worst_sqnr_db(result: &ComparisonResult) -> Result<Option<f64>> {
    ensure!(result.non_finite.is_empty(), "outputs are not finite: {:?}", result.non_finite);
    Ok(result.outputs.iter().filter_map(|output| output.sqnr_db).reduce(f64::min))
}

/// Builds an engine for the shapes of the list and, where the batch is dynamic, for a batch of 2.
fn build(library: &Library, entry: &Entry, model: &Path) -> Result<f64, String> {
    let doubled = |shape: &Vec<usize>| {
        let mut largest = shape.clone();
        largest[0] *= 2;
        [shape.clone(), shape.clone(), largest]
    };
    let shapes = entry.inputs.iter().filter(|_| entry.dynamic);
    let shapes = shapes.map(|(name, input)| (name.clone(), doubled(&input.shape))).collect();
    let options = EngineOptions {
        profile: OptimizationProfile { shapes, ..OptimizationProfile::default() },
        ..EngineOptions::default()
    };
    let built = tensorrt::build_engine(library, model, &options, |_| true);
    built.map(|engine| engine.seconds).map_err(|error| error.to_string().replace(&model.display().to_string(), "it"))
}

/// Reads what an earlier run found.
pub fn recall(file: &Path) -> Option<Outcome> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Notes what a run found.
pub fn note(file: &Path, outcome: &Outcome) -> Result<()> {
    fs::write(file, serde_json::to_vec_pretty(outcome)?).with_context(|| format!("cannot write {}", file.display()))
}
