//! An engine as the target: its outputs by running it, other tensors by engines built from the same model with a few more
//! outputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{look, subject::Bisection};
use crate::{
    analyse::{
        graphwise::{Graphwise, Source, TensorDivergence, TensorSite, run, shared_tensors, sites_of},
        layerwise::Samples,
    },
    artifact::write_atomic,
    backend::{
        Runner,
        tensorrt::{EngineOptions, EngineSidecar, Library, RunnerOptions, build_engine, require_library, run_engine},
    },
    bisect::{
        first::{Flow, flow},
        own::{self, Marks, own_errors},
        probes::{Judged, ProbeReport, Probes, with_outputs},
    },
    onnx::{Model, proto::NodeProto},
    session::{Host, PipelineError, Within},
    tensor::ElementType,
};

/// Bytes of what is marked at a time, at most, where nothing else bounds it.
const MARKED_BYTES: usize = 1 << 30;

/// An engine that runs, and what more of it can be built from.
pub(super) struct EngineTarget {
    runner: Box<dyn Runner>,
    origin: Option<Origin>,
    probes: Probes,
    /// What runs it, by flavour and version.
    tensorrt: String,
    /// What reports call that.
    backend: String,
}

/// What every node of an engine adds by itself.
pub(super) struct ByItself {
    /// By tensor, in the order of execution.
    pub(super) errors: Vec<TensorDivergence>,
    /// Against which model.
    pub(super) by: Judged,
    /// The graph of what was looked at.
    pub(super) flow: Flow,
}

/// What an engine was built from.
struct Origin {
    model: Model,
    options: EngineOptions,
    tensorrt: Library,
    /// Types of the tensors that are not floating-point numbers.
    integers: BTreeMap<String, ElementType>,
}

impl EngineTarget {
    pub(super) fn open(path: &Path, bisection: &Bisection<'_>) -> Result<Self, PipelineError> {
        let runner = run_engine(path, &RunnerOptions::default())?;
        let origin = EngineSidecar::beside(path)?.map(|sidecar| Origin::of(path, sidecar, bisection)).transpose()?;
        if origin.is_none() {
            bisection.session.host.warn(&format!(
                "{} has no sidecar that names the model it was built from, so only its outputs can be looked at; \
                 `calib build` writes one",
                path.display()
            ));
        }
        let outputs = runner.outputs().iter().map(|output| output.name.clone()).collect();
        let library = require_library(None)?;
        let (tensorrt, backend) = (library.name()?, library.backend());
        let probes = Probes::new(sites_of(&bisection.float, &outputs)?, bisection.few());
        Ok(Self { runner, origin, probes, tensorrt, backend })
    }

    /// What can be looked at.
    pub(super) fn sites(&self, bisection: &Bisection<'_>) -> Result<Vec<TensorSite>, PipelineError> {
        let Some(origin) = &self.origin else {
            let outputs = self.runner.outputs().iter().map(|output| output.name.clone()).collect();
            return Ok(sites_of(&bisection.float, &outputs)?);
        };
        let mut sites = shared_tensors(&bisection.float, &origin.model)?;
        sites.retain(|site| bisection.element_type(&site.tensor).is_some());
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
                Some(origin) => probe.insert(origin.engine(marked, &bisection.session.host)?),
                None => &mut *runner,
            };
            Ok(run(&mut *float, Source::Runner(&mut **engine), sites, samples)?)
        })
    }

    /// What every node adds by itself, up to the first tensor beyond the threshold: against the model that the engine was built
    /// from where ONNX Runtime runs it (`source_runs`), else against the float model. Nothing where neither can be cut, or the
    /// engine shows its outputs only.
    pub(super) fn by_itself(
        &mut self,
        bisection: &Bisection<'_>,
        source_runs: bool,
        sites: &[TensorSite],
        samples: Samples<'_>,
    ) -> Result<Option<ByItself>, PipelineError> {
        let Self { runner, origin: Some(origin), probes, .. } = self else { return Ok(None) };
        let (args, session) = (bisection.args, bisection.session);
        let (model, by, seen) = if source_runs {
            let sites = origin.sites(bisection, sites)?;
            (&origin.model, Judged::ByItself, sites)
        } else {
            (&bisection.float, Judged::ByItselfInFloat, sites.to_vec())
        };
        let known = flow(&bisection.float)?.nodes.into_iter().map(|node| node.name).collect();
        let seen = own::seen(&flow(model)?, &seen, &known);
        let bytes = |tensor: &str| {
            let shape = session.subject.shapes.get(tensor).map(|info| info.shape.as_slice()).unwrap_or_default();
            shape.iter().fold(size_of::<f32>(), |bytes, extent| bytes.saturating_mul(extent.unwrap_or(1)))
        };
        let most = if args.exhaustive { bisection.few() } else { args.probe_tensors.unwrap_or(usize::MAX) };
        let mut errors = Vec::new();
        for Marks { judged, shown } in own::groups(&seen, most, MARKED_BYTES, &bytes) {
            let by_itself = |engine: &mut dyn Runner| -> Result<_, PipelineError> {
                let mut given = engine.outputs().to_vec();
                given.retain(|output| shown.contains(&output.name));
                if by == Judged::ByItselfInFloat {
                    for info in given.iter_mut().filter(|info| info.element_type.is_some_and(ElementType::is_float)) {
                        info.element_type = Some(ElementType::F32);
                    }
                }
                let twin = own::cut(model, &given);
                match bisection.side(&twin).build(Vec::new(), session.threads) {
                    Ok(mut twin) => Ok(Some(own_errors(engine, &mut *twin, &judged, samples)?)),
                    Err(error) => {
                        session.host.warn(&format!("the engine's nodes cannot be judged one by one: {error}"));
                        Ok(None)
                    }
                }
            };
            let mut found = None;
            let looked: Vec<TensorSite> = seen.iter().map(|seen| &seen.site).cloned().collect();
            let looked: Vec<TensorSite> = looked.into_iter().filter(|site| shown.contains(&site.tensor)).collect();
            probes.look_with(usize::MAX, &looked, &mut |marked, looked| {
                let known = |site: &&TensorSite| sites.iter().any(|known| known.tensor == site.tensor);
                let tensors = looked.iter().filter(known).map(|site| site.tensor.clone()).collect();
                let mut float = bisection.side(&bisection.float).build(tensors, session.threads)?;
                let mut probe = (!marked.is_empty()).then(|| origin.engine(marked, &session.host)).transpose()?;
                let engine = probe.as_mut().unwrap_or(&mut *runner);
                let compared = run(&mut *float, Source::Runner(&mut **engine), looked, samples)?;
                if !marked.is_empty() {
                    found = Some(by_itself(&mut **engine)?);
                }
                Ok::<_, PipelineError>(compared)
            })?;
            let found = match found {
                Some(found) => found,
                // Everything is an output already.
                None => by_itself(&mut **runner)?,
            };
            let Some(found) = found else { return Ok(None) };
            let is_over = found.iter().any(|tensor| tensor.diverged(args.threshold_db));
            errors.extend(found);
            if is_over {
                break;
            }
        }
        Ok(Some(ByItself { errors, by, flow: own::flow_of(&seen) }))
    }

    /// The model that it was built from.
    pub(super) fn model(&self) -> Option<&Model> {
        self.origin.as_ref().map(|origin| &origin.model)
    }

    /// Where its figures come from.
    pub(super) fn looked(&self) -> look::Origin {
        look::Origin { probes: Some(self.report()), backend: Some(self.backend.clone()) }
    }

    /// What looking took.
    pub(super) fn report(&self) -> ProbeReport {
        ProbeReport { tensorrt: Some(self.tensorrt.clone()), ..self.probes.report().clone() }
    }
}

impl Origin {
    fn of(engine: &Path, sidecar: EngineSidecar, bisection: &Bisection<'_>) -> Result<Self, PipelineError> {
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
        let types = bisection.session.subject.shapes.iter();
        let types = types.filter_map(|(tensor, info)| Some((tensor.clone(), info.element_type?)));
        let integers = types.filter(|(_, element_type)| !element_type.is_float()).collect();
        Ok(Self { model, options: sidecar.options, tensorrt: require_library(None)?, integers })
    }

    /// Those of `sites`, which the float model has too, and what else nodes of its names make here: an activation that recovery
    /// shifts has another name behind its node.
    fn sites(&self, bisection: &Bisection<'_>, sites: &[TensorSite]) -> Result<Vec<TensorSite>, PipelineError> {
        let all = shared_tensors(&self.model, &self.model)?;
        let shared: BTreeMap<&str, &TensorSite> = sites.iter().map(|site| (site.tensor.as_str(), site)).collect();
        let names: BTreeSet<&str> = bisection.float.graph().node.iter().map(NodeProto::name).collect();
        let renamed = |site: &&TensorSite| {
            !shared.contains_key(site.tensor.as_str()) && !site.node.is_empty() && names.contains(site.node.as_str())
        };
        let renamed: Vec<String> = all.iter().filter(renamed).map(|site| site.tensor.clone()).collect();
        let infos = bisection.session.runtime.infer_shapes(&self.model, &renamed)?;
        let is_float =
            |tensor: &str| infos.get(tensor).and_then(|info| info.element_type).is_some_and(ElementType::is_float);
        let seen = |site: &TensorSite| match shared.get(site.tensor.as_str()) {
            Some(&shared) => Some(shared.clone()),
            None => is_float(&site.tensor).then(|| site.clone()),
        };
        Ok(all.iter().filter_map(seen).collect())
    }

    /// An engine with `marked` tensors among its outputs, ready to run. Its files are gone when this returns.
    fn engine(&self, marked: &[String], host: &Host) -> Result<Box<dyn Runner>, PipelineError> {
        let what = format!("an engine that also gives {}", marked.join(", "));
        host.detail(&format!("building {what}"));
        self.marked(marked, host).within(|| what)
    }

    fn marked(&self, marked: &[String], host: &Host) -> Result<Box<dyn Runner>, PipelineError> {
        let folder = tempfile::tempdir().within(|| "no temporary folder".to_owned())?;
        let (model, engine) = (folder.path().join("probe.onnx"), folder.path().join("probe.plan"));
        with_outputs(&self.model, marked, &self.integers).save(&model)?;
        let built = {
            let host = host.clone();
            build_engine(&self.tensorrt, &model, &self.options, move |_| host.check().is_ok())
        };
        host.check()?;
        write_atomic(&engine, &built?.bytes)?;
        Ok(run_engine(&engine, &RunnerOptions::default())?)
    }
}
