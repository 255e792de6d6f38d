//! The graph that measures local errors: quantized twins of operators beside the float graph.
//!
//! Each twin reads the float activations through their quantizers and is subtracted from the float operator's own
//! result, behind the fused activation; sums of squares are taken inside the graph, a channel at a time. What comes out
//! are a few numbers an operator, so that one pass of one session measures them all, whatever the size of the tensors.

use std::collections::{BTreeMap, BTreeSet};

use super::operators::{Copies, Operator, Pair, QuantizedInput, Side, quantizer_range};
use crate::{
    onnx::{
        GraphView, Model,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto},
    },
    tensor::{Tensor, Values},
};

/// Which inputs of a twin are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Twin {
    /// As in the quantized model.
    All,
    /// Only the constant ones.
    Weights,
    /// Only the others.
    Activations,
}

/// What an output of the measuring graph holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Σr² of an operator's float result, by channel.
    Signal {
        /// Index in [`Pair::operators`].
        operator: usize,
    },
    /// Σ(r - t)² between an operator and its twin, by channel.
    Noise {
        /// Index in [`Pair::operators`].
        operator: usize,
        /// What of the twin is quantized.
        twin: Twin,
    },
    /// Mean of r - t over an operator's result before the fused activation, by channel.
    Shift {
        /// Index in [`Pair::operators`].
        operator: usize,
    },
    /// Of a quantized activation.
    Activation {
        /// Output of its `QuantizeLinear`, which several consumers may share.
        quantizer: String,
        /// What of it.
        figure: ActivationFigure,
    },
}

/// What is measured of a quantized activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActivationFigure {
    /// Σ(x - x')².
    Noise,
    /// Σ(x - x')² of the values beyond the range.
    SaturationNoise,
    /// Share of values beyond the range.
    Saturated,
    /// max |x|, by channel.
    Peak,
}

/// A model whose outputs are figures.
pub struct Measure {
    /// The model.
    pub model: Model,
    /// What each of its outputs holds.
    pub figures: BTreeMap<String, Figure>,
}

/// How a tensor divides into channels: the shape to give it first, and the axes to reduce.
struct Channels {
    shape: Option<Vec<i64>>,
    axes: Vec<i64>,
}

impl Channels {
    fn none() -> Self {
        Self { shape: Some(vec![-1]), axes: vec![0] }
    }

    fn is_none(&self) -> bool {
        self.shape.as_deref() == Some(&[-1])
    }

    fn last(size: i64) -> Self {
        Self { shape: Some(vec![-1, size]), axes: vec![0] }
    }

    /// Channels of an operator's result and of its first input, from its weights.
    fn of(pair: &Pair<'_>, operator: &Operator) -> (Self, Self) {
        let node = pair.float.node(operator.float);
        let weight = node.input.get(1).and_then(|name| pair.float.initializer(name));
        let dims = weight.map_or(&[][..], |weight| &weight.dims);
        match (node.op_type(), dims) {
            ("Conv" | "ConvTranspose", [_, _, ..]) => {
                let axes: Vec<i64> = (0..dims.len() as i64).filter(|&axis| axis != 1).collect();
                (Self { shape: None, axes: axes.clone() }, Self { shape: None, axes })
            }
            ("Gemm", &[a, b]) => {
                let (n, k) = if node.attr_i("transB") == Some(1) { (a, b) } else { (b, a) };
                let input = if node.attr_i("transA") == Some(1) { Self::none() } else { Self::last(k) };
                (Self::last(n), input)
            }
            ("MatMul", &[k, n]) => (Self::last(n), Self::last(k)),
            _ => (Self::none(), Self::none()),
        }
    }
}

/// Channels of an activation, from the first operator that knows: what it measures must not depend on who asks.
fn channels_of(pair: &Pair<'_>, tensor: &str) -> Channels {
    let reads = |operator: &&Operator| operator.inputs.iter().any(|input| input.index == 0 && input.float == tensor);
    let known = pair.operators.iter().filter(reads).map(|operator| Channels::of(pair, operator).1);
    known.into_iter().find(|channels| !channels.is_none()).unwrap_or_else(Channels::none)
}

/// Builds the measuring graph of `operators` (indices in [`Pair::operators`]).
pub fn measure(pair: &Pair<'_>, operators: std::ops::Range<usize>) -> Measure {
    let mut builder = Builder::new(pair);
    for index in operators {
        builder.operator(pair, index);
    }
    builder.finish(pair)
}

/// Builds the graph that measures [`Figure::Shift`] of those of `operators` that have a bias.
pub fn measure_shifts(pair: &Pair<'_>, operators: std::ops::Range<usize>) -> Measure {
    let mut builder = Builder::new(pair);
    for index in operators {
        builder.shift(pair, index);
    }
    builder.finish(pair)
}

struct Builder {
    nodes: Vec<NodeProto>,
    copies: Copies,
    constants: BTreeMap<String, TensorProto>,
    opset: i64,
    figures: BTreeMap<String, Figure>,
}

impl Builder {
    fn new(pair: &Pair<'_>) -> Self {
        Self {
            nodes: pair.float.topological_order().iter().map(|&id| pair.float.node(id).clone()).collect(),
            copies: Copies::default(),
            constants: BTreeMap::new(),
            opset: pair.model.opset("").unwrap_or(1),
            figures: BTreeMap::new(),
        }
    }

    fn shift(&mut self, pair: &Pair<'_>, index: usize) {
        let operator = &pair.operators[index];
        let (result, _) = Channels::of(pair, operator);
        if !matches!(operator.op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm") || result.is_none() {
            return;
        }
        let bare = Operator { tail: Vec::new(), ..operator.clone() };
        let Some(output) = pair.float.node(operator.float).output.first() else { return };
        let quantized = self.twin(pair, &Operator { tensor: output.clone(), ..bare }, Twin::All);
        let (float, quantized) = (self.cast(output), self.cast(&quantized));
        let error = self.node("Sub", &[&float, &quantized]);
        self.reduce("ReduceMean", &error, &result, Figure::Shift { operator: index });
    }

    fn operator(&mut self, pair: &Pair<'_>, index: usize) {
        let operator = &pair.operators[index];
        let (result, _) = Channels::of(pair, operator);
        let float = self.cast(&operator.tensor);
        self.reduce("ReduceSumSquare", &float, &result, Figure::Signal { operator: index });
        let sides = [Side::Weight, Side::Activation].map(|side| operator.inputs.iter().any(|input| input.side == side));
        let twins: &[Twin] =
            if sides == [true, true] { &[Twin::All, Twin::Weights, Twin::Activations] } else { &[Twin::All] };
        for &twin in twins {
            let quantized = self.twin(pair, operator, twin);
            let quantized = self.cast(&quantized);
            let error = self.node("Sub", &[&quantized, &float]);
            self.reduce("ReduceSumSquare", &error, &result, Figure::Noise { operator: index, twin });
        }
        for input in operator.inputs.iter().filter(|input| input.side == Side::Activation) {
            self.activation(pair, input);
        }
    }

    /// Adds the twin and the copies of the nodes fused with it; returns the tensor to compare.
    fn twin(&mut self, pair: &Pair<'_>, operator: &Operator, twin: Twin) -> String {
        let renamed = |tensor: &str| format!("calib:{twin:?}:{tensor}");
        let mut node = pair.float.node(operator.float).clone();
        for input in &operator.inputs {
            if matches!(
                (twin, input.side),
                (Twin::All, _) | (Twin::Weights, Side::Weight) | (Twin::Activations, Side::Activation)
            ) {
                node.input[input.index] = self.copies.chain(pair, input);
            }
        }
        if twin == Twin::All {
            self.copies.bias(pair, operator, &mut node);
        }
        let mut made = Vec::new();
        // Only the operator rounds; what is fused with it keeps what it reads.
        let mut rounds = twin == Twin::All && !operator.rounding.is_empty();
        for mut node in std::iter::once(node).chain(operator.tail.iter().map(|&id| pair.float.node(id).clone())) {
            node.name = Some(renamed(node.name()));
            for tensor in node.input.iter_mut().filter(|tensor| made.contains(*tensor)) {
                *tensor = renamed(tensor);
            }
            for tensor in node.output.iter_mut().filter(|tensor| !tensor.is_empty()) {
                made.push(tensor.clone());
                *tensor = renamed(tensor);
            }
            let mut rounding = Vec::new();
            if std::mem::take(&mut rounds) {
                let result = std::mem::take(&mut node.output[0]);
                node.output[0] = format!("{result}:exact");
                rounding = pair.rounding(operator, &node.output[0], &result);
            }
            self.nodes.push(node);
            self.nodes.append(&mut rounding);
        }
        renamed(&operator.tensor)
    }

    /// Measures what quantization does to an activation, once for each quantizer.
    fn activation(&mut self, pair: &Pair<'_>, input: &QuantizedInput) {
        let (Some(range), Some(quantizer)) = (activation_range(pair, input), quantizer(pair, input)) else { return };
        let figure = |figure| Figure::Activation { quantizer: quantizer.clone(), figure };
        if self.figures.values().any(|known| *known == figure(ActivationFigure::Peak)) {
            return;
        }
        let quantized = self.copies.chain(pair, input);
        let (x, quantized) = (self.cast(&input.float), self.cast(&quantized));
        let error = self.node("Sub", &[&x, &quantized]);
        self.reduce("ReduceSumSquare", &error, &Channels::none(), figure(ActivationFigure::Noise));
        let [low, high] = range.map(|limit| self.constant(Tensor::new(vec![], Values::F32(vec![limit]))));
        let clipped = self.node("Clip", &[&x, &low, &high]);
        let beyond = self.node("Sub", &[&x, &clipped]);
        self.reduce("ReduceSumSquare", &beyond, &Channels::none(), figure(ActivationFigure::SaturationNoise));
        let inside = self.node("Equal", &[&x, &clipped]);
        let outside = self.node("Not", &[&inside]);
        let outside = self.cast(&outside);
        self.reduce("ReduceMean", &outside, &Channels::none(), figure(ActivationFigure::Saturated));
        let magnitude = self.node("Abs", &[&x]);
        self.reduce("ReduceMax", &magnitude, &channels_of(pair, &input.float), figure(ActivationFigure::Peak));
    }

    /// A node of one output, which is returned.
    fn node(&mut self, op_type: &str, inputs: &[&str]) -> String {
        let output = format!("calib:{op_type}:{}", self.nodes.len());
        self.nodes.push(NodeProto::new(op_type, &output, inputs, &[&output]));
        output
    }

    fn cast(&mut self, tensor: &str) -> String {
        let output = self.node("Cast", &[tensor]);
        if let Some(node) = self.nodes.last_mut() {
            node.attribute.push(AttributeProto::int("to", 1));
        }
        output
    }

    fn constant(&mut self, tensor: Result<Tensor, crate::tensor::ShapeError>) -> String {
        let tensor = tensor.expect("a scalar or a list of its own length");
        let name = format!("calib:constant:{tensor:?}");
        self.constants.entry(name.clone()).or_insert_with(|| TensorProto::from_tensor(&name, tensor));
        name
    }

    fn integers(&mut self, values: &[i64]) -> String {
        self.constant(Tensor::new(vec![values.len()], Values::I64(values.to_vec())))
    }

    /// Adds an output: `tensor` reduced to its channels.
    fn reduce(&mut self, op_type: &str, tensor: &str, channels: &Channels, figure: Figure) {
        let mut tensor = tensor.to_owned();
        if let Some(shape) = &channels.shape {
            let shape = self.integers(shape);
            tensor = self.node("Reshape", &[&tensor, &shape]);
        }
        // Since opset 18 the axes are an input.
        let output = if self.opset >= 18 {
            let axes = self.integers(&channels.axes);
            self.node(op_type, &[&tensor, &axes])
        } else {
            self.node(op_type, &[&tensor])
        };
        if let Some(node) = self.nodes.last_mut() {
            node.attribute.push(AttributeProto::int("keepdims", 0));
            if self.opset < 18 {
                node.attribute.push(AttributeProto::ints("axes", &channels.axes));
            }
        }
        self.figures.insert(output, figure);
    }

    /// The model, without what no figure needs.
    fn finish(mut self, pair: &Pair<'_>) -> Measure {
        let mut model = pair.model.clone();
        let graph = model.graph_mut();
        self.nodes.append(&mut self.copies.nodes);
        graph.node = self.nodes;
        graph.initializer.extend(self.copies.initializers.into_values().chain(self.constants.into_values()));
        graph.value_info.clear();
        let output = |name: &String| ValueInfoProto { name: Some(name.clone()), ..Default::default() };
        graph.output = self.figures.keys().map(output).collect();
        prune(graph);
        Measure { model, figures: self.figures }
    }
}

/// Keeps the nodes and initializers that the outputs depend on, in the order of execution.
pub(super) fn prune(graph: &mut GraphProto) {
    let Ok(view) = GraphView::new(graph) else { return };
    let mut needed: BTreeSet<&str> = graph.output.iter().map(ValueInfoProto::name).collect();
    let mut nodes = Vec::new();
    for &id in view.topological_order().iter().rev() {
        let node = view.node(id);
        if node.output.iter().any(|output| needed.contains(output.as_str())) {
            needed.extend(node.input.iter().map(String::as_str));
            needed.extend(node.subgraphs().flat_map(crate::onnx::captured));
            nodes.push(node.clone());
        }
    }
    nodes.reverse();
    let initializers =
        graph.initializer.iter().filter(|initializer| needed.contains(initializer.name())).cloned().collect();
    (graph.node, graph.initializer) = (nodes, initializers);
}

/// Output of the first node of the chain: what identifies the quantizer of an activation.
pub fn quantizer(pair: &Pair<'_>, input: &QuantizedInput) -> Option<String> {
    pair.quantized.node(*input.chain.first()?).output.first().cloned()
}

/// Range of the quantizer of an activation; `None` when it is not a plain pair of `QuantizeLinear` and
/// `DequantizeLinear`.
fn activation_range(pair: &Pair<'_>, input: &QuantizedInput) -> Option<[f32; 2]> {
    let &[quantize, dequantize] = &input.chain[..] else { return None };
    let (quantize, dequantize) = (pair.quantized.node(quantize), pair.quantized.node(dequantize));
    let plain = dequantize.op_type() == "DequantizeLinear" && quantize.input.first() == Some(&input.float);
    plain.then(|| quantizer_range(&pair.quantized, quantize)).flatten()
}
