//! Gates, before any work is done: whether they can be tested at all, and whether the samples are enough to decide them.

use super::{PipelineError, Session};
use crate::{
    backend::{ExecutionProvider, TensorInfo, cuda::Device},
    compare::{Gate, Metric, Needs, OutputKind},
    config::UseTensorRt,
};

impl Session {
    /// Refuses gates whose data are missing, and says which ones so few of `samples` cannot decide; returns why those cannot pass
    /// that ask for an interval.
    ///
    /// # Errors
    /// A gate is about labels, masks or boxes, and no sample has any.
    pub(super) fn check_gates(&self, gates: &[Gate], samples: &[usize]) -> Result<Vec<String>, PipelineError> {
        let dataset = self.dataset();
        let count = |known: &dyn Fn(usize) -> bool| samples.iter().filter(|&&index| known(index)).count();
        let (mut told, mut failing) = (Vec::new(), Vec::new());
        for gate in gates {
            ensure!(
                gate.metric != Metric::Own || self.metric.is_some(),
                "gate {gate} cannot be tested: the metric is a function of one's own, which the functions of \
                 `trtcalib` in Python take as `metric=`"
            );
            let needs = gate.metric.needs();
            let (counting, missing) = match needs {
                Needs::Labels => (
                    count(&|index| dataset.label(index).is_some()),
                    "no sample has a label; give --labels FILE, or a folder for each class",
                ),
                Needs::Masks => (
                    count(&|index| dataset.mask_file(index).is_some()),
                    "no sample has a label mask; give --labels FOLDER with one PNG for each picture",
                ),
                Needs::Boxes => (
                    count(&|index| dataset.has_boxes(index)),
                    "no sample has labelled boxes; give --labels with COCO's JSON or YOLO's text files",
                ),
                Needs::Outputs | Needs::Times | Needs::Size => (samples.len(), ""),
            };
            ensure!(counting > 0 || missing.is_empty(), "gate {gate} cannot be tested: {missing}");
            let of_boxes =
                [Metric::DetectionPrecision, Metric::DetectionRecall, Metric::DetectionIou].contains(&gate.metric);
            ensure!(
                self.head.is_some() || !(of_boxes || needs == Needs::Boxes),
                "gate {gate} cannot be tested: the model has no detection head that is known; name it with --head"
            );
            if let Some(warning) = gate.undecidable(counting).filter(|warning| !told.contains(warning)) {
                self.host.warn(&warning);
                if gate.confidence.is_some() {
                    failing.push(warning.clone());
                }
                told.push(warning);
            }
        }
        Ok(failing)
    }

    /// Refuses gates on outputs that the reference does not have, or that cannot be of the kind they are about.
    ///
    /// # Errors
    /// There is such a gate.
    pub(super) fn check_gated_outputs(&self, gates: &[Gate], outputs: &[TensorInfo]) -> Result<(), PipelineError> {
        for gate in gates {
            let kind = match (gate.metric, gate.metric.needs()) {
                (Metric::Top1 | Metric::Top5 | Metric::Top5Set | Metric::RefTop1InTop5, _) | (_, Needs::Labels) => {
                    OutputKind::Classification
                }
                (Metric::PixelAgreement | Metric::MeanIou, _) | (_, Needs::Masks) => OutputKind::Map,
                _ => OutputKind::Generic,
            };
            ensure!(
                kind == OutputKind::Generic || outputs.iter().any(|output| self.may_be(output, kind)),
                "gate {gate} cannot be tested: no output of the model is a {} by its shape; --output-kind NAME=... says \
                 which one is",
                if kind == OutputKind::Map { "map of classes" } else { "classification" }
            );
            if let Some(part) = &gate.part
                && !outputs.iter().any(|output| self.is_part(part, &output.name))
            {
                let known: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
                bail!(
                    "gate {gate} cannot be tested: `{part}` is neither an output of the model nor a part of one; it has {}",
                    known.join(", ")
                );
            }
        }
        Ok(())
    }

    /// Whether an output is of a kind, or may be: what is unknown of its shape only samples tell.
    fn may_be(&self, output: &TensorInfo, kind: OutputKind) -> bool {
        match self.subject.kinds(&self.config.output_kind).get(&output.name) {
            Some(OutputKind::MapChannelsLast) => return kind == OutputKind::Map,
            Some(given) => return *given == kind,
            None => {}
        }
        let Some(element_type) = output.element_type else { return false };
        let sample = output.shape.iter().skip(1).copied().collect::<Option<Vec<usize>>>();
        let Some(sample) = sample else { return true };
        if self.head.as_ref().is_some_and(|head| head.is_prototypes(&sample)) {
            return kind == OutputKind::Generic;
        }
        // Where a sample is a whole input, its first axis is not a batch.
        let whole = output.shape.iter().copied().collect::<Option<Vec<usize>>>();
        [Some(sample), whole].into_iter().flatten().any(|shape| OutputKind::detect(element_type, &shape) == kind)
    }

    /// Whether a gate's `name` is an output's, that of a part which a detection head has there, or one that values may
    /// tell: their positions, as `0-3`.
    fn is_part(&self, name: &str, output: &str) -> bool {
        if self.config.output_kind.get(output) == Some(&OutputKind::Ignored) {
            return false;
        }
        let part = name.strip_prefix(output).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
        let parts = self.compare_options().parts;
        name == output
            || match parts.get(output) {
                Some(parts) => parts.iter().any(|known| known.name == part),
                None => part.bytes().all(|byte| byte.is_ascii_digit() || b"-,".contains(&byte)),
            }
    }

    /// Refuses gates for what a run does not make or measure.
    pub(super) fn check_run_gates(&self, gates: &[Gate], precisions: &[&str]) -> Result<(), PipelineError> {
        let reference = self.subject.float_types.name();
        let engines = || self.config.tensorrt != UseTensorRt::Off && Device::open(0).is_ok();
        for gate in gates {
            ensure!(
                gate.precision.is_some() || !precisions.is_empty() || engines(),
                "gate {gate} cannot be tested: nothing is made that could be judged by it, since the model is {reference} \
                 already and is what others are compared with; name another precision with --precisions"
            );
            if let Some(precision) = gate.precision.as_deref().filter(|name| !precisions.contains(name)) {
                let made = precisions.join(", ");
                ensure!(
                    precision != reference,
                    "gate {gate}: {precision} is what the model is, with which the others are compared; gates are for {made}"
                );
                bail!(
                    "gate {gate}: {precision} is not made by this run, which makes {made}; name it with --precisions"
                );
            }
            ensure!(
                gate.metric.needs() != Needs::Times || self.config.bench_seconds > 0.0,
                "gate {gate} cannot be tested: no latency is measured with --bench-seconds 0"
            );
            // On the CPU other precisions than the model's own are emulated.
            let says_something = || self.provider != ExecutionProvider::Cpu || engines();
            ensure!(
                gate.metric.needs() != Needs::Times || says_something(),
                "gate {gate} cannot be tested: without a GPU, or with --tensorrt off, low precisions are emulated and their \
                 latency says nothing; test it where engines run, or measure there with what `deploy/` holds"
            );
        }
        Ok(())
    }
}
