//! The comparison of one target with the reference, batch by batch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    CompareError, ComparisonResult, FIVE, Flip, OutputKind, OutputPair, PairSums, TaskResult,
    accuracy::PairedCounts,
    agreement::{AgreementCounts, Best, Flips},
    segmentation::{ClassMap, MapCounts},
};
use crate::tensor::{ElementType, Tensor, TensorMap, TensorView};

/// What [`Comparison`] needs to know beyond the tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompareOptions {
    /// Kinds of outputs, by the reference's name, where the shape tells the wrong one.
    pub kinds: BTreeMap<String, OutputKind>,
    /// Values of k besides 1 and 5 to report.
    pub top_k: Vec<usize>,
    /// Changed samples to keep with their best classes; all are counted.
    pub max_flips: usize,
    /// Names of classes, by index.
    pub class_names: Vec<String>,
    /// Class of mask pixels that take no part.
    pub ignored_label: Option<u32>,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self {
            kinds: BTreeMap::new(),
            top_k: Vec::new(),
            max_flips: 50,
            class_names: Vec::new(),
            ignored_label: Some(255),
        }
    }
}

impl CompareOptions {
    /// True for an output that takes part in nothing.
    pub fn ignores(&self, output: &str) -> bool {
        self.kinds.get(output) == Some(&OutputKind::Ignored)
    }
}

/// One sample of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Its name.
    pub id: &'a str,
    /// The right class, where it is known. Belongs to the first output that is a classification.
    pub label: Option<u32>,
    /// The right class of each pixel, [H, W], where it is known. Belongs to the first output that is a map.
    pub mask: Option<&'a Tensor>,
}

/// Compares one target with the reference. Memory does not grow with the samples, apart from eight bytes for each that
/// changed; the result does not depend on how samples are put into batches.
///
/// It can be written and read in the middle of the samples; it goes on as if nothing had happened.
#[derive(Debug, Serialize, Deserialize)]
pub struct Comparison {
    options: CompareOptions,
    samples: u64,
    outputs: Vec<Output>,
    ignored_outputs: Vec<String>,
}

/// What every output needs to know of a batch.
pub(super) struct Batch<'a> {
    pub samples: &'a [Sample<'a>],
    /// Samples before it.
    first: u64,
    options: &'a CompareOptions,
    /// Whether labels and masks belong to no output before.
    labels: bool,
    masks: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Output {
    pub pair: OutputPair,
    pub sums: PairSums,
    /// `None` before the first sample.
    pub task: Option<Task>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    Generic,
    Map(Map),
    Classification(Box<Classification>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Map {
    kind: OutputKind,
    labelled: bool,
    counts: MapCounts,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Classification {
    classes: usize,
    labelled: bool,
    counts: AgreementCounts,
    further: Vec<AgreementCounts>,
    right: PairedCounts,
    flips: Flips,
}

impl Comparison {
    /// A comparison of outputs, both sides in the order of their model. They are paired by name; only when no name is
    /// shared and both have equally many, by position, which the result tells.
    pub fn new(reference: &[String], target: &[String], options: CompareOptions) -> Result<Self, CompareError> {
        let (mut pairs, mut ignored_outputs) = pair_outputs(reference, target)?;
        if let Some(name) = options.kinds.keys().find(|name| !reference.contains(name)) {
            return Err(CompareError::UnknownOutput { name: name.clone(), known: reference.join(", ") });
        }
        let ignored = |pair: &mut OutputPair| options.ignores(&pair.reference);
        ignored_outputs.extend(pairs.extract_if(.., ignored).map(|pair| pair.reference));
        if pairs.is_empty() {
            return Err(CompareError::AllIgnored);
        }
        let outputs = pairs.into_iter().map(|pair| Output { pair, sums: PairSums::default(), task: None }).collect();
        Ok(Self { options, samples: 0, outputs, ignored_outputs })
    }

    /// Adds the outputs of a batch. After an error the comparison is of no more use.
    pub fn push(
        &mut self,
        samples: &[Sample<'_>],
        reference: &TensorMap,
        target: &TensorMap,
    ) -> Result<(), CompareError> {
        self.push_batch(samples, |output, batch| {
            let r = find(reference, &output.pair.reference, "reference")?;
            let t = find(target, &output.pair.target, "target")?;
            output.push(batch, r.view(), t.view())
        })
    }

    /// Adds a batch to every output in turn.
    pub(super) fn push_batch(
        &mut self,
        samples: &[Sample<'_>],
        mut push: impl FnMut(&mut Output, &Batch<'_>) -> Result<(), CompareError>,
    ) -> Result<(), CompareError> {
        let mut batch = Batch { samples, first: self.samples, options: &self.options, labels: true, masks: true };
        for output in &mut self.outputs {
            push(output, &batch)?;
            batch.labels &= !matches!(output.task, Some(Task::Classification { .. }));
            batch.masks &= !matches!(output.task, Some(Task::Map { .. }));
        }
        self.samples += samples.len() as u64;
        Ok(())
    }

    /// The figures over all samples.
    pub fn finish(self) -> ComparisonResult {
        let non_finite = self.outputs.iter().filter(|output| !output.sums.non_finite.is_empty());
        ComparisonResult {
            samples: self.samples as usize,
            outputs: self.outputs.iter().map(|output| output.sums.metrics(&output.pair.reference)).collect(),
            non_finite: non_finite.map(|output| (output.pair.reference.clone(), output.sums.non_finite)).collect(),
            tasks: self.outputs.iter().filter_map(Output::result).collect(),
            pairs: self.outputs.into_iter().map(|output| output.pair).collect(),
            ignored_outputs: self.ignored_outputs,
        }
    }
}

fn pair_outputs(reference: &[String], target: &[String]) -> Result<(Vec<OutputPair>, Vec<String>), CompareError> {
    let shared = reference.iter().filter(|name| target.contains(name)).count();
    let by_position = shared == 0 && reference.len() == target.len();
    if shared < reference.len() && !by_position {
        let missing = reference.iter().find(|name| !target.contains(name)).cloned().unwrap_or_default();
        return Err(CompareError::MissingOutput { side: "target", name: missing, available: target.join(", ") });
    }
    let pair = |(index, name): (usize, &String)| OutputPair {
        reference: name.clone(),
        target: if by_position { target[index].clone() } else { name.clone() },
        by_position,
    };
    let pairs = reference.iter().enumerate().map(pair).collect();
    let ignored =
        if by_position { Vec::new() } else { target.iter().filter(|n| !reference.contains(n)).cloned().collect() };
    Ok((pairs, ignored))
}

pub(super) fn find<'a>(outputs: &'a TensorMap, name: &str, side: &'static str) -> Result<&'a Tensor, CompareError> {
    outputs.get(name).ok_or_else(|| CompareError::MissingOutput {
        side,
        name: name.to_owned(),
        available: outputs.keys().cloned().collect::<Vec<_>>().join(", "),
    })
}

/// One sample of a batch of outputs, without the batch extent. An output without one is the sample in a batch of one.
pub(super) fn row<'a>(
    view: TensorView<'a>,
    output: &str,
    index: usize,
    samples: usize,
) -> Result<TensorView<'a>, CompareError> {
    match view.shape.split_first() {
        Some((&batch, shape)) if batch == samples => {
            let length = view.values.len() / samples;
            Ok(TensorView { shape, values: view.values.slice(index * length..(index + 1) * length) })
        }
        _ if samples == 1 => Ok(view),
        _ => Err(CompareError::Batch { output: output.to_owned(), shape: view.shape.to_vec(), samples }),
    }
}

impl Output {
    pub(super) fn push(
        &mut self,
        batch: &Batch<'_>,
        reference: TensorView<'_>,
        target: TensorView<'_>,
    ) -> Result<(), CompareError> {
        let count = batch.samples.len();
        for index in 0..count {
            let r = row(reference, &self.pair.reference, index, count)?;
            let t = row(target, &self.pair.reference, index, count)?;
            if r.shape != t.shape {
                return Err(self.shapes_differ(reference.shape, target.shape));
            }
            self.sums.add(&PairSums::of(r.values, t.values, f32::INFINITY));
            let pushed = match self.task(batch, r.values.element_type(), r.shape) {
                Task::Generic => Ok(()),
                Task::Map(map) => map.push(batch, index, r, t),
                Task::Classification(task) => {
                    let k = task.longest();
                    task.push(batch, index, r.values.len(), &Best::of(r.values, k), &Best::of(t.values, k))
                }
            };
            pushed.map_err(|reason| self.misfit(batch, index, reason))?;
        }
        Ok(())
    }

    /// What the output is, which its first sample decides.
    pub(super) fn task(&mut self, batch: &Batch<'_>, element_type: ElementType, shape: &[usize]) -> &mut Task {
        let name = &self.pair.reference;
        self.task.get_or_insert_with(|| Task::new(element_type, shape, name, batch))
    }

    pub(super) fn shapes_differ(&self, reference: &[usize], target: &[usize]) -> CompareError {
        let (output, reference, target) = (self.pair.reference.clone(), reference.to_vec(), target.to_vec());
        CompareError::OutputShape { output, reference, target }
    }

    pub(super) fn misfit(&self, batch: &Batch<'_>, index: usize, reason: String) -> CompareError {
        let (output, sample) = (self.pair.reference.clone(), batch.samples[index].id.to_owned());
        CompareError::Kind { output, sample, reason }
    }

    fn result(&self) -> Option<TaskResult> {
        let mut result = TaskResult::new(&self.pair.reference, OutputKind::Generic);
        match self.task.as_ref()? {
            Task::Generic => return None,
            Task::Map(map) => {
                let (reference, target) = map.counts.segmentations();
                (result.kind, result.label_hint) = (map.kind, map.counts.hint());
                (result.reference_segmentation, result.segmentation) = (Some(reference), Some(target));
            }
            Task::Classification(task) => {
                result.kind = OutputKind::Classification;
                result.agreement = Some(task.counts.agreement());
                let right = &task.right;
                let further = task.further.iter().enumerate();
                result.top_k =
                    further.map(|(i, c)| c.top_k(right.reference.further(i), right.target.further(i))).collect();
                (result.reference_accuracy, result.accuracy) = right.accuracies();
                result.label_hint = right.reference.hint(task.classes);
                result.flipped.clone_from(&task.flips.positions);
                result.flips.clone_from(&task.flips.details);
            }
        }
        Some(result)
    }
}

impl Task {
    fn new(element_type: ElementType, shape: &[usize], name: &str, batch: &Batch<'_>) -> Self {
        let &Batch { options, labels, masks, .. } = batch;
        let detected = || OutputKind::detect(element_type, shape);
        match options.kinds.get(name).copied().unwrap_or_else(detected) {
            OutputKind::Generic | OutputKind::Ignored => Self::Generic,
            kind @ (OutputKind::Map | OutputKind::MapChannelsLast) => {
                Self::Map(Map { kind, labelled: masks, counts: MapCounts::of(kind, shape) })
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
        self.counts.push(&reference, &target, mask.as_ref(), batch.options.ignored_label)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Values;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// Outputs of samples `range`: 12 scores, a map of 3 classes on 2×3 pixels, and 4 plain integers. The target
    /// differs by a small disturbance.
    fn outputs(range: std::ops::Range<usize>, disturbance: f32) -> TensorMap {
        let count = range.len();
        let series = |length: usize, seed: usize, disturbance: f32| -> Vec<f32> {
            let value = |i: usize, j: usize| {
                let noise = ((i * 31 + j * 17 + seed) % 23) as f32 - 11.0;
                ((i * 7919 + j * 104_729 + seed) % 97) as f32 / 10.0 + disturbance * noise
            };
            range.clone().flat_map(|i| (0..length).map(move |j| value(i, j))).collect()
        };
        let integers = Values::I64(range.clone().flat_map(|i| [i as i64; 4]).collect());
        TensorMap::from([
            ("logits".to_owned(), Tensor::from_f32(vec![count, 12], series(12, 1, disturbance)).unwrap()),
            ("map".to_owned(), Tensor::from_f32(vec![count, 3, 2, 3], series(18, 2, 6.0 * disturbance)).unwrap()),
            ("boxes".to_owned(), Tensor::new(vec![count, 4], integers).unwrap()),
        ])
    }

    fn compare(total: usize, batch: usize, written: bool) -> ComparisonResult {
        let order = names(&["logits", "map", "boxes"]);
        let options = CompareOptions { top_k: vec![3], max_flips: 2, ..CompareOptions::default() };
        let mut comparison = Comparison::new(&order, &order, options).unwrap();
        let ids: Vec<String> = (0..total).map(|i| format!("{i}.jpg")).collect();
        for start in (0..total).step_by(batch) {
            let range = start..(start + batch).min(total);
            let sample =
                |i: usize| Sample { id: &ids[i], label: (!i.is_multiple_of(3)).then_some(i as u32 % 12), mask: None };
            let samples: Vec<Sample<'_>> = range.clone().map(sample).collect();
            comparison.push(&samples, &outputs(range.clone(), 0.0), &outputs(range, 0.05)).unwrap();
            if written {
                let text = serde_json::to_string(&comparison).unwrap();
                comparison = serde_json::from_str(&text).unwrap();
            }
        }
        comparison.finish()
    }

    #[test]
    fn neither_the_batch_size_nor_an_interruption_changes_a_bit() {
        let result = compare(37, 1, false);
        assert_eq!(result, compare(37, 37, false));
        assert_eq!(result, compare(37, 5, true));
        assert_eq!(result, compare(37, 5, false));
        assert_eq!((result.samples, result.outputs.len(), result.tasks.len()), (37, 3, 2));
    }

    #[test]
    fn figures_match_an_independent_computation() {
        let result = compare(37, 4, false);
        let task = result.classification().unwrap();
        let agreement = task.agreement.as_ref().unwrap();
        assert_eq!((agreement.samples, task.flipped.len(), task.flips.len()), (37, 5, 2));
        assert_eq!(task.flipped, [1, 4, 19, 22, 29]);
        assert_eq!(task.flips[1].sample, "4.jpg");
        let shares = [agreement.top1, agreement.top5_overlap, agreement.top5_set, agreement.ref_top1_in_top5];
        let counted = shares.map(|share| (share * 37.0 * 5.0).round());
        assert_eq!(counted, [160.0, 176.0, 140.0, 185.0]);
        assert_eq!((task.top_k[0].k, (task.top_k[0].overlap * 111.0).round()), (3, 103.0));
        let (r, t) = (task.reference_accuracy.as_ref().unwrap(), task.accuracy.as_ref().unwrap());
        assert_eq!(r.samples, 24);
        assert_eq!([r.top1, r.top5, t.top1, t.top5].map(|share| (share * 24.0).round()), [4.0, 11.0, 5.0, 10.0]);
        let segmentation = result.map().unwrap().segmentation.as_ref().unwrap();
        assert_eq!((segmentation.pixel_agreement * 222.0).round(), 133.0);
        assert!((segmentation.mean_iou - 0.463_046_594_982_078_84).abs() < 1e-12, "{}", segmentation.mean_iou);
        assert!((result.outputs[0].sqnr_db.unwrap() - 24.449_409_468_902_395).abs() < 1e-4);
        assert_eq!((result.outputs[2].sqnr_db, result.outputs[2].max_abs), (None, 0.0));
    }

    #[test]
    fn outputs_are_paired_by_name_or_else_by_position() {
        let new = |r: &[&str], t: &[&str]| Comparison::new(&names(r), &names(t), CompareOptions::default());
        let pairs = |r: &[&str], t: &[&str]| new(r, t).unwrap().finish().pairs;
        assert_eq!(
            pairs(&["a", "b"], &["b", "a"])[0],
            OutputPair { reference: "a".into(), target: "a".into(), by_position: false }
        );
        assert_eq!(
            pairs(&["a", "b"], &["y", "x"])[1],
            OutputPair { reference: "b".into(), target: "x".into(), by_position: true }
        );
        assert_eq!(new(&["a"], &["a", "b"]).unwrap().finish().ignored_outputs, ["b"]);
        for (r, t) in [(&["a", "b"][..], &["a", "c"][..]), (&["a", "b"], &["c"]), (&["a", "b"], &["b"])] {
            let error = new(r, t).unwrap_err().to_string();
            assert!(error.contains("the target has no output `"), "{error}");
        }
        let options =
            CompareOptions { kinds: BTreeMap::from([("x".to_owned(), OutputKind::Map)]), ..CompareOptions::default() };
        let error = Comparison::new(&names(&["a"]), &names(&["a"]), options).unwrap_err().to_string();
        assert_eq!(error, "a kind is set for output `x`, which the reference does not have (it has: a)");
        let ignoring = |r: &[&str]| {
            let kinds = BTreeMap::from([("a".to_owned(), OutputKind::Ignored)]);
            Comparison::new(&names(r), &names(r), CompareOptions { kinds, ..CompareOptions::default() })
        };
        let rest = ignoring(&["a", "b"]).unwrap().finish();
        assert_eq!((rest.pairs.len(), rest.pairs[0].reference.as_str(), &*rest.ignored_outputs[0]), (1, "b", "a"));
        assert!(ignoring(&["a"]).unwrap_err().to_string().contains("nothing is left to compare"));
    }

    #[test]
    fn outputs_that_do_not_fit_are_named() {
        let sample = Sample { id: "7.jpg", label: None, mask: None };
        let push = |samples: usize, r: &[usize], t: &[usize], kind| {
            let tensor = |shape: &[usize]| Tensor::from_f32(shape.to_vec(), vec![0.5; shape.iter().product()]).unwrap();
            let options =
                CompareOptions { kinds: BTreeMap::from([("a".to_owned(), kind)]), ..CompareOptions::default() };
            let mut comparison = Comparison::new(&names(&["a"]), &names(&["a"]), options).unwrap();
            let map = |shape| TensorMap::from([("a".to_owned(), tensor(shape))]);
            comparison.push(&vec![sample; samples], &map(r), &map(t)).map_err(|error| error.to_string())
        };
        let generic = OutputKind::Generic;
        assert_eq!(push(1, &[5], &[5], generic), Ok(()), "a batch of one needs no batch extent");
        let error = push(1, &[1, 5], &[1, 5, 1], generic).unwrap_err();
        assert!(error.contains("[1, 5] in the reference and [1, 5, 1] in") && error.ends_with(" a=ignored"), "{error}");
        assert!(push(2, &[6, 5], &[6, 5], generic).unwrap_err().contains("batch of 2 samples; use a batch of 1"));
        assert!(
            push(1, &[1, 5], &[1, 5], OutputKind::Map).unwrap_err().contains("sample 7.jpg: a sample of shape [5]")
        );
        let error = push(1, &[1, 1, 2, 2], &[1, 1, 2, 2], OutputKind::Map).unwrap_err();
        assert!(error.contains("0.5 is no class index") && error.contains("`generic`"), "{error}");
    }
}
