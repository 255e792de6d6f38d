//! What a configuration wants quantized, and what of it the model does not have.

use std::collections::BTreeSet;

use super::{PipelineError, model::Subject};
use crate::{
    config::RunConfig,
    onnx::{
        Folded,
        proto::{GraphProto, NodeProto},
    },
    quantize::{
        Assignment, Placement, Precision, PrecisionPlan, QuantizeOptions, SchemeOptions, Selector, is_own, whole_name,
    },
};

/// The flag for operator types that stay as they are.
const EXCLUDED_TYPES: &str = "--op-types-to-exclude";

/// Folded nodes that a sentence names.
const FOLDED_SHOWN: usize = 8;

/// The rules of a configuration for a quantized precision.
pub fn scheme(config: &RunConfig, precision: Precision) -> Result<SchemeOptions, PipelineError> {
    let plan = match &config.plan {
        Some(path) => PrecisionPlan::read(path)?,
        None => PrecisionPlan::default(),
    };
    Ok(SchemeOptions {
        precision,
        exclude: config.nodes_to_exclude.clone(),
        include: config.nodes_to_include.clone(),
        exclude_op_types: config.op_types_to_exclude.iter().cloned().collect(),
        op_types: config.op_types.iter().cloned().collect(),
        per_tensor_weights: config.per_tensor_weights,
        plan,
        ..SchemeOptions::default()
    })
}

/// How a model of a precision is made; the high precision applies behind Q/DQ.
pub fn quantize_options(config: &RunConfig, precision: Precision) -> Result<QuantizeOptions, PipelineError> {
    let high_precision = if precision.is_quantized() { config.high_precision } else { Precision::Fp32 };
    let mut options =
        QuantizeOptions { scheme: scheme(config, precision)?, high_precision, ..QuantizeOptions::default() };
    if !precision.is_quantized() {
        // Exclusions of a float conversion are nodes that stay in FP32.
        options.keep_fp32.clone_from(&config.nodes_to_exclude);
        options.keep_fp32_op_types = config.op_types_to_exclude.iter().cloned().collect();
    }
    Ok(options)
}

/// Patterns and operator types of a configuration that match nothing in the model, and a plan that means nothing, in
/// sentences.
///
/// # Errors
/// The model has no node of an operator type.
pub fn unmatched(config: &RunConfig, subject: &Subject, placement: &Placement) -> Result<Vec<String>, PipelineError> {
    require_op_types(config, subject)?;
    require_planned(config, subject)?;
    let stands_for = &subject.folded.stands_for;
    let PrecisionPlan { assignments, random_data, default, .. } = scheme(config, Precision::Int8)?.plan;
    let of_random_data =
        random_data.then(|| "the plan was searched on random numbers: what it lifts is by chance".to_owned());
    let is_nowhere = |asked: &Precision| {
        asked.is_quantized() && placement.decisions.iter().all(|decision| decision.precision != *asked)
    };
    let default =
        default.filter(is_nowhere).map(|asked| format!("the plan asks for {asked}, in which no node is here"));
    let unheard: Vec<String> = assignments.iter().filter_map(|assignment| unheard(assignment, placement)).collect();
    let planned = assignments.into_iter().filter_map(|assignment| match assignment.nodes {
        Selector::Pattern(pattern) => Some(pattern),
        Selector::Node(_) => None,
    });
    let known: Vec<String> = names(subject).collect();
    let matches_nothing =
        |pattern: &String| whole_name(pattern).is_ok_and(|regex| !known.iter().any(|name| regex.is_match(name)));
    let unmatched: Vec<String> =
        placement.unmatched_patterns.iter().cloned().chain(planned.filter(matches_nothing)).collect();
    let patterns = unmatched.iter().map(|pattern| {
        let matches = |name: &&String| whole_name(pattern).is_ok_and(|regex| regex.is_match(name));
        if let Some(name) = stands_for.keys().find(matches) {
            return format!("the pattern `{pattern}` matches only nodes that copy values, are constant or become part of others, as `{name}`, and are folded away");
        }
        let is_named = |node: &NodeProto| whole_name(pattern).is_ok_and(|regex| regex.is_match(node.name()));
        inside(subject.folded.graph(), &format!("that match the pattern `{pattern}`"), &is_named)
            .unwrap_or_else(|| format!("the pattern `{pattern}` matches no node"))
    });
    let patterns = patterns.chain(unheard).chain(default).chain(folded_into(config, subject)).chain(of_random_data);
    let types = config.op_types.iter().chain(&config.op_types_to_exclude);
    let types = types.filter_map(|op_type| match matched(subject, op_type) {
        Matched::Nodes => folded_type(subject, op_type),
        Matched::Nothing => inside_by_type(subject.folded.graph(), op_type),
        Matched::Copies(name) => Some(format!(
            "the operator type `{op_type}` has only nodes that copy values, are constant or become part of others, as `{name}`, and are folded away"
        )),
    });
    Ok(patterns.chain(types).collect())
}

/// Says that a plan asks for 8 bits at a node that has others, or none.
fn unheard(assignment: &Assignment, placement: &Placement) -> Option<String> {
    let Selector::Node(name) = &assignment.nodes else { return None };
    let asked = Some(assignment.precision).filter(|precision| precision.is_quantized())?;
    let decision = placement.decisions.iter().find(|decision| decision.node == *name)?;
    (decision.precision != asked)
        .then(|| format!("the plan asks for {asked} at the node `{name}`, which is in {} here", decision.precision))
}

/// What an operator type is of a model's nodes.
enum Matched<'s> {
    /// Nodes that are there, or that others stand for.
    Nodes,
    /// Only nodes for which nothing stands, as this one.
    Copies(&'s str),
    Nothing,
}

fn matched<'s>(subject: &'s Subject, op_type: &str) -> Matched<'s> {
    let mut folded = subject.folded.stands_for.iter().filter(|(_, folded)| folded.op_type == op_type).peekable();
    let first = folded.peek().map(|(name, _)| name.as_str());
    let is_there = subject.folded.graph().node.iter().any(|node| node.op_type() == op_type);
    match first {
        _ if is_there || folded.any(|(_, folded)| !folded.into.is_empty()) => Matched::Nodes,
        Some(name) => Matched::Copies(name),
        None => Matched::Nothing,
    }
}

fn inside_by_type(graph: &GraphProto, op_type: &str) -> Option<String> {
    inside(graph, &format!("of the operator type `{op_type}`"), &|node| node.op_type() == op_type)
}

/// Says that nodes lie in a branch or the body of a loop only, which no rule reaches.
fn inside(graph: &GraphProto, which: &str, is_one: &dyn Fn(&NodeProto) -> bool) -> Option<String> {
    fn holds(node: &NodeProto, is_one: &dyn Fn(&NodeProto) -> bool) -> bool {
        node.subgraphs().flat_map(|graph| &graph.node).any(|node| is_one(node) || holds(node, is_one))
    }
    let (index, node) = graph.node.iter().enumerate().find(|(_, node)| holds(node, is_one))?;
    Some(format!(
        "nodes {which} lie only inside of the {} node `{}`, which stays as it is",
        node.op_type(),
        node.label(index)
    ))
}

/// Says that a rule by operator acts on what nodes are folded into in 16 bits alone.
fn folded_type(subject: &Subject, op_type: &str) -> Option<String> {
    let mut folded = subject.folded.stands_for.iter().filter(|(_, folded)| folded.op_type == op_type);
    let (name, into) = folded.find_map(|(name, folded)| Some((name, folded.into.first()?)))?;
    (!is_own(op_type)).then(|| {
        format!(
            "nodes of the operator type `{op_type}` are folded into others, as `{name}` into `{into}`: in 16 bits the rule acts on \
             those, in 8 bits they go by their own operator"
        )
    })
}

/// Nodes that patterns or functions name and that others stand for, in a sentence.
fn folded_into(config: &RunConfig, subject: &Subject) -> Option<String> {
    let patterns = config.nodes_to_exclude.iter().chain(&config.nodes_to_include);
    let patterns: Vec<_> = patterns.filter_map(|pattern| whole_name(pattern).ok()).collect();
    let types: Vec<&String> = config.op_types.iter().chain(&config.op_types_to_exclude).collect();
    let is_of = |folded: &Folded| types.contains(&&folded.op_type) && is_own(&folded.op_type);
    let named = subject.folded.stands_for.iter().filter(|(name, folded)| {
        !folded.into.is_empty() && (is_of(folded) || patterns.iter().any(|pattern| pattern.is_match(name)))
    });
    let named: Vec<String> = named
        .map(|(name, folded)| {
            format!("`{name}` (now `{}`)", folded.into.iter().map(String::as_str).collect::<Vec<_>>().join("`, `"))
        })
        .collect();
    let rest = named.len().saturating_sub(FOLDED_SHOWN);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let shown = named[..named.len() - rest].join(", ");
    (!named.is_empty()).then(|| format!("rules act on what these nodes are folded into: {shown}{more}"))
}

/// Refuses a plan that names nodes which the model does not have: it is another model's.
pub(super) fn require_planned(config: &RunConfig, subject: &Subject) -> Result<(), PipelineError> {
    let Some(path) = &config.plan else { return Ok(()) };
    let plan = PrecisionPlan::read(path)?;
    let unknown = plan.assignments.iter().find_map(|assignment| match &assignment.nodes {
        Selector::Node(name) if !names(subject).any(|known| known == *name) => Some(name),
        _ => None,
    });
    let Some(name) = unknown else { return Ok(()) };
    let plan = path.display();
    bail!("{plan} names the node `{name}`, which the model does not have; `calib quantize --explain` lists its nodes")
}

/// The names by which rules can name nodes.
fn names(subject: &Subject) -> impl Iterator<Item = String> {
    let nodes = subject.folded.graph().node.iter().enumerate().map(|(index, node)| node.label(index));
    nodes.chain(subject.folded.stands_for.keys().cloned())
}

/// Whether the model has nodes of an operator type.
fn holds(subject: &Subject, op_type: &str) -> bool {
    [&subject.folded, &subject.float]
        .iter()
        .any(|model| model.graph().node.iter().any(|node| node.op_type() == op_type))
}

/// Refuses operator types of which the model has no node.
pub(super) fn require_op_types(config: &RunConfig, subject: &Subject) -> Result<(), PipelineError> {
    for (flag, types) in [("--op-types", &config.op_types), (EXCLUDED_TYPES, &config.op_types_to_exclude)] {
        for missing in types.iter().filter(|op_type| !holds(subject, op_type)) {
            match inside_by_type(subject.folded.graph(), missing) {
                // It stays as it is without being excluded: a warning says so.
                Some(_) if flag == EXCLUDED_TYPES => {}
                Some(inside) => bail!("{flag} {missing}: {inside}"),
                None => {
                    let known: BTreeSet<&str> = subject.float.graph().node.iter().map(NodeProto::op_type).collect();
                    let known = Vec::from_iter(known).join(", ");
                    bail!("{flag} {missing}: the model has no node of this operator type; it has {known}")
                }
            }
        }
    }
    Ok(())
}

/// Refuses a placement that quantizes nothing.
pub(super) fn require_operators(placement: &Placement) -> Result<(), PipelineError> {
    if placement.tensors_to_observe().is_empty() {
        bail!(
            "nothing in this model is to be quantized, so it needs no ranges: `calib quantize` writes it without --table; its --explain \
             lists the rule that decided for every node"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{inside, inside_by_type};
    use crate::onnx::tests::small_model;

    #[test]
    fn what_lies_in_a_branch_is_said_to() {
        let model = small_model();
        let of = |op_type: &str| inside_by_type(model.graph(), op_type);
        let said = of("Add").unwrap();
        assert!(said.starts_with("nodes of the operator type `Add` lie only inside of the If node `"), "{said}");
        assert_eq!((of("HardSwish"), of("If")), (None, None));
        let said = inside(model.graph(), "that match the pattern `.*`", &|_| true).unwrap();
        assert!(said.starts_with("nodes that match the pattern `.*` lie only inside of the If node `"), "{said}");
    }
}
