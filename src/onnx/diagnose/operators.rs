//! Checks of operators and opsets, and the operators that each opset has.

use std::collections::{BTreeMap, HashSet};

use super::{Findings, Rule, Severity};
use crate::onnx::{
    Model,
    proto::{NodeProto, OperatorSetIdProto},
};

/// The newest opset that is known here (ONNX 1.23).
const NEWEST_OPSET: i64 = 28;
/// Opsets below this have operators whose shapes nobody infers any more.
const OLDEST_OPSET: i64 = 7;

/// Operators by the opset that brought them.
const SINCE: &[(i64, &str)] = &[
    (
        1,
        "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv ConvTranspose \
         DepthToSpace Div Dropout Elu Equal Exp Flatten Floor GRU Gather Gemm GlobalAveragePool GlobalLpPool \
         GlobalMaxPool Greater HardSigmoid Hardmax Identity If InstanceNormalization LRN LSTM LeakyRelu Less Log \
         LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool MaxRoiPool Mean Min Mul Neg Not Or PRelu Pad Pow \
         RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal ReduceL1 ReduceL2 ReduceLogSum \
         ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Selu Shape \
         Sigmoid Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose \
         Unsqueeze Upsample Xor",
    ),
    (7, "Acos Asin Atan Cos Multinomial Sin Tan"),
    (8, "Expand Scan"),
    (
        9,
        "Acosh Asinh Atanh Compress ConstantOfShape Cosh Erf EyeLike IsNaN MaxUnpool MeanVarianceNormalization NonZero \
         OneHot Scatter Shrink Sign Sinh TfIdfVectorizer Where",
    ),
    (
        10,
        "ConvInteger DequantizeLinear IsInf MatMulInteger Mod NonMaxSuppression QLinearConv QLinearMatMul \
         QuantizeLinear Resize ReverseSequence RoiAlign StringNormalizer ThresholdedRelu",
    ),
    (
        11,
        "BitShift ConcatFromSequence CumSum Det DynamicQuantizeLinear GatherElements GatherND Range Round \
         ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert \
         SequenceLength SplitToSequence Unique",
    ),
    (12, "Celu Einsum GreaterOrEqual LessOrEqual NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss"),
    (14, "HardSwish Trilu"),
    (15, "Bernoulli CastLike Optional OptionalGetElement OptionalHasElement"),
    (16, "GridSample"),
    (17, "BlackmanWindow DFT HammingWindow HannWindow LayerNormalization MelWeightMatrix STFT SequenceMap"),
    (18, "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im GroupNormalization Mish"),
    (19, "DeformConv"),
    (20, "AffineGrid Gelu ImageDecoder RegexFullMatch StringConcat StringSplit"),
    (23, "Attention RMSNormalization RotaryEmbedding"),
    (24, "Swish TensorScatter"),
    (26, "BitCast CumProd"),
    (27, "CausalConvWithState LinearAttention"),
    (28, "SwiGLU"),
];

/// Operators that an opset took away, and what stands for them.
const REMOVED: &[(i64, &str, &str)] = &[(10, "Upsample", "Resize"), (11, "Scatter", "ScatterElements")];

/// The opset that brought `op_type`; `None` for an unknown operator.
fn since(op_type: &str) -> Option<i64> {
    let has = |names: &str| names.split_ascii_whitespace().any(|name| name == op_type);
    SINCE.iter().find(|(_, names)| has(names)).map(|(opset, _)| *opset)
}

/// What stands for `op_type` from `opset` on; `None` when it is still there.
fn replaced_by(op_type: &str, opset: i64) -> Option<&'static str> {
    REMOVED.iter().find(|(since, name, _)| *name == op_type && opset >= *since).map(|(_, _, new)| *new)
}

pub(super) fn check(model: &Model, findings: &mut Findings) {
    let opset = model.opset("");
    let opset_message = |_: usize, _: &str| match opset {
        None => "the model does not say which version of the standard operators it uses".to_owned(),
        Some(version) => format!("the model uses opset {version}"),
    };
    let (severity, hint) = match opset {
        Some(version) if version > NEWEST_OPSET => (Severity::Warning, "it is newer than this program knows"),
        Some(version) if version < OLDEST_OPSET => (Severity::Warning, "convert it with onnx.version_converter"),
        _ => (Severity::Error, "export it again with an opset"),
    };
    let unusual = opset.is_none_or(|version| !(OLDEST_OPSET..=NEWEST_OPSET).contains(&version));
    findings.add(severity, Rule::Opset, unusual.then_some("opset_import"), opset_message, hint);
    let imports = &model.proto.opset_import;
    findings.add(
        Severity::Error,
        Rule::Opset,
        imports.iter().filter(|import| model.opset(import.domain()) != import.version).map(OperatorSetIdProto::domain),
        |_, names| format!("domains are imported in several versions: {names}"),
        "runtimes differ in which one they take; keep the right one in opset_import",
    );
    let mut used: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    collect(&model.graph().node, &mut used);
    let functions: HashSet<(&str, &str)> = model.proto.functions.iter().map(|f| (f.domain(), f.name())).collect();
    let (mut quantized, mut random) = (Vec::new(), Vec::new());
    for ((domain, op_type), nodes) in used {
        if is_quantized(&op_type) {
            quantized.extend(nodes.iter().cloned());
        }
        if domain.is_empty() && RANDOM.contains(&op_type.as_str()) {
            random.extend(nodes.iter().cloned());
        }
        if functions.contains(&(domain.as_str(), op_type.as_str())) {
            continue;
        }
        if domain.is_empty() {
            standard_operator(&op_type, opset.unwrap_or(NEWEST_OPSET), nodes, findings);
        } else {
            let hint = "only a runtime with a kernel for it runs the model; TensorRT needs a plugin";
            let message =
                |_: usize, names: &str| format!("operator {op_type} of domain {domain} is not standard: {names}");
            findings.add(Severity::Warning, Rule::ForeignOperator, nodes, message, hint);
        }
    }
    findings.add(
        Severity::Warning,
        Rule::AlreadyQuantized,
        quantized,
        |count, names| format!("the model is already quantized: {count} nodes ({names})"),
        "start from the float model; its scales are kept only where nothing is quantized again",
    );
    findings.add(
        Severity::Warning,
        Rule::Random,
        random,
        |count, names| format!("{count} nodes draw random numbers ({names})"),
        "comparisons measure these too; export the model for inference, or with the numbers as an input",
    );
}

/// Operators whose results differ from call to call.
const RANDOM: [&str; 6] =
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

fn standard_operator(op_type: &str, opset: i64, nodes: Vec<String>, findings: &mut Findings) {
    let (message, hint): (String, &str) = match (since(op_type), replaced_by(op_type, opset)) {
        (_, Some(new)) => {
            (format!("operator {op_type} does not exist in opset {opset}: {new} stands for it"), OPSET_HINT)
        }
        (Some(since), _) if since > opset => {
            (format!("operator {op_type} needs opset {since}, but the model uses {opset}"), OPSET_HINT)
        }
        (None, _) if opset <= NEWEST_OPSET => {
            (format!("operator {op_type} does not exist in ONNX"), "register a plugin under a domain of its own")
        }
        _ => return,
    };
    findings.add(Severity::Error, Rule::UnknownOperator, nodes, |_, names| format!("{message}: {names}"), hint);
}

const OPSET_HINT: &str = "export the model again with an opset that has its operators";

fn is_quantized(op_type: &str) -> bool {
    op_type.starts_with("QLinear")
        || matches!(
            op_type,
            "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear" | "ConvInteger" | "MatMulInteger"
        )
}

/// Nodes by domain and operator, those in subgraphs included.
fn collect(nodes: &[NodeProto], used: &mut BTreeMap<(String, String), Vec<String>>) {
    for node in nodes {
        let domain = if node.is_standard() { "" } else { node.domain() };
        used.entry((domain.to_owned(), node.op_type().to_owned())).or_default().push(node.name().to_owned());
        node.subgraphs().for_each(|graph| collect(&graph.node, used));
    }
}
