//! Writing saved outputs.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek},
    path::Path,
};

use super::{BLOCKS, INPUTS, MADE_BY, SAMPLES, SavedError, SavedOutputs, blocks::name_in, input_hashes};
use crate::{
    artifact::{ContentHash, write_atomic_with},
    npz::{start_array, stored, stored_type, write_values},
    pass::Part,
    tensor::{ElementType, TensorMap},
};

/// Saves outputs batch by batch. What was pushed waits in temporary files, not in memory.
#[derive(Debug)]
pub struct OutputsWriter {
    samples: Vec<String>,
    /// Hashes of their inputs, where the writer was told of them.
    inputs: Vec<ContentHash>,
    columns: Vec<Column>,
    /// How many samples follow each other in which each column has one shape, and these shapes.
    blocks: Vec<(usize, Vec<Vec<usize>>)>,
    made_by: Option<String>,
}

#[derive(Debug)]
struct Column {
    name: String,
    /// Type of the elements, once one was seen.
    element_type: Option<ElementType>,
    data: BufWriter<File>,
}

impl OutputsWriter {
    /// A writer of these outputs, in this order.
    pub fn new(outputs: &[String]) -> Result<Self, SavedError> {
        let column = |name: &String| {
            Ok(Column { name: name.clone(), element_type: None, data: BufWriter::new(tempfile::tempfile()?) })
        };
        Ok(Self {
            samples: Vec::new(),
            inputs: Vec::new(),
            columns: outputs.iter().map(column).collect::<io::Result<_>>()?,
            blocks: Vec::new(),
            made_by: None,
        })
    }

    /// Names what ran the engine that gives the outputs.
    #[must_use]
    pub fn by(self, made_by: Option<String>) -> Self {
        Self { made_by, ..self }
    }

    /// Adds the outputs of a part, and what its samples were.
    pub fn push_part(&mut self, part: &Part<'_>, outputs: &TensorMap) -> Result<(), SavedError> {
        self.push(&part.names(), outputs)?;
        self.inputs.extend(input_hashes(part));
        Ok(())
    }

    /// Adds the outputs of a batch. bfloat16, which NumPy lacks, becomes float32.
    pub fn push(&mut self, ids: &[&str], outputs: &TensorMap) -> Result<(), SavedError> {
        let mut rows = Vec::with_capacity(self.columns.len());
        for column in &mut self.columns {
            let invalid = |reason| SavedError::Output { output: column.name.clone(), reason };
            let tensor = outputs.get(&column.name).ok_or_else(|| invalid("it is missing".to_owned()))?;
            rows.push(match tensor.shape().split_first() {
                Some((&batch, row)) if batch == ids.len() => row.to_vec(),
                _ if ids.len() == 1 => tensor.shape().to_vec(),
                _ => return Err(invalid(format!("{:?} is not a batch of {} samples", tensor.shape(), ids.len()))),
            });
            let (found, before) = (tensor.element_type(), column.element_type.get_or_insert(tensor.element_type()));
            if *before != found {
                return Err(invalid(format!("samples differ in type ({before} and {found})")));
            }
            write_values(&mut column.data, tensor.view().values)?;
        }
        match self.blocks.last_mut() {
            Some((samples, before)) if *before == rows => *samples += ids.len(),
            _ => self.blocks.push((ids.len(), rows)),
        }
        self.samples.extend(ids.iter().map(|&id| id.to_owned()));
        Ok(())
    }

    /// Reads back what was pushed, with the names of the samples; those that follow each other and are of one shape together.
    ///
    /// # Errors
    /// A temporary file fails.
    pub fn read_back(self) -> Result<(Vec<String>, Vec<TensorMap>), SavedError> {
        let file = tempfile::Builder::new().suffix(".npz").tempfile()?;
        let samples = self.samples.clone();
        self.finish(file.path())?;
        Ok((samples, SavedOutputs::open(file.path())?.all()?))
    }

    /// Writes the archive.
    pub fn finish(self, path: &Path) -> Result<(), SavedError> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for Column { name, element_type, data } in self.columns {
            let mut file = data.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            columns.push((name, element_type.unwrap_or(ElementType::F32), file));
        }
        let mut blocks = self.blocks;
        if blocks.is_empty() {
            blocks.push((0, vec![Vec::new(); columns.len()]));
        }
        write_atomic_with(path, |writer| {
            let mut archive = zip::ZipWriter::new(writer);
            for (block, (samples, rows)) in blocks.iter().enumerate() {
                for ((name, element_type, file), row) in columns.iter_mut().zip(rows) {
                    let name = if blocks.len() == 1 { name.clone() } else { name_in(block, name) };
                    let shape = [&[*samples], row.as_slice()].concat();
                    let bytes = shape.iter().product::<usize>() * stored_type(*element_type).size();
                    start_array(&mut archive, &name, *element_type, &shape)?;
                    io::copy(&mut file.take(bytes as u64), &mut archive)?;
                }
            }
            if blocks.len() > 1 {
                archive.start_file(BLOCKS, stored())?;
                serde_json::to_writer(&mut archive, &blocks.len())?;
            }
            archive.start_file(SAMPLES, stored())?;
            serde_json::to_writer(&mut archive, &self.samples)?;
            if self.inputs.len() == self.samples.len() {
                archive.start_file(INPUTS, stored())?;
                serde_json::to_writer(&mut archive, &self.inputs)?;
            }
            if let Some(made_by) = &self.made_by {
                archive.start_file(MADE_BY, stored())?;
                serde_json::to_writer(&mut archive, made_by)?;
            }
            archive.finish()?;
            Ok(())
        })?;
        Ok(())
    }
}
