//! The right answers: CSV `file,label[,name]`, lines `name label`, and files of class names.

use std::{
    borrow::Cow,
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::DatasetError;
use crate::artifact::{Reading, read_regular, read_within};

/// A line of a file of labels has a name, a label and perhaps a class; of one with millions of columns each takes memory.
const LONGEST_LINE: usize = 64 << 10;
/// Bytes that are read at a time.
const AT_ONCE: usize = 8 << 10;
/// Characters of a name that errors show.
const SHOWN: usize = 200;

/// Labels by what the file calls a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    path: PathBuf,
    by_name: BTreeMap<String, u32>,
    /// Class names that the file gives in its third column.
    pub names: BTreeMap<u32, String>,
}

impl Labels {
    /// Reads the labels of the samples `ids` from a file; of a list of millions only those take memory. `classes`
    /// resolves labels that are names.
    pub fn load(path: &Path, classes: &BTreeMap<u32, String>, ids: &[&str]) -> Result<Self, DatasetError> {
        let _reading = Reading::of(path);
        let text = read_text(path)?;
        let wanted: BTreeSet<&str> = ids.iter().map(|id| stem(id)).collect();
        let mut any = false;
        let invalid = |line: usize, reason: String| DatasetError::Labels {
            path: path.to_owned(),
            reason: format!("line {line}: {reason}"),
        };
        let by_class = ClassNames::of(classes);
        let mut labels = Self { path: path.to_owned(), ..Self::default() };
        for row in rows(&text, path) {
            let (number, row) = row?;
            let [file, label, rest @ ..] = row.as_slice() else {
                return Err(invalid(number, "a sample and a label are expected".to_owned()));
            };
            let index = match label.parse::<u32>() {
                Ok(index) => index,
                Err(_) if !any && number == 1 && is_header(file, label) => continue,
                Err(_) => by_class
                    .find(label)
                    .ok_or_else(|| format!("`{}` is neither a class index nor a name in the class file", shown(label)))
                    .flatten()
                    .map_err(|reason| invalid(number, reason))?,
            };
            let file = file.replace('\\', "/");
            // One that belongs to no sample stands for all of them in the error.
            if any && !wanted.contains(stem(&file)) {
                continue;
            }
            any = true;
            if let Some(name) = rest.first().filter(|name| !name.is_empty()) {
                labels.names.insert(index, name.clone());
            }
            if let Some(earlier) = labels.by_name.insert(file.clone(), index)
                && earlier != index
            {
                return Err(invalid(number, format!("`{}` has the label {index}, and {earlier} before", shown(&file))));
            }
        }
        if labels.by_name.is_empty() {
            return Err(DatasetError::Labels { path: path.to_owned(), reason: "it holds no labels".to_owned() });
        }
        Ok(labels)
    }

    /// The label of every sample, by its whole id, else its file name, else its stem.
    ///
    /// A file that matches no sample at all is an error.
    pub fn assign<'i>(&self, ids: &[&'i str]) -> Result<Vec<Option<u32>>, DatasetError> {
        let keys: [fn(&str) -> &str; 3] = [|id| id, file_name, stem];
        let tables = keys.map(|key| {
            let mut table: BTreeMap<&str, Option<u32>> = BTreeMap::new();
            for (name, &label) in &self.by_name {
                // Two names that look alike and disagree say nothing.
                table.entry(key(name)).and_modify(|l| *l = l.filter(|&l| l == label)).or_insert(Some(label));
            }
            table
        });
        let invalid = |reason: String| DatasetError::Labels { path: self.path.clone(), reason };
        let all: BTreeSet<&str> = ids.iter().copied().collect();
        let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
        let mut find = |id: &&'i str| -> Result<Option<u32>, DatasetError> {
            // A row of another sample's own name is that sample's.
            let names = [id, file_name(id), without_ending(id), stem(id)];
            let own = names.into_iter().filter(|name| name == id || !all.contains(name));
            let rows: BTreeMap<u32, &str> = own.filter_map(|name| Some((*self.by_name.get(name)?, name))).collect();
            if let [(&first, name), (&second, other)] = rows.iter().take(2).collect::<Vec<_>>()[..] {
                return Err(invalid(format!("{id} has the label {first} by `{name}`, and {second} by `{other}`")));
            }
            for (key, table) in keys.iter().zip(&tables) {
                if let Some(&Some(label)) = table.get(key(id)) {
                    return match taken.insert(key(id), id).filter(|_| key(id) != *id) {
                        Some(other) => Err(invalid(format!(
                            "`{}` may be {other} or {id}; give the names of samples with those of their folders",
                            key(id)
                        ))),
                        None => Ok(Some(label)),
                    };
                }
            }
            Ok(None)
        };
        let found: Vec<Option<u32>> = ids.iter().map(&mut find).collect::<Result<_, _>>()?;
        if found.iter().all(Option::is_none) {
            let example = self.by_name.keys().next().map_or("", String::as_str);
            let sample = ids.first().copied().unwrap_or("");
            return Err(invalid(format!(
                "none of its names matches a sample: it has `{}`, the data has `{}`",
                shown(example),
                shown(sample)
            )));
        }
        Ok(found)
    }
}

/// Classes by their names.
pub(super) struct ClassNames<'c>(BTreeMap<&'c str, [u32; 2]>);

impl<'c> ClassNames<'c> {
    pub(super) fn of(classes: &'c BTreeMap<u32, String>) -> Self {
        let mut ends: BTreeMap<&str, [u32; 2]> = BTreeMap::new();
        for (&index, name) in classes {
            ends.entry(name).or_insert([index; 2])[1] = index;
        }
        Self(ends)
    }

    /// The class of a name, or why it is that of several; `None` for an unknown one.
    pub(super) fn find(&self, name: &str) -> Option<Result<u32, String>> {
        let &[first, last] = self.0.get(name)?;
        Some(if first == last {
            Ok(first)
        } else {
            Err(format!("`{name}` is the name of the classes {first} and {last}; give the number of the class instead"))
        })
    }
}

pub(super) fn is_header(file: &str, label: &str) -> bool {
    let known = ["file", "filename", "path", "image", "name", "id", "label", "class", "index", "target"];
    known.iter().any(|word| file.to_lowercase().contains(word)) || known.contains(&label.to_lowercase().as_str())
}

/// The line's number and its columns.
type Row = (usize, Vec<String>);

/// The beginning of what a file says, for errors.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    text.char_indices().nth(SHOWN).map_or(Cow::Borrowed(text), |(end, _)| format!("{}...", &text[..end]).into())
}

/// Why a text is not a list: one of its lines is longer than any.
pub(super) fn long_line(text: &str) -> Option<String> {
    let long = text.lines().position(|line| line.len() > LONGEST_LINE)?;
    Some(format!("line {} has more than {LONGEST_LINE} bytes: this is not a list of samples or labels", long + 1))
}

/// A text that ends with an error where a row goes on for longer than a line may: quotes keep lines together.
struct Bounded<'t> {
    rest: &'t [u8],
    /// Bytes that the row may still take.
    left: Rc<Cell<usize>>,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.rest.read(buffer)?;
        self.left.set(self.left.get().checked_sub(count).ok_or(std::io::ErrorKind::FileTooLarge)?);
        Ok(count)
    }
}

/// Rows with their line numbers; commas, semicolons or tabs in the first line separate columns, otherwise the last word
/// of a line is the label. A line that is too long is an error before anything is split.
pub(super) fn rows<'t>(text: &'t str, path: &'t Path) -> Box<dyn Iterator<Item = Result<Row, DatasetError>> + 't> {
    let invalid = |reason: String| DatasetError::Labels { path: path.to_owned(), reason };
    if let Some(reason) = long_line(text) {
        return Box::new(std::iter::once(Err(invalid(reason))));
    }
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    if let Some(&delimiter) = [b',', b';', b'\t'].iter().find(|&&delimiter| first.contains(char::from(delimiter))) {
        let left = Rc::new(Cell::new(0));
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::All)
            .buffer_capacity(AT_ONCE)
            .from_reader(Bounded { rest: text.as_bytes(), left: Rc::clone(&left) });
        let mut record = csv::StringRecord::new();
        return Box::new(std::iter::from_fn(move || {
            let begins = reader.position().line();
            let rest = text.as_bytes().get(reader.position().byte() as usize..).unwrap_or_default();
            let blank = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            left.set(LONGEST_LINE + AT_ONCE + blank);
            match reader.read_record(&mut record) {
                Ok(false) => None,
                Ok(true) => {
                    let line = record.position().map_or(0, |position| position.line() as usize);
                    Some(Ok((line, record.iter().map(str::to_owned).collect())))
                }
                Err(error) if matches!(error.kind(), csv::ErrorKind::Io(_)) => Some(Err(invalid(format!(
                    "quotes in line {begins} or behind it are not closed within {LONGEST_LINE} bytes"
                )))),
                Err(error) => Some(Err(invalid(error.to_string()))),
            }
        }));
    }
    let split = |line: &str| match line.trim().rsplit_once(char::is_whitespace) {
        Some((file, label)) => vec![file.trim().to_owned(), label.to_owned()],
        None => vec![line.trim().to_owned()],
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Box::new(lines.map(move |(i, line)| Ok((i + 1, split(line)))))
}

/// Class names, one a line in the order of the classes; also `index name` or `index,name` lines.
pub fn load_classes(path: &Path) -> Result<BTreeMap<u32, String>, DatasetError> {
    let text = read_small(path)?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let indexed = |line: &&str| {
        let (index, name) = line.split_once([',', ' ', '\t', ':'])?;
        Some((index.trim().parse::<u32>().ok()?, name.trim().to_owned()))
    };
    let numbered: Option<BTreeMap<u32, String>> = lines.iter().filter(|line| !line.is_empty()).map(indexed).collect();
    match numbered {
        Some(names) if !names.is_empty() => Ok(names),
        _ => {
            let end = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
            Ok(lines[..end].iter().enumerate().map(|(index, line)| (index as u32, (*line).to_owned())).collect())
        }
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, DatasetError> {
    text(path, read_regular(path))
}

/// The text of a file that has a few megabytes at most: each of its lines takes many times its length.
pub(super) fn read_small(path: &Path) -> Result<String, DatasetError> {
    text(path, read_within(path, 4 << 20))
}

fn text(path: &Path, bytes: std::io::Result<Vec<u8>>) -> Result<String, DatasetError> {
    let bytes = bytes.map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
    let mut text = String::from_utf8(bytes)
        .map_err(|_| DatasetError::Labels { path: path.to_owned(), reason: "it is not UTF-8 text".to_owned() })?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

/// The last part of a name within a data set.
pub(super) fn file_name(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// A name within a data set without its ending.
pub(super) fn without_ending(id: &str) -> &str {
    let ending = file_name(id).rsplit_once('.').map_or(0, |(_, ending)| 1 + ending.len());
    &id[..id.len() - ending]
}

/// The last part of a name without its ending.
pub(super) fn stem(id: &str) -> &str {
    file_name(without_ending(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Labels, DatasetError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let ids = ["x/a.jpg", "a.png", "b/c.jpg", "d.jpg"];
        Labels::load(file.path(), &BTreeMap::from([(3, "cat".to_owned())]), &ids)
    }

    #[test]
    fn csv_with_and_without_header_and_plain_lines() {
        for text in [
            "file,label,name\na.jpg,3,cat\nb/c.jpg,4\n",
            "a.jpg, 3,cat\nb/c.jpg,4",
            "a.jpg 3\nb/c.jpg\t4\n",
            "file\tlabel\tname\na.jpg\t3\tcat\nb/c.jpg\t4\n",
            "file;label;name\na.jpg;3;a, b\nb/c.jpg;4;\n",
        ] {
            let labels = load(text).unwrap();
            assert_eq!(labels.assign(&["x/a.jpg", "b/c.jpg", "d.jpg"]).unwrap(), [Some(3), Some(4), None], "{text}");
        }
    }

    #[test]
    fn names_are_looked_up_in_the_classes() {
        assert_eq!(load("a.jpg,cat\n").unwrap().assign(&["a.png"]).unwrap(), [Some(3)]);
        assert!(load("a.jpg,3\nb.jpg,dog\n").unwrap_err().to_string().contains("line 2: `dog`"));
    }

    #[test]
    fn what_may_be_several_classes_or_samples_is_refused() {
        let classes = BTreeMap::from([(134, "crane".to_owned()), (517, "crane".to_owned()), (0, "tench".to_owned())]);
        let names = ClassNames::of(&classes);
        assert_eq!((names.find("tench"), names.find("heron")), (Some(Ok(0)), None));
        assert!(names.find("crane").unwrap().unwrap_err().contains("the classes 134 and 517"));
        let labels = load("a.jpg,3\nb/c.jpg,4\n").unwrap();
        assert_eq!(labels.assign(&["x/a.jpg", "b/c.jpg"]).unwrap(), [Some(3), Some(4)]);
        let error = load("a.jpg,3\na,4\n").unwrap().assign(&["x/a.jpg"]).unwrap_err().to_string();
        assert!(error.contains("x/a.jpg has the label 3 by `a.jpg`, and 4 by `a`"), "{error}");
        let error = labels.assign(&["x/a.jpg", "y/a.jpg"]).unwrap_err().to_string();
        assert!(error.contains("`a.jpg` may be x/a.jpg or y/a.jpg"), "{error}");
    }

    #[test]
    fn only_the_labels_of_samples_are_kept() {
        let text: String = (0..1000).map(|i| format!("other{i}.jpg,{i},name{i}\n")).collect();
        let labels = load(&format!("{text}dir\\a.jpg,7,seven\n")).unwrap();
        assert_eq!(labels.assign(&["x/a.jpg", "d.jpg"]).unwrap(), [Some(7), None]);
        // The first of the file stands in the message when none matches.
        assert_eq!((labels.by_name.len(), labels.names.len()), (2, 2));
    }

    #[test]
    fn lines_and_quotes_without_an_end_are_refused_before_they_are_split() {
        // The first line, a later one, in every kind of list; quotes hold lines together.
        for (text, reason) in [
            (",".repeat(LONGEST_LINE + 1), "line 1 has more than 65536 bytes"),
            (format!("file,label\na.jpg,3\n{}\n", ";".repeat(LONGEST_LINE + 1)), "line 3 has more than 65536 bytes"),
            (format!("a.jpg 3\n{} 4\n", "b".repeat(LONGEST_LINE)), "line 2 has more than 65536 bytes"),
            (format!("a.jpg,3\n\"{}", "b\n".repeat(LONGEST_LINE)), "quotes in line 2 or behind it are not closed"),
        ] {
            let error = load(&text).err().unwrap().to_string();
            assert!(error.contains(reason) && error.len() < 300, "{error}");
        }
        let blank = load(&format!("a.jpg,3\n{}a.png,4\n", "\n".repeat(2 * LONGEST_LINE))).unwrap();
        assert_eq!(blank.by_name.len(), 2, "blank lines are not row");
        let name = format!("{}/a.jpg", "b".repeat(LONGEST_LINE - 8));
        let long = load(&format!("{name},3\n{name},4\n")).err().unwrap().to_string();
        assert!(long.contains(&format!("`{}...` has the label 4, and 3 before", &name[..200])), "{long}");
        let quoted = load(&format!("a.jpg,3,\"{}\"\n", "b\n".repeat(30_000))).unwrap();
        assert_eq!((quoted.by_name["a.jpg"], quoted.names[&3].len()), (3, 59_999), "trimmed");
    }

    #[test]
    fn errors_show_the_beginning_of_a_long_name() {
        assert_eq!(shown("ä b"), "ä b");
        assert_eq!(shown(&"ä".repeat(200)), "ä".repeat(200));
        assert_eq!(shown(&"ä".repeat(201)), format!("{}...", "ä".repeat(200)));
    }

    #[test]
    fn contradictions_and_strangers_are_errors() {
        assert!(load("a.jpg,3\na.jpg,4\n").unwrap_err().to_string().contains("label 4, and 3 before"));
        let error = load("a.jpg,3\n").unwrap().assign(&["z.jpg"]).unwrap_err().to_string();
        assert!(error.contains("`a.jpg`") && error.contains("`z.jpg`"), "{error}");
        assert!(load("\n").unwrap_err().to_string().contains("no labels"));
    }

    #[test]
    fn classes_by_line_or_by_index() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "tench\ngreat white shark\n").unwrap();
        assert_eq!(load_classes(file.path()).unwrap()[&1], "great white shark");
        std::fs::write(file.path(), "5 tench\n7 shark\n").unwrap();
        assert_eq!(load_classes(file.path()).unwrap()[&7], "shark");
    }
}
