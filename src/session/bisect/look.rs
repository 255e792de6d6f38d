//! Every tensor of a target, and the first that diverges: of the model quantized here, of another one, of an
//! engine, or saved.

use std::collections::BTreeMap;

use super::{
    OUTPUT_SAMPLES,
    engine::{ByItself, EngineTarget},
    subject::Bisection,
};
use crate::{
    analyse::{
        graphwise::{
            Graphwise, GraphwiseOptions, Side, Source, TensorDivergence, TensorSite, graphwise, run, shared_tensors,
            sites_of,
        },
        layerwise::Samples,
        operators::of_values,
    },
    backend::{ExecutionProvider, tensorrt::EngineSidecar},
    bisect::{
        first::{FirstDivergence, FirstOptions, Scan, first_divergence, flow},
        probes::{BY_ITSELF_DB, Judged, ProbeReport, SourceModel},
    },
    compare::SavedOutputs,
    onnx::{GraphView, Model, proto::ValueInfoProto},
    quantize::{ModelGraph, Precision, scheme_with_lifted, table_for},
    session::{PipelineError, Target},
    tensor::ElementType,
};

/// What is compared with the float model.
pub(super) enum Opened {
    /// A model that runs.
    Model(Box<Model>, ExecutionProvider),
    /// Tensors that were saved.
    Saved(SavedOutputs),
    /// A TensorRT engine.
    Engine(Box<EngineTarget>),
}

/// Tensors of an engine that are marked at a time where each mark counts.
const FEW: usize = 4;

/// Where the figures of a target come from.
pub(super) struct Origin {
    /// What looking took, where it took probes.
    pub(super) probes: Option<ProbeReport>,
    /// What computed the target's tensors: an engine's TensorRT, or what ran both models.
    pub(super) backend: Option<String>,
}

impl Bisection<'_> {
    fn named(&self) -> Result<Option<Target>, PipelineError> {
        let named = self.args.target.as_deref().map(Target::parse).transpose()?;
        Ok(named.map(|target| target.on(self.session.provider)))
    }

    /// What `--target` names, or else the model made here.
    fn target(&self) -> Result<Opened, PipelineError> {
        match self.named()? {
            None => Ok(Opened::Model(Box::new(self.quantized.clone()), self.session.provider)),
            Some(Target::Model(Some(_), provider)) => Ok(Opened::Model(Box::new(self.quantized.clone()), provider)),
            Some(Target::Model(None, provider)) => Ok(Opened::Model(Box::new(self.float.clone()), provider)),
            Some(Target::Saved(path)) => {
                Ok(Opened::Saved(SavedOutputs::open_beside(&path, self.session.dataset().len())?))
            }
            Some(Target::Engine(path)) => Ok(Opened::Engine(Box::new(EngineTarget::open(&path, self)?))),
        }
    }

    /// The model whose operators are measured.
    pub(super) fn quantized_target(&self) -> Result<&Model, PipelineError> {
        match self.named()? {
            None => Ok(&self.quantized),
            Some(Target::Model(Some(_), provider)) if provider == self.session.provider => Ok(&self.quantized),
            Some(_) => bail!("--find layers takes a model as its target: a file ending in .onnx"),
        }
    }

    /// The graph with what was decided for the model made here, or with what the file of another one tells.
    pub(super) fn graph(&self) -> Result<ModelGraph, PipelineError> {
        let mut graph = ModelGraph::of(&self.session.subject.folded);
        match self.named()? {
            None if self.args.precision.is_quantized() => {
                let subject = &self.session.subject;
                let table = self.table.as_ref().map(|table| table_for(table, self.args.precision));
                let scheme = scheme_with_lifted(&subject.folded, &subject.shapes, &self.options, table.as_deref())?;
                return Ok(graph.decided(&subject.place(&scheme)?));
            }
            Some(Target::Model(Some(path), _)) => {
                let told = ModelGraph::read(&Model::load(&path)?);
                let told: BTreeMap<&str, Precision> =
                    told.nodes.iter().filter_map(|node| Some((&*node.name, node.precision?))).collect();
                graph.nodes.iter_mut().for_each(|node| node.precision = told.get(&*node.name).copied());
            }
            Some(Target::Engine(path)) => {
                let layers = EngineSidecar::beside(&path)?.map(|sidecar| sidecar.layers).unwrap_or_default();
                let told =
                    layers.iter().flat_map(|layer| layer.nodes.iter().map(move |node| (&**node, layer.precision)));
                let told: BTreeMap<&str, Precision> =
                    told.filter_map(|(node, kind)| Some((node, kind.name().to_lowercase().parse().ok()?))).collect();
                graph.nodes.iter_mut().for_each(|node| node.precision = told.get(&*node.name).copied());
            }
            // One precision for all that computes floats.
            None => {
                graph = ModelGraph::read(&self.session.subject.folded);
                let floats = graph.nodes.iter_mut().filter_map(|node| node.precision.as_mut());
                floats.for_each(|precision| *precision = self.args.precision);
            }
            Some(_) => {}
        }
        Ok(graph)
    }

    fn sites(&self, target: &Opened) -> Result<Vec<TensorSite>, PipelineError> {
        let mut sites = match target {
            Opened::Model(model, _) => shared_tensors(&self.float, model)?,
            Opened::Saved(saved) => sites_of(&self.float, &saved.outputs().into_iter().collect())?,
            Opened::Engine(engine) => engine.sites(self)?,
        };
        let view = GraphView::new(self.float.graph())?;
        let of_values = of_values(&view);
        // Integers that values decide on are looked at: neither codes, which are numbers of another kind, nor sums over shapes.
        sites.retain(|TensorSite { tensor, .. }| {
            view.is_graph_output(tensor)
                || match self.element_type(tensor) {
                    Some(ElementType::I32 | ElementType::I64 | ElementType::Bool) => {
                        of_values.contains(tensor.as_str())
                    }
                    other => other.is_none_or(ElementType::is_float),
                }
        });
        let is_seen = |name: &str| sites.iter().any(|site| site.tensor == name);
        let outputs = self.float.graph().output.iter().map(ValueInfoProto::name);
        let unseen: Vec<&str> = outputs.filter(|name| view.producer(name).is_some() && !is_seen(name)).collect();
        if !unseen.is_empty() {
            self.session.host.warn(&format!(
                "the outputs `{}` are not judged: the target does not show them, or in a type that has no counterpart here",
                unseen.join("`, `")
            ));
        }
        Ok(sites)
    }

    fn compare(
        &self,
        target: &mut Opened,
        sites: &[TensorSite],
        samples: Samples<'_>,
    ) -> Result<Graphwise, PipelineError> {
        let options = GraphwiseOptions { threads: self.session.threads, ..GraphwiseOptions::default() };
        let session = self.session;
        let float = self.side(&self.float);
        let source = match target {
            Opened::Model(model, provider) if *provider == session.provider => {
                return session.graphwise(&self.float, model, sites, samples);
            }
            Opened::Model(model, provider) => {
                let float = Side { provider: session.provider, ..float };
                let target = Side { backend: &session.runtime, provider: *provider, model };
                return Ok(graphwise(float, target, sites, samples, options)?.0);
            }
            Opened::Engine(engine) => return engine.look(self, sites, samples),
            Opened::Saved(saved) => Source::Saved(saved),
        };
        let tensors = sites.iter().map(|site| site.tensor.clone()).collect();
        Ok(run(&mut *float.build(tensors, options.threads)?, source, sites, samples)?)
    }

    /// Where the figures of `samples` samples come from.
    fn origin(&self, target: &Opened, samples: usize) -> Origin {
        let provider = match target {
            Opened::Model(_, provider) if *provider == self.session.provider => self.session.analyst(samples),
            Opened::Model(..) => self.session.provider,
            Opened::Saved(_) => ExecutionProvider::Cpu,
            Opened::Engine(engine) => return engine.looked(),
        };
        Origin { probes: None, backend: Some(provider.backend().to_owned()) }
    }

    /// Every tensor.
    pub(super) fn tensors(&self) -> Result<(Graphwise, Origin), PipelineError> {
        let mut target = self.target()?;
        let sites = self.sites(&target)?;
        ensure!(!sites.is_empty(), "the target has no tensor whose name the float model knows");
        let samples = self.first_of(self.args.samples);
        let found = self.compare(&mut target, &sites, samples)?;
        Ok((found, self.origin(&target, samples.indices.len())))
    }

    /// The first node that diverges.
    pub(super) fn first(&self) -> Result<(FirstDivergence<TensorDivergence>, Origin), PipelineError> {
        let mut target = self.target()?;
        let sites = self.sites(&target)?;
        let source = self.source(&target, &sites)?;
        let flow = flow(&self.float)?;
        let (mut judged, mut by_itself) = (Judged::AddedUp, None);
        if let Opened::Engine(engine) = &mut target
            && let Some(own) = engine.by_itself(self, source.is_some(), &sites, self.first_of(OUTPUT_SAMPLES))?
        {
            let by = own.by;
            let found = self.off_by_itself(own)?;
            let report = engine.report();
            // Where marks change the engine, what they were set to find may be gone with them.
            if found.culprit.is_some() || self.args.exhaustive && report.disturbances.is_empty() {
                let mut origin = engine.looked();
                origin.probes = Some(ProbeReport { source, judged: by, ..report });
                return Ok((FirstDivergence { probes: engine.report().builds, ..found }, origin));
            }
            (judged, by_itself) = (Judged::AddedUpOnly, Some((by, found.tensors)));
        }
        let few = matches!(target, Opened::Engine(_)).then(|| self.few());
        let mut probe = |tensors: &[String]| {
            let some: Vec<_> = sites.iter().filter(|site| tensors.contains(&site.tensor)).cloned().collect();
            if some.is_empty() {
                return Ok(BTreeMap::new());
            }
            let found = self.compare(&mut target, &some, self.first_of(OUTPUT_SAMPLES))?;
            self.session.host.detail(&format!("probed {}", tensors.join(", ")));
            Ok::<_, PipelineError>(found.tensors.into_iter().map(|t| (t.site.tensor.clone(), t)).collect())
        };
        let scan = if self.args.exhaustive { Scan::Exhaustive } else { Scan::Binary };
        let mut options = FirstOptions { scan, ..FirstOptions::default() };
        options.tensors_per_probe = few.unwrap_or(options.tensors_per_probe);
        let mut found = match &source {
            None => {
                let diverged = |tensor: &TensorDivergence| tensor.diverged(self.args.threshold_db);
                first_divergence(&flow, options, &diverged, &mut probe)?
            }
            Some(source) => {
                let found = first_divergence(&flow, options, &|tensor| source.diverged(tensor), &mut probe)?;
                if found.culprit.is_none() {
                    first_divergence(&flow, options, &|tensor| source.is_left_by(tensor), &mut probe)?
                } else {
                    found
                }
            }
        };
        let mut origin = self.origin(&target, OUTPUT_SAMPLES);
        if let Some(probes) = &mut origin.probes {
            probes.source = source;
            probes.judged = judged;
            // Where the outputs agree, too, nothing has added up.
            if let (None, Some((by, own))) = (&found.culprit, by_itself) {
                probes.judged = by;
                found.tensors = own.into_iter().chain(found.tensors).collect();
            }
        }
        Ok((found, origin))
    }

    /// The first node that is off by itself.
    fn off_by_itself(&self, own: ByItself) -> Result<FirstDivergence<TensorDivergence>, PipelineError> {
        let ByItself { errors, by, flow } = own;
        let errors: BTreeMap<_, _> = errors.into_iter().map(|t| (t.site.tensor.clone(), t)).collect();
        let mut known = |_: &[String]| Ok::<_, PipelineError>(errors.clone());
        let options = FirstOptions { scan: Scan::Exhaustive, tensors_per_probe: usize::MAX };
        let mut find = |limit: f64| {
            first_divergence(&flow, options, &|tensor: &TensorDivergence| tensor.diverged(limit), &mut known)
        };
        let mut found = find(self.args.threshold_db)?;
        // Against the float model, what quantization or 16 bits cost is not a fault.
        if found.culprit.is_none() && by == Judged::ByItself {
            found = find(BY_ITSELF_DB)?;
        }
        // The same numbers make the same integers.
        if found.culprit.is_none() {
            found = first_divergence(&flow, options, &TensorDivergence::has_other_integers, &mut known)?;
        }
        Ok(found)
    }

    /// Tensors that a probe marks where few are to be marked.
    pub(super) fn few(&self) -> usize {
        self.args.probe_tensors.unwrap_or(FEW)
    }

    /// The model that an engine was built from, by itself.
    fn source(&self, target: &Opened, sites: &[TensorSite]) -> Result<Option<SourceModel>, PipelineError> {
        let Opened::Engine(engine) = target else { return Ok(None) };
        let Some(model) = engine.model() else { return Ok(None) };
        let is_reference = model.hash == self.session.subject.float.hash;
        match self.session.graphwise(&self.float, model, sites, self.first_of(OUTPUT_SAMPLES)) {
            Ok(Graphwise { tensors, .. }) => {
                Ok(Some(SourceModel { tensors, is_reference, threshold_db: self.args.threshold_db }))
            }
            Err(error) => {
                self.session.host.check()?;
                self.session.host.warn(&format!(
                    "what the engine adds is not told apart from what the model that it was built from loses: {error}"
                ));
                Ok(None)
            }
        }
    }
}
