//! What a calibration table's recovery did to each node, in words.

use std::collections::BTreeMap;

use super::Placement;
use crate::{calibrate::CalibrationTable, onnx::proto::GraphProto};

/// By the name of a node, what `table` does to it beyond ranges: other centres of its inputs, codes of its weights, its bias,
/// or that it stays in the high precision.
pub fn explained(graph: &GraphProto, placement: &Placement, table: &CalibrationTable) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let label = |index: usize| graph.node[index].label(index);
    if let Some(recovered) = &table.recovered {
        for lifted in &recovered.lifted {
            let [noise, macs] = [lifted.noise, lifted.macs].map(|share| 100.0 * share);
            let what = format!("stays in the high precision: {noise:.1} % of the noise, {macs:.2} % of the work");
            found.entry(lifted.node.clone()).or_default().push(what);
        }
        let stays = |node: &String| recovered.lifted.iter().any(|lifted| lifted.node == *node);
        for edge in &placement.activations {
            let node = label(edge.node);
            if let Some(equalized) = recovered.equalized.get(&edge.tensor).filter(|_| !stays(&node)) {
                let most = equalized.factors().into_iter().fold(1.0, f32::max);
                let what = format!("channels of input `{}` multiplied by 1 to {most}", edge.tensor);
                found.entry(node.clone()).or_default().push(what);
            }
            if let Some(shift) = recovered.shifts.get(&edge.tensor).filter(|_| !stays(&node)) {
                let what = format!("input `{}` around {:.4}", edge.tensor, shift.offset);
                found.entry(node).or_default().push(what);
            }
        }
        for edge in placement.weights.iter().filter(|edge| recovered.rounding.contains_key(&edge.tensor)) {
            found.entry(label(edge.node)).or_default().push("weights rounded anew".to_owned());
        }
    }
    for node in table.bias_corrections.keys() {
        found.entry(node.clone()).or_default().push("bias corrected".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::{Lifted, Recovered, Rounding, Shift},
        onnx::proto::NodeProto,
        quantize::{
            ActivationEdge, WeightEdge,
            testing::{TestModel, table},
        },
    };

    #[test]
    fn every_node_tells_what_was_done_to_it() {
        let model = TestModel::new(17)
            .node(NodeProto::new("Conv", "first", &["x", "w"], &["a"]))
            .node(NodeProto::new("Conv", "second", &["a", "v"], &["y"]))
            .build();
        let activation = |tensor: &str, node| ActivationEdge { tensor: tensor.to_owned(), node, input: 0 };
        let placement = Placement {
            activations: vec![activation("x", 0), activation("a", 1)],
            weights: vec![WeightEdge { tensor: "w".to_owned(), node: 0, input: 1, axis: Some(0) }],
            ..Placement::default()
        };
        let shift = Shift { offset: 2.5, amax: 2.5 };
        let recovered = Recovered {
            shifts: [("x".to_owned(), shift), ("a".to_owned(), shift)].into(),
            rounding: [("w".to_owned(), Rounding::new(&[1]))].into(),
            lifted: vec![Lifted { node: "second".to_owned(), noise: 0.25, macs: 0.004 }],
            ..Recovered::default()
        };
        let mut table = table(&[("x", 1.0), ("a", 1.0)]);
        table.recovered = Some(recovered);
        table.bias_corrections = [("first".to_owned(), vec![0.5])].into();
        let found = explained(model.graph(), &placement, &table);
        assert_eq!(found["first"], ["input `x` around 2.5000", "weights rounded anew", "bias corrected"]);
        assert_eq!(found["second"], ["stays in the high precision: 25.0 % of the noise, 0.40 % of the work"]);
    }
}
