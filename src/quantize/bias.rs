//! Biases that take back the mean error of quantization.
//!
//! Rounded weights and clipped activations shift the mean of an operator's result, channel by channel. The shift is
//! measured over the calibration samples and stands in the calibration table; adding it to the bias costs nothing at
//! run time.

use super::{QuantizeError, placement::Placement, weights::scale_tensor};
use crate::{
    calibrate::CalibrationTable,
    onnx::{
        GraphView, NodeId, Use,
        proto::{NodeProto, TensorProto},
    },
    tensor::ElementType,
};

/// Which input of a convolution or Gemm is the bias.
pub(super) const BIAS: usize = 2;

/// Where an operator has a constant bias with a number an output channel, or could have one.
#[derive(Clone, Debug)]
pub(crate) struct BiasSite {
    /// The node that reads it: the operator itself, or the `Add` behind a MatMul.
    pub node: NodeId,
    /// At which input.
    pub input: usize,
    /// How often it counts.
    pub beta: f32,
    /// Its numbers.
    pub channels: usize,
    /// The type of the weight.
    pub element_type: ElementType,
}

impl BiasSite {
    /// Of the operator `id` with `weight`.
    pub fn of(view: &GraphView<'_>, id: NodeId, weight: &TensorProto) -> Option<Self> {
        let node = view.node(id);
        let (channels, element_type) = (channels(node, weight)?, weight.element_type().ok()?);
        let site = if node.op_type() == "MatMul" {
            let output = node.output.first()?;
            let &[Use { node: add, input: Some(input) }] = view.consumers(output) else { return None };
            let is_add = view.node(add).op_type() == "Add" && view.node(add).is_standard();
            if !is_add || weight.dims.len() != 2 || view.is_graph_output(output) {
                return None;
            }
            Self { node: add, input: 1 - input.min(1), beta: 1.0, channels, element_type }
        } else {
            let has_bias = node.input.get(BIAS).is_some_and(|bias| !bias.is_empty());
            let beta = if node.op_type() == "Gemm" && has_bias { node.attr_f("beta").unwrap_or(1.0) } else { 1.0 };
            Self { node: id, input: BIAS, beta, channels, element_type }
        };
        (site.beta != 0.0 && site.values(view).is_some()).then_some(site)
    }

    /// The bias, by name, if there is one already.
    pub fn tensor<'v>(&self, view: &GraphView<'v>) -> Option<&'v String> {
        view.node(self.node).input.get(self.input).filter(|bias| !bias.is_empty())
    }

    /// Its values; zeros where there is none yet. `None` where it is computed, or differs from row to row.
    pub fn values(&self, view: &GraphView<'_>) -> Option<Vec<f32>> {
        let Some(bias) = self.tensor(view) else { return Some(vec![0.0; self.channels]) };
        let tensor = view.initializer(bias)?.to_tensor().ok()?;
        let values = tensor.to_f32();
        (values.len() == self.channels && tensor.shape().last() == Some(&self.channels)).then_some(values)
    }
}

/// A bias in place of another.
pub(super) struct CorrectedBias {
    /// Where.
    pub site: BiasSite,
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
        let id = NodeId(edge.node);
        let fits = channels(view.node(id), weight) == Some(shift.len());
        if !fits || shift.iter().any(|value| !value.is_finite()) {
            let node = placement.decisions.get(edge.node).map_or_else(String::new, |decision| decision.node.clone());
            return Err(QuantizeError::BiasCorrection { node, given: shift.len() });
        }
        // A bias that is computed, or that differs from row to row, stays as it is.
        let Some(site) = BiasSite::of(view, id, weight) else { continue };
        let values = site.values(view).unwrap_or_default();
        let values = values.iter().zip(shift).map(|(value, shift)| value + shift / site.beta).collect();
        let tensor = scale_tensor("", vec![shift.len()], values, site.element_type)?;
        biases.push(CorrectedBias { site, tensor });
    }
    Ok(biases)
}

/// Output channels of a node with a weight.
fn channels(node: &NodeProto, weight: &TensorProto) -> Option<usize> {
    let extent = |axis: usize| weight.dims.get(axis).and_then(|&extent| usize::try_from(extent).ok());
    let extent = extent(node.channel_axis(1, weight.dims.len())?)?;
    match node.op_type() {
        "ConvTranspose" => extent.checked_mul(usize::try_from(node.attr_i("group").unwrap_or(1)).ok()?),
        _ => Some(extent),
    }
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
