//! An engine as the target: its outputs by running it, other tensors by engines built from the same model with a few more
//! outputs.

use std::path::Path;

use super::subject::Bisection;
use crate::{
    analyse::{
        graphwise::{Graphwise, Source, TensorSite, run, shared_tensors, sites_of},
        layerwise::Samples,
    },
    artifact::write_atomic,
    backend::{
        Runner,
        tensorrt::{EngineOptions, EngineSidecar, Library, RunnerOptions, build_engine, require_library, run_engine},
    },
    bisect::probes::{ProbeReport, Probes, with_outputs},
    onnx::Model,
    session::{Host, PipelineError, Within},
    tensor::ElementType,
};

/// An engine that runs, and what more of it can be built from.
pub(super) struct EngineTarget {
    runner: Box<dyn Runner>,
    origin: Option<Origin>,
    probes: Probes,
    /// What runs it.
    tensorrt: String,
}

/// What an engine was built from.
struct Origin {
    model: Model,
    options: EngineOptions,
    tensorrt: Library,
}

impl EngineTarget {
    pub(super) fn open(path: &Path, bisection: &Bisection<'_>) -> Result<Self, PipelineError> {
        let runner = run_engine(path, &RunnerOptions::default())?;
        let origin = EngineSidecar::beside(path)?.map(|sidecar| Origin::of(path, sidecar)).transpose()?;
        if origin.is_none() {
            bisection.session.host.warn(&format!(
                "{} has no sidecar that names the model it was built from, so only its outputs can be looked at; \
                 `calib build` writes one",
                path.display()
            ));
        }
        let outputs = runner.outputs().iter().map(|output| output.name.clone()).collect();
        let tensorrt = require_library(None)?.name()?;
        let probes = Probes::new(sites_of(&bisection.float, &outputs)?, bisection.args.probe_tensors);
        Ok(Self { runner, origin, probes, tensorrt })
    }

    /// What can be looked at.
    pub(super) fn sites(&self, bisection: &Bisection<'_>) -> Result<Vec<TensorSite>, PipelineError> {
        let Some(origin) = &self.origin else {
            let outputs = self.runner.outputs().iter().map(|output| output.name.clone()).collect();
            return Ok(sites_of(&bisection.float, &outputs)?);
        };
        let mut sites = shared_tensors(&bisection.float, &origin.model)?;
        let shapes = &bisection.session.subject.shapes;
        sites.retain(|site| {
            shapes.get(&site.tensor).and_then(|info| info.element_type).is_some_and(ElementType::is_float)
        });
        Ok(sites)
    }

    /// Compares tensors of the engine with the float model's.
    pub(super) fn look(
        &mut self,
        bisection: &Bisection<'_>,
        sites: &[TensorSite],
        samples: Samples<'_>,
    ) -> Result<Graphwise, PipelineError> {
        let Self { runner, origin, probes, .. } = self;
        probes.look(sites, &mut |marked, sites| {
            let tensors = sites.iter().map(|site| site.tensor.clone()).collect();
            let mut float = bisection.side(&bisection.float).build(tensors, bisection.session.threads)?;
            let mut probe = None;
            let engine = match origin.as_ref().filter(|_| !marked.is_empty()) {
                Some(origin) => {
                    let what = format!("an engine that also gives {}", marked.join(", "));
                    bisection.session.host.detail(&format!("building {what}"));
                    probe.insert(origin.engine(marked, &bisection.session.host).within(|| what)?)
                }
                None => &mut *runner,
            };
            Ok(run(&mut *float, Source::Runner(&mut **engine), sites, samples)?)
        })
    }

    /// The model that it was built from.
    pub(super) fn model(&self) -> Option<&Model> {
        self.origin.as_ref().map(|origin| &origin.model)
    }

    /// What looking took.
    pub(super) fn report(&self) -> ProbeReport {
        ProbeReport { tensorrt: Some(self.tensorrt.clone()), ..self.probes.report().clone() }
    }
}

impl Origin {
    fn of(engine: &Path, sidecar: EngineSidecar) -> Result<Self, PipelineError> {
        let path = &sidecar.model;
        let model = Model::load(path).within(|| {
            format!("the model that {} was built from cannot be read, so none of its tensors can be", engine.display())
        })?;
        ensure!(
            model.hash == sidecar.model_hash,
            "{} is not what {} was built from: its hash is another; build the engine again",
            path.display(),
            engine.display()
        );
        Ok(Self { model, options: sidecar.options, tensorrt: require_library(None)? })
    }

    /// An engine with `marked` tensors among its outputs, ready to run. Its files are gone when this returns.
    fn engine(&self, marked: &[String], host: &Host) -> Result<Box<dyn Runner>, PipelineError> {
        let folder = tempfile::tempdir().within(|| "no temporary folder".to_owned())?;
        let (model, engine) = (folder.path().join("probe.onnx"), folder.path().join("probe.plan"));
        with_outputs(&self.model, marked).save(&model)?;
        let built = {
            let host = host.clone();
            build_engine(&self.tensorrt, &model, &self.options, move |_| host.check().is_ok())
        };
        host.check()?;
        write_atomic(&engine, &built?.bytes)?;
        Ok(run_engine(&engine, &RunnerOptions::default())?)
    }
}
