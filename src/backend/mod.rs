//! What executes a model: ONNX Runtime (CPU and CUDA) and TensorRT, behind two traits.
//!
//! A [`Backend`] builds a [`Runner`] from a model; a runner takes named tensors and gives named tensors.

pub mod cuda;
pub mod onnxruntime;
pub mod tensorrt;

use serde::{Deserialize, Serialize};

use crate::{
    onnx::Model,
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

/// Where ONNX Runtime executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionProvider {
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by index.
    Cuda(u32),
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
    /// Let a GPU round `float32` products to 10 bits of mantissa. Off by default: a reference must be exact.
    pub tf32: bool,
}

/// Builds runners.
pub trait Backend {
    /// Prepares `model` for execution.
    fn build(&self, model: &Model, options: &BuildOptions) -> Result<Box<dyn Runner>, BackendError>;
}

/// Called once an output with its name and its values, which are only valid during the call.
pub type Visit<'a> = dyn FnMut(&str, TensorView<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Executes one model.
pub trait Runner: Send {
    /// What the model takes.
    fn inputs(&self) -> &[TensorInfo];

    /// What the model gives, extra outputs last.
    fn outputs(&self) -> &[TensorInfo];

    /// Runs once and shows every output to `visit`, in place: nothing is copied.
    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError>;

    /// Runs once and returns copies of all outputs.
    fn infer(&mut self, inputs: &TensorMap) -> Result<TensorMap, BackendError> {
        let mut outputs = TensorMap::new();
        self.visit(inputs, &mut |name, view| {
            outputs.insert(name.to_owned(), view.to_owned());
            Ok(())
        })?;
        Ok(outputs)
    }
}
