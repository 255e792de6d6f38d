//! Writing models: in one file, or with the weights beside it when there are too many for protobuf.

use std::{
    io::{self, Write},
    path::Path,
};

use bytes::Bytes;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, message, string},
};

use super::{
    Model, ModelError, external,
    load::visit_graphs,
    mapped::release,
    proto::{GraphProto, ModelProto},
};
use crate::artifact::write_atomic_with;

/// Protobuf's limit for one message.
pub const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;
/// Initializers below this size stay in the model's file.
const MIN_EXTERNAL_BYTES: usize = 1024;
/// Data starts on pages, so that readers can map it.
const EXTERNAL_ALIGNMENT: u64 = 4096;

impl Model {
    /// The serialized model.
    ///
    /// # Errors
    /// Over 2 GB.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ModelError> {
        let bytes = self.proto.encoded_len();
        if bytes > MAX_MESSAGE_BYTES {
            return Err(ModelError::TooLarge { model: self.name(), bytes });
        }
        Ok(self.proto.encode_to_vec())
    }

    /// Writes the model; `path` names either the old model or all of the new one.
    ///
    /// The weights go to `<path>.data` when the model is over 2 GB or its weights came from such a file. They are
    /// streamed: no second copy of them is made in memory.
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        if !self.external_data && self.proto.encoded_len() <= MAX_MESSAGE_BYTES {
            return Ok(write_atomic_with(path, |writer| write_model(&self.proto, writer))?);
        }
        let mut data_path = path.as_os_str().to_owned();
        data_path.push(".data");
        let data_path = Path::new(&data_path);
        let location = data_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (proto, pieces) = split(&self.proto, &location);
        if proto.encoded_len() > MAX_MESSAGE_BYTES {
            return Err(ModelError::TooLarge { model: self.name(), bytes: proto.encoded_len() });
        }
        // Both files are complete before either gets its name, and the old model goes before its data does: at no
        // moment does a model lie beside the data of another.
        let mut data_written = Ok(());
        write_atomic_with(path, |writer| {
            write_model(&proto, writer)?;
            data_written = write_atomic_with(data_path, |data| {
                write_pieces(&pieces, data)?;
                data.flush()?;
                data.get_ref().sync_all()?;
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                }
            });
            if data_written.is_err() { Err(io::Error::other("its data could not be written")) } else { Ok(()) }
        })
        .or_else(|error| data_written.and(Err(error)))?;
        Ok(())
    }
}

/// A copy of the model whose larger initializers refer to `location`, and their data in order.
fn split(model: &ModelProto, location: &str) -> (ModelProto, Vec<(u64, Bytes)>) {
    let mut proto = model.clone();
    let mut pieces = Vec::new();
    let mut end = 0u64;
    let graph = proto.graph.get_or_insert_default();
    visit_graphs(graph, &mut |graph| {
        for tensor in &mut graph.initializer {
            let Some(raw) = tensor.raw_data.clone().filter(|raw| raw.len() >= MIN_EXTERNAL_BYTES) else { continue };
            let offset = end.next_multiple_of(EXTERNAL_ALIGNMENT);
            end = offset + raw.len() as u64;
            external::refer(tensor, location, offset, raw.len());
            pieces.push((offset, raw));
        }
    });
    (proto, pieces)
}

fn write_pieces(pieces: &[(u64, Bytes)], writer: &mut impl Write) -> io::Result<()> {
    let mut at = 0;
    for (offset, piece) in pieces {
        io::copy(&mut io::Read::take(io::repeat(0), offset - at), writer)?;
        writer.write_all(piece)?;
        release(piece);
        at = offset + piece.len() as u64;
    }
    Ok(())
}

/// Writes what `encode_to_vec` would give, one node or tensor at a time.
fn write_model(model: &ModelProto, writer: &mut impl Write) -> io::Result<()> {
    // Fields are written in the order of their numbers; the graph is the seventh.
    let before = ModelProto {
        ir_version: model.ir_version,
        producer_name: model.producer_name.clone(),
        producer_version: model.producer_version.clone(),
        domain: model.domain.clone(),
        model_version: model.model_version,
        doc_string: model.doc_string.clone(),
        ..ModelProto::default()
    };
    let after = ModelProto {
        opset_import: model.opset_import.clone(),
        metadata_props: model.metadata_props.clone(),
        training_info: model.training_info.clone(),
        functions: model.functions.clone(),
        configuration: model.configuration.clone(),
        ..ModelProto::default()
    };
    writer.write_all(&before.encode_to_vec())?;
    if let Some(graph) = &model.graph {
        write_graph(graph, writer)?;
    }
    writer.write_all(&after.encode_to_vec())
}

fn write_graph(graph: &GraphProto, writer: &mut impl Write) -> io::Result<()> {
    let rest = GraphProto {
        doc_string: graph.doc_string.clone(),
        input: graph.input.clone(),
        output: graph.output.clone(),
        value_info: graph.value_info.clone(),
        quantization_annotation: graph.quantization_annotation.clone(),
        sparse_initializer: graph.sparse_initializer.clone(),
        metadata_props: graph.metadata_props.clone(),
        ..GraphProto::default()
    };
    let mut buffer = Vec::new();
    encode_key(7, WireType::LengthDelimited, &mut buffer);
    encode_varint(graph.encoded_len() as u64, &mut buffer);
    let mut flush = |buffer: &mut Vec<u8>| {
        writer.write_all(buffer)?;
        buffer.clear();
        io::Result::Ok(())
    };
    for node in &graph.node {
        message::encode(1, node, &mut buffer);
        flush(&mut buffer)?;
    }
    if let Some(name) = &graph.name {
        string::encode(2, name, &mut buffer);
    }
    for tensor in &graph.initializer {
        message::encode(5, tensor, &mut buffer);
        flush(&mut buffer)?;
    }
    buffer.extend(rest.encode_to_vec());
    flush(&mut buffer)
}
