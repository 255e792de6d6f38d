//! `calib report`: a page made again from one run, or one page over many.

use std::path::PathBuf;

use anyhow::Context;

use super::{ExitStatus, Printer};
use crate::args::ReportArgs;
use trtcalib::{
    artifact::write_atomic,
    report::{Report, Run, html, runs_html, runs_table, summary},
};

/// Renders.
pub(super) fn report(printer: &Printer, args: &ReportArgs) -> anyhow::Result<ExitStatus> {
    let reports = read_all(&args.runs)?;
    let baselines = read_all(&args.baseline)?;
    let named: Vec<Run<'_>> = reports.iter().map(|(name, report)| Run { name, report }).collect();
    let base: Vec<Run<'_>> = baselines.iter().map(|(name, report)| Run { name, report }).collect();
    let page = match (&named[..], &base[..]) {
        ([single], []) => html(single.report)?,
        _ => runs_html(&named, &base)?,
    };
    let ending = args.output.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let content = match ending.as_deref() {
        Some("csv") => runs_table(&named).csv()?,
        Some("md") if named.len() == 1 => summary(named[0].report),
        Some("md") => runs_table(&named).markdown(),
        Some("html" | "htm") => page,
        _ => anyhow::bail!("{}: reports are written as .html, .md or .csv", args.output.display()),
    };
    write_atomic(&args.output, content.as_bytes())?;
    printer.result(&format!("report: {}", args.output.display()));
    Ok(ExitStatus::Passed)
}

/// Reports by the names of their folders.
fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, Report)>> {
    let read = |path: &PathBuf| {
        let file = if path.is_dir() { path.join("report.json") } else { path.clone() };
        let report = Report::read(&file)?;
        let folder = std::path::absolute(&file).ok().and_then(|file| Some(file.parent()?.file_name()?.to_owned()));
        let name = folder.context("a report must lie in a folder")?.to_string_lossy().into_owned();
        Ok((name, report))
    };
    paths.iter().map(read).collect()
}
