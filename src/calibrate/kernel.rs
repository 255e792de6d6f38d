//! The two inner loops of [`Histogram`](super::histogram::Histogram): extremes, and counting.
//!
//! Each is written once in plain Rust and compiled twice on x86-64, for the baseline and for AVX2; both give the same
//! integers. Activations repeat values (zeros after ReLU, sixes after ReLU6), and an increment that reads the counter
//! which the previous one just wrote waits for that store; four counters a bin, used in turn, break the chain, and 16 bits
//! a counter keep them small.

use super::histogram::BINS;

/// Counters of each bin, used in turn.
const LANES: usize = 4;

/// Values whose bin numbers are computed together before they are counted.
const BLOCK: usize = 2048;

/// Calls of [`count`] between two drains may not exceed what 16 bits hold, even when all values are equal.
const MOST_VALUES: usize = LANES * (u16::MAX as usize - LANES);

/// Scratch counters of one thread: [`LANES`] of 16 bits in each word, a word for each bin.
pub struct Lanes(Vec<u64>);

/// Signed extremes (infinite when any value is infinite or NaN) and the number of zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Smallest value; never -0.
    pub min: f32,
    /// Largest value; never -0.
    pub max: f32,
    /// Values equal to zero.
    pub zeros: u64,
}

impl Lanes {
    /// Counters at zero.
    pub fn new() -> Self {
        Self(vec![0; BINS])
    }

    /// Adds the counters to `counts` and sets them back to zero.
    pub fn drain_into(&mut self, counts: &mut [u64]) {
        for (count, lanes) in counts.iter_mut().zip(&mut self.0) {
            let pairs = (*lanes & 0xffff_0000_ffff) + (*lanes >> 16 & 0xffff_0000_ffff);
            *count += (pairs & 0xffff_ffff) + (pairs >> 32);
            *lanes = 0;
        }
    }
}

/// Extremes and zeros of `values`.
pub fn summarize(values: &[f32]) -> Summary {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { summarize_avx2(values) };
    }
    summarize_any(values)
}

/// Counts `values` (fewer than 2^18 between two drains), each in bin ⌊|x| · scale⌋.
///
/// # Safety
/// Every |x| · scale must be finite and below [`BINS`].
pub unsafe fn count(values: &[f32], scale: f32, lanes: &mut Lanes) {
    debug_assert!(values.len() <= MOST_VALUES, "16-bit counters could overflow");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, and the caller keeps the values in range.
        return unsafe { count_avx2(values, scale, lanes) };
    }
    // SAFETY: the caller keeps the values in range.
    unsafe { count_any(values, scale, lanes) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn summarize_avx2(values: &[f32]) -> Summary {
    summarize_any(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn count_avx2(values: &[f32], scale: f32, lanes: &mut Lanes) {
    // SAFETY: the caller keeps the values in range.
    unsafe { count_any(values, scale, lanes) }
}

/// Maps the bits of a `float32` to integers in the order of the numbers, NaN beyond the infinities; its own inverse.
#[expect(clippy::inline_always, reason = "must be compiled with the features of its caller")]
#[inline(always)]
fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & i32::MAX)
}

#[expect(clippy::inline_always, reason = "must be compiled with the features of its caller")]
#[inline(always)]
fn summarize_any(values: &[f32]) -> Summary {
    let (mut min, mut max, mut zeros) = (i32::MAX, i32::MIN, 0u64);
    for block in values.chunks(BLOCK) {
        let mut block_zeros = 0u32;
        for x in block {
            let bits = x.to_bits() as i32;
            min = min.min(ordered(bits));
            max = max.max(ordered(bits));
            block_zeros += u32::from(bits & i32::MAX == 0);
        }
        zeros += u64::from(block_zeros);
    }
    // Adding zero turns -0 into 0.
    let float = |key| f32::from_bits(ordered(key) as u32) + 0.0;
    Summary { min: float(min), max: float(max), zeros }
}

#[expect(clippy::inline_always, reason = "must be compiled with the features of its caller")]
#[inline(always)]
unsafe fn count_any(values: &[f32], scale: f32, lanes: &mut Lanes) {
    let lanes: &mut [[u16; LANES]] = bytemuck::cast_slice_mut(&mut lanes.0);
    let mut bins = [0u16; BLOCK];
    for block in values.chunks(BLOCK) {
        for (bin, x) in bins.iter_mut().zip(block) {
            // SAFETY: the caller keeps the products finite and below `BINS`.
            *bin = unsafe { (x.abs() * scale).to_int_unchecked::<i32>() } as u16;
        }
        let mut groups = bins[..block.len()].chunks_exact(LANES);
        for group in groups.by_ref() {
            for (lane, &bin) in group.iter().enumerate() {
                lanes[usize::from(bin)][lane] += 1;
            }
        }
        for (lane, &bin) in groups.remainder().iter().enumerate() {
            lanes[usize::from(bin)][lane] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_builds_of_the_loops_agree() {
        let mut values: Vec<f32> = (0..10_003).map(|i: i32| (i * 37 % 1999 - 1000) as f32 * 7.9e-3).collect();
        values[17] = -0.0;
        assert_eq!(summarize(&values), summarize_any(&values));
        let (mut any, mut dispatched) = (Lanes::new(), Lanes::new());
        // SAFETY: magnitudes are below 8, so that products are below 8192.
        unsafe {
            count(&values, 1024.0, &mut dispatched);
            count_any(&values, 1024.0, &mut any);
        }
        assert!(any.0 == dispatched.0);
        let mut counts = vec![0; BINS];
        any.drain_into(&mut counts);
        assert_eq!(counts.iter().sum::<u64>(), 10_003);
    }

    #[test]
    fn whatever_is_not_finite_shows_in_the_extremes() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let Summary { min, max, .. } = summarize(&[1.0, bad, -2.0]);
            assert!(!(min.is_finite() && max.is_finite()), "{bad}");
        }
    }
}
