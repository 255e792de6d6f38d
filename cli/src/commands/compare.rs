//! `calib compare`: the same samples through a reference and one or several targets.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::{
    ExitStatus, Printer,
    calibrate::warn_halved,
    output::check_folders,
    settings::{Apply, Session, control, one_size},
    spec::{Spec, fill_from_sidecar},
};
use crate::args::{CompareArgs, GlobalArgs};
use trtcalib::{
    backend::{
        Backend, BuildOptions, ExecutionProvider,
        onnxruntime::widens_halves,
        tensorrt::{EngineSidecar, RunnerOptions, run_engine},
    },
    compare::{
        ComparisonResult, DetectionResult, Footprint, Gate, GateResult, Needs, PartMetrics, SavedOutputs, Segmentation,
    },
    config::RunConfig,
    onnx::Model,
    session::{
        PipelineError,
        evaluation::{EvaluateOptions, Outputs, Recorder, evaluate_pairs},
    },
};

/// The outcome for one target.
#[derive(Serialize)]
struct TargetOutcome {
    target: String,
    /// What it is compared with, where that is not the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<ComparisonResult>,
    gates: Vec<GateResult>,
}

#[derive(Serialize)]
struct Outcome {
    passed: bool,
    reference: String,
    samples: usize,
    skipped: Vec<String>,
    targets: Vec<TargetOutcome>,
    /// Engines against the models that they were built from, in ONNX Runtime: what the engine adds to the error of
    /// quantization.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    engine_errors: Vec<TargetOutcome>,
}

impl TargetOutcome {
    fn new(target: &str) -> Self {
        Self { target: target.to_owned(), against: None, error: None, result: None, gates: Vec::new() }
    }

    fn take(&mut self, result: Result<ComparisonResult, PipelineError>, gates: &[Gate], footprint: Footprint) {
        match result {
            Ok(result) => {
                self.gates = gates.iter().map(|gate| gate.evaluate(&result, &footprint)).collect();
                self.result = Some(result);
            }
            Err(error) => self.error = Some(super::describe(&error.into())),
        }
    }
}

/// Compares.
pub(super) fn compare(printer: &Printer, global: &GlobalArgs, args: &CompareArgs) -> anyhow::Result<ExitStatus> {
    let gates = args.gate.iter().map(|gate| gate.parse()).collect::<Result<Vec<Gate>, _>>()?;
    check_gates(&gates)?;
    let reference_spec = Spec::parse(&args.reference)?;
    let mut specs = args.targets.iter().map(|target| Spec::parse(target)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut names = args.targets.clone();
    let mut config = RunConfig::default();
    one_size(&args.data, &args.runtime)?;
    check_folders([&args.save_reference, &args.save_target].into_iter().flatten().map(PathBuf::as_path))?;
    args.data.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.outputs.apply(&mut config)?;
    config.model = args.model.clone().or_else(|| float_model(&reference_spec, &specs));
    for spec in [&reference_spec].into_iter().chain(&specs) {
        fill_from_sidecar(&mut config, spec)?;
        let Spec::Engine(path) = spec else { continue };
        anyhow::ensure!(path.exists(), "there is no engine {}; `calib build` makes one", path.display());
    }
    let pairs = add_sources(&mut specs, &mut names, config.model.as_deref())?;
    anyhow::ensure!(
        config.model.is_some(),
        "which float model `ort` stands for is not known; name it with --model FILE, or write --ref ort:FILE.onnx"
    );
    let session = Session::open(config, global.ort_library.as_deref(), printer)?;
    let samples = args.samples.unwrap_or(0);
    let count = session.data.collection.dataset.len();
    let indices: Vec<usize> = if samples == 0 || samples >= count {
        (0..count).collect()
    } else {
        session.data.split(session.config.seed, 0, samples).evaluation
    };
    let engine = RunnerOptions { runtime_cache: args.runtime_cache.clone(), ..RunnerOptions::default() };
    let mut reference = Side::new(printer, &reference_spec, &session, &engine, args.save_reference.as_deref())?;
    let mut targets = Vec::new();
    let mut outcomes: Vec<TargetOutcome> = Vec::new();
    for (index, (spec, name)) in specs.iter().zip(&names).enumerate() {
        let save = args.save_target.as_deref().filter(|_| index == 0);
        targets.push(Side::new(printer, spec, &session, &engine, save).with_context(|| format!("target {name}"))?);
        outcomes.push(TargetOutcome::new(name));
    }
    let options = EvaluateOptions { batch: session.batch, policy: session.policy, compare: session.compare_options() };
    let bar = printer.progress(indices.len() as u64, "comparing");
    let progress = |samples: usize| bar.inc(samples as u64);
    let control = control(session.threads, &progress);
    let dataset = &*session.data.collection.dataset;
    let mut sides: Vec<&mut dyn Outputs> = targets.iter_mut().map(Side::outputs).collect();
    let evaluation = evaluate_pairs(reference.outputs(), &mut sides, &pairs, dataset, &indices, &options, control);
    bar.finish_and_clear();
    let evaluation = evaluation?;
    warn_halved(printer, "the comparison", evaluation.halved_to);
    for warning in session.label_warnings(&evaluation.reference) {
        printer.warn(&warning);
    }
    for (index, (outcome, result)) in outcomes.iter_mut().zip(evaluation.targets).enumerate() {
        // Gates are for what was asked for, not for what was added to explain it.
        let gates = if index < args.targets.len() { &*gates } else { &[] };
        outcome.take(result, gates, Footprint { size_mb: size_mb(&specs[index]), ..Footprint::default() });
    }
    let mut engine_errors = Vec::new();
    for (&(source, engine), result) in pairs.iter().zip(evaluation.pairs) {
        let mut outcome = TargetOutcome::new(&names[engine]);
        outcome.against = Some(names[source].clone());
        outcome.take(result, &[], Footprint::default());
        engine_errors.push(outcome);
    }
    for side in std::iter::once(reference).chain(targets) {
        side.finish()?;
    }
    let failed: Vec<String> =
        outcomes.iter().filter_map(|o| Some(format!("{}: {}", o.target, o.error.as_ref()?))).collect();
    let outcome = Outcome {
        passed: outcomes.iter().all(|outcome| outcome.gates.iter().all(|gate| gate.passed)) && failed.is_empty(),
        reference: args.reference.clone(),
        samples: evaluation.ids.len(),
        skipped: evaluation.summary.skipped.iter().map(ToString::to_string).collect(),
        targets: outcomes,
        engine_errors,
    };
    printer.outcome(&outcome, || describe(&outcome))?;
    anyhow::ensure!(failed.is_empty(), "a target could not be run: {}", failed.join("; "));
    Ok(if outcome.passed { ExitStatus::Passed } else { ExitStatus::GateFailed })
}

/// Size of the file that a target is read from.
fn size_mb(spec: &Spec) -> Option<f64> {
    let (Spec::OnnxRuntime(Some(path), _) | Spec::Engine(path)) = spec else { return None };
    Some(std::fs::metadata(path).ok()?.len() as f64 / 1e6)
}

/// Refuses gates that cannot be tested here.
fn check_gates(gates: &[Gate]) -> anyhow::Result<()> {
    for gate in gates {
        anyhow::ensure!(
            gate.metric.needs() != Needs::Times,
            "gate {gate}: compare measures no times; `calib run` judges them, and `calib bench` shows them"
        );
        anyhow::ensure!(
            gate.precision.is_none(),
            "gate {gate}: a target's precision is not known here; compare it by itself with {}, or use `calib run`",
            Gate { precision: None, ..gate.clone() }
        );
    }
    Ok(())
}

/// The model that tells inputs and data: the reference's file, or the engine's sidecar, or the first target's file.
fn float_model(reference: &Spec, targets: &[Spec]) -> Option<PathBuf> {
    let file = |spec: &Spec| match spec {
        Spec::OnnxRuntime(path, _) => path.clone(),
        Spec::Saved(_) | Spec::Engine(_) => None,
    };
    file(reference).or_else(|| {
        if *reference == Spec::OnnxRuntime(None, ExecutionProvider::Cpu) { None } else { targets.iter().find_map(file) }
    })
}

/// Adds the Q/DQ model of every engine that was built from one, to be run by ONNX Runtime: the error of quantization
/// without the engine's own. Gives the pairs of both.
fn add_sources(
    specs: &mut Vec<Spec>,
    names: &mut Vec<String>,
    float: Option<&Path>,
) -> anyhow::Result<Vec<(usize, usize)>> {
    let mut pairs = Vec::new();
    for engine in 0..specs.len() {
        let Spec::Engine(path) = &specs[engine] else { continue };
        let Some(sidecar) = EngineSidecar::beside(path)? else { continue };
        if float == Some(&sidecar.model) || sidecar.reference.is_none() || !sidecar.model.exists() {
            continue;
        }
        let source = Spec::OnnxRuntime(Some(sidecar.model.clone()), ExecutionProvider::Cpu);
        let index = specs.iter().position(|spec| *spec == source).unwrap_or_else(|| {
            names.push(format!("ort:{}", sidecar.model.display()));
            specs.push(source);
            specs.len() - 1
        });
        pairs.push((index, engine));
    }
    Ok(pairs)
}

/// What gives outputs, and where they are saved on the way.
enum Side {
    Plain(Box<dyn Outputs>),
    Recorded(Recorder, PathBuf),
}

impl Side {
    fn new(
        printer: &Printer,
        spec: &Spec,
        session: &Session,
        engine: &RunnerOptions,
        save: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let outputs: Box<dyn Outputs> = match spec {
            Spec::OnnxRuntime(file, provider) => {
                let build = BuildOptions { threads: session.threads, provider: *provider, ..BuildOptions::default() };
                let model = match file {
                    Some(path) => Model::load(path)?,
                    None => session.subject.float.clone(),
                };
                if widens_halves(&model, *provider) {
                    printer.warn(&format!(
                        "{}: ONNX Runtime's CPU provider computes 16-bit numbers in 32 bits, so what they round and overflow on the \
                         way does not show; `calib run` imitates it, and a GPU computes it (ort-cuda:FILE)",
                        model.name()
                    ));
                }
                Box::new(session.runtime.build(&model, &build)?)
            }
            Spec::Saved(path) => Box::new(SavedOutputs::open(path)?),
            Spec::Engine(path) => Box::new(run_engine(path, engine)?),
        };
        match save {
            Some(path) => Ok(Self::Recorded(Recorder::new(outputs)?, path.to_owned())),
            None => Ok(Self::Plain(outputs)),
        }
    }

    fn outputs(&mut self) -> &mut dyn Outputs {
        match self {
            Self::Plain(outputs) => &mut **outputs,
            Self::Recorded(recorder, _) => recorder,
        }
    }

    /// Writes what was recorded.
    fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Recorded(recorder, path) => Ok(recorder.finish(&path)?),
        }
    }
}

fn describe(outcome: &Outcome) -> String {
    let mut text = format!("{} samples against {}\n", outcome.samples, outcome.reference);
    for skipped in &outcome.skipped {
        text.push_str(&format!("skipped {skipped}\n"));
    }
    for target in outcome.targets.iter().chain(&outcome.engine_errors) {
        let against = target.against.as_ref().map_or_else(String::new, |source| {
            format!(" against {source}: what the engine adds to the error of quantization")
        });
        text.push_str(&format!("\n{}{against}\n", target.target));
        if let Some(error) = &target.error {
            text.push_str(&format!("  not run: {error}\n"));
        }
        let Some(result) = &target.result else { continue };
        for output in &result.outputs {
            let sqnr = output.sqnr_db.map_or_else(|| "equal".to_owned(), |db| format!("SQNR {db:.2} dB"));
            text.push_str(&format!(
                "  {}: {sqnr}, cosine {:.6}, max abs {:.4e}, mean abs {:.4e}, relative L2 {:.4e}\n",
                output.name, output.cosine, output.max_abs, output.mean_abs, output.rel_l2
            ));
        }
        for warning in result.non_finite_warnings() {
            text.push_str(&format!("  {warning}\n"));
        }
        if let Some(detection) = &result.detection {
            text.push_str(&detection_text(detection));
        }
        for output in result.outputs.iter().filter(|output| !output.parts.is_empty()) {
            let part = |part: &PartMetrics| {
                format!("{} {}", part.name, part.sqnr_db.map_or_else(|| "equal".to_owned(), |db| format!("{db:.1} dB")))
            };
            let parts: Vec<String> = output.parts.iter().map(part).collect();
            text.push_str(&format!("  {}: SQNR by part: {}\n", output.name, parts.join(", ")));
        }
        for task in &result.tasks {
            if let Some(agreement) = &task.agreement {
                text.push_str(&format!(
                    "  {}: top-1 agreement {:.4} [{:.4}, {:.4}], top-5 overlap {:.4}, same five {:.4}, first in five {:.4}\n",
                    task.output,
                    agreement.top1,
                    agreement.top1_interval[0],
                    agreement.top1_interval[1],
                    agreement.top5_overlap,
                    agreement.top5_set,
                    agreement.ref_top1_in_top5
                ));
            }
            if let (Some(target), Some(reference)) = (&task.accuracy, &task.reference_accuracy) {
                let p = target.mcnemar_p.map_or_else(String::new, |p| format!(", McNemar p = {p:.3}"));
                text.push_str(&format!(
                    "  {}: accuracy on {} labelled samples top-1 {:.4} (reference {:.4}), top-5 {:.4} (reference {:.4}){p}\n",
                    task.output, target.samples, target.top1, reference.top1, target.top5, reference.top5
                ));
            }
            if let Some(maps) = &task.segmentation {
                text.push_str(&format!(
                    "  {}: pixel agreement {:.4}, mean IoU {:.4}\n",
                    task.output, maps.pixel_agreement, maps.mean_iou
                ));
                let on_masks = |maps: &Segmentation| maps.pixel_accuracy.zip(maps.label_mean_iou);
                let reference = task.reference_segmentation.as_ref().and_then(on_masks);
                if let Some(((accuracy, iou), reference)) = on_masks(maps).zip(reference) {
                    text.push_str(&format!(
                        "  {}: on label masks pixel accuracy {accuracy:.4} (reference {:.4}), mean IoU {iou:.4} (reference {:.4})\n",
                        task.output, reference.0, reference.1
                    ));
                }
            }
        }
        for gate in &target.gates {
            let verdict = if gate.passed { "passed" } else { "FAILED" };
            text.push_str(&format!("  gate {} {}: {verdict} ({})\n", gate.subject(), gate.asked(), gate.shown()));
        }
    }
    text
}

/// Boxes against the reference's and against labels.
fn detection_text(detection: &DetectionResult) -> String {
    let a = &detection.agreement;
    let bounds =
        |interval: Option<[f64; 2]>| interval.map_or_else(String::new, |[low, high]| format!(" [{low:.4}, {high:.4}]"));
    let mean = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let mut text = format!(
        "  boxes by {}: at confidence {} and IoU 0.5 precision {:.4}{}, recall {:.4}{}, mean IoU {}, score shift {}; {} lost, \
         {} gained, {} in common\n",
        detection.head,
        a.confidence,
        a.precision,
        bounds(a.precision_interval),
        a.recall,
        bounds(a.recall_interval),
        mean(a.mean_iou),
        mean(a.score_shift),
        a.lost,
        a.gained,
        a.common
    );
    if let Some(accuracy) = &detection.accuracy {
        text.push_str(&format!(
            "  boxes against labels of {} pictures: mAP 50-95 {}{} (reference {}, drop{}), mAP 50 {}\n",
            accuracy.labelled_pictures,
            mean(accuracy.figures.map50_95),
            bounds(accuracy.map50_95_interval),
            mean(detection.reference_map50_95),
            bounds(detection.map50_95_drop_interval),
            mean(accuracy.figures.map50)
        ));
    }
    text
}
