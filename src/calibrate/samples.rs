//! Distributions for the tests of the calibration methods: a million values each, always the same.

use super::histogram::Histogram;
use crate::tensor::{TensorView, ValuesView};

const COUNT: usize = 1_000_000;

/// SplitMix64, as numbers between 0 and 1 (both excluded).
fn uniform(mut state: u64) -> impl FnMut() -> f64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
}

/// Standard normal (Box-Muller).
pub fn normal() -> Vec<f32> {
    let mut next = uniform(1);
    (0..COUNT).map(|_| ((-2.0 * next().ln()).sqrt() * (std::f64::consts::TAU * next()).cos()) as f32).collect()
}

/// Laplace of scale 1.
pub fn laplace() -> Vec<f32> {
    let mut next = uniform(2);
    let signed = |u: f64| if u < 0.5 { (2.0 * u).ln() } else { -(2.0 - 2.0 * u).ln() };
    (0..COUNT).map(|_| signed(next()) as f32).collect()
}

/// Standard normal with ten values at 60.
pub fn with_outliers() -> Vec<f32> {
    let mut values = normal();
    values[..10].fill(60.0);
    values
}

/// The histogram of some values.
pub fn histogram(values: &[f32]) -> Histogram {
    let mut histogram = Histogram::default();
    histogram.observe(TensorView { shape: &[], values: ValuesView::F32(values) }).expect("values are finite");
    histogram
}
