//! Weights in files of their own: reading them safely.
//!
//! A model names its data files, so a hostile model could name any file. Only regular files inside the model's
//! folder are read; absolute paths, `..` and symbolic links that leave the folder are refused, other than those into the
//! folder of the file that the model itself is a link to.

use std::{
    collections::BTreeMap,
    io,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;

use super::{
    mapped::read,
    proto::{DataLocation, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto},
};

/// Why a tensor's external data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// The location is missing or leaves the model's folder.
    #[error("tensor `{tensor}` points to `{location}`, which {reason}")]
    Location {
        /// The tensor.
        tensor: String,
        /// The location as the model has it.
        location: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file cannot be read.
    #[error("tensor `{tensor}` needs {path}{}", unreadable(.source))]
    File {
        /// The tensor.
        tensor: String,
        /// The data file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Offset and length do not fit the file or the tensor.
    #[error("tensor `{tensor}`: {reason}")]
    Range {
        /// The tensor.
        tensor: String,
        /// What does not fit.
        reason: String,
    },
}

/// Why a file cannot be read, and the cure.
fn unreadable(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound => ", which is not there; put it beside the model".to_owned(),
        _ => format!(": {source}"),
    }
}

/// Where a model's data may lie.
pub(super) struct Folders {
    /// The folder that the model's path names: locations are relative to it.
    named: PathBuf,
    /// The folder of the file behind that path, where it is a link: the Hugging Face cache links model and data to files
    /// of one folder.
    behind: Option<PathBuf>,
}

impl Folders {
    /// Of the model at `path`.
    pub(super) fn of(path: &Path) -> Self {
        let named = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let behind = path.canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned()));
        Self { named: named.to_owned(), behind }
    }
}

/// Maps the data of all external tensors into them; gives the files used, sorted.
pub(super) fn resolve(model: &mut ModelProto, folders: &Folders) -> Result<Vec<PathBuf>, ExternalError> {
    let mut files: BTreeMap<PathBuf, Bytes> = BTreeMap::new();
    let mut resolve = |tensor: &mut TensorProto| {
        if tensor.is_external() { resolve_tensor(tensor, folders, &mut files) } else { Ok(()) }
    };
    for training in &mut model.training_info {
        for graph in training.initialization.iter_mut().chain(&mut training.algorithm) {
            visit_graph(graph, &mut resolve)?;
        }
    }
    visit_nodes(model.functions.iter_mut().flat_map(|function| &mut function.node), &mut resolve)?;
    if let Some(graph) = &mut model.graph {
        visit_graph(graph, &mut resolve)?;
    }
    Ok(files.into_keys().collect())
}

type Visit<'a> = dyn FnMut(&mut TensorProto) -> Result<(), ExternalError> + 'a;

/// All tensors of a graph, wherever they are.
fn visit_graph(graph: &mut GraphProto, visit: &mut Visit<'_>) -> Result<(), ExternalError> {
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    for sparse in &mut graph.sparse_initializer {
        sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(&mut *visit)?;
    }
    visit_nodes(&mut graph.node, visit)
}

fn visit_nodes<'a>(
    nodes: impl IntoIterator<Item = &'a mut NodeProto>,
    visit: &mut Visit<'_>,
) -> Result<(), ExternalError> {
    for attribute in nodes.into_iter().flat_map(|node| &mut node.attribute) {
        attribute.t.as_deref_mut().into_iter().chain(&mut attribute.tensors).try_for_each(&mut *visit)?;
        for sparse in attribute.sparse_tensor.as_deref_mut().into_iter().chain(&mut attribute.sparse_tensors) {
            sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(&mut *visit)?;
        }
        for graph in attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs) {
            visit_graph(graph, visit)?;
        }
    }
    Ok(())
}

fn resolve_tensor(
    tensor: &mut TensorProto,
    folders: &Folders,
    files: &mut BTreeMap<PathBuf, Bytes>,
) -> Result<(), ExternalError> {
    let entry =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(StringStringEntryProto::value);
    let path = locate(tensor.name(), entry("location").unwrap_or_default(), folders)?;
    if !files.contains_key(&path) {
        let unreadable = |source| ExternalError::File { tensor: tensor.name().to_owned(), path: path.clone(), source };
        files.insert(path.clone(), read(&path).map_err(unreadable)?);
    }
    let content = &files[&path];
    let range_error = |reason: String| ExternalError::Range { tensor: tensor.name().to_owned(), reason };
    let number = |key: &str| match entry(key) {
        None => Ok(None),
        Some(text) => text
            .parse::<usize>()
            .map(Some)
            .map_err(|_| range_error(format!("the {key} `{text}` of its external data is not a number"))),
    };
    let offset = number("offset")?.unwrap_or(0);
    let end = match number("length")? {
        Some(length) => offset.checked_add(length),
        None => Some(content.len()),
    };
    let end = end.filter(|&end| offset <= end && end <= content.len()).ok_or_else(|| {
        range_error(format!(
            "its external data lies outside its file, which has only {} bytes; the file is cut off or belongs to \
             another model",
            content.len()
        ))
    })?;
    tensor.raw_data = Some(content.slice(offset..end));
    tensor.external_data = Vec::new();
    tensor.data_location = None;
    Ok(())
}

/// The real path of a data file, once it is known to lie inside the folder, or inside that of the file behind a link to the
/// model, as ONNX Runtime has it.
fn locate(tensor: &str, location: &str, folders: &Folders) -> Result<PathBuf, ExternalError> {
    let refuse = |reason| ExternalError::Location { tensor: tensor.to_owned(), location: location.to_owned(), reason };
    if location.is_empty() {
        return Err(refuse("is empty"));
    }
    for component in Path::new(location).components() {
        match component {
            Component::Normal(_) | Component::CurDir => {}
            Component::ParentDir => return Err(refuse("leaves the model's folder by `..`")),
            Component::RootDir | Component::Prefix(_) => return Err(refuse("is an absolute path")),
        }
    }
    let unreadable =
        |path: PathBuf| move |source| ExternalError::File { tensor: tensor.to_owned(), path: path.clone(), source };
    let root = folders.named.canonicalize().map_err(unreadable(folders.named.clone()))?;
    let named = folders.named.join(location);
    let path = named.canonicalize().map_err(unreadable(named))?;
    if !path.starts_with(&root) && !folders.behind.as_ref().is_some_and(|behind| path.starts_with(behind)) {
        return Err(refuse("is a symbolic link out of the model's folder; copy the file into it (`cp -L`)"));
    }
    Ok(path)
}

/// Marks a tensor's data as lying in `location`.
pub(super) fn refer(tensor: &mut TensorProto, location: &str, offset: u64, length: usize) {
    let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
    tensor.raw_data = None;
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = vec![
        entry("location", location.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
}
