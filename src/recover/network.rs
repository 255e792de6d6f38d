//! A model taken apart at its quantized operators, to run in lockstep in float and quantized.
//!
//! Each quantized operator is a session of its own that takes weight and bias as inputs, so that one session serves every
//! rounding of them; what lies between operators is computed by sessions that both sides share.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rayon::prelude::*;

use super::RecoverError;
use crate::{
    backend::{Backend, BackendError, BuildOptions, Purpose, Runner, TensorInfo},
    onnx::{
        GraphView, Model, NodeId, captured,
        proto::{DimensionProto, NodeProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto},
    },
    quantize::{BiasSite, Placement, Reads},
    tensor::{ElementType, Tensor, TensorMap},
};

/// Name of the input that takes the bias of an operator.
const BIAS: &str = "calib:bias";
/// Name of the input that takes its weight.
const WEIGHT: &str = "calib:weight";

/// Units in the order of execution.
pub(super) struct Network<'a> {
    pub units: Vec<Unit>,
    /// Outputs of the model that are judged.
    pub outputs: Vec<String>,
    /// All outputs of the model.
    pub answers: Vec<String>,
    /// For every tensor, the last unit that reads it; outputs of the model are never done with.
    pub last_use: HashMap<String, usize>,
    stop: &'a AtomicBool,
}

/// What runs in one call.
pub(super) struct Unit {
    /// One for each worker, of a single thread, so that what it computes does not depend on their number.
    runners: Vec<Mutex<Box<dyn Runner>>>,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub operator: Option<Operator>,
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
    /// Its bias, one number an output channel, where the node itself takes it; it may have none yet.
    pub bias: Option<Vec<f32>>,
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
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
    pub axis: Option<usize>,
    /// Whether no other operator quantizes it.
    pub own: bool,
    /// How it is multiplied with the channels of the activation.
    pub reads: Option<Reads>,
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

impl Tail {
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Clip(low, high) => x.max(low).min(high),
            Self::Leaky(slope) => x.max(0.0) + slope * x.min(0.0),
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }
}

impl Unit {
    /// Weight and bias as they are in float.
    pub fn exact(&self) -> TensorMap {
        let Some(operator) = &self.operator else { return TensorMap::new() };
        operator.parameters(operator.weight.as_ref().map(|weight| &weight.values[..]), operator.bias.as_deref())
    }

    /// Runs with tensors of `values` and, in their place, with `given`: weight and bias of an operator too.
    pub fn run(&self, values: &HashMap<String, Tensor>, given: TensorMap) -> Result<TensorMap, RecoverError> {
        let mut inputs = given;
        for name in &self.inputs {
            if let (false, Some(tensor)) = (inputs.contains_key(name), values.get(name)) {
                inputs.insert(name.clone(), tensor.clone());
            }
        }
        let worker = rayon::current_thread_index().unwrap_or(0) % self.runners.len();
        Ok(self.runners[worker].lock().unwrap_or_else(PoisonError::into_inner).infer(&inputs)?)
    }
}

impl Operator {
    /// One with a weight of ones, a bias and one quantized input.
    #[cfg(test)]
    pub fn convolution(shape: &[usize]) -> Self {
        let reads = None;
        let values = vec![1.0; shape.iter().product()];
        let weight = Weight { name: "w".to_owned(), shape: shape.to_vec(), values, axis: Some(0), own: true, reads };
        Self {
            node: "conv".to_owned(),
            op_type: "Conv".to_owned(),
            quantized: vec!["x".to_owned()],
            left: None,
            weight: Some(weight),
            bias: Some(vec![0.0; shape[0]]),
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

    /// Weight and bias as inputs of the unit.
    pub fn parameters(&self, weight: Option<&[f32]>, bias: Option<&[f32]>) -> TensorMap {
        let mut map = TensorMap::new();
        if let (Some(own), Some(values)) = (&self.weight, weight) {
            map.extend(
                Tensor::from_f32(own.shape.clone(), values.to_vec()).ok().map(|tensor| (WEIGHT.to_owned(), tensor)),
            );
        }
        if let (Some(_), Some(values)) = (&self.bias, bias) {
            map.extend(
                Tensor::from_f32(vec![values.len()], values.to_vec()).ok().map(|tensor| (BIAS.to_owned(), tensor)),
            );
        }
        map
    }

    /// Multiply-accumulates of one call that read the tensors of `lane` and gave `elements` numbers.
    pub fn macs(&self, lane: &HashMap<String, Tensor>, elements: usize) -> f64 {
        let each = if let Some(weight) = &self.weight {
            let channels = weight.axis.map_or(1, |axis| weight.shape[axis]).max(1);
            weight.values.len() as f64 / channels as f64
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
        backend: &(dyn Backend + Sync),
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
        let build = BuildOptions { threads: 1, purpose: Purpose::Part, ..BuildOptions::default() };
        let unit = |nodes: &Vec<NodeId>| {
            let operator = match nodes[..] {
                [only] => quantized.get(&only.0).map(|tensors| parts.operator(only, tensors, placement)).transpose()?,
                _ => None,
            };
            let (part, inputs, outputs) = parts.cut(nodes, operator.as_ref())?;
            let runners: Result<Vec<_>, BackendError> =
                (0..rayon::current_num_threads()).map(|_| Ok(Mutex::new(backend.build(&part, &build)?))).collect();
            Ok(Unit { runners: runners?, inputs, outputs, operator })
        };
        let units = parts.groups(&quantized).par_iter().map(unit).collect::<Result<Vec<Unit>, RecoverError>>()?;
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
        let mut ports = Vec::new();
        if let (Some(operator), [node]) = (operator, &mut copies[..]) {
            if let Some(weight) = &operator.weight {
                let index = node.input.iter().position(|input| *input == weight.name).unwrap_or(1);
                WEIGHT.clone_into(&mut node.input[index]);
                ports.push(WEIGHT);
            }
            if operator.bias.is_some() {
                node.input.resize(3, String::new());
                BIAS.clone_into(&mut node.input[2]);
                ports.push(BIAS);
            }
            read = node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
            read.retain(|name| !ports.contains(name));
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
        let weight = operator.and_then(|operator| operator.weight.as_ref()).map_or(1, |weight| weight.shape.len());
        let rank = |port: &str| if port == WEIGHT { weight } else { 1 };
        graph.input = ports.iter().map(|port| open_input(port, ElementType::F32, rank(port))).collect();
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
                let values = tensor.to_tensor().map_err(|error| RecoverError::Unsupported(error.to_string()))?;
                let shape = values.shape().to_vec();
                let own = placement.weights.iter().filter(|other| other.tensor == edge.tensor).count() == 1;
                let reads = Reads::of(node, &shape);
                let (name, axis, values) = (edge.tensor.clone(), edge.axis, values.to_f32());
                Some(Weight { name, shape, values, axis, own, reads })
            }
        };
        let beside = edge.is_some_and(|edge| edge.input == 1) && node.attr_f("alpha").unwrap_or(1.0) == 1.0;
        let site = edge.filter(|_| beside).and_then(|edge| {
            let constant = self.view.initializer(&edge.tensor)?;
            BiasSite::of(self.view, id, constant)
        });
        let bias = site.as_ref().filter(|site| site.node == id).and_then(|site| site.values(self.view));
        let channels = site.map(|site| site.channels);
        let is_map = node.op_type().starts_with("Conv");
        let behind = weight.as_ref().filter(|_| is_map).map_or(0, |weight| weight.shape.len().saturating_sub(2));
        let tail = node.output.first().map_or(Tail::None, |output| self.tail(output));
        let window = weight.as_ref().and_then(|weight| window(node, &weight.shape));
        let (op_type, quantized) = (node.op_type().to_owned(), tensors.iter().cloned().collect());
        let left = node.input.first().filter(|_| op_type == "MatMul" && weight.is_none()).cloned();
        Ok(Operator { node: label, op_type, quantized, left, weight, bias, channels, behind, tail, window })
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
