//! Accuracy on labelled samples, of one model or of two on the same samples.

use serde::{Deserialize, Serialize};

use super::{Accuracy, Classes, classes::Answers};
use crate::stats::{mcnemar, wilson};

/// Shares below and above which labels look shifted by one.
const SHIFT_BELOW: f64 = 0.05;
const SHIFT_FROM: f64 = 0.20;

/// Right answers of one model.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct RightCounts {
    samples: u64,
    top1: u64,
    top5: u64,
    /// Right among the best k, for each further k.
    further: Vec<u64>,
    /// The arg-max is the label plus one, or minus one.
    one_above: u64,
    one_below: u64,
    beyond_classes: u64,
    /// First answers, by label.
    answers: Answers,
}

impl RightCounts {
    /// Counts a sample by its best classes. True when the first is the label.
    pub fn push(&mut self, best: &[usize], label: u32, classes: usize, further: &[usize]) -> bool {
        let label = label as usize;
        let rank = best.iter().position(|&class| class == label).unwrap_or(usize::MAX);
        self.samples += 1;
        if let Some(&first) = best.first() {
            *self.answers.entry(label as u32).or_default().entry(first as u32).or_default() += 1;
        }
        self.top1 += u64::from(rank == 0);
        self.top5 += u64::from(rank < super::FIVE);
        self.further.resize(further.len(), 0);
        for (count, &k) in self.further.iter_mut().zip(further) {
            *count += u64::from(rank < k);
        }
        self.one_above += u64::from(best.first() == Some(&(label + 1)));
        self.one_below += u64::from(label > 0 && best.first() == Some(&(label - 1)));
        self.beyond_classes += u64::from(label >= classes);
        rank == 0
    }

    /// Adds what was counted over other samples.
    fn append(&mut self, later: Self) {
        self.samples += later.samples;
        self.top1 += later.top1;
        self.top5 += later.top5;
        // Empty before the first label.
        self.further.resize(self.further.len().max(later.further.len()), 0);
        self.further.iter_mut().zip(later.further).for_each(|(count, more)| *count += more);
        self.one_above += later.one_above;
        self.one_below += later.one_below;
        self.beyond_classes += later.beyond_classes;
        for (label, answers) in later.answers {
            let mine = self.answers.entry(label).or_default();
            for (answer, count) in answers {
                *mine.entry(answer).or_default() += count;
            }
        }
    }

    /// Share right among the best k of the further k at `index`; `None` without labels.
    pub fn further(&self, index: usize) -> Option<f64> {
        self.further.get(index).map(|&count| self.share(count))
    }

    /// The figures; `None` without labels.
    pub fn accuracy(&self, mcnemar_p: Option<f64>) -> Option<Accuracy> {
        (self.samples > 0).then(|| Accuracy {
            top1: self.share(self.top1),
            top1_interval: wilson(self.top1, self.samples),
            top5: self.share(self.top5),
            top5_interval: wilson(self.top5, self.samples),
            samples: self.samples as usize,
            mcnemar_p,
        })
    }

    /// What is wrong with the labels, if they look wrong for this model of `classes` classes.
    pub fn hint(&self, classes: usize) -> Option<String> {
        let shifted = |count: u64| self.share(self.top1) < SHIFT_BELOW && self.share(count) >= SHIFT_FROM;
        let percent = |count: u64| 100.0 * self.share(count);
        if self.samples == 0 {
            None
        } else if shifted(self.one_above) {
            Some(format!(
                "the labels look one too small for this model of {classes} classes (a background class comes first?): \
                 with 1 added {:.1} % are right instead of {:.1} %",
                percent(self.one_above),
                percent(self.top1)
            ))
        } else if shifted(self.one_below) {
            Some(format!(
                "the labels look one too large for this model of {classes} classes (they count from 1?): with 1 \
                 subtracted {:.1} % are right instead of {:.1} %",
                percent(self.one_below),
                percent(self.top1)
            ))
        } else if self.beyond_classes > 0 {
            Some(format!(
                "{} of {} labels lie beyond the model's {classes} classes and count as wrong; check that the labels \
                 belong to this model",
                self.beyond_classes, self.samples
            ))
        } else {
            None
        }
    }

    fn share(&self, count: u64) -> f64 {
        count as f64 / self.samples.max(1) as f64
    }
}

/// Right answers of reference and target on the same samples.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct PairedCounts {
    pub reference: RightCounts,
    pub target: RightCounts,
    only_reference: u64,
    only_target: u64,
}

impl PairedCounts {
    pub fn push(&mut self, reference: &[usize], target: &[usize], label: u32, classes: usize, further: &[usize]) {
        let reference_right = self.reference.push(reference, label, classes, further);
        let target_right = self.target.push(target, label, classes, further);
        self.only_reference += u64::from(reference_right && !target_right);
        self.only_target += u64::from(target_right && !reference_right);
    }

    /// Adds what was counted over other samples.
    pub fn append(&mut self, later: Self) {
        self.reference.append(later.reference);
        self.target.append(later.target);
        self.only_reference += later.only_reference;
        self.only_target += later.only_target;
    }

    /// What the target does to single classes; `None` without labels.
    pub fn classes(&self) -> Option<Classes> {
        Classes::of(&self.reference.answers, &self.target.answers)
    }

    /// Samples that only the reference gets right, and only the target; `None` without labels.
    pub fn only_one_right(&self) -> Option<[u64; 2]> {
        (self.target.samples > 0).then_some([self.only_reference, self.only_target])
    }

    /// Accuracy of reference and target; `None` without labels.
    pub fn accuracies(&self) -> (Option<Accuracy>, Option<Accuracy>) {
        let p = mcnemar(self.only_reference, self.only_target);
        (self.reference.accuracy(None), self.target.accuracy(Some(p)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_counted_and_tested() {
        let mut counts = PairedCounts::default();
        for i in 0..20_u32 {
            // The reference is right on all but 4, the target wrong on 6 more and right on one of the 4.
            let reference = if i < 4 { [1, 9, 8, 7, 6, 0] } else { [0, 1, 2, 3, 4, 5] };
            let target = if (4..10).contains(&i) { [1, 0, 2, 3, 4, 5] } else { reference };
            let target = if i == 0 { [0, 1, 2, 3, 4, 5] } else { target };
            counts.push(&reference, &target, 0, 10, &[2, 6]);
        }
        let (reference, target) = counts.accuracies();
        let (reference, target) = (reference.unwrap(), target.unwrap());
        assert_eq!((reference.top1, reference.top5, reference.mcnemar_p), (0.8, 0.8, None));
        assert_eq!((target.top1, target.top5, target.samples), (0.55, 0.85, 20));
        // scipy.stats.binomtest(1, 7).pvalue
        assert!((target.mcnemar_p.unwrap() - 0.125).abs() < 1e-12);
        assert_eq!((counts.reference.further(0), counts.reference.further(1)), (Some(0.8), Some(1.0)));
        assert_eq!(counts.reference.hint(10), None);
    }

    #[test]
    fn labels_that_are_off_by_one_are_pointed_out() {
        let hint = |shift: i32, classes: usize| {
            let mut counts = RightCounts::default();
            for i in 0..100_u32 {
                let label = (i * 37 % 90) + 5;
                let first = if i % 2 == 0 { (label as i32 + shift) as usize } else { 2 };
                counts.push(&[first], label, classes, &[]);
            }
            counts.hint(classes).unwrap_or_default()
        };
        assert!(hint(1, 1001).contains("one too small"), "{}", hint(1, 1001));
        assert!(hint(-1, 1000).contains("one too large"), "{}", hint(-1, 1000));
        assert_eq!(hint(0, 1000), "");
        assert!(hint(3, 50).contains("beyond the model's 50 classes"));
        assert_eq!(RightCounts::default().hint(5), None);
        assert_eq!(RightCounts::default().accuracy(None), None);
    }
}
