//! `calib report RUN --measured deploy.tar`: figures from another machine, taken into the run's report.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::Printer;
use crate::args::ReportArgs;
use trtcalib::{
    backend::onnxruntime::OnnxRuntime,
    deploy::{Files, measured_archive, measured_files},
    report::Report,
    session::{outputs_for, write_report},
};

/// Takes the figures in and writes the run's files anew; returns the page to write.
pub(super) fn take(
    printer: &Printer,
    ort_library: Option<&Path>,
    args: &ReportArgs,
    reports: &mut [(String, Report)],
    output: Option<&Path>,
) -> anyhow::Result<PathBuf> {
    let ([(_, report)], [run]) = (reports, &args.runs[..]) else {
        anyhow::bail!("figures from elsewhere belong to one run; name one, not {}", args.runs.len());
    };
    let folder = super::folder_of(run);
    anyhow::ensure!(
        run.is_dir() || run.file_name().is_some_and(|name| name == "report.json"),
        "{}: figures from elsewhere are written into report.json of a run's folder; name the folder",
        run.display()
    );
    let given = &args.measured;
    let mut notes = Vec::new();
    for archive in &given.measured {
        notes.extend(measured_archive(report, folder, archive, given.machine.as_deref())?);
    }
    let [times, profile, layers, outputs] = given.files().map(by_precision);
    let inputs = given.inputs.clone();
    let [times, profile, layers] = [times?, profile?, layers?].map(single);
    let files = Files { times: times?, profile: profile?, layers: layers?, outputs: outputs?, inputs };
    if given.files().iter().any(|files| !files.is_empty()) {
        let machine = given.machine.as_deref().context(
            "say where these files were made, e.g. --machine \"Jetson Orin Nano, TensorRT 10.3\": the report names the machine \
             of every figure",
        )?;
        notes.extend(measured_files(report, folder, &files, machine, &|model, inputs| {
            anyhow::Ok(outputs_for(OnnxRuntime::load(ort_library)?, model, inputs)?)
        })?);
    }
    notes.sort();
    notes.dedup();
    for note in &notes {
        printer.warn(note);
    }
    let fresh: Vec<String> = notes.into_iter().filter(|note| !report.notes.contains(note)).collect();
    report.notes.extend(fresh);
    write_report(report, folder, &|_| {})?;
    Ok(output.map_or_else(|| folder.join("report.html"), Path::to_owned))
}

/// `int8=times.json`, by precision.
fn by_precision(given: &[String]) -> anyhow::Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for text in given {
        let (precision, file) = text
            .split_once('=')
            .filter(|(precision, file)| !precision.is_empty() && !file.is_empty())
            .with_context(|| format!("`{text}` is not PRECISION=FILE, e.g. int8=times.json"))?;
        files.entry(precision.to_owned()).or_default().push(file.into());
    }
    Ok(files)
}

/// The same of what a precision has one file of.
fn single(files: BTreeMap<String, Vec<PathBuf>>) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let one = |(precision, files): (String, Vec<PathBuf>)| match <[PathBuf; 1]>::try_from(files) {
        Ok([file]) => Ok((precision, file)),
        Err(files) => anyhow::bail!("{} files are given for {precision}; give one", files.len()),
    };
    files.into_iter().map(one).collect()
}
