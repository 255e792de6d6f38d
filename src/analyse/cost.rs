//! What lifting an operator costs: its multiply-accumulates, or its measured time.

use std::{collections::BTreeMap, time::Instant};

use serde::{Deserialize, Serialize};

use super::{
    layerwise::{AnalysisError, Samples, plain, some},
    operators::{Operator, Pair},
};
use crate::{
    backend::{Backend, BuildOptions, ExecutionProvider},
    onnx::{
        Model,
        proto::{
            DimensionProto, DimensionValue, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
        },
    },
    stats::median,
    tensor::{Tensor, TensorMap},
};

/// Calls of one operator of which the median is taken, behind one that warms up.
const CALLS: usize = 9;

/// What lifting a candidate costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cost {
    /// Each node costs the same.
    #[default]
    Nodes,
    /// Multiply-accumulates of one sample.
    Macs,
    /// Measured time of the float operator for one sample.
    Time,
}

/// Multiply-accumulates of each operator for one sample, by node; the elements of its result where it has no weights.
///
/// # Errors
/// The float model cannot be built or run, or the samples (one is enough) cannot be read.
pub fn macs(
    backend: &dyn Backend,
    pair: &Pair<'_>,
    samples: Samples<'_>,
) -> Result<BTreeMap<String, f64>, AnalysisError> {
    let result = |index: usize| pair.float.node(pair.operators[index].float).output.first();
    let extra_outputs = (0..pair.operators.len()).filter_map(|index| result(index).cloned()).collect();
    let mut runner = backend.build(pair.model, &BuildOptions { extra_outputs, ..plain(0, ExecutionProvider::Cpu) })?;
    let mut sizes = BTreeMap::new();
    some(samples.each(&mut *runner, |part, outputs| {
        outputs.on_host(|outputs| {
            for (name, view) in outputs {
                // What does not begin with the samples holds those of the whole batch.
                let rows = view.shape.first().filter(|&&extent| extent == part.ids.len());
                let rows = rows.copied().unwrap_or(part.ids.len() + part.copies - 1);
                sizes.insert((*name).to_owned(), view.values.len() as f64 / rows as f64);
            }
            Ok::<_, AnalysisError>(())
        })
    })?)?;
    let cost = |index: usize| {
        let operator = &pair.operators[index];
        let node = pair.float.node(operator.float);
        let &elements = sizes.get(result(index)?)?;
        let weight = node.input.get(1).and_then(|name| pair.float.initializer(name));
        let extent = |axis: usize| weight.and_then(|w| w.dims.get(axis)).map_or(1.0, |&extent| extent.max(1) as f64);
        let weights = weight.map_or(1.0, |w| w.dims.iter().map(|&extent| extent.max(1) as f64).product());
        // Every element of the result takes the weights of its channel.
        let rank = weight.map_or(0, |weight| weight.dims.len());
        let each = match node.channel_axis(1, rank) {
            // A batch of matrices: each has weights of its own.
            Some(_) if rank > 2 && node.op_type() == "MatMul" => extent(rank - 2),
            Some(axis) => weights / extent(axis),
            None => 1.0,
        };
        Some((operator.node.clone(), (elements * each).max(1.0)))
    };
    Ok((0..pair.operators.len()).filter_map(cost).collect())
}

/// Median milliseconds of each operator in float with what is fused with it, for one sample, by node: each alone, on
/// the activations of that sample. A proxy: what the higher precision costs on the device is not known here.
///
/// # Errors
/// As [`macs`].
pub fn times(
    backend: &dyn Backend,
    pair: &Pair<'_>,
    samples: Samples<'_>,
    threads: usize,
) -> Result<BTreeMap<String, f64>, AnalysisError> {
    let mut activations = TensorMap::new();
    let extra_outputs = pair.operators.iter().flat_map(|operator| varying(pair, operator)).collect();
    let mut runner =
        backend.build(pair.model, &BuildOptions { extra_outputs, ..plain(threads, ExecutionProvider::Cpu) })?;
    some(samples.each(&mut *runner, |part, outputs| {
        activations = outputs.to_host()?;
        activations.extend(part.inputs.clone());
        Ok::<_, AnalysisError>(())
    })?)?;
    drop(runner);
    let mut times = BTreeMap::new();
    for operator in &pair.operators {
        let inputs: TensorMap = (varying(pair, operator).into_iter())
            .filter_map(|tensor| activations.get(&tensor).map(|values| (tensor, values.clone())))
            .collect();
        let mut runner = backend.build(&alone(pair, operator, &inputs), &plain(threads, ExecutionProvider::Cpu))?;
        let mut milliseconds = Vec::with_capacity(CALLS);
        for call in 0..=CALLS {
            let started = Instant::now();
            runner.visit(&inputs, &mut |_, _| Ok(()))?;
            if call > 0 {
                milliseconds.push(1e3 * started.elapsed().as_secs_f64());
            }
        }
        times.insert(operator.node.clone(), median(&milliseconds).unwrap_or(0.0).max(f64::MIN_POSITIVE));
    }
    Ok(times)
}

/// Tensors that depend on the model's inputs and that the operator or what is fused with it reads.
fn varying(pair: &Pair<'_>, operator: &Operator) -> Vec<String> {
    let nodes: Vec<_> = std::iter::once(operator.float).chain(operator.tail.iter().copied()).collect();
    let made: Vec<&String> = nodes.iter().flat_map(|&id| &pair.float.node(id).output).collect();
    let read = nodes.iter().flat_map(|&id| &pair.float.node(id).input);
    read.filter(|tensor| !tensor.is_empty() && !pair.is_constant(tensor) && !made.contains(tensor)).cloned().collect()
}

/// The model of one operator with what is fused with it; `inputs` become the model's.
fn alone(pair: &Pair<'_>, operator: &Operator, inputs: &TensorMap) -> Model {
    let mut model = pair.model.clone();
    let graph = model.graph_mut();
    graph.node.retain(|node| !node.output.iter().any(|output| inputs.contains_key(output)));
    graph.input = inputs.iter().map(|(name, tensor)| info(name, tensor)).collect();
    graph.output = vec![ValueInfoProto { name: Some(operator.tensor.clone()), ..ValueInfoProto::default() }];
    graph.value_info.clear();
    super::twins::prune(graph);
    model
}

fn info(name: &str, tensor: &Tensor) -> ValueInfoProto {
    let dim = |&extent: &usize| DimensionProto {
        value: Some(DimensionValue::DimValue(extent as i64)),
        ..DimensionProto::default()
    };
    let shape = TensorShapeProto { dim: tensor.shape().iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(tensor.element_type().onnx()), shape: Some(shape) };
    let r#type = Some(TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}
