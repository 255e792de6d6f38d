//! `calib inspect --graph MODEL`: the graph of a model as a page, or of two with what differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::Context;
use serde_json::json;

use super::{ExitStatus, Printer};
use crate::args::InspectArgs;
use trtcalib::{
    artifact::write_atomic,
    backend::tensorrt::{EngineLayer, EngineSidecar},
    deploy::{engine_layers, engine_profile, times_of},
    onnx::Model,
    quantize::ModelGraph,
    report::{Drawn, NodeTimes, Report, graph_html},
};

/// Draws.
pub(super) fn graph(printer: &Printer, args: &InspectArgs) -> anyhow::Result<ExitStatus> {
    let mut own = Read::of(&args.file)?;
    let other = args.against.as_deref().map(Read::of).transpose()?;
    if let Some(run) = &args.report {
        own.told_by(run)?;
    }
    if let Some(profile) = &args.profile {
        own.timed_by(profile, args.layers.as_deref())?;
    }
    write_atomic(&args.output, graph_html(own.drawn(), other.as_ref().map(Read::drawn))?.as_bytes())?;
    let nodes = own.graph.nodes.len();
    printer.outcome(&json!({ "output": args.output, "nodes": nodes }), || {
        format!("graph of {nodes} nodes: {}", args.output.display())
    })?;
    Ok(ExitStatus::Passed)
}

/// A model as it was read.
struct Read {
    name: String,
    graph: ModelGraph,
    /// An ONNX model's.
    model: Option<Model>,
    /// That of the run that made it, where it lies beside it or is named.
    report: Option<Report>,
    /// The file of a profile, and its times.
    profile: Option<(String, NodeTimes)>,
}

impl Read {
    /// An ONNX model, or the layers of an engine: as `calib build` wrote them beside it, or as trtexec exports them.
    fn of(path: &Path) -> anyhow::Result<Self> {
        let drawn = |graph| Self { name: name(path), graph, model: None, report: None, profile: None };
        let of_engine = |layers: &[EngineLayer], library: Option<String>| Self {
            name: called(path, "of", library),
            ..drawn(ModelGraph::of_engine(layers))
        };
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
        match ending.as_str() {
            "json" => {
                let (layers, library) = engine_layers(path, &BTreeMap::new())?;
                Ok(of_engine(&layers, library))
            }
            "plan" | "engine" | "trt" => {
                let sidecar = EngineSidecar::beside(path)?.filter(|sidecar| !sidecar.layers.is_empty());
                let sidecar = sidecar.with_context(|| {
                    format!(
                        "{}: the layers of an engine are drawn from what `calib build` writes beside it, which is not there; \
                         draw the file that trtexec --exportLayerInfo wrote instead (with --profilingVerbosity=detailed)",
                        path.display()
                    )
                })?;
                Ok(of_engine(&sidecar.layers, Some(sidecar.made_by())))
            }
            _ => {
                let model = Model::load(path)?;
                let beside = path.with_file_name("report.json");
                let report = beside.is_file().then(|| Report::read(&beside).ok()).flatten();
                let report = report.filter(|report| is_quantized_of(report, &model));
                Ok(Self { report, graph: ModelGraph::read(&model), model: Some(model), ..drawn(ModelGraph::default()) })
            }
        }
    }

    /// Takes what a run knows, of its quantized model or of the float one, whose nodes have the same names.
    fn told_by(&mut self, run: &Path) -> anyhow::Result<()> {
        let file = if run.is_dir() { run.join("report.json") } else { run.to_owned() };
        let report = Report::read(&file)?;
        let is_its = |model: &Model| report.model.hash == model.hash || is_quantized_of(&report, model);
        anyhow::ensure!(
            self.model.as_ref().is_some_and(is_its),
            "{}: the run is of another model than {}; its float model is {} ({})",
            file.display(),
            self.name,
            report.model.path,
            report.model.hash.short()
        );
        self.report = Some(report);
        Ok(())
    }

    /// Takes the times of an engine's layers.
    fn timed_by(&mut self, profile: &Path, layers: Option<&Path>) -> anyhow::Result<()> {
        let op_types = self.model.as_ref().map(Model::op_types).unwrap_or_default();
        let (layers, library) = layers.map(|path| engine_layers(path, &op_types)).transpose()?.unwrap_or_default();
        let (measured, provider) = engine_profile(profile)?;
        let nodes: BTreeSet<&str> = self.graph.nodes.iter().map(|node| node.name.as_str()).collect();
        let times = times_of(&measured, &layers, &nodes);
        anyhow::ensure!(
            !times.is_empty(),
            "{}: none of its layers is called by nodes of {}: it is of another model, or needs the engine's --layers beside it",
            profile.display(),
            self.name
        );
        self.profile = Some((called(profile, "by", provider.or(library)), times));
        Ok(())
    }

    fn drawn(&self) -> Drawn<'_> {
        Drawn {
            name: &self.name,
            graph: &self.graph,
            report: self.report.as_ref(),
            profile: self.profile.as_ref().map(|(file, times)| (file.as_str(), times)),
        }
    }
}

/// Whether a model is the first one of 8 bits that a run left: what the run knows of nodes, it knows of those.
fn is_quantized_of(report: &Report, model: &Model) -> bool {
    let file = report.layers_of().and_then(|row| row.artifact.as_ref());
    file.is_some_and(|file| file.hash == model.hash)
}

/// A file with what built or ran the engine that it is about, where that is told: no picture shows a result without it.
fn called(path: &Path, relation: &str, library: Option<String>) -> String {
    let name = name(path);
    library.map_or_else(|| name.clone(), |library| format!("{name} {relation} {library}"))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
