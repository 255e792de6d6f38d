//! Checks of the operators that multiply what Q/DQ give.

use super::{Check, code_name, is_code};
use crate::{
    onnx::{
        Fact, NodeId,
        proto::{NodeProto, TensorProto},
    },
    quantize::facts::REACH,
};

impl<'a> Check<'a, '_> {
    /// Both sides of a product are quantized, or none, and their scales agree in type.
    pub(super) fn sides(&mut self, id: NodeId, node: &NodeProto) {
        let sides = [0, 1].map(|side| self.dequantizer(node.input.get(side)?));
        match sides {
            [None, None] => {}
            [Some(a), Some(b)] => {
                let types = [a, b].map(|side| self.constant(side, 1).map(TensorProto::data_type));
                if let [Some(a), Some(b)] = types
                    && a != b
                {
                    self.error(id, "the scales of its two sides differ in type, which TensorRT rejects".to_owned());
                }
                self.kinds(id, node, [a, b]);
            }
            [activation, _] => {
                let (quantized, float) = if activation.is_some() { ("first", "second") } else { ("second", "first") };
                let message = format!(
                    "its {quantized} input is quantized and its {float} is not: TensorRT would run it in float; \
                     quantize both or none"
                );
                self.error(id, message);
            }
        }
    }

    /// Types of codes that TensorRT multiplies with each other, and forms of scales that it does in these types.
    fn kinds(&mut self, id: NodeId, node: &NodeProto, sides: [&'a NodeProto; 2]) {
        let [kind, other] = sides.map(|side| self.code_type_of(side));
        let convolves = node.is(Fact::Convolution);
        let in_blocks = |side: &NodeProto| side.attr_i("block_size").unwrap_or(0) != 0;
        let multiplies = match (kind, other) {
            (3, 3) | (17, 17) => true,
            (3 | 22, 3 | 22) => !convolves,
            (23, 23) => !convolves && in_blocks(sides[1]),
            // What is told at the nodes themselves.
            _ => !is_code(kind) || !is_code(other),
        };
        if !multiplies {
            let message = format!(
                "TensorRT does not multiply {} by {} here; quantize both sides to int8, or both to float8e4m3fn",
                code_name(kind),
                code_name(other)
            );
            return self.fatal(id, message);
        }
        if convolves && in_blocks(sides[1]) {
            let message = "its weight is scaled in blocks, and TensorRT would multiply in float; give it a scale for each output channel";
            self.error(id, message.to_owned());
        }
        if convolves && self.constant(sides[0], 1).is_some_and(|scale| scale.dims == [1]) {
            let message = "the scale of its input is a list of one number, and TensorRT would multiply in float; store the number without an axis";
            self.error(id, message.to_owned());
        }
    }

    /// Type of the codes that a DequantizeLinear takes; `int8` where nothing tells.
    fn code_type_of(&self, node: &NodeProto) -> i32 {
        let told = [2, 0].into_iter().find_map(|input| self.constant(node, input));
        told.map_or(3, TensorProto::data_type)
    }

    /// The DequantizeLinear behind a tensor, through what only moves values.
    fn dequantizer(&self, tensor: &str) -> Option<&'a NodeProto> {
        let mut tensor = tensor;
        for _ in 0..REACH {
            let (_, node) = self.facts.producer(tensor)?;
            match node.op_type() {
                "DequantizeLinear" => return Some(node),
                // What a Concat joins has several makers.
                op_type if op_type == "Cast" || (op_type != "Concat" && node.is(Fact::Copies)) => {
                    tensor = node.input.first()?;
                }
                _ => return None,
            }
        }
        None
    }
}
