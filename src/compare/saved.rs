//! Outputs of a model, saved as `.npz` to be compared later or with what another program gave ([`exported`] reads JSON).
//!
//! Each output is an array whose first axis runs over the samples. The entry `samples.json` holds their names in the
//! same order; files that other programs wrote lack it, and then row n belongs to sample n of the data, whichever of these
//! are compared. The entry
//! `inputs.json` holds a hash of what each sample was, so that other data under the same names are not taken for it, and
//! `made_by.json` names what ran an engine. Where shapes change from sample to sample, there are [`blocks`].

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::{Path, PathBuf},
};

mod blocks;
mod writer;

use blocks::{BLOCKS, Block, by_block, of_tensors};
pub use writer::OutputsWriter;

use super::exported::{self, Calls};
use crate::{
    artifact::{ArtifactError, ContentHash, open_regular},
    backend::{BackendError, Given, Inputs, Show, TensorInfo},
    npz::{Archive, Array, ArrayError},
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
    /// Each block is one sample, whose outputs have any number of rows.
    by_call: bool,
    samples: usize,
    rows: Option<BTreeMap<String, usize>>,
    /// Hashes of the samples' inputs by row; absent in files of other programs.
    inputs: Option<Vec<ContentHash>>,
    made_by: Option<String>,
}

impl SavedOutputs {
    /// Opens a file.
    ///
    /// # Errors
    /// No archive of arrays, or arrays of different lengths.
    pub fn open(path: &Path) -> Result<Self, SavedError> {
        Self::read(path, None)
    }

    /// Opens a file beside data of as many `samples`: as many calls of another program are one sample each.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn open_beside(path: &Path, samples: usize) -> Result<Self, SavedError> {
        Self::read(path, Some(samples))
    }

    fn read(path: &Path, samples: Option<usize>) -> Result<Self, SavedError> {
        let invalid = |reason| SavedError::Content { path: path.to_owned(), reason };
        let mut by_call = false;
        let (arrays, others) = if let Some(bytes) = json(path)? {
            let blocks = match exported::read(&bytes, samples).map_err(invalid)? {
                Calls::Rows(blocks) => blocks,
                Calls::Samples(calls) => {
                    by_call = true;
                    calls
                }
            };
            if blocks.iter().all(TensorMap::is_empty) {
                return Err(invalid("it holds no outputs".to_owned()));
            }
            (of_tensors(&blocks)?, Vec::new())
        } else {
            let Archive { arrays, others } = Archive::open(path)?;
            let blocks = match entry(&others, BLOCKS).map_err(invalid)? {
                Some(count) => by_block(arrays, count).map_err(invalid)?,
                None => vec![arrays],
            };
            (blocks, others)
        };
        let (mut blocks, mut samples) = (Vec::new(), 0);
        for arrays in arrays {
            let length = |(_, array): &(String, Array)| array.shape().first().copied().unwrap_or(0);
            let rows = if by_call { Some(1) } else { arrays.first().map(length) };
            let is_odd = |odd: &&(String, Array)| !by_call && Some(length(odd)) != rows;
            if let (Some(rows), Some(odd)) = (rows, arrays.iter().find(is_odd)) {
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
        Ok(Self { path: path.to_owned(), blocks, by_call, samples, rows, inputs, made_by })
    }

    /// The arrays of the first block, whose names and types are those of all.
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
                let is_same = |block: &Block| block.arrays[output].1.shape().get(axis) == Some(&extent);
                self.blocks.iter().all(is_same).then_some(extent)
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

    /// The outputs of all samples, in the order of the file: samples that follow each other and are of one shape together.
    pub fn all(&self) -> Result<Vec<TensorMap>, SavedError> {
        Ok(self.blocks.iter().map(Block::whole).collect::<io::Result<_>>()?)
    }

    /// How the rows are taken where the file names no samples, of which the data has so many (`samples`).
    ///
    /// # Errors
    /// It has more rows.
    pub fn taken_for(&self, samples: usize) -> Result<Option<String>, SavedError> {
        let (path, rows) = (&self.path, self.samples);
        if self.rows.is_some() {
            return Ok(None);
        }
        if rows > samples {
            let reason = format!(
                "it names no samples, so that row n is taken for sample n of the data; it has {rows} rows, and the data {samples} \
                 samples: give the data that it was made from"
            );
            return Err(SavedError::Content { path: path.clone(), reason });
        }
        let rows_or_calls = if self.by_call { "calls" } else { "rows" };
        if rows == samples {
            let path = path.display();
            return Ok(Some(format!(
                "{path}: it names no samples; its {rows_or_calls} are taken for those of the data, in order"
            )));
        }
        Ok(Some(format!(
            "{}: it names no samples; its {rows} {rows_or_calls} are taken for the first {rows} of the {samples} samples of the \
             data, and no others are compared",
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
        if self.by_call {
            let [call] = rows else {
                let reason =
                    "the rows of its outputs are what was found in one sample, and make no batch; use --batch 1";
                return Err(SavedError::Content { path: self.path.clone(), reason: reason.to_owned() });
            };
            return Ok(self.blocks[*call].whole()?);
        }
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
                        "`{name}` has the shape {:?} for sample {} and {:?} for sample {row}, which are not a batch; use --batch 1",
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
mod tests;
