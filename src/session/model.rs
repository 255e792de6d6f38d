//! A float model, ready to be quantized: read, checked, folded, with the shapes of its tensors.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
};

use super::{FloatTypes, PipelineError};
use crate::{
    analyse::{layerwise::LayerError, rounded::rounded, widened::widened},
    backend::{Backend, BuildOptions, Runner, TensorInfo, onnxruntime::OnnxRuntime},
    calibrate::CalibrationTable,
    compare::OutputKind,
    onnx::{
        Finding, GraphView, Model, Severity, diagnose,
        proto::{DimensionProto, DimensionValue, NodeProto, TypeValue},
    },
    quantize::{Placement, Precision, QuantizeOptions, SchemeOptions, moved_like, place, quantize, with_opset},
    tensor::ElementType,
};

/// Operator set from which `Cast` knows BF16.
const CASTS_FROM: i64 = 13;

/// A float model and what is known about it.
pub struct Subject {
    /// As it was given, with bound shapes.
    pub float: Model,
    /// With batch norms and constants folded: what is quantized.
    pub folded: Model,
    /// What it takes.
    pub inputs: Vec<TensorInfo>,
    /// What it gives.
    pub outputs: Vec<TensorInfo>,
    /// Types and shapes of the tensors of the folded model.
    pub shapes: BTreeMap<String, TensorInfo>,
    /// What looks wrong with the model and does not keep it from running.
    pub findings: Vec<Finding>,
    /// The floating-point types of its weights and arithmetic.
    pub float_types: FloatTypes,
}

impl Subject {
    /// What outputs are said to mean: as given, and the states of recurrent layers and what begins with time as numbers, which no
    /// shape tells from scores and maps.
    pub fn kinds(&self, given: &BTreeMap<String, OutputKind>) -> BTreeMap<String, OutputKind> {
        let mut kinds = given.clone();
        let graph = self.float.graph();
        let by_time = self.inputs.iter().any(|input| graph.begins_with_time(&input.name));
        let sequences = self.outputs.iter().filter(|output| by_time && output.shape.len() == 3);
        for output in graph.recurrent_states().into_iter().chain(sequences.map(|output| output.name.as_str())) {
            kinds.entry(output.to_owned()).or_insert(OutputKind::Generic);
        }
        kinds
    }

    /// Reads a model, binds `shapes` to its inputs, folds it and infers shapes.
    pub fn load(
        runtime: OnnxRuntime,
        path: &Path,
        shapes: &BTreeMap<String, Vec<usize>>,
    ) -> Result<Self, PipelineError> {
        let mut float = Model::load(path)?;
        let (errors, findings): (Vec<_>, Vec<_>) =
            diagnose(&float).into_iter().partition(|finding| finding.severity == Severity::Error);
        if !errors.is_empty() {
            let list: Vec<String> = errors.iter().map(|f| format!("{}; {}", f.message, f.hint)).collect();
            return Err(PipelineError::Input(format!(
                "{} cannot be used: {}",
                path.display(),
                list.join("\n  also: ")
            )));
        }
        bind_shapes(&mut float, shapes)?;
        let folded = runtime.fold(&float)?;
        let runner = runtime.build(&folded, &BuildOptions { threads: 1, ..BuildOptions::default() })?;
        let (inputs, outputs) = (runner.inputs().to_vec(), runner.outputs().to_vec());
        drop(runner);
        let tensors: BTreeSet<String> = folded
            .graph()
            .node
            .iter()
            .flat_map(|node| node.output.iter().cloned())
            .filter(|name| !name.is_empty())
            .collect();
        let tensors: Vec<String> = tensors.into_iter().collect();
        let mut shapes = infer_shapes(runtime, &folded, &inputs, &tensors)?;
        shapes.extend(inputs.iter().chain(&outputs).map(|info| (info.name.clone(), info.clone())));
        let float_types = FloatTypes::of(&float, &folded, &shapes);
        Ok(Self { float, folded, inputs, outputs, shapes, findings, float_types })
    }

    /// Multiply-accumulates of one sample in convolutions and products with weights; `None` where an extent is not known.
    pub fn multiply_accumulates(&self) -> Option<f64> {
        let graph = self.folded.graph();
        let weights: HashMap<&str, &[i64]> = graph.initializer.iter().map(|w| (w.name(), &*w.dims)).collect();
        let of_node = |node: &NodeProto| {
            let Some(&dims) = node.input.get(1).and_then(|name| weights.get(name.as_str())) else { return Some(0.0) };
            let Some(axis) = node.channel_axis(1, dims.len()) else { return Some(0.0) };
            let each: f64 = dims.iter().map(|&extent| extent as f64).product::<f64>() / dims[axis].max(1) as f64;
            let shape = &self.shapes.get(node.output.first()?)?.shape;
            let elements = shape.iter().skip(1).try_fold(1.0, |all, extent| Some(all * (*extent)? as f64))?;
            Some(elements * each)
        };
        graph.node.iter().map(of_node).sum()
    }

    /// Where Q/DQ will go.
    pub fn place(&self, scheme: &SchemeOptions) -> Result<Placement, PipelineError> {
        Ok(place(&self.folded, &self.shapes, scheme)?)
    }

    /// The folded model as the quantizer leaves it with every node in float, and quantized: two models that differ in
    /// Q/DQ alone, for looking into layers.
    pub fn analysis_pair(
        &self,
        table: &CalibrationTable,
        options: &QuantizeOptions,
    ) -> Result<(Model, Model), PipelineError> {
        let mut options = QuantizeOptions { high_precision: Precision::Fp32, ..options.clone() };
        // Nodes that a plan lifts are in float, whichever: 16-bit types would differ in more than Q/DQ.
        let plan = &mut options.scheme.plan;
        let lifted = plan.assignments.iter_mut().map(|assignment| &mut assignment.precision).chain(&mut plan.default);
        lifted.filter(|precision| precision.half_type().is_some()).for_each(|precision| *precision = Precision::Fp32);
        let quantized = quantize(&self.folded, &self.shapes, Some(table), &options)?;
        Ok((quantized.float, quantized.model))
    }

    /// Calls the activations that operators of the `float` model of a pair read what they are in the folded model, where
    /// quantizing around another centre put nodes between.
    pub(super) fn name_as_given(&self, float: &GraphView<'_>, layers: &mut [LayerError]) -> Result<(), PipelineError> {
        let folded = GraphView::new(self.folded.graph())?;
        for activation in layers.iter_mut().flat_map(|layer| &mut layer.activations) {
            while let (None, Some(id)) = (folded.producer(&activation.tensor), float.producer(&activation.tensor)) {
                let node = float.node(id);
                let given = folded.node_named(node.name()).map(|id| folded.node(id));
                let Some(before) = given.map_or(&node.input, |node| &node.output).first() else { break };
                activation.tensor.clone_from(before);
                activation.producer = given.map(|node| node.op_type().to_owned());
            }
        }
        Ok(())
    }

    /// The folded model, and the same with the operators that `rounds` takes, by name, [`rounded`] to `half`.
    pub fn rounded_pair(
        &self,
        half: ElementType,
        rounds: &dyn Fn(&str) -> bool,
    ) -> Result<(Model, Model), PipelineError> {
        let float = with_opset(&self.folded, &self.shapes, CASTS_FROM)?;
        let rounded = rounded(&float, &self.shapes, half, rounds)?;
        Ok((float, rounded))
    }

    /// The folded model with the values where `target`, which was made of it, has them, and that target in `float32`, rounded where
    /// it computes in 16 bits: two models of one operator set.
    pub fn pair_with(&self, target: &Model) -> Result<(Model, Model), PipelineError> {
        let opset = |model: &Model| model.opset("").unwrap_or(1);
        let target = with_opset(target, &BTreeMap::new(), opset(&self.folded))?;
        let float = with_opset(&self.folded, &self.shapes, opset(&target))?;
        Ok((moved_like(&float, &self.shapes, &target)?, widened(&target)?))
    }

    /// A runner of the float model.
    pub fn reference(&self, runtime: OnnxRuntime, options: &BuildOptions) -> Result<Box<dyn Runner>, PipelineError> {
        Ok(runtime.build(&self.float, options)?)
    }
}

/// Batches that a free batch axis is tried with: large and different enough that an extent which is the same with both
/// does not depend on the batch.
const TRIED_BATCHES: [usize; 2] = [5, 11];

/// Types and shapes of `tensors`. Extents that the model computes from a free batch (a Reshape by what Shape gives) are
/// unknown to inference, though most of them do not depend on it: those have the same value with two different batches.
fn infer_shapes(
    runtime: OnnxRuntime,
    folded: &Model,
    inputs: &[TensorInfo],
    tensors: &[String],
) -> Result<BTreeMap<String, TensorInfo>, PipelineError> {
    let mut infos = runtime.infer_shapes(folded, tensors)?;
    let free: BTreeSet<&str> =
        inputs.iter().filter(|input| input.shape.first() == Some(&None)).map(|input| input.name.as_str()).collect();
    let open = |info: &TensorInfo| info.shape.is_empty() || info.shape.iter().skip(1).any(Option::is_none);
    if free.is_empty() || tensors.iter().all(|name| infos.get(name).is_some_and(|info| !open(info))) {
        return Ok(infos);
    }
    let with_batch = |batch: usize| {
        let mut bound = folded.clone();
        for input in bound.graph_mut().input.iter_mut().filter(|input| free.contains(input.name())) {
            if let Some(TypeValue::TensorType(kind)) = input.r#type.as_mut().and_then(|kind| kind.value.as_mut())
                && let Some(axis) = kind.shape.as_mut().and_then(|shape| shape.dim.first_mut())
            {
                axis.value = Some(DimensionValue::DimValue(batch as i64));
            }
        }
        // Folding turns what is computed from shapes into constants, which inference then sees.
        let bound = runtime.fold(&bound)?;
        let left: HashSet<&str> = bound.graph().node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
        let tensors: Vec<String> = tensors.iter().filter(|name| left.contains(name.as_str())).cloned().collect();
        runtime.infer_shapes(&bound, &tensors)
    };
    // A model that runs with other batches only keeps what is known without them.
    let [Ok(few), Ok(many)] = TRIED_BATCHES.map(with_batch) else { return Ok(infos) };
    for (name, few) in few {
        let Some(many) = many.get(&name).filter(|many| many.shape.len() == few.shape.len()) else { continue };
        let same = few.shape.iter().zip(&many.shape).map(|(few, many)| few.filter(|_| few == many));
        let same: Vec<_> = same.collect();
        infos.entry(name).and_modify(|info| info.shape.clone_from(&same)).or_insert(TensorInfo { shape: same, ..few });
    }
    Ok(infos)
}

/// Puts extents into the shapes of inputs.
fn bind_shapes(model: &mut Model, shapes: &BTreeMap<String, Vec<usize>>) -> Result<(), PipelineError> {
    let weights: BTreeSet<String> = model.graph().initializer.iter().filter_map(|tensor| tensor.name.clone()).collect();
    for (name, extents) in shapes {
        let names: Vec<String> = model.graph().input.iter().filter_map(|input| input.name.clone()).collect();
        let input = model.graph_mut().input.iter_mut().find(|input| input.name() == name).ok_or_else(|| {
            let inputs: Vec<&str> = names.iter().map(String::as_str).filter(|name| !weights.contains(*name)).collect();
            PipelineError::Input(format!(
                "--shape names the input `{name}`, which the model does not have (it has: `{}`)",
                inputs.join("`, `")
            ))
        })?;
        let shape = match input.r#type.as_mut().and_then(|kind| kind.value.as_mut()) {
            Some(TypeValue::TensorType(tensor)) => tensor.shape.get_or_insert_default(),
            _ => return Err(PipelineError::Input(format!("input `{name}` is not a tensor; it takes no --shape"))),
        };
        if !shape.dim.is_empty() && shape.dim.len() != extents.len() {
            return Err(PipelineError::Input(format!(
                "--shape gives `{name}` {} extents, the model declares {}",
                extents.len(),
                shape.dim.len()
            )));
        }
        for (axis, &extent) in extents.iter().enumerate() {
            let declared = shape.dim.get(axis).and_then(|dim| dim.value.clone());
            if let Some(DimensionValue::DimValue(fixed)) = declared
                && fixed > 0
                && fixed != extent as i64
            {
                return Err(PipelineError::Input(format!(
                    "--shape gives axis {axis} of `{name}` the extent {extent}, the model fixes it to {fixed}"
                )));
            }
        }
        shape.dim = extents
            .iter()
            .map(|&extent| DimensionProto { value: Some(DimensionValue::DimValue(extent as i64)), denotation: None })
            .collect();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use calib_test_support::Need;

    use super::*;
    use crate::{
        onnx::proto::{AttributeProto, FunctionProto, NodeProto, TensorProto},
        quantize::{Rule, testing::TestModel},
        tensor::{Tensor, Values},
    };

    #[test]
    fn multiply_accumulates_are_those_of_convolutions_and_of_the_classifier() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let Some(path) = calib_test_support::shared("models/efficientnet_lite0.onnx") else { return };
        let subject = Subject::load(runtime, &path, &BTreeMap::new()).unwrap();
        // Counted from the shapes that onnx.shape_inference gives.
        assert_eq!(subject.multiply_accumulates(), Some(385_187_552.0));
    }

    /// `model`, whose node `kept` becomes the body of a function of the model's own.
    fn with_function(mut model: Model) -> Model {
        let graph = model.graph_mut();
        let kept = graph.node.iter_mut().find(|node| node.name() == "kept").unwrap();
        let domain = || Some("own".to_owned());
        let given = |names: &[String]| names.iter().filter(|name| !name.is_empty()).cloned().collect::<Vec<_>>();
        let (input, output) = (given(&kept.input), given(&kept.output));
        let call = NodeProto {
            name: Some("call".to_owned()),
            op_type: Some("Wrapped".to_owned()),
            domain: domain(),
            input: input.clone(),
            output: output.clone(),
            ..NodeProto::default()
        };
        let function = FunctionProto {
            name: call.op_type.clone(),
            domain: domain(),
            input,
            output,
            node: vec![std::mem::replace(kept, call)],
            opset_import: model.proto.opset_import.clone(),
            ..FunctionProto::default()
        };
        model.proto.functions.push(function);
        model.set_opset("own", 1);
        model
    }

    #[test]
    fn operators_that_onnx_defines_as_functions_stay_in_16_bits_and_in_functions() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/function_operators");
        let files: BTreeSet<_> = std::fs::read_dir(files).unwrap().map(|entry| entry.unwrap().path()).collect();
        // The body of one does not run on a CPU, that of the next has 8 bits already, and the model of the last is in float64.
        let without = ["Bernoulli", "DynamicQuantizeLinear", "ReduceLogSumExp"];
        let mut lost = Vec::new();
        for file in files {
            let op_type = file.file_stem().unwrap().to_string_lossy().into_owned();
            let model = Model::load(&file).unwrap();
            for (name, model) in [("kept", model.clone()), ("call/kept", with_function(model))] {
                if without.contains(&op_type.as_str()) {
                    continue;
                }
                let folded = runtime.fold(&model).unwrap();
                let tensors: Vec<_> = folded.graph().node.iter().flat_map(|node| node.output.clone()).collect();
                let shapes = runtime.infer_shapes(&folded, &tensors).unwrap();
                for precision in [Precision::Fp16, Precision::Bf16] {
                    let scheme = SchemeOptions { precision, ..SchemeOptions::default() };
                    let options = QuantizeOptions { scheme, ..QuantizeOptions::default() };
                    let is_it = |node: &NodeProto| node.name() == name && node.op_type() == op_type;
                    match quantize(&folded, &shapes, None, &options) {
                        Err(error) => lost.push(format!("{op_type} as {name} in {precision}: {error}")),
                        Ok(made) if !made.model.graph().node.iter().any(is_it) => {
                            lost.push(format!("{op_type} as {name} in {precision}"));
                        }
                        // No operator is in BF16 on a CPU.
                        Ok(made) if precision == Precision::Fp16 => {
                            let built = runtime.build(&made.model, &BuildOptions::default());
                            lost.extend(built.err().map(|error| format!("{op_type} as {name} is not run: {error}")));
                        }
                        Ok(_) => {}
                    }
                }
            }
        }
        assert_eq!(lost, Vec::<String>::new());
    }

    /// Attention with two heads over `length` positions, whose batch is free and found out by Shape.
    fn attention(length: i64) -> TestModel {
        let heads = |model: TestModel, name: &str, order: [i64; 4]| {
            let split = format!("{name}_split");
            let transpose = NodeProto::new("Transpose", name, &[&split], &[name]);
            model.op("Reshape", &["x", "heads"], &split).node(transpose.with(AttributeProto::ints("perm", &order)))
        };
        let constant = |name: &str, values: &[i64]| {
            TensorProto::from_tensor(name, Tensor::new(vec![values.len()], Values::I64(values.to_vec())).unwrap())
        };
        let mut model = TestModel::new(17).input("x", &[-1, length, 64]).output("y", &[-1, 2, -1, 32]);
        model.graph_mut().initializer.extend([constant("first", &[0]), constant("rest", &[-1, 2, 32])]);
        let model = model.op("Shape", &["x"], "shape").op("Gather", &["shape", "first"], "batch").node(
            NodeProto::new("Concat", "heads", &["batch", "rest"], &["heads"]).with(AttributeProto::int("axis", 0)),
        );
        let model = heads(heads(heads(model, "q", [0, 2, 1, 3]), "k", [0, 2, 3, 1]), "v", [0, 2, 1, 3]);
        model.op("MatMul", &["q", "k"], "scores").op("Softmax", &["scores"], "w").op("MatMul", &["w", "v"], "y")
    }

    #[test]
    fn extents_that_do_not_depend_on_the_batch_are_known_without_binding_it() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attention.onnx");
        let load = |length: i64| {
            attention(length).build().save(&path).unwrap();
            Subject::load(runtime, &path, &BTreeMap::new()).unwrap()
        };
        let rules = |subject: &Subject| {
            let placement = subject.place(&SchemeOptions::default()).unwrap();
            placement.decisions.iter().filter(|d| d.op_type == "MatMul").map(|d| d.rule).collect::<Vec<_>>()
        };
        let fixed = load(48);
        assert_eq!(fixed.shapes["scores"].shape, [None, Some(2), Some(48), Some(48)]);
        assert_eq!(rules(&fixed), [Rule::Attention; 2]);
        // Whether a free length stays within the limits of attention, nobody knows.

        assert_eq!(rules(&load(-1)), [Rule::UnknownShape; 2]);
    }
}
