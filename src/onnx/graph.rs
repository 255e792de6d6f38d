//! An index over a graph: who makes a tensor, who uses it, and in which order nodes can run.
//!
//! A [`GraphView`] borrows the graph and copies neither weights nor nodes. Making one proves that no tensor has two
//! producers and that the graph has no cycle, so everything that takes a view may rely on both.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
};

use super::proto::{GraphProto, NodeProto, TensorProto};

/// Index of a node in its [`GraphProto::node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// One use of a tensor by a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Use {
    /// The node that reads the tensor.
    pub node: NodeId,
    /// Which of the node's inputs it is; `None` when a subgraph of the node (`If`, `Loop`, `Scan`) captures it.
    pub input: Option<usize>,
}

/// Why a graph cannot be viewed.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// A tensor has several producers.
    #[error("tensor `{tensor}` is made more than once, by {first} and by {second}; give one of them another name")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// Its first producer.
        first: String,
        /// Its second producer.
        second: String,
    },
    /// Some nodes wait for each other.
    #[error("the graph has a cycle through node `{node}`; export the model again")]
    Cycle {
        /// A node on the cycle.
        node: String,
    },
}

/// An index over one graph; subgraphs get views of their own.
#[derive(Debug)]
pub struct GraphView<'a> {
    graph: &'a GraphProto,
    origins: HashMap<&'a str, Origin>,
    uses: HashMap<&'a str, Vec<Use>>,
    outputs: BTreeSet<&'a str>,
    names: HashMap<&'a str, NodeId>,
    order: Vec<NodeId>,
}

/// Where a tensor comes from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    /// Declared among the graph's inputs.
    input: bool,
    /// Index in `graph.initializer`.
    initializer: Option<usize>,
    node: Option<NodeId>,
}

impl<'a> GraphView<'a> {
    /// Indexes `graph`.
    ///
    /// # Errors
    /// A tensor with two producers, or a cycle.
    pub fn new(graph: &'a GraphProto) -> Result<Self, GraphError> {
        let mut view = Self {
            graph,
            origins: origins(graph)?,
            uses: HashMap::new(),
            outputs: graph.output.iter().map(super::proto::ValueInfoProto::name).collect(),
            names: HashMap::new(),
            order: Vec::new(),
        };
        for (id, node) in view.nodes() {
            view.names.entry(node.name()).or_insert(id);
            for (index, tensor) in node.input.iter().enumerate().filter(|(_, tensor)| !tensor.is_empty()) {
                view.uses.entry(tensor).or_default().push(Use { node: id, input: Some(index) });
            }
            for tensor in node.subgraphs().flat_map(captured).collect::<BTreeSet<_>>() {
                view.uses.entry(tensor).or_default().push(Use { node: id, input: None });
            }
        }
        view.order = view.sort()?;
        Ok(view)
    }

    /// The graph itself.
    pub fn graph(&self) -> &'a GraphProto {
        self.graph
    }

    /// All nodes in the order of the file.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &'a NodeProto)> + use<'a> {
        self.graph.node.iter().enumerate().map(|(index, node)| (NodeId(index), node))
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> &'a NodeProto {
        &self.graph.node[id.0]
    }

    /// The node of this name (the first, when several share it).
    pub fn node_named(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// The node that makes `tensor`; `None` for graph inputs, initializers and undefined tensors.
    pub fn producer(&self, tensor: &str) -> Option<NodeId> {
        self.origins.get(tensor)?.node
    }

    /// All uses of `tensor`, in the order of the nodes.
    pub fn consumers(&self, tensor: &str) -> &[Use] {
        self.uses.get(tensor).map_or(&[], Vec::as_slice)
    }

    /// The initializer that holds `tensor` (dense ones only).
    pub fn initializer(&self, tensor: &str) -> Option<&'a TensorProto> {
        self.graph.initializer.get(self.origins.get(tensor)?.initializer?)
    }

    /// True for a tensor among the graph's declared inputs.
    pub fn is_graph_input(&self, tensor: &str) -> bool {
        self.origins.get(tensor).is_some_and(|origin| origin.input)
    }

    /// True for a tensor among the graph's outputs.
    pub fn is_graph_output(&self, tensor: &str) -> bool {
        self.outputs.contains(tensor)
    }

    /// True when a graph input, an initializer (also a sparse one) or a node defines `tensor`.
    pub fn is_defined(&self, tensor: &str) -> bool {
        self.origins.contains_key(tensor)
    }

    /// All nodes, producers before consumers; among those that are ready the one that comes first in the file.
    pub fn topological_order(&self) -> &[NodeId] {
        &self.order
    }

    /// Kahn's algorithm over direct and captured uses.
    fn sort(&self) -> Result<Vec<NodeId>, GraphError> {
        let mut waits_for = vec![0usize; self.graph.node.len()];
        let mut followers: Vec<Vec<NodeId>> = vec![Vec::new(); self.graph.node.len()];
        for (tensor, uses) in &self.uses {
            let Some(producer) = self.producer(tensor) else { continue };
            for consumer in uses {
                waits_for[consumer.node.0] += 1;
                followers[producer.0].push(consumer.node);
            }
        }
        let is_ready = |(id, &count): (usize, &usize)| (count == 0).then_some(Reverse(NodeId(id)));
        let mut ready: BinaryHeap<_> = waits_for.iter().enumerate().filter_map(is_ready).collect();
        let mut order = Vec::with_capacity(self.graph.node.len());
        while let Some(Reverse(id)) = ready.pop() {
            order.push(id);
            for follower in &followers[id.0] {
                waits_for[follower.0] -= 1;
                if waits_for[follower.0] == 0 {
                    ready.push(Reverse(*follower));
                }
            }
        }
        if order.len() < self.graph.node.len() {
            return Err(GraphError::Cycle { node: self.node_on_cycle(&waits_for, &followers) });
        }
        Ok(order)
    }

    /// A node on a cycle, among those that still wait after sorting.
    fn node_on_cycle(&self, waits_for: &[usize], followers: &[Vec<NodeId>]) -> String {
        // Every waiting node has a waiting predecessor: walking back must come round to a cycle.
        let mut before = vec![None; waits_for.len()];
        for (id, _) in waits_for.iter().enumerate().filter(|(_, count)| **count > 0) {
            for follower in &followers[id] {
                before[follower.0] = Some(id);
            }
        }
        let mut seen = vec![false; waits_for.len()];
        let mut at = waits_for.iter().position(|&count| count > 0).unwrap_or_default();
        while !std::mem::replace(&mut seen[at], true) {
            at = before[at].unwrap_or(at);
        }
        self.graph.node[at].label(at)
    }
}

/// Records who makes each tensor. An initializer may give a graph input its default value.
fn origins(graph: &GraphProto) -> Result<HashMap<&str, Origin>, GraphError> {
    let mut origins: HashMap<&str, Origin> = HashMap::new();
    let duplicate = |tensor: &str, first: &Origin, second: String| {
        let first = match first {
            Origin { node: Some(id), .. } => format!("node `{}`", graph.node[id.0].label(id.0)),
            Origin { input: true, .. } => "a graph input".to_owned(),
            _ => "an initializer".to_owned(),
        };
        GraphError::Duplicate { tensor: tensor.to_owned(), first, second }
    };
    for input in &graph.input {
        let origin = Origin { input: true, initializer: None, node: None };
        if let Some(first) = origins.insert(input.name(), origin) {
            return Err(duplicate(input.name(), &first, "another graph input".to_owned()));
        }
    }
    let dense = graph.initializer.iter().enumerate().map(|(index, tensor)| (Some(index), tensor.name()));
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| Some((None, tensor.values.as_ref()?.name())));
    let mut initialized = BTreeSet::new();
    for (index, name) in dense.chain(sparse) {
        let origin = origins.entry(name).or_insert(Origin { input: false, initializer: None, node: None });
        if !initialized.insert(name) {
            return Err(duplicate(name, &Origin { input: false, ..*origin }, "another initializer".to_owned()));
        }
        origin.initializer = index;
    }
    for (index, node) in graph.node.iter().enumerate() {
        for tensor in node.output.iter().filter(|tensor| !tensor.is_empty()) {
            let origin = Origin { input: false, initializer: None, node: Some(NodeId(index)) };
            if let Some(first) = origins.insert(tensor, origin) {
                return Err(duplicate(tensor, &first, format!("node `{}`", node.label(index))));
            }
        }
    }
    Ok(origins)
}

/// Names that a subgraph (or a graph nested in it) uses but does not define.
///
/// Recursion is as deep as graphs are nested, which decoding limits to 33.
pub(crate) fn captured(graph: &GraphProto) -> BTreeSet<&str> {
    let inputs = graph.node.iter().flat_map(|node| node.input.iter().map(String::as_str));
    let nested = graph.node.iter().flat_map(NodeProto::subgraphs).flat_map(captured);
    let outputs = graph.output.iter().map(super::proto::ValueInfoProto::name);
    let mut names: BTreeSet<&str> = inputs.chain(nested).chain(outputs).filter(|name| !name.is_empty()).collect();
    let made = graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str));
    let given = graph.input.iter().map(super::proto::ValueInfoProto::name);
    let held = graph.initializer.iter().map(TensorProto::name);
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| Some(tensor.values.as_ref()?.name()));
    for name in made.chain(given).chain(held).chain(sparse) {
        names.remove(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{AttributeProto, ValueInfoProto};

    fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto::new(op_type, outputs[0], inputs, outputs)
    }

    fn named(name: &str) -> ValueInfoProto {
        ValueInfoProto { name: Some(name.to_owned()), ..Default::default() }
    }

    fn graph(nodes: Vec<NodeProto>) -> GraphProto {
        GraphProto { node: nodes, input: vec![named("x")], output: vec![named("y")], ..Default::default() }
    }

    #[test]
    fn nodes_are_sorted_stably_and_uses_are_found() {
        let graph =
            graph(vec![node("Add", &["a", "b"], &["y"]), node("Relu", &["x"], &["b"]), node("Abs", &["x"], &["a"])]);
        let view = GraphView::new(&graph).unwrap();
        assert_eq!(view.topological_order(), [NodeId(1), NodeId(2), NodeId(0)]);
        assert_eq!(view.producer("a"), Some(NodeId(2)));
        assert_eq!(view.producer("x"), None);
        let uses: Vec<_> = view.consumers("x").iter().map(|u| (u.node.0, u.input)).collect();
        assert_eq!(uses, [(1, Some(0)), (2, Some(0))]);
        assert!(view.is_graph_input("x") && view.is_graph_output("y") && !view.is_graph_output("a"));
        assert_eq!(view.node_named("b"), Some(NodeId(1)));
        assert!(view.consumers("nothing").is_empty() && !view.is_defined("nothing"));
    }

    #[test]
    fn a_subgraph_orders_its_node_behind_what_it_captures() {
        let inner = GraphProto {
            node: vec![node("Add", &["late", "local"], &["z"])],
            initializer: vec![TensorProto { name: Some("local".to_owned()), ..Default::default() }],
            output: vec![named("z")],
            ..Default::default()
        };
        let branch = node("If", &["x"], &["y"]).with(AttributeProto::graph("then_branch", inner));
        let graph = graph(vec![branch, node("Abs", &["x"], &["late"])]);
        let view = GraphView::new(&graph).unwrap();
        assert_eq!(view.consumers("late"), [Use { node: NodeId(0), input: None }]);
        assert!(view.consumers("local").is_empty());
        assert_eq!(view.topological_order(), [NodeId(1), NodeId(0)]);
    }

    #[test]
    fn a_cycle_names_a_node_on_it_not_behind_it() {
        let graph = graph(vec![
            node("Relu", &["b"], &["y"]),
            node("Add", &["x", "b"], &["a"]),
            node("Abs", &["a"], &["b"]),
            node("Neg", &["x"], &["free"]),
        ]);
        let error = GraphView::new(&graph).unwrap_err();
        assert!(matches!(&error, GraphError::Cycle { node } if node == "a" || node == "b"), "{error}");
    }

    #[test]
    fn two_producers_are_refused() {
        let twice = graph(vec![node("Relu", &["x"], &["y"]), node("Abs", &["x"], &["y"])]);
        let error = GraphView::new(&twice).unwrap_err().to_string();
        assert!(error.contains("tensor `y` is made more than once, by node `y` and by node `y`"), "{error}");
        let over_input = graph(vec![node("Relu", &["x"], &["x"])]);
        assert!(GraphView::new(&over_input).unwrap_err().to_string().contains("by a graph input"));
    }

    #[test]
    fn an_initializer_may_be_an_input_default() {
        let mut graph = graph(vec![node("Relu", &["x"], &["y"])]);
        graph.initializer.push(TensorProto { name: Some("x".to_owned()), ..Default::default() });
        let view = GraphView::new(&graph).unwrap();
        assert!(view.is_graph_input("x") && view.initializer("x").is_some());
    }
}
