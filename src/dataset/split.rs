//! Which samples calibrate and which evaluate.

use serde::{Deserialize, Serialize};

/// Indices of samples, in the order they are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Samples that ranges come from.
    pub calibration: Vec<usize>,
    /// Samples that figures come from.
    pub evaluation: Vec<usize>,
    /// Samples in both: more than 0 only when the data set is too small.
    pub overlapping: usize,
}

/// Chooses `calibration` samples and `evaluation` others (0: all others) by the hash of seed and name.
///
/// The choice depends on neither the order of the samples nor on the rest of the data set. When fewer than a fifth
/// of the samples (and fewer than `calibration`) would be left to evaluate, at most half calibrate; a single sample
/// serves for both, and that is said in `overlapping`.
pub fn split(ids: &[&str], seed: u64, calibration: usize, evaluation: usize) -> Split {
    let hash = |index: usize| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(ids[index].as_bytes());
        *hasher.finalize().as_bytes()
    };
    // The first bytes of a hash decide nearly always, and whole ones of millions of samples would take more memory than
    // their names.
    let first = |index: usize| u64::from_be_bytes(hash(index).first_chunk().copied().unwrap_or_default());
    let mut order: Vec<(u64, usize)> = (0..ids.len()).map(|index| (first(index), index)).collect();
    let whole = |index: usize| (hash(index), ids[index]);
    order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| whole(a.1).cmp(&whole(b.1))));
    let mut order: Vec<usize> = order.into_iter().map(|(_, index)| index).collect();
    if order.len() < 2 {
        return Split { calibration: order.clone(), overlapping: order.len(), evaluation: order };
    }
    let enough_left = order.len().saturating_sub(calibration) >= calibration.min(order.len().div_ceil(5));
    let calibration = if enough_left { calibration } else { calibration.min(order.len() / 2) };
    let rest = order.split_off(calibration);
    let evaluation = if evaluation == 0 { rest } else { rest.into_iter().take(evaluation).collect() };
    // Calibration is the same set whatever the order; evaluation runs in the order of the names, which people expect.
    let by_name = |mut indices: Vec<usize>| {
        indices.sort_by_key(|&index| ids[index]);
        indices
    };
    Split { calibration: by_name(order), evaluation: by_name(evaluation), overlapping: 0 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn disjoint_seeded_and_independent_of_the_listing() {
        let names: Vec<String> = (0..100).map(|i| format!("{i}.jpg")).collect();
        let ids: Vec<&str> = names.iter().map(String::as_str).collect();
        let reversed: Vec<&str> = ids.iter().rev().copied().collect();
        let one = split(&ids, 7, 20, 0);
        assert_eq!((one.calibration.len(), one.evaluation.len(), one.overlapping), (20, 80, 0));
        let all: BTreeSet<usize> = one.calibration.iter().chain(&one.evaluation).copied().collect();
        assert_eq!(all.len(), 100);
        let name =
            |ids: &[&str], indices: &[usize]| -> Vec<String> { indices.iter().map(|&i| ids[i].to_owned()).collect() };
        let other = split(&reversed, 7, 20, 0);
        assert_eq!(name(&ids, &one.calibration), name(&reversed, &other.calibration));
        assert_ne!(one.calibration, split(&ids, 8, 20, 0).calibration);
        assert_eq!(split(&ids, 7, 20, 5).evaluation.len(), 5);
    }

    #[test]
    fn a_small_data_set_is_halved_and_one_sample_serves_twice() {
        let ids = ["a", "b", "c", "d"];
        let small = split(&ids, 0, 512, 0);
        assert_eq!((small.calibration.len(), small.evaluation.len(), small.overlapping), (2, 2, 0));
        assert_eq!(split(&["a"], 0, 512, 0).overlapping, 1);
    }
}
