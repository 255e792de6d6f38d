//! ONNX models: the protobuf, a view of the graph, edits, and a diagnosis of what is wrong with a model.

pub mod proto;

use std::path::PathBuf;

use crate::artifact::ContentHash;

/// An ONNX model in memory.
#[derive(Clone, Debug)]
pub struct Model {
    /// The decoded protobuf.
    pub proto: proto::ModelProto,
    /// The file it came from; external data is resolved relative to its folder.
    pub path: Option<PathBuf>,
    /// BLAKE3 of the file (and of its external data files).
    pub hash: ContentHash,
}
