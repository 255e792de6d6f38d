//! What the batch of a model is called.

use std::{cmp::Reverse, collections::HashSet};

use super::proto::{DimensionProto, DimensionValue, GraphProto, TensorProto, TypeValue, ValueInfoProto};

impl ValueInfoProto {
    fn extents(&self) -> &[DimensionProto] {
        match self.r#type.as_ref().and_then(|kind| kind.value.as_ref()) {
            Some(TypeValue::TensorType(tensor)) => tensor.shape.as_ref().map_or(&[], |shape| &shape.dim),
            _ => &[],
        }
    }

    /// The names of the open extents of a tensor, by axis.
    pub fn names_of_extents(&self) -> Vec<Option<&str>> {
        let names = self.extents().iter().map(|extent| match &extent.value {
            Some(DimensionValue::DimParam(name)) if !name.is_empty() => Some(name.as_str()),
            _ => None,
        });
        names.collect()
    }
}

impl GraphProto {
    /// The name of the batch, if it has one: the one behind time, where a recurrent layer tells what that is; of the names
    /// that some input or output begins with the one that most of them have, on whichever axis. States of recurrent layers
    /// begin with the number of layers, sequences often with time.
    pub fn batch_name(&self) -> Option<&str> {
        let sequence = self.input.iter().find(|input| self.begins_with_time(input.name()));
        if let Some(sequence) = sequence {
            return sequence.names_of_extents().get(1).copied().flatten();
        }
        let weights: HashSet<&str> = self.initializer.iter().map(TensorProto::name).collect();
        let inputs = self.input.iter().filter(|input| !weights.contains(input.name()));
        let names: Vec<_> = inputs.chain(&self.output).map(ValueInfoProto::names_of_extents).collect();
        let first = names.iter().filter_map(|names| *names.first()?);
        let first = first.min_by_key(|name| Reverse(names.iter().filter(|names| names.contains(&Some(name))).count()));
        first.or_else(|| self.batch_behind_time(&weights))
    }

    /// The name behind the first axis of all inputs, where that is fixed and not the same in all: time, and the layers of states.
    fn batch_behind_time(&self, weights: &HashSet<&str>) -> Option<&str> {
        let inputs: Vec<_> = self.input.iter().filter(|input| !weights.contains(input.name())).collect();
        let name = inputs.first()?.names_of_extents().get(1).copied()??;
        let firsts = inputs.iter().map(|input| match &input.extents().first()?.value {
            Some(DimensionValue::DimValue(extent)) => Some(*extent),
            _ => None,
        });
        let firsts: HashSet<i64> = firsts.collect::<Option<_>>()?;
        let is_second = |input: &&ValueInfoProto| input.names_of_extents().get(1) == Some(&Some(name));
        (firsts.len() > 1 && inputs.iter().all(is_second)).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use crate::onnx::{
        Model,
        proto::{AttributeProto, DimensionProto, DimensionValue, NodeProto, TypeValue, ValueInfoProto},
        tests::{float_info, small_model},
    };

    fn named(name: &str, extents: &[&str]) -> ValueInfoProto {
        let mut info = float_info(name, &[]);
        let Some(TypeValue::TensorType(tensor)) = &mut info.r#type.as_mut().unwrap().value else { panic!() };
        let value = |extent: &&str| match extent.parse() {
            Ok(number) => DimensionValue::DimValue(number),
            Err(_) => DimensionValue::DimParam((*extent).to_owned()),
        };
        let extents = extents.iter().map(|extent| DimensionProto { value: Some(value(extent)), ..Default::default() });
        tensor.shape.as_mut().unwrap().dim = extents.collect();
        info
    }

    #[test]
    fn most_inputs_and_outputs_have_the_batch() {
        let batch = |inputs: &[&[&str]], outputs: &[&[&str]]| {
            let mut model: Model = small_model();
            let infos = |kind: &str, all: &[&[&str]]| {
                all.iter().enumerate().map(|(index, extents)| named(&format!("{kind}{index}"), extents)).collect()
            };
            model.graph_mut().input = infos("in", inputs);
            model.graph_mut().output = infos("out", outputs);
            model.graph().batch_name().map(str::to_owned)
        };
        assert_eq!(batch(&[&["n", "3", "h", "w"], &["1", "1", "h", "w"]], &[&["n", "10"]]).as_deref(), Some("n"));
        assert_eq!(batch(&[&["t", "n", "64"], &["1", "n", "64"]], &[&["n", "32"]]).as_deref(), Some("n"));
        assert_eq!(batch(&[&["n", "16", "20"], &["2", "n", "64"]], &[&["2", "n", "64"]]).as_deref(), Some("n"));
        assert_eq!(batch(&[&["n", "12"], &[]], &[&["1", "12"]]).as_deref(), Some("n"));
        assert_eq!(batch(&[&["8", "3", "h", "w"]], &[&["8", "10"]]), None);
        // Time and layers are fixed; of two inputs that agree on the first axis, that is the batch.
        assert_eq!(batch(&[&["20", "n", "32"], &["1", "n", "32"]], &[&["1", "n", "32"]]).as_deref(), Some("n"));
        assert_eq!(batch(&[&["1", "length", "32"], &["1", "length", "32"]], &[&["1", "10"]]), None);
        assert_eq!(batch(&[&["20", "n"], &["1", "m"]], &[&["1", "10"]]), None);
    }
    #[test]
    fn a_recurrent_layer_tells_time_from_the_batch() {
        let found = |extents: &[&str], layout: Option<i64>| {
            let mut model: Model = small_model();
            let graph = model.graph_mut();
            graph.input = vec![named("x", extents)];
            graph.output = vec![named("y", extents)];
            let mut layer = NodeProto::new("GRU", "layer", &["x", "w", "r"], &["y"]);
            layer.attribute.extend(layout.map(|layout| AttributeProto::int("layout", layout)));
            graph.node = vec![layer];
            (graph.begins_with_time("x"), graph.batch_name().map(str::to_owned))
        };
        assert_eq!(found(&["t", "n", "8"], None), (true, Some("n".to_owned())));
        assert_eq!(found(&["t", "1", "8"], Some(0)), (true, None));
        assert_eq!(found(&["n", "t", "8"], Some(1)), (false, Some("n".to_owned())));
    }
}
