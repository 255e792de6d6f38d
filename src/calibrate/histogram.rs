//! Histogram of magnitudes whose content does not depend on how the values arrived.
//!
//! [`BINS`] equal bins cover [0, 2^e), where e is the smallest integer with amax < 2^e. Scaling by a power of two is
//! exact, so a value's bin is exact as well, and when a larger value raises e by d, every 2^d neighbouring bins merge
//! into precisely the bin that their values would have been counted in. Counts are therefore a function of the *set*
//! of values: batches, order, threads and shards change no bit.
//!
//! amax lies in the upper half of the range, so at least half of the bins resolve [0, amax]: 8192 bins give every
//! method twice the 2048 bins that entropy calibration works on, and 16 bits of counter for each still fit the
//! first-level cache (see `kernel`).

use rayon::prelude::*;

use super::kernel::{self, Lanes, Summary};
use crate::tensor::{ElementType, TensorView, ValuesView};

/// Number of bins, a power of two.
pub const BINS: usize = 8192;

/// The smallest range is 2^-113: bins are then as wide as the smallest normal `float32`, so it makes no difference
/// whether the processor flushes denormal numbers to zero.
pub(super) const MIN_EXPONENT: i32 = -113;

/// Values that one thread bins at a time: two passes over them stay within the second-level cache.
const CHUNK: usize = 1 << 17;

/// Values that are worth a thread of their own: it brings its own counters along.
const PIECE: usize = 1 << 18;

/// Magnitudes of one tensor over all samples, with the signed extremes.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    counts: Vec<u64>,
    exponent: i32,
    zeros: u64,
    min: f32,
    max: f32,
}

/// A value that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// Index of the first such value in the tensor, row-major.
    pub index: usize,
}

/// Why values were not observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObserveError {
    /// The tensor holds NaN or an infinity.
    NonFinite(NonFinite),
    /// The elements are not floating-point numbers.
    NotFloat(ElementType),
}

/// Gives values as `float32`, through the buffer where they are something else.
trait Convert<T>: for<'a> Fn(&'a [T], &'a mut Vec<f32>) -> &'a [f32] + Copy + Sync {}

impl<T, F: for<'a> Fn(&'a [T], &'a mut Vec<f32>) -> &'a [f32] + Copy + Sync> Convert<T> for F {}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BINS], exponent: MIN_EXPONENT, zeros: 0, min: f32::INFINITY, max: f32::NEG_INFINITY }
    }
}

impl Histogram {
    /// Values whose magnitude is beyond `amax`, to the next bin.
    pub fn beyond(&self, amax: f32) -> u64 {
        if amax >= self.amax() {
            return 0;
        }
        let first = (f64::from(amax) / self.bin_width()).ceil() as usize;
        self.counts().iter().skip(first).sum()
    }

    /// Puts a histogram together from counts made elsewhere (a file, a GPU).
    ///
    /// `counts` are over [0, 2^e) with the e that belongs to `min` and `max`; `zeros` of those in the first bin are
    /// exactly zero. The error says what does not fit together.
    pub fn from_parts(counts: Vec<u64>, zeros: u64, min: f32, max: f32) -> Result<Self, String> {
        /// 2^48 values are days of counting for a single tensor; sums of thousands of such shards stay within `u64`.
        const MOST: u64 = 1 << 48;
        if counts.len() != BINS {
            return Err(format!("{} bins instead of {BINS}", counts.len()));
        }
        let total = counts.iter().try_fold(0u64, |sum, &c| sum.checked_add(c).filter(|&sum| sum <= MOST));
        let total = total.ok_or("more values than can have been counted")?;
        if total == 0 {
            return if zeros == 0 && min == f32::INFINITY && max == f32::NEG_INFINITY {
                Ok(Self::default())
            } else {
                Err("extremes without values".to_owned())
            };
        }
        if !(min.is_finite() && max.is_finite() && min <= max) {
            return Err(format!("a range from {min} to {max}"));
        }
        let amax = min.abs().max(max.abs());
        let exponent = exponent_of(amax);
        let last = (f64::from(amax) / bin_width(exponent)) as usize;
        if zeros > counts[0] || counts[last] == 0 || counts[last + 1..].iter().any(|&c| c != 0) {
            return Err(format!("counts that do not fit the range from {min} to {max}"));
        }
        Ok(Self { counts, exponent, zeros, min, max })
    }

    /// Counts every value of a floating-point tensor, in parallel on the current rayon pool.
    ///
    /// On an error the histogram's content is undefined.
    pub fn observe(&mut self, tensor: TensorView<'_>) -> Result<(), ObserveError> {
        match tensor.values {
            ValuesView::F32(values) => self.observe_slice(values, |chunk, _| chunk),
            ValuesView::F16(values) => self.observe_slice(values, |chunk, buffer| {
                use half::slice::HalfFloatSliceExt;
                buffer.resize(chunk.len(), 0.0);
                chunk.convert_to_f32_slice(buffer);
                buffer
            }),
            ValuesView::Bf16(values) => self.observe_slice(values, |chunk, buffer| {
                buffer.clear();
                buffer.extend(chunk.iter().map(|x| x.to_f32()));
                buffer
            }),
            ValuesView::F64(values) => self.observe_slice(values, |chunk, buffer| {
                buffer.clear();
                buffer.extend(chunk.iter().map(|&x| x as f32));
                buffer
            }),
            other => return Err(ObserveError::NotFloat(other.element_type())),
        }
        .map_err(ObserveError::NonFinite)
    }

    /// Counts in as many pieces as there are threads; the order of pieces decides which error is told.
    fn observe_slice<T: Sync>(&mut self, values: &[T], convert: impl Convert<T>) -> Result<(), NonFinite> {
        let pieces = values.len().div_ceil(PIECE).min(rayon::current_num_threads());
        if pieces <= 1 {
            return self.observe_piece(values, convert);
        }
        let size = values.len().div_ceil(pieces);
        let count = |(i, piece)| {
            let mut histogram = Self::default();
            let counted = histogram.observe_piece(piece, convert);
            counted.map(|()| histogram).map_err(|NonFinite { index }| NonFinite { index: i * size + index })
        };
        let counted: Vec<_> = values.par_chunks(size).enumerate().map(count).collect();
        counted.into_iter().try_for_each(|histogram| {
            self.merge(&histogram?);
            Ok(())
        })
    }

    fn observe_piece<T>(&mut self, values: &[T], convert: impl Convert<T>) -> Result<(), NonFinite> {
        let (mut lanes, mut buffer) = (Lanes::new(), Vec::new());
        values.chunks(CHUNK).enumerate().try_for_each(|(i, chunk)| {
            let counted = self.observe_chunk(convert(chunk, &mut buffer), &mut lanes);
            counted.map_err(|NonFinite { index }| NonFinite { index: i * CHUNK + index })
        })
    }

    fn observe_chunk(&mut self, chunk: &[f32], lanes: &mut Lanes) -> Result<(), NonFinite> {
        if chunk.is_empty() {
            return Ok(());
        }
        let Summary { min, max, zeros } = kernel::summarize(chunk);
        if !(min.is_finite() && max.is_finite()) {
            let index = chunk.iter().position(|x| !x.is_finite()).unwrap_or_default();
            return Err(NonFinite { index });
        }
        self.widen(min, max);
        self.zeros += zeros;
        // SAFETY: all values are finite, and their magnitudes are below 2^exponent after `widen`.
        unsafe { kernel::count(chunk, scale_of(self.exponent), lanes) };
        lanes.drain_into(&mut self.counts);
        Ok(())
    }

    /// Adds what another histogram counted.
    pub fn merge(&mut self, other: &Self) {
        self.widen(other.min, other.max);
        let shift = shift_between(other.exponent, self.exponent);
        if shift == 0 {
            self.counts.iter_mut().zip(&other.counts).for_each(|(count, &c)| *count += c);
        } else {
            other.counts.iter().enumerate().for_each(|(i, &c)| self.counts[i >> shift] += c);
        }
        self.zeros += other.zeros;
    }

    /// Takes new extremes in (an empty range changes nothing) and merges bins as far as they demand.
    fn widen(&mut self, min: f32, max: f32) {
        if min > max {
            return;
        }
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        let exponent = exponent_of(self.amax());
        let shift = shift_between(self.exponent, exponent);
        if shift > 0 {
            for i in 0..BINS {
                let count = std::mem::take(&mut self.counts[i]);
                self.counts[i >> shift] += count;
            }
            self.exponent = exponent;
        }
    }

    /// Counts, bin i over [i, i + 1) times [`Self::bin_width`].
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Width of a bin: a power of two.
    pub fn bin_width(&self) -> f64 {
        bin_width(self.exponent)
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Number of values that are exactly zero; they are part of the first bin's count.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Smallest value; +infinity before any was seen.
    pub fn min(&self) -> f32 {
        self.min
    }

    /// Largest value; -infinity before any was seen.
    pub fn max(&self) -> f32 {
        self.max
    }

    /// Largest magnitude; 0 before any value was seen.
    pub fn amax(&self) -> f32 {
        if self.min > self.max { 0.0 } else { self.min.abs().max(self.max.abs()) }
    }

    /// Index of the bin that `amax` lies in: the last that is not empty.
    pub fn last_bin(&self) -> usize {
        (f64::from(self.amax()) / self.bin_width()) as usize
    }
}

/// The smallest e with `amax` < 2^e, from [`MIN_EXPONENT`] up.
fn exponent_of(amax: f32) -> i32 {
    ((amax.to_bits() >> 23) as i32 - 126).max(MIN_EXPONENT)
}

/// How many times halving the resolution leads from one exponent to another.
fn shift_between(from: i32, to: i32) -> u32 {
    ((to - from).max(0) as u32).min(BINS.ilog2())
}

fn bin_width(exponent: i32) -> f64 {
    2f64.powi(exponent) / BINS as f64
}

/// `BINS` / 2^exponent, a normal `float32` for every exponent from [`MIN_EXPONENT`] to 128.
fn scale_of(exponent: i32) -> f32 {
    f32::from_bits(((127 + BINS.ilog2() as i32 - exponent) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn view(values: &[f32]) -> TensorView<'_> {
        TensorView { shape: &[], values: ValuesView::F32(values) }
    }

    fn histogram_of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.observe(view(values)).unwrap();
        histogram
    }

    /// The definition, in exact `float64` arithmetic and without growth.
    fn reference(values: &[f32]) -> Vec<u64> {
        let amax = values.iter().fold(0f64, |a, &x| a.max(f64::from(x).abs()));
        let mut range = 2f64.powi(-113);
        while range <= amax {
            range *= 2.0;
        }
        let mut counts = vec![0; BINS];
        for &x in values {
            counts[(f64::from(x).abs() / range * BINS as f64) as usize] += 1;
        }
        counts
    }

    fn any_finite() -> impl Strategy<Value = f32> {
        use proptest::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
        prop_oneof![3 => POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO, 2 => -8f32..8.0, 1 => Just(6.0), 1 => Just(f32::MAX)]
    }

    proptest! {
        #[test]
        fn counts_follow_the_definition(values in prop::collection::vec(any_finite(), 1..300)) {
            let histogram = histogram_of(&values);
            prop_assert_eq!(histogram.counts(), reference(&values));
            prop_assert_eq!(histogram.zeros(), values.iter().filter(|&&x| x == 0.0).count() as u64);
            prop_assert_eq!(histogram.min(), values.iter().copied().fold(f32::INFINITY, f32::min));
            prop_assert_eq!(histogram.max(), values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            prop_assert!(histogram.amax() < 1e-34 || histogram.last_bin() >= BINS / 2);
            prop_assert!(histogram.counts()[histogram.last_bin()] > 0);
        }

        #[test]
        fn order_splits_and_merging_change_no_bit(
            values in prop::collection::vec(any_finite(), 1..300), split in 1usize..300, seed in any::<u64>(),
        ) {
            let whole = histogram_of(&values);
            let mut shuffled = values.clone();
            shuffled.sort_by_key(|x| u64::from(x.to_bits()).wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut streamed = Histogram::default();
            let mut merged = Histogram::default();
            for part in shuffled.chunks(split) {
                streamed.observe(view(part)).unwrap();
                merged.merge(&histogram_of(part));
            }
            prop_assert_eq!(&streamed, &whole);
            prop_assert_eq!(&merged, &whole);
            prop_assert_eq!(whole.min().to_bits(), merged.min().to_bits());
            let parts = Histogram::from_parts(whole.counts.clone(), whole.zeros, whole.min, whole.max);
            prop_assert_eq!(parts.unwrap(), whole);
        }
    }

    #[test]
    fn threads_and_chunks_change_no_bit() {
        let values: Vec<f32> = (0..5 * CHUNK + 77).map(|i| ((i * 7919) % 10_007) as f32 * 1e-3 - 4.0).collect();
        let expected = reference(&values);
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| histogram_of(&values)).counts(), expected);
        }
    }

    #[test]
    fn no_counter_overflows_on_a_constant_tensor() {
        let histogram = histogram_of(&vec![6.0; 3 * CHUNK]);
        assert_eq!(histogram.counts()[histogram.last_bin()], 3 * CHUNK as u64);
    }

    #[test]
    fn negative_zero_is_zero() {
        let histogram = histogram_of(&[-0.0, 0.0, -0.0]);
        assert_eq!((histogram.zeros(), histogram.min().to_bits(), histogram.max().to_bits()), (3, 0, 0));
        assert_eq!(histogram.amax(), 0.0);
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 4 * CHUNK];
            values[CHUNK + 5] = bad;
            values[3 * CHUNK] = bad;
            let error = Histogram::default().observe(view(&values)).unwrap_err();
            assert_eq!(error, ObserveError::NonFinite(NonFinite { index: CHUNK + 5 }));
        }
    }

    #[test]
    fn half_types_count_as_their_values_and_integers_are_refused() {
        use half::{bf16, f16};
        let exact: Vec<f32> = (-300..300).map(|i| i as f32 * 0.125).collect();
        let observe = |values: ValuesView<'_>| {
            let mut histogram = Histogram::default();
            histogram.observe(TensorView { shape: &[], values }).map(|()| histogram)
        };
        let f16s: Vec<f16> = exact.iter().map(|&x| f16::from_f32(x)).collect();
        let f64s: Vec<f64> = exact.iter().map(|&x| f64::from(x)).collect();
        assert_eq!(observe(ValuesView::F16(&f16s)).unwrap(), histogram_of(&exact));
        assert_eq!(observe(ValuesView::F64(&f64s)).unwrap(), histogram_of(&exact));
        let bf16s: Vec<bf16> = exact.iter().map(|&x| bf16::from_f32(x)).collect();
        let rounded: Vec<f32> = bf16s.iter().map(|x| x.to_f32()).collect();
        assert_eq!(observe(ValuesView::Bf16(&bf16s)).unwrap(), histogram_of(&rounded));
        assert_eq!(observe(ValuesView::I8(&[1])), Err(ObserveError::NotFloat(ElementType::I8)));
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let good = histogram_of(&[0.0, 1.0, -3.0]);
        let refused = |change: &dyn Fn(&mut Histogram)| {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(Histogram::from_parts(bad.counts, bad.zeros, bad.min, bad.max).is_err());
        };
        refused(&|h| h.counts.truncate(10));
        refused(&|h| h.counts[0] = u64::MAX);
        refused(&|h| h.zeros = 2);
        refused(&|h| h.max = 4.0);
        refused(&|h| h.min = f32::NAN);
        refused(&|h| h.counts.fill(0));
    }
}
