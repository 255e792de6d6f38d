//! The builder's list of layers, which it logs line by line when it is done:
//!
//! ```text
//! Layers:
//! Name: conv, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [-1,3], ..., Datatype: Int8, Format: ... }], Constants:
//! [...], Outputs: [...], TacticName: ..., StreamId: 0, Metadata: [ONNX Layer: conv]
//! ```
//! up to an empty line. Fields have the names that the engine inspector gives them in JSON, so lines become that.

use serde_json::{Map, Value, json};

const HEADING: &str = "Layers:\n";

/// Whether a message of the log is such a list.
#[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
pub(in crate::backend::tensorrt) fn is_listing(message: &str) -> bool {
    message.starts_with(HEADING)
}

/// The layers as the inspector's JSON has them; the line that is not of the known form where there is one.
pub(super) fn read(text: &str) -> Result<Vec<Value>, &str> {
    let lines = text.strip_prefix(HEADING).unwrap_or(text).lines().take_while(|line| !line.trim().is_empty());
    lines.map(|line| layer(line).ok_or(line)).collect()
}

fn layer(line: &str) -> Option<Value> {
    let (name, rest) = line.strip_prefix("Name: ")?.split_once(", LayerType: ")?;
    let (layer_type, rest) = rest.split_once(", Inputs: ")?;
    let (inputs, mut rest) = bracketed(rest)?;
    if let Some(constants) = rest.strip_prefix(", Constants: ") {
        rest = bracketed(constants)?.1;
    }
    let (outputs, rest) = bracketed(rest.strip_prefix(", Outputs: ")?)?;
    let (rest, metadata) = rest.split_once("Metadata:")?;
    let tactic = field(rest, "TacticName: ", ", StreamId: ").unwrap_or_default();
    Some(json!({
        "Name": name,
        "LayerType": layer_type,
        "Inputs": tensors(inputs)?,
        "Outputs": tensors(outputs)?,
        "TacticName": tactic,
        "Metadata": metadata.trim(),
    }))
}

/// What stands between the bracket that `text` begins with and its counterpart, and what follows.
fn bracketed(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match character {
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some((text.get(1..at)?, &text[at + 1..]));
        }
    }
    None
}

fn tensors(list: &str) -> Option<Vec<Value>> {
    let list = list.trim();
    if list.is_empty() {
        return Some(Vec::new());
    }
    list.strip_prefix("{ ")?.strip_suffix('}')?.split("}, { ").map(|tensor| self::tensor(tensor.trim_end())).collect()
}

fn tensor(text: &str) -> Option<Value> {
    let (name, rest) = text.strip_prefix("Name: ")?.split_once(", Dimensions: ")?;
    let (extents, rest) = bracketed(rest)?;
    let extents = extents.split(',').filter(|extent| !extent.is_empty()).map(|extent| extent.trim().parse::<i64>());
    let mut tensor = Map::from_iter([
        ("Name".to_owned(), json!(name)),
        ("Dimensions".to_owned(), json!(extents.collect::<Result<Vec<_>, _>>().ok()?)),
    ]);
    if let Some(data_type) = field(rest, ", Datatype: ", ", ") {
        tensor.insert("Datatype".to_owned(), json!(data_type));
    }
    if let Some((_, format)) = rest.split_once(", Format: ").or_else(|| rest.split_once(", Format/Datatype: ")) {
        tensor.insert("Format".to_owned(), json!(format));
    }
    Some(Value::Object(tensor))
}

/// What stands behind `start`, up to `end` or to the end.
fn field<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    Some(rest.split_once(end).map_or(rest, |(value, _)| value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{EngineLayers, LayerKind, NumberType};
    #[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
    use super::is_listing;

    /// Lines of TensorRT-RTX 1.7.1, shortened.
    const TEXT: &str = "Layers:\n\
        Name: __mye1_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: \n\
        Name: __myl_MulMinMaxRounCastReplConc_myl0_1, LayerType: kgen, Inputs: [ { Name: in[0], Dimensions: [-1,3,64,64], Strides: [12288,4096,64,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [ { Name: c, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: q, Dimensions: [-1,4,64,64], Strides: [16384,1,256,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], TacticName: __myl_MulMinMaxRounCastReplConc_0x4d, StreamId: 0, Metadata: [ONNX Layer: input_Q][ONNX Layer: conv]\n\
        Name: conv_myl0_2, LayerType: correlation, Inputs: [ { Name: q, Dimensions: [-1,4,64,64], Strides: [16384,1,256,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: r, Dimensions: [], Strides: [], StrideOrder: [], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: y, Dimensions: [-1,16,32,32], Strides: [16384,1,512,16], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 1, EventId: 1, Metadata: [ONNX Layer: conv][ONNX Layer: w_DQ]\n\
        \n\
        I/O Tensors:\n Name: in[0], IOMode: Input\n";

    #[test]
    fn lines_become_layers() {
        #[cfg(any(feature = "tensorrt", feature = "tensorrt-rtx"))]
        assert!(is_listing(TEXT) && !is_listing("Formats and tactics selection completed"));
        let operators = BTreeMap::from([("input_Q".to_owned(), "QuantizeLinear".to_owned())]);
        let engine = EngineLayers::from_listing(TEXT, &operators).unwrap();
        let [quantize, conv] = &engine.layers[..] else { panic!("{:?}", engine.layers) };
        assert_eq!((quantize.kind, conv.kind), (LayerKind::QuantizeDequantize, LayerKind::Compute));
        assert_eq!((conv.precision, &*conv.tactic), (NumberType::Int8, "__myelin_CASK_STUB"));
        assert_eq!(conv.nodes, ["conv", "w_DQ"]);
        assert_eq!((&*quantize.inputs[0].name, &quantize.inputs[0].shape[..]), ("in[0]", &[-1, 3, 64, 64][..]));
        assert_eq!((conv.inputs.len(), &*conv.inputs[0].format), (2, "(NHWC) Channel major format"));
        let summary = engine.summary();
        assert_eq!((summary.layers, summary.compute_layers, summary.wide_outputs), (2, 1, 1));
        assert_eq!(summary.unfused_qdq, ["input_Q"]);
    }

    #[test]
    fn a_line_of_another_form_is_an_error_that_shows_it() {
        for line in ["Layer(Reformat): a, Tactic: 0x0", "Name: a, LayerType: b, Inputs: [ { Name: x, Dimensions: [1"] {
            let error = EngineLayers::from_listing(&format!("Layers:\n{line}\n"), &BTreeMap::new()).unwrap_err();
            assert!(error.to_string().ends_with(line), "{error}");
        }
    }
}
