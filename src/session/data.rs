//! The samples of a run: which preprocessing, which samples calibrate, which evaluate.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    Control, PipelineError, Session,
    evaluation::{EvaluateOptions, Outputs, evaluate},
    model::Subject,
};
use crate::{
    backend::TensorInfo,
    compare::ComparisonResult,
    config::RunConfig,
    dataset::{
        CLASSIFIER_PRESETS, Collection, DataOptions, Dataset, DatasetError, Extent, Kept, LabelledClasses, PRESETS,
        Pictures, Preprocess, RandomDataset, Rounded, Split, holds_images, image_size, load_classes, load_preprocessor,
        open, picture, split,
    },
};

/// Labelled samples that presets are tried on when none is given.
const TRIED: usize = 32;

/// Where samples come from and how they are read.
#[derive(Clone, Debug, Default)]
pub struct DataSettings {
    /// Folder or file.
    pub path: PathBuf,
    /// Label file.
    pub labels: Option<PathBuf>,
    /// Class names.
    pub classes: Option<PathBuf>,
    /// Preprocessing, if given in full.
    pub preprocess: Option<Preprocess>,
    /// Name of a preset, if given.
    pub preset: Option<String>,
    /// Hugging Face `preprocessor_config.json`, if given.
    pub preprocessor: Option<PathBuf>,
    /// Category ids of classes 0, 1, ... in COCO's JSON, if given.
    pub category_ids: Vec<u64>,
    /// Key points of a pose in YOLO's labels, and the numbers of each, where known.
    pub key_points: Option<[usize; 2]>,
    /// The preset to assume for a detector, of which labels of classes tell nothing.
    pub detector: Option<&'static str>,
    /// What the model is made for by its exporter's metadata, where that tells the preset.
    pub task: Option<String>,
    /// Class names of the model's own, where none are given.
    pub names: BTreeMap<u32, String>,
    /// Height and width of the pictures, where the model's input leaves them open.
    pub size: Option<[usize; 2]>,
}

impl DataSettings {
    fn says_preprocessing(&self) -> bool {
        self.preprocess.is_some() || self.preset.is_some() || self.preprocessor.is_some()
    }
}

/// How the preprocessing was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// It was given.
    Given(String),
    /// `preprocessor_config.json` lies beside the model.
    BesideModel(PathBuf),
    /// The preset with the highest accuracy on a few labelled samples: right answers by preset, and samples tried.
    Measured(Vec<(String, usize)>, usize),
    /// The preset of those that exported the model for a task, by its metadata.
    Exported(&'static str, String),
    /// The most common one, without evidence.
    Assumed(String),
    /// The samples are arrays.
    None,
}

impl Provenance {
    /// In words.
    pub fn describe(&self) -> String {
        match self {
            Self::Given(what) => what.clone(),
            Self::BesideModel(path) => format!("from {}", path.display()),
            Self::Measured(tried, samples) => {
                let list: Vec<String> = tried.iter().map(|(name, right)| format!("{name} {right}")).collect();
                // The first of equals was taken.
                let (best, most) =
                    tried.iter().rev().max_by_key(|(_, right)| right).map_or(("", 0), |(name, right)| (name, *right));
                let as_good = tried.iter().filter(|(_, right)| *right == most).count() - 1;
                let how = match as_good {
                    0 => "the best one".to_owned(),
                    equal => format!("the first of {} that are equally good", equal + 1),
                };
                format!("preset `{best}`, {how} on {samples} labelled samples (right answers: {})", list.join(", "))
            }
            Self::Exported(name, task) => format!("preset `{name}`, by the metadata of the model (task {task})"),
            Self::Assumed(name) => format!("assumed to be preset `{name}`, since none was given"),
            Self::None => "none: the samples are arrays".to_owned(),
        }
    }
}

/// An open data set.
pub struct Data {
    /// The samples.
    pub collection: Collection,
    /// What was done to pictures.
    pub preprocess: Option<Preprocess>,
    /// How that was found.
    pub provenance: Provenance,
}

impl Data {
    /// Chooses `count` calibration samples where nothing is evaluated: nothing has to be left for that.
    pub fn calibration(&self, seed: u64, count: usize) -> Vec<usize> {
        if count == 0 || !self.collection.training.is_empty() {
            return self.split(seed, count, 0).calibration;
        }
        let dataset = &self.collection.dataset;
        split(dataset.len(), |index| dataset.id(index), seed, 0, count).evaluation
    }

    /// Chooses calibration and evaluation samples.
    pub fn split(&self, seed: u64, calibration: usize, evaluation: usize) -> Split {
        let Collection { dataset, training, .. } = &self.collection;
        if training.is_empty() {
            return split(dataset.len(), |index| dataset.id(index), seed, calibration, evaluation);
        }
        // A `data.yaml` that keeps training and validation apart decides what serves for what.
        let is_ours = |&index: &usize| training.binary_search_by(|name| name.as_str().cmp(dataset.id(index))).is_ok();
        let (ours, others): (Vec<usize>, Vec<usize>) = (0..dataset.len()).partition(is_ours);
        let choose = |from: &[usize], most: usize| -> Vec<usize> {
            let chosen = split(from.len(), |at| dataset.id(from[at]), seed, 0, most).evaluation;
            chosen.into_iter().map(|index| from[index]).collect()
        };
        Split {
            calibration: if calibration == 0 { Vec::new() } else { choose(&ours, calibration) },
            evaluation: choose(&others, evaluation),
            overlapping: 0,
        }
    }
}

/// The file beside a model that tells its preprocessing.
pub(super) const BESIDE_MODEL: &str = "preprocessor_config.json";

impl Session {
    /// What is wrong with the labels: they look like another model's, or no output of this one is of their kind.
    pub(super) fn label_warnings(&self, reference: &ComparisonResult) -> Vec<String> {
        let mut warnings: Vec<String> = reference.tasks.iter().filter_map(|task| task.label_hint.clone()).collect();
        let dataset = &*self.data.collection.dataset;
        let Some(file) = &self.config.labels else { return warnings };
        let mut unused = |any: bool, what: &str, kind: &str| {
            if any {
                warnings.push(format!(
                    "{what} of {} are not used: no output of the model is a {kind} by its shape; --output-kind NAME=... says \
                     which one is",
                    file.display()
                ));
            }
        };
        let any = |has: fn(&dyn Dataset, usize) -> bool| (0..dataset.len()).any(|index| has(dataset, index));
        let (is_map, is_classification) = (reference.map().is_some(), reference.classification().is_some());
        unused(!is_map && any(|data, index| data.mask_file(index).is_some()), "the label masks", "map of classes");
        unused(
            reference.detection.is_none() && any(|data, index| data.has_boxes(index)),
            "the labelled boxes",
            "detection head that is known (--head)",
        );
        unused(!is_classification && any(|data, index| data.label(index).is_some()), "the labels", "classification");
        warnings
    }
}

/// Opens the data of a run. Without any word on the preprocessing of images, `preprocessor_config.json` beside the
/// model is taken; else, with labels, the preset that gives the float model the most right answers on a few samples;
/// else the preset `imagenet`. What was done is in [`Data::provenance`].
pub fn open_data(
    subject: &Subject,
    settings: &DataSettings,
    reference: &mut dyn Outputs,
    options: &EvaluateOptions,
    control: Control<'_>,
) -> Result<Data, PipelineError> {
    let classes = settings.classes.as_deref().map(load_classes).transpose()?.unwrap_or_else(|| settings.names.clone());
    let inputs = subject.input_specs();
    let open_with = |preprocess: Option<&Preprocess>| {
        let collection = open(&DataOptions {
            path: &settings.path,
            labels: settings.labels.as_deref(),
            classes: &classes,
            category_ids: &settings.category_ids,
            key_points: settings.key_points,
            inputs: &inputs,
            preprocess,
        })?;
        // Arrays are read as they lie in their file, which is quick: only pictures are kept.
        let dataset = if preprocess.is_some() { Box::new(Kept::new(collection.dataset)) } else { collection.dataset };
        Ok::<_, DatasetError>(Collection { dataset, ..collection })
    };
    // A path that is not there is told by whoever opens it, whatever the model takes.
    if !settings.path.exists() || !holds_images(&settings.path) {
        let mut collection = open_with(None)?;
        if settings.says_preprocessing() {
            let path = settings.path.display();
            collection
                .notes
                .push(format!("{path} holds arrays, which are used as they are: the preprocessing is not applied"));
        }
        return Ok(Data { collection, preprocess: None, provenance: Provenance::None });
    }
    let layout = settings.preprocess.as_ref().and_then(|preprocess| preprocess.layout);
    let [height, width] = image_size(&inputs, layout)?;
    let size = height.zip(width).or(settings.size.map(|[height, width]| (height, width)));
    if let Some((preprocess, provenance)) = stated(subject, settings, size)? {
        let collection = open_with(Some(&preprocess))?;
        return Ok(Data { collection, preprocess: Some(preprocess), provenance });
    }
    let preset = |name: &str| preset(name, size);
    if let Some(name) = settings.detector {
        let preprocess = preset(name)?;
        let collection = open_with(Some(&preprocess))?;
        let assumed = || Provenance::Assumed(name.to_owned());
        let provenance = settings.task.clone().map_or_else(assumed, |task| Provenance::Exported(name, task));
        return Ok(Data { collection, preprocess: Some(preprocess), provenance });
    }
    let mut best: Option<(usize, &str, Collection)> = None;
    let mut tried = Vec::new();
    let mut samples = 0;
    for &name in &PRESETS[..CLASSIFIER_PRESETS] {
        let preprocess = preset(name)?;
        let collection = open_with(Some(&preprocess))?;
        let dataset = &*collection.dataset;
        let labelled: Vec<usize> = (0..dataset.len()).filter(|&index| dataset.label(index).is_some()).collect();
        if labelled.is_empty() {
            break;
        }
        let chosen: Vec<usize> = labelled.iter().step_by(labelled.len().div_ceil(TRIED)).copied().collect();
        let lenient =
            EvaluateOptions { policy: crate::dataset::BadPolicy { max_share: 1.0, strict: false }, ..options.clone() };
        // What is read here is read again in the run.
        dataset.keep(&chosen);
        let right = right_answers(reference, dataset, &chosen, &lenient, control)?;
        let Some(right) = right else { break };
        samples = chosen.len();
        tried.push((name.to_owned(), right));
        if best.as_ref().is_none_or(|(most, ..)| right > *most) {
            best = Some((right, name, collection));
        }
    }
    let (name, collection, provenance) = match best {
        Some((right, name, collection)) if right > 0 => (name, collection, Provenance::Measured(tried, samples)),
        _ => (PRESETS[0], open_with(Some(&preset(PRESETS[0])?))?, Provenance::Assumed(PRESETS[0].to_owned())),
    };
    Ok(Data { collection, preprocess: Some(preset(name)?), provenance })
}

/// Preprocessing that someone stated, in the configuration or in a file beside the model.
fn stated(
    subject: &Subject,
    settings: &DataSettings,
    size: Option<(usize, usize)>,
) -> Result<Option<(Preprocess, Provenance)>, PipelineError> {
    if let Some(preprocess) = &settings.preprocess {
        let mut preprocess = preprocess.clone();
        if let (Some(letterbox), Some((height, width))) = (&mut preprocess.letterbox, size) {
            letterbox.size.get_or_insert(Extent::Exact([height, width]));
        }
        return Ok(Some((preprocess, Provenance::Given("[preprocess] of the configuration".to_owned()))));
    }
    if let Some(name) = &settings.preset {
        return Ok(Some((preset(name, size)?, Provenance::Given(format!("preset `{name}`")))));
    }
    let beside = subject
        .float
        .path
        .as_ref()
        .and_then(|model| model.parent())
        .map(|folder| folder.join(BESIDE_MODEL))
        .filter(|path| path.is_file());
    let (path, provenance) = match (&settings.preprocessor, beside) {
        (Some(path), _) => (path.clone(), Provenance::Given(path.display().to_string())),
        (None, Some(path)) => (path.clone(), Provenance::BesideModel(path)),
        (None, None) => return Ok(None),
    };
    let preprocess = load_preprocessor(&path, size.map(|(height, width)| [height, width]))?;
    Ok(Some((preprocess, provenance)))
}

fn preset(name: &str, size: Option<(usize, usize)>) -> Result<Preprocess, PipelineError> {
    let (height, width) = size.unwrap_or_else(|| usual_size(name));
    Preprocess::preset(name, height, width).ok_or_else(|| unknown_preset(name))
}

/// Height and width of pictures for a preset, where the model takes any: what most of its models are trained with.
pub(super) fn usual_size(preset: &str) -> (usize, usize) {
    match preset {
        "yolo" | "yolox" | "detr" => (640, 640),
        "nanodet" => (320, 320),
        _ => (224, 224),
    }
}

fn unknown_preset(name: &str) -> PipelineError {
    DatasetError::Input(format!("there is no preset `{name}`; known are {}", PRESETS.join(", "))).into()
}

/// How many samples the model gets right; `None` when it is not a classifier or its labels do not fit.
fn right_answers(
    reference: &mut dyn Outputs,
    dataset: &dyn Dataset,
    indices: &[usize],
    options: &EvaluateOptions,
    control: Control<'_>,
) -> Result<Option<usize>, PipelineError> {
    let quiet = Control { progress: &|_| {}, checkpoints: None, ..control };
    let evaluation = evaluate(reference, &mut [], dataset, indices, options, quiet)?;
    let accuracy = evaluation.reference.classification().and_then(|task| task.accuracy.as_ref());
    Ok(accuracy.map(|accuracy| (accuracy.top1 * accuracy.samples as f64).round() as usize))
}

/// A caller's own samples.
pub(super) fn own_samples(
    subject: &Subject,
    settings: &DataSettings,
    dataset: Box<dyn Dataset>,
) -> Result<Data, PipelineError> {
    let names = settings.classes.as_deref().map(load_classes).transpose()?.unwrap_or_default();
    let has_labels = (0..dataset.len()).any(|index| dataset.label(index).is_some());
    let label_source = has_labels.then(|| "the program that gave the samples".to_owned());
    let mut notes = Vec::new();
    let is_in_memory = dataset.is_in_memory();
    let is_picture = || !dataset.is_empty() && dataset.sample(0).is_ok_and(|sample| picture(sample).is_some());
    let (dataset, preprocess, provenance) = if !settings.says_preprocessing() {
        (dataset, None, Provenance::None)
    } else if is_picture() {
        let layout = settings.preprocess.as_ref().and_then(|preprocess| preprocess.layout);
        let [height, width] = image_size(&subject.input_specs(), layout)?;
        let size = height.zip(width).or(settings.size.map(|[height, width]| (height, width)));
        let (preprocess, provenance) = stated(subject, settings, size)?
            .ok_or_else(|| PipelineError::input("no preprocessing is known for the pictures; give a preset"))?;
        let pictures = Pictures::new(dataset, &subject.input_specs(), preprocess.clone())?;
        (Box::new(pictures) as Box<dyn Dataset>, Some(preprocess), provenance)
    } else {
        notes.push("the samples are arrays, which are used as they are: the preprocessing is not applied".to_owned());
        (dataset, None, Provenance::None)
    };
    let (dataset, note) = Rounded::of(dataset, &subject.input_specs());
    notes.extend(note);
    let dataset = if is_in_memory && preprocess.is_none() { dataset } else { Box::new(Kept::new(dataset)) };
    let (passed_over, training) = (Vec::new(), Vec::new());
    let collection =
        Collection { dataset, passed_over, names, label_source, notes, labelled: LabelledClasses::default(), training };
    Ok(Data { collection, preprocess, provenance })
}

/// Random numbers for every input.
pub(super) fn random_data(config: &RunConfig, subject: &Subject) -> Result<Data, PipelineError> {
    if let Some(file) = &config.labels {
        let reason = format!("random inputs have no right answers, so {} is of no use; leave it out", file.display());
        return Err(PipelineError::Input(reason));
    }
    let evaluation = if config.eval_samples == 0 { config.calib_samples } else { config.eval_samples };
    let count = config.calib_samples.saturating_add(evaluation).max(subject.usual_batch());
    let dataset = RandomDataset::new(&subject.specs_of_a_sample(), count, config.seed).map_err(PipelineError::Input)?;
    let whole = subject.takes_whole_inputs();
    let dataset = dataset.of_whole_inputs(whole);
    let open = subject.inputs.iter().filter(|input| whole && input.shape.first() == Some(&None));
    let note = |input: &TensorInfo| {
        format!("the first axis of `{}` is 1 in random inputs; --shape gives it another extent", input.name)
    };
    let collection = Collection {
        dataset: Box::new(Kept::new(Box::new(dataset))),
        passed_over: Vec::new(),
        names: BTreeMap::new(),
        label_source: None,
        notes: open.map(note).collect(),
        labelled: LabelledClasses::default(),
        training: Vec::new(),
    };
    Ok(Data { collection, preprocess: None, provenance: Provenance::None })
}
