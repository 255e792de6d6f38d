//! Numeric differences between two tensors, summed in one pass.
//!
//! [`PairSums`] holds the sums of one sample; sums of samples are added in the order of the samples. Within a sample
//! the values are summed in blocks of fixed length and the blocks in order, so neither batch size nor thread count
//! changes a bit of any figure.

use rayon::prelude::*;

use serde::{Deserialize, Serialize};

use super::{NonFinite, OutputMetrics};
use crate::{backend::PieceSums, tensor::ValuesView};

/// Values summed at a time: small enough for the first-level cache, large enough to hide the bookkeeping.
const BLOCK: usize = 4096;
/// Independent sums in a block: one SSE2 or NEON register each. More of them spill and are slower.
const LANES: usize = 2;
/// Values from which the blocks of one sample are shared among threads.
const PARALLEL_FROM: usize = 16 * BLOCK;

/// Sums over pairs of a reference value r and a target value t.
///
/// Pairs that are not finite take no part in the sums and are counted instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairSums {
    /// Finite pairs.
    pub count: u64,
    /// Σ r².
    #[serde(with = "exact")]
    pub reference_squares: f64,
    /// Σ t².
    #[serde(with = "exact")]
    pub target_squares: f64,
    /// Σ (r - t)².
    #[serde(with = "exact")]
    pub error_squares: f64,
    /// Σ |r - t|.
    #[serde(with = "exact")]
    pub error_sum: f64,
    /// max |r - t|.
    #[serde(with = "exact")]
    pub error_max: f64,
    /// Reference values with |r| above the threshold given to [`PairSums::of`].
    pub beyond: u64,
    /// Values that are not finite.
    pub non_finite: NonFinite,
}

impl PairSums {
    /// Sums over the pairs of two views of equal length (of the shorter, otherwise). `threshold` is the magnitude from
    /// which reference values count as `beyond`; infinity for none. Integers are compared as 64-bit floats.
    pub fn of(reference: ValuesView<'_>, target: ValuesView<'_>, threshold: f32) -> Self {
        let count = reference.len().min(target.len());
        let threshold = f64::from(threshold);
        let block = |index: usize| {
            let range = index * BLOCK..((index + 1) * BLOCK).min(count);
            let (r, t) = (reference.slice(range.clone()), target.slice(range));
            match (r, t) {
                (ValuesView::F32(r), ValuesView::F32(t)) => sum_block(r, t, threshold),
                _ => sum_block(&r.to_f64(), &t.to_f64(), threshold),
            }
        };
        let blocks = count.div_ceil(BLOCK);
        let mut total = Self::default();
        if count < PARALLEL_FROM {
            for index in 0..blocks {
                total.add(&block(index));
            }
        } else {
            let sums: Vec<Self> = (0..blocks).into_par_iter().map(block).collect();
            for sums in &sums {
                total.add(sums);
            }
        }
        total
    }

    /// The sums of a piece that a GPU made.
    pub fn of_piece(piece: &PieceSums) -> Self {
        Self {
            count: piece.count,
            reference_squares: piece.reference_squares,
            target_squares: piece.target_squares,
            error_squares: piece.error_squares,
            error_sum: piece.error_sum,
            error_max: piece.error_max,
            beyond: piece.beyond,
            non_finite: NonFinite {
                reference_nan: piece.reference_nan,
                reference_infinite: piece.reference_infinite,
                target_nan: piece.target_nan,
                target_infinite: piece.target_infinite,
                differing: piece.differing,
            },
        }
    }

    /// Adds a finite pair.
    pub(super) fn push(&mut self, reference: f64, target: f64) {
        let error = (reference - target).abs();
        self.count += 1;
        self.reference_squares += reference * reference;
        self.target_squares += target * target;
        self.error_squares += error * error;
        self.error_sum += error;
        self.error_max = self.error_max.max(error);
    }

    /// Appends the sums of values that come later.
    pub fn add(&mut self, later: &Self) {
        self.count += later.count;
        self.reference_squares += later.reference_squares;
        self.target_squares += later.target_squares;
        self.error_squares += later.error_squares;
        self.error_sum += later.error_sum;
        self.error_max = self.error_max.max(later.error_max);
        self.beyond += later.beyond;
        self.non_finite.add(&later.non_finite);
    }

    /// 10·log₁₀(Σr² / Σ(r - t)²); `None` without any error. An all-zero reference counts as the smallest normal
    /// number, which gives a very small but finite figure.
    pub fn sqnr_db(&self) -> Option<f64> {
        let signal = self.reference_squares.clamp(f64::MIN_POSITIVE, f64::MAX);
        (self.error_squares > 0.0).then(|| finite(10.0 * (signal.log10() - self.error_squares.log10())))
    }

    /// Cosine of the angle between the two; 1 when both are zero, 0 when one is.
    pub fn cosine(&self) -> f64 {
        if self.error_squares == 0.0 {
            return 1.0;
        }
        // Σrt from the other sums: (r - t)² = r² - 2rt + t².
        let product = 0.5 * (self.reference_squares + self.target_squares - self.error_squares);
        let norms = (self.reference_squares * self.target_squares).sqrt();
        let cosine = if norms > 0.0 { product / norms } else { 0.0 };
        // Squares that overflow 64 bits leave no angle to speak of.
        if cosine.is_nan() { 0.0 } else { cosine.clamp(-1.0, 1.0) }
    }

    /// ‖r - t‖₂ / ‖r‖₂; 0 without any error, very large but finite for an all-zero reference.
    pub fn rel_l2(&self) -> f64 {
        finite((self.error_squares / self.reference_squares.max(f64::MIN_POSITIVE)).sqrt())
    }

    /// mean |r - t|; 0 without values.
    pub fn mean_abs(&self) -> f64 {
        finite(self.error_sum / self.count.max(1) as f64)
    }

    /// The figures of an output.
    pub fn metrics(&self, name: &str) -> OutputMetrics {
        OutputMetrics {
            name: name.to_owned(),
            max_abs: finite(self.error_max),
            mean_abs: self.mean_abs(),
            rel_l2: self.rel_l2(),
            cosine: self.cosine(),
            sqnr_db: self.sqnr_db(),
            integers: false,
            empty: self.count == 0 && self.non_finite == NonFinite::default(),
            parts: Vec::new(),
        }
    }
}

/// A float as its bits, since JSON holds neither infinities nor NaN.
pub(super) mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    pub(in super::super) fn serialize<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        x.to_bits().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

/// Cuts to what JSON can hold.
fn finite(x: f64) -> f64 {
    if x.is_nan() { f64::MAX } else { x.clamp(f64::MIN, f64::MAX) }
}

/// One block, on the assumption that everything in it is finite; slowly where that turns out wrong.
fn sum_block<T: Copy + Into<f64>>(reference: &[T], target: &[T], threshold: f64) -> PairSums {
    let mut lanes = [Lane::default(); LANES];
    let (r_chunks, t_chunks) = (reference.chunks_exact(LANES), target.chunks_exact(LANES));
    let tails = r_chunks.remainder().iter().zip(t_chunks.remainder());
    for (r, t) in r_chunks.zip(t_chunks) {
        for ((lane, &r), &t) in lanes.iter_mut().zip(r).zip(t) {
            lane.push(r.into(), t.into(), threshold);
        }
    }
    for (lane, (&r, &t)) in lanes.iter_mut().zip(tails) {
        lane.push(r.into(), t.into(), threshold);
    }
    let mut sums = PairSums { count: reference.len() as u64, ..PairSums::default() };
    for lane in &lanes {
        lane.add_to(&mut sums);
    }
    // Any NaN or infinity makes its difference, and so this sum, NaN or infinite.
    if sums.error_squares.is_finite() { sums } else { sum_non_finite(reference, target, threshold) }
}

#[derive(Clone, Copy, Default)]
struct Lane {
    reference_squares: f64,
    target_squares: f64,
    error_squares: f64,
    error_sum: f64,
    error_max: f64,
    beyond: f64,
}

impl Lane {
    #[inline]
    fn push(&mut self, r: f64, t: f64, threshold: f64) {
        let error = (r - t).abs();
        self.reference_squares += r * r;
        self.target_squares += t * t;
        self.error_squares += error * error;
        self.error_sum += error;
        self.error_max = if error > self.error_max { error } else { self.error_max };
        self.beyond += if r.abs() > threshold { 1.0 } else { 0.0 };
    }

    fn add_to(&self, sums: &mut PairSums) {
        sums.reference_squares += self.reference_squares;
        sums.target_squares += self.target_squares;
        sums.error_squares += self.error_squares;
        sums.error_sum += self.error_sum;
        sums.error_max = sums.error_max.max(self.error_max);
        sums.beyond += self.beyond as u64;
    }
}

fn sum_non_finite<T: Copy + Into<f64>>(reference: &[T], target: &[T], threshold: f64) -> PairSums {
    let mut sums = PairSums::default();
    let mut lane = Lane::default();
    for (&r, &t) in reference.iter().zip(target) {
        let (r, t) = (r.into(), t.into());
        if r.is_finite() && t.is_finite() {
            lane.push(r, t, threshold);
            sums.count += 1;
        } else {
            sums.non_finite.push(r, t);
        }
    }
    lane.add_to(&mut sums);
    sums
}

impl NonFinite {
    fn push(&mut self, r: f64, t: f64) {
        self.reference_nan += u64::from(r.is_nan());
        self.reference_infinite += u64::from(r.is_infinite());
        self.target_nan += u64::from(t.is_nan());
        self.target_infinite += u64::from(t.is_infinite());
        self.differing += u64::from(!(r == t || r.is_nan() && t.is_nan()));
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.reference_nan += other.reference_nan;
        self.reference_infinite += other.reference_infinite;
        self.target_nan += other.target_nan;
        self.target_infinite += other.target_infinite;
        self.differing += other.differing;
    }

    /// True when neither side has any.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(r: &[f32], t: &[f32]) -> PairSums {
        PairSums::of(ValuesView::F32(r), ValuesView::F32(t), f32::INFINITY)
    }

    /// Numbers that any language can make again: (i·7919 mod 1009 - 504) / 64 and a small disturbance.
    fn series(count: u32) -> (Vec<f32>, Vec<f32>) {
        (0..count)
            .map(|i| {
                let r = ((i * 7919 % 1009) as f32 - 504.0) / 64.0;
                (r, r + ((i * 31 % 17) as f32 - 8.0) / 256.0)
            })
            .unzip()
    }

    #[test]
    fn figures_match_numpy() {
        let (r, t) = series(100_003);
        let metrics = of(&r, &t).metrics("logits");
        let expected = [
            (metrics.max_abs, 0.031_25),
            (metrics.mean_abs, 0.016_544_230_235_592_93),
            (metrics.rel_l2, 0.004_204_826_748_275_448),
            (metrics.cosine, 0.999_991_159_849_030_4),
            (metrics.sqnr_db.unwrap(), 47.525_037_875_171_74),
        ];
        for (value, expected) in expected {
            assert!((value - expected).abs() <= 1e-12 * expected.abs(), "{value} is not {expected}");
        }
        let sums = PairSums::of(ValuesView::F32(&r), ValuesView::F32(&t), 7.0);
        assert_eq!(sums.beyond, 11_100);
    }

    #[test]
    fn thread_count_changes_no_bit() {
        let (r, t) = series(300_000);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| of(&r, &t))
        };
        assert_eq!(on(1), on(5));
    }

    #[test]
    fn zeros_and_equal_tensors_have_finite_figures() {
        let equal = of(&[1.0, -2.0], &[1.0, -2.0]).metrics("x");
        assert_eq!((equal.max_abs, equal.rel_l2, equal.cosine, equal.sqnr_db), (0.0, 0.0, 1.0, None));
        let zeros = of(&[0.0; 3], &[0.0; 3]).metrics("x");
        assert_eq!((zeros.rel_l2, zeros.cosine, zeros.sqnr_db), (0.0, 1.0, None));
        let only_target = of(&[0.0; 3], &[1.0; 3]).metrics("x");
        assert_eq!(only_target.cosine, 0.0);
        assert!(only_target.rel_l2 > 1e150 && only_target.rel_l2.is_finite());
        assert!(only_target.sqnr_db.unwrap() < -3000.0);
        let lost = of(&[3.0, 4.0], &[0.0, 0.0]).metrics("x");
        assert_eq!(
            (lost.max_abs, lost.mean_abs, lost.rel_l2, lost.cosine, lost.sqnr_db),
            (4.0, 3.5, 1.0, 0.0, Some(0.0))
        );
        assert_eq!(of(&[], &[]).metrics("x").mean_abs, 0.0);
        let huge = PairSums::of(ValuesView::F64(&[1e300]), ValuesView::F64(&[-1e300]), f32::INFINITY).metrics("x");
        assert!(
            [huge.rel_l2, huge.cosine, huge.max_abs, huge.sqnr_db.unwrap()].iter().all(|x| x.is_finite()),
            "{huge:?}"
        );
    }

    #[test]
    fn integers_and_half_floats_are_compared_by_value() {
        let sums = PairSums::of(ValuesView::I64(&[16_777_217, -3]), ValuesView::I64(&[16_777_216, -3]), 2.0);
        assert_eq!((sums.error_max, sums.error_sum, sums.beyond), (1.0, 1.0, 2));
        let half = [half::f16::from_f32(0.1)];
        let sums = PairSums::of(ValuesView::F32(&[0.1]), ValuesView::F16(&half), f32::INFINITY);
        assert_eq!(sums.error_max, f64::from(0.1_f32) - half[0].to_f64());
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_left_out() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let sums = of(&[1.0, nan, inf, inf, 2.0, nan], &[1.5, nan, inf, -inf, nan, 0.0]);
        let counts =
            NonFinite { reference_nan: 2, reference_infinite: 2, target_nan: 2, target_infinite: 2, differing: 3 };
        assert_eq!(sums.non_finite, counts);
        assert_eq!((sums.count, sums.error_sum, sums.reference_squares), (1, 0.5, 1.0));
    }
}
