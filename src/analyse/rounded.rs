//! A float model whose operators round to 16 bits: what FP16 or BF16 gives, where a runtime computes them in 32 bits and would
//! not show an overflow, and the counterpart that [`Pair`](super::operators::Pair) needs to measure what they do to each operator.
//!
//! Every input and the result of an operator go through the 16-bit type and back, which is what a kernel that
//! accumulates in 32 bits gives. What exceeds the type becomes infinite, as it does there. What moves values, or keeps
//! within what it reads, neither rounds nor overflows.

use std::collections::{BTreeMap, BTreeSet};

use super::operators::constants;
use crate::{
    backend::TensorInfo,
    onnx::{
        Fact, GraphError, GraphView, Model,
        proto::{AttributeProto, NodeProto},
    },
    tensor::ElementType,
};

/// `model` with the computing operators that `rounds` takes, by the node's name, rounding to `half`; `shapes` tells which tensors
/// are `float32`.
///
/// # Errors
/// A malformed graph.
pub fn rounded(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    half: ElementType,
    rounds: &dyn Fn(&str) -> bool,
) -> Result<Model, GraphError> {
    let view = GraphView::new(model.graph())?;
    let constants = constants(&view);
    let is_float = |tensor: &str| match view.initializer(tensor) {
        Some(weight) => weight.data_type() == ElementType::F32.onnx(),
        None => shapes.get(tensor).is_some_and(|info| info.element_type == Some(ElementType::F32)),
    };
    let mut nodes = Vec::new();
    let mut done = BTreeSet::new();
    for &id in view.topological_order() {
        let mut node = view.node(id).clone();
        let result = node.output.first().cloned().unwrap_or_default();
        let moves = node.is(Fact::Copies) || node.is(Fact::Within);
        let computes = node.is_standard() && !moves && node.subgraphs().next().is_none();
        if !computes || !is_float(&result) || constants.contains(result.as_str()) || !rounds(&node.label(id.0)) {
            nodes.push(node);
            continue;
        }
        for input in node.input.iter_mut().filter(|input| is_float(input)) {
            let through = format!("calib:rounded:{input}");
            if done.insert(input.clone()) {
                nodes.extend(round_trip(input, &through, half));
            }
            *input = through;
        }
        let exact = format!("calib:exact:{result}");
        node.output[0].clone_from(&exact);
        nodes.push(node);
        nodes.extend(round_trip(&exact, &result, half));
    }
    let mut rounded = model.clone();
    rounded.graph_mut().node = nodes;
    Ok(rounded)
}

fn round_trip(from: &str, to: &str, half: ElementType) -> [NodeProto; 2] {
    let between = format!("{to}:{}", half.name());
    let cast = |from: &str, to: &str, element_type: ElementType| {
        let node = NodeProto::new("Cast", &format!("{to}:cast"), &[from], &[to]);
        node.with(AttributeProto::int("to", i64::from(element_type.onnx())))
    };
    [cast(from, &between, half), cast(&between, to, ElementType::F32)]
}
