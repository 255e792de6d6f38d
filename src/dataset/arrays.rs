//! Samples that are arrays already: `.npy`, `.npz`, a folder of `.npz` files, and Polygraphy's inputs JSON.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error};

use super::{Dataset, DatasetError, InputSpec, SampleError, shapes_of};
use crate::{
    artifact::{Reading, open_regular},
    npz::{Archive, Array, ArrayError, Encoded, Listed, read_npz},
    tensor::{ElementType, Tensor, TensorMap, Values, rows},
};

/// Largest file of JSON that is read: its numbers are text, and all of it is held.
const JSON_BYTES: u64 = 1 << 30;

/// Samples in a file that is read by rows, in memory, or one file each.
pub(super) struct ArrayDataset {
    ids: Vec<String>,
    labels: Vec<Option<u32>>,
    source: Source,
    inputs: Vec<InputSpec>,
    /// How arrays were matched with inputs, where that is not by name or not all of them.
    notes: Vec<String>,
}

enum Source {
    /// The first axis of every array counts the samples; a scalar is the same for all. Rows are read when their turn comes.
    Stacked(PathBuf, BTreeMap<String, Array>),
    /// Each entry is one sample.
    Listed(Vec<TensorMap>),
    /// Each file is one sample.
    Files(Vec<PathBuf>),
}

impl ArrayDataset {
    /// A `.npy` or `.npz` file whose first axis counts samples, or that holds the inputs of one call.
    pub(super) fn stacked(path: &Path, inputs: &[InputSpec]) -> Result<Self, DatasetError> {
        let arrays: BTreeMap<String, Array> = if path.extension().is_some_and(|ending| ending == "npy") {
            BTreeMap::from([("array".to_owned(), Array::open(path).map_err(array_error)?)])
        } else {
            let mut named = BTreeMap::new();
            for (name, array) in Archive::open(path).map_err(array_error)?.arrays {
                if named.insert(name.clone(), array).is_some() {
                    return Err(invalid(path, format!("`{name}` occurs twice")));
                }
            }
            named
        };
        let mut notes: Vec<String> = match_note(path, &arrays, inputs).into_iter().collect();
        if path.extension().is_some_and(|ending| ending == "npy") {
            // It has no name.
            notes.clear();
        }
        let arrays = match_inputs(arrays, inputs).map_err(|reason| invalid(path, reason))?;
        // Without values, any number of samples takes no room in the file.
        if arrays.values().all(|array| array.shape().contains(&0)) {
            return Err(invalid(path, "its arrays hold no values".to_owned()));
        }
        if is_one_call(&arrays, inputs) {
            let whole = |(name, array): (&String, &Array)| {
                let rows = array.shape().first().copied().unwrap_or(1);
                Ok((name.clone(), array.rows(0..rows)?))
            };
            let call: std::io::Result<TensorMap> = arrays.iter().map(whole).collect();
            let call = call.map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
            return Ok(Self { notes, ..Self::new(vec!["0".to_owned()], Source::Listed(vec![call]), inputs) });
        }
        let counts: Vec<(&String, usize)> =
            arrays.iter().filter_map(|(name, array)| Some((name, *array.shape().first()?))).collect();
        let count = counts.first().map(|(_, count)| *count);
        let Some(count) = count.filter(|count| counts.iter().all(|(_, other)| other == count)) else {
            let list: Vec<String> = counts.iter().map(|(name, n)| format!("`{name}` {n}")).collect();
            let list = if list.is_empty() { "single values".to_owned() } else { list.join(", ") };
            return Err(invalid(path, format!("the first axis must count the samples alike; found {list}")));
        };
        let ids = (0..count).map(|index| format!("{index}")).collect();
        notes.extend(rounding_note(path, arrays.iter().map(|(name, array)| (name, array.element_type())), inputs));
        Ok(Self { notes, ..Self::new(ids, Source::Stacked(path.to_owned(), arrays), inputs) })
    }

    /// A folder of `.npz` files, one sample each.
    pub(super) fn files(folder: &Path, files: Vec<String>, inputs: &[InputSpec]) -> Self {
        let paths: Vec<PathBuf> = files.iter().map(|name| folder.join(name)).collect();
        // The others are read when their turn comes; a first one that cannot be read is a bad sample then.
        let first = paths.first().and_then(|path| Some((path, read_npz(path).ok()?)));
        let mut notes = Vec::new();
        if let Some((path, arrays)) = first {
            notes.extend(match_note(path, &arrays, inputs));
            let sample = match_inputs(arrays, inputs).unwrap_or_default();
            notes.extend(rounding_note(path, types(&sample), inputs));
            notes.extend(rows_note(path, "each file", &sample, inputs));
        }
        Self { notes, ..Self::new(files, Source::Files(paths), inputs) }
    }

    /// Polygraphy's `--save-inputs` JSON: a list of feed dictionaries whose arrays are base64 `.npy` files. Where the
    /// first axis of the inputs counts samples, the rows of an entry are samples.
    pub(super) fn polygraphy(path: &Path, inputs: &[InputSpec]) -> Result<Self, DatasetError> {
        let mut bytes = Vec::new();
        let read = open_regular(path).and_then(|file| file.take(JSON_BYTES).read_to_end(&mut bytes));
        read.map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
        if bytes.len() as u64 == JSON_BYTES {
            return Err(invalid(path, "JSON of 1 GiB and more is not read; save the arrays as .npz".to_owned()));
        }
        let Listed(list) = serde_json::from_slice::<Listed<Feed>>(&bytes)
            .map_err(|error| invalid(path, format!("it is not the JSON of Polygraphy's inputs: {error}")))?;
        let list = list.ok_or_else(|| invalid(path, "a list of inputs is expected".to_owned()))?;
        let mut notes = Vec::new();
        let feeds = list
            .into_iter()
            .enumerate()
            .map(|(index, Feed(arrays))| {
                if index == 0 {
                    notes.extend(match_note(path, &arrays, inputs));
                }
                match_inputs(arrays, inputs).map_err(|reason| invalid(path, format!("entry {index}: {reason}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let feeds: Vec<TensorMap> = feeds.into_iter().flat_map(|feed| samples_of(feed, inputs)).collect();
        let ids = (0..feeds.len()).map(|index| format!("{index}")).collect();
        notes.extend(feeds.first().and_then(|feed| rounding_note(path, types(feed), inputs)));
        notes.extend(feeds.iter().find_map(|feed| rows_note(path, "an entry", feed, inputs)));
        Ok(Self { notes, ..Self::new(ids, Source::Listed(feeds), inputs) })
    }

    fn new(ids: Vec<String>, source: Source, inputs: &[InputSpec]) -> Self {
        Self { labels: vec![None; ids.len()], ids, source, inputs: inputs.to_vec(), notes: Vec::new() }
    }

    /// How arrays were matched with inputs, where that is not by name or not all of them.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(super) fn set_labels(&mut self, labels: Vec<Option<u32>>) {
        self.labels = labels;
    }
}

/// Whether arrays have all extents of their inputs, the first among them, which then counts no samples.
fn is_one_call(arrays: &BTreeMap<String, Array>, inputs: &[InputSpec]) -> bool {
    let fits = |input: &InputSpec| {
        let shape = arrays.get(&input.name).map(Array::shape).unwrap_or_default();
        shape.len() == input.shape.len()
            && shape.iter().zip(&input.shape).all(|(extent, wanted)| wanted.is_none_or(|wanted| wanted == *extent))
    };
    let is_whole = |input: &InputSpec| input.shape.first().copied().flatten().is_some_and(|extent| extent > 1);
    inputs.iter().all(fits) && inputs.iter().any(is_whole)
}

/// Whether the first axis of every input counts samples.
fn counts_samples(inputs: &[InputSpec]) -> bool {
    !inputs.is_empty() && inputs.iter().all(|input| input.shape.first().is_some_and(Option::is_none))
}

/// Says that a sample has several rows.
fn rows_note(path: &Path, what: &str, sample: &TensorMap, inputs: &[InputSpec]) -> Option<String> {
    let several = sample.iter().find(|(_, array)| array.shape().first().is_some_and(|&rows| rows > 1));
    let (name, array) = several.filter(|_| counts_samples(inputs))?;
    Some(format!(
        "{}: {what} is one sample, and its array `{name}` has {} rows: errors are those of all of them, but no classes are \
         counted by row; to have each as a sample, save them in one .npz whose arrays have equally many rows",
        path.display(),
        array.shape()[0]
    ))
}

/// The samples in a batch: its rows, where the first axis of every input counts samples and the arrays have as many rows.
fn samples_of(batch: TensorMap, inputs: &[InputSpec]) -> Vec<TensorMap> {
    // Without values, any number of rows takes no room in the file.
    let open = counts_samples(inputs) && batch.values().all(|array| !array.shape().contains(&0));
    let Some(&count) = batch.values().next().and_then(|array| array.shape().first()).filter(|_| open) else {
        return vec![batch];
    };
    let samples: Option<Vec<TensorMap>> = (0..count).map(|row| rows(&batch, count, row..row + 1)).collect();
    samples.unwrap_or_else(|| vec![batch])
}

/// The arrays of one call in Polygraphy's JSON. What is no array is an error at once: millions of such entries are not kept.
struct Feed(TensorMap);

impl<'de> Deserialize<'de> for Feed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let feed = BTreeMap::<String, Encoded>::deserialize(deserializer)?;
        let arrays = feed.into_iter().filter(|(key, _)| !key.starts_with("polygraphy_"));
        let arrays = arrays.map(|(name, Encoded(array))| match array {
            Ok(tensor) => Ok((name, tensor)),
            Err(reason) => Err(D::Error::custom(format!("`{name}` {reason}"))),
        });
        arrays.collect::<Result<TensorMap, _>>().map(Self)
    }
}

/// Arrays by the names of the inputs; a single array serves a single input whatever its name.
fn match_inputs<T>(mut arrays: BTreeMap<String, T>, inputs: &[InputSpec]) -> Result<BTreeMap<String, T>, String> {
    if inputs.is_empty() || inputs.iter().all(|input| arrays.contains_key(&input.name)) {
        arrays.retain(|name, _| inputs.is_empty() || inputs.iter().any(|input| input.name == *name));
        return Ok(arrays);
    }
    if let ([input], 1) = (inputs, arrays.len()) {
        return Ok(arrays.into_values().map(|array| (input.name.clone(), array)).collect());
    }
    let missing: Vec<&str> =
        inputs.iter().map(|input| input.name.as_str()).filter(|name| !arrays.contains_key(*name)).collect();
    let found: Vec<&str> = arrays.keys().map(String::as_str).collect();
    Err(format!("the inputs `{}` are missing; the arrays are `{}`", missing.join("`, `"), found.join("`, `")))
}

/// What [`match_inputs`] does besides taking every array for the input of its name.
fn match_note<T>(path: &Path, arrays: &BTreeMap<String, T>, inputs: &[InputSpec]) -> Option<String> {
    let is_input = |name: &String| inputs.iter().any(|input| input.name == *name);
    let others: Vec<&str> = arrays.keys().filter(|name| !is_input(name)).map(String::as_str).collect();
    match (inputs, &others[..]) {
        ([], _) | (_, []) => None,
        ([input], [other]) if arrays.len() == 1 => {
            Some(format!("{}: its only array `{other}` is taken for the input `{}`", path.display(), input.name))
        }
        _ => Some(format!(
            "{}: the model has no inputs of the names of the arrays `{}`, which are not used",
            path.display(),
            others.join("`, `")
        )),
    }
}

pub(super) fn types(arrays: &TensorMap) -> impl Iterator<Item = (&String, ElementType)> {
    arrays.iter().map(|(name, array)| (name, array.element_type()))
}

/// Whether an array of this type is rounded for an input: NumPy has no `bfloat16` of its own.
pub(super) fn is_rounded(name: &str, found: ElementType, inputs: &[InputSpec]) -> bool {
    let wanted = inputs.iter().find(|input| input.name == name).and_then(|input| input.element_type);
    wanted == Some(ElementType::Bf16) && found.is_float() && found != ElementType::Bf16
}

/// Says which arrays are rounded.
fn rounding_note<'a>(
    path: &Path,
    arrays: impl Iterator<Item = (&'a String, ElementType)>,
    inputs: &[InputSpec],
) -> Option<String> {
    let rounded = arrays.filter(|(name, found)| is_rounded(name, *found, inputs));
    let rounded: Vec<String> = rounded.map(|(name, found)| format!("`{name}` ({found})")).collect();
    (!rounded.is_empty()).then(|| {
        format!(
            "{}: {} is rounded to the nearest bfloat16, which the model takes",
            path.display(),
            rounded.join(" and ")
        )
    })
}

/// The arrays as the inputs take them.
pub(super) fn rounded(arrays: TensorMap, inputs: &[InputSpec]) -> TensorMap {
    let round = |(name, array): (String, Tensor)| {
        if !is_rounded(&name, array.element_type(), inputs) {
            return (name, array);
        }
        let (shape, values) = array.into_parts();
        let values = values.view().to_f64().iter().map(|&value| half::bf16::from_f64(value)).collect();
        let array = Tensor::new(shape, Values::Bf16(values)).expect("as many values as before");
        (name, array)
    };
    arrays.into_iter().map(round).collect()
}

fn invalid(path: &Path, reason: String) -> DatasetError {
    DatasetError::Format { path: path.to_owned(), reason }
}

fn array_error(error: ArrayError) -> DatasetError {
    match error {
        ArrayError::Read { path, source } => DatasetError::Read { path, source },
        ArrayError::Format { path, reason } => DatasetError::Format { path, reason },
    }
}

impl Dataset for ArrayDataset {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> &str {
        &self.ids[index]
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels[index]
    }

    fn file(&self, index: usize) -> Option<PathBuf> {
        match &self.source {
            Source::Files(paths) => Some(paths[index].clone()),
            Source::Stacked(..) | Source::Listed(_) => None,
        }
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        let bad = |reason: String| SampleError { sample: self.ids[index].clone(), reason };
        match &self.source {
            Source::Stacked(path, arrays) => {
                let _reading = Reading::of(path);
                let of = |(name, array): (&String, &Array)| {
                    let spec = self.inputs.iter().find(|input| input.name == *name);
                    // An axis more than the model takes: each element is a whole input.
                    let whole = spec.is_some_and(|spec| spec.shape.len() + 1 == array.shape().len());
                    Ok((name.clone(), row(array, index, whole).map_err(|error| bad(error.to_string()))?))
                };
                arrays.iter().map(of).collect::<Result<TensorMap, _>>()
            }
            Source::Listed(feeds) => Ok(feeds[index].clone()),
            Source::Files(paths) => {
                let arrays = read_npz(&paths[index]).map_err(|error| bad(error.to_string()))?;
                match_inputs(arrays, &self.inputs).map_err(bad)
            }
        }
        .map(|arrays| rounded(arrays, &self.inputs))
    }

    fn shapes(&self, index: usize) -> Result<BTreeMap<String, Vec<usize>>, SampleError> {
        let bad = |reason: String| SampleError { sample: self.ids[index].clone(), reason };
        match &self.source {
            // All rows of a file have one shape.
            Source::Stacked(..) => self.sample(0).map(|sample| shapes_of(&sample)),
            Source::Listed(feeds) => Ok(shapes_of(&feeds[index])),
            Source::Files(paths) => {
                let Archive { arrays, .. } = Archive::open(&paths[index]).map_err(|error| bad(error.to_string()))?;
                let arrays = match_inputs(arrays.into_iter().collect(), &self.inputs).map_err(bad)?;
                Ok(arrays.into_iter().map(|(name, array)| (name, array.shape().to_vec())).collect())
            }
        }
    }
}

/// The element `index` of the first axis, which goes when the element is a `whole` input, and otherwise stays with an
/// extent of 1. A scalar stays as it is.
fn row(array: &Array, index: usize, whole: bool) -> std::io::Result<Tensor> {
    let row = array.rows(index..index + 1)?;
    if !whole {
        return Ok(row);
    }
    let (shape, values) = row.into_parts();
    Tensor::new(shape[1..].to_vec(), values).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;
    use crate::npz::write_npz;

    fn spec(name: &str) -> InputSpec {
        InputSpec { name: name.to_owned(), element_type: None, shape: vec![] }
    }

    #[test]
    fn rows_of_the_first_axis_are_samples() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        let arrays = TensorMap::from([
            ("a".to_owned(), Tensor::from_f32(vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap()),
            ("b".to_owned(), Tensor::from_f32(vec![2], vec![5.0, 6.0]).unwrap()),
        ]);
        write_npz(&path, &arrays).unwrap();
        let shaped = |name, rank| InputSpec { shape: vec![None; rank], ..spec(name) };
        let data = ArrayDataset::stacked(&path, &[shaped("a", 2), shaped("b", 1)]).unwrap();
        let sample = data.sample(1).unwrap();
        assert_eq!(data.shapes(1).unwrap(), shapes_of(&sample));
        assert_eq!(sample["a"], Tensor::from_f32(vec![1, 2], vec![3.0, 4.0]).unwrap());
        assert_eq!(sample["b"], Tensor::from_f32(vec![1], vec![6.0]).unwrap());
        let whole = ArrayDataset::stacked(&path, &[shaped("a", 1), shaped("b", 0)]).unwrap();
        let sample = whole.sample(1).unwrap();
        assert_eq!(sample["a"], Tensor::from_f32(vec![2], vec![3.0, 4.0]).unwrap());
        assert_eq!(sample["b"], Tensor::from_f32(vec![], vec![6.0]).unwrap());
        // Rows of 1 would not fit an input whose first extent is fixed to 2.
        let [fixed, open] = [InputSpec { shape: vec![Some(2), None], ..spec("a") }, shaped("b", 1)];
        let call = ArrayDataset::stacked(&path, &[fixed, open]).unwrap();
        assert_eq!((call.len(), &call.sample(0).unwrap()), (1, &arrays));
        let error = ArrayDataset::stacked(&path, &[spec("a"), spec("c")]).err().unwrap().to_string();
        assert!(error.contains("`c` are missing") && error.contains("`a`, `b`"), "{error}");
    }

    #[test]
    fn arrays_that_are_not_used_or_go_by_another_name_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let stacked = |names: &[&str], inputs: &[&str]| {
            let path = folder.path().join("x.npz");
            let array = |name: &&str| ((*name).to_owned(), Tensor::from_f32(vec![2], vec![1.0, 2.0]).unwrap());
            write_npz(&path, &names.iter().map(array).collect()).unwrap();
            let inputs: Vec<InputSpec> = inputs.iter().map(|name| spec(name)).collect();
            let of_folder = ArrayDataset::files(folder.path(), vec!["x.npz".to_owned()], &inputs);
            let data = ArrayDataset::stacked(&path, &inputs).unwrap();
            assert_eq!(data.notes(), of_folder.notes());
            data.notes().join("; ")
        };
        assert_eq!(stacked(&["a", "b"], &["a", "b"]), "");
        assert!(stacked(&["a", "label", "n"], &["a"]).contains("`label`, `n`, which are not used"));
        assert!(stacked(&["pixels"], &["a"]).contains("its only array `pixels` is taken for the input `a`"));
    }

    #[test]
    fn polygraphy_inputs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let save = |shape: &str, values: &[f32]| {
            let mut npy = b"\x93NUMPY\x01\x00".to_vec();
            let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
            npy.extend((header.len() as u16).to_le_bytes());
            npy.extend(header.as_bytes());
            npy.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            let npy = base64::engine::general_purpose::STANDARD.encode(npy);
            let json = format!(r#"[{{"x": {{"array": "{npy}", "polygraphy_class": "np.ndarray"}}}}]"#);
            std::fs::write(file.path(), json).unwrap();
        };
        save("(2, 1)", &[2.5, -1.0]);
        let read = |extent| {
            let input = InputSpec { shape: vec![extent, Some(1)], ..spec("input") };
            let data = ArrayDataset::polygraphy(file.path(), &[input]).unwrap();
            (0..data.len()).map(|index| data.sample(index).unwrap().remove("input").unwrap()).collect::<Vec<_>>()
        };
        let array = |values: &[f32]| Tensor::from_f32(vec![values.len(), 1], values.to_vec()).unwrap();
        assert_eq!(read(Some(2)), [array(&[2.5, -1.0])]);
        assert_eq!(read(None), [array(&[2.5]), array(&[-1.0])], "the rows of a batch are samples where it is open");
        save("(1000000000000, 0)", &[]);
        assert_eq!(read(None).len(), 1, "rows that hold nothing are not counted");
    }

    #[test]
    fn rows_that_count_as_one_sample_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let array = |rows: usize| Tensor::from_f32(vec![rows, 1], vec![1.0; rows]).unwrap();
        let arrays = TensorMap::from([("a".to_owned(), array(3)), ("b".to_owned(), array(1))]);
        write_npz(&folder.path().join("x.npz"), &arrays).unwrap();
        let notes = |first| {
            let of = |name| InputSpec { shape: vec![first, Some(1)], ..spec(name) };
            let data = ArrayDataset::files(folder.path(), vec!["x.npz".to_owned()], &[of("a"), of("b")]);
            assert_eq!(data.shapes(0).unwrap(), shapes_of(&data.sample(0).unwrap()));
            data.notes().join("; ")
        };
        assert!(notes(None).contains("each file is one sample, and its array `a` has 3 rows"), "{}", notes(None));
        assert_eq!(notes(Some(3)), "", "it is what the model takes");
    }
}
