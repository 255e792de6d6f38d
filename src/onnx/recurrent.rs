//! What recurrent layers tell of a graph's inputs and outputs.

use std::collections::HashMap;

use super::{
    operators::Fact,
    proto::{GraphProto, NodeProto, ValueInfoProto},
};

impl GraphProto {
    /// Whether a recurrent layer reads `input` as it is, in ONNX's default layout: time, batch, features.
    pub fn begins_with_time(&self, input: &str) -> bool {
        let by_time = |node: &&NodeProto| node.is(Fact::Recurrent) && node.attr_i("layout").unwrap_or(0) == 0;
        self.node.iter().filter(by_time).any(|node| node.input.first().is_some_and(|first| first == input))
    }

    /// The outputs that are states of recurrent layers, as they are or moved: no scores of classes, whatever their shape.
    pub fn recurrent_states(&self) -> Vec<&str> {
        let producers: HashMap<&str, &NodeProto> =
            self.node.iter().flat_map(|node| node.output.iter().map(move |output| (output.as_str(), node))).collect();
        let is_state = |output: &&str| {
            let mut node = producers.get(output);
            // No graph is deeper than it has nodes.
            for _ in 0..self.node.len() {
                match node {
                    Some(found) if found.is(Fact::Copies) || found.op_type() == "Cast" => {
                        node = found.input.first().and_then(|input| producers.get(input.as_str()));
                    }
                    _ => break,
                }
            }
            node.is_some_and(|node| node.is(Fact::Recurrent))
        };
        self.output.iter().map(ValueInfoProto::name).filter(is_state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::tests::{float_info, small_model};

    #[test]
    fn states_are_what_recurrent_layers_give_wherever_it_was_moved() {
        let mut model = small_model();
        let graph = model.graph_mut();
        graph.node = vec![
            NodeProto::new("LSTM", "layer", &["x", "w", "r"], &["y", "h", "c"]),
            NodeProto::new("Transpose", "moved", &["h"], &["hn"]),
            NodeProto::new("Squeeze", "row", &["c", "axes"], &["last"]),
            NodeProto::new("MatMul", "head", &["last", "weight"], &["scores"]),
        ];
        graph.output = ["scores", "hn", "c"].map(|name| float_info(name, &[])).to_vec();
        assert_eq!(graph.recurrent_states(), ["hn", "c"]);
    }
}
