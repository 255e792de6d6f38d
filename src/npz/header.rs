//! The header of an array: what its values are and how many, before any is read.

use std::io::{self, Read, Write};

use npyz::{DType, Endianness, NpyHeader, Order, WriteOptions, WriterBuilder};

use crate::tensor::ElementType;

/// Longest header that is read; NumPy's own have 128 bytes.
const HEADER_BYTES: usize = 1 << 16;

/// NumPy's names of the element types, little-endian.
const NAMES: [(&str, ElementType); 12] = [
    ("|b1", ElementType::Bool),
    ("|i1", ElementType::I8),
    ("|u1", ElementType::U8),
    ("<i2", ElementType::I16),
    ("<u2", ElementType::U16),
    ("<i4", ElementType::I32),
    ("<u4", ElementType::U32),
    ("<i8", ElementType::I64),
    ("<u8", ElementType::U64),
    ("<f2", ElementType::F16),
    ("<f4", ElementType::F32),
    ("<f8", ElementType::F64),
];

/// What NumPy calls the `bfloat16` of `ml_dtypes` in a file: two bytes of a type that it does not know.
const BFLOAT16: (&str, ElementType) = ("<V2", ElementType::Bf16);

/// What a header says. Nothing in it was compared with the data yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub element_type: ElementType,
    pub big_endian: bool,
    pub column_major: bool,
    pub shape: Vec<usize>,
    /// Length of the data in bytes.
    pub bytes: usize,
}

impl Header {
    /// Reads a header and leaves the reader at the data. The error is a reason in words.
    pub fn read(reader: &mut impl Read) -> Result<Self, String> {
        let no_array = |error: io::Error| format!("it is not a .npy array: {error}");
        let header = header_bytes(reader).map_err(no_array)?;
        let header = NpyHeader::from_reader(header.as_slice()).map_err(no_array)?;
        let DType::Plain(kind) = header.dtype() else {
            return Err("structured arrays are not supported; save each field by itself".to_owned());
        };
        let name = kind.to_string().replace('>', "<");
        let known = NAMES.iter().chain(&[BFLOAT16]).find(|(known, _)| *known == name);
        let element_type = known.map(|&(_, element_type)| element_type);
        let element_type = element_type
            .ok_or_else(|| format!("elements of type {kind} are not supported; convert the array to float32"))?;
        let shape: Option<Vec<usize>> = header.shape().iter().map(|&extent| extent.try_into().ok()).collect();
        let too_large = || "its shape is larger than any memory".to_owned();
        let shape = shape.ok_or_else(too_large)?;
        let bytes = shape.iter().try_fold(element_type.size(), |n, &extent| n.checked_mul(extent));
        Ok(Self {
            element_type,
            big_endian: kind.endianness() == Endianness::Big,
            column_major: header.order() == Order::Fortran && shape.len() > 1,
            shape,
            bytes: bytes.ok_or_else(too_large)?,
        })
    }

    /// Checks the length of the data.
    pub fn check(&self, available: u64) -> Result<(), String> {
        if available == self.bytes as u64 {
            return Ok(());
        }
        let Self { shape, element_type, bytes, .. } = self;
        Err(format!("{shape:?} values of type {element_type} take {bytes} bytes, but {available} bytes follow"))
    }
}

/// Magic, version, length and text of a header. The text is a Python literal whose parser recurses, and multiplies the
/// extents without a check: headers that could make it fail are refused here.
fn header_bytes(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 10];
    reader.read_exact(&mut bytes)?;
    if bytes[6] > 1 {
        bytes.resize(12, 0);
        reader.read_exact(&mut bytes[10..])?;
    }
    let length = bytes[8..].iter().rev().fold(0, |length, &byte| length << 8 | usize::from(byte));
    if length > HEADER_BYTES {
        return Err(io::Error::other(format!("its header is said to have {length} bytes")));
    }
    let text = bytes.len();
    bytes.resize(text + length, 0);
    reader.read_exact(&mut bytes[text..])?;
    let count = |of: fn(&u8) -> bool| bytes[text..].iter().filter(|byte| of(byte)).count();
    if count(|byte| b"([{".contains(byte)) > 2 {
        return Err(io::Error::other("structured arrays are not supported; save each field by itself"));
    }
    // One digit belongs to the type; extents of 19 digits in all multiply to less than 2⁶⁴.
    if count(u8::is_ascii_digit) > 20 {
        return Err(io::Error::other("its shape is larger than any memory"));
    }
    Ok(bytes)
}

/// Writes the header of an array; its values follow, row-major and little-endian.
///
/// # Errors
/// The writer's, or a type that NumPy lacks (bfloat16).
pub(super) fn write_header(writer: &mut impl Write, element_type: ElementType, shape: &[usize]) -> io::Result<()> {
    let name = NAMES.iter().find(|(_, known)| *known == element_type).map(|(name, _)| *name);
    let name = name.ok_or_else(|| io::Error::other(format!("NumPy has no {element_type}")))?;
    let dtype = DType::new_scalar(name.parse().map_err(io::Error::other)?);
    let shape: Vec<u64> = shape.iter().map(|&extent| extent as u64).collect();
    WriteOptions::new_header_only().dtype(dtype).shape(&shape).writer(writer).write_header_only()?;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The content of a `.npy` file.
    pub fn npy(descr: &str, column_major: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let order = if column_major { "True" } else { "False" };
        let mut text = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}").into_bytes();
        text.resize((text.len() + 11).next_multiple_of(64) - 11, b' ');
        text.push(b'\n');
        [b"\x93NUMPY\x01\x00", (text.len() as u16).to_le_bytes().as_slice(), &text, data].concat()
    }

    #[test]
    fn every_type_survives_writing_and_reading() {
        for (name, element_type) in NAMES {
            let mut bytes = Vec::new();
            write_header(&mut bytes, element_type, &[1, 3]).unwrap();
            let header = Header::read(&mut bytes.as_slice()).unwrap();
            assert_eq!((header.element_type, header.shape.as_slice()), (element_type, &[1, 3][..]), "{name}");
            assert_eq!((header.big_endian, header.column_major), (false, false));
            assert_eq!(header.bytes, 3 * element_type.size());
        }
        let error = write_header(&mut Vec::new(), ElementType::Bf16, &[]).unwrap_err();
        assert_eq!(error.to_string(), "NumPy has no bfloat16");
    }

    #[test]
    fn no_changed_byte_makes_reading_fail_badly() {
        let content = npy("'<f4'", false, "(30, 224, 224, 3)", &[]);
        for (position, _) in content.iter().enumerate().filter(|(_, byte)| **byte != b' ') {
            for byte in (0..=u8::MAX).step_by(3) {
                let mut changed = content.clone();
                changed[position] = byte;
                // Any answer will do, but there has to be one.
                drop(Header::read(&mut changed.as_slice()));
            }
        }
    }

    #[test]
    fn hostile_headers_are_refused_with_a_reason() {
        let error = |content: &[u8]| Header::read(&mut &*content).unwrap_err();
        for shape in ["(4294967296, 4294967296, 4)", "(4000000000, 4000000000)", "(0, 99999999999, 99999999999)"] {
            let error = error(&npy("'<f4'", false, shape, &[]));
            assert!(error.contains("larger than any memory"), "{error}");
        }
        assert!(error(&npy("'<c8'", false, "(1,)", &[])).contains("elements of type <c8 are not supported"));
        assert!(error(&npy("[('a', '<f4')]", false, "(1,)", &[])).contains("structured arrays"));
        let nested = [b"\x93NUMPY\x01\x00\xff\xff".as_slice(), &vec![b'('; 65535]].concat();
        assert!(error(&nested).contains("structured arrays"));
        assert!(error(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f").contains("said to have 2147483647 bytes"));
        assert!(error(b"PK").contains("it is not a .npy array"));
    }
}
