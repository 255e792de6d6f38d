//! Ultralytics' `data.yaml`: where the pictures for training and for validation lie, their labels, and class names.
//!
//! Labels lie where the last folder `images` in a picture's path becomes `labels`, with the ending `.txt`; beside pictures
//! without such a folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    DatasetError, IMAGE_ENDINGS, SampleError, ending,
    images::list,
    labels::{long_line, read_small, read_text, shown},
    left_out,
};

/// What a `data.yaml` says.
#[derive(Debug)]
pub(super) struct DataYaml {
    /// Pictures by name within the data set, sorted.
    pub(super) files: Vec<(String, PathBuf)>,
    /// Label files of those that have one, by the picture's name with the ending `txt`.
    pub(super) labels: Vec<(String, PathBuf)>,
    /// Class names.
    pub(super) names: BTreeMap<u32, String>,
    /// Key points of a pose, and the numbers of each.
    pub(super) key_points: Option<[usize; 2]>,
    /// Other files in the folders that were read.
    pub(super) skipped: Vec<SampleError>,
    /// What lies in folders that are not read.
    pub(super) notes: Vec<String>,
    /// Names of the pictures for training, which calibrate; empty where they are also the ones for validation.
    pub(super) training: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    path: Option<String>,
    train: Option<Paths>,
    val: Option<Paths>,
    test: Option<Paths>,
    names: Option<Names>,
    kpt_shape: Option<[usize; 2]>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    List(Vec<Word>),
    Map(BTreeMap<u32, Word>),
}

/// A name that YAML may take for something else: `0`, `no`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Text(String),
    Whole(i64),
    Number(f64),
    Flag(bool),
}

impl Word {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Whole(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
        }
    }
}

impl Paths {
    fn list(&self) -> &[String] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

/// True for a file of this kind, by its ending.
pub(super) fn is_yaml(path: &Path) -> bool {
    matches!(ending(path).as_str(), "yaml" | "yml")
}

impl DataYaml {
    /// Reads the file and lists the pictures of `train` and of `val` (of `test`, where there is no `val`).
    pub(super) fn open(path: &Path) -> Result<Self, DatasetError> {
        let invalid = |reason: String| DatasetError::Format { path: path.to_owned(), reason };
        let text = read_small(path)?;
        let raw: Raw =
            serde_saphyr::from_str(&text).map_err(|error| invalid(format!("it is not a data.yaml: {error}")))?;
        let beside = path.parent().unwrap_or(Path::new(""));
        let root = raw.path.as_deref().map_or_else(|| beside.to_owned(), |root| beside.join(root));
        let mut left = Left::default();
        let mut empty = Vec::new();
        let mut collect = |split: &str, paths: Option<&Paths>| {
            let (mut files, mut own) = (BTreeMap::new(), Left::default());
            for entry in paths.into_iter().flat_map(Paths::list) {
                pictures(path, &root, entry, &mut files, &mut own)?;
            }
            if files.is_empty() && paths.is_some() {
                empty.push(format!("`{split}` leads to no picture{}", own.told()));
            }
            left.skipped.extend(own.skipped);
            left.notes.extend(own.notes);
            Ok::<_, DatasetError>(files)
        };
        let training = collect("train", raw.train.as_ref())?;
        let judged = match (&raw.val, &raw.test) {
            (None, Some(test)) => collect("test", Some(test))?,
            (val, _) => collect("val", val.as_ref())?,
        };
        let skipped = left.skipped.into_iter().map(|(sample, reason)| SampleError { sample, reason }).collect();
        let all: BTreeMap<String, PathBuf> = training.clone().into_iter().chain(judged.clone()).collect();
        if all.is_empty() {
            let why = if empty.is_empty() { "it has neither `train` nor `val`".to_owned() } else { empty.join("; ") };
            return Err(invalid(why));
        }
        let apart = !judged.is_empty() && training.keys().all(|name| !judged.contains_key(name));
        let training = if apart { training.into_keys().collect() } else { Vec::new() };
        let labels = all.iter().filter_map(|(name, file)| {
            let label = label_of(file);
            let name = Path::new(name).with_extension("txt").to_string_lossy().into_owned();
            label.is_file().then_some((name, label))
        });
        let labels: Vec<_> = labels.collect();
        let names = match raw.names {
            None => BTreeMap::new(),
            Some(Names::Map(names)) => names.into_iter().map(|(index, name)| (index, name.into_text())).collect(),
            Some(Names::List(names)) => (0..).zip(names.into_iter().map(Word::into_text)).collect(),
        };
        let mut notes: Vec<String> = left.notes.into_iter().chain(empty).collect();
        if let (true, Some(picture)) = (labels.is_empty(), all.values().next()) {
            notes.push(format!("no picture has a label file; the first would be {}", label_of(picture).display()));
        }
        let (files, key_points) = (all.into_iter().collect(), raw.kpt_shape);
        Ok(Self { files, labels, names, key_points, skipped, notes, training })
    }
}

/// What is left out, each once though several entries lead to it: files with the reason, and sentences on folders.
#[derive(Default)]
struct Left {
    skipped: BTreeMap<String, String>,
    notes: BTreeSet<String>,
}

impl Left {
    /// How much is left out, and the first of it.
    fn told(&self) -> String {
        let files = self.skipped.first_key_value().map(|(file, why)| {
            let count = self.skipped.len();
            format!("{count} file{} left out, the first is {file}: {why}", if count == 1 { " is" } else { "s are" })
        });
        let told: Vec<String> = files.into_iter().chain(self.notes.iter().cloned()).collect();
        if told.is_empty() { String::new() } else { format!(": {}", told.join("; ")) }
    }
}

/// Adds the pictures of a folder, with the folders in it, or of a list file.
fn pictures(
    yaml: &Path,
    root: &Path,
    entry: &str,
    files: &mut BTreeMap<String, PathBuf>,
    left: &mut Left,
) -> Result<(), DatasetError> {
    let mut at = root.join(entry);
    // Roboflow's files start from a folder beside their own; as Ultralytics reads them.
    if let (false, Some(inside)) = (at.exists(), entry.strip_prefix("../")) {
        at = root.join(inside);
    }
    let invalid = |reason: String| DatasetError::Format { path: yaml.to_owned(), reason };
    let name = |file: &Path| file.strip_prefix(root).unwrap_or(file).to_string_lossy().replace('\\', "/");
    if at.is_dir() {
        let listing = list(&at, &IMAGE_ENDINGS, None)?;
        left.notes.extend(left_out::unread(&at, &listing, None)?);
        left.skipped.extend(listing.skipped.into_iter().map(|error| (name(&at.join(error.sample)), error.reason)));
        for (_, file) in listing.files {
            files.insert(name(&file), file);
        }
        return Ok(());
    }
    if ending(&at) != "txt" || !at.is_file() {
        let (entry, root) = (shown(entry), root.to_string_lossy());
        return Err(invalid(format!("`{entry}` is neither a folder nor a list of pictures under {}", shown(&root))));
    }
    let beside = at.parent().unwrap_or(Path::new("")).to_owned();
    let text = read_text(&at)?;
    if let Some(reason) = long_line(&text) {
        return Err(DatasetError::Format { path: at, reason });
    }
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        // `./` starts at the list's folder, as Ultralytics reads it; others do too, or at the root.
        let file = [beside.join(line), root.join(line)].into_iter().find(|file| file.is_file());
        let file =
            file.ok_or_else(|| invalid(format!("`{}`, which {} lists, does not exist", shown(line), shown(entry))))?;
        let file: PathBuf = file.components().collect();
        files.insert(name(&file), file);
    }
    Ok(())
}

/// The label file of a picture: the last folder `images` of its path becomes `labels`, where there is one.
fn label_of(picture: &Path) -> PathBuf {
    let mut parts: Vec<_> = picture.components().map(std::path::Component::as_os_str).collect();
    if let Some(images) = parts.iter_mut().rfind(|part| **part == "images") {
        *images = "labels".as_ref();
    }
    parts.iter().collect::<PathBuf>().with_extension("txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_lists_names_and_labels() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        write("set/images/train/a.jpg", "");
        write("set/images/train/b.jpg", "");
        write("set/labels/train/a.txt", "0 0.5 0.5 0.1 0.1");
        write("set/images/val/c.png", "");
        // Beside pictures, and in a folder that holds nothing else.
        write("set/images/train/d.tif", "");
        write("set/images/more/e.tiff", "");
        write("set/val.txt", "./images/val/c.png\n");
        let yaml = write(
            "data.yaml",
            "path: set\ntrain: [images/train, images/more]\nval: val.txt\nnames: [cat, dog]\nnc: 2\n",
        );
        let data = DataYaml::open(&yaml).unwrap();
        let names: Vec<&str> = data.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["images/train/a.jpg", "images/train/b.jpg", "images/val/c.png"]);
        assert_eq!(data.labels.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["images/train/a.txt"]);
        let left_out: Vec<&str> = data.skipped.iter().map(|error| error.sample.as_str()).collect();
        assert_eq!(left_out, ["images/more/e.tiff", "images/train/d.tif"]);
        assert_eq!((data.names[&1].as_str(), data.training.len()), ("dog", 2));
        std::fs::remove_file(folder.path().join("set/labels/train/a.txt")).unwrap();
        std::fs::remove_file(folder.path().join("set/images/train/a.jpg")).unwrap();
        let without = write("without.yaml", "path: set\ntrain: images/train\nval: images/more\n");
        let notes = DataYaml::open(&without).unwrap().notes.join("\n");
        assert!(
            notes.contains("`val` leads to no picture: 1 file is left out, the first is images/more/e.tiff: "),
            "{notes}"
        );
        assert!(notes.contains("no picture has a label file; the first would be "), "{notes}");
        assert!(notes.ends_with("set/labels/train/b.txt"), "{notes}");
        // Beside the pictures, where no folder is called `images`.
        write("set/pics/f.jpg", "");
        write("set/pics/f.txt", "0 0.5 0.5 0.1 0.1 0.5 0.5");
        let beside = write("beside.yaml", "path: set\ntrain: pics\nval: pics\nkpt_shape: [1, 2]\n");
        let data = DataYaml::open(&beside).unwrap();
        assert_eq!(data.labels, [("pics/f.txt".to_owned(), folder.path().join("set/pics/f.txt"))]);
        assert_eq!((data.key_points, data.notes), (Some([1, 2]), Vec::new()));
        let roboflow = write("set/roboflow.yaml", "train: ../pics\nval: ../pics\nnames: [0, no, x]\n");
        let data = DataYaml::open(&roboflow).unwrap();
        assert_eq!(
            (data.files.len(), data.names.into_values().collect::<Vec<_>>()),
            (1, ["0", "false", "x"].map(str::to_owned).into())
        );
        let same = write("same.yaml", "path: set\ntrain: images/train\nval: images/train\nnames: {0: cat, 7: dog}\n");
        let data = DataYaml::open(&same).unwrap();
        assert_eq!((data.files.len(), data.training.len(), data.names[&7].as_str()), (1, 0, "dog"));
        write("set/long.txt", &format!("./images/val/c.png\n{}", "b".repeat((64 << 10) + 1)));
        write("set/absent.txt", &"b".repeat(64 << 10));
        for (text, reason) in [
            ("train: nowhere\n", "`nowhere` is neither a folder nor a list"),
            ("names: [a]\n", "neither `train` nor `val`"),
            (
                "path: set\ntrain: images/more\nval: images/more\n",
                "`train` leads to no picture: 1 file is left out, the first is images/more/e.tiff: ",
            ),
            ("train: {a: b}\n", "it is not a data.yaml"),
            ("path: set\ntrain: long.txt\n", "set/long.txt: line 2 has more than 65536 bytes"),
            ("path: set\ntrain: absent.txt\n", "bbb...`, which absent.txt lists, does not exist"),
            ("a: &a [x, x]\nb: &b [*a, *a, *a]\ntrain: [*b, *b\n", "it is not a data.yaml"),
        ] {
            let error = DataYaml::open(&write("bad.yaml", text)).unwrap_err().to_string();
            assert!(error.contains(reason) && error.len() < 1000, "{error}");
        }
    }
}
