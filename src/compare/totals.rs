//! Sums over samples that do not depend on the order of the samples, nor on how they are put into parts: what the machines
//! of a cluster count apart adds up to the bits of a single run.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{NonFinite, PairSums, metrics::exact};

/// The sum of numbers that are not negative, kept exactly: as numbers that do not overlap, which are rounded together only
/// when the sum is read (Shewchuk, "Adaptive Precision Floating-Point Arithmetic", 1997).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ExactSum(Vec<f64>);

impl ExactSum {
    pub(super) fn add(&mut self, number: f64) {
        let mut rest = number;
        let mut kept = 0;
        for index in 0..self.0.len() {
            let part = self.0[index];
            let (large, small) = if rest.abs() < part.abs() { (part, rest) } else { (rest, part) };
            let sum = large + small;
            if !sum.is_finite() {
                // Beyond the largest number, or a sum that was before.
                self.0 = vec![f64::INFINITY];
                return;
            }
            let error = small - (sum - large);
            if error != 0.0 {
                self.0[kept] = error;
                kept += 1;
            }
            rest = sum;
        }
        self.0.truncate(kept);
        self.0.push(rest);
    }

    /// The sum, rounded once to the nearest number.
    pub(super) fn value(&self) -> f64 {
        let mut parts = self.0.iter().rev().copied();
        let Some(mut sum) = parts.next() else { return 0.0 };
        for part in parts.by_ref() {
            let before = sum;
            sum = before + part;
            let error = part - (sum - before);
            if error != 0.0 {
                // Half-way cases are decided by the sign of what comes after.
                if let Some(next) = parts.next()
                    && (error < 0.0) == (next < 0.0)
                {
                    let doubled = error * 2.0;
                    let other = sum + doubled;
                    if doubled == other - sum {
                        sum = other;
                    }
                }
                break;
            }
        }
        sum
    }

    pub(super) fn append(&mut self, later: &Self) {
        later.0.iter().for_each(|&part| self.add(part));
    }
}

/// As bits: JSON has neither infinity nor a fixed way to write numbers.
impl Serialize for ExactSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|part| part.to_bits()))
    }
}

impl<'de> Deserialize<'de> for ExactSum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Vec::<u64>::deserialize(deserializer)?.into_iter().map(f64::from_bits).collect()))
    }
}

/// [`PairSums`] of samples, added up exactly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Totals {
    count: u64,
    reference_squares: ExactSum,
    target_squares: ExactSum,
    error_squares: ExactSum,
    error_sum: ExactSum,
    #[serde(with = "exact")]
    error_max: f64,
    beyond: u64,
    non_finite: NonFinite,
}

impl Totals {
    /// Adds the sums of a sample.
    pub(super) fn add(&mut self, sums: &PairSums) {
        self.count += sums.count;
        self.reference_squares.add(sums.reference_squares);
        self.target_squares.add(sums.target_squares);
        self.error_squares.add(sums.error_squares);
        self.error_sum.add(sums.error_sum);
        self.error_max = self.error_max.max(sums.error_max);
        self.beyond += sums.beyond;
        self.non_finite.add(&sums.non_finite);
    }

    /// Adds what was added up elsewhere.
    pub(super) fn append(&mut self, later: &Self) {
        self.count += later.count;
        self.reference_squares.append(&later.reference_squares);
        self.target_squares.append(&later.target_squares);
        self.error_squares.append(&later.error_squares);
        self.error_sum.append(&later.error_sum);
        self.error_max = self.error_max.max(later.error_max);
        self.beyond += later.beyond;
        self.non_finite.add(&later.non_finite);
    }

    /// The sums, each rounded once.
    pub(super) fn sums(&self) -> PairSums {
        PairSums {
            count: self.count,
            reference_squares: self.reference_squares.value(),
            target_squares: self.target_squares.value(),
            error_squares: self.error_squares.value(),
            error_sum: self.error_sum.value(),
            error_max: self.error_max,
            beyond: self.beyond,
            non_finite: self.non_finite,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(numbers: impl IntoIterator<Item = f64>) -> ExactSum {
        let mut sum = ExactSum::default();
        numbers.into_iter().for_each(|number| sum.add(number));
        sum
    }

    #[test]
    fn sums_are_rounded_once() {
        assert_eq!(sum([]).value(), 0.0);
        assert_eq!(sum([1e16, 1.0, 1.0]).value(), 1e16 + 2.0);
        // Half-way between two numbers, and a little above: math.fsum of Python gives the same.
        assert_eq!(sum([9_007_199_254_740_992.0, 1.0]).value(), 9_007_199_254_740_992.0);
        assert_eq!(sum([9_007_199_254_740_992.0, 1.0, 1e-30]).value(), 9_007_199_254_740_994.0);
        assert_eq!(sum((0..10).map(|_| 0.1)).value(), 1.0);
        assert_eq!(sum([f64::MAX, f64::MAX]).value(), f64::INFINITY);
        assert_eq!(sum([f64::INFINITY, f64::INFINITY, 1.0]).value(), f64::INFINITY);
    }

    proptest! {
        #[test]
        fn neither_order_nor_parts_change_a_bit(
            numbers in proptest::collection::vec((0_u64..1 << 53, -600_i32..300), 0..40),
            cut in 0_usize..40,
        ) {
            let numbers: Vec<f64> = numbers.iter().map(|&(m, e)| m as f64 * 2_f64.powi(e)).collect();
            let whole = sum(numbers.iter().copied()).value();
            prop_assert_eq!(sum(numbers.iter().rev().copied()).value().to_bits(), whole.to_bits());
            let (first, second) = numbers.split_at(cut.min(numbers.len()));
            let mut joined = sum(second.iter().copied());
            let kept = serde_json::to_string(&sum(first.iter().copied())).unwrap();
            joined.append(&serde_json::from_str(&kept).unwrap());
            prop_assert_eq!(joined.value().to_bits(), whole.to_bits());
        }
    }
}
