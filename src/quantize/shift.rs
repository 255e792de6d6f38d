//! Quantizing around another centre than 0: an activation that is hardly ever negative wastes half of the codes.
//!
//! [`shift`] makes the graph compute `x - z` in place of `x`. `z` leaves with the producer: the bounds of a Clip and the
//! bias in front of it, or a `Sub`. It returns with the consumers: `W (x - z) + (b + z ΣW) = W x + b`. A padded convolution
//! would pad with what is now `z`, so a `Pad` with `-z` does it. In exact arithmetic the graph gives what it gave.

use std::collections::{BTreeMap, BTreeSet};

use super::{QuantizeError, bias::BiasSite, facts::Facts, names::Names, placement::Placement, weights::scale_tensor};
use crate::{
    backend::TensorInfo,
    calibrate::Shift,
    onnx::{
        GraphView, NodeId, Use,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    },
    tensor::{ElementType, Tensor, Values},
};

/// What follows the name of an activation in that of the shifted one.
pub(super) const SHIFTED: &str = "shifted";

/// What a tensor of a shifted graph was in the graph that was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Shifted {
    /// The tensor.
    pub tensor: String,
    /// The range around another centre that it has now.
    pub shift: Shift,
}

/// What it takes to shift an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shiftable {
    /// No consumer pads.
    Unpadded,
    /// Some consumers are padded convolutions, which need a `Pad` in front.
    Padded,
}

/// The quantized activations of `placement` that can be shifted: each consumer has a constant weight and a bias to take
/// the shift back with.
///
/// # Errors
/// A malformed graph.
pub fn shiftable(
    graph: &GraphProto,
    shapes: &BTreeMap<String, TensorInfo>,
    placement: &Placement,
) -> Result<BTreeMap<String, Shiftable>, QuantizeError> {
    let facts = Facts::new(graph, shapes)?;
    let tensors: BTreeSet<&str> = placement.activations.iter().map(|edge| edge.tensor.as_str()).collect();
    let found = tensors.into_iter().filter_map(|tensor| {
        let takers = takers(&facts, tensor)?;
        let padded = takers.iter().any(|taker| !taker.pads.is_empty());
        Some((tensor.to_owned(), if padded { Shiftable::Padded } else { Shiftable::Unpadded }))
    });
    Ok(found.collect())
}

/// A consumer that can take a shift back.
struct Taker {
    node: NodeId,
    /// Where its bias stands.
    bias: BiasSite,
    /// ΣW by output channel, times what the node multiplies its product with.
    sums: Vec<f32>,
    /// What it pads at the begin and end of each axis of its input; empty for nothing.
    pads: Vec<i64>,
}

/// All consumers of `tensor`; `None` unless each can take a shift back.
fn takers(facts: &Facts<'_>, tensor: &str) -> Option<Vec<Taker>> {
    let uses = facts.view.consumers(tensor);
    if uses.is_empty() || facts.view.is_graph_output(tensor) {
        return None;
    }
    uses.iter().map(|u| taker(facts, tensor, *u)).collect()
}

fn taker(facts: &Facts<'_>, tensor: &str, Use { node: id, input }: Use) -> Option<Taker> {
    let node = facts.view.node(id);
    if input != Some(0) || !node.is_standard() || !matches!(node.op_type(), "Conv" | "Gemm" | "MatMul") {
        return None;
    }
    let weight = facts.constant(id, 1)?;
    let shape = weight.shape().ok()?;
    let bias = BiasSite::of(&facts.view, id, weight)?;
    let values = weight.to_tensor().ok()?.to_f32();
    let mut sums = vec![0.0f64; bias.channels];
    let channel = |index: usize| match (node.op_type(), node.attr_i("transB")) {
        ("Conv", _) | ("Gemm", Some(1)) => index / (values.len() / bias.channels).max(1),
        _ => index % bias.channels,
    };
    values.iter().enumerate().for_each(|(index, &value)| sums[channel(index)] += f64::from(value));
    let alpha = if node.op_type() == "Gemm" { node.attr_f("alpha").unwrap_or(1.0) } else { 1.0 };
    let pads = if node.op_type() == "Conv" { pads(facts, tensor, node, &shape)? } else { Vec::new() };
    Some(Taker { node: id, bias, sums: sums.into_iter().map(|sum| (sum * f64::from(alpha)) as f32).collect(), pads })
}

/// What a convolution pads, in the order of a `Pad` operator, empty for nothing; `None` where that is not known.
fn pads(facts: &Facts<'_>, tensor: &str, node: &NodeProto, weight: &[usize]) -> Option<Vec<i64>> {
    let axes = weight.len().checked_sub(2)?;
    let ints = |name: &str, default: i64| node.attr_ints(name).map_or_else(|| vec![default; axes], <[i64]>::to_vec);
    let spatial: Vec<i64> = match node.attr_s("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => node.attr_ints("pads").map_or_else(|| vec![0; 2 * axes], <[i64]>::to_vec),
        "VALID" => vec![0; 2 * axes],
        same => {
            let (strides, dilations) = (ints("strides", 1), ints("dilations", 1));
            let shape = facts.shape(tensor)?;
            let mut both = vec![0; 2 * axes];
            for axis in 0..axes {
                let extent = (*shape.get(axis + 2)?)? as i64;
                let reach = dilations[axis] * (weight[axis + 2] as i64 - 1) + 1;
                let total =
                    (((extent + strides[axis] - 1) / strides[axis] - 1) * strides[axis] + reach - extent).max(0);
                let (less, more) = (total / 2, total - total / 2);
                let begin = if same == "SAME_UPPER" { less } else { more };
                (both[axis], both[axes + axis]) = (begin, total - begin);
            }
            both
        }
    };
    if spatial.len() != 2 * axes || spatial.iter().any(|&pad| pad < 0) {
        return None;
    }
    let (begin, end) = spatial.split_at(axes);
    let all = [&[0, 0], begin, &[0, 0], end].concat();
    Some(if spatial.iter().any(|&pad| pad != 0) { all } else { Vec::new() })
}

/// Shifts the quantized activations that `shifts` names, where all their consumers can take it back, and points the
/// edges of `placement` to what is quantized now. Returns the tensors that it made.
pub(super) fn shift(
    graph: &mut GraphProto,
    shapes: &BTreeMap<String, TensorInfo>,
    placement: &mut Placement,
    shifts: &BTreeMap<String, Shift>,
) -> Result<BTreeMap<String, Shifted>, QuantizeError> {
    let quantized: BTreeSet<String> = placement.tensors_to_observe();
    let mut names = Names::of(graph);
    let mut plan = Plan::default();
    {
        let facts = Facts::new(graph, shapes)?;
        // A scale that several tensors share belongs to all of them.
        let shared: BTreeSet<&String> = placement.shared_scales.iter().flatten().collect();
        for (tensor, shift) in
            shifts.iter().filter(|(tensor, shift)| quantized.contains(*tensor) && shift.offset != 0.0)
        {
            if let Some(takers) = takers(&facts, tensor).filter(|_| !shared.contains(tensor)) {
                plan.tensor(&facts, &mut names, tensor, *shift, &takers)?;
            }
        }
    }
    for edge in &mut placement.activations {
        if let Some(new) = plan.inputs.get(&(edge.node, edge.input)) {
            edge.tensor.clone_from(new);
        }
    }
    plan.apply(graph, &mut names)
}

/// Changes to a graph.
#[derive(Default)]
struct Plan {
    /// New inputs by node and index.
    inputs: BTreeMap<(usize, usize), String>,
    /// New outputs of nodes.
    outputs: BTreeMap<usize, String>,
    /// What to add to a bias.
    biases: BTreeMap<(usize, usize), (BiasSite, Vec<f32>)>,
    /// Convolutions that no longer pad.
    unpadded: BTreeSet<usize>,
    /// Nodes that become another operator.
    operators: BTreeMap<usize, &'static str>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    made: BTreeMap<String, Shifted>,
}

impl Plan {
    fn tensor(
        &mut self,
        facts: &Facts<'_>,
        names: &mut Names,
        tensor: &str,
        shift: Shift,
        takers: &[Taker],
    ) -> Result<(), QuantizeError> {
        let element_type = takers.first().map_or(ElementType::F32, |taker| taker.bias.element_type);
        let shifted = names.derived(tensor, SHIFTED);
        if !self.through_clip(facts, names, tensor, &shifted, shift.offset, element_type)? {
            let offset = self.scalar(names, tensor, "offset", shift.offset, element_type)?;
            let name = names.derived(tensor, "Sub");
            self.nodes.push(NodeProto::new("Sub", &name, &[tensor, &offset], &[&shifted]));
        }
        let made = Shifted { tensor: tensor.to_owned(), shift };
        self.made.insert(shifted.clone(), made.clone());
        let mut padded: BTreeMap<&[i64], String> = BTreeMap::new();
        for taker in takers {
            let input = if taker.pads.is_empty() {
                shifted.clone()
            } else if let Some(known) = padded.get(&taker.pads[..]) {
                known.clone()
            } else {
                let new = self.pad(names, tensor, &shifted, &taker.pads, shift.offset, element_type)?;
                self.made.insert(new.clone(), made.clone());
                padded.insert(&taker.pads, new.clone());
                new
            };
            if !taker.pads.is_empty() {
                self.unpadded.insert(taker.node.0);
            }
            self.inputs.insert((taker.node.0, 0), input);
            self.add(&taker.bias, taker.sums.iter().map(|sum| sum * shift.offset / taker.bias.beta));
        }
        Ok(())
    }

    /// Lets a Clip or Relu behind an operator with a bias give `shifted` in place of `tensor`; false where there is none.
    fn through_clip(
        &mut self,
        facts: &Facts<'_>,
        names: &mut Names,
        tensor: &str,
        shifted: &str,
        offset: f32,
        element_type: ElementType,
    ) -> Result<bool, QuantizeError> {
        let Some((clip, site, bounds)) = clip(facts, tensor) else { return Ok(false) };
        for (index, bound) in bounds.into_iter().enumerate() {
            if let Some(bound) = bound {
                let bound = self.scalar(names, tensor, ["low", "high"][index], bound - offset, element_type)?;
                self.inputs.insert((clip.0, index + 1), bound);
            }
        }
        self.operators.insert(clip.0, "Clip");
        self.outputs.insert(clip.0, shifted.to_owned());
        let channels = site.channels;
        self.add(&site, std::iter::repeat_n(-offset / site.beta, channels));
        Ok(true)
    }

    fn add(&mut self, site: &BiasSite, values: impl Iterator<Item = f32>) {
        let sum = self.biases.entry((site.node.0, site.input));
        let (_, sum) = sum.or_insert_with(|| (site.clone(), vec![0.0; site.channels]));
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }

    fn scalar(
        &mut self,
        names: &mut Names,
        tensor: &str,
        suffix: &str,
        value: f32,
        element_type: ElementType,
    ) -> Result<String, QuantizeError> {
        let name = names.derived(tensor, suffix);
        self.initializers.push(scale_tensor(&name, Vec::new(), vec![value], element_type)?);
        Ok(name)
    }

    fn pad(
        &mut self,
        names: &mut Names,
        tensor: &str,
        shifted: &str,
        pads: &[i64],
        offset: f32,
        element_type: ElementType,
    ) -> Result<String, QuantizeError> {
        let value = self.scalar(names, tensor, "padding", -offset, element_type)?;
        let widths = names.derived(tensor, "pads");
        self.initializers
            .push(TensorProto::from_tensor(&widths, Tensor::new(vec![pads.len()], Values::I64(pads.to_vec()))?));
        let (padded, name) = (names.derived(tensor, "padded"), names.derived(tensor, "Pad"));
        self.nodes.push(NodeProto::new("Pad", &name, &[shifted, &widths, &value], &[&padded]));
        Ok(padded)
    }

    fn apply(self, graph: &mut GraphProto, names: &mut Names) -> Result<BTreeMap<String, Shifted>, QuantizeError> {
        let mut biases = Vec::new();
        {
            let view = GraphView::new(graph)?;
            for (site, sum) in self.biases.values() {
                let old = site.values(&view).unwrap_or_else(|| vec![0.0; site.channels]);
                let sum: Vec<f32> = old.iter().zip(sum).map(|(old, sum)| old + sum).collect();
                let of = site.tensor(&view);
                let of = of.or_else(|| view.node(site.node).output.first()).cloned().unwrap_or_default();
                let shape = of_shape(&view, site).unwrap_or_else(|| vec![site.channels]);
                let name = names.derived(&of, "shifted");
                biases.push((site.node.0, site.input, scale_tensor(&name, shape, sum, site.element_type)?));
            }
        }
        let Self { inputs, outputs, unpadded, operators, nodes, initializers, made, .. } = self;
        for ((node, input), tensor) in inputs {
            set_input(&mut graph.node[node], input, tensor);
        }
        for (node, input, tensor) in biases {
            set_input(&mut graph.node[node], input, tensor.name().to_owned());
            graph.initializer.push(tensor);
        }
        for (node, tensor) in outputs {
            graph.node[node].output[0] = tensor;
        }
        for node in unpadded {
            let node = &mut graph.node[node];
            let axes = node.attr_ints("pads").map_or(0, <[i64]>::len);
            node.attribute.retain(|attribute| !matches!(attribute.name(), "pads" | "auto_pad"));
            if axes > 0 {
                node.attribute.push(AttributeProto::ints("pads", &vec![0; axes]));
            }
        }
        for (node, operator) in operators {
            graph.node[node].op_type = Some(operator.to_owned());
        }
        // Behind all others, so that the places of the others stay what they are.
        graph.node.extend(nodes);
        graph.initializer.extend(initializers);
        Ok(made)
    }
}

fn of_shape(view: &GraphView<'_>, site: &BiasSite) -> Option<Vec<usize>> {
    view.initializer(view.node(site.node).input.get(site.input)?)?.shape().ok()
}

fn set_input(node: &mut NodeProto, input: usize, tensor: String) {
    if node.input.len() <= input {
        node.input.resize(input + 1, String::new());
    }
    node.input[input] = tensor;
}

/// The Clip or Relu that makes `tensor` straight from an operator with a bias, that bias, and the bounds.
pub(super) fn clip(facts: &Facts<'_>, tensor: &str) -> Option<(NodeId, BiasSite, [Option<f32>; 2])> {
    let (id, node) = facts.producer(tensor)?;
    let bound = |index: usize| match facts.input(id, index) {
        None => Some(None),
        Some(_) => facts.constant(id, index)?.to_tensor().ok()?.to_f32().first().map(|&bound| Some(bound)),
    };
    let bounds = match node.op_type() {
        "Relu" => [Some(0.0), None],
        // Below opset 11 the bounds are attributes; quantizing raises such models first.
        "Clip" => [bound(1)?, bound(2)?],
        _ => return None,
    };
    let source = facts.input(id, 0)?;
    if facts.view.consumers(source).len() != 1 || facts.view.is_graph_output(source) {
        return None;
    }
    let (product, producer) = facts.producer(source)?;
    let product = match producer.op_type() {
        "Conv" | "ConvTranspose" | "Gemm" => product,
        "Add" => (0..2).find_map(|input| {
            let (id, node) = facts.producer(facts.input(product, input)?)?;
            (node.op_type() == "MatMul").then_some(id)
        })?,
        _ => return None,
    };
    let site = BiasSite::of(&facts.view, product, facts.constant(product, 1)?)?;
    // Of an Add of a product and a constant, the Add itself must be where the bias stands.
    (producer.op_type() != "Add" || facts.view.node(site.node).output.first().is_some_and(|output| output == source))
        .then_some((id, site, bounds))
}

#[cfg(test)]
mod tests;
