//! The choice of the method, and of bias corrections, by what whole models give on held-out samples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Calibrator, ObserveOptions, Parts, hold_out,
    recovering::{in_vain, refusal},
};
use crate::{
    analyse::{
        bias::mean_errors,
        layerwise::{AnalysisError, Samples},
        operators::{OperatorError, Pair},
    },
    backend::{Backend, BuildOptions, Runner, TensorInfo},
    calibrate::{CalibrateError, CalibrationTable, Choice, Histograms, Method, Recovered, RecoveredFp8, tables},
    compare::{CompareOptions, ComparisonResult, Gate, OutputKind},
    dataset::PrefetchOptions,
    quantize::{Precision, QuantizeOptions, SchemeOptions, quantize},
    recover::RecoverOptions,
    session::{
        Control, PipelineError,
        evaluation::{EvaluateOptions, Outputs, evaluate},
    },
    tensor::ElementType,
};

/// Held-out samples that whole models are measured on, at most.
const MEASURED: usize = 128;
/// Samples that bias corrections are measured on, at most.
const CORRECTED: usize = 64;
/// Ways of choosing thresholds that are tried with corrected biases: those that a correction may still put first.
const FINALISTS: usize = 2;

/// Held-out samples from which on recovery decides by itself; with fewer, the methods alone are measured beside it.
const FEW: usize = 10;

/// One way to choose thresholds, measured on held-out samples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Candidate {
    /// The way; [`Choice::Auto`] takes the best method for each tensor by itself.
    pub choice: Choice,
    /// True with corrected biases.
    pub bias_correction: bool,
    /// True with the thresholds of all samples, among which the last choice is made; otherwise with those of the fitting ones.
    pub final_thresholds: bool,
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
    /// How far to go beyond ranges in INT8; `None` for the methods alone.
    pub recovery: Option<RecoverOptions>,
    /// What will be quantized.
    pub scheme: SchemeOptions,
    /// What will be quantized to FP8, where recovery is to look for that as well.
    pub fp8: Option<SchemeOptions>,
    /// How outputs are compared; those whose kind is `ignored` take no part in the choice.
    pub compare: CompareOptions,
    /// Recovery ends where these hold on held-out samples at 95 %, as far as samples tell; without any it tries all it may.
    pub gates: Vec<Gate>,
}

/// Ways to choose thresholds with the tables that they give, the best first.
struct Ranked {
    tables: Vec<(Choice, CalibrationTable)>,
    candidates: Vec<Candidate>,
    measured_on: usize,
}

impl Chosen {
    /// The candidates among which the last choice was made.
    pub fn judged(&self) -> impl Iterator<Item = &Candidate> {
        let last = self.candidates.iter().any(|candidate| candidate.final_thresholds);
        self.candidates.iter().filter(move |candidate| candidate.final_thresholds == last)
    }

    /// Whether `candidate` is the table in force, as it was judged.
    pub fn is_in_force(&self, candidate: &Candidate) -> bool {
        let corrected = !self.table.bias_corrections.is_empty();
        self.judged().any(|judged| std::ptr::eq(judged, candidate))
            && candidate.choice == self.choice
            && candidate.bias_correction == corrected
    }
}

impl Calibrator<'_> {
    /// Makes the table from the histograms of the samples `indices`. For [`Choice::Auto`] every method, and the best
    /// method of each tensor by itself, is fitted on part of the samples; the quantized models run over the held-out
    /// part and are ranked by how near their outputs are to the float model's (SQNR of the worst output). The best few
    /// are tried with corrected biases in the same way, and the best of all wins. Its thresholds come from all samples.
    /// The table also tells which of the other tensors reach magnitudes that matter to FP16.
    pub fn choose(
        &self,
        histograms: &Histograms,
        indices: &[usize],
        options: &ChooseOptions,
    ) -> Result<Chosen, PipelineError> {
        let parts = hold_out(indices);
        // Where nothing is quantized there is nothing to choose; magnitudes matter all the same.
        let minmax = ChooseOptions {
            choice: Choice::Method(Method::MinMax),
            recovery: None,
            bias_correction: false,
            ..options.clone()
        };
        let options = if histograms.fit.is_empty() && histograms.held_out.is_empty() { &minmax } else { options };
        let mut chosen = self.chosen(histograms, &parts, options)?;
        if let (Some(recovery), Some(scheme)) = (&options.recovery, &options.fp8) {
            let recovery = RecoverOptions { fp8: true, ..recovery.clone() };
            let options = ChooseOptions { scheme: scheme.clone(), ..options.clone() };
            let start = || Ok(chosen.table.ranges_alone());
            chosen.table.fp8 = Some(match self.recovered(histograms, &parts, &options, &recovery, start, None) {
                Ok((table, _)) => RecoveredFp8 {
                    amax: table.tensors.into_iter().map(|(name, range)| (name, range.amax)).collect(),
                    bias_corrections: table.bias_corrections,
                    recovered: table.recovered.unwrap_or_default(),
                },
                Err(error) => RecoveredFp8 { recovered: in_vain(&refusal(error)?), ..RecoveredFp8::default() },
            });
        }
        Ok(chosen)
    }

    /// The table for the precision of the scheme.
    fn chosen(&self, histograms: &Histograms, parts: &Parts, options: &ChooseOptions) -> Result<Chosen, PipelineError> {
        let recovery = options.recovery.as_ref().filter(|_| options.scheme.precision == Precision::Int8);
        // So few samples tell steps that gain from chance no more. A metric of one's own is asked about steps alone.
        let few = recovery.is_some() && parts.held_out.len() < FEW && options.compare.metric.is_none();
        let methods = few.then(|| self.by_methods(histograms, parts, options)).transpose()?;
        let mut refused = None;
        if let Some(recovery) = recovery {
            // The thresholds that tensors by themselves prefer are where it starts.
            let start = || single(tables(histograms, options.percentile, &[options.choice])?);
            let rival = methods.as_ref().map(|methods| methods.table.clone());
            match self.recovered(histograms, parts, options, recovery, start, rival) {
                Ok((table, measured_on)) => {
                    let by_methods = table.recovered.as_ref().is_some_and(Recovered::is_by_methods);
                    let chosen = match methods.filter(|_| by_methods) {
                        Some(methods) => Chosen { table, ..methods },
                        None => Chosen { table, choice: options.choice, candidates: Vec::new(), measured_on },
                    };
                    return self.with_magnitudes(chosen, parts);
                }
                Err(error) => refused = Some(in_vain(&refusal(error)?)),
            }
        }
        let chosen = methods.map_or_else(|| self.by_methods(histograms, parts, options), Ok)?;
        let table = CalibrationTable { recovered: refused, ..chosen.table };
        self.with_magnitudes(Chosen { table, ..chosen }, parts)
    }

    /// The best way to choose thresholds, with or without corrected biases.
    fn by_methods(
        &self,
        histograms: &Histograms,
        parts: &Parts,
        options: &ChooseOptions,
    ) -> Result<Chosen, PipelineError> {
        let mut ranked = self.rank(histograms, &parts.held_out, options)?;
        if options.bias_correction && options.scheme.precision == Precision::Int8 {
            ranked.tables.truncate(FINALISTS);
            self.correct_biases(&mut ranked, parts, options)?;
        }
        let Ranked { tables, candidates, measured_on } = ranked;
        let (choice, table) = tables.into_iter().next().ok_or(CalibrateError::NoData)?;
        Ok(Chosen { table, choice, candidates, measured_on })
    }

    /// Adds what matters to FP16.
    fn with_magnitudes(&self, chosen: Chosen, parts: &Parts) -> Result<Chosen, PipelineError> {
        let magnitudes = self.magnitudes(&chosen.table, &parts.fit)?;
        Ok(Chosen { table: CalibrationTable { magnitudes, ..chosen.table }, ..chosen })
    }

    /// Measures bias corrections of every ranked table on the fitting samples, and puts the table first, corrected or
    /// not, that measures best on the held-out ones.
    fn correct_biases(&self, ranked: &mut Ranked, parts: &Parts, options: &ChooseOptions) -> Result<(), PipelineError> {
        // One by one, unless the model fixes its batch: the means do not depend on how many run together elsewhere.
        let batch = self.subject.fixed_batch().unwrap_or(1).max(1);
        let fit = &parts.fit[..parts.fit.len().min(CORRECTED) / batch * batch];
        if fit.is_empty() || parts.held_out.is_empty() {
            return Ok(());
        }
        let quantize_options = QuantizeOptions { scheme: options.scheme.clone(), ..QuantizeOptions::default() };
        let mut tried = Vec::new();
        for (choice, table) in &ranked.tables {
            let (float, quantized) = self.subject.analysis_pair(table, &quantize_options)?;
            let pair = match Pair::new(&float, &quantized) {
                Err(OperatorError::NothingQuantized { .. }) => return Ok(()),
                pair => pair.map_err(AnalysisError::from)?,
            };
            let reading = PrefetchOptions { batch, ..self.reading() };
            let samples = Samples { dataset: self.dataset, indices: fit, reading };
            let bias_corrections = mean_errors(&self.runtime, &pair, samples, self.options.threads)?;
            if bias_corrections.is_empty() {
                return Ok(());
            }
            tried.push((*choice, table.clone()));
            tried.push((*choice, CalibrationTable { bias_corrections, ..table.clone() }));
        }
        let tables: Vec<&CalibrationTable> = tried.iter().map(|(_, table)| table).collect();
        let (results, measured_on) = self.measure(&tables, &parts.held_out, options)?;
        let measured: Vec<Candidate> = tried
            .iter()
            .zip(results)
            .map(|((choice, table), result)| Candidate {
                choice: *choice,
                bias_correction: !table.bias_corrections.is_empty(),
                final_thresholds: true,
                result,
            })
            .collect();
        let best = ranking(&measured, measured_on).into_iter().next().unwrap_or_default();
        ranked.tables = vec![tried.swap_remove(best)];
        ranked.candidates.extend(measured);
        ranked.measured_on = measured_on;
        Ok(())
    }

    /// Compares the model quantized with each of `tables` with the float model, over at most [`MEASURED`] samples.
    fn measure(
        &self,
        tables: &[&CalibrationTable],
        samples: &[usize],
        options: &ChooseOptions,
    ) -> Result<(Vec<ComparisonResult>, usize), PipelineError> {
        let ObserveOptions { threads, provider, .. } = *self.options;
        let build = BuildOptions { threads, provider, side_by_side: true, ..BuildOptions::default() };
        let mut reference = self.subject.reference(self.runtime, &build)?;
        let build = BuildOptions { side_by_side: reference.at_once() > 1, ..build };
        let quantize_options = QuantizeOptions { scheme: options.scheme.clone(), ..QuantizeOptions::default() };
        let mut runners = tables
            .iter()
            .map(|table| {
                let quantized = quantize(&self.subject.folded, &self.subject.shapes, Some(table), &quantize_options)?;
                Ok(self.runtime.build(&quantized.model, &build)?)
            })
            .collect::<Result<Vec<Box<dyn Runner>>, PipelineError>>()?;
        let evaluate_options = EvaluateOptions {
            batch: self.options.batch,
            policy: self.options.policy,
            compare: CompareOptions {
                max_flips: 0,
                resamples: 0,
                kinds: judged_kinds(&self.subject.outputs, &options.compare.kinds),
                ..options.compare.clone()
            },
        };
        let quiet = Control { progress: &|_| {}, checkpoints: None, ..self.control };
        let mut targets: Vec<&mut dyn Outputs> = runners.iter_mut().map(|runner| runner as &mut dyn Outputs).collect();
        let samples = &samples[..samples.len().min(MEASURED)];
        let evaluation = evaluate(&mut reference, &mut targets, self.dataset, samples, &evaluate_options, quiet)?;
        let measured_on = evaluation.ids.len();
        let results = evaluation.targets.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok((results, measured_on))
    }

    /// The tables of all ways that `options` asks for, measured on held-out samples where there is something to choose.
    fn rank(
        &self,
        histograms: &Histograms,
        held_out: &[usize],
        options: &ChooseOptions,
    ) -> Result<Ranked, PipelineError> {
        let &ChooseOptions { choice, percentile, .. } = options;
        let measurable = histograms.held_out_samples > 0 && histograms.fit_samples > 0;
        if choice != Choice::Auto || !measurable {
            let choice = if choice == Choice::Auto { Choice::Method(Method::Mse) } else { choice };
            let table = single(tables(histograms, percentile, &[choice])?)?;
            return Ok(Ranked { tables: vec![(choice, table)], candidates: Vec::new(), measured_on: 0 });
        }
        let choices: Vec<Choice> =
            std::iter::once(Choice::Auto).chain(Method::ALL.into_iter().map(Choice::Method)).collect();
        let finals = tables(histograms, percentile, &choices)?;
        let fitted = fitted_tables(histograms, percentile, &finals)?;
        let fitted: Vec<&CalibrationTable> = fitted.iter().collect();
        let (results, measured_on) = self.measure(&fitted, held_out, options)?;
        let candidates: Vec<Candidate> = choices
            .iter()
            .zip(results)
            .map(|(&choice, result)| Candidate { choice, bias_correction: false, final_thresholds: false, result })
            .collect();
        let order = ranking(&candidates, measured_on);
        let tables = order.into_iter().map(|index| (choices[index], finals[index].clone())).collect();
        Ok(Ranked { tables, candidates, measured_on })
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

/// The kinds of outputs where closeness is judged: integers (indices, counts, flags) are `ignored` where other outputs
/// tell more, unless their kind was given.
pub fn judged_kinds(outputs: &[TensorInfo], given: &BTreeMap<String, OutputKind>) -> BTreeMap<String, OutputKind> {
    let is_float = |output: &&TensorInfo| output.element_type.is_some_and(ElementType::is_float);
    let mut kinds = given.clone();
    if outputs.iter().filter(is_float).any(|output| given.get(&output.name) != Some(&OutputKind::Ignored)) {
        for output in outputs.iter().filter(|output| !is_float(output)) {
            kinds.entry(output.name.clone()).or_insert(OutputKind::Ignored);
        }
    }
    kinds
}

/// Decibels by which something has to be better on `samples` samples to be taken for better: what few tell is mostly
/// chance.
fn margin(samples: usize) -> f64 {
    1.0 / (samples.max(1) as f64).sqrt()
}

/// Candidates by the metric of the caller's own, where there is one, and where that is equal by SQNR of the worst output, the
/// highest first. Min-max stays in front of what does not lead it by the [`margin`], and so does a table without corrected
/// biases.
fn ranking(candidates: &[Candidate], measured_on: usize) -> Vec<usize> {
    let score = |index: usize| {
        let Candidate { choice, bias_correction, result, .. } = &candidates[index];
        let simpler = u8::from(*choice == Choice::Method(Method::MinMax)) + u8::from(!bias_correction);
        worst_sqnr(result) + f64::from(simpler) * margin(measured_on)
    };
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let own = |index: usize| candidates[index].result.own_metric.filter(|value| !value.is_nan());
    let own = |index: usize| own(index).unwrap_or(f64::NEG_INFINITY);
    order.sort_by(|&a, &b| own(b).total_cmp(&own(a)).then(score(b).total_cmp(&score(a))));
    order
}

/// SQNR of the worst output or part of one in decibels; infinite when all are equal, minus infinite with NaN.
pub fn worst_sqnr(result: &ComparisonResult) -> f64 {
    if result.non_finite.values().any(|counts| counts.differing > 0) {
        return f64::NEG_INFINITY;
    }
    result.closeness_db()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::OutputMetrics;

    #[test]
    fn integers_are_judged_only_where_there_is_nothing_else() {
        use ElementType::{Bool, F32, I64};
        let ignored = |outputs: &[(&str, ElementType)], given: &[(&str, OutputKind)]| {
            let info = |&(name, element_type): &(&str, ElementType)| TensorInfo {
                name: name.to_owned(),
                element_type: Some(element_type),
                shape: Vec::new(),
            };
            let given = given.iter().map(|&(name, kind)| (name.to_owned(), kind)).collect();
            let kinds = judged_kinds(&outputs.iter().map(info).collect::<Vec<_>>(), &given).into_iter();
            let names = kinds.filter(|(_, kind)| *kind == OutputKind::Ignored).map(|(name, _)| name);
            names.collect::<Vec<_>>().join(" ")
        };
        let outputs = [("scores", F32), ("class", I64), ("valid", Bool)];
        assert_eq!(ignored(&outputs, &[]), "class valid");
        assert_eq!(ignored(&outputs, &[("class", OutputKind::Map)]), "valid");
        assert_eq!(ignored(&outputs, &[("scores", OutputKind::Ignored)]), "scores");
        assert_eq!(ignored(&outputs[1..], &[]), "");
    }

    #[test]
    fn few_samples_must_tell_methods_clearly_apart_from_min_max() {
        let candidate = |choice, bias_correction, sqnr_db| {
            let (name, [max_abs, mean_abs, rel_l2, cosine]) = ("y".to_owned(), [0.0; 4]);
            let sqnr_db = Some(sqnr_db);
            let (integers, empty, parts) = (false, false, Vec::new());
            let outputs =
                vec![OutputMetrics { name, max_abs, mean_abs, rel_l2, cosine, sqnr_db, integers, empty, parts }];
            let result = ComparisonResult { outputs, ..ComparisonResult::default() };
            Candidate { choice, bias_correction, final_thresholds: true, result }
        };
        let [auto, minmax, mse] = [Choice::Auto, Choice::Method(Method::MinMax), Choice::Method(Method::Mse)];
        let candidates = [candidate(auto, false, 20.1), candidate(minmax, false, 20.0), candidate(mse, false, 20.4)];
        assert_eq!(ranking(&candidates, 4), [1, 2, 0]);
        assert_eq!(ranking(&candidates, 100), [2, 0, 1]);
        let equal = [candidate(auto, false, 20.4), candidate(minmax, false, 19.0), candidate(mse, false, 20.4)];
        assert_eq!(ranking(&equal, 1), [0, 2, 1]);
        let corrected = [candidate(mse, false, 20.0), candidate(mse, true, 20.3)];
        assert_eq!(ranking(&corrected, 4), [0, 1]);
        assert_eq!(ranking(&corrected, 100), [1, 0]);
    }
}
