//! TensorRT's rules: where Q/DQ go.
//!
//! Activations are quantized at their consumer, behind whatever fuses with their producer, so that nothing stands
//! between Conv, BatchNorm and the activation function. Only the inputs of operators with 8-bit kernels get Q/DQ; what
//! copies values (MaxPool, Reshape, Concat) needs none, because TensorRT moves Q/DQ through it.

mod decoding;

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::{
    QuantizeError, SchemeOptions,
    facts::Facts,
    placement::{ActivationEdge, Decision, Placement, Rule, WeightEdge},
    plan::{CompiledPlan, Precision, whole_name},
};
use crate::{
    backend::TensorInfo,
    onnx::{
        Fact, Model, NodeId,
        operators::{OperatorType, is_quantized},
        proto::{NodeProto, TensorProto},
    },
    tensor::ElementType,
};

/// Below this number of channels, rows or columns 8 bits do not pay.
const FEW: usize = 16;
/// The longest sequence that INT8 attention kernels take.
const LONGEST_ATTENTION: usize = 512;
/// Head sizes that FP8 attention kernels take.
const FP8_HEADS: std::ops::RangeInclusive<usize> = 9..=256;

/// Decides about every node of the main graph. `shapes` adds tensor shapes that the file does not declare.
///
/// # Errors
/// A graph with a cycle, patterns that do not parse, and models that are quantized already.
pub fn place(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    options: &SchemeOptions,
) -> Result<Placement, QuantizeError> {
    let facts = Facts::new(model.graph(), shapes)?;
    if let Some((id, node)) = facts.view.nodes().find(|(_, node)| is_quantized(node.op_type())) {
        return Err(QuantizeError::AlreadyQuantized { node: node.label(id.0), op_type: node.op_type().to_owned() });
    }
    let mut scheme = Scheme::new(facts, model, options)?;
    scheme.decide();
    Ok(scheme.into_placement())
}

/// What a rule says about one node.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Quantize {
        rule: Rule,
        /// Inputs that are activations to quantize.
        activations: Vec<usize>,
        /// The input that is a constant to quantize, with the axis of its channels.
        weight: Option<(usize, Option<usize>)>,
    },
    Keep(Rule),
}

use Verdict::{Keep, Quantize};

struct Scheme<'a> {
    facts: Facts<'a>,
    known_as: BTreeMap<String, Vec<(String, String)>>,
    options: &'a SchemeOptions,
    plan: CompiledPlan,
    exclude: Vec<Regex>,
    include: Vec<Regex>,
    verdicts: BTreeMap<NodeId, Verdict>,
}

impl<'a> Scheme<'a> {
    fn new(facts: Facts<'a>, model: &Model, options: &'a SchemeOptions) -> Result<Self, QuantizeError> {
        let compile = |patterns: &[String]| patterns.iter().map(|p| whole_name(p)).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            facts,
            known_as: model.known_as(),
            options,
            plan: options.plan.compile()?,
            exclude: compile(&options.exclude)?,
            include: compile(&options.include)?,
            verdicts: BTreeMap::new(),
        })
    }

    /// Later rules ask what earlier ones decided: products first, then the adds that fuse with them, then what pays
    /// only between them.
    fn decide(&mut self) {
        for rule in [Self::product_rule, Self::add_rule, Self::between_rule] {
            for (id, node) in self.facts.view.nodes() {
                if !self.verdicts.contains_key(&id)
                    && let Some(verdict) = rule(self, id, node)
                {
                    self.verdicts.insert(id, verdict);
                }
            }
        }
        let last = self.behind_last_products();
        for (id, node) in self.facts.view.nodes() {
            if !self.verdicts.contains_key(&id) {
                let reason = self.why_float(node, last.contains(&id));
                self.verdicts.insert(id, Keep(reason));
            }
        }
    }

    // --- Convolutions and matrix products -----------------------------------------------------------------------

    fn product_rule(&self, id: NodeId, node: &NodeProto) -> Option<Verdict> {
        let rule = match node.op_type() {
            _ if node.is(Fact::Convolution) => Self::convolution,
            _ if node.is(Fact::Weighted) => Self::matrix_product,
            _ => return None,
        };
        Some(match self.permission(id, node) {
            Err(refusal) => Keep(refusal),
            Ok(false) if node.output.iter().any(|output| self.facts.is_gate(output)) => Keep(Rule::Gate),
            Ok(false) if self.takes_mean_of_distribution(id, node) => Keep(Rule::Decoding),
            Ok(forced) => rule(self, id, node, forced),
        })
    }

    /// Whether a node may be quantized; true when the plan asks for it, which overrules what pays.
    fn permission(&self, id: NodeId, node: &NodeProto) -> Result<bool, Rule> {
        let name = node.label(id.0);
        let names = all_names(&name, &self.known_as);
        let matches = |patterns: &[Regex]| patterns.iter().any(|p| names.iter().any(|name| p.is_match(name)));
        let SchemeOptions { op_types, exclude_op_types, precision, .. } = self.options;
        let is_one = |of: &BTreeSet<String>| is_of(node, &name, &self.known_as, of, &is_own);
        if !precision.is_quantized() {
            return Err(Rule::FloatOnly);
        }
        match self.plan.precision(&names) {
            Some(precision) if precision.is_quantized() => Ok(true),
            Some(_) => Err(Rule::Planned),
            None if matches(&self.exclude) => Err(Rule::Excluded),
            None if is_one(exclude_op_types) => Err(Rule::ExcludedType),
            None if !self.include.is_empty() && !matches(&self.include) => Err(Rule::NotIncluded),
            None if !op_types.is_empty() && !is_one(op_types) => Err(Rule::NotIncluded),
            None => Ok(false),
        }
    }

    /// Weights are `[out, in / group, kernel..]`, those of a transposed convolution `[in, out / group, kernel..]`.
    fn convolution(&self, id: NodeId, node: &NodeProto, forced: bool) -> Verdict {
        let Some(weight) = self.facts.constant(id, 1) else { return Keep(Rule::VariableWeight) };
        let Some(shape) = weight.shape().ok().filter(|shape| shape.len() > 2) else { return Keep(Rule::NoKernel) };
        if !is_float(weight) {
            return Keep(Rule::NotFloat);
        }
        let transposed = node.op_type() == "ConvTranspose";
        let group = node.attr_i("group").unwrap_or(1);
        let (outputs, inputs) = if transposed { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        let kernel = &shape[2..];
        let has_kernel = if group == 1 {
            (outputs % 8 == 0 || inputs % 8 == 0) && kernel.iter().all(|side| *side == kernel[0])
        } else {
            outputs % 8 == 0 && kernel.iter().all(|side| *side >= 3)
        };
        if !forced && (outputs < FEW || inputs < FEW) && !has_kernel {
            return Keep(Rule::SmallConvolution);
        }
        // Channels of a grouped transposed convolution lie on two axes: no single axis can carry their scales.
        let axis = node.channel_axis(1, shape.len()).filter(|_| !transposed || group == 1);
        Quantize { rule: Rule::Convolution, activations: vec![0], weight: Some((1, axis)) }
    }

    fn matrix_product(&self, id: NodeId, node: &NodeProto, forced: bool) -> Verdict {
        let (Some(a), Some(b)) = (self.facts.input(id, 0), self.facts.input(id, 1)) else {
            return Keep(Rule::NoKernel);
        };
        let limits = match [a, b].map(|tensor| self.facts.is_activation(tensor)) {
            [true, true] => return self.activation_product(node, a, b, forced),
            [false, false] => return Keep(Rule::NoKernel),
            [true, false] => self.constant_product(id, node, 1),
            [false, true] => self.constant_product(id, node, 0),
        };
        match limits {
            (_, Some(limit @ (Rule::NotFloat | Rule::NoKernel))) => Keep(limit),
            (_, Some(limit)) if !forced => Keep(limit),
            (verdict, _) => verdict,
        }
    }

    /// A product with a constant on side `side`, and what speaks against quantizing it.
    fn constant_product(&self, id: NodeId, node: &NodeProto, side: usize) -> (Verdict, Option<Rule>) {
        let shape = self.facts.constant(id, side).filter(|c| is_float(c)).and_then(|c| c.shape().ok());
        let rank = shape.as_ref().map_or(0, Vec::len);
        // The channels of the result are the columns of a right-hand constant; rows get one common scale.
        let axis = node.channel_axis(side, rank);
        let limit = match (&shape, self.facts.input(id, 1 - side)) {
            (None, _) => Some(Rule::NotFloat),
            (_, None) => Some(Rule::NoKernel),
            (Some(shape), _) if shape.len() < 2 => Some(Rule::MatrixVector),
            (Some(shape), _) if shape[rank - 2..].iter().any(|&extent| extent < FEW) => Some(Rule::SmallMatrix),
            // A single row is a batch of one in a matrix, and a product with a vector in anything deeper.
            (_, Some(other)) => {
                let deep = self.facts.shape(other).is_some_and(|shape| shape.len() > 2);
                (deep && self.facts.extent_from_end(other, side) == Some(1)).then_some(Rule::MatrixVector)
            }
        };
        let verdict = Quantize { rule: Rule::MatrixProduct, activations: vec![1 - side], weight: Some((side, axis)) };
        (verdict, limit)
    }

    fn activation_product(&self, node: &NodeProto, a: &str, b: &str, forced: bool) -> Verdict {
        if [a, b].iter().any(|tensor| self.facts.element_type(tensor).is_some_and(|t| !is_float_type(t))) {
            return Keep(Rule::NotFloat);
        }
        let flipped = |name| usize::from(node.attr_i(name).unwrap_or(0) != 0);
        let (flip_a, flip_b) = (flipped("transA"), flipped("transB"));
        let rows = self.facts.extent_from_end(a, 1 - flip_a);
        let depth = self.facts.extent_from_end(a, flip_a).or(self.facts.extent_from_end(b, 1 - flip_b));
        let columns = self.facts.extent_from_end(b, flip_b);

        let is_softmax = |node: &NodeProto| node.op_type() == "Softmax";
        let softmax = |_: NodeId, node: &NodeProto| is_softmax(node);
        let around = |node: &NodeProto| node.is(Fact::AroundSoftmax);
        let weighs_values = self.facts.behind(a, &softmax, &around);
        let makes_scores = !weighs_values && node.output.iter().any(|out| self.facts.ahead(out, &softmax, &around));
        let attention = match (weighs_values, makes_scores) {
            (true, _) => Some((depth, columns)),
            (_, true) => Some((rows.max(columns), depth)),
            _ => None,
        };
        let scores = |id: NodeId, node: &NodeProto| node.op_type() == "MatMul" && !self.is_quantized(id);
        let half = weighs_values && self.facts.behind(a, &scores, &|node| is_softmax(node) || around(node));
        let attention_limit = attention.and_then(|(length, head)| self.attention_limit(length, head));
        let limit = attention_limit.or(match [rows, depth, columns] {
            [Some(1), ..] | [.., Some(1)] => Some(Rule::MatrixVector),
            [_, Some(k), Some(n)] if k >= FEW && n >= FEW => None,
            [_, Some(_), Some(_)] => Some(Rule::SmallMatrix),
            _ => Some(Rule::UnknownShape),
        });
        let limit = limit.or(half.then_some(Rule::HalfAttention));
        if let Some(limit) = limit.filter(|_| !forced) {
            return Keep(limit);
        }
        let rule = if attention.is_some() { Rule::Attention } else { Rule::ActivationProduct };
        Quantize { rule, activations: vec![0, 1], weight: None }
    }

    fn attention_limit(&self, length: Option<usize>, head: Option<usize>) -> Option<Rule> {
        let (extent, fits, otherwise) = match self.options.precision {
            Precision::Fp8 => (head, head.is_some_and(|head| FP8_HEADS.contains(&head)), Rule::AttentionHead),
            _ => (length, length.is_some_and(|length| length <= LONGEST_ATTENTION), Rule::LongAttention),
        };
        match extent {
            None => Some(Rule::UnknownShape),
            Some(_) => (!fits).then_some(otherwise),
        }
    }

    // --- Residual adds ------------------------------------------------------------------------------------------

    /// Conv + Add fuse when the convolution's branch is raw and the other one quantized.
    fn add_rule(&self, id: NodeId, node: &NodeProto) -> Option<Verdict> {
        let (a, b) = (self.facts.input(id, 0)?, self.facts.input(id, 1)?);
        let both_vary = self.facts.is_activation(a) && self.facts.is_activation(b) && a != b;
        let same_shape = match (self.facts.shape(a), self.facts.shape(b)) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        if node.op_type() != "Add" || !node.is_standard() || !both_vary || !same_shape {
            return None;
        }
        let shortcut = match [a, b].map(|branch| self.is_convolution_branch(branch)) {
            [false, false] => return None,
            [true, false] => 1,
            [false, true] => 0,
            // The branch with the longer way from where they part is the block, the other one the shortcut.
            [true, true] => match self.facts.distances_to_common_ancestor(a, b) {
                Some((from_a, from_b)) => usize::from(from_b <= from_a),
                None => 1,
            },
        };
        Some(match self.permission(id, node) {
            Err(refusal) => Keep(refusal),
            Ok(_) => Quantize { rule: Rule::ResidualAdd, activations: vec![shortcut], weight: None },
        })
    }

    fn is_convolution_branch(&self, tensor: &str) -> bool {
        let convolution = |id: NodeId, node: &NodeProto| node.is(Fact::Convolution) && self.is_quantized(id);
        let through = |node: &NodeProto| matches!(node.op_type(), "BatchNormalization" | "Identity" | "Dropout");
        self.facts.behind(tensor, &convolution, &through)
    }

    // --- What pays only between quantized neighbours ------------------------------------------------------------

    fn between_rule(&self, id: NodeId, node: &NodeProto) -> Option<Verdict> {
        if !node.is(Fact::Between) {
            return None;
        }
        let (input, output) = (self.facts.input(id, 0)?, node.output.first()?);
        let quantized = |id: NodeId, _: &NodeProto| self.is_quantized(id);
        let moves = |node: &NodeProto| node.is(Fact::Copies) || node.is(Fact::Between);
        let transparent = |node: &NodeProto| fuses(node) || moves(node);
        // A tensor that someone else needs in float would be written twice.
        let shared = self.facts.view.consumers(input).iter().any(|u| u.node != id && !self.is_quantized(u.node));
        let between = !shared
            && node.attr_s("mode") != Some("cubic")
            && self.facts.is_activation(input)
            && self.facts.behind(input, &quantized, &transparent)
            && self.facts.ahead(output, &quantized, &moves);
        Some(match self.permission(id, node) {
            Err(refusal) => Keep(refusal),
            Ok(_) if between => Quantize { rule: Rule::BetweenQuantized, activations: vec![0], weight: None },
            Ok(_) => Keep(Rule::NotBetweenQuantized),
        })
    }

    // --- Everything else ----------------------------------------------------------------------------------------

    fn why_float(&self, node: &NodeProto, is_last: bool) -> Rule {
        let quantized = |id: NodeId, _: &NodeProto| self.is_quantized(id);
        if node.subgraphs().next().is_some() {
            Rule::HasSubgraph
        } else if node.is(Fact::HighPrecision) {
            Rule::HighPrecision
        } else if node.is(Fact::Copies) {
            Rule::Copies
        } else if fuses(node) && node.input.iter().any(|input| self.facts.behind(input, &quantized, &fuses)) {
            Rule::Fused
        } else if is_last {
            Rule::Decoding
        } else {
            Rule::NoKernel
        }
    }

    fn is_quantized(&self, id: NodeId) -> bool {
        matches!(self.verdicts.get(&id), Some(Quantize { .. }))
    }

    // --- Result -------------------------------------------------------------------------------------------------

    fn into_placement(self) -> Placement {
        let mut placement = Placement::default();
        for (id, verdict) in &self.verdicts {
            let node = self.facts.view.node(*id);
            let (precision, rule) = match verdict {
                Keep(rule) => (Precision::Fp32, *rule),
                Quantize { rule, .. } => (self.options.precision, *rule),
            };
            let (name, op_type) = (node.label(id.0), node.op_type().to_owned());
            placement.decisions.push(Decision { node: name, op_type, precision, rule });
            let Quantize { activations, weight, .. } = verdict else { continue };
            for &input in activations {
                let tensor = node.input[input].clone();
                placement.activations.push(ActivationEdge { tensor, node: id.0, input });
            }
            if let Some((input, axis)) = *weight {
                let axis = axis.filter(|_| !self.options.per_tensor_weights);
                placement.weights.push(WeightEdge { tensor: node.input[input].clone(), node: id.0, input, axis });
            }
        }
        if self.options.share_concat_scales {
            placement.shared_scales = concat_groups(&self.facts, &placement);
        }
        let patterns = self.exclude.iter().zip(&self.options.exclude);
        let patterns = patterns.chain(self.include.iter().zip(&self.options.include));
        let known = || {
            self.known_as
                .values()
                .flatten()
                .map(|(name, _)| name)
                .chain(placement.decisions.iter().map(|decision| &decision.node))
        };
        let unmatched = patterns.filter(|(regex, _)| !known().any(|name| regex.is_match(name)));
        placement.unmatched_patterns = unmatched.map(|(_, pattern)| pattern.clone()).collect();
        placement
    }
}

/// The names by which rules know a node.
pub(super) fn all_names<'n>(name: &'n str, known_as: &'n BTreeMap<String, Vec<(String, String)>>) -> Vec<&'n str> {
    std::iter::once(name).chain(known_as.get(name).into_iter().flatten().map(|(name, _)| name.as_str())).collect()
}

/// Whether a node, or one that was folded into it and `counts`, is one of these operators.
pub(super) fn is_of(
    node: &NodeProto,
    name: &str,
    known_as: &BTreeMap<String, Vec<(String, String)>>,
    op_types: &BTreeSet<String>,
    counts: &dyn Fn(&str) -> bool,
) -> bool {
    let mut folded = known_as.get(name).into_iter().flatten();
    op_types.contains(node.op_type()) || folded.any(|(_, op_type)| op_types.contains(op_type) && counts(op_type))
}

/// Whether an operator is a function of the model's own, whose nodes are its body. What ONNX's are folded into is not
/// quantized for their sake: a convolution is not a sum because a bias was added to it.
pub fn is_own(op_type: &str) -> bool {
    OperatorType::named(op_type).is_none()
}

/// Quantized inputs and outputs of the same Concat, and of Concats that share one, in groups of two and more.
fn concat_groups(facts: &Facts<'_>, placement: &Placement) -> Vec<Vec<String>> {
    let quantized: BTreeSet<&str> = placement.activations.iter().map(|edge| edge.tensor.as_str()).collect();
    let mut groups: Vec<BTreeSet<&str>> = Vec::new();
    for (_, node) in facts.view.nodes().filter(|(_, node)| node.op_type() == "Concat" && node.is_standard()) {
        let tensors = node.input.iter().chain(&node.output).map(String::as_str);
        let mut group: BTreeSet<&str> = tensors.filter(|tensor| quantized.contains(tensor)).collect();
        groups.retain(|other| {
            let apart = group.is_disjoint(other);
            if !apart {
                group.extend(other);
            }
            apart
        });
        groups.push(group);
    }
    groups.retain(|group| group.len() > 1);
    groups.into_iter().map(|group| group.into_iter().map(str::to_owned).collect()).collect()
}

/// True for what fuses with the operator before it.
fn fuses(node: &NodeProto) -> bool {
    node.is(Fact::Fuses) || node.is(Fact::Joins)
}

fn is_float(constant: &TensorProto) -> bool {
    constant.element_type().is_ok_and(is_float_type)
}

fn is_float_type(element_type: ElementType) -> bool {
    element_type.is_float() && element_type != ElementType::F64
}

#[cfg(test)]
mod tests;
