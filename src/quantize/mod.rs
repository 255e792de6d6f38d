//! From a float model and a calibration table to a model with explicit Q/DQ, as TensorRT takes it.
//!
//! [`place`] applies the rules ([`scheme`]); calibration observes [`Placement::tensors_to_observe`]; [`quantize`] puts
//! Q/DQ and 8-bit weights into the model. Neither executes anything.

mod facts;
mod placement;
mod plan;
mod qdq;
mod scheme;
#[cfg(test)]
mod testing;
mod upgrade;
mod validate;
mod weights;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use placement::{ActivationEdge, Decision, Placement, Rule, WeightEdge};
pub use plan::{Assignment, CompiledPlan, PLAN_FORMAT_VERSION, PatternError, Precision, PrecisionPlan, Selector};
pub use scheme::place;
pub use validate::{Finding, Severity, validate};

use crate::{
    artifact::{ContentHash, Tool},
    backend::TensorInfo,
    calibrate::CalibrationTable,
    onnx::{GraphError, Model, TensorError, proto::StringStringEntryProto},
    qparams::QParamsError,
    tensor::{ElementType, ShapeError},
};

/// Why a model cannot be quantized.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum QuantizeError {
    #[error(
        "the model is quantized already: node `{node}` is a {op_type}; give the float model that it was made from, \
         or compare it as it is"
    )]
    AlreadyQuantized { node: String, op_type: String },
    #[error(
        "the calibration table has no range for tensor `{tensor}`, which node `{node}` needs; calibrate this model again"
    )]
    MissingRange { tensor: String, node: String },
    #[error("the calibration table has the range {amax} for tensor `{tensor}`; calibrate this model again")]
    InvalidRange { tensor: String, amax: f32 },
    #[error("weight `{tensor}` holds NaN or infinite values; repair the model or exclude its nodes")]
    NonFiniteWeight { tensor: String },
    #[error("weight `{tensor}` of shape {shape:?} has no axis {axis}; the model is damaged")]
    WeightAxis { tensor: String, axis: usize, shape: Vec<usize> },
    #[error("weight `{tensor}` is not in the model; the placement belongs to another one")]
    MissingWeight { tensor: String },
    #[error(
        "node `{node}` ({op_type}) of opset {from} cannot be raised to opset {to}: {reason}; export the model with \
         opset {to} or later"
    )]
    Upgrade { node: String, op_type: String, from: i64, to: i64, reason: String },
    #[error("the model uses opset {opset}, and only opset {oldest} and later can be raised; export it again")]
    OldOpset { opset: i64, oldest: i64 },
    #[error("the model imports no version of the standard operators; export it again")]
    NoOpset,
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error(transparent)]
    Params(#[from] QParamsError),
}

/// What to quantize, beyond the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct SchemeOptions {
    /// [`Precision::Int8`] or [`Precision::Fp8`].
    pub precision: Precision,
    /// Nodes to leave in float: regular expressions for whole names.
    pub exclude: Vec<String>,
    /// When not empty, only nodes that one of these matches are quantized.
    pub include: Vec<String>,
    /// Operator types to leave in float.
    pub exclude_op_types: BTreeSet<String>,
    /// When not empty, only these operator types are quantized.
    pub op_types: BTreeSet<String>,
    /// Quantized inputs and output of a Concat share one scale: fewer kernels, coarser steps.
    pub share_concat_scales: bool,
    /// Overrules all of the above.
    pub plan: PrecisionPlan,
}

impl Default for SchemeOptions {
    fn default() -> Self {
        Self {
            precision: Precision::Int8,
            exclude: Vec::new(),
            include: Vec::new(),
            exclude_op_types: BTreeSet::new(),
            op_types: BTreeSet::new(),
            share_concat_scales: false,
            plan: PrecisionPlan::default(),
        }
    }
}

/// Options for [`quantize`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct QuantizeOptions {
    /// What to quantize, and to what.
    pub scheme: SchemeOptions,
}

/// A quantized model and how it came about.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The model with Q/DQ.
    pub model: Model,
    /// Where Q/DQ went, and the decision about every node.
    pub placement: Placement,
    /// What [`validate`] finds in the result: nothing, or a defect of this program.
    pub findings: Vec<Finding>,
}

/// Quantizes `model` with the ranges of `table`; `shapes` adds tensor shapes that the file does not declare.
///
/// # Errors
/// A model that is quantized already, ranges that the table lacks, weights that are no numbers, opsets that cannot be
/// raised as far as needed.
pub fn quantize(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    table: &CalibrationTable,
    options: &QuantizeOptions,
) -> Result<Quantized, QuantizeError> {
    let mut model = model.clone();
    let precision = options.scheme.precision;
    let ranks = facts::ranks(model.graph(), shapes);
    let opset = if precision == Precision::Fp8 { 19 } else { 13 };
    upgrade::raise_opset(&mut model, opset, &ranks)?;
    let placement = place(&model, shapes, &options.scheme)?;
    qdq::insert(model.graph_mut(), &placement, table, precision, ElementType::F32)?;
    record_provenance(&mut model, table, precision);
    let findings = validate(&model)?;
    Ok(Quantized { model, placement, findings })
}

/// Writes into the model what made it.
fn record_provenance(model: &mut Model, table: &CalibrationTable, precision: Precision) {
    let table_hash = serde_json::to_vec(table).map(|bytes| ContentHash::of_bytes(&bytes).to_string());
    let mut entries = vec![
        ("calib.version", Tool::current().version),
        ("calib.source_hash", model.hash.to_string()),
        ("calib.precision", precision.to_string()),
        ("calib.table_hash", table_hash.unwrap_or_default()),
    ];
    if table.random_data {
        entries.push(("calib.random_data", "true".to_owned()));
    }
    for (key, value) in entries {
        model.proto.metadata_props.retain(|entry| entry.key() != key);
        model.proto.metadata_props.push(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) });
    }
}
