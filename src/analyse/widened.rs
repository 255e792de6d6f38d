//! A model that computes in 16 bits, wholly or in parts, as one that computes in `float32` and rounds where it does: its own
//! constants, and the names of its tensors.

use std::collections::{BTreeMap, BTreeSet};

use super::{layerwise::AnalysisError, rounded::rounded};
use crate::{
    backend::TensorInfo,
    onnx::{
        Fact, GraphView, Model,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto, TypeValue, ValueInfoProto},
    },
    quantize::{QuantizeError, element_types},
    tensor::{ElementType, Tensor},
};

const HALVES: [ElementType; 2] = [ElementType::F16, ElementType::Bf16];

/// `model` in `float32`; a model without 16-bit floats stays as it is. Behind `DequantizeLinear` nothing rounds, since kernels
/// for 8 bits do not.
///
/// # Errors
/// A malformed graph or constant.
pub fn widened(model: &Model) -> Result<Model, AnalysisError> {
    let mut wide = model.clone();
    let (types, rounds) = {
        let view = GraphView::new(model.graph())?;
        let types = element_types(&view, &BTreeMap::new());
        let rounds = HALVES.map(|half| (half, rounding(&view, &types, half)));
        (types, rounds)
    };
    if !types.values().any(|element_type| HALVES.contains(element_type)) {
        return Ok(wide);
    }
    let graph = wide.graph_mut();
    for (index, node) in graph.node.iter_mut().enumerate() {
        // What rounds is told by name.
        node.name = Some(node.label(index));
    }
    let casts = |node: &NodeProto, from: &[ElementType]| {
        node.op_type() == "Cast"
            && node.input.first().and_then(|input| types.get(input)).is_some_and(|t| from.contains(t))
    };
    constants_to_f32(graph)?;
    drop_casts(graph, |node| casts(node, &HALVES) && to(node) == Some(ElementType::F32));
    let mut nodes = Vec::new();
    for mut node in std::mem::take(&mut graph.node) {
        let into = to(&node).filter(|to| node.op_type() == "Cast" && HALVES.contains(to));
        if into.is_some() {
            // What a cast rounds stays rounded.
            let half = format!("calib:half:{}", node.output[0]);
            let wide = std::mem::replace(&mut node.output[0], half.clone());
            nodes.push(node);
            let back = NodeProto::new("Cast", &half, &[&half], &[&wide]);
            nodes.push(back.with(AttributeProto::int("to", i64::from(ElementType::F32.onnx()))));
        } else {
            nodes.push(node);
        }
    }
    graph.node = nodes;
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(TypeValue::TensorType(tensor)) = info.r#type.as_mut().and_then(|kind| kind.value.as_mut())
            && HALVES.iter().any(|half| tensor.elem_type == Some(half.onnx()))
        {
            tensor.elem_type = Some(ElementType::F32.onnx());
        }
    }
    graph.value_info.clear();
    let infos = {
        let types = element_types(&GraphView::new(graph)?, &BTreeMap::new());
        let info = |(name, element_type): (String, ElementType)| {
            (name.clone(), TensorInfo { name, element_type: Some(element_type), shape: Vec::new() })
        };
        types.into_iter().map(info).collect()
    };
    for (half, nodes) in rounds {
        wide = rounded(&wide, &infos, half, &|node| nodes.contains(node))?;
    }
    Ok(wide)
}

fn to(node: &NodeProto) -> Option<ElementType> {
    ElementType::from_onnx(i32::try_from(node.attr_i("to")?).ok()?)
}

/// Nodes that compute in `half`, by label.
fn rounding(view: &GraphView<'_>, types: &BTreeMap<String, ElementType>, half: ElementType) -> BTreeSet<String> {
    let is_dequantized = |tensor: &String| view.producer(tensor).is_some_and(|id| view.node(id).is(Fact::Quantizer));
    let computes = |node: &NodeProto| {
        node.op_type() != "Cast"
            && !node.is(Fact::Quantizer)
            && node.output.first().is_some_and(|output| types.get(output) == Some(&half))
            && !node.input.iter().any(is_dequantized)
    };
    let nodes = view.topological_order().iter().map(|&id| (id, view.node(id)));
    nodes.filter(|(_, node)| computes(node)).map(|(id, node)| node.label(id.0)).collect()
}

fn constants_to_f32(graph: &mut GraphProto) -> Result<(), QuantizeError> {
    let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute).filter_map(|one| one.t.as_deref_mut());
    for tensor in graph.initializer.iter_mut().chain(attributes) {
        if HALVES.iter().any(|half| tensor.data_type() == half.onnx()) {
            let values = tensor.to_tensor()?;
            let name = tensor.name().to_owned();
            *tensor = TensorProto::from_tensor(&name, Tensor::from_f32(values.shape().to_vec(), values.to_f32())?);
        }
    }
    Ok(())
}

/// Leaves out the casts that `drops` takes. An output of the graph keeps its name.
fn drop_casts(graph: &mut GraphProto, drops: impl Fn(&NodeProto) -> bool) {
    let names = |infos: &[ValueInfoProto]| infos.iter().map(|info| info.name().to_owned()).collect::<BTreeSet<_>>();
    let (outputs, mut fixed) = (names(&graph.output), names(&graph.input));
    fixed.extend(outputs.iter().cloned());
    let mut renamed: BTreeMap<String, String> = BTreeMap::new();
    graph.node.retain(|node| {
        let (Some(from), Some(to)) = (node.input.first(), node.output.first()) else { return true };
        let is_output = outputs.contains(to);
        // An input or output that becomes another keeps its cast.
        let keeps = !drops(node) || is_output && (fixed.contains(from) || renamed.contains_key(from));
        if !keeps {
            let (old, new) = if is_output { (from, to) } else { (to, from) };
            renamed.insert(old.clone(), new.clone());
        }
        keeps
    });
    for name in graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
        // A cast behind one that names an output.
        for _ in 0..2 {
            if let Some(new) = renamed.get(name) {
                name.clone_from(new);
            }
        }
    }
}
