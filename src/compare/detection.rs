//! Detectors: boxes of the target against those of the reference, and of both against labels.
//!
//! *Agreement* needs no labels: boxes from a confidence on are paired one to one within a class, at IoU 0.5 and 0.75.
//! *Accuracy* is COCO's. Intervals come from drawing pictures with replacement, the same pictures for target and reference.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    average_precision::{ClassPrecision, CocoFigures, ConfidenceCurve, Ranking},
    boxes::{Detection, matches},
    heads::{Head, Traits},
};
use crate::{
    dataset::{Scene, Truth},
    stats::{SplitMix64, percentile, sorted},
    tensor::TensorView,
};

/// Pictures that changed most, kept in full.
const CHANGED: usize = 12;
/// Boxes that all resamples together may look at.
const RESAMPLED_BOXES: usize = 100_000_000;

/// Figures of a detector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DetectionResult {
    /// The head, in words.
    pub head: String,
    /// COCO's figures, where there are labels.
    #[serde(flatten)]
    pub accuracy: Option<DetectionAccuracy>,
    /// `map50_95` of the reference on the same pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_map50_95: Option<f64>,
    /// 95 % interval of `reference_map50_95` less `map50_95`, paired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map50_95_drop_interval: Option<[f64; 2]>,
    /// Agreement with the reference.
    pub agreement: DetectionAgreement,
    /// Pictures whose boxes changed most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<ChangedPicture>,
}

/// Boxes against labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DetectionAccuracy {
    /// Labelled pictures, those without objects included.
    pub labelled_pictures: usize,
    /// COCO's twelve figures.
    #[serde(flatten)]
    pub figures: CocoFigures,
    /// 95 % interval of `map50_95` over pictures.
    pub map50_95_interval: Option<[f64; 2]>,
    /// 95 % interval of `map50` over pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map50_interval: Option<[f64; 2]>,
    /// Average precision of every class with labels.
    pub per_class: Vec<ClassPrecision>,
    /// Precision, recall and F1 of all classes together over the confidence.
    pub confidence: ConfidenceCurve,
}

/// Boxes of the target against those of the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DetectionAgreement {
    /// Score from which boxes count.
    pub confidence: f64,
    /// Share of the target's boxes that the reference has too, at IoU 0.5; 1 where neither has any.
    pub precision: f64,
    /// 95 % interval of `precision` over pictures.
    pub precision_interval: Option<[f64; 2]>,
    /// Share of the reference's boxes that the target has too.
    pub recall: f64,
    /// 95 % interval of `recall` over pictures.
    pub recall_interval: Option<[f64; 2]>,
    /// `precision` at IoU 0.75.
    pub precision_75: f64,
    /// `recall` at IoU 0.75.
    pub recall_75: f64,
    /// Mean overlap of the boxes that both have; absent without any.
    pub mean_iou: Option<f64>,
    /// 95 % interval of `mean_iou` over pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_iou_interval: Option<[f64; 2]>,
    /// Mean of the target's score less the reference's, over the boxes that both have.
    pub score_shift: Option<f64>,
    /// Boxes of the reference that the target lacks.
    pub lost: u64,
    /// Boxes of the target that the reference lacks.
    pub gained: u64,
    /// Boxes that both have.
    pub common: u64,
    /// Pictures compared.
    pub pictures: usize,
}

impl DetectionAgreement {
    /// Harmonic mean of precision and recall.
    pub fn f1(&self) -> f64 {
        let sum = self.precision + self.recall;
        if sum > 0.0 { 2.0 * self.precision * self.recall / sum } else { 0.0 }
    }
}

/// A picture whose boxes changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ChangedPicture {
    /// The sample (its file, usually).
    pub sample: String,
    /// Width and height of the picture in pixels, where they are known.
    pub size: Option<[usize; 2]>,
    /// Boxes of the reference that the target lacks.
    pub lost: Vec<Detection>,
    /// Boxes of the target that the reference lacks.
    pub gained: Vec<Detection>,
    /// Boxes of the target that the reference has too.
    pub common: Vec<Detection>,
    /// Labelled boxes `[x1, y1, x2, y2]`, where they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<[f32; 4]>,
}

/// The boxes of one picture on both sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Picture {
    id: String,
    size: Option<[usize; 2]>,
    #[serde(with = "packed")]
    reference: Vec<Detection>,
    #[serde(with = "packed")]
    target: Vec<Detection>,
    truths: Option<Vec<Truth>>,
    /// See [`Scene::id`].
    rank: Option<u64>,
}

/// Boxes so far. They are kept, as COCO's figures need all of them in one order: about 15 kB a picture and model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Detections {
    head: Head,
    traits: Option<Traits>,
    pictures: Vec<Picture>,
}

/// Values of an output of one sample, by the reference's name of it.
pub(super) type SampleOutputs<'a, 'b> = &'b dyn Fn(&str) -> Option<TensorView<'a>>;

impl Detections {
    pub fn new(head: Head) -> Self {
        Self { head, traits: None, pictures: Vec::new() }
    }

    /// Adds a sample.
    pub fn push<'a>(
        &mut self,
        id: &str,
        scene: Option<&Scene>,
        reference: SampleOutputs<'a, '_>,
        target: SampleOutputs<'a, '_>,
    ) -> Result<(), String> {
        if self.traits.is_none() {
            self.traits = self.head.traits(reference)?;
        }
        if self.traits.is_none() {
            self.traits = self.head.traits(target)?;
        }
        // Without any box there is nothing to misread.
        let traits = self.traits.unwrap_or_default();
        let found = |outputs: SampleOutputs<'a, '_>| {
            let mut found = self.head.decode(traits, outputs)?;
            if let Some(Scene { placement, .. }) = scene {
                for found in &mut found {
                    found.corners = placement.to_picture(found.corners);
                }
            }
            Ok::<_, String>(found)
        };
        let (reference, target) = (found(reference)?, found(target)?);
        let truths = scene.and_then(|scene| scene.truths.clone());
        let size = scene.map(|scene| scene.placement.picture);
        let rank = scene.and_then(|scene| scene.id);
        self.pictures.push(Picture { id: id.to_owned(), size, reference, target, truths, rank });
        Ok(())
    }

    /// Adds the boxes of later samples.
    pub fn append(&mut self, later: Self) {
        self.traits = self.traits.or(later.traits);
        self.pictures.extend(later.pictures);
    }

    /// The figures, with intervals of at most `resamples` draws.
    pub fn finish(&self, names: &[String], resamples: usize) -> DetectionResult {
        let (agreement, changed) = self.agreement(resamples);
        let mut labelled: Vec<&Picture> = self.pictures.iter().filter(|picture| picture.truths.is_some()).collect();
        labelled.sort_by_key(|picture| picture.rank);
        let mut result = DetectionResult {
            head: self.head.describe(),
            accuracy: None,
            reference_map50_95: None,
            map50_95_drop_interval: None,
            agreement,
            changed,
        };
        if labelled.iter().all(|picture| picture.truths.iter().flatten().next().is_none()) {
            return result;
        }
        let ranking = |boxes: fn(&Picture) -> &[Detection]| {
            let mut ranking = Ranking::default();
            for picture in &labelled {
                ranking.push(boxes(picture), picture.truths.as_deref().unwrap_or_default());
            }
            ranking.sort();
            ranking
        };
        let (reference, target) = (ranking(|picture| &picture.reference), ranking(|picture| &picture.target));
        let affordable = RESAMPLED_BOXES / (reference.boxes() + target.boxes()).max(1);
        let draws = resamples.min(affordable.max(100));
        let drawn: Vec<[[f64; 2]; 2]> = resample(labelled.len(), draws, |weights| {
            Some([reference.weighted_maps(weights)?, target.weighted_maps(weights)?])
        });
        let of_target = |place: usize| drawn.iter().map(move |[_, target]| target[place]);
        let mut per_class = target.by_class();
        for class in &mut per_class {
            class.name = names.get(class.class as usize).filter(|name| !name.is_empty()).cloned();
        }
        let figures = target.figures();
        result.accuracy = Some(DetectionAccuracy {
            labelled_pictures: labelled.len(),
            figures,
            map50_95_interval: figures.map50_95.and_then(|map| around(map, of_target(0))),
            map50_interval: figures.map50.and_then(|map| around(map, of_target(1))),
            per_class,
            confidence: target.curve(),
        });
        result.reference_map50_95 = reference.figures().map50_95;
        result.map50_95_drop_interval = interval(drawn.iter().map(|[reference, target]| reference[0] - target[0]));
        result
    }

    fn agreement(&self, resamples: usize) -> (DetectionAgreement, Vec<ChangedPicture>) {
        let confidence = self.head.confidence;
        // By picture: boxes that both have, of the reference, of the target; at IoU 0.75 both. The overlaps of the first.
        let mut counts: Vec<[u64; 4]> = Vec::new();
        let mut overlaps: Vec<f64> = Vec::new();
        let mut shift = 0.0;
        let mut changed: Vec<(f64, ChangedPicture)> = Vec::new();
        for picture in &self.pictures {
            let confident = |boxes: &[Detection]| -> Vec<Detection> {
                boxes.iter().filter(|found| found.score >= confidence).copied().collect()
            };
            let (reference, target) = (confident(&picture.reference), confident(&picture.target));
            let pairs = matches(&reference, &target, 0.5);
            let strict = matches(&reference, &target, 0.75).len();
            counts.push([pairs.len(), reference.len(), target.len(), strict].map(|count| count as u64));
            overlaps.push(pairs.iter().map(|pair| pair.iou).sum());
            for pair in &pairs {
                shift += f64::from(target[pair.target].score) - f64::from(reference[pair.reference].score);
            }
            let without = |boxes: &[Detection], taken: Vec<usize>| -> Vec<Detection> {
                let kept = boxes.iter().enumerate().filter(|(index, _)| !taken.contains(index));
                kept.map(|(_, found)| *found).collect()
            };
            let lost = without(&reference, pairs.iter().map(|pair| pair.reference).collect());
            let gained = without(&target, pairs.iter().map(|pair| pair.target).collect());
            let weight: f64 = lost.iter().chain(&gained).map(|found| f64::from(found.score)).sum();
            if weight > 0.0 {
                let common = pairs.iter().map(|pair| target[pair.target]).collect();
                let labels = picture.truths.iter().flatten().map(|truth| truth.corners).collect();
                let (sample, size) = (picture.id.clone(), picture.size);
                changed.push((weight, ChangedPicture { sample, size, lost, gained, common, labels }));
                // Stable, so that the first of equals stays.
                changed.sort_by(|a, b| b.0.total_cmp(&a.0));
                changed.truncate(CHANGED);
            }
        }
        let weighted = |weights: Option<&[u32]>| {
            let mut sums = [0; 4];
            for (index, counts) in counts.iter().enumerate() {
                let weight = weights.map_or(1, |weights| u64::from(weights[index]));
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += weight * count);
            }
            sums
        };
        let share = |part: u64, of: u64, others: u64| match (of, others) {
            (0, 0) => 1.0,
            // Nothing was found, or nothing was to be found.
            (0, _) => 0.0,
            _ => part as f64 / of as f64,
        };
        let rates = |[both, reference, target, _]: [u64; 4]| {
            let recall = if reference == 0 { 1.0 } else { share(both, reference, target) };
            [share(both, target, reference), recall]
        };
        // Without weights, every picture once.
        let mean_iou = |weights: Option<&[u32]>, common: u64| {
            let weight = |index: usize| weights.map_or(1.0, |weights| f64::from(weights[index]));
            let sum: f64 = overlaps.iter().enumerate().map(|(index, overlap)| weight(index) * overlap).sum();
            (common > 0).then(|| sum / common as f64)
        };
        let drawn = resample(counts.len(), resamples, |weights| {
            let sums = weighted(Some(weights));
            Some((rates(sums), mean_iou(Some(weights), sums[0])))
        });
        let totals @ [both, reference, target, strict] = weighted(None);
        let [precision, recall] = rates(totals);
        let [precision_75, recall_75] = rates([strict, reference, target, strict]);
        let agreement = DetectionAgreement {
            // As people wrote it: 0.25, not the nearest single-precision number.
            confidence: (f64::from(confidence) * 1e6).round() / 1e6,
            precision,
            precision_interval: interval(drawn.iter().map(|(rates, _)| rates[0])),
            recall,
            recall_interval: interval(drawn.iter().map(|(rates, _)| rates[1])),
            precision_75,
            recall_75,
            mean_iou: mean_iou(None, both),
            mean_iou_interval: interval(drawn.iter().filter_map(|(_, mean_iou)| *mean_iou)),
            score_shift: (both > 0).then(|| shift / both as f64),
            lost: reference - both,
            gained: target - both,
            common: both,
            pictures: counts.len(),
        };
        (agreement, changed.into_iter().map(|(_, picture)| picture).collect())
    }
}

/// A figure for every draw of `count` pictures with replacement, each picture by its weight.
fn resample<T: Send>(count: usize, draws: usize, figure: impl Fn(&[u32]) -> Option<T> + Sync) -> Vec<T> {
    if count < 2 {
        return Vec::new();
    }
    let draw = |seed: usize| {
        let mut random = SplitMix64::new(seed as u64);
        let mut weights = vec![0; count];
        for _ in 0..count {
            weights[random.below(count)] += 1;
        }
        figure(&weights)
    };
    (0..draws).into_par_iter().filter_map(draw).collect()
}

/// The middle 95 % of drawn figures; `None` with too few.
fn interval(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let values = sorted(&values.collect::<Vec<_>>());
    (values.len() >= 40).then_some(())?;
    Some([percentile(&values, 2.5)?, percentile(&values, 97.5)?])
}

/// The middle 95 % of drawn figures, moved so that their median lies on the `figure` itself: pictures that are drawn twice
/// and classes that are not drawn make a mean average precision larger than it is.
fn around(figure: f64, values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let values = sorted(&values.collect::<Vec<_>>());
    (values.len() >= 40).then_some(())?;
    let at = |percent| Some((figure + percentile(&values, percent)? - percentile(&values, 50.0)?).clamp(0.0, 1.0));
    Some([at(2.5)?, at(97.5)?])
}

/// Boxes as Base64, 24 bytes each: checkpoints hold many.
mod packed {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::Detection;

    pub(super) fn serialize<S: Serializer>(boxes: &[Detection], serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(boxes.len() * 24);
        for found in boxes {
            found.corners.iter().chain([&found.score]).for_each(|x| bytes.extend(x.to_le_bytes()));
            bytes.extend(found.class.to_le_bytes());
        }
        STANDARD.encode(bytes).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Detection>, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        let (words, _) = bytes.as_chunks::<4>();
        let boxes = words.as_chunks::<6>().0.iter().map(|words| {
            let float = |index: usize| f32::from_le_bytes(words[index]);
            Detection { corners: std::array::from_fn(float), score: float(4), class: u32::from_le_bytes(words[5]) }
        });
        Ok(boxes.collect())
    }
}

#[cfg(test)]
mod tests;
