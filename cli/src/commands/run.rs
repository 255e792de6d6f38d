//! `calib run`: the whole job. Calibrate, quantize, compare every precision with the reference, time, report.

use std::path::Path;

use anyhow::ensure;

use super::{
    ExitStatus, Printer, compare, host,
    settings::{Apply, apply_table, model_configuration, places},
};
use crate::args::{GlobalArgs, RunArgs};
use crate::printer::size;
use trtcalib::{
    artifact::write_atomic,
    compare::OutputMetrics,
    config::{RunConfig, UseTensorRt},
    report::{Report, Timing, failed_summary, summary},
    session::{
        Compared, PipelineError, RunOutcome, Session, Shard, UNFINISHED, check_folders, check_tensorrt, describe,
        record_beginning, record_failure,
    },
};

/// Does the job.
pub(super) fn run(printer: &Printer, global: &GlobalArgs, args: &RunArgs) -> anyhow::Result<ExitStatus> {
    let part = args.part.as_deref().filter(|_| !args.print_config);
    part.map(Compared::remove_former).transpose()?;
    let config = configuration(printer, args).and_then(|config| Ok(config.validate().map(|()| config)?));
    if args.print_config {
        let config = config?;
        printer.outcome(&config, || config.to_toml().unwrap_or_default())?;
        return Ok(ExitStatus::Passed);
    }
    let config = config.inspect_err(|error| refused(printer, args, &describe(error.as_ref())))?;
    if let Some(part) = part {
        check_tensorrt(config.tensorrt)?;
        return evaluate_part(printer, global, config, args.shard.as_ref(), part);
    }
    // What tells of a former run goes first: nothing of it may be left if this process is ended.
    let begun = record_beginning(&config);
    let model = name_of(config.model.as_deref());
    let summary_file = args.summary.as_deref();
    if let Some(path) = summary_file.filter(|path| is_summary(path)) {
        write_atomic(path, failed_summary(&model, "run", UNFINISHED).as_bytes())?;
    }
    let checked = || {
        check_folders(summary_file)
            .and_then(|()| check_tensorrt(config.tensorrt))
            .inspect_err(|error| tell_unrecorded(printer, record_failure(&config, &describe(error))))
    };
    let outcome = begun
        .and_then(|()| checked())
        .map_err(anyhow::Error::from)
        .and_then(|()| open_and_run(printer, global, &config, |session| session.run(command())));
    if let (Err(error), Some(path)) = (&outcome, summary_file.filter(|path| is_summary(path) || is_empty(path))) {
        write_atomic(path, failed_summary(&model, "run", &describe(error.as_ref())).as_bytes())?;
    }
    let outcome = outcome?;
    if let Some(path) = summary_file {
        let written = write_atomic(path, summary(&outcome.report).as_bytes());
        // A run that ends with an error has no report that says it passed.
        written.inspect_err(|error| tell_unrecorded(printer, record_failure(&config, &describe(error))))?;
    }
    verdict(printer, &config, outcome)
}

fn name_of(model: Option<&Path>) -> String {
    model.map(|path| path.display().to_string()).unwrap_or_default()
}

/// The words of the command line.
fn command() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// Evaluates one part, or all, of the samples and writes what was counted.
fn evaluate_part(
    printer: &Printer,
    global: &GlobalArgs,
    config: RunConfig,
    shard: Option<&Shard>,
    part: &Path,
) -> anyhow::Result<ExitStatus> {
    check_folders([part])?;
    let mut session = Session::open(config, global.ort_library.as_deref(), &host(printer))?;
    let counted = session.evaluate_part(shard)?;
    counted.save(part)?;
    compare::wrote_part(printer, &counted, shard, part)
}

/// Makes the report of a run whose evaluation was counted in parts.
pub(super) fn run_joined(
    printer: &Printer,
    global: &GlobalArgs,
    config: &RunConfig,
    joined: Compared,
) -> anyhow::Result<ExitStatus> {
    record_beginning(config)?;
    let outcome = open_and_run(printer, global, config, |session| session.run_joined(joined, command()))?;
    verdict(printer, config, outcome)
}

/// Prints what a run found, and ends with it.
fn verdict(printer: &Printer, config: &RunConfig, outcome: RunOutcome) -> anyhow::Result<ExitStatus> {
    let RunOutcome { report, out } = outcome;
    let page = out.join("report.html");
    let printed = printer.outcome(&report, || format!("{}\n\nreport: {}", table(&report), page.display()));
    printed.inspect_err(|error| tell_unrecorded(printer, record_failure(config, &describe(error.as_ref()))))?;
    if config.tensorrt == UseTensorRt::Require {
        let engines = report.precisions.iter().filter(|row| row.required && row.error.is_some());
        let engines: Vec<&str> = engines.map(|row| row.precision.as_str()).collect();
        ensure!(engines.is_empty(), "--tensorrt require: no engine ran in {}; the report says why", engines.join(", "));
    }
    Ok(if report.verdict.passed == Some(false) { ExitStatus::GateFailed } else { ExitStatus::Passed })
}

/// What tells of a former run is replaced where the options of this one cannot be used.
pub(super) fn refused(printer: &Printer, args: &RunArgs, reason: &str) {
    if args.print_config {
        return;
    }
    if args.eval || args.part.is_some() {
        return compare::refused(printer, args.part.as_deref());
    }
    tell_unrecorded(printer, not_begun(args, reason));
}

/// The same: only what was given is known, and what stands in the configuration file.
fn not_begun(args: &RunArgs, reason: &str) -> Result<(), PipelineError> {
    let places = places(args.model.config.config.as_deref());
    let given = RunConfig {
        model: args.model.model.clone().or_else(|| args.model.positional.clone()).or(places.model),
        out: args.out.clone().or(places.out),
        data: args.data.data.clone(),
        labels: args.data.labels.clone(),
        ..RunConfig::default()
    };
    if let Some(path) = args.summary.as_deref().filter(|path| is_summary(path)) {
        write_atomic(path, failed_summary(&name_of(given.model.as_deref()), "run", reason).as_bytes())?;
    }
    record_failure(&given, reason)
}

/// Whether a file is the summary of a former run, and nothing else that may have been named by mistake.
fn is_summary(path: &Path) -> bool {
    // It is to be written over, so that it cannot be read as an input.
    let text = if path.is_file() { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    let first = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    first.starts_with(b"### ") && first.windows(7).any(|word| word == b" calib:")
}

/// Whether nothing is lost where a file is written: it is not there, is empty, or is not a file.
fn is_empty(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |there| !there.is_dir() && there.len() == 0)
}

pub(super) fn tell_unrecorded(printer: &Printer, recorded: Result<(), PipelineError>) {
    if let Err(error) = recorded {
        printer.warn(&format!("that this run failed could not be written down: {}", describe(&error)));
    }
}

/// The run; where it cannot even begin, a report that says so takes the place of a former one.
fn open_and_run(
    printer: &Printer,
    global: &GlobalArgs,
    config: &RunConfig,
    run: impl FnOnce(&mut Session) -> Result<RunOutcome, PipelineError>,
) -> anyhow::Result<RunOutcome> {
    let mut session = match Session::open(config.clone(), global.ort_library.as_deref(), &host(printer)) {
        Ok(session) => session,
        Err(error) => {
            tell_unrecorded(printer, record_failure(config, &describe(&error)));
            return Err(error.into());
        }
    };
    Ok(run(&mut session)?)
}

/// The configuration file, and the flags over it.
fn configuration(printer: &Printer, args: &RunArgs) -> anyhow::Result<RunConfig> {
    let mut config = model_configuration(printer, &args.model)?;
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.outputs.apply(&mut config)?;
    apply_table(printer, args.table.as_ref(), &args.method, &mut config);
    if let Some(out) = &args.out {
        config.out = Some(out.clone());
    }
    if let Some(samples) = args.eval_samples {
        config.eval_samples = samples;
    }
    if !args.precisions.is_empty() {
        config.precisions.clone_from(&args.precisions);
    }
    if !args.gate.is_empty() {
        config.gate.clone_from(&args.gate);
    }
    if let Some(when) = &args.tensorrt {
        config.tensorrt.clone_from(when);
    }
    if let Some(seconds) = args.bench_seconds {
        config.bench_seconds = seconds;
    }
    Ok(config)
}

/// The table of precisions for a terminal of 80 columns.
pub(super) fn table(report: &Report) -> String {
    let mut header =
        vec!["precision\nbackend", "top-1\nagr.", "top-5\noverlap", "top-1\nacc.", "SQNR\ndB", "latency\nms", "size"];
    let maps = report.precisions.iter().any(|row| row.segmentation.is_some());
    if maps {
        header.extend(["pixel\nagr.", "mean\nIoU", "label\nIoU"]);
    }
    let detects = report.precisions.iter().any(|row| row.detection.is_some());
    if detects {
        header.extend(["mAP\n50-95", "mAP\n50", "boxes\nfound", "boxes\nright", "box\nIoU"]);
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    let share = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{:.2} %", value * 100.0));
    // Reasons are sentences: they stand under the table, each once.
    let mut reasons: Vec<&str> = Vec::new();
    for row in &report.precisions {
        let sqnr_db = OutputMetrics::worst_sqnr_db(&row.outputs).filter(|db| db.is_finite());
        let latency = row.latency_ms.as_ref().map_or_else(String::new, |latency| {
            let mark = if latency.timing == Timing::Emulated { "\nemulated" } else { "" };
            format!("{:.2}{mark}", latency.figures.median)
        });
        let size = match (&row.artifact, row.reference) {
            (Some(artifact), _) => size(artifact.bytes),
            (None, true) => size(report.model.bytes),
            (None, false) => String::new(),
        };
        let own = row.halved.as_ref().filter(|halved| halved.precision.name() == row.precision);
        let beside = match own.filter(|halved| !halved.kept_fp32.is_empty()) {
            Some(halved) => format!(" ({} of {} nodes)", halved.nodes, halved.all()),
            None if row.reference => " (reference)".to_owned(),
            None => String::new(),
        };
        let mut cells = vec![
            format!("{}{beside}\n{}", row.precision, row.backend),
            share(row.agreement.as_ref().map(|agreement| agreement.top1)),
            share(row.agreement.as_ref().map(|agreement| agreement.top5_overlap)),
            share(row.accuracy.as_ref().map(|accuracy| accuracy.top1)),
            sqnr_db.map_or_else(String::new, |db| format!("{db:.1}")),
            latency,
            size,
        ];
        if maps {
            let map = row.segmentation.as_ref();
            let against_reference = map.filter(|_| !row.reference);
            cells.extend([
                share(against_reference.map(|map| map.pixel_agreement)),
                share(against_reference.map(|map| map.mean_iou)),
                share(map.and_then(|map| map.label_mean_iou)),
            ]);
        }
        if detects {
            let figures = row.detection.as_ref().and_then(|d| d.accuracy.as_ref()).map(|accuracy| accuracy.figures);
            let agreement = row.detection.as_ref().map(|d| &d.agreement).filter(|_| !row.reference);
            let map = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.4}"));
            cells.extend([
                map(figures.and_then(|figures| figures.map50_95)),
                map(figures.and_then(|figures| figures.map50)),
                share(agreement.map(|agreement| agreement.recall)),
                share(agreement.map(|agreement| agreement.precision)),
                share(agreement.and_then(|agreement| agreement.mean_iou)),
            ]);
        }
        if let Some(error) = &row.error {
            let number = reasons.iter().position(|reason| *reason == error.as_str()).unwrap_or_else(|| {
                reasons.push(error);
                reasons.len() - 1
            });
            cells[1] = format!("not run [{}]", number + 1);
        }
        rows.push(cells);
    }
    // What no row has would only make the table wider.
    let is_filled = |column: &usize| rows.iter().any(|row| !row[*column].is_empty());
    let columns: Vec<usize> = (0..header.len()).filter(is_filled).collect();
    let mut table = crate::table::table(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(columns.iter().map(|&column| header[column]));
    table.add_rows(rows.iter().map(|row| columns.iter().map(|&column| &row[column]).collect::<Vec<_>>()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    let notes: String = (1..).zip(&reasons).map(|(number, reason)| format!("[{number}] {reason}\n")).collect();
    format!("{table}\n{notes}{}", report.verdict.sentence)
}
