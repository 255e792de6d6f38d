//! What a calibration table says beyond ranges, by precision.

use std::{borrow::Cow, collections::BTreeMap};

use super::{ActivationEdge, Precision, PrecisionPlan, QuantizeError, QuantizeOptions, Rule, SchemeOptions, place};
use crate::{backend::TensorInfo, calibrate::CalibrationTable, onnx::Model};

/// What a table says for a precision: most of what recovery finds is for INT8, or for FP8.
pub fn table_for(table: &CalibrationTable, precision: Precision) -> Cow<'_, CalibrationTable> {
    match precision {
        Precision::Int8 => Cow::Borrowed(table),
        Precision::Fp8 => Cow::Owned(table.for_fp8()),
        Precision::Fp16 | Precision::Bf16 | Precision::Fp32 => Cow::Owned(table.ranges_alone()),
    }
}

/// The scheme, with the nodes that recovery lifts in the high precision; what the plan says comes after that. An Add that was fused
/// with one of them is lifted with it: the branch between them was not quantized, and has no range in the table.
///
/// # Errors
/// A malformed graph, or a plan that names no node.
pub(crate) fn scheme_with_lifted(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    options: &QuantizeOptions,
    table: Option<&CalibrationTable>,
) -> Result<SchemeOptions, QuantizeError> {
    let mut scheme = options.scheme.clone();
    let Some((table, recovered)) = table.and_then(|table| Some((table, table.recovered.as_ref()?))) else {
        return Ok(scheme);
    };
    if recovered.lifted.is_empty() {
        return Ok(scheme);
    }
    let mut lifted = PrecisionPlan::default();
    recovered.lifted.iter().for_each(|one| lifted.assign(&one.node, options.high_precision));
    scheme.plan.assignments.splice(0..0, lifted.assignments);
    let asked = place(model, shapes, &options.scheme)?.activations;
    let lacks = |edge: &&ActivationEdge| !asked.contains(edge) && !table.tensors.contains_key(&edge.tensor);
    loop {
        let placement = place(model, shapes, &scheme)?;
        let adds = placement.activations.iter().filter(lacks).filter_map(|edge| placement.decisions.get(edge.node));
        let Some(add) = adds.into_iter().find(|decision| decision.rule == Rule::ResidualAdd) else { return Ok(scheme) };
        scheme.plan.assign(&add.node, options.high_precision);
    }
}
