//! Files of samples: their names in the data set, and where they lie.

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
};

use super::{DatasetError, labels};
use crate::artifact::read_regular;

/// The files of a data set.
pub(super) enum Files {
    /// Name and path of each.
    Each(Vec<(String, PathBuf)>),
    /// What a list file names.
    Listed(List),
}

/// A list file: its names stay in its text, so that a list of millions takes little more memory than its file.
pub(super) struct List {
    text: String,
    /// Relative paths start here.
    folder: PathBuf,
    /// Where the names stand in the text, sorted by name.
    names: Vec<Place>,
}

/// First byte and length of a name.
#[derive(Clone, Copy)]
struct Place(u32, u32);

impl Place {
    fn of(self, text: &str) -> &str {
        &text[self.0 as usize..][..self.1 as usize]
    }
}

impl Files {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Each(files) => files.len(),
            Self::Listed(list) => list.names.len(),
        }
    }

    pub(super) fn id(&self, index: usize) -> &str {
        match self {
            Self::Each(files) => &files[index].0,
            Self::Listed(list) => list.names[index].of(&list.text),
        }
    }

    pub(super) fn path(&self, index: usize) -> PathBuf {
        match self {
            Self::Each(files) => files[index].1.clone(),
            Self::Listed(list) => place(&list.folder, self.id(index)),
        }
    }
}

/// Where the file of this name lies.
fn place(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join(name);
    // Written on Windows.
    if name.contains('\\') && !file.exists() { folder.join(name.replace('\\', "/")) } else { file }
}

/// A list file: a path a line, with or without a label behind it; relative paths start at the list's folder. Without any
/// label, there are no labels.
pub(super) fn read_list(path: &Path) -> Result<(Files, Vec<Option<u32>>), DatasetError> {
    let invalid = |reason: String| DatasetError::Format { path: path.to_owned(), reason };
    let bytes = read_regular(path).map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
    if u32::try_from(bytes.len()).is_err() {
        return Err(invalid(format!("{} bytes are more than a list may have; give a part of it", bytes.len())));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| invalid("it is neither a folder nor a known file type nor a text list of images".to_owned()))?;
    if let Some(reason) = labels::long_line(&text) {
        return Err(invalid(reason));
    }
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut rows: Vec<(Place, Option<u32>)> = Vec::with_capacity(text.lines().count());
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim).enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let columns = line.rsplit_once([',', ' ', '\t']).map(|(name, label)| (name.trim(), label.trim()));
        // `file,label`, or `file,label,name` as in a label file.
        let named = line.split_once(',').and_then(|(name, rest)| Some((name.trim(), rest.split_once(',')?.0.trim())));
        let labelled = columns.into_iter().chain(named).find_map(|(name, label)| Some((name, label.parse().ok()?)));
        let (name, label) = labelled.map_or((line, None), |(name, label)| (name, Some(label)));
        let is_header = || columns.is_some_and(|(name, label)| labels::is_header(name, label));
        if number == 0 && is_header() && !folder.join(name).exists() {
            continue;
        }
        // The name is a part of the text, which is no longer than such numbers.
        let start = name.as_ptr().addr() - text.as_ptr().addr();
        rows.push((Place(start as u32, name.len() as u32), label));
    }
    let by_name = |a: &(Place, Option<u32>), b: &(Place, Option<u32>)| a.0.of(&text).cmp(b.0.of(&text));
    rows.sort_unstable_by(|a, b| by_name(a, b).then(a.1.cmp(&b.1)));
    rows.dedup_by(|a, b| by_name(a, b) == Ordering::Equal && a.1 == b.1);
    if let Some(pair) = rows.windows(2).find(|pair| by_name(&pair[0], &pair[1]) == Ordering::Equal) {
        return Err(invalid(format!("`{}` is listed with two labels", labels::shown(pair[0].0.of(&text)))));
    }
    if !rows.iter().any(|(name, _)| place(&folder, name.of(&text)).exists()) {
        return Err(invalid(match rows.first() {
            Some((first, _)) => {
                format!("none of the files it lists exists; the first is `{}`", labels::shown(first.of(&text)))
            }
            None => "it lists no files".to_owned(),
        }));
    }
    let is_labelled = rows.iter().any(|(_, label)| label.is_some());
    let labels = if is_labelled { rows.iter().map(|(_, label)| *label).collect() } else { Vec::new() };
    let mut names: Vec<Place> = rows.into_iter().map(|(name, _)| name).collect();
    // They take the place of the rows, which is larger.
    names.shrink_to_fit();
    Ok((Files::Listed(List { text, folder, names }), labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_paths_of_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.csv");
        std::fs::create_dir(folder.path().join("d")).unwrap();
        std::fs::write(folder.path().join("d/b.png"), "").unwrap();
        let read = |text: &str| {
            std::fs::write(&list, text).unwrap();
            read_list(&list).map_err(|error| error.to_string())
        };
        let (files, labels) =
            read("\u{feff}file,label,name\n /x/c.png , 3 , cat\r\n\nd\\b.png\t1\na b.png\nd\\b.png,1\n").unwrap();
        let names: Vec<&str> = (0..files.len()).map(|index| files.id(index)).collect();
        assert_eq!(names, ["/x/c.png", "a b.png", "d\\b.png"]);
        assert_eq!(labels, [Some(3), None, Some(1)]);
        let paths = [0, 1, 2].map(|index| files.path(index));
        assert_eq!(paths, [PathBuf::from("/x/c.png"), folder.path().join("a b.png"), folder.path().join("d/b.png")]);
        assert_eq!(read("d/b.png\nd/b.png").unwrap().1, [], "no label at all");
        assert!(read("d/b.png 1\nd/b.png 2").err().unwrap().contains("`d/b.png` is listed with two labels"));
        assert!(read("d/z.png\nd/y.png").err().unwrap().contains("the first is `d/y.png`"));
        assert!(read(" \n").err().unwrap().contains("lists no files"));
        let long = read(&format!("d/b.png\n{}", "x".repeat((64 << 10) + 1))).err().unwrap();
        assert!(long.contains("line 2 has more than 65536 bytes") && long.len() < 300, "{long}");
        let absent = read(&"x".repeat(64 << 10)).err().unwrap();
        assert!(absent.ends_with(&format!("the first is `{}...`", "x".repeat(200))), "{absent}");
    }
}
