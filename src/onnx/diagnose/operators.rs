//! Checks of operators and opsets, and the operators that each opset has.

use std::collections::{BTreeMap, HashSet};

use super::{Findings, Rule, Severity};
use crate::onnx::{
    Fact, Model,
    operators::{OperatorType, is_quantized},
    proto::{NodeProto, OperatorSetIdProto},
};

/// The newest opset that is known here (ONNX 1.23).
const NEWEST_OPSET: i64 = 28;
/// Opsets below this have operators whose shapes nobody infers any more.
const OLDEST_OPSET: i64 = 7;

pub(super) fn check(model: &Model, findings: &mut Findings) {
    let opset = model.opset("");
    let opset_message = |_: usize, _: &str| match opset {
        None => "the model does not say which version of the standard operators it uses".to_owned(),
        Some(version) => format!("the model uses opset {version}"),
    };
    let (severity, hint) = match opset {
        Some(version) if version > NEWEST_OPSET => (Severity::Warning, "it is newer than this program knows"),
        Some(version) if version < OLDEST_OPSET => (Severity::Warning, "convert it with onnx.version_converter"),
        _ => (Severity::Error, "export it again with an opset"),
    };
    let unusual = opset.is_none_or(|version| !(OLDEST_OPSET..=NEWEST_OPSET).contains(&version));
    findings.add(severity, Rule::Opset, unusual.then_some("opset_import"), opset_message, hint);
    let imports = &model.proto.opset_import;
    findings.add(
        Severity::Error,
        Rule::Opset,
        imports.iter().filter(|import| model.opset(import.domain()) != import.version).map(OperatorSetIdProto::domain),
        |_, names| format!("domains are imported in several versions: {names}"),
        "runtimes differ in which one they take; keep the right one in opset_import",
    );
    let mut used: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    collect(&model.graph().node, &mut used);
    let functions: HashSet<(&str, &str)> = model.proto.functions.iter().map(|f| (f.domain(), f.name())).collect();
    let (mut quantized, mut random) = (Vec::new(), Vec::new());
    for ((domain, op_type), nodes) in used {
        if is_quantized(&op_type) {
            quantized.extend(nodes.iter().cloned());
        }
        if domain.is_empty() && OperatorType::named(&op_type).is_some_and(|row| row.is(Fact::Random)) {
            random.extend(nodes.iter().cloned());
        }
        if functions.contains(&(domain.as_str(), op_type.as_str())) {
            continue;
        }
        if domain.is_empty() {
            standard_operator(&op_type, opset.unwrap_or(NEWEST_OPSET), nodes, findings);
        } else {
            let hint = "only a runtime with a kernel for it runs the model; TensorRT needs a plugin";
            let message =
                |_: usize, names: &str| format!("operator {op_type} of domain {domain} is not standard: {names}");
            findings.add(Severity::Warning, Rule::ForeignOperator, nodes, message, hint);
        }
    }
    findings.add(
        Severity::Warning,
        Rule::AlreadyQuantized,
        quantized,
        |count, names| format!("the model is already quantized: {count} nodes ({names})"),
        "start from the float model; its scales are kept only where nothing is quantized again",
    );
    findings.add(
        Severity::Warning,
        Rule::Random,
        random,
        |count, names| format!("{count} nodes draw random numbers ({names})"),
        "comparisons measure these too; export the model for inference, or with the numbers as an input",
    );
}

fn standard_operator(op_type: &str, opset: i64, nodes: Vec<String>, findings: &mut Findings) {
    let row = OperatorType::named(op_type);
    let replaced = row.and_then(|row| row.replaced).filter(|(since, _)| opset >= *since).map(|(_, new)| new);
    let (message, hint): (String, &str) = match (row.map(|row| row.since), replaced) {
        (_, Some(new)) => {
            (format!("operator {op_type} does not exist in opset {opset}: {new} stands for it"), OPSET_HINT)
        }
        (Some(since), _) if since > opset => {
            (format!("operator {op_type} needs opset {since}, but the model uses {opset}"), OPSET_HINT)
        }
        (None, _) if opset <= NEWEST_OPSET => {
            (format!("operator {op_type} does not exist in ONNX"), "register a plugin under a domain of its own")
        }
        _ => return,
    };
    findings.add(Severity::Error, Rule::UnknownOperator, nodes, |_, names| format!("{message}: {names}"), hint);
}

const OPSET_HINT: &str = "export the model again with an opset that has its operators";

/// Nodes by domain and operator, those in subgraphs included.
fn collect(nodes: &[NodeProto], used: &mut BTreeMap<(String, String), Vec<String>>) {
    for node in nodes {
        let domain = if node.is_standard() { "" } else { node.domain() };
        used.entry((domain.to_owned(), node.op_type().to_owned())).or_default().push(node.name().to_owned());
        node.subgraphs().for_each(|graph| collect(&graph.node, used));
    }
}
