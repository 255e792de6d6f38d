//! Statistics of measured times and of counted successes. Intervals are 95 % unless stated; distributions come from
//! `statrs`; nothing here depends on thread count or on any randomness but [`SplitMix64`] with a fixed seed.

use statrs::distribution::{Binomial, ChiSquared, ContinuousCDF, DiscreteCDF, Normal, StudentsT};

/// Two-sided 97.5 % point of the standard normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;
/// McNemar's test is exact below this number of discordant samples, and uses the χ² approximation from it on.
const MCNEMAR_EXACT_BELOW: u64 = 25;

/// Arithmetic mean; `None` without values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation (divisor n - 1); 0 for fewer than two values.
pub fn std_dev(values: &[f64]) -> f64 {
    match mean(values) {
        Some(mean) if values.len() > 1 => {
            let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
            (squares / (values.len() - 1) as f64).sqrt()
        }
        _ => 0.0,
    }
}

/// A sorted copy, in the order of [`f64::total_cmp`].
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Percentile (`percent` from 0 to 100) of ascending values, interpolated linearly between the two nearest ranks as
/// NumPy's method `linear` does; `None` without values.
pub fn percentile(ascending: &[f64], percent: f64) -> Option<f64> {
    let last = ascending.len().checked_sub(1)?;
    let rank = (percent.clamp(0.0, 100.0) / 100.0) * last as f64;
    let below = (rank.floor() as usize).min(last);
    let (low, high) = (ascending[below], ascending[(below + 1).min(last)]);
    Some(low + (high - low) * (rank - below as f64))
}

/// Median of values in any order; `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(&sorted(values), 50.0)
}

/// Half-width of Student's 95 % confidence interval of the mean; 0 for fewer than two values.
pub fn mean_uncertainty(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let t = StudentsT::new(0.0, 1.0, count - 1.0).map_or(0.0, |t| t.inverse_cdf(0.975));
    if values.len() > 1 { t * std_dev(values) / count.sqrt() } else { 0.0 }
}

/// Distribution-free 95 % confidence interval of a percentile of ascending values, from the order statistics whose
/// ranks the binomial distribution gives. Ranks beyond the data are cut to the extremes: with few values the interval
/// covers less than 95 %. `None` without values.
pub fn percentile_interval(ascending: &[f64], percent: f64) -> Option<[f64; 2]> {
    let last = ascending.len().checked_sub(1)?;
    let binomial = Binomial::new(percent.clamp(0.0, 100.0) / 100.0, ascending.len() as u64).ok()?;
    // One-based ranks l and u with P(l ≤ X < u) ≥ 95 %.
    let lower = (binomial.inverse_cdf(0.025) as usize).saturating_sub(1);
    let upper = binomial.inverse_cdf(0.975) as usize;
    Some([ascending[lower.min(last)], ascending[upper.min(last)]])
}

/// Wilson's 95 % score interval of a share; (0, 1) without trials.
pub fn wilson(successes: u64, trials: u64) -> [f64; 2] {
    wilson_with(successes, trials, Z_95)
}

/// Wilson's score interval of a share (successes, trials) at a confidence between 0 and 1; (0, 1) without trials.
pub fn wilson_at((successes, trials): (u64, u64), confidence: f64) -> [f64; 2] {
    wilson_with(successes, trials, Normal::standard().inverse_cdf(f64::midpoint(1.0, confidence)))
}

fn wilson_with(successes: u64, trials: u64, z: f64) -> [f64; 2] {
    if trials == 0 {
        return [0.0, 1.0];
    }
    let (n, share, z2) = (trials as f64, successes as f64 / trials as f64, z * z);
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt() / (1.0 + z2 / n);
    // At the ends the formula gives exactly 0 and 1; rounding must not say otherwise.
    let low = if successes == 0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if successes >= trials { 1.0 } else { (centre + half).min(1.0) };
    [low, high]
}

/// The standard error of a figure over equal parts, from what it is without each of them in turn (the jackknife); `None` for
/// fewer than two.
pub fn jackknife(without: &[f64]) -> Option<f64> {
    let n = without.len() as f64;
    let mean = mean(without).filter(|_| without.len() > 1)?;
    Some(((n - 1.0) / n * without.iter().map(|value| (value - mean).powi(2)).sum::<f64>()).sqrt())
}

/// Half the width of Student's interval at a confidence, of a figure with a standard error over samples; `None` for fewer than
/// two of them.
pub fn half_width(standard_error: f64, samples: u64, confidence: f64) -> Option<f64> {
    let t = StudentsT::new(0.0, 1.0, samples.checked_sub(1)? as f64).ok()?;
    Some(t.inverse_cdf(f64::midpoint(1.0, confidence)) * standard_error)
}

/// Interval of the difference of two shares over the same samples, from those that only the first and only the second has:
/// Wald's, with half a sample added to each of the four cells (Agresti and Min, 2005).
pub fn paired_difference(only: [u64; 2], samples: u64, confidence: f64) -> [f64; 2] {
    let (n, [first, second]) = (samples as f64 + 2.0, only.map(|count| count as f64 + 0.5));
    let difference = (first - second) / n;
    let variance = ((first + second) / n - difference * difference) / n;
    let half = Normal::standard().inverse_cdf(f64::midpoint(1.0, confidence)) * variance.sqrt();
    [(difference - half).max(-1.0), (difference + half).min(1.0)]
}

/// Two-sided p-value of McNemar's test from the discordant counts: samples only the one gets right, and only the
/// other. Exact (binomial) for fewer than 25 of them, else χ² with continuity correction.
pub fn mcnemar(only_first: u64, only_second: u64) -> f64 {
    let (fewer, total) = (only_first.min(only_second), only_first + only_second);
    if fewer * 2 == total {
        return 1.0;
    }
    if total < MCNEMAR_EXACT_BELOW {
        return Binomial::new(0.5, total).map_or(1.0, |b| (2.0 * b.cdf(fewer)).min(1.0));
    }
    let statistic = ((total - 2 * fewer - 1) as f64).powi(2) / total as f64;
    ChiSquared::new(1.0).map_or(1.0, |chi| chi.sf(statistic))
}

/// Ratio of the medians of paired measurements and its 95 % bootstrap percentile interval.
///
/// Pairs are resampled as pairs, so that a drift that hits both alike cancels. The random numbers are fixed: the same
/// data give the same interval. `None` when there are no pairs or a median is not positive.
pub fn paired_ratio(numerator: &[f64], denominator: &[f64]) -> Option<(f64, [f64; 2])> {
    const RESAMPLES: usize = 2000;
    let pairs = numerator.len().min(denominator.len());
    let ratio = ratio_of_medians(&mut numerator[..pairs].to_vec(), &mut denominator[..pairs].to_vec())?;
    let mut random = SplitMix64::new(7);
    let (mut top, mut bottom) = (vec![0.0; pairs], vec![0.0; pairs]);
    let mut ratios = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for (top, bottom) in top.iter_mut().zip(&mut bottom) {
            let index = random.below(pairs);
            (*top, *bottom) = (numerator[index], denominator[index]);
        }
        ratios.push(ratio_of_medians(&mut top, &mut bottom)?);
    }
    ratios.sort_by(f64::total_cmp);
    Some((ratio, [percentile(&ratios, 2.5)?, percentile(&ratios, 97.5)?]))
}

fn ratio_of_medians(numerator: &mut [f64], denominator: &mut [f64]) -> Option<f64> {
    let (top, bottom) = (median_by_selection(numerator)?, median_by_selection(denominator)?);
    (top > 0.0 && bottom > 0.0).then(|| top / bottom)
}

/// [`median`] in linear time; reorders the values.
fn median_by_selection(values: &mut [f64]) -> Option<f64> {
    let (middle, even) = (values.len() / 2, values.len().is_multiple_of(2));
    if values.is_empty() {
        return None;
    }
    let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = if even { below.iter().copied().max_by(f64::total_cmp)? } else { upper };
    Some(lower + (upper - lower) * 0.5)
}

/// Steele, Lea and Flood's generator: 64 bits of state, equidistributed, the same on every machine.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 for a bound of 0); the bias is below `bound`/2⁶⁴.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: [f64; 11] = [3.1, 2.7, 9.4, 4.4, 1.25, 8.0, 7.5, 3.3, 2.2, 6.1, 5.9];

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-9 * b.abs().max(1e-3), "{a} is not {b}");
    }

    #[test]
    fn the_jackknife_of_a_mean_is_its_standard_error() {
        let values = [1.0, 2.0, 4.0, 9.0];
        let without: Vec<f64> = (0..4).map(|out| (16.0 - values[out]) / 3.0).collect();
        // Of the mean of these, s / √n with s² = 38 / 3.
        assert!((jackknife(&without).unwrap() - (38.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!((jackknife(&[1.0]), jackknife(&[])), (None, None));
    }

    #[test]
    fn location_and_spread_match_numpy() {
        let ascending = sorted(&X);
        let expected = [1.25, 2.2, 4.4, 8.0, 8.7, 9.26, 9.4];
        for (percent, expected) in [0.0, 10.0, 50.0, 90.0, 95.0, 99.0, 100.0].into_iter().zip(expected) {
            close(percentile(&ascending, percent).unwrap(), expected);
        }
        close(mean(&X).unwrap(), 4.895_454_545_454_546);
        close(std_dev(&X), 2.656_356_013_927_213_3);
        close(mean_uncertainty(&X[..2]), 12.706_204_736_174_694 * 0.2);
        assert_eq!(
            (percentile(&[], 50.0), mean(&[]), std_dev(&[1.0]), mean_uncertainty(&[1.0])),
            (None, None, 0.0, 0.0)
        );
        close(median_by_selection(&mut X.clone()).unwrap(), 4.4);
        close(median_by_selection(&mut X[1..].to_vec()).unwrap(), median(&X[1..]).unwrap());
    }

    #[test]
    fn wilson_matches_statsmodels() {
        for (successes, trials, [low, high]) in [
            (391, 400, [0.957_797_342_441_241_9, 0.988_118_416_469_505]),
            (0, 10, [0.0, 0.277_532_799_862_889_26]),
            (10, 10, [0.722_467_200_137_110_7, 1.0]),
            (1, 3, [0.061_491_944_720_396_26, 0.792_340_399_197_952_3]),
        ] {
            let interval = wilson(successes, trials);
            close(interval[0], low);
            close(interval[1], high);
        }
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
    }

    #[test]
    fn mcnemar_matches_statsmodels() {
        for (b, c, p) in [
            (1, 5, 0.218_75),
            (0, 0, 1.0),
            (3, 3, 1.0),
            (10, 2, 0.038_574_218_75),
            (20, 8, 0.037_635_313_787_314_36),
            (22, 40, 0.030_849_999_436_874_987),
        ] {
            close(mcnemar(b, c), p);
            close(mcnemar(c, b), p);
        }
        // The continuity correction must not turn equal counts into a difference.
        assert_eq!(mcnemar(30, 30), 1.0);
    }

    #[test]
    fn percentile_intervals_use_the_ranks_of_scipy() {
        for (count, lower, upper) in [(20, 19, 20), (100, 97, 100), (500, 490, 500), (3000, 2959, 2981)] {
            let ranks: Vec<f64> = (1..=count).map(f64::from).collect();
            assert_eq!(percentile_interval(&ranks, 99.0), Some([f64::from(lower), f64::from(upper)]), "{count}");
        }
        assert_eq!(percentile_interval(&[], 99.0), None);
        assert_eq!(percentile_interval(&[4.0], 99.0), Some([4.0, 4.0]));
    }

    #[test]
    fn paired_bootstrap_matches_the_same_resamples_in_numpy() {
        let a = [10.0, 10.5, 9.8, 11.2, 10.1, 10.9, 13.0];
        let b = [4.0, 4.4, 3.9, 4.1, 5.2, 4.6, 4.3];
        let (ratio, [low, high]) = paired_ratio(&a, &b).unwrap();
        close(ratio, 2.441_860_465_116_279);
        close(low, 2.195_652_173_913_043_3);
        close(high, 2.731_707_317_073_171);
        assert_eq!(paired_ratio(&a, &[]), None);
        assert_eq!(paired_ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn the_generator_gives_the_published_sequence() {
        let mut random = SplitMix64::new(0);
        assert_eq!((random.next_u64(), random.next_u64()), (0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4));
        assert!((0..1000).all(|_| random.below(3) < 3));
    }
}
