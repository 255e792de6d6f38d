//! Measuring elsewhere: `deploy/`, which a run leaves for the machine that has the GPU, and what comes back from there.
//!
//! ```text
//! deploy/deploy.json        what lies here, with hashes
//! deploy/deploy.sh          builds and measures with trtexec
//! deploy/deploy_calib.sh    the same with calib
//! deploy/models/            the models: hard links to those of the run
//! deploy/inputs/            a few samples as raw values, for trtexec; inputs.npz holds the same, for calib
//! deploy/expected/          what ONNX Runtime gives for them
//! ```
//!
//! The scripts leave `deploy.tar`: manifest, expected outputs, and in `measured/` the machine, the models' SHA-256 and for
//! each precision what trtexec exports. `measured` reads it into a report.

mod exported;
mod figures;
mod folder;
mod identity;
mod machine;
mod manifest;
mod measured;
mod pack;
mod script;
mod times;

pub use exported::{engine_layers, engine_profile, times_of};
pub use folder::{Given, ToDeploy, check_free, write};
pub use manifest::{DeployedModel, GivenInput, MANIFEST_FORMAT_VERSION, Manifest};
pub use measured::{Files, measured_archive, measured_files};

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{artifact::ArtifactError, npz::ArrayError};

/// The folder, within that of the run.
pub const DEPLOY: &str = "deploy";

/// Why something cannot be deployed, or what came back cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// A file or folder cannot be made or read.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// One of our own files.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// An array file.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// What came back does not belong here, or says nothing.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why, with the cure.
        reason: String,
    },
}

impl DeployError {
    /// The file that it is about, where it is one from elsewhere.
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. } | Self::Content { path, .. } => Some(path),
            Self::Artifact(_) | Self::Array(_) => None,
        }
    }

    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    fn content(path: &Path, reason: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), reason: reason.into() }
    }
}
