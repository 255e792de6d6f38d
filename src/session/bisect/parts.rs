//! Trials of a bisection whose samples other processes count, each a part of them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    analyse::layerwise::{AnalysisError, Samples},
    bisect::lift::{Judge, JudgeOptions, Reference},
    compare::{CompareOptions, Comparison, Gate},
    dataset::{PassError, PrefetchOptions, SampleError},
    onnx::Model,
    session::{PipelineError, Session},
};

/// What was counted of a plan's model over some samples.
#[derive(Debug, Serialize, Deserialize)]
pub struct TrialPart {
    counted: Comparison,
    skipped: Vec<SampleError>,
}

/// Gives what was counted of a model over the samples of these indices, in parts that follow each other.
pub(in crate::session) type CountTrial = Arc<dyn Fn(&Model, &[usize]) -> Result<Vec<TrialPart>, String> + Send + Sync>;

impl Session {
    /// Has `count` count the trials of a bisection over the samples of these indices, as by a [`TrialCounter`] in each of
    /// several processes. It gives their parts in the order of the samples, or a reason where they do not come.
    pub fn count_trials_by(
        &mut self,
        count: impl Fn(&Model, &[usize]) -> Result<Vec<TrialPart>, String> + Send + Sync + 'static,
    ) {
        self.count_trial = Some(Arc::new(count));
    }

    /// Samples as analyses on the CPU read them.
    pub(super) fn samples<'s>(&'s self, indices: &'s [usize]) -> Samples<'s> {
        let reading = PrefetchOptions {
            batch: self.subject.fixed_batch().unwrap_or(1),
            threads: self.threads,
            policy: self.policy,
            stop: self.host.stop(),
            skipped: &[],
        };
        Samples { dataset: self.dataset(), indices, reading }
    }

    /// Tests the gates on plans over the samples of `indices`.
    pub(super) fn judge<'s>(&'s self, indices: &'s [usize]) -> Result<Judge<'s>, PipelineError> {
        let options = self.judge_options();
        let Some(count) = &self.count_trial else {
            let samples = self.batched(self.provider, self.samples(indices));
            return Ok(Judge::new(self.side(self.provider, &self.subject.float), samples, options)?);
        };
        Ok(Judge::by(options.gates, move |target| {
            let parts = count(target, indices).map_err(AnalysisError::Elsewhere)?;
            self.host.check().map_err(|_| PassError::Stopped)?;
            self.joined(parts)
        }))
    }

    fn judge_options(&self) -> JudgeOptions {
        let gates = self.config.gate.clone();
        let mut compare = CompareOptions { max_flips: 0, ..self.compare_options() };
        if !gates.iter().any(Gate::resamples) {
            compare.resamples = 0;
        }
        JudgeOptions { gates, compare, threads: self.threads, ..JudgeOptions::default() }
    }

    fn joined(&self, parts: Vec<TrialPart>) -> Result<Comparison, AnalysisError> {
        let mut parts = parts.into_iter();
        let TrialPart { mut counted, mut skipped } = parts.next().ok_or(AnalysisError::NoSamples)?;
        for part in parts {
            counted.append(part.counted)?;
            skipped.extend(part.skipped);
        }
        self.policy.check(&skipped, self.dataset().len())?;
        if counted.is_empty() { Err(AnalysisError::NoSamples) } else { Ok(counted) }
    }
}

/// Counts trials for a session that searches in another process, with the same configuration and data. What the float model
/// gives is kept for the next trial.
pub struct TrialCounter {
    session: Session,
    reference: Reference,
}

impl TrialCounter {
    /// A counter on the samples of `session`.
    ///
    /// # Errors
    /// The float model cannot be built.
    pub fn new(session: Session) -> Result<Self, PipelineError> {
        let side = session.side(session.provider, &session.subject.float);
        Ok(Self { reference: Reference::new(side, &session.judge_options())?, session })
    }

    /// What is counted of `target` over the samples of `indices`.
    ///
    /// # Errors
    /// It cannot be built or run, or too many samples cannot be read.
    pub fn count(&mut self, target: &Model, indices: &[usize]) -> Result<TrialPart, PipelineError> {
        let Self { session, reference } = self;
        // Every trial reads them.
        session.dataset().keep(indices);
        let samples = session.batched(session.provider, session.samples(indices));
        let (counted, ran) = reference.count(session.side(session.provider, target), samples)?;
        Ok(TrialPart { counted, skipped: ran.summary.skipped })
    }
}
