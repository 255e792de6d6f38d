//! Writing saved outputs.

use std::{
    fs::File,
    io::{self, BufWriter, Seek},
    path::Path,
};

use super::{INPUTS, MADE_BY, SAMPLES, SavedError, SavedOutputs, input_hashes};
use crate::{
    artifact::{ContentHash, write_atomic_with},
    npz::{start_array, stored, write_values},
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
    made_by: Option<String>,
}

#[derive(Debug)]
struct Column {
    name: String,
    /// Type and shape of a sample, once one was seen.
    row: Option<(ElementType, Vec<usize>)>,
    data: BufWriter<File>,
}

impl OutputsWriter {
    /// A writer of these outputs, in this order.
    pub fn new(outputs: &[String]) -> Result<Self, SavedError> {
        let column =
            |name: &String| Ok(Column { name: name.clone(), row: None, data: BufWriter::new(tempfile::tempfile()?) });
        Ok(Self {
            samples: Vec::new(),
            inputs: Vec::new(),
            columns: outputs.iter().map(column).collect::<io::Result<_>>()?,
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
        for column in &mut self.columns {
            let invalid = |reason| SavedError::Output { output: column.name.clone(), reason };
            let tensor = outputs.get(&column.name).ok_or_else(|| invalid("it is missing".to_owned()))?;
            let shape = match tensor.shape().split_first() {
                Some((&batch, row)) if batch == ids.len() => row,
                _ if ids.len() == 1 => tensor.shape(),
                _ => return Err(invalid(format!("{:?} is no batch of {} samples", tensor.shape(), ids.len()))),
            };
            let row = (tensor.element_type(), shape.to_vec());
            if column.row.get_or_insert_with(|| row.clone()) != &row {
                return Err(invalid(format!("samples differ in shape or type ({row:?})")));
            }
            write_values(&mut column.data, tensor.view().values)?;
        }
        self.samples.extend(ids.iter().map(|&id| id.to_owned()));
        Ok(())
    }

    /// Reads back what was pushed, with the names of the samples.
    ///
    /// # Errors
    /// A temporary file fails.
    pub fn read_back(self) -> Result<(Vec<String>, TensorMap), SavedError> {
        let file = tempfile::Builder::new().suffix(".npz").tempfile()?;
        let samples = self.samples.clone();
        self.finish(file.path())?;
        Ok((samples, SavedOutputs::open(file.path())?.all()?))
    }

    /// Writes the archive.
    pub fn finish(self, path: &Path) -> Result<(), SavedError> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for Column { name, row, data } in self.columns {
            let mut file = data.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            columns.push((name, row.unwrap_or((ElementType::F32, Vec::new())), file));
        }
        write_atomic_with(path, |writer| {
            let mut archive = zip::ZipWriter::new(writer);
            for (name, (element_type, row), file) in &mut columns {
                start_array(&mut archive, name, *element_type, &[&[self.samples.len()], row.as_slice()].concat())?;
                io::copy(file, &mut archive)?;
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
