//! ONNX file in, serialized engine out, through TensorRT's own parser and builder.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use trtx::{
    BuilderFlag, MemoryPoolType, OptProfileSelector, ProfilingVerbosity, interfaces::MonitorProgress, trtx_sys::Dims64,
};

use super::{
    BuildStep, BuiltEngine, EngineOptions, Library, OptimizationProfile, Severity, TensorRtError,
    explain::with_inputs,
    load,
    log::{Turn, logger},
};

/// Builds an engine; see the re-export in [`super`].
pub fn build_engine(
    library: &Library,
    model: &Path,
    options: &EngineOptions,
    step: impl Fn(BuildStep<'_>) -> bool + Send + Sync + 'static,
) -> Result<BuiltEngine, TensorRtError> {
    let started = Instant::now();
    parsed(library, model, |builder, parser, log| {
        let flavour = library.flavour;
        let build_error = |error: &dyn std::fmt::Display| TensorRtError::Build {
            flavour,
            model: model.to_owned(),
            reason: log.reason(&error.to_string()),
        };
        let runtime_error =
            |error: trtx::Error| TensorRtError::Runtime { flavour, reason: log.reason(&error.to_string()) };
        let mut config = builder.create_config().map_err(runtime_error)?;
        configure(&mut config, options)?;
        check_values(parser.network(), &options.profile.values).map_err(|reason| build_error(&reason))?;
        if options.profile != OptimizationProfile::default() {
            let mut profile = builder.creata_optimization_profile().map_err(runtime_error)?;
            fill_profile(&mut profile, &options.profile)
                .and_then(|()| config.add_optimization_profile(&mut profile))
                .map_err(|error| build_error(&error))?;
        }
        let progress = Progress { step, steps: Mutex::default() };
        config.set_progress_monitor(Box::new(progress)).map_err(runtime_error)?;
        let engine =
            builder.build_serialized_network(parser.network_mut(), &mut config).map_err(|error| build_error(&error))?;
        Ok(BuiltEngine {
            bytes: engine.as_ref().to_vec(),
            seconds: started.elapsed().as_secs_f64(),
            warnings: log.messages(Severity::Warning),
            listing: log.listing(),
            tensorrt_version: library.version()?,
        })
    })
}

/// Names of the inputs whose values decide shapes; see the re-export in [`super`].
pub fn shape_inputs(library: &Library, model: &Path) -> Result<Vec<String>, TensorRtError> {
    parsed(library, model, |_, parser, log| {
        let inputs = inputs(parser.network()).map_err(|error| TensorRtError::Runtime {
            flavour: library.flavour,
            reason: log.reason(&error.to_string()),
        })?;
        Ok(inputs.into_iter().filter_map(|(name, holds_shape)| holds_shape.then_some(name)).collect())
    })
}

/// Does something with a model's network.
fn parsed<T>(
    library: &Library,
    model: &Path,
    work: impl for<'p> FnOnce(&mut trtx::Builder<'static>, &'p mut trtx::OnnxParser<'p>, &Turn) -> Result<T, TensorRtError>,
) -> Result<T, TensorRtError> {
    let flavour = library.flavour;
    load::builder(library)?;
    let log = Turn::take();
    let runtime_error = |error: trtx::Error| TensorRtError::Runtime { flavour, reason: log.reason(&error.to_string()) };
    let parse_error = |reason: String| TensorRtError::Parse { flavour, model: model.to_owned(), reason };
    // Declared first, dropped last: the parser's weights point into the builder.
    let logger = logger().map_err(runtime_error)?;
    let mut builder = trtx::Builder::new(logger).map_err(runtime_error)?;
    let network = builder.create_network(0).map_err(runtime_error)?;
    let mut parser = trtx::OnnxParser::new(network, logger).map_err(runtime_error)?;
    let path = model.to_str().ok_or_else(|| parse_error("the path is not valid UTF-8; rename the file".to_owned()))?;
    parser
        .parse_from_file(path, trtx::Severity::Warning as i32)
        .map_err(|error| parse_error(with_inputs(log.reason(&error.to_string()), model)))?;
    work(&mut builder, &mut parser, &log)
}

/// The network's inputs, and whether their values decide shapes.
fn inputs(network: &trtx::NetworkDefinition<'_>) -> trtx::Result<Vec<(String, bool)>> {
    let input = |index| {
        let input = network.input(index)?;
        Ok((input.name(network)?, input.is_shape_tensor(network)))
    };
    (0..network.nb_inputs()).map(input).collect()
}

fn configure(config: &mut trtx::BuilderConfig<'_>, options: &EngineOptions) -> Result<(), TensorRtError> {
    config.set_profiling_verbosity(ProfilingVerbosity::kDETAILED);
    if options.tf32 {
        config.set_flag(BuilderFlag::kTF32);
    } else {
        config.clear_flag(BuilderFlag::kTF32);
    }
    if let Some(bytes) = options.workspace_bytes {
        config.set_memory_pool_limit(MemoryPoolType::kWORKSPACE, usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    if let Some(level) = options.optimization_level {
        config.set_builder_optimization_level(i32::from(level));
    }
    flavour_options(config, options)
}

#[cfg(feature = "tensorrt")]
fn flavour_options(config: &mut trtx::BuilderConfig<'_>, options: &EngineOptions) -> Result<(), TensorRtError> {
    if options.version_compatible {
        config.set_flag(BuilderFlag::kVERSION_COMPATIBLE);
    }
    if options.hardware_compatible {
        config.set_hardware_compatibility_level(trtx::HardwareCompatibilityLevel::kAMPERE_PLUS);
    }
    if options.compute_capabilities.is_empty() {
        Ok(())
    } else {
        Err(TensorRtError::Option(
            "--compute-capability is an option of TensorRT-RTX; TensorRT builds for the GPU it runs on (see --hardware-compatible)"
                .to_owned(),
        ))
    }
}

#[cfg(feature = "tensorrt-rtx")]
fn flavour_options(config: &mut trtx::BuilderConfig<'_>, options: &EngineOptions) -> Result<(), TensorRtError> {
    use trtx::ComputeCapability as Cc;
    if options.version_compatible || options.hardware_compatible {
        return Err(TensorRtError::Option(
            "version and hardware compatibility are options of TensorRT 11; TensorRT-RTX engines run on every \
             --compute-capability they were built for"
                .to_owned(),
        ));
    }
    let capabilities = options
        .compute_capabilities
        .iter()
        .map(|name| match name.as_str() {
            "7.5" => Ok(Cc::kSM75),
            "8.0" => Ok(Cc::kSM80),
            "8.6" => Ok(Cc::kSM86),
            "8.9" => Ok(Cc::kSM89),
            "12.0" => Ok(Cc::kSM120),
            "12.1" => Ok(Cc::kSM121),
            other => Err(TensorRtError::Option(format!(
                "TensorRT-RTX builds for the compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1, not for {other}"
            ))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let refused = |error: trtx::Error| TensorRtError::Option(format!("compute capabilities refused: {error}"));
    if !capabilities.is_empty() {
        config.set_nb_compute_capabilities(capabilities.len() as i32).map_err(refused)?;
        for (index, capability) in capabilities.into_iter().enumerate() {
            config.set_compute_capability(capability, index as i32).map_err(refused)?;
        }
    }
    Ok(())
}

fn fill_profile(
    profile: &mut trtx::optimization_profile::OptimizationProfile<'_>,
    given: &OptimizationProfile,
) -> trtx::Result<()> {
    let selectors = [OptProfileSelector::kMIN, OptProfileSelector::kOPT, OptProfileSelector::kMAX];
    for (input, triple) in &given.shapes {
        for (selector, shape) in selectors.into_iter().zip(triple) {
            let extents: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
            profile.set_dimensions(input, selector, &Dims64::from_slice(&extents))?;
        }
    }
    for (input, triple) in &given.values {
        for (selector, values) in selectors.into_iter().zip(triple) {
            profile.set_shape_values_v2(input, selector, values)?;
        }
    }
    Ok(())
}

/// Inputs whose values decide shapes need values in the profile, and no others have any.
fn check_values(network: &trtx::NetworkDefinition<'_>, values: &BTreeMap<String, [Vec<i64>; 3]>) -> Result<(), String> {
    for (name, holds_shape) in inputs(network).map_err(|error| error.to_string())? {
        match (holds_shape, values.contains_key(&name)) {
            (true, false) => {
                return Err(format!(
                    "the values of input `{name}` decide shapes; give the least, the likely and the largest with \
                     --profile {name}=MIN:OPT:MAX, in each an x between values, as in --profile {name}=1x64:8x64:32x64"
                ));
            }
            (false, true) => {
                return Err(format!(
                    "the values of input `{name}` decide no shape, and its own is fixed; leave --profile {name}=... out"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

struct Progress<F> {
    step: F,
    /// Steps of every phase that has begun.
    steps: Mutex<BTreeMap<String, u64>>,
}

impl<F: Fn(BuildStep<'_>) -> bool> Progress<F> {
    fn tell(&self, phase: &str, done: i32) -> bool {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner).get(phase).copied().unwrap_or(0);
        (self.step)(BuildStep { phase, done: u64::try_from(done).unwrap_or(0), steps })
    }
}

impl<F: Fn(BuildStep<'_>) -> bool + Send + Sync> MonitorProgress for Progress<F> {
    fn phase_start(&self, phase_name: &str, _parent_phase: Option<&str>, num_steps: i32) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.insert(phase_name.to_owned(), u64::try_from(num_steps).unwrap_or(0));
        drop(steps);
        self.tell(phase_name, 0);
    }

    fn step_complete(&self, phase_name: &str, step: i32) -> ControlFlow<()> {
        if self.tell(phase_name, step + 1) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn phase_finish(&self, _phase_name: &str) {}
}
