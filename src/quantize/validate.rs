//! Checks of Q/DQ that TensorRT's parser does not make, on our models and on those of others.
//!
//! The builder silently accepts per-channel activations, weights scaled along the wrong axis and operators with one
//! quantized side, and computes something else than what was meant.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

mod axes;
mod computed;
mod sides;

pub use self::computed::Compute;
use self::computed::{Origin, code_name, computed, is_code};
use super::facts::Facts;
use crate::{
    onnx::{
        Fact, GraphError, Model, NodeId,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    },
    tensor::{ElementType, Tensor, TensorMap},
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
    /// Whether TensorRT's builder fails on it without telling the node, or ends the program.
    #[serde(skip)]
    pub stops_builder: bool,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = if self.severity == Severity::Error { "error" } else { "warning" };
        write!(f, "{severity}: node `{}`: {}", self.node, self.message)
    }
}

/// Checks every Q/DQ pair and every operator that takes one, in the main graph and in its subgraphs. What scales and weights
/// come to that operators compute of constants is not looked at.
///
/// # Errors
/// A graph with a cycle or a tensor made twice.
pub fn validate(model: &Model) -> Result<Vec<Finding>, GraphError> {
    validate_with(model, &|_| Ok(TensorMap::new()))
}

/// The same, with what `compute` gives for constants that operators compute.
///
/// # Errors
/// As [`validate`].
pub fn validate_with(model: &Model, compute: Compute<'_>) -> Result<Vec<Finding>, GraphError> {
    let mut findings = Vec::new();
    let mut graph = model.graph().clone();
    let contributed = as_standard(&mut graph);
    let about = About { model, opset: model.opset("").unwrap_or_default(), contributed: &contributed, compute };
    validate_graph(&graph, &about, &BTreeMap::new(), &mut findings)?;
    Ok(findings)
}

/// What holds for all graphs of a model.
#[derive(Clone, Copy)]
struct About<'m> {
    model: &'m Model,
    opset: i64,
    /// Labels of Q/DQ of another domain.
    contributed: &'m BTreeSet<String>,
    compute: Compute<'m>,
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
    about: &About<'_>,
    outer: &BTreeMap<&'a str, &'a TensorProto>,
    findings: &mut Vec<Finding>,
) -> Result<(), GraphError> {
    let facts = Facts::new(graph, &BTreeMap::new())?;
    let mut constants = outer.clone();
    constants.extend(graph.initializer.iter().map(|tensor| (tensor.name(), tensor)));
    for node in graph.node.iter().filter(|node| node.op_type() == "Constant" && node.is_standard()) {
        constants.extend(node.output.first().map(String::as_str).zip(node.attr_t("value")));
    }
    let given = constants.clone();
    for &id in facts.view.topological_order() {
        let node = facts.view.node(id);
        if let ("Identity", [from], [to], true) =
            (node.op_type(), &node.input[..], &node.output[..], node.is_standard())
            && let Some(&constant) = constants.get(from.as_str())
        {
            constants.insert(to, constant);
        }
    }
    let (values, unknown) = match computed(about.model, &facts.view, &constants, about.compute) {
        Ok(values) => (values, None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    let mut all = constants.clone();
    all.extend(values.iter().map(|tensor| (tensor.name(), tensor)));
    let mut check = Check { facts, given, constants, all, unknown, about: *about, findings };
    for (id, node) in check.facts.view.nodes() {
        check.node(id, node);
    }
    let constants = check.all;
    let mut subgraphs = graph.node.iter().flat_map(NodeProto::subgraphs);
    subgraphs.try_for_each(|inner| validate_graph(inner, about, &constants, findings))
}

struct Check<'a, 'f> {
    facts: Facts<'a>,
    /// What the file holds as constants.
    given: BTreeMap<&'a str, &'a TensorProto>,
    /// And under which other names.
    constants: BTreeMap<&'a str, &'a TensorProto>,
    /// And what is computed of them.
    all: BTreeMap<&'a str, &'a TensorProto>,
    /// Why that is not known.
    unknown: Option<String>,
    about: About<'f>,
    findings: &'f mut Vec<Finding>,
}

impl<'a> Check<'a, '_> {
    fn node(&mut self, id: NodeId, node: &'a NodeProto) {
        match node.op_type() {
            _ if !node.is_standard() => {}
            _ if node.is(Fact::Quantizer) => {
                self.scale(id, node);
                self.zero_point(id, node);
                if !self.moved_constant(id, node) {
                    self.granularity(id, node);
                    self.partners(id, node);
                }
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
        self.findings.push(Finding { severity, node, message, stops_builder: false });
    }

    fn fatal(&mut self, id: NodeId, message: String) {
        self.error(id, message);
        self.findings.iter_mut().next_back().into_iter().for_each(|finding| finding.stops_builder = true);
    }

    fn error(&mut self, id: NodeId, message: String) {
        self.add(Severity::Error, id, message);
    }

    fn constant(&self, node: &NodeProto, input: usize) -> Option<&'a TensorProto> {
        self.all.get(node.input.get(input)?.as_str()).copied()
    }

    /// What the input of a node is computed from, unless the file holds it.
    fn origin(&self, node: &'a NodeProto, input: usize) -> Option<Origin<'a>> {
        let tensor = node.input.get(input).filter(|tensor| !self.constants.contains_key(tensor.as_str()))?;
        Some(Origin::of(&self.facts.view, &self.constants, tensor))
    }

    fn has_input(node: &NodeProto, input: usize) -> bool {
        node.input.get(input).is_some_and(|tensor| !tensor.is_empty())
    }

    // --- Q and DQ themselves ------------------------------------------------------------------------------------

    /// A scale that operators compute must be known before the engine is built.
    fn computed_scale(&mut self, id: NodeId, node: &'a NodeProto) {
        let Some(origin) = self.origin(node, 1) else { return };
        if origin.runs {
            let message = "its scale is computed as the model runs, and TensorRT needs a constant";
            self.fatal(id, message.to_owned());
        } else if let Some(op_type) = origin.late() {
            self.fatal(
                id,
                format!(
                    "its scale is computed by {op_type}, which TensorRT does not do before it builds; store the scale"
                ),
            );
        } else if let Some(op_type) = origin.untried() {
            let message =
                format!("its scale is computed by {op_type}; whether TensorRT does that before it builds is not known");
            self.add(Severity::Warning, id, message);
        } else {
            self.unlooked(id, node, 1, "scale");
        }
    }

    /// Whether operators make an input of constants, and what they make is not known.
    fn unlooked(&mut self, id: NodeId, node: &'a NodeProto, input: usize, what: &str) -> bool {
        let computed = self.constant(node, input).is_none();
        let unlooked = computed && self.origin(node, input).is_some_and(|origin| origin.is_constant());
        if let Some(reason) = self.unknown.clone().filter(|_| unlooked) {
            self.error(id, format!("its {what} is computed, and could not be looked at: {reason}"));
        }
        unlooked
    }

    fn scale(&mut self, id: NodeId, node: &'a NodeProto) {
        self.computed_scale(id, node);
        let Some(scale) = self.constant(node, 1) else { return };
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
        if self.about.opset < needed && !self.about.contributed.contains(&node.label(id.0)) {
            let message = format!("its scale needs opset {needed}, and the model has {}", self.about.opset);
            self.error(id, message);
        }
    }

    /// Types of 8 bits that are not signed, of 16 bits, and floats and integers that only others know.
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
            _ if (18..=21).contains(&data_type) => {
                let kind = code_name(data_type);
                self.error(id, format!("its values are {kind}, which TensorRT's parser refuses; use int8 or float8e4m3fn"));
            }
            _ => {}
        }
    }

    fn zero_point(&mut self, id: NodeId, node: &'a NodeProto) {
        if !Self::has_input(node, 2) {
            let given = node.attr_i("output_dtype").and_then(|kind| i32::try_from(kind).ok()).unwrap_or(0);
            if node.op_type() == "QuantizeLinear" && given == 0 {
                let message = "without a zero point it gives unsigned values; symmetric INT8 is meant";
                self.add(Severity::Warning, id, message.to_owned());
            }
            let codes = self.constant(node, 0).filter(|_| node.op_type() == "DequantizeLinear");
            return self.code_type(id, codes.map_or(given, TensorProto::data_type));
        }
        if self.origin(node, 2).is_some_and(|origin| !origin.only_casts()) {
            return self.error(id, "its zero point is computed, and TensorRT needs a constant".to_owned());
        }
        let Some(zero_point) = self.constant(node, 2) else {
            self.unlooked(id, node, 2, "zero point");
            return;
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
        if zero_point.data_type() == FLOAT8E4M3FN && self.about.opset < 19 {
            let message = format!("FP8 needs opset 19, and the model has {}", self.about.opset);
            self.error(id, message);
        }
        let codes = self.constant(node, 0).filter(|_| node.op_type() == "DequantizeLinear");
        if codes.is_some_and(|codes| codes.data_type() != zero_point.data_type()) {
            return self.error(id, "its zero point and its values differ in type".to_owned());
        }
        self.code_type(id, zero_point.data_type());
    }

    /// Activations have one scale, weights one or as many as channels along the axis of their consumer.
    fn granularity(&mut self, id: NodeId, node: &'a NodeProto) {
        let Some(scale) = self.constant(node, 1) else { return };
        let count = scale.dims.iter().product::<i64>();
        let in_blocks = node.attr_i("block_size").unwrap_or(0) != 0;
        if scale.dims.len() > 1 && !in_blocks {
            let message = format!("its scale has the shape {:?}; TensorRT takes a number or a list", scale.dims);
            return self.error(id, message);
        }
        let Some(weight) = self.weight_of(node) else {
            if !self.unlooked(id, node, 0, "weight") && count != 1 {
                let message = format!("an activation has {count} scales; TensorRT takes one and would use the first");
                self.error(id, message);
            }
            return;
        };
        if node.op_type() == "DequantizeLinear" && weight.data_type() == ElementType::I32.onnx() {
            let message = "it dequantizes 32-bit integers, which TensorRT rejects; keep the bias in float";
            return self.error(id, message.to_owned());
        }
        let rank = weight.dims.len() as i64;
        let axis = node.attr_i("axis").unwrap_or(1);
        let axis = if axis < 0 { axis + rank } else { axis };
        if in_blocks {
            if axis + 2 < rank {
                let message =
                    format!("its blocks lie along axis {axis}; TensorRT takes blocks along the last two axes only");
                self.error(id, message);
            }
            return;
        }
        let zero_points = self.constant(node, 2).map(|zero_point| zero_point.dims.iter().product::<i64>());
        if let Some(zero_points) = zero_points.filter(|&zero_points| zero_points != count) {
            let message = format!("it has {count} scales and {zero_points} zero points; TensorRT needs as many");
            return self.error(id, message);
        }
        if scale.dims.len() != 1 {
            return;
        }
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
        let lies = |node: &NodeProto| {
            let rank = self.weight_of(node).map_or(0, |weight| weight.dims.len() as i64);
            let axis = node.attr_i("axis").unwrap_or(1);
            if axis < 0 { axis + rank } else { axis }
        };
        let axes = [lies(node), lies(before)];
        if own.len() > 1 && axes[0] != axes[1] {
            let message =
                format!("its scales lie along axis {} and those of its QuantizeLinear along {}", axes[0], axes[1]);
            self.error(id, message);
        }
    }

    /// Codes of a constant that other nodes move: TensorRT takes them in front of a DequantizeLinear only.
    fn moved_constant(&mut self, id: NodeId, node: &NodeProto) -> bool {
        let ("DequantizeLinear", Some(codes)) = (node.op_type(), node.input.first()) else { return false };
        let Some((source, Some(mover))) = self.behind_copies(codes) else { return false };
        let Some(kind) = self.given.get(source).map(|codes| codes.data_type()).filter(|&kind| is_code(kind)) else {
            return false;
        };
        let kind = code_name(kind);
        let message = format!(
            "its values come through `{mover}`, and TensorRT takes constants of {kind} right in front of a DequantizeLinear only; \
             store them as they are dequantized"
        );
        self.error(id, message);
        true
    }

    /// Where a tensor comes from, through what only moves values, and the last node that moves it.
    fn behind_copies<'t>(&self, tensor: &'t str) -> Option<(&'t str, Option<String>)>
    where
        'a: 't,
    {
        let (mut tensor, mut mover) = (tensor, None);
        for _ in 0..super::facts::REACH {
            let Some((id, node)) = self.facts.producer(tensor).filter(|(_, node)| node.is(Fact::Copies)) else { break };
            tensor = node.input.first()?;
            mover = mover.or_else(|| Some(node.label(id.0)));
        }
        Some((tensor, mover))
    }

    /// Every Q feeds DQs only, and every DQ takes a Q or a constant.
    fn partners(&mut self, id: NodeId, node: &NodeProto) {
        if node.op_type() == "DequantizeLinear" {
            let source = self.facts.input(id, 0).unwrap_or_default();
            let source = self.behind_copies(source).map_or(source, |(source, _)| source);
            let known = self.all.contains_key(source) || self.facts.view.is_graph_input(source);
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
            .filter(|(_, user)| user.op_type() != "DequantizeLinear" && !user.is(Fact::Copies))
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
}

#[cfg(test)]
mod tests;
