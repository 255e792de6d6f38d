//! Boxes as labels: COCO's instances JSON, and folders of YOLO's text files.
//!
//! YOLO: a file beside each picture's name, a line `class x y width height` an object, centre and size as shares of the
//! picture; with more numbers, the corners of a polygon, or the key points of a pose behind its box. COCO: `images`, `annotations`, `categories`; class indices are the
//! places of the categories in the order of their ids, or of the names in the class list where all stand in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    DatasetError, Placement,
    images::list,
    labels::{file_name, read_text, stem, without_ending},
};
use crate::artifact::{Reading, read_regular};

/// Largest JSON file of labels.
const MAX_JSON_BYTES: u64 = 4 << 30;
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
        let [x, y] = [width as f64 / w, height as f64 / h];
        let scale = |corner: f32, factor: f64| (f64::from(corner) * factor) as f32;
        let scaled = |truth: &Truth| {
            let [x1, y1, x2, y2] = truth.corners;
            let corners = [scale(x1, x), scale(y1, y), scale(x2, x), scale(y2, y)];
            Truth { corners, area: truth.area * x * y, ..*truth }
        };
        self.boxes.iter().map(scaled).collect()
    }
}

/// Labelled boxes by picture.
#[derive(Debug)]
pub(super) struct BoxLabels {
    path: PathBuf,
    by_name: BTreeMap<String, PictureBoxes>,
    /// A picture without a file has no objects, as Ultralytics has it; in COCO's JSON nothing is known of it.
    absent_is_empty: bool,
    /// Class names that the file gives.
    pub(super) names: BTreeMap<u32, String>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

impl BoxLabels {
    /// The boxes at `path`; `None` when that holds other labels. `category_ids` are those of classes 0, 1, ... in COCO's
    /// JSON, where they are not as described above.
    pub(super) fn open(
        path: &Path,
        classes: &BTreeMap<u32, String>,
        category_ids: &[u64],
    ) -> Result<Option<Self>, DatasetError> {
        if path.is_dir() {
            let files = list(path, &["txt"], None)?.files;
            return if files.is_empty() { Ok(None) } else { Self::yolo(path, files, classes).map(Some) };
        }
        let json = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
        if json { Self::coco(path, classes, category_ids).map(Some) } else { Ok(None) }
    }

    /// YOLO's files, each with the name of its picture within the folder.
    pub(super) fn yolo(
        path: &Path,
        files: Vec<(String, PathBuf)>,
        classes: &BTreeMap<u32, String>,
    ) -> Result<Self, DatasetError> {
        let mut by_name = BTreeMap::new();
        let mut told = Told::default();
        for (name, file) in files {
            if matches!(name.rsplit('/').next(), Some("classes.txt" | "labels.txt" | "README.txt")) {
                continue;
            }
            let text = read_text(&file)?;
            let mut boxes = Vec::new();
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let truth = yolo_line(line).map_err(|reason| DatasetError::Labels {
                    path: file.clone(),
                    reason: format!("line {}: {reason}", number + 1),
                })?;
                told.look(&name, &truth, [1.0, 1.0], classes);
                boxes.push(truth);
            }
            by_name.insert(without_ending(&name).to_owned(), PictureBoxes { sides: Some([1.0, 1.0]), boxes, id: None });
        }
        let (names, notes) = (BTreeMap::new(), told.sentences(classes.len()));
        Ok(Self { path: path.to_owned(), by_name, absent_is_empty: true, names, notes })
    }

    fn coco(path: &Path, classes: &BTreeMap<u32, String>, category_ids: &[u64]) -> Result<Self, DatasetError> {
        let invalid = |reason: String| DatasetError::Labels { path: path.to_owned(), reason };
        let read = |source| DatasetError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_JSON_BYTES {
            return Err(invalid(format!("it is larger than the limit of {MAX_JSON_BYTES} bytes")));
        }
        let _reading = Reading::of(path);
        let bytes = read_regular(path).map_err(read)?;
        let coco: Coco = serde_json::from_slice(&bytes)
            .map_err(|error| invalid(format!("it is no COCO instances JSON: {error}")))?;
        let (index, names) = categories(&coco, classes, category_ids).map_err(invalid)?;
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
            let Some([x, y, w, h]) = annotation.bbox else { continue };
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
            told.look(name, &truth, picture.sides.unwrap_or([f64::INFINITY; 2]), &BTreeMap::new());
            picture.boxes.push(truth);
        }
        let by_name = pictures.into_values().map(|(name, boxes)| (without_ending(&name).to_owned(), boxes)).collect();
        let notes = told.sentences(names.len());
        Ok(Self { path: path.to_owned(), by_name, absent_is_empty: false, names, notes })
    }

    /// The highest class of a labelled box.
    pub(super) fn last_class(&self) -> Option<u32> {
        self.by_name.values().flat_map(|picture| &picture.boxes).map(|truth| truth.class).max()
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
            let reason = format!("none of its names is that of a sample: it has `{label}`, the data has `{sample}`");
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

/// Class indices by category id, and class names.
type Categories = (BTreeMap<u64, u32>, BTreeMap<u32, String>);

fn categories(coco: &Coco, classes: &BTreeMap<u32, String>, category_ids: &[u64]) -> Result<Categories, String> {
    let mut ids: BTreeMap<u64, String> = BTreeMap::new();
    for category in &coco.categories {
        ids.insert(category.id, category.name.clone().unwrap_or_default());
    }
    if ids.is_empty() {
        ids = coco.annotations.iter().map(|annotation| (annotation.category_id, String::new())).collect();
    }
    let by_name: BTreeMap<&str, u32> = classes.iter().map(|(&index, name)| (name.as_str(), index)).collect();
    let index: BTreeMap<u64, u32> = if category_ids.is_empty() {
        let named: Option<BTreeMap<u64, u32>> =
            ids.iter().map(|(&id, name)| Some((id, *by_name.get(name.as_str())?))).collect();
        named.unwrap_or_else(|| ids.keys().enumerate().map(|(index, &id)| (id, index as u32)).collect())
    } else {
        category_ids.iter().enumerate().map(|(index, &id)| (id, index as u32)).collect()
    };
    if !category_ids.is_empty() && !ids.keys().any(|id| index.contains_key(id)) {
        return Err("none of its categories is among the category ids of the configuration".to_owned());
    }
    let names = ids.into_iter().filter(|(_, name)| !name.is_empty());
    let names = names.filter_map(|(id, name)| Some((*index.get(&id)?, name))).collect();
    Ok((index, names))
}

/// Things in labels that look wrong.
#[derive(Default)]
struct Told {
    beyond: usize,
    first_beyond: String,
    unknown: BTreeSet<String>,
    strangers: usize,
}

impl Told {
    fn look(&mut self, name: &str, truth: &Truth, [width, height]: [f64; 2], classes: &BTreeMap<u32, String>) {
        let [x1, y1, x2, y2] = truth.corners.map(f64::from);
        let beyond = |low: f64, high: f64, side: f64| low < -SLACK * side || high > (1.0 + SLACK) * side;
        if beyond(x1, x2, width) || beyond(y1, y2, height) {
            self.beyond += 1;
            if self.first_beyond.is_empty() {
                name.clone_into(&mut self.first_beyond);
            }
        }
        if !classes.is_empty() && !classes.contains_key(&truth.class) {
            self.unknown.insert(truth.class.to_string());
        }
    }

    fn sentences(self, classes: usize) -> Vec<String> {
        let mut notes = Vec::new();
        if self.beyond > 0 {
            notes.push(format!(
                "{} labelled boxes reach beyond their picture, first in `{}`",
                self.beyond, self.first_beyond
            ));
        }
        if !self.unknown.is_empty() {
            let list: Vec<&str> = self.unknown.iter().take(5).map(String::as_str).collect();
            notes.push(format!("labels have classes that are none of the {classes} known: {}", list.join(", ")));
        }
        if self.strangers > 0 {
            notes.push(format!("{} annotations belong to no image of the label file and are left out", self.strangers));
        }
        notes
    }
}

/// `class x y width height`, or `class x1 y1 x2 y2 x3 y3 ...`.
fn yolo_line(line: &str) -> Result<Truth, String> {
    let numbers: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
    let numbers =
        numbers.map_err(|_| format!("`{}` are no numbers", line.trim().chars().take(60).collect::<String>()))?;
    let Some((&class, rest)) = numbers.split_first() else { return Err("it is empty".to_owned()) };
    if class < 0.0 || class.fract() != 0.0 || class > f64::from(u32::MAX) {
        return Err(format!("{class} is no class index"));
    }
    if !rest.iter().all(|value| value.is_finite()) {
        return Err("a coordinate is not finite".to_owned());
    }
    if rest.iter().any(|&value| value > 2.0) {
        return Err("coordinates are shares of the picture, between 0 and 1; these are pixels".to_owned());
    }
    // Behind the box of a pose stand its key points, each with whether it can be seen.
    let is_box = rest.len() == 4 || rest.len() % 6 == 1;
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
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn yolo_boxes_polygons_and_pictures_without_objects() {
        let folder = folder(&[("a.txt", "2 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.3 0.1 0.3 0.5\n"), ("b.txt", "")]);
        let mut labels = BoxLabels::open(folder.path(), &BTreeMap::new(), &[]).unwrap().unwrap();
        let found = labels.assign(&["x/a.jpg", "b.jpg", "c.png"]).unwrap();
        let boxes = found[0].as_ref().unwrap().of(100, 50);
        let rounded = |truth: &Truth| (truth.class, truth.corners.map(|x| x.round() as i32), truth.area.round() as i32);
        assert_eq!(
            boxes.iter().map(rounded).collect::<Vec<_>>(),
            [(2, [40, 15, 60, 35], 400), (0, [10, 5, 30, 25], 400)]
        );
        assert_eq!((found[1].as_ref().unwrap().of(9, 9), found[2].as_ref().unwrap().of(9, 9)), (vec![], vec![]));
        assert_eq!(labels.notes, ["1 of 3 pictures are not in the labels and count as without objects"]);
        assert_eq!(labels.last_class(), Some(2));
        labels.assign(&["a.jpg"]).unwrap();
        assert_eq!(labels.notes[1], "1 of 2 label files belong to no picture of the data, first `b.txt`");
        let strange = labels.assign(&["z.jpg"]).unwrap_err().to_string();
        assert!(strange.contains("it has `a`, the data has `z.jpg`"), "{strange}");
    }

    #[test]
    fn a_pose_is_its_box() {
        let pose = |points: usize| format!("0 0.5 0.5 0.2 0.4{}", " 0.1 0.9 2".repeat(points));
        for points in [1, 17] {
            assert_eq!(yolo_line(&pose(points)).unwrap(), yolo_line("0 0.5 0.5 0.2 0.4").unwrap());
        }
    }

    #[test]
    fn what_is_wrong_in_yolo_files_is_told() {
        for (line, reason) in [
            ("1 0.5 0.5 0.2", "4 numbers are neither"),
            ("1 0.5 0.5 x 0.2", "are no numbers"),
            ("1 250 0.5 0.2 0.2", "these are pixels"),
            ("-1 0.5 0.5 0.2 0.2", "-1 is no class index"),
            ("1 0.5 0.5 inf 0.2", "not finite"),
            ("1 0.5 0.5 0.2 -0.2", "height is negative"),
        ] {
            let folder = folder(&[("a.txt", line)]);
            let error = BoxLabels::open(folder.path(), &BTreeMap::new(), &[]).unwrap_err().to_string();
            assert!(error.contains("line 1") && error.contains(reason), "{error}");
        }
        let folder = folder(&[("a.txt", "7 0.95 0.5 0.2 0.2")]);
        let classes = BTreeMap::from([(0, "cat".to_owned())]);
        let notes = BoxLabels::open(folder.path(), &classes, &[]).unwrap().unwrap().notes;
        assert!(
            notes[0].contains("beyond their picture, first in `a.txt`") && notes[1].ends_with("known: 7"),
            "{notes:?}"
        );
    }

    const COCO: &str = r#"{"images": [{"id": 9, "file_name": "a.jpg", "width": 200, "height": 100}, {"id": 10, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 9, "category_id": 18, "bbox": [20, 10, 40, 30], "area": 700, "iscrowd": 0},
            {"image_id": 9, "category_id": 3, "bbox": [0, 0, 10, 10], "iscrowd": 1},
            {"image_id": 77, "category_id": 3, "bbox": [0, 0, 1, 1]}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 5, "name": "bus"}]}"#;

    #[test]
    fn coco_with_gaps_crowds_and_another_size() {
        let folder = folder(&[("instances.json", COCO)]);
        let path = folder.path().join("instances.json");
        let open = |classes: &[(u32, &str)], ids: &[u64]| {
            let classes = classes.iter().map(|&(index, name)| (index, name.to_owned())).collect();
            let mut labels = BoxLabels::open(&path, &classes, ids).unwrap().unwrap();
            let boxes = labels.assign(&["a.jpg", "b.jpg", "c.jpg"]).unwrap();
            (labels, boxes)
        };
        let (labels, boxes) = open(&[], &[]);
        // The data are half as large as the file says.
        let first = boxes[0].as_ref().unwrap().of(100, 50);
        assert_eq!(first[0], Truth { corners: [10.0, 5.0, 30.0, 20.0], class: 2, area: 175.0, crowd: false });
        assert_eq!((first[1].class, first[1].crowd, first[1].area), (0, true, 25.0));
        assert_eq!((boxes[1].as_ref().unwrap().of(5, 5), boxes[2].as_ref()), (vec![], None));
        assert_eq!(labels.names[&2], "dog");
        assert_eq!(boxes[..2].iter().flatten().map(|picture| picture.id).collect::<Vec<_>>(), [Some(9), Some(10)]);
        assert!(labels.notes[0].starts_with("1 annotations belong to no image"), "{:?}", labels.notes);
        // By the names of the classes, and by ids that were given.
        let (_, boxes) = open(&[(0, "dog"), (1, "bus"), (2, "car")], &[]);
        assert_eq!(boxes[0].as_ref().unwrap().boxes[0].class, 0);
        let (labels, boxes) = open(&[], &[3, 18]);
        assert_eq!((boxes[0].as_ref().unwrap().boxes[0].class, labels.names.len()), (1, 2));
        assert!(BoxLabels::open(&path, &BTreeMap::new(), &[999]).is_err());
    }
}
