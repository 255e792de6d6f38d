//! Which operators take 16-bit floats, by the version of the operator set (the type constraints of ONNX's operator
//! schemas up to version 24).

use crate::{
    onnx::{operators::OperatorType, proto::NodeProto},
    tensor::ElementType,
};

/// True for a node that cannot compute in `target`, or whose results keep another type when it does.
pub(super) fn is_missing(node: &NodeProto, target: ElementType, opset: i64) -> bool {
    let [fp16, bf16] = OperatorType::named(node.op_type()).map_or([0, 0], OperatorType::halves);
    let missing = opset < if target == ElementType::F16 { fp16 } else { bf16 };
    // The type of these results is an attribute; the mean and deviation of a normalization are `float32` by default.
    let typed = node.attr_i("dtype") == Some(i64::from(ElementType::F32.onnx()));
    missing || typed || (node.op_type() == "LayerNormalization" && node.output.len() > 1)
}
