//! Agreement of the best classes, sample by sample.
//!
//! The best k classes are ordered by falling score; among equal scores the lowest index comes first, and NaN is never
//! chosen. A model of fewer than k classes has all of them as its best.

use serde::{Deserialize, Serialize};

use super::{Agreement, Flip, Scored};
use crate::{stats::wilson, tensor::ValuesView};

/// The k of [`Agreement`] and of `top5` everywhere.
pub const FIVE: usize = 5;

/// Agreement of the best k classes, for a k other than five. Shares are between 0 and 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TopK {
    /// Number of classes looked at (at most as many as there are).
    pub k: usize,
    /// Mean of |best(reference) ∩ best(target)| / k.
    pub overlap: f64,
    /// Same set.
    pub set: f64,
    /// The reference's first is among the target's best.
    pub ref_top1_in: f64,
    /// The label is among the reference's best; with labels only.
    pub reference_accuracy: Option<f64>,
    /// The label is among the target's best; with labels only.
    pub target_accuracy: Option<f64>,
}

/// Indices of the `k` largest scores, the best first; fewer when fewer are numbers.
pub fn top_k(scores: &[f64], k: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(k.min(scores.len()) + 1);
    for (index, &score) in scores.iter().enumerate() {
        let enters = best.len() < k || best.last().is_some_and(|&last| score > scores[last]);
        if enters && !score.is_nan() {
            best.insert(best.partition_point(|&other| scores[other] >= score), index);
            best.truncate(k);
        }
    }
    best
}

/// Counts over samples for one k.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct AgreementCounts {
    pub k: usize,
    pub samples: u64,
    same_first: u64,
    overlap: u64,
    same_set: u64,
    first_in_best: u64,
}

impl AgreementCounts {
    pub fn new(k: usize) -> Self {
        Self { k, samples: 0, same_first: 0, overlap: 0, same_set: 0, first_in_best: 0 }
    }

    /// Counts a sample by the best classes of both sides (at least k of them, where there are). Places that neither side
    /// has a number for are shared where there is any class. True when the arg-max is the same.
    pub fn push(&mut self, reference: &[usize], target: &[usize]) -> bool {
        let (reference, target) = (&reference[..self.k.min(reference.len())], &target[..self.k.min(target.len())]);
        let both = reference.iter().filter(|class| target.contains(class)).count();
        let shared = if both > 0 { both + self.k - reference.len().max(target.len()) } else { 0 };
        let first = reference.first();
        let same_first = first.is_some() && first == target.first();
        self.samples += 1;
        self.same_first += u64::from(same_first);
        self.overlap += shared as u64;
        self.same_set += u64::from(shared == self.k);
        self.first_in_best += u64::from(first.is_some_and(|class| target.contains(class)));
        same_first
    }

    /// Adds what was counted over other samples.
    pub fn append(&mut self, later: &Self) {
        self.samples += later.samples;
        self.same_first += later.same_first;
        self.overlap += later.overlap;
        self.same_set += later.same_set;
        self.first_in_best += later.first_in_best;
    }

    pub fn agreement(&self) -> Agreement {
        Agreement {
            top1: self.share(self.same_first),
            top1_interval: wilson(self.same_first, self.samples),
            top5_overlap: self.share(self.overlap) / self.k.max(1) as f64,
            top5_set: self.share(self.same_set),
            ref_top1_in_top5: self.share(self.first_in_best),
            samples: self.samples as usize,
        }
    }

    pub fn top_k(&self, reference_accuracy: Option<f64>, target_accuracy: Option<f64>) -> TopK {
        let Agreement { top5_overlap: overlap, top5_set: set, ref_top1_in_top5: ref_top1_in, .. } = self.agreement();
        TopK { k: self.k, overlap, set, ref_top1_in, reference_accuracy, target_accuracy }
    }

    fn share(&self, count: u64) -> f64 {
        count as f64 / self.samples.max(1) as f64
    }
}

/// Samples whose arg-max changed: all by their position, the first ones in full.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Flips {
    pub positions: Vec<u64>,
    pub details: Vec<Flip>,
}

/// The best classes of a sample, the best first, and their scores.
pub(super) struct Best {
    pub classes: Vec<usize>,
    pub scores: Vec<f64>,
}

impl From<Vec<(u32, f64)>> for Best {
    fn from(best: Vec<(u32, f64)>) -> Self {
        let (classes, scores) = best.into_iter().map(|(class, score)| (class as usize, score)).unzip();
        Self { classes, scores }
    }
}

impl Best {
    /// The `k` best of all scores.
    pub fn of(scores: ValuesView<'_>, k: usize) -> Self {
        let scores = scores.to_f64();
        let classes = top_k(&scores, k);
        Self { scores: classes.iter().map(|&class| scores[class]).collect(), classes }
    }

    /// The five best with names. Infinite scores are cut to the largest number, which JSON can hold.
    pub fn scored(&self, names: &[String]) -> Vec<Scored> {
        let entry = |(&class, &score): (&usize, &f64)| Scored {
            class: class as u32,
            name: names.get(class).filter(|name| !name.is_empty()).cloned(),
            score: (score as f32).clamp(f32::MIN, f32::MAX),
        };
        self.classes.iter().zip(&self.scores).take(FIVE).map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_classes_break_ties_by_index_and_never_choose_nan() {
        assert_eq!(top_k(&[1.0, 3.0, 3.0, 2.0, 3.0], 3), [1, 2, 4]);
        assert_eq!(top_k(&[f64::NAN, 1.0, f64::NAN, f64::INFINITY], 3), [3, 1]);
        assert_eq!(top_k(&[f64::NAN; 4], 3), [0; 0]);
        assert_eq!(top_k(&[2.0, 1.0], 5), [0, 1]);
        assert_eq!(top_k(&[2.0, 1.0], 0), [0; 0]);
        // Against a full stable sort, on scores with many ties.
        let scores: Vec<f64> = (0..500_u32).map(|i| f64::from(i * 7919 % 101)).collect();
        let mut order: Vec<usize> = (0..500).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        assert_eq!(top_k(&scores, 17), order[..17]);
    }

    #[test]
    fn agreement_counts_by_hand() {
        let mut counts = AgreementCounts::new(5);
        assert!(counts.push(&[1, 2, 3, 4, 5], &[1, 5, 4, 3, 2])); // all the same set
        assert!(!counts.push(&[1, 2, 3, 4, 5], &[2, 1, 3, 4, 9])); // first in five, overlap 4
        assert!(!counts.push(&[1, 2, 3, 4, 5], &[6, 7, 8, 9, 5])); // overlap 1
        assert!(!counts.push(&[], &[])); // nothing but NaN on both sides is not agreement
        let agreement = counts.agreement();
        assert_eq!((agreement.top1, agreement.samples), (0.25, 4));
        assert_eq!((agreement.top5_overlap, agreement.top5_set, agreement.ref_top1_in_top5), (0.5, 0.25, 0.5));
        assert_eq!(agreement.top1_interval, wilson(1, 4));
        assert_eq!(AgreementCounts::new(5).agreement().top1, 0.0);
        // Three classes have numbers on either side; of two and three, one is in both.
        let mut counts = AgreementCounts::new(5);
        assert!(counts.push(&[7, 1, 4], &[7, 4, 1]));
        assert_eq!((counts.agreement().top5_overlap, counts.agreement().top5_set), (1.0, 1.0));
        assert!(!counts.push(&[7, 1, 4], &[2, 7]));
        assert_eq!((counts.agreement().top5_overlap, counts.agreement().top5_set), (0.8, 0.5));
    }

    #[test]
    fn scores_of_changed_samples_can_be_written_as_json() {
        let names = vec!["cat".to_owned(), String::new()];
        let entries = Best::of(ValuesView::F64(&[f64::INFINITY, 1e300]), 5).scored(&names);
        assert_eq!(entries[0], Scored { class: 0, name: Some("cat".to_owned()), score: f32::MAX });
        assert_eq!((entries[1].name.as_ref(), entries[1].score), (None, f32::MAX));
    }
}
