//! Tensors with their errors, ranges and times.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NodeTime;
use crate::calibrate::Method;

/// Quantization error at one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Layer {
    /// Node that produces the tensor.
    pub node: String,
    /// Quantized operators in front of the node, which is fused with them: their results are measured at this tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<String>,
    /// Its operator.
    pub op_type: String,
    /// The tensor.
    pub tensor: String,
    /// Precision the node runs in.
    pub precision: String,
    /// SQNR of the tensor in the quantized model against the float model; absent when not measured or without error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graphwise_sqnr_db: Option<f64>,
    /// The same with only this node quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layerwise_sqnr_db: Option<f64>,
    /// Cosine between the tensor in both models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// SQNR of the quantized weights against the float weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_sqnr_db: Option<f64>,
    /// Smallest value seen in calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f32>,
    /// Largest value seen in calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f32>,
    /// Threshold in force: values up to this far from `offset` keep their places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amax: Option<f32>,
    /// The centre of the range; absent where it is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<f32>,
    /// Step of the quantized tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// The method that `amax` comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Every method's threshold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub candidates: BTreeMap<Method, f32>,
    /// Share of calibration values beyond `amax`, between 0 and 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped: Option<f64>,
    /// Magnitudes seen in calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
    /// Its time on every machine that measured it, those measured last behind the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<NodeTime>,
}

/// Distribution of |x|, coarse enough to draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// Upper edge of the last bin; the first begins at 0 and all are equally wide.
    pub limit: f32,
    /// Values in each bin; at most 64 bins.
    pub counts: Vec<u64>,
}
