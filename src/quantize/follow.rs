//! Operators that stay in float because one that they were fused with does.
//!
//! TensorRT fuses an Add into the convolution before it: the branch between them is not quantized, and calibration has no
//! range for it. Where a plan or an exclusion keeps the convolution in float, the Add would need that range.

use std::collections::BTreeMap;

use super::{Precision, QuantizeError, QuantizeOptions, Quantized, quantize};
use crate::{backend::TensorInfo, calibrate::CalibrationTable, onnx::Model};

/// A node that stays in float because the table has no range for one of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    /// The node.
    pub node: String,
    /// The tensor.
    pub tensor: String,
}

/// [`quantize`] that keeps in `lift`, too, what needs a range that the table lacks, as long as `may_lack` allows it for the
/// tensor. Such nodes are assigned in the plan of `options`, and named.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_following(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    table: Option<&CalibrationTable>,
    options: &mut QuantizeOptions,
    lift: Precision,
    may_lack: &dyn Fn(&str) -> bool,
) -> Result<(Quantized, Vec<Follower>), QuantizeError> {
    let mut followers: Vec<Follower> = Vec::new();
    loop {
        match quantize(model, shapes, table, options) {
            Err(QuantizeError::MissingRange { node, tensor })
                if may_lack(&tensor) && followers.iter().all(|known| known.node != node) =>
            {
                options.scheme.plan.assign(&node, lift);
                followers.push(Follower { node, tensor });
            }
            quantized => return Ok((quantized?, followers)),
        }
    }
}
