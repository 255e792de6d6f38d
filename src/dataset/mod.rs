//! Where samples come from, and how a file becomes a model's input.
//!
//! [`open`] recognises a folder of images (flat or one folder a class), a list file, Ultralytics' `data.yaml`, `.npy`,
//! `.npz`, a folder of `.npz` files and Polygraphy's inputs JSON. [`split`] chooses samples by name, [`prefetch`] reads them ahead.

mod arrays;
mod data_yaml;
mod decode;
mod files;
mod forward;
mod huggingface;
mod images;
mod jpeg;
mod kept;
mod label_boxes;
mod label_folder;
mod labels;
mod left_out;
mod letterbox;
mod masks;
mod named;
mod opencv;
mod pictures;
mod prefetch;
mod preprocess;
mod random;
mod resample;
mod rounded;
mod split;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use decode::{MAX_PIXELS, decode};
pub use huggingface::load_preprocessor;
pub use kept::{Kept, free_bytes, samples_read};
pub use label_boxes::{LabelledClasses, Scene, Truth};
pub use labels::load_classes;
pub use letterbox::{Letterbox, Place, Placement, SideRounding};
pub use named::each_named;
pub use pictures::{Pictures, picture};
pub use prefetch::{BadPolicy, Batch, PassError, PassSummary, PrefetchOptions, prefetch};
pub use preprocess::{CLASSIFIER_PRESETS, ChannelOrder, Extent, Layout, PRESETS, Preprocess};
pub use random::RandomDataset;
pub use resample::{CropRounding, Interpolation, RgbImage, resize};
pub use rounded::Rounded;
pub use split::{Split, split};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::{ContentHash, Reading, check_stays},
    tensor::{ElementType, Tensor, TensorMap},
};

/// Why one sample cannot be used. The run goes on without it and reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {reason}", labels::shown(sample))]
pub struct SampleError {
    /// The sample (its file, usually).
    pub sample: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// Labels cannot be used.
    #[error("labels {path}: {reason}")]
    Labels {
        /// The label file.
        path: PathBuf,
        /// What is wrong, with the line.
        reason: String,
    },
    /// The data does not suit the model's inputs.
    #[error("{0}")]
    Input(String),
}

/// An indexed collection of samples; reading one does not touch the others, so any number of threads may read.
pub trait Dataset: Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// True without samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A name that is unique in the data set and stable between runs (the path within the folder, usually).
    fn id(&self, index: usize) -> &str;

    /// The right class, where it is known.
    fn label(&self, index: usize) -> Option<u32>;

    /// The file with the right class of each pixel, where there is one.
    fn mask_file(&self, index: usize) -> Option<&Path> {
        let _ = index;
        None
    }

    /// Reads the right class of each pixel, `[H, W]` in the size of the preprocessed picture; `None` where it is unknown.
    fn mask(&self, index: usize) -> Result<Option<Tensor>, SampleError> {
        let _ = index;
        Ok(None)
    }

    /// Reads one sample: every input of the model, each with a leading extent of 1 for the batch.
    fn sample(&self, index: usize) -> Result<TensorMap, SampleError>;

    /// The same, and where the picture lies in the input with its labelled boxes; `None` for what is no picture.
    fn read(&self, index: usize) -> Result<(TensorMap, Option<Scene>), SampleError> {
        Ok((self.sample(index)?, None))
    }

    /// The shapes of the sample's inputs, found by reading no more of it than that takes.
    fn shapes(&self, index: usize) -> Result<BTreeMap<String, Vec<usize>>, SampleError> {
        self.sample(index).map(|sample| shapes_of(&sample))
    }

    /// True where samples lie in memory as the model takes them, so that nobody gains by keeping them.
    fn is_in_memory(&self) -> bool {
        false
    }

    /// Says that these samples will be read several times, for those who can keep them.
    fn keep(&self, indices: &[usize]) {
        let _ = indices;
    }

    /// True where the boxes in the sample are known, also that there are none.
    fn has_boxes(&self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// Hash over the labelled boxes of the sample, or over its file of [`Self::mask_file`]; `None` without either.
    fn truth_hash(&self, index: usize) -> Option<ContentHash> {
        let _ = index;
        None
    }

    /// The file of the sample, where it has one of its own.
    fn file(&self, index: usize) -> Option<PathBuf> {
        let _ = index;
        None
    }

    /// A picture of the sample for people, its longer side at most `side` pixels, as JPEG bytes; `None` when it is no
    /// picture.
    fn picture(&self, index: usize, side: usize) -> Option<Vec<u8>> {
        let _ = (index, side);
        None
    }

    /// A small picture of the sample for people.
    fn thumbnail(&self, index: usize) -> Option<Vec<u8>> {
        self.picture(index, THUMBNAIL)
    }
}

/// The shapes of arrays, by their names.
fn shapes_of(arrays: &TensorMap) -> BTreeMap<String, Vec<usize>> {
    arrays.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect()
}

/// What a model takes, as far as it matters for reading samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// Name of the input.
    pub name: String,
    /// Type of its elements; absent when unknown.
    pub element_type: Option<ElementType>,
    /// Extents; `None` for a dynamic one, and for the first where it counts samples.
    pub shape: Vec<Option<usize>>,
}

/// What [`open`] reads.
#[derive(Clone, Debug)]
pub struct DataOptions<'a> {
    /// Folder or file.
    pub path: &'a Path,
    /// Label file, or folder of label masks or of YOLO's text files; without one, class folders are labels.
    pub labels: Option<&'a Path>,
    /// Class names by index, where known.
    pub classes: &'a BTreeMap<u32, String>,
    /// Category ids of classes 0, 1, ... in COCO's JSON, where they are not in order.
    pub category_ids: &'a [u64],
    /// Key points of a pose in YOLO's labels, and the numbers of each, where known.
    pub key_points: Option<[usize; 2]>,
    /// The model's inputs.
    pub inputs: &'a [InputSpec],
    /// Preprocessing of images; absent only for data that is not images.
    pub preprocess: Option<&'a Preprocess>,
}

/// A data set and what was learnt while listing it.
pub struct Collection {
    /// The samples.
    pub dataset: Box<dyn Dataset>,
    /// Files that were passed over.
    pub passed_over: Vec<SampleError>,
    /// Class names from the label file or the class folders.
    pub names: BTreeMap<u32, String>,
    /// Where labels come from; `None` without labels.
    pub label_source: Option<String>,
    /// What the user should know about how the data are read.
    pub notes: Vec<String>,
    /// Which classes labelled boxes have.
    pub labelled: LabelledClasses,
    /// Names of the samples for training, which calibrate, where a `data.yaml` keeps them apart; empty otherwise.
    pub training: Vec<String>,
}

/// Longer side of a thumbnail.
const THUMBNAIL: usize = 96;

/// Endings of files that are read as images.
const IMAGE_ENDINGS: [&str; 8] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib"];

/// Endings of files that hold arrays.
const ARRAY_ENDINGS: [&str; 2] = ["npz", "npy"];

/// Endings of pictures that are not read.
const FOREIGN_ENDINGS: [&str; 9] = ["tif", "tiff", "gif", "heic", "heif", "avif", "jp2", "ppm", "pgm"];

/// True when a path holds images (and no more arrays than images), so that preprocessing is needed.
pub fn holds_images(path: &Path) -> bool {
    match ending(path).as_str() {
        "npy" | "npz" | "json" => false,
        _ if !path.is_dir() => true,
        // A few of one kind among many of the other are not what the folder is for.
        _ => match [&["npz"][..], &IMAGE_ENDINGS].map(|endings| images::list(path, endings, None)) {
            [Ok(arrays), Ok(images)] => arrays.files.len() <= images.files.len(),
            [Ok(arrays), Err(_)] => arrays.files.is_empty(),
            _ => true,
        },
    }
}

/// Height and width of the model's one image input, `None` each where dynamic; an error when images cannot feed it.
pub fn image_size(inputs: &[InputSpec], layout: Option<Layout>) -> Result<[Option<usize>; 2], DatasetError> {
    Ok(images::ImageInput::of(inputs, layout)?.size)
}

/// Opens a data set. Without samples it is an error.
pub fn open(options: &DataOptions<'_>) -> Result<Collection, DatasetError> {
    let path = options.path;
    let _reading = Reading::of(path);
    let metadata = std::fs::metadata(path).map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
    let mut collection = if holds_images(path) {
        open_images(options, metadata.is_dir())?
    } else {
        open_arrays(options, metadata.is_dir())?
    };
    collection.notes.extend(left_out::counted("data", &collection.passed_over));
    if collection.dataset.is_empty() {
        let left_out: String = collection.notes.iter().map(|note| format!("; {note}")).collect();
        return Err(DatasetError::Format {
            path: path.to_owned(),
            reason: format!(
                "it holds no samples; expected are images (JPEG, PNG, WebP, BMP), in it or in one folder a class, or .npz \
                 files{left_out}"
            ),
        });
    }
    for (class, name) in options.classes {
        collection.names.insert(*class, name.clone());
    }
    Ok(collection)
}

fn open_arrays(options: &DataOptions<'_>, folder: bool) -> Result<Collection, DatasetError> {
    let (mut passed_over, mut left_unread) = (Vec::new(), Vec::new());
    let mut data = if folder {
        let listing = images::list(options.path, &["npz"], options.labels)?;
        left_unread = left_out::unread(options.path, &listing, options.labels)?;
        passed_over = listing.skipped.into_iter().filter(|skipped| !is_label_file(skipped, options.labels)).collect();
        let names = listing.files.into_iter().map(|(name, _)| name).collect();
        arrays::ArrayDataset::files(options.path, names, options.inputs)
    } else if ending(options.path) == "json" {
        arrays::ArrayDataset::polygraphy(options.path, options.inputs)?
    } else {
        arrays::ArrayDataset::stacked(options.path, options.inputs)?
    };
    let (mut names, mut label_source) = (BTreeMap::new(), None);
    if let Some(file) = options.labels {
        if file.is_dir() {
            let reason = "a folder of label masks goes with images, and the samples are arrays; give a file of classes";
            return Err(DatasetError::Labels { path: file.to_owned(), reason: reason.to_owned() });
        }
        let ids: Vec<&str> = (0..data.len()).map(|index| data.id(index)).collect();
        let labels = labels::Labels::load(file, options.classes, &ids)?;
        let assigned = labels.assign(&ids)?;
        data.set_labels(assigned);
        names = labels.names;
        label_source = Some(file.display().to_string());
    }
    let notes = data.notes().iter().cloned().chain(left_unread).collect();
    let dataset = Box::new(data);
    Ok(Collection {
        dataset,
        passed_over,
        names,
        label_source,
        notes,
        labelled: LabelledClasses::default(),
        training: Vec::new(),
    })
}

fn open_images(options: &DataOptions<'_>, folder: bool) -> Result<Collection, DatasetError> {
    let preprocess = options.preprocess.cloned().unwrap_or_default();
    preprocess.check().map_err(DatasetError::Input)?;
    let input = images::ImageInput::of(options.inputs, preprocess.layout)?;
    let yaml = if data_yaml::is_yaml(options.path) { Some(data_yaml::DataYaml::open(options.path)?) } else { None };
    let (mut training, mut notes) = (Vec::new(), Vec::new());
    let mut boxes = None;
    let DataOptions { classes, category_ids, key_points, .. } = *options;
    let mut known = label_boxes::Known { classes, category_ids, key_points };
    let mut yaml_names = BTreeMap::new();
    let (mut listing, list) = if let Some(data_yaml::DataYaml {
        files,
        labels,
        names,
        key_points,
        skipped,
        notes: of_yaml,
        training: apart,
    }) = yaml
    {
        (training, notes) = (apart, of_yaml);
        known.key_points = key_points.or(known.key_points);
        if options.labels.is_none() && !labels.is_empty() {
            let classes = if options.classes.is_empty() { &names } else { options.classes };
            let known = label_boxes::Known { classes, ..known };
            boxes = Some(label_boxes::BoxLabels::yolo(options.path, labels, known)?);
        }
        yaml_names = names;
        (images::Listing { files, skipped, ..images::Listing::default() }, None)
    } else if folder {
        (images::list(options.path, &IMAGE_ENDINGS, options.labels)?, None)
    } else {
        (images::Listing::default(), Some(files::read_list(options.path)?))
    };
    let mut names = BTreeMap::new();
    notes.extend(left_out::unread(options.path, &listing, options.labels)?);
    let each = || (files::Files::Each(std::mem::take(&mut listing.files)), Vec::new());
    let (files, mut assigned) = list.unwrap_or_else(each);
    let mut label_source = (!assigned.is_empty()).then(|| options.path.display().to_string());
    // Names for labels to be found by; of a list without any they would take more memory than the list.
    let is_labelled = options.labels.is_some() || boxes.is_some() || listing.classes.len() > 1;
    let ids: Vec<&str> = (0..files.len()).filter(|_| is_labelled).map(|index| files.id(index)).collect();
    let mut masks = Vec::new();
    let mut scenes = Vec::new();
    let mut labelled = LabelledClasses::default();
    let mut mask_files = None;
    if let Some(path) = options.labels {
        if path.is_dir() {
            let samples = || (0..files.len()).map(|index| files.path(index));
            let found = label_folder::LabelFolder::open(path, samples)?;
            notes.extend(found.notes);
            match found.kind {
                label_folder::Kind::Boxes => boxes = Some(label_boxes::BoxLabels::yolo(path, found.files, known)?),
                label_folder::Kind::Masks => mask_files = Some(masks::Masks::new(path, found.files)),
            }
        } else {
            boxes = label_boxes::BoxLabels::open(path, known)?;
            mask_files = if boxes.is_none() { masks::Masks::open(path, &ids)? } else { None };
        }
    }
    if let (Some(mut labels), false) = (boxes, ids.is_empty()) {
        scenes = labels.assign(&ids)?;
        notes.append(&mut labels.notes);
        labelled = labels.labelled_classes();
        names = labels.names;
        label_source = Some(options.labels.unwrap_or(options.path).display().to_string());
    } else if let (Some(of_masks), false) = (&mask_files, ids.is_empty()) {
        masks = of_masks.assign(&ids)?;
        label_source = options.labels.map(|path| path.display().to_string());
    } else if let (Some(file), false) = (options.labels, ids.is_empty()) {
        let labels = labels::Labels::load(file, options.classes, &ids)?;
        assigned = labels.assign(&ids)?;
        names = labels.names;
        label_source = Some(file.display().to_string());
    } else if listing.classes.len() > 1 && assigned.is_empty() {
        let refused = |reason| DatasetError::Format { path: options.path.to_owned(), reason };
        let (labels, counted) = images::folder_labels(&listing, &ids, options.classes).map_err(refused)?;
        notes.extend(counted);
        assigned = labels;
        for (id, label) in ids.iter().zip(&assigned) {
            if let (Some((class, _)), Some(label)) = (id.split_once('/'), label) {
                names.entry(*label).or_insert_with(|| class.to_owned());
            }
        }
        label_source = Some("folder names".to_owned());
    }
    for path in (0..files.len()).map(|index| files.path(index)).chain(masks.iter().flatten().cloned()) {
        let path_shown = || labels::shown(&path.to_string_lossy()).into_owned().into();
        check_stays(&path).map_err(|source| DatasetError::Read { path: path_shown(), source })?;
    }
    let mut dataset = images::ImageDataset::new(files, input, preprocess);
    dataset.set_labels(assigned);
    dataset.set_masks(masks);
    dataset.set_boxes(scenes);
    let letters = |name: &str| name.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "");
    let is_other = |(class, name): &(&u32, &String)| {
        options.classes.get(class).is_some_and(|known| letters(known) != letters(name))
    };
    if let Some((class, name)) = yaml_names.iter().find(is_other) {
        notes.push(format!(
            "the labels call class {class} `{}`, which the model, or the list of classes, calls `{}`: where they count the \
             classes in another order, every accuracy is wrong",
            labels::shown(name),
            labels::shown(&options.classes[class])
        ));
    }
    for (class, name) in yaml_names {
        names.entry(class).or_insert(name);
    }
    let passed_over = listing.skipped.into_iter().filter(|skipped| !is_label_file(skipped, options.labels)).collect();
    Ok(Collection { dataset: Box::new(dataset), passed_over, names, label_source, notes, labelled, training })
}

/// The label and class files of a data set often lie beside its samples; they are not failed samples.
fn is_label_file(skipped: &SampleError, labels: Option<&Path>) -> bool {
    let labels = labels.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let is_text = |name: &str| {
        matches!(ending(Path::new(name)).as_str(), "txt" | "csv" | "json" | "md" | "toml" | "yaml" | "yml" | "xml")
    };
    Some(&skipped.sample) == labels.as_ref() || is_text(&skipped.sample)
}

fn ending(path: &Path) -> String {
    path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Hash over samples by name, in order, with what is known of the content of each, and over their preprocessing.
pub fn data_hash<'a>(samples: impl Iterator<Item = (&'a str, String)>, preprocess: Option<&Preprocess>) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    for (id, content) in samples {
        for text in [id, &content].into_iter().filter(|text| !text.is_empty()) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.update(format!("{preprocess:?}").as_bytes());
    ContentHash::from(hasher)
}
