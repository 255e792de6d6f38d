//! How far numeric differences scatter from sample to sample: what the intervals of their figures rest on.
//!
//! A figure over all samples is a function of four means: of the squares of reference, target and error, and of the absolute
//! error. Its standard error follows from their covariances (the delta method), so no sample has to be kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{PairSums, totals::ExactSum};

/// The four sums of a sample.
fn sums_of(sums: &PairSums) -> [f64; 4] {
    [sums.reference_squares, sums.target_squares, sums.error_squares, sums.error_sum]
}

/// Products of the sums of every sample, added up exactly: neither order nor parts change a bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    samples: u64,
    /// Upper triangle, by rows.
    products: [ExactSum; 10],
}

/// Places of the upper triangle of four by four.
fn places() -> impl Iterator<Item = (usize, usize)> {
    (0..4).flat_map(|i| (i..4).map(move |j| (i, j)))
}

/// Standard errors of an output's figures over the samples; what cannot be told is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StandardErrors {
    /// Samples that they come from, or groups of samples for a part.
    pub samples: u64,
    /// Of `sqnr_db`, in decibels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
    /// Of `cosine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Of `mean_abs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_abs: Option<f64>,
    /// Those of the output's parts by name, each group of samples left out in turn.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, StandardErrors>,
}

impl Spread {
    /// Adds a sample.
    pub fn add(&mut self, sums: &PairSums) {
        let sums = sums_of(sums);
        self.samples += 1;
        self.products.iter_mut().zip(places()).for_each(|(sum, (i, j))| sum.add(sums[i] * sums[j]));
    }

    /// Adds what was added up over other samples.
    pub fn append(&mut self, later: &Self) {
        self.samples += later.samples;
        self.products.iter_mut().zip(&later.products).for_each(|(sum, more)| sum.append(more));
    }

    /// The errors of figures over all samples, whose sums are `total`; `None` for fewer than two samples.
    pub fn errors(&self, total: &PairSums) -> Option<StandardErrors> {
        if self.samples < 2 {
            return None;
        }
        let n = self.samples as f64;
        let mean = sums_of(total).map(|sum| sum / n);
        let mut covariance = [[0.0; 4]; 4];
        for (sum, (i, j)) in self.products.iter().zip(places()) {
            let value = (sum.value() - n * mean[i] * mean[j]) / (n - 1.0);
            (covariance[i][j], covariance[j][i]) = (value, value);
        }
        let error = |gradient: [f64; 4]| {
            let all = (0..4).flat_map(|i| (0..4).map(move |j| (i, j)));
            let variance: f64 = all.map(|(i, j)| gradient[i] * gradient[j] * covariance[i][j]).sum();
            let error = (variance.max(0.0) / n).sqrt();
            error.is_finite().then_some(error)
        };
        let [r, t, e, _] = mean;
        let decibels = 10.0 / std::f64::consts::LN_10;
        let root = (r * t).sqrt();
        let cosine = (r + t - e) / (2.0 * root);
        let slope = |square: f64| 0.5 / root - 0.5 * cosine / square;
        Some(StandardErrors {
            samples: self.samples,
            sqnr_db: error([decibels / r, 0.0, -decibels / e, 0.0]),
            cosine: error([slope(r), slope(t), -0.5 / root, 0.0]),
            mean_abs: error([0.0, 0.0, 0.0, n / total.count as f64]),
            parts: BTreeMap::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{SplitMix64, std_dev};

    /// Samples of eight values with noise of another size in each.
    fn samples(random: &mut SplitMix64, count: usize) -> Vec<PairSums> {
        let mut uniform = || random.below(1 << 30) as f64 / f64::from(1 << 30);
        let mut sample = || {
            let mut sums = PairSums::default();
            let size = 0.01 + 0.2 * uniform();
            for _ in 0..8 {
                let reference = 2.0 * uniform() - 1.0;
                sums.push(reference, reference + size * (uniform() - 0.5));
            }
            sums
        };
        (0..count).map(|_| sample()).collect()
    }

    fn figures(samples: &[PairSums]) -> ([f64; 3], StandardErrors) {
        let (mut spread, mut total) = (Spread::default(), super::super::totals::Totals::default());
        for sample in samples {
            spread.add(sample);
            total.add(sample);
        }
        let metrics = total.sums().metrics("y");
        ([metrics.sqnr_db.unwrap(), metrics.cosine, metrics.mean_abs], spread.errors(&total.sums()).unwrap())
    }

    #[test]
    fn figures_of_many_draws_scatter_as_one_draw_tells() {
        let mut random = SplitMix64::new(7);
        let draws: Vec<[f64; 3]> = (0..400).map(|_| figures(&samples(&mut random, 100)).0).collect();
        let told = figures(&samples(&mut random, 100)).1;
        for (place, told) in [told.sqnr_db, told.cosine, told.mean_abs].into_iter().enumerate() {
            let seen: Vec<f64> = draws.iter().map(|figures| figures[place]).collect();
            let (told, seen) = (told.unwrap(), std_dev(&seen));
            assert!((told / seen - 1.0).abs() < 0.3, "{place}: {told} told, {seen} seen");
        }
    }

    #[test]
    fn parts_add_up_and_equal_samples_scatter_not_at_all() {
        let all = samples(&mut SplitMix64::new(1), 10);
        let whole = figures(&all).1;
        let (mut first, mut second) = (Spread::default(), Spread::default());
        all[..4].iter().for_each(|sample| first.add(sample));
        all[4..].iter().for_each(|sample| second.add(sample));
        second.append(&first);
        let mut total = super::super::totals::Totals::default();
        for sample in &all {
            total.add(sample);
        }
        assert_eq!(second.errors(&total.sums()), Some(whole));
        let equal = vec![all[0]; 5];
        assert!(figures(&equal).1.sqnr_db.unwrap() < 1e-6);
        assert_eq!(Spread::default().errors(&PairSums::default()), None);
    }
}
