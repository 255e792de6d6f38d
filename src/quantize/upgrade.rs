//! Raises the version of the standard operators, as far as Q/DQ need it: 13 for scales per channel, 19 for FP8 and for
//! scales in FP16, 22 for convolutions in BF16.
//!
//! Between opsets 7 and 22 most operators only gain types and optional attributes. The others are rewritten here;
//! what cannot be is refused by name.

use std::collections::BTreeMap;

use half::{bf16, f16};

use super::{QuantizeError, facts, names::Names, types::element_types};
use crate::{
    backend::TensorInfo,
    onnx::{
        GraphView, Model,
        proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    },
    tensor::{ElementType, Tensor, Values},
};

/// The oldest opset that can be raised: broadcasting changed with it.
const OLDEST: i64 = 7;

/// Raises the default opset of `model` to `to`; a newer one stays. `shapes` adds what the file does not say of tensors:
/// ranks keep Softmax simple, and numbers that become inputs take the type of the tensor that they go with.
pub(super) fn raise_opset(
    model: &mut Model,
    to: i64,
    shapes: &BTreeMap<String, TensorInfo>,
) -> Result<(), QuantizeError> {
    let from = model.opset("").ok_or(QuantizeError::NoOpset)?;
    if from >= to {
        return Ok(());
    }
    if from < OLDEST {
        return Err(QuantizeError::OldOpset { opset: from, oldest: OLDEST });
    }
    let names = Names::of(model.graph());
    let ranks = facts::ranks(model.graph(), shapes);
    Upgrade { from, to, ranks, infos: shapes.clone(), names, initializers: Vec::new() }.graph(model.graph_mut())?;
    model.set_opset("", to);
    // Operator sets and format versions were released together.
    let ir_version = match to {
        21.. => 10,
        19.. => 9,
        _ => 7,
    };
    model.proto.ir_version = Some(model.proto.ir_version().max(ir_version));
    Ok(())
}

struct Upgrade {
    from: i64,
    to: i64,
    ranks: BTreeMap<String, usize>,
    /// What is known of tensors, those of the graphs around the one at hand included.
    infos: BTreeMap<String, TensorInfo>,
    names: Names,
    /// New initializers of the graph at hand.
    initializers: Vec<TensorProto>,
}

impl Upgrade {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), QuantizeError> {
        // Names are unique over all graphs of a model, so what was learnt of others does no harm.
        for (name, element_type) in element_types(&GraphView::new(graph)?, &self.infos) {
            let info = TensorInfo { name: name.clone(), element_type: Some(element_type), shape: Vec::new() };
            self.infos.entry(name).or_insert(info);
        }
        let outer = std::mem::take(&mut self.initializers);
        for (index, mut node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
            node.subgraphs_mut().try_for_each(|graph| self.graph(graph))?;
            if node.is_standard() {
                let (name, op_type) = (node.label(index), node.op_type().to_owned());
                let upgraded = self.node(node).map_err(|reason| QuantizeError::Upgrade {
                    node: name,
                    op_type,
                    from: self.from,
                    to: self.to,
                    reason: reason.to_owned(),
                })?;
                graph.node.extend(upgraded);
            } else {
                graph.node.push(node);
            }
        }
        graph.initializer.extend(std::mem::replace(&mut self.initializers, outer));
        Ok(())
    }

    /// True when the model crosses `version`, where an operator changed.
    fn crosses(&self, version: i64) -> bool {
        self.from < version && version <= self.to
    }

    fn node(&mut self, mut node: NodeProto) -> Result<Vec<NodeProto>, &'static str> {
        match node.op_type() {
            "Slice" if self.crosses(10) => {
                for (input, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
                    self.ints_to_input(&mut node, name, input);
                }
            }
            "TopK" if self.crosses(10) => {
                let k = node.attr_i("k").ok_or("it has no attribute `k`")?;
                take(&mut node, "k");
                self.set_input(&mut node, 1, "k", Values::I64(vec![k]), vec![1]);
            }
            "Upsample" => return self.upsample(node).map(|node| vec![node]),
            "Resize" if self.from == 10 => {
                node.input.insert(1, String::new());
                node.attribute.extend(old_resize());
            }
            "Clip" if self.crosses(11) => {
                for (input, name) in [(1, "min"), (2, "max")] {
                    self.float_to_input(&mut node, name, input)?;
                }
            }
            "Pad" if self.crosses(11) => {
                self.ints_to_input(&mut node, "pads", 1);
                self.float_to_input(&mut node, "value", 2)?;
            }
            "Scatter" if self.crosses(11) => node.op_type = Some("ScatterElements".to_owned()),
            "Scan" if self.crosses(9) => return Err("its inputs changed with opset 9"),
            // Without a ratio the operator does nothing in inference, before and after.
            "Dropout" if self.crosses(12) => drop(take(&mut node, "ratio")),
            "BatchNormalization" if self.crosses(14) || self.crosses(9) => {
                if take(&mut node, "spatial").is_some_and(|attribute| attribute.i == Some(0)) {
                    return Err("statistics per pixel no longer exist");
                }
                if self.crosses(14) && node.output.iter().skip(1).any(|output| !output.is_empty()) {
                    return Err("it is in training mode");
                }
                node.output.truncate(1);
            }
            "Squeeze" | "Unsqueeze" | "ReduceSum" if self.crosses(13) => self.ints_to_input(&mut node, "axes", 1),
            "Softmax" | "LogSoftmax" | "Hardmax" if self.crosses(13) => return Ok(self.softmax(node)),
            "Split" => {
                if self.crosses(13) {
                    self.ints_to_input(&mut node, "split", 1);
                }
                if self.crosses(18) && node.input.get(1).is_none_or(String::is_empty) {
                    let parts = node.output.len() as i64;
                    node.attribute.push(AttributeProto::int("num_outputs", parts));
                }
            }
            "GroupNormalization" if self.crosses(21) => return Err("its scale was per group before opset 21"),
            "DFT" if self.crosses(20) => return Err("its axis became an input with opset 20"),
            "GridSample" if self.crosses(20) => {
                let mode = take(&mut node, "mode").and_then(|attribute| attribute.s).unwrap_or_default();
                let mode = match mode.as_ref() {
                    b"nearest" => "nearest",
                    b"bicubic" => "cubic",
                    _ => "linear",
                };
                node.attribute.push(AttributeProto::string("mode", mode));
            }
            "RoiAlign" if self.crosses(16) && node.attr("coordinate_transformation_mode").is_none() => {
                let mode = AttributeProto::string("coordinate_transformation_mode", "output_half_pixel");
                node.attribute.push(mode);
            }
            "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean" | "ReduceMin"
            | "ReduceProd" | "ReduceSumSquare"
                if self.crosses(18) =>
            {
                self.ints_to_input(&mut node, "axes", 1);
            }
            _ => {}
        }
        Ok(vec![node])
    }

    /// Upsample became Resize; its scales were an attribute before opset 9.
    fn upsample(&mut self, mut node: NodeProto) -> Result<NodeProto, &'static str> {
        if let Some(scales) = take(&mut node, "scales") {
            let count = scales.floats.len();
            self.set_input(&mut node, 2, "scales", Values::F32(scales.floats), vec![count]);
        } else if node.input.len() == 2 {
            node.input.insert(1, String::new());
        } else {
            return Err("it has no scales");
        }
        node.op_type = Some("Resize".to_owned());
        node.attribute.extend(old_resize());
        Ok(node)
    }

    /// Before opset 13 Softmax worked on a matrix: all axes from `axis` on together.
    fn softmax(&mut self, mut node: NodeProto) -> Vec<NodeProto> {
        let axis = take(&mut node, "axis").and_then(|attribute| attribute.i).unwrap_or(1);
        let (Some(input), Some(output)) = (node.input.first().cloned(), node.output.first().cloned()) else {
            return vec![node];
        };
        let rank = self.ranks.get(&input).or_else(|| self.ranks.get(&output));
        node.attribute.push(AttributeProto::int("axis", -1));
        if axis == -1 || rank.is_some_and(|&rank| axis == rank as i64 - 1) {
            return vec![node];
        }
        let [shape, flat, soft] = ["shape", "flat", "soft"].map(|suffix| self.names.derived(&output, suffix));
        node.input = vec![flat.clone()];
        node.output = vec![soft.clone()];
        vec![
            NodeProto::new("Shape", &shape, &[&input], &[&shape]),
            NodeProto::new("Flatten", &flat, &[&input], &[&flat]).with(AttributeProto::int("axis", axis)),
            node,
            NodeProto::new("Reshape", &self.names.derived(&output, "reshape"), &[&soft, &shape], &[&output]),
        ]
    }

    /// Turns a list attribute into an input; without the attribute the input stays out.
    fn ints_to_input(&mut self, node: &mut NodeProto, name: &str, input: usize) {
        if let Some(attribute) = take(node, name) {
            let count = attribute.ints.len();
            self.set_input(node, input, name, Values::I64(attribute.ints), vec![count]);
        }
    }

    /// Turns a number into an input of the type of the node's first input.
    fn float_to_input(&mut self, node: &mut NodeProto, name: &str, input: usize) -> Result<(), &'static str> {
        let Some(value) = take(node, name).and_then(|attribute| attribute.f) else { return Ok(()) };
        let data = node.input.first().and_then(|data| self.infos.get(data)?.element_type);
        let values = match data {
            Some(ElementType::F32) => Values::F32(vec![value]),
            Some(ElementType::F64) => Values::F64(vec![f64::from(value)]),
            Some(ElementType::F16) => Values::F16(vec![f16::from_f32(value)]),
            Some(ElementType::Bf16) => Values::Bf16(vec![bf16::from_f32(value)]),
            _ => return Err("the type of its input is not known or no float"),
        };
        self.set_input(node, input, name, values, vec![]);
        Ok(())
    }

    fn set_input(&mut self, node: &mut NodeProto, input: usize, name: &str, values: Values, shape: Vec<usize>) {
        // The shape is made of the values' own count.
        let Ok(tensor) = Tensor::new(shape, values) else { return };
        let stem = node.output.first().map_or("", String::as_str);
        let constant = self.names.derived(stem, name);
        if node.input.len() <= input {
            node.input.resize(input + 1, String::new());
        }
        node.input[input].clone_from(&constant);
        self.initializers.push(TensorProto::from_tensor(&constant, tensor));
    }
}

/// What Resize of opset 10 and Upsample did, in the words of later opsets.
fn old_resize() -> [AttributeProto; 2] {
    [
        AttributeProto::string("coordinate_transformation_mode", "asymmetric"),
        AttributeProto::string("nearest_mode", "floor"),
    ]
}

/// Removes and returns an attribute.
fn take(node: &mut NodeProto, name: &str) -> Option<AttributeProto> {
    let index = node.attribute.iter().position(|attribute| attribute.name() == name)?;
    Some(node.attribute.remove(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::testing::TestModel;

    /// Raises a model whose `x` is `float32`, with the ranks of some tensors.
    fn raise(model: TestModel, to: i64, ranks: &[(&str, usize)]) -> Result<Model, QuantizeError> {
        let info = |name: &str, rank: usize| TensorInfo {
            name: name.to_owned(),
            element_type: Some(ElementType::F32),
            shape: vec![None; rank],
        };
        let x = ("x".to_owned(), info("x", 2));
        let others = ranks.iter().map(|&(name, rank)| (name.to_owned(), info(name, rank)));
        let mut model = model.build();
        raise_opset(&mut model, to, &std::iter::once(x).chain(others).collect()).map(|()| model)
    }

    #[test]
    fn numbers_that_become_inputs_have_the_type_of_the_data() {
        let clip = || node("Clip", &["x"], vec![AttributeProto::float("min", 0.0), AttributeProto::float("max", 6.0)]);
        let pad = || {
            let value = AttributeProto::float("value", 0.5);
            node("Pad", &["x"], vec![AttributeProto::ints("pads", &[0, 0, 1, 1]), value])
        };
        let bounds = |element_type: Option<ElementType>, node: NodeProto| {
            let x = TensorInfo { name: "x".to_owned(), element_type, shape: vec![None, None] };
            // The operator works in a branch, on a tensor of the graph around it that follows from an input.
            let inner = TestModel::new(10).node(NodeProto { input: vec!["r".to_owned()], ..node }).build();
            let branch = NodeProto::new("If", "if", &["c"], &["z"]);
            let branch = branch.with(AttributeProto::graph("then_branch", inner.graph().clone()));
            let mut model = TestModel::new(10).op("Relu", &["x"], "r").node(branch).build();
            raise_opset(&mut model, 13, &BTreeMap::from([("x".to_owned(), x)]))?;
            let inner = model.graph().node[1].subgraphs().next().unwrap();
            let values = inner.initializer.iter().map(|tensor| tensor.to_tensor().unwrap().into_parts().1);
            Ok::<_, QuantizeError>(values.filter(|values| values.element_type().is_float()).collect::<Vec<_>>())
        };
        let half = |value: f32| Values::F16(vec![f16::from_f32(value)]);
        assert_eq!(bounds(Some(ElementType::F16), clip()).unwrap(), [half(0.0), half(6.0)]);
        assert_eq!(bounds(Some(ElementType::F16), pad()).unwrap(), [half(0.5)]);
        assert_eq!(bounds(Some(ElementType::F64), pad()).unwrap(), [Values::F64(vec![0.5])]);
        assert!(bounds(None, clip()).unwrap_err().to_string().contains("type of its input"));
    }

    fn node(op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
        NodeProto { attribute: attributes, ..NodeProto::new(op_type, "y", inputs, &["y"]) }
    }

    /// Inputs and attribute names after the upgrade of one node.
    fn upgraded(from: i64, to: i64, node: NodeProto) -> (String, Vec<String>, Vec<String>, Vec<Vec<f32>>) {
        let model = raise(TestModel::new(from).node(node), to, &[]).unwrap();
        let node = &model.graph().node[0];
        let attributes = node.attribute.iter().map(|attribute| attribute.name().to_owned()).collect();
        let values = model.graph().initializer.iter().map(|tensor| tensor.to_tensor().unwrap().to_f32()).collect();
        (node.op_type().to_owned(), node.input.clone(), attributes, values)
    }

    #[test]
    fn attributes_become_inputs() {
        let axes = || AttributeProto::ints("axes", &[1, -1]);
        let keep = || AttributeProto::int("keepdims", 0);
        let (_, inputs, attributes, values) = upgraded(11, 13, node("ReduceSum", &["x"], vec![axes(), keep()]));
        assert_eq!(
            (inputs, attributes, values),
            (strings(&["x", "y_axes"]), strings(&["keepdims"]), vec![vec![1.0, -1.0]])
        );
        assert_eq!(upgraded(12, 13, node("ReduceMean", &["x"], vec![axes()])).1, ["x"]);
        assert_eq!(upgraded(13, 19, node("ReduceMean", &["x"], vec![axes()])).1, ["x", "y_axes"]);
        assert_eq!(upgraded(13, 19, node("ReduceMean", &["x"], vec![])).1, ["x"]);
        assert_eq!(upgraded(11, 13, node("Unsqueeze", &["x"], vec![axes()])).1, ["x", "y_axes"]);
        let slice = vec![AttributeProto::ints("starts", &[0]), AttributeProto::ints("ends", &[9])];
        assert_eq!(upgraded(9, 13, node("Slice", &["x"], slice)).1, ["x", "y_starts", "y_ends"]);
        let (_, inputs, _, values) = upgraded(10, 13, node("Clip", &["x"], vec![AttributeProto::float("max", 6.0)]));
        assert_eq!((inputs, values), (strings(&["x", "", "y_max"]), vec![vec![6.0]]));
        let pad = vec![AttributeProto::ints("pads", &[0, 1]), AttributeProto::float("value", 0.5)];
        assert_eq!(upgraded(10, 13, node("Pad", &["x"], pad)).3, [vec![0.0, 1.0], vec![0.5]]);
    }

    #[test]
    fn resizes_keep_their_old_meaning() {
        let scales = AttributeProto { floats: vec![1.0, 2.0], ..AttributeProto::ints("scales", &[]) };
        let old = vec![AttributeProto::string("mode", "nearest"), scales];
        let words = strings(&["mode", "coordinate_transformation_mode", "nearest_mode"]);
        let (op_type, inputs, attributes, _) = upgraded(8, 13, node("Upsample", &["x"], old));
        assert_eq!((op_type.as_str(), inputs, &attributes), ("Resize", strings(&["x", "", "y_scales"]), &words));
        let old = || vec![AttributeProto::string("mode", "nearest")];
        for op_type in ["Upsample", "Resize"] {
            let from = if op_type == "Resize" { 10 } else { 9 };
            let (_, inputs, attributes, _) = upgraded(from, 13, node(op_type, &["x", "s"], old()));
            assert_eq!((inputs, &attributes), (strings(&["x", "", "s"]), &words));
        }
        assert_eq!(upgraded(11, 13, node("Resize", &["x", "r", "s"], old())).2, ["mode"]);
    }

    #[test]
    fn softmax_over_several_axes_is_taken_apart() {
        let softmax = |axis| node("Softmax", &["x"], vec![AttributeProto::int("axis", axis)]);
        let types = |model: Model| model.graph().node.iter().map(|node| node.op_type().to_owned()).collect::<Vec<_>>();
        let last = raise(TestModel::new(11).node(softmax(1)), 13, &[("x", 2)]).unwrap();
        assert_eq!(last.graph().node[0].attr_i("axis"), Some(-1));
        assert_eq!(types(last), ["Softmax"]);
        let several = raise(TestModel::new(11).node(softmax(1)), 13, &[("x", 4)]).unwrap();
        assert_eq!(several.graph().node[3].output, ["y"]);
        assert_eq!(types(several), ["Shape", "Flatten", "Softmax", "Reshape"]);
        assert_eq!(types(raise(TestModel::new(13).node(softmax(1)), 19, &[]).unwrap()), ["Softmax"]);
    }

    #[test]
    fn splits_say_into_how_many() {
        let split = NodeProto::new("Split", "s", &["x"], &["a", "b"]);
        let model = raise(TestModel::new(11).node(split), 19, &[]).unwrap();
        assert_eq!(model.graph().node[0].attr_i("num_outputs"), Some(2));
    }

    #[test]
    fn branches_are_raised_too() {
        let inner = TestModel::new(11).node(node("Squeeze", &["x"], vec![AttributeProto::ints("axes", &[0])])).build();
        let branch = node("If", &["c"], vec![AttributeProto::graph("then_branch", inner.graph().clone())]);
        let model = raise(TestModel::new(11).node(branch), 13, &[]).unwrap();
        let inner = model.graph().node[0].subgraphs().next().unwrap();
        assert_eq!((inner.node[0].input.clone(), inner.initializer.len()), (strings(&["x", "y_axes"]), 1));
        assert!(model.graph().initializer.is_empty());
    }

    #[test]
    fn what_cannot_be_raised_is_refused_by_name() {
        let training = NodeProto::new("BatchNormalization", "bn", &["x", "a", "b", "c", "d"], &["y", "mean"]);
        let error = raise(TestModel::new(11).node(training), 19, &[]).unwrap_err().to_string();
        assert!(error.contains("node `bn` (BatchNormalization) of opset 11") && error.contains("training"), "{error}");
        assert!(raise(TestModel::new(6), 13, &[]).unwrap_err().to_string().contains("opset 6"));
        assert_eq!(raise(TestModel::new(17), 13, &[]).unwrap().opset(""), Some(17));
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }
}
