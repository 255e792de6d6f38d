//! The quantized operators of a Q/DQ model, found by comparing it with its float model.
//!
//! An operator is quantized when one of its inputs comes through a `DequantizeLinear` (or a `Cast`, in a model that
//! rounds to 16 bits). The nodes between that input and the float graph, its *chain*, can be set beside the float graph
//! to make a quantized twin of the operator, or into it to quantize that operator alone. Models are matched by the names
//! of their tensors.

use std::collections::{BTreeMap, BTreeSet};

use crate::onnx::{
    Fact, GraphError, GraphView, Model, NodeId,
    proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto},
};

/// How the names of tensors begin that rounding adds.
pub(super) const ROUNDED: &str = "calib:";

/// Why the operators of a model cannot be analysed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// A graph is malformed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The models do not speak the same operator set.
    #[error(
        "the float model has opset {float} and the quantized one {quantized}; make both with the same `calib quantize`, \
         the float one with every node excluded"
    )]
    Opset {
        /// Of the float model.
        float: i64,
        /// Of the quantized model.
        quantized: i64,
    },
    /// No operator of the target is quantized.
    #[error("no operator of {model} has an input behind DequantizeLinear or Cast and a counterpart in the float model")]
    NothingQuantized {
        /// The quantized model.
        model: String,
    },
}

/// What a quantized input carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Something that depends on the model's inputs.
    Activation,
    /// A constant.
    Weight,
}

/// An input behind a `DequantizeLinear` or `Cast`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizedInput {
    /// Which of the node's inputs.
    pub index: usize,
    /// What it carries.
    pub side: Side,
    /// The tensor in the float graph.
    pub float: String,
    /// The tensor in the quantized graph: the output of the chain.
    pub quantized: String,
    /// Nodes of the quantized graph that make it from float tensors and constants, in order; none for a constant of its own.
    pub chain: Vec<NodeId>,
}

/// A quantized operator and its counterpart in the float graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Name of the float node.
    pub node: String,
    /// Its operator type.
    pub op_type: String,
    /// The float node.
    pub float: NodeId,
    /// The same in the quantized graph.
    pub quantized: NodeId,
    /// At least one.
    pub inputs: Vec<QuantizedInput>,
    /// Nodes of the quantized graph that round its result, in order.
    pub rounding: Vec<NodeId>,
    /// Float nodes that will be fused with the operator (normalization and activation), in order.
    pub tail: Vec<NodeId>,
    /// Output of the last of these, or of the operator.
    pub tensor: String,
}

/// A float model, its quantized version and the operators in which they differ.
pub struct Pair<'a> {
    /// The float graph.
    pub float: GraphView<'a>,
    /// The quantized graph.
    pub quantized: GraphView<'a>,
    /// In the order of execution.
    pub operators: Vec<Operator>,
    /// The float model.
    pub model: &'a Model,
    constants: BTreeSet<&'a str>,
}

impl<'a> Pair<'a> {
    /// Compares the models.
    ///
    /// # Errors
    /// A malformed graph, different operator sets, or nothing quantized.
    pub fn new(float: &'a Model, quantized: &'a Model) -> Result<Self, OperatorError> {
        let opset = |model: &Model| model.opset("").unwrap_or(1);
        if opset(float) != opset(quantized) {
            return Err(OperatorError::Opset { float: opset(float), quantized: opset(quantized) });
        }
        let (model, target) = (float, quantized);
        let float = GraphView::new(model.graph())?;
        let quantized = GraphView::new(target.graph())?;
        let constants = constants(&float);
        let mut pair = Self { float, quantized, operators: Vec::new(), model, constants };
        let order = pair.float.topological_order().to_vec();
        let mut fused = BTreeSet::new();
        for id in order {
            // What is fused with an operator is measured with it.
            let operator = if fused.contains(&id) { None } else { pair.operator(id) };
            fused.extend(operator.iter().flat_map(|operator| operator.tail.iter().copied()));
            pair.operators.extend(operator);
        }
        if pair.operators.is_empty() {
            return Err(OperatorError::NothingQuantized { model: target.name() });
        }
        Ok(pair)
    }

    /// True for a tensor of the float graph that does not depend on the model's inputs.
    pub fn is_constant(&self, tensor: &str) -> bool {
        self.constants.contains(tensor)
    }

    /// A sentence on the tensors that only one of the models has, which nothing is compared with.
    pub fn left_out(&self) -> Option<String> {
        let only = |model: &GraphView<'_>, other: &GraphView<'_>, of: &str| {
            let of_values = of_values(model);
            let nodes = model.topological_order().iter().map(|&id| model.node(id));
            let computing = nodes.filter(|node| node.op_type() != "Cast" && !node.is(Fact::Quantizer));
            let made = computing.filter_map(|node| node.output.first());
            let is_only = |tensor: &&String| {
                of_values.contains(tensor.as_str()) && !other.is_defined(tensor) && !tensor.starts_with(ROUNDED)
            };
            let tensors: Vec<&String> = made.filter(is_only).collect();
            let first = tensors.first()?;
            Some(format!("{} of {of} (`{first}` is the first)", tensors.len()))
        };
        let of_target = only(&self.quantized, &self.float, "the target");
        let of_float = only(&self.float, &self.quantized, "the float model");
        let told: Vec<String> = of_target.into_iter().chain(of_float).collect();
        (!told.is_empty()).then(|| format!("tensors that the other model lacks are not compared: {}", told.join(", ")))
    }

    fn operator(&self, id: NodeId) -> Option<Operator> {
        let node = self.float.node(id);
        let output = node.output.first()?;
        let mut counterpart = self.quantized.producer(output)?;
        let mut rounding = Vec::new();
        while node.op_type() != "Cast" && self.quantized.node(counterpart).op_type() == "Cast" {
            rounding.insert(0, counterpart);
            counterpart = self.quantized.producer(self.quantized.node(counterpart).input.first()?)?;
        }
        let twin = self.quantized.node(counterpart);
        if twin.op_type() != node.op_type() || node.is(Fact::Quantizer) {
            return None;
        }
        let inputs: Vec<QuantizedInput> = (node.input.iter().zip(&twin.input).enumerate())
            .filter_map(|(index, (float, quantized))| {
                let converted = || self.converted(index, float, quantized).filter(|_| !rounding.is_empty());
                self.input(index, float, quantized).or_else(converted)
            })
            .collect();
        if inputs.is_empty() {
            return None;
        }
        let (tail, tensor) = self.tail(output);
        let (node, op_type) = (node.label(id.0), node.op_type().to_owned());
        Some(Operator { node, op_type, float: id, quantized: counterpart, inputs, rounding, tail, tensor })
    }

    /// The input, when a `DequantizeLinear` or `Cast` lies between it and the float graph.
    fn input(&self, index: usize, float: &str, quantized: &str) -> Option<QuantizedInput> {
        let mut chain = BTreeSet::new();
        let mut side = Side::Weight;
        let mut open = vec![quantized];
        while let Some(tensor) = open.pop() {
            if self.float.is_defined(tensor) && !self.is_constant(tensor) {
                side = Side::Activation;
            } else if let Some(producer) = self.quantized.producer(tensor)
                && chain.insert(producer)
            {
                open.extend(self.quantized.node(producer).input.iter().map(String::as_str));
            }
        }
        if !chain.iter().any(|&id| matches!(self.quantized.node(id).op_type(), "DequantizeLinear" | "Cast")) {
            return None;
        }
        let order = self.quantized.topological_order();
        let chain = order.iter().copied().filter(|id| chain.contains(id)).collect();
        Some(QuantizedInput { index, side, float: float.to_owned(), quantized: quantized.to_owned(), chain })
    }

    /// The input of an operator that rounds, when it is a constant of its own.
    fn converted(&self, index: usize, float: &str, quantized: &str) -> Option<QuantizedInput> {
        let is_own = self.quantized.initializer(quantized).is_some() && !self.float.is_defined(quantized);
        let (float, quantized) = (float.to_owned(), quantized.to_owned());
        is_own.then(|| QuantizedInput { index, side: Side::Weight, float, quantized, chain: Vec::new() })
    }

    /// Normalization and activation that a runtime fuses with the operator that makes `output`.
    fn tail(&self, output: &str) -> (Vec<NodeId>, String) {
        let mut tensor = output;
        let mut tail = Vec::new();
        while !self.float.is_graph_output(tensor) {
            let uses = self.float.consumers(tensor);
            let readers: BTreeSet<NodeId> = uses.iter().map(|u| u.node).collect();
            let readers: Vec<NodeId> = readers.into_iter().collect();
            let next = match readers[..] {
                [only] if uses.len() == 1 && self.is_fusible(only, tensor) => only,
                // x · sigmoid(x)
                [a, b] if uses.len() == 2 => match self.gate(a, b).or_else(|| self.gate(b, a)) {
                    Some(product) => {
                        tail.push(if product == a { b } else { a });
                        product
                    }
                    None => break,
                },
                _ => break,
            };
            let Some(made) = self.float.node(next).output.first() else { break };
            tail.push(next);
            tensor = made;
        }
        (tail, tensor.to_owned())
    }

    fn is_fusible(&self, id: NodeId, tensor: &str) -> bool {
        let node = self.float.node(id);
        let constant = |input: &String| input.is_empty() || self.is_constant(input);
        node.is(Fact::Fuses)
            && node.input.first().is_some_and(|first| first == tensor)
            && node.input.iter().skip(1).all(constant)
    }

    /// `product` when it multiplies what `gate` reads with what it makes, and nothing else reads that.
    fn gate(&self, gate: NodeId, product: NodeId) -> Option<NodeId> {
        let (sigmoid, mul) = (self.float.node(gate), self.float.node(product));
        let made = sigmoid.output.first()?;
        (sigmoid.is(Fact::Gate)
            && mul.op_type() == "Mul"
            && mul.input.contains(made)
            && self.float.consumers(made).len() == 1
            && !self.float.is_graph_output(made))
        .then_some(product)
    }

    /// Copies of the nodes that round the result of `operator`: from the tensor `exact` to the tensor `result`.
    pub(super) fn rounding(&self, operator: &Operator, exact: &str, result: &str) -> Vec<NodeProto> {
        let mut from = exact.to_owned();
        let copy = |(index, &id): (usize, &NodeId)| {
            let mut node = self.quantized.node(id).clone();
            let last = index + 1 == operator.rounding.len();
            let to = if last { result.to_owned() } else { format!("{exact}:{index}") };
            node.name = Some(format!("{to}:round"));
            node.input[0] = std::mem::replace(&mut from, to.clone());
            node.output[0] = to;
            node
        };
        operator.rounding.iter().enumerate().map(copy).collect()
    }

    /// Names of the quantized convolutions and products behind which no other quantized one comes: those of a head.
    pub fn last_products(&self) -> BTreeSet<String> {
        let products: BTreeSet<NodeId> = self
            .operators
            .iter()
            .map(|operator| operator.float)
            .filter(|&id| self.float.node(id).is(Fact::Multiplies))
            .collect();
        let mut before = BTreeSet::new();
        for &id in self.float.topological_order().iter().rev() {
            let mut uses = self.float.node(id).output.iter().flat_map(|output| self.float.consumers(output));
            if uses.any(|u| products.contains(&u.node) || before.contains(&u.node)) {
                before.insert(id);
            }
        }
        let last = self.operators.iter().filter(|one| products.contains(&one.float) && !before.contains(&one.float));
        last.map(|operator| operator.node.clone()).collect()
    }

    /// The float model with only `nodes` (float names) quantized; the others compute in float from what they get.
    pub fn graft(&self, nodes: &BTreeSet<String>) -> Model {
        let mut model = self.model.clone();
        let mut copies = Copies::default();
        let graph = model.graph_mut();
        for operator in self.operators.iter().filter(|operator| nodes.contains(&operator.node)) {
            let node = &mut graph.node[operator.float.0];
            for input in &operator.inputs {
                node.input[input.index] = copies.chain(self, input);
            }
            copies.bias(self, operator, node);
            if !operator.rounding.is_empty() {
                let result = &mut node.output[0];
                let exact = format!("calib:exact:{result}");
                let result = std::mem::replace(result, exact.clone());
                copies.nodes.append(&mut self.rounding(operator, &exact, &result));
            }
        }
        // The chains read tensors from anywhere and are read from anywhere: sort again.
        graph.initializer.append(&mut copies.initializers.into_values().collect());
        graph.node.append(&mut copies.nodes);
        sort(graph);
        model
    }
}

/// Brings nodes into the order of execution.
fn sort(graph: &mut GraphProto) {
    let Ok(view) = GraphView::new(graph) else { return };
    let order: Vec<NodeProto> = view.topological_order().iter().map(|&id| view.node(id).clone()).collect();
    graph.node = order;
}

/// Tensors of the graph that do not depend on its inputs.
pub(crate) fn constants<'a>(view: &GraphView<'a>) -> BTreeSet<&'a str> {
    let graph = view.graph();
    let inputs: BTreeSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
    let mut constants: BTreeSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    constants.retain(|name| !inputs.contains(name));
    for &id in view.topological_order() {
        let node = view.node(id);
        let constant = node.input.iter().all(|input| input.is_empty() || constants.contains(input.as_str()));
        if constant && !node.is(Fact::Random) && node.subgraphs().next().is_none() {
            constants.extend(node.output.iter().map(String::as_str));
        }
    }
    constants
}

/// Tensors that follow from values of the graph's inputs, and not from their shapes alone.
pub(crate) fn of_values<'a>(view: &GraphView<'a>) -> BTreeSet<&'a str> {
    let is_weight = |name: &str| view.initializer(name).is_some();
    let inputs = view.graph().input.iter().map(ValueInfoProto::name);
    let mut of_values: BTreeSet<&str> = inputs.filter(|name| !is_weight(name)).collect();
    for &id in view.topological_order() {
        let node = view.node(id);
        let reads = |input: &str| of_values.contains(input);
        let captures = node.subgraphs().any(|graph| crate::onnx::captured(graph).into_iter().any(reads));
        let takes_shape = matches!(node.op_type(), "Shape" | "Size");
        if !takes_shape && (captures || node.input.iter().any(|input| reads(input))) {
            of_values.extend(node.output.iter().map(String::as_str));
        }
    }
    of_values
}

/// Smallest and largest value that a per-tensor `QuantizeLinear` to 8 bits can give; `None` for any other node.
pub(super) fn quantizer_range(view: &GraphView<'_>, quantize: &NodeProto) -> Option<[f32; 2]> {
    let initializer = |index: usize| view.initializer(quantize.input.get(index)?);
    let scale = initializer(1).filter(|scale| scale.dims.iter().product::<i64>() == 1)?.to_tensor().ok()?;
    let scale = *scale.to_f32().first()?;
    let zero = initializer(2);
    let zero_point =
        || zero.and_then(|zero| zero.to_tensor().ok()).and_then(|zero| zero.to_f32().first().copied()).unwrap_or(0.0);
    let limits = match zero.map_or(2, TensorProto::data_type) {
        2 => [0.0 - zero_point(), 255.0 - zero_point()],
        3 => [-128.0 - zero_point(), 127.0 - zero_point()],
        17 => [-448.0, 448.0],
        _ => return None,
    };
    (quantize.op_type() == "QuantizeLinear").then(|| limits.map(|limit| limit * scale))
}

/// Chains copied out of the quantized graph, each tensor once, under names that the float graph does not have.
#[derive(Default)]
pub(super) struct Copies {
    pub nodes: Vec<NodeProto>,
    pub initializers: BTreeMap<String, TensorProto>,
    copied: BTreeSet<NodeId>,
}

impl Copies {
    /// Copies the chain of `input` and returns the new name of its output.
    pub fn chain(&mut self, pair: &Pair<'_>, input: &QuantizedInput) -> String {
        self.initializer(pair, &input.quantized);
        for &id in &input.chain {
            if !self.copied.insert(id) {
                continue;
            }
            let mut node = pair.quantized.node(id).clone();
            node.name = Some(copied(&node.label(id.0)));
            for tensor in node.input.iter_mut().filter(|tensor| !tensor.is_empty()) {
                if pair.float.is_defined(tensor) && !pair.is_constant(tensor) {
                    continue;
                }
                self.initializer(pair, tensor);
                *tensor = copied(tensor);
            }
            for tensor in node.output.iter_mut().filter(|tensor| !tensor.is_empty()) {
                *tensor = copied(tensor);
            }
            self.nodes.push(node);
        }
        copied(&input.quantized)
    }

    fn initializer(&mut self, pair: &Pair<'_>, tensor: &str) {
        if let Some(initializer) = pair.quantized.initializer(tensor) {
            let name = copied(tensor);
            let renamed = || TensorProto { name: Some(name.clone()), ..initializer.clone() };
            self.initializers.entry(name.clone()).or_insert_with(renamed);
        }
    }

    /// Gives `node`, a copy of the float node of `operator`, the bias that the quantized node has instead of its own.
    pub fn bias(&mut self, pair: &Pair<'_>, operator: &Operator, node: &mut NodeProto) {
        const BIAS: usize = 2;
        let Some(name) = pair.quantized.node(operator.quantized).input.get(BIAS) else { return };
        if pair.quantized.initializer(name).is_none() || pair.float.is_defined(name) {
            return;
        }
        self.initializer(pair, name);
        if node.input.len() <= BIAS {
            node.input.resize(BIAS + 1, String::new());
        }
        node.input[BIAS] = copied(name);
    }
}

fn copied(name: &str) -> String {
    format!("calib:q:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::fixture;

    #[test]
    fn operators_sides_and_tails_are_found() {
        let (float, quantized) = (fixture::float(), fixture::quantized());
        let pair = Pair::new(&float, &quantized).unwrap();
        let found: Vec<_> = (pair.operators.iter())
            .map(|o| {
                let inputs: Vec<_> =
                    o.inputs.iter().map(|i| (i.index, i.side, i.float.as_str(), i.chain.len())).collect();
                (o.node.as_str(), o.tensor.as_str(), o.tail.len(), inputs)
            })
            .collect();
        let conv = |x| vec![(0, Side::Activation, x, 2), (1, Side::Weight, "", 1)];
        let weights = |mut inputs: Vec<(usize, Side, &'static str, usize)>, w| {
            inputs[1].2 = w;
            inputs
        };
        assert_eq!(
            found,
            [
                ("first", "first_relu", 1, weights(conv("x"), "first.w")),
                ("second", "second_silu", 2, weights(conv("first_relu"), "second.w")),
                ("join", "join_out", 0, vec![(1, Side::Activation, "first_relu", 2)]),
                ("head", "y", 0, weights(conv("flat"), "head.w")),
            ]
        );
        assert!(matches!(Pair::new(&float, &float), Err(OperatorError::NothingQuantized { .. })));
        assert_eq!(pair.last_products(), BTreeSet::from(["head".to_owned()]));
    }

    #[test]
    fn a_graft_quantizes_only_what_it_is_told() {
        let (float, quantized) = (fixture::float(), fixture::quantized());
        let pair = Pair::new(&float, &quantized).unwrap();
        let grafted = pair.graft(&["second".to_owned()].into());
        let view = GraphView::new(grafted.graph()).unwrap();
        let input = |node: &str, index: usize| view.node(view.node_named(node).unwrap()).input[index].as_str();
        assert_eq!(input("first", 0), "x");
        assert_eq!(input("second", 0), "calib:q:first_relu/dq");
        assert_eq!(input("second", 1), "calib:q:second.w/dq");
        assert_eq!(view.graph().node.len(), float.graph().node.len() + 3);
        // Producers stand before consumers in the file as well.
        assert!(view.topological_order().iter().enumerate().all(|(at, id)| at == id.0));
        let everything = pair.operators.iter().map(|o| o.node.clone()).collect();
        assert_eq!(pair.graft(&everything).graph().node.len(), quantized.graph().node.len());
    }

    #[test]
    fn models_of_different_opsets_are_refused() {
        let (mut float, quantized) = (fixture::float(), fixture::quantized());
        float.set_opset("", 11);
        assert!(matches!(Pair::new(&float, &quantized), Err(OperatorError::Opset { float: 11, .. })));
    }
}
