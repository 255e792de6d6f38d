//! Nodes of BF16 models for which the CUDA provider has no kernel: they compute in `float32`, between casts, and are told.
//! Other providers, and other precisions, are refused as they are.

use std::collections::HashSet;

use super::own_codes::Names;
use crate::{
    onnx::{
        Model,
        proto::{AttributeProto, NodeProto, TensorProto},
    },
    tensor::ElementType,
};

/// Operators that ONNX Runtime takes apart where it has no kernel for them, with what it then misses one for. Those parts
/// have no name.
const TAKEN_APART: [(&str, &str); 1] = [("Clip", "Less")];

/// A node that ONNX Runtime has no kernel for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing<'m> {
    op_type: &'m str,
    name: &'m str,
}

/// The node that a refusal is about.
pub(super) fn missing_kernel(reason: &str) -> Option<Missing<'_>> {
    // What it says depends on how far it came.
    let sentences = ["Could not find an implementation for ", "Provider type for "];
    let (_, rest) = sentences.iter().find_map(|sentence| reason.split_once(sentence))?;
    let (op_type, rest) = rest.split_once(" node with name '")?;
    let op_type = op_type.split_once('(').map_or(op_type, |(op_type, _version)| op_type);
    Some(Missing { op_type, name: rest.split_once('\'')?.0 })
}

/// `model` with that node in `float32`, or with all of its kind where it has no name: BF16 constants and all tensors that
/// nodes give it are cast, and its results cast back. Also tells operator and number of these nodes. `None` for a model
/// without such nodes or without BF16.
pub(super) fn in_float32(model: &Model, missing: &Missing<'_>) -> Option<(Model, String, usize)> {
    let graph = model.graph();
    let is_half = |constant: &&TensorProto| constant.data_type() == ElementType::Bf16.onnx();
    let halves: HashSet<&str> = graph.initializer.iter().filter(is_half).map(TensorProto::name).collect();
    let constants: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    let whole = TAKEN_APART.iter().find(|(_, part)| *part == missing.op_type).map(|(whole, _)| *whole);
    let concerned = |node: &NodeProto| match whole {
        Some(whole) if missing.name.is_empty() => {
            node.op_type() == whole && node.input.iter().any(|input| halves.contains(input.as_str()))
        }
        _ => !missing.name.is_empty() && node.name() == missing.name && !halves.is_empty(),
    };
    let mut names = Names::of(graph);
    let (mut nodes, mut op_type, mut count) = (Vec::with_capacity(graph.node.len()), String::new(), 0);
    for node in &graph.node {
        if !concerned(node) {
            nodes.push(node.clone());
            continue;
        }
        let (mut node, mut behind) = (node.clone(), Vec::new());
        for input in node.input.iter_mut().filter(|input| !input.is_empty()) {
            if halves.contains(input.as_str()) || !constants.contains(input.as_str()) {
                let wide = names.copy_of(input);
                nodes.push(cast(&mut names, input, &wide, ElementType::F32));
                *input = wide;
            }
        }
        for output in node.output.iter_mut().filter(|output| !output.is_empty()) {
            let wide = names.copy_of(output);
            behind.push(cast(&mut names, &wide, output, ElementType::Bf16));
            *output = wide;
        }
        (op_type, count) = (node.op_type().to_owned(), count + 1);
        nodes.push(node);
        nodes.append(&mut behind);
    }
    let mut proto = model.proto.clone();
    proto.graph.get_or_insert_default().node = nodes;
    (count > 0).then(|| (model.with_proto(proto), op_type, count))
}

fn cast(names: &mut Names, from: &str, to: &str, element_type: ElementType) -> NodeProto {
    let name = names.copy_of(&format!("{to}_cast"));
    NodeProto::new("Cast", &name, &[from], &[to]).with(AttributeProto::int("to", i64::from(element_type.onnx())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto};

    #[test]
    fn the_message_names_the_node() {
        let reason = "Could not find an implementation for GlobalAveragePool(22) node with name 'head/pool'";
        assert_eq!(missing_kernel(reason), Some(Missing { op_type: "GlobalAveragePool", name: "head/pool" }));
        let reason = "was false. Provider type for Less node with name '' is not set.";
        assert_eq!(missing_kernel(reason), Some(Missing { op_type: "Less", name: "" }));
        assert_eq!(missing_kernel("node with name 'x' failed"), None);
    }

    #[test]
    fn one_node_computes_in_float_and_gives_what_it_gave_before() {
        let constant = |name: &str, element_type: ElementType| TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(element_type.onnx()),
            ..TensorProto::default()
        };
        let graph = GraphProto {
            node: vec![
                NodeProto::new("Relu", "a", &["x"], &["y"]),
                NodeProto::new("Op", "b", &["y", "w", "axes", ""], &["z"]),
            ],
            initializer: vec![constant("w", ElementType::Bf16), constant("axes", ElementType::I64)],
            ..GraphProto::default()
        };
        let proto = ModelProto { graph: Some(graph), ..ModelProto::default() };
        let model = Model::from_bytes(prost::Message::encode_to_vec(&proto)).unwrap();
        let (found, op_type, count) = in_float32(&model, &Missing { op_type: "Op", name: "b" }).unwrap();
        let nodes: Vec<_> = found.graph().node.iter().map(|n| (n.op_type(), &n.input[..], &n.output[0][..])).collect();
        let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let (x, y, w) = (strings(&["x"]), strings(&["y"]), strings(&["w"]));
        let (op, z) = (strings(&["y_2", "w_2", "axes", ""]), strings(&["z_2"]));
        assert_eq!(
            nodes,
            [
                ("Relu", &x[..], "y"),
                ("Cast", &y[..], "y_2"),
                ("Cast", &w[..], "w_2"),
                ("Op", &op[..], "z_2"),
                ("Cast", &z[..], "z")
            ]
        );
        assert_eq!((&op_type[..], count), ("Op", 1));
        assert!(in_float32(&model, &Missing { op_type: "Op", name: "c" }).is_none());
        assert!(in_float32(&model, &Missing { op_type: "Op", name: "" }).is_none());
    }

    #[test]
    fn what_is_taken_apart_computes_in_float_wherever_it_is_bf16() {
        let limits = [("low", ElementType::Bf16), ("wide", ElementType::F32)].map(|(name, element_type)| TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(element_type.onnx()),
            ..TensorProto::default()
        });
        let node = vec![
            NodeProto::new("Clip", "a", &["x", "low"], &["y"]),
            NodeProto::new("Clip", "b", &["y", "low"], &["z"]),
            NodeProto::new("Clip", "c", &["f", "wide"], &["g"]),
        ];
        let graph = GraphProto { node, initializer: limits.to_vec(), ..GraphProto::default() };
        let proto = ModelProto { graph: Some(graph), ..ModelProto::default() };
        let model = Model::from_bytes(prost::Message::encode_to_vec(&proto)).unwrap();
        let (found, op_type, count) = in_float32(&model, &Missing { op_type: "Less", name: "" }).unwrap();
        assert_eq!((&op_type[..], count, found.graph().node.len()), ("Clip", 2, 3 + 2 * 3));
        assert_eq!(found.graph().node.last().unwrap().input, ["f", "wide"]);
    }
}
