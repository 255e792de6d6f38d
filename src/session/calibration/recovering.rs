//! Recovery over calibration samples: which of them it decides on, which it is measured on, and when it is enough.

use std::collections::BTreeMap;

use super::{
    Calibrator, Parts,
    choice::{ChooseOptions, judged_kinds},
};
use crate::{
    calibrate::{CalibrationTable, Histograms, Recovered, RecoveryStep, histogram::Histogram},
    compare::{CompareOptions, Comparison, Gate, OutputKind, Sample},
    dataset::{Batch, PrefetchOptions, prefetch},
    recover::{Judge, Material, RecoverError, RecoverOptions, recover},
    session::{Interrupted, PipelineError},
    tensor::TensorMap,
};

/// Samples to decide on, and held-out ones, without which recovery tells chance from nothing.
const FEWEST: usize = 4;

impl Calibrator<'_> {
    /// The table by what recovery finds from the one of `start` on, and how many held-out calls measured it: see [`recover`].
    pub(super) fn recovered(
        &self,
        histograms: &Histograms,
        parts: &Parts,
        options: &ChooseOptions,
        recovery: &RecoverOptions,
        start: impl FnOnce() -> Result<CalibrationTable, PipelineError>,
        rival: Option<CalibrationTable>,
    ) -> Result<(CalibrationTable, usize), PipelineError> {
        if parts.fit.len().min(parts.held_out.len()) < FEWEST {
            let reason = format!("it needs {} calibration samples", 2 * FEWEST);
            return Err(RecoverError::Unsupported(reason).into());
        }
        let placement = self.subject.place(&options.scheme)?;
        let [fit, held_out] = recovery.samples();
        let fit = self.batches(&parts.fit, fit)?.into_iter().map(|batch| batch.inputs).collect();
        let mut held_out = self.batches(&parts.held_out, held_out)?;
        let inputs = held_out.iter_mut().map(|batch| std::mem::take(&mut batch.inputs)).collect();
        let kinds = judged_kinds(&self.subject.outputs, &options.compare.kinds);
        let precision = options.scheme.precision.name();
        let gates = options.gates.iter().filter(|gate| gate.is_for(precision) && gate.ends_recovery());
        let gates: Vec<&Gate> = gates.collect();
        let compare = CompareOptions { max_flips: 0, kinds: kinds.clone(), ..options.compare.clone() };
        let reached = |float: &[TensorMap], quantized: &[TensorMap]| {
            let names: Vec<String> = self.subject.outputs.iter().map(|output| output.name.clone()).collect();
            let mut comparison = Comparison::new(&names, &names, compare.clone())?;
            for (batch, (float, quantized)) in held_out.iter().zip(float.iter().zip(quantized)) {
                comparison.push(&Sample::of_batch(batch), float, quantized)?;
            }
            let result = comparison.finish();
            Ok(gates.iter().all(|gate| gate.clearly_holds(&result)))
        };
        let material = Material {
            backend: &self.runtime,
            model: &self.subject.folded,
            shapes: &self.subject.shapes,
            placement: &placement,
            parts: options.compare.parts.clone(),
            ignored: kinds
                .into_iter()
                .filter_map(|(name, kind)| (kind == OutputKind::Ignored).then_some(name))
                .collect(),
            stop: self.control.stop,
            fit,
            held_out: inputs,
            judge: options
                .compare
                .metric
                .clone()
                .map(|metric| Judge { metric, ids: held_out.iter().map(|batch| batch.ids.clone()).collect() }),
            reached: (!gates.is_empty()).then_some(&reached),
            rival,
        };
        let measured_on = material.held_out.len();
        let mut table = recover(material, &start()?, recovery)?;
        for (name, range) in &mut table.tensors {
            let of = |part: &BTreeMap<String, Histogram>| part.get(name).map_or(0, |counts| counts.beyond(range.amax));
            let beyond = of(&histograms.fit) + of(&histograms.held_out);
            range.clipped = beyond as f64 / range.count.max(1) as f64;
        }
        Ok((table, measured_on))
    }

    /// Calls with the first of `samples`, about `most` in all.
    fn batches(&self, samples: &[usize], most: usize) -> Result<Vec<Batch>, PipelineError> {
        let batch = self.subject.fixed_batch().unwrap_or(1).max(1);
        let whole = samples.len().min(most.max(batch)) / batch * batch;
        let reading = PrefetchOptions { batch, ..self.reading() };
        let (batches, pass) = prefetch(self.dataset, &samples[..whole], reading, |batches| {
            batches.filter(|done| done.ids.len() == batch).collect()
        });
        pass?;
        Ok(batches)
    }
}

/// Why a model is not recovered, where others may be taken to do without.
pub(super) fn refusal(error: PipelineError) -> Result<String, PipelineError> {
    match error {
        PipelineError::Recover(RecoverError::Stopped) => Err(Interrupted.into()),
        PipelineError::Recover(RecoverError::Metric(error)) => Err(error.into()),
        error @ PipelineError::Recover(RecoverError::Peers(_)) => Err(error),
        PipelineError::Recover(reason) => Ok(reason.to_string()),
        error => Err(error),
    }
}

/// No recovery, with the reason.
pub(super) fn in_vain(reason: &str) -> Recovered {
    let row = RecoveryStep { name: "recovery".to_owned(), what: reason.to_owned(), ..RecoveryStep::default() };
    Recovered { steps: vec![row], ..Recovered::default() }
}
