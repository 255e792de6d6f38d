//! Converts the float part of a model to FP16 or BF16.
//!
//! TensorRT types networks strongly: the precision of a layer is the type of its tensors. Nodes that a 16-bit type
//! serves badly stay in FP32, with casts around them and a reason. Works alike on float models and behind Q/DQ, where
//! a DequantizeLinear takes the type of its consumer and no cast is needed.

mod forms;
mod kept;
mod ranges;

use std::collections::{BTreeMap, BTreeSet};

use half::f16;
pub use kept::{Fp32Reason, Halved, KeptFp32};
use regex::Regex;

use super::{
    QuantizeError,
    names::Names,
    plan::{CompiledPlan, Precision},
    scheme::{all_names, is_of},
    types::{declared_type, element_types},
    weights::fits_f16,
};
use crate::{
    backend::TensorInfo,
    calibrate::CalibrationTable,
    onnx::{
        Fact, GraphView, NodeId, captured,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto, TypeValue, ValueInfoProto},
    },
    tensor::{ElementType, Tensor, Values},
};

/// Of a tensor that reaches no more, FP16 has fewer numbers than INT8 has codes.
const FP16_SMALLEST: f32 = 1.0 / 65536.0;

/// What to convert and what not.
pub(super) struct Conversion<'c> {
    /// [`ElementType::F16`] or [`ElementType::Bf16`].
    pub target: ElementType,
    /// Version of the standard operator set.
    pub opset: i64,
    /// Whether nodes that nobody mentions are converted.
    pub by_default: bool,
    pub plan: &'c CompiledPlan,
    /// Further names and operators of nodes: see [`Model::known_as`](crate::onnx::Model::known_as).
    pub known_as: &'c BTreeMap<String, Vec<(String, String)>>,
    /// Nodes to keep, by name and by operator.
    pub keep: &'c [Regex],
    pub keep_op_types: &'c BTreeSet<String>,
    /// Largest magnitude seen in calibration that FP16 is trusted with.
    pub max_magnitude: f32,
    /// Longest sum that is taken in 16 bits.
    pub max_reduction_depth: usize,
    /// Whether the graph's inputs and outputs keep their types.
    pub keep_io_types: bool,
    pub table: Option<&'c CalibrationTable>,
    pub infos: &'c BTreeMap<String, TensorInfo>,
}

/// What became of the nodes.
#[derive(Default)]
pub(super) struct Converted {
    /// Names of the nodes that compute in 16 bits now.
    pub low: BTreeSet<String>,
    pub kept: Vec<KeptFp32>,
}

/// What the decision about a node is made from.
struct Known<'k> {
    types: &'k BTreeMap<String, ElementType>,
    varying: BTreeSet<&'k str>,
    magnitudes: BTreeMap<&'k str, f32>,
}

impl Conversion<'_> {
    /// Converts `graph` in place.
    pub fn apply(&self, graph: &mut GraphProto) -> Result<Converted, QuantizeError> {
        let view = GraphView::new(graph)?;
        let types = element_types(&view, self.infos);
        let (low, converted) = self.decide(&view, &types);
        let order = view.topological_order().to_vec();
        let pinned = pinned_tensors(&view);
        let rewrite = Rewrite::new(self, graph, types, low, pinned);
        rewrite.run(graph, &order)?;
        Ok(converted)
    }

    /// Which nodes compute in the 16-bit type.
    fn decide(&self, view: &GraphView<'_>, types: &BTreeMap<String, ElementType>) -> (BTreeSet<NodeId>, Converted) {
        let known = Known {
            types,
            varying: varying_tensors(view),
            magnitudes: ranges::magnitudes(view, self.table, self.max_magnitude),
        };
        let mut low = BTreeSet::new();
        let mut converted = Converted::default();
        for (id, node) in view.nodes() {
            let (name, op_type) = (node.label(id.0), node.op_type().to_owned());
            let reason = match float_type(node, types) {
                Some(ElementType::F32) => self.reason(view, id, node, &known),
                Some(own) if own != self.target => Some(Fp32Reason::Own(own)),
                _ => continue,
            };
            match reason {
                Some(reason) => converted.kept.push(KeptFp32 { node: name, op_type, reason }),
                None if self.wanted(&name) => {
                    low.insert(id);
                    converted.low.insert(name);
                }
                None => {}
            }
        }
        if !self.by_default {
            converted.kept.clear();
        }
        // Q/DQ follow their neighbours: Q the tensor that it takes, DQ the nodes that take its result.
        for &id in view.topological_order() {
            let node = view.node(id);
            let follows = match node.op_type() {
                "QuantizeLinear" => {
                    let fits = self.target != ElementType::F16 || largest_scale(view, node).is_none_or(fits_f16);
                    fits && view.producer(&node.input[0]).is_some_and(|producer| low.contains(&producer))
                }
                "DequantizeLinear" => {
                    let uses = view.consumers(&node.output[0]);
                    !uses.is_empty() && uses.iter().all(|u| u.input.is_some() && low.contains(&u.node))
                }
                _ => false,
            };
            if follows {
                low.insert(id);
            }
        }
        (low, converted)
    }

    fn wanted(&self, name: &str) -> bool {
        match self.plan.precision(&all_names(name, self.known_as)) {
            Some(Precision::Fp16 | Precision::Bf16) => true,
            Some(Precision::Fp32) => false,
            _ => self.by_default,
        }
    }

    fn reason(&self, view: &GraphView<'_>, id: NodeId, node: &NodeProto, known: &Known<'_>) -> Option<Fp32Reason> {
        let name = node.label(id.0);
        let tensors = || node.input.iter().chain(&node.output).filter(|tensor| !tensor.is_empty());
        let names = all_names(&name, self.known_as);
        let kept = self.keep.iter().any(|pattern| names.iter().any(|name| pattern.is_match(name)));
        let kept = kept || is_of(node, &name, self.known_as, self.keep_op_types, &|_| true);
        if kept || self.plan.precision(&names) == Some(Precision::Fp32) {
            return Some(Fp32Reason::Asked);
        }
        let is_missing = || forms::is_missing(node, self.target, self.opset);
        if !node.is_standard() || node.subgraphs().next().is_some() || is_missing() {
            return Some(Fp32Reason::Operator);
        }
        if tensors().any(|tensor| !known.types.contains_key(tensor)) {
            return Some(Fp32Reason::UnknownType);
        }
        if !node.input.iter().any(|tensor| known.varying.contains(tensor.as_str())) {
            return Some(Fp32Reason::ShapeArithmetic);
        }
        if self.target == ElementType::F16 {
            let constants = node.input.iter().filter_map(|tensor| view.initializer(tensor));
            // An epsilon becomes the smallest number that there is; of a matrix little more than signs would be left.
            let vanishes = |weight: &TensorProto| {
                let largest = largest_magnitude(weight);
                let is_matrix = weight.dims.iter().filter(|&&extent| extent > 1).count() > 1;
                (is_matrix && largest > 0.0 && largest < FP16_SMALLEST).then_some(largest)
            };
            if let Some(largest) = constants.clone().find_map(vanishes) {
                return Some(Fp32Reason::Vanishing(largest));
            }
            let largest = constants.map(largest_magnitude).fold(0.0, f32::max);
            if largest > f16::MAX.to_f32() {
                return Some(Fp32Reason::Constant(largest));
            }
            let reached = tensors().filter_map(|tensor| known.magnitudes.get(tensor.as_str()).copied());
            let largest = reached.clone().fold(0.0, f32::max);
            if largest > self.max_magnitude {
                return Some(Fp32Reason::Range(largest));
            }
            if let Some(small) = reached.clone().find(|&magnitude| magnitude > 0.0 && magnitude < FP16_SMALLEST) {
                return Some(Fp32Reason::Small(small));
            }
            let quantized = node.input.iter().filter_map(|input| Some(view.node(view.producer(input)?)));
            let quantized = quantized.filter(|producer| producer.op_type() == "DequantizeLinear");
            if let Some(scale) =
                quantized.filter_map(|quantizer| largest_scale(view, quantizer)).find(|&scale| !fits_f16(scale))
            {
                return Some(Fp32Reason::Scale(scale));
            }
        }
        let depth = if node.is(Fact::Sums) { self.reduction_depth(view, node) } else { Some(1) };
        match depth {
            Some(depth) => (depth > self.max_reduction_depth).then_some(Fp32Reason::DeepReduction(depth)),
            None => Some(Fp32Reason::DeepReduction(0)),
        }
    }

    /// How many values a reduction adds up; `None` when an extent is not known.
    fn reduction_depth(&self, view: &GraphView<'_>, node: &NodeProto) -> Option<usize> {
        let shape = &self.infos.get(node.input.first()?)?.shape;
        let given = node.input.get(1).filter(|axes| !axes.is_empty());
        let axes: Option<Vec<i64>> = match (node.attr_ints("axes"), given) {
            (Some(axes), _) => Some(axes.to_vec()),
            (None, Some(axes)) => match view.initializer(axes)?.to_tensor().ok()?.into_parts().1 {
                Values::I64(axes) => Some(axes),
                Values::I32(axes) => Some(axes.into_iter().map(i64::from).collect()),
                _ => return None,
            },
            (None, None) => None,
        };
        let rank = shape.len() as i64;
        let axes = axes.unwrap_or_else(|| (0..rank).collect());
        let extent = |axis: &i64| *shape.get(usize::try_from(if *axis < 0 { axis + rank } else { *axis }).ok()?)?;
        axes.iter().map(extent).try_fold(1usize, |product, extent| product.checked_mul(extent?))
    }
}

/// The type of floats that a node takes in a way that could be 16-bit: `float32` where it takes several.
fn float_type(node: &NodeProto, types: &BTreeMap<String, ElementType>) -> Option<ElementType> {
    let converting = node.input.iter().enumerate().filter(|&(index, _)| converts_input(node, index));
    let mut floats = converting.filter_map(|(_, tensor)| types.get(tensor).copied().filter(|kind| kind.is_float()));
    let first = floats.next().filter(|_| !node.is(Fact::Quantizer))?;
    Some(if floats.any(|kind| kind == ElementType::F32) { ElementType::F32 } else { first })
}

/// True for inputs whose type goes with that of the node.
fn converts_input(node: &NodeProto, input: usize) -> bool {
    match node.op_type() {
        "Resize" | "Upsample" => input == 0,
        _ => !node.is(Fact::AnyType),
    }
}

/// The tensor that a Q/DQ pair stands for.
fn before_quantization<'t>(view: &GraphView<'t>, tensor: &'t str) -> &'t str {
    let quantizer = |tensor: &str, op_type: &str| {
        let node = view.node(view.producer(tensor)?);
        (node.op_type() == op_type).then(|| node.input.first().map(String::as_str))?
    };
    let source = quantizer(tensor, "DequantizeLinear").and_then(|codes| quantizer(codes, "QuantizeLinear"));
    source.unwrap_or(tensor)
}

/// The largest scale of a quantizer, where it is a constant.
fn largest_scale(view: &GraphView<'_>, quantizer: &NodeProto) -> Option<f32> {
    view.initializer(quantizer.input.get(1)?).map(largest_magnitude)
}

fn largest_magnitude(constant: &TensorProto) -> f32 {
    match constant.to_tensor() {
        Ok(tensor) if tensor.element_type().is_float() => {
            // Infinity is a value like another: masks hold it, and 16 bits do too.
            let finite = tensor.view().to_f32();
            finite.iter().filter(|value| value.is_finite()).fold(0.0, |amax: f32, value| amax.max(value.abs()))
        }
        _ => 0.0,
    }
}

/// Tensors that depend on the data, and not only on its shape. Tables that are looked up count as data.
fn varying_tensors<'a>(view: &GraphView<'a>) -> BTreeSet<&'a str> {
    let graph = view.graph();
    let mut varying: BTreeSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
    varying.extend(graph.initializer.iter().filter(|tensor| tensor.dims.len() > 1).map(TensorProto::name));
    for &id in view.topological_order() {
        let node = view.node(id);
        let from_data = node.input.iter().any(|input| varying.contains(input.as_str()));
        let from_outside = node.subgraphs().next().is_some();
        if (from_data || from_outside) && !node.is(Fact::ReadsShape) {
            varying.extend(node.output.iter().map(String::as_str));
        }
    }
    varying
}

/// Tensors whose type someone outside of the graph's nodes relies on: subgraphs that capture them.
fn pinned_tensors(view: &GraphView<'_>) -> BTreeSet<String> {
    let subgraphs = view.nodes().flat_map(|(_, node)| node.subgraphs());
    subgraphs.flat_map(captured).map(str::to_owned).collect()
}

/// The graph while its tensors change type.
struct Rewrite<'c> {
    conversion: &'c Conversion<'c>,
    types: BTreeMap<String, ElementType>,
    low: BTreeSet<NodeId>,
    pinned: BTreeSet<String>,
    names: Names,
    /// Tensors that are 16-bit under their own name.
    halves: BTreeSet<String>,
    /// Casts made so far: the copy of a tensor in a type.
    copies: BTreeMap<(String, ElementType), String>,
    nodes: Vec<NodeProto>,
}

impl<'c> Rewrite<'c> {
    fn new(
        conversion: &'c Conversion<'c>,
        graph: &GraphProto,
        types: BTreeMap<String, ElementType>,
        low: BTreeSet<NodeId>,
        pinned: BTreeSet<String>,
    ) -> Self {
        let names = Names::of(graph);
        let (halves, copies, nodes) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
        Self { conversion, types, low, pinned, names, halves, copies, nodes }
    }

    fn run(mut self, graph: &mut GraphProto, order: &[NodeId]) -> Result<(), QuantizeError> {
        let target = self.conversion.target;
        if !self.conversion.keep_io_types {
            let inputs = graph.input.iter().filter(|info| declared_type(info) == Some(ElementType::F32));
            self.halves.extend(inputs.map(|info| info.name().to_owned()).filter(|name| !self.pinned.contains(name)));
        }
        self.convert_constants(graph)?;
        let constants: BTreeSet<String> = graph.initializer.iter().map(|tensor| tensor.name().to_owned()).collect();
        let outputs: BTreeSet<String> = graph.output.iter().map(|info| info.name().to_owned()).collect();
        let mut nodes: Vec<_> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
        for id in order {
            let Some(mut node) = nodes[id.0].take() else { continue };
            let low = self.low.contains(id);
            for index in 0..node.input.len() {
                let is_float = self.types.get(&node.input[index]) == Some(&ElementType::F32);
                if is_float && !constants.contains(&node.input[index]) && !node.is(Fact::AnyType) {
                    let wanted = if low && converts_input(&node, index) { target } else { ElementType::F32 };
                    node.input[index] = self.in_type(&node.input[index].clone(), wanted);
                }
            }
            self.push(node, low, &outputs);
        }
        graph.node = std::mem::take(&mut self.nodes);
        let declared = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
        declared.filter(|info| self.halves.contains(info.name())).for_each(|info| set_type(info, target));
        Ok(())
    }

    /// Appends a node, its `float32` outputs being 16-bit when it computes so.
    fn push(&mut self, mut node: NodeProto, low: bool, outputs: &BTreeSet<String>) {
        let target = self.conversion.target;
        let mut casts = Vec::new();
        for output in node.output.iter_mut().filter(|output| !output.is_empty()) {
            if !low || self.types.get(output.as_str()) != Some(&ElementType::F32) {
                continue;
            }
            let fixed = self.pinned.contains(output.as_str())
                || (self.conversion.keep_io_types && outputs.contains(output.as_str()));
            if !fixed {
                self.halves.insert(output.clone());
                continue;
            }
            // The name stays with the type that others know; the node gets another one.
            let half = self.fresh(output, suffix(target));
            self.copies.insert((output.clone(), target), half.clone());
            casts.push(self.cast(&half, output, ElementType::F32));
            *output = half;
        }
        self.nodes.push(node);
        self.nodes.append(&mut casts);
    }

    /// The name under which `tensor` is there in `wanted`, after a cast if need be.
    fn in_type(&mut self, tensor: &str, wanted: ElementType) -> String {
        let own = if self.halves.contains(tensor) { self.conversion.target } else { ElementType::F32 };
        if own == wanted {
            return tensor.to_owned();
        }
        let key = (tensor.to_owned(), wanted);
        if let Some(copy) = self.copies.get(&key) {
            return copy.clone();
        }
        let copy = self.fresh(tensor, suffix(wanted));
        let cast = self.cast(tensor, &copy, wanted);
        self.nodes.push(cast);
        self.copies.insert(key, copy.clone());
        copy
    }

    fn cast(&mut self, from: &str, to: &str, element_type: ElementType) -> NodeProto {
        let name = self.fresh(to, "Cast");
        let attribute = AttributeProto::int("to", i64::from(element_type.onnx()));
        NodeProto::new("Cast", &name, &[from], &[to]).with(attribute)
    }

    /// Converts the constants that only 16-bit nodes use, and copies those that both kinds use.
    fn convert_constants(&mut self, graph: &mut GraphProto) -> Result<(), QuantizeError> {
        let target = self.conversion.target;
        let floats = graph.initializer.iter().enumerate().filter(|(_, t)| t.data_type() == ElementType::F32.onnx());
        let floats: BTreeMap<String, usize> = floats.map(|(index, t)| (t.name().to_owned(), index)).collect();
        let mut full: BTreeSet<String> = self.pinned.iter().cloned().collect();
        full.extend(graph.output.iter().map(|info| info.name().to_owned()));
        let mut half: BTreeSet<String> = BTreeSet::new();
        for (index, node) in graph.node.iter().enumerate() {
            for (input, tensor) in node.input.iter().enumerate().filter(|(_, tensor)| floats.contains_key(*tensor)) {
                let low = self.low.contains(&NodeId(index)) && converts_input(node, input);
                if low {
                    half.insert(tensor.clone())
                } else {
                    full.insert(tensor.clone())
                };
            }
        }
        let mut renamed = BTreeMap::new();
        for name in half {
            let constant = graph.initializer[floats[&name]].to_tensor()?;
            if full.contains(&name) {
                let copy = self.fresh(&name, suffix(target));
                graph.initializer.push(to_half(&constant, &copy, target)?);
                renamed.insert(name, copy);
            } else {
                graph.initializer[floats[&name]] = to_half(&constant, &name, target)?;
                self.halves.insert(name);
            }
        }
        let low = graph.node.iter_mut().enumerate().filter(|(index, _)| self.low.contains(&NodeId(*index)));
        for (_, node) in low {
            let converts: Vec<bool> = (0..node.input.len()).map(|input| converts_input(node, input)).collect();
            for (tensor, _) in node.input.iter_mut().zip(converts).filter(|(_, converts)| *converts) {
                if let Some(copy) = renamed.get(tensor) {
                    tensor.clone_from(copy);
                }
            }
        }
        Ok(())
    }

    fn fresh(&mut self, tensor: &str, suffix: &str) -> String {
        self.names.derived(tensor, suffix)
    }
}

fn suffix(element_type: ElementType) -> &'static str {
    match element_type {
        ElementType::F16 => "fp16",
        ElementType::Bf16 => "bf16",
        _ => "fp32",
    }
}

fn to_half(constant: &Tensor, name: &str, target: ElementType) -> Result<TensorProto, QuantizeError> {
    let values = half_constant(&constant.view().to_f32(), target);
    Ok(TensorProto::from_tensor(name, Tensor::new(constant.shape().to_vec(), values)?))
}

/// The values of a constant in FP16 or BF16, as conversion writes them: rounded to the nearest, except that a constant of
/// which FP16 would leave nothing becomes the smallest number that there is.
pub fn half_constant(values: &[f32], target: ElementType) -> Values {
    match target {
        ElementType::Bf16 => Values::Bf16(values.iter().map(|&value| half::bf16::from_f32(value)).collect()),
        _ => Values::F16(to_f16(values)),
    }
}

/// Rounds to the nearest. A constant of which nothing would be left, as of an epsilon that keeps a divisor from 0, becomes the
/// smallest number that there is.
fn to_f16(values: &[f32]) -> Vec<f16> {
    let vanishes = |value: f32| value != 0.0 && f16::from_f32(value).to_f32() == 0.0;
    let nothing_left = values.iter().all(|&value| value == 0.0 || vanishes(value));
    let convert = |&value: &f32| match vanishes(value) {
        true if nothing_left && value > 0.0 => f16::MIN_POSITIVE_SUBNORMAL,
        true if nothing_left => -f16::MIN_POSITIVE_SUBNORMAL,
        _ => f16::from_f32(value),
    };
    values.iter().map(convert).collect()
}

fn set_type(info: &mut ValueInfoProto, element_type: ElementType) {
    if let Some(TypeValue::TensorType(tensor)) = info.r#type.as_mut().and_then(|value| value.value.as_mut()) {
        tensor.elem_type = Some(element_type.onnx());
    }
}

#[cfg(test)]
mod tests;
