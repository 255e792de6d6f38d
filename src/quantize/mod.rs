//! From a float model and a calibration table to a model with explicit Q/DQ, as TensorRT takes it.
//!
//! [`place`] applies the rules (`scheme`); calibration observes [`Placement::tensors_to_observe`]; [`quantize`] puts
//! Q/DQ and 8-bit weights into the model. Neither executes anything.

mod bias;
mod constants;
mod contents;
mod convert;
mod equalize;
mod explained;
mod facts;
mod follow;
mod model_graph;
mod moved;
mod names;
mod placement;
mod plan;
mod qdq;
mod scheme;
mod shift;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod types;
mod upgrade;
mod validate;
mod weights;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub(crate) use bias::BiasSite;
use constants::drop_unread;
pub use contents::Contents;
pub(crate) use contents::quantized_in;
pub use convert::{Fp32Reason, Halved, KeptFp32, half_constant};
pub(crate) use equalize::Reads;
pub use equalize::{Equalizable, equalizable};
pub use explained::explained;
pub use follow::{Follower, quantize_following};
pub use model_graph::{GraphNode, ModelGraph};
pub use moved::moved_like;
pub use placement::{ActivationEdge, Decision, Placement, Rule, WeightEdge};
pub(crate) use plan::whole_name;
pub use plan::{Assignment, CompiledPlan, PLAN_FORMAT_VERSION, PatternError, Precision, PrecisionPlan, Selector};
pub use qdq::WrittenScales;
pub use scheme::{is_own, place};
pub use shift::{Shiftable, Shifted, shiftable};
pub(crate) use table::scheme_with_lifted;
pub use table::table_for;
pub use validate::{Compute, Finding, Severity, validate, validate_with};

use crate::{
    artifact::{ContentHash, Tool},
    backend::TensorInfo,
    calibrate::{CalibrationTable, Method, Recovered, Shift, TensorRange},
    onnx::{
        GraphError, GraphView, Model, TensorError,
        proto::{GraphProto, StringStringEntryProto},
    },
    qparams::QParamsError,
    tensor::{ElementType, ShapeError},
};
pub(crate) use types::element_types;
use weights::ScaleTypes;

/// Key of a model's metadata: the samples that it was calibrated on, as in [`CalibrationTable::calibrated_on`].
const CALIBRATED_ON: &str = "calib.calibrated_on";
/// Key of the metadata of a model whose ranges are of random numbers.
const RANDOM_DATA: &str = "calib.random_data";

/// Whether a model says that its ranges are of random numbers.
pub fn of_random_data(model: &Model) -> bool {
    model.proto.metadata_props.iter().any(|entry| entry.key() == RANDOM_DATA)
}

/// The samples that a model was calibrated on, by name, with their hashes; empty where it does not say.
pub fn calibrated_on(model: &Model) -> BTreeMap<String, String> {
    let entry = model.proto.metadata_props.iter().find(|entry| entry.key() == CALIBRATED_ON);
    entry.and_then(|entry| serde_json::from_str(entry.value()).ok()).unwrap_or_default()
}

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
        "the calibration table corrects the bias of node `{node}` with {given} numbers, which do not fit its output \
         channels or are not finite; calibrate again"
    )]
    BiasCorrection { node: String, given: usize },
    #[error(
        "the calibration table equalizes the channels of tensor `{tensor}` by {given} numbers, and it has {channels}; \
         calibrate again"
    )]
    Equalized { tensor: String, given: usize, channels: usize },
    #[error(
        "the calibration table rounds the codes of weight `{tensor}` for a scale for each output channel, and it has one scale; \
         calibrate again with per-tensor weights"
    )]
    RoundingOfChannels { tensor: String },
    #[error("the calibration table does not round the {codes} codes of weight `{tensor}`, but others; calibrate again")]
    Rounding { tensor: String, codes: usize },
    #[error(
        "node `{node}` ({op_type}) of opset {from} cannot be raised to opset {to}: {reason}; export the model with \
         opset {to} or later"
    )]
    Upgrade { node: String, op_type: String, from: i64, to: i64, reason: String },
    #[error("the model uses opset {opset}, and only opset {oldest} and later can be raised; export it again")]
    OldOpset { opset: i64, oldest: i64 },
    #[error("the model imports no version of the standard operators; export it again")]
    NoOpset,
    #[error("quantizing needs the ranges of a calibration table; calibrate first")]
    NoTable,
    #[error("fp16 and bf16 are both asked for; use one of them beside fp32")]
    MixedHalves,
    #[error(
        "no node of the model computes in float32, so there is nothing to convert to {precision}: it is in another type \
         already; use it as it is"
    )]
    NothingToConvert { precision: Precision },
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
    /// A weight has one scale, not one for each output channel.
    pub per_tensor_weights: bool,
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
            per_tensor_weights: false,
            plan: PrecisionPlan::default(),
        }
    }
}

/// Options for [`quantize`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct QuantizeOptions {
    /// What to quantize, and to what. With a float [`SchemeOptions::precision`] nothing is, and the whole model is
    /// converted to it.
    pub scheme: SchemeOptions,
    /// What the float part runs in: [`Precision::Fp32`], [`Precision::Fp16`] or [`Precision::Bf16`].
    pub high_precision: Precision,
    /// Whether inputs and outputs of the model keep their types when the float part is converted.
    pub keep_io_types: bool,
    /// Nodes of the float part to keep in FP32: regular expressions for whole names.
    pub keep_fp32: Vec<String>,
    /// Operator types of the float part to keep in FP32.
    pub keep_fp32_op_types: BTreeSet<String>,
    /// Nodes that saw a larger magnitude during calibration stay in FP32 instead of FP16: a quarter of what FP16 holds.
    pub fp16_max_magnitude: f32,
    /// Nodes that add up more values stay in FP32.
    pub max_reduction_depth: usize,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self {
            scheme: SchemeOptions::default(),
            high_precision: Precision::Fp32,
            keep_io_types: true,
            keep_fp32: Vec::new(),
            keep_fp32_op_types: BTreeSet::new(),
            fp16_max_magnitude: 16384.0,
            max_reduction_depth: 4096,
        }
    }
}

/// A quantized or converted model and how it came about.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The model.
    pub model: Model,
    /// The float model that Q/DQ were put into: what was given, around other centres where recovery found them.
    pub float: Model,
    /// Where Q/DQ went, and the decision about every node.
    pub placement: Placement,
    /// The scales in the model, one entry for each quantized input of a node: activations first.
    pub scales: Vec<WrittenScales>,
    /// What the tensors that only [`Self::float`] has were in the model that was given.
    pub shifted: BTreeMap<String, Shifted>,
    /// What became of the float part, where it was converted to 16 bits.
    pub halved: Option<Halved>,
    /// What [`validate`] finds in the result: nothing, or a defect of this program.
    pub findings: Vec<Finding>,
}

impl Quantized {
    /// Scale by quantized activation, under the names of the model that was given.
    pub fn activation_scales(&self) -> BTreeMap<String, f32> {
        let single = |written: &WrittenScales| {
            let tensor = self.shifted.get(&written.tensor).map_or(&written.tensor, |shifted| &shifted.tensor);
            Some((tensor.clone(), *written.scales.first()?))
        };
        let is_activation =
            |written: &&WrittenScales| self.placement.activations.iter().any(|edge| edge.tensor == written.tensor);
        self.scales.iter().filter(is_activation).filter_map(single).collect()
    }

    /// Nodes that stayed in FP32 although the float part was converted.
    pub fn kept_fp32(&self) -> &[KeptFp32] {
        self.halved.as_ref().map_or(&[], |halved| &halved.kept_fp32)
    }

    /// What [`validate`] holds against the result, in words; `None` when TensorRT will take it.
    pub fn defects(&self) -> Option<String> {
        let errors = self.findings.iter().filter(|finding| finding.severity == Severity::Error);
        let errors: Vec<String> = errors.map(ToString::to_string).collect();
        (!errors.is_empty())
            .then(|| format!("the result breaks TensorRT's rules, a defect of calib: {}", errors.join("; ")))
    }
}

/// Quantizes `model` with the ranges of `table` and converts its float part; `shapes` adds types and shapes of tensors
/// that the file does not declare.
///
/// # Errors
/// A model that is quantized already, ranges that the table lacks, weights that are not numbers, opsets that cannot be
/// raised as far as needed.
pub fn quantize(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    table: Option<&CalibrationTable>,
    options: &QuantizeOptions,
) -> Result<Quantized, QuantizeError> {
    let mut model = model.clone();
    let known = constants::unread(model.graph());
    let precision = options.scheme.precision;
    let half = half_type(options)?;
    let opset = needed_opset(&model, precision, half);
    upgrade::raise_opset(&mut model, opset, shapes)?;
    let given = table;
    let table = given.map(|table| table_for(table, precision));
    let table = table.as_deref();
    let recovered = table.and_then(|table| table.recovered.as_ref());
    let scheme = scheme_with_lifted(&model, shapes, options, table)?;
    let mut placement = place(&model, shapes, &scheme)?;
    let mut shapes = shapes.clone();
    let moved = table.zip(recovered);
    let moved =
        moved.map(|(table, recovered)| move_values(&mut model, &mut shapes, &mut placement, &table.tensors, recovered));
    let (shapes, shifted) = (&shapes, moved.transpose()?.unwrap_or_default());
    let float = model.clone();
    let mut scales = Vec::new();
    let quantizes = !placement.activations.is_empty() || !placement.weights.is_empty();
    if precision.is_quantized() && quantizes {
        let table = table.ok_or(QuantizeError::NoTable)?;
        let table = &with_shifts(table, &shifted);
        let types = scale_types(model.graph(), shapes, &placement, half)?;
        scales = qdq::insert(model.graph_mut(), &placement, table, precision, &types)?;
        drop_unread(model.graph_mut(), &known);
    }
    let convert = |half| convert_float_part(&mut model, shapes, table, options, half, &mut placement);
    let halved = half.map(convert).transpose()?;
    drop_unread(model.graph_mut(), &known);
    record_provenance(&mut model, given, &options.scheme);
    let findings = validate(&model)?;
    Ok(Quantized { model, float, placement, scales, shifted, halved, findings })
}

/// Equalizes and shifts what is quantized, as recovery found it. Returns what the tensors that it made were before.
fn move_values(
    model: &mut Model,
    shapes: &mut BTreeMap<String, TensorInfo>,
    placement: &mut Placement,
    ranges: &BTreeMap<String, TensorRange>,
    recovered: &Recovered,
) -> Result<BTreeMap<String, Shifted>, QuantizeError> {
    let equalized = equalize::equalize(model.graph_mut(), shapes, placement, &recovered.equalized)?;
    let mut shifts = recovered.shifts.clone();
    for (new, tensor) in &equalized {
        if let Some(shift) = shifts.remove(tensor) {
            shifts.insert(new.clone(), shift);
        }
    }
    let mut made = shift::shift(model.graph_mut(), shapes, placement, &shifts)?;
    for shifted in made.values_mut() {
        if let Some(tensor) = equalized.get(&shifted.tensor) {
            shifted.tensor.clone_from(tensor);
        }
    }
    for (new, tensor) in equalized {
        let is_quantized = placement.activations.iter().any(|edge| edge.tensor == new);
        if let (true, Some(range)) = (is_quantized, ranges.get(&tensor)) {
            made.insert(new, Shifted { tensor, shift: Shift { offset: 0.0, amax: range.amax } });
        }
    }
    Ok(made)
}

/// The table, with the ranges of shifted tensors.
fn with_shifts(table: &CalibrationTable, shifted: &BTreeMap<String, Shifted>) -> CalibrationTable {
    let mut table = table.clone();
    for (tensor, Shifted { shift, .. }) in shifted {
        let range = TensorRange {
            min: -shift.amax,
            max: shift.amax,
            count: 0,
            amax: shift.amax,
            method: Method::Mse,
            candidates: BTreeMap::new(),
            clipped: 0.0,
        };
        table.tensors.insert(tensor.clone(), range);
    }
    table
}

/// `model` with the default operator set raised to `opset`; a newer one stays.
///
/// # Errors
/// Operators that cannot be raised.
pub fn with_opset(model: &Model, shapes: &BTreeMap<String, TensorInfo>, opset: i64) -> Result<Model, QuantizeError> {
    let mut raised = model.clone();
    upgrade::raise_opset(&mut raised, opset, shapes)?;
    Ok(raised)
}

/// The 16-bit type in use, if any.
fn half_type(options: &QuantizeOptions) -> Result<Option<ElementType>, QuantizeError> {
    let assigned = options.scheme.plan.assignments.iter().map(|assignment| assignment.precision);
    let all = [options.scheme.precision, options.high_precision].into_iter().chain(options.scheme.plan.default);
    let halves: BTreeSet<Precision> =
        all.chain(assigned).filter(|precision| matches!(precision, Precision::Fp16 | Precision::Bf16)).collect();
    match halves.first() {
        _ if halves.len() > 1 => Err(QuantizeError::MixedHalves),
        Some(Precision::Fp16) => Ok(Some(ElementType::F16)),
        Some(_) => Ok(Some(ElementType::Bf16)),
        None => Ok(None),
    }
}

fn needed_opset(model: &Model, precision: Precision, half: Option<ElementType>) -> i64 {
    let is_half = |data_type: i32| [ElementType::F16, ElementType::Bf16].iter().any(|half| half.onnx() == data_type);
    let holds_half = model.graph().initializer.iter().any(|tensor| is_half(tensor.data_type()));
    match (precision, half) {
        (_, Some(ElementType::Bf16)) => 22,
        (Precision::Fp8, _) => 19,
        (Precision::Int8, half) if half.is_some() || holds_half => 19,
        _ => 13,
    }
}

/// The types of the scales of all tensors, which are those of the tensors: parts of a model may be in 16 bits. Where a
/// tensor's type is unknown it is that of the first weight.
fn scale_types(
    graph: &GraphProto,
    shapes: &BTreeMap<String, TensorInfo>,
    placement: &Placement,
    half: Option<ElementType>,
) -> Result<ScaleTypes, QuantizeError> {
    let tensors = element_types(&GraphView::new(graph)?, shapes);
    let mut weights = placement.weights.iter().filter_map(|edge| tensors.get(&edge.tensor));
    let usual = weights.next().copied().unwrap_or(ElementType::F32);
    Ok(ScaleTypes { tensors, usual, half })
}

/// Converts the float part, and writes into the decisions what runs in what.
fn convert_float_part(
    model: &mut Model,
    shapes: &BTreeMap<String, TensorInfo>,
    table: Option<&CalibrationTable>,
    options: &QuantizeOptions,
    target: ElementType,
    placement: &mut Placement,
) -> Result<Halved, QuantizeError> {
    let half = if target == ElementType::F16 { Precision::Fp16 } else { Precision::Bf16 };
    let keep = options.keep_fp32.iter().map(|pattern| whole_name(pattern)).collect::<Result<Vec<_>, _>>()?;
    let conversion = convert::Conversion {
        target,
        opset: model.opset("").ok_or(QuantizeError::NoOpset)?,
        by_default: [options.scheme.precision, options.high_precision].contains(&half),
        plan: &options.scheme.plan.compile()?,
        known_as: &model.known_as(),
        keep: &keep,
        keep_op_types: &options.keep_fp32_op_types,
        max_magnitude: options.fp16_max_magnitude,
        max_reduction_depth: options.max_reduction_depth,
        keep_io_types: options.keep_io_types,
        table,
        infos: &facts::tensor_infos(model.graph(), shapes),
    };
    let converted = conversion.apply(model.graph_mut())?;
    let are_own = converted.kept.iter().all(|kept| matches!(kept.reason, Fp32Reason::Own(_)));
    if options.scheme.precision == half && converted.low.is_empty() && are_own {
        return Err(QuantizeError::NothingToConvert { precision: half });
    }
    for decision in placement.decisions.iter_mut().filter(|decision| !decision.precision.is_quantized()) {
        decision.precision = if converted.low.contains(&decision.node) { half } else { Precision::Fp32 };
    }
    Ok(Halved { precision: half, nodes: converted.low.len(), kept_fp32: converted.kept })
}

/// Writes into the model what made it.
fn record_provenance(model: &mut Model, table: Option<&CalibrationTable>, scheme: &SchemeOptions) {
    let mut entries = vec![
        ("calib.version", Tool::current().version),
        ("calib.source_hash", model.hash.to_string()),
        ("calib.precision", scheme.precision.to_string()),
    ];
    if let Some(bytes) = table.and_then(|table| serde_json::to_vec(table).ok()) {
        entries.push(("calib.table_hash", ContentHash::of_bytes(&bytes).to_string()));
    }
    let calibrated_on = table.map(|table| &table.calibrated_on).filter(|samples| !samples.is_empty());
    if let Some(samples) = calibrated_on.and_then(|samples| serde_json::to_string(samples).ok()) {
        entries.push((CALIBRATED_ON, samples));
    }
    if table.is_some_and(|table| table.random_data) || scheme.plan.random_data {
        entries.push((RANDOM_DATA, "true".to_owned()));
    }
    for (key, value) in entries {
        model.proto.metadata_props.retain(|entry| entry.key() != key);
        model.proto.metadata_props.push(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) });
    }
}
