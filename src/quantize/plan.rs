//! `plan.json`: which node runs in which precision.
//!
//! ```json
//! { "format_version": 1, "default": null,
//!   "assignments": [ { "node": "head/fc", "precision": "fp32" },
//!                    { "pattern": "block[01]/.*", "precision": "fp16" } ] }
//! ```

use std::path::Path;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{ArtifactError, read_json, write_json},
    tensor::ElementType,
};

/// Format version of [`PrecisionPlan`].
pub const PLAN_FORMAT_VERSION: u32 = 1;

/// What a node computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Precision {
    Fp32,
    Fp16,
    Bf16,
    Int8,
    Fp8,
}

impl Precision {
    /// True for the precisions that need Q/DQ.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Int8 | Self::Fp8)
    }

    /// The 16-bit type of FP16 and BF16.
    pub fn half_type(self) -> Option<ElementType> {
        match self {
            Self::Fp16 => Some(ElementType::F16),
            Self::Bf16 => Some(ElementType::Bf16),
            _ => None,
        }
    }

    /// Bits of a value.
    pub fn bits(self) -> u32 {
        match self {
            Self::Fp32 => 32,
            Self::Fp16 | Self::Bf16 => 16,
            Self::Int8 | Self::Fp8 => 8,
        }
    }

    /// Lowercase name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Fp32, Self::Fp16, Self::Bf16, Self::Int8, Self::Fp8]
            .into_iter()
            .find(|precision| precision.name() == text)
            .ok_or_else(|| format!("`{text}` is not a precision; use fp32, fp16, bf16, int8 or fp8"))
    }
}

/// Precisions of nodes. What the plan does not mention, the rules decide.
///
/// A float precision lifts a node: its Q/DQ go away. A quantized one overrules the limits that the rules put on what
/// is worth quantizing (small convolutions, long attention), not those on what can be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrecisionPlan {
    /// [`PLAN_FORMAT_VERSION`].
    pub format_version: u32,
    /// Precision of the nodes that no assignment matches; absent or a quantized one: the rules decide.
    #[serde(default)]
    pub default: Option<Precision>,
    /// In order: the last one that matches a node wins.
    #[serde(default)]
    pub assignments: Vec<Assignment>,
    /// Whether it was searched on random numbers: it says nothing about real data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_data: bool,
}

/// The precision of some nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Assignment {
    /// Which nodes.
    #[serde(flatten)]
    pub nodes: Selector,
    /// Their precision.
    pub precision: Precision,
}

/// Names nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// The node of this name.
    Node(String),
    /// Every node whose whole name matches this regular expression.
    Pattern(String),
}

/// A regular expression for node names does not parse.
#[derive(Debug, thiserror::Error)]
#[error("`{pattern}` is not a regular expression for node names")]
pub struct PatternError {
    /// The expression.
    pub pattern: String,
    /// What is wrong with it.
    pub source: Box<regex::Error>,
}

impl Default for PrecisionPlan {
    fn default() -> Self {
        Self { format_version: PLAN_FORMAT_VERSION, default: None, assignments: Vec::new(), random_data: false }
    }
}

impl PrecisionPlan {
    /// Assigns a precision to one node, replacing what was assigned to it by name.
    pub fn assign(&mut self, node: &str, precision: Precision) {
        self.assignments.retain(|assignment| !matches!(&assignment.nodes, Selector::Node(name) if name == node));
        self.assignments.push(Assignment { nodes: Selector::Node(node.to_owned()), precision });
    }

    /// Reads `plan.json`.
    pub fn read(path: &Path) -> Result<Self, ArtifactError> {
        read_json(path, "precision plan", PLAN_FORMAT_VERSION)
    }

    /// Writes `plan.json`.
    pub fn write(&self, path: &Path) -> Result<(), ArtifactError> {
        write_json(path, self)
    }

    /// Compiles the patterns.
    pub fn compile(&self) -> Result<CompiledPlan, PatternError> {
        let compile = |assignment: &Assignment| {
            let matcher = match &assignment.nodes {
                Selector::Node(name) => Matcher::Name(name.clone()),
                Selector::Pattern(pattern) => Matcher::Regex(whole_name(pattern)?),
            };
            Ok((matcher, assignment.precision))
        };
        let rules = self.assignments.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(CompiledPlan { default: self.default.filter(|precision| !precision.is_quantized()), rules })
    }
}

/// A [`PrecisionPlan`] ready to be asked.
#[derive(Clone, Debug)]
pub struct CompiledPlan {
    default: Option<Precision>,
    rules: Vec<(Matcher, Precision)>,
}

#[derive(Clone, Debug)]
enum Matcher {
    Name(String),
    Regex(Regex),
}

impl CompiledPlan {
    /// The precision of a node by the names that it is known by; `None` where the rules decide.
    pub fn precision(&self, names: &[&str]) -> Option<Precision> {
        let matching = self.rules.iter().rev().find(|(matcher, _)| match matcher {
            Matcher::Name(name) => names.contains(&name.as_str()),
            Matcher::Regex(regex) => names.iter().any(|name| regex.is_match(name)),
        });
        matching.map(|(_, precision)| *precision).or(self.default)
    }
}

/// A regular expression that must match the whole name.
pub(crate) fn whole_name(pattern: &str) -> Result<Regex, PatternError> {
    Regex::new(&format!("^(?:{pattern})$"))
        .map_err(|source| PatternError { pattern: pattern.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_wins_and_patterns_match_whole_names() {
        let json = r#"{"format_version": 1, "default": "fp32", "assignments": [
            {"pattern": "block1/.*", "precision": "fp16"}, {"node": "block1/conv", "precision": "int8"},
            {"pattern": "head", "precision": "bf16"}]}"#;
        let plan: PrecisionPlan = serde_json::from_str(json).unwrap();
        let compiled = plan.compile().unwrap();
        let asked = ["block1/conv", "block1/add", "head", "head/fc"].map(|name| compiled.precision(&[name]).unwrap());
        assert_eq!(asked, [Precision::Int8, Precision::Fp16, Precision::Bf16, Precision::Fp32]);
        let again: PrecisionPlan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(again, plan);
    }

    #[test]
    fn assigning_twice_keeps_one_assignment() {
        let mut plan = PrecisionPlan::default();
        plan.assign("a", Precision::Fp32);
        plan.assign("a", Precision::Fp16);
        assert_eq!(plan.assignments.len(), 1);
        assert_eq!(plan.compile().unwrap().precision(&["a"]), Some(Precision::Fp16));
        assert_eq!(plan.compile().unwrap().precision(&["b"]), None);
    }

    #[test]
    fn mistakes_are_named() {
        let plan = r#"{"format_version": 1, "assignments": [{"pattern": "a(", "precision": "fp32"}]}"#;
        let error = serde_json::from_str::<PrecisionPlan>(plan).unwrap().compile().unwrap_err();
        assert!(error.to_string().contains("`a(`"));
        assert!(serde_json::from_str::<PrecisionPlan>(r#"{"format_version": 1, "assignment": []}"#).is_err());
        assert!("int4".parse::<Precision>().unwrap_err().contains("use fp32"));
    }
}
