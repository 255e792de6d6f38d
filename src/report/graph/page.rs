//! The JSON that a page carries of a graph, and the page of one graph or two.

use std::collections::BTreeMap;

use askama::Template;
use serde_json::{Value, json};

use super::{
    DIFFERENCES, Known, ONLY_HERE, Picture,
    blocks::{Part, tree},
    differences,
    layout::{Place, layouts},
    of_report,
};
use crate::{
    quantize::{GraphNode, ModelGraph},
    report::{Report, html::nonce},
};

/// Texts by their places in a list.
#[derive(Default)]
struct Texts(Vec<String>);

impl Texts {
    fn place(&mut self, text: String) -> usize {
        self.0.iter().position(|known| *known == text).unwrap_or_else(|| {
            self.0.push(text);
            self.0.len() - 1
        })
    }
}

/// Every node as `[name, operator, precision, rule, own, accumulated, difference]` without the nulls at its end; the layers of
/// every machine as `[machine, ms of each layer, layer of each node or -1]`; and every block with its columns. Operators,
/// precisions, rules and differences are places in lists, so that each is said once. Nodes are even numbers, blocks odd ones,
/// passages of edges negative.
pub(super) fn data(graph: &ModelGraph, known: &Known<'_>) -> String {
    let (mut operators, mut precisions, mut rules, mut differences) =
        (Texts::default(), Texts::default(), Texts::default(), Texts::default());
    if !known.difference.is_empty() {
        // In this order, so that a colour means the same in two pictures.
        for text in DIFFERENCES {
            differences.place(text.to_owned());
        }
    }
    let rounded = |value: f64| json!((value * 100.0).round() / 100.0);
    let mut nodes = Vec::new();
    for node in &graph.nodes {
        let name = node.name.as_str();
        let precision = node.precision_in_words().map(|words| precisions.place(words));
        let mut values = vec![
            json!(name),
            json!(operators.place(node.op_type.clone())),
            json!(precision),
            json!(node.rule.map(|rule| rules.place(rule.describe().to_owned()))),
            known.own.get(name).map_or(Value::Null, |&db| rounded(db)),
            known.accumulated.get(name).map_or(Value::Null, |&db| rounded(db)),
            json!(known.difference.get(name).map(|text| differences.place((*text).to_owned()))),
        ];
        while values.last().is_some_and(Value::is_null) {
            values.pop();
        }
        nodes.push(Value::Array(values));
    }
    let tree = tree(graph);
    let id = |part: Part| match part {
        Part::Node(node) => 2 * node as i64,
        Part::Block(block) => 2 * block as i64 + 1,
    };
    let place = |place: &Place| match *place {
        Place::Part(part) => id(part),
        Place::Passage(edge) => -1 - edge as i64,
    };
    let block = |(block, layout): (&super::blocks::Block, super::layout::Layout)| {
        let columns: Vec<Vec<i64>> = layout.columns.iter().map(|column| column.iter().map(place).collect()).collect();
        let edges: Vec<[i64; 2]> = layout.edges.iter().map(|&(from, to)| [id(from), id(to)]).collect();
        let ids = |parts: &std::collections::BTreeSet<Part>| parts.iter().map(|&part| id(part)).collect::<Vec<_>>();
        json!({ "n": block.name, "u": block.parent, "c": columns, "e": edges, "i": ids(&layout.enter), "o": ids(&layout.leave) })
    };
    let times: Vec<Value> = known.times.iter().map(|(machine, nodes)| timed(graph, machine, nodes)).collect();
    let layouts = layouts(graph, &tree);
    let blocks: Vec<Value> = tree.blocks.iter().zip(layouts).map(block).collect();
    let data = json!({ "n": nodes, "t": operators.0, "p": precisions.0, "r": rules.0, "d": differences.0, "b": blocks,
        "m": times });
    // Within a script element, markup would end it.
    data.to_string().replace('<', "\\u003c")
}

/// The layers of one machine. A picture needs no more than four digits of a time.
fn timed(graph: &ModelGraph, machine: &str, nodes: &BTreeMap<&str, (f64, &str)>) -> Value {
    let (mut places, mut milliseconds) = (BTreeMap::new(), Vec::new());
    let layer_of = |node: &GraphNode| {
        let Some(&(ms, layer)) = nodes.get(node.name.as_str()) else { return -1 };
        let next = milliseconds.len() as i64;
        let place = *places.entry(layer).or_insert(next);
        if place == next {
            let unit = 10f64.powf(ms.max(1e-6).log10().floor() - 3.0);
            milliseconds.push(((ms / unit).round() * unit * 1e9).round() / 1e9);
        }
        place
    };
    let layers: Vec<i64> = graph.nodes.iter().map(layer_of).collect();
    json!([machine, milliseconds, layers])
}

#[derive(Template)]
#[template(path = "graph.html")]
struct Page<'a> {
    nonce: String,
    name: &'a str,
    against: Option<&'a str>,
    pictures: Vec<Picture>,
    summary: String,
}

/// A model to draw.
#[derive(Clone, Copy)]
pub struct Drawn<'a> {
    /// What to call it.
    pub name: &'a str,
    /// Its graph.
    pub graph: &'a ModelGraph,
    /// The run that made it, which knows errors, rules and times of its nodes.
    pub report: Option<&'a Report>,
    /// Times of its engine's layers, by the file that tells them.
    pub profile: Option<(&'a str, &'a NodeTimes)>,
}

/// For every node the time of the engine's layer that holds it, in milliseconds, and the layer.
pub type NodeTimes = BTreeMap<String, (f64, String)>;

/// A page of a model's graph; of two models, both beside each other with what differs.
///
/// # Errors
/// The template cannot be rendered.
pub fn graph_html(model: Drawn<'_>, against: Option<Drawn<'_>>) -> Result<String, askama::Error> {
    let Drawn { name, graph, .. } = model;
    let picture = |model: Drawn<'_>, other: Option<&ModelGraph>| {
        let mut known = model.report.map(of_report).unwrap_or_default();
        if let Some((file, times)) = model.profile {
            let times = times.iter().map(|(node, (ms, layer))| (&**node, (*ms, &**layer)));
            known.times.insert(file, times.collect());
        }
        known.difference = other.map(|other| differences(model.graph, other)).unwrap_or_default();
        let mut graph = model.graph.clone();
        let decided = model.report.and_then(|report| report.graph.as_ref()).into_iter().flat_map(|graph| &graph.nodes);
        let decided: BTreeMap<&str, &GraphNode> = decided.map(|node| (node.name.as_str(), node)).collect();
        for node in &mut graph.nodes {
            if let Some(made) = decided.get(node.name.as_str()) {
                (node.precision, node.rule) = (made.precision.or(node.precision), made.rule);
            }
        }
        Picture::new(model.name, &graph, &known)
    };
    let other = against.map(|other| other.graph);
    let second = against.and_then(|other| picture(other, Some(graph)));
    let pictures: Vec<Picture> = picture(model, other).into_iter().chain(second).collect();
    let count = |graph: &ModelGraph| format!("{} nodes", graph.nodes.len());
    let summary = match other {
        None => count(graph),
        Some(other) => {
            let (here, there) = (differences(graph, other), differences(other, graph));
            let of = |all: &BTreeMap<&str, &str>, what: &str| all.values().filter(|own| **own == what).count();
            let kinds = DIFFERENCES.iter().filter(|kind| **kind != ONLY_HERE).map(|kind| (of(&here, kind), *kind));
            let only = [(of(&here, ONLY_HERE), "only in the first"), (of(&there, ONLY_HERE), "only in the second")];
            let counts =
                kinds.chain(only).filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}"));
            format!("{} and {}: {}", count(graph), count(other), counts.collect::<Vec<_>>().join(", "))
        }
    };
    let nonce =
        nonce(&format!("{name:?}{summary}{:?}", pictures.iter().map(|picture| &picture.data).collect::<Vec<_>>()));
    Page { nonce, name, against: against.map(|other| other.name), pictures, summary }.render()
}
