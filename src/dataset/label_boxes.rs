//! Boxes as labels: COCO's instances JSON, and folders of YOLO's text files.
//!
//! YOLO: a file beside each picture's name, a line `class x y width height` an object, centre and size as shares of the
//! picture; with more numbers, the corners of a polygon, or the key points of a pose behind its box. COCO: `images`,
//! `annotations`, `categories`; class indices are the places of the categories in the order of their ids, or of the names
//! in the class list where all stand in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    DatasetError, Placement,
    labels::{file_name, read_text, shown, stem, without_ending},
};
use crate::artifact::{Reading, read_regular};

/// Largest JSON file of labels.
const MAX_JSON_BYTES: u64 = 4 << 30;
/// The sides of a picture whose boxes are shares of it.
const SHARES: [f64; 2] = [1.0, 1.0];
/// Share of a side by which a box may reach beyond the picture without a word.
const SLACK: f64 = 0.002;

/// One labelled box of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// `[x1, y1, x2, y2]` in pixels of the picture.
    pub corners: [f32; 4],
    /// Class index.
    pub class: u32,
    /// Area in square pixels by which it counts as small, medium or large: of the object's mask where that is known.
    pub area: f64,
    /// A region of many objects: boxes in it neither count nor cost.
    pub crowd: bool,
}

/// Where a picture lies in the model's input, and what is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Where the picture lies.
    pub placement: Placement,
    /// Its labelled boxes; `None` where nothing is known, empty where nothing is there.
    pub truths: Option<Vec<Truth>>,
    /// Its id in COCO's JSON, in whose order pictures with equal scores are ranked.
    pub id: Option<u64>,
}

/// The boxes of one picture as its file gives them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PictureBoxes {
    /// Width and height of the picture in the numbers of the boxes: 1 and 1 for shares; `None` for its own pixels.
    sides: Option<[f64; 2]>,
    boxes: Vec<Truth>,
    /// The picture's in COCO's JSON.
    pub(super) id: Option<u64>,
}

impl PictureBoxes {
    /// The boxes in pixels of a picture of `width × height`.
    pub(super) fn of(&self, width: usize, height: usize) -> Vec<Truth> {
        let Some([w, h]) = self.sides else { return self.boxes.clone() };
        let sides = [width as f64, height as f64];
        // A picture that was made smaller has kept its form; otherwise the sizes of the file are wrong, not its boxes.
        let is_same_form = (w * sides[1] - h * sides[0]).abs() <= w.max(h).max(sides[0]).max(sides[1]);
        if [w, h] != SHARES && !is_same_form {
            return self.boxes.clone();
        }
        let [x, y] = [sides[0] / w, sides[1] / h];
        let scale = |corner: f32, factor: f64| (f64::from(corner) * factor) as f32;
        let scaled = |truth: &Truth| {
            let [x1, y1, x2, y2] = truth.corners;
            let corners = [scale(x1, x), scale(y1, y), scale(x2, x), scale(y2, y)];
            Truth { corners, area: truth.area * x * y, ..*truth }
        };
        self.boxes.iter().map(scaled).collect()
    }
}

/// What is known of labels beforehand.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// Class names.
    pub(super) classes: &'a BTreeMap<u32, String>,
    /// Category ids of classes 0, 1, ... in COCO's JSON, where they are not their places.
    pub(super) category_ids: &'a [u64],
    /// Key points of a pose, and the numbers of each.
    pub(super) key_points: Option<[usize; 2]>,
}

/// Which classes labels have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelledClasses {
    /// The highest class of a labelled box.
    pub last: Option<u32>,
    /// The number of categories and their highest id, where classes are their places and not the ids.
    pub places: Option<(usize, u64)>,
}

/// True for a text file about labels: it lies among them and is none.
pub(super) fn is_no_label(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    ["classes.txt", "labels.txt", "readme.txt"].iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// Labelled boxes by picture.
#[derive(Debug)]
pub(super) struct BoxLabels {
    path: PathBuf,
    by_name: BTreeMap<String, PictureBoxes>,
    /// A picture without a file has no objects, as Ultralytics has it; in COCO's JSON nothing is known of it.
    absent_is_empty: bool,
    /// As [`LabelledClasses::places`].
    places: Option<(usize, u64)>,
    /// Class names that the file gives.
    pub(super) names: BTreeMap<u32, String>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

impl BoxLabels {
    /// The boxes of the file `path`; `None` when that holds other labels.
    pub(super) fn open(path: &Path, known: Known<'_>) -> Result<Option<Self>, DatasetError> {
        let json = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
        if json { Self::coco(path, known).map(Some) } else { Ok(None) }
    }

    /// YOLO's files, each with the name of its picture within the folder.
    pub(super) fn yolo(path: &Path, files: Vec<(String, PathBuf)>, known: Known<'_>) -> Result<Self, DatasetError> {
        let mut by_name = BTreeMap::new();
        let mut told = Told::default();
        for (name, file) in files {
            if is_no_label(&name) {
                continue;
            }
            let text = read_text(&file)?;
            let mut boxes = Vec::new();
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let truth = yolo_line(line, known.key_points).map_err(|reason| DatasetError::Labels {
                    path: file.clone(),
                    reason: format!("line {}: {reason}", number + 1),
                })?;
                told.look(&name, &truth, [1.0, 1.0], known.classes);
                boxes.push(truth);
            }
            by_name.insert(without_ending(&name).to_owned(), PictureBoxes { sides: Some(SHARES), boxes, id: None });
        }
        let (names, notes) = (BTreeMap::new(), told.sentences(known.classes.len()));
        Ok(Self { path: path.to_owned(), by_name, absent_is_empty: true, places: None, names, notes })
    }

    fn coco(path: &Path, known: Known<'_>) -> Result<Self, DatasetError> {
        let invalid = |reason: String| DatasetError::Labels { path: path.to_owned(), reason };
        let read = |source| DatasetError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_JSON_BYTES {
            return Err(invalid(format!("it is larger than the limit of {MAX_JSON_BYTES} bytes")));
        }
        let _reading = Reading::of(path);
        let bytes = read_regular(path).map_err(read)?;
        let coco: Coco = serde_json::from_slice(&bytes)
            .map_err(|error| invalid(format!("it is not the JSON of COCO instances: {}", shown(&error.to_string()))))?;
        let Categories { index, places, names, note } = Categories::of(&coco, known).map_err(invalid)?;
        let mut pictures: BTreeMap<u64, (String, PictureBoxes)> = BTreeMap::new();
        for image in coco.images {
            let sides = image.width.zip(image.height).filter(|&(w, h)| w > 0.0 && h > 0.0).map(|(w, h)| [w, h]);
            let name = image.file_name.replace('\\', "/");
            if pictures
                .insert(image.id, (name, PictureBoxes { sides, boxes: Vec::new(), id: Some(image.id) }))
                .is_some()
            {
                return Err(invalid(format!("two images have the id {}", image.id)));
            }
        }
        let mut told = Told::default();
        for annotation in coco.annotations {
            let Some([x, y, w, h]) = annotation.bbox else {
                told.without_box += 1;
                continue;
            };
            if ![x, y, w, h].iter().all(|value| value.is_finite()) || w < 0.0 || h < 0.0 {
                let id = annotation.image_id;
                return Err(invalid(format!("an annotation of image {id} has the box [{x}, {y}, {w}, {h}]")));
            }
            let Some((name, picture)) = pictures.get_mut(&annotation.image_id) else {
                told.strangers += 1;
                continue;
            };
            let Some(&class) = index.get(&annotation.category_id) else {
                told.unknown.insert(annotation.category_id.to_string());
                continue;
            };
            let corners = [x, y, x + w, y + h].map(|value| value as f32);
            let area = annotation.area.filter(|area| area.is_finite()).unwrap_or(w * h);
            let truth = Truth { corners, class, area, crowd: annotation.iscrowd != 0 };
            told.zero_id |= annotation.id == Some(0);
            told.look(name, &truth, picture.sides.unwrap_or([f64::INFINITY; 2]), &BTreeMap::new());
            picture.boxes.push(truth);
        }
        let by_name: BTreeMap<String, PictureBoxes> =
            pictures.into_values().map(|(name, boxes)| (without_ending(&name).to_owned(), boxes)).collect();
        let none = by_name.values().all(|picture: &PictureBoxes| picture.boxes.is_empty());
        let none = none.then(|| "no annotation of the label file has a box: there is nothing to find".to_owned());
        let notes = note.into_iter().chain(none).chain(told.sentences(names.len())).collect();
        Ok(Self { path: path.to_owned(), by_name, absent_is_empty: false, places, names, notes })
    }

    pub(super) fn labelled_classes(&self) -> LabelledClasses {
        let last = self.by_name.values().flat_map(|picture| &picture.boxes).map(|truth| truth.class).max();
        LabelledClasses { last, places: self.places }
    }

    /// The boxes of every sample, by its name without ending, else by that of the file alone. None at all is an error.
    pub(super) fn assign(&mut self, ids: &[&str]) -> Result<Vec<Option<PictureBoxes>>, DatasetError> {
        let mut by_file: BTreeMap<&str, Option<&PictureBoxes>> = BTreeMap::new();
        for (name, boxes) in &self.by_name {
            // A name that two files share says nothing.
            by_file.entry(file_name(name)).and_modify(|found| *found = None).or_insert(Some(boxes));
        }
        let find = |id: &&str| {
            self.by_name.get(without_ending(id)).or_else(|| by_file.get(stem(id)).copied().flatten()).cloned()
        };
        let mut found: Vec<Option<PictureBoxes>> = ids.iter().map(find).collect();
        let absent = found.iter().filter(|boxes| boxes.is_none()).count();
        if absent == found.len() {
            let (label, sample) = (self.by_name.keys().next().map_or("", String::as_str), ids.first().unwrap_or(&""));
            let reason = format!(
                "none of its names is that of a sample: it has `{}`, the data has `{}`",
                shown(label),
                shown(sample)
            );
            return Err(DatasetError::Labels { path: self.path.clone(), reason });
        }
        if absent > 0 {
            let means = if self.absent_is_empty { "count as without objects" } else { "count as unlabelled" };
            self.notes.push(format!("{absent} of {} pictures are not in the labels and {means}", found.len()));
        }
        let files: BTreeSet<&str> = ids.iter().map(|id| stem(id)).collect();
        let stray = |name: &&String| !files.contains(file_name(name));
        let strays: Vec<&String> = self.by_name.keys().filter(stray).collect();
        if let (true, Some(first)) = (self.absent_is_empty, strays.first()) {
            self.notes.push(format!(
                "{} of {} label files belong to no picture of the data, first `{first}.txt`",
                strays.len(),
                self.by_name.len()
            ));
        }
        if self.absent_is_empty {
            let empty = || PictureBoxes { sides: None, boxes: Vec::new(), id: None };
            for boxes in &mut found {
                boxes.get_or_insert_with(empty);
            }
        }
        Ok(found)
    }
}

struct Categories {
    /// Class indices by category id.
    index: BTreeMap<u64, u32>,
    /// As [`LabelledClasses::places`].
    places: Option<(usize, u64)>,
    /// Class names.
    names: BTreeMap<u32, String>,
    /// What the user should know.
    note: Option<String>,
}

impl Categories {
    fn of(coco: &Coco, known: Known<'_>) -> Result<Self, String> {
        let mut ids: BTreeMap<u64, String> = BTreeMap::new();
        for category in &coco.categories {
            ids.insert(category.id, category.name.clone().unwrap_or_default());
        }
        if ids.is_empty() {
            ids = coco.annotations.iter().map(|annotation| (annotation.category_id, String::new())).collect();
        }
        let letters = |name: &str| name.trim().to_lowercase();
        let by_name: BTreeMap<String, u32> =
            known.classes.iter().map(|(&index, name)| (letters(name), index)).collect();
        let class_of = |id: &u64| Some((*id, *by_name.get(&letters(&ids[id]))?));
        // Categories that no box has, as the groups that some files list first, need no class.
        let used: BTreeSet<u64> = coco.annotations.iter().map(|annotation| annotation.category_id).collect();
        let counts = |id: &&u64| used.is_empty() || used.contains(id);
        let foreign = ids.keys().filter(counts).find(|id| class_of(id).is_none());
        let (mut places, mut note) = (None, None);
        let index: BTreeMap<u64, u32> = if !known.category_ids.is_empty() {
            known.category_ids.iter().enumerate().map(|(index, &id)| (id, index as u32)).collect()
        } else if foreign.is_none() {
            ids.keys().filter_map(class_of).collect()
        } else {
            note = foreign.filter(|_| !by_name.is_empty() || coco.categories.is_empty()).map(|id| {
                let why = if ids[id].is_empty() { format!("category {id} has no name") } else { format!("the category `{}` is not one of the classes by name", shown(&ids[id])) };
                format!("{why}: the first class is taken for the category with the lowest id, and so on; category_ids says otherwise")
            });
            places = ids.last_key_value().map(|(&last, _)| (ids.len(), last));
            ids.keys().enumerate().map(|(index, &id)| (id, index as u32)).collect()
        };
        if !known.category_ids.is_empty() && !ids.keys().any(|id| index.contains_key(id)) {
            return Err("none of its categories is among the category ids of the configuration".to_owned());
        }
        let names = ids.into_iter().filter(|(_, name)| !name.is_empty());
        let names = names.filter_map(|(id, name)| Some((*index.get(&id)?, name))).collect();
        Ok(Self { index, places, names, note })
    }
}

/// Things in labels that look wrong.
#[derive(Default)]
struct Told {
    /// Boxes that reach beyond their picture, and the first such picture; those without an area.
    beyond: (usize, String),
    flat: (usize, String),
    zero_id: bool,
    without_box: usize,
    unknown: BTreeSet<String>,
    strangers: usize,
}

impl Told {
    fn look(&mut self, name: &str, truth: &Truth, [width, height]: [f64; 2], classes: &BTreeMap<u32, String>) {
        let [x1, y1, x2, y2] = truth.corners.map(f64::from);
        let beyond = |low: f64, high: f64, side: f64| low < -SLACK * side || high > (1.0 + SLACK) * side;
        let count = |(count, first): &mut (usize, String)| {
            *count += 1;
            if *count == 1 {
                *first = shown(name).into_owned();
            }
        };
        if beyond(x1, x2, width) || beyond(y1, y2, height) {
            count(&mut self.beyond);
        }
        if x1 >= x2 || y1 >= y2 {
            count(&mut self.flat);
        }
        if !classes.is_empty() && !classes.contains_key(&truth.class) {
            self.unknown.insert(truth.class.to_string());
        }
    }

    fn sentences(self, classes: usize) -> Vec<String> {
        let mut notes = Vec::new();
        for ((count, first), what) in
            [(self.beyond, "reach beyond their picture"), (self.flat, "have no width or no height and are never found")]
        {
            if count > 0 {
                notes.push(format!("{count} labelled boxes {what}, first in `{first}`"));
            }
        }
        if self.without_box > 0 {
            notes.push(format!("{} annotations have no box and are left out", self.without_box));
        }
        if self.zero_id {
            notes.push(
                "an annotation has the id 0, which pycocotools takes for none: it counts a box that finds it as wrong, and \
                 its figures are lower than these; count annotations from 1 for equal ones"
                    .to_owned(),
            );
        }
        if !self.unknown.is_empty() {
            let list: Vec<&str> = self.unknown.iter().take(5).map(String::as_str).collect();
            notes.push(format!("labels have classes that are not among the {classes} known: {}", list.join(", ")));
        }
        if self.strangers > 0 {
            notes.push(format!("{} annotations belong to no image of the label file and are left out", self.strangers));
        }
        notes
    }
}

/// `class x y width height`, with the key points of a pose behind it, or `class x1 y1 x2 y2 x3 y3 ...`.
fn yolo_line(line: &str, key_points: Option<[usize; 2]>) -> Result<Truth, String> {
    let numbers: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
    let numbers =
        numbers.map_err(|_| format!("`{}` are not numbers", line.trim().chars().take(60).collect::<String>()))?;
    let Some((&class, rest)) = numbers.split_first() else { return Err("it is empty".to_owned()) };
    if class < 0.0 || class.fract() != 0.0 || class > f64::from(u32::MAX) {
        return Err(format!("{class} is not a class index"));
    }
    if !rest.iter().all(|value| value.is_finite()) {
        return Err("a coordinate is not finite".to_owned());
    }
    if rest.iter().any(|&value| value > 2.0) {
        return Err("coordinates are shares of the picture, between 0 and 1; these are pixels".to_owned());
    }
    // Behind the box of a pose stand its key points; an odd number of them, each with whether it can be seen, is not a polygon.
    let of_points = key_points.map_or(0, |[points, numbers]| points.saturating_mul(numbers));
    let is_box = rest.len() == 4 || rest.len() == of_points.saturating_add(4) || rest.len() % 6 == 1;
    let (corners, area) = match *rest {
        [_, _, w, h, ..] if is_box && (w < 0.0 || h < 0.0) => return Err("a width or height is negative".to_owned()),
        [x, y, w, h, ..] if is_box => ([x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0], w * h),
        _ if rest.len() >= 6 && rest.len() % 2 == 0 => {
            let ends = |first: usize| {
                let values = rest.iter().skip(first).step_by(2);
                values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
            };
            let ((x1, x2), (y1, y2)) = (ends(0), ends(1));
            ([x1, y1, x2, y2], (x2 - x1) * (y2 - y1))
        }
        _ => return Err(format!("{} numbers are neither a box (5) nor a polygon (7, 9, ...)", rest.len() + 1)),
    };
    Ok(Truth { corners: corners.map(|value| value as f32), class: class as u32, area, crowd: false })
}

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    #[serde(default)]
    annotations: Vec<CocoAnnotation>,
    #[serde(default)]
    categories: Vec<CocoCategory>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
    width: Option<f64>,
    height: Option<f64>,
}

#[derive(Deserialize)]
struct CocoAnnotation {
    id: Option<u64>,
    image_id: u64,
    category_id: u64,
    bbox: Option<[f64; 4]>,
    area: Option<f64>,
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct CocoCategory {
    id: u64,
    name: Option<String>,
}

#[cfg(test)]
mod tests;
