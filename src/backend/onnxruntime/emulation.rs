//! Which models ONNX Runtime imitates instead of running them in their precision: their results count, their times say
//! nothing about the precision.

use crate::{
    backend::ExecutionProvider,
    onnx::{Fact, Model, operators::is_quantized, proto::TensorProto},
    tensor::ElementType,
};

/// Why the times of `model` say nothing about its precision on TensorRT; `None` when it runs in kernels of its own.
pub fn emulation(model: &Model, provider: ExecutionProvider) -> Option<&'static str> {
    if model.graph().node.iter().any(|node| node.is(Fact::Quantizer)) {
        return Some("Q/DQ is imitated in float or by other kernels than TensorRT's");
    }
    widens_halves(model, provider).then_some("ONNX Runtime computes FP16 and BF16 on the CPU in float")
}

/// True where 16-bit numbers are computed in 32 bits: between operators nothing is rounded, and nothing overflows.
pub fn widens_halves(model: &Model, provider: ExecutionProvider) -> bool {
    provider == ExecutionProvider::Cpu && has_halves(model)
}

/// Bits of a value in the lowest precision that a model computes in, or stands for: 8 when quantized, 16, or 32.
pub fn lowest_bits(model: &Model) -> u32 {
    if model.graph().node.iter().any(|node| is_quantized(node.op_type())) {
        8
    } else if has_halves(model) {
        16
    } else {
        32
    }
}

fn has_halves(model: &Model) -> bool {
    let halves = [ElementType::F16, ElementType::Bf16].map(ElementType::onnx);
    model.graph().initializer.iter().any(|weight| halves.contains(&TensorProto::data_type(weight)))
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
        let models = [("Conv", F32), ("Conv", F16), ("QuantizeLinear", F32), ("MatMulInteger", F32)];
        let bits = models.map(|(op_type, element_type)| lowest_bits(&model(op_type, element_type)));
        assert_eq!(bits, [32, 16, 8, 8]);
    }
}
