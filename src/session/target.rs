//! SPEC of the command line: what gives outputs.

use std::path::{Path, PathBuf};

use super::{Host, PipelineError};
use crate::{
    backend::{
        ExecutionProvider,
        tensorrt::{EngineSidecar, RunnerOptions, TensorRtError, run_engine, runtime_cache_warning},
    },
    config::RunConfig,
};

/// What gives outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// ONNX Runtime; without a file, the float model.
    OnnxRuntime(Option<PathBuf>, ExecutionProvider),
    /// Outputs that were saved before.
    Saved(PathBuf),
    /// A TensorRT engine.
    Engine(PathBuf),
}

impl Spec {
    /// Reads a SPEC: `ort`, `ort:FILE.onnx`, `ort-cuda[:FILE.onnx]`, `trt:FILE.plan` and their like, or a file by its ending.
    ///
    /// # Errors
    /// It reads like none of these.
    pub fn parse(text: &str) -> Result<Self, PipelineError> {
        let file = |rest: &str| (!rest.is_empty()).then(|| PathBuf::from(rest));
        if text == "ort" || text.starts_with("ort:") {
            return Ok(Self::OnnxRuntime(file(text.get(4..).unwrap_or("")), ExecutionProvider::Cpu));
        }
        for (name, provider) in
            [("ort-cuda", ExecutionProvider::Cuda(0)), ("ort-cuda-tf32", ExecutionProvider::CudaTf32(0))]
        {
            if let Some(rest) = text.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with(':')) {
                return Ok(Self::OnnxRuntime(file(rest.get(1..).unwrap_or("")), provider));
            }
        }
        if let Some(engine) = text.strip_prefix("trt:") {
            return Ok(Self::Engine(engine.into()));
        }
        if let Some(saved) = text.strip_prefix("saved:") {
            return Ok(Self::Saved(saved.into()));
        }
        let ending = Path::new(text).extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("onnx") => Ok(Self::OnnxRuntime(Some(text.into()), ExecutionProvider::Cpu)),
            Some("npz" | "json") => Ok(Self::Saved(text.into())),
            Some("plan" | "engine" | "trt") => Ok(Self::Engine(text.into())),
            _ => bail!(
                "`{text}` names nothing that can be run; use ort, ort:FILE.onnx, ort-cuda[:FILE.onnx], ort-cuda-tf32[:FILE.onnx], trt:FILE.plan, saved:FILE.npz, saved:FILE.json, or a \
                 file ending in .onnx, .npz, .json, .plan, .engine or .trt"
            ),
        }
    }

    /// With ONNX Runtime on `provider` where the SPEC names none.
    pub(super) fn on(self, provider: ExecutionProvider) -> Self {
        match self {
            Self::OnnxRuntime(file, ExecutionProvider::Cpu) => Self::OnnxRuntime(file, provider),
            named => named,
        }
    }
}

/// Takes model, data and labels from what `calib build` wrote beside an engine, where nothing else named them.
///
/// # Errors
/// There is no such engine, its sidecar cannot be read, or it has none and is refused.
pub fn fill_from_sidecar(config: &mut RunConfig, spec: &Spec) -> Result<(), PipelineError> {
    let Spec::Engine(path) = spec else { return Ok(()) };
    let Some(sidecar) = sidecar_beside(path, config)? else { return Ok(()) };
    config.batch = config.batch.or(batches(&sidecar).map(|[_, opt, _]| opt));
    config.model.get_or_insert(sidecar.reference.unwrap_or(sidecar.model));
    config.data = config.data.take().or(sidecar.data);
    config.labels = config.labels.take().or(sidecar.labels);
    Ok(())
}

/// What `calib build` wrote beside an engine, if it did. Where nothing names the model, an engine that is refused is refused
/// now: for one of an older TensorRT, naming it would not help.
pub(super) fn sidecar_beside(engine: &Path, config: &RunConfig) -> Result<Option<EngineSidecar>, PipelineError> {
    ensure!(engine.exists(), "there is no engine {}; `calib build` makes one", engine.display());
    let sidecar = EngineSidecar::beside(engine)?;
    if sidecar.is_none()
        && config.model.is_none()
        && let Err(error @ TensorRtError::Engine { .. }) = run_engine(engine, &RunnerOptions::default())
    {
        return Err(error.into());
    }
    Ok(sidecar)
}

/// Warns of a runtime cache that holds nothing that can be used.
pub(super) fn warn_of_cache(host: &Host, cache: Option<&PathBuf>) -> Result<(), PipelineError> {
    if let Some(warning) = cache.map(|path| runtime_cache_warning(path)).transpose()?.flatten() {
        host.warn(&warning);
    }
    Ok(())
}

/// The smallest, likely and largest batch of an engine. Where an input begins with another axis, a call takes one sample: the
/// profile tells no batch.
pub(super) fn batches(sidecar: &EngineSidecar) -> Option<[usize; 3]> {
    if !sidecar.inputs.iter().all(|input| input.shape.first() == Some(&None)) {
        return None;
    }
    let shapes = sidecar.options.profile.shapes.get(&sidecar.inputs.first()?.name)?;
    let [Some(min), Some(opt), Some(max)] = shapes.each_ref().map(|shape| shape.first().copied()) else { return None };
    Some([min, opt, max])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_by_prefix_and_by_ending() {
        let ort = |file: Option<&str>| Spec::OnnxRuntime(file.map(PathBuf::from), ExecutionProvider::Cpu);
        assert_eq!(Spec::parse("ort").unwrap(), ort(None));
        assert_eq!(Spec::parse("ort:a.onnx").unwrap(), ort(Some("a.onnx")));
        assert_eq!(Spec::parse("dir/a.ONNX").unwrap(), ort(Some("dir/a.ONNX")));
        assert_eq!(Spec::parse("ort-cuda").unwrap(), Spec::OnnxRuntime(None, ExecutionProvider::Cuda(0)));
        let tf32 = Spec::parse("ort-cuda-tf32:a.onnx").unwrap();
        assert_eq!(tf32, Spec::OnnxRuntime(Some("a.onnx".into()), ExecutionProvider::CudaTf32(0)));
        assert_eq!(
            Spec::parse("ort").unwrap().on(ExecutionProvider::Cuda(1)),
            Spec::OnnxRuntime(None, ExecutionProvider::Cuda(1))
        );
        assert_eq!(tf32.clone().on(ExecutionProvider::Cuda(1)), tf32, "the SPEC has the last word");
        assert!(Spec::parse("ort-cuda-fp8").is_err());
        assert_eq!(Spec::parse("x.engine").unwrap(), Spec::Engine("x.engine".into()));
        assert_eq!(Spec::parse("trt:x").unwrap(), Spec::Engine("x".into()));
        assert_eq!(Spec::parse("saved:x").unwrap(), Spec::Saved("x".into()));
        assert_eq!(Spec::parse("x.json").unwrap(), Spec::Saved("x.json".into()));
        assert_eq!(Spec::parse("x.npz").unwrap(), Spec::Saved("x.npz".into()));
        assert!(Spec::parse("x.pb").unwrap_err().to_string().contains("`x.pb`"));
    }
}
