//! The first node after which the target leaves the reference, found with few probes.
//!
//! A probe reads some tensors of both. Cutting the ancestors of a diverged tensor in two, the tensors that cross the
//! cut say on which side to go on: about log₂(nodes) probes of a few tensors each, so that an engine whose fusion
//! changes with every tensor marked is disturbed as little as possible. Where a divergence can heal on the way, the
//! node found is one whose inputs agree and whose output does not, if not the very first; [`Scan::Exhaustive`] looks
//! at every tensor and finds that.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    analyse::operators,
    onnx::{GraphError, GraphView, Model},
};

/// A node and the tensors it reads and makes. Constants are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowNode {
    /// The node's name.
    pub name: String,
    /// Tensors read.
    pub inputs: Vec<String>,
    /// Tensors made.
    pub outputs: Vec<String>,
}

/// A graph as this search sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// In topological order.
    pub nodes: Vec<FlowNode>,
    /// The graph's outputs.
    pub outputs: Vec<String>,
}

/// Which tensors are probed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scan {
    /// Those on the cuts of a binary search.
    #[default]
    Binary,
    /// All, from the first.
    Exhaustive,
}

/// Options of [`first_divergence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FirstOptions {
    /// Which tensors are probed.
    pub scan: Scan,
    /// Tensors in one probe, at most; at least 1.
    pub tensors_per_probe: usize,
}

impl Default for FirstOptions {
    fn default() -> Self {
        Self { scan: Scan::Binary, tensors_per_probe: 16 }
    }
}

/// A node that makes the target diverge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Culprit<D> {
    /// The node.
    pub node: String,
    /// Its diverged output.
    pub tensor: String,
    /// How far that output is off.
    pub divergence: D,
    /// How far the node's inputs are off, all within the threshold; absent for one the target does not show.
    pub inputs: BTreeMap<String, Option<D>>,
    /// Those that the target does not show, with the nodes that make them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hidden: BTreeMap<String, String>,
}

impl<D> Culprit<D> {
    /// Where the fault may lie instead: before an input that could not be looked at (what a QuantizeLinear gives, for one).
    pub fn instead(&self) -> Option<String> {
        let maker =
            |(input, node): (&String, &String)| format!("in `{node}`, whose output `{input}` cannot be looked at");
        let makers: Vec<String> = self.hidden.iter().map(maker).collect();
        (!makers.is_empty()).then(|| format!("the fault may also lie {}", makers.join(", or ")))
    }
}

/// Result of [`first_divergence`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FirstDivergence<D> {
    /// The node found; absent when no output diverges (or, in an exhaustive scan, no tensor).
    pub culprit: Option<Culprit<D>>,
    /// Probes made.
    pub probes: usize,
    /// Every tensor probed; absent metrics where the target does not show it.
    pub tensors: BTreeMap<String, Option<D>>,
}

impl<D> FirstDivergence<D> {
    /// Tensors that were compared.
    pub fn compared(&self) -> usize {
        self.tensors.values().flatten().count()
    }
}

/// Compares the tensors it is given between reference and target; leaves out those that the target does not have.
pub type Probe<'a, D, E> = dyn FnMut(&[String]) -> Result<BTreeMap<String, D>, E> + 'a;

/// Finds the first divergence. `probe` runs reference and target; `diverged` holds the threshold.
///
/// # Errors
/// Whatever `probe` returns.
pub fn first_divergence<D: Clone, E>(
    flow: &Flow,
    options: FirstOptions,
    diverged: &dyn Fn(&D) -> bool,
    probe: &mut Probe<'_, D, E>,
) -> Result<FirstDivergence<D>, E> {
    let producer = (flow.nodes.iter().enumerate())
        .flat_map(|(index, node)| node.outputs.iter().map(move |output| (output.as_str(), index)))
        .collect();
    let mut finder = Finder { flow, producer, options, diverged, probe, probes: 0, seen: BTreeMap::new() };
    let tensor = match options.scan {
        Scan::Binary => finder.binary()?,
        Scan::Exhaustive => {
            let all: Vec<&str> = flow.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str)).collect();
            finder.earliest_diverged(&all)?
        }
    };
    let culprit = tensor.and_then(|tensor| {
        let node = &flow.nodes[*finder.producer.get(tensor)?];
        let inputs = (node.inputs.iter())
            .filter(|input| finder.producer.contains_key(input.as_str()))
            .map(|input| (input.clone(), finder.seen.get(input).cloned().flatten()))
            .collect();
        let maker =
            |input: &String| Some((input.clone(), flow.nodes[*finder.producer.get(input.as_str())?].name.clone()));
        let is_hidden = |input: &&String| finder.seen.get(*input).is_some_and(Option::is_none);
        let hidden = node.inputs.iter().filter(is_hidden).filter_map(maker).collect();
        let divergence = finder.seen.get(tensor).cloned().flatten()?;
        Some(Culprit { node: node.name.clone(), tensor: tensor.to_owned(), divergence, inputs, hidden })
    });
    Ok(FirstDivergence { culprit, probes: finder.probes, tensors: finder.seen })
}

struct Finder<'a, D, E> {
    flow: &'a Flow,
    producer: BTreeMap<&'a str, usize>,
    options: FirstOptions,
    diverged: &'a dyn Fn(&D) -> bool,
    probe: &'a mut Probe<'a, D, E>,
    probes: usize,
    seen: BTreeMap<String, Option<D>>,
}

impl<'a, D: Clone, E> Finder<'a, D, E> {
    fn binary(&mut self) -> Result<Option<&'a str>, E> {
        let outputs: Vec<&str> = self.flow.outputs.iter().map(String::as_str).collect();
        let Some(mut tensor) = self.earliest_diverged(&outputs)? else { return Ok(None) };
        let mut scope = self.ancestors(tensor);
        // The cut before `scope[clean]` agrees; the output of the scope's last node does not.
        let mut clean = 0;
        let mut end = scope.len();
        while clean + 1 < end {
            let middle = usize::midpoint(clean, end);
            if let Some(found) = self.diverged_on_cut(&scope, middle)? {
                let settled: BTreeSet<usize> = scope[..clean].iter().copied().collect();
                scope = self.ancestors(found);
                clean = scope.iter().filter(|node| settled.contains(node)).count();
                end = scope.len();
                tensor = found;
            } else {
                clean = middle;
            }
        }
        Ok(Some(tensor))
    }

    /// Nodes that `tensor` depends on, its producer last.
    fn ancestors(&self, tensor: &str) -> Vec<usize> {
        let mut nodes = BTreeSet::new();
        let mut open: Vec<usize> = self.producer.get(tensor).copied().into_iter().collect();
        while let Some(node) = open.pop() {
            if nodes.insert(node) {
                open.extend(self.flow.nodes[node].inputs.iter().filter_map(|input| self.producer.get(input.as_str())));
            }
        }
        nodes.into_iter().collect()
    }

    /// The earliest tensor made by `scope[..at]` and read by `scope[at..]` that diverges. In place of one that the
    /// target does not show stand the nearest before it that it does.
    fn diverged_on_cut(&mut self, scope: &[usize], at: usize) -> Result<Option<&'a str>, E> {
        let flow = self.flow;
        let made_before = |node: usize| scope[..at].binary_search(&node).is_ok();
        loop {
            let mut open: Vec<&str> =
                scope[at..].iter().flat_map(|&node| flow.nodes[node].inputs.iter().map(String::as_str)).collect();
            let mut passed: BTreeSet<&str> = BTreeSet::new();
            let mut cut = BTreeSet::new();
            while let Some(tensor) = open.pop() {
                let Some(&node) = self.producer.get(tensor).filter(|&&node| made_before(node)) else { continue };
                if !self.seen.get(tensor).is_some_and(Option::is_none) {
                    cut.insert((node, tensor));
                } else if passed.insert(tensor) {
                    open.extend(flow.nodes[node].inputs.iter().map(String::as_str));
                }
            }
            let cut: Vec<&str> = cut.into_iter().map(|(_, tensor)| tensor).collect();
            let found = self.earliest_diverged(&cut)?;
            if found.is_some() || cut.iter().all(|&tensor| self.seen.get(tensor).is_some_and(Option::is_some)) {
                return Ok(found);
            }
        }
    }

    /// The first of `tensors`, which are in topological order, that diverges; looks no further than needed.
    fn earliest_diverged(&mut self, tensors: &[&'a str]) -> Result<Option<&'a str>, E> {
        for chunk in tensors.chunks(self.options.tensors_per_probe.max(1)) {
            let new: Vec<String> =
                chunk.iter().filter(|&&t| !self.seen.contains_key(t)).map(|&t| t.to_owned()).collect();
            if !new.is_empty() {
                let mut found = (self.probe)(&new)?;
                self.probes += 1;
                self.seen.extend(new.into_iter().map(|tensor| {
                    let metrics = found.remove(&tensor);
                    (tensor, metrics)
                }));
            }
            let first =
                chunk.iter().find(|&&t| self.seen.get(t).is_some_and(|m| m.as_ref().is_some_and(self.diverged)));
            if let Some(&first) = first {
                return Ok(Some(first));
            }
        }
        Ok(None)
    }
}

/// The reference's graph for [`first_divergence`]: its nodes that depend on the
/// inputs.
///
/// # Errors
/// A malformed graph.
pub fn flow(reference: &Model) -> Result<Flow, GraphError> {
    let view = GraphView::new(reference.graph())?;
    let constants = operators::constants(&view);
    let varies = |tensor: &&String| !tensor.is_empty() && !constants.contains(tensor.as_str());
    let node = |&id: &crate::onnx::NodeId| {
        let node = view.node(id);
        let captured: BTreeSet<&str> = node.subgraphs().flat_map(crate::onnx::captured).collect();
        let captured = captured.into_iter().map(str::to_owned);
        FlowNode {
            name: node.label(id.0),
            inputs: node.input.iter().cloned().chain(captured).filter(|tensor| varies(&tensor)).collect(),
            outputs: node.output.iter().filter(varies).cloned().collect(),
        }
    };
    let nodes = view.topological_order().iter().map(node).filter(|node| !node.outputs.is_empty()).collect();
    Ok(Flow { nodes, outputs: view.graph().output.iter().map(|output| output.name().to_owned()).collect() })
}

#[cfg(test)]
mod planted;
#[cfg(test)]
mod tests;
