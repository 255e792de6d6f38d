//! Biases that take back the mean error of quantization.
//!
//! Rounded weights and clipped activations shift the mean of an operator's result, channel by channel. The shift is
//! measured over the calibration samples and stands in the calibration table; adding it to the bias costs nothing at
//! run time.

use super::{QuantizeError, placement::Placement, weights::scale_tensor};
use crate::{
    calibrate::CalibrationTable,
    onnx::{
        GraphView, NodeId,
        proto::{NodeProto, TensorProto},
    },
};

/// Which input of a convolution or Gemm is the bias.
pub(super) const BIAS: usize = 2;

/// A bias in place of another.
pub(super) struct CorrectedBias {
    /// The node that reads it.
    pub node: NodeId,
    /// The bias it had, if any.
    pub old: Option<String>,
    /// The bias it gets; its name is still to be set.
    pub tensor: TensorProto,
}

/// The biases that `table` corrects, of the nodes both sides of which `placement` quantizes.
pub(super) fn corrected(
    placement: &Placement,
    table: &CalibrationTable,
    view: &GraphView<'_>,
) -> Result<Vec<CorrectedBias>, QuantizeError> {
    let mut biases = Vec::new();
    for edge in placement.weights.iter().filter(|edge| edge.input == 1) {
        let activation = placement.activations.iter().any(|other| other.node == edge.node && other.input == 0);
        let shift = placement.decisions.get(edge.node).and_then(|decision| table.bias_corrections.get(&decision.node));
        let (Some(shift), true, Some(weight)) = (shift, activation, view.initializer(&edge.tensor)) else { continue };
        let node = view.node(NodeId(edge.node));
        let name = || placement.decisions.get(edge.node).map_or_else(String::new, |decision| decision.node.clone());
        let channels = channels(node, weight).filter(|&channels| channels == shift.len());
        if channels.is_none() || shift.iter().any(|value| !value.is_finite()) {
            return Err(QuantizeError::BiasCorrection { node: name(), given: shift.len() });
        }
        let old = node.input.get(BIAS).filter(|bias| !bias.is_empty());
        // A bias that is computed, or that differs from row to row, stays as it is.
        let Some(values) = old.map_or(Some(vec![0.0; shift.len()]), |old| values(view, old, shift.len())) else {
            continue;
        };
        let beta = if node.op_type() == "Gemm" && old.is_some() { node.attr_f("beta").unwrap_or(1.0) } else { 1.0 };
        if beta == 0.0 {
            continue;
        }
        let values = values.iter().zip(shift).map(|(value, shift)| value + shift / beta).collect();
        let tensor = scale_tensor("", vec![shift.len()], values, weight.element_type()?)?;
        biases.push(CorrectedBias { node: NodeId(edge.node), old: old.cloned(), tensor });
    }
    Ok(biases)
}

/// Output channels of a node with a bias; `None` for other operators.
pub(super) fn channels(node: &NodeProto, weight: &TensorProto) -> Option<usize> {
    let extent = |axis: usize| weight.dims.get(axis).and_then(|&extent| usize::try_from(extent).ok());
    let extent = extent(node.channel_axis(1, weight.dims.len())?)?;
    match node.op_type() {
        "MatMul" => None,
        "ConvTranspose" => extent.checked_mul(usize::try_from(node.attr_i("group").unwrap_or(1)).ok()?),
        _ => Some(extent),
    }
}

/// The values of a constant bias with one value a channel.
fn values(view: &GraphView<'_>, bias: &str, channels: usize) -> Option<Vec<f32>> {
    let values = view.initializer(bias)?.to_tensor().ok()?.to_f32();
    (values.len() == channels).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::proto::{AttributeProto, NodeProto},
        quantize::{
            Precision, QuantizeOptions, SchemeOptions, quantize,
            testing::{TestModel, no_shapes, table},
        },
    };

    /// A transposed convolution with groups and a bias, a convolution without one, and a Gemm with a scaled one.
    fn model() -> crate::onnx::Model {
        TestModel::new(17)
            .input("x", &[1, 16, 8, 8])
            .weight("w0", &[16, 16, 3, 3])
            .weight("b0", &[32])
            .node(
                NodeProto::new("ConvTranspose", "up", &["x", "w0", "b0"], &["t"])
                    .with(AttributeProto::int("group", 2))
                    .with(AttributeProto::ints("pads", &[1, 1, 1, 1])),
            )
            .weight("w1", &[16, 32, 1, 1])
            .op("Conv", &["t", "w1"], "conv")
            .op("Flatten", &["conv"], "flat")
            .weight("w2", &[1024, 16])
            .weight("b2", &[16])
            .node(
                NodeProto::new("Gemm", "head", &["flat", "w2", "b2"], &["y"]).with(AttributeProto::float("beta", 0.5)),
            )
            .output("y", &[1, 16])
            .build()
    }

    fn biases(corrections: &[(&str, Vec<f32>)], precision: Precision) -> Result<Vec<Option<Vec<f32>>>, QuantizeError> {
        let mut table = table(&[("x", 1.0), ("t", 1.0), ("flat", 1.0)]);
        table.bias_corrections = corrections.iter().map(|(node, shift)| ((*node).to_owned(), shift.clone())).collect();
        let mut scheme = SchemeOptions { precision, ..SchemeOptions::default() };
        for node in ["up", "conv", "head"] {
            scheme.plan.assign(node, precision);
        }
        let options = QuantizeOptions { scheme, ..QuantizeOptions::default() };
        let quantized = quantize(&model(), &no_shapes(), Some(&table), &options)?.model;
        let view = GraphView::new(quantized.graph()).unwrap();
        let bias = |name: &str| {
            let node = quantized.graph().node.iter().find(|node| node.name() == name).unwrap();
            node.input.get(BIAS).map(|bias| view.initializer(bias).unwrap().to_tensor().unwrap().to_f32())
        };
        Ok(["up", "conv", "head"].map(bias).into())
    }

    #[test]
    fn corrections_are_added_to_the_bias_or_become_one() {
        let plain = biases(&[], Precision::Int8).unwrap();
        assert_eq!(plain[1], None);
        let ramp = |count: usize| (0..count).map(|index| index as f32 * 0.25).collect::<Vec<_>>();
        let all = [("up", ramp(32)), ("conv", ramp(16)), ("head", ramp(16))];
        let corrected = biases(&all, Precision::Int8).unwrap();
        let sum = |old: &Option<Vec<f32>>, factor: f32| {
            let old = old.as_ref().unwrap();
            Some(old.iter().zip(ramp(32)).map(|(old, shift)| old + factor * shift).collect::<Vec<_>>())
        };
        assert_eq!(corrected, [sum(&plain[0], 1.0), Some(ramp(16)), sum(&plain[2], 2.0)]);
        assert_eq!(biases(&all, Precision::Fp8).unwrap()[1], None, "measured for INT8, and for nothing else");
    }

    #[test]
    fn corrections_that_do_not_fit_name_the_node() {
        for shift in [vec![0.0; 15], vec![f32::NAN; 16]] {
            let message = biases(&[("conv", shift)], Precision::Int8).unwrap_err().to_string();
            assert!(message.contains("`conv`"), "{message}");
        }
    }
}
