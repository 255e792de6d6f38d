//! Latency and throughput of several targets, measured in interleaved rounds.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use super::{
    PipelineError, Session, Target,
    environment::environment,
    opened::mode,
    target::{batches, sidecar_beside, warn_of_cache},
};
use crate::{
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, LayerTime, LikelyCall, Purpose, Runner, TensorInfo,
        onnxruntime::{emulation, lowest_bits},
        tensorrt::{EngineSidecar, Library, RunnerOptions, require_library, run_engine},
    },
    bench::{LAYER_CALLS, Measurement, Mode, Protocol, SystemClock, Timed, Timing, run, slowdowns},
    config::RunConfig,
    dataset::{BadPolicy, Dataset, PrefetchOptions, RandomDataset, free_bytes},
    onnx::Model,
    pass::Samples,
    quantize::Precision,
    report::Environment,
    tensor::{ElementType, TensorMap},
};

/// Options of [`Session::bench`].
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What is measured, as [`Target`] reads it; the first is the base of speed-ups.
    pub specs: Vec<String>,
    /// Float model that `ort` stands for; without it the configuration's where `ort` is measured, else the first file's.
    pub model: Option<PathBuf>,
    /// Batch sizes.
    pub batches: Vec<usize>,
    /// Thread counts of ONNX Runtime; empty: the session's.
    pub threads: Vec<usize>,
    /// Least seconds of measurement for each target.
    pub seconds: f64,
    /// Least number of rounds.
    pub rounds: usize,
    /// Whether to tell the times of layers too; they are taken in any case where a low precision is slower.
    pub layer_times: bool,
    /// File that keeps the kernels which TensorRT-RTX compiles for this GPU.
    pub runtime_cache: Option<PathBuf>,
    /// Record engines once as CUDA graphs and replay them.
    pub cuda_graph: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            specs: vec!["ort".to_owned()],
            model: None,
            batches: vec![1],
            threads: Vec::new(),
            seconds: 3.0,
            rounds: 10,
            layer_times: false,
            runtime_cache: None,
            cuda_graph: false,
        }
    }
}

/// Operators with the number of their nodes, by target.
pub type NodesByTarget = BTreeMap<String, BTreeMap<String, usize>>;

/// What a measurement found.
#[derive(Serialize)]
pub struct BenchOutcome {
    /// What must be known first: a low precision that is slower than a higher one.
    pub urgent: Vec<String>,
    /// The machine.
    pub environment: Environment,
    /// Whether the inputs are random.
    pub random_inputs: bool,
    /// Why the times of a target say nothing about its precision.
    pub emulated: BTreeMap<String, &'static str>,
    /// Nodes of a target that compute in FP32 because the runtime has no kernel for them in its precision.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub in_float32: NodesByTarget,
    /// All times.
    pub measurements: Vec<Measurement>,
    /// Times of the layers by target, if asked for; empty where a backend takes none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<(String, Vec<LayerTime>)>,
}

/// What is measured.
struct Subject {
    name: String,
    kind: Kind,
    emulation: Option<&'static str>,
}

enum Kind {
    Model(Box<Model>, ExecutionProvider),
    Engine(Box<Engine>),
}

/// An engine, which library runs it, and what its sidecar tells if it has one.
struct Engine {
    path: PathBuf,
    tensorrt: Library,
    version: String,
    precision: Option<Precision>,
    options: RunnerOptions,
}

impl Engine {
    fn new(path: &Path, options: &RunnerOptions) -> Result<Self, PipelineError> {
        let tensorrt = require_library(options.search_in.as_deref())?;
        let precision = EngineSidecar::beside(path)?.and_then(|sidecar| sidecar.precision?.parse().ok());
        Ok(Self { path: path.to_owned(), version: tensorrt.version()?, tensorrt, precision, options: options.clone() })
    }
}

impl Subject {
    fn new(target: &Target, name: &str, session: &Session, engine: &RunnerOptions) -> Result<Self, PipelineError> {
        let kind = match target {
            Target::Model(Some(path), provider) => Kind::Model(Box::new(Model::load(path)?), *provider),
            Target::Model(None, provider) => Kind::Model(Box::new(session.subject.float.clone()), *provider),
            Target::Engine(path) => Kind::Engine(Box::new(Engine::new(path, engine)?)),
            Target::Saved(_) => bail!("`{name}` holds saved outputs; they take no time that could be measured"),
        };
        let emulation = match &kind {
            Kind::Model(model, provider) => emulation(model, *provider),
            Kind::Engine(..) => None,
        };
        Ok(Self { name: name.to_owned(), kind, emulation })
    }

    /// Bits of a value in its lowest precision, where that is known.
    fn bits(&self) -> Option<u32> {
        match &self.kind {
            Kind::Model(model, _) => Some(lowest_bits(model)),
            Kind::Engine(engine) => Some(engine.precision?.bits()),
        }
    }

    /// TensorRT and its version, for an engine.
    fn library(&self) -> Option<(String, String)> {
        match &self.kind {
            Kind::Model(..) => None,
            Kind::Engine(engine) => Some((engine.tensorrt.flavour.to_string(), engine.version.clone())),
        }
    }

    fn mode(&self, threads: usize) -> Mode {
        match &self.kind {
            Kind::Model(_, provider) => mode(*provider, threads),
            Kind::Engine(engine) => Mode {
                provider: engine.tensorrt.backend(),
                threads: 1,
                transfers: true,
                cuda_graph: engine.options.cuda_graph,
            },
        }
    }

    fn build(&self, session: &Session, threads: usize, layer_times: bool) -> Result<Box<dyn Runner>, PipelineError> {
        Ok(match &self.kind {
            Kind::Model(model, provider) => {
                let provider = *provider;
                let options = BuildOptions {
                    threads,
                    provider,
                    purpose: Purpose::Deployed,
                    layer_times,
                    ..BuildOptions::default()
                };
                session.runtime.build(model, &options)?
            }
            Kind::Engine(engine) => run_engine(&engine.path, &engine.options)?,
        })
    }
}

impl BenchOptions {
    fn specs(&self) -> Result<Vec<Target>, PipelineError> {
        self.specs.iter().map(|spec| Target::parse(spec)).collect()
    }

    /// The least batch that all engines take: sidecars tell it, or else the engines themselves.
    fn least_batch(&self) -> Result<usize, PipelineError> {
        let mut least = 1;
        for target in self.specs()? {
            let Target::Engine(path) = target else { continue };
            let told = EngineSidecar::beside(&path)?.as_ref().and_then(batches).map(|[min, ..]| min);
            let ask = || Ok::<_, PipelineError>(run_engine(&path, &RunnerOptions::default())?.least_batch());
            least = least.max(told.map_or_else(ask, Ok)?);
        }
        Ok(least)
    }

    /// Takes the model from what is measured where `config` names none, and random inputs where it names no data.
    ///
    /// # Errors
    /// Something that is measured cannot be read.
    pub fn complete(&self, config: &mut RunConfig) -> Result<(), PipelineError> {
        ensure!(!self.batches.contains(&0), "--batch 0 holds no samples; give sizes of 1 or more");
        config.batch = None;
        let fallback = config.model.take();
        let specs = self.specs()?;
        let stands_for_it = specs.iter().any(|target| matches!(target, Target::Model(None, _)));
        config.model = self.model.clone().or_else(|| fallback.clone().filter(|_| stands_for_it));
        for target in specs {
            let file = match target {
                Target::Model(path, _) => path,
                Target::Engine(path) => {
                    let sidecar = sidecar_beside(&path, config)?;
                    sidecar.map(|sidecar| sidecar.reference.unwrap_or(sidecar.model))
                }
                Target::Saved(_) => None,
            };
            config.model = config.model.take().or(file);
        }
        config.model = config.model.take().or(fallback);
        config.random_data |= config.data.is_none();
        let asked = self.batches.iter().copied().max();
        config.calib_samples = asked.map_or_else(|| self.least_batch(), Ok)?;
        Ok(())
    }
}

impl Session {
    /// Measures.
    ///
    /// # Errors
    /// Something cannot be opened or run, the data holds too few samples of one shape, or the host stopped it.
    pub fn bench(&self, options: &BenchOptions) -> Result<BenchOutcome, PipelineError> {
        let specs: Vec<Target> = options.specs()?.into_iter().map(|target| target.on(self.provider)).collect();
        let mut threads = if options.threads.is_empty() { vec![self.threads] } else { options.threads.clone() };
        threads.sort_unstable();
        threads.dedup();
        ensure!(!threads.contains(&0), "--threads 0 runs nothing; give counts of 1 or more");
        let (cuda_graph, runtime_cache) = (options.cuda_graph, options.runtime_cache.clone());
        if specs.iter().any(Target::is_engine) {
            warn_of_cache(&self.host, runtime_cache.as_ref())?;
        }
        let batches = match &options.batches[..] {
            [] => &[self.subject.usual_batch().max(options.least_batch()?)],
            given => given,
        };
        let mut inputs = batches.iter().map(|&batch| first_call(self, batch)).collect::<Result<Vec<_>, _>>()?;
        let engine = RunnerOptions { cuda_graph, runtime_cache, ..RunnerOptions::default() };
        let named = specs.iter().zip(&options.specs);
        let subjects = named.map(|(target, name)| Subject::new(target, name, self, &engine));
        let subjects = subjects.collect::<Result<Vec<_>, _>>()?;
        let runners = runners(self, &subjects, &threads)?;
        let likely = runners.iter().find_map(|(.., runner)| runner.borrow().likely_call());
        if let Some(likely) = likely.filter(|_| self.config.random_data) {
            // Random numbers are not shapes.
            let call = likely_call(self, likely)?;
            for (_, inputs) in &mut inputs {
                inputs.clone_from(&call);
            }
        }
        let (measurements, in_float32) = measure(self, &runners, &inputs, options)?;
        drop(runners);
        // Right behind the calls: clocks fall when nothing runs.
        let mut environment = environment(self.runtime, gpu(&specs));
        environment.libraries.extend(subjects.iter().filter_map(Subject::library));
        let bits = |name: &str| subjects.iter().find(|subject| subject.name == name)?.bits();
        let asked = options.layer_times;
        let layers = match inputs.first() {
            // Why a low precision is slower, its layers tell.
            Some((_, inputs)) if asked || !slowdowns(&measurements, bits, |_| None).is_empty() => {
                layer_times(self, &subjects, threads[0], inputs)?
            }
            _ => Vec::new(),
        };
        let urgent = slowdowns(&measurements, bits, |name| {
            layers.get(subjects.iter().position(|subject| subject.name == name)?).map(Vec::as_slice)
        });
        let layers = if asked { layers } else { Vec::new() };
        Ok(BenchOutcome {
            urgent,
            environment,
            random_inputs: self.config.random_data,
            emulated: subjects.iter().filter_map(|subject| Some((subject.name.clone(), subject.emulation?))).collect(),
            in_float32,
            layers: subjects.iter().map(|subject| subject.name.clone()).zip(layers).collect(),
            measurements,
        })
    }
}

/// Operators with the number of their nodes, in words.
pub fn counted(operators: &BTreeMap<String, usize>) -> String {
    let nodes = |(op_type, count): (&String, &usize)| format!("{count} {op_type}");
    operators.iter().map(nodes).collect::<Vec<_>>().join(", ")
}

/// Index of the GPU that is measured.
fn gpu(specs: &[Target]) -> Option<u32> {
    specs.iter().find_map(|target| match target {
        Target::Model(_, provider) => provider.gpu(),
        Target::Engine(_) => Some(RunnerOptions::default().device),
        Target::Saved(_) => None,
    })
}

/// What is measured, the place of its number of threads in their order, that number, and what runs it. Batch sizes share a
/// runner: the cells lend it to one call at a time.
type Running<'a> = (&'a Subject, usize, usize, RefCell<Box<dyn Runner>>);

fn runners<'a>(
    session: &Session,
    subjects: &'a [Subject],
    threads: &[usize],
) -> Result<Vec<Running<'a>>, PipelineError> {
    let mut runners = Vec::new();
    for (lane, &threads) in threads.iter().enumerate() {
        for subject in subjects {
            // The number of threads is nothing to an engine: it is measured once.
            if lane == 0 || matches!(subject.kind, Kind::Model(..)) {
                runners.push((subject, lane, threads, RefCell::new(subject.build(session, threads, false)?)));
            }
        }
    }
    Ok(runners)
}

/// Every target at every batch size with every number of threads; the first target is the base of the speed-ups.
fn measure(
    session: &Session,
    runners: &[Running<'_>],
    calls: &[(usize, TensorMap)],
    args: &BenchOptions,
) -> Result<(Vec<Measurement>, NodesByTarget), PipelineError> {
    let widened = runners
        .iter()
        .filter_map(|(subject, .., runner)| Some((subject.name.clone(), runner.borrow().in_float32()?.clone())));
    let widened = widened.collect();
    let mut targets: Vec<Timed<'_, BackendError>> = Vec::new();
    for (batch, inputs) in calls {
        for (subject, lane, threads, runner) in runners {
            targets.push(Timed {
                name: subject.name.clone(),
                batch: *batch,
                lane: *lane,
                mode: subject.mode(*threads),
                timing: if subject.emulation.is_some() { Timing::Emulated } else { Timing::Measured },
                call: Box::new(move || {
                    let mut runner = runner.borrow_mut();
                    runner.visit(inputs, &mut |_, _| Ok(session.host.check()?))?;
                    Ok(runner.phases())
                }),
            });
        }
    }
    let duration = Duration::from_secs_f64(args.seconds);
    let protocol = Protocol { duration, rounds: args.rounds, ..Protocol::default() };
    let first = args.specs.first().map(String::as_str);
    Ok((run(&mut targets, first, &protocol, &SystemClock::default())?, widened))
}

/// Bytes of the inputs of `batch` samples, as far as their extents are known.
fn batch_bytes(inputs: &[TensorInfo], batch: usize) -> u64 {
    let of = |info: &TensorInfo| {
        let element = info.element_type.map_or(1, ElementType::size);
        let first = info.shape.first().map_or(1, |extent| extent.unwrap_or(batch));
        let rest = info.shape.iter().skip(1).map(|extent| extent.unwrap_or(1));
        [element, first].into_iter().chain(rest).fold(1, |all: u64, extent| all.saturating_mul(extent as u64))
    };
    inputs.iter().map(of).fold(0, u64::saturating_add)
}

/// The times of every target's layers, at the first batch size and thread count.
fn layer_times(
    session: &Session,
    subjects: &[Subject],
    threads: usize,
    inputs: &TensorMap,
) -> Result<Vec<Vec<LayerTime>>, PipelineError> {
    let times = |subject: &Subject| {
        let mut runner = subject.build(session, threads, true)?;
        Ok(runner.layer_times(inputs, LAYER_CALLS)?.unwrap_or_default())
    };
    subjects.iter().map(times).collect()
}

/// Random numbers in the shapes that a profile calls likely, where the model leaves them open, with its values that are shapes.
fn likely_call(session: &Session, likely: LikelyCall) -> Result<TensorMap, PipelineError> {
    let mut specs = session.subject.input_specs();
    for spec in &mut specs {
        let shape = likely.shapes.get(&spec.name).into_iter().flatten();
        spec.shape.iter_mut().zip(shape).for_each(|(extent, &likely)| *extent = extent.or(Some(likely)));
    }
    let random = RandomDataset::new(&specs, 1, session.config.seed).map_err(PipelineError::Input)?;
    let sample = random.of_whole_inputs(true).sample(0);
    let mut inputs = sample.map_err(|error| PipelineError::Input(error.to_string()))?;
    inputs.extend(likely.values);
    Ok(inputs)
}

/// The first call of `batch` samples, with the number of samples in it.
fn first_call(session: &Session, batch: usize) -> Result<(usize, TensorMap), PipelineError> {
    if let Some(why) = session.subject.refuses_batch(batch, &session.config.shape) {
        bail!("--batch {batch} was asked for, but {why}");
    }
    let bytes = batch_bytes(&session.subject.inputs, batch);
    let free = free_bytes();
    ensure!(
        bytes <= free || free == 0,
        "--batch {batch} takes {} MB for its inputs, more than the {} MB of memory that are free; ask for fewer samples",
        bytes >> 20,
        free >> 20
    );
    let dataset = &*session.data.collection.dataset;
    let indices: Vec<usize> = (0..dataset.len()).collect();
    let policy = BadPolicy { max_share: 1.0, strict: false };
    let reading = PrefetchOptions { batch, threads: session.threads, policy, stop: session.host.stop(), skipped: &[] };
    let samples = Samples { dataset, indices: &indices, reading };
    session
        .subject
        .first_call(samples, batch)?
        .ok_or_else(|| PipelineError::Input(format!("the data does not hold {batch} samples of one shape")))
}
