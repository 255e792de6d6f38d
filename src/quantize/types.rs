//! Element types of all tensors of a graph, from inputs, constants and the operators' rules.

use std::collections::BTreeMap;

use crate::{
    backend::TensorInfo,
    onnx::{
        Fact, GraphView,
        proto::{GraphProto, NodeProto, TypeValue, ValueInfoProto},
    },
    tensor::ElementType,
};

/// Element types by tensor; tensors whose type cannot be told are absent.
pub(crate) fn element_types(
    view: &GraphView<'_>,
    known: &BTreeMap<String, TensorInfo>,
) -> BTreeMap<String, ElementType> {
    let graph = view.graph();
    let mut types: BTreeMap<String, ElementType> = BTreeMap::new();
    let declared = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
    types.extend(declared.filter_map(|info| Some((info.name().to_owned(), declared_type(info)?))));
    let inferred = known.values().filter_map(|info| Some((info.name.clone(), info.element_type?)));
    types.extend(inferred);
    for tensor in &graph.initializer {
        match tensor.element_type() {
            Ok(element_type) => types.insert(tensor.name().to_owned(), element_type),
            Err(_) => types.remove(tensor.name()),
        };
    }
    for &id in view.topological_order() {
        let node = view.node(id);
        for (index, output) in node.output.iter().enumerate().filter(|(_, output)| !output.is_empty()) {
            if types.contains_key(output) {
                continue;
            }
            if let Some(element_type) = output_type(node, index, &types) {
                types.insert(output.clone(), element_type);
            }
        }
    }
    types
}

/// The type of one output of a standard operator.
fn output_type(node: &NodeProto, index: usize, types: &BTreeMap<String, ElementType>) -> Option<ElementType> {
    use ElementType::{Bool, F32, I64};
    if !node.is_standard() {
        return None;
    }
    let input = |input: usize| types.get(node.input.get(input)?).copied();
    let named = |attribute: &str, default: Option<ElementType>| match node.attr_i(attribute) {
        Some(data_type) => ElementType::from_onnx(i32::try_from(data_type).ok()?),
        None => default,
    };
    match node.op_type() {
        _ if node.is(Fact::GivesI64) => Some(I64),
        _ if node.is(Fact::GivesBool) => Some(Bool),
        "TopK" | "MaxPool" if index == 1 => Some(I64),
        "Unique" if index > 0 => Some(I64),
        "Dropout" if index == 1 => Some(Bool),
        "Cast" => named("to", None),
        "RandomNormal" | "RandomUniform" => named("dtype", Some(F32)),
        "EyeLike" | "RandomNormalLike" | "RandomUniformLike" => named("dtype", input(0)),
        "Constant" => match node.attribute.first()?.name() {
            "value" => node.attr_t("value")?.element_type().ok(),
            "value_float" | "value_floats" => Some(F32),
            "value_int" | "value_ints" => Some(I64),
            _ => None,
        },
        "ConstantOfShape" => match node.attr_t("value") {
            Some(value) => value.element_type().ok(),
            None => Some(F32),
        },
        "CastLike" | "Where" | "DequantizeLinear" => input(1),
        "OneHot" => input(2),
        "QuantizeLinear" => {
            if node.input.len() > 2 {
                input(2)
            } else {
                Some(ElementType::U8)
            }
        }
        "If" | "Scan" => subgraph_output(node, index),
        "Loop" => subgraph_output(node, index + 1),
        "SequenceEmpty" | "SequenceConstruct" | "SequenceInsert" | "SequenceAt" | "SequenceErase"
        | "SequenceLength" | "SplitToSequence" | "ConcatFromSequence" | "Optional" | "OptionalGetElement" => None,
        _ => input(0),
    }
}

/// What the first subgraph of a node declares for its output `index`.
fn subgraph_output(node: &NodeProto, index: usize) -> Option<ElementType> {
    let graph: &GraphProto = node.subgraphs().next()?;
    declared_type(graph.output.get(index)?)
}

pub(super) fn declared_type(info: &ValueInfoProto) -> Option<ElementType> {
    match info.r#type.as_ref()?.value.as_ref()? {
        TypeValue::TensorType(tensor) => ElementType::from_onnx(tensor.elem_type()),
        _ => None,
    }
}
