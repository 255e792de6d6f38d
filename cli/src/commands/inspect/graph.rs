//! `calib inspect --graph MODEL`: the graph of a model as a page, or of two with what differs.

use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::{ExitStatus, Printer};
use crate::args::InspectArgs;
use trtcalib::{
    artifact::write_atomic, backend::tensorrt::EngineSidecar, onnx::Model, quantize::ModelGraph, report::graph_html,
};

/// Draws.
pub(super) fn graph(printer: &Printer, args: &InspectArgs) -> anyhow::Result<ExitStatus> {
    let own = read(&args.file)?;
    let other = args.against.as_deref().map(read).transpose()?;
    let (first, second) = (name(&args.file), args.against.as_deref().map(name));
    let against = second.as_deref().zip(other.as_ref());
    write_atomic(&args.output, graph_html((&first, &own), against)?.as_bytes())?;
    let nodes = own.nodes.len();
    printer.outcome(&json!({ "output": args.output, "nodes": nodes }), || {
        format!("graph of {nodes} nodes: {}", args.output.display())
    })?;
    Ok(ExitStatus::Passed)
}

/// The graph of an ONNX model, or of an engine whose layers `calib build` wrote down beside it.
fn read(path: &Path) -> anyhow::Result<ModelGraph> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    if !matches!(ending.as_str(), "plan" | "engine" | "trt") {
        return Ok(ModelGraph::of(&Model::load(path)?));
    }
    let sidecar = EngineSidecar::beside(path)?.filter(|sidecar| !sidecar.layers.is_empty());
    let sidecar = sidecar.with_context(|| {
        format!(
            "{}: the layers of an engine are drawn from what `calib build` writes beside it, which is not there",
            path.display()
        )
    })?;
    Ok(ModelGraph::of_engine(&sidecar.layers))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
