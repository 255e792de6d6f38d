//! Samples that are image files, and those of a folder (flat, or one folder a class).

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
    path::{Path, PathBuf},
};

use super::{
    ARRAY_ENDINGS, Dataset, DatasetError, FOREIGN_ENDINGS, IMAGE_ENDINGS, InputSpec, SampleError,
    decode::decode,
    ending,
    files::Files,
    label_boxes::{PictureBoxes, Scene},
    labels::ClassNames,
    letterbox::Placement,
    masks,
    preprocess::{Layout, MAX_SIDE, Preprocess, gray},
    resample::{Interpolation, RgbImage, resize},
};
use crate::{
    artifact::ContentHash,
    tensor::{ElementType, Tensor, TensorMap},
};

/// Why files and folders are passed over that systems keep for themselves.
pub(super) const HIDDEN: &str = "names that begin with a dot are hidden";

/// Why others are.
pub(super) const NOT_READ: &str = "its ending is not one of those that are read";

/// Folders that archives and systems of files put beside those of the user.
const OF_SYSTEMS: [&str; 5] = ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"];

/// Largest image file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Image files and how they become a model's input.
pub(super) struct ImageDataset {
    files: Files,
    /// Empty without any.
    labels: Vec<Option<u32>>,
    /// Empty without any.
    masks: Vec<Option<PathBuf>>,
    /// Empty without any.
    boxes: Vec<Option<PictureBoxes>>,
    input: ImageInput,
    preprocess: Preprocess,
}

/// The one input that takes the picture.
#[derive(Clone, Debug)]
pub(super) struct ImageInput {
    name: String,
    element_type: ElementType,
    channels: usize,
    layout: Layout,
    /// Height and width where the model fixes them.
    pub(super) size: [Option<usize>; 2],
}

impl ImageInput {
    /// The input of a model that takes pictures: the only one, of rank 4, with 1 or 3 channels.
    pub(super) fn of(inputs: &[InputSpec], layout: Option<Layout>) -> Result<Self, DatasetError> {
        let [input] = inputs else {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(DatasetError::Input(format!(
                "images feed a model with one input; this one has {} (`{}`): pass .npz files with all of them",
                inputs.len(),
                names.join("`, `")
            )));
        };
        let shape = &input.shape;
        if shape.len() != 4 {
            let has = if shape.is_empty() { "no extents".to_owned() } else { format!("rank {}", shape.len()) };
            return Err(DatasetError::Input(format!(
                "images feed an input of rank 4; `{}` has {has}: bind its shape with --shape, or pass .npz files",
                input.name
            )));
        }
        let channels = |axis: usize| shape[axis].filter(|&n| n == 1 || n == 3);
        if let Some(layout) = layout {
            let [own, other] = if layout == Layout::Nchw { [1, 3] } else { [3, 1] };
            if channels(own).is_none() && channels(other).is_some() {
                let right = if other == 1 { "nchw (channels_first)" } else { "nhwc (channels_last)" };
                return Err(DatasetError::Input(format!(
                    "`{}` has its channels on axis {other}, and the preprocessing puts them on axis {own}: its layout \
                     (`layout` in [preprocess], `data_format` in a preprocessor file) is {right}, or is left out",
                    input.name
                )));
            }
        }
        let (layout, channels) = match (layout, channels(1), channels(3)) {
            (Some(Layout::Nhwc), _, n) | (None, None, n @ Some(_)) => (Layout::Nhwc, n.unwrap_or(3)),
            (Some(Layout::Nchw), n, _) | (None, n @ Some(_), _) => (Layout::Nchw, n.unwrap_or(3)),
            (None, None, None) if shape[1].is_none() => (Layout::Nchw, 3),
            (None, None, None) => {
                return Err(DatasetError::Input(format!(
                    "`{}` has neither 1 nor 3 channels on axis 1 or 3: pass .npz files",
                    input.name
                )));
            }
        };
        let size = match layout {
            Layout::Nchw => [shape[2], shape[3]],
            Layout::Nhwc => [shape[1], shape[2]],
        };
        if let Some(side) = size.iter().flatten().find(|&&side| !(1..=MAX_SIDE).contains(&side)) {
            return Err(DatasetError::Input(format!(
                "`{}` takes pictures of {side} pixels a side; between 1 and {MAX_SIDE} are possible",
                input.name
            )));
        }
        let element_type = input.element_type.unwrap_or(ElementType::F32);
        Ok(Self { name: input.name.clone(), element_type, channels, layout, size })
    }

    /// What the model takes of a picture, and where the picture lies in it.
    pub(super) fn of_picture(
        &self,
        mut picture: RgbImage,
        preprocess: &Preprocess,
    ) -> Result<(TensorMap, Placement), String> {
        if self.channels == 1 {
            picture = gray(&picture);
        }
        let shaped = preprocess.shape_image(&picture)?;
        for (axis, (want, got)) in self.size.iter().zip([shaped.height, shaped.width]).enumerate() {
            if let Some(want) = want.filter(|&want| want != got) {
                let side = ["height", "width"][axis];
                return Err(format!(
                    "its {side} is {got} after preprocessing, the model takes {want}; set `resize` and `crop`"
                ));
            }
        }
        let tensor = preprocess
            .tensor(&shaped, self.channels, self.layout, self.element_type)
            .ok_or_else(|| format!("an image cannot feed an input of type {}", self.element_type))?;
        Ok((TensorMap::from([(self.name.clone(), tensor)]), preprocess.placement(picture.width, picture.height)))
    }
}

impl ImageDataset {
    pub(super) fn new(files: Files, input: ImageInput, preprocess: Preprocess) -> Self {
        Self { labels: Vec::new(), masks: Vec::new(), boxes: Vec::new(), files, input, preprocess }
    }

    pub(super) fn set_labels(&mut self, labels: Vec<Option<u32>>) {
        self.labels = labels;
    }

    pub(super) fn set_masks(&mut self, masks: Vec<Option<PathBuf>>) {
        self.masks = masks;
    }

    pub(super) fn set_boxes(&mut self, boxes: Vec<Option<PictureBoxes>>) {
        self.boxes = boxes;
    }

    fn pixels(&self, index: usize) -> Result<RgbImage, SampleError> {
        let bad = |reason: String| SampleError { sample: self.id(index).to_owned(), reason };
        decode(&read_file(&self.files.path(index)).map_err(bad)?).map_err(bad)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("it cannot be read: {error}");
    // Looked at before it is opened: opening a pipe waits for someone to write.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(format!("{} bytes are more than the limit of {MAX_FILE_BYTES}", metadata.len()));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

impl Dataset for ImageDataset {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn id(&self, index: usize) -> &str {
        self.files.id(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied().flatten()
    }

    fn mask_file(&self, index: usize) -> Option<&Path> {
        self.masks.get(index)?.as_deref()
    }

    fn mask(&self, index: usize) -> Result<Option<Tensor>, SampleError> {
        let Some(file) = self.mask_file(index) else { return Ok(None) };
        let bad = |reason: String| SampleError {
            sample: self.id(index).to_owned(),
            reason: format!("its mask {}: {reason}", file.display()),
        };
        masks::read(&read_file(file).map_err(bad)?, &self.preprocess).map(Some).map_err(bad)
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        Ok(self.read(index)?.0)
    }

    fn has_boxes(&self, index: usize) -> bool {
        self.boxes.get(index).is_some_and(Option::is_some)
    }

    fn truth_hash(&self, index: usize) -> Option<ContentHash> {
        match self.boxes.get(index).and_then(Option::as_ref) {
            Some(boxes) => Some(ContentHash::of_bytes(format!("{boxes:?}").as_bytes())),
            None => ContentHash::of_file(self.mask_file(index)?).ok(),
        }
    }

    fn read(&self, index: usize) -> Result<(TensorMap, Option<Scene>), SampleError> {
        let bad = |reason: String| SampleError { sample: self.id(index).to_owned(), reason };
        let picture = self.pixels(index)?;
        let boxes = self.boxes.get(index).and_then(Option::as_ref);
        let truths = boxes.map(|boxes| boxes.of(picture.width, picture.height));
        let (inputs, placement) = self.input.of_picture(picture, &self.preprocess).map_err(bad)?;
        Ok((inputs, Some(Scene { placement, truths, id: boxes.and_then(|boxes| boxes.id) })))
    }

    fn file(&self, index: usize) -> Option<PathBuf> {
        Some(self.files.path(index))
    }

    fn picture(&self, index: usize, side: usize) -> Option<Vec<u8>> {
        let picture = self.pixels(index).ok()?;
        let long = picture.width.max(picture.height);
        let short = |extent: usize| (extent * side.min(long) / long).max(1);
        let small = resize(&picture, short(picture.width), short(picture.height), Interpolation::Box);
        let mut bytes = Cursor::new(Vec::new());
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 75)
            .encode(&small.data, small.width as u32, small.height as u32, image::ExtendedColorType::Rgb8)
            .ok()?;
        Some(bytes.into_inner())
    }
}

/// Files of a folder.
#[derive(Default)]
pub(super) struct Listing {
    /// Name within the folder and path, sorted by name.
    pub(super) files: Vec<(String, PathBuf)>,
    /// The class folders, sorted, when the folder holds one folder a class.
    pub(super) classes: Vec<String>,
    /// Folders beside those that hold no sample.
    pub(super) empty: Vec<String>,
    /// Files that are not images, hidden images, and images beside the folders that hold most of them.
    pub(super) skipped: Vec<SampleError>,
    /// Folders that are not read, by the beginning of the names that their files would have.
    pub(super) unread: Vec<(String, PathBuf)>,
    /// The same of hidden folders.
    pub(super) hidden: Vec<(String, PathBuf)>,
}

impl Listing {
    /// Files with these endings in `folders` (but not in `except`), down to 8 levels, by name.
    pub(super) fn below(
        folders: &[(String, PathBuf)],
        endings: &[&str],
        except: Option<&Path>,
    ) -> Vec<(String, PathBuf)> {
        let except = except.and_then(|path| path.canonicalize().ok());
        let mut found = Self::default();
        let mut level = folders.to_vec();
        for _ in 0..8 {
            let mut next = Vec::new();
            for (prefix, path) in level {
                // Links to folders may lead round in circles.
                if path.is_symlink() || except.is_some() && path.canonicalize().ok() == except {
                    continue;
                }
                let mut inside = Vec::new();
                // What cannot be listed holds nothing that could be told.
                let _ = scan(&path, &prefix, endings, &mut found, &mut inside);
                next.extend(inside.into_iter().map(|name| (format!("{prefix}{}/", escape(&name)), path.join(name))));
            }
            level = next;
        }
        found.files.sort();
        found.files
    }
}

/// Whether a folder without samples is one that a job of this program makes: its results lie there, one folder down
/// (`runs/MODEL`), or beside it.
fn is_of_jobs(data: &Path, folder: &Path) -> bool {
    let has_job = |folder: &Path| ["run.toml", "bisect.toml", ".lock"].iter().any(|name| folder.join(name).is_file());
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let is_part = matches!(&*name, "deploy" | "engines" | "former") || name.starts_with("checkpoints-");
    let mut inside = std::fs::read_dir(folder).into_iter().flatten().flatten();
    has_job(folder) || inside.any(|entry| has_job(&entry.path())) || is_part && has_job(data)
}

/// Lists a folder: its own files, or those of its folders (but not `except`, which holds labels) when they hold more.
/// Hidden ones are not samples.
pub(super) fn list(folder: &Path, endings: &[&str], except: Option<&Path>) -> Result<Listing, DatasetError> {
    let mut own = Listing::default();
    let mut folders = Vec::new();
    scan(folder, "", endings, &mut own, &mut folders)?;
    folders.sort();
    let except = except.and_then(|path| path.canonicalize().ok());
    let (mut below, mut deeper) = (Listing::default(), Vec::new());
    let (mut failure, mut read_below) = (None, Vec::new());
    for name in folders {
        let path = folder.join(&name);
        if except.is_some() && path.canonicalize().ok() == except {
            continue;
        }
        let before = below.files.len();
        let mut inside = Vec::new();
        let prefix = format!("{}/", escape(&name));
        let scanned = scan(&path, &prefix, endings, &mut below, &mut inside);
        failure = failure.or(scanned.err());
        if below.files.len() > before {
            below.classes.push(escape(&name));
        } else if !is_of_jobs(folder, &path) {
            below.empty.push(escape(&name));
        }
        deeper.extend(inside.into_iter().map(|name| (format!("{prefix}{}/", escape(&name)), path.join(name))));
        read_below.push((prefix, path));
    }
    let mut listing = if below.files.len() > own.files.len() {
        let reason = "it lies beside the folders that hold most of the samples".to_owned();
        let beside = own.files.into_iter().map(|(sample, _)| SampleError { sample, reason: reason.clone() });
        below.skipped.extend(own.skipped.into_iter().chain(beside));
        below.unread = deeper;
        below.hidden.append(&mut own.hidden);
        below
    } else {
        own.unread = read_below;
        own
    };
    // A folder that cannot be read matters where its files would be samples.
    if let Some(failure) = failure.filter(|_| listing.files.is_empty() || !listing.classes.is_empty()) {
        return Err(failure);
    }
    listing.files.sort();
    listing.skipped.sort_by(|a, b| a.sample.cmp(&b.sample));
    Ok(listing)
}

fn scan(
    folder: &Path,
    prefix: &str,
    endings: &[&str],
    listing: &mut Listing,
    folders: &mut Vec<std::ffi::OsString>,
) -> Result<(), DatasetError> {
    let failed = |source| DatasetError::Read { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        let path = entry.path();
        let id = format!("{prefix}{}", escape(&name));
        let ending = ending(&path);
        // Follows links; a link that leads nowhere or in a circle is listed, so that it is reported when it is read. Where its
        // name is that of no file it may be a folder, which counts among the classes.
        let is_of_files =
            || [&IMAGE_ENDINGS[..], &ARRAY_ENDINGS, &FOREIGN_ENDINGS].iter().any(|known| known.contains(&&*ending));
        let may_be_folder = || path.is_symlink() && !path.exists() && !is_of_files();
        if path.is_dir() || may_be_folder() {
            if is_hidden {
                listing.hidden.push((id + "/", path));
            } else {
                folders.push(name);
            }
            continue;
        }
        if is_hidden {
            if endings.contains(&ending.as_str()) {
                listing.skipped.push(SampleError { sample: id, reason: HIDDEN.to_owned() });
            }
        } else if endings.contains(&ending.as_str()) {
            listing.files.push((id, path));
        } else {
            let reason = if IMAGE_ENDINGS.contains(&ending.as_str()) {
                "it is a picture, and the samples are arrays"
            } else if !ARRAY_ENDINGS.contains(&ending.as_str()) {
                NOT_READ
            } else if endings.contains(&"npz") {
                "arrays in a folder are read from .npz files"
            } else {
                "it holds arrays, and the samples are pictures"
            };
            listing.skipped.push(SampleError { sample: id, reason: reason.to_owned() });
        }
    }
    Ok(())
}

/// A file name as text: bytes that are not UTF-8 become `\xNN`, so that different files keep different names.
fn escape(name: &std::ffi::OsStr) -> String {
    name.as_encoded_bytes()
        .utf8_chunks()
        .map(|chunk| {
            let invalid: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("{}{invalid}", chunk.valid())
        })
        .collect()
}

/// Labels from class folders: names that are all numbers are class indices, names in `classes` are looked up,
/// otherwise folders count from 0 in their order, and a sentence says so.
///
/// # Errors
/// A folder without a sample in front of one that is counted: whether it is a class decides over all that follow.
pub(super) fn folder_labels(
    Listing { classes: folders, empty, skipped, .. }: &Listing,
    ids: &[&str],
    classes: &BTreeMap<u32, String>,
) -> Result<(Vec<Option<u32>>, Option<String>), String> {
    let numbers: Option<BTreeMap<&str, u32>> =
        folders.iter().map(|name| Some((name.as_str(), name.parse().ok()?))).collect();
    let by_name = ClassNames::of(classes);
    let known = folders.iter().all(|name| by_name.find(name).is_some());
    let is_counted = numbers.is_none() && !known;
    let moves_others = |name: &&String| !OF_SYSTEMS.contains(&name.as_str()) && folders.last() > Some(*name);
    if let Some(name) = empty.iter().find(moves_others).filter(|_| is_counted) {
        let inside =
            skipped.iter().filter(|file| file.sample.split_once('/').is_some_and(|(folder, _)| folder == name));
        let holds = inside.clone().next().map_or_else(
            || "no file".to_owned(),
            |first| format!("{} that are left out, as {}: {}", inside.count(), first.sample, first.reason),
        );
        return Err(format!(
            "the folder `{name}` holds no picture that is read ({holds}), and class folders are counted in the order of their \
             names, so that those behind it would get other classes: give it pictures (JPEG, PNG, WebP, BMP), remove it, \
             name the model's classes with --classes, or give a CSV of labels with --labels"
        ));
    }
    let counted = is_counted.then(|| {
        let (first, last) = (folders.first().map_or("", String::as_str), folders.len().saturating_sub(1));
        let unknown = folders.iter().find(|name| !classes.is_empty() && by_name.find(name).is_none());
        let unknown = unknown.map_or_else(String::new, |name| format!(", since `{name}` stands in no class list"));
        format!(
            "labels are the places of the class folders in the order of their names, `{first}` being class 0 and `{}` class \
             {last}{unknown}; name the model's classes with --classes where it counts them otherwise",
            folders.last().map_or("", String::as_str)
        )
    });
    let indices = match numbers {
        Some(numbers) => numbers,
        None if known => {
            let found = folders.iter().filter_map(|name| Some((name.as_str(), by_name.find(name)?)));
            found.map(|(name, index)| Ok((name, index?))).collect::<Result<_, String>>()?
        }
        None => folders.iter().enumerate().map(|(index, name)| (name.as_str(), index as u32)).collect(),
    };
    let label = |id: &str| id.split_once('/').and_then(|(folder, _)| indices.get(folder).copied());
    Ok((ids.iter().map(|id| label(id)).collect(), counted))
}

#[cfg(test)]
mod tests;
