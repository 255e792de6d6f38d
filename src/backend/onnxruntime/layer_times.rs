//! ONNX Runtime's profile of a session: an array of events, of which those of category `Node` that end in
//! `_kernel_time` are runs of one layer, in microseconds.

use std::collections::HashMap;

use serde::Deserialize;

use crate::backend::LayerTime;

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    #[serde(default)]
    op_name: String,
}

/// The layers in the order in which they ran first, as `name [operator]`.
pub(super) fn parse(profile: &[u8]) -> serde_json::Result<Vec<LayerTime>> {
    let events: Vec<Event> = serde_json::from_slice(profile)?;
    let mut layers: Vec<(String, Vec<f64>)> = Vec::new();
    let mut places = HashMap::new();
    for event in events.into_iter().filter(|event| event.cat == "Node") {
        let Some(name) = event.name.strip_suffix("_kernel_time") else { continue };
        let layer = format!("{name} [{}]", event.args.op_name);
        let place = *places.entry(layer.clone()).or_insert_with(|| {
            layers.push((layer, Vec::new()));
            layers.len() - 1
        });
        layers[place].1.push(event.dur / 1e3);
    }
    Ok(layers.into_iter().filter_map(|(layer, ms)| LayerTime::new(layer, &ms)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_layer_are_gathered_and_everything_else_passed_over() {
        let profile = br#"[
            {"cat":"Session","name":"model_run","dur":900,"ts":1,"ph":"X","pid":1,"tid":1,"args":{}},
            {"cat":"Node","name":"b_kernel_time","dur":250,"ts":2,"args":{"op_name":"Conv","provider":"CPUExecutionProvider"}},
            {"cat":"Node","name":"b_fence_before","dur":7,"ts":2,"args":{"op_name":"Conv"}},
            {"cat":"Node","name":"a_kernel_time","dur":30,"ts":3,"args":{"op_name":"Relu"}},
            {"cat":"Node","name":"b_kernel_time","dur":750,"ts":4,"args":{"op_name":"Conv"}}]"#;
        let layer = |layer: &str, ms: &[f64]| LayerTime::new(layer.to_owned(), ms).unwrap();
        assert_eq!(parse(profile).unwrap(), [layer("b [Conv]", &[0.25, 0.75]), layer("a [Relu]", &[0.03])]);
        assert!(parse(b"[{").is_err());
    }
}
