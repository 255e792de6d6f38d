//! `calib bench`: latency and throughput of several targets, measured in interleaved rounds.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use serde::Serialize;

use super::{
    ExitStatus, Printer,
    settings::{Apply, Session},
    spec::Spec,
};
use crate::{
    artifact::write_json,
    backend::{
        Backend, BackendError, BuildOptions, LayerTime, Phases, Runner,
        tensorrt::{EngineSidecar, RunnerOptions, run_engine},
    },
    bench::{Measurement, Protocol, SystemClock, Target, run},
    cli::{BenchArgs, GlobalArgs},
    config::RunConfig,
    dataset::{BadPolicy, PrefetchOptions, prefetch},
    onnx::Model,
    pipeline::environment::environment,
    report::Environment,
    tensor::TensorMap,
};

/// Calls over which the times of layers are taken.
const LAYER_CALLS: usize = 20;

#[derive(Serialize)]
struct Outcome {
    environment: Environment,
    mode: String,
    measurements: Vec<Measured>,
}

/// One target at one batch size.
#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    figures: Measurement,
    /// Medians of the parts of a call, for engines.
    #[serde(skip_serializing_if = "Option::is_none")]
    phases: Option<Phases>,
    /// Times of the layers, for engines and if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<LayerTime>,
}

/// What is to be measured.
struct Prepared<'a> {
    name: String,
    batch: usize,
    inputs: &'a TensorMap,
    runner: Box<dyn Runner>,
    phases: Vec<Phases>,
}

/// Measures.
pub(super) fn bench(printer: &Printer, global: &GlobalArgs, args: &BenchArgs) -> anyhow::Result<ExitStatus> {
    let specs = args.specs.iter().map(|spec| Spec::parse(spec)).collect::<anyhow::Result<Vec<_>>>()?;
    for (spec, text) in specs.iter().zip(&args.specs) {
        match spec {
            Spec::OnnxRuntime(..) => {}
            Spec::Saved(_) => anyhow::bail!("`{text}` holds saved outputs; they take no time that could be measured"),
            Spec::Engine(path) => {
                anyhow::ensure!(path.exists(), "there is no engine {}; `calib build` makes one", path.display());
            }
        }
    }
    let mut config = RunConfig::default();
    args.data.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    config.batch = None;
    config.model = args.model.clone().or_else(|| specs.iter().find_map(file));
    config.random_data |= config.data.is_none();
    let random = config.random_data;
    let batches = if args.batches.is_empty() { vec![1] } else { args.batches.clone() };
    config.calib_samples = batches.iter().copied().max().unwrap_or(1);
    let session = Session::open(config, global.ort_library.as_deref(), printer)?;
    let inputs = batches.iter().map(|&batch| first_batch(&session, batch)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut prepared = Vec::new();
    for (batch, inputs) in batches.iter().zip(&inputs) {
        for (spec, text) in specs.iter().zip(&args.specs) {
            let runner: Box<dyn Runner> = match spec {
                Spec::Saved(_) => continue,
                Spec::Engine(path) => {
                    run_engine(path, &RunnerOptions { cuda_graph: args.cuda_graph, ..RunnerOptions::default() })?
                }
                Spec::OnnxRuntime(path, provider) => {
                    let build =
                        BuildOptions { threads: session.threads, provider: *provider, ..BuildOptions::default() };
                    let model = match path {
                        Some(path) => Model::load(path)?,
                        None => session.subject.float.clone(),
                    };
                    session.runtime.build(&model, &build)?
                }
            };
            prepared.push(Prepared { name: text.clone(), batch: *batch, inputs, runner, phases: Vec::new() });
        }
    }
    // The order in which measurements come back.
    prepared.sort_by_key(|target| target.batch);
    let mut targets: Vec<Target<'_, BackendError>> = prepared
        .iter_mut()
        .map(|target| Target {
            name: target.name.clone(),
            batch: target.batch,
            call: Box::new(|| {
                target.runner.visit(target.inputs, &mut |_, _| super::check_interrupt().map_err(Into::into))?;
                target.phases.extend(target.runner.phases());
                Ok(())
            }),
        })
        .collect();
    let protocol =
        Protocol { duration: Duration::from_secs_f64(args.seconds), rounds: args.rounds, ..Protocol::default() };
    let measurements = run(&mut targets, args.specs.first().map(String::as_str), &protocol, &SystemClock::default())?;
    if let Some(path) = &args.export_times {
        let times: Vec<_> = measurements
            .iter()
            .map(|m| serde_json::json!({"target": m.times.name, "batch": m.times.batch, "times": m.times.trtexec_json()}))
            .collect();
        write_json(path, &times)?;
    }
    drop(targets);
    let measurements = measurements
        .into_iter()
        .zip(&mut prepared)
        .map(|(figures, target)| Measured::new(figures, target, args.layer_times))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let outcome = Outcome {
        environment: environment(session.runtime),
        mode: format!(
            "ONNX Runtime, {} threads, inputs and outputs in host memory, {} inputs, rounds interleaved over all targets; \
             models with Q/DQ are emulated and say nothing about TensorRT; engines: copies of inputs and outputs are part \
             of the time, CUDA graph {}",
            session.threads,
            if random { "random" } else { "real" },
            if args.cuda_graph { "on" } else { "off" }
        ),
        measurements,
    };
    printer.outcome(&outcome, || describe(&outcome))?;
    Ok(ExitStatus::Passed)
}

impl Measured {
    fn new(mut figures: Measurement, target: &mut Prepared<'_>, layer_times: bool) -> anyhow::Result<Self> {
        // Warm-up calls come first.
        let measured = target.phases.len().saturating_sub(figures.times.calls.len());
        let phases = Phases::medians(&target.phases[measured..]);
        figures.warnings.extend(phases.iter().flat_map(Phases::warnings));
        let layers = if layer_times { target.runner.layer_times(target.inputs, LAYER_CALLS)? } else { None };
        Ok(Self { figures, phases, layers: layers.unwrap_or_default() })
    }
}

/// The model that tells what the inputs are.
fn file(spec: &Spec) -> Option<PathBuf> {
    match spec {
        Spec::OnnxRuntime(path, _) => path.clone(),
        Spec::Engine(path) => EngineSidecar::load(path).ok().map(|sidecar| sidecar.reference.unwrap_or(sidecar.model)),
        Spec::Saved(_) => None,
    }
}

fn first_batch(session: &Session, batch: usize) -> anyhow::Result<TensorMap> {
    if let Some(fixed) = session.subject.fixed_batch() {
        anyhow::ensure!(fixed == batch, "--batch {batch} was asked for, but the model fixes its batch to {fixed}");
    }
    let dataset = &*session.data.collection.dataset;
    let indices: Vec<usize> = (0..dataset.len()).collect();
    let policy = BadPolicy { max_share: 1.0, strict: false };
    let options = PrefetchOptions { batch, threads: session.threads, policy, stop: &super::INTERRUPTED };
    let (first, pass) = prefetch(dataset, &indices, options, |batches| batches.next());
    pass?;
    let first = first.filter(|first| first.ids.len() == batch);
    let first = first.ok_or_else(|| anyhow::anyhow!("the data does not hold {batch} samples of one shape"))?;
    Ok(first.inputs)
}

fn describe(outcome: &Outcome) -> String {
    let mut text = format!("{}\n{}\n\n", outcome.mode, outcome.environment.cpu_model);
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["target", "batch", "median ms", "mean", "std", "p90", "p95", "p99", "samples/s", "speed-up"]);
    for Measured { figures: measured, .. } in &outcome.measurements {
        let (Some(latency), Some(throughput)) = (&measured.latency, &measured.throughput) else { continue };
        let speed_up = measured.speed_up.map_or_else(String::new, |speed_up| {
            format!("{:.2} [{:.2}, {:.2}]", speed_up.ratio, speed_up.interval[0], speed_up.interval[1])
        });
        table.add_row([
            measured.times.name.clone(),
            latency.batch.to_string(),
            format!("{:.3}", latency.median),
            format!("{:.3}", latency.mean),
            format!("{:.3}", latency.std),
            format!("{:.3}", latency.p90),
            format!("{:.3}", latency.p95),
            format!("{:.3} ± {:.3}", latency.p99, latency.p99_uncertainty),
            format!("{:.1} ± {:.1}", throughput.median, throughput.uncertainty),
            speed_up,
        ]);
    }
    text.push_str(&table.to_string());
    for Measured { figures: measured, phases, layers } in &outcome.measurements {
        let name = format!("{} (batch {})", measured.times.name, measured.times.batch);
        if let Some(Phases { enqueue_ms, h2d_ms, compute_ms, d2h_ms }) = phases {
            text.push_str(&format!(
                "\n{name}: host to device {h2d_ms:.3} ms, compute {compute_ms:.3} ms, device to host {d2h_ms:.3} ms, \
                 enqueue {enqueue_ms:.3} ms (medians)"
            ));
        }
        for LayerTime { layer, median_ms } in layers {
            text.push_str(&format!("\n  {median_ms:>9.4} ms  {layer}"));
        }
        for warning in &measured.warnings {
            // Writing into a string does not fail.
            let _ = write!(text, "\nwarning: {name}: {warning}");
        }
    }
    text
}
