//! Inserts QuantizeLinear and DequantizeLinear.
//!
//! An activation gets one QuantizeLinear behind its producer and one DequantizeLinear for each quantized consumer:
//! that is the form that TensorRT fuses with the consumer and that ONNX Runtime would make of a shared one. A constant
//! gets a DequantizeLinear alone, over 8-bit values.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    QuantizeError,
    bias::{self, CorrectedBias},
    names::Names,
    placement::{Placement, WeightEdge},
    plan::Precision,
    weights::{ScaleTypes, WeightNames, codes_tensor, quantize_weight, scale_floors, scale_tensor},
};
use crate::{
    calibrate::CalibrationTable,
    onnx::{
        GraphView, NodeId,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    },
    qparams::QuantType,
};

/// Scales of one quantized input of a node, as they stand in the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrittenScales {
    /// The node that reads it.
    pub node: String,
    /// Which of its inputs.
    pub input: usize,
    /// The tensor that is quantized, by its name in the float model.
    pub tensor: String,
    /// The axis of the channels; `None` for a single scale.
    pub axis: Option<usize>,
    /// One scale, or one a channel: the distance of neighbouring 8-bit values.
    pub scales: Vec<f32>,
}

/// Rewrites `graph` by `placement` with the ranges of `table`; tells the scales it wrote, activations first.
pub(super) fn insert(
    graph: &mut GraphProto,
    placement: &Placement,
    table: &CalibrationTable,
    precision: Precision,
    types: &ScaleTypes,
) -> Result<Vec<WrittenScales>, QuantizeError> {
    let scales = activation_scales(placement, table, precision, types)?;
    let (order, mut insertion) = {
        let view = GraphView::new(graph)?;
        let mut insertion = Insertion::new(graph, precision, types);
        insertion.activations(placement, &scales, &view)?;
        insertion.weights(placement, &scales, table, &view)?;
        insertion.biases(placement, table, &view)?;
        (view.topological_order().to_vec(), insertion)
    };
    let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
    graph.node.append(&mut insertion.first);
    for id in order {
        let Some(mut node) = nodes[id.0].take() else { continue };
        graph.node.append(&mut insertion.before.remove(&id).unwrap_or_default());
        for (input, tensor) in insertion.inputs.remove(&id).unwrap_or_default() {
            if node.input.len() <= input {
                node.input.resize(input + 1, String::new());
            }
            node.input[input] = tensor;
        }
        graph.node.push(node);
        graph.node.append(&mut insertion.after.remove(&id).unwrap_or_default());
    }
    graph.initializer.append(&mut insertion.initializers);
    Ok(insertion.written)
}

/// The scale of every quantized activation; groups share the largest.
fn activation_scales(
    placement: &Placement,
    table: &CalibrationTable,
    precision: Precision,
    types: &ScaleTypes,
) -> Result<BTreeMap<String, f32>, QuantizeError> {
    let mut amax = BTreeMap::new();
    for edge in &placement.activations {
        let range = table.tensors.get(&edge.tensor).map(|range| range.amax);
        let node = || placement.decisions.get(edge.node).map_or_else(String::new, |decision| decision.node.clone());
        match range {
            None => return Err(QuantizeError::MissingRange { tensor: edge.tensor.clone(), node: node() }),
            Some(range) if !range.is_finite() || range < 0.0 => {
                return Err(QuantizeError::InvalidRange { tensor: edge.tensor.clone(), amax: range });
            }
            Some(range) => amax.insert(edge.tensor.clone(), range),
        };
    }
    for group in &placement.shared_scales {
        let largest = group.iter().filter_map(|tensor| amax.get(tensor)).fold(0f32, |m, &a| m.max(a));
        for tensor in group {
            amax.entry(tensor.clone()).and_modify(|value| *value = largest);
        }
    }
    let scale = |(tensor, amax): (String, f32)| {
        let mut scale = [activation_type(precision).scale(amax)];
        types.rounded_up(&tensor, &mut scale);
        (tensor, scale[0])
    };
    Ok(amax.into_iter().map(scale).collect())
}

fn activation_type(precision: Precision) -> QuantType {
    if precision == Precision::Fp8 { QuantType::E4m3 } else { QuantType::Int8 }
}

fn weight_type(precision: Precision) -> QuantType {
    if precision == Precision::Fp8 { QuantType::E4m3 } else { QuantType::Int8Narrow }
}

/// What will be added where.
struct Insertion<'t> {
    names: Names,
    precision: Precision,
    types: &'t ScaleTypes,
    /// Nodes before all others: Q of graph inputs.
    first: Vec<NodeProto>,
    before: BTreeMap<NodeId, Vec<NodeProto>>,
    after: BTreeMap<NodeId, Vec<NodeProto>>,
    /// New inputs of old nodes.
    inputs: BTreeMap<NodeId, Vec<(usize, String)>>,
    initializers: Vec<TensorProto>,
    written: Vec<WrittenScales>,
}

impl<'t> Insertion<'t> {
    fn new(graph: &GraphProto, precision: Precision, types: &'t ScaleTypes) -> Self {
        Self {
            names: Names::of(graph),
            precision,
            types,
            first: Vec::new(),
            before: BTreeMap::new(),
            after: BTreeMap::new(),
            inputs: BTreeMap::new(),
            initializers: Vec::new(),
            written: Vec::new(),
        }
    }

    fn fresh(&mut self, tensor: &str, suffix: &str) -> String {
        self.names.derived(tensor, suffix)
    }

    fn activations(
        &mut self,
        placement: &Placement,
        scales: &BTreeMap<String, f32>,
        view: &GraphView<'_>,
    ) -> Result<(), QuantizeError> {
        let quant_type = activation_type(self.precision);
        let mut quantized = BTreeMap::new();
        for edge in &placement.activations {
            let tensor = edge.tensor.as_str();
            if !quantized.contains_key(tensor) {
                let scale = self.fresh(tensor, "scale");
                let zero_point = self.fresh(tensor, "zero_point");
                let stored = self.types.stored(tensor);
                self.initializers.push(scale_tensor(&scale, Vec::new(), vec![scales[tensor]], stored)?);
                self.initializers.push(codes_tensor(&zero_point, &[], quant_type, vec![0]));
                let codes = self.fresh(tensor, "quantized");
                let name = self.fresh(tensor, "QuantizeLinear");
                let node = NodeProto::new("QuantizeLinear", &name, &[tensor, &scale, &zero_point], &[&codes]);
                match view.producer(tensor) {
                    Some(producer) => self.after.entry(producer).or_default().push(node),
                    None => self.first.push(node),
                }
                quantized.insert(tensor, [codes, scale, zero_point]);
            }
            let inputs = quantized[tensor].clone();
            self.dequantize(tensor, NodeId(edge.node), edge.input, &inputs, None);
            self.written.push(WrittenScales {
                node: view.node(NodeId(edge.node)).label(edge.node),
                input: edge.input,
                tensor: tensor.to_owned(),
                axis: None,
                scales: vec![scales[tensor]],
            });
        }
        Ok(())
    }

    fn weights(
        &mut self,
        placement: &Placement,
        scales: &BTreeMap<String, f32>,
        table: &CalibrationTable,
        view: &GraphView<'_>,
    ) -> Result<(), QuantizeError> {
        let quant_type = weight_type(self.precision);
        let recovered = table.recovered.as_ref();
        // Consumers that share a constant and its axis share the codes.
        let mut shared: BTreeMap<(&str, Option<usize>), Vec<&WeightEdge>> = BTreeMap::new();
        for edge in &placement.weights {
            shared.entry((&edge.tensor, edge.axis)).or_default().push(edge);
        }
        for ((tensor, axis), edges) in shared {
            let Some(weight) = view.initializer(tensor) else {
                return Err(QuantizeError::MissingWeight { tensor: tensor.to_owned() });
            };
            let mut floors: Vec<f32> = Vec::new();
            for edge in &edges {
                let node = view.node(NodeId(edge.node));
                let input_scale = node.input.first().and_then(|input| scales.get(input));
                let bias = node.input.get(2).and_then(|bias| view.initializer(bias));
                let extent = match axis {
                    Some(axis) => weight.dims.get(axis),
                    None => bias.and_then(|bias| bias.dims.first()),
                };
                let channels = extent.map_or(Ok(1), |&extent| usize::try_from(extent)).unwrap_or(0);
                let more = input_scale.map(|&scale| scale_floors(bias, scale, channels)).unwrap_or_default();
                for (channel, floor) in more.into_iter().enumerate() {
                    let index = axis.map_or(0, |_| channel);
                    match floors.get_mut(index) {
                        Some(known) => *known = known.max(floor),
                        None => floors.push(floor),
                    }
                }
            }
            let names = WeightNames {
                codes: self.fresh(tensor, "quantized"),
                scale: self.fresh(tensor, "scale"),
                zero_point: self.fresh(tensor, "zero_point"),
            };
            let mut quantized = quantize_weight(weight, edges[0], quant_type, self.types, &floors, &names)?;
            if let Some(rounding) = recovered.and_then(|recovered| recovered.rounding.get(tensor)) {
                if axis.is_none() {
                    return Err(QuantizeError::RoundingOfChannels { tensor: tensor.to_owned() });
                }
                quantized.round_anew(tensor, rounding)?;
            }
            let scales = quantized.scale.to_tensor()?.to_f32();
            let parts = [quantized.codes, quantized.scale, quantized.zero_point];
            let inputs = [0, 1, 2].map(|part: usize| parts[part].name().to_owned());
            self.initializers.extend(parts);
            for edge in edges {
                self.dequantize(tensor, NodeId(edge.node), edge.input, &inputs, axis);
                self.written.push(WrittenScales {
                    node: view.node(NodeId(edge.node)).label(edge.node),
                    input: edge.input,
                    tensor: tensor.to_owned(),
                    axis,
                    scales: scales.clone(),
                });
            }
        }
        Ok(())
    }

    /// Puts corrected biases in place of those that nodes have; returns the names of the latter.
    fn biases(
        &mut self,
        placement: &Placement,
        table: &CalibrationTable,
        view: &GraphView<'_>,
    ) -> Result<(), QuantizeError> {
        for CorrectedBias { site, mut tensor } in bias::corrected(placement, table, view)? {
            let node = site.node;
            let of = site.tensor(view).or_else(|| view.node(node).output.first()).cloned().unwrap_or_default();
            let name = self.fresh(&of, "corrected");
            tensor.name = Some(name.clone());
            self.initializers.push(tensor);
            self.inputs.entry(node).or_default().push((site.input, name));
        }
        Ok(())
    }

    /// Puts a DequantizeLinear before `consumer` and redirects its input to it.
    fn dequantize(&mut self, tensor: &str, consumer: NodeId, input: usize, inputs: &[String; 3], axis: Option<usize>) {
        let name = self.fresh(tensor, "DequantizeLinear");
        let output = self.fresh(tensor, "dequantized");
        let mut node = NodeProto::new("DequantizeLinear", &name, &inputs.each_ref().map(String::as_str), &[&output]);
        if let Some(axis) = axis {
            node = node.with(AttributeProto::int("axis", axis as i64));
        }
        self.before.entry(consumer).or_default().push(node);
        self.inputs.entry(consumer).or_default().push((input, output));
    }
}

#[cfg(test)]
mod tests;
