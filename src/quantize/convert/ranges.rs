//! Magnitudes of tensors: those observed in calibration, and what follows from them for tensors that were not observed.

use std::collections::BTreeMap;

use super::before_quantization;
use crate::{
    calibrate::CalibrationTable,
    onnx::{Fact, GraphView, proto::ValueInfoProto},
};

/// Largest magnitudes by tensor.
///
/// Where the table has no magnitudes of tensors without a range, such a tensor takes over what its inputs reached beyond
/// `max_magnitude`, unless its operator tames it: between the observed inputs of two products there may be many that FP16
/// cannot hold. What stays within the magnitude of its input has read at least what it gave: a convolution overflows before
/// the activation whose output was observed.
pub(super) fn magnitudes<'t>(
    view: &GraphView<'t>,
    table: Option<&CalibrationTable>,
    max_magnitude: f32,
) -> BTreeMap<&'t str, f32> {
    let Some(table) = table else { return BTreeMap::new() };
    let observed = |tensor: &'t str| {
        let tensor = before_quantization(view, tensor);
        let range = table.tensors.get(tensor).map(|range| range.min.abs().max(range.max.abs()));
        let other = || Some(table.magnitudes.as_ref()?.get(tensor).copied().unwrap_or(0.0));
        range.or_else(other)
    };
    let inputs = view.graph().input.iter().map(ValueInfoProto::name);
    let mut magnitudes: BTreeMap<&str, f32> = inputs.filter_map(|name| Some((name, observed(name)?))).collect();
    for &id in view.topological_order() {
        let node = view.node(id);
        let reached = node.input.iter().filter_map(|input| magnitudes.get(input.as_str()));
        let reached = reached.fold(0.0, |largest: f32, magnitude| largest.max(*magnitude));
        let spreads = reached > max_magnitude && !node.is(Fact::Tames);
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            if let Some(magnitude) = observed(output).or(spreads.then_some(reached)) {
                magnitudes.insert(output, magnitude);
            }
        }
    }
    for &id in view.topological_order().iter().rev() {
        let node = view.node(id);
        let ([input, ..], [output, ..]) = (&node.input[..], &node.output[..]) else { continue };
        let reached = magnitudes.get(output.as_str()).copied().filter(|&reached| reached > max_magnitude);
        let stays = node.is(Fact::Within) || node.is(Fact::Copies) && node.input.len() == 1;
        if let Some(reached) = reached.filter(|_| stays) {
            let known = magnitudes.entry(input).or_insert(reached);
            *known = known.max(reached);
        }
    }
    magnitudes
}
