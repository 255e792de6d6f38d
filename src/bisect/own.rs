//! What every node of an engine adds by itself, whatever came to it: what the engine gave in front of a node goes into the
//! same node of the model that the engine was built from, and what that gives is compared with what the engine gave behind.
//!
//! What a node loses may show less and less behind it, or not at all, or only where it adds up; judged like this it shows
//! where it is made, however much was lost before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::first::{Flow, FlowNode};
use crate::{
    analyse::{
        graphwise::{TensorDivergence, TensorSite},
        layerwise::{AnalysisError, Samples, some},
    },
    backend::{Accelerator, BackendError, Given, Inputs, Runner, Show, TensorInfo, Tensors},
    compare::graphwise::TensorSums,
    onnx::{
        Model,
        proto::{
            DimensionProto, DimensionValue, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
        },
    },
    pass::{Consumer, Outputs, Part, Running, Taking},
    tensor::{ElementType, Tensor, TensorMap, TensorView},
};

/// What precedes the name of a tensor that a node made of what it was given.
const OWN: &str = "calib:own:";

/// `model` cut at `tensors`: whoever reads one of them reads an input of that name, and what its node makes is an output,
/// which `OwnErrors` compares with it. Each has its type and shape in `tensors`.
#[must_use]
pub fn cut(model: &Model, tensors: &[TensorInfo]) -> Model {
    let mut model = model.clone();
    let graph = model.graph_mut();
    let cut: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    for output in graph.node.iter_mut().flat_map(|node| &mut node.output) {
        if cut.contains(output.as_str()) {
            *output = format!("{OWN}{output}");
        }
    }
    graph.value_info.retain(|info| !cut.contains(info.name()));
    graph.input.extend(tensors.iter().map(|tensor| value_info(&tensor.name, tensor, true)));
    graph.output = tensors.iter().map(|tensor| value_info(&format!("{OWN}{}", tensor.name), tensor, false)).collect();
    model
}

fn value_info(name: &str, tensor: &TensorInfo, shaped: bool) -> ValueInfoProto {
    let dimension = |extent: &Option<usize>| DimensionProto {
        value: extent.and_then(|extent| i64::try_from(extent).ok()).map(DimensionValue::DimValue),
        denotation: None,
    };
    let shape = shaped.then(|| TensorShapeProto { dim: tensor.shape.iter().map(dimension).collect() });
    let elem_type = tensor.element_type.map(ElementType::onnx);
    let r#type = Some(TypeProto {
        value: Some(TypeValue::TensorType(TensorTypeProto { elem_type, shape })),
        ..TypeProto::default()
    });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// A tensor of an engine that is judged, and what the node that makes it is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The tensor.
    pub site: TensorSite,
    /// The nearest tensors in front of it that the engine shows.
    pub given: BTreeSet<String>,
    /// Nodes between these and it by whose names a user knows the model, the nearest ones.
    pub hidden: Vec<FlowNode>,
}

/// What `sites` are made of; `flow` is the graph of the model that the engine was built from, `known` are nodes of the model
/// that it is told by.
pub fn seen(flow: &Flow, sites: &[TensorSite], known: &BTreeSet<String>) -> Vec<Seen> {
    let producer: BTreeMap<&str, &FlowNode> =
        (flow.nodes.iter()).flat_map(|node| node.outputs.iter().map(move |output| (output.as_str(), node))).collect();
    let visible: BTreeSet<&str> = sites.iter().map(|site| site.tensor.as_str()).collect();
    let look_back = |site: &TensorSite| {
        let (mut given, mut hidden, mut passed) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        // Tensors, and whether no known node lies between them and the site.
        let mut open = vec![(site.tensor.as_str(), true)];
        while let Some((tensor, is_next)) = open.pop() {
            for input in producer.get(tensor).iter().flat_map(|node| &node.inputs) {
                if visible.contains(input.as_str()) {
                    given.insert(input.clone());
                } else if let Some(maker) = producer.get(input.as_str()).filter(|_| passed.insert(input.as_str())) {
                    let is_known = known.contains(&maker.name);
                    if is_next && is_known {
                        let (name, outputs) = (maker.name.clone(), vec![input.clone()]);
                        hidden.push(FlowNode { name, inputs: Vec::new(), outputs });
                    }
                    open.push((input, is_next && !is_known));
                }
            }
        }
        Seen { site: site.clone(), given, hidden }
    };
    sites.iter().map(look_back).collect()
}

/// The graph that `seen` tensors make.
pub fn flow_of(seen: &[Seen]) -> Flow {
    let nodes = seen.iter().flat_map(|Seen { site, given, hidden }| {
        let inputs = given.iter().chain(hidden.iter().flat_map(|node| &node.outputs)).cloned().collect();
        let node = FlowNode { name: site.node.clone(), inputs, outputs: vec![site.tensor.clone()] };
        hidden.iter().cloned().chain([node])
    });
    Flow { nodes: nodes.collect(), outputs: Vec::new() }
}

/// Tensors of an engine that are marked together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// What is judged, in the order of execution.
    pub judged: Vec<TensorSite>,
    /// Those, and what the nodes that make them are given.
    pub shown: BTreeSet<String>,
}

/// Tensors in groups, in their order. Of a group, no more than `most` tensors are shown, and they weigh no more than `heaviest`
/// by `weight`, unless a single node takes more.
pub fn groups(seen: &[Seen], most: usize, heaviest: usize, weight: &dyn Fn(&str) -> usize) -> Vec<Marks> {
    let mut groups: Vec<Marks> = Vec::new();
    for Seen { site, given, .. } in seen {
        let needed = || given.iter().chain([&site.tensor]);
        let fits = |group: &Marks| {
            let all: BTreeSet<&String> = group.shown.iter().chain(needed()).collect();
            all.len() <= most && all.iter().map(|tensor| weight(tensor)).fold(0, usize::saturating_add) <= heaviest
        };
        if !groups.last().is_some_and(fits) {
            groups.push(Marks::default());
        }
        if let Some(group) = groups.last_mut() {
            group.shown.extend(needed().cloned());
            group.judged.push(site.clone());
        }
    }
    groups
}

/// How far `judged` tensors of `engine` are from what `twin`, a model that was [`cut`] at the tensors that the engine shows,
/// makes of them.
///
/// # Errors
/// Either cannot be run, a sample cannot be read, or there are no samples.
pub fn own_errors(
    engine: &mut dyn Runner,
    twin: &mut dyn Runner,
    judged: &[TensorSite],
    samples: Samples<'_>,
) -> Result<Vec<TensorDivergence>, AnalysisError> {
    let made: BTreeSet<&str> = twin.outputs().iter().filter_map(|output| output.name.strip_prefix(OWN)).collect();
    let both = judged.iter().filter(|site| made.contains(site.tensor.as_str()));
    let names = both.map(|site| (site.tensor.clone(), format!("{OWN}{}", site.tensor))).collect();
    let mut errors = OwnErrors { names, sums: TensorSums::new(BTreeMap::new()) };
    some(samples.run(&mut [&mut Beside { engine: Running(engine), twin }], &mut errors)?)?;
    let found = errors.sums.finish();
    let divergence = |site: &TensorSite| {
        let difference = found.get(&format!("{OWN}{}", site.tensor))?.clone();
        Some(TensorDivergence { site: site.clone(), difference })
    };
    Ok(judged.iter().filter_map(divergence).collect())
}

/// An engine, and what the nodes of another model make of what it gives.
struct Beside<'a> {
    engine: Running<'a>,
    twin: &'a mut dyn Runner,
}

impl Outputs for Beside<'_> {
    fn names(&self) -> Vec<String> {
        self.engine.names()
    }

    fn give(&mut self, part: &Part<'_>, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        let Self { engine, twin } = self;
        let given_to_model = inputs.filled();
        engine.give(part, inputs, &mut |given| {
            let made = given.outputs.on_host(|shown| {
                let mut fed = given_to_model.clone().into_owned();
                for input in twin.inputs() {
                    if let Some(&(_, view)) = shown.iter().find(|(name, _)| *name == input.name) {
                        fed.insert(input.name.clone(), as_type(view, input.element_type)?);
                    }
                }
                let made = twin.infer(&fed)?;
                let engine = shown.iter().map(|&(name, view)| (name.to_owned(), TensorView::to_owned(view)));
                Ok::<_, BackendError>(engine.chain(made).collect::<TensorMap>())
            })?;
            show(&Given { inputs: given.inputs.clone(), outputs: Tensors::from(&made) })
        })
    }

    fn taking(&self) -> Taking {
        self.engine.taking()
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.engine.accelerator()
    }
}

/// A tensor as the twin takes it: its own type, or `float32` where the twin computes in that.
fn as_type(view: TensorView<'_>, wanted: Option<ElementType>) -> Result<Tensor, BackendError> {
    if wanted != Some(ElementType::F32) || view.values.element_type() == ElementType::F32 {
        return Ok(TensorView::to_owned(view));
    }
    let converted = Tensor::from_f32(view.shape.to_vec(), view.to_f32().into_owned());
    converted.map_err(|error| BackendError::Visitor(Box::new(error)))
}

/// Adds up what tensors differ by.
struct OwnErrors {
    /// Names of what the engine gave, and of what was made.
    names: BTreeMap<String, String>,
    sums: TensorSums,
}

impl Consumer for OwnErrors {
    type Error = AnalysisError;

    fn take(&mut self, part: &Part<'_>, given: &[Option<&Given<'_>>]) -> Result<(), AnalysisError> {
        if let [Some(given)] = given {
            self.sums.push(&part.names(), given.outputs.clone(), given.outputs.clone(), &self.names)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
