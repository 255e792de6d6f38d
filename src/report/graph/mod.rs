//! A model's graph as a picture: blocks that open, coloured by what was found of their nodes.
//!
//! The page carries the graph as compact JSON with the columns of every block; `assets/graph.js` makes SVG of what is open.

mod blocks;
mod layout;
mod page;

use std::collections::{BTreeMap, BTreeSet};

use super::{EngineLayerTime, Report};
use crate::{
    backend::tensorrt::EngineLayer,
    bisect::findings::Findings,
    quantize::{Contents, GraphNode, ModelGraph, Rule},
};

pub use page::{Drawn, NodeTimes, graph_html};

/// The script that draws.
pub(super) const SCRIPT: &str = include_str!("../assets/graph.js");

/// What is known of nodes, by name.
#[derive(Default)]
pub(super) struct Known<'a> {
    /// SQNR with only this node quantized, in decibels.
    pub own: BTreeMap<&'a str, f64>,
    /// SQNR with the whole graph quantized, in decibels.
    pub accumulated: BTreeMap<&'a str, f64>,
    /// By what measured it: time of the engine's layer in milliseconds, and the layer.
    pub times: BTreeMap<&'a str, BTreeMap<&'a str, (f64, &'a str)>>,
    /// Difference from another graph.
    pub difference: BTreeMap<&'a str, &'static str>,
}

/// A picture as a page carries it.
pub(super) struct Picture {
    /// What it is of.
    pub label: String,
    /// JSON that is safe within a script element.
    pub data: String,
}

impl Picture {
    /// A picture of a graph; `None` without nodes.
    pub fn new(label: &str, graph: &ModelGraph, known: &Known<'_>) -> Option<Self> {
        if graph.nodes.is_empty() {
            return None;
        }
        Some(Self { label: label.to_owned(), data: page::data(graph, known) })
    }

    /// That of a run.
    pub fn of_report(report: &Report) -> Option<Self> {
        Self::new("the quantized model", report.graph.as_ref()?, &of_report(report))
    }

    /// That of a bisection. What it did not look for, a run of the same precision tells.
    pub fn of_findings(findings: &Findings, run: Option<&Report>) -> Option<Self> {
        let mut known = run.map(of_report).unwrap_or_default();
        let mut own = BTreeMap::new();
        let layers = findings.layers.iter().filter_map(|layer| Some((&*layer.node, layer.layerwise_sqnr_db?)));
        layers.for_each(|(node, db)| lower(&mut own, node, db));
        let mut accumulated: BTreeMap<&str, f64> =
            findings.accumulated_sqnr_db.iter().map(|(n, db)| (&**n, *db)).collect();
        let tensors = findings.tensors.iter().flat_map(|found| &found.tensors);
        let tensors = tensors.filter_map(|tensor| Some((&*tensor.site.node, tensor.difference.sqnr_db?)));
        tensors.for_each(|(node, db)| lower(&mut accumulated, node, db));
        // Errors of two measurements stay apart: all of one kind are of one.
        for (known, found) in [(&mut known.own, own), (&mut known.accumulated, accumulated)] {
            if !found.is_empty() {
                *known = found;
            }
        }
        let alone = findings.float_ms.iter().map(|(node, ms)| (&**node, (*ms, &**node)));
        if !findings.float_ms.is_empty() {
            known.times.insert(ALONE, alone.collect());
        }
        let mut graph = findings.graph.clone()?;
        let plan = findings.plan.as_ref().and_then(|plan| plan.search.plan()).map(|trial| &trial.lifted);
        for node in graph.nodes.iter_mut().filter(|node| plan.is_some_and(|lifted| lifted.contains(&node.name))) {
            node.rule = Some(Rule::Planned);
            node.precision = findings.plan.as_ref().map(|plan| plan.lift);
        }
        Self::new("the model", &graph, &known)
    }
}

/// What operators were timed on where a bisection weighs nodes by their times.
const ALONE: &str = "this processor, in float, each operator alone";

/// What a report knows of the nodes of its graph.
pub(super) fn of_report(report: &Report) -> Known<'_> {
    let mut known = Known::default();
    for layer in &report.layers {
        // A node with several outputs goes by its worst.
        layer.layerwise_sqnr_db.into_iter().for_each(|db| lower(&mut known.own, &layer.node, db));
        layer.graphwise_sqnr_db.into_iter().for_each(|db| lower(&mut known.accumulated, &layer.node, db));
        for time in &layer.times {
            known.times.entry(&time.machine).or_default().insert(&layer.node, (time.ms, &time.engine_layer));
        }
    }
    // Layers of an engine hold nodes that have no row of their own too.
    for there in report.layers_of().map_or(&[][..], |row| &row.measured_elsewhere) {
        let layers = there.engine.iter().flat_map(|engine| &engine.layers);
        let found = times_of_nodes(&there.layer_times, layers);
        if !found.is_empty() {
            known.times.entry(&there.machine.name).or_default().extend(found);
        }
    }
    known
}

/// For every node of the layers of an engine the time of its layer, and the layer.
fn times_of_nodes<'a>(
    profile: &'a [EngineLayerTime],
    layers: impl Iterator<Item = &'a EngineLayer>,
) -> BTreeMap<&'a str, (f64, &'a str)> {
    let times: BTreeMap<&str, f64> = profile.iter().map(|time| (&*time.layer, time.mean_ms)).collect();
    let timed = layers.filter_map(|layer| Some((layer, *times.get(&*layer.name)?)));
    timed.flat_map(|(layer, ms)| layer.nodes.iter().map(move |node| (&**node, (ms, &*layer.name)))).collect()
}

fn lower<'a>(known: &mut BTreeMap<&'a str, f64>, node: &'a str, db: f64) {
    let kept = known.entry(node).or_insert(db);
    *kept = kept.min(db);
}

/// What the other graph has not.
const ONLY_HERE: &str = "only here";

/// How a node can differ from the one of its name in another graph.
const DIFFERENCES: [&str; 7] = [
    "the same",
    "fed by others",
    "another operation",
    ONLY_HERE,
    "another precision",
    "other quantizers",
    "other weights",
];

/// How the nodes of a graph differ from those of the same names in another, by the first that holds. Q/DQ nodes are looked
/// through: what they quantize is what feeds a node.
pub(super) fn differences<'a>(graph: &'a ModelGraph, other: &ModelGraph) -> BTreeMap<&'a str, &'static str> {
    let others: BTreeMap<&str, &GraphNode> = other.nodes.iter().map(|node| (&*node.name, node)).collect();
    let difference = |node: &GraphNode| match others.get(&*node.name) {
        None => DIFFERENCES[3],
        Some(there) if there.op_type != node.op_type => DIFFERENCES[2],
        Some(there) if contents(node, there, |own| own.attributes) => DIFFERENCES[2],
        Some(there) if node.precision.is_some_and(|own| there.precision.is_some_and(|there| own != there)) => {
            DIFFERENCES[4]
        }
        Some(there) if contents(node, there, |own| own.scales) => DIFFERENCES[5],
        Some(there) if contents(node, there, |own| own.weights) => DIFFERENCES[6],
        Some(there) if feeds(graph, node) != feeds(other, there) => DIFFERENCES[1],
        Some(_) => DIFFERENCES[0],
    };
    graph.nodes.iter().map(|node| (&*node.name, difference(node))).collect()
}

/// Whether something that belongs to both nodes is known and differs.
fn contents(node: &GraphNode, there: &GraphNode, of: fn(&Contents) -> u64) -> bool {
    node.contents.zip(there.contents).is_some_and(|(own, there)| of(&own) != of(&there))
}

/// Names of the nodes that feed a node.
fn feeds<'a>(graph: &'a ModelGraph, node: &GraphNode) -> BTreeSet<&'a str> {
    let source = |&from: &usize| {
        // A graph with a cycle must not keep this going.
        let mut at = graph.nodes.get(from)?;
        for _ in 0..graph.nodes.len() {
            if !matches!(at.op_type.as_str(), "QuantizeLinear" | "DequantizeLinear") {
                return Some(at.name.as_str());
            }
            at = graph.nodes.get(*at.from.first()?)?;
        }
        None
    };
    node.from.iter().filter_map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::{blocks::tests::graph, *};
    use crate::quantize::Precision;

    #[test]
    fn quantizing_a_tensor_changes_no_node_that_reads_it() {
        let mut float = graph(&[("a", "Conv", &[]), ("b", "Relu", &[0]), ("c", "Add", &[0, 1])]);
        let quantized = graph(&[
            ("a", "Conv", &[]),
            ("a_Q", "QuantizeLinear", &[0]),
            ("a_DQ", "DequantizeLinear", &[1]),
            ("b", "Relu", &[2]),
            ("c", "Mul", &[2, 3]),
        ]);
        let found = differences(&quantized, &float);
        let of = |name: &str| found[name];
        assert_eq!((of("a"), of("b"), of("c")), ("the same", "the same", DIFFERENCES[2]));
        assert_eq!((of("a_Q"), of("a_DQ")), ("only here", "only here"));
        // What the file tells of a node's inside counts as well.
        let mut lifted = quantized.clone();
        (lifted.nodes[0].precision, float.nodes[0].precision) = (Some(Precision::Int8), Some(Precision::Fp32));
        assert_eq!(differences(&lifted, &float)["a"], "another precision");
        float.nodes[0].precision = Some(Precision::Int8);
        for (weights, scales, difference) in [(1, 1, "the same"), (2, 1, "other weights"), (1, 2, "other quantizers")] {
            lifted.nodes[0].contents = Some(Contents { weights, scales, attributes: 0 });
            float.nodes[0].contents = Some(Contents { weights: 1, scales: 1, attributes: 0 });
            assert_eq!(differences(&lifted, &float)["a"], difference);
        }
        let cut = graph(&[("a", "Conv", &[]), ("b", "Relu", &[]), ("c", "Add", &[0, 1])]);
        assert_eq!(differences(&cut, &float)["b"], "fed by others");
    }
}
