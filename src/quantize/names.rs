//! Names that nothing in a model has yet.

use std::collections::BTreeSet;

use crate::onnx::proto::GraphProto;

/// Every name in a model, and those given out since.
pub(super) struct Names(BTreeSet<String>);

impl Names {
    pub fn of(graph: &GraphProto) -> Self {
        let mut names = BTreeSet::new();
        collect(graph, &mut names);
        Self(names)
    }

    /// `base`, with a number behind it when it is taken.
    pub fn fresh(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        let mut number = 0;
        while !self.0.insert(name.clone()) {
            number += 1;
            name = format!("{base}_{number}");
        }
        name
    }

    /// `tensor_suffix`, or that with a number.
    pub fn derived(&mut self, tensor: &str, suffix: &str) -> String {
        self.fresh(&format!("{tensor}_{suffix}"))
    }
}

/// Names of tensors and nodes in a graph and in the graphs within it.
pub(super) fn collect(graph: &GraphProto, names: &mut BTreeSet<String>) {
    names.extend(graph.input.iter().chain(&graph.output).map(|info| info.name().to_owned()));
    names.extend(graph.initializer.iter().map(|tensor| tensor.name().to_owned()));
    names.extend(graph.sparse_initializer.iter().filter_map(|tensor| Some(tensor.values.as_ref()?.name().to_owned())));
    for node in &graph.node {
        names.insert(node.name().to_owned());
        names.extend(node.input.iter().chain(&node.output).cloned());
        node.subgraphs().for_each(|graph| collect(graph, names));
    }
}
