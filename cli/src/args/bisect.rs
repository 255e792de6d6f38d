//! `calib bisect`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use trtcalib::{compare::Gate, config::UseTensorRt, quantize::Precision};

use super::{
    DataArgs, MethodArgs, ModelArgs, OutputArgs, RuntimeArgs, SchemeArgs, metrics_help, options::MAKES_RANGES,
};

/// What `calib bisect` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Find {
    /// The smallest set of nodes to lift that passes the gates
    Plan,
    /// The first node after which the target leaves the reference
    First,
    /// The error of every quantized operator, and where it comes from
    Layers,
    /// Every tensor of the target against the reference, and the first that is NaN or infinite
    Tensors,
}

/// How `calib bisect` finds the number of nodes to lift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SearchStrategy {
    /// Doubling, then halving the gap
    #[default]
    Binary,
    /// One more at a time
    Linear,
}

/// What `calib bisect` counts as the cost of lifting a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LiftCost {
    /// Each node the same
    #[default]
    Nodes,
    /// Its multiply-accumulates
    Macs,
    /// The measured time of the float operator
    Time,
}

impl From<Find> for trtcalib::session::Find {
    fn from(find: Find) -> Self {
        match find {
            Find::Plan => Self::Plan,
            Find::First => Self::First,
            Find::Layers => Self::Layers,
            Find::Tensors => Self::Tensors,
        }
    }
}

impl From<SearchStrategy> for trtcalib::bisect::search::Strategy {
    fn from(strategy: SearchStrategy) -> Self {
        match strategy {
            SearchStrategy::Binary => Self::Binary,
            SearchStrategy::Linear => Self::Linear,
        }
    }
}

impl From<LiftCost> for trtcalib::analyse::cost::Cost {
    fn from(cost: LiftCost) -> Self {
        match cost {
            LiftCost::Nodes => Self::Nodes,
            LiftCost::Macs => Self::Macs,
            LiftCost::Time => Self::Time,
        }
    }
}

/// `calib bisect`.
#[derive(Debug, Args)]
#[command(after_long_help = metrics_help())]
pub struct BisectArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub model: ModelArgs,
    /// Folder for plan.json, bisect.json, the trials and the model [default: runs/MODEL]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Calibration table; without one the ranges are calibrated first
    #[arg(long, value_name = "FILE", conflicts_with_all = MAKES_RANGES)]
    pub table: Option<PathBuf>,
    /// What to look for [default: plan with a gate; else first for an engine, layers for a model]
    #[arg(long, value_enum)]
    pub find: Option<Find>,
    /// Threshold on a metric that the plan must pass, e.g. top1=0.99 (repeatable)
    #[arg(long, value_name = "METRIC=VALUE")]
    pub gate: Vec<Gate>,
    /// Precision to look into: int8, fp8, fp16 or bf16
    #[arg(long, value_name = "PRECISION", default_value = "int8")]
    pub precision: Precision,
    /// Precision that nodes are lifted to: fp32, fp16 or bf16
    #[arg(long, value_name = "PRECISION", default_value = "fp32")]
    pub lift: Precision,
    /// How the number of nodes to lift is found
    #[arg(long, value_enum, default_value_t)]
    pub strategy: SearchStrategy,
    /// Lift nodes together: node, op-type, block, or a regular expression whose capture names the group
    #[arg(long, value_name = "HOW", default_value = "node")]
    pub group_by: String,
    /// What lifting a node costs
    #[arg(long, value_enum, default_value_t)]
    pub cost: LiftCost,
    /// Plans that may be tried
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_trials: usize,
    /// Evaluation samples that plans are judged on (at most half; the others check the result) or tensors compared on
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub samples: usize,
    /// What to look into instead of the model quantized here: ort:FILE.onnx or FILE.onnx, ort-cuda:FILE.onnx, trt:FILE.plan,
    /// or FILE.npz with saved tensors (not with --find plan)
    #[arg(long, value_name = "SPEC")]
    pub target: Option<String>,
    /// With an engine as the target: tensors that one probe marks as outputs, at most (a node and what it reads, at least); each
    /// may undo a fusion [default: with --find first as many as 1 GiB holds, else 4]
    #[arg(long, value_name = "N")]
    pub probe_tensors: Option<usize>,
    /// With `--find first`: a tensor diverges below this SQNR in decibels, or with NaN or infinities
    #[arg(long, value_name = "DB", default_value_t = 10.0, allow_negative_numbers = true)]
    pub threshold_db: f64,
    /// With `--find first`: look at every tensor, which also finds a divergence that heals on the way
    #[arg(long)]
    pub exhaustive: bool,
    /// Whether to build the TensorRT engine of the plan: auto, off or require [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub tensorrt: Option<UseTensorRt>,
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
}
