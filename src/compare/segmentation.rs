//! Agreement of maps of classes, pixel by pixel, and intersection over union by class.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{OutputKind, Segmentation};
use crate::tensor::{TensorView, ValuesView};

/// Class indices from which a map is taken for something else. Bounds the memory of the counts.
const CLASSES: usize = 1 << 16;
/// Pixel without a class: every score was NaN. Agrees with nothing.
const NO_CLASS: u32 = u32::MAX;

/// The classes of one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassMap {
    /// Rows and columns.
    pub size: [usize; 2],
    /// Row by row.
    pub classes: Vec<u32>,
}

impl ClassMap {
    /// The map in one sample of an output (without the batch): arg-max of scores (the lowest index among equals), or
    /// the indices themselves. The error says why it is not a map.
    pub fn of(sample: TensorView<'_>, kind: OutputKind) -> Result<Self, String> {
        let map = match (kind, sample.shape) {
            (OutputKind::MapChannelsLast, &[h, w, c]) if c > 1 => {
                Self { size: [h, w], classes: arg_max(sample.values, c, h * w, 1, c) }
            }
            (OutputKind::Map, &[c, h, w]) if c > 1 => {
                Self { size: [h, w], classes: arg_max(sample.values, c, h * w, h * w, 1) }
            }
            (OutputKind::Map, &[h, w] | &[1, h, w]) => Self { size: [h, w], classes: indices(sample.values)? },
            _ => return Err(format!("a sample of shape {:?} is not a map of classes", sample.shape)),
        };
        match map.classes.iter().find(|&&class| class as usize >= CLASSES && class != NO_CLASS) {
            Some(class) => Err(format!("class {class} is beyond {CLASSES}, so this is hardly a map of classes")),
            None => Ok(map),
        }
    }

    /// A label mask: class indices of shape [H, W] or [1, H, W].
    pub fn of_mask(mask: TensorView<'_>) -> Result<Self, String> {
        Self::of(mask, OutputKind::Map).and_then(|map| {
            let indices = matches!(*mask.shape, [_, _] | [1, _, _]);
            if indices { Ok(map) } else { Err(format!("a mask of shape {:?} is not [H, W]", mask.shape)) }
        })
    }
}

fn indices(values: ValuesView<'_>) -> Result<Vec<u32>, String> {
    let index = |&x: &f64| if x >= 0.0 && x.fract() == 0.0 && x < f64::from(NO_CLASS) { Ok(x as u32) } else { Err(x) };
    let classes: Result<Vec<u32>, f64> = values.to_f64().iter().map(index).collect();
    classes.map_err(|x| format!("{x} is not a class index (a map of one channel must hold indices, not scores)"))
}

fn arg_max(
    values: ValuesView<'_>,
    classes: usize,
    pixels: usize,
    class_stride: usize,
    pixel_stride: usize,
) -> Vec<u32> {
    match values {
        ValuesView::F32(v) => arg_max_of(v, classes, pixels, class_stride, pixel_stride),
        ValuesView::U8(v) => arg_max_of(v, classes, pixels, class_stride, pixel_stride),
        ValuesView::I8(v) => arg_max_of(v, classes, pixels, class_stride, pixel_stride),
        _ => arg_max_of(&values.to_f64(), classes, pixels, class_stride, pixel_stride),
    }
}

/// Class by class over all pixels, which reads planar scores in their order.
fn arg_max_of<T: Copy + PartialOrd>(
    values: &[T],
    classes: usize,
    pixels: usize,
    class_stride: usize,
    pixel_stride: usize,
) -> Vec<u32> {
    // Only NaN differs from itself.
    let is_nan = |x: T| x.partial_cmp(&x).is_none();
    let at = |class: usize, pixel: usize| values[class * class_stride + pixel * pixel_stride];
    let mut best: Vec<T> = (0..pixels).map(|pixel| at(0, pixel)).collect();
    let mut chosen: Vec<u32> = best.iter().map(|&x| if is_nan(x) { NO_CLASS } else { 0 }).collect();
    for class in 1..classes {
        for (pixel, (best, chosen)) in best.iter_mut().zip(&mut chosen).enumerate() {
            let score = at(class, pixel);
            if score > *best || (is_nan(*best) && !is_nan(score)) {
                (*best, *chosen) = (score, class as u32);
            }
        }
    }
    chosen
}

/// Classes that a model tells apart by samples of this kind and shape; `None` where its maps hold indices.
pub(super) fn classes_of(kind: OutputKind, sample_shape: &[usize]) -> Option<usize> {
    match (kind, sample_shape) {
        (OutputKind::MapChannelsLast, &[.., c]) | (OutputKind::Map, &[c, _, _]) if c > 1 => Some(c),
        _ => None,
    }
}

/// Pixel counts over samples of one map against another.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Overlaps {
    pixels: u64,
    equal: u64,
    /// By class: pixels in both, in the first, in the second.
    classes: Vec<[u64; 3]>,
}

impl Overlaps {
    fn push(&mut self, first: &[u32], second: &[u32], ignored: Option<u32>) {
        for (&a, &b) in first.iter().zip(second).filter(|&(&a, _)| Some(a) != ignored) {
            let equal = u64::from(a == b && a != NO_CLASS);
            self.pixels += 1;
            self.equal += equal;
            self.count(a, [equal, 1, 0]);
            self.count(b, [0, 0, 1]);
        }
    }

    fn count(&mut self, class: u32, counts: [u64; 3]) {
        let class = class as usize;
        if class < CLASSES {
            if class >= self.classes.len() {
                self.classes.resize(class + 1, [0; 3]);
            }
            for (sum, count) in self.classes[class].iter_mut().zip(counts) {
                *sum += count;
            }
        }
    }

    fn append(&mut self, later: &Self) {
        self.pixels += later.pixels;
        self.equal += later.equal;
        (0..).zip(&later.classes).for_each(|(class, &counts)| self.count(class, counts));
    }

    fn share_equal(&self) -> f64 {
        self.equal as f64 / self.pixels.max(1) as f64
    }

    fn class_iou(&self) -> BTreeMap<u32, f64> {
        let iou = |(class, &[both, first, second]): (usize, &[u64; 3])| {
            let union = first + second - both;
            (union > 0).then(|| (class as u32, both as f64 / union as f64))
        };
        self.classes.iter().enumerate().filter_map(iou).collect()
    }

    fn mean_iou(&self) -> f64 {
        let iou = self.class_iou();
        iou.values().sum::<f64>() / iou.len().max(1) as f64
    }
}

/// Counts over samples: target against reference, and both against the label masks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct MapCounts {
    agreement: Overlaps,
    reference_labels: Overlaps,
    target_labels: Overlaps,
}

impl MapCounts {
    /// What is wrong with the label masks, if they hold classes beyond those that the model tells apart.
    pub fn hint(&self, classes: usize) -> Option<String> {
        let labels = &self.reference_labels;
        let beyond: u64 = labels.classes.iter().skip(classes).map(|counts| counts[1]).sum();
        (beyond > 0).then(|| {
            format!(
                "{:.1} % of the labelled pixels have classes beyond the model's {classes}, up to {}, and count as wrong; \
                 check that the masks hold this model's class indices, or leave a class out with --ignore-label",
                100.0 * beyond as f64 / labels.pixels.max(1) as f64,
                labels.classes.iter().rposition(|counts| counts[1] > 0).unwrap_or(classes)
            )
        })
    }

    /// Counts a sample. Pixels whose mask is `ignored` take no part in the comparison with labels.
    pub fn push(
        &mut self,
        reference: &ClassMap,
        target: &ClassMap,
        mask: Option<&ClassMap>,
        ignored: Option<u32>,
    ) -> Result<(), String> {
        self.agreement.push(&reference.classes, &target.classes, None);
        if let Some(mask) = mask {
            if mask.size != reference.size {
                return Err(format!(
                    "the label mask has {:?} pixels and the output {:?}; resize the masks with nearest neighbour first",
                    mask.size, reference.size
                ));
            }
            self.reference_labels.push(&mask.classes, &reference.classes, ignored);
            self.target_labels.push(&mask.classes, &target.classes, ignored);
        }
        Ok(())
    }

    /// Adds what was counted over other samples.
    pub fn append(&mut self, later: &Self) {
        self.agreement.append(&later.agreement);
        self.reference_labels.append(&later.reference_labels);
        self.target_labels.append(&later.target_labels);
    }

    /// The target's shares and means over classes: agreement and intersection over union with the reference, and with
    /// the label masks (NaN without masks).
    pub fn figures(&self) -> Vec<f64> {
        let labels = &self.target_labels;
        let of_labels = if labels.pixels > 0 { [labels.share_equal(), labels.mean_iou()] } else { [f64::NAN; 2] };
        [[self.agreement.share_equal(), self.agreement.mean_iou()], of_labels].concat()
    }

    /// Figures of the reference (against itself, and the labels) and of the target.
    pub fn segmentations(&self) -> (Segmentation, Segmentation) {
        let with = |pixel_agreement, mean_iou, class_iou, labels: &Overlaps| Segmentation {
            pixel_agreement,
            mean_iou,
            class_iou,
            pixel_accuracy: (labels.pixels > 0).then(|| labels.share_equal()),
            label_mean_iou: (labels.pixels > 0).then(|| labels.mean_iou()),
            label_class_iou: labels.class_iou(),
            standard_errors: None,
        };
        let class_iou = self.agreement.class_iou();
        let own = self.agreement.classes.iter().enumerate().filter(|(_, counts)| counts[1] > 0);
        let own = own.map(|(class, _)| (class as u32, 1.0)).collect();
        (
            with(1.0, 1.0, own, &self.reference_labels),
            with(self.agreement.share_equal(), self.agreement.mean_iou(), class_iou, &self.target_labels),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Tensor, Values};

    fn map(size: [usize; 2], classes: &[u32]) -> ClassMap {
        ClassMap { size, classes: classes.to_vec() }
    }

    #[test]
    fn masks_with_classes_that_the_model_has_not_are_told() {
        let map = |classes: &[u32]| ClassMap { size: [1, 4], classes: classes.to_vec() };
        let hint = |kind, shape: &[usize], mask: &[u32]| {
            let mut counts = MapCounts::default();
            counts.push(&map(&[0, 1, 1, 0]), &map(&[0, 1, 1, 0]), Some(&map(mask)), Some(255)).unwrap();
            classes_of(kind, shape).and_then(|classes| counts.hint(classes))
        };
        let said = hint(OutputKind::Map, &[2, 1, 4], &[0, 10, 20, 255]).unwrap();
        assert!(
            said.starts_with("66.7 % of the labelled pixels have classes beyond the model's 2, up to 20,"),
            "{said}"
        );
        assert!(hint(OutputKind::MapChannelsLast, &[1, 4, 2], &[0, 1, 2, 0]).is_some());
        assert_eq!(hint(OutputKind::Map, &[2, 1, 4], &[0, 1, 255, 255]), None);
        // Maps of indices do not say how many classes there are.
        assert_eq!(hint(OutputKind::Map, &[1, 1, 4], &[0, 9, 9, 9]), None);
    }

    #[test]
    fn counts_by_hand_and_against_labels() {
        let reference = map([2, 3], &[0, 0, 1, 1, 2, 2]);
        let target = map([2, 3], &[0, 1, 1, 1, 2, 0]);
        let mask = map([2, 3], &[0, 1, 1, 255, 2, 3]);
        let mut counts = MapCounts::default();
        counts.push(&reference, &target, Some(&mask), Some(255)).unwrap();
        let (own, seg) = counts.segmentations();
        assert_eq!(seg.pixel_agreement, 4.0 / 6.0);
        // Class 0: 1 of 3; class 1: 2 of 3; class 2: 1 of 2.
        assert_eq!(seg.class_iou, BTreeMap::from([(0, 1.0 / 3.0), (1, 2.0 / 3.0), (2, 0.5)]));
        assert!((seg.mean_iou - 0.5).abs() < 1e-15);
        // Against the mask, without its ignored pixel: 0 → 1 of 2, 1 → 2 of 2, 2 → 1 of 1, 3 → 0 of 1.
        assert_eq!((seg.pixel_accuracy, seg.label_mean_iou), (Some(0.8), Some(0.625)));
        assert_eq!(seg.label_class_iou, BTreeMap::from([(0, 0.5), (1, 1.0), (2, 1.0), (3, 0.0)]));
        assert_eq!((own.pixel_agreement, own.class_iou.len(), own.pixel_accuracy), (1.0, 3, Some(0.6)));
        let small = map([1, 1], &[0]);
        assert!(counts.push(&reference, &target, Some(&small), None).unwrap_err().contains("nearest neighbour"));
    }

    #[test]
    fn scores_become_the_same_map_in_both_layouts() {
        let nan = f32::NAN;
        // Three classes over 1×4 pixels: a tie (lowest wins), NaN first, NaN only, plain.
        let planar = [[1.0, nan, nan, 0.0], [1.0, -5.0, nan, 3.0], [0.5, -6.0, nan, 9.0]];
        let expected = map([1, 4], &[0, 1, NO_CLASS, 2]);
        let first = Tensor::from_f32(vec![3, 1, 4], planar.concat()).unwrap();
        assert_eq!(ClassMap::of(first.view(), OutputKind::Map).unwrap(), expected);
        let values = (0..4).flat_map(|p| planar.map(|class| class[p])).collect();
        let last = Tensor::from_f32(vec![1, 4, 3], values).unwrap();
        assert_eq!(ClassMap::of(last.view(), OutputKind::MapChannelsLast).unwrap(), expected);
        let mut counts = MapCounts::default();
        counts.push(&expected, &expected, None, None).unwrap();
        assert_eq!(counts.segmentations().1.pixel_agreement, 0.75, "a pixel without class agrees with nothing");
    }

    #[test]
    fn indices_are_checked() {
        let of = |values| ClassMap::of(Tensor::new(vec![1, 2], values).unwrap().view(), OutputKind::Map);
        assert_eq!(of(Values::I64(vec![0, 7])).unwrap().classes, [0, 7]);
        assert!(of(Values::I64(vec![0, -1])).unwrap_err().contains("-1 is not a class index"));
        assert!(of(Values::F32(vec![0.0, 0.3])).unwrap_err().contains("indices, not scores"));
        assert!(of(Values::I64(vec![0, 70_000])).unwrap_err().contains("hardly a map"));
        let scores = Tensor::from_f32(vec![2, 1, 1], vec![0.0, 1.0]).unwrap();
        assert!(ClassMap::of_mask(scores.view()).unwrap_err().contains("not [H, W]"));
    }
}
