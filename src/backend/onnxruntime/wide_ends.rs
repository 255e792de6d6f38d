//! Inputs and outputs in 8-bit floats (E4M3), for which there is no type here: they are given and shown in `float32`, and the
//! model rounds to the nearest and widens, as an engine's do.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use super::own_codes::Names;
use crate::{
    onnx::{
        Model,
        proto::{AttributeProto, NodeProto, TensorTypeProto, TypeValue, ValueInfoProto},
    },
    tensor::ElementType,
};

/// ONNX's number of E4M3.
const E4M3: i32 = 17;

fn tensor_type(info: &mut ValueInfoProto) -> Option<&mut TensorTypeProto> {
    match info.r#type.as_mut()?.value.as_mut()? {
        TypeValue::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

/// Whether an input or output is in E4M3.
pub(crate) fn is_e4m3(info: &ValueInfoProto) -> bool {
    let kind = info.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    matches!(kind, Some(TypeValue::TensorType(tensor)) if tensor.elem_type == Some(E4M3))
}

/// The model with `float32` in place of E4M3 at its inputs and outputs.
pub(super) fn with_wide_ends(model: &Model) -> Cow<'_, Model> {
    let graph = model.graph();
    if !graph.input.iter().chain(&graph.output).any(is_e4m3) {
        return Cow::Borrowed(model);
    }
    let mut names = Names::of(graph);
    let mut proto = model.proto.clone();
    let graph = proto.graph.get_or_insert_default();
    let constants: HashSet<String> = graph.initializer.iter().map(|constant| constant.name().to_owned()).collect();
    let (mut narrow, mut before, mut behind) = (HashMap::new(), Vec::new(), Vec::new());
    let inputs = graph.input.iter_mut().filter(|input| !constants.contains(input.name()));
    let outputs = graph.output.iter_mut().map(|output| (output, false));
    for (info, is_input) in inputs.map(|input| (input, true)).chain(outputs).filter(|(info, _)| is_e4m3(info)) {
        let wide = info.name().to_owned();
        if let Some(tensor) = tensor_type(info) {
            tensor.elem_type = Some(ElementType::F32.onnx());
        }
        // An input that is an output, too, passes as it is.
        if narrow.contains_key(&wide) {
            continue;
        }
        let own = names.copy_of(&wide);
        let mut cast = |from: &str, into: &str, to: i32| {
            let name = names.copy_of(&format!("{wide}_cast"));
            NodeProto::new("Cast", &name, &[from], &[into]).with(AttributeProto::int("to", i64::from(to)))
        };
        if is_input {
            before.push(cast(&wide, &own, E4M3));
        } else {
            behind.push(cast(&own, &wide, ElementType::F32.onnx()));
        }
        narrow.insert(wide, own);
    }
    rename(&mut graph.node, &narrow);
    graph.value_info.retain(|info| !narrow.contains_key(info.name()));
    let nodes = std::mem::take(&mut graph.node);
    graph.node = before.into_iter().chain(nodes).chain(behind).collect();
    Cow::Owned(model.with_proto(proto))
}

fn rename(nodes: &mut [NodeProto], names: &HashMap<String, String>) {
    for node in nodes {
        for tensor in node.input.iter_mut().chain(&mut node.output) {
            if let Some(name) = names.get(tensor) {
                tensor.clone_from(name);
            }
        }
        node.subgraphs_mut().for_each(|graph| rename(&mut graph.node, names));
    }
}
