//! A model taken apart at its quantized operators, to run in lockstep in float and quantized.
//!
//! Each quantized operator is a session of its own; what lies between operators is computed by sessions that both sides share.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicBool, Ordering},
};

use rayon::prelude::*;

use super::{
    RecoverError,
    state::State,
    unit::{Lane, Unit, WEIGHT},
    weights::Quantized,
};
use crate::{
    backend::{Backend, TensorInfo},
    onnx::{
        GraphView, Model, NodeId, captured,
        proto::{DimensionProto, NodeProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto},
    },
    quantize::{BiasSite, Placement, Reads},
    tensor::{ElementType, Tensor},
};

/// Units in the order of execution.
pub(super) struct Network<'a> {
    pub units: Vec<Unit<'a>>,
    /// Outputs of the model that are judged.
    pub outputs: Vec<String>,
    /// All outputs of the model.
    pub answers: Vec<String>,
    /// For every tensor, the last unit that reads it; outputs of the model are never done with.
    pub last_use: HashMap<String, usize>,
    stop: &'a AtomicBool,
}

/// A quantized operator.
pub(super) struct Operator {
    pub node: String,
    pub op_type: String,
    /// Its quantized activations.
    pub quantized: Vec<String>,
    /// The left factor of a product of two activations.
    pub left: Option<String>,
    pub weight: Option<Weight>,
    /// Output channels, where there is a bias that can take back what they are off by: its own, or a sum behind it.
    pub channels: Option<usize>,
    /// Axes behind the channels, of what it reads and of its result.
    pub behind: usize,
    /// What is applied to its result before anything else reads it.
    pub tail: Tail,
    pub window: Option<Window>,
}

/// The quantized weight of an operator.
pub(super) struct Weight {
    pub name: String,
    /// In `float32`.
    pub tensor: Tensor,
    pub axis: Option<usize>,
    /// Whether no other operator quantizes it.
    pub own: bool,
    /// How it is multiplied with the channels of the activation.
    pub reads: Option<Reads>,
}

impl Weight {
    pub fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    pub fn values(&self) -> Cow<'_, [f32]> {
        self.tensor.view().to_f32()
    }
}

/// How a two-dimensional convolution reads its input; a matrix product has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub group: usize,
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    /// Padding at the begin.
    pub begin: [usize; 2],
}

impl Network<'_> {
    /// Fails once the stop flag is set.
    pub fn check(&self) -> Result<(), RecoverError> {
        if self.stop.load(Ordering::Relaxed) { Err(RecoverError::Stopped) } else { Ok(()) }
    }

    /// Builds what runs with the weights of `state`, before tensors of samples lie around it in memory.
    pub fn quantize(&self, state: &State) -> Result<(), RecoverError> {
        self.units.par_iter().try_for_each(|unit| {
            let Some(operator) = unit.operator.as_ref().filter(|operator| operator.is_grouped()) else { return Ok(()) };
            unit.bound(Quantized::of(operator, state)?.values.as_ref()).map(drop)
        })
    }

    /// Bytes of the tensors that one sample needs at once, as far as shapes are known.
    pub fn bytes(&self, shapes: &BTreeMap<String, TensorInfo>) -> usize {
        let size = |name: &String| {
            let extents = shapes.get(name).map_or(&[][..], |info| &info.shape);
            extents.iter().map(|extent| extent.unwrap_or(1).max(1)).fold(4, usize::saturating_mul)
        };
        let (mut live, mut most) = (BTreeMap::new(), 0usize);
        for (index, unit) in self.units.iter().enumerate() {
            live.extend(unit.inputs.iter().chain(&unit.outputs).map(|name| (name, size(name))));
            most = most.max(live.values().fold(0, |all, &bytes| all.saturating_add(bytes)));
            live.retain(|name, _| self.last_use.get(*name).is_some_and(|&last| last > index));
        }
        most
    }
}

/// A function of single values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tail {
    None,
    Clip(f32, f32),
    Leaky(f32),
    Silu,
}

impl Operator {
    /// One with a weight of ones, a bias and one quantized input.
    #[cfg(test)]
    pub fn convolution(shape: &[usize]) -> Self {
        let reads = None;
        let values = vec![1.0; shape.iter().product()];
        let tensor = Tensor::from_f32(shape.to_vec(), values).unwrap();
        let weight = Weight { name: "w".to_owned(), tensor, axis: Some(0), own: true, reads };
        Self {
            node: "conv".to_owned(),
            op_type: "Conv".to_owned(),
            quantized: vec!["x".to_owned()],
            left: None,
            weight: Some(weight),
            channels: Some(shape[0]),
            behind: shape.len() - 2,
            tail: Tail::None,
            window: None,
        }
    }

    /// Numbers of one channel that lie together in what it reads or in its result.
    pub fn inner(&self, shape: &[usize]) -> usize {
        shape[shape.len().saturating_sub(self.behind)..].iter().product::<usize>().max(1)
    }

    /// Whether it is a convolution of groups of channels, or of single ones.
    pub fn is_grouped(&self) -> bool {
        self.window.as_ref().is_some_and(|window| window.group > 1)
    }

    /// Multiply-accumulates of one call that read the tensors of `lane` and gave `elements` numbers.
    pub fn macs(&self, lane: &Lane, elements: usize) -> f64 {
        let each = if let Some(weight) = &self.weight {
            let channels = weight.axis.map_or(1, |axis| weight.shape()[axis]).max(1);
            weight.values().len() as f64 / channels as f64
        } else {
            // A product of two activations adds up the last axis of the first.
            let left = self.left.as_ref().and_then(|tensor| lane.get(tensor));
            left.and_then(|tensor| tensor.shape().last().copied()).unwrap_or(1) as f64
        };
        elements as f64 * each
    }
}

impl<'a> Network<'a> {
    /// Takes `model` apart; `shapes` tells the types of its tensors. It runs on the workers of the current rayon pool.
    ///
    /// # Errors
    /// Tensors of unknown type, operators that do not compute in `float32`, or a part that cannot be run.
    pub fn new(
        backend: &'a dyn Backend,
        model: &Model,
        shapes: &BTreeMap<String, TensorInfo>,
        placement: &Placement,
        ignored: &BTreeSet<String>,
        stop: &'a AtomicBool,
    ) -> Result<Self, RecoverError> {
        let view = GraphView::new(model.graph())?;
        let mut quantized: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for edge in &placement.activations {
            quantized.entry(edge.node).or_default().insert(edge.tensor.clone());
        }
        let mut frame = model.clone();
        let graph = frame.graph_mut();
        graph.node.clear();
        graph.initializer.clear();
        graph.sparse_initializer.clear();
        graph.value_info.clear();
        let parts = Parts { frame, view: &view, shapes };
        let unit = |nodes: &Vec<NodeId>| {
            let operator = match nodes[..] {
                [only] => quantized.get(&only.0).map(|tensors| parts.operator(only, tensors, placement)).transpose()?,
                _ => None,
            };
            let (part, inputs, outputs) = parts.cut(nodes, operator.as_ref())?;
            Unit::new(backend, part, inputs, outputs, operator)
        };
        let units = parts.groups(&quantized).par_iter().map(unit).collect::<Result<Vec<_>, RecoverError>>()?;
        let mut last_use = HashMap::new();
        for (index, unit) in units.iter().enumerate() {
            last_use.extend(unit.inputs.iter().map(|name| (name.clone(), index)));
        }
        let answers: Vec<String> = model.graph().output.iter().map(|info| info.name().to_owned()).collect();
        last_use.extend(answers.iter().map(|name| (name.clone(), usize::MAX)));
        let outputs = answers.iter().filter(|&name| !ignored.contains(name)).cloned().collect();
        Ok(Self { units, outputs, answers, last_use, stop })
    }
}

struct Parts<'a> {
    /// The model without nodes and constants.
    frame: Model,
    view: &'a GraphView<'a>,
    shapes: &'a BTreeMap<String, TensorInfo>,
}

impl Parts<'_> {
    /// Nodes that run together, in order: quantized operators alone, the others as late as they may.
    fn groups(&self, quantized: &BTreeMap<usize, BTreeSet<String>>) -> Vec<Vec<NodeId>> {
        let mut groups = Vec::new();
        let mut waiting: Vec<NodeId> = Vec::new();
        for &id in self.view.topological_order() {
            if !quantized.contains_key(&id.0) {
                waiting.push(id);
                continue;
            }
            // What the operator needs of the waiting nodes runs before it.
            let mut needed: BTreeSet<&str> = self.reads(id).collect();
            let mut before = Vec::new();
            for &other in waiting.iter().rev() {
                if self.view.node(other).output.iter().any(|output| needed.contains(output.as_str())) {
                    needed.extend(self.reads(other));
                    before.push(other);
                }
            }
            before.reverse();
            waiting.retain(|other| !before.contains(other));
            if !before.is_empty() {
                groups.push(before);
            }
            groups.push(vec![id]);
        }
        if !waiting.is_empty() {
            groups.push(waiting);
        }
        groups
    }

    fn reads(&self, id: NodeId) -> impl Iterator<Item = &str> {
        let node = self.view.node(id);
        let direct = node.input.iter().map(String::as_str);
        direct.chain(node.subgraphs().flat_map(captured)).filter(|name| !name.is_empty())
    }

    /// A model of `nodes` alone, with the tensors it reads and those that others read of it.
    fn cut(
        &self,
        nodes: &[NodeId],
        operator: Option<&Operator>,
    ) -> Result<(Model, Vec<String>, Vec<String>), RecoverError> {
        let mut copies: Vec<NodeProto> = nodes.iter().map(|&id| self.view.node(id).clone()).collect();
        let made: BTreeSet<&str> =
            nodes.iter().flat_map(|&id| &self.view.node(id).output).map(String::as_str).collect();
        let mut read: BTreeSet<&str> = nodes.iter().flat_map(|&id| self.reads(id)).collect();
        read.retain(|name| !made.contains(name));
        let mut weight = None;
        if let (Some(operator), [node]) = (operator, &mut copies[..]) {
            if let Some(own) = &operator.weight {
                let index = node.input.iter().position(|input| *input == own.name).unwrap_or(1);
                WEIGHT.clone_into(&mut node.input[index]);
                weight = Some(open_input(WEIGHT, ElementType::F32, own.shape().len()));
            }
            read = node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
            read.remove(WEIGHT);
        }
        let read: Vec<String> = read.into_iter().map(str::to_owned).collect();
        let mut model = self.frame.clone();
        let graph = model.graph_mut();
        graph.initializer = read.iter().filter_map(|name| self.view.initializer(name)).cloned().collect();
        let inputs: Vec<String> = read.into_iter().filter(|name| self.view.initializer(name).is_none()).collect();
        let outside = |name: &str| {
            self.view.is_graph_output(name)
                || self.view.consumers(name).iter().any(|consumer| !nodes.contains(&consumer.node))
        };
        let outputs: Vec<String> = made.into_iter().filter(|name| outside(name)).map(str::to_owned).collect();
        graph.node = copies;
        graph.input = weight.into_iter().collect();
        for name in &inputs {
            let info = self.shapes.get(name).ok_or_else(|| {
                RecoverError::Unsupported(format!("the rank of tensor `{name}` is not known before the model runs"))
            })?;
            let element_type = info.element_type.ok_or_else(|| {
                RecoverError::Unsupported(format!("the type of tensor `{name}` is not known before the model runs"))
            })?;
            graph.input.push(open_input(name, element_type, info.shape.len()));
        }
        let output = |name: &String| ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() };
        graph.output = outputs.iter().map(output).collect();
        Ok((model, inputs, outputs))
    }

    fn operator(
        &self,
        id: NodeId,
        tensors: &BTreeSet<String>,
        placement: &Placement,
    ) -> Result<Operator, RecoverError> {
        let node = self.view.node(id);
        let label = node.label(id.0);
        for tensor in tensors {
            if self.shapes.get(tensor).and_then(|info| info.element_type) != Some(ElementType::F32) {
                return Err(RecoverError::Unsupported(format!("tensor `{tensor}` of node `{label}` is not float32")));
            }
        }
        let edge = placement.weights.iter().find(|edge| edge.node == id.0);
        let weight = edge.and_then(|edge| Some((edge, self.view.initializer(&edge.tensor)?)));
        let weight = match weight {
            None => None,
            Some((edge, tensor)) => {
                let tensor = tensor.to_tensor().map_err(|error| RecoverError::Unsupported(error.to_string()))?;
                let tensor = Tensor::from_f32(tensor.shape().to_vec(), tensor.to_f32())?;
                let own = placement.weights.iter().filter(|other| other.tensor == edge.tensor).count() == 1;
                let reads = Reads::of(node, tensor.shape());
                let (name, axis) = (edge.tensor.clone(), edge.axis);
                Some(Weight { name, tensor, axis, own, reads })
            }
        };
        let beside = edge.is_some_and(|edge| edge.input == 1) && node.attr_f("alpha").unwrap_or(1.0) == 1.0;
        let site = edge.filter(|_| beside).and_then(|edge| {
            let constant = self.view.initializer(&edge.tensor)?;
            BiasSite::of(self.view, id, constant)
        });
        let channels = site.map(|site| site.channels);
        let is_map = node.op_type().starts_with("Conv");
        let behind = weight.as_ref().filter(|_| is_map).map_or(0, |weight| weight.shape().len().saturating_sub(2));
        let tail = node.output.first().map_or(Tail::None, |output| self.tail(output));
        let window = weight.as_ref().and_then(|weight| window(node, weight.shape()));
        let (op_type, quantized) = (node.op_type().to_owned(), tensors.iter().cloned().collect());
        let left = node.input.first().filter(|_| op_type == "MatMul" && weight.is_none()).cloned();
        Ok(Operator { node: label, op_type, quantized, left, weight, channels, behind, tail, window })
    }

    fn tail(&self, output: &str) -> Tail {
        if self.view.is_graph_output(output) {
            return Tail::None;
        }
        let readers: Vec<NodeId> = self.view.consumers(output).iter().map(|reader| reader.node).collect();
        let constant = |node: &NodeProto, index: usize, name: &str, otherwise: f32| {
            let given = node.input.get(index).filter(|name| !name.is_empty());
            match given {
                Some(bound) => Some(*self.view.initializer(bound)?.to_tensor().ok()?.to_f32().first()?),
                None => Some(node.attr_f(name).unwrap_or(otherwise)),
            }
        };
        match readers[..] {
            [only] => {
                let node = self.view.node(only);
                match node.op_type() {
                    "Relu" => Tail::Clip(0.0, f32::INFINITY),
                    "Clip" => {
                        match (constant(node, 1, "min", f32::NEG_INFINITY), constant(node, 2, "max", f32::INFINITY)) {
                            (Some(low), Some(high)) => Tail::Clip(low, high),
                            _ => Tail::None,
                        }
                    }
                    "LeakyRelu" => Tail::Leaky(node.attr_f("alpha").unwrap_or(0.01)),
                    _ => Tail::None,
                }
            }
            [a, b] => {
                let is_gate = |gate: NodeId, product: NodeId| {
                    let (gate, product) = (self.view.node(gate), self.view.node(product));
                    gate.op_type() == "Sigmoid"
                        && product.op_type() == "Mul"
                        && gate.output.first().is_some_and(|made| product.input.contains(made))
                };
                if is_gate(a, b) || is_gate(b, a) { Tail::Silu } else { Tail::None }
            }
            _ => Tail::None,
        }
    }
}

/// How a two-dimensional convolution with explicit padding reads its input.
fn window(node: &NodeProto, weight: &[usize]) -> Option<Window> {
    let explicit = matches!(node.attr_s("auto_pad").unwrap_or("NOTSET"), "NOTSET" | "VALID");
    if node.op_type() != "Conv" || weight.len() != 4 || !explicit {
        return None;
    }
    let pair = |name: &str, default: i64| {
        let ints = node.attr_ints(name).unwrap_or(&[]);
        [0, 1].map(|axis: usize| ints.get(axis).copied().unwrap_or(default).max(0) as usize)
    };
    Some(Window {
        group: node.attr_i("group").unwrap_or(1).max(1) as usize,
        strides: pair("strides", 1),
        dilations: pair("dilations", 1),
        begin: pair("pads", 0),
    })
}

/// Declares an input of any extents.
pub(super) fn open_input(name: &str, element_type: ElementType, rank: usize) -> ValueInfoProto {
    let shape = TensorShapeProto { dim: vec![DimensionProto::default(); rank] };
    let tensor = TensorTypeProto { elem_type: Some(element_type.onnx()), shape: Some(shape) };
    let value = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(value), ..ValueInfoProto::default() }
}
