//! The axis that the scales of a weight lie along, up to where the weight is used.

use super::Check;
use crate::{
    onnx::{NodeId, proto::NodeProto},
    quantize::facts::REACH,
    tensor::Values,
};

impl Check<'_, '_> {
    /// The axis must be that of the channels wherever the weight goes.
    pub(super) fn weight_axis(&mut self, id: NodeId, node: &NodeProto, axis: usize, shape: Vec<i64>) {
        let mut wrong = Vec::new();
        let mut places: Vec<(&str, Option<usize>, Vec<i64>)> =
            node.output.first().map(|output| (output.as_str(), Some(axis), shape)).into_iter().collect();
        let mut steps = REACH;
        while let Some((tensor, axis, shape)) = places.pop().filter(|_| steps > 0) {
            steps -= 1;
            let uses = self.facts.view.consumers(tensor);
            for consumer in uses {
                let user = self.facts.view.node(consumer.node);
                if let Some((axis, shape)) = self.moved_axis(user, axis, &shape) {
                    places.extend(user.output.first().map(|output| (output.as_str(), axis, shape)));
                }
                let expected = consumer.input.and_then(|input| user.channel_axis(input, shape.len()));
                if let Some(expected) = expected.filter(|&expected| axis != Some(expected)) {
                    let user = user.label(consumer.node.0);
                    let along = axis.map_or_else(
                        || "an axis that a Reshape mixes with others".to_owned(),
                        |axis| format!("axis {axis}"),
                    );
                    wrong.push(format!(
                        "its scales lie along {along}, and `{user}` has its channels on axis {expected}"
                    ));
                }
            }
        }
        for message in wrong {
            self.error(id, message);
        }
    }

    /// Where an axis lies behind a node that only moves values, nowhere where it is mixed with others, and the shape there; `None` for
    /// other nodes.
    fn moved_axis(&self, node: &NodeProto, axis: Option<usize>, shape: &[i64]) -> Option<(Option<usize>, Vec<i64>)> {
        match node.op_type() {
            _ if !node.is_standard() => None,
            "Identity" | "Cast" => Some((axis, shape.to_vec())),
            "Transpose" => {
                let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
                let order = node.attr_ints("perm").unwrap_or(&reversed);
                let moved = order.iter().map(|&from| shape.get(usize::try_from(from).ok()?).copied());
                let to = axis.and_then(|axis| order.iter().position(|&from| from == axis as i64));
                Some((to, moved.collect::<Option<_>>()?))
            }
            "Reshape" => {
                let Values::I64(mut extents) = self.constant(node, 1)?.to_tensor().ok()?.into_parts().1 else {
                    return None;
                };
                for (place, extent) in extents.iter_mut().enumerate().filter(|(_, extent)| **extent == 0) {
                    *extent = *shape.get(place)?;
                }
                let known: i64 = extents.iter().filter(|&&extent| extent > 0).product();
                let rest = shape.iter().product::<i64>().checked_div(known)?;
                extents.iter_mut().filter(|extent| **extent < 0).for_each(|extent| *extent = rest);
                // As many values lie before it and in it.
                let to = axis.and_then(|axis| {
                    let (extent, before) = (shape[axis], shape[..axis].iter().product::<i64>());
                    (0..extents.len())
                        .find(|&to| extents[to] == extent && extents[..to].iter().product::<i64>() == before)
                });
                Some((to, extents))
            }
            _ => None,
        }
    }
}
