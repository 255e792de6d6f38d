//! `deploy.json`: what lies in a `deploy/` folder, and what ties figures that come back to the models in it.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::{ArtifactError, ContentHash, Tool, read_json, write_json},
    tensor::ElementType,
};

/// Format version of [`Manifest`].
pub const MANIFEST_FORMAT_VERSION: u32 = 2;
/// Its file.
pub(super) const MANIFEST: &str = "deploy.json";

/// What lies in a `deploy/` folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT_VERSION`].
    pub format_version: u32,
    /// What wrote it.
    pub tool: Tool,
    /// Hash of the float model of the run.
    pub model_hash: ContentHash,
    /// Precision of the float model (`fp32`).
    pub reference: String,
    /// Samples in the given inputs of all calls together; 0 where there are none.
    pub samples: usize,
    /// Calls that are given inputs: several where the models fix their batch.
    pub calls: usize,
    /// The given inputs.
    pub inputs: Vec<GivenInput>,
    /// The models, the float model first.
    pub models: Vec<DeployedModel>,
    /// Whether the given inputs, or those that gave the ranges, are random numbers: it says nothing about real data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_data: bool,
}

/// A given input, as raw little-endian values without a header, in one file for each call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenInput {
    /// Name of the model's input.
    pub name: String,
    /// The files within the folder, in the order of the calls.
    pub files: Vec<String>,
    /// Its extents in a call.
    pub shape: Vec<usize>,
    /// Type of its values.
    pub element_type: ElementType,
}

/// A model to deploy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployedModel {
    /// Its precision.
    pub precision: String,
    /// The file within the folder.
    pub file: String,
    /// BLAKE3 of the file: that of the artifact in the report.
    pub hash: ContentHash,
    /// That of the file with its external data, as engines that `calib` builds bear it; absent without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_with_data: Option<ContentHash>,
    /// SHA-256 of the file, which every machine can compute.
    pub sha256: String,
    /// Samples of a call that is timed.
    pub batch: usize,
    /// Smallest and largest extents of its dynamic inputs: those of the timed call, and those of the given inputs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dynamic: BTreeMap<String, [Vec<usize>; 2]>,
    /// What it gives for the given inputs in ONNX Runtime (`.npz`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
}

impl Manifest {
    /// Reads the manifest of a folder.
    pub fn read(folder: &Path) -> Result<Self, ArtifactError> {
        read_json(&folder.join(MANIFEST), "manifest of a deployment", MANIFEST_FORMAT_VERSION)
    }

    /// Writes it into a folder.
    pub fn write(&self, folder: &Path) -> Result<(), ArtifactError> {
        write_json(&folder.join(MANIFEST), self)
    }

    /// The model of a precision.
    pub fn model(&self, precision: &str) -> Option<&DeployedModel> {
        self.models.iter().find(|model| model.precision == precision)
    }
}
