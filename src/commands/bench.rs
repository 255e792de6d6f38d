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
    backend::{Backend, BackendError, BuildOptions, Runner},
    bench::{Measurement, Protocol, SystemClock, Target, run},
    cli::{BenchArgs, GlobalArgs},
    config::RunConfig,
    dataset::{BadPolicy, PrefetchOptions, prefetch},
    onnx::Model,
    pipeline::environment::environment,
    report::Environment,
    tensor::TensorMap,
};

#[derive(Serialize)]
struct Outcome {
    environment: Environment,
    mode: String,
    measurements: Vec<Measurement>,
}

/// Measures.
pub(super) fn bench(printer: &Printer, global: &GlobalArgs, args: &BenchArgs) -> anyhow::Result<ExitStatus> {
    let specs = args.specs.iter().map(|spec| Spec::parse(spec)).collect::<anyhow::Result<Vec<_>>>()?;
    for (spec, text) in specs.iter().zip(&args.specs) {
        match spec {
            Spec::OnnxRuntime(..) => {}
            Spec::Saved(_) => anyhow::bail!("`{text}` holds saved outputs; they take no time that could be measured"),
            Spec::Engine(_) => anyhow::bail!("running engines is not part of this version: {text} was not measured"),
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
    let mut runners: Vec<(String, usize, &TensorMap, Box<dyn Runner>)> = Vec::new();
    for (batch, inputs) in batches.iter().zip(&inputs) {
        for (spec, text) in specs.iter().zip(&args.specs) {
            let Spec::OnnxRuntime(path, provider) = spec else { continue };
            let build = BuildOptions { threads: session.threads, provider: *provider, ..BuildOptions::default() };
            let model = match path {
                Some(path) => Model::load(path)?,
                None => session.subject.float.clone(),
            };
            runners.push((text.clone(), *batch, inputs, session.runtime.build(&model, &build)?));
        }
    }
    let mut targets: Vec<Target<'_, BackendError>> = runners
        .iter_mut()
        .map(|(name, batch, inputs, runner)| Target {
            name: name.clone(),
            batch: *batch,
            call: Box::new(|| runner.visit(inputs, &mut |_, _| super::check_interrupt().map_err(Into::into))),
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
    let outcome = Outcome {
        environment: environment(session.runtime),
        mode: format!(
            "ONNX Runtime, {} threads, inputs and outputs in host memory, {} inputs, rounds interleaved over all targets; \
             models with Q/DQ are emulated and say nothing about TensorRT",
            session.threads,
            if random { "random" } else { "real" }
        ),
        measurements,
    };
    printer.outcome(&outcome, || describe(&outcome))?;
    Ok(ExitStatus::Passed)
}

fn file(spec: &Spec) -> Option<PathBuf> {
    match spec {
        Spec::OnnxRuntime(path, _) => path.clone(),
        Spec::Saved(_) | Spec::Engine(_) => None,
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
    for measured in &outcome.measurements {
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
    for measured in &outcome.measurements {
        for warning in &measured.warnings {
            // Writing into a string does not fail.
            let _ = write!(text, "\nwarning: {} (batch {}): {warning}", measured.times.name, measured.times.batch);
        }
    }
    text
}
