//! A low precision that is slower than a higher one: what a reader must hear first, with the likely reason.

use super::{Measurement, Times};
use crate::{backend::LayerTime, stats::median};

/// Share of the time in conversions from which they are named as the reason.
const CONVERSIONS_FROM: f64 = 0.10;
/// Layers named as the reason.
const NAMED: usize = 3;
/// Share of the loss that these have to make.
const NAMED_FROM: f64 = 0.25;

/// The sentence when `low` is slower than `high`, both measured in the same rounds; `None` when it is not, when the
/// difference is within the noise, or when one of both is emulated. Layer times of both make the reason.
fn slower(low: &Measurement, high: &Measurement, layers: Option<(&[LayerTime], &[LayerTime])>) -> Option<String> {
    let ratio = low.times.speed_up(&high.times)?;
    if ratio.interval[1] >= 1.0 {
        return None;
    }
    let of = |times: &Times| median(&times.latencies());
    let (low_ms, high_ms) = (of(&low.times)?, of(&high.times)?);
    Some(format!(
        "{} is slower than {}: {low_ms:.3} ms against {high_ms:.3} ms at batch {} on {} ({:.2} times the speed, {:.2} to {:.2}); {}",
        low.times.name,
        high.times.name,
        low.times.batch,
        low.times.mode.provider,
        ratio.ratio,
        ratio.interval[0],
        ratio.interval[1],
        layers
            .and_then(|(low, high)| reason(low, high, low_ms - high_ms))
            .unwrap_or_else(|| "the times of its layers give no reason".to_owned())
    ))
}

/// A sentence about every target that is slower than one with more bits under the same conditions: the fastest of those. By a
/// target's name `bits` tells its width, where that is known, and `layers` gives its layer times where they were taken.
pub fn slowdowns<'a>(
    measurements: &[Measurement],
    bits: impl Fn(&str) -> Option<u32>,
    layers: impl Fn(&str) -> Option<&'a [LayerTime]>,
) -> Vec<String> {
    let conditions = |m: &Measurement| (m.times.batch, m.times.mode.threads);
    let median_ms = |m: &Measurement| m.latency.as_ref().map_or(f64::INFINITY, |latency| latency.median);
    let about = |low: &Measurement| {
        let width = bits(&low.times.name)?;
        let wider = |high: &&Measurement| bits(&high.times.name).is_some_and(|bits| bits > width);
        let alike = measurements.iter().filter(|high| conditions(high) == conditions(low) && wider(high));
        let said = alike.filter_map(|high| {
            let layers = layers(&low.times.name).zip(layers(&high.times.name));
            Some((median_ms(high), slower(low, high, layers)?))
        });
        Some(said.min_by(|(a, _), (b, _)| a.total_cmp(b))?.1)
    };
    measurements.iter().filter_map(about).collect()
}

/// Layers that only convert between precisions or layouts.
fn converts(layer: &LayerTime) -> bool {
    let words = ["quantizelinear", "cast", "reformat", "transpose", "reorder"];
    words.iter().any(|word| layer.layer.to_lowercase().contains(word))
}

/// What the layer times of the slow and of the fast target say of the `loss` in milliseconds.
fn reason(low: &[LayerTime], high: &[LayerTime], loss: f64) -> Option<String> {
    let total: f64 = low.iter().map(|layer| layer.median_ms).sum();
    let share = low.iter().filter(|layer| converts(layer)).map(|layer| layer.median_ms).sum::<f64>() / total;
    if share >= CONVERSIONS_FROM {
        return Some(format!(
            "likely because {:.0} % of its time goes into changing types and layouts: give the layers between the same \
             precision, or lift whole blocks",
            100.0 * share
        ));
    }
    let lost = |layer: &LayerTime| {
        let fast = high.iter().find(|other| other.layer == layer.layer)?;
        Some((layer.median_ms - fast.median_ms, layer.layer.clone()))
    };
    let mut lost: Vec<(f64, String)> = low.iter().filter_map(lost).filter(|(ms, _)| *ms > 0.0).collect();
    lost.sort_by(|a, b| b.0.total_cmp(&a.0));
    lost.truncate(NAMED);
    let named: Vec<String> = lost.iter().map(|(ms, name)| format!("`{name}` (+{ms:.3} ms)")).collect();
    (lost.iter().map(|(ms, _)| ms).sum::<f64>() > NAMED_FROM * loss).then(|| {
        format!("likely because these layers have slower kernels in the low precision: {}; lift them", named.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Call, Mode, Timing};
    use super::*;

    fn measurement(name: &str, ms: f64, timing: Timing) -> Measurement {
        let call = |i: u32| Call { start_ms: 0.0, end_ms: ms * (1.0 + 0.01 * f64::from(i % 5)), phases: None };
        let mode = Mode { provider: "tensorrt".to_owned(), threads: 1, transfers: false, cuda_graph: false };
        let calls = (0..100).map(call).collect();
        let name = name.to_owned();
        let times = Times { name, batch: 1, mode, timing, warm_up_calls: 1, settled: true, calls };
        Measurement { latency: times.latency(), throughput: None, speed_up: None, warnings: Vec::new(), times }
    }

    fn layer(name: &str, ms: f64) -> LayerTime {
        LayerTime::new(name.to_owned(), &[ms]).unwrap()
    }

    #[test]
    fn only_a_measured_loss_beyond_the_noise_is_said() {
        let (int8, fp16) = (measurement("int8", 1.25, Timing::Measured), measurement("fp16", 1.0, Timing::Measured));
        let text = slower(&int8, &fp16, None).unwrap();
        assert!(
            text.starts_with("int8 is slower than fp16: 1.275 ms against 1.020 ms at batch 1 on tensorrt (0.80 times"),
            "{text}"
        );
        assert!(text.ends_with("; the times of its layers give no reason"), "{text}");
        assert_eq!(slower(&fp16, &int8, None), None);
        assert_eq!(slower(&int8, &measurement("same", 1.25, Timing::Measured), None), None);
        assert_eq!(slower(&measurement("int8", 9.0, Timing::Emulated), &fp16, None), None);
        // Whatever the order, each against the fastest that is wider.
        let all = [int8, measurement("fp32", 0.5, Timing::Measured), fp16];
        let heads = |bits: fn(&str) -> Option<u32>| -> Vec<String> {
            slowdowns(&all, bits, |_| None).iter().map(|text| text[..24].to_owned()).collect()
        };
        let bits = |name: &str| name.trim_start_matches(char::is_alphabetic).parse().ok();
        assert_eq!(heads(bits), ["int8 is slower than fp32", "fp16 is slower than fp32"]);
        assert_eq!(
            heads(|name| (name != "fp32").then(|| if name == "int8" { 8 } else { 16 })),
            ["int8 is slower than fp16"]
        );
        assert!(heads(|_| Some(32)).is_empty() && heads(|_| None).is_empty());
    }

    #[test]
    fn the_reason_is_conversions_or_else_the_layers_that_lose_most() {
        let (int8, fp16) = (measurement("int8", 1.25, Timing::Measured), measurement("fp16", 1.0, Timing::Measured));
        let fast = [layer("a", 0.5), layer("b", 0.3), layer("c", 0.1)];
        let slow = [layer("a", 0.4), layer("b", 0.6), layer("c", 0.11)];
        let text = slower(&int8, &fp16, Some((&slow, &fast))).unwrap();
        assert!(text.ends_with("`b` (+0.300 ms), `c` (+0.010 ms); lift them"), "{text}");
        let alike = [layer("a", 0.4), layer("b", 0.31), layer("c", 0.11)];
        let text = slower(&int8, &fp16, Some((&alike, &fast))).unwrap();
        assert!(text.ends_with("give no reason"), "a hundredth of a millisecond explains no quarter: {text}");
        let mut converting = slow.to_vec();
        converting.push(layer("Reformatting CopyNode for Input Tensor 0 to b", 0.39));
        let text = slower(&int8, &fp16, Some((&converting, &fast))).unwrap();
        assert!(text.contains("26 % of its time goes into changing types"), "{text}");
    }
}
