//! The comparison of one target with the reference, batch by batch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    CompareError, ComparisonResult, OutputKind, OutputMetrics, OutputPair, OwnMetric, PairSums, Part, PartMetrics,
    PartSums, StandardErrors, TaskResult, agreement::Best, detection::Detections, groups::Groups, heads::Head,
    parts::by_scale, spread::Spread, task::Task, totals::Totals,
};
use crate::{
    backend::Tensors,
    dataset::{self, Scene},
    pass,
    tensor::{ElementType, Tensor, TensorView},
};

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
    /// Parts of outputs, where more is known of them than their size.
    #[serde(default)]
    pub parts: BTreeMap<String, Vec<Part>>,
    /// The head of a detector.
    #[serde(default)]
    pub head: Option<Head>,
    /// Draws for the intervals of a detector's figures, at most; 0 for none.
    #[serde(default)]
    pub resamples: usize,
    /// A metric of the caller's own, which needs the outputs of all samples at once: a whole evaluation gives it, parts do not.
    #[serde(skip)]
    pub metric: Option<OwnMetric>,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self {
            kinds: BTreeMap::new(),
            top_k: Vec::new(),
            max_flips: 50,
            class_names: Vec::new(),
            ignored_label: Some(255),
            parts: BTreeMap::new(),
            head: None,
            resamples: 1000,
            metric: None,
        }
    }
}

impl CompareOptions {
    /// The same for a detector with this head.
    #[must_use]
    pub fn with_head(mut self, head: Option<&Head>) -> Self {
        self.parts.extend(head.into_iter().flat_map(Head::parts));
        self.head = head.cloned();
        self
    }

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
    /// Where the picture lies in the input, and its labelled boxes, where they are known. Belongs to the detection head.
    pub scene: Option<&'a Scene>,
}

impl<'a> Sample<'a> {
    /// The samples of a part of a pass.
    pub fn of_part(part: &pass::Part<'a>) -> Vec<Self> {
        Self::list(part.ids, part.labels, part.masks, part.scenes)
    }

    /// The samples of a batch that was read.
    pub fn of_batch(batch: &'a dataset::Batch) -> Vec<Self> {
        Self::list(&batch.ids, &batch.labels, &batch.masks, &batch.scenes)
    }

    fn list(
        ids: &'a [String],
        labels: &[Option<u32>],
        masks: &'a [Option<Tensor>],
        scenes: &'a [Option<Scene>],
    ) -> Vec<Self> {
        let sample = |(index, id): (usize, &'a String)| Self {
            id,
            label: labels.get(index).copied().flatten(),
            mask: masks.get(index).and_then(Option::as_ref),
            scene: scenes.get(index).and_then(Option::as_ref),
        };
        ids.iter().enumerate().map(sample).collect()
    }
}

/// Compares one target with the reference. Memory does not grow with the samples, apart from eight bytes for each that
/// changed; the result does not depend on how samples are put into batches.
///
/// It can be written and read in the middle of the samples; it goes on as if nothing had happened.
#[derive(Debug, Serialize, Deserialize)]
pub struct Comparison {
    pub(super) options: CompareOptions,
    pub(super) samples: u64,
    pub(super) outputs: Vec<Output>,
    ignored_outputs: Vec<String>,
    pub(super) detections: Option<Detections>,
    /// The outputs of a head that chose its boxes: place by place they cannot be compared.
    chosen: Vec<OutputPair>,
}

/// What every output needs to know of a batch.
pub(super) struct Batch<'a> {
    pub samples: &'a [Sample<'a>],
    /// Samples before it.
    pub first: u64,
    pub options: &'a CompareOptions,
    /// Whether labels and masks belong to no output before.
    pub labels: bool,
    pub masks: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Output {
    pub pair: OutputPair,
    pub sums: Totals,
    pub spread: Spread,
    pub parts: Groups<PartSums>,
    pub integers: bool,
    /// `None` before the first sample.
    pub task: Option<Task>,
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
        let there = |name: &str| pairs.iter().any(|pair| pair.reference == name);
        let head = options.head.as_ref().filter(|head| head.outputs().into_iter().all(there)).cloned();
        let mut chosen = Vec::new();
        if let Some(head) = head.as_ref().filter(|head| head.is_chosen()) {
            chosen.extend(pairs.extract_if(.., |pair| head.outputs().contains(&pair.reference.as_str())));
        }
        if pairs.is_empty() && chosen.is_empty() {
            return Err(CompareError::AllIgnored);
        }
        let outputs = pairs.into_iter().map(Output::new).collect();
        let detections = head.map(Detections::new);
        Ok(Self { options, samples: 0, outputs, ignored_outputs, detections, chosen })
    }

    /// True before the first sample.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Adds the outputs of a batch, on the device where both lie on the same. After an error the comparison is of no more
    /// use.
    pub fn push<'a>(
        &mut self,
        samples: &[Sample<'_>],
        reference: impl Into<Tensors<'a>>,
        target: impl Into<Tensors<'a>>,
    ) -> Result<(), CompareError> {
        let (reference, target) = (reference.into(), target.into());
        if let (Tensors::Device(device, reference), Tensors::Device(other, target)) = (&reference, &target)
            && device.index() == other.index()
            && !self.finds_boxes()
        {
            return self.push_there(samples, *device, [reference, target]);
        }
        reference.on_host(|reference| {
            target.on_host(|target| {
                self.push_batch(samples, |output, batch| {
                    let r = find(reference, &output.pair.reference, "reference")?;
                    let t = find(target, &output.pair.target, "target")?;
                    output.push(batch, r, t)
                })?;
                self.push_detections(samples, reference, target)
            })
        })
    }

    /// Whether it looks at outputs in host memory only: heads are decoded there.
    pub(super) fn finds_boxes(&self) -> bool {
        self.detections.is_some()
    }

    fn push_detections(
        &mut self,
        samples: &[Sample<'_>],
        reference: &[(&str, TensorView<'_>)],
        target: &[(&str, TensorView<'_>)],
    ) -> Result<(), CompareError> {
        let Some(detections) = &mut self.detections else { return Ok(()) };
        let pairs: Vec<&OutputPair> = self.outputs.iter().map(|output| &output.pair).chain(&self.chosen).collect();
        for (index, sample) in samples.iter().enumerate() {
            let rows = |outputs, name: fn(&OutputPair) -> &String, side| {
                let row = |pair: &&OutputPair| {
                    let view = find(outputs, name(pair), side)?;
                    Ok((pair.reference.clone(), row(view, &pair.reference, index, samples.len())?))
                };
                pairs.iter().map(row).collect::<Result<BTreeMap<String, TensorView<'_>>, CompareError>>()
            };
            let r = rows(reference, |pair| &pair.reference, "reference")?;
            let t = rows(target, |pair| &pair.target, "target")?;
            let pushed =
                detections.push(sample.id, sample.scene, &|name| r.get(name).copied(), &|name| t.get(name).copied());
            pushed.map_err(|reason| CompareError::Boxes { sample: sample.id.to_owned(), reason })?;
        }
        Ok(())
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
        let non_finite =
            self.outputs.iter().map(|output| (output.pair.reference.clone(), output.sums.sums().non_finite));
        let errors = |output: &Output| Some((output.pair.reference.clone(), output.errors(&self.options)?));
        ComparisonResult {
            samples: self.samples as usize,
            standard_errors: self.outputs.iter().filter_map(errors).collect(),
            outputs: self.outputs.iter().map(|output| output.metrics(&self.options)).collect(),
            non_finite: non_finite.filter(|(_, counts)| !counts.is_empty()).collect(),
            tasks: self.outputs.iter().filter_map(Output::result).collect(),
            detection: self
                .detections
                .map(|detections| detections.finish(&self.options.class_names, self.options.resamples)),
            own_metric: None,
            pairs: self.outputs.into_iter().map(|output| output.pair).chain(self.chosen).collect(),
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

pub(super) fn find<T: Copy>(outputs: &[(&str, T)], name: &str, side: &'static str) -> Result<T, CompareError> {
    let found = outputs.iter().find(|(found, _)| *found == name).map(|(_, view)| *view);
    found.ok_or_else(|| CompareError::MissingOutput {
        side,
        name: name.to_owned(),
        available: outputs.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
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
    fn new(pair: OutputPair) -> Self {
        let (sums, spread, parts) = Default::default();
        Self { pair, sums, spread, parts, integers: false, task: None }
    }

    fn metrics(&self, options: &CompareOptions) -> OutputMetrics {
        let sums = self.parts.whole(PartSums::append);
        let parts = sums.figures(&self.parts(&sums, options));
        let parts = parts.iter().map(|(part, sums)| PartMetrics::new(part, sums)).collect();
        OutputMetrics { integers: self.integers, parts, ..self.sums.sums().metrics(&self.pair.reference) }
    }

    fn parts(&self, sums: &PartSums, options: &CompareOptions) -> Vec<Part> {
        options.parts.get(&self.pair.reference).cloned().unwrap_or_else(|| by_scale(sums))
    }

    /// How far the figures scatter over samples, those of parts over groups of samples.
    fn errors(&self, options: &CompareOptions) -> Option<StandardErrors> {
        let mut errors = self.spread.errors(&self.sums.sums())?;
        let parts = self.parts(&self.parts.whole(PartSums::append), options);
        let figures = |sums: &PartSums| -> Vec<f64> {
            let of = |(_, sums): (Part, PairSums)| {
                let figures = sums.metrics("");
                [figures.sqnr_db.unwrap_or(f64::NAN), figures.cosine, figures.mean_abs]
            };
            sums.figures(&parts).into_iter().flat_map(of).collect()
        };
        let scatter = self.parts.scatter(PartSums::append, figures);
        for (part, scatter) in parts.iter().zip(scatter.as_chunks::<3>().0) {
            let [sqnr_db, cosine, mean_abs] = scatter.map(|scatter| scatter.map(|scatter| scatter.standard_error));
            let samples = scatter.iter().flatten().map(|scatter| scatter.groups).max().unwrap_or(0);
            let of_part = StandardErrors { samples, sqnr_db, cosine, mean_abs, parts: BTreeMap::new() };
            errors.parts.insert(part.name.clone(), of_part);
        }
        Some(errors)
    }

    /// Adds the differences of a sample.
    pub(super) fn add(&mut self, sums: &PairSums) {
        self.sums.add(sums);
        self.spread.add(sums);
    }

    /// Whether sums by part are needed of a sample, besides those of the whole.
    pub(super) fn has_parts(&self, shape: &[usize]) -> bool {
        !self.integers && PartSums::suits(shape)
    }

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
            self.add(&PairSums::of(r.values, t.values, f32::INFINITY));
            let pushed = match self.task(batch, r.values.element_type(), r.shape) {
                Task::Generic => Ok(()),
                Task::Map(map) => map.push(batch, index, r, t),
                Task::Classification(task) => {
                    let k = task.longest();
                    task.push(batch, index, r.values.len(), &Best::of(r.values, k), &Best::of(t.values, k))
                }
            };
            pushed.map_err(|reason| self.misfit(batch, index, reason))?;
            if self.has_parts(r.shape) {
                self.parts.of(batch.samples[index].id).push(r, t);
            }
        }
        Ok(())
    }

    /// What the output is, which its first sample decides.
    pub(super) fn task(&mut self, batch: &Batch<'_>, element_type: ElementType, shape: &[usize]) -> &mut Task {
        let name = &self.pair.reference;
        self.integers = !element_type.is_float();
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
                (result.kind, result.label_hint) = (map.kind, map.hint());
                let (reference, target) = map.segmentations();
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
                result.classes = right.classes();
                result.only_one_right = right.only_one_right();
                result.label_hint = right.reference.hint(task.classes);
                result.flipped.clone_from(&task.flips.positions);
                result.flips.clone_from(&task.flips.details);
            }
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests;
