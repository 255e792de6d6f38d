//! Constants that nothing reads any more: each is bytes, and a warning of ONNX Runtime to whoever loads the model.

use std::collections::BTreeSet;

use super::names::collect;
use crate::onnx::proto::GraphProto;

/// Constants of a graph that nothing reads.
pub(super) fn unread(graph: &GraphProto) -> BTreeSet<String> {
    let mut read = BTreeSet::new();
    read.extend(graph.output.iter().map(|info| info.name().to_owned()));
    for node in &graph.node {
        read.extend(node.input.iter().cloned());
        node.subgraphs().for_each(|graph| collect(graph, &mut read));
    }
    let constants = graph.initializer.iter().map(|tensor| tensor.name().to_owned());
    constants.filter(|name| !read.contains(name)).collect()
}

/// Removes constants that nothing reads, also where they are declared as inputs; those of `known` stay, with which the model came.
pub(super) fn drop_unread(graph: &mut GraphProto, known: &BTreeSet<String>) {
    let unread = unread(graph);
    let keep = |name: &str| !unread.contains(name) || known.contains(name);
    graph.initializer.retain(|tensor| keep(tensor.name()));
    graph.input.retain(|info| keep(info.name()));
    graph.value_info.retain(|info| keep(info.name()));
}
