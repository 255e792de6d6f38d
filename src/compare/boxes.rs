//! Boxes: overlap, suppression of doubles, and pairs of boxes that are the same thing.
//!
//! A box is `[x1, y1, x2, y2]` in pixels, both corners at the edge of what it holds.

use serde::{Deserialize, Serialize};

/// One box that a model found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Detection {
    /// `[x1, y1, x2, y2]` in pixels of the picture.
    pub corners: [f32; 4],
    /// Between 0 and 1.
    pub score: f32,
    /// Class index.
    pub class: u32,
}

/// How boxes are chosen from those that a head gives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Suppression {
    /// Boxes with a lower score are left out.
    pub score: f32,
    /// Of two boxes of a class that overlap more than this, the one with the higher score stays.
    pub iou: f32,
    /// Most boxes in a picture.
    pub most: usize,
}

impl Default for Suppression {
    /// As Ultralytics' `val`.
    fn default() -> Self {
        Self { score: 0.001, iou: 0.7, most: 300 }
    }
}

/// Candidates that take part in the suppression, at most: the best of them.
const CANDIDATES: usize = 30_000;

fn area(b: [f64; 4]) -> f64 {
    (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0)
}

fn intersection(a: [f64; 4], b: [f64; 4]) -> f64 {
    area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])])
}

/// Intersection over union, 0 for boxes without an area. Over the area of `a` alone where `b` is a `crowd`.
pub fn overlap(a: [f32; 4], b: [f32; 4], crowd: bool) -> f64 {
    let (a, b) = (a.map(f64::from), b.map(f64::from));
    let common = intersection(a, b);
    if common == 0.0 {
        return 0.0;
    }
    common / if crowd { area(a) } else { area(a) + area(b) - common }
}

/// Puts boxes in the order of falling scores, equal ones in the order given. Scores that are NaN are left out.
pub fn sort_by_score(found: &mut Vec<Detection>) {
    found.retain(|detection| !detection.score.is_nan());
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
}

/// Leaves out boxes with low scores, and doubles within a class; the best first.
pub fn suppress(mut found: Vec<Detection>, options: Suppression) -> Vec<Detection> {
    found.retain(|detection| detection.score > options.score && detection.corners.iter().all(|x| x.is_finite()));
    sort_by_score(&mut found);
    found.truncate(CANDIDATES);
    let mut kept: Vec<Detection> = Vec::new();
    for detection in found {
        if kept.len() == options.most {
            break;
        }
        let double = |other: &Detection| {
            other.class == detection.class && overlap(other.corners, detection.corners, false) > f64::from(options.iou)
        };
        if !kept.iter().any(double) {
            kept.push(detection);
        }
    }
    kept
}

/// Two boxes of the same class that are one thing, by their positions in both lists.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Position in the reference's list.
    pub reference: usize,
    /// Position in the target's list.
    pub target: usize,
    /// Intersection over union.
    pub iou: f64,
}

/// One-to-one pairs of boxes of the same class that overlap by `iou` or more: those with the largest overlap first.
pub fn matches(reference: &[Detection], target: &[Detection], iou: f64) -> Vec<Match> {
    let mut pairs: Vec<Match> = Vec::new();
    for (r, a) in reference.iter().enumerate() {
        for (t, b) in target.iter().enumerate().filter(|(_, b)| b.class == a.class) {
            let overlap = overlap(a.corners, b.corners, false);
            if overlap >= iou {
                pairs.push(Match { reference: r, target: t, iou: overlap });
            }
        }
    }
    pairs.sort_by(|a, b| b.iou.total_cmp(&a.iou).then((a.reference, a.target).cmp(&(b.reference, b.target))));
    let (mut taken_r, mut taken_t) = (vec![false; reference.len()], vec![false; target.len()]);
    pairs.retain(|pair| {
        let free = !taken_r[pair.reference] && !taken_t[pair.target];
        if free {
            (taken_r[pair.reference], taken_t[pair.target]) = (true, true);
        }
        free
    });
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(corners: [f32; 4], score: f32, class: u32) -> Detection {
        Detection { corners, score, class }
    }

    #[test]
    fn overlaps_by_hand() {
        let (a, b) = ([0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0]);
        assert!((overlap(a, b, false) - 50.0 / 150.0).abs() < 1e-12);
        assert_eq!(overlap(a, b, true), 0.5);
        assert_eq!(overlap(a, [10.0, 0.0, 20.0, 10.0], false), 0.0);
        assert_eq!(overlap(a, [5.0, 5.0, 1.0, 1.0], false), 0.0, "turned inside out");
        assert_eq!(overlap([3.0; 4], [3.0; 4], false), 0.0, "a point");
    }

    #[test]
    fn doubles_go_within_a_class_only() {
        let a = [0.0, 0.0, 10.0, 10.0];
        let list = vec![
            found(a, 0.5, 1),
            found([0.0, 0.0, 10.0, 9.0], 0.9, 1),
            found(a, 0.6, 2),
            found(a, f32::NAN, 3),
            found([f32::NAN; 4], 0.9, 3),
            found([50.0, 0.0, 60.0, 9.0], 0.0005, 1),
        ];
        let kept = suppress(list.clone(), Suppression::default());
        assert_eq!(kept.iter().map(|d| (d.score, d.class)).collect::<Vec<_>>(), [(0.9, 1), (0.6, 2)]);
        // 0.9 of overlap is not a duplicate at 0.95; one box at most.
        assert_eq!(suppress(list.clone(), Suppression { iou: 0.95, ..Suppression::default() }).len(), 3);
        assert_eq!(suppress(list, Suppression { most: 1, ..Suppression::default() }).len(), 1);
    }

    #[test]
    fn each_box_has_one_partner_the_nearest_first() {
        let at = |x: f32| [x, 0.0, x + 10.0, 10.0];
        let reference = [found(at(0.0), 0.9, 0), found(at(3.0), 0.8, 0), found(at(0.0), 0.7, 1)];
        let target = [found(at(2.0), 0.5, 0), found(at(100.0), 0.9, 0)];
        // The second is nearer: 9/11 against 8/12.
        let pairs = matches(&reference, &target, 0.5);
        assert_eq!(pairs.len(), 1);
        assert_eq!((pairs[0].reference, pairs[0].target), (1, 0));
        assert!((pairs[0].iou - 9.0 / 11.0).abs() < 1e-9);
        assert!(matches(&reference, &target, 0.9).is_empty());
    }
}
