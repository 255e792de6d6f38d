//! What gives outputs, as a SPEC of the command line names it.

use std::path::{Path, PathBuf};

use super::{
    Host, PipelineError, Session,
    evaluation::{Outputs, Recorder},
};
use crate::{
    backend::{
        Backend, BuildOptions, ExecutionProvider, Runner, TensorInfo,
        onnxruntime::widens_halves,
        tensorrt::{EngineSidecar, RunnerOptions, TensorRtError, require_library, run_engine, runtime_cache_warning},
    },
    compare::SavedOutputs,
    config::RunConfig,
    onnx::{Model, file_bytes},
};

/// What gives outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A model in ONNX Runtime; without a file, the float model.
    Model(Option<PathBuf>, ExecutionProvider),
    /// Outputs that were saved before.
    Saved(PathBuf),
    /// A TensorRT engine.
    Engine(PathBuf),
}

impl Target {
    /// Reads a SPEC: `ort`, `ort:FILE.onnx`, `ort-cuda[:FILE.onnx]`, `trt:FILE.plan` and their like, or a file by its ending.
    ///
    /// # Errors
    /// It reads like none of these.
    pub fn parse(text: &str) -> Result<Self, PipelineError> {
        let file = |rest: &str| (!rest.is_empty()).then(|| PathBuf::from(rest));
        if text == "ort" || text.starts_with("ort:") {
            return Ok(Self::Model(file(text.get(4..).unwrap_or("")), ExecutionProvider::Cpu));
        }
        for (name, provider) in
            [("ort-cuda", ExecutionProvider::Cuda(0)), ("ort-cuda-tf32", ExecutionProvider::CudaTf32(0))]
        {
            if let Some(rest) = text.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with(':')) {
                return Ok(Self::Model(file(rest.get(1..).unwrap_or("")), provider));
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
            Some("onnx") => Ok(Self::Model(Some(text.into()), ExecutionProvider::Cpu)),
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
            Self::Model(file, ExecutionProvider::Cpu) => Self::Model(file, provider),
            named => named,
        }
    }

    /// The file that it is read from; none where it stands for the float model.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::Model(file, _) => file.as_deref(),
            Self::Saved(file) | Self::Engine(file) => Some(file),
        }
    }

    pub(super) fn is_engine(&self) -> bool {
        matches!(self, Self::Engine(_))
    }

    /// Size of its model or engine, with a model's external data.
    pub(super) fn size_mb(&self) -> Option<f64> {
        let bytes = match self {
            Self::Model(file, _) => file_bytes(file.as_ref()?).ok()?,
            Self::Engine(file) => std::fs::metadata(file).ok()?.len(),
            Self::Saved(_) => return None,
        };
        Some(bytes as f64 / 1e6)
    }

    /// What runs an engine, or ran the one whose outputs were saved.
    pub(super) fn made_by(&self) -> Result<Option<String>, PipelineError> {
        Ok(match self {
            Self::Engine(_) => Some(require_library(None)?.name()?),
            Self::Saved(file) => SavedOutputs::open(file)?.made_by().map(str::to_owned),
            Self::Model(..) => None,
        })
    }

    /// What gives its outputs, and which these are; `save` is the file that they are saved in on the way.
    pub(super) fn open(
        &self,
        session: &Session,
        (build, engine): (&BuildOptions, &RunnerOptions),
        save: Option<&Path>,
    ) -> Result<(OpenTarget, Vec<TensorInfo>), PipelineError> {
        let running = |runner: Box<dyn Runner>| {
            let infos = runner.outputs().to_vec();
            (Box::new(runner) as Box<dyn Outputs>, infos)
        };
        let (outputs, infos): (Box<dyn Outputs>, _) = match self {
            Self::Model(file, provider) => {
                let build = BuildOptions { provider: *provider, ..build.clone() };
                let model = match file {
                    Some(path) => Model::load(path)?,
                    None => session.subject.float.clone(),
                };
                if widens_halves(&model, *provider) {
                    session.host.warn(&format!(
                        "{}: ONNX Runtime's CPU provider computes 16-bit numbers in 32 bits, so what they round and overflow on the \
                         way does not show; `calib run` imitates it, and a GPU computes it (ort-cuda:FILE)",
                        model.name()
                    ));
                }
                running(session.runtime.build(&model, &build)?)
            }
            Self::Saved(path) => {
                let saved = SavedOutputs::open_beside(path, session.dataset().len())?;
                let infos = saved.infos();
                (Box::new(saved), infos)
            }
            Self::Engine(path) => running(run_engine(path, engine)?),
        };
        let opened = match save {
            Some(path) => OpenTarget::Recorded(Recorder::new(outputs, self.made_by()?)?, path.to_owned()),
            None => OpenTarget::Plain(outputs),
        };
        Ok((opened, infos))
    }
}

/// What gives outputs, and where they are saved on the way.
pub(super) enum OpenTarget {
    Plain(Box<dyn Outputs>),
    Recorded(Recorder, PathBuf),
}

impl OpenTarget {
    pub(super) fn outputs(&mut self) -> &mut dyn Outputs {
        match self {
            Self::Plain(outputs) => &mut **outputs,
            Self::Recorded(recorder, _) => recorder,
        }
    }

    /// Writes what was recorded.
    pub(super) fn finish(self) -> Result<(), PipelineError> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Recorded(recorder, path) => Ok(recorder.finish(&path)?),
        }
    }
}

/// Takes model, data and labels from what `calib build` wrote beside an engine, where nothing else named them.
///
/// # Errors
/// There is no such engine, its sidecar cannot be read, or it has none and is refused.
pub fn fill_from_sidecar(config: &mut RunConfig, target: &Target) -> Result<(), PipelineError> {
    let Target::Engine(path) = target else { return Ok(()) };
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
        let ort = |file: Option<&str>| Target::Model(file.map(PathBuf::from), ExecutionProvider::Cpu);
        assert_eq!(Target::parse("ort").unwrap(), ort(None));
        assert_eq!(Target::parse("ort:a.onnx").unwrap(), ort(Some("a.onnx")));
        assert_eq!(Target::parse("dir/a.ONNX").unwrap(), ort(Some("dir/a.ONNX")));
        assert_eq!(Target::parse("ort-cuda").unwrap(), Target::Model(None, ExecutionProvider::Cuda(0)));
        let tf32 = Target::parse("ort-cuda-tf32:a.onnx").unwrap();
        assert_eq!(tf32, Target::Model(Some("a.onnx".into()), ExecutionProvider::CudaTf32(0)));
        assert_eq!(
            Target::parse("ort").unwrap().on(ExecutionProvider::Cuda(1)),
            Target::Model(None, ExecutionProvider::Cuda(1))
        );
        assert_eq!(tf32.clone().on(ExecutionProvider::Cuda(1)), tf32, "the SPEC has the last word");
        assert!(Target::parse("ort-cuda-fp8").is_err());
        assert_eq!(Target::parse("x.engine").unwrap(), Target::Engine("x.engine".into()));
        assert_eq!(Target::parse("trt:x").unwrap(), Target::Engine("x".into()));
        assert_eq!(Target::parse("saved:x").unwrap(), Target::Saved("x".into()));
        assert_eq!(Target::parse("x.json").unwrap(), Target::Saved("x.json".into()));
        assert_eq!(Target::parse("x.npz").unwrap(), Target::Saved("x.npz".into()));
        assert!(Target::parse("x.pb").unwrap_err().to_string().contains("`x.pb`"));
    }
}
