//! The configuration of a run: one TOML file, every key of which is also a flag.
//!
//! Paths in a file are relative to that file's folder. `calib run` leaves the whole configuration as `run.toml`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::{Reading, read_within},
    backend::ExecutionProvider,
    calibrate::{BiasCorrection, Choice, DeployTo, Effort, ShiftPolicy, StepKind},
    compare::{Gate, OutputKind, heads::DetectionOptions},
    dataset::{PRESETS, Preprocess},
    quantize::{Precision, whole_name},
    words::{list, word, words},
};

/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Most threads; beyond it ONNX Runtime fails to start them and ends the process.
const MAX_THREADS: usize = 1024;

words! {
    /// When engines are built, and run where a GPU can.
    UseTensorRt "a use of TensorRT" {
        /// Where the library is at hand.
        #[default]
        Auto "auto",
        /// Never.
        Off "off",
        /// Always: it is an error where they cannot run.
        Require "require",
    }
}

/// Everything that decides what a run does. Keys are those of `run.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Float ONNX model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Where samples come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Labels of the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// Class names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<PathBuf>,
    /// Folder for everything that the run leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Calibration samples, at most.
    pub calib_samples: usize,
    /// Evaluation samples; 0 for all that are not calibration samples.
    pub eval_samples: usize,
    /// `auto`, or the name of a method.
    #[serde(with = "word")]
    pub method: Choice,
    /// Percentile of the percentile method, in percent.
    pub percentile: f64,
    /// `auto`: biases take back the mean error of INT8 where that measures better; or `off`.
    #[serde(with = "word")]
    pub bias_correction: BiasCorrection,
    /// How far INT8 is brought nearer to float; absent: `default` where `auto` chooses and corrects biases, `off` elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// Steps of recovery that may be tried, in whatever order they are named; empty for all.
    #[serde(with = "list", skip_serializing_if = "Vec::is_empty")]
    pub recovery_steps: Vec<StepKind>,
    /// Where INT8 will run, `rtx` or `tensorrt`: what costs no layer there is allowed.
    #[serde(with = "word")]
    pub deploy_to: DeployTo,
    /// Activations that may be quantized around another centre than 0: `all`, `unpadded` or `off`; absent: by `deploy_to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<ShiftPolicy>,
    /// Share of the multiply-accumulates that may stay in the high precision where that is worth most, between 0 and 1.
    pub lift_budget: f64,
    /// Nodes that may stay there, at most; absent: as many as the budget allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lift_nodes: Option<usize>,
    /// Precisions to compare.
    #[serde(with = "list")]
    pub precisions: Vec<Precision>,
    /// Precision of what is not quantized.
    #[serde(with = "word")]
    pub high_precision: Precision,
    /// Preprocessing preset; `preprocess` wins over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Hugging Face `preprocessor_config.json`; `preprocess` wins over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocessor: Option<PathBuf>,
    /// Samples in one inference call; absent: 8, or the model's fixed batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Seed of the choice of samples.
    pub seed: u64,
    /// Regular expressions of node names that stay in the high precision.
    pub nodes_to_exclude: Vec<String>,
    /// Regular expressions of node names; when given, only these are quantized.
    pub nodes_to_include: Vec<String>,
    /// Operator types; when given, only these are quantized.
    pub op_types: Vec<String>,
    /// Operator types that stay in the high precision.
    pub op_types_to_exclude: Vec<String>,
    /// Quantizes a weight by one scale, not by one for each output channel.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub per_tensor_weights: bool,
    /// Precision plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PathBuf>,
    /// Calibration table to take the ranges from, instead of calibrating.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<PathBuf>,
    /// Numbers k of best classes that are compared besides 1 and 5.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_k: Vec<usize>,
    /// Class of label masks whose pixels take no part.
    pub ignore_label: u32,
    /// Thresholds, `metric=value`.
    #[serde(with = "list")]
    pub gate: Vec<Gate>,
    /// Whether engines are built and run.
    #[serde(with = "word")]
    pub tensorrt: UseTensorRt,
    /// Threads; 0 for all cores.
    pub threads: usize,
    /// Execution provider: `cpu`, `cuda[:N]` or `cuda-tf32[:N]`.
    #[serde(with = "word")]
    pub provider: ExecutionProvider,
    /// Share of bad samples that is tolerated, between 0 and 1.
    pub max_bad: f64,
    /// Fail on the first bad sample.
    pub strict: bool,
    /// Seconds of latency measurement for each precision; 0 skips it.
    pub bench_seconds: f64,
    /// Batch sizes at which the latency is measured; empty: 1, or the model's fixed batch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bench_batch: Vec<usize>,
    /// Thread counts with which the latency is measured; empty: `threads`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bench_threads: Vec<usize>,
    /// Random inputs instead of data.
    pub random_data: bool,
    /// Kind of outputs by name, where the shape tells the wrong one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub output_kind: BTreeMap<String, OutputKind>,
    /// The head of a detector and how its boxes are chosen.
    #[serde(skip_serializing_if = "is_default")]
    pub detection: DetectionOptions,
    /// Shapes bound to inputs, by name.
    pub shape: BTreeMap<String, Vec<usize>>,
    /// How a file becomes an input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            model: None,
            data: None,
            labels: None,
            classes: None,
            out: None,
            calib_samples: 512,
            eval_samples: 0,
            method: Choice::Auto,
            percentile: 99.99,
            bias_correction: BiasCorrection::Auto,
            effort: None,
            deploy_to: DeployTo::Rtx,
            shift: None,
            recovery_steps: Vec::new(),
            lift_budget: 0.01,
            lift_nodes: None,
            precisions: vec![Precision::Fp32, Precision::Fp16, Precision::Int8],
            high_precision: Precision::Fp32,
            preset: None,
            preprocessor: None,
            batch: None,
            seed: 0,
            nodes_to_exclude: Vec::new(),
            nodes_to_include: Vec::new(),
            op_types: Vec::new(),
            op_types_to_exclude: Vec::new(),
            per_tensor_weights: false,
            plan: None,
            table: None,
            top_k: Vec::new(),
            output_kind: BTreeMap::new(),
            detection: DetectionOptions::default(),
            ignore_label: 255,
            gate: Vec::new(),
            tensorrt: UseTensorRt::Auto,
            threads: 0,
            provider: ExecutionProvider::Cpu,
            max_bad: 0.01,
            strict: false,
            bench_seconds: 2.0,
            bench_batch: Vec::new(),
            bench_threads: Vec::new(),
            random_data: false,
            shape: BTreeMap::new(),
            preprocess: None,
        }
    }
}

fn is_default(detection: &DetectionOptions) -> bool {
    *detection == DetectionOptions::default()
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a valid configuration.
    #[error("{path} is not a valid configuration: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        reason: String,
    },
    /// A value cannot be used.
    #[error("`{key}`: {reason}")]
    Value {
        /// The key (and flag).
        key: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl RunConfig {
    /// Reads a TOML file. Keys may be written with `-` or `_`; unknown ones are an error.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let invalid = |reason: String| ConfigError::Parse { path: path.to_owned(), reason };
        let _reading = Reading::of(path);
        let text = String::from_utf8(read_within(path, MAX_BYTES).map_err(read)?)
            .map_err(|error| invalid(error.to_string()))?;
        let mut config = Self::parse(&text).map_err(|error| invalid(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for file in config.paths_mut() {
            if file.is_relative() {
                *file = folder.join(&*file);
            }
        }
        Ok(config)
    }

    /// Model and output folder of a file that otherwise cannot be used, as far as they are to be found in it.
    pub fn places(path: &Path) -> Self {
        let text = read_within(path, MAX_BYTES).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let table = text.parse::<toml::Table>().unwrap_or_else(|_| {
            // Keys before the first section whose lines are whole.
            let lines = text.lines().take_while(|line| !line.trim_start().starts_with('['));
            lines.filter_map(|line| line.parse::<toml::Table>().ok()).flatten().collect()
        });
        let folder = path.parent().unwrap_or(Path::new(""));
        let file = |key| Some(folder.join(table.get(key)?.as_str()?));
        Self { model: file("model"), out: file("out"), ..Self::default() }
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        // The table comes first so that `calib-samples` is the same key as `calib_samples`; messages of a plain parse
        // carry line numbers, so that is tried first.
        toml::from_str(text).or_else(|error| {
            let table: toml::Table = toml::from_str(text)?;
            let renamed: toml::Table = table.into_iter().map(|(key, value)| (key.replace('-', "_"), value)).collect();
            renamed.try_into().map_err(|_| error)
        })
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [
            &mut self.model,
            &mut self.data,
            &mut self.labels,
            &mut self.classes,
            &mut self.out,
            &mut self.preprocessor,
            &mut self.plan,
            &mut self.table,
        ]
        .into_iter()
        .flatten()
    }

    /// The same configuration with absolute paths, so that the file can be used from anywhere.
    #[must_use]
    pub fn absolute(&self) -> Self {
        let mut config = self.clone();
        for file in config.paths_mut() {
            if let Ok(path) = std::path::absolute(&*file) {
                *file = path;
            }
        }
        config
    }

    /// As TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Checks values that can be judged without any file: what passes here, a run does not refuse before it opens anything.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.lift_budget) {
            let reason = format!("{} is not a share between 0 and 1", self.lift_budget);
            return Err(ConfigError::Value { key: "lift_budget", reason });
        }
        if self.high_precision.is_quantized() {
            let reason = format!("`{}` is quantized; use fp32, fp16 or bf16", self.high_precision);
            return Err(ConfigError::Value { key: "high_precision", reason });
        }
        for (key, patterns) in
            [("nodes_to_exclude", &self.nodes_to_exclude), ("nodes_to_include", &self.nodes_to_include)]
        {
            let unread = |pattern: &String| whole_name(pattern).err().map(|error| error.to_string());
            if let Some(reason) = patterns.iter().find_map(unread) {
                return Err(ConfigError::Value { key, reason });
            }
        }
        if let Some(name) = self.preset.as_deref().filter(|name| !PRESETS.contains(name)) {
            let reason = format!("there is no preset `{name}`; known are {}", PRESETS.join(", "));
            return Err(ConfigError::Value { key: "preset", reason });
        }
        if !(self.percentile > 50.0 && self.percentile <= 100.0) {
            let reason = format!("{} lies outside (50, 100]", self.percentile);
            return Err(ConfigError::Value { key: "percentile", reason });
        }
        if !(0.0..=1.0).contains(&self.max_bad) {
            let reason = format!("{} is not a share between 0 and 1", self.max_bad);
            return Err(ConfigError::Value { key: "max_bad", reason });
        }
        self.detection.check().map_err(|reason| ConfigError::Value { key: "detection", reason })?;
        if self.top_k.contains(&0) {
            return Err(ConfigError::Value { key: "top_k", reason: "every k must be at least 1".to_owned() });
        }
        if self.calib_samples == 0 {
            return Err(ConfigError::Value { key: "calib_samples", reason: "must be at least 1".to_owned() });
        }
        if self.batch == Some(0) {
            return Err(ConfigError::Value { key: "batch", reason: "must be at least 1".to_owned() });
        }
        for (key, values) in [("bench_batch", &self.bench_batch), ("bench_threads", &self.bench_threads)] {
            if values.contains(&0) {
                return Err(ConfigError::Value { key, reason: "every value must be at least 1".to_owned() });
            }
        }
        if self.threads.max(self.bench_threads.iter().copied().max().unwrap_or(0)) > MAX_THREADS {
            return Err(ConfigError::Value { key: "threads", reason: format!("must be at most {MAX_THREADS}") });
        }
        if !(self.bench_seconds >= 0.0 && self.bench_seconds.is_finite()) {
            return Err(ConfigError::Value { key: "bench_seconds", reason: "must be 0 or more".to_owned() });
        }
        Ok(())
    }
}

/// Parses a share: `1%`, `0.01`.
pub fn parse_share(text: &str) -> Result<f64, ConfigError> {
    let invalid =
        || ConfigError::Value { key: "max_bad", reason: format!("`{text}` is not a share such as 1% or 0.01") };
    let (number, divisor) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let value: f64 = number.trim().parse().map_err(|_| invalid())?;
    if (0.0..=divisor).contains(&value) { Ok(value / divisor) } else { Err(invalid()) }
}

/// Parses `input=1x3x224x224`.
pub fn parse_shape(text: &str) -> Result<(String, Vec<usize>), ConfigError> {
    let invalid =
        || ConfigError::Value { key: "shape", reason: format!("`{text}` does not read like input=1x3x224x224") };
    let (name, dims) = text.rsplit_once('=').or_else(|| text.rsplit_once(':')).ok_or_else(invalid)?;
    let dims = dims.split(['x', ',']).map(str::parse).collect::<Result<Vec<usize>, _>>().map_err(|_| invalid())?;
    if name.is_empty() || dims.contains(&0) { Err(invalid()) } else { Ok((name.to_owned(), dims)) }
}

/// Parses `NAME=KIND` of an output.
pub fn parse_output_kind(text: &str) -> Result<(String, OutputKind), ConfigError> {
    let invalid = || ConfigError::Value {
        key: "output_kind",
        reason: format!(
            "`{text}` does not read like NAME=KIND with one of classification, map, map_channels_last, generic, ignored"
        ),
    };
    let (name, kind) = text.rsplit_once('=').ok_or_else(invalid)?;
    let kind = match kind {
        "classification" => OutputKind::Classification,
        "map" => OutputKind::Map,
        "map_channels_last" => OutputKind::MapChannelsLast,
        "generic" => OutputKind::Generic,
        "ignored" => OutputKind::Ignored,
        _ => return Err(invalid()),
    };
    if name.is_empty() { Err(invalid()) } else { Ok((name.to_owned(), kind)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_configuration_reads_back_equal() {
        let mut config = RunConfig { model: Some("m.onnx".into()), batch: Some(4), ..RunConfig::default() };
        config.shape.insert("input".to_owned(), vec![1, 3, 8, 8]);
        let text = config.to_toml().unwrap();
        assert_eq!(RunConfig::parse(&text).unwrap(), config);
    }

    #[test]
    fn dashes_and_underscores_are_the_same_key_and_unknown_keys_are_errors() {
        assert_eq!(RunConfig::parse("calib-samples = 7").unwrap().calib_samples, 7);
        assert_eq!(RunConfig::parse("calib_samples = 7").unwrap().calib_samples, 7);
        let error = RunConfig::parse("calib_sample = 7").unwrap_err().to_string();
        assert!(error.contains("calib_sample"), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        std::fs::write(&file, "model = \"m.onnx\"\ndata = \"/images\"\n").unwrap();
        let config = RunConfig::load(&file).unwrap();
        assert_eq!(config.model.unwrap(), folder.path().join("m.onnx"));
        assert_eq!(config.data.unwrap(), PathBuf::from("/images"));
    }

    #[test]
    fn kinds_of_outputs_read_the_same_from_flags_and_files() {
        let config = RunConfig::parse("[output_kind]\n\"a=b\" = \"map_channels_last\"").unwrap();
        let (name, kind) = parse_output_kind("a=b=map_channels_last").unwrap();
        assert_eq!(config.output_kind, BTreeMap::from([(name, kind)]));
        assert!(parse_output_kind("a=picture").unwrap_err().to_string().contains("generic"));
        assert!(parse_output_kind("=map").is_err() && parse_output_kind("map").is_err());
    }

    #[test]
    fn what_a_run_would_refuse_is_refused_before_anything_is_opened() {
        let refused = |key: &str, text: &str| {
            let parsed = RunConfig::parse(text).map_err(|error| error.to_string());
            let error = parsed.and_then(|config| config.validate().map_err(|error| error.to_string())).unwrap_err();
            assert!(error.contains(key), "{error}");
        };
        RunConfig::parse("provider = \"cuda:1\"\ngate = [\"top1=0.9\"]\npreset = \"clip\"")
            .unwrap()
            .validate()
            .unwrap();
        refused("provider", "provider = \"cpu:1\"");
        refused("gate", "gate = [\"topp=1\"]");
        refused("preset", "preset = \"imagenette\"");
        refused("tensorrt", "tensorrt = \"maybe\"");
        refused("precisions", "precisions = [\"int4\"]");
        refused("method", "method = \"median\"");
        refused("nodes_to_exclude", "nodes_to_exclude = [\"(\"]");
    }

    #[test]
    fn more_threads_than_a_machine_has_are_refused() {
        let with = |threads, bench_threads| RunConfig { threads, bench_threads, ..RunConfig::default() }.validate();
        assert!(with(MAX_THREADS, vec![1, MAX_THREADS]).is_ok());
        for refused in [with(MAX_THREADS + 1, Vec::new()), with(0, vec![1, usize::MAX])] {
            assert!(refused.unwrap_err().to_string().contains("at most 1024"));
        }
    }

    #[test]
    fn shares_and_shapes() {
        assert_eq!(parse_share("1%").unwrap(), 0.01);
        assert_eq!(parse_share("0.5").unwrap(), 0.5);
        assert!(parse_share("2").is_err() && parse_share("x%").is_err());
        assert_eq!(parse_shape("a:0=1x3").unwrap(), ("a:0".to_owned(), vec![1, 3]));
        assert!(parse_shape("a=1x0").is_err() && parse_shape("1x3").is_err());
    }
}
