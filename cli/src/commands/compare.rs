//! `calib compare`: the same samples through a reference and one or several targets.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::{
    ExitStatus, Printer, host,
    settings::{Apply, configuration, one_size},
};
use crate::args::{CompareArgs, GlobalArgs};
use trtcalib::{
    compare::{DetectionResult, PartMetrics, Segmentation},
    session::{CompareOutcome, CompareRequest, Compared, Session, Shard, check_folders},
};

/// What a former job counted goes where this one does not begin.
pub(super) fn refused(printer: &Printer, part: Option<&Path>) {
    if let Some(Err(error)) = part.map(Compared::remove_former) {
        printer.warn(&error.to_string());
    }
}

/// Compares.
pub(super) fn compare(printer: &Printer, global: &GlobalArgs, args: &CompareArgs) -> anyhow::Result<ExitStatus> {
    args.part.as_deref().map(Compared::remove_former).transpose()?;
    let mut config = configuration(printer, &args.config)?;
    one_size(&args.data, &args.runtime)?;
    args.data.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.outputs.apply(&mut config)?;
    let gates = if args.gate.is_empty() { &config.gate } else { &args.gate };
    let (reference, targets) = sides(args)?;
    let request = CompareRequest {
        reference,
        targets,
        model: args.model.clone(),
        samples: args.samples.unwrap_or(0),
        gates: gates.clone(),
        calibration_samples: args.calibration_samples,
        save_reference: args.save_reference.clone(),
        save_target: args.save_target.clone(),
        runtime_cache: args.runtime_cache.clone(),
    };
    check_folders([&args.save_reference, &args.save_target, &args.part].into_iter().flatten().map(PathBuf::as_path))?;
    request.complete(&mut config)?;
    let session = Session::open(config, global.ort_library.as_deref(), &host(printer))?;
    if let Some((shard, part)) = args.shard.as_ref().zip(args.part.as_deref()) {
        let compared = session.compared(&request, Some(shard))?;
        compared.save(part)?;
        return wrote_part(printer, &compared, Some(shard), part);
    }
    verdict(printer, &session.compare(&request)?)
}

/// Says what a shard counted and where it was written.
pub(super) fn wrote_part(
    printer: &Printer,
    counted: &Compared,
    shard: Option<&Shard>,
    part: &Path,
) -> anyhow::Result<ExitStatus> {
    let samples = counted.samples();
    let which = shard.map_or_else(String::new, |shard| format!(", part {shard}"));
    printer.outcome(&Part { part, samples }, || format!("{samples} samples{which}: {}", part.display()))?;
    Ok(ExitStatus::Passed)
}

/// What a shard wrote, for `--json`.
#[derive(Serialize)]
struct Part<'a> {
    part: &'a Path,
    samples: usize,
}

/// Prints what a comparison found, and ends with it.
pub(super) fn verdict(printer: &Printer, outcome: &CompareOutcome) -> anyhow::Result<ExitStatus> {
    printer.outcome(&outcome, || describe(outcome))?;
    let failed: Vec<String> =
        outcome.targets.iter().filter_map(|o| Some(format!("{}: {}", o.target, o.error.as_ref()?))).collect();
    anyhow::ensure!(failed.is_empty(), "a target could not be run: {}", failed.join("; "));
    Ok(if outcome.passed == Some(false) { ExitStatus::GateFailed } else { ExitStatus::Passed })
}

/// The reference and the targets, by flags or by place.
fn sides(args: &CompareArgs) -> anyhow::Result<(String, Vec<String>)> {
    let mut specs = args.specs.iter().cloned();
    let reference = args.reference.clone().or_else(|| specs.next());
    let targets: Vec<String> = args.targets.iter().cloned().chain(specs).collect();
    let reference = reference.context("what to compare with was not said; name it with --ref SPEC")?;
    anyhow::ensure!(!targets.is_empty(), "there is nothing to compare with {reference}; name it with --target SPEC");
    Ok((reference, targets))
}

fn describe(outcome: &CompareOutcome) -> String {
    let mut text = format!("{} samples against {}\n", outcome.samples, outcome.reference);
    if outcome.random_data {
        text.push_str("RANDOM DATA: these figures say nothing about real inputs\n");
    }
    if let Some(tensorrt) = &outcome.tensorrt {
        text.push_str(&format!("engines ran on {tensorrt}\n"));
    }
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
        for output in result.outputs.iter().filter(|output| !output.empty) {
            let sqnr = output.sqnr_db.map_or_else(|| "equal".to_owned(), |db| format!("SQNR {db:.2} dB"));
            text.push_str(&format!(
                "  {}: {sqnr}, cosine {:.6}, max abs {:.4e}, mean abs {:.4e}, relative L2 {:.4e}\n",
                output.name, output.cosine, output.max_abs, output.mean_abs, output.rel_l2
            ));
        }
        for warning in result.warnings() {
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
