//! TensorRT engines of a run: built wherever a library is found, one a precision, each with its sidecar; compared and
//! timed where a GPU runs them.

use std::{cell::RefCell, collections::BTreeMap, path::Path};

use super::{Job, Variant, artifacts::file_facts, times::bits};
use crate::{
    backend::{
        BackendError, Runner, TensorInfo,
        cuda::{CudaError, Device},
        tensorrt::{
            EngineLayer, EngineOptions, EngineSidecar, Flavour, LayerKind, Library, OptimizationProfile,
            RTX_CAPABILITIES, RunnerOptions, TensorRtError, compiled_flavour, engine_layers, find_library,
            require_library, rtx_runs_on, run_engine, shape_inputs,
        },
    },
    bench::{self, LAYER_CALLS, Mode, Protocol, SystemClock, Timing, slowdowns},
    compare::{ComparisonResult, OutputMetrics},
    config::UseTensorRt,
    onnx::Model,
    report::{ArtifactFile, EngineInside, Precision},
    session::{
        EngineOrder, PipelineError, Session, Within, declared, describe,
        engine::values_of,
        evaluation::{Evaluation, Outputs},
        target::warn_of_cache,
    },
    tensor::Tensor,
};

/// Compute capabilities that engines are built for where no GPU runs them (TensorRT-RTX).
const WITHOUT_GPU: [&str; 3] = ["8.6", "8.9", "12.0"];

/// How many samples there are of each set of inputs' shapes.
type Shapes = BTreeMap<BTreeMap<String, Vec<usize>>, usize>;

/// The least, likely and largest values of inputs that hold shapes.
type Ranges = BTreeMap<String, [Vec<i64>; 3]>;

/// Kernels that TensorRT-RTX compiled, in the folder of a run.
const RUNTIME_CACHE: &str = "engines/runtime.cache";

/// Warns of kernels of an earlier run that cannot be used, before any work is done.
///
/// # Errors
/// The file is not a runtime cache.
pub(super) fn check_runtime_cache(session: &Session, out: &Path) -> Result<(), PipelineError> {
    let cache = out.join(RUNTIME_CACHE);
    let found = compiled_flavour().filter(|&flavour| flavour == Flavour::TensorRtRtx && cache.exists());
    let found = found.filter(|_| session.config.tensorrt != UseTensorRt::Off);
    if found.and_then(|flavour| find_library(flavour, None)).is_some() {
        warn_of_cache(&session.host, Some(&cache))?;
    }
    Ok(())
}

/// What `--tensorrt require` asks for is known before any work is done.
///
/// # Errors
/// TensorRT or a GPU that runs its engines is missing.
pub fn check(when: UseTensorRt) -> Result<(), PipelineError> {
    if when != UseTensorRt::Require {
        return Ok(());
    }
    let asked = "--tensorrt require asks for engines that are built and run here; --tensorrt auto does what it can";
    let library = require_library(None).within(|| asked.to_owned())?;
    if library.parser.is_none() {
        let file = library.file.display();
        bail!("{asked}: {file} has no ONNX parser beside it, so it builds nothing");
    }
    let device = Device::open(0).within(|| asked.to_owned())?;
    let (major, minor) = device.info().compute_capability;
    if library.flavour == Flavour::TensorRtRtx && !rtx_runs_on((major, minor)) {
        return Err(PipelineError::Input(format!(
            "{asked}: TensorRT-RTX runs on compute capability {RTX_CAPABILITIES}, and {} has {major}.{minor}; use TensorRT 11 \
             (`make build TENSORRT=11`)",
            device.info().name
        )));
    }
    Ok(())
}

/// An engine of a run.
pub(super) struct Engine {
    pub(super) row: Precision,
    pub(super) runner: Option<Box<dyn Runner>>,
    /// What it was measured to give; absent where it did not run.
    pub(super) measured: Option<ComparisonResult>,
}

impl Engine {
    pub(super) fn outputs(&mut self) -> Option<&mut dyn Outputs> {
        self.runner.as_mut().map(|runner| runner as &mut dyn Outputs)
    }

    /// Takes over what a comparison with the reference found.
    pub(super) fn take(&mut self, result: Result<ComparisonResult, PipelineError>) {
        match result {
            Ok(result) => {
                self.row = self.row.clone().with_comparison(&result);
                self.measured = Some(result);
            }
            Err(error) => {
                self.row.error = Some(describe(&error));
                self.runner = None;
            }
        }
    }
}

/// Every running engine with the model that it was built from, by their places among what runs: models first, then
/// engines. `models` are the precisions of the models.
pub(super) fn pairs(models: &[&str], engines: &[Engine]) -> Vec<(usize, usize)> {
    let running = engines.iter().filter(|engine| engine.runner.is_some());
    let place = |(index, engine): (usize, &Engine)| {
        Some((models.iter().position(|name| *name == engine.row.precision)?, models.len() + index))
    };
    running.enumerate().filter_map(place).collect()
}

/// What engines add to the error of their models, in sentences.
pub(super) fn errors(models: &[&str], pairs: &[(usize, usize)], evaluation: &Evaluation) -> Vec<String> {
    let sqnr = |result: &ComparisonResult| {
        let worst = OutputMetrics::worst_sqnr_db(&result.outputs).filter(|db| db.is_finite());
        worst.map_or_else(|| "no error".to_owned(), |db| format!("{db:.1} dB SQNR"))
    };
    let sentence = |(&(model, _), result): (&(usize, usize), &Result<ComparisonResult, PipelineError>)| {
        let quantization = sqnr(evaluation.targets[model].as_ref().ok()?);
        let engine = sqnr(result.as_ref().ok()?);
        let name = models[model];
        Some(format!(
            "{name}: the model itself has {quantization} in ONNX Runtime; its engine differs from that by {engine}"
        ))
    };
    pairs.iter().zip(&evaluation.pairs).filter_map(sentence).collect()
}

/// The layers that the builder listed; where it listed none, those that the engine inspector tells.
fn layers(engine: &Path, sidecar: EngineSidecar, runs: bool) -> Result<Vec<EngineLayer>, PipelineError> {
    if !sidecar.layers.is_empty() {
        return Ok(sidecar.layers);
    }
    if !runs {
        bail!("the builder listed none, and the engine inspector tells them only where the engine runs");
    }
    let operators = Model::load(&sidecar.model)?.op_types();
    Ok(engine_layers(engine, &RunnerOptions::default(), &operators)?.layers)
}

/// Which layers of an engine in 8 bits multiply in another type after all.
fn left_out(precision: &str, inside: &EngineInside) -> Option<String> {
    if !["int8", "fp8"].contains(&precision) {
        return None;
    }
    let multiply = || inside.layers.iter().filter(|layer| layer.kind == LayerKind::Compute);
    let other = |layer: &&EngineLayer| !layer.precision.name().eq_ignore_ascii_case(precision);
    let others: Vec<&EngineLayer> = multiply().filter(other).collect();
    let first = others.first()?;
    Some(format!(
        "{precision}: {} of the {} layers that multiply in the engine do so in another type; the first, in {}, is `{}`",
        others.len(),
        multiply().count(),
        first.precision.name(),
        first.nodes.first().unwrap_or(&first.name)
    ))
}

impl Job<'_> {
    /// Builds the engines, and loads those that this machine can run. What fails is said in the engine's row.
    pub(super) fn engines(&mut self, variants: &[Variant]) -> Result<Vec<Engine>, PipelineError> {
        if self.session.config.tensorrt == UseTensorRt::Off {
            return Ok(Vec::new());
        }
        let found = compiled_flavour().and_then(|flavour| find_library(flavour, None));
        let Some(library) = found.filter(|library| library.parser.is_some()) else {
            let why =
                if compiled_flavour().is_some() { "no library was found" } else { "this program was built without it" };
            self.session.host.note(&format!("TensorRT: {why}, so no engines were built; `calib doctor` tells more"));
            return Ok(Vec::new());
        };
        self.tensorrt = library.version().ok().map(|version| (library.flavour.to_string(), version));
        let mut models = vec![(self.reference_name(), self.session.subject.float.path.clone())];
        models.extend(variants.iter().filter_map(|variant| {
            let artifact = variant.artifact.as_ref()?;
            Some((variant.precision.name(), Some(self.out.join(&artifact.path))))
        }));
        let folder = self.out.join("engines");
        std::fs::create_dir_all(&folder).within(|| format!("cannot make the folder {}", folder.display()))?;
        let runtime_cache = (library.flavour == Flavour::TensorRtRtx).then(|| self.out.join(RUNTIME_CACHE));
        let gpu = Device::open(0);
        let shapes = self.shapes()?;
        let values = self.values(&library, &shapes)?;
        let mut engines = Vec::new();
        for (precision, model) in models {
            self.session.host.check()?;
            let backend = library.backend();
            let mut engine = Engine { row: Precision::new(precision, &backend), runner: None, measured: None };
            let variant = variants.iter().find(|variant| variant.precision.name() == precision);
            engine.row.required = self.session.config.tensorrt == UseTensorRt::Require;
            engine.row.halved = variant.and_then(|variant| variant.halved.clone());
            let built = model
                .ok_or_else(|| PipelineError::input("the model has no file"))
                .and_then(|model| self.engine(&library, gpu.as_ref().ok(), precision, &model, &shapes, &values));
            match built {
                Ok((artifact, sidecar)) => {
                    let path = self.out.join(&artifact.path);
                    engine.row.artifact = Some(artifact);
                    let options = RunnerOptions { runtime_cache: runtime_cache.clone(), ..RunnerOptions::default() };
                    match runnable(&gpu).and_then(|()| run_engine(&path, &options)) {
                        Ok(runner) => engine.runner = Some(runner),
                        Err(error) => engine.row.error = Some(format!("the engine was built, but not run: {error}")),
                    }
                    match layers(&path, sidecar, engine.runner.is_some()) {
                        Ok(layers) => {
                            let inside = EngineInside::new(layers);
                            if let Some(note) = left_out(precision, &inside) {
                                self.session.host.note(&note);
                            }
                            engine.row.engine = Some(inside);
                        }
                        Err(why) => {
                            let why = describe(&why);
                            self.session.host.note(&format!("{precision}: the engine's layers are not known: {why}"));
                        }
                    }
                }
                Err(error) if error.is_about_the_disk() => return Err(error),
                Err(error) => {
                    let reason = describe(&error);
                    self.session.host.warn(&format!("{backend} could not build {precision}: {reason}"));
                    engine.row.error = Some(reason);
                }
            }
            engines.push(engine);
        }
        Ok(engines)
    }

    /// Latency of the engines, in interleaved rounds of their own: they share no device with the reference. What is slower
    /// in a lower precision is noted first, with the reason that the layers give.
    pub(super) fn time_engines(&mut self, engines: &mut [Engine]) -> Result<(), PipelineError> {
        let baseline = self.reference_name();
        let seconds = self.session.config.bench_seconds;
        if seconds <= 0.0 {
            return Ok(());
        }
        let batches = self.session.bench_batches();
        let inputs: Vec<_> = batches.into_iter().filter_map(|batch| self.first_call(batch)).collect();
        let host = self.session.host.clone();
        let runners: Vec<_> = engines
            .iter_mut()
            .filter_map(|engine| {
                let (name, backend) = (engine.row.precision.clone(), engine.row.backend.clone());
                Some((name, backend, RefCell::new(engine.runner.as_mut()?)))
            })
            .collect();
        let mut timed: Vec<bench::Timed<'_, BackendError>> = Vec::new();
        for (batch, inputs) in &inputs {
            timed.extend(runners.iter().map(|(name, backend, runner)| bench::Timed {
                name: name.clone(),
                batch: *batch,
                lane: 0,
                mode: Mode { provider: backend.clone(), threads: 1, transfers: true, cuda_graph: false },
                timing: Timing::Measured,
                call: Box::new(|| {
                    let mut runner = runner.borrow_mut();
                    runner.visit(inputs, &mut |_, _| Ok(host.check()?))?;
                    Ok(runner.phases())
                }),
            }));
        }
        let protocol = Protocol::of(std::time::Duration::from_secs_f64(seconds));
        let times = bench::run(&mut timed, Some(baseline), &protocol, &SystemClock::default())?;
        drop(timed);
        drop(runners);
        if let (Some((_, inputs)), false) = (inputs.first(), slowdowns(&times, bits, |_| None).is_empty()) {
            let mut layers = BTreeMap::new();
            for engine in engines.iter_mut() {
                if let Some(runner) = &mut engine.runner {
                    layers.extend(runner.layer_times(inputs, LAYER_CALLS)?.map(|l| (engine.row.precision.clone(), l)));
                }
            }
            host.note_first(slowdowns(&times, bits, |name| layers.get(name).map(Vec::as_slice)));
        }
        for engine in engines.iter_mut().filter(|engine| engine.runner.is_some()) {
            self.add_times(&mut engine.row, Some(&times));
        }
        Ok(())
    }

    /// The shapes of the run's samples, and how many have them; those of one where all have the same.
    fn shapes(&self) -> Result<Shapes, PipelineError> {
        let session = &self.session;
        let samples = self.split.calibration.iter().chain(&self.split.evaluation);
        let is_framed = session.data.preprocess.as_ref().is_some_and(|preprocess| preprocess.frame().is_some());
        let is_open_from =
            |axis| session.subject.inputs.iter().any(|input| input.shape.iter().skip(axis).any(Option::is_none));
        // Arrays of a sample may have several rows, where the model leaves only the first extent open.
        let changes = is_open_from(0) && !is_framed && !session.config.random_data;
        let mut shapes = Shapes::new();
        // Those that cannot be read are left out of everything.
        for found in samples.map(|&index| session.dataset().shapes(index)).filter_map(Result::ok) {
            session.host.check()?;
            *shapes.entry(found).or_default() += 1;
            if !changes {
                break;
            }
        }
        let profile = self.profile(&session.subject.inputs, &shapes);
        if is_open_from(1) || shapes.len() > 1 {
            session.host.note(&format!("engines are built for the shapes that the data have: {}", profile.describe()));
        }
        Ok(shapes)
    }

    /// What the samples have in inputs that hold shapes; likely are the values of the first that has the likely shapes. Asks
    /// TensorRT's parser, and reads samples, only where an input can hold a shape.
    fn values(&self, library: &Library, shapes: &Shapes) -> Result<Ranges, PipelineError> {
        let session = &self.session;
        let mut values = Ranges::new();
        let candidates: Vec<_> = session.subject.inputs.iter().filter(|input| values_of(input).is_some()).collect();
        let Some(model) = session.subject.float.path.as_ref().filter(|_| !candidates.is_empty()) else {
            return Ok(values);
        };
        // A model that the parser refuses gets no engine, which says why.
        let holding = shape_inputs(library, model).unwrap_or_default();
        if holding.is_empty() {
            return Ok(values);
        }
        let profile = self.profile(&session.subject.inputs, shapes);
        let mut is_likely_known = false;
        for &index in self.split.calibration.iter().chain(&self.split.evaluation) {
            session.host.check()?;
            let Ok(sample) = session.dataset().sample(index) else { continue };
            let has_shape = |name: &String, shape: &[usize]| sample.get(name).is_some_and(|t| t.shape() == shape);
            let is_likely =
                !is_likely_known && profile.shapes.iter().all(|(name, [_, likely, _])| has_shape(name, likely));
            is_likely_known |= is_likely;
            for input in candidates.iter().filter(|input| holding.contains(&input.name)) {
                let Some(found) = sample.get(&input.name).and_then(Tensor::to_integers) else { continue };
                let [min, likely, max] =
                    values.entry(input.name.clone()).or_insert_with(|| [(); 3].map(|()| found.clone()));
                for ((min, max), &value) in min.iter_mut().zip(max).zip(&found) {
                    (*min, *max) = (value.min(*min), value.max(*max));
                }
                if is_likely {
                    *likely = found;
                }
            }
        }
        Ok(values)
    }

    /// Room for all samples in every batch that engines are run with.
    fn profile(&self, inputs: &[TensorInfo], shapes: &Shapes) -> OptimizationProfile {
        let batch = self.session.bench_batches().into_iter().fold(self.session.batch, usize::max);
        OptimizationProfile::for_samples(inputs, batch, shapes)
    }

    fn engine(
        &self,
        library: &Library,
        gpu: Option<&Device>,
        precision: &str,
        model: &Path,
        shapes: &Shapes,
        values: &Ranges,
    ) -> Result<(ArtifactFile, EngineSidecar), PipelineError> {
        let session = &self.session;
        // With --shape, the model as it was given is more open than the models made of it.
        let inputs = if session.config.shape.is_empty() {
            session.subject.inputs.clone()
        } else {
            declared(&Model::load(model)?).0
        };
        let options = EngineOptions {
            profile: OptimizationProfile { values: values.clone(), ..self.profile(&inputs, shapes) },
            compute_capabilities: match (library.flavour, gpu.map(|gpu| gpu.info().compute_capability)) {
                (Flavour::TensorRt, _) => Vec::new(),
                (Flavour::TensorRtRtx, Some((major, minor))) if rtx_runs_on((major, minor)) => {
                    vec![format!("{major}.{minor}")]
                }
                (Flavour::TensorRtRtx, _) => WITHOUT_GPU.map(str::to_owned).into(),
            },
            ..EngineOptions::default()
        };
        let name = format!("engines/{precision}.plan");
        let path = self.out.join(&name);
        let config = session.config.absolute();
        let sidecar = EngineOrder {
            tensorrt: library.clone(),
            model: model.to_owned(),
            reference: config.model,
            data: config.data,
            labels: config.labels,
            precision: Some(precision.to_owned()),
            inputs,
            outputs: session.subject.outputs.clone(),
            options,
        }
        .write(&session.host, &path)?;
        Ok((file_facts(&path, name)?, sidecar))
    }
}

/// Without a GPU, the engine is not even read.
fn runnable(gpu: &Result<Device, CudaError>) -> Result<(), TensorRtError> {
    match gpu {
        Ok(_) => Ok(()),
        Err(error) => Err(error.clone().into()),
    }
}
