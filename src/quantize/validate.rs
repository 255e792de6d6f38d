//! Checks of Q/DQ that TensorRT's parser does not make, on our models and on those of others.
//!
//! The builder silently accepts per-channel activations, weights scaled along the wrong axis and operators with one
//! quantized side, and computes something else than what was meant.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::facts::Facts;
use crate::{
    onnx::{
        Fact, GraphError, Model, NodeId,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    },
    tensor::{ElementType, Tensor, Values},
};

/// Value of `TensorProto.DataType` for E4M3.
const FLOAT8E4M3FN: i32 = 17;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Works, but is not what one would want.
    Warning,
    /// TensorRT rejects it, or computes something else.
    Error,
}

/// Something wrong with the quantization of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The node.
    pub node: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = if self.severity == Severity::Error { "error" } else { "warning" };
        write!(f, "{severity}: node `{}`: {}", self.node, self.message)
    }
}

/// Checks every Q/DQ pair and every operator that takes one, in the main graph and in its subgraphs.
///
/// # Errors
/// A graph with a cycle or a tensor made twice.
pub fn validate(model: &Model) -> Result<Vec<Finding>, GraphError> {
    let mut findings = Vec::new();
    let opset = model.opset("").unwrap_or_default();
    let mut graph = model.graph().clone();
    let contributed = as_standard(&mut graph);
    validate_graph(&graph, opset, &BTreeMap::new(), &contributed, &mut findings)?;
    Ok(findings)
}

/// Q/DQ of `com.microsoft`, which TensorRT's parser takes for the standard ones, as these, and constants that are numbers of
/// a node as tensors; gives the labels of the former, whose features do not depend on the opset.
fn as_standard(graph: &mut GraphProto) -> BTreeSet<String> {
    let mut contributed = BTreeSet::new();
    for (index, node) in graph.node.iter_mut().enumerate() {
        if node.domain() == "com.microsoft" && matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear") {
            contributed.insert(node.label(index));
            node.domain = None;
        }
        let numbers = |node: &NodeProto| {
            let single = node.attr_f("value_float").map(|value| (Vec::new(), vec![value]));
            single.or_else(|| {
                let values = &node.attribute.iter().find(|a| a.name() == "value_floats")?.floats;
                Some((vec![values.len()], values.clone()))
            })
        };
        if node.op_type() == "Constant"
            && node.is_standard()
            && let Some(tensor) = numbers(node).and_then(|(shape, values)| Tensor::from_f32(shape, values).ok())
        {
            node.attribute = vec![AttributeProto::tensor("value", TensorProto::from_tensor("", tensor))];
        }
        node.subgraphs_mut().for_each(|inner| contributed.extend(as_standard(inner)));
    }
    contributed
}

/// Recursion is as deep as graphs are nested, which decoding limits.
fn validate_graph<'a>(
    graph: &'a GraphProto,
    opset: i64,
    outer: &BTreeMap<&'a str, &'a TensorProto>,
    contributed: &BTreeSet<String>,
    findings: &mut Vec<Finding>,
) -> Result<(), GraphError> {
    let facts = Facts::new(graph, &BTreeMap::new())?;
    let mut constants = outer.clone();
    constants.extend(graph.initializer.iter().map(|tensor| (tensor.name(), tensor)));
    for node in graph.node.iter().filter(|node| node.op_type() == "Constant" && node.is_standard()) {
        constants.extend(node.output.first().map(String::as_str).zip(node.attr_t("value")));
    }
    for &id in facts.view.topological_order() {
        let node = facts.view.node(id);
        if let ("Identity", [from], [to], true) =
            (node.op_type(), &node.input[..], &node.output[..], node.is_standard())
            && let Some(&constant) = constants.get(from.as_str())
        {
            constants.insert(to, constant);
        }
    }
    let mut check = Check { facts, constants, opset, contributed, findings };
    for (id, node) in check.facts.view.nodes() {
        check.node(id, node);
    }
    let constants = check.constants;
    let mut subgraphs = graph.node.iter().flat_map(NodeProto::subgraphs);
    subgraphs.try_for_each(|inner| validate_graph(inner, opset, &constants, contributed, findings))
}

struct Check<'a, 'f> {
    facts: Facts<'a>,
    constants: BTreeMap<&'a str, &'a TensorProto>,
    opset: i64,
    /// Labels of Q/DQ of another domain.
    contributed: &'f BTreeSet<String>,
    findings: &'f mut Vec<Finding>,
}

impl<'a> Check<'a, '_> {
    fn node(&mut self, id: NodeId, node: &'a NodeProto) {
        match node.op_type() {
            _ if !node.is_standard() => {}
            _ if node.is(Fact::Quantizer) => {
                self.scale(id, node);
                self.zero_point(id, node);
                self.granularity(id, node);
                self.partners(id, node);
            }
            _ if node.is(Fact::Weighted) => self.sides(id, node),
            _ if node.is(Fact::Integer) => {
                let message = "TensorRT does not take this operator; quantize the float model with explicit Q/DQ";
                self.error(id, message.to_owned());
            }
            _ => {}
        }
    }

    fn add(&mut self, severity: Severity, id: NodeId, message: String) {
        let node = self.facts.view.node(id).label(id.0);
        self.findings.push(Finding { severity, node, message });
    }

    fn error(&mut self, id: NodeId, message: String) {
        self.add(Severity::Error, id, message);
    }

    fn constant(&self, node: &NodeProto, input: usize) -> Option<&'a TensorProto> {
        self.constants.get(node.input.get(input)?.as_str()).copied()
    }

    fn has_input(node: &NodeProto, input: usize) -> bool {
        node.input.get(input).is_some_and(|tensor| !tensor.is_empty())
    }

    // --- Q and DQ themselves ------------------------------------------------------------------------------------

    fn scale(&mut self, id: NodeId, node: &NodeProto) {
        let Some(scale) = self.constant(node, 1) else {
            return self.error(id, "its scale is computed, and TensorRT needs a constant".to_owned());
        };
        let values = match scale.to_tensor() {
            Ok(tensor) => tensor.to_f32(),
            Err(error) => return self.error(id, format!("its scale is unreadable: {error}")),
        };
        if let Some((index, value)) = values.iter().enumerate().find(|(_, value)| !(value.is_finite() && **value > 0.0))
        {
            let message =
                format!("its scale {index} is {value}; scales must be finite and above zero, calibrate again");
            return self.error(id, message);
        }
        if scale.data_type() == ElementType::F32.onnx() && values.iter().any(|value| !value.is_normal()) {
            self.add(Severity::Warning, id, "a scale is so small that a GPU takes it for zero".to_owned());
        }
        let needed = if scale.data_type() != ElementType::F32.onnx() {
            19
        } else if values.len() > 1 {
            13
        } else {
            10
        };
        if self.opset < needed && !self.contributed.contains(&node.label(id.0)) {
            let message = format!("its scale needs opset {needed}, and the model has {}", self.opset);
            self.error(id, message);
        }
    }

    /// Types of 8 bits that are not signed, and of 16 bits.
    fn code_type(&mut self, id: NodeId, data_type: i32) {
        match ElementType::from_onnx(data_type) {
            Some(ElementType::U8) => self.error(
                id,
                "its 8-bit values are unsigned, which TensorRT reads as signed: it would cut off the upper half of the range; \
                 quantize symmetrically to int8"
                    .to_owned(),
            ),
            Some(kind @ (ElementType::I16 | ElementType::U16)) => {
                self.error(id, format!("its values are {}, which TensorRT's parser refuses; use int8", kind.name()));
            }
            _ => {}
        }
    }

    fn zero_point(&mut self, id: NodeId, node: &NodeProto) {
        if !Self::has_input(node, 2) {
            let given = node.attr_i("output_dtype").and_then(|kind| i32::try_from(kind).ok()).unwrap_or(0);
            if node.op_type() == "QuantizeLinear" && given == 0 {
                let message = "without a zero point it gives unsigned values; symmetric INT8 is meant";
                self.add(Severity::Warning, id, message.to_owned());
            }
            let codes = self.constant(node, 0).filter(|_| node.op_type() == "DequantizeLinear");
            return self.code_type(id, codes.map_or(given, TensorProto::data_type));
        }
        let Some(zero_point) = self.constant(node, 2) else {
            return self.error(id, "its zero point is computed, and TensorRT needs a constant".to_owned());
        };
        // E4M3 has no counterpart among our types; its zero is a byte of zeros.
        let zero = zero_point.to_tensor().map_or_else(
            |_| {
                let raw = zero_point.raw_data.as_deref().unwrap_or_default();
                raw.iter().all(|&byte| byte == 0) && zero_point.int32_data.iter().all(|&value| value == 0)
            },
            |tensor| tensor.to_f32().iter().all(|&value| value == 0.0),
        );
        if !zero {
            self.error(id, "its zero point is not 0, and TensorRT takes symmetric quantization only".to_owned());
        }
        if zero_point.data_type() == FLOAT8E4M3FN && self.opset < 19 {
            let message = format!("FP8 needs opset 19, and the model has {}", self.opset);
            self.error(id, message);
        }
        let codes = self.constant(node, 0).filter(|_| node.op_type() == "DequantizeLinear");
        if codes.is_some_and(|codes| codes.data_type() != zero_point.data_type()) {
            return self.error(id, "its zero point and its values differ in type".to_owned());
        }
        self.code_type(id, zero_point.data_type());
    }

    /// Activations have one scale, weights one or as many as channels along the axis of their consumer.
    fn granularity(&mut self, id: NodeId, node: &NodeProto) {
        let Some(scale) = self.constant(node, 1) else { return };
        let count = scale.dims.iter().product::<i64>();
        let Some(weight) = self.weight_of(node) else {
            if count != 1 {
                let message = format!("an activation has {count} scales; TensorRT takes one and would use the first");
                self.error(id, message);
            }
            return;
        };
        if node.op_type() == "DequantizeLinear" && weight.data_type() == ElementType::I32.onnx() {
            let message = "it dequantizes 32-bit integers, which TensorRT rejects; keep the bias in float";
            return self.error(id, message.to_owned());
        }
        if scale.dims.len() != 1 || node.attr_i("block_size").unwrap_or(0) != 0 {
            return;
        }
        let rank = weight.dims.len() as i64;
        let axis = node.attr_i("axis").unwrap_or(1);
        let axis = if axis < 0 { axis + rank } else { axis };
        let extent = usize::try_from(axis).ok().and_then(|axis| weight.dims.get(axis));
        // One scale in a list of one is per tensor.
        if count != 1 && extent != Some(&count) {
            let message = format!("it has {count} scales along axis {axis} of a weight of shape {:?}", weight.dims);
            return self.error(id, message);
        }
        if let (Ok(axis), "DequantizeLinear", true) = (usize::try_from(axis), node.op_type(), count != 1) {
            self.weight_axis(id, node, axis, weight.dims.clone());
        }
    }

    fn weight_axis(&mut self, id: NodeId, node: &NodeProto, axis: usize, shape: Vec<i64>) {
        let mut wrong = Vec::new();
        let mut places: Vec<(&str, Option<usize>, Vec<i64>)> =
            node.output.first().map(|output| (output.as_str(), Some(axis), shape)).into_iter().collect();
        let mut steps = super::facts::REACH;
        while let Some((tensor, axis, shape)) = places.pop().filter(|_| steps > 0) {
            steps -= 1;
            let uses = self.facts.view.consumers(tensor);
            for consumer in uses {
                let user = self.facts.view.node(consumer.node);
                if let Some((axis, shape)) = self.moved_axis(user, axis, &shape) {
                    places.extend(user.output.first().map(|output| (output.as_str(), axis, shape)));
                }
                let expected = consumer.input.and_then(|input| user.channel_axis(input, shape.len()));
                if let Some(expected) = expected.filter(|&expected| axis != Some(expected)) {
                    let user = user.label(consumer.node.0);
                    let along = axis.map_or_else(
                        || "an axis that a Reshape mixes with others".to_owned(),
                        |axis| format!("axis {axis}"),
                    );
                    wrong.push(format!(
                        "its scales lie along {along}, and `{user}` has its channels on axis {expected}"
                    ));
                }
            }
        }
        for message in wrong {
            self.error(id, message);
        }
    }

    /// Where an axis lies behind a node that only moves values, nowhere where it is mixed with others, and the shape there; `None` for
    /// other nodes.
    fn moved_axis(&self, node: &NodeProto, axis: Option<usize>, shape: &[i64]) -> Option<(Option<usize>, Vec<i64>)> {
        match node.op_type() {
            _ if !node.is_standard() => None,
            "Identity" | "Cast" => Some((axis, shape.to_vec())),
            "Transpose" => {
                let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
                let order = node.attr_ints("perm").unwrap_or(&reversed);
                let moved = order.iter().map(|&from| shape.get(usize::try_from(from).ok()?).copied());
                let to = axis.and_then(|axis| order.iter().position(|&from| from == axis as i64));
                Some((to, moved.collect::<Option<_>>()?))
            }
            "Reshape" => {
                let Values::I64(mut extents) = self.constant(node, 1)?.to_tensor().ok()?.into_parts().1 else {
                    return None;
                };
                for (place, extent) in extents.iter_mut().enumerate().filter(|(_, extent)| **extent == 0) {
                    *extent = *shape.get(place)?;
                }
                let known: i64 = extents.iter().filter(|&&extent| extent > 0).product();
                let rest = shape.iter().product::<i64>().checked_div(known)?;
                extents.iter_mut().filter(|extent| **extent < 0).for_each(|extent| *extent = rest);
                // As many values lie before it and in it.
                let to = axis.and_then(|axis| {
                    let (extent, before) = (shape[axis], shape[..axis].iter().product::<i64>());
                    (0..extents.len())
                        .find(|&to| extents[to] == extent && extents[..to].iter().product::<i64>() == before)
                });
                Some((to, extents))
            }
            _ => None,
        }
    }

    /// A Q and its DQ have the same scale: otherwise every value is multiplied by the ratio of both.
    fn same_scale(&mut self, id: NodeId, node: &NodeProto, before: &NodeProto) {
        let values = |node| self.constant(node, 1).and_then(|scale| scale.to_tensor().ok()).map(|scale| scale.to_f32());
        let (Some(own), Some(others)) = (values(node), values(before)) else { return };
        // Scales in 16 bits are rounded.
        let differs = |(own, other): &(&f32, &f32)| (**own / **other - 1.0).abs() > 0.01;
        if let Some((own, other)) = own.iter().zip(&others).find(differs) {
            let message = format!(
                "its scale is {own} and that of its QuantizeLinear {other}: every value is multiplied by their ratio"
            );
            self.error(id, message);
        }
    }

    /// Every Q feeds DQs only, and every DQ takes a Q or a constant.
    fn partners(&mut self, id: NodeId, node: &NodeProto) {
        if node.op_type() == "DequantizeLinear" {
            let source = self.facts.input(id, 0).unwrap_or_default();
            let known = self.constants.contains_key(source) || self.facts.view.is_graph_input(source);
            let before = self.facts.producer(source).map(|(_, before)| before);
            let Some(before) = before.filter(|_| !known) else { return };
            match before.op_type() {
                "QuantizeLinear" => self.same_scale(id, node, before),
                "Constant" | "Cast" => {}
                _ => {
                    let message = format!("it takes `{source}`, which no QuantizeLinear makes");
                    self.add(Severity::Warning, id, message);
                }
            }
            return;
        }
        let uses = node.output.iter().flat_map(|output| self.facts.view.consumers(output));
        let strangers: Vec<_> = uses
            .map(|u| (u.node, self.facts.view.node(u.node)))
            .filter(|(_, user)| user.op_type() != "DequantizeLinear")
            .map(|(at, user)| user.label(at.0))
            .collect();
        if let Some(user) = strangers.first() {
            let message = format!("`{user}` takes its 8-bit values directly; a DequantizeLinear is missing");
            self.add(Severity::Warning, id, message);
        }
    }

    /// The constant that a Q or DQ scales, through a pair of both.
    fn weight_of(&self, node: &NodeProto) -> Option<&'a TensorProto> {
        self.constant(node, 0).or_else(|| {
            let (_, before) = self.facts.producer(node.input.first()?)?;
            (before.op_type() == "QuantizeLinear").then(|| self.constant(before, 0))?
        })
    }

    // --- Operators ----------------------------------------------------------------------------------------------

    /// Both sides of a product are quantized, or none, and their scales agree in type.
    fn sides(&mut self, id: NodeId, node: &NodeProto) {
        let sides = [0, 1].map(|side| self.dequantizer(node.input.get(side)?));
        match sides {
            [None, None] => {}
            [Some(a), Some(b)] => {
                let types = [a, b].map(|side| self.constant(side, 1).map(TensorProto::data_type));
                if let [Some(a), Some(b)] = types
                    && a != b
                {
                    self.error(id, "the scales of its two sides differ in type, which TensorRT rejects".to_owned());
                }
            }
            [activation, _] => {
                let (quantized, float) = if activation.is_some() { ("first", "second") } else { ("second", "first") };
                let message = format!(
                    "its {quantized} input is quantized and its {float} is not: TensorRT would run it in float; \
                     quantize both or none"
                );
                self.error(id, message);
            }
        }
    }

    /// The DequantizeLinear behind a tensor, through what only moves values.
    fn dequantizer(&self, tensor: &str) -> Option<&'a NodeProto> {
        let mut tensor = tensor;
        for _ in 0..super::facts::REACH {
            let (_, node) = self.facts.producer(tensor)?;
            match node.op_type() {
                "DequantizeLinear" => return Some(node),
                // What a Concat joins has several makers.
                op_type if op_type == "Cast" || (op_type != "Concat" && node.is(Fact::Copies)) => {
                    tensor = node.input.first()?;
                }
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
