//! Parts of an output: positions along one axis whose values mean something else, or are of another size, than the rest.
//!
//! A detector's output often joins boxes (0 to 640) and scores (0 to 1) along an axis. Any figure over all of its values
//! is then a figure of the boxes, and the scores drown: 25 dB in all can hide 2 dB on the scores. So numeric differences
//! are taken by part, and the worst part counts.
//!
//! Where a detection head is known, its meaning gives the parts. Otherwise [`by_scale`] splits by the size of the
//! reference's values. [`PartSums`] keeps sums for every position, so that the split is made from all samples:
//!
//! ```
//! use trtcalib::{compare::{PartSums, by_scale}, tensor::Tensor};
//!
//! // A sample [6, 2]: four rows of boxes, two of scores.
//! let reference = Tensor::from_f32(vec![6, 2], vec![200.0, 90.0, 8.0, 80.0, 99.0, 70.0, 60.0, 9.0, 0.5, 0.1, 0.2, 0.9])?;
//! let mut sums = PartSums::default();
//! sums.push(reference.view(), reference.view());
//! let parts: Vec<String> = by_scale(&sums).into_iter().map(|part| part.name).collect();
//! assert_eq!(parts, ["0-3", "4-5"]);
//! # Ok::<(), trtcalib::tensor::ShapeError>(())
//! ```
//!
//! An objective over outputs sums a normalised error over [`PartSums::figures`]: the noise of each part over its signal.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{PairSums, totals::Totals};
use crate::tensor::TensorView;

/// Longest axis that parts are looked for along.
const LONGEST: usize = 2048;
/// The same where a sample has no other axis: longer ones are lists of like things, as the scores of classes.
const LONGEST_ALONE: usize = 256;
/// Doublings by which the magnitudes of two parts differ where nothing but their size is known.
const DOUBLINGS: f64 = 3.0;

/// Positions along one axis of a sample that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// `boxes`, `objectness`, `scores`, or the positions (`0-3`, `0,2-3`) where only their size is known.
    pub name: String,
    /// The axis of a sample, without the batch.
    pub axis: usize,
    /// Positions along that axis, in order.
    pub ranges: Vec<Range<usize>>,
}

impl Part {
    /// A part of neighbouring positions.
    pub fn new(name: &str, axis: usize, range: Range<usize>) -> Self {
        Self { name: name.to_owned(), axis, ranges: std::iter::once(range).collect() }
    }

    /// A part named by its positions, which are in order.
    fn of_positions(axis: usize, positions: &[usize]) -> Self {
        let runs = positions.chunk_by(|a, b| a + 1 == *b);
        let ranges: Vec<_> = runs.map(|run| run[0]..run[0] + run.len()).collect();
        let name = |range: &Range<usize>| match range.len() {
            1 => range.start.to_string(),
            _ => format!("{}-{}", range.start, range.end - 1),
        };
        Self { name: ranges.iter().map(name).collect::<Vec<_>>().join(","), axis, ranges }
    }

    /// Every position of this part as a part of its own.
    pub(super) fn positions(&self) -> Vec<Self> {
        self.ranges.iter().cloned().flatten().map(|at| Self::new("", self.axis, at..at + 1)).collect()
    }
}

/// Sums of differences for every position along every axis that parts may lie along, over any number of samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartSums {
    axes: Vec<AxisSums>,
    begun: bool,
    /// Samples have one axis alone.
    alone: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct AxisSums {
    axis: usize,
    positions: Vec<Totals>,
}

impl PartSums {
    /// True for samples (without the batch) that can have parts.
    pub fn suits(shape: &[usize]) -> bool {
        let longest = if is_alone(shape) { LONGEST_ALONE } else { LONGEST };
        shape.iter().any(|extent| (2..=longest).contains(extent))
    }

    /// Adds a sample of equal shapes. Axes whose extent changes between samples have no parts. Pairs that are not finite
    /// take no part.
    pub fn push(&mut self, reference: TensorView<'_>, target: TensorView<'_>) {
        let shape = reference.shape;
        if !std::mem::replace(&mut self.begun, true) && Self::suits(shape) {
            let suited = shape.iter().enumerate().filter(|(_, extent)| (2..=LONGEST).contains(*extent));
            let sums = |(axis, &extent)| AxisSums { axis, positions: vec![Totals::default(); extent] };
            self.axes = suited.map(sums).collect();
            self.alone = is_alone(shape);
        }
        self.axes.retain(|sums| shape.get(sums.axis) == Some(&sums.positions.len()));
        if self.axes.is_empty() {
            return;
        }
        let (r, t) = (reference.values.to_f64(), target.values.to_f64());
        for AxisSums { axis, positions } in &mut self.axes {
            let inner: usize = shape[*axis + 1..].iter().product::<usize>().max(1);
            let extent = positions.len();
            let mut sample = vec![PairSums::default(); extent];
            for (index, (r, t)) in r.chunks(inner).zip(t.chunks(inner)).enumerate() {
                let sums = &mut sample[index % extent];
                for (&r, &t) in r.iter().zip(t) {
                    if r.is_finite() && t.is_finite() {
                        sums.push(r, t);
                    }
                }
            }
            positions.iter_mut().zip(&sample).for_each(|(totals, sums)| totals.add(sums));
        }
    }

    /// Adds what was added up over later samples elsewhere.
    pub(super) fn append(&mut self, later: &Self) {
        if !self.begun {
            self.clone_from(later);
        } else if later.begun {
            let other = |sums: &AxisSums| {
                later.axes.iter().find(|other| (other.axis, other.positions.len()) == (sums.axis, sums.positions.len()))
            };
            self.axes.retain(|sums| other(sums).is_some());
            for sums in &mut self.axes {
                let positions = other(sums).into_iter().flat_map(|other| &other.positions);
                sums.positions.iter_mut().zip(positions).for_each(|(totals, later)| totals.append(later));
            }
        }
    }

    /// The sums of every part, in the order given. Parts along an axis that has no sums are left out.
    pub fn figures(&self, parts: &[Part]) -> Vec<(Part, PairSums)> {
        let figure = |part: &Part| {
            let sums = self.axes.iter().find(|sums| sums.axis == part.axis)?;
            let mut total = PairSums::default();
            for range in &part.ranges {
                sums.positions.get(range.clone())?.iter().for_each(|position| total.add(&position.sums()));
            }
            Some((part.clone(), total))
        };
        parts.iter().filter_map(figure).collect()
    }
}

/// Whether a sample has one axis that is longer than 1.
fn is_alone(shape: &[usize]) -> bool {
    shape.iter().filter(|&&extent| extent > 1).count() == 1
}

/// The parts of an output by the size of the reference's values; empty where it is of one piece.
///
/// Along the axis where that is clearest, the root mean squares of some positions are all at least eight times those of
/// the others. Neighbouring positions make a part: the first, the last, or several in the middle. Single large ones
/// anywhere make one where they are beyond 1 and no more than the small ones, which would drown in them; single small
/// ones, as the dead channels of a feature map, do not. Parts are split again in the same way: centres, sizes and scores
/// may be of three sizes. Along the only axis of a sample all large ones must be beyond 1: the probabilities of classes
/// are of one kind, however unlike.
pub fn by_scale(sums: &PartSums) -> Vec<Part> {
    let split = |of_axis: &AxisSums| {
        let level = |position: &Totals| {
            let position = position.sums();
            0.5 * (position.reference_squares / position.count.max(1) as f64).max(f64::MIN_POSITIVE).log2()
        };
        let levels: Vec<f64> = of_axis.positions.iter().map(level).collect();
        // Positions that are always zero count as small as the smallest.
        let empty = 0.5 * f64::MIN_POSITIVE.log2();
        let least = levels.iter().copied().filter(|&level| level > empty).reduce(f64::min)?;
        let levels = levels.iter().map(|level| level.max(least)).enumerate().collect::<Vec<_>>();
        Some((clearest(&levels, sums.alone)?.0, levels, of_axis.axis))
    };
    let best = sums.axes.iter().filter_map(split).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(Vec::new, |(_, levels, axis)| {
        let mut parts = split_again(levels, sums.alone);
        parts.sort();
        parts.iter().map(|positions| Part::of_positions(axis, positions)).collect()
    })
}

/// Positions and their levels: powers of two.
type Levels = Vec<(usize, f64)>;

/// Splits until every part is of one piece.
fn split_again(levels: Levels, alone: bool) -> Vec<Vec<usize>> {
    match clearest(&levels, alone) {
        None => vec![levels.into_iter().map(|(position, _)| position).collect()],
        Some((_, pieces)) => pieces.into_iter().flat_map(|piece| split_again(piece, alone)).collect(),
    }
}

/// The split with the largest gap between large and small, where there is one.
fn clearest(levels: &[(usize, f64)], alone: bool) -> Option<(f64, Vec<Levels>)> {
    let mut sorted: Vec<f64> = levels.iter().map(|&(_, level)| level).collect();
    sorted.sort_by(f64::total_cmp);
    let gaps = sorted.windows(2).filter(|pair| pair[1] - pair[0] >= DOUBLINGS);
    let splits = gaps.filter_map(|pair| Some((pair[1] - pair[0], pieces(levels, pair[1], alone)?)));
    splits.max_by(|a, b| a.0.total_cmp(&b.0))
}

/// The positions at or above `large`, and those below it: by runs where these are two, or three with several positions in
/// the middle, and otherwise all of each.
fn pieces(levels: &[(usize, f64)], large: f64, alone: bool) -> Option<Vec<Levels>> {
    let is_large = |&(_, level): &(usize, f64)| level >= large;
    let runs: Vec<Levels> = levels.chunk_by(|a, b| is_large(a) == is_large(b)).map(<[_]>::to_vec).collect();
    if runs.len() == 2 || runs.len() == 3 && runs[1].len() > 1 {
        return Some(runs).filter(|_| !alone || large > 0.0);
    }
    let (large_ones, small_ones): (Levels, Levels) = levels.iter().partition(|entry| is_large(entry));
    (large > 0.0 && large_ones.len() <= small_ones.len()).then(|| vec![large_ones, small_ones])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn sums(shape: &[usize], reference: &[f32], error: impl Fn(usize) -> f32) -> PartSums {
        let target = reference.iter().enumerate().map(|(i, x)| x + error(i)).collect();
        let [r, t] = [reference.to_vec(), target].map(|values| Tensor::from_f32(shape.to_vec(), values).unwrap());
        let mut sums = PartSums::default();
        sums.push(r.view(), t.view());
        sums
    }

    /// `[channels, 3]` with the given magnitudes.
    fn rows(levels: &[f32]) -> Vec<f32> {
        levels.iter().flat_map(|&level| [level, -0.5 * level, 0.8 * level]).collect()
    }

    #[test]
    fn scores_that_drown_in_boxes_are_a_part_of_their_own() {
        let values = rows(&[200.0, 180.0, 50.0, 60.0, 0.9, 0.1, 0.3]);
        // An error of 0.3 everywhere: 50 dB on boxes, 2 to 3 dB on scores.
        let sums = sums(&[7, 3], &values, |_| 0.3);
        let parts = by_scale(&sums);
        assert_eq!(parts, [Part::new("0-3", 0, 0..4), Part::new("4-6", 0, 4..7)]);
        let figures = sums.figures(&parts);
        let expected = |range: Range<usize>| {
            let signal: f32 = values[range.start * 3..range.end * 3].iter().map(|x| x * x).sum();
            10.0 * f64::from(signal / (range.len() as f32 * 3.0 * 0.09)).log10()
        };
        for ((_, sums), range) in figures.iter().zip([0..4, 4..7]) {
            assert!((sums.sqnr_db().unwrap() - expected(range)).abs() < 1e-4);
        }
        assert!(figures[0].1.sqnr_db().unwrap() > 40.0 && figures[1].1.sqnr_db().unwrap() < 5.0);
    }

    #[test]
    fn the_axis_is_found_and_even_outputs_stay_whole() {
        let columns: Vec<f32> = (0..5).flat_map(|i| [100.0 + i as f32, 90.0, 0.5, 0.2 * i as f32]).collect();
        let parts = by_scale(&sums(&[5, 4], &columns, |_| 0.0));
        assert_eq!(
            parts.iter().map(|part| (part.axis, part.name.as_str())).collect::<Vec<_>>(),
            [(1, "0-1"), (1, "2-3")]
        );
        assert!(by_scale(&sums(&[4, 3], &rows(&[1.0, 3.0, 7.0, 2.0]), |_| 0.0)).is_empty());
        let names = |shape: &[usize], values: &[f32]| -> Vec<String> {
            by_scale(&sums(shape, values, |_| 0.0)).into_iter().map(|part| part.name).collect()
        };
        // Single large channels are a part, which the others would drown in; single small ones are none.
        assert_eq!(names(&[5, 3], &rows(&[1.0, 2.0, 400.0, 2.0, 1.0])), ["0-1,3-4", "2"]);
        assert_eq!(names(&[7, 3], &rows(&[1.0, 2.0, 400.0, 2.0, 300.0, 1.0, 1.0])), ["0-1,3,5-6", "2,4"]);
        assert!(names(&[5, 3], &rows(&[200.0, 100.0, 1.0, 200.0, 90.0])).is_empty());
        assert!(names(&[5, 3], &rows(&[0.01, 0.02, 0.9, 0.02, 0.01])).is_empty(), "scores of a class that occurs");
        let middle = by_scale(&sums(&[6, 3], &rows(&[1.0, 2.0, 400.0, 90.0, 2.0, 1.0]), |_| 0.0));
        assert_eq!(middle, [Part::new("0-1", 0, 0..2), Part::new("2-3", 0, 2..4), Part::new("4-5", 0, 4..6)]);
        let three = by_scale(&sums(&[6, 3], &rows(&[300.0, 200.0, 9.0, 8.0, 0.2, 0.5]), |_| 0.0));
        assert_eq!(three.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["0-1", "2-3", "4-5"]);
        // One channel in front is: background against the rest.
        assert_eq!(by_scale(&sums(&[3, 3], &rows(&[90.0, 2.0, 1.0]), |_| 0.0))[0].name, "0");
        // One axis alone: lengths and angles are parts, probabilities are not, however many classes there are.
        assert_eq!(names(&[7], &[300.0, 200.0, 250.0, 0.5, 0.2, 0.4, 0.9]), ["0-2", "3-6"]);
        assert!(names(&[4], &[0.9, 0.05, 0.02, 0.03]).is_empty());
        assert!(!PartSums::suits(&[1000]) && PartSums::suits(&[1000, 4]) && PartSums::suits(&[1, 10, 1]));
        // Zeros: a class that never occurs belongs to the small ones, and all zeros are of one piece.
        assert_eq!(by_scale(&sums(&[4, 3], &rows(&[90.0, 80.0, 0.0, 1.0]), |_| 0.0))[1].name, "2-3");
        assert!(by_scale(&sums(&[4, 3], &rows(&[0.0; 4]), |_| 0.0)).is_empty());
    }

    #[test]
    fn an_axis_that_changes_has_no_parts() {
        let mut sums = sums(&[2, 3], &rows(&[100.0, 1.0]), |_| 0.0);
        let other = Tensor::from_f32(vec![2, 4], vec![0.0; 8]).unwrap();
        sums.push(other.view(), other.view());
        assert_eq!(by_scale(&sums).len(), 2, "along the other axis");
        let other = Tensor::from_f32(vec![3, 3], vec![0.0; 9]).unwrap();
        sums.push(other.view(), other.view());
        assert!(by_scale(&sums).is_empty());
    }
}
