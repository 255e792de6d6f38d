//! `calib calibrate` and `calib merge`: ranges only, whole or in shards.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::{
    ExitStatus, Printer, compare, host, run,
    settings::{Apply, configuration, model_configuration, one_size},
};
use crate::args::{CalibrateArgs, GlobalArgs, MergeArgs};
use crate::printer::size;
use trtcalib::{
    calibrate::{CalibrationTable, Histograms, cache::CalibrationCache, tables},
    config::RunConfig,
    dataset::SampleError,
    pass::Ran,
    quantize::Precision,
    session::{
        CalibrateOptions, Compared, Session, check_folders, describe as describe_error, environment::peak_rss_bytes,
        record_failure,
    },
};

/// What the tensors are observed for. FP8 quantizes the same.
const PRECISION: Precision = Precision::Int8;

/// What was written, for `--json`.
#[derive(Default, Serialize)]
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

impl Outcome<'_> {
    fn take(&mut self, histograms: &Histograms, seconds: f64, ran: &Ran, skipped: &[SampleError]) {
        (self.tensors, self.samples, self.seconds) = (histograms.fit.len(), histograms.samples(), seconds);
        self.images_per_second = histograms.samples() as f64 / seconds.max(1e-9);
        self.gpu = ran.on_device.then(|| GpuOutcome::from(ran));
        self.skipped = skipped.iter().map(ToString::to_string).collect();
    }
}

/// What the GPU did during the pass.
#[derive(Serialize)]
struct GpuOutcome {
    utilisation: f64,
    busy_seconds: f64,
    waited_seconds: f64,
    bottleneck: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fitting_batch: Option<usize>,
}

impl From<&Ran> for GpuOutcome {
    fn from(usage: &Ran) -> Self {
        Self {
            utilisation: usage.utilisation(),
            busy_seconds: usage.busy.as_secs_f64(),
            waited_seconds: usage.waited.as_secs_f64(),
            bottleneck: if usage.utilisation() < 0.5 { "reading and preprocessing samples" } else { "the GPU" },
            fitting_batch: usage.fitting_batch,
        }
    }
}

/// Observes the calibration samples and writes the table and the histograms.
pub(super) fn calibrate(printer: &Printer, global: &GlobalArgs, args: &CalibrateArgs) -> anyhow::Result<ExitStatus> {
    let mut config = model_configuration(printer, &args.model)?;
    one_size(&args.data, &args.runtime)?;
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.recovery.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.kinds.apply(&mut config)?;
    if let Some(table) = &config.table {
        anyhow::bail!(
            "`table` in the configuration names {}, from which nothing would be calibrated; leave it out, or leave the \
             configuration out with --config none",
            table.display()
        );
    }
    let histogram_file = args.histograms.clone().unwrap_or_else(|| args.output.with_file_name("histograms.calib"));
    check_folders([&*args.output, &histogram_file].into_iter().chain(args.cache.as_deref()))?;
    let session = Session::open(config, global.ort_library.as_deref(), &host(printer))?;
    session.require_operators(PRECISION)?;
    let mut outcome = Outcome { histograms: Some(&histogram_file), ..Outcome::default() };
    if let Some(shard) = &args.shard {
        let observed = session.observe(PRECISION, &session.calibration_samples(), Some(shard), None)?;
        observed.histograms.save(&histogram_file)?;
        let tables = args.cache.iter().chain(asked(&args.output));
        not_written(printer, tables, "a shard has histograms only, and `calib merge` makes the table of all");
        outcome.take(&observed.histograms, observed.seconds, &observed.ran, &observed.ran.summary.skipped);
        outcome.peak_rss_bytes = peak_rss_bytes();
    } else {
        let options = CalibrateOptions { histograms: Some(&histogram_file), ..CalibrateOptions::default() };
        let calibrated = session.calibrate(PRECISION, options)?;
        write_table(&calibrated.chosen.table, &args.output, args.cache.as_deref())?;
        if let Some(histograms) = &calibrated.histograms {
            outcome.take(histograms, calibrated.seconds, &calibrated.ran, &calibrated.skipped);
        }
        outcome.seconds = calibrated.all_seconds;
        outcome.peak_rss_bytes = calibrated.peak_rss_bytes;
        outcome.table = Some(&args.output);
        outcome.method = Some(calibrated.chosen.choice.to_string());
    }
    printer.outcome(&outcome, || describe(&outcome))?;
    Ok(ExitStatus::Passed)
}

/// Joins what shards observed or compared. Where that fails, nothing that a former join left in `--out` says it passed.
pub(super) fn merge(printer: &Printer, global: &GlobalArgs, args: &MergeArgs) -> anyhow::Result<ExitStatus> {
    join(printer, global, args).inspect_err(|error| not_merged(printer, args, &describe_error(error.as_ref())))
}

/// What follows where parts of a run cannot be joined.
pub(super) fn not_merged(printer: &Printer, args: &MergeArgs, reason: &str) {
    let part = args.parts.iter().filter_map(|part| Compared::load(part).ok()).find_map(|part| part.config().cloned());
    let out = args.out.clone().or_else(|| part.as_ref()?.out.clone());
    if part.is_some() || out.is_some() {
        let config = RunConfig { out, ..part.unwrap_or_default() };
        let recorded = record_failure(&config, reason);
        // Said once.
        if recorded.as_ref().err().is_none_or(|second| describe_error(second) != reason) {
            run::tell_unrecorded(printer, recorded);
        }
    }
}

/// Joins the histograms of shards; with model and data the table is that of a single run, bit for bit.
fn join(printer: &Printer, global: &GlobalArgs, args: &MergeArgs) -> anyhow::Result<ExitStatus> {
    if args.parts.iter().any(|part| Compared::is_at(part)) {
        return merge_comparison(printer, global, args);
    }
    let mut files = args.parts.iter();
    let Some(first) = files.next() else { anyhow::bail!("no histogram files were given") };
    let mut merged = Histograms::load(first)?;
    for file in files {
        merged.merge(Histograms::load(file)?)?;
    }
    let mut config = configuration(printer, &args.config)?;
    config.model = args.model.clone().or(config.model);
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.recovery.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.kinds.apply(&mut config)?;
    let table = if config.model.is_some() {
        Session::open(config, global.ort_library.as_deref(), &host(printer))?.choose_from_shards(&merged)?
    } else {
        printer.note(
            "without --model and --data no bias is corrected, `auto` judges tensors, not models, and the magnitudes of tensors \
             that are not quantized (for FP16) stay unknown",
        );
        let table = tables(&merged, config.percentile, &[config.method])?.into_iter().next();
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
        peak_rss_bytes: peak_rss_bytes(),
        ..Outcome::default()
    };
    printer.outcome(&outcome, || {
        format!("{}: {} tensors from {} samples", args.output.display(), outcome.tensors, outcome.samples)
    })?;
    Ok(ExitStatus::Passed)
}

/// The name of a table where it is not the one that nobody asked for.
fn asked(output: &PathBuf) -> Option<&PathBuf> {
    Some(output).filter(|output| **output != Path::new("calibration.json"))
}

/// Says that files that were asked for are not made here.
fn not_written<'p>(printer: &Printer, files: impl Iterator<Item = &'p PathBuf>, why: &str) {
    files.for_each(|file| printer.note(&format!("{} is not written: {why}", file.display())));
}

/// Joins the parts of a comparison or of a run: the figures are those of a single one, to the last digit.
fn merge_comparison(printer: &Printer, global: &GlobalArgs, args: &MergeArgs) -> anyhow::Result<ExitStatus> {
    let tables = args.merged.iter().chain(asked(&args.output));
    not_written(printer, tables, "parts of a comparison make a report, not a table");
    let parts = args.parts.iter().map(|part| Compared::load(part)).collect::<Result<Vec<_>, _>>()?;
    let joined = Compared::join(parts)?;
    if let Some(config) = joined.config() {
        let out = args.out.clone().or_else(|| config.out.clone());
        let config = RunConfig { out, ..config.clone() };
        return run::run_joined(printer, global, &config, joined);
    }
    let (outcome, reference) = joined.finish();
    reference.tasks.iter().filter_map(|task| task.label_hint.as_ref()).for_each(|hint| printer.warn(hint));
    compare::verdict(printer, &outcome)
}

fn write_table(table: &CalibrationTable, path: &Path, cache: Option<&Path>) -> anyhow::Result<()> {
    table.save(path)?;
    if let Some(cache) = cache {
        CalibrationCache::from_table(table).save(cache)?;
    }
    Ok(())
}

fn describe(outcome: &Outcome<'_>) -> String {
    let mut text = format!(
        "{} tensors from {} samples in {:.2} s (observed at {:.1} samples/s), peak memory {}",
        outcome.tensors,
        outcome.samples,
        outcome.seconds,
        outcome.images_per_second,
        size(outcome.peak_rss_bytes)
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
