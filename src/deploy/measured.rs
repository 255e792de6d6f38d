//! Figures from another machine, taken into a report.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    DEPLOY, DeployError, Manifest,
    figures::{Figures, Known, Parts, figures, name},
    folder::sha256,
    identity::Nodes,
    machine::machine,
    pack::unpack,
    script::outputs_of,
};
use crate::{
    artifact::{ContentHash, same_file},
    backend::TensorInfo,
    bench::{SpeedUp, Times},
    npz::read_npz,
    onnx::Model,
    report::{Elsewhere, Layer, Machine, NodeTime, Precision, Report, Speedup},
    stats::{percentile_interval, sorted},
    tensor::Blocks,
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
    /// `trtexec --exportOutput`, or what Polygraphy saved: a file for each call, in order.
    pub outputs: BTreeMap<String, Vec<PathBuf>>,
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
    let written = text("machine.txt").unwrap_or_default();
    // A name that was given stands for one that is not there.
    let named = called.map(|called| format!("board: {called}\n")).unwrap_or_default();
    let there = machine(&format!("{written}\n{named}"), &logs).ok_or_else(|| {
        DeployError::content(
            archive,
            "it does not tell the machine that measured; say --machine, e.g. \"Jetson Orin Nano\"",
        )
    })?;
    let float = expected(folder, &manifest, &manifest.reference)?;
    let models = models(report, run);
    let mut all = Vec::new();
    let mut notes = Vec::new();
    for model in &manifest.models {
        let precision = &model.precision;
        let Some(row) = row(report, precision, Some(&model.hash)) else {
            let reason = format!("its model of {precision} is not one of this report: another run deployed it");
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
        let archive_of_outputs = file("outputs", "npz");
        let is_in_calls = archive_of_outputs.is_none();
        let mut whole = Parts {
            times: file("times", "json"),
            profile: file("profile", "json"),
            layers: file("layers", "json"),
            outputs: archive_of_outputs.map_or_else(|| of_calls(&manifest, &file), |file| vec![file]),
            inputs: None,
        };
        if is_in_calls && (1..manifest.calls).contains(&whole.outputs.len()) {
            let (there, calls) = (whole.outputs.len(), manifest.calls);
            notes.push(format!(
                "{precision}: outputs of {there} of {calls} calls came back; without the others they are not compared"
            ));
            whole.outputs.clear();
        }
        let known = Known {
            precision,
            hashes: [Some(&model.hash), model.hash_with_data.as_ref()],
            batch: Some(model.batch),
            nodes: nodes(&models, report, precision),
            tensors: tensors(report),
            expected: float.clone().zip(expected(folder, &manifest, precision)?).map(Into::into),
            others: others(folder, &manifest, precision)?,
        };
        if whole.times.is_none() && whole.layers.is_none() {
            let said = log(precision, "build").as_deref().and_then(last_error).unwrap_or_default();
            notes.push(format!("{precision}: nothing was measured on {}{said}", there.name));
            continue;
        }
        unchanged(&text, &measured, &whole)?;
        let found = tolerant(&whole, &known, &there, &mut notes);
        if let Some(reason) = repeated(report, &all, row, &found.elsewhere) {
            return Err(DeployError::content(archive, reason));
        }
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
    outputs_for: &dyn Fn(&Path, &Path) -> Result<Blocks, E>,
) -> Result<Vec<String>, E> {
    let deployed = run.join(DEPLOY);
    let manifest = deployed.is_dir().then(|| Manifest::read(&deployed)).transpose().map_err(DeployError::from)?;
    let single = [&files.times, &files.profile, &files.layers].into_iter().flat_map(BTreeMap::keys);
    let precisions: BTreeSet<&String> = single.chain(files.outputs.keys()).collect();
    given_once(files)?;
    let models = models(report, run);
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
            outputs: files.outputs.get(precision).cloned().unwrap_or_default(),
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
        let hash = own.artifact.as_ref().map_or(&report.model.hash, |artifact| &artifact.hash);
        let deployed_as = manifest.as_ref().and_then(|manifest| manifest.model(precision));
        let hashes = [Some(hash), deployed_as.and_then(|model| model.hash_with_data.as_ref())];
        let batch = deployed_as.map(|model| model.batch);
        let others = match (&parts.inputs, &manifest) {
            (Some(inputs), _) => {
                let mut others: Vec<(&str, Blocks)> = Vec::new();
                for other in report.precisions.iter().filter(|other| other.precision != *precision) {
                    let known = others.iter().any(|(known, _)| *known == other.precision);
                    let model = model_of(report, Some(other), run).ok();
                    if let (false, Some(model)) = (known || !(other.reference || other.artifact.is_some()), model) {
                        others.push((&other.precision, outputs_for(&model, inputs)?));
                    }
                }
                others
            }
            (None, Some(manifest)) => others(&deployed, manifest, precision)?,
            (None, None) => Vec::new(),
        };
        let (nodes, tensors) = (nodes(&models, report, precision), tensors(report));
        let known = Known { precision, hashes, batch, nodes, tensors, expected, others };
        let found = figures(&parts, &known, unnamed(called), false)?;
        misnamed(report, precision, &parts, &found.elsewhere)?;
        if let Some(reason) = repeated(report, &all, row, &found.elsewhere) {
            let path = parts.times.as_ref().or(parts.profile.as_ref()).map_or(run, PathBuf::as_path);
            return Err(DeployError::content(path, reason).into());
        }
        all.push((row, found));
    }
    Ok(take(report, all))
}

/// Refuses a file that is given twice: for two precisions, or for two calls of one.
fn given_once(files: &Files) -> Result<(), DeployError> {
    let single = [&files.times, &files.profile, &files.layers].map(|files| files.iter().collect::<Vec<_>>());
    let outputs = files.outputs.iter().flat_map(|(precision, calls)| calls.iter().map(move |call| (precision, call)));
    for of_kind in single.into_iter().chain([outputs.collect()]) {
        for (place, (precision, path)) in of_kind.iter().enumerate() {
            if let Some((other, _)) = of_kind[..place].iter().find(|(_, other)| same_file(other, path)) {
                let twice = if other == precision {
                    format!("twice for {other}")
                } else {
                    format!("for {other} and {precision}")
                };
                return Err(DeployError::content(
                    path,
                    format!("the same file is given {twice}; each has one of its own"),
                ));
            }
        }
    }
    Ok(())
}

/// Whether the files are still those that the script left, as far as it noted their hashes.
fn unchanged(text: &dyn Fn(&str) -> Option<String>, measured: &Path, parts: &Parts) -> Result<(), DeployError> {
    let sums = text("files.txt").unwrap_or_default();
    for path in parts.files() {
        let ending = format!("measured/{}", name(path));
        let noted = sums.lines().find_map(|line| line.strip_suffix(&ending)?.split_whitespace().next());
        if noted.is_some_and(|noted| sha256(path).is_ok_and(|own| own != noted)) {
            let reason = format!("{} is not the file that deploy.sh left there: its SHA-256 differs", name(path));
            return Err(DeployError::content(measured, reason));
        }
    }
    Ok(())
}

/// The files of the outputs of calls, as far as they came back.
fn of_calls(manifest: &Manifest, file: &dyn Fn(&str, &str) -> Option<PathBuf>) -> Vec<PathBuf> {
    (0..manifest.calls).filter_map(|call| file(&outputs_of(call), "json")).collect()
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
                // Without a file of its own, an error takes all of them with it.
                let is_about = |file: &Path| error.path().is_none_or(|path| path == file);
                for part in [times, profile, layers] {
                    part.take_if(|file| is_about(file));
                }
                if outputs.iter().any(|file| is_about(file)) {
                    outputs.clear();
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

/// A model, where it is still the one of this hash, which of artifacts is that of the file without external data.
fn load_as(path: &Path, hash: &ContentHash) -> Option<Model> {
    let is_it = |model: &Model| model.hash == *hash || ContentHash::of_file(path).is_ok_and(|own| own == *hash);
    Model::load(path).ok().filter(is_it)
}

/// The same, where it is still the run's.
fn model_of(report: &Report, row: Option<&Precision>, run: &Path) -> Result<PathBuf, DeployError> {
    let (path, hash) = file_of(report, row, run);
    if load_as(&path, hash).is_some() {
        return Ok(path);
    }
    let reason = "it is not there any more as the run had it, so what it gives for these inputs cannot be computed";
    Err(DeployError::content(&path, reason))
}

/// Operators by node of the model of every precision, as far as it still lies in the folder of the run; of others what the
/// report knows of the graph.
fn models<'a>(report: &'a Report, run: &Path) -> BTreeMap<&'a str, BTreeMap<String, String>> {
    let nodes = |row: &'a Precision| {
        let (path, hash) = file_of(report, Some(row), run);
        let model = load_as(&path, hash);
        let graph = report.graph.iter().flat_map(|graph| &graph.nodes);
        let known = || graph.map(|node| (node.name.clone(), node.op_type.clone())).collect();
        let mut nodes: BTreeMap<String, String> = model.map_or_else(known, |model| model.op_types());
        nodes.remove("");
        (row.precision.as_str(), nodes)
    };
    report.precisions.iter().rev().filter(|row| row.reference || row.artifact.is_some()).map(nodes).collect()
}

/// Nodes of the model of a precision, and of the others.
fn nodes(models: &BTreeMap<&str, BTreeMap<String, String>>, report: &Report, precision: &str) -> Nodes {
    let reference = report.precisions.iter().find(|row| row.reference).map_or("", |row| &row.precision);
    Nodes::new(models, precision, reference)
}

/// Inputs and outputs of the models, which all precisions share.
fn tensors(report: &Report) -> Vec<TensorInfo> {
    report.model.inputs.iter().chain(&report.model.outputs).cloned().collect()
}

/// Why figures are not those of a precision but another's, where they repeat these to the last digit.
fn repeated(report: &Report, all: &[(usize, Figures)], row: usize, found: &Elsewhere) -> Option<String> {
    let before =
        report.precisions.iter().flat_map(|other| other.measured_elsewhere.iter().map(move |there| (other, there)));
    let now = all.iter().map(|(row, figures)| (&report.precisions[*row], &figures.elsewhere));
    let own = &report.precisions[row].precision;
    let same = |there: &Elsewhere| {
        let calls = |of: &Elsewhere| of.latency_ms.as_ref().map(|latency| latency.figures.clone());
        let times = (calls(found).is_some() && calls(found) == calls(there)).then_some("times");
        let layers = (!found.layer_times.is_empty() && found.layer_times == there.layer_times).then_some("layer times");
        times.or(layers)
    };
    let mut others = before.chain(now).filter(|(other, _)| other.precision != *own);
    let (other, what) = others.find_map(|(other, there)| Some((&other.precision, same(there)?)))?;
    Some(format!("its {what} of {own} are those of {other} to the last digit; give each precision its own file"))
}

/// What the script calls its files tells the precision of one that says nothing else of it.
fn misnamed(report: &Report, precision: &str, parts: &Parts, found: &Elsewhere) -> Result<(), DeployError> {
    for path in parts.files() {
        let file = name(path);
        let called = file.split('.').next().unwrap_or_default();
        let other = report.precisions.iter().any(|row| row.precision == called && called != precision);
        if other && found.on_word.contains(&file) {
            let reason = format!("deploy.sh calls a file of {called} so; rename it if it is of {precision}");
            return Err(DeployError::content(path, reason));
        }
    }
    Ok(())
}

fn expected(folder: &Path, manifest: &Manifest, precision: &str) -> Result<Option<Blocks>, DeployError> {
    let file = manifest.model(precision).and_then(|model| model.expected.as_ref());
    // The manifest comes from elsewhere: its paths are not followed.
    let file = file.map(|_| folder.join("expected").join(format!("{precision}.npz"))).filter(|file| file.is_file());
    Ok(file.map(|file| read_npz(&file)).transpose()?.map(|outputs| vec![outputs]))
}

/// The same of all other precisions.
fn others<'a>(folder: &Path, manifest: &'a Manifest, precision: &str) -> Result<Vec<(&'a str, Blocks)>, DeployError> {
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
        if report.layers_of().is_some_and(|about| about.precision == report.precisions[row].precision) {
            for layer in &mut report.layers {
                if let Some(time) = node_time(layer, &found) {
                    layer.times.retain(|other| other.machine != time.machine);
                    layer.times.push(time);
                }
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
