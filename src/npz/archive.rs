//! Archives whose arrays are read a window of rows at a time.
//!
//! An [`Array`] keeps a file and an offset, never the data: compressed members are unpacked to a nameless temporary
//! file first. Lengths in a header are believed only once the data behind it proved as long.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{ArrayError, Budget, header::Header, name_of, values::decode};
use crate::{
    artifact::open_regular,
    tensor::{ElementType, Tensor},
};

/// Longest member that is not an array and still kept.
const TEXT_BYTES: u64 = 64 << 20;

/// An `.npz` archive.
#[derive(Debug)]
pub struct Archive {
    /// Arrays by name (without `.npy`), in the order of the archive.
    pub arrays: Vec<(String, Array)>,
    /// Members that are not arrays, by their whole name.
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
            zip::ZipArchive::new(directory).map_err(|error| invalid(format!("it is not a .npz archive: {error}")))?;
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

/// Bytes of an array that are turned into row-major order at once, and the most times that an array is read for that.
const TURNED_BYTES: usize = 16 << 20;
const MOST_TURNS: usize = 64;
/// Columns of no more bytes are read together, as many as fit into [`READ_BYTES`].
const SHORT_COLUMN: usize = 4096;
const READ_BYTES: usize = 1 << 20;

/// Goes through the places of a row in column-major order: the first axis varies fastest.
struct Place<'s> {
    extents: &'s [usize],
    at: Vec<usize>,
    /// The place in row-major order.
    index: usize,
}

impl<'s> Place<'s> {
    fn first(extents: &'s [usize]) -> Self {
        Self { extents, at: vec![0; extents.len()], index: 0 }
    }

    fn advance(&mut self) {
        for axis in 0..self.extents.len() {
            let stride: usize = self.extents[axis + 1..].iter().product();
            self.at[axis] += 1;
            self.index += stride;
            if self.at[axis] < self.extents[axis] {
                return;
            }
            self.index -= self.at[axis] * stride;
            self.at[axis] = 0;
        }
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
    /// The file is not an array, or cannot be read.
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

    /// Values in column-major order are brought into the other one in a nameless temporary file, some rows at a time.
    fn row_major(self) -> Result<Self, String> {
        if !self.header.column_major {
            return Ok(self);
        }
        let failed = |error: io::Error| error.to_string();
        let mut file = tempfile::tempfile().map_err(failed)?;
        self.write_rows(&mut file, TURNED_BYTES.max(self.header.bytes / MOST_TURNS)).map_err(failed)?;
        let header = Header { column_major: false, ..self.header };
        Ok(Self { header, file: Arc::new(Mutex::new(file)), offset: 0 })
    }

    /// Writes the rows of a column-major array, keeping about `at_once` bytes of them in memory.
    fn write_rows(&self, to: &mut impl Write, at_once: usize) -> io::Result<()> {
        let Some((&count, extents)) = self.header.shape.split_first().filter(|_| self.header.bytes > 0) else {
            return Ok(());
        };
        let size = self.header.element_type.size();
        let length = extents.iter().product::<usize>();
        let rows = (at_once / (length * size)).clamp(1, count);
        // Many columns that are short are read at once, of long ones only what is wanted.
        let short = count * size <= SHORT_COLUMN;
        let together = if short { (READ_BYTES / (count * size)).max(1) } else { 1 };
        let mut turned = vec![0; rows * length * size];
        let mut read = vec![0; if short { together * count * size } else { rows * size }];
        for first in (0..count).step_by(rows) {
            let some = rows.min(count - first);
            let mut place = Place::first(extents);
            for column in (0..length).step_by(together) {
                let columns = together.min(length - column);
                let (start, width) = if short { (0, count) } else { (first, some) };
                let read = &mut read[..columns * width * size];
                {
                    let mut file = lock(&self.file);
                    file.seek(SeekFrom::Start(self.offset + ((column * count + start) * size) as u64))?;
                    file.read_exact(read)?;
                }
                for values in read.chunks_exact(width * size) {
                    let values = &values[(first - start) * size..][..some * size];
                    for (row, value) in values.chunks_exact(size).enumerate() {
                        turned[(row * length + place.index) * size..][..size].copy_from_slice(value);
                    }
                    place.advance();
                }
            }
            to.write_all(&turned[..some * length * size])?;
        }
        Ok(())
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
    fn columns_become_rows_a_few_at_a_time() {
        // Each value is its place in row-major order; the columns of the second are too long to be read together.
        for (shape, written) in [([5, 3, 4], "(5, 3, 4)"), ([3000, 2, 3], "(3000, 2, 3)")] {
            let [rows, height, width] = shape;
            let mut columns = Vec::new();
            for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (x, y))) {
                columns.extend((0..rows).flat_map(|row| (((row * height + y) * width + x) as u16).to_le_bytes()));
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            let header = npy("'<u2'", true, written, &columns);
            std::fs::write(file.path(), &header).unwrap();
            let expected: Vec<u16> = (0..rows * height * width).map(|value| value as u16).collect();
            let opened = Array::open(file.path()).unwrap();
            assert_eq!(*opened.rows(0..rows).unwrap().values(), Values::U16(expected.clone()));
            let data = File::open(file.path()).unwrap();
            let offset = (header.len() - columns.len()) as u64;
            let turned = Header { column_major: true, ..opened.header };
            let array = Array { header: turned, file: Arc::new(Mutex::new(data)), offset };
            for at_once in [1, 100, 7 * height * width * 2] {
                let mut bytes = Vec::new();
                array.write_rows(&mut bytes, at_once).unwrap();
                assert!(
                    bytes == expected.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>(),
                    "{at_once}"
                );
            }
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
        assert!(open(&tempfile::NamedTempFile::new().unwrap()).contains("it is not a .npz archive"));
        assert!(open(&archive(&[("x.txt", b"")], METHODS[0])).contains("holds no arrays"));
        assert!(matches!(Archive::open(Path::new("/does/not/exist.npz")), Err(ArrayError::Read { .. })));
    }
}
