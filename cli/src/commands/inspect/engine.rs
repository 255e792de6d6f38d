//! `calib inspect engine.plan`: the sidecar everywhere, the layers where a GPU runs the engine.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use super::{ExitStatus, Printer, random_mark};
use crate::commands::host;
use trtcalib::{
    backend::tensorrt::{
        EngineFault, EngineLayer, EngineLayers, EngineSidecar, EngineSummary, Flavour, LayerKind, Plan, RunnerOptions,
        TensorRtError, compiled_flavour, engine_layers, require_library, sidecar_path,
    },
    onnx::Model,
};

/// Layers shown without `--all`.
const SHOWN: usize = 20;

#[derive(Serialize)]
struct EngineFacts {
    #[serde(flatten)]
    sidecar: Option<EngineSidecar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<EngineSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<EngineLayer>>,
    /// Whose engine inspector told the layers, with its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    inspector: Option<String>,
    /// Why the engine inspector was not asked or told nothing of use; layers are those that the builder listed, then.
    #[serde(skip_serializing_if = "Option::is_none")]
    inspector_missing: Option<String>,
}

/// Describes an engine. What is inside is told by the engine inspector where a GPU runs the engine, and else by what the
/// builder said, which stands in the sidecar.
pub(super) fn engine(printer: &Printer, path: &Path, all: bool) -> anyhow::Result<ExitStatus> {
    let beside = sidecar_path(path);
    let flavour = EngineSidecar::beside(path)?.map(|sidecar| sidecar.flavour).or(compiled_flavour());
    let mut plan = Plan::read(path, flavour.unwrap_or(Flavour::TensorRtRtx))?;
    let listed = plan.sidecar.as_mut().map(|sidecar| std::mem::take(&mut sidecar.layers)).filter(|all| !all.is_empty());
    let told = engine_layers(path, &RunnerOptions::default(), &operators(plan.sidecar.as_ref()));
    // Loading ends by itself; whoever stopped it meanwhile wants nothing of it any more.
    host(printer).check()?;
    let (layers, missing) = match told {
        Ok(layers) => (Some(layers), None),
        Err(
            error @ (TensorRtError::NotCompiled
            | TensorRtError::NotFound { .. }
            | TensorRtError::Cuda(_)
            | TensorRtError::Engine { fault: EngineFault::Flavour { .. }, .. }),
        ) => (listed.map(|layers| EngineLayers { layers }), Some(error.to_string())),
        Err(error @ TensorRtError::Inspector(_)) if listed.is_some() => {
            (listed.map(|layers| EngineLayers { layers }), Some(error.to_string()))
        }
        Err(error) => return Err(error.into()),
    };
    if let (None, Some(missing)) = (&plan.sidecar, &missing) {
        anyhow::bail!(
            "without a GPU, an engine is described by {}, which `calib build` writes beside it; {missing}",
            beside.display()
        );
    }
    let facts = EngineFacts {
        sidecar: plan.sidecar,
        summary: layers.as_ref().map(EngineLayers::summary),
        layers: layers.map(|layers| layers.layers),
        inspector: if missing.is_none() { Some(require_library(None)?.name()?) } else { None },
        inspector_missing: missing,
    };
    printer.outcome(&facts, || describe(path, &facts, all))?;
    Ok(ExitStatus::Passed)
}

/// Operator of every node of the model that the engine was built from, if that is still there.
fn operators(sidecar: Option<&EngineSidecar>) -> BTreeMap<String, String> {
    let Some(Ok(model)) = sidecar.map(|sidecar| Model::load(&sidecar.model)) else { return BTreeMap::new() };
    model.op_types()
}

fn describe(path: &Path, facts: &EngineFacts, all: bool) -> String {
    let mut lines = Vec::new();
    if let Some(sidecar) = &facts.sidecar {
        lines.extend([
            format!("{} engine {}{}", sidecar.made_by(), path.display(), random_mark(sidecar.random_data)),
            format!("model       {} ({})", sidecar.model.display(), sidecar.model_hash.short()),
            format!("precision   {}", sidecar.precision.as_deref().unwrap_or("as the model says")),
            format!("built in    {:.1} s", sidecar.build_seconds),
        ]);
        for (input, [min, opt, max]) in &sidecar.options.profile.shapes {
            lines.push(format!("profile     {input}: {min:?} {opt:?} {max:?}"));
        }
        for (input, [min, opt, max]) in &sidecar.options.profile.values {
            lines.push(format!("profile     values of {input}: {min:?} {opt:?} {max:?}"));
        }
        if !sidecar.options.compute_capabilities.is_empty() {
            lines.push(format!("for         {}", sidecar.options.compute_capabilities.join(", ")));
        }
        lines.extend(sidecar.warnings.iter().map(|warning| format!("warning: {warning}")));
    } else {
        lines.push(format!("engine {} without a sidecar", path.display()));
    }
    match (&facts.inspector_missing, &facts.layers) {
        (Some(missing), None) => lines.push(format!("layers      not told: {missing}")),
        (Some(missing), Some(_)) => lines.push(format!("layers      as the builder listed them ({missing})")),
        (None, _) => {
            lines.extend(facts.inspector.iter().map(|by| format!("layers      as the inspector of {by} tells")));
        }
    }
    if let Some(summary) = &facts.summary {
        lines.push(describe_summary(summary));
    }
    if let Some(layers) = &facts.layers {
        lines.push(table(layers, all));
    }
    lines.join("\n")
}

fn describe_summary(summary: &EngineSummary) -> String {
    let mut text = format!("layers      {summary}");
    if summary.wide_outputs > 0 {
        text.push_str(&format!("\nwider       {} multiply in 8 bits and write a wider type", summary.wide_outputs));
    }
    if !summary.unfused_qdq.is_empty() {
        text.push_str(&format!("\nQ/DQ alone  {}", summary.unfused_qdq.join(", ")));
    }
    text
}

fn table(layers: &[EngineLayer], all: bool) -> String {
    let mut table = crate::table::table(comfy_table::presets::NOTHING);
    table.set_header(["layer", "type", "does", "in", "format", "ONNX nodes"]);
    let shown = if all { layers.len() } else { SHOWN.min(layers.len()) };
    for layer in &layers[..shown] {
        let does = match layer.kind {
            LayerKind::Compute => format!("multiplies in {}", layer.precision.name()),
            LayerKind::Reformat => "moves".to_owned(),
            LayerKind::QuantizeDequantize => "Q/DQ alone".to_owned(),
            LayerKind::Other => String::new(),
        };
        let input = layer.inputs.first();
        table.add_row([
            layer.name.clone(),
            layer.layer_type.clone(),
            does,
            input.map_or_else(String::new, |input| input.number_type.name().to_owned()),
            input.map_or_else(String::new, |input| input.format.clone()),
            layer.nodes.join(", "),
        ]);
    }
    let mut text = table.to_string();
    if shown < layers.len() {
        text.push_str(&format!("\n... and {} more; --all lists them", layers.len() - shown));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_whether_it_is_int8_has_an_answer() {
        let json = r#"{"Layers": [
            {"Name": "a", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x", "Format/Datatype": "Int8"}]},
            {"Name": "b", "LayerType": "CaskConvolution", "Inputs": [{"Name": "y", "Format/Datatype": "Half"}]},
            {"Name": "copy", "LayerType": "Reformat", "Inputs": [{"Name": "y", "Format/Datatype": "Half"}]},
            {"Name": "q", "LayerType": "Quantize", "Inputs": [{"Name": "z", "Format/Datatype": "Float"}]}]}"#;
        let layers = EngineLayers::parse(json, &BTreeMap::new()).unwrap();
        let text = describe_summary(&layers.summary());
        let expected =
            "layers      4, of which 2 multiply: FP16 1 (50 %), INT8 1 (50 %); 1 only move values\nQ/DQ alone  q";
        assert_eq!(text, expected);
        let text = table(&vec![layers.layers; 10].concat(), false);
        assert!(text.contains("multiplies in INT8") && text.ends_with("... and 20 more; --all lists them"), "{text}");
    }
}
