//! `calib bench`: latency and throughput of several targets, measured in interleaved rounds.

mod text;

use super::{
    ExitStatus, Printer, host,
    settings::{Apply, configuration},
};
use crate::args::{BenchArgs, GlobalArgs};
use trtcalib::{
    artifact::write_json,
    backend::LayerTime,
    bench::{LAYER_CALLS, Measurement, profile_json},
    session::{BenchOptions, BenchOutcome, Session},
};

/// Measures.
pub(super) fn bench(printer: &Printer, global: &GlobalArgs, args: &BenchArgs) -> anyhow::Result<ExitStatus> {
    let options = BenchOptions {
        specs: args.specs.clone(),
        model: args.model.clone(),
        batches: args.data.batch.clone(),
        threads: args.runtime.threads.clone(),
        seconds: args.seconds,
        rounds: args.rounds,
        layer_times: args.layer_times || args.export_profile.is_some(),
        runtime_cache: args.runtime_cache.clone(),
        cuda_graph: args.cuda_graph,
    };
    let mut config = configuration(printer, &args.config)?;
    args.data.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    options.complete(&mut config)?;
    let session = Session::open(config, global.ort_library.as_deref(), &host(printer))?;
    let outcome = session.bench(&options)?;
    export(args, &outcome)?;
    printer.outcome(&outcome, || text::describe(&outcome))?;
    Ok(ExitStatus::Passed)
}

/// The files for scripts that read trtexec's: of one measurement in trtexec's own form, of several each beside its name.
fn export(args: &BenchArgs, outcome: &BenchOutcome) -> anyhow::Result<()> {
    let (measurements, layers) = (&outcome.measurements[..], &outcome.layers[..]);
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
        let profile = |(target, layers): &(String, Vec<LayerTime>)| {
            let measured = measurements.iter().find(|m| m.times.name == *target);
            profile_json(layers, LAYER_CALLS, measured.map_or("", |m| &m.times.mode.provider))
        };
        let named =
            |layers: &(String, Vec<LayerTime>)| serde_json::json!({ "target": layers.0, "profile": profile(layers) });
        match layers {
            [only] => write_json(path, &profile(only))?,
            several => write_json(path, &several.iter().map(named).collect::<Vec<_>>())?,
        }
    }
    Ok(())
}
