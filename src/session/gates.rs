//! Gates, before any work is done: whether they can be tested at all, and whether the samples are enough to decide them.

use super::{PipelineError, Session};
use crate::{
    backend::{ExecutionProvider, cuda::Device},
    compare::{Gate, Metric, Needs},
    config::UseTensorRt,
};

impl Session {
    /// Refuses gates whose data are missing, and says which ones so few of `samples` cannot decide.
    ///
    /// # Errors
    /// A gate is about labels, masks or boxes, and no sample has any.
    pub(super) fn check_gates(&self, gates: &[Gate], samples: &[usize]) -> Result<(), PipelineError> {
        let dataset = self.dataset();
        let count = |known: &dyn Fn(usize) -> bool| samples.iter().filter(|&&index| known(index)).count();
        let mut told = Vec::new();
        for gate in gates {
            ensure!(
                gate.metric != Metric::Own || self.metric.is_some(),
                "gate {gate} cannot be tested: the metric is a function of one's own, which `trtcalib.run` in Python takes as \
                 `metric=`"
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
                told.push(warning);
            }
        }
        Ok(())
    }

    /// Refuses gates for what a run does not make or measure.
    pub(super) fn check_run_gates(&self, gates: &[Gate], precisions: &[&str]) -> Result<(), PipelineError> {
        let reference = self.subject.float_types.name();
        for gate in gates {
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
            let says_something = || {
                self.provider != ExecutionProvider::Cpu
                    || (self.config.tensorrt != UseTensorRt::Off && Device::open(0).is_ok())
            };
            ensure!(
                gate.metric.needs() != Needs::Times || says_something(),
                "gate {gate} cannot be tested: without a GPU, or with --tensorrt off, low precisions are emulated and their \
                 latency says nothing; test it where engines run, or measure there with what `deploy/` holds"
            );
        }
        Ok(())
    }
}
