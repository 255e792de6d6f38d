//! What a small file would grow to: functions that call functions many times over, and tensors filled from a shape.

use std::collections::{HashMap, HashSet};

use super::{Findings, Rule, Severity};
use crate::onnx::{
    Model,
    proto::{FunctionProto, NodeProto, TensorProto},
};

/// Nodes that a model may have once its functions are put in place of their calls. Real ones have thousands.
const MAX_NODES: u64 = 1 << 20;
/// Values of one tensor that is filled from a constant shape: 2 GB of `f32`.
const MAX_VALUES: u64 = 1 << 29;
/// Longest constant that is taken for a shape.
const MAX_RANK: i64 = 64;

/// Domain and name of a function.
type Key<'a> = (&'a str, &'a str);

pub(super) fn functions(model: &Model, findings: &mut Findings) {
    let bodies: HashMap<Key<'_>, &FunctionProto> =
        model.proto.functions.iter().map(|function| ((function.domain(), function.name()), function)).collect();
    let hint = "the file is damaged or hostile; a valid export never has this";
    match sizes(&bodies) {
        Err((domain, name)) => {
            let message =
                |_: usize, function: &str| format!("the function {function} of domain `{domain}` calls itself");
            findings.add(Severity::Error, Rule::Cycle, [name], message, hint);
        }
        Ok(sizes) => {
            let mut nodes = 0;
            each_call(&model.graph().node, &mut |call| nodes = sizes.get(&call).unwrap_or(&1).saturating_add(nodes));
            let message =
                |_: usize, _: &str| format!("the calls of its functions stand for more than {MAX_NODES} nodes");
            findings.add(Severity::Error, Rule::Functions, (nodes > MAX_NODES).then_some("functions"), message, hint);
        }
    }
}

/// Nodes that each function stands for, or a function that calls itself. Without recursion: chains may be long.
fn sizes<'a>(bodies: &HashMap<Key<'a>, &'a FunctionProto>) -> Result<HashMap<Key<'a>, u64>, Key<'a>> {
    let mut done: HashMap<Key<'_>, u64> = HashMap::new();
    let mut open: HashSet<Key<'_>> = HashSet::new();
    for &first in bodies.keys() {
        let mut stack = vec![first];
        while let Some(&key) = stack.last() {
            let Some(body) = bodies.get(&key).filter(|_| !done.contains_key(&key)) else {
                stack.pop();
                continue;
            };
            let mut calls = Vec::new();
            each_call(&body.node, &mut |call| calls.push(call));
            if !open.insert(key) {
                // Seen again when all that it calls is done.
                let nodes = calls.iter().map(|call| done.get(call).unwrap_or(&1));
                done.insert(key, nodes.fold(0, |sum: u64, nodes| sum.saturating_add(*nodes)));
                continue;
            }
            calls.retain(|call| bodies.contains_key(call) && !done.contains_key(call));
            if let Some(&call) = calls.iter().find(|call| open.contains(*call)) {
                return Err(call);
            }
            stack.extend(calls);
        }
    }
    Ok(done)
}

/// Domain and operator of every node, those in subgraphs included.
fn each_call<'a>(nodes: &'a [NodeProto], visit: &mut dyn FnMut(Key<'a>)) {
    for node in nodes {
        visit((node.domain(), node.op_type()));
        node.subgraphs().for_each(|graph| each_call(&graph.node, visit));
    }
}

pub(super) fn filled_tensors(model: &Model, findings: &mut Findings) {
    let graph = model.graph();
    let constants: HashMap<&str, &TensorProto> = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name(), tensor))
        .chain(
            graph
                .node
                .iter()
                .filter(|node| node.op_type() == "Constant")
                .filter_map(|node| Some((node.output.first()?.as_str(), node.attr_t("value")?))),
        )
        .filter(|(_, tensor)| tensor.dims.iter().all(|&extent| extent <= MAX_RANK))
        .collect();
    let is_too_large = |node: &&NodeProto| {
        let shape = match node.op_type() {
            "ConstantOfShape" => node.input.first(),
            "Expand" => node.input.get(1),
            _ => None,
        };
        let shape = shape.and_then(|name| constants.get(name.as_str())?.to_tensor().ok());
        shape.is_some_and(|shape| shape.values().view().to_f64().iter().product::<f64>() > MAX_VALUES as f64)
    };
    findings.add(
        Severity::Error,
        Rule::Extent,
        graph.node.iter().filter(is_too_large).map(NodeProto::name),
        |_, names| format!("a constant shape asks for more than {MAX_VALUES} values: {names}"),
        "the file is damaged or hostile; export it with a smaller example input otherwise",
    );
}
