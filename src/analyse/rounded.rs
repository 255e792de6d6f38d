//! A float model whose operators round to 16 bits: what FP16 or BF16 gives, where a runtime computes them in 32 bits and would
//! not show an overflow, and the counterpart that [`Pair`](super::operators::Pair) needs to measure what they do to each operator.
//!
//! Every input and the result of an operator go through the 16-bit type and back, which is what a kernel that
//! accumulates in 32 bits gives. What exceeds the type becomes infinite, as it does there. What moves values, or keeps
//! within what it reads, neither rounds nor overflows. Constants are those of the converted file: one function converts
//! them for both.

use std::collections::{BTreeMap, BTreeSet};

use super::{layerwise::AnalysisError, operators::constants};
use crate::{
    backend::TensorInfo,
    onnx::{
        Fact, GraphView, Model,
        proto::{AttributeProto, NodeProto, TensorProto},
    },
    quantize::{QuantizeError, half_constant},
    tensor::{ElementType, Tensor},
};

/// `model` with the computing operators that `rounds` takes, by the node's name, rounding to `half`; `shapes` tells which tensors
/// are `float32`.
///
/// # Errors
/// A malformed graph or constant.
pub fn rounded(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    half: ElementType,
    rounds: &dyn Fn(&str) -> bool,
) -> Result<Model, AnalysisError> {
    let view = GraphView::new(model.graph())?;
    let constants = constants(&view);
    let is_float = |tensor: &str| match view.initializer(tensor) {
        Some(weight) => weight.data_type() == ElementType::F32.onnx(),
        None => shapes.get(tensor).is_some_and(|info| info.element_type == Some(ElementType::F32)),
    };
    let mut nodes = Vec::new();
    let mut converted: Vec<TensorProto> = Vec::new();
    let mut done = BTreeSet::new();
    for &id in view.topological_order() {
        let mut node = view.node(id).clone();
        let result = node.output.first().cloned().unwrap_or_default();
        let converts = node.is_standard()
            && node.subgraphs().next().is_none()
            && is_float(&result)
            && !constants.contains(result.as_str())
            && rounds(&node.label(id.0));
        if !converts {
            nodes.push(node);
            continue;
        }
        // What moves values out of the model leaves them in 16 bits.
        let resizes = node.op_type() == "Resize";
        let moves = node.is(Fact::Copies) || node.is(Fact::Within);
        let computes = !moves || view.is_graph_output(&result);
        for (index, input) in node.input.iter_mut().enumerate().filter(|(_, input)| is_float(input)) {
            let constant = view.initializer(input);
            if !computes && constant.is_none() || resizes && index > 0 {
                continue;
            }
            let through = format!("calib:{}:{input}", half.name());
            if done.insert(input.clone()) {
                match constant {
                    Some(constant) => converted.push(through_half(constant, &through, half)?),
                    None => nodes.extend(round_trip(input, &through, half)),
                }
            }
            *input = through;
        }
        if !computes {
            nodes.push(node);
            continue;
        }
        let exact = format!("calib:exact:{result}");
        node.output[0].clone_from(&exact);
        nodes.push(node);
        nodes.extend(round_trip(&exact, &result, half));
    }
    let mut rounded = model.clone();
    rounded.graph_mut().node = nodes;
    rounded.graph_mut().initializer.extend(converted);
    Ok(rounded)
}

/// A constant as `float32`, with the values that it has in the converted file.
fn through_half(constant: &TensorProto, name: &str, half: ElementType) -> Result<TensorProto, QuantizeError> {
    let tensor = constant.to_tensor()?;
    let converted = Tensor::new(tensor.shape().to_vec(), half_constant(&tensor.to_f32(), half))?;
    Ok(TensorProto::from_tensor(name, Tensor::from_f32(tensor.shape().to_vec(), converted.to_f32())?))
}

fn round_trip(from: &str, to: &str, half: ElementType) -> [NodeProto; 2] {
    let between = format!("{to}:{}", half.name());
    let cast = |from: &str, to: &str, element_type: ElementType| {
        let node = NodeProto::new("Cast", &format!("{to}:cast"), &[from], &[to]);
        node.with(AttributeProto::int("to", i64::from(element_type.onnx())))
    };
    [cast(from, &between, half), cast(&between, to, ElementType::F32)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{onnx::proto::NodeProto, quantize::testing::TestModel};

    /// The values of the constant that a node reads.
    fn constant(model: &Model, node: &str, input: usize) -> Vec<f32> {
        let view = GraphView::new(model.graph()).unwrap();
        let name = &view.node(view.node_named(node).unwrap()).input[input];
        view.initializer(name).unwrap().to_tensor().unwrap().to_f32()
    }

    #[test]
    fn constants_are_those_of_the_converted_file() {
        let scalar =
            |name: &str, value: f32| TensorProto::from_tensor(name, Tensor::from_f32(vec![], vec![value]).unwrap());
        let mut model = TestModel::new(17).input("x", &[1, 4]).output("y", &[1, 4]);
        model.graph_mut().initializer.extend([
            scalar("epsilon", 1e-12),
            scalar("floor", 1e-9),
            scalar("third", 1.0 / 3.0),
        ]);
        let model = model
            .op("Mul", &["x", "third"], "m")
            .op("Add", &["m", "epsilon"], "a")
            .node(NodeProto::new("Clip", "c", &["a", "floor"], &["c"]))
            .op("Div", &["x", "c"], "y")
            .build();
        let info = |name: &str| TensorInfo {
            name: name.to_owned(),
            element_type: Some(ElementType::F32),
            shape: vec![Some(1), Some(4)],
        };
        let shapes = ["x", "m", "a", "c", "y"].map(|name| (name.to_owned(), info(name))).into();
        let rounded = rounded(&model, &shapes, ElementType::F16, &|_| true).unwrap();
        let smallest = 2f32.powi(-24);
        let found = [("m", 1), ("a", 1), ("c", 1)].map(|(node, input)| constant(&rounded, node, input)[0]);
        assert_eq!(found, [half::f16::from_f32(1.0 / 3.0).to_f32(), smallest, smallest]);
    }
}
