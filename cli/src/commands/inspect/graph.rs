//! `calib inspect --graph MODEL`: the graph of a model as a page, or of two with what differs.

use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::{ExitStatus, Printer};
use crate::args::InspectArgs;
use trtcalib::{
    artifact::write_atomic,
    backend::tensorrt::EngineSidecar,
    onnx::Model,
    quantize::ModelGraph,
    report::{Drawn, Report, graph_html},
};

/// Draws.
pub(super) fn graph(printer: &Printer, args: &InspectArgs) -> anyhow::Result<ExitStatus> {
    let own = Read::of(&args.file)?;
    let other = args.against.as_deref().map(Read::of).transpose()?;
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
    /// That of the run that made it, where it lies beside it.
    report: Option<Report>,
}

impl Read {
    /// An ONNX model, or an engine whose layers `calib build` wrote down beside it.
    fn of(path: &Path) -> anyhow::Result<Self> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
        if !matches!(ending.as_str(), "plan" | "engine" | "trt") {
            let model = Model::load(path)?;
            // What a run knows of nodes, it knows of those of its quantized model.
            let is_of = |report: &Report| {
                let quantized = report.precisions.iter().filter(|row| matches!(row.precision.as_str(), "int8" | "fp8"));
                let mut files = quantized.filter_map(|row| row.artifact.as_ref());
                files.next().is_some_and(|file| file.hash == model.hash)
            };
            let beside = path.with_file_name("report.json");
            let report = beside.is_file().then(|| Report::read(&beside).ok()).flatten().filter(is_of);
            return Ok(Self { name: name(path), graph: ModelGraph::read(&model), report });
        }
        let sidecar = EngineSidecar::beside(path)?.filter(|sidecar| !sidecar.layers.is_empty());
        let sidecar = sidecar.with_context(|| {
            format!(
                "{}: the layers of an engine are drawn from what `calib build` writes beside it, which is not there",
                path.display()
            )
        })?;
        Ok(Self { name: name(path), graph: ModelGraph::of_engine(&sidecar.layers), report: None })
    }

    fn drawn(&self) -> Drawn<'_> {
        Drawn { name: &self.name, graph: &self.graph, report: self.report.as_ref() }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
