//! What executes a model: ONNX Runtime (CPU and CUDA) and TensorRT, behind two traits.
//!
//! A [`Backend`] builds a [`Runner`] from a model; a runner takes named tensors and gives named tensors.

pub mod cuda;
mod installed;
pub mod onnxruntime;
mod place;
pub mod tensorrt;

use std::{collections::BTreeMap, sync::Arc};

pub use place::{
    Accelerator, BINS, Counter, DeviceView, Given, Inputs, MIN_EXPONENT, Magnitudes, NonFinite, Pair, PieceSums, Sent,
    Show, Tensors,
};
use serde::{Deserialize, Serialize};

use crate::{
    onnx::{
        Model,
        proto::{DimensionValue, TypeValue, ValueInfoProto},
    },
    stats::{mean, median},
    tensor::{ElementType, TensorMap, TensorView},
};

/// Why a model could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The runtime's shared library was not found or could not be loaded.
    #[error("{0}")]
    Library(String),
    /// The runtime refused the model.
    #[error("{runtime} cannot load {model}: {reason}")]
    Build {
        /// Runtime's name.
        runtime: &'static str,
        /// Name of the model (its file, usually).
        model: String,
        /// The runtime's message.
        reason: String,
    },
    /// An input is missing, unknown, or of the wrong type or shape.
    #[error("input `{name}`: {reason}")]
    Input {
        /// Name of the input.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The run failed.
    #[error("{runtime} failed while running: {reason}")]
    Run {
        /// Runtime's name.
        runtime: &'static str,
        /// The runtime's message.
        reason: String,
    },
    /// An execution provider was asked for that cannot be used.
    #[error("execution provider `{provider}` is not available: {reason}")]
    Provider {
        /// Provider's name.
        provider: String,
        /// What is missing.
        reason: String,
    },
    /// The GPU cannot be used, or failed.
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// What a visitor returned (see [`Runner::visit`]).
    #[error(transparent)]
    Visitor(Box<dyn std::error::Error + Send + Sync>),
}

impl BackendError {
    /// Whether a smaller batch may fit where this one did not.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Cuda(cuda::CudaError::OutOfMemory))
    }
}

/// Name, element type and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TensorInfo {
    /// The tensor's name in the model.
    pub name: String,
    /// Type of its elements; `None` when the runtime's type has no counterpart here (strings, sequences).
    pub element_type: Option<ElementType>,
    /// Extents; `None` for a dynamic one.
    pub shape: Vec<Option<usize>>,
}

impl TensorInfo {
    /// What a model's file declares of a tensor; `None` where it declares no tensor or no shape.
    pub fn declared(info: &ValueInfoProto) -> Option<Self> {
        let TypeValue::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()? else { return None };
        let extent = |value: &Option<DimensionValue>| match value {
            Some(DimensionValue::DimValue(extent)) => usize::try_from(*extent).ok(),
            _ => None,
        };
        let shape = tensor.shape.as_ref()?.dim.iter().map(|dimension| extent(&dimension.value)).collect();
        Some(Self { name: info.name().to_owned(), element_type: ElementType::from_onnx(tensor.elem_type()), shape })
    }
}

/// Where ONNX Runtime executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionProvider {
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by index.
    Cuda(u32),
    /// The same, free to round `float32` operands of products to 10 bits of mantissa.
    CudaTf32(u32),
}

impl std::fmt::Display for ExecutionProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::CudaTf32(index) => write!(f, "cuda-tf32:{index}"),
        }
    }
}

impl std::str::FromStr for ExecutionProvider {
    type Err = String;

    /// `cpu`, `cuda`, `cuda:1`, `cuda-tf32`, `cuda-tf32:1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("`{text}` is not one of cpu, cuda[:N], cuda-tf32[:N]");
        let (name, index) = text.split_once(':').unwrap_or((text, "0"));
        let index = index.parse().map_err(|_| invalid())?;
        match name {
            "cpu" if name == text => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(index)),
            "cuda-tf32" => Ok(Self::CudaTf32(index)),
            _ => Err(invalid()),
        }
    }
}

impl ExecutionProvider {
    /// Index of the GPU, if it is one.
    pub fn gpu(self) -> Option<u32> {
        match self {
            Self::Cpu => None,
            Self::Cuda(index) | Self::CudaTf32(index) => Some(index),
        }
    }

    /// How reports name ONNX Runtime on it.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Cpu => "onnxruntime-cpu",
            Self::Cuda(_) => "onnxruntime-cuda",
            Self::CudaTf32(_) => "onnxruntime-cuda-tf32",
        }
    }
}

/// How far the runtime may rewrite the graph before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizationLevel {
    /// Every node runs as it stands.
    Disabled,
    /// Folding and elimination; the result is plain ONNX.
    Basic,
    /// All fusions. The default: what users deploy.
    #[default]
    All,
}

/// Options for [`Backend::build`].
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Threads inside an operator; 0 for all cores.
    pub threads: usize,
    /// Intermediate tensors to return besides the model's own outputs.
    pub extra_outputs: Vec<String>,
    /// Where to execute.
    pub provider: ExecutionProvider,
    /// How far the graph is rewritten.
    pub optimization: OptimizationLevel,
    /// What it runs for.
    pub purpose: Purpose,
    /// On the CPU, run the samples of a batch side by side, each as if it were alone, where the model tells them apart (see
    /// [`Runner::at_once`]); not for tensors that are not results of single samples.
    pub side_by_side: bool,
    /// Be ready for [`Runner::layer_times`], once. Slows every run down.
    pub layer_times: bool,
}

/// So many threads, or for 0 one for each core.
pub(crate) fn threads_or_cores(threads: usize) -> usize {
    if threads == 0 { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) } else { threads }
}

/// What a runner is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Figures: quantizers round in float as they stand, which is what TensorRT computes and twice as fast on a CPU as
    /// integer kernels, and cores are left to those who read samples.
    #[default]
    Analysis,
    /// Times, as users run it: integer kernels take the place of what stands between quantizers, and threads wait for each
    /// other by spinning.
    Deployed,
    /// The same as for analysis for one of many small models side by side: on the CPU, memory goes back after every run.
    Part,
}

/// Builds runners.
pub trait Backend: Sync {
    /// Prepares `model` for execution.
    fn build(&self, model: &Model, options: &BuildOptions) -> Result<Box<dyn Runner>, BackendError>;
}

/// Called once an output with its name and its values, which are only valid during the call.
pub type Visit<'a> = dyn FnMut(&str, TensorView<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Called once a run with the names and values of all outputs, which are only valid during the call.
pub type VisitAll<'a> =
    dyn FnMut(&[(&str, TensorView<'_>)]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Parts of a call on a device, in milliseconds: of one call, or medians over many.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Phases {
    /// Launching the work, on the host.
    pub enqueue_ms: f64,
    /// Copying the inputs to the device.
    pub h2d_ms: f64,
    /// Computing.
    pub compute_ms: f64,
    /// Copying the outputs back.
    pub d2h_ms: f64,
}

/// Time that one layer takes, in milliseconds, over several calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LayerTime {
    /// The backend's name for the layer.
    pub layer: String,
    /// All calls together.
    pub total_ms: f64,
    /// Arithmetic mean of a call.
    pub mean_ms: f64,
    /// Median of a call.
    pub median_ms: f64,
}

impl LayerTime {
    /// Sums up the time of every call; `None` without calls.
    pub fn new(layer: String, milliseconds: &[f64]) -> Option<Self> {
        let (mean_ms, median_ms) = (mean(milliseconds)?, median(milliseconds)?);
        Some(Self { layer, total_ms: milliseconds.iter().sum(), mean_ms, median_ms })
    }
}

/// What a profile calls likely.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LikelyCall {
    /// The shapes of inputs whose shapes are open.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// The inputs that hold shapes.
    pub values: TensorMap,
}

/// Executes one model.
pub trait Runner: Send {
    /// What the model takes.
    fn inputs(&self) -> &[TensorInfo];

    /// What the model gives, extra outputs last.
    fn outputs(&self) -> &[TensorInfo];

    /// Runs once and shows every output to `visit`, in place: nothing is copied.
    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError>;

    /// Runs once and shows all outputs together, for those who look at them in parallel; copies, unless the backend
    /// can show them in place.
    fn visit_all(&mut self, inputs: &TensorMap, visit: &mut VisitAll<'_>) -> Result<(), BackendError> {
        let outputs = self.infer(inputs)?;
        let views: Vec<_> = outputs.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
        visit(&views).map_err(BackendError::Visitor)
    }

    /// Runs once and returns copies of all outputs.
    fn infer(&mut self, inputs: &TensorMap) -> Result<TensorMap, BackendError> {
        let mut outputs = TensorMap::new();
        self.visit(inputs, &mut |name, view| {
            outputs.insert(name.to_owned(), view.to_owned());
            Ok(())
        })?;
        Ok(outputs)
    }

    /// Parts of the last call; `None` where the backend does not measure them.
    fn phases(&self) -> Option<Phases> {
        None
    }

    /// Operators, and the number of their nodes, that compute in `float32` because the runtime has no kernel for them in the
    /// model's precision; `None` when all have.
    fn in_float32(&self) -> Option<&BTreeMap<String, usize>> {
        None
    }

    /// Runs once and shows inputs and outputs together where they lie: in host memory, or on [`Self::accelerator`].
    fn show(&mut self, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        let filled = inputs.filled();
        self.visit_all(&filled, &mut |outputs| {
            show(&Given { inputs: Tensors::from(&*filled), outputs: Tensors::Host(outputs.to_vec()) })
        })
    }

    /// Samples of a batch at least, where the inputs leave their number open: the profile of an engine may begin above one.
    fn least_batch(&self) -> usize {
        1
    }

    /// The call that a profile calls likely, where inputs hold shapes: with other numbers there, others may not fit.
    fn likely_call(&self) -> Option<LikelyCall> {
        None
    }

    /// Samples that run side by side: batches of fewer leave cores idle.
    fn at_once(&self) -> usize {
        1
    }

    /// The device that outputs are left on, if they are.
    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        None
    }

    /// Time of every layer over `calls` runs, which measuring slows down; `None` where the backend cannot tell.
    fn layer_times(&mut self, _inputs: &TensorMap, _calls: usize) -> Result<Option<Vec<LayerTime>>, BackendError> {
        Ok(None)
    }
}
