//! Which floating-point types a model's weights and its arithmetic are of: what a reference is called.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    backend::TensorInfo,
    onnx::{
        Fact, Model,
        proto::{GraphProto, TensorProto},
    },
    tensor::ElementType,
};

/// Floating-point types of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloatTypes {
    /// Number of values in constants of more than one value, by type, as the file has them.
    pub weights: BTreeMap<ElementType, u64>,
    /// Types that nodes compute in, other than on single values.
    pub arithmetic: BTreeSet<ElementType>,
}

impl FloatTypes {
    /// Looks into the model as it was given, and into the folded one with the types of its tensors.
    pub(super) fn of(float: &Model, folded: &Model, shapes: &BTreeMap<String, TensorInfo>) -> Self {
        let mut weights = BTreeMap::new();
        for tensor in constants(float.graph()) {
            let extents = tensor.dims.iter().map(|&extent| u64::try_from(extent).unwrap_or(0));
            let count = extents.fold(1, u64::saturating_mul);
            if let Some(element_type) = tensor.element_type().ok().filter(|kind| kind.is_float() && count > 1) {
                *weights.entry(element_type).or_default() += count;
            }
        }
        let computing = folded.graph().node.iter().filter(|node| {
            let moves = node.op_type() == "Cast" || node.is(Fact::Copies) || node.is(Fact::Quantizer);
            !moves && !node.is(Fact::AnyType)
        });
        let results = computing.flat_map(|node| &node.output).filter_map(|output| shapes.get(output));
        let results = results.filter(|info| info.shape.len() > 1).filter_map(|info| info.element_type);
        Self { weights, arithmetic: results.filter(|kind| kind.is_float()).collect() }
    }

    /// `fp32`, `fp16`, `bf16` or `fp64`, or `mixed` where the model computes in several or its weights are of another one.
    pub fn name(&self) -> &'static str {
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

/// Constants of a graph: initializers, and what nodes hold.
fn constants(graph: &GraphProto) -> impl Iterator<Item = &TensorProto> {
    let held = graph.node.iter().filter(|node| node.op_type() == "Constant").filter_map(|node| node.attr_t("value"));
    graph.initializer.iter().chain(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(weights: &[(ElementType, u64)], arithmetic: &[ElementType]) -> FloatTypes {
        FloatTypes { weights: weights.iter().copied().collect(), arithmetic: arithmetic.iter().copied().collect() }
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
