//! `calib build`: a TensorRT engine and its sidecar.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::{ExitStatus, INTERRUPTED, Printer, output::check_folders};
use crate::args::BuildArgs;
use trtcalib::{
    artifact::{ContentHash, Tool, write_atomic},
    backend::{
        TensorInfo,
        tensorrt::{
            BuildStep, EngineLayers, EngineOptions, EngineSidecar, Library, OptimizationProfile,
            SIDECAR_FORMAT_VERSION, build_engine, describe_shape, require_library,
        },
    },
    config::{ConfigError, parse_shape},
    onnx::{Model, proto::TensorProto},
};

/// Builds.
pub(super) fn build(printer: &Printer, args: &BuildArgs) -> anyhow::Result<ExitStatus> {
    let sidecar = engine(printer, args)?;
    let bytes = std::fs::metadata(&args.output).map_or(0, |file| file.len());
    let summary = (!sidecar.layers.is_empty()).then(|| EngineLayers { layers: sidecar.layers.clone() }.summary());
    let layers = summary.map_or_else(String::new, |summary| format!("\nlayers: {summary}"));
    printer.outcome(&sidecar, || {
        format!(
            "{}: {:.2} MB in {:.1} s by {} {}{layers}",
            args.output.display(),
            bytes as f64 / 1e6,
            sidecar.build_seconds,
            sidecar.flavour,
            sidecar.tensorrt_version
        )
    })?;
    Ok(ExitStatus::Passed)
}

/// Writes the engine and its sidecar, which is returned.
pub(super) fn engine(printer: &Printer, args: &BuildArgs) -> anyhow::Result<EngineSidecar> {
    check_folders([&*args.output])?;
    let library = require_library(args.tensorrt_dir.as_deref())?;
    let mut bound = BTreeMap::new();
    for shape in &args.shape {
        let (name, extents) = parse_shape(shape)?;
        bound.insert(name, extents);
    }
    let model = Model::load(&args.model)?;
    let (inputs, outputs) = declared(&model);
    let mut profile = args.profile.iter().map(|text| parse_profile(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
    check_shapes(&inputs, "profile", profile.iter().flat_map(|(name, shapes)| shapes.iter().map(move |s| (name, s))))?;
    check_shapes(&inputs, "shape", &bound)?;
    let open: Vec<_> = inputs.iter().filter(|input| !profile.contains_key(&input.name)).cloned().collect();
    profile.extend(OptimizationProfile::for_batch(&open, args.batch, &bound)?.shapes);
    let options = EngineOptions {
        profile: OptimizationProfile { shapes: profile },
        workspace_bytes: args.workspace_mb.map(|megabytes| megabytes << 20),
        tf32: args.tf32,
        version_compatible: args.version_compatible,
        hardware_compatible: args.hardware_compatible,
        optimization_level: args.optimization_level,
        compute_capabilities: args.compute_capability.clone(),
    };
    let (reference, data, labels) = (args.reference.clone(), args.data.clone(), args.labels.clone());
    let precision = precision(&model);
    Order { tensorrt: &library, model: &args.model, reference, data, labels, precision, inputs, outputs, options }
        .write(printer, &args.output)
}

/// What an engine is to be built from, and what its sidecar is to tell.
pub(super) struct Order<'a> {
    pub(super) tensorrt: &'a Library,
    pub(super) model: &'a Path,
    pub(super) reference: Option<PathBuf>,
    pub(super) data: Option<PathBuf>,
    pub(super) labels: Option<PathBuf>,
    pub(super) precision: Option<String>,
    pub(super) inputs: Vec<TensorInfo>,
    pub(super) outputs: Vec<TensorInfo>,
    pub(super) options: EngineOptions,
}

impl Order<'_> {
    /// Builds the engine and writes it with its sidecar, which is returned.
    pub(super) fn write(self, printer: &Printer, output: &Path) -> anyhow::Result<EngineSidecar> {
        let model = Model::load(self.model)?;
        let bar = printer.progress(0, "building");
        let shown = bar.clone();
        let step = move |step: BuildStep<'_>| {
            shown.set_message(step.phase.to_owned());
            shown.set_length(step.steps);
            shown.set_position(step.done);
            !INTERRUPTED.load(std::sync::atomic::Ordering::Relaxed)
        };
        let engine = build_engine(self.tensorrt, self.model, &self.options, step);
        bar.finish_and_clear();
        super::check_interrupt()?;
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
            model: absolute(self.model.to_owned()),
            model_hash: model.hash,
            reference: self.reference.map(absolute),
            data: self.data.map(absolute),
            labels: self.labels.map(absolute),
            precision: self.precision,
            inputs: self.inputs,
            outputs: self.outputs,
            options: self.options,
            build_seconds: engine.seconds,
            warnings: engine.warnings.into_iter().chain(unread).collect(),
            layers,
        };
        sidecar.save(output).context("the engine was written, its sidecar was not")?;
        Ok(sidecar)
    }
}

/// Inputs and outputs as the file declares them. ONNX Runtime is not asked: it runs fewer models than TensorRT builds
/// (convolutions in BF16, for one).
pub(super) fn declared(model: &Model) -> (Vec<TensorInfo>, Vec<TensorInfo>) {
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
            let given: Vec<String> = shape.iter().map(usize::to_string).collect();
            return invalid(format!("{} cannot have the shape {}", described(input), given.join("x")));
        }
    }
    Ok(())
}

/// `input=1x3x224x224:8x3x224x224:32x3x224x224`.
fn parse_profile(text: &str) -> Result<(String, [Vec<usize>; 3]), ConfigError> {
    let invalid = |reason: &str| ConfigError::Value { key: "profile", reason: format!("`{text}` {reason}") };
    let form = "does not read like input=1x3x224x224:8x3x224x224:32x3x224x224 (min:opt:max)";
    let (name, shapes) = text.rsplit_once('=').ok_or_else(|| invalid(form))?;
    let shapes = shapes
        .split(':')
        .map(|shape| shape.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| invalid(form))?;
    let shapes: [Vec<usize>; 3] = shapes.try_into().map_err(|_| invalid(form))?;
    let [min, opt, max] = &shapes;
    let ordered = min.len() == opt.len()
        && opt.len() == max.len()
        && min.iter().zip(opt).zip(max).all(|((min, opt), max)| min <= opt && opt <= max);
    if ordered { Ok((name.to_owned(), shapes)) } else { Err(invalid("is not in the order min ≤ opt ≤ max")) }
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
    fn profiles() {
        let (name, [min, opt, max]) = parse_profile("in:0=1x3:4x3:8x3").unwrap();
        assert_eq!((name.as_str(), min, opt, max), ("in:0", vec![1, 3], vec![4, 3], vec![8, 3]));
        assert!(parse_profile("a=4x3:1x3:8x3").unwrap_err().to_string().contains("min ≤ opt"));
        assert!(parse_profile("a=1x3").is_err());
    }
}
