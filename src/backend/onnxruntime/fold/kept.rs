//! Nodes that folding must leave alone: the graph is cut around them, folded, and put together again.
//!
//! Those are operators that ONNX defines as functions and ONNX Runtime has no kernel for, which it would replace by
//! their bodies, casts that it would join with casts of its own, and nodes whose results are constants much larger than
//! what they are made from.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::{
    backend::TensorInfo,
    onnx::{
        GraphView, captured,
        proto::{
            DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto,
            TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
        },
    },
    tensor::ElementType,
};

/// How ONNX Runtime begins the names of what comes from the body of a function.
const FROM_FUNCTION: &str = "_inlfunc_";
/// Operators that batch norms, sums, factors and pads are folded into.
const TAKE_NEIGHBOURS: &[&str] = &["AveragePool", "Clip", "Conv", "ConvTranspose", "Gemm", "MatMul", "MaxPool"];
/// A constant may be so many bytes larger than twice what it is computed from.
const GROWTH_BYTES: usize = 1 << 18;

/// True when `folded` may hold the body of a function in place of an operator of `original`.
pub(super) fn may_be_expanded(original: &GraphProto, folded: &GraphProto) -> bool {
    let made: HashMap<&str, &NodeProto> = original.node.iter().flat_map(outputs).collect();
    let differs = |node: &NodeProto| {
        let before = node.output.first().and_then(|output| made.get(output.as_str()));
        before.is_none_or(|before| before.op_type() != node.op_type()) && !TAKE_NEIGHBOURS.contains(&node.op_type())
    };
    folded.node.iter().any(|node| {
        let names = std::iter::once(node.name()).chain(node.output.iter().map(String::as_str));
        node.subgraphs().next().is_some() || names.into_iter().any(|name| name.contains(FROM_FUNCTION)) || differs(node)
    })
}

/// Standard operators of `original`, by index, of which `loaded` (the same model after a session that optimizes nothing)
/// has the body of a function, in themselves or in their subgraphs.
pub(super) fn expanded(original: &GraphProto, loaded: &GraphProto) -> BTreeSet<usize> {
    let made: HashMap<&str, &NodeProto> = loaded.node.iter().flat_map(outputs).collect();
    let is_expanded = |node: &NodeProto| {
        let after = node.output.iter().find_map(|output| made.get(output.as_str()));
        node.is_standard()
            && after.is_some_and(|after| {
                let lost = after.op_type() != node.op_type();
                lost || node.subgraphs().zip(after.subgraphs()).any(|(before, after)| loses_operators(before, after))
            })
    };
    original.node.iter().enumerate().filter(|(_, node)| is_expanded(node)).map(|(index, _)| index).collect()
}

/// Whether a subgraph has fewer operators of some type after it was loaded. Constants become initializers.
fn loses_operators(before: &GraphProto, after: &GraphProto) -> bool {
    fn count<'g>(graph: &'g GraphProto, counts: &mut BTreeMap<&'g str, usize>) {
        for node in graph.node.iter().filter(|node| node.is_standard() && node.op_type() != "Constant") {
            *counts.entry(node.op_type()).or_default() += 1;
            node.subgraphs().for_each(|graph| count(graph, counts));
        }
    }
    let (mut had, mut has) = (BTreeMap::new(), BTreeMap::new());
    count(before, &mut had);
    count(after, &mut has);
    had.into_iter().any(|(op_type, count)| has.get(op_type).copied().unwrap_or(0) < count)
}

/// Casts of `original` to floating-point types that `folded` lacks, though outputs need them and they are not constants.
/// ONNX Runtime joins casts with those that it puts around nodes it has no kernel for.
pub(super) fn lost_casts(original: &GraphView<'_>, folded: &GraphProto) -> BTreeSet<usize> {
    let graph = original.graph();
    let in_order = || original.topological_order().iter().map(|&id| original.node(id));
    let mut varying: HashSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
    for node in in_order() {
        if taken(node).any(|tensor| varying.contains(tensor)) {
            varying.extend(outputs(node).map(|(output, _)| output));
        }
    }
    let mut needed: HashSet<&str> = graph.output.iter().map(ValueInfoProto::name).collect();
    for node in in_order().rev() {
        if outputs(node).any(|(output, _)| needed.contains(output)) {
            needed.extend(taken(node));
        }
    }
    let left: HashSet<&str> = folded.node.iter().flat_map(outputs).map(|(output, _)| output).collect();
    let is_lost = |tensor: &str| varying.contains(tensor) && needed.contains(tensor) && !left.contains(tensor);
    let is_cast = |node: &NodeProto| {
        node.is_standard() && node.op_type() == "Cast" && target(node).is_some_and(ElementType::is_float)
    };
    let nodes = graph.node.iter().enumerate();
    nodes
        .filter(|(_, node)| is_cast(node) && outputs(node).all(|(output, _)| is_lost(output)))
        .map(|(index, _)| index)
        .collect()
}

/// True for a cast into or out of a type of 16 bits, where `infos` knows what it takes.
pub(super) fn changes_half(cast: &NodeProto, infos: &BTreeMap<String, TensorInfo>) -> bool {
    let from = cast.input.first().and_then(|input| infos.get(input)?.element_type);
    let is_half = |kind| matches!(kind, Some(ElementType::F16 | ElementType::Bf16));
    from != target(cast) && (is_half(from) || is_half(target(cast)))
}

/// The type that a cast gives.
fn target(cast: &NodeProto) -> Option<ElementType> {
    ElementType::from_onnx(cast.attr_i("to").and_then(|to| i32::try_from(to).ok())?)
}

/// Nodes of `original` whose results `folded` holds as constants that are much larger than what they are made from.
pub(super) fn grown(original: &GraphView<'_>, folded: &GraphProto) -> BTreeSet<usize> {
    let grows = |constant: &TensorProto| {
        let producer = original.producer(constant.name())?;
        (bytes(constant) > GROWTH_BYTES + 2 * bytes_behind(original, producer.0)).then_some(producer.0)
    };
    folded.initializer.iter().filter_map(grows).collect()
}

/// Bytes of all constants that the results of a node are computed from.
fn bytes_behind(view: &GraphView<'_>, node: usize) -> usize {
    let graph = view.graph();
    let (mut seen, mut front, mut sum) = (HashSet::from([node]), vec![node], 0);
    let mut counted = HashSet::new();
    while let Some(index) = front.pop() {
        let node = &graph.node[index];
        sum += node.attribute.iter().filter_map(|attribute| attribute.t.as_deref()).map(bytes).sum::<usize>();
        // What is read several times lies in the file once.
        for input in node.input.iter().filter(|input| counted.insert(input.as_str())) {
            sum += view.initializer(input).map_or(0, bytes);
            front.extend(view.producer(input).map(|id| id.0).filter(|&index| seen.insert(index)));
        }
    }
    sum
}

fn bytes(tensor: &TensorProto) -> usize {
    let elements: usize = tensor.shape().map_or(0, |shape| shape.iter().product());
    elements.saturating_mul(tensor.element_type().map_or(1, ElementType::size))
}

/// `model` without the nodes `kept`: what they give is an input, what they take an output. `None` where the type of
/// what they give is not in `infos`, or where nothing is left.
pub(super) fn without(
    model: &ModelProto,
    kept: &BTreeSet<usize>,
    infos: &BTreeMap<String, TensorInfo>,
) -> Option<ModelProto> {
    let mut rest = model.clone();
    let graph = rest.graph.get_or_insert_default();
    let (cut, left): (Vec<_>, Vec<_>) =
        std::mem::take(&mut graph.node).into_iter().enumerate().partition(|(index, _)| kept.contains(index));
    graph.node = left.into_iter().map(|(_, node)| node).collect();
    let given: BTreeSet<&str> = cut.iter().flat_map(|(_, node)| outputs(node)).map(|(output, _)| output).collect();
    graph.output.retain(|output| !given.contains(output.name()));
    let mut returned: HashSet<String> = graph.output.iter().map(|output| output.name().to_owned()).collect();
    let made: HashSet<&str> = graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)).collect();
    for taken in cut.iter().flat_map(|(_, node)| taken(node)) {
        if made.contains(taken) && returned.insert(taken.to_owned()) {
            graph.output.push(ValueInfoProto { name: Some(taken.to_owned()), ..ValueInfoProto::default() });
        }
    }
    for name in given {
        graph.input.push(declaration(infos.get(name)?)?);
        graph.value_info.retain(|info| info.name() != name);
    }
    (!graph.output.is_empty()).then_some(rest)
}

/// Puts the nodes `kept` of `original` back into `folded`, with the constants that they take.
pub(super) fn put_back(folded: &mut GraphProto, original: &GraphProto, kept: &BTreeSet<usize>) {
    let mut known: HashSet<String> = folded.initializer.iter().map(|tensor| tensor.name().to_owned()).collect();
    known.extend(folded.node.iter().flat_map(|node| node.output.iter().cloned()));
    let cut: Vec<&NodeProto> = kept.iter().map(|&index| &original.node[index]).collect();
    let wanted: HashSet<&str> = cut.iter().flat_map(|node| taken(node)).filter(|name| !known.contains(*name)).collect();
    let constants = original.initializer.iter().filter(|tensor| wanted.contains(tensor.name()));
    folded.initializer.extend(constants.cloned());
    let sparse = |name: Option<&str>| name.is_some_and(|name| wanted.contains(name));
    let constants =
        original.sparse_initializer.iter().filter(|tensor| sparse(tensor.values.as_ref().map(TensorProto::name)));
    folded.sparse_initializer.extend(constants.cloned());
    let places: HashMap<&str, usize> = original
        .node
        .iter()
        .enumerate()
        .flat_map(|(index, node)| outputs(node).map(move |(output, _)| (output, index)))
        .collect();
    let mut last = 0;
    let mut placed: Vec<(usize, NodeProto)> = Vec::new();
    for node in std::mem::take(&mut folded.node) {
        last = node.output.iter().find_map(|output| places.get(output.as_str())).copied().unwrap_or(last);
        placed.push((last, node));
    }
    placed.extend(kept.iter().map(|&index| (index, original.node[index].clone())));
    placed.sort_by_key(|(place, _)| *place);
    folded.node = placed.into_iter().map(|(_, node)| node).collect();
    // A fused node stands where its last part stood, which may be behind a node that takes an earlier part.
    let order = GraphView::new(folded).map(|view| view.topological_order().to_vec());
    if let Ok(order) = order {
        let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut folded.node).into_iter().map(Some).collect();
        folded.node = order.iter().filter_map(|id| nodes[id.0].take()).collect();
    }
}

/// The outputs of a node that are there, with the node.
fn outputs(node: &NodeProto) -> impl Iterator<Item = (&str, &NodeProto)> {
    node.output.iter().filter(|output| !output.is_empty()).map(move |output| (output.as_str(), node))
}

/// What a node takes, its subgraphs included.
fn taken(node: &NodeProto) -> impl Iterator<Item = &str> {
    let inputs = node.input.iter().map(String::as_str).filter(|input| !input.is_empty());
    inputs.chain(node.subgraphs().flat_map(captured))
}

/// The declaration of a tensor; free extents have no name.
fn declaration(info: &TensorInfo) -> Option<ValueInfoProto> {
    let dimension = |extent: &Option<usize>| DimensionProto {
        value: extent.and_then(|extent| i64::try_from(extent).ok()).map(DimensionValue::DimValue),
        ..DimensionProto::default()
    };
    let tensor = TensorTypeProto {
        elem_type: Some(info.element_type?.onnx()),
        shape: Some(TensorShapeProto { dim: info.shape.iter().map(dimension).collect() }),
    };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() };
    Some(ValueInfoProto { name: Some(info.name.clone()), r#type: Some(kind), ..ValueInfoProto::default() })
}
