//! Error of symmetric INT8 quantization, expected from a histogram; the threshold with the least of it.
//!
//! Values are taken to lie at the centres of their bins (exact zeros at zero, the last bin between its lower edge and
//! amax). For a threshold T with scale s = T/127, all values nearest to level q contribute
//! Σ(x - qs)² = Σx² - 2qs·Σx + q²s²·Σ1, so prefix sums of 1, x and x² make one threshold cost a pass over 128 levels.

use super::histogram::{BINS, Histogram};

/// Candidates tried between 0 and amax.
const CANDIDATES: usize = 2048;

/// The largest level: TensorRT quantizes activations to ±127 around zero.
const TOP_LEVEL: usize = 127;

/// Sums of squares over all values of a tensor: what is quantized, and what quantization does to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantizationError {
    /// Σx².
    pub signal: f64,
    /// Σ(x - quantized x)² of the values up to the threshold.
    pub rounding: f64,
    /// The same of the values beyond the threshold.
    pub saturation: f64,
}

impl QuantizationError {
    /// Rounding and saturation together.
    pub fn total(self) -> f64 {
        self.rounding + self.saturation
    }
}

/// Answers what any threshold costs on one histogram.
pub struct ErrorModel {
    /// Prefix sums of 1, x and x² over the bins.
    moments: Vec<[f64; 3]>,
    bin_width: f64,
    amax: f32,
}

impl ErrorModel {
    /// Sums the histogram up.
    pub fn new(histogram: &Histogram) -> Self {
        let (width, last) = (histogram.bin_width(), histogram.last_bin());
        let mut sum = [0.0; 3];
        let mut moments = Vec::with_capacity(BINS + 1);
        moments.push(sum);
        for (bin, &count) in histogram.counts().iter().enumerate() {
            let start = bin as f64 * width;
            let end = if bin == last { f64::from(histogram.amax()) } else { start + width };
            let x = f64::midpoint(start, end);
            let nonzero = count - if bin == 0 { histogram.zeros() } else { 0 };
            sum = [sum[0] + count as f64, sum[1] + nonzero as f64 * x, sum[2] + nonzero as f64 * x * x];
            moments.push(sum);
        }
        Self { moments, bin_width: width, amax: histogram.amax() }
    }

    /// Expected error of INT8 quantization with threshold `amax`, which must be above zero unless all values are zero.
    pub fn error(&self, amax: f32) -> QuantizationError {
        let scale = f64::from(amax) / TOP_LEVEL as f64;
        let signal = self.moments[BINS][2];
        // Bins from this one on have their centre at `x` or above.
        let bin_at = |x: f64| ((x / self.bin_width - 0.5).ceil().max(0.0) as usize).min(BINS);
        let distance = |from: usize, to: usize, x: f64| {
            let [count, sum, square] = [0, 1, 2].map(|k| self.moments[to][k] - self.moments[from][k]);
            // Never below zero, whatever the cancellation.
            (square - 2.0 * x * sum + x * x * count).max(0.0)
        };
        let saturated = if amax < self.amax { bin_at(f64::from(amax)) } else { BINS };
        let mut rounding = 0.0;
        let mut start = 0;
        for level in 0..=TOP_LEVEL {
            let end = if level == TOP_LEVEL { saturated } else { bin_at((level as f64 + 0.5) * scale).min(saturated) };
            rounding += distance(start, end, level as f64 * scale);
            start = end;
        }
        QuantizationError { signal, rounding, saturation: distance(saturated, BINS, f64::from(amax)) }
    }

    /// The multiple of 1/2048 of the largest magnitude with the least error; the largest among equals.
    pub fn best(&self) -> f32 {
        let candidates = (1..=CANDIDATES).map(|i| (f64::from(self.amax) * i as f64 / CANDIDATES as f64) as f32);
        let errors = candidates.filter(|&amax| amax > 0.0).map(|amax| (self.error(amax).total(), amax));
        errors.fold((f64::INFINITY, 0.0), |best, new| if new.0 <= best.0 { new } else { best }).1
    }
}

/// The threshold with the least mean squared error.
pub fn threshold(histogram: &Histogram) -> f32 {
    ErrorModel::new(histogram).best()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::samples::{self, histogram};

    /// Σ(x - quantized x)² of the values themselves, split at the threshold.
    fn measured(values: &[f32], amax: f32) -> (f64, f64) {
        let scale = f64::from(amax) / 127.0;
        let mut sums = (0.0, 0.0);
        for &x in values {
            let x = f64::from(x);
            let error = (x - (x / scale).round().clamp(-127.0, 127.0) * scale).powi(2);
            if x.abs() <= f64::from(amax) { sums.0 += error } else { sums.1 += error }
        }
        sums
    }

    #[test]
    fn expected_and_measured_errors_agree() {
        let values = samples::normal();
        for amax in [2.0, 3.9, 4.8] {
            let (rounding, saturation) = measured(&values, amax);
            let error = ErrorModel::new(&histogram(&values)).error(amax);
            assert!((error.rounding / rounding - 1.0).abs() < 0.02, "{error:?} {rounding}");
            assert!((error.saturation - saturation).abs() < 0.02 * saturation.max(0.1), "{error:?} {saturation}");
            let signal: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((error.signal / signal - 1.0).abs() < 0.02, "{error:?} {signal}");
        }
    }

    #[test]
    fn published_distributions() {
        let near = |values: &[f32], expected: f32, tolerance: f32| {
            let found = threshold(&histogram(values));
            assert!((found - expected).abs() < tolerance, "{found} instead of {expected}");
        };
        near(&samples::normal(), 3.87, 0.15);
        near(&samples::laplace(), 9.46, 0.4);
        near(&samples::normal().iter().map(|x| x.max(0.0)).collect::<Vec<_>>(), 3.85, 0.15);
        near(&samples::with_outliers(), 39.1, 2.0);
    }

    #[test]
    fn values_on_levels_cost_nothing() {
        // Zeros, and sixes at the threshold: both are levels.
        let mut values = vec![0.0; 100];
        values.extend([6.0; 50]);
        let error = ErrorModel::new(&histogram(&values)).error(6.0);
        assert!(error.total() < 1e-9 * error.signal, "{error:?}");
        assert_eq!(threshold(&histogram(&values)), 6.0);
        let zeros = ErrorModel::new(&histogram(&[0.0; 4]));
        assert_eq!((zeros.best(), zeros.error(0.0).total()), (0.0, 0.0));
    }

    #[test]
    fn extreme_magnitudes_stay_finite() {
        for x in [f32::MAX, 1e-40] {
            let found = threshold(&histogram(&[x, -x / 2.0, 0.0]));
            assert!(found > 0.0 && found <= x, "{found}");
        }
    }
}
