//! What can be typed to build engines and to time them.

use std::path::PathBuf;

use clap::Args;

use super::{ConfigArgs, DataArgs, FileArgs, RuntimeArgs};

/// `calib build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub model: FileArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub config: ConfigArgs,
    /// Engine to write; its sidecar goes beside it with `.json` appended
    #[arg(short, long, value_name = "FILE", default_value = "engine.plan")]
    pub output: PathBuf,
    /// Float model to compare the engine with later [default: the configuration's, and so are data, labels and shapes]
    #[arg(long, value_name = "FILE")]
    pub reference: Option<PathBuf>,
    /// Data to compare on later
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Labels of that data
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Largest batch of a dynamic batch axis
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch: usize,
    /// Extents of other dynamic axes, e.g. input=1x3x224x224 (repeatable)
    #[arg(long, value_name = "NAME=DIMS")]
    pub shape: Vec<String>,
    /// Optimization profile of a dynamic input, e.g. input=1x3x224x224:8x3x224x224:32x3x224x224, or of the values of an input
    /// that holds a shape (repeatable)
    #[arg(long, value_name = "NAME=MIN:OPT:MAX")]
    pub profile: Vec<String>,
    /// Compute capabilities the engine is for (TensorRT-RTX), e.g. 8.6,8.9 [default: this machine's GPU]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub compute_capability: Vec<String>,
    /// Scratch memory that a kernel may use, in MiB [default: all of the device]
    #[arg(long, value_name = "MIB")]
    pub workspace_mb: Option<u64>,
    /// Let FP32 products use TF32
    #[arg(long)]
    pub tf32: bool,
    /// Let later versions of TensorRT load the engine (TensorRT 11)
    #[arg(long)]
    pub version_compatible: bool,
    /// Let other GPUs of Ampere and newer run the engine (TensorRT 11)
    #[arg(long)]
    pub hardware_compatible: bool,
    /// 0 (fast build) to 5 (fast engine)
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=5))]
    pub optimization_level: Option<u8>,
    /// Folder of TensorRT's libraries [default: $CALIB_TENSORRT_DIR, .runtime/, the system]
    #[arg(long, value_name = "DIR")]
    pub tensorrt_dir: Option<PathBuf>,
}

/// `calib bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What is measured: ort, ort:FILE.onnx, ort-cuda[:FILE.onnx], ort-cuda-tf32[:FILE.onnx], FILE.onnx or trt:FILE.plan; the first is the base of
    /// speed-ups
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<String>,
    /// Float ONNX model that `ort` stands for
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub config: ConfigArgs,
    /// Least seconds of measurement for each target
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub seconds: f64,
    /// Least number of rounds
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub rounds: usize,
    /// Write every call's time, as trtexec's --exportTimes does
    #[arg(long, value_name = "FILE")]
    pub export_times: Option<PathBuf>,
    /// File that keeps the kernels which TensorRT-RTX compiles for this GPU; made where it is missing
    #[arg(long, value_name = "FILE")]
    pub runtime_cache: Option<PathBuf>,
    /// Record engines once as CUDA graphs and replay them
    #[arg(long)]
    pub cuda_graph: bool,
    /// Also tell the time of every layer, taken in calls of their own after the measurement
    #[arg(long)]
    pub layer_times: bool,
    /// Write every layer's time, as trtexec's --exportProfile does; taken in calls of their own
    #[arg(long, value_name = "FILE")]
    pub export_profile: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub data: DataArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub runtime: RuntimeArgs,
}
