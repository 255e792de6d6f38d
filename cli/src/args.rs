//! The command line: what can be typed. Every flag of a run is also a key of its configuration file, but for those
//! that say what this one call is to print or to write besides.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use trtcalib::{compare::Gate, config::UseTensorRt, quantize::Precision, session::Shard};

mod bisect;
mod engines;
mod options;

pub use bisect::{BisectArgs, Find};
pub use engines::{BenchArgs, BuildArgs};
pub use options::{ColorChoice, DataArgs, GlobalArgs, MethodArgs, RecoveryArgs, RuntimeArgs, SchemeArgs};

/// INT8 calibration and precision validation for TensorRT.
///
/// Takes a float ONNX model and a folder of images and answers, with numbers a reviewer can trust: can this model
/// run in INT8 (or FP16, BF16, FP8), what does it lose, where does it lose it, and what does it gain?
#[derive(Debug, Parser)]
#[command(name = "calib", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 passed, 1 a gate failed, 2 error.")]
pub struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// `compare`, installed as a program of its own: the same as `calib compare`.
#[derive(Debug, Parser)]
#[command(name = "compare", version, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 passed, 1 a gate failed, 2 error.")]
pub struct CompareCli {
    /// Options that every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to compare.
    #[command(flatten)]
    pub compare: CompareArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole job: calibrate, quantize, compare every precision, benchmark, report
    Run(RunArgs),
    /// Observe the ranges of activations; also writes the mergeable histograms
    Calibrate(CalibrateArgs),
    /// Join what several shards observed or compared into the table or the figures of a single run
    Merge(MergeArgs),
    /// Write a model with explicit Q/DQ (INT8, FP8) or converted to FP16/BF16
    Quantize(QuantizeArgs),
    /// Build a TensorRT engine, with a sidecar that tells what it was built from
    Build(BuildArgs),
    /// Run the same inputs through a reference and one or several targets
    Compare(CompareArgs),
    /// Measure latency and throughput of several targets in interleaved rounds
    Bench(BenchArgs),
    /// Find the layers that diverge, and the smallest set to lift to a higher precision
    Bisect(BisectArgs),
    /// Describe a model, table, histogram file or report
    Inspect(InspectArgs),
    /// Render a report again, or one report over many runs (models × precisions)
    Report(ReportArgs),
    /// Write out a small model with its images, and do the whole job on them
    Demo(DemoArgs),
    /// Say what was found on this machine, what it lacks and how to get it
    Doctor,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Which outputs take part, and as what.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Outputs")]
pub struct OutputKindArgs {
    /// Kind of an output whose shape tells the wrong one: classification, map, map_channels_last, generic or ignored
    #[arg(long, value_name = "NAME=KIND")]
    pub output_kind: Vec<String>,
}

/// What outputs mean.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Outputs")]
pub struct OutputArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub kinds: OutputKindArgs,
    /// Compare the best k classes too, for each of several k, e.g. 3,10
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub top_k: Vec<usize>,
    /// Class of label masks whose pixels take no part [default: 255]
    #[arg(long, value_name = "CLASS")]
    pub ignore_label: Option<u32>,
}

/// A model that must be named, by place or by flag.
#[derive(Clone, Debug, Default, Args)]
pub struct FileArgs {
    /// ONNX model
    #[arg(value_name = "MODEL", required_unless_present = "model")]
    positional: Option<PathBuf>,
    /// The same by name
    #[arg(long, value_name = "FILE", conflicts_with = "positional")]
    model: Option<PathBuf>,
}

impl FileArgs {
    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.positional.clone().or_else(|| self.model.clone()).unwrap_or_default()
    }
}

/// The float model, and the file that says what the flags leave out.
#[derive(Clone, Debug, Default, Args)]
pub struct ModelArgs {
    /// Float ONNX model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub positional: Option<PathBuf>,
    /// The same by name
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub config: ConfigArgs,
}

/// The configuration file.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file (TOML); flags win over it; `none` for none [default: calib.toml in the working folder, if it is
    /// there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `calib run`.
#[derive(Debug, Args)]
#[command(after_long_help = run_help())]
pub struct RunArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub model: ModelArgs,
    /// Calibration table to take the ranges from, instead of calibrating
    #[arg(long, value_name = "FILE", conflicts_with_all = options::MAKES_RANGES)]
    pub table: Option<PathBuf>,
    /// Folder for everything that the run leaves [default: runs/MODEL]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the configuration that would run, and stop
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub data: DataArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub method: MethodArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub scheme: SchemeArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub runtime: RuntimeArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub outputs: OutputArgs,
    /// Evaluation samples; 0 for all that are not calibration samples [default: 0]
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub eval_samples: Option<usize>,
    /// Precisions to compare [default: fp32,fp16,int8]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Evaluation")]
    pub precisions: Vec<Precision>,
    /// Threshold on a metric, e.g. top1=0.98 (repeatable); failing one gives exit status 1
    #[arg(long, value_name = "METRIC=VALUE", help_heading = "Evaluation")]
    pub gate: Vec<Gate>,
    /// Whether to build and run TensorRT engines: auto, off or require [default: auto]
    #[arg(long, value_name = "WHEN", help_heading = "Runtime")]
    pub tensorrt: Option<UseTensorRt>,
    /// Seconds of latency measurement for each precision; 0 skips it [default: 2]
    #[arg(long, value_name = "S", help_heading = "Evaluation")]
    pub bench_seconds: Option<f64>,
    /// Also write a Markdown summary for a pull request
    #[arg(long, value_name = "FILE")]
    pub summary: Option<PathBuf>,
    /// Only evaluate, with the ranges of `--table`, and write what was counted to `--part`; `calib merge` makes the report
    #[arg(long, requires = "part", conflicts_with = "summary", help_heading = "Evaluation")]
    pub eval: bool,
    /// Evaluate only part i of n of the samples. `auto` and `auto/N` read which part it is from the environment of a Slurm
    /// array or a Kubernetes Indexed Job
    #[arg(long, value_name = "I/N", requires = "eval", help_heading = "Evaluation")]
    pub shard: Option<Shard>,
    /// File for what was counted (JSON)
    #[arg(long, value_name = "FILE", requires = "eval", help_heading = "Evaluation")]
    pub part: Option<PathBuf>,
}

/// `calib demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for the model, the images and the results
    #[arg(value_name = "DIR", default_value = "calib-demo")]
    pub folder: PathBuf,
    /// Further options, as `calib run` takes them
    #[arg(last = true, value_name = "OPTIONS")]
    pub run: Vec<OsString>,
}

/// `calib calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub model: ModelArgs,
    /// Table to write (JSON); histograms go beside it as `histograms.calib`
    #[arg(short, long, value_name = "FILE", default_value = "calibration.json")]
    pub output: PathBuf,
    /// Histogram file to write [default: histograms.calib beside the table]
    #[arg(long, value_name = "FILE")]
    pub histograms: Option<PathBuf>,
    /// TensorRT calibration cache to write as well (TensorRT 10 and older)
    #[arg(long, value_name = "FILE")]
    pub cache: Option<PathBuf>,
    /// Observe only part i of n of the calibration samples; join the parts with `calib merge`. `auto` and `auto/N` read
    /// which part it is from the environment of a Slurm array or a Kubernetes Indexed Job
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub data: DataArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub method: MethodArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub recovery: RecoveryArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub scheme: SchemeArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub runtime: RuntimeArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub kinds: OutputKindArgs,
}

/// `calib merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub config: ConfigArgs,
    /// Files of all shards: histograms of `calib calibrate --shard`; parts of `calib compare --shard`, which need no
    /// more than their files; or parts of `calib run --eval --shard`, whose model, table and data are used again
    #[arg(required = true, value_name = "FILE")]
    pub parts: Vec<PathBuf>,
    /// Table to write (JSON)
    #[arg(short, long, value_name = "FILE", default_value = "calibration.json")]
    pub output: PathBuf,
    /// Folder for everything that a run leaves, of parts of `calib run --eval` [default: as they were told, or runs/MODEL]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Joined histogram file to write as well
    #[arg(long, value_name = "FILE")]
    pub merged: Option<PathBuf>,
    /// Float ONNX model; with it and the data of the shards the table is that of a single run. Without, thresholds come
    /// from the histograms alone: `auto` takes the best method of each tensor, and no bias is corrected
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub data: DataArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub method: MethodArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub recovery: RecoveryArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub scheme: SchemeArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub runtime: RuntimeArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub kinds: OutputKindArgs,
}

/// `calib quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub model: FileArgs,
    /// Calibration table (JSON) or TensorRT calibration cache; not needed for fp16 and bf16
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// Model to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "explain")]
    pub output: Option<PathBuf>,
    /// int8, fp8, fp16 or bf16
    #[arg(long, value_name = "PRECISION", default_value = "int8")]
    pub precision: Precision,
    /// List for every node what is decided and which rule decides, and with --table what recovery did to it; write nothing
    #[arg(long)]
    pub explain: bool,
    /// Also convert the model's float inputs and outputs to the high precision
    #[arg(long)]
    pub convert_io: bool,
    /// Bind the shape of an input, as in calibration, e.g. input=1x3x224x224 (repeatable)
    #[arg(long, value_name = "NAME=DIMS")]
    pub shape: Vec<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub scheme: SchemeArgs,
}

/// `calib compare`.
#[derive(Debug, Args)]
#[command(after_long_help = metrics_help())]
pub struct CompareArgs {
    /// What to compare with: ort, ort:FILE.onnx, FILE.onnx, trt:FILE.plan, or saved:FILE with outputs (.npz, or JSON of trtexec
    /// or Polygraphy)
    #[arg(long = "ref", value_name = "SPEC", required_unless_present = "specs")]
    pub reference: Option<String>,
    /// What is compared (repeatable)
    #[arg(long = "target", value_name = "SPEC", required_unless_present = "specs")]
    pub targets: Vec<String>,
    /// The same without flags: the reference (unless --ref names it) and the targets
    #[arg(value_name = "SPEC")]
    pub specs: Vec<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub config: ConfigArgs,
    /// Float ONNX model that `ort` stands for
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Evaluation samples; 0 for all [default: 0]
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Compare also samples that a target was calibrated on
    #[arg(long)]
    pub calibration_samples: bool,
    /// Threshold on a metric, e.g. top1=0.98 (repeatable); failing one gives exit status 1
    #[arg(long, value_name = "METRIC=VALUE")]
    pub gate: Vec<Gate>,
    /// Compare only part i of n of the samples and write what was counted to `--part`; join the parts with `calib merge`.
    /// `auto` and `auto/N` read which part it is from the environment of a Slurm array or a Kubernetes Indexed Job
    #[arg(long, value_name = "I/N", requires = "part", conflicts_with_all = ["save_reference", "save_target"])]
    pub shard: Option<Shard>,
    /// File for what a shard counted (JSON)
    #[arg(long, value_name = "FILE", requires = "shard")]
    pub part: Option<PathBuf>,
    /// Save the reference's outputs (.npz)
    #[arg(long, value_name = "FILE")]
    pub save_reference: Option<PathBuf>,
    /// Save the first target's outputs (.npz)
    #[arg(long, value_name = "FILE")]
    pub save_target: Option<PathBuf>,
    /// File that keeps the kernels which TensorRT-RTX compiles for this GPU; made where it is missing
    #[arg(long, value_name = "FILE")]
    pub runtime_cache: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub outputs: OutputArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub data: DataArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub runtime: RuntimeArgs,
}

/// `calib inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Model, calibration table, TensorRT calibration cache, histogram file or report
    pub file: PathBuf,
    /// Check every Q/DQ pair of a model against TensorRT's rules; exit status 1 when one breaks them
    #[arg(long)]
    pub check: bool,
    /// List every node or tensor
    #[arg(long)]
    pub all: bool,
    /// Draw a model's graph as a page, to `--output`
    #[arg(long, conflicts_with_all = ["check", "all"])]
    pub graph: bool,
    /// Second model to draw beside it, with what differs
    #[arg(long, value_name = "FILE", requires = "graph")]
    pub against: Option<PathBuf>,
    /// Run whose errors, decisions and times colour the picture [default: the one that the model lies in]
    #[arg(long, value_name = "RUN", requires = "graph")]
    pub report: Option<PathBuf>,
    /// Times of the engine's layers to colour by, from trtexec --exportProfile
    #[arg(long, value_name = "FILE", requires = "graph")]
    pub profile: Option<PathBuf>,
    /// The engine's layers, from trtexec --exportLayerInfo: they tell which nodes the times are of
    #[arg(long, value_name = "FILE", requires = "profile")]
    pub layers: Option<PathBuf>,
    /// Page to write with --graph
    #[arg(short, long, value_name = "FILE", requires = "graph", default_value = "graph.html")]
    pub output: PathBuf,
}

/// `calib report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Output folders of `calib run`, or report.json files
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// File to write: .html, .csv or .md [default: report.html; with figures from elsewhere, the run's own]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Earlier runs to find regressions against (repeatable)
    #[arg(long, value_name = "RUN")]
    pub baseline: Vec<PathBuf>,
    /// Draw the figures of all runs in the order of their dates
    #[arg(long, conflicts_with = "baseline")]
    pub trend: bool,
    /// Also write overlays for Google's Model Explorer: errors, precisions, rules and times, each into a file of its own
    /// with its name before the ending (overlay.json gives overlay.error.json, ...)
    #[arg(long, value_name = "FILE")]
    pub model_explorer: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub measured: MeasuredArgs,
}

/// Figures from another machine, for `calib report` of one run.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Measured elsewhere")]
pub struct MeasuredArgs {
    /// The deploy.tar that the run's deploy/deploy.sh packed on another machine, or that folder (repeatable)
    #[arg(long, value_name = "FILE")]
    pub measured: Vec<PathBuf>,
    /// Times that trtexec --exportTimes wrote, e.g. int8=times.json (repeatable, as the next three are)
    #[arg(long, value_name = "PRECISION=FILE")]
    pub times: Vec<String>,
    /// Profile that trtexec --exportProfile wrote
    #[arg(long, value_name = "PRECISION=FILE")]
    pub profile: Vec<String>,
    /// Layers that trtexec --exportLayerInfo wrote, or the sidecar of calib build
    #[arg(long, value_name = "PRECISION=FILE")]
    pub layers: Vec<String>,
    /// Outputs for the inputs of the run's deploy/: of trtexec --exportOutput, Polygraphy --save-outputs, or .npz; of
    /// several calls all files, in order
    #[arg(long, value_name = "PRECISION=FILE")]
    pub outputs: Vec<String>,
    /// Inputs that these outputs are of, where they are not those of deploy/: .npz, or of Polygraphy --save-inputs
    #[arg(long, value_name = "FILE", requires = "outputs")]
    pub inputs: Option<PathBuf>,
    /// What the machine is called
    #[arg(long, value_name = "NAME")]
    pub machine: Option<String>,
}

impl MeasuredArgs {
    /// The single files, by kind.
    pub fn files(&self) -> [&[String]; 4] {
        [&self.times, &self.profile, &self.layers, &self.outputs]
    }

    /// True without any figures.
    pub fn is_empty(&self) -> bool {
        self.measured.is_empty() && self.files().iter().all(|files| files.is_empty())
    }
}

/// Presets and metrics, for the end of `calib run --help`.
fn run_help() -> String {
    format!("Presets of preprocessing: {}\n\n{}", trtcalib::dataset::PRESETS.join(", "), metrics_help())
}

/// What gates test.
fn metrics_help() -> String {
    let line = |metric: &trtcalib::compare::Metric| {
        let side = match metric.direction() {
            trtcalib::compare::Direction::AtLeast => "at least",
            trtcalib::compare::Direction::AtMost => "at most",
        };
        format!("\n  {:<18} {side}: {}", metric.name(), metric.description())
    };
    format!("Metrics of gates:{}", trtcalib::compare::Metric::ALL.iter().map(line).collect::<String>())
}
