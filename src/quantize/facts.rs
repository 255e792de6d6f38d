//! What the rules ask about a graph: constants, shapes, and what lies before and behind a node.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    backend::TensorInfo,
    onnx::{
        GraphError, GraphView, NodeId,
        proto::{GraphProto, NodeProto, TensorProto},
    },
    tensor::ElementType,
};

/// How far a search for an operator behind another goes through copying or fused ones.
pub(super) const REACH: usize = 16;

/// A graph view with element types and shapes.
pub(super) struct Facts<'a> {
    pub view: GraphView<'a>,
    infos: BTreeMap<String, TensorInfo>,
    position: Vec<usize>,
}

impl<'a> Facts<'a> {
    /// Facts of `graph`; `known` adds what the file does not say (a runtime's inferred shapes).
    pub fn new(graph: &'a GraphProto, known: &BTreeMap<String, TensorInfo>) -> Result<Self, GraphError> {
        let view = GraphView::new(graph)?;
        let infos = tensor_infos(graph, known);
        let mut position = vec![0; graph.node.len()];
        for (place, id) in view.topological_order().iter().enumerate() {
            position[id.0] = place;
        }
        Ok(Self { view, infos, position })
    }

    /// The tensor at `input` of a node; `None` when it is left out.
    pub fn input(&self, id: NodeId, input: usize) -> Option<&'a str> {
        self.view.node(id).input.get(input).map(String::as_str).filter(|tensor| !tensor.is_empty())
    }

    /// The initializer that holds the input of a node.
    pub fn constant(&self, id: NodeId, input: usize) -> Option<&'a TensorProto> {
        self.view.initializer(self.input(id, input)?)
    }

    /// True for a tensor that depends on the data.
    pub fn is_activation(&self, tensor: &str) -> bool {
        self.view.initializer(tensor).is_none()
    }

    /// Extents of a tensor; an inner `None` is a dynamic one.
    pub fn shape(&self, tensor: &str) -> Option<Vec<Option<usize>>> {
        match self.view.initializer(tensor) {
            Some(constant) => Some(constant.shape().ok()?.into_iter().map(Some).collect()),
            None => self.infos.get(tensor).map(|info| info.shape.clone()),
        }
    }

    /// The extent of a tensor, counted from the last axis (0).
    pub fn extent_from_end(&self, tensor: &str, from_end: usize) -> Option<usize> {
        let shape = self.shape(tensor)?;
        *shape.get(shape.len().checked_sub(from_end + 1)?)?
    }

    /// Type of a tensor's elements, where it is known.
    pub fn element_type(&self, tensor: &str) -> Option<ElementType> {
        match self.view.initializer(tensor) {
            Some(constant) => constant.element_type().ok(),
            None => self.infos.get(tensor)?.element_type,
        }
    }

    /// The standard operator that makes `tensor`.
    pub fn producer(&self, tensor: &str) -> Option<(NodeId, &'a NodeProto)> {
        let id = self.view.producer(tensor)?;
        let node = self.view.node(id);
        node.is_standard().then_some((id, node))
    }

    /// Searches backwards from `tensor` through nodes that `through` lets pass, along the inputs that it names.
    pub fn behind(
        &self,
        tensor: &str,
        found: &dyn Fn(NodeId, &NodeProto) -> bool,
        through: &dyn Fn(&NodeProto) -> bool,
    ) -> bool {
        let mut seen = BTreeSet::new();
        let mut front = vec![tensor];
        for _ in 0..REACH {
            let producers: Vec<_> = front.drain(..).filter_map(|tensor| self.producer(tensor)).collect();
            for (id, node) in producers {
                if found(id, node) {
                    return true;
                }
                if seen.insert(id) && through(node) {
                    front.extend(node.input.iter().map(String::as_str).filter(|input| self.is_activation(input)));
                }
            }
        }
        false
    }

    /// Searches forwards from `tensor`: true when some path through `through` reaches a `found` node.
    pub fn ahead(
        &self,
        tensor: &str,
        found: &dyn Fn(NodeId, &NodeProto) -> bool,
        through: &dyn Fn(&NodeProto) -> bool,
    ) -> bool {
        let mut seen = BTreeSet::new();
        let mut front = vec![tensor];
        for _ in 0..REACH {
            let uses: Vec<_> = front.drain(..).flat_map(|tensor| self.view.consumers(tensor)).collect();
            for id in uses.into_iter().map(|u| u.node).filter(|&id| seen.insert(id)) {
                let node = self.view.node(id);
                if found(id, node) {
                    return true;
                }
                if through(node) {
                    front.extend(node.output.iter().map(String::as_str));
                }
            }
        }
        false
    }

    /// True when `tensor` weighs whole channels of a map (squeeze-and-excitation and its kin): values without spatial
    /// extents that, through nothing but such values, become a factor of a tensor with spatial extents.
    pub fn is_gate(&self, tensor: &str) -> bool {
        let is_map = |node: &NodeProto| node.output.first().is_some_and(|output| self.is_vector(output) == Some(false));
        let is_vector = |node: &NodeProto| node.output.first().is_some_and(|out| self.is_vector(out) == Some(true));
        self.is_vector(tensor) == Some(true)
            && self.ahead(tensor, &|_, node| node.op_type() == "Mul" && is_map(node), &is_vector)
    }

    /// Whether a tensor has nothing but a batch and channels; `None` when its shape is not known.
    fn is_vector(&self, tensor: &str) -> Option<bool> {
        let shape = self.shape(tensor)?;
        Some(shape.iter().skip(2).all(|extent| *extent == Some(1)))
    }

    /// Steps from the producers of two tensors to their latest common ancestor; `None` without one.
    pub fn distances_to_common_ancestor(&self, a: &'a str, b: &'a str) -> Option<(usize, usize)> {
        let (from_a, from_b) = (self.ancestors(a), self.ancestors(b));
        let common = from_a.keys().filter(|tensor| from_b.contains_key(*tensor));
        let latest = common.max_by_key(|tensor| self.producer_position(tensor))?;
        Some((from_a[latest], from_b[latest]))
    }

    /// Every tensor that `tensor` depends on (itself included) with its distance in nodes.
    fn ancestors(&self, tensor: &'a str) -> BTreeMap<&'a str, usize> {
        let mut distances = BTreeMap::new();
        let mut front = vec![tensor];
        for distance in 0.. {
            front.retain(|tensor| self.is_activation(tensor) && !distances.contains_key(tensor));
            if front.is_empty() {
                break;
            }
            distances.extend(front.iter().map(|tensor| (*tensor, distance)));
            let producers = front.drain(..).filter_map(|tensor| self.view.producer(tensor)).collect::<BTreeSet<_>>();
            front = producers.into_iter().flat_map(|id| &self.view.node(id).input).map(String::as_str).collect();
        }
        distances
    }

    /// Order of the tensors' making: 0 for graph inputs.
    fn producer_position(&self, tensor: &str) -> usize {
        self.view.producer(tensor).map_or(0, |id| self.position[id.0] + 1)
    }
}

/// What is known of tensors: what the file declares, overruled by `known`.
pub(super) fn tensor_infos(graph: &GraphProto, known: &BTreeMap<String, TensorInfo>) -> BTreeMap<String, TensorInfo> {
    let declared = graph.input.iter().chain(&graph.output).chain(&graph.value_info).filter_map(TensorInfo::declared);
    let mut infos: BTreeMap<_, _> = declared.map(|info| (info.name.clone(), info)).collect();
    infos.extend(known.iter().map(|(name, info)| (name.clone(), info.clone())));
    infos
}

/// Number of axes of every tensor where it is known.
pub(super) fn ranks(graph: &GraphProto, known: &BTreeMap<String, TensorInfo>) -> BTreeMap<String, usize> {
    tensor_infos(graph, known).into_iter().map(|(name, info)| (name, info.shape.len())).collect()
}
