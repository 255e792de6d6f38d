//! A TensorRT engine, built one way for everyone: with a profile, and with a sidecar that tells what it was built from.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{Host, PipelineError, Within};
use crate::{
    artifact::{ContentHash, Tool, write_atomic},
    backend::{
        TensorInfo,
        tensorrt::{
            BuildStep, EngineOptions, EngineSidecar, Library, OptimizationProfile, SIDECAR_FORMAT_VERSION,
            build_engine, describe_shape, joined, require_library,
        },
    },
    config::ConfigError,
    onnx::{Model, proto::TensorProto},
    quantize::{of_random_data, validate},
    tensor::ElementType,
};

/// What an engine is to be built from, and what its sidecar is to tell.
pub struct EngineOrder {
    /// What builds it.
    pub tensorrt: Library,
    /// ONNX model.
    pub model: PathBuf,
    /// Float model to compare with later.
    pub reference: Option<PathBuf>,
    /// Data to compare on later.
    pub data: Option<PathBuf>,
    /// Labels of that data.
    pub labels: Option<PathBuf>,
    /// Precision that the model was made in.
    pub precision: Option<String>,
    /// What the engine takes.
    pub inputs: Vec<TensorInfo>,
    /// What it gives.
    pub outputs: Vec<TensorInfo>,
    /// How it is built.
    pub options: EngineOptions,
}

impl EngineOrder {
    /// An engine of the model in a file, by the library in `folder` or wherever one is found.
    ///
    /// # Errors
    /// There is no TensorRT, or the model cannot be read.
    pub fn open(model: &Path, folder: Option<&Path>) -> Result<Self, PipelineError> {
        let tensorrt = require_library(folder)?;
        let found = Model::load(model)?;
        let (inputs, outputs) = declared(&found);
        let precision = precision(&found);
        let (reference, data, labels) = (None, None, None);
        let options = EngineOptions::default();
        Ok(Self { tensorrt, model: model.to_owned(), reference, data, labels, precision, inputs, outputs, options })
    }

    /// Takes profiles: of the shapes of an input, and of the values of one that is a fixed row of integers, which are all that
    /// may change there.
    ///
    /// # Errors
    /// A profile is of no input, or has another number of values or an extent below 0.
    pub fn with_profiles(mut self, given: BTreeMap<String, [Vec<i64>; 3]>) -> Result<Self, PipelineError> {
        for (name, triple) in given {
            let invalid = |reason: String| ConfigError::Value { key: "profile", reason };
            let input = self.inputs.iter().find(|input| input.name == name);
            if let Some(count) = input.and_then(values_of) {
                let wrong = triple.iter().find(|values| values.len() != count);
                if let Some(values) = wrong {
                    let reason = format!(
                        "the shape of `{name}` is fixed, so its profile is one of its values: {count} in each of \
                         MIN:OPT:MAX, and not {} as in {}",
                        values.len(),
                        joined(values)
                    );
                    return Err(invalid(reason).into());
                }
                self.options.profile.values.insert(name, triple);
            } else {
                let shape = |extents: &Vec<i64>| extents.iter().map(|&extent| usize::try_from(extent)).collect();
                let [min, opt, max] = triple.each_ref().map(shape);
                let (Ok(min), Ok(opt), Ok(max)) = (min, opt, max) else {
                    return Err(invalid(format!("`{name}` cannot have extents below 0")).into());
                };
                self.options.profile.shapes.insert(name, [min, opt, max]);
            }
        }
        Ok(self)
    }

    /// Gives inputs without a profile one for batches up to `batch`, with the extents that `bound` names.
    ///
    /// # Errors
    /// A shape or profile is of no input, disagrees with what the model fixes, or an extent is not known.
    pub fn for_batch(mut self, batch: usize, bound: &BTreeMap<String, Vec<usize>>) -> Result<Self, PipelineError> {
        if batch == 0 {
            return Err(ConfigError::Value { key: "batch", reason: "must be at least 1".to_owned() }.into());
        }
        let given = &self.options.profile.shapes;
        let each = given.iter().flat_map(|(name, shapes)| shapes.iter().map(move |shape| (name, shape)));
        check_shapes(&self.inputs, "profile", each)?;
        check_shapes(&self.inputs, "shape", bound)?;
        let open: Vec<_> = self.inputs.iter().filter(|input| !given.contains_key(&input.name)).cloned().collect();
        let profile = OptimizationProfile::for_batch(&open, batch, bound)?;
        self.options.profile.shapes.extend(profile.shapes);
        Ok(self)
    }

    /// Builds the engine and writes it with its sidecar, which is returned.
    ///
    /// # Errors
    /// TensorRT refuses the model, a file cannot be written, or the host stopped it.
    pub fn write(self, host: &Host, output: &Path) -> Result<EngineSidecar, PipelineError> {
        let model = Model::load(&self.model)?;
        if let Some(finding) = validate(&model)?.iter().find(|finding| finding.stops_builder) {
            bail!("{} cannot be built: node `{}`: {}", self.model.display(), finding.node, finding.message);
        }
        let work = host.begin("building", 0);
        let own = host.clone();
        let step = move |step: BuildStep<'_>| {
            own.tell(step.phase, step.done, step.steps);
            own.check().is_ok()
        };
        let engine = build_engine(&self.tensorrt, &self.model, &self.options, step);
        drop(work);
        host.check()?;
        let engine = engine?;
        let (layers, unread) = match engine.layers(&model.op_types()) {
            Ok(layers) => (layers.map_or_else(Vec::new, |layers| layers.layers), None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        write_atomic(output, &engine.bytes)?;
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let sidecar = EngineSidecar {
            format_version: SIDECAR_FORMAT_VERSION,
            tool: Tool::current(),
            engine_hash: ContentHash::of_bytes(&engine.bytes),
            flavour: self.tensorrt.flavour,
            tensorrt_version: engine.tensorrt_version,
            model: absolute(self.model),
            model_hash: model.hash.clone(),
            reference: self.reference.map(absolute),
            data: self.data.map(absolute),
            labels: self.labels.map(absolute),
            precision: self.precision,
            random_data: of_random_data(&model),
            inputs: self.inputs,
            outputs: self.outputs,
            options: self.options,
            build_seconds: engine.seconds,
            warnings: engine.warnings.into_iter().chain(unread).collect(),
            layers,
        };
        sidecar.save(output).within(|| "the engine was written, its sidecar was not".to_owned())?;
        for warning in &sidecar.warnings {
            host.warn(&format!("{}: {warning}", output.display()));
        }
        if sidecar.random_data {
            let model = sidecar.model.display();
            host.warn(&format!(
                "{model} was calibrated on random numbers: the engine's results say nothing about real inputs"
            ));
        }
        host.wrote(output);
        Ok(sidecar)
    }
}

/// How many values an input holds that can hold a shape: integers, none of whose extents are open.
pub fn values_of(input: &TensorInfo) -> Option<usize> {
    let is_integer = matches!(input.element_type, Some(ElementType::I32 | ElementType::I64));
    if is_integer && input.shape.len() <= 1 { input.shape.iter().copied().product() } else { None }
}

/// Inputs and outputs as the file declares them. ONNX Runtime is not asked: it runs fewer models than TensorRT builds
/// (convolutions in BF16, for one).
pub fn declared(model: &Model) -> (Vec<TensorInfo>, Vec<TensorInfo>) {
    let graph = model.graph();
    let weights: BTreeSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    let inputs = graph.input.iter().filter(|input| !weights.contains(input.name()));
    (inputs.filter_map(TensorInfo::declared).collect(), graph.output.iter().filter_map(TensorInfo::declared).collect())
}

/// What `calib quantize` recorded in the model.
fn precision(model: &Model) -> Option<String> {
    let entries = &model.proto.metadata_props;
    entries.iter().find(|entry| entry.key() == "calib.precision").map(|entry| entry.value().to_owned())
}

/// Shapes that were given must be of the model's inputs, and agree with the extents that these fix.
fn check_shapes<'a>(
    inputs: &[TensorInfo],
    key: &'static str,
    shapes: impl IntoIterator<Item = (&'a String, &'a Vec<usize>)>,
) -> Result<(), ConfigError> {
    for (name, shape) in shapes {
        let invalid = |reason: String| Err(ConfigError::Value { key, reason });
        let described = |input: &TensorInfo| format!("{} ({})", input.name, describe_shape(&input.shape));
        let Some(input) = inputs.iter().find(|input| input.name == *name) else {
            let known: Vec<String> = inputs.iter().map(described).collect();
            return invalid(format!("the model has no input `{name}`; its inputs are {}", known.join(", ")));
        };
        let agrees = |(&fixed, &extent): (&Option<usize>, &usize)| fixed.is_none_or(|fixed| fixed == extent);
        if input.shape.len() != shape.len() || !input.shape.iter().zip(shape).all(agrees) {
            return invalid(format!("{} cannot have the shape {}", described(input), joined(shape)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_of_inputs_and_agree_with_them() {
        let input = TensorInfo { name: "x".to_owned(), element_type: None, shape: vec![None, Some(3)] };
        let check = |name: &str, shape: &[usize]| {
            let found = check_shapes(std::slice::from_ref(&input), "shape", [(&name.to_owned(), &shape.to_vec())]);
            found.map_err(|error| error.to_string())
        };
        check("x", &[8, 3]).unwrap();
        assert!(check("y", &[8, 3]).unwrap_err().contains("no input `y`; its inputs are x (?x3)"));
        assert!(check("x", &[8, 4]).unwrap_err().contains("x (?x3) cannot have the shape 8x4"));
        assert!(check("x", &[8]).is_err());
    }

    #[test]
    fn only_fixed_rows_of_integers_hold_values() {
        let of = |element_type: ElementType, shape: &[Option<usize>]| {
            values_of(&TensorInfo { name: "x".to_owned(), element_type: Some(element_type), shape: shape.to_vec() })
        };
        assert_eq!([of(ElementType::I64, &[Some(2)]), of(ElementType::I32, &[])], [Some(2), Some(1)]);
        assert_eq!(of(ElementType::I64, &[None]), None);
        assert_eq!(of(ElementType::I64, &[Some(1), Some(2)]), None);
        assert_eq!(of(ElementType::F32, &[Some(2)]), None);
    }
}
