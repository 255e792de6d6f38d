//! COCO's figures of boxes against labels: average precision and recall, as pycocotools computes them.
//!
//! Within a picture and a class, boxes in the order of their scores take the free label that they overlap most, at each
//! of ten thresholds; labels that are crowds or outside the range of areas neither count nor cost. Precision, made
//! monotone, is read at 101 recalls. Boxes of all pictures stand in one order, so that pictures can be weighted: with
//! weights of one these are COCO's figures, with other weights those of a sample of pictures.

use serde::{Deserialize, Serialize};

use super::boxes::{Detection, overlap, sort_by_score};
use crate::dataset::Truth;

/// IoU thresholds 0.5, 0.55, ... 0.95.
const THRESHOLDS: usize = 10;
/// Recalls 0, 0.01, ... 1.
const RECALLS: usize = 101;
/// Most boxes of a class in a picture.
const MOST: usize = 100;
/// Least and largest area of a label: any, small, medium, large.
const AREAS: [[f64; 2]; 4] = [[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];

/// A box in the order of scores, with its fate at every threshold and range of areas.
#[derive(Clone, Copy, Debug)]
struct Ranked {
    picture: u32,
    score: f32,
    /// Place among the boxes of its class in its picture.
    place: u8,
    /// By range of areas: bit t, it took a label at threshold t.
    matched: [u16; 4],
    /// By range of areas: bit t, it does not count at threshold t.
    ignored: [u16; 4],
}

/// The boxes of one class in all pictures, and how many labels there are.
#[derive(Clone, Debug, Default)]
struct Class {
    ranked: Vec<Ranked>,
    /// For every picture with labels: its labels that count, by range of areas.
    labels: Vec<(u32, [u32; 4])>,
}

/// Boxes of one model against labels, picture by picture.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    classes: std::collections::BTreeMap<u32, Class>,
    pictures: usize,
    sorted: bool,
}

/// COCO's twelve figures; `None` where no label falls under one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CocoFigures {
    /// Average precision, mean over IoU thresholds 0.5 to 0.95 and classes.
    pub map50_95: Option<f64>,
    /// The same at IoU 0.5.
    pub map50: Option<f64>,
    /// The same at IoU 0.75.
    pub map75: Option<f64>,
    /// `map50_95` of objects below 32² pixels.
    pub map_small: Option<f64>,
    /// `map50_95` of objects from 32² to 96² pixels.
    pub map_medium: Option<f64>,
    /// `map50_95` of objects above 96² pixels.
    pub map_large: Option<f64>,
    /// Average recall with one box a class and picture.
    pub mar_1: Option<f64>,
    /// Average recall with ten.
    pub mar_10: Option<f64>,
    /// Average recall with a hundred.
    pub mar_100: Option<f64>,
    /// `mar_100` of small objects.
    pub mar_small: Option<f64>,
    /// `mar_100` of medium objects.
    pub mar_medium: Option<f64>,
    /// `mar_100` of large objects.
    pub mar_large: Option<f64>,
}

/// Average precision of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ClassPrecision {
    /// Class index.
    pub class: u32,
    /// Class name, where it is known.
    pub name: Option<String>,
    /// Labels that count.
    pub labels: u64,
    /// Average precision over IoU thresholds 0.5 to 0.95.
    pub map50_95: f64,
    /// Average precision at IoU 0.5.
    pub map50: f64,
}

/// Precision and recall of all classes together at IoU 0.5, over the confidence from which boxes count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ConfidenceCurve {
    /// Least scores: 0, 0.01, ... 1.
    pub confidence: Vec<f64>,
    /// Share of the boxes that are right; 1 without boxes.
    pub precision: Vec<f64>,
    /// Share of the labels that are found.
    pub recall: Vec<f64>,
    /// Harmonic mean of both.
    pub f1: Vec<f64>,
}

impl ConfidenceCurve {
    /// The confidence with the highest F1, and precision, recall and F1 there.
    pub fn best(&self) -> Option<[f64; 4]> {
        let at = (0..self.f1.len()).rev().max_by(|&a, &b| self.f1[a].total_cmp(&self.f1[b]))?;
        Some([self.confidence[at], self.precision[at], self.recall[at], self.f1[at]])
    }
}

/// Evenly spaced, in NumPy's rounding.
fn linspace(start: f64, end: f64, index: usize, count: usize) -> f64 {
    if index + 1 == count { end } else { start + index as f64 * ((end - start) / (count - 1) as f64) }
}

impl Ranking {
    /// Adds the next picture.
    pub fn push(&mut self, found: &[Detection], truths: &[Truth]) {
        let picture = self.pictures as u32;
        self.pictures += 1;
        self.sorted = false;
        let mut classes: Vec<u32> = found.iter().map(|d| d.class).chain(truths.iter().map(|t| t.class)).collect();
        classes.sort_unstable();
        classes.dedup();
        for class in classes {
            let mut boxes: Vec<Detection> = found.iter().filter(|d| d.class == class).copied().collect();
            sort_by_score(&mut boxes);
            boxes.truncate(MOST);
            let labels: Vec<Truth> = truths.iter().filter(|t| t.class == class).copied().collect();
            let mut ranked: Vec<Ranked> = boxes
                .iter()
                .enumerate()
                .map(|(place, d)| Ranked {
                    picture,
                    score: d.score,
                    place: place as u8,
                    matched: [0; 4],
                    ignored: [0; 4],
                })
                .collect();
            let mut counts = [0; 4];
            for (range, count) in counts.iter_mut().enumerate() {
                *count = take_labels(&boxes, &labels, range, &mut ranked);
            }
            let entry = self.classes.entry(class).or_default();
            entry.ranked.append(&mut ranked);
            if counts.iter().any(|&count| count > 0) {
                entry.labels.push((picture, counts));
            }
        }
    }

    /// Boxes so far.
    pub fn boxes(&self) -> usize {
        self.classes.values().map(|class| class.ranked.len()).sum()
    }

    /// Puts the boxes in the order of their scores, as the figures need them.
    pub fn sort(&mut self) {
        for class in self.classes.values_mut() {
            class.ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        self.sorted = true;
    }

    /// COCO's figures. The boxes must be [sorted](Self::sort).
    pub fn figures(&self) -> CocoFigures {
        debug_assert!(self.sorted);
        let all: [Vec<Averages>; 4] = std::array::from_fn(|range| self.averages(range, MOST));
        let precision = |range: usize, of: &dyn Fn(&Averages) -> f64| mean(all[range].iter().map(of));
        let recall = |averages: &[Averages]| mean(averages.iter().map(|a| a.recall.iter().sum::<f64>() / 10.0));
        let over = |a: &Averages| a.precision.iter().sum::<f64>() / 10.0;
        CocoFigures {
            map50_95: precision(0, &over),
            map50: precision(0, &|a| a.precision[0]),
            map75: precision(0, &|a| a.precision[5]),
            map_small: precision(1, &over),
            map_medium: precision(2, &over),
            map_large: precision(3, &over),
            mar_1: recall(&self.averages(0, 1)),
            mar_10: recall(&self.averages(0, 10)),
            mar_100: recall(&all[0]),
            mar_small: recall(&all[1]),
            mar_medium: recall(&all[2]),
            mar_large: recall(&all[3]),
        }
    }

    /// Average precision of every class with labels.
    pub fn by_class(&self) -> Vec<ClassPrecision> {
        let labelled = self.classes.iter().filter(|(_, class)| class.labels.iter().any(|(_, counts)| counts[0] > 0));
        labelled
            .zip(self.averages(0, MOST))
            .map(|((&class, entry), averages)| ClassPrecision {
                class,
                name: None,
                labels: entry.labels.iter().map(|(_, counts)| u64::from(counts[0])).sum(),
                map50_95: averages.precision.iter().sum::<f64>() / 10.0,
                map50: averages.precision[0],
            })
            .collect()
    }

    /// `map50_95` and `map50` when picture i counts `weights[i]` times.
    pub fn weighted_maps(&self, weights: &[u32]) -> Option<[f64; 2]> {
        let averages = self.classes.values().filter_map(|class| class.averages(0, MOST, Some(weights)));
        let averages: Vec<Averages> = averages.collect();
        let all = averages.iter().map(|averages| averages.precision.iter().sum::<f64>() / 10.0);
        Some([mean(all)?, mean(averages.iter().map(|averages| averages.precision[0]))?])
    }

    /// Precision, recall and F1 over the confidence.
    pub fn curve(&self) -> ConfidenceCurve {
        let labels: u64 =
            self.classes.values().flat_map(|class| &class.labels).map(|(_, counts)| u64::from(counts[0])).sum();
        let mut bins = vec![[0u64; 2]; RECALLS];
        for ranked in self.classes.values().flat_map(|class| &class.ranked).filter(|ranked| ranked.ignored[0] & 1 == 0)
        {
            // The last confidence that the score reaches.
            let bin = (0..RECALLS).rev().find(|&i| f64::from(ranked.score) >= i as f64 / 100.0).unwrap_or(0);
            bins[bin][usize::from(ranked.matched[0] & 1 == 1)] += 1;
        }
        let mut curve = ConfidenceCurve::default();
        for at in 0..RECALLS {
            let [wrong, right] = bins[at..].iter().fold([0, 0], |[w, r], bin| [w + bin[0], r + bin[1]]);
            let precision = if right + wrong == 0 { 1.0 } else { right as f64 / (right + wrong) as f64 };
            let recall = right as f64 / labels.max(1) as f64;
            let f1 = if right == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
            curve.confidence.push(at as f64 / 100.0);
            curve.precision.push(precision);
            curve.recall.push(recall);
            curve.f1.push(f1);
        }
        curve
    }

    fn averages(&self, range: usize, most: usize) -> Vec<Averages> {
        self.classes.values().filter_map(|class| class.averages(range, most, None)).collect()
    }
}

/// What happens to the boxes of one picture and class in one range of areas; gives the labels that count.
fn take_labels(boxes: &[Detection], labels: &[Truth], range: usize, ranked: &mut [Ranked]) -> u32 {
    let [least, most] = AREAS[range];
    let beyond = |area: f64| area < least || area > most;
    // Labels that count stand before the others.
    let (counted, others): (Vec<&Truth>, Vec<&Truth>) =
        labels.iter().partition(|label| !label.crowd && !beyond(label.area));
    let free_from = counted.len();
    let labels: Vec<&Truth> = counted.into_iter().chain(others).collect();
    let overlaps: Vec<Vec<f64>> = boxes
        .iter()
        .map(|found| labels.iter().map(|label| overlap(found.corners, label.corners, label.crowd)).collect())
        .collect();
    for t in 0..THRESHOLDS {
        let threshold = linspace(0.5, 0.95, t, THRESHOLDS).min(1.0 - 1e-10);
        let mut taken = vec![false; labels.len()];
        for ((found, overlaps), ranked) in boxes.iter().zip(&overlaps).zip(ranked.iter_mut()) {
            let mut best: Option<usize> = None;
            let mut least = threshold;
            for (index, &overlap) in overlaps.iter().enumerate() {
                if taken[index] && !labels[index].crowd {
                    continue;
                }
                // A label that counts is not given up for one that does not.
                if index >= free_from && best.is_some_and(|best| best < free_from) {
                    break;
                }
                if overlap >= least {
                    (best, least) = (Some(index), overlap);
                }
            }
            let [x1, y1, x2, y2] = found.corners.map(f64::from);
            let ignored = match best {
                Some(index) => {
                    taken[index] = true;
                    ranked.matched[range] |= 1 << t;
                    index >= free_from
                }
                None => beyond((x2 - x1) * (y2 - y1)),
            };
            ranked.ignored[range] |= u16::from(ignored) << t;
        }
    }
    free_from as u32
}

/// Average precision and recall of a class at every threshold.
struct Averages {
    precision: [f64; THRESHOLDS],
    recall: [f64; THRESHOLDS],
}

impl Class {
    /// `None` without labels that count.
    fn averages(&self, range: usize, most: usize, weights: Option<&[u32]>) -> Option<Averages> {
        let weight = |picture: u32| weights.map_or(1, |weights| u64::from(weights[picture as usize]));
        let labels: u64 = self.labels.iter().map(|(picture, counts)| weight(*picture) * u64::from(counts[range])).sum();
        if labels == 0 {
            return None;
        }
        let mut right = [0u64; THRESHOLDS];
        let mut wrong = [0u64; THRESHOLDS];
        // Recall rises only where a box is right, and precision only falls elsewhere: those points are the curve.
        let mut points: [Vec<(f64, f64)>; THRESHOLDS] = std::array::from_fn(|_| Vec::new());
        for ranked in self.ranked.iter().filter(|ranked| usize::from(ranked.place) < most) {
            let weight = weight(ranked.picture);
            if weight == 0 {
                continue;
            }
            for t in 0..THRESHOLDS {
                if ranked.ignored[range] >> t & 1 == 1 {
                    continue;
                }
                if ranked.matched[range] >> t & 1 == 0 {
                    wrong[t] += weight;
                    continue;
                }
                right[t] += weight;
                let precision = right[t] as f64 / ((wrong[t] + right[t]) as f64 + f64::EPSILON);
                points[t].push((right[t] as f64 / labels as f64, precision));
            }
        }
        let recall = right.map(|right| right as f64 / labels as f64);
        Some(Averages { precision: points.map(average), recall })
    }
}

/// Mean over the recalls of the highest precision at that recall or beyond.
fn average(mut points: Vec<(f64, f64)>) -> f64 {
    for index in (1..points.len()).rev() {
        points[index - 1].1 = points[index - 1].1.max(points[index].1);
    }
    let mut at = 0;
    let mut sum = 0.0;
    for recall in (0..RECALLS).map(|index| linspace(0.0, 1.0, index, RECALLS)) {
        while points.get(at).is_some_and(|point| point.0 < recall) {
            at += 1;
        }
        let Some(point) = points.get(at) else { break };
        sum += point.1;
    }
    sum / RECALLS as f64
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests;
