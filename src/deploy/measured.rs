//! Figures from another machine, taken into a report.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    DEPLOY, DeployError, Manifest,
    figures::{Figures, Known, Parts, figures},
    machine::machine,
    pack::unpack,
};
use crate::{
    artifact::ContentHash,
    bench::{SpeedUp, Times},
    npz::read_npz,
    onnx::Model,
    report::{Layer, Machine, NodeTime, Precision, Report, Speedup},
    stats::{percentile_interval, sorted},
    tensor::TensorMap,
};

/// Single files from another machine, by precision.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `trtexec --exportTimes`.
    pub times: BTreeMap<String, PathBuf>,
    /// `trtexec --exportProfile`.
    pub profile: BTreeMap<String, PathBuf>,
    /// `trtexec --exportLayerInfo`.
    pub layers: BTreeMap<String, PathBuf>,
    /// `trtexec --exportOutput`, or what Polygraphy saved.
    pub outputs: BTreeMap<String, PathBuf>,
    /// Inputs that these outputs are of; absent for those of the run's `deploy/`.
    pub inputs: Option<PathBuf>,
}

/// Takes what `deploy.sh` packed (or the folder itself) into a report. `run` is the folder of the run, `called` what the
/// machine is called instead of its own name. Returns what a reader must know, in sentences.
///
/// # Errors
/// The archive cannot be read, or its models are not those of the report.
pub fn measured_archive(
    report: &mut Report,
    run: &Path,
    archive: &Path,
    called: Option<&str>,
) -> Result<Vec<String>, DeployError> {
    let unpacked = if archive.is_dir() { None } else { Some(unpack(archive)?) };
    let folder = unpacked.as_ref().map_or(archive, |folder| folder.path());
    let manifest = Manifest::read(folder)?;
    if manifest.model_hash != report.model.hash {
        let reason = format!(
            "it was made for the model {}, and the report is of {} ({})",
            manifest.model_hash.short(),
            report.model.hash.short(),
            report.model.path
        );
        return Err(DeployError::content(archive, reason));
    }
    let measured = folder.join("measured");
    let text =
        |name: &str| fs::read(measured.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).ok();
    let sums = text("sha256.txt").ok_or_else(|| {
        DeployError::content(archive, "it holds no measured/sha256.txt; run deploy.sh there and bring its deploy.tar")
    })?;
    let log = |precision: &str, what: &str| text(&format!("{precision}.{what}.log"));
    let logs: Vec<String> = manifest
        .models
        .iter()
        .flat_map(|model| ["build", "times"].map(|what| log(&model.precision, what)))
        .flatten()
        .collect();
    let mut there =
        machine(&text("machine.txt").unwrap_or_default(), &logs).unwrap_or_else(|| unnamed("an unnamed machine"));
    if let Some(called) = called {
        called.clone_into(&mut there.name);
    }
    let float = expected(folder, &manifest, &manifest.reference)?;
    let mut all = Vec::new();
    let mut notes = Vec::new();
    for model in &manifest.models {
        let precision = &model.precision;
        let Some(row) = row(report, precision, Some(&model.hash)) else {
            let reason = format!("its model of {precision} is none of this report: another run deployed it");
            return Err(DeployError::content(archive, reason));
        };
        let sum = sums.lines().find_map(|line| line.strip_suffix(&model.file)?.split_whitespace().next());
        if sum != Some(&*model.sha256) {
            let reason = format!("{} was another file there than the run's: its SHA-256 differs", model.file);
            return Err(DeployError::content(archive, reason));
        }
        let file = |what: &str, ending: &str| {
            Some(measured.join(format!("{precision}.{what}.{ending}"))).filter(|path| path.is_file())
        };
        let whole = Parts {
            times: file("times", "json"),
            profile: file("profile", "json"),
            layers: file("layers", "json"),
            outputs: file("outputs", "json").or_else(|| file("outputs", "npz")),
            inputs: None,
        };
        let known = Known {
            precision,
            hash: &model.hash,
            batch: model.batch,
            op_types: op_types(report, row, run),
            expected: float.clone().zip(expected(folder, &manifest, precision)?).map(Into::into),
            others: others(folder, &manifest, precision)?,
        };
        if whole.times.is_none() && whole.layers.is_none() {
            let said = log(precision, "build").as_deref().and_then(last_error).unwrap_or_default();
            notes.push(format!("{precision}: nothing was measured on {}{said}", there.name));
            continue;
        }
        let found = tolerant(&whole, &known, &there, &mut notes);
        all.push((row, found));
    }
    notes.extend(take(report, all));
    Ok(notes)
}

/// Takes single files into a report, measured on the machine `called`. Where [`Files::inputs`] are given, `outputs_for`
/// tells what a model gives for them.
///
/// # Errors
/// A file cannot be read, or is of another model or precision; the report has no such precision.
pub fn measured_files<E: From<DeployError>>(
    report: &mut Report,
    run: &Path,
    files: &Files,
    called: &str,
    outputs_for: &dyn Fn(&Path, &Path) -> Result<TensorMap, E>,
) -> Result<Vec<String>, E> {
    let deployed = run.join(DEPLOY);
    let manifest = deployed.is_dir().then(|| Manifest::read(&deployed)).transpose().map_err(DeployError::from)?;
    let precisions: BTreeSet<&String> =
        [&files.times, &files.profile, &files.layers, &files.outputs].into_iter().flat_map(BTreeMap::keys).collect();
    let mut all = Vec::new();
    for precision in precisions {
        let Some(row) = row(report, precision, None) else {
            let known: BTreeSet<&str> = report.precisions.iter().map(|row| row.precision.as_str()).collect();
            let reason = format!("the report has no {precision}, only {}", Vec::from_iter(known).join(", "));
            return Err(DeployError::content(&run.join("report.json"), reason).into());
        };
        let of = |map: &BTreeMap<String, PathBuf>| map.get(precision).cloned();
        let parts = Parts {
            times: of(&files.times),
            profile: of(&files.profile),
            layers: of(&files.layers),
            outputs: of(&files.outputs),
            inputs: files.inputs.clone().filter(|_| files.outputs.contains_key(precision)),
        };
        let expected = match (&parts.inputs, &manifest) {
            (Some(inputs), _) => {
                let gives = |row: Option<&Precision>| outputs_for(&model_of(report, row, run)?, inputs);
                Some([gives(None)?, gives(Some(&report.precisions[row]))?])
            }
            (None, Some(manifest)) => {
                let float = expected(&deployed, manifest, &manifest.reference)?;
                float.zip(expected(&deployed, manifest, precision)?).map(Into::into)
            }
            (None, None) => None,
        };
        let own = &report.precisions[row];
        let hash = own.artifact.as_ref().map_or(&report.model.hash, |artifact| &artifact.hash).clone();
        let batch = manifest.as_ref().and_then(|manifest| manifest.model(precision)).map_or(1, |model| model.batch);
        let others = match &manifest {
            Some(manifest) if parts.inputs.is_none() => others(&deployed, manifest, precision)?,
            _ => Vec::new(),
        };
        let known = Known { precision, hash: &hash, batch, op_types: op_types(report, row, run), expected, others };
        all.push((row, figures(&parts, &known, unnamed(called), false)?));
    }
    Ok(take(report, all))
}

/// The figures of a precision, part by part: one file that cannot be used does not take the others with it.
fn tolerant(whole: &Parts, known: &Known<'_>, there: &Machine, notes: &mut Vec<String>) -> Figures {
    let mut parts = whole.clone();
    loop {
        match figures(&parts, known, there.clone(), true) {
            Ok(found) => return found,
            Err(error) => {
                notes.push(format!("{}: {error}", known.precision));
                let Parts { times, profile, layers, outputs, .. } = &mut parts;
                for part in [times, profile, layers, outputs] {
                    // Without a file of its own, an error takes all of them with it.
                    if error.path().is_none_or(|path| part.as_deref() == Some(path)) {
                        *part = None;
                    }
                }
            }
        }
    }
}

fn unnamed(name: &str) -> Machine {
    Machine { name: name.to_owned(), tensorrt: None, driver: None, os: None, date: None }
}

/// Place of the row of a model: by its hash, or the first that ran a model of the precision.
fn row(report: &Report, precision: &str, hash: Option<&ContentHash>) -> Option<usize> {
    let is_it = |row: &Precision| {
        let own = row.artifact.as_ref().map(|artifact| &artifact.hash);
        // The float model may have been deployed with bound shapes, as another file.
        row.precision == precision && (row.reference || hash.is_none() || own == hash)
    };
    report.precisions.iter().position(is_it)
}

/// The file of a row's model, or of the float model, and its hash.
fn file_of<'a>(report: &'a Report, row: Option<&'a Precision>, run: &Path) -> (PathBuf, &'a ContentHash) {
    match row.and_then(|row| row.artifact.as_ref()) {
        Some(artifact) => (run.join(&artifact.path), &artifact.hash),
        None => (PathBuf::from(&report.model.path), &report.model.hash),
    }
}

/// The same, where it is still the run's.
fn model_of(report: &Report, row: Option<&Precision>, run: &Path) -> Result<PathBuf, DeployError> {
    let (path, hash) = file_of(report, row, run);
    if Model::load(&path).is_ok_and(|model| model.hash == *hash) {
        return Ok(path);
    }
    let reason = "it is not there any more as the run had it, so what it gives for these inputs cannot be computed";
    Err(DeployError::content(&path, reason))
}

/// Operators of the row's model, where it still lies in the folder of the run.
fn op_types(report: &Report, row: usize, run: &Path) -> BTreeMap<String, String> {
    let (path, hash) = file_of(report, Some(&report.precisions[row]), run);
    let model = Model::load(&path).ok().filter(|model| model.hash == *hash);
    model.map(|model| model.op_types()).unwrap_or_default()
}

fn expected(folder: &Path, manifest: &Manifest, precision: &str) -> Result<Option<TensorMap>, DeployError> {
    let file = manifest.model(precision).and_then(|model| model.expected.as_ref());
    // The manifest comes from elsewhere: its paths are not followed.
    let file = file.map(|_| folder.join("expected").join(format!("{precision}.npz"))).filter(|file| file.is_file());
    Ok(file.map(|file| read_npz(&file)).transpose()?)
}

/// The same of all other precisions.
fn others<'a>(
    folder: &Path,
    manifest: &'a Manifest,
    precision: &str,
) -> Result<Vec<(&'a str, TensorMap)>, DeployError> {
    let mut found = Vec::new();
    for other in manifest.models.iter().map(|model| &*model.precision).filter(|&other| other != precision) {
        found.extend(expected(folder, manifest, other)?.map(|tensors| (other, tensors)));
    }
    Ok(found)
}

/// ` (what the log says)`.
fn last_error(log: &str) -> Option<String> {
    let line = log.lines().rev().find(|line| line.contains("[E]") || line.to_lowercase().contains("error"))?;
    Some(format!(" ({})", line.trim()))
}

/// Puts figures into the rows, with speed-ups and the times of nodes; returns the notes.
fn take(report: &mut Report, all: Vec<(usize, Figures)>) -> Vec<String> {
    let reference = report.precisions.iter().position(|row| row.reference);
    let base: Option<Times> =
        all.iter().find(|(row, _)| Some(*row) == reference).and_then(|(_, found)| found.times.clone());
    let mut notes = Vec::new();
    for (row, mut found) in all {
        notes.append(&mut found.notes);
        let against = report.precisions[reference.unwrap_or(row)].precision.clone();
        if let (Some(own), Some(base), false) = (&found.times, &base, Some(row) == reference) {
            let figures = speed_up(base, own);
            let machine = &found.elsewhere.machine.name;
            found.elsewhere.speedup =
                figures.map(|figures| Speedup { against: format!("{against} on {machine}"), figures });
        }
        for layer in &mut report.layers {
            if layer.precision == report.precisions[row].precision {
                layer.time = node_time(layer, &found).or(layer.time.take());
            }
        }
        let kept = &mut report.precisions[row].measured_elsewhere;
        kept.retain(|other| other.machine.name != found.elsewhere.machine.name);
        kept.push(found.elsewhere);
    }
    notes
}

/// Ratio of the times for a sample, with an interval from those of both medians.
fn speed_up(base: &Times, own: &Times) -> Option<SpeedUp> {
    let median = |times: &Times| {
        let calls: Vec<f64> = times.latencies().iter().map(|ms| ms / times.batch as f64).collect();
        let ascending = sorted(&calls);
        Some((crate::stats::percentile(&ascending, 50.0)?, percentile_interval(&ascending, 50.0)?))
    };
    let ((base, base_interval), (own, own_interval)) = (median(base)?, median(own)?);
    let interval = [base_interval[0] / own_interval[1], base_interval[1] / own_interval[0]];
    Some(SpeedUp { ratio: base / own, interval })
}

fn node_time(layer: &Layer, found: &Figures) -> Option<NodeTime> {
    let engine = found.elsewhere.engine.as_ref()?;
    let holder = engine.layers.iter().filter(|own| own.nodes.contains(&layer.node)).find_map(|own| {
        let time = found.elsewhere.layer_times.iter().find(|time| time.layer == own.name)?;
        Some((own, time))
    });
    let (own, time) = holder?;
    Some(NodeTime {
        machine: found.elsewhere.machine.name.clone(),
        engine_layer: own.name.clone(),
        ms: time.mean_ms,
        share: time.share,
        nodes: own.nodes.len(),
    })
}
