//! `calib inspect`: a model, table, calibration cache, histogram file, report, plan, bisection or engine, described.

mod engine;
mod graph;

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{ExitStatus, Printer};
use crate::args::{GlobalArgs, InspectArgs};
use crate::printer::size;
use trtcalib::{
    artifact::{Reading, open_regular, read_json, read_regular},
    bisect::findings::{FINDINGS_FORMAT_VERSION, Findings},
    calibrate::{CalibrationTable, Histograms, cache::CalibrationCache},
    onnx::{
        Finding, Model, Severity, diagnose,
        proto::{DimensionValue, GraphProto, NodeProto, TensorProto, TypeValue, ValueInfoProto},
    },
    quantize::{Assignment, PrecisionPlan, Selector, of_random_data},
    report::{Report, worst_layers},
    session::check_rules,
    tensor::ElementType,
    words::counted,
};

/// Describes a file by what is in it.
pub(super) fn inspect(printer: &Printer, global: &GlobalArgs, args: &InspectArgs) -> anyhow::Result<ExitStatus> {
    let path = &args.file;
    let _reading = Reading::of(path);
    if args.graph {
        return graph::graph(printer, args);
    }
    let start = first_bytes(path)?;
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "plan" | "engine" | "trt" => return engine::engine(printer, path, args.all),
        _ if args.check => return check(printer, path, global.ort_library.as_deref()),
        _ => {}
    }
    if start.starts_with(b"calibhst") {
        return histograms(printer, path);
    }
    if ending != "onnx" && CalibrationCache::begins_with(&start) {
        return cache(printer, path);
    }
    if start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{') {
        return json_file(printer, path, args.all);
    }
    model(printer, path, args.all)
}

fn first_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = open_regular(path).with_context(|| format!("cannot read {}", path.display()))?;
    file.take(64).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(!bytes.is_empty(), "{} is empty", path.display());
    Ok(bytes)
}

#[derive(Serialize)]
struct ModelFacts {
    path: String,
    hash: String,
    producer: String,
    ir_version: i64,
    opsets: BTreeMap<String, i64>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    parameters: u64,
    weight_bytes: u64,
    operators: BTreeMap<String, usize>,
    /// Whether its ranges are of random numbers.
    random_data: bool,
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<[String; 2]>,
}

fn model(printer: &Printer, path: &Path, all: bool) -> anyhow::Result<ExitStatus> {
    let model = Model::load(path)?;
    let graph = model.graph();
    let weights: std::collections::BTreeSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    let mut operators: BTreeMap<String, usize> = BTreeMap::new();
    for node in &graph.node {
        *operators.entry(node.op_type().to_owned()).or_default() += 1;
    }
    let count =
        |dims: &[i64]| dims.iter().fold(1, |all: u64, &dim| all.saturating_mul(u64::try_from(dim).unwrap_or(0)));
    let bytes = |kind: i32| ElementType::from_onnx(kind).map_or(1, |kind| kind.size() as u64);
    let facts = ModelFacts {
        path: path.display().to_string(),
        hash: model.hash.to_string(),
        producer: format!("{} {}", model.proto.producer_name(), model.proto.producer_version()).trim().to_owned(),
        ir_version: model.proto.ir_version(),
        opsets: model.proto.opset_import.iter().map(|set| (set.domain().to_owned(), set.version())).collect(),
        inputs: graph.input.iter().filter(|input| !weights.contains(input.name())).map(describe_value).collect(),
        outputs: graph.output.iter().map(describe_value).collect(),
        parameters: graph.initializer.iter().map(|tensor| count(&tensor.dims)).fold(0, u64::saturating_add),
        weight_bytes: (graph.initializer.iter())
            .map(|tensor| count(&tensor.dims).saturating_mul(bytes(tensor.data_type())))
            .fold(0, u64::saturating_add),
        operators,
        random_data: of_random_data(&model),
        findings: diagnose(&model),
        nodes: if all {
            graph.node.iter().map(|node| [node.name().to_owned(), node.op_type().to_owned()]).collect()
        } else {
            Vec::new()
        },
    };
    printer.outcome(&facts, || {
        let opsets: Vec<String> = facts
            .opsets
            .iter()
            .map(
                |(domain, version)| if domain.is_empty() { version.to_string() } else { format!("{domain} {version}") },
            )
            .collect();
        let operators: Vec<String> = facts.operators.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let mut lines = vec![
            format!("ONNX model {}{}", facts.path, random_mark(facts.random_data)),
            format!("hash        {}", facts.hash),
            format!(
                "producer    {}, IR {}, opset {}",
                if facts.producer.is_empty() { "not named" } else { &facts.producer },
                facts.ir_version,
                opsets.join(", ")
            ),
            format!("inputs      {}", facts.inputs.join(", ")),
            format!("outputs     {}", facts.outputs.join(", ")),
            format!("parameters  {} ({})", facts.parameters, size(facts.weight_bytes)),
            format!("operators   {}", operators.join(", ")),
        ];
        lines.extend(facts.findings.iter().map(ToString::to_string));
        lines.extend(facts.nodes.iter().map(|[name, kind]| format!("  {kind:<24} {name}")));
        lines.join("\n")
    })?;
    let broken = facts.findings.iter().any(|finding| finding.severity == Severity::Error);
    anyhow::ensure!(!broken, "{} has errors, listed above", path.display());
    Ok(ExitStatus::Passed)
}

/// `input: float32 [batch, 3, 224, 224]`.
fn describe_value(value: &ValueInfoProto) -> String {
    let Some(TypeValue::TensorType(tensor)) = value.r#type.as_ref().and_then(|kind| kind.value.as_ref()) else {
        return format!("{}: no tensor", value.name());
    };
    let kind = ElementType::from_onnx(tensor.elem_type()).map_or("unknown type", ElementType::name);
    let extent = |dim: &trtcalib::onnx::proto::DimensionProto| match &dim.value {
        Some(DimensionValue::DimValue(extent)) => extent.to_string(),
        Some(DimensionValue::DimParam(name)) => name.clone(),
        None => "?".to_owned(),
    };
    let dims: Option<Vec<String>> = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(extent).collect());
    format!("{}: {kind} [{}]", value.name(), dims.map_or_else(|| "unknown rank".to_owned(), |dims| dims.join(", ")))
}

/// Every Q/DQ pair against TensorRT's rules.
fn check(printer: &Printer, path: &Path, library: Option<&Path>) -> anyhow::Result<ExitStatus> {
    let model = Model::load(path)?;
    if let Some(broken) = diagnose(&model).into_iter().find(|finding| finding.severity == Severity::Error) {
        anyhow::bail!("{} cannot be used: {}; {}", path.display(), broken.message, broken.hint);
    }
    let findings = check_rules(&model, library)?;
    if !has_quantizers(model.inlined().0.graph()) {
        printer.warn(&format!(
            "{} has no QuantizeLinear and no DequantizeLinear: there is nothing to check",
            path.display()
        ));
    }
    printer.outcome(&findings, || {
        if findings.is_empty() {
            return format!("{}: every Q/DQ pair follows TensorRT's rules", path.display());
        }
        findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if findings.is_empty() { ExitStatus::Passed } else { ExitStatus::GateFailed })
}

fn has_quantizers(graph: &GraphProto) -> bool {
    let is_one = |node: &NodeProto| matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear");
    graph.node.iter().any(|node| is_one(node) || node.subgraphs().any(has_quantizers))
}

fn cache(printer: &Printer, path: &Path) -> anyhow::Result<ExitStatus> {
    let cache = CalibrationCache::load(path)?;
    let CalibrationCache { version, algorithm, scales, random_data } = &cache;
    let value = json!({"version": version, "algorithm": algorithm, "scales": scales, "random_data": random_data});
    printer.outcome(&value, || {
        let mark = random_mark(*random_data);
        let mut lines = vec![match &**version {
            "" => format!("calibration cache {}: amax{mark}", path.display()),
            _ => format!("TensorRT {version} calibration cache {} ({algorithm}): amax{mark}", path.display()),
        }];
        lines.extend(cache.scales.iter().map(|(name, scale)| format!("  {:>12.6}  {name}", scale * 127.0)));
        lines.join("\n")
    })?;
    Ok(ExitStatus::Passed)
}

fn histograms(printer: &Printer, path: &Path) -> anyhow::Result<ExitStatus> {
    let histograms = Histograms::load(path)?;
    let names: std::collections::BTreeSet<&String> = histograms.fit.keys().chain(histograms.held_out.keys()).collect();
    let tensors: BTreeMap<&str, Value> = names
        .into_iter()
        .map(|name| {
            let parts = [histograms.fit.get(name), histograms.held_out.get(name)];
            let count: u64 = parts.iter().flatten().map(|part| part.count()).sum();
            let amax = parts.iter().flatten().map(|part| part.amax()).fold(0.0, f32::max);
            (name.as_str(), json!({"count": count, "amax": amax}))
        })
        .collect();
    let value = json!({"provenance": histograms.provenance, "samples": histograms.samples(), "tensors": tensors});
    printer.outcome(&value, || {
        let mut lines = vec![format!(
            "histograms {} of model {}: {} tensors from {} samples{}",
            path.display(),
            histograms.provenance.model_hash.short(),
            tensors.len(),
            histograms.samples(),
            random_mark(histograms.provenance.random_data)
        )];
        lines.extend(tensors.iter().map(|(name, facts)| format!("  amax {:<14} {name}", facts["amax"])));
        lines.join("\n")
    })?;
    Ok(ExitStatus::Passed)
}

/// Behind what was made from random numbers.
fn random_mark(random_data: bool) -> &'static str {
    if random_data { ", FROM RANDOM DATA" } else { "" }
}

/// The keys by which JSON files of ours are told apart. Their values are passed over: a tree of any JSON takes many times
/// the memory of its text.
#[derive(Deserialize)]
struct Keys {
    target: Option<IgnoredAny>,
    seconds: Option<IgnoredAny>,
    assignments: Option<IgnoredAny>,
    tensors: Option<IgnoredAny>,
    model_hash: Option<IgnoredAny>,
    precisions: Option<IgnoredAny>,
}

/// A table, a report, or another JSON file of ours.
fn json_file(printer: &Printer, path: &Path, all: bool) -> anyhow::Result<ExitStatus> {
    let bytes = read_regular(path).with_context(|| format!("cannot read {}", path.display()))?;
    let keys: Keys = serde_json::from_slice(&bytes).with_context(|| format!("{} is not valid JSON", path.display()))?;
    drop(bytes);
    if keys.target.is_some() && keys.seconds.is_some() {
        let findings: Findings = read_json(path, "bisection", FINDINGS_FORMAT_VERSION)?;
        printer.outcome(&findings, || super::bisect::text::describe(&findings))?;
    } else if keys.assignments.is_some() {
        let plan = PrecisionPlan::read(path)?;
        printer.outcome(&plan, || describe_plan(&plan))?;
    } else if keys.tensors.is_some() && keys.model_hash.is_some() {
        let table = CalibrationTable::load(path)?;
        printer.outcome(&table, || describe_table(path, &table, all))?;
    } else if keys.precisions.is_some() {
        let report = Report::read(path)?;
        printer.outcome(&report, || describe_report(&report))?;
    } else {
        anyhow::bail!(
            "{} is JSON, but not a calibration table, report, precision plan or findings of a bisection",
            path.display()
        );
    }
    Ok(ExitStatus::Passed)
}

/// The figures of a run as `run` prints them, with what it noted.
fn describe_report(report: &Report) -> String {
    let gates = report.verdict.gates.iter().map(|gate| {
        let outcome = if gate.result.passed { "passed" } else { "failed" };
        format!("{outcome}  {}: {}", gate.condition(), gate.result.shown())
    });
    let worst = worst_layers(&report.layers);
    let worst = worst.iter().map(|(db, layer)| format!("{db:>6.1} dB  {} {}", layer.op_type, layer.node));
    let texts = report.notes.iter().cloned().chain(report.advice.iter().map(|advice| advice.text.clone()));
    let mut lines = vec![
        format!("report of {}{}", report.model.path, random_mark(report.rests_on_random_data())),
        super::run::table(report),
    ];
    lines.extend(gates.chain(worst).chain(texts));
    lines.join("\n")
}

fn describe_plan(plan: &PrecisionPlan) -> String {
    let default = plan.default.map_or_else(|| "decided by the rules".to_owned(), |default| default.to_string());
    let line = |Assignment { nodes, precision }: &Assignment| match nodes {
        Selector::Node(name) => format!("\n{precision}  node `{name}`"),
        Selector::Pattern(pattern) => format!("\n{precision}  nodes that match `{pattern}`"),
    };
    let mark = random_mark(plan.random_data);
    format!("precision plan{mark}; nodes not named: {default}{}", plan.assignments.iter().map(line).collect::<String>())
}

fn describe_table(path: &Path, table: &CalibrationTable, all: bool) -> String {
    let mut text = format!(
        "calibration table {} of model {}: {} from {}, method {}, biases of {} corrected{}\n",
        path.display(),
        table.model_hash.short(),
        counted(table.tensors.len(), "tensor"),
        counted(table.samples, "sample"),
        table.method,
        counted(table.bias_corrections.len(), "node"),
        random_mark(table.random_data)
    );
    if let Some(fp8) = &table.fp8 {
        text.push_str(&format!(
            "for FP8 ranges of its own, and biases of {} corrected\n",
            counted(fp8.bias_corrections.len(), "node")
        ));
    }
    let mut rows = crate::table::table(comfy_table::presets::NOTHING);
    rows.set_header(["tensor", "min", "max", "amax", "method", "clipped"]);
    for (name, range) in table.tensors.iter().take(if all { usize::MAX } else { 20 }) {
        rows.add_row([
            name.clone(),
            format!("{:.4}", range.min),
            format!("{:.4}", range.max),
            format!("{:.4}", range.amax),
            range.method.name().to_owned(),
            format!("{:.4} %", range.clipped * 100.0),
        ]);
    }
    text.push_str(&rows.to_string());
    if !all && table.tensors.len() > 20 {
        text.push_str(&format!("\n... and {} more; --all lists them", table.tensors.len() - 20));
    }
    text
}
