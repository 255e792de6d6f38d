//! `calib report`: a page made again from one run, or one page over many.

mod measured;

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{ExitStatus, Printer};
use crate::args::{GlobalArgs, ReportArgs};
use trtcalib::{
    artifact::{is_input, renews, write_atomic, write_json},
    report::{
        Report, Run, failed_page, failed_summary, failed_table, model_explorer, regressions, runs_html, runs_table,
        summary, trend_html, unlike,
    },
    session::{UNFINISHED, describe, page_of},
};

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Outcome<'a> {
    output: &'a Path,
    /// Whether nothing is worse than the baseline; null without one.
    passed: Option<bool>,
    /// Precisions compared with the baseline.
    compared: usize,
    worse: usize,
    /// Why figures are not a measure of those of the baseline.
    unlike: Vec<String>,
}

/// Renders. Until that is done, and where it fails, what a former report left under that name says so.
pub(super) fn report(printer: &Printer, global: &GlobalArgs, args: &ReportArgs) -> anyhow::Result<ExitStatus> {
    let former = former(args);
    write_failed(former.as_deref(), args, UNFINISHED)?;
    render(printer, global, args)
        .inspect_err(|error| tell_failed(printer, former.as_deref(), args, &describe(error.as_ref())))
}

/// What follows where a report is not begun.
pub(super) fn failed(printer: &Printer, args: &ReportArgs, reason: &str) {
    tell_failed(printer, former(args).as_deref(), args, reason);
}

/// The page of a former report, which this one is to replace.
fn former(args: &ReportArgs) -> Option<PathBuf> {
    // The page of the run itself is still its own where no figures from elsewhere come in.
    let page = args.output.clone().or_else(|| args.measured.is_empty().then(|| "report.html".into()));
    page.filter(|page| page.is_file() && !is_input(page))
}

fn tell_failed(printer: &Printer, page: Option<&Path>, args: &ReportArgs, reason: &str) {
    if let Err(error) = write_failed(page, args, reason) {
        printer.warn(&format!("that this report failed could not be written down: {error}"));
    }
}

/// Says in the place of a former report that this one failed.
fn write_failed(page: Option<&Path>, args: &ReportArgs, reason: &str) -> anyhow::Result<()> {
    let Some(page) = page else { return Ok(()) };
    let runs: Vec<String> = args.runs.iter().map(|run| run.display().to_string()).collect();
    let (runs, job) = (runs.join(", "), "report");
    let content = match ending(page).as_deref() {
        Some("csv") => failed_table(job, reason)?,
        Some("md") => failed_summary(&runs, job, reason),
        Some("html" | "htm") => failed_page(&runs, job, reason),
        // Nothing is written there.
        _ => return Ok(()),
    };
    Ok(write_atomic(page, content.as_bytes())?)
}

fn ending(path: &Path) -> Option<String> {
    path.extension().map(|ending| ending.to_string_lossy().to_lowercase())
}

fn render(printer: &Printer, global: &GlobalArgs, args: &ReportArgs) -> anyhow::Result<ExitStatus> {
    if !args.measured.is_empty() {
        // The figures are taken into it.
        args.runs.iter().for_each(|run| renews(&report_of(run)));
    }
    let mut reports = read_all(&args.runs)?;
    let output = match &args.output {
        _ if args.measured.is_empty() => args.output.clone().unwrap_or_else(|| "report.html".into()),
        given => measured::take(printer, global.ort_library.as_deref(), args, &mut reports, given.as_deref())?,
    };
    let baselines = read_all(&args.baseline)?;
    let overlays = args.model_explorer.as_deref().map(|path| overlays(path, &reports)).transpose()?.unwrap_or_default();
    let named: Vec<Run<'_>> = reports.iter().map(|(name, report)| Run { name, report }).collect();
    let base: Vec<Run<'_>> = baselines.iter().map(|(name, report)| Run { name, report }).collect();
    let page = match (&named[..], &base[..]) {
        _ if args.trend => trend_html(&named)?,
        ([single], []) => page_of(single.report, folder_of(&args.runs[0]))?,
        _ => runs_html(&named, &base)?,
    };
    let found = (!base.is_empty()).then(|| regressions(&named, &base));
    let unlike = unlike(&named, &base);
    for sentence in &unlike {
        printer.warn(sentence);
    }
    let content = match ending(&output).as_deref() {
        // One table a file: with a baseline, what changed.
        Some("csv") => found.as_ref().map_or_else(|| runs_table(&named), |found| found.table.clone()).csv()?,
        Some("md") => {
            let own = if named.len() == 1 { summary(named[0].report) } else { runs_table(&named).markdown() };
            // What it is worse in comes before the gates that it passes all the same.
            let headline = found.as_ref().map(|found| match (found.worse, found.compared) {
                (0, _) => "### ✅ Nothing is worse than in the baseline\n\n".to_owned(),
                (worse, all) => format!("### ❌ Worse than the baseline: {worse} of {all} got worse or are gone\n\n"),
            });
            let against = found.as_ref().map(|found| {
                let warnings: String = unlike.iter().map(|sentence| format!("\n> {sentence}\n")).collect();
                format!("\n### Against the baseline\n{warnings}\n{}", found.table.markdown())
            });
            headline.unwrap_or_default() + &own + &against.unwrap_or_default()
        }
        Some("html" | "htm") => page,
        _ => anyhow::bail!("{}: reports are written as .html, .md or .csv", output.display()),
    };
    write_atomic(&output, content.as_bytes())?;
    let worse = found.as_ref().map_or(0, |found| found.worse);
    let outcome = Outcome {
        output: &output,
        passed: found.as_ref().map(|found| found.worse == 0),
        compared: found.as_ref().map_or(0, |found| found.compared),
        worse,
        unlike,
    };
    printer.outcome(&outcome, || {
        let against = found.as_ref().map(|found| format!("\n{worse} of {} got worse or are gone", found.compared));
        let overlays: String = overlays.iter().map(|path| format!("\noverlay: {}", path.display())).collect();
        format!("report: {}{overlays}{}", output.display(), against.unwrap_or_default())
    })?;
    Ok(if worse == 0 { ExitStatus::Passed } else { ExitStatus::GateFailed })
}

/// The folder of a run, which may be named by its report.
fn folder_of(run: &Path) -> &Path {
    if run.is_dir() { run } else { run.parent().unwrap_or(Path::new(".")) }
}

/// Writes the overlays of one run.
fn overlays(path: &Path, reports: &[(String, Report)]) -> anyhow::Result<Vec<PathBuf>> {
    let [(_, report)] = reports else { anyhow::bail!("overlays are of one run; name one, not {}", reports.len()) };
    let found = model_explorer(report);
    anyhow::ensure!(!found.is_empty(), "the report knows nothing of single nodes to lay over the model");
    let ending = path.extension().map_or_else(|| "json".into(), |ending| ending.to_string_lossy().into_owned());
    let write = |(name, data): (String, serde_json::Value)| {
        let file = path.with_extension(format!("{name}.{ending}"));
        write_json(&file, &data)?;
        Ok(file)
    };
    found.into_iter().map(write).collect()
}

/// The report of a run.
pub(super) fn report_of(run: &Path) -> PathBuf {
    if run.is_dir() { run.join("report.json") } else { run.to_owned() }
}

/// Reports by the names of their folders.
fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, Report)>> {
    let read = |path: &PathBuf| {
        let file = report_of(path);
        let report = Report::read(&file)?;
        let folder = std::path::absolute(&file).ok().and_then(|file| Some(file.parent()?.file_name()?.to_owned()));
        let name = folder.context("a report must lie in a folder")?.to_string_lossy().into_owned();
        Ok((name, report))
    };
    paths.iter().map(read).collect()
}
