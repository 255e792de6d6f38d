//! What a conversion to 16 bits left in FP32, or in another type that the model has it in, and why.

use serde::{Deserialize, Serialize};

use crate::{quantize::Precision, tensor::ElementType};

/// Nodes that a sentence names.
const NAMED: usize = 6;

/// Why a node stays in FP32, or in another type, although the rest is converted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fp32Reason {
    /// The precision plan or an exclusion says so.
    Asked,
    /// A constant has a magnitude that FP16 cannot hold.
    Constant(f32),
    /// A constant has nothing that FP16 can hold: this is its largest magnitude.
    Vanishing(f32),
    /// An input or output, or what they are computed from, reached this magnitude during calibration.
    Range(f32),
    /// An input or output reached no more than this magnitude during calibration, where FP16 has few numbers or none.
    Small(f32),
    /// FP16 has no number for the scale of a quantized input.
    Scale(f32),
    /// It adds up this many values (0: an unknown number).
    DeepReduction(usize),
    /// It computes shapes or positions, which must be exact.
    ShapeArithmetic,
    /// The operator has no 16-bit form, is not a standard one, or holds a subgraph.
    Operator,
    /// The type of one of its tensors is not known.
    UnknownType,
    /// It computes in this other type in the model that was given.
    Own(ElementType),
}

impl std::fmt::Display for Fp32Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Asked => f.write_str("asked for"),
            Self::Constant(value) => write!(f, "a constant reaches {value}"),
            Self::Vanishing(value) => write!(f, "a constant reaches {value} only"),
            Self::Range(value) => write!(f, "reached {value} during calibration"),
            Self::Small(value) => write!(f, "reached {value} only during calibration"),
            Self::Scale(value) => write!(f, "a scale of {value}, which fp16 cannot hold"),
            Self::DeepReduction(0) => f.write_str("adds up an unknown number of values"),
            Self::DeepReduction(count) => write!(f, "adds up {count} values"),
            Self::ShapeArithmetic => f.write_str("computes shapes or positions"),
            Self::Operator => f.write_str("the operator has no 16-bit form"),
            Self::Own(own) => write!(f, "{own} in the model"),
            Self::UnknownType => f.write_str("the type of one of its tensors is not known"),
        }
    }
}

/// A node that stays in FP32, or in the other type that its reason names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct KeptFp32 {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Why.
    pub reason: Fp32Reason,
}

impl KeptFp32 {
    /// What it stays in, in words.
    pub fn kept_in(&self) -> &'static str {
        if matches!(self.reason, Fp32Reason::Own(_)) { "as it is" } else { "in FP32" }
    }
}

/// What a conversion of floats to 16 bits came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Halved {
    /// [`Precision::Fp16`] or [`Precision::Bf16`].
    pub precision: Precision,
    /// Nodes that compute in it.
    pub nodes: usize,
    /// Nodes that stay in FP32, or in another type that the model has them in, with the reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_fp32: Vec<KeptFp32>,
}

impl Halved {
    /// Nodes that compute floats in either of both.
    pub fn all(&self) -> usize {
        self.nodes + self.kept_fp32.len()
    }

    /// That nothing computes in the 16-bit type, in words; `None` where something does.
    pub fn nothing(&self) -> Option<String> {
        let Self { precision, nodes, .. } = self;
        (*nodes == 0).then(|| format!("nothing computes in {precision}, all of it stays {}", self.rest("as it is")))
    }

    /// What the rest stays in.
    fn rest<'w>(&self, otherwise: &'w str) -> &'w str {
        if self.kept_fp32.iter().any(|kept| matches!(kept.reason, Fp32Reason::Own(_))) { otherwise } else { "in fp32" }
    }

    /// What stays in FP32, in a sentence; `None` where nothing does.
    pub fn told(&self) -> Option<String> {
        let (all, kept) = (self.all(), self.kept_fp32.len());
        let named = self.kept_fp32.iter().take(NAMED).map(|kept| format!("{} ({})", kept.node, kept.reason));
        let mut named: Vec<String> = named.collect();
        if kept > NAMED {
            named.push(format!("and {} more", kept - NAMED));
        }
        let of = self.nothing().unwrap_or_else(|| format!("{kept} of {all} nodes stay {}", self.rest("as they are")));
        (kept > 0).then(|| format!("{of}: {}", named.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_counted_and_named() {
        let kept = |node: usize| KeptFp32 {
            node: format!("n{node}"),
            op_type: "Conv".to_owned(),
            reason: Fp32Reason::Range(70000.0),
        };
        let halved =
            |nodes, left: usize| Halved { precision: Precision::Fp16, nodes, kept_fp32: (0..left).map(kept).collect() };
        assert_eq!((halved(3, 0).told(), halved(3, 0).nothing()), (None, None));
        let told = "1 of 4 nodes stay in fp32: n0 (reached 70000 during calibration)";
        assert_eq!(halved(3, 1).told().as_deref(), Some(told));
        let told = halved(0, 8).told().unwrap();
        assert!(told.starts_with("nothing computes in fp16, all of it stays in fp32: n0 ("), "{told}");
        assert!(told.contains("n5 (") && !told.contains("n6 (") && told.ends_with(", and 2 more"), "{told}");
    }
}
