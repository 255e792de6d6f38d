//! Folding batch norms and constants before quantizing, and the types and shapes of intermediate tensors.
//!
//! ONNX Runtime's basic optimizations do the folding; its fusions that rename nodes are switched off, so that every
//! node that is left has the name it had. What the runtime adds for itself (operator sets, casts around kernels that
//! it lacks) is taken away again.

use std::{
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

/// Rewrites that are no folding: they rename, reorder or replace nodes, or move Q/DQ.
const DISABLED: &str = "CommonSubexpressionElimination;DoubleQDQPairsRemover;GatherSliceToSplitFusion;\
    GatherToSliceFusion;GatherToSplitFusion;GeluFusion;GeluFusionL1;GemmSumFusion;GemmTransposeFusion;LayerNormFusion;\
    LayerNormFusionL1;MatMulAddFusion;PropagateCastOps;QDQPropagationTransformer;ReshapeFusion;\
    SimplifiedLayerNormFusion;TransposeOptimizer";
/// How ONNX Runtime names the casts (and their tensors) that it puts around operators without a kernel.
const INSERTED_CAST: &str = "InsertedPrecisionFreeCast_";
/// The first version of the format in which weights need not be declared as inputs.
const MIN_IR_VERSION: i64 = 4;

impl OnnxRuntime {
    /// The model with batch norms, constant expressions, identities and functions folded away.
    ///
    /// Names of nodes, inputs and outputs stay, and so do metadata, path and hash. Weights that are also declared as
    /// inputs become constants.
    ///
    /// # Errors
    /// What ONNX Runtime does not load.
    pub fn fold(&self, model: &Model) -> Result<Model, BackendError> {
        let failed = |reason: String| BackendError::Build { runtime: RUNTIME, model: model.name(), reason };
        let constant = model.with_proto(with_constant_weights(&model.proto));
        let folder = tempfile::tempdir().map_err(|error| failed(format!("no temporary folder: {error}")))?;
        let path = folder.path().join("folded.onnx");
        let options = BuildOptions { optimization: OptimizationLevel::Basic, ..BuildOptions::default() };
        let builder = builder(self.loaded, &options, None)?;
        let builder =
            folding(builder, &path, !fits_in_memory(&constant.proto)).map_err(|error| refused(model, &error))?;
        drop(commit(builder, &constant, &[])?);
        let folded = Model::load(&path).map_err(|error| failed(format!("its folded form is unusable: {error}")))?;
        let folded = constant.with_proto(restore(folded.proto, &constant.proto));
        GraphView::new(folded.graph()).map_err(|error| failed(format!("its folded form is unusable: {error}")))?;
        // Gigabytes are not written to a file once more for a check: whoever runs the model loads it.
        if fits_in_memory(&folded.proto) {
            let check = BuildOptions { optimization: OptimizationLevel::Disabled, ..BuildOptions::default() };
            // Casts of the model that the runtime joined with casts of its own cannot be told apart again.
            match build(self.loaded, &folded, &check, None) {
                Err(_) if has_half(model.graph()) => return Ok(constant),
                result => drop(result?),
            }
        }
        Ok(folded)
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
    remove_inserted_casts(&mut graph);
    let before = original.graph();
    graph.name.clone_from(&before.name);
    graph.doc_string.clone_from(&before.doc_string);
    graph.input.clone_from(&before.input);
    graph.output.clone_from(&before.output);
    graph.metadata_props.clone_from(&before.metadata_props);
    let mut used = BTreeSet::new();
    domains(&graph.node, &mut used);
    let mut opset_import = folded.opset_import;
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
mod tests {
    use super::*;
    use crate::{
        backend::{
            Backend,
            onnxruntime::tests::{floats, model, runtime},
        },
        onnx::{
            proto::{AttributeProto, StringStringEntryProto, TypeValue},
            tests::{float_info, small_model},
        },
        tensor::{ElementType, Tensor, TensorMap, Values},
    };

    /// `x [n,2] -> Conv 1x1 (weights 1, 2; bias 0.5) -> BatchNorm -> MatMul by a transposed constant -> Add`.
    fn batch_norm_model(element_type: ElementType) -> Model {
        let weight = |name: &str, shape: &[usize], values: &[f32]| {
            let values = match element_type {
                ElementType::F16 => Values::F16(values.iter().map(|&x| half::f16::from_f32(x)).collect()),
                _ => Values::F32(values.to_vec()),
            };
            TensorProto::from_tensor(name, Tensor::new(shape.to_vec(), values).unwrap())
        };
        let nodes = vec![
            NodeProto::new("Conv", "conv", &["x", "w", "b"], &["c"]),
            NodeProto::new("BatchNormalization", "bn", &["c", "scale", "shift", "mean", "variance"], &["n"])
                .with(AttributeProto::float("epsilon", 0.0)),
            NodeProto::new("Flatten", "flat", &["n"], &["f"]),
            NodeProto::new("Transpose", "turn", &["v"], &["vt"]).with(AttributeProto::ints("perm", &[1, 0])),
            NodeProto::new("MatMul", "fc", &["f", "vt"], &["m"]),
            NodeProto::new("Add", "bias", &["m", "one"], &["y"]),
        ];
        let initializers = vec![
            weight("w", &[2, 1, 1, 1], &[1.0, 2.0]),
            weight("b", &[2], &[0.5, 0.5]),
            weight("scale", &[2], &[2.0, 1.0]),
            weight("shift", &[2], &[1.0, -1.0]),
            weight("mean", &[2], &[0.5, 0.0]),
            weight("variance", &[2], &[4.0, 0.25]),
            weight("v", &[1, 2], &[1.0, 10.0]),
            weight("one", &[1], &[1.0]),
        ];
        let mut input = float_info("x", &[-1, 1, 1, 1]);
        if let Some(TypeValue::TensorType(declared)) = &mut input.r#type.as_mut().unwrap().value {
            declared.elem_type = Some(element_type.onnx());
        }
        let mut model = model(nodes, input, "y", initializers);
        model.proto.metadata_props =
            vec![StringStringEntryProto { key: Some("k".to_owned()), value: Some("v".to_owned()) }];
        model
    }

    fn names(model: &Model) -> Vec<&str> {
        model.graph().node.iter().map(NodeProto::name).collect()
    }

    #[test]
    fn batch_norm_and_constants_go_and_the_rest_keeps_its_name() {
        let Some(runtime) = runtime() else { return };
        let mut model = batch_norm_model(ElementType::F32);
        // A weight that is also an input must not keep the batch norm from folding.
        model.graph_mut().input.push(float_info("w", &[2, 1, 1, 1]));
        let folded = runtime.fold(&model).unwrap();
        assert_eq!(names(&folded), ["conv", "flat", "fc", "bias"]);
        assert_eq!(folded.graph().input.len(), 1);
        assert_eq!(folded.graph().output, model.graph().output);
        assert_eq!(folded.proto.opset_import, model.proto.opset_import);
        assert_eq!(folded.proto.metadata_props, model.proto.metadata_props);
        assert_eq!((folded.proto.ir_version, &folded.hash), (Some(8), &model.hash));
        // Conv gives 3x+0.5... by hand for x = 3: c = (3.5, 6.5), n = (3.5-0.5)/2*2+1 = 4, 6.5/0.5-1 = 12.
        let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 1, 1, 1], &[3.0]))]);
        let outputs = runtime.build(&folded, &BuildOptions::default()).unwrap().infer(&inputs).unwrap();
        assert_eq!(outputs["y"], floats(&[1, 1], &[4.0 + 10.0 * 12.0 + 1.0]));
    }

    #[test]
    fn half_precision_models_keep_their_precision() {
        let Some(runtime) = runtime() else { return };
        let folded = runtime.fold(&batch_norm_model(ElementType::F16)).unwrap();
        assert_eq!(names(&folded), ["conv", "flat", "fc", "bias"]);
        let weight = &folded.graph().initializer[0];
        assert!(folded.graph().initializer.iter().all(|w| w.element_type().unwrap() == ElementType::F16), "{weight:?}");
    }

    #[test]
    fn subgraphs_survive_folding_and_what_is_refused_says_why() {
        let Some(runtime) = runtime() else { return };
        let folded = runtime.fold(&small_model()).unwrap();
        let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 4], &[1.0; 4]))]);
        let run = |model: &Model| runtime.build(model, &BuildOptions::default()).unwrap().infer(&inputs).unwrap();
        assert_eq!(run(&folded), run(&small_model()));
        let mut broken = small_model();
        broken.graph_mut().node[1].op_type = Some("Frobnicate".to_owned());
        let error = runtime.fold(&broken).unwrap_err().to_string();
        assert!(error.contains("Frobnicate"), "{error}");
    }

    #[test]
    fn casts_joined_with_casts_of_the_runtime_leave_the_model_as_it_is() {
        let Some(runtime) = runtime() else { return };
        let half = Values::F16([1.0, 2.0, 3.0, 4.0].map(half::f16::from_f32).to_vec());
        let weight = TensorProto::from_tensor("w", Tensor::new(vec![4, 1], half).unwrap());
        let cast = |name: &str, input: &str, to: i64| {
            NodeProto::new("Cast", name, &[input], &[name]).with(AttributeProto::int("to", to))
        };
        let nodes = vec![
            NodeProto::new("Greater", "g", &["x", "zero"], &["g"]),
            cast("wide", "g", 1),
            cast("narrow", "wide", 10),
            NodeProto::new("MatMul", "m", &["narrow", "w"], &["m"]),
            cast("y", "m", 1),
        ];
        let zero = TensorProto::from_tensor("zero", floats(&[], &[0.0]));
        let model = model(nodes, float_info("x", &[1, 4]), "y", vec![weight, zero]);
        let folded = runtime.fold(&model).unwrap();
        let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 4], &[1.0, -1.0, 1.0, 1.0]))]);
        let outputs = runtime.build(&folded, &BuildOptions::default()).unwrap().infer(&inputs).unwrap();
        assert_eq!(outputs["y"], floats(&[1, 1], &[8.0]));
    }

    #[test]
    fn shapes_of_intermediate_tensors_are_inferred() {
        let Some(runtime) = runtime() else { return };
        let tensors = ["c", "vt", "f"].map(str::to_owned);
        let infos = runtime.infer_shapes(&batch_norm_model(ElementType::F32), &tensors).unwrap();
        assert_eq!(infos["c"].shape, [None, Some(2), Some(1), Some(1)]);
        assert_eq!(infos["vt"].shape, [Some(2), Some(1)]);
        assert_eq!((infos["f"].element_type, infos.len()), (Some(ElementType::F32), 3));
    }
}
