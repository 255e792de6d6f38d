//! Outputs of a model, saved as `.npz` to be compared later or with what another program gave ([`exported`] reads JSON).
//!
//! Each output is an array whose first axis runs over the samples. The entry `samples.json` holds their names in the
//! same order; files that other programs wrote lack it, and then row n belongs to sample n of the data, whichever of these
//! are compared. The entry
//! `inputs.json` holds a hash of what each sample was, so that other data under the same names are not taken for it, and
//! `made_by.json` names what ran an engine.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::{Path, PathBuf},
};

mod writer;

pub use writer::OutputsWriter;

use super::exported;
use crate::{
    artifact::{ArtifactError, ContentHash, open_regular},
    backend::{BackendError, Given, Inputs, Show, TensorInfo},
    npz::{Archive, Array, ArrayError, write_npz},
    pass::{Outputs, Part},
    tensor::{Tensor, TensorMap},
};

/// Entry of the archive with the names of the samples.
const SAMPLES: &str = "samples.json";
/// Entry of the archive with the hashes of their inputs.
const INPUTS: &str = "inputs.json";
/// Entry of the archive with the name of what made the outputs.
const MADE_BY: &str = "made_by.json";

/// Why outputs cannot be saved or used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ArrayError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] ArtifactError),
    /// A temporary file or a window of the saved data failed.
    #[error("cannot access saved outputs")]
    Io(#[from] io::Error),
    /// The file does not hold what is needed.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// What shall be saved does not fit what was saved before.
    #[error("output `{output}` cannot be saved: {reason}")]
    Output {
        /// The output.
        output: String,
        /// What is wrong.
        reason: String,
    },
}

/// Saved outputs; rows are read when they are asked for.
#[derive(Debug)]
pub struct SavedOutputs {
    path: PathBuf,
    /// Rows that follow each other; within a block all of one shape.
    blocks: Vec<Block>,
    samples: usize,
    rows: Option<BTreeMap<String, usize>>,
    /// Hashes of the samples' inputs by row; absent in files of other programs.
    inputs: Option<Vec<ContentHash>>,
    made_by: Option<String>,
}

/// Outputs of samples that follow each other.
#[derive(Debug)]
struct Block {
    /// Samples before it.
    first: usize,
    arrays: Vec<(String, Array)>,
}

impl SavedOutputs {
    /// Opens a file.
    ///
    /// # Errors
    /// No archive of arrays, or arrays of different lengths.
    pub fn open(path: &Path) -> Result<Self, SavedError> {
        let invalid = |reason| SavedError::Content { path: path.to_owned(), reason };
        let (arrays, others) = if let Some(bytes) = json(path)? {
            let blocks = exported::read(&bytes).map_err(invalid)?;
            if blocks.iter().all(TensorMap::is_empty) {
                return Err(invalid("it holds no outputs".to_owned()));
            }
            (exported_blocks(&blocks)?, Vec::new())
        } else {
            let Archive { arrays, others } = Archive::open(path)?;
            (vec![arrays], others)
        };
        let (mut blocks, mut samples) = (Vec::new(), 0);
        for arrays in arrays {
            let length = |(_, array): &(String, Array)| array.shape().first().copied().unwrap_or(0);
            let rows = arrays.first().map(length);
            if let (Some(rows), Some(odd)) = (rows, arrays.iter().find(|odd| Some(length(odd)) != rows)) {
                let (first, other) = (&arrays[0].0, &odd.0);
                return Err(invalid(format!(
                    "`{first}` has {rows} rows and `{other}` has {}; the first axis must run over the samples",
                    length(odd)
                )));
            }
            blocks.push(Block { first: samples, arrays });
            samples += rows.unwrap_or(0);
        }
        let names: Option<Vec<String>> = entry(&others, SAMPLES).map_err(invalid)?;
        let inputs: Option<Vec<ContentHash>> = entry(&others, INPUTS).map_err(invalid)?;
        let made_by = entry(&others, MADE_BY).map_err(invalid)?;
        let rows = names.map(|names| names.into_iter().enumerate().map(|(row, name)| (name, row)).collect());
        if rows.as_ref().is_some_and(|rows: &BTreeMap<String, usize>| rows.len() != samples) {
            return Err(invalid(format!("{SAMPLES} does not name each of the {samples} samples once")));
        }
        if inputs.as_ref().is_some_and(|inputs| inputs.len() != samples) {
            return Err(invalid(format!("{INPUTS} does not hold a hash for each of the {samples} samples")));
        }
        Ok(Self { path: path.to_owned(), blocks, samples, rows, inputs, made_by })
    }

    /// The arrays of the first block, whose names, types and ranks are those of all.
    fn arrays(&self) -> &[(String, Array)] {
        self.blocks.first().map_or(&[], |block| &block.arrays)
    }

    /// Names of the outputs, in the order of the file.
    pub fn outputs(&self) -> Vec<String> {
        self.arrays().iter().map(|(name, _)| name.clone()).collect()
    }

    /// The same with their types and shapes, over any number of samples.
    pub fn infos(&self) -> Vec<TensorInfo> {
        let info = |(output, (name, array)): (usize, &(String, Array))| {
            let extent = |axis: usize| {
                let extent = array.shape()[axis];
                self.blocks.iter().all(|block| block.arrays[output].1.shape()[axis] == extent).then_some(extent)
            };
            let shape = std::iter::once(None).chain((1..array.shape().len()).map(extent)).collect();
            TensorInfo { name: name.clone(), element_type: Some(array.element_type()), shape }
        };
        self.arrays().iter().enumerate().map(info).collect()
    }

    /// What ran the engine that gave them, as `TensorRT-RTX 1.7.1`; absent for other models and in files of other programs.
    pub fn made_by(&self) -> Option<&str> {
        self.made_by.as_deref()
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// True without samples.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The outputs of all samples, in the order of the file.
    ///
    /// # Errors
    /// They are not of one shape.
    pub fn all(&self) -> Result<TensorMap, SavedError> {
        self.of_rows(&(0..self.samples).collect::<Vec<_>>())
    }

    /// How the rows are taken where the file names no samples and has fewer rows than the data samples (`samples`).
    ///
    /// # Errors
    /// It has more rows.
    pub fn taken_for(&self, samples: usize) -> Result<Option<String>, SavedError> {
        let (path, rows) = (&self.path, self.samples);
        if self.rows.is_some() || rows == samples {
            return Ok(None);
        }
        if rows > samples {
            let reason = format!(
                "it names no samples, so that row n is taken for sample n of the data; it has {rows} rows, and the data {samples} \
                 samples: give the data that it was made from"
            );
            return Err(SavedError::Content { path: path.clone(), reason });
        }
        Ok(Some(format!(
            "{}: it names no samples; its {rows} rows are taken for the first {rows} of the {samples} samples of the data, and no \
             others are compared",
            path.display()
        )))
    }

    /// Whether it holds outputs of sample `index` of the data, which is called `id`.
    pub fn holds(&self, index: usize, id: &str) -> bool {
        self.row(index, id).is_some()
    }

    /// The row of a sample: found by name where the file has names, else by its place among all samples of the data.
    fn row(&self, index: usize, id: &str) -> Option<usize> {
        match &self.rows {
            Some(rows) => rows.get(id).copied(),
            None => Some(index).filter(|&index| index < self.samples),
        }
    }

    /// Outputs of the samples `ids`, whose places among all samples of the data are `indices`.
    pub fn batch(&self, indices: &[usize], ids: &[&str]) -> Result<TensorMap, SavedError> {
        let row = |(&index, &id): (&usize, &&str)| {
            self.row(index, id).ok_or_else(|| {
                let reason = format!("it holds no outputs of sample {id}");
                SavedError::Content { path: self.path.clone(), reason }
            })
        };
        let rows: Vec<usize> = indices.iter().zip(ids).map(row).collect::<Result<_, _>>()?;
        self.of_rows(&rows)
    }

    /// Refuses samples whose inputs are not those that the outputs were saved for.
    fn check_inputs(&self, part: &Part<'_>) -> Result<(), SavedError> {
        let (Some(saved), Some(rows)) = (&self.inputs, &self.rows) else { return Ok(()) };
        let other = part
            .ids
            .iter()
            .zip(input_hashes(part))
            .find(|(id, hash)| rows.get(id.as_str()).is_some_and(|&row| saved[row] != *hash));
        other.map_or(Ok(()), |(id, _)| {
            let reason = format!(
                "its outputs of sample {id} are of other data or preprocessing than what is compared now; give the data \
                 that it was saved from, or save it again"
            );
            Err(SavedError::Content { path: self.path.clone(), reason })
        })
    }

    fn of_rows(&self, rows: &[usize]) -> Result<TensorMap, SavedError> {
        let block =
            |row: usize| &self.blocks[self.blocks.partition_point(|block| block.first <= row).saturating_sub(1)];
        let mut outputs = TensorMap::new();
        for (output, (name, first)) in self.arrays().iter().enumerate() {
            let first = rows.first().map_or(first, |&row| &block(row).arrays[output].1);
            let mut shape = first.shape().to_vec();
            let mut values = first.rows(0..0)?.values().clone();
            for &row in rows {
                let (block, index) = (block(row), row - block(row).first);
                let array = &block.arrays[output].1;
                if array.shape().get(1..) != shape.get(1..) {
                    let reason = format!(
                        "`{name}` has the shape {:?} for sample {} and {:?} for sample {row}, which are no batch; use --batch 1",
                        &shape[1..],
                        rows[0],
                        &array.shape()[1..]
                    );
                    return Err(SavedError::Content { path: self.path.clone(), reason });
                }
                // Rows of one output have one type, so this cannot fail.
                let _same_type = values.extend(array.rows(index..index + 1)?.view().values);
            }
            if let Some(extent) = shape.first_mut() {
                *extent = rows.len();
            }
            outputs.insert(name.clone(), Tensor::new(shape, values).map_err(io::Error::other)?);
        }
        Ok(outputs)
    }
}

/// The same outputs in a file that is gone when nobody reads from it any more: an archive of all blocks.
fn exported_blocks(blocks: &[TensorMap]) -> Result<Vec<Vec<(String, Array)>>, SavedError> {
    let archive = tempfile::NamedTempFile::new()?;
    let numbered = blocks.iter().enumerate().flat_map(|(block, outputs)| {
        outputs.iter().map(move |(name, tensor)| (format!("{block:08}/{name}"), tensor.clone()))
    });
    write_npz(archive.path(), &numbered.collect())?;
    let mut found: Vec<Vec<(String, Array)>> = blocks.iter().map(|_| Vec::new()).collect();
    for (name, array) in Archive::open(archive.path())?.arrays {
        if let Some((block, name)) = name.split_once('/')
            && let Some(block) = block.parse().ok().and_then(|block: usize| found.get_mut(block))
        {
            block.push((name.to_owned(), array));
        }
    }
    Ok(found)
}

impl Outputs for SavedOutputs {
    fn names(&self) -> Vec<String> {
        self.outputs()
    }

    fn give(&mut self, part: &Part<'_>, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        Outputs::give(&mut &*self, part, inputs, show)
    }
}

impl Outputs for &SavedOutputs {
    fn names(&self) -> Vec<String> {
        self.outputs()
    }

    fn give(&mut self, part: &Part<'_>, _inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        let refused = |error: SavedError| BackendError::Visitor(Box::new(error));
        self.check_inputs(part).map_err(refused)?;
        let tensors = self.batch(part.indices, &part.names()).map_err(refused)?;
        show(&Given { inputs: part.inputs.into(), outputs: (&tensors).into() }).map_err(BackendError::Visitor)
    }
}

/// The JSON in an entry of the archive, if it is there.
fn entry<T: serde::de::DeserializeOwned>(others: &[(String, Vec<u8>)], name: &str) -> Result<Option<T>, String> {
    let content = others.iter().find(|(entry, _)| entry == name).map(|(_, content)| serde_json::from_slice(content));
    content.transpose().map_err(|error| format!("{name}: {error}"))
}

/// A hash over the inputs of each sample, the same in any batch.
fn input_hashes(part: &Part<'_>) -> Vec<ContentHash> {
    let samples = part.ids.len();
    let of_sample = |index: usize| {
        let mut bytes = Vec::new();
        for (name, tensor) in part.inputs {
            let all = tensor.view().values.bytes();
            let row = all.len() / samples;
            let is_stacked = tensor.shape().first() == Some(&samples);
            bytes.extend(name.as_bytes());
            bytes.extend(if is_stacked { &all[index * row..(index + 1) * row] } else { all });
        }
        ContentHash::of_bytes(&bytes)
    };
    (0..samples).map(of_sample).collect()
}

/// Largest file of JSON that is read: its numbers are text, and all of it is held.
const JSON_BYTES: u64 = 1 << 30;

/// The content of a file that begins as JSON does.
fn json(path: &Path) -> Result<Option<Vec<u8>>, SavedError> {
    let read = |source| ArrayError::Read { path: path.to_owned(), source };
    let file = open_regular(path).map_err(read)?;
    let mut start = Vec::new();
    (&file).take(16).read_to_end(&mut start).map_err(read)?;
    if !start.trim_ascii_start().starts_with(b"[") && !start.trim_ascii_start().starts_with(b"{") {
        return Ok(None);
    }
    let mut bytes = start;
    file.take(JSON_BYTES).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > JSON_BYTES {
        let reason = "JSON of more than 1 GiB is not read; save the arrays as .npz".to_owned();
        return Err(SavedError::Content { path: path.to_owned(), reason });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;
    use crate::{
        npz::{start_array, stored},
        tensor::{ElementType, Values},
    };

    fn outputs(start: i64, count: usize) -> TensorMap {
        let ids = (start..start + count as i64).flat_map(|i| [i, -i]).collect();
        let floats = (start..start + count as i64).map(|i| half::bf16::from_f32(i as f32)).collect();
        TensorMap::from([
            ("/fc/out:0".to_owned(), Tensor::new(vec![count, 2], Values::I64(ids)).unwrap()),
            ("a".to_owned(), Tensor::new(vec![count], Values::Bf16(floats)).unwrap()),
        ])
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn outputs_come_back_by_sample_name_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference.npz");
        let mut writer = OutputsWriter::new(&names(&["a", "/fc/out:0"])).unwrap();
        writer.push(&["x.jpg", "y.jpg"], &outputs(0, 2)).unwrap();
        writer.push(&["z.jpg"], &outputs(2, 1)).unwrap();
        writer.finish(&path).unwrap();
        let saved = SavedOutputs::open(&path).unwrap();
        assert_eq!((saved.outputs(), saved.len()), (names(&["a", "/fc/out:0"]), 3));
        let batch = saved.batch(&[2, 1], &["z.jpg", "y.jpg"]).unwrap();
        assert_eq!(batch["/fc/out:0"], Tensor::new(vec![2, 2], Values::I64(vec![2, -2, 1, -1])).unwrap());
        assert_eq!(batch["a"], Tensor::from_f32(vec![2], vec![2.0, 1.0]).unwrap());
        let error = saved.batch(&[0], &["q.jpg"]).unwrap_err().to_string();
        assert!(error.ends_with("reference.npz: it holds no outputs of sample q.jpg"), "{error}");
    }

    fn part<'a>(ids: &'a [String], inputs: &'a TensorMap) -> Part<'a> {
        Part { first: 0, indices: &[0, 1], ids, labels: &[], masks: &[], scenes: &[], inputs, copies: 1 }
    }

    #[test]
    fn outputs_of_other_data_under_the_same_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference.npz");
        let ids = names(&["0", "1"]);
        let inputs =
            |values: Vec<f32>| TensorMap::from([("x".to_owned(), Tensor::from_f32(vec![2, 2], values).unwrap())]);
        let mut writer = OutputsWriter::new(&names(&["a"])).unwrap();
        let given = inputs(vec![1.0, 2.0, 3.0, 4.0]);
        writer.push_part(&part(&ids, &given), &outputs(0, 2)).unwrap();
        writer.finish(&path).unwrap();
        let saved = SavedOutputs::open(&path).unwrap();
        saved.check_inputs(&part(&ids, &given)).unwrap();
        // Another batch changes nothing.
        let second = TensorMap::from([("x".to_owned(), Tensor::from_f32(vec![1, 2], vec![3.0, 4.0]).unwrap())]);
        saved.check_inputs(&part(&ids[1..], &second)).unwrap();
        let error = saved.check_inputs(&part(&ids, &inputs(vec![1.0, 2.0, 3.0, 5.0]))).unwrap_err().to_string();
        assert!(error.contains("outputs of sample 1 are of other data"), "{error}");
    }

    #[test]
    fn foreign_files_go_by_position() {
        let folder = tempfile::tempdir().unwrap();
        let save = |entries: &[(&str, usize)], samples: Option<&str>| {
            let path = folder.path().join("foreign.npz");
            let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
            for &(name, rows) in entries {
                start_array(&mut archive, name, ElementType::U8, &[rows]).unwrap();
                archive.write_all(&(0..rows as u8).collect::<Vec<_>>()).unwrap();
            }
            if let Some(samples) = samples {
                archive.start_file(SAMPLES, stored()).unwrap();
                archive.write_all(samples.as_bytes()).unwrap();
            }
            archive.finish().unwrap();
            SavedOutputs::open(&path).map_err(|error| error.to_string())
        };
        let saved = save(&[("p", 3)], None).unwrap();
        assert_eq!(*saved.batch(&[2, 0], &["c", "a"]).unwrap()["p"].values(), Values::U8(vec![2, 0]));
        assert!(saved.batch(&[2, 3], &["c", "d"]).unwrap_err().to_string().contains("no outputs of sample d"));
        assert!(saved.holds(2, "c") && !saved.holds(3, "d"));
        assert_eq!(saved.taken_for(3).unwrap(), None);
        assert!(saved.taken_for(4).unwrap().unwrap().contains("3 rows are taken for the first 3 of the 4 samples"));
        assert!(saved.taken_for(2).unwrap_err().to_string().contains("it has 3 rows, and the data 2 samples"));
        assert!(save(&[("p", 3), ("q", 2)], None).unwrap_err().contains("`p` has 3 rows and `q` has 2"));
        assert!(save(&[("p", 2)], Some(r#"["a", "a"]"#)).unwrap_err().contains("each of the 2 samples once"));
        assert!(save(&[("p", 2)], Some("[")).unwrap_err().contains("samples.json: EOF"));
    }

    #[test]
    fn what_does_not_fit_together_is_not_saved() {
        let mut writer = OutputsWriter::new(&names(&["a"])).unwrap();
        writer.push(&["0"], &outputs(0, 1)).unwrap();
        let other = TensorMap::from([("a".to_owned(), Tensor::from_f32(vec![1, 2], vec![0.0; 2]).unwrap())]);
        assert!(writer.push(&["1"], &other).unwrap_err().to_string().contains("samples differ in shape or type"));
        assert!(writer.push(&["1", "2"], &other).unwrap_err().to_string().contains("[1, 2] is no batch of 2 samples"));
        assert!(
            writer
                .push(&["1"], &TensorMap::new())
                .unwrap_err()
                .to_string()
                .contains("`a` cannot be saved: it is missing")
        );
    }
}
