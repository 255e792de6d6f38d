//! What is inside an engine: *does it really compute in INT8?*
//!
//! Told twice in the same words: by TensorRT's engine inspector as JSON, which takes a GPU that runs the engine, and by
//! the builder's log as lines ([`listing`]), which takes none. Engines must be built with detailed profiling verbosity,
//! which `calib build` always sets. The names of the fields differ between versions (`Format/Datatype` holds a type or a
//! whole sentence, `Bindings` became `I/O Tensors`); all forms that NVIDIA documents for 8.6 to 11 are read, and those
//! that TensorRT-RTX 1.7 prints. What is not understood is `unknown`, never guessed.

mod document;
mod kind;
mod listing;

use std::{collections::BTreeMap, fmt};

use kind::{kind_of, precision_of, runs_nothing};
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
pub(super) use listing::is_listing;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Number format of a tensor inside an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum NumberType {
    Fp32,
    Tf32,
    Fp16,
    Bf16,
    Fp8,
    Int8,
    Fp4,
    Int4,
    Int32,
    Int64,
    Uint8,
    Bool,
    Unknown,
}

impl NumberType {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "FP32",
            Self::Tf32 => "TF32",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp8 => "FP8",
            Self::Int8 => "INT8",
            Self::Fp4 => "FP4",
            Self::Int4 => "INT4",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Uint8 => "UINT8",
            Self::Bool => "BOOL",
            Self::Unknown => "unknown",
        }
    }

    /// INT8 or FP8.
    pub fn is_8_bit(self) -> bool {
        matches!(self, Self::Int8 | Self::Fp8)
    }

    /// A floating-point type of 16 bits or more.
    fn is_wide(self) -> bool {
        matches!(self, Self::Fp32 | Self::Tf32 | Self::Fp16 | Self::Bf16)
    }

    /// Reads `Half`, `Int8`, or a sentence such as `Thirty-two wide channel vectorized row major Int8 format`.
    fn of(text: &str) -> Self {
        let words = [
            ("bf16", Self::Bf16),
            ("bfloat16", Self::Bf16),
            ("fp8", Self::Fp8),
            ("float8e4m3", Self::Fp8),
            ("float8e4m3fn", Self::Fp8),
            ("float8e5m2", Self::Fp8),
            ("fp4", Self::Fp4),
            ("float4", Self::Fp4),
            ("float4e2m1", Self::Fp4),
            ("int8", Self::Int8),
            ("int4", Self::Int4),
            ("int32", Self::Int32),
            ("int64", Self::Int64),
            ("uint8", Self::Uint8),
            ("fp16", Self::Fp16),
            ("half", Self::Fp16),
            ("tf32", Self::Tf32),
            ("fp32", Self::Fp32),
            ("float", Self::Fp32),
            ("bool", Self::Bool),
        ];
        let lower = text.to_lowercase();
        let mut parts = lower.split(|c: char| !c.is_ascii_alphanumeric());
        parts
            .find_map(|part| words.iter().find(|(word, _)| *word == part).map(|(_, kind)| *kind))
            .unwrap_or(Self::Unknown)
    }
}

/// What a layer of an engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LayerKind {
    /// Convolution or matrix product, with whatever was fused into it: where the time goes.
    Compute,
    /// Moves values into another layout, type or place.
    Reformat,
    /// A Q/DQ node by itself: the builder found nothing to fuse it into.
    QuantizeDequantize,
    /// Everything else.
    Other,
}

/// A tensor at a layer's input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EngineTensor {
    /// Its name inside the engine.
    pub name: String,
    /// Type of its elements.
    pub number_type: NumberType,
    /// Extents; -1 for a dynamic one.
    pub shape: Vec<i64>,
    /// Memory layout, in TensorRT's words.
    pub format: String,
}

/// A layer of an engine: usually several ONNX nodes fused into one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EngineLayer {
    /// TensorRT's name.
    pub name: String,
    /// TensorRT's type, e.g. `CaskConvolution`.
    pub layer_type: String,
    /// What it does.
    pub kind: LayerKind,
    /// The type that a compute layer multiplies in.
    pub precision: NumberType,
    /// ONNX nodes that are in it.
    pub nodes: Vec<String>,
    /// What it reads.
    pub inputs: Vec<EngineTensor>,
    /// What it writes.
    pub outputs: Vec<EngineTensor>,
    /// The kernel that was chosen; empty when unknown.
    pub tactic: String,
}

/// The layers of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EngineLayers {
    /// In the order of execution.
    pub layers: Vec<EngineLayer>,
}

/// How much of an engine computes in which type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EngineSummary {
    /// Layers in all.
    pub layers: usize,
    /// Compute layers.
    pub compute_layers: usize,
    /// Number of compute layers by type.
    pub compute_by_type: BTreeMap<NumberType, usize>,
    /// Layers that multiply in 8 bits and write a wider type: what rounds their result to 8 bits again is another layer.
    pub wide_outputs: usize,
    /// Layers that only move values into another layout, type or place.
    pub reformat_layers: usize,
    /// Q/DQ layers that were not fused, by their first ONNX node, or by their own name where none is known.
    pub unfused_qdq: Vec<String>,
}

/// Why the inspector's JSON cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InspectorError {
    /// It does not parse.
    #[error("the engine inspector's answer is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It has no list of layers, or an empty one.
    #[error(
        "the engine inspector's answer lists no layers; build the engine with detailed profiling verbosity \
         (`calib build`, or trtexec --profilingVerbosity=detailed)"
    )]
    NoLayers,
    /// Layers are names only.
    #[error(
        "the engine tells only the names of its layers; build it with detailed profiling verbosity \
         (`calib build`, or trtexec --profilingVerbosity=detailed)"
    )]
    NamesOnly,
    /// One layer takes more text than any does.
    #[error("layer {number} of the engine inspector's answer takes more than {most} bytes; no layer does")]
    LargeLayer {
        /// The layer, counted from 1.
        number: usize,
        /// The bytes that it may take.
        most: usize,
    },
    /// More than any engine has.
    #[error("the engine inspector's answer lists more than {most} layers and tensors; no engine has so many")]
    ManyParts {
        /// How many it may list.
        most: usize,
    },
    /// A line of the builder's log is not of the known form.
    #[error("the builder's list of layers has a line of an unknown form: {0}")]
    Line(String),
}

impl EngineLayers {
    /// Reads the JSON of `IEngineInspector::getEngineInformation`. `op_types` gives the operator of every ONNX node of the
    /// model that the engine was built from; it may be empty, and then operators are told by TensorRT's names alone.
    /// Of the layers of several profiles, which TensorRT lists one after the other before version 10, those of the first
    /// are taken.
    pub fn parse(json: &str, op_types: &BTreeMap<String, String>) -> Result<Self, InspectorError> {
        document::read(json, op_types).map(Self::that_run)
    }

    /// Reads the builder's list of layers, from its log; otherwise as [`Self::parse`].
    pub fn from_listing(text: &str, op_types: &BTreeMap<String, String>) -> Result<Self, InspectorError> {
        let layers: Vec<Value> = listing::read(text).map_err(|line| InspectorError::Line(line.to_owned()))?;
        Ok(Self::that_run(layers.iter().map(|layer| EngineLayer::read(layer, op_types)).collect()))
    }

    fn that_run(mut layers: Vec<EngineLayer>) -> Self {
        layers.retain(|layer| !runs_nothing(&layer.layer_type) && !is_of_a_later_profile(&layer.name));
        Self { layers }
    }

    /// The figures.
    pub fn summary(&self) -> EngineSummary {
        let of = |kind| self.layers.iter().filter(move |layer| layer.kind == kind);
        let mut compute_by_type = BTreeMap::new();
        for layer in of(LayerKind::Compute) {
            *compute_by_type.entry(layer.precision).or_default() += 1;
        }
        let wide = |layer: &&EngineLayer| {
            layer.precision.is_8_bit() && layer.outputs.iter().any(|output| output.number_type.is_wide())
        };
        let first_node = |layer: &EngineLayer| layer.nodes.first().unwrap_or(&layer.name).clone();
        EngineSummary {
            layers: self.layers.len(),
            compute_layers: of(LayerKind::Compute).count(),
            compute_by_type,
            wide_outputs: of(LayerKind::Compute).filter(wide).count(),
            reformat_layers: of(LayerKind::Reformat).count(),
            unfused_qdq: of(LayerKind::QuantizeDequantize).map(first_node).collect(),
        }
    }
}

impl fmt::Display for EngineSummary {
    /// `54, of which 26 multiply: INT8 26 (100 %); 3 only move values`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |(kind, count): (&NumberType, &usize)| {
            format!("{} {count} ({:.0} %)", kind.name(), 100.0 * self.share(*kind))
        };
        let types: Vec<String> = self.compute_by_type.iter().map(share).collect();
        match self.compute_layers {
            0 => write!(f, "{}, of which none multiplies; ", self.layers)?,
            count => write!(f, "{}, of which {count} multiply: {}; ", self.layers, types.join(", "))?,
        }
        write!(f, "{} only move values", self.reformat_layers)
    }
}

impl EngineSummary {
    /// Share of compute layers in a type, between 0 and 1; 0 without compute layers.
    pub fn share(&self, number_type: NumberType) -> f64 {
        let count = self.compute_by_type.get(&number_type).copied().unwrap_or(0);
        count as f64 / self.compute_layers.max(1) as f64
    }
}

impl EngineLayer {
    fn read(layer: &Value, op_types: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| layer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = layer.as_str().map_or_else(|| text("Name"), str::to_owned);
        let layer_type = text("LayerType");
        let tensors = |key: &str| {
            let list = layer.get(key).and_then(Value::as_array);
            list.into_iter().flatten().map(EngineTensor::read).collect::<Vec<_>>()
        };
        let (inputs, outputs) = (tensors("Inputs"), tensors("Outputs"));
        let tactic = text("TacticName");
        let nodes = nodes_of(&text("Metadata"), &name, op_types);
        let operators: Vec<&str> = nodes.iter().map(|node| op_types.get(node).map_or("", String::as_str)).collect();
        let narrow = inputs.iter().chain(&outputs).any(|tensor: &EngineTensor| tensor.number_type.is_8_bit());
        let facts = kind::Facts {
            layer_type: &layer_type,
            origin: &text("Origin"),
            name: &name,
            tactic: &tactic,
            operators: &operators,
            narrow,
        };
        let kind = kind_of(&facts);
        let precision = if kind == LayerKind::Compute { precision_of(&inputs, &tactic) } else { NumberType::Unknown };
        Self { name, layer_type, kind, precision, nodes, inputs, outputs, tactic }
    }
}

impl EngineTensor {
    fn read(tensor: &Value) -> Self {
        let text = |keys: &[&str]| keys.iter().find_map(|key| tensor.get(key)?.as_str()).unwrap_or_default().to_owned();
        let format = text(&["Format/Datatype", "Format"]);
        let data_type = text(&["DataType", "Datatype"]);
        let number_type = NumberType::of(if data_type.is_empty() { &format } else { &data_type });
        let extents = tensor.get("Dimensions").and_then(Value::as_array);
        let shape = extents.into_iter().flatten().filter_map(Value::as_i64).collect();
        Self { name: text(&["Name"]), number_type, shape, format }
    }
}

/// Names of all profiles but the first end so: `conv1 [profile 1]`.
fn is_of_a_later_profile(name: &str) -> bool {
    let number = name.strip_suffix(']').and_then(|name| name.rsplit_once(" [profile "));
    number.is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// ONNX nodes of a layer: from its metadata (`[ONNX Layer: name]` with separators), else from its name (`a + PWN(b)`).
fn nodes_of(metadata: &str, name: &str, op_types: &BTreeMap<String, String>) -> Vec<String> {
    let tagged: Vec<String> =
        metadata.split("[ONNX Layer: ").skip(1).filter_map(|rest| Some(rest.rsplit_once(']')?.0.to_owned())).collect();
    if !tagged.is_empty() {
        return tagged;
    }
    // Pointwise operations that were fused stand in `PWN(...)`.
    let node = |part: &str| {
        [part, part.trim_start_matches("PWN(").trim_end_matches(')')]
            .into_iter()
            .find(|node| op_types.contains_key(*node))
            .map(str::to_owned)
    };
    name.split(" + ").filter_map(node).collect()
}

#[cfg(test)]
mod tests;
