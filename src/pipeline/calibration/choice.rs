//! The choice of the method, and of bias corrections, by what whole models give on held-out samples.

use serde::{Deserialize, Serialize};

use super::{Calibrator, Parts, hold_out};
use crate::{
    backend::{Backend, BuildOptions, Runner},
    bisect::{
        bias::mean_errors,
        layerwise::{AnalysisError, Samples},
        operators::{OperatorError, Pair},
    },
    calibrate::{CalibrateError, CalibrationTable, Choice, Histograms, Method, tables},
    compare::{CompareOptions, ComparisonResult},
    pipeline::{
        Control, PipelineError,
        evaluation::{EvaluateOptions, Outputs, evaluate},
    },
    quantize::{Precision, QuantizeOptions, SchemeOptions, quantize},
};

/// Held-out samples that whole models are measured on, at most.
const MEASURED: usize = 128;
/// Samples that bias corrections are measured on, at most.
const CORRECTED: usize = 64;

/// One way to choose thresholds, measured on held-out samples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Candidate {
    /// The way; [`Choice::Auto`] takes the best method for each tensor by itself.
    pub choice: Choice,
    /// True with corrected biases.
    pub bias_correction: bool,
    /// Against the float model.
    pub result: ComparisonResult,
}

/// The table in force and what else was tried.
#[derive(Serialize, Deserialize)]
pub struct Chosen {
    /// The table, from all calibration samples.
    pub table: CalibrationTable,
    /// The way its thresholds were chosen.
    pub choice: Choice,
    /// Every way, measured on held-out samples; empty when there was nothing to choose.
    pub candidates: Vec<Candidate>,
    /// Held-out samples measured on.
    pub measured_on: usize,
}

/// How a table is made of histograms.
#[derive(Clone, Debug)]
pub struct ChooseOptions {
    /// How thresholds are chosen.
    pub choice: Choice,
    /// Percentile of [`Method::Percentile`], in percent.
    pub percentile: f64,
    /// Whether biases take back the mean error of quantization, where that helps on held-out samples.
    pub bias_correction: bool,
    /// What will be quantized.
    pub scheme: SchemeOptions,
}

impl Calibrator<'_> {
    /// Makes the table from the histograms of the samples `indices`. For [`Choice::Auto`] every method, and the best
    /// method of each tensor by itself, is fitted on part of the samples; the quantized models run over the held-out
    /// part, and the one whose outputs are nearest to the float model's (highest SQNR of the worst output) wins. Its
    /// thresholds then come from all samples. Bias corrections are judged in the same way.
    pub fn choose(
        &self,
        histograms: &Histograms,
        indices: &[usize],
        options: &ChooseOptions,
    ) -> Result<Chosen, PipelineError> {
        let mut chosen = self.choose_method(histograms, indices, options)?;
        if options.bias_correction && options.scheme.precision == Precision::Int8 {
            self.correct_biases(&mut chosen, &hold_out(indices), &options.scheme)?;
        }
        Ok(chosen)
    }

    /// Measures bias corrections on the fitting samples, and keeps them if they help on the held-out ones.
    fn correct_biases(&self, chosen: &mut Chosen, parts: &Parts, scheme: &SchemeOptions) -> Result<(), PipelineError> {
        let fit = &parts.fit[..parts.fit.len().min(CORRECTED) / self.options.batch.max(1) * self.options.batch.max(1)];
        if fit.is_empty() || parts.held_out.is_empty() {
            return Ok(());
        }
        let quantize_options = QuantizeOptions { scheme: scheme.clone(), ..QuantizeOptions::default() };
        let (float, quantized) = self.subject.analysis_pair(&chosen.table, &quantize_options)?;
        let pair = match Pair::new(&float, &quantized) {
            Err(OperatorError::NothingQuantized { .. }) => return Ok(()),
            pair => pair.map_err(AnalysisError::from)?,
        };
        let samples = Samples { dataset: self.dataset, indices: fit, reading: self.reading(&[]) };
        let bias_corrections = mean_errors(&self.runtime, &pair, samples, self.options.threads)?;
        if bias_corrections.is_empty() {
            return Ok(());
        }
        let corrected = CalibrationTable { bias_corrections, ..chosen.table.clone() };
        let (mut results, measured_on) = self.measure(&[&chosen.table, &corrected], &parts.held_out, scheme)?;
        let (Some(with), Some(without)) = (results.pop(), results.pop()) else { return Ok(()) };
        let helps = worst_sqnr(&with) > worst_sqnr(&without) + margin(measured_on);
        if chosen.candidates.is_empty() {
            let result = without;
            chosen.candidates.push(Candidate { choice: chosen.choice, bias_correction: false, result });
        }
        chosen.candidates.push(Candidate { choice: chosen.choice, bias_correction: true, result: with });
        chosen.measured_on = measured_on;
        if helps {
            chosen.table = corrected;
        }
        Ok(())
    }

    /// Compares the model quantized with each of `tables` with the float model, over at most [`MEASURED`] samples.
    fn measure(
        &self,
        tables: &[&CalibrationTable],
        samples: &[usize],
        scheme: &SchemeOptions,
    ) -> Result<(Vec<ComparisonResult>, usize), PipelineError> {
        let build =
            BuildOptions { threads: self.options.threads, provider: self.options.provider, ..BuildOptions::default() };
        let quantize_options = QuantizeOptions { scheme: scheme.clone(), ..QuantizeOptions::default() };
        let mut runners = tables
            .iter()
            .map(|table| {
                let quantized = quantize(&self.subject.folded, &self.subject.shapes, Some(table), &quantize_options)?;
                Ok(self.runtime.build(&quantized.model, &build)?)
            })
            .collect::<Result<Vec<Box<dyn Runner>>, PipelineError>>()?;
        let mut reference = self.subject.reference(self.runtime, self.options.provider, self.options.threads)?;
        let evaluate_options = EvaluateOptions {
            batch: self.options.batch,
            policy: self.options.policy,
            compare: CompareOptions::default(),
        };
        let quiet = Control { progress: &|_| {}, checkpoints: None, ..self.control };
        let mut targets: Vec<&mut dyn Outputs> = runners.iter_mut().map(|runner| runner as &mut dyn Outputs).collect();
        let samples = &samples[..samples.len().min(MEASURED)];
        let evaluation = evaluate(&mut reference, &mut targets, self.dataset, samples, &evaluate_options, quiet)?;
        let measured_on = evaluation.ids.len();
        let results = evaluation.targets.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok((results, measured_on))
    }

    fn choose_method(
        &self,
        histograms: &Histograms,
        indices: &[usize],
        options: &ChooseOptions,
    ) -> Result<Chosen, PipelineError> {
        let &ChooseOptions { choice, percentile, ref scheme, .. } = options;
        let measurable = histograms.held_out_samples > 0 && histograms.fit_samples > 0;
        if choice != Choice::Auto || !measurable {
            let choice = if choice == Choice::Auto { Choice::Method(Method::Mse) } else { choice };
            let table = single(tables(histograms, percentile, &[choice])?)?;
            return Ok(Chosen { table, choice, candidates: Vec::new(), measured_on: 0 });
        }
        let choices: Vec<Choice> =
            std::iter::once(Choice::Auto).chain(Method::ALL.into_iter().map(Choice::Method)).collect();
        let finals = tables(histograms, percentile, &choices)?;
        let fitted = fitted_tables(histograms, percentile, &finals)?;
        let fitted: Vec<&CalibrationTable> = fitted.iter().collect();
        let (results, measured_on) = self.measure(&fitted, &hold_out(indices).held_out, scheme)?;
        let candidates: Vec<Candidate> = choices
            .iter()
            .zip(results)
            .map(|(&choice, result)| Candidate { choice, bias_correction: false, result })
            .collect();
        let best = best(&candidates, measured_on);
        let table = finals.into_iter().nth(best).ok_or(CalibrateError::NoData)?;
        Ok(Chosen { table, choice: choices[best], candidates, measured_on })
    }
}

/// The same choices with thresholds from the fitting samples only; `auto` keeps the method it picked for each tensor.
fn fitted_tables(
    histograms: &Histograms,
    percentile: f64,
    finals: &[CalibrationTable],
) -> Result<Vec<CalibrationTable>, PipelineError> {
    let mut fit_only = histograms.clone();
    fit_only.held_out.clear();
    fit_only.held_out_samples = 0;
    let fitted = single(tables(&fit_only, percentile, &[Choice::Method(Method::MinMax)])?)?;
    let pick = |table: &CalibrationTable| {
        let mut picked = table.clone();
        for (name, range) in &mut picked.tensors {
            if let Some(amax) = fitted.tensors.get(name).and_then(|fit| fit.candidates.get(&range.method)) {
                range.amax = *amax;
            }
        }
        picked
    };
    Ok(finals.iter().map(pick).collect())
}

fn single(tables: Vec<CalibrationTable>) -> Result<CalibrationTable, PipelineError> {
    tables.into_iter().next().ok_or_else(|| CalibrateError::NoData.into())
}

/// Decibels by which something has to be better on `samples` samples to be taken for better: what few tell is mostly
/// chance.
fn margin(samples: usize) -> f64 {
    1.0 / (samples.max(1) as f64).sqrt()
}

/// The candidate with the highest SQNR of the worst output; min-max unless another leads it by the [`margin`].
fn best(candidates: &[Candidate], measured_on: usize) -> usize {
    let score = |candidate: &Candidate| {
        let lead = if candidate.choice == Choice::Method(Method::MinMax) { margin(measured_on) } else { 0.0 };
        worst_sqnr(&candidate.result) + lead
    };
    let ranked = candidates.iter().enumerate().max_by(|(i, a), (j, b)| score(a).total_cmp(&score(b)).then(j.cmp(i)));
    ranked.map_or(0, |(index, _)| index)
}

/// SQNR of the worst output in decibels; infinite when all are equal, minus infinite with NaN.
pub fn worst_sqnr(result: &ComparisonResult) -> f64 {
    if result.non_finite.values().any(|counts| counts.differing > 0) {
        return f64::NEG_INFINITY;
    }
    result.outputs.iter().map(|output| output.sqnr_db.unwrap_or(f64::INFINITY)).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::OutputMetrics;

    #[test]
    fn few_samples_must_tell_methods_clearly_apart_from_min_max() {
        let candidate = |choice, sqnr_db| {
            let (name, [max_abs, mean_abs, rel_l2, cosine]) = ("y".to_owned(), [0.0; 4]);
            let outputs = vec![OutputMetrics { name, max_abs, mean_abs, rel_l2, cosine, sqnr_db: Some(sqnr_db) }];
            let result = ComparisonResult { outputs, ..ComparisonResult::default() };
            Candidate { choice, bias_correction: false, result }
        };
        let [auto, minmax, mse] = [Choice::Auto, Choice::Method(Method::MinMax), Choice::Method(Method::Mse)];
        let candidates = [candidate(auto, 20.1), candidate(minmax, 20.0), candidate(mse, 20.4)];
        assert_eq!(best(&candidates, 4), 1);
        assert_eq!(best(&candidates, 100), 2);
        assert_eq!(best(&[candidate(auto, 20.4), candidate(minmax, 19.0), candidate(mse, 20.4)], 1), 0);
    }
}
