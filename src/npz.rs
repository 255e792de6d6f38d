//! NumPy's `.npy` and `.npz` files as tensors, read with every length checked.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use half::f16;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar, WriterBuilder};

use crate::{
    artifact::{ArtifactError, write_atomic_with},
    tensor::{Tensor, TensorMap, Values, ValuesView},
};

/// An archive member that unpacks to more than this ...
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
    let bytes = std::fs::read(path).map_err(|source| ArrayError::Read { path: path.to_owned(), source })?;
    parse_npy(&bytes).map_err(|reason| ArrayError::Format { path: path.to_owned(), reason })
}

/// Reads all arrays of a `.npz` file, by name.
pub fn read_npz(path: &Path) -> Result<TensorMap, ArrayError> {
    let file = File::open(path).map_err(|source| ArrayError::Read { path: path.to_owned(), source })?;
    let invalid = |reason: String| ArrayError::Format { path: path.to_owned(), reason };
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|error| invalid(format!("it is no .npz archive: {error}")))?;
    let mut tensors = TensorMap::new();
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(|error| invalid(error.to_string()))?;
        let Some(name) = name_of(&member).map_err(&invalid)?.strip_suffix(".npy").map(str::to_owned) else { continue };
        let (size, packed) = (member.size(), member.compressed_size());
        if size > BOMB_BYTES && size / packed.max(1) > BOMB_RATIO {
            return Err(invalid(format!("`{name}` unpacks from {packed} to {size} bytes; refused as a bomb")));
        }
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

fn name_of<R: Read>(member: &zip::read::ZipFile<'_, R>) -> Result<String, String> {
    member.name().map(|name| name.into_owned()).map_err(|error| error.to_string())
}

/// Parses the content of a `.npy` file; the error is a reason in words.
pub fn parse_npy(bytes: &[u8]) -> Result<Tensor, String> {
    let mut data = bytes;
    let header = NpyHeader::from_reader(&mut data).map_err(|error| format!("it is no .npy array: {error}"))?;
    let DType::Plain(kind) = header.dtype() else {
        return Err("structured arrays are not supported; save each field by itself".to_owned());
    };
    let shape: Vec<usize> = header
        .shape()
        .iter()
        .map(|&extent| usize::try_from(extent).map_err(|_| "an extent is too large".to_owned()))
        .collect::<Result<_, _>>()?;
    let count = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    let size = usize::try_from(kind.size_field()).unwrap_or(usize::MAX);
    if count.and_then(|count| count.checked_mul(size)) != Some(data.len()) {
        return Err(format!("{shape:?} values of {size} bytes do not fit the {} bytes that follow", data.len()));
    }
    let big = kind.endianness() == Endianness::Big;
    let values = match (kind.type_char(), size) {
        (TypeChar::Float, 4) => Values::F32(convert(data, big, f32::from_le_bytes)),
        (TypeChar::Float, 2) => Values::F16(convert(data, big, f16::from_le_bytes)),
        (TypeChar::Float, 8) => Values::F64(convert(data, big, f64::from_le_bytes)),
        (TypeChar::Int, 1) => Values::I8(convert(data, big, i8::from_le_bytes)),
        (TypeChar::Int, 2) => Values::I16(convert(data, big, i16::from_le_bytes)),
        (TypeChar::Int, 4) => Values::I32(convert(data, big, i32::from_le_bytes)),
        (TypeChar::Int, 8) => Values::I64(convert(data, big, i64::from_le_bytes)),
        (TypeChar::Uint, 1) => Values::U8(data.to_vec()),
        (TypeChar::Uint, 2) => Values::U16(convert(data, big, u16::from_le_bytes)),
        (TypeChar::Uint, 4) => Values::U32(convert(data, big, u32::from_le_bytes)),
        (TypeChar::Uint, 8) => Values::U64(convert(data, big, u64::from_le_bytes)),
        (TypeChar::Bool, 1) => Values::Bool(data.iter().map(|&byte| byte != 0).collect()),
        _ => return Err(format!("elements of type {kind} are not supported")),
    };
    let values = if header.order() == Order::Fortran { row_major(values.view(), &shape) } else { values };
    Tensor::new(shape, values).map_err(|error| error.to_string())
}

fn convert<T, const N: usize>(data: &[u8], big: bool, value: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>()
        .0
        .iter()
        .map(|&bytes| {
            let mut bytes = bytes;
            if big {
                bytes.reverse();
            }
            value(bytes)
        })
        .collect()
}

/// Values in column-major order to row-major.
fn row_major(values: ValuesView<'_>, shape: &[usize]) -> Values {
    let mut result = values.slice(0..0).to_owned();
    let mut index = vec![0; shape.len()];
    for _ in 0..values.len() {
        let at = index.iter().zip(shape).rev().fold(0, |at, (&i, &extent)| at * extent + i);
        let extended = result.extend(values.slice(at..at + 1));
        debug_assert!(extended, "the same type");
        for (i, &extent) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < extent {
                break;
            }
            *i = 0;
        }
    }
    result
}

/// Writes tensors as an uncompressed `.npz` file; `bfloat16`, which NumPy lacks, becomes `float32`.
pub fn write_npz(path: &Path, tensors: &TensorMap) -> Result<(), ArtifactError> {
    let mut bytes = io::Cursor::new(Vec::new());
    let fill = |bytes: &mut io::Cursor<Vec<u8>>| -> io::Result<()> {
        let mut archive = zip::ZipWriter::new(bytes);
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .large_file(true);
        for (name, tensor) in tensors {
            archive.start_file(format!("{name}.npy"), options).map_err(io::Error::other)?;
            archive.write_all(&npy_bytes(tensor)?)?;
        }
        archive.finish().map_err(io::Error::other)?;
        Ok(())
    };
    fill(&mut bytes).map_err(|source| ArtifactError::Write { path: path.to_owned(), source })?;
    write_atomic_with(path, |writer| writer.write_all(bytes.get_ref()))
}

fn npy_bytes(tensor: &Tensor) -> io::Result<Vec<u8>> {
    fn write<T: npyz::AutoSerialize + Copy>(shape: &[u64], values: &[T]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(&mut bytes).begin_nd()?;
        writer.extend(values.iter().copied())?;
        writer.finish()?;
        Ok(bytes)
    }
    let shape: Vec<u64> = tensor.shape().iter().map(|&extent| extent as u64).collect();
    match tensor.values() {
        Values::F32(v) => write(&shape, v),
        Values::F16(v) => write(&shape, v),
        Values::F64(v) => write(&shape, v),
        Values::Bf16(_) => write(&shape, &tensor.to_f32()),
        Values::I8(v) => write(&shape, v),
        Values::I16(v) => write(&shape, v),
        Values::I32(v) => write(&shape, v),
        Values::I64(v) => write(&shape, v),
        Values::U8(v) => write(&shape, v),
        Values::U16(v) => write(&shape, v),
        Values::U32(v) => write(&shape, v),
        Values::U64(v) => write(&shape, v),
        Values::Bool(v) => write(&shape, v),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(parse_npy(&bytes[..bytes.len() - 1]).unwrap_err().contains("do not fit"));
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
