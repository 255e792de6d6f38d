//! What the rules decided: which edges carry Q/DQ, and why each node is what it is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::plan::Precision;

/// Where Q/DQ go in a model, and the decision about every node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Placement {
    /// Activations that are quantized on their way into a node, by node and input.
    pub activations: Vec<ActivationEdge>,
    /// Weights that are quantized, by node and input.
    pub weights: Vec<WeightEdge>,
    /// Groups of quantized tensors that share one scale.
    pub shared_scales: Vec<Vec<String>>,
    /// One a node, in the order of the file.
    pub decisions: Vec<Decision>,
    /// Exclusion and inclusion patterns that matched no node.
    pub unmatched_patterns: Vec<String>,
}

/// An activation quantized at a consumer, per tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ActivationEdge {
    /// The activation.
    pub tensor: String,
    /// Index of the consumer in the graph's nodes.
    pub node: usize,
    /// Which of its inputs.
    pub input: usize,
}

/// A constant quantized at a consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WeightEdge {
    /// The initializer.
    pub tensor: String,
    /// Index of the consumer in the graph's nodes.
    pub node: usize,
    /// Which of its inputs.
    pub input: usize,
    /// Axis of the channels; `None`: one scale for all.
    pub axis: Option<usize>,
}

/// What was decided about one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Decision {
    /// The node's name, or `op_type_index` for a node without one.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// What it computes in.
    pub precision: Precision,
    /// The rule that decided.
    pub rule: Rule,
}

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident $text:literal;)*) => {
        /// Why a node is quantized, or is not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Rule { $(#[doc = $text] $variant,)* }

        impl Rule {
            /// The rule in words.
            pub fn describe(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
        }
    };
}

rules! {
    Convolution "convolution: input per tensor, weight per output channel";
    MatrixProduct "matrix product with a constant: activation per tensor, constant per column";
    ActivationProduct "product of two activations: both per tensor";
    Attention "matrix product of attention within the sequence and head limits";
    ResidualAdd "residual add: the shortcut is quantized, the convolution's branch stays raw so that both fuse";
    BetweenQuantized "pooling or resizing between quantized neighbours";
    FloatOnly "nothing is quantized in this precision";
    Planned "assigned by the precision plan";
    Excluded "excluded by name";
    ExcludedType "excluded by operator type";
    NotIncluded "not among the included nodes or operator types";
    Fused "follows a quantized operator and fuses with it; quantized at its consumer";
    Copies "moves values without changing them; Q/DQ move through it";
    HighPrecision "normalization, softmax and GELU lose too much in 8 bits";
    HasSubgraph "branches and loop bodies stay as they are";
    SmallConvolution "fewer than 16 channels and no INT8 kernel for such a shape";
    SmallMatrix "fewer than 16 rows or columns to reduce or to give";
    MatrixVector "a product with a single row: memory-bound, nothing to gain";
    LongAttention "attention over more than 512 positions";
    AttentionHead "head size outside of what the FP8 attention kernel takes";
    HalfAttention "the other product of this attention is not quantized, and fused attention needs both";
    Gate "weighs the channels of a map: little to compute, and its error scales all that it weighs";
    Decoding "decodes boxes, distributions (DFL) or scores behind the last convolutions and matrix products: stays in float";
    UnknownShape "the shapes that the limits are checked against are not known; --shape binds dynamic ones";
    VariableWeight "the weight is not a constant";
    NotFloat "computes no 32-bit or 16-bit floats";
    NotBetweenQuantized "pooling or resizing without quantized neighbours on both sides";
    NoKernel "no 8-bit kernel, or none that pays";
}

impl Placement {
    /// Names of the activations to observe during calibration.
    pub fn tensors_to_observe(&self) -> BTreeSet<String> {
        self.activations.iter().map(|edge| edge.tensor.clone()).collect()
    }

    /// Number of nodes with at least one quantized input.
    pub fn quantized_nodes(&self) -> usize {
        self.decisions.iter().filter(|decision| decision.precision.is_quantized()).count()
    }

    /// Number of nodes that compute in a precision.
    pub fn nodes_in(&self, precision: Precision) -> usize {
        self.decisions.iter().filter(|decision| decision.precision == precision).count()
    }
}
