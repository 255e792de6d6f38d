//! What the parser and the builder said, in a sentence that names the nodes, and what is known to help.
//!
//! The parser spreads one error over several messages:
//!
//! ```text
//! ModelImporter.cpp:140: While parsing node number 0 [Frobnicate -> "y"]:
//! ModelImporter.cpp:142: --- Begin node --- Node name: strange
//! ModelImporter.cpp:143: --- End node ---
//! ModelImporter.cpp:151: ERROR: onnxOpCheckers.cpp:998 In function checkFallback: [6] Plugin not found
//! ```

use std::path::Path;

use crate::onnx::{
    Model,
    proto::{TypeValue, ValueInfoProto},
};

/// What the parser says of an input whose type TensorRT lacks, in small letters. It does not name the input.
const NO_TYPE: &str = "failed to convert onnx date type";

/// ONNX's numbers of the types that TensorRT has, or that its parser makes one of these of.
const TYPES: [i32; 12] = [1, 2, 3, 6, 7, 9, 10, 11, 16, 17, 22, 23];

/// What a machine without a driver adds to an error about something else.
const NO_DRIVER: &str = "cudaError 35";

/// The errors in one line; `None` without any. Messages are as they came, each on one line.
pub(super) fn explain(messages: &[String]) -> Option<String> {
    let mut found: Vec<String> = Vec::new();
    let mut node: Option<String> = None;
    for message in messages {
        let text = without_place(message);
        if let Some((_, rest)) = text.split_once("While parsing node number ") {
            node = Some(node_by_output(rest));
        } else if let Some((_, name)) = text.split_once("Node name: ") {
            let operator = node.as_deref().and_then(|node| node.split_once(' ')).map_or("", |(operator, _)| operator);
            node = Some(format!("`{name}` ({operator})"));
        } else if text.starts_with("--- ") {
            // The node's end.
        } else if let Some(error) = text.strip_prefix("ERROR: ") {
            let error = plain(error);
            found.push(match node.take() {
                Some(node) => format!("node {node}: {error}"),
                None => error.to_owned(),
            });
        } else {
            found.push(plain(text).to_owned());
        }
    }
    found.extend(node.map(|node| format!("node {node}")));
    let others = found.iter().any(|text| !text.contains(NO_DRIVER));
    let mut told: Vec<&String> = Vec::new();
    for (index, text) in found.iter().enumerate() {
        let again = found[index + 1..].iter().any(|later| later.contains(text.as_str()));
        let beside_the_point = others && text.contains(NO_DRIVER);
        if !(again || beside_the_point) {
            told.push(text);
        }
    }
    let texts: Vec<&str> = told.into_iter().map(String::as_str).collect();
    (!texts.is_empty()).then(|| with_hint(&texts.join("; ")))
}

/// The reason why the parser refuses a model, with the inputs in front whose type is that reason.
pub(super) fn with_inputs(reason: String, model: &Path) -> String {
    if !reason.to_lowercase().contains(NO_TYPE) {
        return reason;
    }
    let Ok(model) = Model::load(model) else { return reason };
    let lacking: Vec<String> =
        model.graph().input.iter().filter(|info| has_no_type(info)).map(|info| format!("`{}`", info.name())).collect();
    if lacking.is_empty() { reason } else { format!("input {}: {reason}", lacking.join(", ")) }
}

fn has_no_type(info: &ValueInfoProto) -> bool {
    let kind = info.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    !matches!(kind, Some(TypeValue::TensorType(tensor)) if TYPES.contains(&tensor.elem_type()))
}

/// Without the parser's own source file and line in front.
fn without_place(message: &str) -> &str {
    let rest = message.strip_prefix("ModelImporter.cpp:").unwrap_or(message);
    rest.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(": ").unwrap_or(message)
}

/// `Conv that makes `y`` from `0 [Conv -> "y"]:`, for nodes without a name.
fn node_by_output(text: &str) -> String {
    let operator = text.split_once('[').and_then(|(_, rest)| rest.split_once(" -> "));
    let made = operator.and_then(|(operator, rest)| Some((operator, rest.split_once('"')?.1.split_once('"')?.0)));
    made.map_or_else(|| text.to_owned(), |(operator, output)| format!("{operator} that makes `{output}`"))
}

/// An error without the function that found it and without what follows from a missing driver.
fn plain(error: &str) -> &str {
    let error = error.split_once("In function ").and_then(|(_, rest)| rest.split_once(": ")).map_or(error, |(_, e)| e);
    error.split(" [checkMacros.cpp::catchCudaError").next().unwrap_or(error).trim()
}

/// Adds what is known to help.
fn with_hint(reason: &str) -> String {
    const NO_OPERATOR: &str = "the operator is not part of TensorRT's ONNX parser; replace it or add a plugin";
    const NO_SUCH_TYPE: &str = "TensorRT has no such element type (strings or the 8-bit float E5M2); cast it in the model, or cut that part off";
    let hints = [
        ("optimization profile", "give shapes of dynamic inputs with --profile NAME=MIN:OPT:MAX or --shape"),
        ("zero point", "quantize symmetrically: TensorRT takes zero-point 0 only; `calib quantize` writes such models"),
        ("no importer registered for op", NO_OPERATOR),
        ("plugin not found", NO_OPERATOR),
        ("not found in plugin registry", NO_OPERATOR),
        (NO_TYPE, NO_SUCH_TYPE),
        ("unsupported data type for the cast operator", NO_SUCH_TYPE),
        ("filterweightsbfloat16", "TensorRT-RTX has no transposed convolution in BF16; use FP16 for this model"),
        ("unsupported sm", "the GPU's compute capability is not supported by this TensorRT"),
    ];
    let lower = reason.to_lowercase();
    match hints.iter().find(|(needle, _)| lower.contains(needle)) {
        Some((_, hint)) => format!("{reason} ({hint})"),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(messages: &[&str]) -> String {
        explain(&messages.iter().map(|&message| message.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    /// Messages of TensorRT-RTX 1.7.1.
    #[test]
    fn every_node_that_the_parser_refuses_is_named_with_its_error() {
        let plugin = "ModelImporter.cpp:151: ERROR: onnxOpCheckers.cpp:998 In function checkFallbackPluginImporter: [6] \
                      creator && \"Plugin not found\"";
        let text = explained(&[
            "ModelImporter.cpp:140: While parsing node number 0 [Frobnicate -> \"a\"]:",
            "ModelImporter.cpp:142: --- Begin node --- Node name: strange",
            "ModelImporter.cpp:143: --- End node ---",
            plugin,
            "ModelImporter.cpp:140: While parsing node number 1 [Bamboozle -> \"y\"]:",
            plugin,
        ]);
        assert!(text.starts_with("node `strange` (Frobnicate): [6] creator"), "{text}");
        assert!(text.contains("; node Bamboozle that makes `y`: [6] creator"), "{text}");
        assert!(
            text.ends_with("(the operator is not part of TensorRT's ONNX parser; replace it or add a plugin)"),
            "{text}"
        );
    }

    #[test]
    fn what_is_said_twice_and_what_follows_from_a_missing_driver_is_left_out() {
        let driver = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: too old)";
        let shape = "ITensor::getDimensions: Error Code 4: Shape Error (broadcast dimensions must be conformable)";
        let text = explained(&[
            shape,
            driver,
            "ModelImporter.cpp:140: While parsing node number 0 [Add -> \"y\"]:",
            "ModelImporter.cpp:142: --- Begin node --- Node name: misfit",
            &format!(
                "ModelImporter.cpp:151: ERROR: ModelImporter.cpp:489 In function parseNode: [6] Invalid Node - misfit {shape} {driver}"
            ),
        ]);
        assert_eq!(text, format!("node `misfit` (Add): [6] Invalid Node - misfit {shape}"));
        assert!(explained(&[driver]).contains("cudaError 35"), "unless that is all");
        assert_eq!(explain(&[]), None);
    }
}
