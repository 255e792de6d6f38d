//! What recovery may do, and how much of everything each effort takes.

use std::collections::BTreeSet;

use super::Peers;
use crate::calibrate::{DeployTo, Effort, ShiftPolicy, StepKind};

/// What recovery may do.
#[derive(Clone, Debug)]
pub struct RecoverOptions {
    /// For FP8 in the place of INT8: without shifts and equalization, which floats do not need, since their steps follow the
    /// size of the numbers, and without rounding of weights.
    pub fp8: bool,
    /// How far it goes.
    pub effort: Effort,
    /// Where the model will run.
    pub deploy_to: DeployTo,
    /// Which activations may be shifted.
    pub shift: ShiftPolicy,
    /// Share of the multiply-accumulates, and of the weights, that may stay in the high precision, between 0 and 1.
    pub lift_budget: f64,
    /// Nodes that may stay there, at most.
    pub lift_nodes: usize,
    /// Steps that may be tried.
    pub steps: BTreeSet<StepKind>,
    /// Workers, each with a thread; 0 for all cores. The result does not depend on their number.
    pub threads: usize,
    /// Who else does the same, and tries part of the candidates.
    pub peers: Peers,
}

impl RecoverOptions {
    /// Fitting and held-out samples that are used, at most.
    pub fn samples(&self) -> [usize; 2] {
        match self.effort {
            Effort::Off => [0, 0],
            Effort::Fast => [8, 4],
            Effort::Default => [16, 10],
            Effort::Thorough => [80, 50],
        }
    }

    /// Whether a step may be tried.
    pub(super) fn may(&self, step: StepKind) -> bool {
        let applies =
            !self.fp8 || matches!(step, StepKind::Biases | StepKind::Ranges | StepKind::Descent | StepKind::Lifting);
        applies && self.steps.contains(&step)
    }

    /// Memory for the tensors of all samples together; fewer samples are used where it is short.
    pub(super) fn memory_bytes(&self) -> usize {
        match self.effort {
            Effort::Thorough => 4 << 30,
            _ => 1 << 30,
        }
    }

    /// Tensors whose ranges are chosen by the outputs of the model.
    pub(super) fn descended(&self) -> usize {
        match self.effort {
            // It takes a third of the time of all steps together.
            Effort::Off | Effort::Fast | Effort::Default => 0,
            Effort::Thorough => 16,
        }
    }

    /// Whether weights may take back errors that reach them: it takes as long as rounding them, and more samples than others have.
    pub(super) fn compensates(&self) -> bool {
        self.effort == Effort::Thorough
    }

    /// Operators with more columns are not rounded.
    pub(super) fn columns(&self) -> usize {
        match self.effort {
            Effort::Off | Effort::Fast => 0,
            Effort::Default => 1280,
            Effort::Thorough => 4608,
        }
    }
}
