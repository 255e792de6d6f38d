//! `calib bisect`: which layers diverge and why, the first of them, and the smallest set worth saving.

mod engine;
mod plan;
mod subject;
mod target;
mod text;

use std::time::Instant;

use subject::Bisection;
pub(super) use text::describe;

use super::{
    ExitStatus, Printer,
    settings::{Apply, one_size},
    spec::{Spec, fill_from_sidecar},
};
use crate::args::{BisectArgs, Find, GlobalArgs};
use trtcalib::{
    analyse::{
        advice::about_layers,
        layerwise::{output_noise, worst},
        operators::Pair,
    },
    artifact::{Tool, write_atomic, write_json},
    bisect::findings::{FINDINGS_FORMAT_VERSION, Findings},
    compare::Gate,
    config::RunConfig,
    report::bisection_html,
    session::checkpoint::Checkpoints,
};

/// Samples that local errors are measured on.
const LAYER_SAMPLES: usize = 16;
/// Samples that the effect of single operators on the outputs is measured on.
const OUTPUT_SAMPLES: usize = 8;
/// Operators whose effect on the outputs is measured; the others are ranked by their local errors.
const OUTPUT_OPERATORS: usize = 64;

/// Does the job.
pub(super) fn bisect(printer: &Printer, global: &GlobalArgs, args: &BisectArgs) -> anyhow::Result<ExitStatus> {
    let started = Instant::now();
    let config = configuration(args)?;
    let gates = config.gate.iter().map(|gate| gate.parse()).collect::<Result<Vec<Gate>, _>>()?;
    let find = args.find.unwrap_or(if gates.is_empty() { Find::Layers } else { Find::Plan });
    anyhow::ensure!(
        find != Find::Plan || !gates.is_empty(),
        "a plan needs a gate to pass; name one, as in --gate top1=0.99"
    );
    anyhow::ensure!(
        find != Find::Plan || args.target.is_none(),
        "a plan is searched for the model that is quantized here; leave out --target, or look into it with --find layers"
    );
    anyhow::ensure!(
        find != Find::Plan || !["fp16", "bf16"].contains(&args.precision.as_str()),
        "plans are judged in ONNX Runtime, which computes 16-bit models in 32 bits on the CPU; look into {} with --find \
         layers, tensors or first",
        args.precision
    );
    let bisection = Bisection::open(printer, global, args, config, find)?;
    let mut findings = Findings {
        format_version: FINDINGS_FORMAT_VERSION,
        tool: Tool::current(),
        model: bisection.session.config.model.as_deref().map_or_else(String::new, |path| path.display().to_string()),
        model_hash: bisection.session.subject.float.hash.clone(),
        target: args.target.clone().unwrap_or_else(|| args.precision.clone()),
        backend: None,
        layers: Vec::new(),
        outputs: Vec::new(),
        first: None,
        tensors: None,
        probes: None,
        plan: None,
        advice: Vec::new(),
        seconds: 0.0,
    };
    let mut status = ExitStatus::Passed;
    match find {
        Find::First => {
            let (first, source) = bisection.first()?;
            (findings.first, findings.probes, findings.backend) = (Some(first), source.probes, source.backend);
        }
        Find::Tensors => {
            let (tensors, source) = bisection.tensors()?;
            (findings.tensors, findings.probes, findings.backend) = (Some(tensors), source.probes, source.backend);
        }
        Find::Layers => layers(&bisection, &mut findings)?,
        Find::Plan => {
            layers(&bisection, &mut findings)?;
            // This search is what they recommend.
            let search = bisection.commands().bisect;
            for advice in &mut findings.advice {
                advice.command.take_if(|command| *command == search);
            }
            status = bisection.plan(&gates, &mut findings)?;
        }
    }
    findings.seconds = started.elapsed().as_secs_f64();
    write_json(&bisection.out.join("bisect.json"), &findings)?;
    let path = bisection.out.join("bisect.html");
    write_atomic(&path, bisection_html(&findings)?.as_bytes())?;
    bisection.checkpoints.map(Checkpoints::finish).transpose()?;
    printer.outcome(&findings, || describe(&findings))?;
    printer.note(&format!("wrote {} in {:.1} s", path.display(), findings.seconds));
    Ok(status)
}

fn configuration(args: &BisectArgs) -> anyhow::Result<RunConfig> {
    let mut config = match &args.config {
        Some(path) => RunConfig::load(path)?,
        None => RunConfig::default(),
    };
    one_size(&args.data, &args.runtime)?;
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.outputs.apply(&mut config)?;
    config.model = args.model.clone().or(config.model);
    if let Some(target) = args.target.as_deref().map(Spec::parse).transpose()? {
        fill_from_sidecar(&mut config, &target)?;
    }
    config.out = args.out.clone().or(config.out);
    config.tensorrt = args.tensorrt.clone().unwrap_or(config.tensorrt);
    if !args.gate.is_empty() {
        config.gate.clone_from(&args.gate);
    }
    Ok(config)
}

/// Local errors, their effect on the outputs, and what to say about them.
fn layers(bisection: &Bisection<'_>, findings: &mut Findings) -> anyhow::Result<()> {
    let quantized = bisection.quantized_target()?;
    let pair = Pair::new(&bisection.float, &quantized)?;
    bisection.printer.note(&format!("measuring {} operators", pair.operators.len()));
    let session = &bisection.session;
    findings.backend = Some(session.provider.backend().to_owned());
    findings.layers = session.layerwise(bisection.printer, &pair, bisection.first_of(LAYER_SAMPLES))?;
    let nodes = worst(&findings.layers, OUTPUT_OPERATORS);
    findings.outputs = output_noise(
        &session.runtime,
        &pair,
        &nodes,
        bisection.first_of(OUTPUT_SAMPLES),
        &session.output_noise_options(),
    )?;
    findings.advice = about_layers(&findings.layers, &findings.outputs, &bisection.commands());
    if !bisection.options.scheme.precision.is_quantized() {
        // The commands are about ranges and plans, which 16-bit floats have not.
        findings.advice.iter_mut().for_each(|advice| advice.command = None);
    }
    Ok(())
}
