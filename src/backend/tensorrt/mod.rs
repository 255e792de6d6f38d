//! TensorRT engines, in two flavours that exclude each other at compile time: TensorRT 11 (cargo feature `tensorrt`)
//! and TensorRT-RTX 1.x (`tensorrt-rtx`).
//!
//! Libraries are loaded at run time: a binary built with a feature starts and works without them and without a GPU,
//! and one built without says so when an engine is asked for. TensorRT-RTX builds engines on machines without a GPU.

#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
mod builder;
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
mod execution;
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
mod explain;
mod layers;
mod library;
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
mod load;
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
mod log;
mod plan;
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
mod profile;
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
mod runtime;
#[cfg(feature = "tensorrt-rtx")]
mod runtime_cache;
mod sidecar;
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
mod slot;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
pub use execution::EngineRunner;
pub use layers::{EngineLayer, EngineLayers, EngineSummary, EngineTensor, InspectorError, LayerKind, NumberType};
pub use library::{Flavour, Library, find_library, require_library, searched_folders};
pub use plan::{EngineFault, GpuMismatch, Plan, RTX_CAPABILITIES, rtx_runs_on};
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
pub use runtime::Engine;
use serde::{Deserialize, Serialize};
pub use sidecar::{EngineSidecar, SIDECAR_FORMAT_VERSION, sidecar_path};

use super::{Runner, TensorInfo, cuda::CudaError};
use crate::artifact::ArtifactError;

#[cfg(all(feature = "tensorrt", feature = "tensorrt-rtx"))]
compile_error!("the features `tensorrt` and `tensorrt-rtx` exclude each other: their headers cannot share a binary");

/// Why an engine could not be built, read or run.
#[derive(Debug, thiserror::Error)]
pub enum TensorRtError {
    /// The program was compiled without a TensorRT flavour.
    #[error(
        "this program was built without TensorRT; build it with `make build` (TensorRT-RTX) or `make build TENSORRT=11`"
    )]
    NotCompiled,
    /// No library was found.
    #[error("the library of {flavour} was not found; looked in {searched}; {hint}")]
    NotFound {
        /// The flavour this program was built for.
        flavour: Flavour,
        /// Where it was looked for.
        searched: String,
        /// How to get it.
        hint: &'static str,
    },
    /// A library was found and could not be loaded.
    #[error("cannot load {path}: {reason}")]
    Load {
        /// The shared library.
        path: PathBuf,
        /// The loader's message.
        reason: String,
    },
    /// An input has a dynamic extent that no profile covers.
    #[error("input `{input}` has the dynamic shape {shape}: {reason}")]
    Profile {
        /// Name of the input.
        input: String,
        /// Its shape in the model.
        shape: String,
        /// What to pass.
        reason: String,
    },
    /// The parser refused the model.
    #[error("the ONNX parser of {flavour} refused {model}: {reason}")]
    Parse {
        /// Whose parser.
        flavour: Flavour,
        /// The model's file.
        model: PathBuf,
        /// Node and cause, from the parser's own messages.
        reason: String,
    },
    /// The builder refused the network.
    #[error("{flavour} could not build an engine from {model}: {reason}")]
    Build {
        /// Whose builder.
        flavour: Flavour,
        /// The model's file.
        model: PathBuf,
        /// Node and cause, from the builder's own messages.
        reason: String,
    },
    /// Anything else that the library refused.
    #[error("{flavour}: {reason}")]
    Runtime {
        /// Whose runtime.
        flavour: Flavour,
        /// What it said.
        reason: String,
    },
    /// An option that this flavour does not have.
    #[error("{0}")]
    Option(String),
    /// An engine cannot be run.
    #[error("cannot run the engine {}: {fault}", engine.display())]
    Engine {
        /// The engine's file.
        engine: PathBuf,
        /// Why.
        fault: EngineFault,
    },
    /// A file beside the engine cannot be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The GPU cannot be used.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The engine inspector's answer cannot be used.
    #[error(transparent)]
    Inspector(#[from] InspectorError),
}

/// Smallest, most likely and largest shape of every dynamic input, and the same of the values of inputs that hold shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OptimizationProfile {
    /// By input name: `[min, opt, max]`.
    pub shapes: BTreeMap<String, [Vec<usize>; 3]>,
    /// By name of an input whose values decide shapes, one after the other: `[min, opt, max]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, [Vec<i64>; 3]>,
}

/// Options of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EngineOptions {
    /// Shapes of dynamic inputs; needed when the model has any.
    pub profile: OptimizationProfile,
    /// Scratch memory that a kernel may use, at most; absent for all of the device.
    pub workspace_bytes: Option<u64>,
    /// Whether FP32 matrix products may use TF32.
    pub tf32: bool,
    /// Whether later versions of the same major version may load the engine (TensorRT 11).
    pub version_compatible: bool,
    /// Whether other GPUs of Ampere and newer may run the engine (TensorRT 11).
    pub hardware_compatible: bool,
    /// 0 (fast build) to 5 (fast engine).
    pub optimization_level: Option<u8>,
    /// Compute capabilities the engine is for (TensorRT-RTX), e.g. `8.9`; empty for the machine's own GPU.
    pub compute_capabilities: Vec<String>,
}

/// How grave a message of the library is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Severity {
    Error,
    Warning,
    Info,
    Verbose,
}

/// What the library said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// How grave.
    pub severity: Severity,
    /// The text.
    pub text: String,
}

/// Where and how an engine runs.
#[derive(Clone, Debug, Default)]
pub struct RunnerOptions {
    /// Folder of TensorRT's libraries; absent for the usual places.
    pub search_in: Option<PathBuf>,
    /// Index of the GPU.
    pub device: u32,
    /// Record the computation once as a CUDA graph and replay it: takes the time of launching kernels away.
    pub cuda_graph: bool,
    /// File that keeps the kernels which TensorRT-RTX compiles for this GPU; made where it is missing.
    pub runtime_cache: Option<PathBuf>,
}

/// Where the builder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildStep<'a> {
    /// The builder's name for what it does.
    pub phase: &'a str,
    /// Steps of the phase that are done.
    pub done: u64,
    /// Steps of the phase in all.
    pub steps: u64,
}

/// A serialized engine in memory.
#[derive(Clone, Debug)]
pub struct BuiltEngine {
    /// The serialized engine.
    pub bytes: Vec<u8>,
    /// Wall time of parsing and building.
    pub seconds: f64,
    /// Warnings of the parser and the builder.
    pub warnings: Vec<String>,
    /// Version of the library.
    pub tensorrt_version: String,
    /// The builder's list of layers, where it printed one.
    pub listing: Option<String>,
}

impl BuiltEngine {
    /// The layers as the builder listed them, in the words of the engine inspector; needs no GPU. `op_types` gives the
    /// operator of every node of the ONNX model. `None` where the builder printed no list.
    pub fn layers(&self, op_types: &BTreeMap<String, String>) -> Result<Option<EngineLayers>, InspectorError> {
        self.listing.as_deref().map(|listing| EngineLayers::from_listing(listing, op_types)).transpose()
    }
}

impl OptimizationProfile {
    /// A profile for the dynamic inputs of a model: the batch extent (the first) from 1 to `batch`, everything else
    /// from `bound` (the extents behind the batch of `input=1x3x224x224`).
    pub fn for_batch(
        inputs: &[TensorInfo],
        batch: usize,
        bound: &BTreeMap<String, Vec<usize>>,
    ) -> Result<Self, TensorRtError> {
        let mut shapes = BTreeMap::new();
        for input in inputs {
            if input.shape.iter().all(Option::is_some) {
                continue;
            }
            let given = bound.get(&input.name);
            let is_open = |&axis: &usize| {
                axis > 0 && input.shape[axis].is_none() && given.is_none_or(|dims| dims.get(axis).is_none())
            };
            let open: Vec<String> = (0..input.shape.len()).filter(is_open).map(|axis| format!("axis {axis}")).collect();
            let open = open.join(", ");
            let extent = |axis: usize, batch: usize| match (input.shape[axis], given.and_then(|dims| dims.get(axis))) {
                (Some(fixed), _) => Ok(fixed),
                (None, _) if axis == 0 => Ok(batch),
                (None, Some(&dim)) => Ok(dim),
                (None, None) => Err(TensorRtError::Profile {
                    input: input.name.clone(),
                    shape: describe_shape(&input.shape),
                    reason: format!(
                        "give the extent of {open} with --shape {0}=... or a whole profile with --profile {0}=MIN:OPT:MAX",
                        input.name
                    ),
                }),
            };
            let shape = |batch| (0..input.shape.len()).map(|axis| extent(axis, batch)).collect::<Result<Vec<_>, _>>();
            shapes.insert(input.name.clone(), [shape(1)?, shape(batch)?, shape(batch)?]);
        }
        Ok(Self { shapes, ..Self::default() })
    }

    /// A profile for the dynamic inputs of a model that holds every one of `samples` (the shapes of their inputs, and how many
    /// have them), and as many as `batch` of one shape in a call, be they of several rows. The likely shapes are the most frequent ones, the largest of several.
    /// Inputs that no sample tells are left out.
    pub fn for_samples(
        inputs: &[TensorInfo],
        batch: usize,
        samples: &BTreeMap<BTreeMap<String, Vec<usize>>, usize>,
    ) -> Self {
        let is_open = |input: &&TensorInfo| input.shape.contains(&None);
        let of_input = |input: &TensorInfo| {
            let shapes = || {
                let of_input = |shapes: &BTreeMap<_, Vec<usize>>| shapes.get(&input.name).cloned();
                samples.keys().filter_map(of_input).filter(|shape| shape.len() == input.shape.len())
            };
            let (likely, _) = samples.iter().max_by_key(|&(shapes, count)| (count, shapes))?;
            let likely = likely.get(&input.name).filter(|shape| shape.len() == input.shape.len())?.clone();
            let extreme = |of: fn(usize, usize) -> usize| {
                let both =
                    |one: Vec<usize>, other: Vec<usize>| one.into_iter().zip(other).map(|(a, b)| of(a, b)).collect();
                shapes().reduce(both)
            };
            let with_rows = |mut shape: Vec<usize>, rows: &dyn Fn(usize) -> usize| {
                if let (Some(None), Some(first)) = (input.shape.first(), shape.first_mut()) {
                    *first = rows(*first);
                }
                let extents = input.shape.iter().zip(shape);
                extents.map(|(fixed, extent)| fixed.unwrap_or(extent)).collect::<Vec<usize>>()
            };
            let min = with_rows(extreme(usize::min)?, &|rows| rows.min(1));
            let [opt, max] = [likely, extreme(usize::max)?].map(|shape| with_rows(shape, &|rows| rows * batch));
            Some((input.name.clone(), [min, opt, max]))
        };
        Self { shapes: inputs.iter().filter(is_open).filter_map(of_input).collect(), ..Self::default() }
    }

    /// As `--profile` takes it: `input=1x3x32x32:8x3x64x64:8x3x96x64`.
    pub fn describe(&self) -> String {
        let shapes = self
            .shapes
            .iter()
            .map(|(name, triple)| format!("{name}={}", triple.each_ref().map(|each| joined(each)).join(":")));
        let values = self
            .values
            .iter()
            .map(|(name, triple)| format!("{name}={}", triple.each_ref().map(|each| joined(each)).join(":")));
        shapes.chain(values).collect::<Vec<_>>().join(" ")
    }
}

/// `1x3x224x224`.
pub(crate) fn joined<T: ToString>(numbers: &[T]) -> String {
    numbers.iter().map(T::to_string).collect::<Vec<_>>().join("x")
}

/// `?x3x224x224`.
pub fn describe_shape(shape: &[Option<usize>]) -> String {
    let extents: Vec<String> = shape.iter().map(|dim| dim.map_or("?".to_owned(), |n| n.to_string())).collect();
    extents.join("x")
}

/// The flavour this program was compiled for.
pub fn compiled_flavour() -> Option<Flavour> {
    if cfg!(feature = "tensorrt") {
        Some(Flavour::TensorRt)
    } else if cfg!(feature = "tensorrt-rtx") {
        Some(Flavour::TensorRtRtx)
    } else {
        None
    }
}

/// [`build_engine`] parses a model with TensorRT's own ONNX parser and builds an engine, which needs no GPU with TensorRT-RTX. Its
/// `step` is called as the builder goes on and may stop the build by returning false. [`shape_inputs`] parses only, and names
/// the inputs whose values decide shapes.
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
pub use builder::{build_engine, shape_inputs};

/// Always an error in a program without a TensorRT flavour.
#[cfg(not(any(feature = "tensorrt", feature = "tensorrt-rtx")))]
pub fn build_engine(
    _library: &Library,
    _model: &Path,
    _options: &EngineOptions,
    _step: impl Fn(BuildStep<'_>) -> bool + Send + Sync + 'static,
) -> Result<BuiltEngine, TensorRtError> {
    Err(TensorRtError::NotCompiled)
}

/// Always an error in a program without a TensorRT flavour.
#[cfg(not(any(feature = "tensorrt", feature = "tensorrt-rtx")))]
pub fn shape_inputs(_library: &Library, _model: &Path) -> Result<Vec<String>, TensorRtError> {
    Err(TensorRtError::NotCompiled)
}

/// Loads an engine and makes it run.
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
pub fn run_engine(engine: &Path, options: &RunnerOptions) -> Result<Box<dyn Runner>, TensorRtError> {
    let library = require_library(options.search_in.as_deref())?;
    let engine = Engine::load(&library, engine, options.device)?;
    Ok(Box::new(EngineRunner::new(engine, options)?))
}

/// Always an error in a program without a TensorRT flavour.
#[cfg(not(any(feature = "tensorrt", feature = "tensorrt-rtx")))]
pub fn run_engine(_engine: &Path, _options: &RunnerOptions) -> Result<Box<dyn Runner>, TensorRtError> {
    Err(TensorRtError::NotCompiled)
}

/// Says when a runtime cache that was named will be made anew.
#[cfg(feature = "tensorrt-rtx")]
pub fn runtime_cache_warning(path: &Path) -> Result<Option<String>, TensorRtError> {
    runtime_cache::warning(path)
}

/// Without TensorRT-RTX there are no runtime caches.
#[cfg(not(feature = "tensorrt-rtx"))]
pub fn runtime_cache_warning(_path: &Path) -> Result<Option<String>, TensorRtError> {
    Ok(None)
}

/// Layers of an engine; needs a GPU that runs it. `op_types` gives the operator of every node of its ONNX model.
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
pub fn engine_layers(
    engine: &Path,
    options: &RunnerOptions,
    op_types: &BTreeMap<String, String>,
) -> Result<EngineLayers, TensorRtError> {
    let library = require_library(options.search_in.as_deref())?;
    Engine::load(&library, engine, options.device)?.layers(op_types)
}

/// Always an error in a program without a TensorRT flavour.
#[cfg(not(any(feature = "tensorrt", feature = "tensorrt-rtx")))]
pub fn engine_layers(
    _engine: &Path,
    _options: &RunnerOptions,
    _op_types: &BTreeMap<String, String>,
) -> Result<EngineLayers, TensorRtError> {
    Err(TensorRtError::NotCompiled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(shape: &[Option<usize>]) -> TensorInfo {
        TensorInfo { name: "input".to_owned(), element_type: None, shape: shape.to_vec() }
    }

    #[test]
    fn only_dynamic_inputs_get_a_profile_and_the_batch_comes_from_the_option() {
        let fixed = OptimizationProfile::for_batch(&[input(&[Some(1), Some(3)])], 8, &BTreeMap::new()).unwrap();
        assert!(fixed.shapes.is_empty());
        let dynamic = OptimizationProfile::for_batch(&[input(&[None, Some(3)])], 8, &BTreeMap::new()).unwrap();
        assert_eq!(dynamic.shapes["input"], [vec![1, 3], vec![8, 3], vec![8, 3]]);
    }

    #[test]
    fn a_profile_for_samples_holds_all_of_their_shapes() {
        let counted = |shapes: &[([usize; 3], usize)]| {
            let of =
                |&(shape, count): &([usize; 3], usize)| (BTreeMap::from([("input".to_owned(), shape.to_vec())]), count);
            shapes.iter().map(of).collect()
        };
        let open = [input(&[None, Some(3), None])];
        let samples = counted(&[([1, 3, 5], 2), ([2, 3, 7], 2), ([1, 3, 9], 1)]);
        let profile = OptimizationProfile::for_samples(&open, 8, &samples);
        assert_eq!(profile.describe(), "input=1x3x5:16x3x7:16x3x9");
        assert_eq!(OptimizationProfile::for_samples(&open, 1, &samples).describe(), "input=1x3x5:2x3x7:2x3x9");
        // Samples come one by one, whatever batch the model fixes.
        let fixed = [input(&[Some(4), Some(3), None])];
        assert_eq!(OptimizationProfile::for_samples(&fixed, 4, &samples).describe(), "input=4x3x5:4x3x7:4x3x9");
        assert!(OptimizationProfile::for_samples(&[input(&[Some(4)])], 4, &samples).shapes.is_empty());
        assert!(OptimizationProfile::for_samples(&open, 4, &BTreeMap::new()).shapes.is_empty());
    }

    #[test]
    fn an_unbound_dynamic_extent_is_named() {
        let inputs = [input(&[None, None])];
        let error = OptimizationProfile::for_batch(&inputs, 8, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("`input`") && error.contains("axis 1") && error.contains("?x?"), "{error}");
        let three = [input(&[None, None, None])];
        let error = OptimizationProfile::for_batch(&three, 8, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("the extent of axis 1, axis 2 with"), "{error}");
        let bound = BTreeMap::from([("input".to_owned(), vec![1, 64])]);
        let profile = OptimizationProfile::for_batch(&inputs, 4, &bound).unwrap();
        assert_eq!(profile.shapes["input"], [vec![1, 64], vec![4, 64], vec![4, 64]]);
    }
}
