//! 8-bit weights that several operators share: one copy for each, in the session only.
//!
//! For exact products ONNX Runtime makes signed weights unsigned at every consumer, and names the result after the
//! weight: the second consumer of the same codes, or of the same zero point, ends with "Attempt to replace the existing
//! tensor". It duplicates a DequantizeLinear with several consumers by itself, to the same end.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto};

/// Gives every consumer of a quantized constant, in the main graph, a `DequantizeLinear` with codes and a zero point of
/// its own.
pub(super) fn with_own_codes(proto: Cow<'_, ModelProto>) -> Cow<'_, ModelProto> {
    if !shares_codes(proto.graph()) {
        return proto;
    }
    let mut proto = proto.into_owned();
    let graph = proto.graph.get_or_insert_default();
    let mut names = Names::of(graph);
    separate_dequantizers(graph, &mut names);
    separate_constants(graph, &mut names);
    Cow::Owned(proto)
}

/// Whether a name that [`with_own_codes`] makes unique comes twice.
fn shares_codes(graph: &GraphProto) -> bool {
    let dequantizers = dequantizers(graph);
    let uses = graph.node.iter().flat_map(|node| &node.input).filter(|t| dequantizers.contains_key(t.as_str()));
    let parts = dequantizers.values().flat_map(|&index| [0, 2].map(|input| graph.node[index].input.get(input)));
    let mut seen = HashSet::new();
    uses.chain(parts.flatten()).any(|tensor| !tensor.is_empty() && !seen.insert(tensor))
}

/// Nodes that dequantize a constant, by their output.
fn dequantizers(graph: &GraphProto) -> HashMap<&str, usize> {
    let constants: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    let dequantizes = |node: &NodeProto| {
        let is_dequantizer = node.op_type() == "DequantizeLinear" && node.is_standard();
        is_dequantizer && node.input.first().is_some_and(|codes| constants.contains(codes.as_str()))
    };
    let nodes = graph.node.iter().enumerate().filter(|(_, node)| dequantizes(node));
    nodes.filter_map(|(index, node)| Some((node.output.first()?.as_str(), index))).collect()
}

/// One node for each consumer; the first keeps what is there.
fn separate_dequantizers(graph: &mut GraphProto, names: &mut Names) {
    let originals: HashMap<String, NodeProto> =
        dequantizers(graph).into_iter().map(|(output, index)| (output.to_owned(), graph.node[index].clone())).collect();
    let mut used = HashSet::new();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        for tensor in &mut node.input {
            if let Some(original) = originals.get(tensor.as_str())
                && !used.insert(tensor.clone())
            {
                *tensor = names.copy_of(tensor);
                nodes.push(NodeProto {
                    name: Some(names.copy_of(original.name())),
                    output: vec![tensor.clone()],
                    ..original.clone()
                });
            }
        }
        nodes.push(node);
    }
    graph.node = nodes;
}

/// Codes and a zero point for each node; the first keeps what is there.
fn separate_constants(graph: &mut GraphProto, names: &mut Names) {
    let constants: HashMap<String, usize> =
        graph.initializer.iter().enumerate().map(|(index, tensor)| (tensor.name().to_owned(), index)).collect();
    let mut indices: Vec<usize> = dequantizers(graph).into_values().collect();
    indices.sort_unstable();
    let mut used = HashSet::new();
    for index in indices {
        for input in [0, 2] {
            let Some(tensor) = graph.node[index].input.get_mut(input) else { continue };
            if let Some(&constant) = constants.get(tensor.as_str())
                && !used.insert(tensor.clone())
            {
                *tensor = names.copy_of(tensor);
                let mut copy = graph.initializer[constant].clone();
                copy.name = Some(tensor.clone());
                graph.initializer.push(copy);
            }
        }
    }
}

/// Names that are taken.
pub(super) struct Names(HashSet<String>);

impl Names {
    pub(super) fn of(graph: &GraphProto) -> Self {
        let constants = graph.initializer.iter().map(|tensor| tensor.name().to_owned());
        let inputs = graph.input.iter().map(|input| input.name().to_owned());
        let nodes = graph.node.iter().flat_map(|node| node.output.iter().cloned().chain([node.name().to_owned()]));
        Self(constants.chain(inputs).chain(nodes).collect())
    }

    pub(super) fn copy_of(&mut self, name: &str) -> String {
        let mut number = 2;
        while !self.0.insert(format!("{name}_{number}")) {
            number += 1;
        }
        format!("{name}_{number}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{
            Backend, BuildOptions,
            onnxruntime::tests::{floats, model, runtime},
        },
        onnx::{Model, tests::float_info},
        tensor::{Tensor, TensorMap, Values},
    };

    const WEIGHTS: [i8; 4] = [64, -32, 16, 100];

    /// `y = ((x · W) · W) · W` of 2x2 matrices with one quantized `W`: two products share a DequantizeLinear, the third
    /// has one of its own over the same codes.
    fn one_weight_for_three() -> Model {
        let codes = |name: &str, shape: &[usize], values: &[i8]| {
            TensorProto::from_tensor(name, Tensor::new(shape.to_vec(), Values::I8(values.to_vec())).unwrap())
        };
        let scale = |name: &str, value: f32| TensorProto::from_tensor(name, floats(&[], &[value]));
        let dequantize = |codes: &str, scale: &str, name: &str| {
            NodeProto::new("DequantizeLinear", name, &[codes, scale, "zero"], &[name])
        };
        let quantize =
            |tensor: &str, codes: &str| NodeProto::new("QuantizeLinear", codes, &[tensor, "s", "zero"], &[codes]);
        let product = |a: &str, b: &str, out: &str| NodeProto::new("MatMul", out, &[a, b], &[out]);
        let nodes = vec![
            dequantize("w", "ws", "w1"),
            dequantize("w", "ws", "w2"),
            quantize("x", "xq"),
            dequantize("xq", "s", "xd"),
            product("xd", "w1", "h"),
            quantize("h", "hq"),
            dequantize("hq", "s", "hd"),
            product("hd", "w1", "i"),
            quantize("i", "iq"),
            dequantize("iq", "s", "id"),
            product("id", "w2", "y"),
        ];
        let constants =
            vec![codes("w", &[2, 2], &WEIGHTS), codes("zero", &[], &[0]), scale("s", 0.25), scale("ws", 0.01)];
        model(nodes, float_info("x", &[1, 2]), "y", constants)
    }

    #[test]
    fn every_consumer_of_a_weight_gets_codes_of_its_own() {
        let model = one_weight_for_three();
        let owned = with_own_codes(Cow::Borrowed(&model.proto));
        let graph = owned.graph();
        let made: HashMap<&str, &NodeProto> = graph.node.iter().map(|node| (&*node.output[0], node)).collect();
        let weight = |product: &str| made[&*made[product].input[1]];
        let names = |input: usize| ["h", "i", "y"].map(|product| weight(product).input[input].as_str());
        assert_eq!((names(0), names(2)), (["w", "w_3", "w_2"], ["zero", "zero_3", "zero_2"]));
        // The zero points of activations stay as they are.
        assert_eq!(["xd", "hd", "id"].map(|tensor| made[tensor].input[2].as_str()), ["zero"; 3]);
        let data = |name: &str| graph.initializer.iter().find(|t| t.name() == name).unwrap().raw_data.clone().unwrap();
        assert_eq!((data("w_2"), data("zero_3")), (data("w"), data("zero")));
        assert!(matches!(with_own_codes(Cow::Borrowed(&*owned)), Cow::Borrowed(_)), "nothing is left to copy");
    }

    #[test]
    fn a_weight_with_several_consumers_runs() {
        let Some(runtime) = runtime() else { return };
        let mut runner = runtime.build(&one_weight_for_three(), &BuildOptions::default()).unwrap();
        let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 2], &[1.0, -3.0]))]);
        let weights = WEIGHTS.map(|code| f32::from(code) * 0.01);
        let mut expected = [1.0f32, -3.0];
        for _ in 0..3 {
            let [a, b] = expected.map(|value| (value / 0.25).round_ties_even() * 0.25);
            expected = [a * weights[0] + b * weights[2], a * weights[1] + b * weights[3]];
        }
        let y = runner.infer(&inputs).unwrap()["y"].to_f32();
        assert!(y.iter().zip(expected).all(|(y, expected)| (y - expected).abs() < 1e-5), "{y:?} {expected:?}");
    }
}
