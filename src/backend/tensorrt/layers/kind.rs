//! What a layer does, from what TensorRT calls it.
//!
//! TensorRT's compiler names a kernel that it generates after the operations in it (`__myl_MulAddReluMulMinMaxRounCast`)
//! and lists ONNX nodes of which it holds a part only, so there the operations decide and not the nodes.

use super::{EngineTensor, LayerKind, NumberType};
use crate::onnx::{Fact, operators::OperatorType};

/// Parts of the names of types and kernels that multiply and add.
const COMPUTE_TYPES: [&str; 9] = [
    "conv",
    "gemm",
    "matmul",
    "matrixmultiply",
    "matrix_multiply",
    "fullyconnected",
    "correlation",
    "mha",
    "attention",
];

/// The compiler's words for operations that multiply and add.
const COMPUTE_WORDS: [&str; 3] = ["Corr", "Deco", "Fc"];
/// ... that only move values.
const MOVING_WORDS: [&str; 7] = ["Cast", "Conc", "Move", "Repl", "Resh", "Slic", "Tran"];
/// ... that quantization consists of besides.
const ROUNDING_WORDS: [&str; 5] = ["Div", "Max", "Min", "Mul", "Roun"];

/// What is known of a layer.
pub(super) struct Facts<'a> {
    pub layer_type: &'a str,
    pub origin: &'a str,
    pub name: &'a str,
    pub tactic: &'a str,
    /// ONNX operators of its nodes; empty texts for unknown ones.
    pub operators: &'a [&'a str],
    /// Whether it reads or writes values of 8 bits.
    pub narrow: bool,
}

fn is(operator: &str, fact: Fact) -> bool {
    OperatorType::named(operator).is_some_and(|row| row.is(fact))
}

/// True for entries that order streams or hand shapes on.
pub(super) fn runs_nothing(layer_type: &str) -> bool {
    ["signal", "wait", "shape_call"].contains(&layer_type)
}

pub(super) fn kind_of(facts: &Facts<'_>) -> LayerKind {
    if let Some(words) = operations(facts.name) {
        return kind_of_generated(facts, &words);
    }
    let lower = facts.layer_type.to_lowercase();
    let has = |text: &str| COMPUTE_TYPES.iter().any(|word| text.contains(word));
    // What the compiler took over is of no type that says more; the kernel's name does.
    let kernel = if lower == "kgen" { facts.tactic.to_lowercase() } else { String::new() };
    if facts.operators.iter().any(|operator| is(operator, Fact::Multiplies)) || has(&lower) || has(&kernel) {
        // TensorRT numbers the copies around a layer by that layer's name.
        return if lower == "reformat" { LayerKind::Reformat } else { LayerKind::Compute };
    }
    let only_qdq = !facts.operators.is_empty() && facts.operators.iter().all(|operator| is(operator, Fact::Quantizer));
    if only_qdq || facts.origin.eq_ignore_ascii_case("qdq") || matches!(lower.as_str(), "quantize" | "dequantize") {
        LayerKind::QuantizeDequantize
    } else if lower == "reformat" || facts.name.starts_with("Reformatting CopyNode") {
        LayerKind::Reformat
    } else {
        LayerKind::Other
    }
}

/// Operations of a generated kernel; the last is `Etc` where there are more.
fn operations(name: &str) -> Option<Vec<&str>> {
    let words = name.strip_prefix("__myl_")?.split('_').next()?;
    let starts: Vec<usize> = words.char_indices().filter(|(_, c)| c.is_ascii_uppercase()).map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied().chain([words.len()]);
    Some(starts.iter().zip(ends).map(|(&start, end)| &words[start..end]).collect())
}

fn kind_of_generated(facts: &Facts<'_>, words: &[&str]) -> LayerKind {
    let moves = |word: &&str| MOVING_WORDS.contains(word);
    if words.iter().any(|word| COMPUTE_WORDS.contains(word)) {
        LayerKind::Compute
    } else if words.iter().all(moves) {
        LayerKind::Reformat
    } else if words.contains(&"Cast")
        && words.iter().all(|word| moves(word) || ROUNDING_WORDS.contains(word))
        && (facts.narrow || facts.operators.iter().any(|operator| is(operator, Fact::Quantizer)))
    {
        LayerKind::QuantizeDequantize
    } else {
        LayerKind::Other
    }
}

/// A layer computes in the type of its first input (the activations): products of INT8 need both sides in INT8. Where
/// TensorRT does not tell the type, the kernel's name does (`i8i8_i8i32`).
pub(super) fn precision_of(inputs: &[EngineTensor], tactic: &str) -> NumberType {
    match inputs.first().map_or(NumberType::Unknown, |input| input.number_type) {
        NumberType::Unknown if tactic.contains("i8i8") => NumberType::Int8,
        NumberType::Unknown if tactic.contains("e4m3") => NumberType::Fp8,
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, type, kernel, operators, whether 8 bits are read or written, and what follows.
    type Case = (&'static str, &'static str, &'static str, &'static [&'static str], bool, LayerKind);

    /// Names, types and kernels as TensorRT-RTX 1.7.1 printed them for models of the zoo.
    #[test]
    fn generated_kernels_are_told_by_their_operations() {
        use LayerKind::{Compute, Other, QuantizeDequantize, Reformat};
        let cases: [Case; 12] = [
            ("/stem/conv/Conv_myl0_2", "correlation", "__myelin_CASK_STUB", &["Conv"], true, Compute),
            ("node_linear_myl0_9", "gemm", "__myelin_CASK_STUB", &["Gemm"], true, Compute),
            ("/raise_.0/ConvTranspose_myl0_9", "deconv", "__myelin_CASK_STUB", &["ConvTranspose"], false, Compute),
            ("_gemm_mha_v2_myl0_8", "kgen", "_gemm_mha_v2", &["Softmax"], false, Compute),
            ("__myl_FcAddMulCastErfCastAddMulMul_myl0_12", "runtime_fusion", "", &["Gemm", "Erf"], false, Compute),
            ("__myl_DecoMulCast_myl0_14", "runtime_fusion", "", &[], true, Compute),
            // The bias and the activation of a convolution whose product is another layer.
            ("__myl_MulAddReluMulMinMaxRounCast_myl0_5", "kgen", "", &["Conv", "Relu", "QuantizeLinear"], true, Other),
            (
                "__myl_MulMinMaxRounCastReplConc_myl0_1",
                "kgen",
                "",
                &["QuantizeLinear", "Conv"],
                true,
                QuantizeDequantize,
            ),
            ("__myl_CastMulCast_myl0_10", "kgen", "", &["DequantizeLinear"], false, QuantizeDequantize),
            ("__myl_MulCast_myl0_3", "kgen", "", &["Mul", "Cast"], false, Other),
            ("__myl_Move_myl0_1", "kgen", "", &["Conv"], false, Reformat),
            ("__myl_MulReshSlicTranEtc_myl0_4", "kgen", "", &["Mul"], true, Other),
        ];
        for (name, layer_type, tactic, operators, narrow, expected) in cases {
            let facts = Facts { layer_type, origin: "", name, tactic, operators, narrow };
            assert_eq!(kind_of(&facts), expected, "{name}");
        }
        assert_eq!(operations("__myl_FcAddCast_myl0_1").unwrap(), ["Fc", "Add", "Cast"]);
        assert_eq!(operations("conv1"), None);
    }
}
