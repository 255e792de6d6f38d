//! A folder of labels: PNG masks, or text files of boxes, whichever it holds more of.

use std::{
    cell::LazyCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    DatasetError, FOREIGN_ENDINGS, IMAGE_ENDINGS, SampleError, ending,
    images::{HIDDEN, Listing, list},
    label_boxes::is_no_label,
    left_out,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Masks,
    Boxes,
}

/// The labels of a folder.
#[derive(Debug)]
pub(super) struct LabelFolder {
    pub(super) kind: Kind,
    /// Name within the folder and path.
    pub(super) files: Vec<(String, PathBuf)>,
    /// What is left out.
    pub(super) notes: Vec<String>,
}

impl LabelFolder {
    /// Lists a folder, in which the pictures `samples` may lie as well.
    pub(super) fn open<I: Iterator<Item = PathBuf>>(
        path: &Path,
        samples: impl Fn() -> I,
    ) -> Result<Self, DatasetError> {
        // Looked up only where there are files that might be samples.
        let samples: LazyCell<BTreeSet<PathBuf>, _> =
            LazyCell::new(|| samples().filter_map(|path| path.canonicalize().ok()).collect());
        let is_sample = |file: &Path| file.canonicalize().is_ok_and(|file| samples.contains(&file));
        let (mut masks, mut boxes) = (list(path, &["png"], None)?, list(path, &["txt"], None)?);
        boxes.files.retain(|(name, _)| !is_no_label(name));
        if !boxes.files.is_empty() {
            masks.files.retain(|(_, file)| !is_sample(file));
        }
        // Of as many, those that lie in the folder itself.
        let [of_masks, of_boxes] = [&masks, &boxes].map(|listing| (listing.files.len(), listing.classes.is_empty()));
        let (kind, Listing { files, skipped, unread, .. }) =
            if of_boxes > of_masks { (Kind::Boxes, boxes) } else { (Kind::Masks, masks) };
        let why = match kind {
            Kind::Masks => "the labels of this folder are PNG masks",
            Kind::Boxes => "the labels of this folder are text files of boxes",
        };
        let is_told = |skipped: &SampleError| {
            let file = path.join(&skipped.sample);
            let ending = ending(&file);
            let tells = matches!(ending.as_str(), "md" | "toml" | "yaml" | "yml") || is_no_label(&skipped.sample);
            skipped.reason != HIDDEN && !tells && !(IMAGE_ENDINGS.contains(&ending.as_str()) && is_sample(&file))
        };
        let reason = if files.is_empty() { "such files hold no labels of a folder" } else { why };
        let skipped = skipped.into_iter().filter(is_told);
        let others: Vec<_> =
            skipped.map(|SampleError { sample, .. }| SampleError { sample, reason: reason.to_owned() }).collect();
        let mut below = Listing::below(&unread, &[&["png", "txt", "json"][..], &FOREIGN_ENDINGS].concat(), None);
        below.retain(|(name, file)| !is_no_label(name) && !is_sample(file));
        let below = left_out::in_folders("labels", &below, reason);
        let notes: Vec<String> = left_out::counted("labels", &others).into_iter().chain(below).collect();
        let refused = |reason| Err(DatasetError::Labels { path: path.to_owned(), reason });
        if files.is_empty() {
            let notes: String = notes.iter().map(|note| format!("; {note}")).collect();
            return refused(format!(
                "the folder holds no PNG masks and no text files of boxes, neither itself nor its folders{notes}"
            ));
        }
        if of_masks == of_boxes {
            let of_masks = of_masks.0;
            return refused(format!(
                "the folder holds {of_masks} PNG masks and as many text files of boxes; give a folder with the labels alone"
            ));
        }
        Ok(Self { kind, files, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(files: &[&str], samples: &[&str]) -> Result<(Kind, usize, Vec<String>), String> {
        let folder = tempfile::tempdir().unwrap();
        for name in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = LabelFolder::open(folder.path(), || samples.iter().map(|name| folder.path().join(name)));
        found.map(|found| (found.kind, found.files.len(), found.notes)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_most_files_are_decides_and_the_others_are_told() {
        let masks = |files: &[&str]| open(&[&["a.png", "b.png"], files].concat(), &[]).unwrap();
        let said = |what: &str| vec![format!("files left out of the labels: {what}")];
        for about in [&["README.txt", "classes.txt", "Readme.TXT", "notes.md", ".hidden.png"][..], &[]] {
            assert_eq!(masks(about), (Kind::Masks, 2, vec![]));
        }
        let why = "the labels of this folder are PNG masks";
        assert_eq!(masks(&["a.txt"]), (Kind::Masks, 2, said(&format!("1 with .txt, as a.txt: {why}"))));
        let found = masks(&["c.tif", "d.tif", "x.json"]);
        let what = format!("1 with .json, as x.json: {why}; 2 with .tif, as c.tif: {why}");
        assert_eq!(found, (Kind::Masks, 2, said(&what)));
        let found = masks(&["boxes/a.txt", "boxes/b.txt", "boxes/classes.txt"]);
        assert_eq!(found, (Kind::Masks, 2, said(&format!("2 in folders that are not read, as boxes/a.txt: {why}"))));
        let why = "the labels of this folder are text files of boxes";
        let found = open(&["a.txt", "b.txt", "c.png", "instances.json"], &[]).unwrap();
        let what = format!("1 with .json, as instances.json: {why}; 1 with .png, as c.png: {why}");
        assert_eq!(found, (Kind::Boxes, 2, said(&what)));
    }

    #[test]
    fn pictures_beside_their_boxes_are_no_masks() {
        let found = open(&["a.png", "b.png", "c.jpg", "a.txt", "classes.txt"], &["a.png", "b.png", "c.jpg"]);
        assert_eq!(found, Ok((Kind::Boxes, 1, vec![])));
        let found = open(&["a.png", "a.txt", "masks/a.png"], &["a.png"]).unwrap();
        assert_eq!((found.0, found.1), (Kind::Boxes, 1));
        assert!(found.2[0].contains("1 in folders that are not read, as masks/a.png"), "{:?}", found.2);
    }

    #[test]
    fn a_folder_that_decides_nothing_is_refused() {
        let error = open(&["a.png", "a.txt"], &[]).unwrap_err();
        assert!(error.contains("holds 1 PNG masks and as many text files"), "{error}");
        let error = open(&["README.txt", "classes.txt", "a.tif"], &[]).unwrap_err();
        let told = "no PNG masks and no text files of boxes, neither itself nor its folders; files left out of the labels: \
                    1 with .tif, as a.tif: such files hold no labels of a folder";
        assert!(error.ends_with(told), "{error}");
    }
}
