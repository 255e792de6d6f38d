//! `calib bench`: latency and throughput of several targets, measured in interleaved rounds.

mod text;

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Serialize;

use super::{
    ExitStatus, Printer, check_interrupt,
    settings::{Apply, Session, mode},
    spec::Spec,
};
use crate::args::{BenchArgs, GlobalArgs};
use trtcalib::{
    artifact::write_json,
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, LayerTime, Runner,
        onnxruntime::{emulation, lowest_bits},
        tensorrt::{EngineSidecar, RunnerOptions, run_engine},
    },
    bench::{LAYER_CALLS, Measurement, Mode, Protocol, SystemClock, Target, Timing, profile_json, run, slowdowns},
    config::RunConfig,
    dataset::{BadPolicy, PrefetchOptions, prefetch},
    onnx::Model,
    quantize::Precision,
    report::Environment,
    session::environment::environment,
    tensor::TensorMap,
};

/// Operators with the number of their nodes, by target.
type NodesByTarget = BTreeMap<String, BTreeMap<String, usize>>;

#[derive(Serialize)]
struct Outcome {
    /// What must be known first: a low precision that is slower than a higher one.
    urgent: Vec<String>,
    environment: Environment,
    /// Whether the inputs are random.
    random_inputs: bool,
    /// Why the times of a target say nothing about its precision.
    emulated: BTreeMap<String, &'static str>,
    /// Nodes of a target that compute in FP32 because the runtime has no kernel for them in its precision.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    in_float32: NodesByTarget,
    measurements: Vec<Measurement>,
    /// Times of the layers by target, if asked for; empty where a backend takes none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<(String, Vec<LayerTime>)>,
}

/// What is measured.
struct Subject {
    name: String,
    kind: Kind,
    emulation: Option<&'static str>,
}

enum Kind {
    Model(Box<Model>, ExecutionProvider),
    Engine(PathBuf, Box<EngineSidecar>, RunnerOptions),
}

impl Subject {
    fn new(spec: &Spec, name: &str, session: &Session, engine: &RunnerOptions) -> anyhow::Result<Self> {
        let kind = match spec {
            Spec::OnnxRuntime(Some(path), provider) => Kind::Model(Box::new(Model::load(path)?), *provider),
            Spec::OnnxRuntime(None, provider) => Kind::Model(Box::new(session.subject.float.clone()), *provider),
            Spec::Engine(path) => Kind::Engine(path.clone(), Box::new(EngineSidecar::load(path)?), engine.clone()),
            Spec::Saved(_) => anyhow::bail!("`{name}` holds saved outputs; they take no time that could be measured"),
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
            Kind::Engine(_, sidecar, _) => Some(sidecar.precision.as_deref()?.parse::<Precision>().ok()?.bits()),
        }
    }

    /// TensorRT and its version, for an engine.
    fn library(&self) -> Option<(String, String)> {
        match &self.kind {
            Kind::Model(..) => None,
            Kind::Engine(_, sidecar, _) => Some((sidecar.flavour.to_string(), sidecar.tensorrt_version.clone())),
        }
    }

    fn mode(&self, threads: usize) -> Mode {
        match &self.kind {
            Kind::Model(_, provider) => mode(*provider, threads),
            Kind::Engine(_, sidecar, options) => Mode {
                provider: sidecar.flavour.to_string().to_lowercase(),
                threads: 1,
                transfers: true,
                cuda_graph: options.cuda_graph,
            },
        }
    }

    fn build(&self, session: &Session, threads: usize, layer_times: bool) -> anyhow::Result<Box<dyn Runner>> {
        Ok(match &self.kind {
            Kind::Model(model, provider) => {
                let options = BuildOptions { threads, provider: *provider, layer_times, ..BuildOptions::default() };
                session.runtime.build(model, &options)?
            }
            Kind::Engine(path, _, options) => run_engine(path, options)?,
        })
    }
}

/// Measures.
pub(super) fn bench(printer: &Printer, global: &GlobalArgs, args: &BenchArgs) -> anyhow::Result<ExitStatus> {
    let specs = args.specs.iter().map(|spec| Spec::parse(spec)).collect::<anyhow::Result<Vec<_>>>()?;
    for spec in &specs {
        let Spec::Engine(path) = spec else { continue };
        anyhow::ensure!(path.exists(), "there is no engine {}; `calib build` makes one", path.display());
    }
    let batches = if args.data.batch.is_empty() { vec![1] } else { args.data.batch.clone() };
    anyhow::ensure!(!batches.contains(&0), "--batch 0 holds no samples; give sizes of 1 or more");
    let session = open(printer, global, args, &specs, batches.iter().copied().max().unwrap_or(1))?;
    let mut threads =
        if args.runtime.threads.is_empty() { vec![session.threads] } else { args.runtime.threads.clone() };
    threads.sort_unstable();
    threads.dedup();
    anyhow::ensure!(!threads.contains(&0), "--threads 0 runs nothing; give counts of 1 or more");
    let inputs = batches.iter().map(|&batch| first_batch(&session, batch)).collect::<anyhow::Result<Vec<_>>>()?;
    let named = specs.iter().zip(&args.specs);
    let (cuda_graph, runtime_cache) = (args.cuda_graph, args.runtime_cache.clone());
    let engine = RunnerOptions { cuda_graph, runtime_cache, ..RunnerOptions::default() };
    let subjects = named.map(|(spec, name)| Subject::new(spec, name, &session, &engine));
    let subjects = subjects.collect::<anyhow::Result<Vec<_>>>()?;
    let (measurements, in_float32) = measure(&session, &subjects, &batches, &threads, &inputs, args)?;
    // Right behind the calls: clocks fall when nothing runs.
    let mut environment = environment(session.runtime, gpu(&specs));
    environment.libraries.extend(subjects.iter().filter_map(Subject::library));
    let bits = |name: &str| subjects.iter().find(|subject| subject.name == name)?.bits();
    let asked = args.layer_times || args.export_profile.is_some();
    let layers = match inputs.first() {
        // Why a low precision is slower, its layers tell.
        Some(inputs) if asked || !slowdowns(&measurements, bits, |_| None).is_empty() => {
            layer_times(&session, &subjects, threads[0], inputs)?
        }
        _ => Vec::new(),
    };
    export(args, &measurements, &subjects, &layers)?;
    let urgent = slowdowns(&measurements, bits, |name| {
        layers.get(subjects.iter().position(|subject| subject.name == name)?).map(Vec::as_slice)
    });
    let layers = if asked { layers } else { Vec::new() };
    let outcome = Outcome {
        urgent,
        environment,
        random_inputs: session.config.random_data,
        emulated: subjects.iter().filter_map(|subject| Some((subject.name.clone(), subject.emulation?))).collect(),
        in_float32,
        layers: subjects.iter().map(|subject| subject.name.clone()).zip(layers).collect(),
        measurements,
    };
    printer.outcome(&outcome, || text::describe(&outcome))?;
    Ok(ExitStatus::Passed)
}

/// Operators with the number of their nodes, in words.
pub(super) fn counted(operators: &BTreeMap<String, usize>) -> String {
    let nodes = |(op_type, count): (&String, &usize)| format!("{count} {op_type}");
    operators.iter().map(nodes).collect::<Vec<_>>().join(", ")
}

/// Index of the GPU that is measured.
fn gpu(specs: &[Spec]) -> Option<u32> {
    specs.iter().find_map(|spec| match spec {
        Spec::OnnxRuntime(_, provider) => provider.gpu(),
        Spec::Engine(_) => Some(RunnerOptions::default().device),
        Spec::Saved(_) => None,
    })
}

fn open(
    printer: &Printer,
    global: &GlobalArgs,
    args: &BenchArgs,
    specs: &[Spec],
    largest_batch: usize,
) -> anyhow::Result<Session> {
    let mut config = RunConfig::default();
    args.data.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    config.batch = None;
    config.model.clone_from(&args.model);
    for spec in specs {
        let file = match spec {
            Spec::OnnxRuntime(path, _) => path.clone(),
            Spec::Engine(path) => {
                EngineSidecar::beside(path)?.map(|sidecar| sidecar.reference.unwrap_or(sidecar.model))
            }
            Spec::Saved(_) => None,
        };
        config.model = config.model.or(file);
    }
    config.random_data |= config.data.is_none();
    config.calib_samples = largest_batch;
    Session::open(config, global.ort_library.as_deref(), printer)
}

/// Every target at every batch size with every number of threads; the first target is the base of the speed-ups.
fn measure(
    session: &Session,
    subjects: &[Subject],
    batches: &[usize],
    threads: &[usize],
    inputs: &[TensorMap],
    args: &BenchArgs,
) -> anyhow::Result<(Vec<Measurement>, NodesByTarget)> {
    // Batch sizes share a runner: the cells lend it to one call at a time.
    let mut runners = Vec::new();
    for (lane, &threads) in threads.iter().enumerate() {
        for subject in subjects {
            // The number of threads is nothing to an engine: it is measured once.
            if lane == 0 || matches!(subject.kind, Kind::Model(..)) {
                runners.push((subject, lane, threads, RefCell::new(subject.build(session, threads, false)?)));
            }
        }
    }
    let widened = runners
        .iter()
        .filter_map(|(subject, .., runner)| Some((subject.name.clone(), runner.borrow().in_float32()?.clone())));
    let widened = widened.collect();
    let mut targets: Vec<Target<'_, BackendError>> = Vec::new();
    for (&batch, inputs) in batches.iter().zip(inputs) {
        for (subject, lane, threads, runner) in &runners {
            targets.push(Target {
                name: subject.name.clone(),
                batch,
                lane: *lane,
                mode: subject.mode(*threads),
                timing: if subject.emulation.is_some() { Timing::Emulated } else { Timing::Measured },
                call: Box::new(move || {
                    let mut runner = runner.borrow_mut();
                    runner.visit(inputs, &mut |_, _| Ok(check_interrupt()?))?;
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

/// The times of every target's layers, at the first batch size and thread count.
fn layer_times(
    session: &Session,
    subjects: &[Subject],
    threads: usize,
    inputs: &TensorMap,
) -> anyhow::Result<Vec<Vec<LayerTime>>> {
    let times = |subject: &Subject| {
        let mut runner = subject.build(session, threads, true)?;
        Ok(runner.layer_times(inputs, LAYER_CALLS)?.unwrap_or_default())
    };
    subjects.iter().map(times).collect()
}

/// The files for scripts that read trtexec's: of one measurement in trtexec's own form, of several each beside its name.
fn export(
    args: &BenchArgs,
    measurements: &[Measurement],
    subjects: &[Subject],
    layers: &[Vec<LayerTime>],
) -> anyhow::Result<()> {
    if let Some(path) = &args.export_times {
        let times = |m: &Measurement| {
            serde_json::json!({
                "target": m.times.name, "batch": m.times.batch, "threads": m.times.mode.threads,
                "times": m.times.trtexec_json()
            })
        };
        match measurements {
            [only] => write_json(path, &only.times.trtexec_json())?,
            several => write_json(path, &several.iter().map(times).collect::<Vec<_>>())?,
        }
    }
    if let Some(path) = &args.export_profile {
        let profile = |(subject, layers): (&Subject, &Vec<LayerTime>)| serde_json::json!({ "target": subject.name, "profile": profile_json(layers, LAYER_CALLS) });
        match layers {
            [only] => write_json(path, &profile_json(only, LAYER_CALLS))?,
            several => write_json(path, &subjects.iter().zip(several).map(profile).collect::<Vec<_>>())?,
        }
    }
    Ok(())
}

fn first_batch(session: &Session, batch: usize) -> anyhow::Result<TensorMap> {
    if let Some(fixed) = session.subject.fixed_batch() {
        anyhow::ensure!(fixed == batch, "--batch {batch} was asked for, but the model fixes its batch to {fixed}");
    }
    let dataset = &*session.data.collection.dataset;
    let indices: Vec<usize> = (0..dataset.len()).collect();
    let policy = BadPolicy { max_share: 1.0, strict: false };
    let options = PrefetchOptions { batch, threads: session.threads, policy, stop: &super::INTERRUPTED, skipped: &[] };
    let (first, pass) = prefetch(dataset, &indices, options, |batches| batches.next());
    pass?;
    let first = first.filter(|first| first.ids.len() == batch);
    let first = first.ok_or_else(|| anyhow::anyhow!("the data does not hold {batch} samples of one shape"))?;
    Ok(first.inputs)
}
