//! Which types a model's weights and its arithmetic are of: what a reference is called.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    backend::TensorInfo,
    onnx::{
        Fact, Model,
        proto::{GraphProto, NodeProto, TensorProto},
    },
    quantize::{Precision, quantized_in},
    tensor::ElementType,
};

/// Types of a model, the floating-point ones and, where it is quantized already, those of 8 bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloatTypes {
    /// Number of values in constants of more than one value, by type, as the file has them.
    pub weights: BTreeMap<ElementType, u64>,
    /// Types that nodes compute in, other than on single values.
    pub arithmetic: BTreeSet<ElementType>,
    /// Number of values in constants that are codes of quantized weights.
    pub codes: u64,
    /// INT8 and FP8, where nodes compute in them.
    pub quantized: BTreeSet<Precision>,
}

impl FloatTypes {
    /// Looks into the model as it was given, and into the folded one with the types of its tensors.
    pub(super) fn of(float: &Model, folded: &Model, shapes: &BTreeMap<String, TensorInfo>) -> Self {
        let graph = float.graph();
        let (mut scales, mut read_as_codes) = (BTreeSet::new(), BTreeSet::new());
        let mut quantized = quantized_in(graph);
        for node in &graph.node {
            let inputs = || node.input.iter().map(String::as_str);
            match node.op_type() {
                "DequantizeLinear" => read_as_codes.extend(inputs().take(1)),
                _ if computes_in_integers(node) => {
                    read_as_codes.extend(inputs());
                    quantized.insert(Precision::Int8);
                }
                _ => {}
            }
            if node.is(Fact::Quantizer) {
                scales.extend(inputs().skip(1));
            }
        }
        let (mut weights, mut codes) = (BTreeMap::new(), 0);
        for (name, tensor) in constants(graph).filter(|(name, _)| !scales.contains(name)) {
            let extents = tensor.dims.iter().map(|&extent| u64::try_from(extent).unwrap_or(0));
            let count = extents.fold(1, u64::saturating_mul);
            if let Some(element_type) = tensor.element_type().ok().filter(|kind| kind.is_float() && count > 1) {
                *weights.entry(element_type).or_default() += count;
            } else if count > 1 && read_as_codes.contains(name) {
                codes += count;
            }
        }
        let computing = folded.graph().node.iter().filter(|node| {
            let moves = node.op_type() == "Cast" || node.is(Fact::Copies) || node.is(Fact::Quantizer);
            !moves && !node.is(Fact::AnyType)
        });
        let results = computing.flat_map(|node| &node.output).filter_map(|output| shapes.get(output));
        let results = results.filter(|info| info.shape.len() > 1).filter_map(|info| info.element_type);
        Self { weights, arithmetic: results.filter(|kind| kind.is_float()).collect(), codes, quantized }
    }

    /// `fp32`, `fp16`, `bf16` or `fp64`, or `mixed` where the model computes in several or its weights are of another one; `int8`
    /// or `fp8` of a model that is quantized already.
    pub fn name(&self) -> &'static str {
        if let Some(precision) = self.quantized.first() {
            return if self.quantized.len() > 1 { "mixed" } else { precision.name() };
        }
        let all: u64 = self.weights.values().sum();
        // A table of positions in another type does not make a model another one.
        let main = self.weights.iter().filter(|&(_, &count)| count.saturating_mul(100) >= all);
        let types: BTreeSet<ElementType> = main.map(|(&kind, _)| kind).chain(self.arithmetic.iter().copied()).collect();
        match Vec::from_iter(types)[..] {
            [] => "fp32",
            [one] => name(one),
            _ => "mixed",
        }
    }
}

/// What a type is called among precisions.
pub(super) fn name(element_type: ElementType) -> &'static str {
    match element_type {
        ElementType::F16 => "fp16",
        ElementType::Bf16 => "bf16",
        ElementType::F64 => "fp64",
        _ => "fp32",
    }
}

/// The operators that take codes of 8 bits instead of floats.
fn computes_in_integers(node: &NodeProto) -> bool {
    node.op_type().starts_with("QLinear") || matches!(node.op_type(), "ConvInteger" | "MatMulInteger")
}

/// Constants of a graph by name: initializers, and what nodes hold.
fn constants(graph: &GraphProto) -> impl Iterator<Item = (&str, &TensorProto)> {
    let held = graph.node.iter().filter(|node| node.op_type() == "Constant");
    let held = held.filter_map(|node| Some((node.output.first()?.as_str(), node.attr_t("value")?)));
    graph.initializer.iter().map(|tensor| (tensor.name(), tensor)).chain(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{
        QuantizeOptions, quantize,
        testing::{TestModel, no_shapes, table},
    };

    fn types(weights: &[(ElementType, u64)], arithmetic: &[ElementType]) -> FloatTypes {
        let (weights, arithmetic) = (weights.iter().copied().collect(), arithmetic.iter().copied().collect());
        FloatTypes { weights, arithmetic, ..FloatTypes::default() }
    }

    #[test]
    fn a_quantized_model_is_called_so_and_its_scales_are_no_weights() {
        let model = TestModel::new(17).input("x", &[1, 32, 8, 8]).output("y", &[1, 32, 8, 8]);
        let float = model.weight("w", &[32, 32, 1, 1]).weight("b", &[32]).op("Conv", &["x", "w", "b"], "y").build();
        let of = |model: &Model| FloatTypes::of(model, model, &no_shapes());
        assert_eq!((of(&float).name(), of(&float).codes), ("fp32", 0));
        let ranges = table(&[("x", 1.0)]);
        let quantized = quantize(&float, &no_shapes(), Some(&ranges), &QuantizeOptions::default()).unwrap().model;
        let found = of(&quantized);
        // 32 × 32 codes, and the bias.
        assert_eq!((found.name(), found.codes), ("int8", 1024));
        assert_eq!(found.weights, [(ElementType::F32, 32)].into());
    }

    #[test]
    fn a_model_is_called_by_what_it_holds_and_computes_in() {
        use ElementType::{Bf16, F16, F32, F64};
        assert_eq!(types(&[(F32, 1000)], &[F32]).name(), "fp32");
        assert_eq!(types(&[(F16, 1000)], &[F16]).name(), "fp16");
        assert_eq!(types(&[(F64, 1000)], &[F64]).name(), "fp64");
        assert_eq!(types(&[(Bf16, 1000)], &[Bf16]).name(), "bf16");
        // Weights that are stored in 16 bits and computed with in 32.
        assert_eq!(types(&[(F16, 1000)], &[F32]).name(), "mixed");
        assert_eq!(types(&[(F16, 1000), (F32, 10)], &[F16, F32]).name(), "mixed");
        assert_eq!(types(&[(F32, 1000), (F64, 9)], &[F32]).name(), "fp32");
        assert_eq!(types(&[], &[]).name(), "fp32");
    }
}
