//! The graph of a model as people look at it: its nodes, what feeds them, and what was decided for each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Contents, Placement, Precision, Rule};
use crate::{
    backend::tensorrt::EngineLayer,
    onnx::{
        Model,
        proto::{NodeProto, ValueInfoProto},
    },
};

/// Nodes and edges of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ModelGraph {
    /// In the order of the file.
    pub nodes: Vec<GraphNode>,
}

/// A node and what feeds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GraphNode {
    /// Its name; `op_type_index` for a node without one.
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// Places of the nodes whose results it reads, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<usize>,
    /// What it computes in, where that was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// What belongs to it, where the file was looked into ([`ModelGraph::read`]).
    #[serde(skip)]
    #[schemars(skip)]
    pub contents: Option<Contents>,
}

impl GraphNode {
    /// Its precision in words, which tell where a plan chose it over a quantized one.
    pub fn precision_in_words(&self) -> Option<String> {
        let precision = self.precision?;
        let lifted = self.rule == Some(Rule::Planned) && !precision.is_quantized();
        Some(if lifted { format!("lifted to {precision}") } else { precision.to_string() })
    }
}

impl ModelGraph {
    /// The main graph of a model. What nested graphs read of it counts as read by the node that holds them.
    pub fn of(model: &Model) -> Self {
        let nodes = &model.graph().node;
        let producers: BTreeMap<&str, usize> = nodes
            .iter()
            .enumerate()
            .flat_map(|(index, node)| node.output.iter().map(move |output| (output.as_str(), index)))
            .filter(|(output, _)| !output.is_empty())
            .collect();
        let node = |(index, node): (usize, &NodeProto)| {
            let mut read: Vec<&str> = node.input.iter().map(String::as_str).collect();
            let mut bodies: Vec<_> = node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()).collect();
            while let Some(body) = bodies.pop() {
                read.extend(body.node.iter().flat_map(|inner| &inner.input).map(String::as_str));
                read.extend(body.output.iter().map(ValueInfoProto::name));
                bodies.extend(body.node.iter().flat_map(|inner| &inner.attribute).filter_map(|a| a.g.as_ref()));
            }
            let mut from: Vec<usize> = read.into_iter().filter_map(|input| producers.get(input).copied()).collect();
            from.sort_unstable();
            from.dedup();
            from.retain(|&other| other != index);
            let (name, op_type) = (node.label(index), node.op_type().to_owned());
            GraphNode { name, op_type, from, precision: None, rule: None, contents: None }
        };
        Self { nodes: nodes.iter().enumerate().map(node).collect() }
    }

    /// The layers of an engine, joined by the tensors between them; the type that a layer multiplies in is its precision.
    pub fn of_engine(layers: &[EngineLayer]) -> Self {
        let producers: BTreeMap<&str, usize> = layers
            .iter()
            .enumerate()
            .flat_map(|(index, layer)| layer.outputs.iter().map(move |output| (output.name.as_str(), index)))
            .collect();
        let node = |(index, layer): (usize, &EngineLayer)| {
            let reads = layer.inputs.iter().filter_map(|input| producers.get(input.name.as_str()).copied());
            let from: std::collections::BTreeSet<usize> = reads.filter(|&other| other != index).collect();
            GraphNode {
                name: layer.name.clone(),
                op_type: layer.layer_type.clone(),
                from: from.into_iter().collect(),
                precision: layer.precision.name().to_lowercase().parse().ok(),
                rule: None,
                contents: None,
            }
        };
        Self { nodes: layers.iter().enumerate().map(node).collect() }
    }

    /// The same with what was decided for every node. One that fuses with a quantized operator is computed in its kernel.
    #[must_use]
    pub fn decided(mut self, placement: &Placement) -> Self {
        let decisions: BTreeMap<&str, _> = placement.decisions.iter().map(|made| (made.node.as_str(), made)).collect();
        let quantized = placement.decisions.iter().map(|made| made.precision).find(|kind| kind.is_quantized());
        for node in &mut self.nodes {
            if let Some(made) = decisions.get(node.name.as_str()) {
                let fused = quantized.filter(|_| made.rule == Rule::Fused);
                (node.precision, node.rule) = (Some(fused.unwrap_or(made.precision)), Some(made.rule));
            }
        }
        self
    }
}
