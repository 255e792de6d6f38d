//! ONNX models: the protobuf, a view of the graph, edits, and a diagnosis of what is wrong with a model.

mod batch;
mod diagnose;
mod external;
pub mod graph;
mod inline;
mod load;
mod mapped;
mod node;
pub(crate) mod operators;
pub mod proto;
mod recurrent;
mod save;
mod scan;
#[cfg(test)]
pub(crate) mod tests;
mod weights;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

pub use diagnose::{Finding, Rule, Severity, diagnose};
pub use external::ExternalError;
pub(crate) use graph::captured;
pub use graph::{GraphError, GraphView, NodeId, Use};
pub use load::{ModelError, external_files, file_bytes};
pub use mapped::release;
use node::is_default_domain;
pub use operators::Fact;
use proto::{GraphProto, ModelProto, OperatorSetIdProto};
pub use save::MAX_MESSAGE_BYTES;
pub use scan::ScanError;
pub use weights::{TensorError, bytes_of};

use crate::artifact::ContentHash;

/// An ONNX model in memory.
///
/// Cloning is cheap: the weights are shared.
#[derive(Clone, Debug)]
pub struct Model {
    /// The decoded protobuf. Its tensors hold their data: external data is mapped at load.
    pub proto: ModelProto,
    /// The file it came from.
    pub path: Option<PathBuf>,
    /// BLAKE3 of the file (and of its external data files). Edits do not change it.
    pub hash: ContentHash,
    /// Whether the weights came from files beside the model; saving then writes them so again.
    pub external_data: bool,
    /// The nodes that folding took out, by name.
    pub stands_for: BTreeMap<String, Folded>,
}

/// A node that folding took out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Its operator.
    pub op_type: String,
    /// The nodes that compute what it did; none for what copies or is constant.
    pub into: BTreeSet<String>,
}

impl Model {
    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        self.proto.graph()
    }

    /// The main graph, to edit.
    pub fn graph_mut(&mut self) -> &mut GraphProto {
        self.proto.graph.get_or_insert_default()
    }

    /// Operator of every node of the main graph, by the node's name.
    pub fn op_types(&self) -> BTreeMap<String, String> {
        self.graph().node.iter().map(|node| (node.name().to_owned(), node.op_type().to_owned())).collect()
    }

    /// Version of the operator set `domain` (`""` for the standard one) that the model imports.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        self.proto.opset(domain)
    }

    /// Sets the version of `domain`, importing it when the model does not yet.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        self.proto.set_opset(domain, version);
    }

    /// The names and operators by which rules know each node beside its own: those of nodes that folding put into it.
    pub fn known_as(&self) -> BTreeMap<String, Vec<(String, String)>> {
        let mut known: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for (gone, folded) in &self.stands_for {
            for node in &folded.into {
                known.entry(node.clone()).or_default().push((gone.clone(), folded.op_type.clone()));
            }
        }
        known
    }

    /// The same model with another protobuf.
    #[must_use]
    pub fn with_proto(&self, proto: ModelProto) -> Self {
        Self { proto, ..self.clone() }
    }

    /// The file's name for messages.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "the model".to_owned(), |path| path.display().to_string())
    }
}

impl ModelProto {
    /// The main graph; an empty one when the message has none.
    pub fn graph(&self) -> &GraphProto {
        static EMPTY: std::sync::LazyLock<GraphProto> = std::sync::LazyLock::new(GraphProto::default);
        self.graph.as_ref().unwrap_or(&EMPTY)
    }

    /// See [`Model::opset`].
    pub fn opset(&self, domain: &str) -> Option<i64> {
        self.opset_import.iter().find(|import| same_domain(import.domain(), domain)).map(OperatorSetIdProto::version)
    }

    /// See [`Model::set_opset`].
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        match self.opset_import.iter_mut().find(|import| same_domain(import.domain(), domain)) {
            Some(import) => import.version = Some(version),
            None => {
                self.opset_import.push(OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) });
            }
        }
    }
}

fn same_domain(a: &str, b: &str) -> bool {
    a == b || (is_default_domain(a) && is_default_domain(b))
}
