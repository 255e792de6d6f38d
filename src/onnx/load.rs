//! Reading models.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;

use super::{
    Model,
    external::{self, ExternalError},
    mapped::read,
    proto::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto},
    scan::{ScanError, scan},
};
use crate::{
    artifact::{ArtifactError, ContentHash, Reading, open_regular, works_on},
    tensor::Values,
};

/// Why a model cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] ArtifactError),
    /// The file holds something else.
    #[error("{model} is not a usable ONNX model: {reason}")]
    NotAModel {
        /// File or other name.
        model: String,
        /// What it is instead.
        reason: String,
    },
    /// Damaged, hostile, or from a newer ONNX.
    #[error("cannot read {model}")]
    Scan {
        /// File or other name.
        model: String,
        /// The cause.
        source: ScanError,
    },
    /// The protobuf is malformed.
    #[error("{model} is damaged: {source}")]
    Decode {
        /// File or other name.
        model: String,
        /// The cause.
        source: prost::DecodeError,
    },
    /// External data cannot be used.
    #[error("cannot read the external data of {model}")]
    External {
        /// File.
        model: String,
        /// The cause.
        source: ExternalError,
    },
    /// Protobuf ends at 2 GB.
    #[error(
        "{model} needs {bytes} bytes in one piece, but protobuf ends at 2 GB; save it to a file with external data"
    )]
    TooLarge {
        /// File or other name.
        model: String,
        /// Its serialized size.
        bytes: usize,
    },
}

/// A model's file, decoded, and the files of its external data.
fn open(path: &Path) -> Result<(Bytes, ModelProto, Vec<PathBuf>), ModelError> {
    let name = path.display().to_string();
    let unreadable = |source| ArtifactError::Read { path: path.to_owned(), source };
    let bytes = read(path).map_err(unreadable)?;
    let mut proto = decode(&bytes, &name)?;
    let files = external::resolve(&mut proto, &external::Folders::of(path))
        .map_err(|source| ModelError::External { model: name, source })?;
    Ok((bytes, proto, files))
}

/// Bytes of a model's file and of the files of its external data, whole, as they are to be stored.
///
/// # Errors
/// As of [`Model::load`].
pub fn file_bytes(path: &Path) -> Result<u64, ModelError> {
    let (bytes, _, files) = open(path)?;
    let of_file = |file: &PathBuf| {
        let unreadable = |source| ArtifactError::Read { path: file.clone(), source };
        Ok(std::fs::metadata(file).map_err(unreadable)?.len())
    };
    let beside = files.iter().map(of_file).sum::<Result<u64, ModelError>>()?;
    Ok(bytes.len() as u64 + beside)
}

/// Files of a model's external data.
///
/// # Errors
/// As of [`Model::load`].
pub fn external_files(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    Ok(open(path)?.2)
}

impl Model {
    /// Reads a model and its external data.
    ///
    /// Large files are memory-mapped and weights are not copied. Nodes without a name get one, so that everything
    /// later can name them.
    ///
    /// # Errors
    /// Unreadable, damaged and hostile files, fields of a newer ONNX that would be lost, and external data that is
    /// missing, too short, or outside the model's folder.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        works_on(path);
        let _reading = Reading::of(path);
        let (bytes, proto, files) = open(path)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        for file in &files {
            // Read, not mapped: hashing must not pull gigabytes of weights into the process.
            let hashed = open_regular(file).and_then(|file| hasher.update_reader(file).map(drop));
            hashed.map_err(|source| ArtifactError::Read { path: file.clone(), source })?;
        }
        let hash = ContentHash::from(hasher);
        Ok(Self::new(proto, Some(path.to_owned()), hash, !files.is_empty()))
    }

    /// Decodes a model in memory. External data stays unread.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, ModelError> {
        let bytes = bytes.into();
        let proto = decode(&bytes, "the model")?;
        Ok(Self::new(proto, None, ContentHash::of_bytes(&bytes), false))
    }

    fn new(mut proto: ModelProto, path: Option<PathBuf>, hash: ContentHash, external_data: bool) -> Self {
        use_default_domain(&mut proto);
        if let Some(graph) = &mut proto.graph {
            let mut taken = HashSet::new();
            visit_graphs(graph, &mut |graph| taken.extend(graph.node.iter().map(|node| node.name().to_owned())));
            visit_graphs(graph, &mut |graph| {
                name_nodes(graph, &mut taken);
                fill_sparse(graph);
                graph.initializer.iter_mut().for_each(move_to_raw_data);
            });
        }
        Self { proto, path, hash, external_data, stands_for: BTreeMap::new() }
    }
}

/// Files that are taken for models: where they have which bytes, and what they are. None of these bytes begins a model:
/// its first field is the version of the format.
const OTHER_FILES: [(usize, &[u8], &str); 6] = [
    (
        0,
        b"PK\x03\x04",
        "it is a Zip archive, such as a PyTorch checkpoint or .npz; export the model with torch.onnx.export",
    ),
    (0, b"\x89PNG", "it is a PNG image"),
    (0, b"\xff\xd8\xff", "it is a JPEG image"),
    (0, b"\x89HDF", "it is an HDF5 file, such as a Keras model; convert it with tf2onnx"),
    (0, b"\x1f\x8b", "it is compressed with gzip; unpack it"),
    (4, b"TFL3", "it is a TensorFlow Lite model; convert it with tf2onnx"),
];

fn decode(bytes: &Bytes, name: &str) -> Result<ModelProto, ModelError> {
    let not_a_model = |reason: &str| ModelError::NotAModel { model: name.to_owned(), reason: reason.to_owned() };
    if bytes.is_empty() {
        return Err(not_a_model("the file is empty"));
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(not_a_model("it is a Git LFS pointer; fetch the real file with `git lfs pull`"));
    }
    if bytes.iter().take(64).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        return Err(not_a_model("it is text"));
    }
    if let Some((.., what)) =
        OTHER_FILES.iter().find(|(at, magic, _)| bytes[(*at).min(bytes.len())..].starts_with(magic))
    {
        return Err(not_a_model(what));
    }
    scan(bytes).map_err(|source| ModelError::Scan { model: name.to_owned(), source })?;
    let proto =
        ModelProto::decode(bytes.clone()).map_err(|source| ModelError::Decode { model: name.to_owned(), source })?;
    if proto.graph.is_none() {
        return Err(not_a_model("it has no graph"));
    }
    Ok(proto)
}

/// Names the unnamed nodes after their operator and place: `Conv_17`.
fn name_nodes(graph: &mut GraphProto, taken: &mut HashSet<String>) {
    for (index, node) in graph.node.iter_mut().enumerate().filter(|(_, node)| node.name().is_empty()) {
        let mut name = node.label(index);
        while !taken.insert(name.clone()) {
            name.push('_');
        }
        node.name = Some(name);
    }
}

/// The other name of the standard operators' domain.
const LONG_DOMAIN: &str = "ai.onnx";

/// The standard operators have two names, of which everything behind this knows the empty one.
fn use_default_domain(proto: &mut ModelProto) {
    for import in proto.opset_import.iter_mut().filter(|import| import.domain() == LONG_DOMAIN) {
        import.domain = None;
    }
    // Both names with one version are one; with two versions nothing tells which is meant, and the diagnosis says so.
    let mut named = BTreeSet::new();
    proto.opset_import.retain(|import| named.insert((import.domain().to_owned(), import.version)));
    let rename = |node: &mut NodeProto| node.domain = node.domain.take().filter(|domain| domain != LONG_DOMAIN);
    if let Some(graph) = &mut proto.graph {
        visit_graphs(graph, &mut |graph| graph.node.iter_mut().for_each(rename));
    }
}

/// Most bytes that a sparse constant is written out to.
const SPARSE_BYTES: usize = 1 << 30;

/// Sparse constants become ordinary ones, which everything behind this knows. What is malformed or too large stays as it is.
fn fill_sparse(graph: &mut GraphProto) {
    let mut room = SPARSE_BYTES;
    let sparse = std::mem::take(&mut graph.sparse_initializer);
    for constant in sparse {
        match filled(&constant, &mut room) {
            Some(filled) => graph.initializer.push(filled),
            None => graph.sparse_initializer.push(constant),
        }
    }
    for node in graph.node.iter_mut().filter(|node| node.is_standard() && node.op_type() == "Constant") {
        let mut filled = |attribute: &AttributeProto| filled(attribute.sparse_tensor.as_deref()?, &mut room);
        if let [attribute] = &mut node.attribute[..]
            && let Some(filled) = filled(attribute)
        {
            *attribute = AttributeProto::tensor("value", filled);
        }
    }
}

/// A sparse constant with its zeros. Its indices count the values in row-major order, or have one column an axis.
fn filled(sparse: &SparseTensorProto, room: &mut usize) -> Option<TensorProto> {
    let (values, indices) = (sparse.values.as_ref()?, sparse.indices.as_ref()?);
    let shape: Vec<usize> = sparse.dims.iter().map(|&extent| usize::try_from(extent).ok()).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent))?;
    let (given, indices) = (values.to_tensor().ok()?, indices.to_tensor().ok()?);
    let size = given.element_type().size();
    *room = room.checked_sub(count.checked_mul(size)?)?;
    let Values::I64(indices) = indices.into_parts().1 else { return None };
    let stored = given.values().view().bytes();
    let columns = if indices.len() == stored.len() / size { 1 } else { shape.len() };
    if columns == 0 || indices.len() != columns * (stored.len() / size) {
        return None;
    }
    let mut bytes = vec![0; count.checked_mul(size)?];
    for (value, index) in stored.chunks_exact(size).zip(indices.chunks_exact(columns)) {
        let flat = if columns == 1 {
            usize::try_from(index[0]).ok()?
        } else {
            let mut flat = 0;
            for (&index, &extent) in index.iter().zip(&shape) {
                flat = flat * extent + usize::try_from(index).ok().filter(|&index| index < extent)?;
            }
            flat
        };
        bytes.get_mut(flat * size..(flat + 1) * size)?.copy_from_slice(value);
    }
    Some(TensorProto {
        name: values.name.clone(),
        dims: sparse.dims.clone(),
        data_type: values.data_type,
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    })
}

/// Weights in typed fields move to `raw_data`, which clones of the model share. What is malformed stays as it is.
fn move_to_raw_data(tensor: &mut TensorProto) {
    if tensor.raw_data.is_some() || tensor.is_external() {
        return;
    }
    if let Ok(values) = tensor.to_tensor() {
        let moved = TensorProto::from_tensor("", values);
        tensor.raw_data = moved.raw_data;
        tensor.float_data = Vec::new();
        tensor.double_data = Vec::new();
        tensor.int32_data = Vec::new();
        tensor.int64_data = Vec::new();
        tensor.uint64_data = Vec::new();
    }
}

/// Visits a graph and those nested in it (as deep as decoding allows: 33).
pub(super) fn visit_graphs(graph: &mut GraphProto, visit: &mut dyn FnMut(&mut GraphProto)) {
    visit(graph);
    for inner in graph.node.iter_mut().flat_map(NodeProto::subgraphs_mut) {
        visit_graphs(inner, visit);
    }
}
