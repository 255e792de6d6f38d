//! `calib calibrate` and `calib merge`: ranges only, whole or in shards.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::{
    ExitStatus, Printer,
    output::check_folders,
    settings::{Apply, Session, one_size, require_operators, scheme, warn_unmatched},
};
use crate::args::{CalibrateArgs, GlobalArgs, MergeArgs};
use trtcalib::{
    calibrate::{CalibrationTable, Choice, DeviceUse, Histograms, Provenance, Shards, cache::CalibrationCache, tables},
    config::{ConfigError, RunConfig},
    quantize::Precision,
    session::{calibration::hold_out, environment::peak_rss_bytes},
};

/// What was written, for `--json`.
#[derive(Serialize)]
struct Outcome<'a> {
    table: Option<&'a Path>,
    histograms: Option<&'a Path>,
    method: Option<String>,
    tensors: usize,
    samples: usize,
    seconds: f64,
    images_per_second: f64,
    peak_rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<GpuOutcome>,
    skipped: Vec<String>,
}

/// What the GPU did during the pass.
#[derive(Serialize)]
struct GpuOutcome {
    utilisation: f64,
    busy_seconds: f64,
    waited_seconds: f64,
    bottleneck: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    halved_to: Option<usize>,
}

impl From<DeviceUse> for GpuOutcome {
    fn from(usage: DeviceUse) -> Self {
        Self {
            utilisation: usage.utilisation(),
            busy_seconds: usage.busy.as_secs_f64(),
            waited_seconds: usage.waited.as_secs_f64(),
            bottleneck: if usage.utilisation() < 0.5 { "reading and preprocessing samples" } else { "the GPU" },
            halved_to: usage.halved_to,
        }
    }
}

/// Observes the calibration samples and writes the table and the histograms.
pub(super) fn calibrate(printer: &Printer, global: &GlobalArgs, args: &CalibrateArgs) -> anyhow::Result<ExitStatus> {
    let mut config = RunConfig { model: Some(args.model.clone()), ..RunConfig::default() };
    one_size(&args.data, &args.runtime)?;
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.kinds.apply(&mut config)?;
    let shard = args.shard.as_deref().map(parse_shard).transpose()?;
    let histogram_file = args.histograms.clone().unwrap_or_else(|| args.output.with_file_name("histograms.calib"));
    check_folders([&*args.output, &histogram_file].into_iter().chain(args.cache.as_deref()))?;
    let session = Session::open(config, global.ort_library.as_deref(), printer)?;
    let config = &session.config;
    let scheme = scheme(config, Precision::Int8)?;
    let placement = session.subject.place(&scheme)?;
    warn_unmatched(printer, config, &session.subject, &placement);
    require_operators(&placement)?;
    let tensors = placement.tensors_to_observe();
    let indices = calibration_samples(&session);
    let provenance = Provenance {
        model_hash: session.subject.float.hash.clone(),
        data_hash: session.data_hash(&indices),
        random_data: config.random_data,
        shards: shard.as_ref().map_or_else(Shards::whole, |shard| shard.shards.clone()),
    };
    let whole = hold_out(&indices);
    let observed = shard.as_ref().map_or_else(|| whole.clone(), |shard| whole.shard(shard.index, shard.count));
    let bar = printer.progress(observed.len() as u64, "calibrating");
    let progress = |samples: usize| bar.inc(samples as u64);
    let options = session.observe_options();
    let calibrator = session.calibrator(&options, &progress, None);
    let observation = calibrator.observe(&tensors, &observed, &provenance);
    bar.finish_and_clear();
    let observation = observation?;
    warn_halved(printer, "calibration", observation.device.and_then(|usage| usage.halved_to));
    observation.histograms.save(&histogram_file)?;
    let mut outcome = Outcome {
        table: None,
        histograms: Some(&histogram_file),
        method: None,
        tensors: tensors.len(),
        samples: observation.histograms.samples(),
        seconds: observation.seconds,
        images_per_second: observation.histograms.samples() as f64 / observation.seconds.max(1e-9),
        peak_rss_bytes: peak_rss_bytes(),
        gpu: observation.device.map(GpuOutcome::from),
        skipped: observation.summary.skipped.iter().map(ToString::to_string).collect(),
    };
    if shard.is_none() {
        let chosen = calibrator.choose(&observation.histograms, &indices, &session.choose_options(&scheme)?)?;
        write_table(&chosen.table, &args.output, args.cache.as_deref())?;
        outcome.table = Some(&args.output);
        outcome.method = Some(chosen.choice.to_string());
    }
    printer.outcome(&outcome, || describe(&outcome))?;
    Ok(ExitStatus::Passed)
}

/// All samples, up to the number asked for, calibrate here: nothing is evaluated.
fn calibration_samples(session: &Session) -> Vec<usize> {
    let (config, count) = (&session.config, session.data.collection.dataset.len());
    if config.calib_samples >= count {
        return (0..count).collect();
    }
    session.data.split(config.seed, config.calib_samples, 0).calibration
}

/// Joins the histograms of shards; with model and data the table is that of a single run, bit for bit.
pub(super) fn merge(printer: &Printer, global: &GlobalArgs, args: &MergeArgs) -> anyhow::Result<ExitStatus> {
    let mut files = args.histograms.iter();
    let Some(first) = files.next() else { anyhow::bail!("no histogram files were given") };
    let mut merged = Histograms::load(first)?;
    for file in files {
        merged.merge(Histograms::load(file)?)?;
    }
    let mut config = RunConfig { model: args.model.clone(), ..RunConfig::default() };
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.kinds.apply(&mut config)?;
    let table = if args.model.is_some() {
        choose_from(&merged, &Session::open(config, global.ort_library.as_deref(), printer)?)?
    } else {
        let choice: Choice = config.method.parse().map_err(anyhow::Error::msg)?;
        printer.note(
            "without --model and --data no bias is corrected, `auto` judges tensors, not models, and the magnitudes of tensors \
             that are not quantized (for FP16) stay unknown",
        );
        let table = tables(&merged, config.percentile, &[choice])?.into_iter().next();
        table.context("the histograms hold no tensors")?
    };
    if let Some(path) = &args.merged {
        merged.save(path)?;
    }
    write_table(&table, &args.output, None)?;
    let outcome = Outcome {
        table: Some(&args.output),
        histograms: args.merged.as_deref(),
        method: Some(table.method.clone()),
        tensors: table.tensors.len(),
        samples: merged.samples(),
        seconds: 0.0,
        images_per_second: 0.0,
        peak_rss_bytes: peak_rss_bytes(),
        gpu: None,
        skipped: Vec::new(),
    };
    printer.outcome(&outcome, || {
        format!("{}: {} tensors from {} samples", args.output.display(), outcome.tensors, outcome.samples)
    })?;
    Ok(ExitStatus::Passed)
}

/// Chooses as a single run over the samples of all shards would.
fn choose_from(merged: &Histograms, session: &Session) -> anyhow::Result<CalibrationTable> {
    let indices = calibration_samples(session);
    let made_for = &merged.provenance;
    anyhow::ensure!(
        made_for.model_hash == session.subject.float.hash,
        "the histograms were made for another model; give the one that the shards observed"
    );
    anyhow::ensure!(
        made_for.data_hash == session.data_hash(&indices) && made_for.random_data == session.config.random_data,
        "the histograms were made from other samples; give the data, preprocessing, seed and number of samples of the shards"
    );
    let options = session.observe_options();
    let choose = session.choose_options(&scheme(&session.config, Precision::Int8)?)?;
    Ok(session.calibrator(&options, &|_| {}, None).choose(merged, &indices, &choose)?.table)
}

fn write_table(table: &CalibrationTable, path: &Path, cache: Option<&Path>) -> anyhow::Result<()> {
    table.save(path)?;
    if let Some(cache) = cache {
        CalibrationCache::from_table(table).save(cache)?;
    }
    Ok(())
}

/// Says that the GPU's memory was too small for the batch.
pub(super) fn warn_halved(printer: &Printer, what: &str, halved_to: Option<usize>) {
    if let Some(batch) = halved_to {
        printer.warn(&format!("the GPU ran out of memory; {what} went on with batches of {batch}"));
    }
}

fn describe(outcome: &Outcome<'_>) -> String {
    let mut text = format!(
        "{} tensors from {} samples in {:.2} s ({:.1} samples/s), peak memory {:.0} MB",
        outcome.tensors,
        outcome.samples,
        outcome.seconds,
        outcome.images_per_second,
        outcome.peak_rss_bytes as f64 / 1e6
    );
    if let Some(gpu) = &outcome.gpu {
        text.push_str(&format!(
            "\nGPU busy {:.0} % of the time; {} set the pace",
            gpu.utilisation * 100.0,
            gpu.bottleneck
        ));
    }
    if let (Some(table), Some(method)) = (outcome.table, &outcome.method) {
        text.push_str(&format!("\ntable: {} (method {method})", table.display()));
    }
    if let Some(histograms) = outcome.histograms {
        text.push_str(&format!("\nhistograms: {}", histograms.display()));
    }
    for skipped in &outcome.skipped {
        text.push_str(&format!("\nskipped {skipped}"));
    }
    text
}

/// Part i of n, counted from 1.
struct Shard {
    index: usize,
    count: usize,
    shards: Shards,
}

fn parse_shard(text: &str) -> Result<Shard, ConfigError> {
    let invalid = || ConfigError::Value { key: "shard", reason: format!("`{text}` does not read like 2/8") };
    let (index, count) = text.split_once('/').ok_or_else(invalid)?;
    let (index, count): (u32, u32) = (index.parse().map_err(|_| invalid())?, count.parse().map_err(|_| invalid())?);
    let zero_based = index.checked_sub(1).ok_or_else(invalid)?;
    let shards = Shards::one(zero_based, count).ok_or_else(invalid)?;
    Ok(Shard { index: zero_based as usize, count: count as usize, shards })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_count_from_one() {
        assert!(parse_shard("1/4").is_ok_and(|shard| (shard.index, shard.count) == (0, 4)));
        assert!(parse_shard("0/4").is_err() && parse_shard("5/4").is_err() && parse_shard("1").is_err());
    }
}
