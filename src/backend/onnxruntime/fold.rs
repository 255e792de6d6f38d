//! Folding batch norms and constants before quantizing, and the types and shapes of intermediate tensors.
//!
//! ONNX Runtime's basic optimizations do the folding; its fusions that rename nodes are switched off, so that every
//! node that is left has the name it had. What the runtime adds for itself (operator sets, casts around kernels that
//! it lacks) is taken away again.

mod kept;
mod stands_for;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

use ort::session::builder::SessionBuilder;

use super::{
    OnnxRuntime, RUNTIME,
    session::{build, builder, commit, fits_in_memory, has_half, refused},
    values::info,
};
use crate::{
    backend::{BackendError, BuildOptions, OptimizationLevel, TensorInfo},
    onnx::{
        GraphView, Model,
        proto::{GraphProto, ModelProto, NodeProto, TensorProto},
    },
};

/// Rewrites that are not folding: they rename, reorder or replace nodes, or move Q/DQ.
const DISABLED: &str = "CommonSubexpressionElimination;DoubleQDQPairsRemover;GatherSliceToSplitFusion;\
    GatherToSliceFusion;GatherToSplitFusion;GeluFusion;GeluFusionL1;GemmSumFusion;GemmTransposeFusion;LayerNormFusion;\
    LayerNormFusionL1;MatMulAddFusion;PropagateCastOps;QDQPropagationTransformer;ReshapeFusion;\
    SimplifiedLayerNormFusion;TransposeOptimizer";
/// How ONNX Runtime names the casts (and their tensors) that it puts around operators without a kernel.
const INSERTED_CAST: &str = "InsertedPrecisionFreeCast_";
/// Most times that a model is folded around nodes to be kept.
const MAX_ROUNDS: usize = 8;
/// The first version of the format in which weights need not be declared as inputs.
const MIN_IR_VERSION: i64 = 4;

impl OnnxRuntime {
    /// The model with batch norms, constant expressions, identities and the model's own functions folded away.
    ///
    /// Names of nodes, but for calls of functions, and of inputs and outputs stay, and so do operators, metadata, path and hash. Weights that are also
    /// declared as inputs become constants. A constant that is much larger than what it is computed from stays computed.
    ///
    /// # Errors
    /// What ONNX Runtime does not load.
    pub fn fold(&self, model: &Model) -> Result<Model, BackendError> {
        let constant = model.with_proto(with_constant_weights(&model.proto));
        let (mut inlined, mut calls) = constant.inlined();
        let mut folded = match self.folded(&inlined) {
            // Functions of another operator set, which ONNX does not allow and ONNX Runtime takes.
            Err(_) if inlined.graph() != constant.graph() => {
                (inlined, calls) = (constant, BTreeMap::new());
                self.folded(&inlined)?
            }
            folded => folded?,
        };
        stands_for::add_calls(&mut folded, &calls);
        // Gigabytes are not written to a file once more for a check: whoever runs the model loads it.
        if fits_in_memory(&folded.proto) {
            let check = BuildOptions { optimization: OptimizationLevel::Disabled, ..BuildOptions::default() };
            // Casts of the model that the runtime joined with casts of its own cannot be told apart again.
            match build(self.loaded, &folded, &check, None) {
                Err(_) if has_half(inlined.graph()) => {
                    stands_for::add_calls(&mut inlined, &calls);
                    return Ok(inlined);
                }
                result => drop(result?),
            }
        }
        Ok(folded)
    }

    /// Folds a model, and once more around the nodes that were found to be kept, until no more are.
    fn folded(self, model: &Model) -> Result<Model, BackendError> {
        let failed = |reason: String| BackendError::Build { runtime: RUNTIME, model: model.name(), reason };
        let view = GraphView::new(model.graph()).map_err(|error| failed(error.to_string()))?;
        let mut kept = BTreeSet::new();
        let mut rest = Cow::Borrowed(model);
        for round in 0..MAX_ROUNDS {
            let mut folded = self.rewritten(&rest, OptimizationLevel::Basic)?;
            kept::put_back(folded.graph.get_or_insert_default(), model.graph(), &kept);
            let mut found = kept::grown(&view, folded.graph());
            if round == 0 && kept::may_be_expanded(model.graph(), folded.graph()) {
                found
                    .extend(kept::expanded(model.graph(), self.rewritten(model, OptimizationLevel::Disabled)?.graph()));
            }
            if round == 0 && has_half(model.graph()) {
                found.extend(self.joined_casts(model, &kept::lost_casts(&view, folded.graph()))?);
            }
            let known = kept.len();
            kept.extend(found);
            if kept.len() == known {
                let mut folded = model.with_proto(restore(folded, &model.proto));
                folded.stands_for = stands_for::stands_for(model.graph(), folded.graph());
                let unusable = |error| failed(format!("its folded form is unusable: {error}"));
                GraphView::new(folded.graph()).map_err(unusable)?;
                return Ok(folded);
            }
            let given: Vec<String> = kept.iter().flat_map(|&index| model.graph().node[index].output.clone()).collect();
            let given: Vec<String> = given.into_iter().filter(|tensor| !tensor.is_empty()).collect();
            let infos = self.infer_shapes(model, &given)?;
            let Some(cut) = kept::without(&model.proto, &kept, &infos) else { break };
            rest = Cow::Owned(model.with_proto(cut));
        }
        Ok(model.clone())
    }

    /// Those of `lost` that change into or out of 16 bits: without them nodes compute in another type than the model's.
    fn joined_casts(self, model: &Model, lost: &BTreeSet<usize>) -> Result<Vec<usize>, BackendError> {
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        let node = |index: usize| &model.graph().node[index];
        let taken: Vec<String> = lost.iter().filter_map(|&index| node(index).input.first().cloned()).collect();
        let infos = self.infer_shapes(model, &taken)?;
        Ok(lost.iter().copied().filter(|&index| kept::changes_half(node(index), &infos)).collect())
    }

    /// What ONNX Runtime makes of a model, without the casts that it adds for want of kernels.
    fn rewritten(self, model: &Model, optimization: OptimizationLevel) -> Result<ModelProto, BackendError> {
        let failed = |reason: String| BackendError::Build { runtime: RUNTIME, model: model.name(), reason };
        let folder = tempfile::tempdir().map_err(|error| failed(format!("no temporary folder: {error}")))?;
        let path = folder.path().join("folded.onnx");
        let options = BuildOptions { optimization, ..BuildOptions::default() };
        let builder = builder(self.loaded, &options, None)?;
        let builder = folding(builder, &path, !fits_in_memory(&model.proto)).map_err(|error| refused(model, &error))?;
        drop(commit(builder, model, &[]).map_err(|mut error| {
            if let BackendError::Build { reason, .. } = &mut error
                && reason.contains("serialization failed")
            {
                reason.truncate(reason.trim_end_matches('.').len());
                reason.push_str(
                    "; its folded form was written to the temporary folder (TMPDIR), where there is no room or files may not be that \
                     large (ulimit -f)",
                );
            }
            error
        })?);
        let mut rewritten =
            Model::load(&path).map_err(|error| failed(format!("its folded form is unusable: {error}")))?.proto;
        remove_inserted_casts(rewritten.graph.get_or_insert_default());
        Ok(rewritten)
    }

    /// Types and shapes of `tensors`, as far as ONNX Runtime can infer them.
    pub fn infer_shapes(
        &self,
        model: &Model,
        tensors: &[String],
    ) -> Result<BTreeMap<String, TensorInfo>, BackendError> {
        let options = BuildOptions {
            threads: 1,
            extra_outputs: tensors.to_vec(),
            optimization: OptimizationLevel::Disabled,
            ..BuildOptions::default()
        };
        let built = build(self.loaded, model, &options, None)?;
        let wanted: HashSet<&str> = tensors.iter().map(String::as_str).collect();
        let outlets = built.session.outputs().iter().filter(|outlet| wanted.contains(outlet.name()));
        Ok(outlets.map(|outlet| (outlet.name().to_owned(), info(outlet.name(), outlet.dtype()))).collect())
    }
}

/// Options that write the folded model to `path`.
fn folding(builder: SessionBuilder, path: &Path, external_data: bool) -> ort::Result<SessionBuilder> {
    let builder =
        builder.with_optimized_model_path(path)?.with_disabled_optimizers(DISABLED)?.with_prepacking(false)?;
    if !external_data {
        return Ok(builder);
    }
    Ok(builder
        .with_config_entry("session.optimized_model_external_initializers_file_name", "folded.onnx.data")?
        .with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")?)
}

/// Weights that callers could replace are not folded: here nobody replaces them.
fn with_constant_weights(model: &ModelProto) -> ModelProto {
    let mut model = model.clone();
    let graph = model.graph.get_or_insert_default();
    let weights: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    graph.input.retain(|input| !weights.contains(input.name()));
    model.ir_version = Some(model.ir_version().max(MIN_IR_VERSION));
    model
}

/// Puts back what folding should not have touched.
fn restore(folded: ModelProto, original: &ModelProto) -> ModelProto {
    let mut graph = folded.graph.unwrap_or_default();
    let before = original.graph();
    graph.name.clone_from(&before.name);
    graph.doc_string.clone_from(&before.doc_string);
    graph.input.clone_from(&before.input);
    graph.output.clone_from(&before.output);
    graph.metadata_props.clone_from(&before.metadata_props);
    let mut used = BTreeSet::new();
    domains(&graph.node, &mut used);
    let mut opset_import = folded.opset_import;
    let known: BTreeSet<String> = opset_import.iter().map(|import| import.domain().to_owned()).collect();
    opset_import.extend(original.opset_import.iter().filter(|import| !known.contains(import.domain())).cloned());
    used.insert(String::new());
    opset_import.retain(|import| used.contains(import.domain()));
    // Functions that could not be inlined are still there.
    ModelProto { graph: Some(graph), opset_import, functions: folded.functions, ..header(original) }
}

/// Everything of a model but its graph, functions and operator sets.
fn header(model: &ModelProto) -> ModelProto {
    ModelProto {
        ir_version: model.ir_version,
        producer_name: model.producer_name.clone(),
        producer_version: model.producer_version.clone(),
        domain: model.domain.clone(),
        model_version: model.model_version,
        doc_string: model.doc_string.clone(),
        metadata_props: model.metadata_props.clone(),
        configuration: model.configuration.clone(),
        ..ModelProto::default()
    }
}

/// Operator domains that nodes use, those in subgraphs included.
fn domains(nodes: &[NodeProto], used: &mut BTreeSet<String>) {
    for node in nodes {
        used.insert(if node.is_standard() { String::new() } else { node.domain().to_owned() });
        node.subgraphs().for_each(|graph| domains(&graph.node, used));
    }
}

/// Removes the casts that stand for missing kernels: both of their sides get the original name again.
fn remove_inserted_casts(graph: &mut GraphProto) {
    for node in &mut graph.node {
        for tensor in node.input.iter_mut().chain(&mut node.output) {
            if let Some(original) = tensor.strip_prefix(INSERTED_CAST) {
                *tensor = original.to_owned();
            }
        }
        node.subgraphs_mut().for_each(remove_inserted_casts);
    }
    graph.node.retain(|node| !(node.name().starts_with(INSERTED_CAST) && node.input == node.output));
    graph.value_info.retain(|info| !info.name().starts_with(INSERTED_CAST));
}

#[cfg(test)]
mod tests;
