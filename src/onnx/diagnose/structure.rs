//! Checks of inputs, outputs, weights and the connections between nodes.

use std::collections::{BTreeSet, HashSet};

use super::{Findings, Rule, Severity};
use crate::onnx::{
    GraphError, GraphView, Model,
    graph::captured,
    proto::{DimensionValue, GraphProto, NodeProto, TensorProto, TypeValue, ValueInfoProto},
};

fn initializer_names(model: &Model) -> HashSet<&str> {
    model.graph().initializer.iter().map(TensorProto::name).collect()
}

pub(super) fn inputs_and_outputs(model: &Model, findings: &mut Findings) {
    let graph = model.graph();
    let held = initializer_names(model);
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|input| !held.contains(input.name())).collect();
    if inputs.is_empty() {
        let message = |_: usize, _: &str| "the model has no inputs".to_owned();
        findings.add(Severity::Error, Rule::NoInputs, ["graph"], message, "export it with an example input");
    }
    if graph.output.is_empty() {
        let message = |_: usize, _: &str| "the model has no outputs".to_owned();
        findings.add(Severity::Error, Rule::NoOutputs, ["graph"], message, "name its outputs when exporting it");
    }
    findings.add(
        Severity::Warning,
        Rule::InitializerIsInput,
        graph.input.iter().map(ValueInfoProto::name).filter(|name| held.contains(name)),
        |count, names| format!("{count} weights are declared as inputs too: {names}"),
        "they are taken as constants; export with keep_initializers_as_inputs=False to say so",
    );
    let has_extent = |info: &ValueInfoProto, wrong: fn(i64) -> bool| {
        extents(info).iter().flatten().any(|extent| matches!(extent, Some(value) if wrong(*value)))
    };
    let all = || inputs.iter().copied().chain(&graph.output);
    findings.add(
        Severity::Error,
        Rule::Extent,
        all().filter(|info| has_extent(info, |extent| extent == 0)).map(ValueInfoProto::name),
        |_, names| format!("inputs or outputs have an extent of 0: {names}"),
        "export with an example input that is not empty",
    );
    findings.add(
        Severity::Warning,
        Rule::Extent,
        all().filter(|info| has_extent(info, |extent| extent < 0)).map(ValueInfoProto::name),
        |_, names| format!("inputs or outputs have a negative extent: {names}"),
        "it is taken as dynamic; export with a named dynamic axis instead",
    );
    dynamic_axes(&inputs, graph, findings);
}

/// The declared extents of a tensor: `None` for dynamic ones; `None` altogether without a shape.
fn extents(info: &ValueInfoProto) -> Option<Vec<Option<i64>>> {
    let Some(TypeValue::TensorType(tensor)) = &info.r#type.as_ref()?.value else { return None };
    let dims = tensor.shape.as_ref()?.dim.iter();
    Some(dims.map(|dim| if let Some(DimensionValue::DimValue(v)) = dim.value { Some(v) } else { None }).collect())
}

/// Batch axes that are dynamic on one side only: axes were given under names that the graph does not have. A state whose
/// first axis counts layers has the batch on another one, and what begins with time has none in front.
fn dynamic_axes(inputs: &[&ValueInfoProto], graph: &GraphProto, findings: &mut Findings) {
    let name = graph.batch_name();
    let batch = |info: &ValueInfoProto| extents(info)?.first().copied();
    let has_name = |info: &ValueInfoProto| name.is_some() && info.names_of_extents().contains(&name);
    let dynamic = inputs.iter().find(|input| batch(input) == Some(None) && !graph.begins_with_time(input.name()));
    let Some(dynamic) = dynamic else { return };
    findings.add(
        Severity::Warning,
        Rule::DynamicAxes,
        // Any other fixed first axis (classes, anchors) may be meant; one is what an example input leaves behind.
        (inputs.iter().copied().chain(&graph.output))
            .filter(|info| batch(info) == Some(Some(1)) && !has_name(info))
            .map(ValueInfoProto::name),
        |_, names| format!("input `{}` has a dynamic first axis, but it is fixed at 1 in {names}", dynamic.name()),
        "name every input and output in dynamic_axes (or dynamic_shapes) as the graph names them, or use batch size 1",
    );
}

/// Names that exporters give to weights.
fn is_weight_name(name: &str) -> bool {
    const PARTS: [&str; 7] = ["weight", "bias", "kernel", "gamma", "beta", "running_mean", "running_var"];
    PARTS.iter().any(|part| name.to_ascii_lowercase().contains(part))
}

pub(super) fn weights(model: &Model, findings: &mut Findings) {
    let graph = model.graph();
    let held = initializer_names(model);
    let uses: HashSet<&str> = graph
        .node
        .iter()
        .flat_map(|node| node.input.iter().enumerate().filter(|(index, _)| node.takes_weights_at(*index)))
        .map(|(_, tensor)| tensor.as_str())
        .collect();
    let is_static = |info: &&ValueInfoProto| extents(info).is_some_and(|dims| dims.iter().all(Option::is_some));
    findings.add(
        Severity::Error,
        Rule::MissingWeights,
        graph
            .input
            .iter()
            .filter(|input| !held.contains(input.name()))
            .filter(is_static)
            .map(ValueInfoProto::name)
            .filter(|name| uses.contains(name) || is_weight_name(name)),
        |count, names| {
            format!(
                "the model was exported without its weights: {count} inputs of the graph look like weights ({names})"
            )
        },
        "export it again with its weights (export_params=True, and the trained model rather than its graph)",
    );
    let (outside, inside): (Vec<_>, Vec<_>) = graph.initializer.iter().partition(|tensor| tensor.is_external());
    findings.add(
        Severity::Error,
        Rule::MissingExternalData,
        outside.into_iter().map(TensorProto::name),
        |count, names| format!("{count} weights lie in files that were not read: {names}"),
        "load the model from its path, with its data files beside it",
    );
    for tensor in inside {
        if let Err(reason) = tensor.check() {
            let hint = "export or download the model again";
            findings.add(Severity::Error, Rule::DamagedWeights, [tensor.name()], |_, _| reason.to_string(), hint);
        }
    }
}

pub(super) fn connections(model: &Model, findings: &mut Findings) {
    let graph = model.graph();
    let mut seen = HashSet::new();
    findings.add(
        Severity::Warning,
        Rule::DuplicateNodeName,
        graph.node.iter().map(NodeProto::name).filter(|name| !seen.insert(*name)).collect::<BTreeSet<_>>(),
        |_, names| format!("several nodes share a name: {names}"),
        "a plan or an exclusion by such a name means all of them",
    );
    let view = match GraphView::new(graph) {
        Ok(view) => view,
        Err(error) => {
            let rule = if matches!(error, GraphError::Cycle { .. }) { Rule::Cycle } else { Rule::DuplicateTensor };
            let message = |_: usize, _: &str| error.to_string();
            findings.add(Severity::Error, rule, ["graph"], message, "a valid export never has this");
            return;
        }
    };
    let read = |node: &NodeProto| {
        let direct = node.input.iter().map(String::as_str).filter(|tensor| !tensor.is_empty());
        direct.chain(node.subgraphs().flat_map(captured)).map(str::to_owned).collect::<Vec<_>>()
    };
    let read_by_nodes = graph.node.iter().flat_map(read);
    let undefined = read_by_nodes.chain(graph.output.iter().map(|output| output.name().to_owned()));
    findings.add(
        Severity::Error,
        Rule::UndefinedTensor,
        undefined.filter(|tensor| !view.is_defined(tensor)).collect::<BTreeSet<_>>(),
        |count, names| format!("{count} tensors are used, but nothing produces them: {names}"),
        "when they are weights, the model was exported without them; export it again with export_params=True",
    );
    let is_sorted = view.topological_order().is_sorted();
    findings.add(
        Severity::Warning,
        Rule::Unsorted,
        (!is_sorted).then_some("graph"),
        |_, _| "nodes come before what they read".to_owned(),
        "ONNX wants them sorted, and other tools may refuse the model",
    );
}
