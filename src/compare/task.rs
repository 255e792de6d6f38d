//! What an output is for, where it is a classification or a map: what is counted for it, and the figures of that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Classes, FIVE, OutputKind, TopK,
    accuracy::PairedCounts,
    agreement::{AgreementCounts, Best, Flips},
    driver::Batch,
    groups::Groups,
    segmentation::{ClassMap, MapCounts, classes_of},
};
use crate::tensor::{ElementType, TensorView};

/// Shares of samples, each between 0 and 1, on which reference and target agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Agreement {
    /// Same arg-max.
    pub top1: f64,
    /// Wilson 95 % confidence interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Mean of |top5(reference) ∩ top5(target)| / 5.
    pub top5_overlap: f64,
    /// Same set of five.
    pub top5_set: f64,
    /// The reference's first is among the target's five.
    pub ref_top1_in_top5: f64,
    /// Samples compared.
    pub samples: usize,
}

/// Shares of labelled samples, each between 0 and 1, that a model gets right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Accuracy {
    /// The label is the arg-max.
    pub top1: f64,
    /// Wilson 95 % confidence interval of `top1`.
    pub top1_interval: [f64; 2],
    /// The label is among the five largest.
    pub top5: f64,
    /// Wilson 95 % confidence interval of `top5`.
    pub top5_interval: [f64; 2],
    /// Labelled samples.
    pub samples: usize,
    /// McNemar's test of `top1` against the reference: the probability of a difference this large if both were
    /// equally good. Absent for the reference itself.
    pub mcnemar_p: Option<f64>,
}

/// Agreement of outputs that are maps of classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Segmentation {
    /// Share of pixels with the same class as the reference.
    pub pixel_agreement: f64,
    /// Mean over classes of intersection over union with the reference.
    pub mean_iou: f64,
    /// Intersection over union of every class that occurs, by class index.
    pub class_iou: BTreeMap<u32, f64>,
    /// Share of pixels that match the label masks, where masks were given.
    pub pixel_accuracy: Option<f64>,
    /// Mean intersection over union with the label masks, where masks were given.
    pub label_mean_iou: Option<f64>,
    /// Intersection over union with the label masks of every class that occurs, by class index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub label_class_iou: BTreeMap<u32, f64>,
    /// How far the target's figures scatter over the samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_errors: Option<SegmentationErrors>,
}

/// Standard errors of the figures of maps, each group of samples left out in turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SegmentationErrors {
    /// Groups of samples.
    pub groups: u64,
    /// Of `pixel_agreement`.
    pub pixel_agreement: f64,
    /// Of `mean_iou`.
    pub mean_iou: f64,
    /// Of `pixel_accuracy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixel_accuracy: Option<f64>,
    /// Of `label_mean_iou`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_mean_iou: Option<f64>,
}

/// One class and its score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Scored {
    /// Class index.
    pub class: u32,
    /// Class name, where names are known.
    pub name: Option<String>,
    /// The output's value (a logit, usually).
    pub score: f32,
}

/// A sample whose arg-max changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Flip {
    /// The sample (its file, usually).
    pub sample: String,
    /// The right class, where it is known.
    pub label: Option<u32>,
    /// The reference's five best, best first.
    pub reference: Vec<Scored>,
    /// The target's five best, best first.
    pub target: Vec<Scored>,
}

/// Figures of an output that is a classification or a map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TaskResult {
    /// Name of the output.
    pub output: String,
    /// How it was compared.
    pub kind: OutputKind,
    /// Classifications: agreement with the reference.
    pub agreement: Option<Agreement>,
    /// Agreement for each further k that was asked for.
    pub top_k: Vec<TopK>,
    /// Accuracy of the target on labelled samples.
    pub accuracy: Option<Accuracy>,
    /// Accuracy of the reference on the same samples.
    pub reference_accuracy: Option<Accuracy>,
    /// Samples that only the reference gets right, and that only the target does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_one_right: Option<[u64; 2]>,
    /// Right answers by class, and confusions that grew.
    pub classes: Option<Classes>,
    /// What looks wrong with the labels, if anything.
    pub label_hint: Option<String>,
    /// Maps: agreement with the reference.
    pub segmentation: Option<Segmentation>,
    /// Maps: the reference against itself, and against the label masks where they were given.
    pub reference_segmentation: Option<Segmentation>,
    /// Positions (from 0, in the order compared) of all samples whose arg-max changed.
    pub flipped: Vec<u64>,
    /// The first of them in full.
    pub flips: Vec<Flip>,
}

impl TaskResult {
    pub(super) fn new(output: &str, kind: OutputKind) -> Self {
        Self {
            output: output.to_owned(),
            kind,
            agreement: None,
            top_k: Vec::new(),
            accuracy: None,
            reference_accuracy: None,
            classes: None,
            only_one_right: None,
            label_hint: None,
            segmentation: None,
            reference_segmentation: None,
            flipped: Vec::new(),
            flips: Vec::new(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    Generic,
    Map(Map),
    Classification(Box<Classification>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Map {
    pub kind: OutputKind,
    labelled: bool,
    classes: Option<usize>,
    pub counts: Groups<MapCounts>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Classification {
    pub classes: usize,
    labelled: bool,
    pub counts: AgreementCounts,
    pub further: Vec<AgreementCounts>,
    pub right: PairedCounts,
    pub flips: Flips,
}

impl Task {
    pub(super) fn new(element_type: ElementType, shape: &[usize], name: &str, batch: &Batch<'_>) -> Self {
        let &Batch { options, labels, masks, .. } = batch;
        // Prototypes of masks are not scores of classes.
        let is_map = !options.head.as_ref().is_some_and(|head| head.is_prototypes(shape));
        let detected = || if is_map { OutputKind::detect(element_type, shape) } else { OutputKind::Generic };
        match options.kinds.get(name).copied().unwrap_or_else(detected) {
            OutputKind::Generic | OutputKind::Ignored => Self::Generic,
            // Nothing has no arg-max.
            _ if shape.contains(&0) => Self::Generic,
            kind @ (OutputKind::Map | OutputKind::MapChannelsLast) => {
                Self::Map(Map { kind, labelled: masks, classes: classes_of(kind, shape), counts: Groups::default() })
            }
            OutputKind::Classification => {
                let classes = shape.iter().product();
                let counts = |&k: &usize| AgreementCounts::new(k.min(classes));
                Self::Classification(Box::new(Classification {
                    classes,
                    labelled: labels,
                    counts: counts(&FIVE),
                    further: options.top_k.iter().map(counts).collect(),
                    right: PairedCounts::default(),
                    flips: Flips::default(),
                }))
            }
        }
    }
}

impl Map {
    pub(super) fn push(
        &mut self,
        batch: &Batch<'_>,
        index: usize,
        reference: TensorView<'_>,
        target: TensorView<'_>,
    ) -> Result<(), String> {
        let mask = batch.samples[index].mask.filter(|_| self.labelled);
        let mask = mask.map(|mask| ClassMap::of_mask(mask.view())).transpose()?;
        let (reference, target) = (ClassMap::of(reference, self.kind)?, ClassMap::of(target, self.kind)?);
        let counts = self.counts.of(batch.samples[index].id);
        counts.push(&reference, &target, mask.as_ref(), batch.options.ignored_label)
    }

    /// What is wrong with the label masks, if anything.
    pub(super) fn hint(&self) -> Option<String> {
        self.counts.whole(MapCounts::append).hint(self.classes?)
    }

    /// Figures of the reference and of the target.
    pub(super) fn segmentations(&self) -> (Segmentation, Segmentation) {
        let (reference, mut target) = self.counts.whole(MapCounts::append).segmentations();
        let scatter = self.counts.scatter(MapCounts::append, MapCounts::figures);
        if let [Some(pixel_agreement), Some(mean_iou), pixel_accuracy, label_mean_iou] = *scatter {
            target.standard_errors = Some(SegmentationErrors {
                groups: pixel_agreement.groups,
                pixel_agreement: pixel_agreement.standard_error,
                mean_iou: mean_iou.standard_error,
                pixel_accuracy: pixel_accuracy.map(|scatter| scatter.standard_error),
                label_mean_iou: label_mean_iou.map(|scatter| scatter.standard_error),
            });
        }
        (reference, target)
    }
}

impl Classification {
    /// How many of the best classes are looked at.
    pub(super) fn longest(&self) -> usize {
        self.further.iter().map(|counts| counts.k).fold(FIVE, usize::max)
    }

    /// Adds a sample by its best classes, [`longest`](Self::longest) of them.
    pub(super) fn push(
        &mut self,
        batch: &Batch<'_>,
        index: usize,
        scores: usize,
        reference: &Best,
        target: &Best,
    ) -> Result<(), String> {
        if scores != self.classes {
            return Err(format!("it has {scores} scores where earlier samples have {} classes", self.classes));
        }
        let ks: Vec<usize> = self.further.iter().map(|counts| counts.k).collect();
        let (best_r, best_t) = (&reference.classes, &target.classes);
        for counts in &mut self.further {
            counts.push(best_r, best_t);
        }
        let label = batch.samples[index].label.filter(|_| self.labelled);
        if let Some(label) = label {
            self.right.push(best_r, best_t, label, self.classes, &ks);
        }
        if !self.counts.push(best_r, best_t) {
            self.flips.positions.push(batch.first + index as u64);
            if self.flips.details.len() < batch.options.max_flips {
                let names = &batch.options.class_names;
                let sample = batch.samples[index].id.to_owned();
                let (reference, target) = (reference.scored(names), target.scored(names));
                self.flips.details.push(Flip { sample, label, reference, target });
            }
        }
        Ok(())
    }
}
