//! What of a run needs no thresholds: on a GPU it is called while these are chosen, which cores do.
//!
//! A session of a GPU takes seconds at its first call of each shape, in 16 bits most, and takes them again in another thread.

use super::Job;
use crate::{
    backend::{Backend, Runner},
    calibrate::Histograms,
    onnx::Model,
    quantize::Precision,
    session::{PipelineError, Session},
    tensor::TensorMap,
};

/// A model with a session that was called before.
pub(super) struct Ahead {
    model: Model,
    runner: Box<dyn Runner>,
}

impl Ahead {
    /// The session, if it is one of `model`.
    pub(super) fn of(self, model: &Model) -> Option<Box<dyn Runner>> {
        (self.model.graph() == model.graph()).then_some(self.runner)
    }
}

impl Job<'_> {
    /// Calls the reference and the model in FP16 as the comparison will, once. Nothing comes of what fails: where it is needed it
    /// fails again, and says why.
    pub(super) fn ahead(&self, histograms: &Histograms) -> Option<Ahead> {
        let batch = self.session.compared_at_once(self.split.evaluation.len());
        let first = self.first_batches(batch, 1).pop()?;
        let called = self.session.precisions().contains(&Precision::Fp16).then(|| self.half_ahead(histograms, &first));
        // A thread's first calls in 16 bits take the longest: those of the reference wait for them.
        let _unneeded = self.session.reference().infer(&first);
        called?.ok()
    }

    /// Calls what will be timed as it will be, where layers are waited for: once for each shape.
    pub(super) fn call_timed(&self, runners: &mut [(Precision, Option<Box<dyn Runner>>)]) {
        let session: &Session = self.session;
        if session.provider.gpu().is_none() || session.config.bench_seconds <= 0.0 {
            return;
        }
        for (_, inputs) in session.bench_batches().into_iter().filter_map(|batch| self.first_call(batch)) {
            // What fails does so again when it is timed.
            let mut call = |runner: &mut Box<dyn Runner>| drop(runner.infer(&inputs));
            runners.iter_mut().filter_map(|(_, runner)| runner.as_mut()).for_each(&mut call);
            call(&mut session.reference());
        }
    }

    fn half_ahead(&self, histograms: &Histograms, first: &TensorMap) -> Result<Ahead, PipelineError> {
        let session: &Session = self.session;
        let observed = session.observed(histograms, &self.split.calibration)?;
        let model = session.make_model(Precision::Fp16, Some(&observed))?.model;
        let mut runner = session.runtime.build(&model, &session.build_options(session.threads))?;
        runner.infer(first)?;
        Ok(Ahead { model, runner })
    }
}
