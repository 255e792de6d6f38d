//! Archives whose arrays are read a window of rows at a time.
//!
//! An [`Array`] keeps a file and an offset, never the data: compressed members are unpacked to a nameless temporary
//! file first. Lengths in a header are believed only once the data behind it proved as long.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    ArrayError, Budget,
    header::Header,
    name_of,
    values::{decode, row_major, write_values},
};
use crate::{
    artifact::open_regular,
    tensor::{ElementType, Tensor},
};

/// Longest member that is no array and still kept.
const TEXT_BYTES: u64 = 64 << 20;

/// An `.npz` archive.
#[derive(Debug)]
pub struct Archive {
    /// Arrays by name (without `.npy`), in the order of the archive.
    pub arrays: Vec<(String, Array)>,
    /// Members that are no arrays, by their whole name.
    pub others: Vec<(String, Vec<u8>)>,
}

impl Archive {
    /// Reads the archive's directory and the header of each array.
    ///
    /// # Errors
    /// No archive of arrays, or an encrypted or damaged member.
    pub fn open(path: &Path) -> Result<Self, ArrayError> {
        let read = |source| ArrayError::Read { path: path.to_owned(), source };
        let invalid = |reason: String| ArrayError::Format { path: path.to_owned(), reason };
        let file = open_regular(path).map_err(read)?;
        let mut budget = Budget::of(&file).map_err(read)?;
        let file = Arc::new(Mutex::new(file));
        let directory = io::BufReader::new(File::open(path).map_err(read)?);
        let mut archive =
            zip::ZipArchive::new(directory).map_err(|error| invalid(format!("it is no .npz archive: {error}")))?;
        let (mut arrays, mut others) = (Vec::new(), Vec::new());
        for index in 0..archive.len() {
            let mut member = archive.by_index(index).map_err(|error| invalid(error.to_string()))?;
            let name = name_of(&member).map_err(&invalid)?;
            if let Some(array) = name.strip_suffix(".npy") {
                let size = budget.size_of(&member, array).map_err(&invalid)?;
                let stored = member.compression() == zip::CompressionMethod::Stored;
                let parsed = match member.data_start().filter(|_| stored) {
                    Some(start) => Array::at(Arc::clone(&file), start, size),
                    None => Array::unpack(&mut (&mut member).take(size)),
                };
                let parsed = parsed.map_err(|reason| invalid(format!("`{array}`: {reason}")))?;
                arrays.push((array.to_owned(), parsed));
            } else if member.is_file() && member.size() <= TEXT_BYTES {
                let size = budget.size_of(&member, &name).map_err(&invalid)?;
                let mut content = Vec::new();
                member.take(size).read_to_end(&mut content).map_err(|e| invalid(format!("`{name}`: {e}")))?;
                others.push((name, content));
            }
        }
        if arrays.is_empty() { Err(invalid("it holds no arrays".to_owned())) } else { Ok(Self { arrays, others }) }
    }
}

/// One array in a file, row-major.
#[derive(Debug)]
pub struct Array {
    header: Header,
    file: Arc<Mutex<File>>,
    offset: u64,
}

impl Array {
    /// Type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.header.element_type
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// The entries `rows` along the first axis, cut to what there is. A scalar is read whole.
    pub fn rows(&self, rows: Range<usize>) -> io::Result<Tensor> {
        let Some((&count, row)) = self.header.shape.split_first() else { return self.window(Vec::new(), 0) };
        let (end, length) = (rows.end.min(count), row.iter().product::<usize>());
        let start = rows.start.min(end);
        self.window([&[end - start], row].concat(), start * length)
    }

    /// The array in a `.npy` file.
    ///
    /// # Errors
    /// The file is no array, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, ArrayError> {
        let read = |source| ArrayError::Read { path: path.to_owned(), source };
        let file = open_regular(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        let array = Self::at(Arc::new(Mutex::new(file)), 0, size);
        array.map_err(|reason| ArrayError::Format { path: path.to_owned(), reason })
    }

    /// The array in the `size` bytes of `file` from `start`. The error is a reason.
    fn at(file: Arc<Mutex<File>>, start: u64, size: u64) -> Result<Self, String> {
        let (header, offset) = {
            let mut file = lock(&file);
            file.seek(SeekFrom::Start(start)).map_err(|error| error.to_string())?;
            let mut data = (&*file).take(size);
            let header = Header::read(&mut data)?;
            let (offset, rest) = (start + (size - data.limit()), data.limit());
            let length = file.metadata().map_err(|error| error.to_string())?.len();
            header.check(length.saturating_sub(offset).min(rest))?;
            (header, offset)
        };
        Self { header, file, offset }.row_major()
    }

    /// A compressed member, unpacked as far as its header says.
    fn unpack(member: &mut impl Read) -> Result<Self, String> {
        let header = Header::read(member)?;
        let mut file = tempfile::tempfile().map_err(|error| error.to_string())?;
        let copied = io::copy(&mut member.take(header.bytes as u64), &mut file).map_err(|error| error.to_string())?;
        header.check(copied)?;
        Self { header, file: Arc::new(Mutex::new(file)), offset: 0 }.row_major()
    }

    /// Values in column-major order are brought into the other one in a nameless temporary file.
    fn row_major(self) -> Result<Self, String> {
        if !self.header.column_major {
            return Ok(self);
        }
        let shape = self.header.shape.clone();
        let failed = |error: io::Error| error.to_string();
        let values = self.window(shape.clone(), 0).map_err(failed)?;
        let mut file = io::BufWriter::new(tempfile::tempfile().map_err(failed)?);
        write_values(&mut file, row_major(values.view().values, &shape).view()).map_err(failed)?;
        let file = file.into_inner().map_err(|error| error.to_string())?;
        let header = Header { column_major: false, big_endian: false, ..self.header };
        Ok(Self { header, file: Arc::new(Mutex::new(file)), offset: 0 })
    }

    fn window(&self, shape: Vec<usize>, first: usize) -> io::Result<Tensor> {
        let size = self.header.element_type.size();
        let mut bytes = vec![0; shape.iter().product::<usize>() * size];
        {
            let mut file = lock(&self.file);
            file.seek(SeekFrom::Start(self.offset + (first * size) as u64))?;
            file.read_exact(&mut bytes)?;
        }
        Tensor::new(shape, decode(&bytes, self.header.element_type, self.header.big_endian)).map_err(io::Error::other)
    }
}

/// The file, also after a panic elsewhere: every use seeks first, so nothing can be half done.
fn lock(file: &Mutex<File>) -> MutexGuard<'_, File> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::header::tests::npy;
    use super::*;
    use crate::tensor::Values;

    const METHODS: [zip::CompressionMethod; 2] = [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated];

    fn archive(entries: &[(&str, &[u8])], method: zip::CompressionMethod) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = zip::ZipWriter::new(file.as_file());
        for (name, data) in entries {
            writer.start_file(name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
            writer.write_all(data).unwrap();
        }
        writer.finish().unwrap();
        file
    }

    #[test]
    fn rows_are_read_from_stored_and_packed_archives() {
        let values: Vec<u8> = (0..6_i16).flat_map(|x| (x * 100).to_be_bytes()).collect();
        let matrix = npy("'>i2'", false, "(3, 2)", &values);
        let flags = npy("'|b1'", false, "(2,)", &[0, 2]);
        for method in METHODS {
            let file = archive(&[("/fc/out:0.npy", &matrix), ("note.txt", b"hi"), ("flags.npy", &flags)], method);
            let archive = Archive::open(file.path()).unwrap();
            assert_eq!(archive.others, [("note.txt".to_owned(), b"hi".to_vec())]);
            let [(first, matrix), (second, flags)] = &archive.arrays[..] else { panic!("{archive:?}") };
            assert_eq!((first.as_str(), second.as_str()), ("/fc/out:0", "flags"));
            let expected = Tensor::new(vec![2, 2], Values::I16(vec![200, 300, 400, 500])).unwrap();
            assert_eq!(matrix.rows(1..9).unwrap(), expected);
            assert_eq!(matrix.rows(7..9).unwrap().shape(), [0, 2]);
            assert_eq!(*flags.rows(0..2).unwrap().values(), Values::Bool(vec![false, true]));
        }
    }

    #[test]
    fn columns_become_rows() {
        let fortran = npy("'>i2'", true, "(2, 3)", &[0, 1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6]);
        for method in METHODS {
            let file = archive(&[("x.npy", &fortran)], method);
            let archive = Archive::open(file.path()).unwrap();
            let row = archive.arrays[0].1.rows(1..2).unwrap();
            assert_eq!(row, Tensor::new(vec![1, 3], Values::I16(vec![4, 5, 6])).unwrap());
        }
    }

    #[test]
    fn hostile_archives_are_refused_with_a_reason() {
        let open = |file: &tempfile::NamedTempFile| Archive::open(file.path()).unwrap_err().to_string();
        let cut = npy("'<f4'", false, "(1000000000000,)", &[0; 8]);
        for method in METHODS {
            let error = open(&archive(&[("x.npy", &cut)], method));
            assert!(
                error.contains("`x`: [1000000000000] values of type float32 take 4000000000000 bytes, but 8"),
                "{error}"
            );
        }
        assert!(open(&tempfile::NamedTempFile::new().unwrap()).contains("it is no .npz archive"));
        assert!(open(&archive(&[("x.txt", b"")], METHODS[0])).contains("holds no arrays"));
        assert!(matches!(Archive::open(Path::new("/does/not/exist.npz")), Err(ArrayError::Read { .. })));
    }
}
