//! What a configuration wants quantized, and what of it the model does not have.

use std::collections::BTreeSet;

use super::{PipelineError, model::Subject};
use crate::{
    config::RunConfig,
    onnx::proto::NodeProto,
    quantize::{Placement, Precision, PrecisionPlan, QuantizeOptions, SchemeOptions},
};

/// The rules of a configuration for a quantized precision.
pub fn scheme(config: &RunConfig, precision: Precision) -> Result<SchemeOptions, PipelineError> {
    let plan = match &config.plan {
        Some(path) => PrecisionPlan::read(path)?,
        None => PrecisionPlan::default(),
    };
    Ok(SchemeOptions {
        precision,
        exclude: config.nodes_to_exclude.clone(),
        include: config.nodes_to_include.clone(),
        exclude_op_types: config.op_types_to_exclude.iter().cloned().collect(),
        op_types: config.op_types.iter().cloned().collect(),
        plan,
        ..SchemeOptions::default()
    })
}

/// How a model of a precision is made; the high precision applies behind Q/DQ.
pub fn quantize_options(config: &RunConfig, precision: Precision) -> Result<QuantizeOptions, PipelineError> {
    let high_precision = if precision.is_quantized() { config.high_precision } else { Precision::Fp32 };
    Ok(QuantizeOptions { scheme: scheme(config, precision)?, high_precision, ..QuantizeOptions::default() })
}

/// Patterns and operator types of a configuration that match nothing in the model, in sentences.
///
/// # Errors
/// The model has no node of an operator type that is to be quantized.
pub fn unmatched(config: &RunConfig, subject: &Subject, placement: &Placement) -> Result<Vec<String>, PipelineError> {
    require_op_types(config, subject)?;
    let patterns =
        placement.unmatched_patterns.iter().map(|pattern| format!("the pattern `{pattern}` matches no node"));
    let types = config.op_types_to_exclude.iter().filter(|op_type| !holds(subject, op_type));
    let types = types.map(|op_type| format!("the model has no node of the operator type `{op_type}`"));
    Ok(patterns.chain(types).collect())
}

/// Whether the model has nodes of an operator type.
fn holds(subject: &Subject, op_type: &str) -> bool {
    [&subject.folded, &subject.float]
        .iter()
        .any(|model| model.graph().node.iter().any(|node| node.op_type() == op_type))
}

/// Refuses operator types to quantize of which the model has no node.
pub(super) fn require_op_types(config: &RunConfig, subject: &Subject) -> Result<(), PipelineError> {
    let Some(missing) = config.op_types.iter().find(|op_type| !holds(subject, op_type)) else { return Ok(()) };
    let known: BTreeSet<&str> = subject.float.graph().node.iter().map(NodeProto::op_type).collect();
    let known = Vec::from_iter(known).join(", ");
    bail!("--op-types {missing}: the model has no node of this operator type; it has {known}")
}

/// Refuses a placement that quantizes nothing.
pub(super) fn require_operators(placement: &Placement) -> Result<(), PipelineError> {
    if placement.tensors_to_observe().is_empty() {
        bail!(
            "nothing in this model is to be quantized; `calib quantize --explain` lists the rule that decided for every node"
        );
    }
    Ok(())
}
