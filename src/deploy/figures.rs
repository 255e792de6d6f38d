//! The figures of one precision from the files that a machine made.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    DeployError,
    identity::{Nodes, check_layers, check_profile},
    machine::ran_by,
    times,
};
use crate::{
    artifact::{ContentHash, Reading, read_regular},
    backend::{
        TensorInfo,
        tensorrt::{EngineLayers, EngineSidecar, Flavour, NumberType},
    },
    bench::Times,
    compare::{OutputMetrics, PairSums, SavedError, SavedOutputs},
    report::{Elsewhere, EngineInside, EngineOutputs, LatencyMs, Machine, TiedBy, elsewhere::UNLIKELY_DB},
    tensor::{Blocks, TensorMap, ValuesView, stacked},
};

/// Decibels by which outputs are nearer to those of another precision's model than to those of their own when they are its.
const OTHER_DB: f64 = 10.0;

/// Decibels by which outputs are nearer to those of their own model than to any other's when they tell the precision.
const OWN_DB: f64 = 3.0;

/// The files of one precision.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    pub times: Option<PathBuf>,
    pub profile: Option<PathBuf>,
    pub layers: Option<PathBuf>,
    /// One file for each call, in order.
    pub outputs: Vec<PathBuf>,
    /// What the outputs are of, where it is not the run's own.
    pub inputs: Option<PathBuf>,
}

impl Parts {
    /// All files but the inputs.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.times, &self.profile, &self.layers].into_iter().flatten().chain(&self.outputs)
    }
}

/// What is known of the precision here.
pub(super) struct Known<'a> {
    pub precision: &'a str,
    /// Hashes of its model: of the file, and with its external data.
    pub hashes: [Option<&'a ContentHash>; 2],
    /// Samples of a timed call, where the run's script says so.
    pub batch: Option<usize>,
    /// Nodes of its model.
    pub nodes: Nodes,
    /// Inputs and outputs of the model.
    pub tensors: Vec<TensorInfo>,
    /// What the float model and this one give for the inputs that were given.
    pub expected: Option<[Blocks; 2]>,
    /// What the models of other precisions give for them, by precision.
    pub others: Vec<(&'a str, Blocks)>,
}

/// Figures, and the calls that they come from.
pub(super) struct Figures {
    pub elsewhere: Elsewhere,
    pub times: Option<Times>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// Reads the files of one precision. `tied` says whether a hash ties them to the model; otherwise names and shapes must.
pub(super) fn figures(parts: &Parts, known: &Known<'_>, machine: Machine, tied: bool) -> Result<Figures, DeployError> {
    let mut found = Figures {
        elsewhere: Elsewhere {
            machine,
            files: Vec::new(),
            on_word: Vec::new(),
            tied_by: if tied { TiedBy::Hash } else { TiedBy::Word },
            latency_ms: None,
            throughput_fps: None,
            speedup: None,
            engine: None,
            layer_times: Vec::new(),
            outputs: None,
        },
        times: None,
        notes: Vec::new(),
    };
    let mut telling = Vec::new();
    if let Some(path) = &parts.layers {
        let (engine, tells) = layers(path, known, &mut found.elsewhere, tied)?;
        found.notes.extend(match &engine {
            Some(engine) => is_really(known.precision, engine),
            None => Some(format!(
                "{}: the engine's layers are not known, for its builder lists none; `calib inspect --json ENGINE` does where a \
                 GPU runs it, and --layers takes that",
                known.precision
            )),
        });
        found.elsewhere.engine = engine;
        telling.extend(tells.then_some(path));
    }
    if let Some(path) = &parts.times {
        let built = found.elsewhere.engine.as_ref().and_then(|engine| fixed_batch(engine, known));
        let batch = built.or(known.batch).unwrap_or(1);
        let times = read(path, |bytes| times::times(bytes, known.precision, batch))?;
        if built.is_none() && !tied {
            found.notes.push(format!(
                "{}: {} does not say how many samples a call had; samples a second are for {batch}, as in deploy.sh",
                known.precision,
                name(path)
            ));
        }
        let latency = times.latency().ok_or_else(|| DeployError::content(path, "it holds no calls"))?;
        let (mode, timing, warnings) = (times.mode.clone(), times.timing, times.warnings());
        found.elsewhere.latency_ms = Some(LatencyMs { figures: latency, timing, mode, warnings });
        found.elsewhere.throughput_fps = times.throughput();
        ran_by(&mut found.elsewhere.machine, &times.mode.provider);
        found.times = Some(times);
    }
    if let Some(path) = &parts.profile {
        let (profile, provider) = read(path, times::profile)?;
        ran_by(&mut found.elsewhere.machine, provider.as_deref().unwrap_or_default());
        let tells = check_profile(path, &profile, known, found.elsewhere.engine.as_ref())?;
        // Next to layers it tells what they tell.
        let tells = tells
            && (found.elsewhere.engine.is_none() || parts.layers.as_ref().is_some_and(|path| telling.contains(&path)));
        telling.extend(tells.then_some(path));
        found.elsewhere.layer_times = profile;
    }
    if !parts.outputs.is_empty() {
        let (outputs, tells) = outputs(&parts.outputs, known, &mut found.elsewhere.machine)?;
        if outputs.non_finite > 0 {
            found.notes.push(format!(
                "{}: the engine's outputs differ in {} NaN or infinite values from those of the same model here",
                known.precision, outputs.non_finite
            ));
        }
        if let Some(db) = OutputMetrics::worst_sqnr_db(&outputs.engine).filter(|&db| db < UNLIKELY_DB) {
            found.notes.push(format!(
                "{}: the engine's outputs have {db:.1} dB against the same model here: they are of other inputs, or the \
                 engine computes something else",
                known.precision
            ));
        }
        found.elsewhere.outputs = Some(outputs);
        telling.extend(parts.outputs.iter().filter(|_| tells));
    }
    if !(tied || telling.is_empty()) {
        found.elsewhere.tied_by = TiedBy::Shapes;
    }
    if !tied {
        let on_word = parts.files().filter(|path| !telling.contains(path));
        found.elsewhere.on_word = on_word.map(|path| name(path)).collect();
    }
    found.elsewhere.files = parts.files().chain(&parts.inputs).map(|path| name(path)).collect();
    Ok(found)
}

/// Name of a file without its folder.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, DeployError> {
    let _reading = Reading::of(path);
    let bytes = read_regular(path).map_err(DeployError::io("read", path))?;
    parse(&bytes).map_err(|reason| DeployError::content(path, reason))
}

/// The engine's layers, from TensorRT's inspector, or from what `calib build` or `calib inspect --json` wrote, `None` where that
/// lists none; and whether they tell the model and the precision.
fn layers(
    path: &Path,
    known: &Known<'_>,
    elsewhere: &mut Elsewhere,
    tied: bool,
) -> Result<(Option<EngineInside>, bool), DeployError> {
    let _reading = Reading::of(path);
    let bytes = read_regular(path).map_err(DeployError::io("read", path))?;
    let text = String::from_utf8_lossy(&bytes);
    let (layers, hashed) = if let Ok(sidecar) = serde_json::from_slice::<EngineSidecar>(&bytes) {
        if !known.hashes.contains(&Some(&sidecar.model_hash)) {
            let reason = format!(
                "it is of an engine that was not built from the run's {}: the model's hash differs",
                known.precision
            );
            return Err(DeployError::content(path, reason));
        }
        let version = sidecar.tensorrt_version;
        let version =
            if sidecar.flavour == Flavour::TensorRtRtx { format!("{} {version}", sidecar.flavour) } else { version };
        elsewhere.machine.tensorrt.get_or_insert_with(|| version.clone());
        ran_by(&mut elsewhere.machine, &version);
        if sidecar.layers.is_empty() {
            return Ok((None, true));
        }
        (sidecar.layers, true)
    } else {
        let parsed = EngineLayers::parse(&text, &known.nodes.own);
        (parsed.map_err(|error| DeployError::content(path, error.to_string()))?.layers, false)
    };
    let engine = EngineInside::new(layers);
    let tells = check_layers(path, &engine, known, tied || hashed)?;
    Ok((Some(engine), tells || hashed))
}

/// Samples of every call of an engine by the shape of its first input, where its layers tell one.
fn fixed_batch(engine: &EngineInside, known: &Known<'_>) -> Option<usize> {
    let declared = known.tensors.first()?;
    let tensors = engine.layers.iter().flat_map(|layer| &layer.inputs);
    let extent = tensors.into_iter().find(|tensor| tensor.name == declared.name)?.shape.first().copied()?;
    usize::try_from(extent).ok().filter(|&extent| extent > 0)
}

/// Says where an engine of 8 bits multiplies in other types.
fn is_really(precision: &str, engine: &EngineInside) -> Option<String> {
    let asked = match precision {
        "int8" => NumberType::Int8,
        "fp8" => NumberType::Fp8,
        _ => return None,
    };
    let share = engine.summary.share(asked);
    (engine.summary.compute_layers > 0 && share < 0.5).then(|| {
        format!(
            "{precision}: the engine is not really {}: {:.0} % of its multiplying layers are",
            asked.name(),
            100.0 * share
        )
    })
}

/// The engine's outputs against what ONNX Runtime gives, and whether they tell the precision.
fn outputs(files: &[PathBuf], known: &Known<'_>, machine: &mut Machine) -> Result<(EngineOutputs, bool), DeployError> {
    let path = files.first().map_or(Path::new(""), PathBuf::as_path);
    let Some([float, model]) = &known.expected else {
        let reason =
            "what ONNX Runtime gives for the same inputs is not known: it lies in the folder `deploy` of the run";
        return Err(DeployError::content(path, reason));
    };
    let invalid = |reason: String| DeployError::content(path, reason);
    let (mut samples, mut calls) = (0, Vec::new());
    for file in files {
        let _reading = Reading::of(file);
        let unread = |error: SavedError| DeployError::content(file, error.to_string());
        let saved = SavedOutputs::open(file).map_err(unread)?;
        ran_by(machine, saved.made_by().unwrap_or_default());
        samples += saved.len();
        calls.extend(saved.all().map_err(unread)?);
    }
    let engine = together(calls);
    let names: BTreeSet<&String> = model.iter().flat_map(TensorMap::keys).collect();
    check_shapes(&names, model, &engine).map_err(invalid)?;
    let sums = |reference: &[TensorMap], target: &[TensorMap]| -> Vec<(&String, PairSums)> {
        let of = |name| {
            let both = reference.iter().zip(target).filter_map(|(r, t)| Some((r.get(name)?, t.get(name)?)));
            // trtexec writes every type as a number; compare in the one that it is read back as.
            let sums = both.map(|(r, t)| {
                PairSums::of(ValuesView::F32(&r.view().to_f32()), ValuesView::F32(&t.view().to_f32()), f32::INFINITY)
            });
            let all = sums.reduce(|mut all, later| {
                all.add(&later);
                all
            });
            Some((name, all?))
        };
        names.iter().copied().filter_map(of).collect()
    };
    let against = |reference: &[TensorMap], target: &[TensorMap]| -> Vec<OutputMetrics> {
        sums(reference, target).into_iter().map(|(name, sums)| sums.metrics(name)).collect()
    };
    let worst = |reference: &[TensorMap]| OutputMetrics::worst_sqnr_db(&against(reference, &engine));
    let own = worst(model).unwrap_or(f64::INFINITY);
    let mut tells = !known.others.is_empty();
    for (other, tensors) in &known.others {
        let Some(there) = worst(tensors) else { continue };
        tells &= own > there + OWN_DB;
        if there > own + OTHER_DB {
            return Err(invalid(format!(
                "its outputs are those of {other} ({there:.0} dB against that model, {own:.0} dB against the one of {}): give \
                 it to {other}, or see whether the engine quantizes at all",
                known.precision
            )));
        }
    }
    let found = EngineOutputs {
        samples,
        engine: against(model, &engine),
        model: against(float, model),
        together: against(float, &engine),
        non_finite: sums(model, &engine).iter().map(|(_, sums)| sums.non_finite.differing).sum(),
    };
    Ok((found, tells))
}

/// Outputs of calls that follow each other, those of one shape together.
fn together(calls: Vec<TensorMap>) -> Blocks {
    let rows = |call: &TensorMap| -> Vec<_> {
        call.iter().map(|(name, tensor)| (name.clone(), tensor.shape().get(1..).map(<[usize]>::to_vec))).collect()
    };
    let mut blocks: Vec<Vec<TensorMap>> = Vec::new();
    for call in calls {
        match blocks.last_mut().filter(|block| rows(&block[0]) == rows(&call)) {
            Some(block) => block.push(call),
            None => blocks.push(vec![call]),
        }
    }
    blocks.into_iter().map(stacked).collect()
}

/// Refuses outputs that have not the shapes of those expected.
fn check_shapes(names: &BTreeSet<&String>, expected: &[TensorMap], found: &[TensorMap]) -> Result<(), String> {
    let shapes = |blocks: &[TensorMap], name: &String| -> Vec<Vec<usize>> {
        blocks.iter().filter_map(|block| Some(block.get(name)?.shape().to_vec())).collect()
    };
    let several =
        |shapes: &[Vec<usize>]| shapes.iter().map(|shape| format!("{shape:?}")).collect::<Vec<_>>().join(", ");
    for &name in names {
        let (found, expected) = (shapes(found, name), shapes(expected, name));
        if found.is_empty() {
            return Err(format!("it has no output `{name}`; it is of another model"));
        }
        if found != expected {
            // Every call has outputs of its own.
            let rest = |shape: &Vec<usize>| shape.get(1..).map(<[usize]>::to_vec);
            let begins =
                found.iter().zip(&expected).all(|(found, expected)| rest(found) == rest(expected) && found <= expected);
            let some = begins && found.len() <= expected.len();
            let calls = if some { ", or not of all calls: give the files of all, in order" } else { "" };
            return Err(format!(
                "its output `{name}` has the shape {}, where {} is expected: it is of other inputs or of another model{calls}",
                several(&found),
                several(&expected)
            ));
        }
    }
    Ok(())
}
