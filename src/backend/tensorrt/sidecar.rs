//! `engine.plan.json`: what an engine was built from, so that it can be compared and built again.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EngineLayer, EngineOptions, Flavour};
use crate::{
    artifact::{ArtifactError, ContentHash, Tool, read_json, write_json},
    backend::TensorInfo,
};

/// Format version of [`EngineSidecar`].
pub const SIDECAR_FORMAT_VERSION: u32 = 1;

/// What an engine was built from. Lies beside the engine, with `.json` appended to its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EngineSidecar {
    /// [`SIDECAR_FORMAT_VERSION`].
    pub format_version: u32,
    /// What wrote the engine.
    pub tool: Tool,
    /// Hash of the engine itself.
    pub engine_hash: ContentHash,
    /// TensorRT's flavour.
    pub flavour: Flavour,
    /// Version of its library.
    #[serde(rename = "library_version")]
    pub tensorrt_version: String,
    /// The ONNX model it was built from.
    pub model: PathBuf,
    /// Hash of that model.
    pub model_hash: ContentHash,
    /// The float model to compare with, when it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PathBuf>,
    /// The data to compare on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Labels of that data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// `int8`, `fp16`, ...; absent when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Whether the model's ranges are of random numbers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_data: bool,
    /// What the engine takes.
    pub inputs: Vec<TensorInfo>,
    /// What it gives.
    pub outputs: Vec<TensorInfo>,
    /// How it was built.
    pub options: EngineOptions,
    /// Wall time of the build.
    pub build_seconds: f64,
    /// Warnings of the parser and the builder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The layers as the builder listed them; none where it printed no list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<EngineLayer>,
}

/// The sidecar's path for an engine's.
pub fn sidecar_path(engine: &Path) -> PathBuf {
    let mut name = engine.as_os_str().to_owned();
    name.push(".json");
    PathBuf::from(name)
}

impl EngineSidecar {
    /// The library that built the engine, as `TensorRT-RTX 1.7.1`.
    pub fn made_by(&self) -> String {
        format!("{} {}", self.flavour, self.tensorrt_version)
    }

    /// Reads the sidecar of an engine.
    pub fn load(engine: &Path) -> Result<Self, ArtifactError> {
        read_json(&sidecar_path(engine), "engine sidecar", SIDECAR_FORMAT_VERSION)
    }

    /// The sidecar of an engine; `None` where there is no such file.
    pub fn beside(engine: &Path) -> Result<Option<Self>, ArtifactError> {
        if sidecar_path(engine).exists() { Self::load(engine).map(Some) } else { Ok(None) }
    }

    /// Writes the sidecar of an engine.
    pub fn save(&self, engine: &Path) -> Result<(), ArtifactError> {
        write_json(&sidecar_path(engine), self)
    }
}
