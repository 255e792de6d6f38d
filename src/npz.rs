//! NumPy's `.npy` and `.npz` files as tensors, read with every length checked.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::{
    artifact::{ArtifactError, open_regular, read_regular, write_atomic_with},
    tensor::{ElementType, Tensor, TensorMap},
};

mod archive;
mod header;
mod json;
mod values;

pub use archive::{Archive, Array};
use header::Header;
pub use json::{Encoded, Listed};
use values::{decode, row_major};
pub use values::{stored_type, write_values};

/// An archive, or a member of one, that unpacks to more than this ...
const BOMB_BYTES: u64 = 256 << 20;
/// ... and more than this many times its packed size is refused.
const BOMB_RATIO: u64 = 200;

/// Why an array file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArrayError {
    /// Reading failed.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The content is not an array.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, naming the member.
        reason: String,
    },
}

/// Reads a `.npy` file.
pub fn read_npy(path: &Path) -> Result<Tensor, ArrayError> {
    let bytes = read_regular(path).map_err(|source| ArrayError::Read { path: path.to_owned(), source })?;
    parse_npy(&bytes).map_err(|reason| ArrayError::Format { path: path.to_owned(), reason })
}

/// Reads all arrays of a `.npz` file, by name.
pub fn read_npz(path: &Path) -> Result<TensorMap, ArrayError> {
    let file = open_regular(path).map_err(|source| ArrayError::Read { path: path.to_owned(), source })?;
    let invalid = |reason: String| ArrayError::Format { path: path.to_owned(), reason };
    let mut budget = Budget::of(&file).map_err(|source| ArrayError::Read { path: path.to_owned(), source })?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|error| invalid(format!("it is not a .npz archive: {error}")))?;
    let mut tensors = TensorMap::new();
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(|error| invalid(error.to_string()))?;
        let Some(name) = name_of(&member).map_err(&invalid)?.strip_suffix(".npy").map(str::to_owned) else { continue };
        let size = budget.size_of(&member, &name).map_err(&invalid)?;
        let mut bytes = Vec::new();
        // The declared size is not trusted: at most that much is read, and memory grows with what really comes.
        (&mut member).take(size).read_to_end(&mut bytes).map_err(|error| invalid(format!("`{name}`: {error}")))?;
        let tensor = parse_npy(&bytes).map_err(|reason| invalid(format!("`{name}`: {reason}")))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(invalid(format!("`{name}` occurs twice")));
        }
    }
    if tensors.is_empty() { Err(invalid("it holds no arrays".to_owned())) } else { Ok(tensors) }
}

/// What the members of an archive may still unpack to. Counted over all of them: members may share their data.
struct Budget(u64);

impl Budget {
    fn of(file: &File) -> io::Result<Self> {
        Ok(Self(file.metadata()?.len().saturating_mul(BOMB_RATIO).max(BOMB_BYTES)))
    }

    /// The member's declared size, if it is believable.
    fn size_of<R: Read>(&mut self, member: &zip::read::ZipFile<'_, R>, name: &str) -> Result<u64, String> {
        let (size, packed) = (member.size(), member.compressed_size());
        let left = self.0.checked_sub(size);
        if (size > BOMB_BYTES && size / packed.max(1) > BOMB_RATIO) || left.is_none() {
            return Err(format!("`{name}` unpacks from {packed} to {size} bytes; refused as a bomb"));
        }
        self.0 = left.unwrap_or_default();
        Ok(size)
    }
}

fn name_of<R: Read>(member: &zip::read::ZipFile<'_, R>) -> Result<String, String> {
    member.name().map(std::borrow::Cow::into_owned).map_err(|error| error.to_string())
}

/// Parses the content of a `.npy` file; the error is a reason in words.
pub fn parse_npy(bytes: &[u8]) -> Result<Tensor, String> {
    let mut data = bytes;
    let header = Header::read(&mut data)?;
    header.check(data.len() as u64)?;
    let values = decode(data, header.element_type, header.big_endian);
    let values = if header.column_major { row_major(values.view(), &header.shape) } else { values };
    Tensor::new(header.shape, values).map_err(|error| error.to_string())
}

/// Writes tensors as an uncompressed `.npz` file; `bfloat16`, which NumPy lacks, becomes `float32`.
pub fn write_npz(path: &Path, tensors: &TensorMap) -> Result<(), ArtifactError> {
    write_atomic_with(path, |writer| {
        let mut archive = zip::ZipWriter::new(writer);
        for (name, tensor) in tensors {
            start_array(&mut archive, name, tensor.element_type(), tensor.shape())?;
            write_values(&mut archive, tensor.view().values)?;
        }
        archive.finish()?;
        Ok(())
    })
}

/// Begins an array of an archive; its values follow, as [`write_values`] writes them.
pub fn start_array<W: Write + Seek>(
    archive: &mut zip::ZipWriter<W>,
    name: &str,
    element_type: ElementType,
    shape: &[usize],
) -> io::Result<()> {
    archive.start_file(format!("{name}.npy"), stored())?;
    header::write_header(archive, stored_type(element_type), shape)
}

/// Options of archive members: as they are, and of any length.
pub fn stored() -> zip::write::SimpleFileOptions {
    zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).large_file(true)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::tensor::Values;

    #[test]
    fn what_is_written_reads_back_equal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let tensors = TensorMap::from([
            ("x:0".to_owned(), Tensor::from_f32(vec![2, 2], vec![1.0, -0.0, f32::NAN, 4.0]).unwrap()),
            ("h".to_owned(), Tensor::new(vec![2], Values::F16(vec![f16::ONE, f16::MAX])).unwrap()),
            ("mask".to_owned(), Tensor::new(vec![], Values::Bool(vec![true])).unwrap()),
            ("ids".to_owned(), Tensor::new(vec![3], Values::I64(vec![1, 2, -3])).unwrap()),
        ]);
        write_npz(&path, &tensors).unwrap();
        assert_eq!(format!("{:?}", read_npz(&path).unwrap()), format!("{tensors:?}"));
    }

    #[test]
    fn column_major_and_big_endian_arrays() {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        let header = format!("{:<117}\n", "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }");
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        for value in [0i16, 3, 1, 4, 2, 5] {
            bytes.extend(value.to_be_bytes());
        }
        let tensor = parse_npy(&bytes).unwrap();
        assert_eq!(tensor.values(), &Values::I16(vec![0, 1, 2, 3, 4, 5]));
        assert!(parse_npy(&bytes[..bytes.len() - 1]).unwrap_err().contains("take 12 bytes, but 11 bytes follow"));
    }

    /// As `numpy.save` writes an array of `ml_dtypes.bfloat16`.
    #[test]
    fn bfloat16_of_ml_dtypes() {
        let bytes = header::tests::npy("'<V2'", false, "(2,)", &[0x80, 0x3f, 0x00, 0xc0]);
        let expected = [1.0, -2.0].map(half::bf16::from_f32);
        assert_eq!(parse_npy(&bytes).unwrap().values(), &Values::Bf16(expected.to_vec()));
    }

    #[test]
    fn a_shape_that_lies_allocates_nothing() {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        let header =
            format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 4000000000), }");
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        assert!(parse_npy(&bytes).is_err());
    }
}
