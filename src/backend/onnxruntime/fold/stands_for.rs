//! What stands in a folded graph for the nodes that are gone: batch norms, sums, factors and pads go into convolutions and
//! products, calls of the model's own functions become their bodies.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::onnx::{
    Fact, Folded, Model,
    proto::{GraphProto, NodeProto, TensorProto},
};

/// By the name of each node of `original` that is gone, the nodes of `folded` that compute what it did; none for what copies
/// values or is constant.
pub(super) fn stands_for(original: &GraphProto, folded: &GraphProto) -> BTreeMap<String, Folded> {
    let left: HashSet<&str> = folded.node.iter().map(NodeProto::name).collect();
    let known: HashSet<&str> = original.node.iter().map(NodeProto::name).collect();
    let made: HashSet<&str> = original.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    let constants = constants(original);
    let makers: HashMap<&str, &NodeProto> =
        folded.node.iter().flat_map(|node| node.output.iter().map(move |output| (output.as_str(), node))).collect();
    let mut readers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
    for node in &original.node {
        node.input.iter().for_each(|input| readers.entry(input).or_default().push(node));
    }
    let gone = original.node.iter().filter(|node| !left.contains(node.name()));
    let standing = |node: &NodeProto| {
        let mut found = BTreeSet::new();
        let copies = node.is(Fact::Copies) || matches!(node.op_type(), "Identity" | "Dropout" | "Cast");
        let is_constant = node.output.iter().all(|output| constants.contains(output.as_str()));
        let mut front: Vec<&str> = node.output.iter().map(String::as_str).collect();
        if copies || is_constant {
            front.clear();
        }
        let mut seen: HashSet<&str> = node.input.iter().map(String::as_str).collect();
        while let Some(tensor) = front.pop() {
            if tensor.is_empty() || !seen.insert(tensor) {
                continue;
            }
            if let Some(maker) = makers.get(tensor) {
                found.insert(maker.name().to_owned());
                // Part of the body of a function, and so is what only it reads.
                if !known.contains(maker.name()) {
                    front.extend(maker.input.iter().map(String::as_str).filter(|input| !made.contains(input)));
                }
            } else if made.contains(tensor) {
                // It went into what read it.
                for reader in readers.get(tensor).into_iter().flatten() {
                    if left.contains(reader.name()) {
                        found.insert(reader.name().to_owned());
                    } else {
                        front.extend(reader.output.iter().map(String::as_str));
                    }
                }
            }
        }
        found
    };
    gone.map(|node| (node.name().to_owned(), Folded { op_type: node.op_type().to_owned(), into: standing(node) }))
        .collect()
}

/// Adds the calls of functions, for which the nodes of `folded` stand that compute what the nodes did that came for them.
pub(super) fn add_calls(folded: &mut Model, calls: &BTreeMap<String, Folded>) {
    for (call, Folded { op_type, into }) in calls {
        let now = |node: &String| match folded.stands_for.get(node) {
            Some(gone) => gone.into.clone(),
            None => [node.clone()].into(),
        };
        let into = into.iter().flat_map(now).collect();
        folded.stands_for.insert(call.clone(), Folded { op_type: op_type.clone(), into });
    }
}

/// Tensors of a graph that depend on constants alone.
fn constants(graph: &GraphProto) -> HashSet<&str> {
    let mut constants: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    for node in &graph.node {
        let given = node.input.iter().filter(|input| !input.is_empty());
        if node.subgraphs().next().is_none() && given.into_iter().all(|input| constants.contains(input.as_str())) {
            constants.extend(node.output.iter().map(String::as_str));
        }
    }
    constants
}
