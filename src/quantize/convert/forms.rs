//! Which operators take 16-bit floats, by the version of the operator set (the type constraints of ONNX's operator
//! schemas up to version 24).

use crate::{onnx::proto::NodeProto, tensor::ElementType};

/// No version so far.
const NEVER: i64 = i64::MAX;

/// Operators that take `float32` and not every 16-bit type in every version from 13 on for FP16 and from 22 on for BF16,
/// with the first versions that take FP16 and BF16.
const SINCE: &[(&str, i64, i64)] = &[
    ("Celu", NEVER, NEVER),
    ("Compress", 0, NEVER),
    ("CumSum", 14, 14),
    ("Einsum", 0, NEVER),
    ("IsInf", 20, 20),
    ("NonMaxSuppression", NEVER, NEVER),
    ("OneHot", 0, NEVER),
    ("Range", NEVER, NEVER),
    ("ReverseSequence", 0, NEVER),
    ("Shrink", 0, NEVER),
    ("TopK", 0, 24),
    ("Unique", 0, NEVER),
];

/// True for a node that cannot compute in `target`, or whose results keep another type when it does.
pub(super) fn is_missing(node: &NodeProto, target: ElementType, opset: i64) -> bool {
    let since = SINCE.iter().find(|(op_type, ..)| *op_type == node.op_type());
    let missing = since.is_some_and(|&(_, fp16, bf16)| opset < if target == ElementType::F16 { fp16 } else { bf16 });
    // The type of these results is an attribute; the mean and deviation of a normalization are `float32` by default.
    let typed = node.attr_i("dtype") == Some(i64::from(ElementType::F32.onnx()));
    missing || typed || (node.op_type() == "LayerNormalization" && node.output.len() > 1)
}
