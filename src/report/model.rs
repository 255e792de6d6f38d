//! The types of `report.json`. Names are a published contract (`docs/report.schema.json`); what may be absent is absent
//! from the JSON as well. Floats must be finite: JSON has no other.

mod calibration;
mod layers;
mod measured;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    analyse::advice::Advice,
    artifact::{ContentHash, Tool},
    backend::{
        TensorInfo,
        tensorrt::{EngineLayer, EngineSummary},
    },
    bench::{Latency, Mode, SpeedUp, Throughput, Timing},
    compare::{
        Accuracy, Agreement, Classes, DetectionResult, Flip, GateResult, OutputKind, OutputMetrics, Segmentation, TopK,
    },
    quantize::{Halved, ModelGraph},
};

pub use calibration::{Calibration, CandidateResult, Recovery, RecoveryRow};
pub use layers::{Histogram, Layer};
pub use measured::{Elsewhere, EngineLayerTime, EngineOutputs, Machine, NodeTime, TiedBy};

/// Everything a run found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// [`super::REPORT_FORMAT_VERSION`].
    pub format_version: u32,
    /// What wrote the report.
    pub tool: Tool,
    /// When the run ended (RFC 3339, UTC).
    pub created: String,
    /// The command line, one argument an element, the program first.
    pub command: Vec<String>,
    /// The whole configuration in force, as TOML: the content of `run.toml`.
    pub config: String,
    /// The machine.
    pub environment: Environment,
    /// The float model.
    pub model: ModelInfo,
    /// The samples.
    pub dataset: DatasetInfo,
    /// Absent when nothing was calibrated (ranges came from a file, or no precision needed them).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// How INT8 was brought nearer to float; absent where that was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// How FP8 was; absent where FP8 was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_fp8: Option<Recovery>,
    /// Passed or not, and why.
    pub verdict: Verdict,
    /// One entry for each precision that was asked for; the reference first.
    pub precisions: Vec<Precision>,
    /// Quantization error by layer, in the order of execution; empty when it was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
    /// The graph of the quantized model's float original, with what was decided for every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<ModelGraph>,
    /// What computed these errors: `onnxruntime-cpu`, `onnxruntime-cuda`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_backend: Option<String>,
    /// Evaluation samples that they were measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_samples: Option<usize>,
    /// What to do, the most useful first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Advice>,
    /// What a reader must know to judge the figures (calibration and evaluation overlap, few samples, ...).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What was waited for, in order: the seconds add up to the wall time from the opening of the model until the report
    /// was put together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<StageTime>,
    /// Small pictures of samples in `flips`, by sample: `data:image/jpeg;base64,...` (JPEG, PNG or WebP).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub thumbnails: BTreeMap<String, String>,
}

impl Report {
    /// The precision that `layers` and `graph` are about: the first of 8 bits, whatever single nodes of it are in.
    pub fn layers_of(&self) -> Option<&Precision> {
        let of_8_bits = |row: &&Precision| matches!(&*row.precision, "int8" | "fp8") && row.quantized_nodes.is_some();
        self.precisions.iter().find(of_8_bits)
    }
}

/// What was waited for in one stage of the work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageTime {
    /// What was done (`opening`, `observing`, `comparing`, ...).
    pub stage: String,
    /// Wall time.
    pub seconds: f64,
    /// Processor time of all threads together; 0 where the system does not tell.
    pub cpu_seconds: f64,
    /// Sessions of ONNX Runtime that were built.
    pub sessions: u64,
    /// Passes over samples that were begun.
    pub passes: u64,
    /// Samples that were read and preprocessed, and pictures that were decoded for people.
    pub samples_read: u64,
}

/// The machine that ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// Operating system and architecture (`Linux 6.8 x86_64`).
    pub os: String,
    /// The CPU's own name.
    pub cpu_model: String,
    /// Logical cores.
    pub cores: usize,
    /// Clock of the fastest core when the report was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_mhz: Option<u32>,
    /// Temperature of the processor then, in degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_temperature_c: Option<u32>,
    /// Main memory.
    pub memory_bytes: u64,
    /// Version of each library that was loaded, by name.
    pub libraries: BTreeMap<String, String>,
    /// The GPU that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// Its own name.
    pub name: String,
    /// Compute capability (`8.9`).
    pub compute_capability: String,
    /// Device memory.
    pub memory_bytes: u64,
    /// Version of the driver, and of the CUDA that it offers.
    pub driver: String,
    /// Clock of the multiprocessors when it was read: at the end of the benchmark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u32>,
    /// Temperature then, in degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
}

/// The float model that everything is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelInfo {
    /// Its file.
    pub path: String,
    /// Hash of the file.
    pub hash: ContentHash,
    /// Size of the file with its external data.
    pub bytes: u64,
    /// What it takes.
    pub inputs: Vec<TensorInfo>,
    /// What it gives.
    pub outputs: Vec<TensorInfo>,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of values in the initializers.
    pub parameters: u64,
    /// Number of floating-point values in its constants, by their type (`float32`, `float16`, ...), and of the codes of quantized
    /// weights (`int8`, `fp8`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, u64>,
    /// Floating-point types that its nodes compute in, and `int8` or `fp8` where it is quantized already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arithmetic: Vec<String>,
    /// Version of the default operator set.
    pub opset: i64,
    /// What wrote the model, by its own account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
}

/// The samples that were used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetInfo {
    /// Folder or file.
    pub path: String,
    /// Hash over the names of the samples and their preprocessing.
    pub hash: ContentHash,
    /// Samples that the ranges come from.
    pub calibration: Vec<String>,
    /// Samples that the figures come from.
    pub evaluation: Vec<String>,
    /// Hash over what these are and over their labels; absent for random data, and in reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_hash: Option<ContentHash>,
    /// Hash over their label masks or labelled boxes; absent without any, and in reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth_hash: Option<ContentHash>,
    /// How many samples are in both; 0 unless the data set was too small.
    pub overlapping: usize,
    /// Samples that could not be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedSample>,
    /// Absent when no labels are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// How a file became an input, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<String>,
    /// The inputs were random (`--random-data`): the figures say nothing about the model's accuracy.
    pub random_data: bool,
}

/// A sample that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkippedSample {
    /// The sample (its file, usually).
    pub sample: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Where the right answers come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Labels {
    /// The file, or `folder names`.
    pub source: String,
    /// Evaluation samples that have a label.
    pub labelled: usize,
    /// Class names by class index, as far as known and used in this report.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<u32, String>,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Whether every gate passed; null when there were none, and so nothing was decided.
    pub passed: Option<bool>,
    /// The decision in one sentence.
    pub sentence: String,
    /// The thresholds that decide.
    pub gates: Vec<Gate>,
}

/// A threshold on a metric of a precision, and its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gate {
    /// The precision it is checked on.
    pub precision: String,
    /// What ran it.
    pub backend: String,
    /// The outcome.
    #[serde(flatten)]
    pub result: GateResult,
}

/// One precision on one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Precision {
    /// `fp32`, `fp16`, `bf16`, `int8`, `fp8`; of the reference also `fp64`, and `mixed` where it computes in several.
    pub precision: String,
    /// What ran it (`onnxruntime-cpu`, `tensorrt`, ...).
    pub backend: String,
    /// True for the run that the others are compared with.
    pub reference: bool,
    /// What was built for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactFile>,
    /// Nodes that run in this precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized_nodes: Option<usize>,
    /// What became of the float part, where it was converted to 16 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halved: Option<Halved>,
    /// Classifiers: agreement with the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Classifiers with labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// Classifiers with labels: right answers by class, and confusions that grew against the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
    /// Models whose output is a map of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Segmentation>,
    /// Detectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<DetectionResult>,
    /// Every output that is a classification or a map, where there are several or further k were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<OutputTask>,
    /// Numeric differences from the reference, by output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputMetrics>,
    /// 95 % interval of the SQNR of the worst output or part of one, in decibels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db_interval: Option<[f64; 2]>,
    /// The metric of one's own, a function that was given in Python.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<f64>,
    /// Time of one call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<LatencyMs>,
    /// Samples a second, measured in the same calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput_fps: Option<Throughput>,
    /// From paired rounds with the reference (or its like on the same device); absent where one of both is emulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup: Option<Speedup>,
    /// The same at further batch sizes and thread counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub speed_at: Vec<SpeedAt>,
    /// Samples whose top-1 changed, at most as many as were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flips: Vec<Flip>,
    /// How many samples changed their top-1 in all.
    #[serde(default)]
    pub flips_total: usize,
    /// TensorRT engines: the layers that the builder made of the model, where it listed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineInside>,
    /// What was measured of it on other machines, one entry a machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured_elsewhere: Vec<Elsewhere>,
    /// It was required to run (`--tensorrt require`): what kept it from that is no matter of this machine, but an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// Why it could not run; everything measured is absent then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is inside a TensorRT engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EngineInside {
    /// How much of it computes in which type.
    pub summary: EngineSummary,
    /// In the order of execution.
    pub layers: Vec<EngineLayer>,
}

/// Figures of one output that is a classification or a map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutputTask {
    /// Its name.
    pub output: String,
    /// How it was compared.
    pub kind: OutputKind,
    /// Classifications: agreement with the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Classifications: the same for each further k.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_k: Vec<TopK>,
    /// Classifications with labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// Maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Segmentation>,
}

/// A file that a run leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactFile {
    /// Path within the output folder.
    pub path: String,
    /// Hash of the content.
    pub hash: ContentHash,
    /// Size, of a model with its external data.
    pub bytes: u64,
}

/// Latency and the conditions it was measured under, without which it means nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyMs {
    /// The figures.
    #[serde(flatten)]
    pub figures: Latency,
    /// Whether they say anything about the precision's speed.
    pub timing: Timing,
    /// How the calls were made.
    #[serde(flatten)]
    pub mode: Mode,
    /// What makes the figures doubtful (unstable clocks, bound by transfers, ...).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Speed at one batch size and thread count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpeedAt {
    /// Time of one call.
    pub latency_ms: LatencyMs,
    /// Samples a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput_fps: Option<Throughput>,
    /// Against the reference at the same batch size and thread count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup: Option<Speedup>,
}

/// How many times faster than another precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Speedup {
    /// What it is compared with (`fp32 onnxruntime-cpu`).
    pub against: String,
    /// The figures.
    #[serde(flatten)]
    pub figures: SpeedUp,
}
