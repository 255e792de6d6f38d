//! Options that several commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use trtcalib::{
    backend::ExecutionProvider,
    calibrate::{BiasCorrection, Choice, DeployTo, Effort, ShiftPolicy, StepKind},
    compare::Gate,
    quantize::Precision,
};

/// Where samples come from and how they become the model's input.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Folder of images (flat or one folder a class), list file, Ultralytics' data.yaml, .npy/.npz, or Polygraphy inputs JSON
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Labels: CSV `file,label[,name]` or lines `name label`; for maps a folder of PNG masks or a list `file,mask.png`; for
    /// boxes COCO's instances JSON or a folder of YOLO's .txt files
    #[arg(long, value_name = "PATH")]
    pub labels: Option<PathBuf>,
    /// Detection head: yolov5, yolov8, yolo-end2end, yolox, nanodet, detr, ssd, torchvision, efficientnms, boxes (with
    /// `[detection]` in the configuration) or none [default: recognized]
    #[arg(long, value_name = "NAME")]
    pub head: Option<String>,
    /// Class names, one a line in the order of the classes
    #[arg(long, value_name = "FILE")]
    pub classes: Option<PathBuf>,
    /// Preprocessing preset; `calib run --help` lists them
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Hugging Face preprocessor_config.json to take the preprocessing from
    #[arg(long, value_name = "FILE")]
    pub preprocessor: Option<PathBuf>,
    /// Resize the whole picture into the model's input as OpenCV does, at its centre or top left, and pad the rest: centre or
    /// top-left (the presets yolo, yolox and nanodet do it too; other values in `[preprocess]`)
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["preset", "preprocessor"])]
    pub letterbox: Option<String>,
    /// Value of the letterbox around the picture, 0 to 255 [default: 114]
    #[arg(long, value_name = "N", requires = "letterbox")]
    pub pad: Option<u8>,
    /// Resize: the shorter side, or HEIGHTxWIDTH exactly. This and the other flags on preprocessing are keys of `[preprocess]`,
    /// which says all of it, so that they go with no --preset and no --preprocessor
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["preset", "preprocessor"])]
    pub resize: Option<String>,
    /// Centre crop after the resize: one size for both sides, or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["preset", "preprocessor"])]
    pub crop: Option<String>,
    /// Filter of the resize: nearest, bilinear, bicubic, opencv or another that `[preprocess]` knows [default: bilinear]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["preset", "preprocessor"])]
    pub interpolation: Option<String>,
    /// Subtracted after scaling, e.g. 0.485,0.456,0.406 in the order red, green, blue, or one value for all
    #[arg(long, value_name = "LIST", value_delimiter = ',', allow_negative_numbers = true, conflicts_with_all = ["preset", "preprocessor"])]
    pub mean: Vec<f64>,
    /// Divisor after that, likewise
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["preset", "preprocessor"])]
    pub std: Vec<f64>,
    /// Factor on 8-bit values [default: 1/255]
    #[arg(long, value_name = "FACTOR", conflicts_with_all = ["preset", "preprocessor"])]
    pub scale: Option<f64>,
    /// Order of the channels in the tensor: rgb or bgr [default: rgb]
    #[arg(long, value_name = "ORDER", conflicts_with_all = ["preset", "preprocessor"])]
    pub channel_order: Option<String>,
    /// Order of the axes: nchw or nhwc [default: as the model's input looks]
    #[arg(long, value_name = "AXES", conflicts_with_all = ["preset", "preprocessor"])]
    pub layout: Option<String>,
    /// Samples in one inference call [default: 8, or the model's fixed batch]; `run` and `bench` measure the latency at
    /// each of several, e.g. 1,8,32
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub batch: Vec<usize>,
    /// Seed of the choice of samples [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Share of bad samples that is tolerated, e.g. 1% or 0.01 [default: 1%]
    #[arg(long, value_name = "SHARE")]
    pub max_bad: Option<String>,
    /// Fail on the first bad sample
    #[arg(long)]
    pub strict: bool,
    /// Use random inputs: results made from them say so
    #[arg(long, conflicts_with = "data")]
    pub random_data: bool,
    /// Bind the shape of an input, e.g. input=1x3x224x224 (repeatable)
    #[arg(long, value_name = "NAME=DIMS")]
    pub shape: Vec<String>,
}

/// Where ONNX Runtime executes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Runtime")]
pub struct RuntimeArgs {
    /// Threads [default: all cores]; `run` and `bench` measure the latency with each of several, e.g. 1,2,4
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Execution provider of ONNX Runtime: cpu, cuda, or cuda-tf32, which lets FP32 products use TF32; `:N` behind it takes
    /// the N-th GPU [default: cpu]
    #[arg(long, value_name = "NAME")]
    pub provider: Option<ExecutionProvider>,
}

/// How thresholds are chosen and what is quantized.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Quantization")]
pub struct SchemeArgs {
    /// Leave nodes whose name matches in the high precision (repeatable)
    #[arg(long, value_name = "REGEX")]
    pub nodes_to_exclude: Vec<String>,
    /// Quantize only nodes whose name matches (repeatable)
    #[arg(long, value_name = "REGEX")]
    pub nodes_to_include: Vec<String>,
    /// Quantize only these operator types, e.g. Conv,Gemm
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub op_types: Vec<String>,
    /// Leave these operator types in the high precision
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub op_types_to_exclude: Vec<String>,
    /// Quantize a weight by one scale, not by one for each output channel, which loses less
    #[arg(long)]
    pub per_tensor_weights: bool,
    /// Precision of what is not quantized: fp32, fp16 or bf16 [default: fp32]
    #[arg(long, value_name = "PRECISION")]
    pub high_precision: Option<Precision>,
    /// Precision plan: which node runs in which precision
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
}

/// How many samples are observed and by which method the thresholds are chosen.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Calibration")]
pub struct MethodArgs {
    /// Calibration samples [default: 512]
    #[arg(long, value_name = "N")]
    pub calib_samples: Option<usize>,
    /// auto, entropy, percentile, mse or minmax [default: auto]
    #[arg(long, value_name = "NAME")]
    pub method: Option<Choice>,
    /// Percentile of the percentile method, in percent [default: 99.99]
    #[arg(long, value_name = "P")]
    pub percentile: Option<f64>,
    /// Let biases take back the mean error of INT8 where that measures better: auto or off [default: auto]
    #[arg(long, value_name = "auto|off")]
    pub bias_correction: Option<BiasCorrection>,
    /// How far INT8 is brought nearer to float: fast, default, thorough, or off [default: default; off where --method names
    /// one method or biases stay as they are]
    #[arg(long, value_name = "LEVEL")]
    pub effort: Option<Effort>,
    /// Steps of recovery that may be tried: biases, ranges, equalization, shift, descent, rounding,
    /// lifting, compensation [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub recovery_steps: Vec<StepKind>,
    /// Where INT8 will run, which decides what costs no layer: rtx or tensorrt [default: rtx]
    #[arg(long, value_name = "RUNTIME")]
    pub deploy_to: Option<DeployTo>,
    /// Activations that may be quantized around another centre than 0: all, unpadded or off [default: all for rtx,
    /// unpadded for tensorrt]
    #[arg(long, value_name = "WHICH")]
    pub shift: Option<ShiftPolicy>,
    /// Share of the multiply-accumulates, and of the weights, that may stay in the high precision where that is worth most
    /// (1% or 0.01; 0: none)
    /// [default: 1%]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub lift_budget: Option<f64>,
    /// Nodes that may stay there, at most [default: as many as the budget allows]
    #[arg(long, value_name = "N")]
    pub lift_nodes: Option<usize>,
}

/// What is recovered, and when that is good enough.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Calibration")]
pub struct RecoveryArgs {
    /// Precisions to recover for: with fp8 in the list, for FP8 as well [default: int8]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub precisions: Vec<Precision>,
    /// End recovery as soon as this holds on held-out samples at 95 %, e.g. sqnr_db=25 (repeatable)
    #[arg(long, value_name = "METRIC=VALUE")]
    pub gate: Vec<Gate>,
}

/// Flags by which ranges are made, which a given table has behind it.
pub(super) const MAKES_RANGES: [&str; 9] = [
    "method",
    "percentile",
    "bias_correction",
    "effort",
    "recovery_steps",
    "deploy_to",
    "shift",
    "lift_budget",
    "lift_nodes",
];

impl MethodArgs {
    /// Whether a flag was given by which ranges are made.
    pub fn makes_ranges(&self) -> bool {
        self.method.is_some()
            || self.percentile.is_some()
            || self.bias_correction.is_some()
            || self.effort.is_some()
            || !self.recovery_steps.is_empty()
            || self.deploy_to.is_some()
            || self.shift.is_some()
            || self.lift_budget.is_some()
            || self.lift_nodes.is_some()
    }
}

/// Options that every command takes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub struct GlobalArgs {
    /// Say less: warnings, errors and results only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: -v for what is done, -vv for the runtimes' own messages
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print the result as JSON on standard output, and nothing else there
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
    /// Show no progress bars
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// Print what was waited for, by stage
    #[arg(long, global = true)]
    pub timings: bool,
    /// Shared library of ONNX Runtime [default: $ORT_DYLIB_PATH, .runtime/, the system]
    #[arg(long, global = true, value_name = "FILE")]
    pub ort_library: Option<PathBuf>,
    /// Memory that the program may take, on Linux: at least 64, most of which it and its libraries take [default: what the machine
    /// or the container has]
    #[arg(long, global = true, value_name = "MB", value_parser = clap::value_parser!(u64).range(64..))]
    pub max_memory_mb: Option<u64>,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// A share, as a number between 0 and 1 or in percent.
fn share(text: &str) -> Result<f64, String> {
    let (digits, unit) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 100.0));
    let share = digits.trim().parse::<f64>().map_err(|_| "give a number such as 0.01 or 1%".to_owned())? / unit;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("give a share between 0 and 1, or 0% and 100%".to_owned())
    }
}
