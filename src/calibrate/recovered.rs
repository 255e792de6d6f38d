//! What recovery found: how INT8 comes nearer to float than ranges alone bring it.
//!
//! It stands in the calibration table, with the steps that made it, so that the table alone gives the same model again.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// How far recovery goes.
    Effort "an effort" {
        /// Ranges, equalization, shifts and biases in one step, on few samples.
        Fast "fast",
        /// Rounding of weights and lifting as well, every step measured on held-out samples.
        #[default]
        Default "default",
        /// The same with more samples and larger layers, and ranges chosen by the outputs of the model.
        Thorough "thorough",
        /// Not at all: ranges and local biases alone.
        Off "off",
    }
}

words! {
    /// One of the steps of recovery, in the order in which they are tried.
    StepKind "a step of recovery" {
        /// Biases that take back mean errors, one operator after the other.
        #[default]
        Biases "biases",
        /// Ranges by what they do to the results of their consumers.
        Ranges "ranges",
        /// Channels of activations brought to like sizes, which their consumers take back in their weights.
        Equalization "equalization",
        /// Quantizers around another centre than 0.
        Shift "shift",
        /// Ranges of the tensors that matter most, by what they do to the outputs of the model.
        Descent "descent",
        /// Weights rounded by what they are multiplied with.
        Rounding "rounding",
        /// Operators that stay in the high precision.
        Lifting "lifting",
        /// Weights rounded once more, so that they take back part of the errors that reach them.
        Compensation "compensation",
    }
}

impl StepKind {
    /// Every step.
    pub const ALL: [Self; 8] = [
        Self::Biases,
        Self::Ranges,
        Self::Equalization,
        Self::Shift,
        Self::Descent,
        Self::Rounding,
        Self::Lifting,
        Self::Compensation,
    ];
}

words! {
    /// Where the model will run, which decides what may be done to it.
    DeployTo "a runtime to deploy to" {
        /// TensorRT-RTX, whose builder fuses a `Pad` in front of a quantized convolution.
        #[default]
        Rtx "rtx",
        /// TensorRT: a `Pad` may become a layer of its own there, so none is added.
        Tensorrt "tensorrt",
    }
}

words! {
    /// Which activations may be quantized around another centre than 0.
    ShiftPolicy "a way to shift" {
        /// Those that all their consumers can take back.
        #[default]
        All "all",
        /// Those of them that no padded convolution reads.
        Unpadded "unpadded",
        /// None.
        Off "off",
    }
}

words! {
    /// Whether biases take back the mean error of INT8.
    BiasCorrection "a way to correct biases" {
        /// Where that measures better.
        #[default]
        Auto "auto",
        /// Never.
        Off "off",
    }
}

impl DeployTo {
    /// The shifts that cost no layer there.
    pub fn shifts(self) -> ShiftPolicy {
        match self {
            Self::Rtx => ShiftPolicy::All,
            Self::Tensorrt => ShiftPolicy::Unpadded,
        }
    }
}

/// What recovery gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Recovered {
    /// How far it went.
    pub effort: Effort,
    /// The runtime that it was made for.
    pub deploy_to: DeployTo,
    /// Which activations it was allowed to shift.
    pub shift: ShiftPolicy,
    /// By tensor name, activations that are quantized around another centre than 0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shifts: BTreeMap<String, Shift>,
    /// By tensor name, activations whose channels are multiplied before they are quantized.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub equalized: BTreeMap<String, Equalized>,
    /// By the name of a weight, where its codes differ from those of rounding to the nearest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rounding: BTreeMap<String, Rounding>,
    /// Nodes that stay in the high precision, those that gain most first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lifted: Vec<Lifted>,
    /// What was tried, in order.
    #[serde(default)]
    pub steps: Vec<RecoveryStep>,
}

impl Recovered {
    /// Name of the row of [`Self::steps`] that tells why nothing more was tried.
    pub const GATES: &str = "gates";
    /// Name of the row that tells what the methods alone give.
    pub const METHODS: &str = "methods";

    /// Whether the methods alone were taken in the end.
    pub fn is_by_methods(&self) -> bool {
        self.steps.iter().any(|step| step.kept && step.name == Self::METHODS)
    }
}

/// What recovery gave for FP8, in the place of what a table says for INT8.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RecoveredFp8 {
    /// By tensor name, the threshold; `scale` for FP8 is `amax / 448`.
    pub amax: BTreeMap<String, f32>,
    /// By node name, for each output channel what to add to the bias of the node when it runs in FP8.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bias_corrections: BTreeMap<String, Vec<f32>>,
    /// The nodes that stay in the high precision, and the steps.
    pub recovered: Recovered,
}

/// How an activation is quantized: `q = round((x - offset) / (amax / 127))`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Shift {
    /// What is subtracted before quantization; the consumers take it back in their biases.
    pub offset: f32,
    /// Threshold of `|x - offset|`.
    pub amax: f32,
}

/// By what each channel of an activation is multiplied before it is quantized: powers of two, as exponents. What reads it takes
/// them back in its weights; in float not a bit changes by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Equalized(pub Vec<u8>);

impl Equalized {
    /// The largest exponent: `float16` still has numbers for scales that are so much smaller.
    pub const MOST: u8 = 6;

    /// The factors.
    pub fn factors(&self) -> Vec<f32> {
        self.0.iter().map(|&exponent| f32::from(1u16 << exponent.min(Self::MOST))).collect()
    }
}

/// A node that stays in the high precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Lifted {
    /// The node.
    pub node: String,
    /// Its share of the noise at the outputs, between 0 and 1.
    pub noise: f64,
    /// Its share of the model's multiply-accumulates, between 0 and 1.
    pub macs: f64,
}

/// One step of recovery.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RecoveryStep {
    /// Which: the [`StepKind`] by name, or those that were tried at once.
    pub name: String,
    /// Whether its result is in the table.
    pub kept: bool,
    /// Signal to noise of the outputs before it, in decibels, on held-out samples; absent without any.
    pub before_db: Option<f64>,
    /// The same with it.
    pub after_db: Option<f64>,
    /// 95 % interval of the difference of both, over pairs of held-out calls; absent for fewer than two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain_interval_db: Option<[f64; 2]>,
    /// Wall time; not kept in files, which are the same whenever they are made.
    #[serde(skip)]
    pub seconds: f64,
    /// What it changed, or why it was not kept, in words.
    pub what: String,
}

impl fmt::Display for RecoveryStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)?;
        match (self.before_db, self.after_db) {
            (Some(before), Some(after)) => {
                write!(f, " ({before:.1} dB to {after:.1} dB")?;
                if let Some([low, high]) = self.gain_interval_db {
                    write!(f, "; gain {:.1} dB, {low:.1} to {high:.1} at 95 %", after - before)?;
                }
                f.write_str(")")
            }
            _ => Ok(()),
        }
    }
}

/// Differences of codes from rounding to the nearest, between -8 and 7.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Rounding(String);

impl Rounding {
    /// Packs one difference a code, in the order of the weight; those beyond -8 and 7 are cut there.
    pub fn new(differences: &[i8]) -> Self {
        let nibble = |difference: i8| difference.clamp(-8, 7) as u8 & 0x0f;
        let byte = |pair: &[i8]| nibble(pair[0]) | pair.get(1).map_or(0, |&second| nibble(second) << 4);
        Self(STANDARD.encode(differences.chunks(2).map(byte).collect::<Vec<u8>>()))
    }

    /// One difference a code; `None` unless there are `count`.
    pub fn differences(&self, count: usize) -> Option<Vec<i8>> {
        let bytes = STANDARD.decode(&self.0).ok().filter(|bytes| bytes.len() == count.div_ceil(2))?;
        // Shifted up and back down again, the upper bit of a nibble becomes its sign.
        let both = bytes.into_iter().flat_map(|byte| [(byte << 4) as i8 >> 4, byte as i8 >> 4]);
        Some(both.take(count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_survive_packing() {
        for differences in [vec![], vec![-8], vec![7, -1, 0, 1, -8, 3, -2]] {
            let text = serde_json::to_string(&Rounding::new(&differences)).unwrap();
            let read: Rounding = serde_json::from_str(&text).unwrap();
            assert_eq!(read.differences(differences.len()).unwrap(), differences);
            assert_eq!(read.differences(differences.len() + 2), None);
        }
        assert_eq!(Rounding::new(&[100, -100]).differences(2).unwrap(), [7, -8]);
        assert_eq!(Rounding("no base64!".to_owned()).differences(7), None);
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        assert_eq!("tensorrt".parse(), Ok(DeployTo::Tensorrt));
        assert_eq!(Effort::Thorough.to_string().parse(), Ok(Effort::Thorough));
        let refusal = "slow".parse::<Effort>().unwrap_err();
        assert_eq!(refusal, "`slow` is not an effort; use fast, default, thorough, off");
        assert_eq!((DeployTo::Rtx.shifts(), DeployTo::Tensorrt.shifts()), (ShiftPolicy::All, ShiftPolicy::Unpadded));
    }
}
