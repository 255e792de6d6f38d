//! Samples in groups by their names, for the intervals of figures that are not means over samples: how far a figure moves when
//! each group in turn is left out tells how far it scatters.

use serde::{Deserialize, Serialize};

/// Groups at most. Each holds sums of its own.
const GROUPS: usize = 16;

/// What is added up over samples, by groups. A sample's name says which, so that neither order nor parts change anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Groups<T> {
    /// Samples of each, and their sums.
    groups: Vec<(u64, T)>,
}

/// How far a figure scatters over groups of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scatter {
    pub standard_error: f64,
    pub groups: u64,
}

impl<T: Default> Groups<T> {
    /// The sums that the sample `id` belongs to.
    pub fn of(&mut self, id: &str) -> &mut T {
        self.groups.resize_with(GROUPS, Default::default);
        let group = usize::from(blake3::hash(id.as_bytes()).as_bytes()[0]) % GROUPS;
        self.groups[group].0 += 1;
        &mut self.groups[group].1
    }

    /// The sums over all samples.
    pub fn whole(&self, append: impl Fn(&mut T, &T)) -> T {
        self.without(None, append)
    }

    fn without(&self, left_out: Option<usize>, append: impl Fn(&mut T, &T)) -> T {
        let mut sum = T::default();
        let kept =
            self.groups.iter().enumerate().filter(|(index, (samples, _))| *samples > 0 && Some(*index) != left_out);
        kept.for_each(|(_, (_, group))| append(&mut sum, group));
        sum
    }

    /// Adds the groups of other samples.
    pub fn append(&mut self, later: &Self, append: impl Fn(&mut T, &T)) {
        self.groups.resize_with(self.groups.len().max(later.groups.len()), Default::default);
        for ((samples, mine), (more, other)) in
            self.groups.iter_mut().zip(&later.groups).filter(|(_, (more, _))| *more > 0)
        {
            *samples += more;
            append(mine, other);
        }
    }

    /// The standard error of each figure, by leaving out one group at a time (the jackknife for groups of unequal size:
    /// Busing, Meijer and van der Leeden, "Delete-m jackknife for unequal m", 1999). `None` for a figure that is not
    /// finite for all of them, and for fewer than two groups.
    pub fn scatter(
        &self,
        append: impl Fn(&mut T, &T) + Copy,
        figures: impl Fn(&T) -> Vec<f64>,
    ) -> Vec<Option<Scatter>> {
        let filled: Vec<(usize, f64)> = (0..)
            .zip(&self.groups)
            .filter(|(_, (samples, _))| *samples > 0)
            .map(|(at, (n, _))| (at, *n as f64))
            .collect();
        let samples: f64 = filled.iter().map(|(_, n)| n).sum();
        let all = figures(&self.whole(append));
        let without: Vec<Vec<f64>> = filled.iter().map(|&(at, _)| figures(&self.without(Some(at), append))).collect();
        let groups = filled.len() as f64;
        let of_figure = |(place, &all): (usize, &f64)| {
            if filled.len() < 2 {
                return None;
            }
            let left: Option<Vec<f64>> = without.iter().map(|figures| figures.get(place).copied()).collect();
            let pseudo = filled.iter().zip(left?).map(|((_, n), without)| {
                let h = samples / n;
                (h, h * all - (h - 1.0) * without)
            });
            let pseudo: Vec<(f64, f64)> = pseudo.collect();
            let mean = pseudo.iter().map(|(h, value)| value / h).sum::<f64>();
            let variance = pseudo.iter().map(|(h, value)| (value - mean).powi(2) / (h - 1.0)).sum::<f64>() / groups;
            let standard_error = variance.sqrt();
            standard_error.is_finite().then_some(Scatter { standard_error, groups: filled.len() as u64 })
        };
        all.iter().enumerate().map(of_figure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{SplitMix64, std_dev};

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Sum(f64, f64);

    fn append(sum: &mut Sum, other: &Sum) {
        sum.0 += other.0;
        sum.1 += other.1;
    }

    fn ratio(sum: &Sum) -> Vec<f64> {
        vec![sum.0 / sum.1]
    }

    fn drawn(random: &mut SplitMix64, samples: usize) -> Groups<Sum> {
        let mut groups = Groups::default();
        for index in 0..samples {
            let [x, y] = [(); 2].map(|()| random.below(1 << 20) as f64 / f64::from(1 << 20));
            append(groups.of(&format!("{index}.jpg")), &Sum(x * (1.0 + y), 1.0 + y));
        }
        groups
    }

    #[test]
    fn ratios_of_many_draws_scatter_as_draws_tell() {
        let mut random = SplitMix64::new(3);
        let draws: Vec<Groups<Sum>> = (0..400).map(|_| drawn(&mut random, 100)).collect();
        let seen = std_dev(&draws.iter().map(|groups| ratio(&groups.whole(append))[0]).collect::<Vec<_>>());
        let told = draws.iter().map(|groups| groups.scatter(append, ratio)[0].unwrap().standard_error);
        let told = told.sum::<f64>() / draws.len() as f64;
        assert!((told / seen - 1.0).abs() < 0.1, "{told} told, {seen} seen");
    }

    #[test]
    fn parts_are_those_of_the_whole_and_one_group_says_nothing() {
        let all = drawn(&mut SplitMix64::new(1), 40);
        let (mut first, mut second) = (Groups::default(), Groups::default());
        for index in 0..40 {
            let part = if index < 13 { &mut first } else { &mut second };
            append(part.of(&format!("{index}.jpg")), &Sum(f64::from(index), 1.0));
        }
        let mut whole = Groups::default();
        for index in 0..40 {
            append(whole.of(&format!("{index}.jpg")), &Sum(f64::from(index), 1.0));
        }
        second.append(&first, append);
        assert_eq!(second, whole);
        let mut empty = Groups::default();
        empty.append(&all, append);
        assert_eq!(empty.scatter(append, ratio), all.scatter(append, ratio));
        let mut one = Groups::default();
        append(one.of("a"), &Sum(1.0, 2.0));
        assert_eq!(one.scatter(append, ratio), [None]);
    }
}
