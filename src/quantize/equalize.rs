//! Channels of like size: in one scale for all of a tensor, channels of small numbers have few steps.
//!
//! [`equalize`] multiplies the channels of an activation by powers of two before it is quantized, and divides the weights
//! that read them by the same: in float not a bit changes. Each channel of a depthwise convolution has one weight scale of its
//! own, so the codes of its weights stay what they are. In a matrix product an output channel adds up many input channels in one
//! weight scale, and what the activation gains the weight may lose (SmoothQuant).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    QuantizeError,
    facts::Facts,
    names::Names,
    placement::{Placement, WeightEdge},
    weights::scale_tensor,
};
use crate::{
    backend::TensorInfo,
    calibrate::Equalized,
    onnx::{
        NodeId,
        proto::{GraphProto, NodeProto, TensorProto},
    },
    tensor::{ElementType, Tensor},
};

/// What follows the name of an activation in that of the equalized one.
pub(super) const EQUALIZED: &str = "equalized";

/// What it takes to equalize an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Equalizable {
    /// Its channels.
    pub channels: usize,
    /// Whether a kernel of single values makes it, in which one more multiplication costs nothing. Otherwise a convolution or a
    /// clip does, and it rests with the builder whether it takes the multiplication in.
    pub pointwise: bool,
    /// Whether each channel of what reads it has one input channel, so that codes of weights stay what they are.
    pub depthwise: bool,
}

/// How an operator reads the channels of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reads {
    /// The channels.
    pub channels: usize,
    /// Numbers of the weight that lie behind each other for one channel.
    pub inner: usize,
    /// Whether each output channel reads one channel alone.
    pub depthwise: bool,
    /// Axes of the activation behind its channels.
    pub behind: usize,
}

impl Reads {
    /// How `node` reads its first input with a weight of this `shape`; `None` for others than depthwise convolutions and
    /// matrix products: dense convolutions gained nothing by it (YOLOX-Nano, YOLOv8n).
    pub fn of(node: &NodeProto, shape: &[usize]) -> Option<Self> {
        match (node.op_type(), shape) {
            _ if !node.is_standard() => None,
            ("Conv", [outputs, depth, kernel @ ..]) if !kernel.is_empty() => {
                let group = usize::try_from(node.attr_i("group").unwrap_or(1)).ok().filter(|&group| group > 0)?;
                let (behind, kernel) = (kernel.len(), kernel.iter().product::<usize>());
                let depthwise = *depth == 1 && group > 1 && outputs % group == 0;
                depthwise.then_some(Self { channels: group, inner: outputs / group * kernel, depthwise, behind })
            }
            ("Gemm", [_, _]) if node.attr_i("transA").unwrap_or(0) != 0 => None,
            ("Gemm", &[_, channels]) if node.attr_i("transB").unwrap_or(0) != 0 => {
                Some(Self { channels, inner: 1, depthwise: false, behind: 0 })
            }
            ("Gemm" | "MatMul", &[channels, inner]) => Some(Self { channels, inner, depthwise: false, behind: 0 }),
            _ => None,
        }
    }

    /// The channel that a number of the weight multiplies, by its place.
    pub fn channel(&self, place: usize) -> usize {
        place / self.inner.max(1) % self.channels.max(1)
    }
}

/// The quantized activations of `placement` that can be equalized: whatever reads them quantized is a depthwise convolution or a
/// matrix product with a constant `float32` weight of its own, and all of it reads their channels alike.
///
/// # Errors
/// A malformed graph.
pub fn equalizable(
    graph: &GraphProto,
    shapes: &BTreeMap<String, TensorInfo>,
    placement: &Placement,
) -> Result<BTreeMap<String, Equalizable>, QuantizeError> {
    let facts = Facts::new(graph, shapes)?;
    let tensors: BTreeSet<&str> = placement.activations.iter().map(|edge| edge.tensor.as_str()).collect();
    let found = tensors.into_iter().filter_map(|tensor| {
        let Reads { channels, depthwise, .. } = reads(&facts, placement, tensor)?;
        Some((tensor.to_owned(), Equalizable { channels, pointwise: is_pointwise(&facts, tensor), depthwise }))
    });
    Ok(found.collect())
}

/// Operators of single values that builders do not fuse with the convolution before them as its activation.
const POINTWISE: [&str; 11] = [
    "Mul",
    "Swish",
    "HardSwish",
    "Mish",
    "Gelu",
    "Elu",
    "Selu",
    "Tanh",
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
];

/// Whether `tensor` comes from one of these, or from the last sum of a normalization in pieces.
fn is_pointwise(facts: &Facts<'_>, tensor: &str) -> bool {
    let Some((id, node)) = facts.producer(tensor) else { return false };
    let is_scaled = |input: usize| {
        let scaled = facts.input(id, input).and_then(|scaled| facts.producer(scaled));
        scaled.is_some_and(|(_, scaled)| scaled.op_type() == "Mul") && facts.constant(id, 1 - input).is_some()
    };
    POINTWISE.contains(&node.op_type()) || node.op_type() == "Add" && (is_scaled(0) || is_scaled(1))
}

/// How `tensor` is read, where it can be equalized.
fn reads(facts: &Facts<'_>, placement: &Placement, tensor: &str) -> Option<Reads> {
    if placement.shared_scales.iter().flatten().any(|shared| shared == tensor) || facts.producer(tensor).is_none() {
        return None;
    }
    let edges = placement.activations.iter().filter(|edge| edge.tensor == tensor);
    let all: Option<Vec<Reads>> = edges.map(|edge| read(facts, placement, edge.node, edge.input)).collect();
    let all = all?;
    let alike = |other: &Reads| {
        let of = |reads: &Reads| (reads.channels, reads.depthwise, reads.behind);
        of(other) == of(&all[0])
    };
    (!all.is_empty() && all.iter().all(alike)).then(|| all[0])
}

/// How `node` reads an activation at `input` with a weight that is its own.
fn read(facts: &Facts<'_>, placement: &Placement, node: usize, input: usize) -> Option<Reads> {
    let id = NodeId(node);
    let weight = facts.constant(id, 1)?;
    let own = |edge: &WeightEdge| edge.node == node && edge.input == 1 && edge.axis.is_some();
    let fits = input == 0
        && weight.element_type().ok()? == ElementType::F32
        && placement.weights.iter().any(own)
        && facts.view.consumers(weight.name()).len() == 1
        && !facts.view.is_graph_output(weight.name());
    Reads::of(facts.view.node(id), &weight.shape().ok()?).filter(|reads| fits && reads.channels > 1)
}

/// Equalizes the quantized activations that `scales` names, where it can be done, and points the edges of `placement` to what
/// is quantized now, of which `shapes` tells what is known. Returns the tensors that it made, with what they were made of.
///
/// # Errors
/// Numbers that do not fit the channels of a tensor.
pub(super) fn equalize(
    graph: &mut GraphProto,
    shapes: &mut BTreeMap<String, TensorInfo>,
    placement: &mut Placement,
    scales: &BTreeMap<String, Equalized>,
) -> Result<BTreeMap<String, String>, QuantizeError> {
    if scales.is_empty() {
        return Ok(BTreeMap::new());
    }
    let possible = equalizable(graph, shapes, placement)?;
    let mut names = Names::of(graph);
    let mut made = BTreeMap::new();
    for (tensor, equalized) in scales {
        let Some(&Equalizable { channels, .. }) = possible.get(tensor) else { continue };
        let factors = equalized.factors();
        if factors.len() != channels {
            return Err(QuantizeError::Equalized { tensor: tensor.clone(), given: factors.len(), channels });
        }
        let new = names.derived(tensor, EQUALIZED);
        let mut behind = 0;
        for edge in placement.activations.iter_mut().filter(|edge| edge.tensor == *tensor) {
            edge.tensor.clone_from(&new);
            let node = &mut graph.node[edge.node];
            node.input[edge.input].clone_from(&new);
            if let Some(weight) = graph.initializer.iter_mut().find(|weight| weight.name() == node.input[1]) {
                behind = divide(weight, node, &factors)?;
            }
        }
        let by = names.derived(tensor, "factors");
        let shape = [vec![channels], vec![1; behind]].concat();
        graph.initializer.push(scale_tensor(&by, shape, factors, ElementType::F32)?);
        // Behind all others, so that the places of the others stay what they are.
        graph.node.push(NodeProto::new("Mul", &names.derived(tensor, "Mul"), &[tensor, &by], &[&new]));
        if let Some(info) = shapes.get(tensor).cloned() {
            shapes.insert(new.clone(), TensorInfo { name: new.clone(), ..info });
        }
        made.insert(new, tensor.clone());
    }
    Ok(made)
}

/// Divides what the weight of `node` multiplies each channel with by its factor; returns the axes behind the channels.
fn divide(weight: &mut TensorProto, node: &NodeProto, factors: &[f32]) -> Result<usize, QuantizeError> {
    let tensor = weight.to_tensor()?;
    let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32());
    let Some(reads) = Reads::of(node, &shape) else { return Ok(0) };
    for (place, value) in values.iter_mut().enumerate() {
        *value /= factors[reads.channel(place)];
    }
    let name = weight.name().to_owned();
    *weight = TensorProto::from_tensor(&name, Tensor::from_f32(shape, values)?);
    Ok(reads.behind)
}

#[cfg(test)]
mod tests;
