//! What an output means: scores of classes, a map of classes, or just numbers.

use serde::{Deserialize, Serialize};

use crate::tensor::ElementType;

/// How an output is compared beyond its numeric differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputKind {
    /// One score for each class: `[N, C]`, `[N, C, 1, 1]`, `[N, 1, 1, C]`.
    Classification,
    /// Scores of classes at every pixel, `[N, C, H, W]`, or class indices, `[N, H, W]` or `[N, 1, H, W]`.
    Map,
    /// Scores of classes at every pixel, `[N, H, W, C]`. Never detected, since nothing tells it from a [`Self::Map`].
    MapChannelsLast,
    /// Anything else: numeric differences only.
    Generic,
    /// Nothing that counts: it takes part in no figure and no decision. Never detected.
    Ignored,
}

impl OutputKind {
    /// The kind that an element type and the shape of one sample (without the batch) suggest.
    ///
    /// Scores are floats or 8-bit integers; other integers are indices. An image as output looks like a map, and an
    /// embedding like scores: the configuration can say otherwise for any output.
    pub fn detect(element_type: ElementType, sample_shape: &[usize]) -> Self {
        let integer = !element_type.is_float() && element_type != ElementType::Bool;
        let scores = element_type.is_float() || matches!(element_type, ElementType::I8 | ElementType::U8);
        match *sample_shape {
            [h, w] | [1, h, w] if integer && h > 1 && w > 1 => Self::Map,
            [c, h, w] if scores && c > 1 && h > 1 && w > 1 => Self::Map,
            _ if scores && sample_shape.iter().filter(|&&extent| extent != 1).count() == 1 => Self::Classification,
            _ => Self::Generic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_tell_the_kind() {
        use ElementType::{F16, F32, I64, U8};
        for (element_type, shape, kind) in [
            (F32, &[1000][..], OutputKind::Classification),
            (F16, &[1000, 1, 1], OutputKind::Classification),
            (F32, &[1, 1, 1001], OutputKind::Classification),
            (U8, &[10], OutputKind::Classification),
            (I64, &[100], OutputKind::Generic),
            (F32, &[21, 520, 520], OutputKind::Map),
            (I64, &[520, 520], OutputKind::Map),
            (U8, &[1, 520, 520], OutputKind::Map),
            (F32, &[1, 520, 520], OutputKind::Generic),
            (I64, &[3, 520, 520], OutputKind::Generic),
            (F32, &[128, 768], OutputKind::Generic),
            (F32, &[], OutputKind::Generic),
            (F32, &[1], OutputKind::Generic),
            (F32, &[0], OutputKind::Classification),
        ] {
            assert_eq!(OutputKind::detect(element_type, shape), kind, "{element_type} {shape:?}");
        }
    }
}
