//! Overlays for Google's Model Explorer: its node data, keyed by the names of nodes, which its ONNX adapter takes as they are.
//!
//! The viewer reads one set of values a file, `{"results": {node: {"value": v}}, ...}`, and takes numbers or texts.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Report, graph::of_report};

/// Colours of our pages: bad, in between, good.
const COLOURS: [&str; 3] = ["#ff8f85", "#e6b35c", "#82b1f0"];

/// Names of overlays in names of files; a number follows those of further machines' times.
pub const OVERLAYS: [&str; 5] = ["error", "accumulated", "precision", "rule", "time"];

/// What can be laid over the model, by its name in a file's name; only what the report knows.
pub fn model_explorer(report: &Report) -> Vec<(String, Value)> {
    let known = of_report(report);
    let mark = if report.rests_on_random_data() { ", from random data" } else { "" };
    let named = |name: &str| format!("{name}{mark}");
    let numbers = |values: &BTreeMap<&str, f64>| -> serde_json::Map<String, Value> {
        values.iter().map(|(node, value)| ((*node).to_owned(), json!({ "value": value }))).collect()
    };
    let errors = |values: &BTreeMap<&str, f64>, name: &str| {
        // A threshold's colour is for values up to it.
        let thresholds = [(10.0, COLOURS[0]), (20.0, COLOURS[1]), (1e9, COLOURS[2])];
        let thresholds = thresholds.map(|(value, colour)| json!({ "value": value, "bgColor": colour }));
        json!({ "name": named(name), "results": numbers(values), "thresholds": thresholds })
    };
    let gradient = [(0, "#ffffff"), (1, COLOURS[0])].map(|(stop, colour)| json!({ "stop": stop, "bgColor": colour }));
    let times = known.times.iter().zip(1..).map(|((machine, nodes), place)| {
        let times = nodes.iter().map(|(&node, &(ms, _))| (node, ms)).collect();
        let measured = format!("time of the engine's layer on {machine} (ms)");
        // Names of machines are not names of files.
        let time = OVERLAYS[4];
        let name = if place == 1 { time.to_owned() } else { format!("{time}{place}") };
        (name, json!({ "name": named(&measured), "results": numbers(&times), "gradient": gradient }))
    });
    let words = |of: &dyn Fn(&crate::quantize::GraphNode) -> Option<String>, name: &str| {
        let nodes = report.graph.iter().flat_map(|graph| &graph.nodes);
        let results: serde_json::Map<String, Value> =
            nodes.filter_map(|node| Some((node.name.clone(), json!({ "value": of(node)? })))).collect();
        json!({ "name": named(name), "results": results })
    };
    let precision = words(&crate::quantize::GraphNode::precision_in_words, "precision");
    let rule = words(&|node| Some(node.rule?.describe().to_owned()), "rule that decided");
    let all = [
        errors(&known.own, "SQNR by itself (dB)"),
        errors(&known.accumulated, "accumulated SQNR (dB)"),
        precision,
        rule,
    ];
    let all = OVERLAYS.iter().zip(all).map(|(&name, data)| (name.to_owned(), data));
    all.chain(times)
        .filter(|(_, data)| data["results"].as_object().is_some_and(|results| !results.is_empty()))
        .collect()
}
