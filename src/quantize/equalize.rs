//! Channels of like size: in one scale for all of a tensor, channels of small numbers have few steps.
//!
//! [`equalize`] multiplies the channels of an activation by powers of two before it is quantized, and divides the weights of
//! the depthwise convolutions that read it by the same. Each of their channels has one weight scale of its own, so the codes
//! of the weights stay what they are, and in float not a bit changes.

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

/// What it takes to equalize an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Equalizable {
    /// Its channels.
    pub channels: usize,
    /// Whether a kernel of single values makes it, in which one more multiplication costs nothing. Otherwise a convolution or a
    /// clip does, and it rests with the builder whether it takes the multiplication in.
    pub pointwise: bool,
}

/// The quantized activations of `placement` that can be equalized: whatever reads them quantized is a depthwise convolution
/// with a constant `float32` weight of its own.
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
        let channels = channels(&facts, placement, tensor)?;
        let made_by = facts.producer(tensor).map_or("", |(_, node)| node.op_type());
        Some((tensor.to_owned(), Equalizable { channels, pointwise: POINTWISE.contains(&made_by) }))
    });
    Ok(found.collect())
}

/// Operators of single values that builders do not fuse with the convolution before them as its activation.
const POINTWISE: [&str; 8] = ["Mul", "Swish", "HardSwish", "Mish", "Gelu", "Elu", "Selu", "Tanh"];

/// Channels of `tensor`, where it can be equalized.
fn channels(facts: &Facts<'_>, placement: &Placement, tensor: &str) -> Option<usize> {
    if placement.shared_scales.iter().flatten().any(|shared| shared == tensor) || facts.producer(tensor).is_none() {
        return None;
    }
    let mut all = BTreeSet::new();
    for edge in placement.activations.iter().filter(|edge| edge.tensor == tensor) {
        all.insert(depthwise(facts, placement, edge.node, edge.input)?);
    }
    if all.len() == 1 { all.pop_first() } else { None }
}

/// Channels of the input of a depthwise convolution, if `node` is one that reads an activation at `input`.
fn depthwise(facts: &Facts<'_>, placement: &Placement, node: usize, input: usize) -> Option<usize> {
    let id = NodeId(node);
    let convolution = facts.view.node(id);
    let weight = facts.constant(id, 1)?;
    let shape = weight.shape().ok()?;
    let channels = usize::try_from(convolution.attr_i("group")?).ok()?;
    let by_channel = |edge: &WeightEdge| edge.node == node && edge.input == 1 && edge.axis == Some(0);
    let fits = input == 0
        && convolution.is_standard()
        && convolution.op_type() == "Conv"
        && shape.len() > 2
        && shape[1] == 1
        && channels > 1
        && shape[0] % channels == 0
        && weight.element_type().ok()? == ElementType::F32
        && placement.weights.iter().any(by_channel)
        && facts.view.consumers(weight.name()).len() == 1
        && !facts.view.is_graph_output(weight.name());
    fits.then_some(channels)
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
        let new = names.derived(tensor, "equalized");
        let mut rank = 0;
        for edge in placement.activations.iter_mut().filter(|edge| edge.tensor == *tensor) {
            edge.tensor.clone_from(&new);
            let node = &mut graph.node[edge.node];
            node.input[edge.input].clone_from(&new);
            let name = node.input[1].clone();
            if let Some(weight) = graph.initializer.iter_mut().find(|weight| weight.name() == name) {
                rank = divide(weight, &factors)?;
            }
        }
        let by = names.derived(tensor, "factors");
        let mut shape = vec![1; rank];
        shape[1] = channels;
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

/// Divides the rows of a weight by the factors of their channels, of which each has as many rows; returns its rank.
fn divide(weight: &mut TensorProto, factors: &[f32]) -> Result<usize, QuantizeError> {
    let tensor = weight.to_tensor()?;
    let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32());
    let each = (values.len() / factors.len()).max(1);
    for (values, factor) in values.chunks_mut(each).zip(factors) {
        for value in values {
            *value /= factor;
        }
    }
    let name = weight.name().to_owned();
    *weight = TensorProto::from_tensor(&name, Tensor::from_f32(shape.clone(), values)?);
    Ok(shape.len())
}

#[cfg(test)]
mod tests;
