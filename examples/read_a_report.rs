//! What a run found, out of its `report.json`: each precision with its agreement, SQNR and latency.
//!
//! `cargo run --example read_a_report -- reports/example/report.json`

#![expect(clippy::print_stdout, reason = "an example tells what it did")]

use std::{error::Error, path::Path};

use trtcalib::{compare::OutputMetrics, report::Report};

/// A line for each precision; a figure that the run did not take is a dash.
pub fn run(report: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let report = Report::read(report)?;
    let shown = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"));
    let line = |precision: &trtcalib::report::Precision| {
        let agreement = precision.agreement.as_ref().map(|agreement| 100.0 * agreement.top1);
        let sqnr = OutputMetrics::worst_sqnr_db(&precision.outputs);
        let latency = precision.latency_ms.as_ref().map(|latency| latency.figures.median);
        let [agreement, sqnr, latency] = [agreement, sqnr, latency].map(shown);
        format!("{} ({}): {agreement} % agree, {sqnr} dB, {latency} ms", precision.precision, precision.backend)
    };
    Ok(report.precisions.iter().map(line).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(report) = std::env::args().nth(1) else { return Err("usage: read_a_report REPORT".into()) };
    run(report.as_ref())?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
