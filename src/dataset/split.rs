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

/// Chooses `calibration` of `count` samples and `evaluation` others (0: all others) by the hash of seed and name.
///
/// The choice depends on neither the order of the samples nor on the rest of the data set. When fewer than a fifth
/// of the samples (and fewer than `calibration`) would be left to evaluate, at most half calibrate; a single sample
/// serves for both, and that is said in `overlapping`.
pub fn split<'a>(
    count: usize,
    id: impl Fn(usize) -> &'a str,
    seed: u64,
    calibration: usize,
    evaluation: usize,
) -> Split {
    let hash = |index: u32| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(id(index as usize).as_bytes());
        *hasher.finalize().as_bytes()
    };
    // The first bytes of a hash decide nearly always. Whole ones of millions of samples, and their places in more bytes, would
    // take more memory than their names.
    let first = |index: u32| u32::from_be_bytes(hash(index).first_chunk().copied().unwrap_or_default());
    let all = 0..u32::try_from(count).unwrap_or(u32::MAX);
    let mut order: Vec<(u32, u32)> = all.map(|index| (first(index), index)).collect();
    let whole = |index: u32| (hash(index), id(index as usize));
    order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| whole(a.1).cmp(&whole(b.1))));
    let places = |order: &[(u32, u32)]| order.iter().map(|&(_, index)| index as usize).collect::<Vec<_>>();
    if order.len() < 2 {
        return Split { calibration: places(&order), overlapping: order.len(), evaluation: places(&order) };
    }
    let enough_left = order.len().saturating_sub(calibration) >= calibration.min(order.len().div_ceil(5));
    let calibration = if enough_left { calibration } else { calibration.min(order.len() / 2) };
    let (calibration, rest) = order.split_at(calibration);
    let rest = if evaluation == 0 { rest } else { &rest[..evaluation.min(rest.len())] };
    // Calibration is the same set whatever the order; evaluation runs in the order of the names, which people expect.
    let by_name = |part| {
        let mut indices = places(part);
        indices.sort_unstable_by_key(|&index| (id(index), index));
        indices
    };
    Split { calibration: by_name(calibration), evaluation: by_name(rest), overlapping: 0 }
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
        let split = |ids: &[&str], seed, calibration, evaluation| {
            split(ids.len(), |index| ids[index], seed, calibration, evaluation)
        };
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
        let small = split(ids.len(), |index| ids[index], 0, 512, 0);
        assert_eq!((small.calibration.len(), small.evaluation.len(), small.overlapping), (2, 2, 0));
        assert_eq!(split(1, |_| "a", 0, 512, 0).overlapping, 1);
    }
}
