//! Which models ONNX Runtime imitates instead of running them in their precision: their results count, their times say
//! nothing about the precision.

use crate::{
    backend::ExecutionProvider,
    onnx::{Model, proto::TensorProto},
    tensor::ElementType,
};

/// Why the times of `model` say nothing about its precision on TensorRT; `None` when it runs in kernels of its own.
pub fn emulation(model: &Model, provider: ExecutionProvider) -> Option<&'static str> {
    let graph = model.graph();
    if graph.node.iter().any(|node| matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear")) {
        return Some("Q/DQ is imitated in float or by other kernels than TensorRT's");
    }
    let types: Vec<i32> = graph.initializer.iter().map(TensorProto::data_type).collect();
    let holds = |element_type: ElementType| types.contains(&element_type.onnx());
    match provider {
        ExecutionProvider::Cpu if holds(ElementType::F16) || holds(ElementType::Bf16) => {
            Some("ONNX Runtime computes FP16 and BF16 on the CPU in float")
        }
        _ => None,
    }
}

/// True for a model that computes in less than 32 bits, or stands for one that does: quantized, or in half precision.
pub fn is_low_precision(model: &Model) -> bool {
    let integer = |op_type: &str| {
        ["DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"].contains(&op_type)
    };
    emulation(model, ExecutionProvider::Cpu).is_some() || model.graph().node.iter().any(|node| integer(node.op_type()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, NodeProto};

    fn model(op_type: &str, element_type: ElementType) -> Model {
        let node = NodeProto { op_type: Some(op_type.to_owned()), ..NodeProto::default() };
        let weight = TensorProto { data_type: Some(element_type.onnx()), ..TensorProto::default() };
        let graph = GraphProto { node: vec![node], initializer: vec![weight], ..GraphProto::default() };
        let proto = ModelProto { graph: Some(graph), ..ModelProto::default() };
        Model::from_bytes(prost::Message::encode_to_vec(&proto)).unwrap()
    }

    #[test]
    fn only_precisions_with_kernels_of_their_own_are_measured() {
        use ElementType::{Bf16, F16, F32};
        use ExecutionProvider::{Cpu, Cuda};
        for (op_type, element_type, provider, emulated) in [
            ("Conv", F32, Cpu, false),
            ("Conv", F32, Cuda(0), false),
            ("Conv", F16, Cpu, true),
            ("Conv", F16, Cuda(0), false),
            ("Conv", Bf16, Cuda(0), false),
            ("QuantizeLinear", F32, Cpu, true),
            ("DequantizeLinear", F32, Cuda(0), true),
        ] {
            let found = emulation(&model(op_type, element_type), provider);
            assert_eq!(found.is_some(), emulated, "{op_type} {element_type} {provider:?}: {found:?}");
        }
        let low = |op_type, element_type| is_low_precision(&model(op_type, element_type));
        assert!(!low("Conv", F32) && low("Conv", F16) && low("QuantizeLinear", F32) && low("MatMulInteger", F32));
    }
}
