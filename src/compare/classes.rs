//! Right answers by class, and confusions that grew: which classes a target pays with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Confusions that are kept, at most.
const MOST: usize = 50;

/// How often each answer was given, by label.
pub(super) type Answers = BTreeMap<u32, BTreeMap<u32, u64>>;

/// Right answers of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ClassAccuracy {
    /// The label.
    pub class: u32,
    /// Samples with that label.
    pub samples: u64,
    /// How many of them the reference answers right.
    pub reference_right: u64,
    /// How many the target does.
    pub right: u64,
}

/// A wrong answer that the target gives more often than the reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Confusion {
    /// The label.
    pub class: u32,
    /// The answer.
    pub answer: u32,
    /// How often the reference gives it.
    pub reference: u64,
    /// How often the target does.
    pub target: u64,
}

/// What a target does to single classes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Classes {
    /// Every class with a label, those that lost most first.
    pub accuracy: Vec<ClassAccuracy>,
    /// Wrong answers that became more frequent, those that grew most first; at most 50.
    pub grown: Vec<Confusion>,
}

impl Classes {
    /// From the answers of both on the same samples; `None` without labels.
    pub(super) fn of(reference: &Answers, target: &Answers) -> Option<Self> {
        let count = |answers: &Answers, class: u32, answer: u32| -> u64 {
            answers.get(&class).and_then(|given| given.get(&answer)).copied().unwrap_or(0)
        };
        let class = |(&class, given): (&u32, &BTreeMap<u32, u64>)| ClassAccuracy {
            class,
            samples: given.values().sum(),
            reference_right: count(reference, class, class),
            right: count(target, class, class),
        };
        let mut accuracy: Vec<ClassAccuracy> = target.iter().map(class).collect();
        accuracy.sort_by_key(|class| (class.right as i64 - class.reference_right as i64, class.class));
        let wrong = target.iter().flat_map(|(&class, given)| given.keys().map(move |&answer| (class, answer)));
        let mut grown: Vec<Confusion> = wrong
            .filter(|(class, answer)| class != answer)
            .map(|(class, answer)| Confusion {
                class,
                answer,
                reference: count(reference, class, answer),
                target: count(target, class, answer),
            })
            .filter(|confusion| confusion.target > confusion.reference)
            .collect();
        grown.sort_by_key(|c| (std::cmp::Reverse(c.target - c.reference), c.class, c.answer));
        grown.truncate(MOST);
        (!accuracy.is_empty()).then_some(Self { accuracy, grown })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_lost_and_confusions_that_grew_come_first() {
        let answers = |given: &[(u32, u32, u64)]| {
            let mut answers = Answers::new();
            for &(class, answer, count) in given {
                answers.entry(class).or_default().insert(answer, count);
            }
            answers
        };
        let reference = answers(&[(0, 0, 9), (0, 1, 1), (1, 1, 10), (2, 2, 5), (2, 0, 5)]);
        let target = answers(&[(0, 0, 8), (0, 1, 2), (1, 1, 7), (1, 2, 3), (2, 2, 6), (2, 0, 4)]);
        let found = Classes::of(&reference, &target).unwrap();
        let order: Vec<_> = found.accuracy.iter().map(|c| (c.class, c.samples, c.reference_right, c.right)).collect();
        assert_eq!(order, [(1, 10, 10, 7), (0, 10, 9, 8), (2, 10, 5, 6)]);
        let grown: Vec<_> = found.grown.iter().map(|c| (c.class, c.answer, c.reference, c.target)).collect();
        assert_eq!(grown, [(1, 2, 0, 3), (0, 1, 1, 2)], "what became rarer is not one of them");
        assert_eq!(Classes::of(&Answers::new(), &Answers::new()), None);
    }
}
