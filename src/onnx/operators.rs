//! What is known of ONNX's operators, as TensorRT, the quantizer and the analysis see them: one row a type, asked by
//! everyone.
//!
//! The rules are those of TensorRT's explicit quantization. Activation functions that fuse with the operator before them
//! are [`Fact::Fuses`]; Gelu is not one of them, it stays in the high precision as LayerNormalization and Softmax do.

use super::proto::NodeProto;

/// No version so far.
const NEVER: i64 = i64::MAX;

/// A property of an operator type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Has 8-bit kernels for two sides, one of which may be a constant with a scale for each channel.
    Weighted,
    /// Slides a kernel over a map: what an Add behind it fuses with.
    Convolution,
    /// Multiplies and adds.
    Multiplies,
    /// Moves values without changing them; TensorRT moves Q/DQ through it.
    Copies,
    /// A normalization or activation function that fuses with the operator before it: nothing is quantized between.
    Fuses,
    /// Fuses with the operator before it as well, and takes a second tensor.
    Joins,
    /// Loses too much in 8 bits.
    HighPrecision,
    /// Takes 8 bits, but only gains from them beside others that do.
    Between,
    /// Stands between attention's products and its Softmax.
    AroundSoftmax,
    /// Makes the factor of SiLU, HardSwish and their kin, `x · gate(x)`.
    Gate,
    /// Computes, but stays within the magnitude of what it reads: it does not overflow in 16 bits.
    Within,
    /// Brings large values back, or makes something else of them.
    Tames,
    /// Adds up everything along some axes, with an error that grows with their extent.
    Sums,
    /// Takes any type without computing in it.
    AnyType,
    /// Its result depends on the shape of its input and not on the data.
    ReadsShape,
    /// Its results are `int64`, whatever it reads.
    GivesI64,
    /// Its results are truth values.
    GivesBool,
    /// Goes between precisions: explicit quantization.
    Quantizer,
    /// Computes in integers: quantized in a form that TensorRT does not take.
    Integer,
    /// Its results differ from call to call.
    Random,
    /// All inputs but the first are weights.
    Parameters,
    /// The three inputs behind the first are weights; behind them come lengths and initial states.
    Recurrent,
}

use Fact::{
    AnyType, AroundSoftmax, Between, Convolution, Copies, Fuses, Gate, GivesBool, GivesI64, HighPrecision, Integer,
    Joins, Multiplies, Parameters, Quantizer, Random, ReadsShape, Recurrent, Sums, Tames, Weighted, Within,
};

/// A type of operator of the standard domain.
#[derive(Clone, Copy, Debug)]
pub struct OperatorType {
    /// Its name, as `Conv`.
    pub name: &'static str,
    /// The opset that brought it.
    pub since: i64,
    /// The opset that took it away, and what stands for it.
    pub replaced: Option<(i64, &'static str)>,
    /// The first opsets in which it takes FP16 and BF16.
    halves: [i64; 2],
    facts: &'static [Fact],
}

impl OperatorType {
    /// The row of a standard operator; `None` for a name that ONNX does not have.
    pub fn named(name: &str) -> Option<&'static Self> {
        TABLE.binary_search_by_key(&name, |row| row.name).ok().map(|index| &TABLE[index])
    }

    /// Whether `fact` holds of it.
    pub fn is(&self, fact: Fact) -> bool {
        self.facts.contains(&fact)
    }

    /// The first opsets in which it takes FP16 and BF16; `i64::MAX` for none. Every version that is raised to for these
    /// types (13 and 22) has the operators that give 0 here.
    pub fn halves(&self) -> [i64; 2] {
        self.halves
    }

    const fn halves_since(self, fp16: i64, bf16: i64) -> Self {
        Self { halves: [fp16, bf16], ..self }
    }

    const fn until(self, opset: i64, by: &'static str) -> Self {
        Self { replaced: Some((opset, by)), ..self }
    }
}

impl NodeProto {
    /// Whether `fact` holds of the node's operator; never for operators of another domain.
    pub fn is(&self, fact: Fact) -> bool {
        self.is_standard() && OperatorType::named(self.op_type()).is_some_and(|row| row.is(fact))
    }

    /// The axis of a constant of `rank` axes, read at `input`, along which the channels of the result lie: 0 for Conv, 1
    /// for ConvTranspose, and for products the columns of their right side. `None` where there is none.
    pub fn channel_axis(&self, input: usize, rank: usize) -> Option<usize> {
        match self.op_type() {
            _ if input != 1 || rank < 2 || !self.is(Weighted) => None,
            "Conv" => Some(0),
            "ConvTranspose" => Some(1),
            "Gemm" if self.attr_i("transB").unwrap_or(0) != 0 => Some(rank - 2),
            _ => Some(rank - 1),
        }
    }

    /// Whether only weights make sense at `input`.
    pub(crate) fn takes_weights_at(&self, input: usize) -> bool {
        (self.is(Parameters) && input > 0) || (self.is(Recurrent) && (1..=3).contains(&input))
    }
}

/// True for the operators of models that are quantized already, in any domain.
pub fn is_quantized(op_type: &str) -> bool {
    op_type.starts_with("QLinear")
        || OperatorType::named(op_type).is_some_and(|row| row.is(Quantizer) || row.is(Integer))
}

const fn op(name: &'static str, since: i64, facts: &'static [Fact]) -> OperatorType {
    OperatorType { name, since, replaced: None, halves: [0, 0], facts }
}

/// Sorted by name.
const TABLE: &[OperatorType] = &[
    op("Abs", 1, &[]),
    op("Acos", 7, &[]),
    op("Acosh", 9, &[]),
    op("Add", 1, &[Joins, AroundSoftmax]),
    op("AffineGrid", 20, &[]),
    op("And", 1, &[GivesBool]),
    op("ArgMax", 1, &[Tames, GivesI64]),
    op("ArgMin", 1, &[Tames, GivesI64]),
    op("Asin", 7, &[]),
    op("Asinh", 9, &[]),
    op("Atan", 7, &[]),
    op("Atanh", 9, &[]),
    op("Attention", 23, &[Multiplies]),
    op("AveragePool", 1, &[Between]),
    op("BatchNormalization", 1, &[Fuses, Tames, Parameters]),
    op("Bernoulli", 15, &[Random]),
    op("BitCast", 26, &[]),
    op("BitShift", 11, &[]),
    op("BitwiseAnd", 18, &[]),
    op("BitwiseNot", 18, &[]),
    op("BitwiseOr", 18, &[]),
    op("BitwiseXor", 18, &[]),
    op("BlackmanWindow", 17, &[]),
    op("Cast", 1, &[AroundSoftmax, Within, AnyType]),
    op("CastLike", 15, &[]),
    op("CausalConvWithState", 27, &[]),
    op("Ceil", 1, &[]),
    op("Celu", 12, &[]).halves_since(NEVER, NEVER),
    op("CenterCropPad", 18, &[]),
    op("Clip", 1, &[Fuses, AroundSoftmax, Within, Tames]),
    op("Col2Im", 18, &[]),
    op("Compress", 9, &[]).halves_since(0, NEVER),
    op("Concat", 1, &[Copies]),
    op("ConcatFromSequence", 11, &[]),
    op("Constant", 1, &[]),
    op("ConstantOfShape", 9, &[]),
    op("Conv", 1, &[Weighted, Convolution, Multiplies, Parameters]),
    op("ConvInteger", 10, &[Integer]),
    op("ConvTranspose", 1, &[Weighted, Convolution, Multiplies, Parameters]),
    op("Cos", 7, &[]),
    op("Cosh", 9, &[]),
    op("CumProd", 26, &[]),
    op("CumSum", 11, &[Sums]).halves_since(14, 14),
    op("DFT", 17, &[]),
    op("DeformConv", 19, &[]),
    op("DepthToSpace", 1, &[Copies]),
    op("DequantizeLinear", 10, &[Quantizer]),
    op("Det", 11, &[]),
    op("Div", 1, &[AroundSoftmax, Tames]),
    op("Dropout", 1, &[Copies, AroundSoftmax]),
    op("DynamicQuantizeLinear", 11, &[Integer]),
    op("Einsum", 12, &[Multiplies]).halves_since(0, NEVER),
    op("Elu", 1, &[Fuses]),
    op("Equal", 1, &[Tames, GivesBool]),
    op("Erf", 9, &[HighPrecision, Tames]),
    op("Exp", 1, &[]),
    op("Expand", 8, &[Copies, AroundSoftmax]),
    op("EyeLike", 9, &[]),
    op("Flatten", 1, &[Copies]),
    op("Floor", 1, &[]),
    op("GRU", 1, &[Recurrent]),
    op("Gather", 1, &[Copies]),
    op("GatherElements", 11, &[]),
    op("GatherND", 11, &[]),
    op("Gelu", 20, &[HighPrecision]),
    op("Gemm", 1, &[Weighted, Multiplies]),
    op("GlobalAveragePool", 1, &[Between]),
    op("GlobalLpPool", 1, &[]),
    op("GlobalMaxPool", 1, &[Within]),
    op("Greater", 1, &[Tames, GivesBool]),
    op("GreaterOrEqual", 12, &[Tames, GivesBool]),
    op("GridSample", 16, &[]),
    op("GroupNormalization", 18, &[HighPrecision, Tames]),
    op("HammingWindow", 17, &[]),
    op("HannWindow", 17, &[]),
    op("HardSigmoid", 1, &[Fuses, Gate, Within, Tames]),
    // Its BF16 is refused by TensorRT's parser.
    op("HardSwish", 14, &[Fuses, Within]).halves_since(0, NEVER),
    op("Hardmax", 1, &[]),
    op("Identity", 1, &[Copies, AroundSoftmax]),
    op("If", 1, &[]),
    op("ImageDecoder", 20, &[]),
    op("InstanceNormalization", 1, &[HighPrecision, Tames, Parameters]),
    op("IsInf", 10, &[Tames, GivesBool]).halves_since(20, 20),
    op("IsNaN", 9, &[Tames, GivesBool]),
    op("LRN", 1, &[]),
    op("LSTM", 1, &[Recurrent]),
    op("LayerNormalization", 17, &[HighPrecision, Tames, Parameters]),
    op("LeakyRelu", 1, &[Fuses, Within]),
    op("Less", 1, &[Tames, GivesBool]),
    op("LessOrEqual", 12, &[Tames, GivesBool]),
    op("LinearAttention", 27, &[]),
    op("Log", 1, &[Tames]),
    op("LogSoftmax", 1, &[HighPrecision, Tames]),
    op("Loop", 1, &[]),
    op("LpNormalization", 1, &[HighPrecision, Tames]),
    op("LpPool", 1, &[]),
    op("MatMul", 1, &[Weighted, Multiplies]),
    op("MatMulInteger", 10, &[Integer]),
    op("Max", 1, &[AroundSoftmax]),
    op("MaxPool", 1, &[Copies]),
    op("MaxRoiPool", 1, &[]),
    op("MaxUnpool", 9, &[]),
    op("Mean", 1, &[]),
    // A constant in its body is `float32`, so that it runs in nothing else where there is no kernel.
    op("MeanVarianceNormalization", 9, &[HighPrecision, Tames]).halves_since(NEVER, NEVER),
    op("MelWeightMatrix", 17, &[]),
    op("Min", 1, &[AroundSoftmax]),
    op("Mish", 18, &[Fuses]),
    op("Mod", 10, &[]),
    op("Mul", 1, &[Joins, AroundSoftmax]),
    op("Multinomial", 7, &[Random]),
    op("Neg", 1, &[]),
    op("NegativeLogLikelihoodLoss", 12, &[]),
    op("NonMaxSuppression", 10, &[GivesI64]).halves_since(NEVER, NEVER),
    op("NonZero", 9, &[GivesI64]),
    op("Not", 1, &[GivesBool]),
    op("OneHot", 9, &[]).halves_since(0, NEVER),
    op("Optional", 15, &[]),
    op("OptionalGetElement", 15, &[]),
    op("OptionalHasElement", 15, &[]),
    op("Or", 1, &[GivesBool]),
    op("PRelu", 1, &[Fuses, Within, Parameters]),
    op("Pad", 1, &[Copies]),
    op("Pow", 1, &[]),
    op("QLinearConv", 10, &[Integer]),
    op("QLinearMatMul", 10, &[Integer]),
    op("QuantizeLinear", 10, &[Quantizer]),
    op("RMSNormalization", 23, &[HighPrecision, Tames]),
    op("RNN", 1, &[Recurrent]),
    op("RandomNormal", 1, &[Random]),
    op("RandomNormalLike", 1, &[Random]),
    op("RandomUniform", 1, &[Random]),
    op("RandomUniformLike", 1, &[Random]),
    op("Range", 11, &[]).halves_since(NEVER, NEVER),
    op("Reciprocal", 1, &[Tames]),
    op("ReduceL1", 1, &[Sums]),
    op("ReduceL2", 1, &[Sums]),
    op("ReduceLogSum", 1, &[Sums]),
    op("ReduceLogSumExp", 1, &[Sums]),
    op("ReduceMax", 1, &[]),
    op("ReduceMean", 1, &[Sums]),
    op("ReduceMin", 1, &[]),
    op("ReduceProd", 1, &[]),
    op("ReduceSum", 1, &[Sums]),
    op("ReduceSumSquare", 1, &[Sums]),
    op("RegexFullMatch", 20, &[]),
    op("Relu", 1, &[Fuses, Within]),
    op("Reshape", 1, &[Copies, AroundSoftmax]),
    op("Resize", 10, &[Between, Within]),
    op("ReverseSequence", 10, &[]).halves_since(0, NEVER),
    op("RoiAlign", 10, &[]),
    op("RotaryEmbedding", 23, &[]),
    op("Round", 11, &[]),
    op("STFT", 17, &[]),
    op("Scan", 8, &[]),
    op("Scatter", 9, &[]).until(11, "ScatterElements"),
    op("ScatterElements", 11, &[]),
    op("ScatterND", 11, &[]),
    op("Selu", 1, &[Fuses]),
    op("SequenceAt", 11, &[]),
    op("SequenceConstruct", 11, &[]),
    op("SequenceEmpty", 11, &[]),
    op("SequenceErase", 11, &[]),
    op("SequenceInsert", 11, &[]),
    op("SequenceLength", 11, &[]),
    op("SequenceMap", 17, &[]),
    op("Shape", 1, &[Tames, AnyType, ReadsShape, GivesI64]),
    op("Shrink", 9, &[]).halves_since(0, NEVER),
    op("Sigmoid", 1, &[Fuses, Gate, Within, Tames]),
    op("Sign", 9, &[Tames]),
    op("Sin", 7, &[]),
    op("Sinh", 9, &[]),
    op("Size", 1, &[Tames, AnyType, ReadsShape, GivesI64]),
    op("Slice", 1, &[Copies]),
    op("Softmax", 1, &[HighPrecision, Within, Tames]),
    op("SoftmaxCrossEntropyLoss", 12, &[]),
    op("Softplus", 1, &[Fuses]),
    op("Softsign", 1, &[Tames]),
    op("SpaceToDepth", 1, &[Copies]),
    op("Split", 1, &[Copies]),
    op("SplitToSequence", 11, &[]),
    op("Sqrt", 1, &[]),
    op("Squeeze", 1, &[Copies, AroundSoftmax]),
    op("StringConcat", 20, &[]),
    op("StringNormalizer", 10, &[]),
    op("StringSplit", 20, &[GivesI64]),
    op("Sub", 1, &[AroundSoftmax]),
    op("Sum", 1, &[]),
    op("SwiGLU", 28, &[]),
    op("Swish", 24, &[Fuses]),
    op("Tan", 7, &[]),
    op("Tanh", 1, &[Fuses, Within, Tames]),
    op("TensorScatter", 24, &[]),
    op("TfIdfVectorizer", 9, &[]),
    op("ThresholdedRelu", 10, &[]),
    op("Tile", 1, &[Copies]),
    op("TopK", 1, &[]).halves_since(0, 24),
    op("Transpose", 1, &[Copies, AroundSoftmax]),
    op("Trilu", 14, &[]),
    op("Unique", 11, &[]).halves_since(0, NEVER),
    op("Unsqueeze", 1, &[Copies, AroundSoftmax]),
    op("Upsample", 1, &[Between]).until(10, "Resize"),
    op("Where", 9, &[AroundSoftmax]),
    op("Xor", 1, &[GivesBool]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::AttributeProto;

    #[test]
    fn rows_are_sorted_and_single() {
        assert!(TABLE.windows(2).all(|pair| pair[0].name < pair[1].name));
        let newest = TABLE.iter().map(|row| row.since).max();
        assert_eq!((TABLE.len(), newest), (203, Some(28)));
    }

    #[test]
    fn facts_that_exclude_each_other_do() {
        for row in TABLE {
            for (a, b) in
                [(Fuses, HighPrecision), (Fuses, Copies), (Copies, Within), (Copies, Weighted), (Sums, Copies)]
            {
                assert!(!(row.is(a) && row.is(b)), "{}: {a:?} and {b:?}", row.name);
            }
            assert!(!row.is(Convolution) || row.is(Weighted), "{}", row.name);
            assert!(!row.is(Weighted) || row.is(Multiplies), "{}", row.name);
        }
    }

    #[test]
    fn operators_of_another_domain_are_none_of_these() {
        let mut node = NodeProto::new("Relu", "r", &["x"], &["y"]);
        assert!(node.is(Fuses) && !node.is(Copies));
        node.domain = Some("com.example".to_owned());
        assert!(!node.is(Fuses));
        assert!(is_quantized("QLinearAdd") && is_quantized("MatMulInteger") && !is_quantized("Conv"));
    }

    #[test]
    fn channels_lie_where_tensorrt_looks_for_them() {
        let node = |op_type| NodeProto::new(op_type, "n", &["x", "w"], &["y"]);
        let axis = |op_type, rank| node(op_type).channel_axis(1, rank);
        assert_eq!([axis("Conv", 4), axis("ConvTranspose", 4), axis("Gemm", 2)], [Some(0), Some(1), Some(1)]);
        assert_eq!([axis("MatMul", 3), axis("MatMul", 1), axis("Relu", 2)], [Some(2), None, None]);
        let transposed = node("Gemm").with(AttributeProto::int("transB", 1));
        assert_eq!((transposed.channel_axis(1, 2), transposed.channel_axis(0, 2)), (Some(0), None));
    }
}
