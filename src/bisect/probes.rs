//! Intermediate tensors of something that shows its outputs only, such as a TensorRT engine.
//!
//! A tensor can be seen by building the engine again with that tensor as one more output. Each such mark may undo a
//! fusion, so few are set at a time, and every time the engine's own outputs are compared again: where they come out
//! otherwise than without marks, the marks have changed what was to be looked at, and the result says so.

mod source;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::source::{BY_ITSELF_DB, SourceModel};
use crate::{
    analyse::graphwise::{Graphwise, TensorDivergence, TensorSite},
    onnx::{
        Model,
        proto::{TensorTypeProto, TypeProto, TypeValue, ValueInfoProto},
    },
    tensor::ElementType,
};

/// How far the SQNR of an output may move, in decibels, before marks count as having changed it: another kernel rounds
/// otherwise.
const SAME_DB: f64 = 1.0;

/// Tensors that are named one by one where they are told; of more, their number is.
const NAMED: usize = 8;

/// An output that comes out otherwise when tensors are marked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Disturbance {
    /// The tensors that were marked.
    pub marked: Vec<String>,
    /// The output.
    pub output: String,
    /// Its SQNR without marks; absent without any error.
    pub sqnr_db: Option<f64>,
    /// Its SQNR with them.
    pub marked_sqnr_db: Option<f64>,
}

/// What looking took, and what it changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ProbeReport {
    /// What built and ran them, with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensorrt: Option<String>,
    /// Times that something was built with marks.
    pub builds: usize,
    /// Outputs that marks changed.
    pub disturbances: Vec<Disturbance>,
    /// The model that the engine was built from, by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceModel>,
    /// By what the first divergence was found.
    #[serde(default)]
    pub judged: Judged,
}

/// How it is told which node of an engine is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Judged {
    /// By what has added up to its tensors, along cuts of the graph.
    #[default]
    AddedUp,
    /// By what it makes of what the engine gave in front of it, against the model that the engine was built from.
    ByItself,
    /// The same against the float model, where ONNX Runtime does not run the other one.
    ByItselfInFloat,
    /// By what has added up, since no node is off by itself.
    AddedUpOnly,
}

impl ProbeReport {
    /// What looking into an engine took, and what each mark changed.
    pub fn sentences(&self) -> Vec<String> {
        let decibels = |db: Option<f64>| db.map_or_else(|| "no error".to_owned(), |db| format!("{db:.1} dB"));
        let by = self.tensorrt.as_ref().map_or_else(String::new, |tensorrt| format!(", by {tensorrt}"));
        let engines = if self.builds == 1 { "engine was" } else { "engines were" };
        let took = format!("{} {engines} built to look into this one{by}", self.builds);
        let changed = self.disturbances.iter().map(|disturbance| {
            let names = || disturbance.marked.iter().map(|tensor| format!("`{tensor}`")).collect::<Vec<_>>().join(", ");
            let marked = disturbance.marked.len();
            let marked = if marked > NAMED { format!("{marked} tensors together") } else { names() };
            format!(
                "marking {marked} changes the engine: the SQNR of output `{}` is {} with the marks and {} without; the fault may \
                 lie in a fusion that they undo",
                disturbance.output,
                decibels(disturbance.marked_sqnr_db),
                decibels(disturbance.sqnr_db)
            )
        });
        let source = self.source.iter().map(|source| source.sentence(self.judged));
        let is_reference = self.source.as_ref().is_some_and(|source| source.is_reference);
        std::iter::once(took).chain(changed).chain(source).chain(self.judged.sentence(is_reference)).collect()
    }
}

impl Judged {
    /// Whether every node was judged by itself.
    pub fn is_by_itself(self) -> bool {
        matches!(self, Self::ByItself | Self::ByItselfInFloat)
    }

    /// What that means, unless it is what is always done. The model that the engine was built from may be the reference.
    fn sentence(self, is_reference: bool) -> Option<String> {
        let by_itself = |model: &str| {
            format!(
                "every node was judged by itself: {model} (ONNX Runtime) was given what the engine gave in front of the node"
            )
        };
        match self {
            Self::AddedUp => None,
            Self::ByItself => {
                let own = by_itself("the same node of the model that the engine was built from");
                let inserted = "; nodes there that only that model has (Q/DQ, and the Mul, Sub and Pad of recovery) count as part \
                                of the node: --model with that model's file judges them, too";
                Some(own + if is_reference { "" } else { inserted })
            }
            Self::ByItselfInFloat => {
                Some(by_itself("the same node of the float model") + ", and Q/DQ there count as part of it")
            }
            Self::AddedUpOnly => Some(
                "no node that could be looked at is off by itself: what diverges has added up, or lies in a fusion that looking \
                 at it undoes"
                    .to_owned(),
            ),
        }
    }
}

/// Builds the target with the tensors that are named first marked, and compares all of the sites.
pub type Compare<'a, E> = dyn FnMut(&[String], &[TensorSite]) -> Result<Graphwise, E> + 'a;

/// Looks at tensors by marking a few at a time.
#[derive(Clone, Debug)]
pub struct Probes {
    outputs: Vec<TensorSite>,
    marks: usize,
    /// The outputs without marks.
    plain: Option<Graphwise>,
    report: ProbeReport,
}

impl Probes {
    /// For a target that shows `outputs`; at most `marks` tensors (and at least 1) are marked at a time.
    pub fn new(outputs: Vec<TensorSite>, marks: usize) -> Self {
        Self { outputs, marks: marks.max(1), plain: None, report: ProbeReport::default() }
    }

    /// What looking took so far.
    pub fn report(&self) -> &ProbeReport {
        &self.report
    }

    /// Compares `sites`, in their order.
    ///
    /// # Errors
    /// Whatever `compare` returns.
    pub fn look<E>(&mut self, sites: &[TensorSite], compare: &mut Compare<'_, E>) -> Result<Graphwise, E> {
        self.look_with(self.marks, sites, compare)
    }

    /// The same with `marks` tensors marked at a time, at most.
    ///
    /// # Errors
    /// Whatever `compare` returns.
    pub fn look_with<E>(
        &mut self,
        marks: usize,
        sites: &[TensorSite],
        compare: &mut Compare<'_, E>,
    ) -> Result<Graphwise, E> {
        let plain = match self.plain.take() {
            Some(plain) => plain,
            None => compare(&[], &self.outputs)?,
        };
        let mut seen = plain.clone();
        let shown: BTreeSet<&str> = self.outputs.iter().map(|site| site.tensor.as_str()).collect();
        let hidden: Vec<&TensorSite> = sites.iter().filter(|site| !shown.contains(site.tensor.as_str())).collect();
        for chunk in hidden.chunks(marks.max(1)) {
            let marked: Vec<String> = chunk.iter().map(|site| site.tensor.clone()).collect();
            let all: Vec<TensorSite> = self.outputs.iter().chain(chunk.iter().copied()).cloned().collect();
            let found = compare(&marked, &all)?;
            self.report.builds += 1;
            for tensor in found.tensors {
                match plain.tensors.iter().find(|plain| plain.site.tensor == tensor.site.tensor) {
                    Some(plain) if same(plain, &tensor) => {}
                    Some(plain) => self.report.disturbances.push(Disturbance {
                        marked: marked.clone(),
                        output: tensor.site.tensor,
                        sqnr_db: plain.difference.sqnr_db,
                        marked_sqnr_db: tensor.difference.sqnr_db,
                    }),
                    None => seen.tensors.push(tensor),
                }
            }
        }
        self.plain = Some(plain);
        let mut by_name: BTreeMap<String, TensorDivergence> =
            seen.tensors.into_iter().map(|tensor| (tensor.site.tensor.clone(), tensor)).collect();
        let tensors = sites.iter().filter_map(|site| by_name.remove(&site.tensor)).collect();
        Ok(Graphwise::new(tensors, seen.samples))
    }
}

fn same(a: &TensorDivergence, b: &TensorDivergence) -> bool {
    let finite = a.difference.non_finite.differing == b.difference.non_finite.differing;
    let shaped = a.difference.shape_mismatch == b.difference.shape_mismatch;
    if a.difference.unequal.is_some() {
        return shaped && (a.off() == b.off() || (a.off() - b.off()).abs() <= SAME_DB);
    }
    finite
        && shaped
        && match (a.difference.sqnr_db, b.difference.sqnr_db) {
            (Some(a), Some(b)) => (a - b).abs() <= SAME_DB,
            (a, b) => a == b,
        }
}

/// The model with `tensors` among its outputs; `integers` tells the types of those that are not floating-point numbers. TensorRT's
/// parser wants a type there and does not mind another float than the tensor has.
#[must_use]
pub fn with_outputs(model: &Model, tensors: &[String], integers: &BTreeMap<String, ElementType>) -> Model {
    let mut model = model.clone();
    let outputs = &mut model.graph_mut().output;
    for tensor in tensors {
        if outputs.iter().all(|output| output.name() != tensor) {
            let element_type = integers.get(tensor).copied().unwrap_or(ElementType::F32);
            let value = TensorTypeProto { elem_type: Some(element_type.onnx()), shape: None };
            let r#type = Some(TypeProto { value: Some(TypeValue::TensorType(value)), ..TypeProto::default() });
            outputs.push(ValueInfoProto { name: Some(tensor.clone()), r#type, ..ValueInfoProto::default() });
        }
    }
    model
}

#[cfg(test)]
mod tests;
