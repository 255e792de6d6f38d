//! The ranges that a tensor may be quantized with: those of all methods, a few between, and the same around other centres.

use std::collections::BTreeMap;

use crate::{
    calibrate::{Method, Shift, TensorRange},
    qparams::{MIN_SCALE, QuantType, nearest, nearest_e4m3},
};

/// A shift must make steps at least this much finer.
const WORTH: f32 = 0.9;
/// Thresholds closer than this are the same.
const APART: f32 = 1.03;

/// The range in force of a tensor, around 0.
pub(super) fn plain(range: &TensorRange) -> Shift {
    Shift { offset: 0.0, amax: range.amax }
}

/// Ranges to try, the one in force first. With `shift`, also around centres that waste no codes.
pub(super) fn candidates(range: &TensorRange, shift: bool) -> Vec<Shift> {
    let mut thresholds: Vec<f32> = range.candidates.values().copied().filter(|amax| *amax > MIN_SCALE).collect();
    thresholds.push(range.amax.max(MIN_SCALE));
    thresholds.sort_by(|a, b| b.total_cmp(a));
    thresholds.dedup_by(|small, large| *large < *small * APART);
    let between: Vec<f32> =
        thresholds.windows(2).filter(|pair| pair[0] > 1.4 * pair[1]).map(|pair| (pair[0] * pair[1]).sqrt()).collect();
    thresholds.extend(between);
    let mut found = vec![plain(range)];
    found.extend(thresholds.iter().map(|&amax| Shift { offset: 0.0, amax }));
    if shift {
        found.extend(thresholds.iter().filter_map(|&amax| shifted(range, amax)));
    }
    let mut distinct: Vec<Shift> = Vec::new();
    for candidate in found {
        if !distinct.contains(&candidate) {
            distinct.push(candidate);
        }
    }
    distinct
}

/// The range around another centre that reaches as far as `amax` on both sides of 0, or as far as there are values; 0 is
/// one of its levels. `None` where that makes no finer steps.
pub(super) fn shifted(range: &TensorRange, amax: f32) -> Option<Shift> {
    let (low, high) = (range.min.clamp(-amax, 0.0), range.max.clamp(0.0, amax));
    let step = (high - low) / 255.0;
    if step <= MIN_SCALE || step > WORTH * QuantType::Int8.scale(amax) {
        return None;
    }
    // The code of 0, counted from the lowest; a wider step lets both ends be reached.
    let zero = (-low / step).round();
    let step = (-low / zero.max(1.0)).max(high / (255.0 - zero).max(1.0));
    Some(Shift { offset: (128.0 - zero) * step, amax: 127.0 * step })
}

/// The method whose threshold is nearest to `amax`.
pub(super) fn nearest_method(candidates: &BTreeMap<Method, f32>, amax: f32, otherwise: Method) -> Method {
    let distance = |threshold: f32| (threshold.max(MIN_SCALE) / amax.max(MIN_SCALE)).ln().abs();
    let nearest = candidates.iter().min_by(|a, b| distance(*a.1).total_cmp(&distance(*b.1)));
    nearest.map_or(otherwise, |(&method, _)| method)
}

/// Appends `values` times `factor`, quantized and dequantized exactly as QuantizeLinear and DequantizeLinear do, with the factor,
/// a power of two, taken out again.
pub(super) fn fake_quantized(into: &mut Vec<f32>, values: &[f32], kind: QuantType, shift: Shift, factor: f32) {
    let (scale, offset, back) = (kind.scale(shift.amax), shift.offset, 1.0 / factor);
    let ratios = values.iter().map(|value| (value * factor - offset) / scale);
    let taken_back = |code: f32| (code * scale + offset) * back;
    match kind {
        QuantType::E4m3 => into.extend(ratios.map(|ratio| taken_back(nearest_e4m3(ratio)))),
        QuantType::Int8 | QuantType::Int8Narrow => {
            into.extend(ratios.map(|ratio| taken_back(nearest(ratio, -128.0))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(min: f32, max: f32, thresholds: &[f32]) -> TensorRange {
        let candidates = Method::ALL.into_iter().zip(thresholds.iter().copied()).collect();
        TensorRange { min, max, count: 9, amax: thresholds[0], method: Method::MinMax, candidates, clipped: 0.0 }
    }

    fn quantized(values: &[f32], shift: Shift) -> Vec<f32> {
        let mut found = Vec::new();
        fake_quantized(&mut found, values, QuantType::Int8, shift, 1.0);
        found
    }

    #[test]
    fn values_between_0_and_6_use_all_codes() {
        let shift = shifted(&range(0.0, 6.0, &[6.0]), 6.0).unwrap();
        let step = 6.0 / 255.0;
        assert!((shift.amax - 127.0 * step).abs() < 1e-5 && (shift.offset - 128.0 * step).abs() < 1e-5, "{shift:?}");
        let values = quantized(&[0.0, 6.0, 3.0, 7.0, -1.0], shift);
        assert_eq!(values[0], 0.0, "0 is a level");
        assert!((values[1] - 6.0).abs() < 1e-5 && (values[2] - 3.0).abs() < 0.6 * step && values[3] == values[1]);
        assert_eq!(values[4], 0.0);
    }

    #[test]
    fn the_small_negative_side_is_never_cut() {
        let shift = shifted(&range(-0.278, 10.0, &[10.0]), 10.0).unwrap();
        let values = quantized(&[-0.278, 0.0, 10.0], shift);
        let step = shift.amax / 127.0;
        assert!((values[0] + 0.278).abs() < 0.51 * step && values[1] == 0.0 && (values[2] - 10.0).abs() < 0.51 * step);
        assert_eq!(shifted(&range(-5.0, 5.5, &[5.5]), 5.5), None, "nothing to gain");
        assert_eq!(shifted(&range(0.0, 0.0, &[0.0]), 0.0), None);
    }

    #[test]
    fn rounding_is_that_of_quantize_linear() {
        for value in [-200.0f32, -128.5, -2.5, -1.5, -0.49, 0.5, 1.5, 2.5, 126.5, 127.4, 300.0] {
            let values = quantized(&[value], Shift { offset: 0.0, amax: 127.0 });
            assert_eq!(values[0], QuantType::Int8.fake_quantize(value, 1.0));
        }
    }

    #[test]
    fn floats_are_rounded_as_quantize_linear_rounds_them() {
        let values: Vec<f32> =
            (-70_000..70_000).map(|step| step as f32 * 0.007).chain([1e9, -1e9, 0.0, 1e-9]).collect();
        for amax in [448.0, 1.0, 0.003] {
            let mut found = Vec::new();
            fake_quantized(&mut found, &values, QuantType::E4m3, Shift { offset: 0.0, amax }, 1.0);
            let scale = QuantType::E4m3.scale(amax);
            assert!(
                values.iter().zip(found).all(|(&value, found)| found == QuantType::E4m3.fake_quantize(value, scale))
            );
        }
    }

    #[test]
    fn candidates_come_from_all_methods_and_between() {
        let found = candidates(&range(-1.0, 138.0, &[138.0, 60.0, 11.0, 11.1]), false);
        let thresholds: Vec<i32> = found.iter().map(|shift| shift.amax as i32).collect();
        assert_eq!(thresholds, [138, 60, 11, 90, 25]);
        assert!(candidates(&range(-1.0, 138.0, &[138.0]), true).iter().any(|shift| shift.offset > 60.0));
    }
}
