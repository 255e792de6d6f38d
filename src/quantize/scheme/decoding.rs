//! Arithmetic that decodes what the last convolutions and matrix products give: boxes from a grid and strides, sides from
//! distributions of distances (DFL), scores from logits. In 8 bits it would move every box; it is told by structure, not by
//! names.

use std::collections::BTreeSet;

use super::{Keep, Scheme, is_float_type};
use crate::{
    onnx::{Fact, NodeId, proto::NodeProto},
    quantize::placement::Rule,
};

/// Sides of a box.
const SIDES: usize = 4;

impl Scheme<'_> {
    /// True for a product that takes the mean of a distribution: what a Softmax gives, or exponentials divided by their sum,
    /// weighed with constants so that no more than a number for each side of a box is left, as DFL does it in a Conv or a
    /// MatMul with the bins.
    pub(super) fn takes_mean_of_distribution(&self, id: NodeId, node: &NodeProto) -> bool {
        let copies = |node: &NodeProto| node.is(Fact::Copies);
        let comes_from = |id: NodeId, side: usize, op_type: &str| {
            let is = |_: NodeId, node: &NodeProto| node.op_type() == op_type;
            self.facts.input(id, side).is_some_and(|input| self.facts.behind(input, &is, &copies))
        };
        let view = &self.facts.view;
        let is_summed = |node: &NodeProto| {
            let uses = node.output.first().map(|output| view.consumers(output));
            uses.into_iter().flatten().any(|u| view.node(u.node).op_type() == "ReduceSum")
        };
        let softmax = |id: NodeId, node: &NodeProto| match node.op_type() {
            "Softmax" => true,
            "Div" => comes_from(id, 0, "Exp") && comes_from(id, 1, "ReduceSum"),
            // Divided afterwards.
            "Exp" => is_summed(node),
            _ => false,
        };
        (0..2).any(|side| {
            let Some(shape) = self.facts.constant(id, side).and_then(|constant| constant.shape().ok()) else {
                return false;
            };
            let from_end = match node.op_type() {
                "Conv" => Some(0),
                "Gemm" if side == 0 => shape.len().checked_sub(if node.attr_i("transA") == Some(1) { 1 } else { 2 }),
                _ if side == 0 => shape.len().checked_sub(2),
                _ => node.channel_axis(1, shape.len()),
            };
            let few = shape.len() < 2 || from_end.is_some_and(|axis| shape[axis] <= SIDES);
            few && self.facts.input(id, 1 - side).is_some_and(|other| self.facts.behind(other, &softmax, &copies))
        })
    }

    /// Nodes that compute floats behind a convolution or matrix product and before none.
    pub(super) fn behind_last_products(&self) -> BTreeSet<NodeId> {
        let view = &self.facts.view;
        let is_product = |id: NodeId| {
            let node = view.node(id);
            let multiplies = node.is(Fact::Multiplies) || node.is(Fact::Recurrent) || node.subgraphs().next().is_some();
            multiplies && self.verdicts.get(&id) != Some(&Keep(Rule::Decoding))
        };
        let (mut behind, mut before) = (BTreeSet::new(), BTreeSet::new());
        for &id in view.topological_order() {
            let producers = view.node(id).input.iter().filter_map(|input| view.producer(input));
            if producers.into_iter().any(|producer| is_product(producer) || behind.contains(&producer)) {
                behind.insert(id);
            }
        }
        for &id in view.topological_order().iter().rev() {
            let uses = view.node(id).output.iter().flat_map(|output| view.consumers(output));
            if uses.into_iter().any(|u| is_product(u.node) || before.contains(&u.node)) {
                before.insert(id);
            }
        }
        let is_float = |id: &NodeId| {
            let output = view.node(*id).output.first();
            output.and_then(|output| self.facts.element_type(output)).is_none_or(is_float_type)
        };
        behind.into_iter().filter(|id| !before.contains(id) && !is_product(*id)).filter(is_float).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        onnx::proto::{AttributeProto, NodeProto},
        quantize::{
            Placement, Precision, Rule, SchemeOptions, place,
            testing::{TestModel, no_shapes},
        },
    };

    fn rules(placement: &Placement) -> Vec<(&str, Rule)> {
        placement.decisions.iter().map(|decision| (decision.node.as_str(), decision.rule)).collect()
    }

    fn placed(model: TestModel, options: &SchemeOptions) -> Placement {
        place(&model.build(), &no_shapes(), options).unwrap()
    }

    /// A head as YOLOv8 has it: sides by DFL, then boxes by a grid and strides; classes behind a sigmoid of their own.
    fn dfl(mean: NodeProto, bins: &[usize]) -> TestModel {
        TestModel::new(17)
            .input("x", &[1, 64, 8, 8])
            .weight("w", &[64, 64, 1, 1])
            .weight("bins", bins)
            .weight("grid", &[1, 4, 64])
            .op("Conv", &["x", "w"], "features")
            .op("Conv", &["features", "w"], "sides")
            .op("Reshape", &["sides", "four"], "bins_of_sides")
            .op("Transpose", &["bins_of_sides"], "turned")
            .op("Softmax", &["turned"], "distribution")
            .node(mean)
            .op("Reshape", &["mean", "rows"], "distances")
            .op("Sub", &["grid", "distances"], "corner")
            .op("Exp", &["corner"], "y")
            .output("y", &[1, 4, 64])
    }

    #[test]
    fn the_mean_of_a_distribution_stays_in_float() {
        let product = |op_type: &str, inputs: &[&str]| NodeProto::new(op_type, "mean", inputs, &["mean"]);
        let cases: [(NodeProto, &[usize]); 5] = [
            (product("Conv", &["distribution", "bins"]), &[1, 16, 1, 1]),
            (product("MatMul", &["distribution", "bins"]), &[16, 1]),
            (product("MatMul", &["distribution", "bins"]), &[16]),
            (product("MatMul", &["bins", "distribution"]), &[1, 16]),
            (product("Gemm", &["distribution", "bins"]).with(AttributeProto::int("transB", 1)), &[1, 17]),
        ];
        for (mean, bins) in cases {
            let placement = placed(dfl(mean.clone(), bins), &SchemeOptions::default());
            assert_eq!(placement.quantized_nodes(), 2, "{mean:?}");
            let expected = [
                ("mean", Rule::Decoding),
                ("distances", Rule::Copies),
                ("corner", Rule::Decoding),
                ("y", Rule::Decoding),
            ];
            assert_eq!(rules(&placement)[5..], expected, "{mean:?}");
        }
    }

    #[test]
    fn a_softmax_in_pieces_is_one() {
        let pieces = |divisor: &str| {
            TestModel::new(17)
                .input("x", &[1, 64, 8, 8])
                .weight("w", &[64, 64, 1, 1])
                .weight("bins", &[1, 64, 1, 1])
                .op("Conv", &["x", "w"], "sides")
                .op("Exp", &["sides"], "exponentials")
                .op(divisor, &["exponentials"], "sum")
                .op("Div", &["exponentials", "sum"], "distribution")
                .op("Conv", &["distribution", "bins"], "mean")
                .output("mean", &[1, 1, 8, 8])
        };
        let last = |model| rules(&placed(model, &SchemeOptions::default())).last().unwrap().1;
        assert_eq!(last(pieces("ReduceSum")), Rule::Decoding);
        assert_eq!(last(pieces("ReduceMax")), Rule::Convolution);
        let late = TestModel::new(17)
            .input("x", &[1, 64, 8, 8])
            .weight("w", &[64, 64, 1, 1])
            .weight("bins", &[4, 64, 1, 1])
            .op("Conv", &["x", "w"], "sides")
            .op("Exp", &["sides"], "exponentials")
            .op("ReduceSum", &["exponentials"], "sum")
            .op("Conv", &["exponentials", "bins"], "weighed")
            .op("Div", &["weighed", "sum"], "mean")
            .output("mean", &[1, 4, 8, 8]);
        assert!(rules(&placed(late, &SchemeOptions::default())).contains(&("weighed", Rule::Decoding)));
    }

    #[test]
    fn other_products_behind_a_softmax_are_quantized() {
        // Many columns are values that attention weighs; and a single column without a softmax is a depth map.
        let values = NodeProto::new("MatMul", "mean", &["distribution", "bins"], &["mean"]);
        let placement = placed(dfl(values, &[32, 32]), &SchemeOptions::default());
        assert_eq!(rules(&placement)[5], ("mean", Rule::MatrixProduct));
        let depth = TestModel::new(17)
            .input("x", &[1, 64, 8, 8])
            .weight("w", &[1, 64, 1, 1])
            .op("Conv", &["x", "w"], "depth")
            .op("Softmax", &["depth"], "y");
        assert_eq!(rules(&placed(depth, &SchemeOptions::default()))[0], ("depth", Rule::Convolution));
    }

    #[test]
    fn a_plan_is_obeyed_and_only_what_no_product_follows_decodes() {
        let mut options = SchemeOptions::default();
        options.plan.assign("mean", Precision::Int8);
        let mean = NodeProto::new("Conv", "mean", &["distribution", "bins"], &["mean"]);
        assert_eq!(rules(&placed(dfl(mean, &[1, 16, 1, 1]), &options))[5], ("mean", Rule::Convolution));
        let between = TestModel::new(17)
            .input("x", &[1, 64, 8, 8])
            .weight("w", &[64, 64, 1, 1])
            .op("Exp", &["x"], "before")
            .op("Conv", &["before", "w"], "first")
            .op("Exp", &["first"], "between")
            .op("Conv", &["between", "w"], "last")
            .op("Relu", &["last"], "fused")
            .op("Exp", &["fused"], "behind");
        let placement = placed(between, &SchemeOptions::default());
        let rule = |name| placement.decisions.iter().find(|decision| decision.node == name).unwrap().rule;
        let found = ["before", "between", "fused", "behind"].map(rule);
        assert_eq!(found, [Rule::NoKernel, Rule::NoKernel, Rule::Fused, Rule::Decoding]);
    }
}
