//! A walk over the wire format before decoding: what the messages in [`super::proto`] cannot hold, and how much.
//!
//! Decoding skips fields it does not know, so a model from a newer ONNX would lose them when it is written again;
//! and two bytes of a hostile file can declare an empty message of several hundred. Both are refused here.

use prost::encoding::decode_varint;

use super::proto;

/// Memory that decoded messages may take, apart from the weights. Two million nodes fit.
const MAX_DECODED_BYTES: usize = 512 << 20;
/// As deep as the decoder goes.
const MAX_DEPTH: usize = 100;

/// Why a file is not decoded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Not protobuf, or cut off.
    #[error("it is damaged at byte {offset}, or no ONNX model at all")]
    Damaged {
        /// Where the damage shows.
        offset: usize,
    },
    /// A field that would be lost.
    #[error(
        "{message} has the field {field}, which this version does not know and would lose; export the model with an \
         older ONNX, or use a newer version of this program"
    )]
    UnknownField {
        /// Name of the message in `onnx.proto`.
        message: &'static str,
        /// Number of the field.
        field: u32,
    },
    /// More messages than any model needs.
    #[error("its graph needs over {} MB of memory without the weights; it is damaged or hostile", MAX_DECODED_BYTES >> 20)]
    TooManyMessages,
    /// Nested too deep.
    #[error("its messages are nested over {MAX_DEPTH} deep; it is damaged or hostile")]
    TooDeep,
}

macro_rules! schema {
    ($($message:ident: $scalars:pat, [$($number:literal $child:ident),*];)*) => {
        #[derive(Clone, Copy, Debug)]
        enum Message { $($message,)* }

        /// What is behind a field.
        enum Field { Scalar, Nested(Message), Unknown }

        impl Message {
            fn name(self) -> &'static str { match self { $(Self::$message => stringify!($message),)* } }
            fn decoded_size(self) -> usize { match self { $(Self::$message => size_of::<proto::$message>(),)* } }
            fn field(self, number: u32) -> Field {
                match self {
                    $(Self::$message => match number {
                        $($number => Field::Nested(Message::$child),)*
                        $scalars => Field::Scalar,
                        _ => Field::Unknown,
                    },)*
                }
            }
        }
    };
}

// The numbers of each message: scalar fields as a pattern (`0` is not a field), then the nested messages.
schema! {
    ModelProto: 1..=6, [7 GraphProto, 8 OperatorSetIdProto, 14 StringStringEntryProto, 20 TrainingInfoProto,
        25 FunctionProto, 26 DeviceConfigurationProto];
    OperatorSetIdProto: 1..=2, [];
    StringStringEntryProto: 1..=2, [];
    GraphProto: 2 | 10, [1 NodeProto, 5 TensorProto, 11 ValueInfoProto, 12 ValueInfoProto, 13 ValueInfoProto,
        14 TensorAnnotation, 15 SparseTensorProto, 16 StringStringEntryProto];
    NodeProto: 1..=4 | 6..=8, [5 AttributeProto, 9 StringStringEntryProto, 10 NodeDeviceConfigurationProto];
    AttributeProto: 1..=4 | 7..=9 | 13 | 20 | 21, [5 TensorProto, 6 GraphProto, 10 TensorProto, 11 GraphProto,
        14 TypeProto, 15 TypeProto, 22 SparseTensorProto, 23 SparseTensorProto];
    TensorProto: 1 | 2 | 4..=12 | 14, [3 Segment, 13 StringStringEntryProto, 16 StringStringEntryProto];
    Segment: 1..=2, [];
    SparseTensorProto: 3, [1 TensorProto, 2 TensorProto];
    ValueInfoProto: 1 | 3, [2 TypeProto, 4 StringStringEntryProto];
    TypeProto: 6, [1 TensorTypeProto, 4 SequenceTypeProto, 5 MapTypeProto, 7 OpaqueTypeProto, 8 TensorTypeProto,
        9 SequenceTypeProto];
    TensorTypeProto: 1, [2 TensorShapeProto];
    SequenceTypeProto: 0, [1 TypeProto];
    MapTypeProto: 1, [2 TypeProto];
    OpaqueTypeProto: 1..=2, [];
    TensorShapeProto: 0, [1 DimensionProto];
    DimensionProto: 1..=3, [];
    TensorAnnotation: 1, [2 StringStringEntryProto];
    TrainingInfoProto: 0, [1 GraphProto, 2 GraphProto, 3 StringStringEntryProto, 4 StringStringEntryProto];
    FunctionProto: 1 | 4..=6 | 8 | 10 | 13, [7 NodeProto, 9 OperatorSetIdProto, 11 AttributeProto, 12 ValueInfoProto,
        14 StringStringEntryProto];
    DeviceConfigurationProto: 1..=3, [];
    NodeDeviceConfigurationProto: 1 | 3, [2 ShardingSpecProto];
    ShardingSpecProto: 1..=2, [3 IntIntListEntryProto, 4 ShardedDimProto];
    IntIntListEntryProto: 1..=2, [];
    ShardedDimProto: 1, [2 SimpleShardedDimProto];
    SimpleShardedDimProto: 1..=3, [];
}

/// Walks over a serialized `ModelProto` without reading weights or allocating.
pub fn scan(bytes: &[u8]) -> Result<(), ScanError> {
    let mut at = 0;
    let mut decoded = 0usize;
    let mut open = vec![(Message::ModelProto, bytes.len())];
    while let Some(&(message, end)) = open.last() {
        if at == end {
            open.pop();
            continue;
        }
        let key = varint(bytes, &mut at, end)?;
        let field = u32::try_from(key >> 3).map_err(|_| ScanError::Damaged { offset: at })?;
        let length = match key & 7 {
            0 => varint(bytes, &mut at, end).map(|_| 0)?,
            1 => 8,
            2 => usize::try_from(varint(bytes, &mut at, end)?).unwrap_or(usize::MAX),
            5 => 4,
            _ => return Err(ScanError::Damaged { offset: at }),
        };
        if length > end - at {
            return Err(ScanError::Damaged { offset: at });
        }
        match message.field(field) {
            Field::Unknown if field == 0 => return Err(ScanError::Damaged { offset: at }),
            Field::Unknown => return Err(ScanError::UnknownField { message: message.name(), field }),
            // A string that is one of many is at least its own header.
            Field::Scalar => {
                decoded += size_of::<String>();
                at += length;
            }
            Field::Nested(_) if key & 7 != 2 => return Err(ScanError::Damaged { offset: at }),
            Field::Nested(_) if open.len() == MAX_DEPTH => return Err(ScanError::TooDeep),
            Field::Nested(child) => {
                decoded += child.decoded_size();
                open.push((child, at + length));
            }
        }
        if decoded > MAX_DECODED_BYTES {
            return Err(ScanError::TooManyMessages);
        }
    }
    Ok(())
}

fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Result<u64, ScanError> {
    let mut rest = &bytes[*at..end];
    let value = decode_varint(&mut rest).map_err(|_| ScanError::Damaged { offset: *at })?;
    *at = end - rest.len();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn an_unknown_field_is_named_with_its_message() {
        let node = b"\x0a\x01x\xfa\x01\x00"; // input "x"; field 31, empty
        let bytes = [b"\x3a\x08\x0a\x06", &node[..]].concat(); // ModelProto.graph = 7, GraphProto.node = 1
        assert_eq!(scan(&bytes), Err(ScanError::UnknownField { message: "NodeProto", field: 31 }));
        assert_eq!(scan(&bytes[..4]), Err(ScanError::Damaged { offset: 2 }));
        assert_eq!(scan(b"\xff\xd8\xff\xe0\x00\x10JFIF"), Err(ScanError::Damaged { offset: 5 }));
    }

    #[test]
    fn a_small_file_cannot_ask_for_gigabytes() {
        let nodes = b"\x0a\x00".repeat(3_000_000);
        let mut bytes = vec![0x3a];
        prost::encoding::encode_varint(nodes.len() as u64, &mut bytes);
        bytes.extend(nodes);
        assert_eq!(scan(&bytes), Err(ScanError::TooManyMessages));
    }

    #[test]
    fn deep_nesting_is_refused() {
        // TypeProto.sequence_type.elem_type..., innermost first.
        let mut bytes = Vec::new();
        for tag in [0x0a_u8, 0x22].into_iter().cycle().take(200) {
            let mut outer = vec![tag];
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.extend(&bytes);
            bytes = outer;
        }
        let info = proto::ValueInfoProto { name: Some("x".to_owned()), ..Default::default() };
        let mut input = info.encode_to_vec();
        for tag in [0x12, 0x5a, 0x3a] {
            let mut outer = vec![tag];
            let content = if tag == 0x12 { &bytes } else { &input };
            prost::encoding::encode_varint(content.len() as u64, &mut outer);
            outer.extend(content);
            input = outer;
        }
        assert_eq!(scan(&input), Err(ScanError::TooDeep));
    }
}
