//! What happens inside the INT8 model: errors of tensors and operators, and what they suggest.

use std::collections::BTreeSet;

use super::{Calibrated, Job, Variant};
use crate::{
    analyse::{
        advice::{HeadEffect, LiftEffect, Way, about_head, about_layers, about_lift, about_method, told},
        graphwise::{Graphwise, shared_tensors},
        layerwise::{LayerError, OutputNoise, Samples, output_noise, worst},
        operators::Pair,
    },
    backend::ExecutionProvider,
    bisect::{
        lift::{Judge, JudgeOptions, Start},
        trials::NodeSet,
    },
    calibrate::{CalibrationTable, Choice},
    compare::{CompareOptions, OutputKind},
    dataset::{BadPolicy, PrefetchOptions},
    onnx::Model,
    quantize::{Precision, PrecisionPlan, QuantizeOptions, quantize},
    report::{Advice, AdviceLevel, Verdict},
    session::{
        PipelineError,
        calibration::{Candidate, Chosen, worst_sqnr},
        quantize_options,
        suggest::Suggest,
    },
    tensor::ElementType,
};

/// Evaluation samples on which tensors are compared one by one.
const GRAPHWISE_SAMPLES: usize = 16;
/// Samples and operators for which is measured what a single quantized operator does to the outputs.
const OUTPUT_SAMPLES: usize = 4;
const OUTPUT_OPERATORS: usize = 12;

/// What nodes are lifted to when it is measured what that would give.
const LIFT: Precision = Precision::Fp32;

/// Those of the evaluation samples that layers are looked into with.
pub(super) fn samples(evaluation: &[usize]) -> &[usize] {
    &evaluation[..evaluation.len().min(GRAPHWISE_SAMPLES)]
}

/// What looking into the layers found.
pub(super) struct Layers {
    /// What was looked into.
    pub(super) precision: Precision,
    pub(super) graphwise: Graphwise,
    pub(super) local: Vec<LayerError>,
    pub(super) outputs: Vec<OutputNoise>,
    pub(super) lifted: Option<LiftEffect>,
    pub(super) head: Option<HeadEffect>,
    /// What the precision plan brings, in a sentence.
    pub(super) of_plan: Option<String>,
}

/// What is found where there is a quantized model, and something to be looked into.
pub(super) type Found = Result<Option<Layers>, PipelineError>;

/// The place of the INT8 model, or the first quantized one.
pub(super) fn quantized(variants: &[Variant]) -> Option<usize> {
    variants.iter().position(|variant| variant.runner.is_some() && variant.quantized().is_some())
}

impl Job<'_> {
    /// The error of every tensor of a quantized model against the float model, and the errors that its operators make by
    /// themselves.
    pub(super) fn layers(&self, quantized: Option<(Precision, &Model)>, calibrated: Option<&Calibrated>) -> Found {
        let (Some((precision, model)), Some(calibrated)) = (quantized, calibrated) else { return Ok(None) };
        let session = &self.session;
        let ignored = |name: &str| session.config.output_kind.get(name) == Some(&OutputKind::Ignored);
        let is_output =
            |name: &str| {
                session.subject.outputs.iter().any(|info| {
                    info.name == name && info.element_type.is_some_and(ElementType::is_float) && !ignored(name)
                })
            };
        let options = quantize_options(&session.config, precision)?;
        let (float, quantized) = session.subject.analysis_pair(&calibrated.chosen.table, &options)?;
        let pair = Pair::new(&float, &quantized)?;
        // The results of quantized operators, too: that of a convolution in front of a sum is not quantized itself.
        let results: BTreeSet<&str> = pair.operators.iter().map(|operator| operator.tensor.as_str()).collect();
        // As the quantizer leaves it: a shifted tensor is not what it was in the model that was given.
        let mut sites = shared_tensors(&float, model)?;
        sites.retain(|site| {
            let tensor = site.tensor.as_str();
            site.amax.is_some() || results.contains(tensor) || is_output(tensor)
        });
        if sites.is_empty() {
            return Ok(None);
        }
        let indices = samples(&self.split.evaluation);
        let dataset = &*session.data.collection.dataset;
        let readable: Vec<usize> = indices.iter().copied().filter(|&index| dataset.sample(index).is_ok()).collect();
        if readable.is_empty() {
            return Ok(None);
        }
        let policy = BadPolicy { max_share: 1.0, strict: false };
        let reading =
            PrefetchOptions { batch: 1, threads: session.threads, policy, stop: session.host.stop(), skipped: &[] };
        let samples = Samples { dataset, indices: &readable, reading };
        let graphwise = || session.graphwise(&float, model, &sites, samples);
        let local = || session.layerwise(&pair, samples);
        // Each waits for one core now and then; a GPU's memory is for one of them.
        let (graphwise, local) = match session.analyst(readable.len()) {
            ExecutionProvider::Cpu if session.threads > 1 => rayon::join(graphwise, local),
            _ => (graphwise(), local()),
        };
        let (graphwise, local) = (graphwise?, local?);
        session.host.check()?;
        let few = Samples { indices: &readable[..readable.len().min(OUTPUT_SAMPLES)], ..samples };
        let outputs = output_noise(
            &session.runtime,
            &pair,
            &worst(&local, OUTPUT_OPERATORS),
            few,
            &session.output_noise_options(),
        )?;
        session.host.check()?;
        let lifted = self.lift_effect(&options, &calibrated.chosen.table, told(&outputs), samples)?;
        let head = self.head_effect(&options, &calibrated.chosen.table, &pair, samples)?;
        let of_plan = self.plan_effect(&options, &calibrated.chosen.table, samples)?;
        Ok(Some(Layers { precision, graphwise, local, outputs, lifted, head, of_plan }))
    }

    /// What lifting `nodes` does to the outputs.
    fn lift_effect(
        &self,
        options: &QuantizeOptions,
        table: &CalibrationTable,
        nodes: Vec<String>,
        samples: Samples<'_>,
    ) -> Result<Option<LiftEffect>, PipelineError> {
        if nodes.is_empty() {
            return Ok(None);
        }
        let start = self.start(options, table);
        let mut judge = self.judge(samples)?;
        let mut sqnr_db =
            |lifted: NodeSet| -> Result<f64, PipelineError> { Ok(worst_sqnr(&judge.compare(&start.model(&lifted)?)?)) };
        let sqnr_db = [sqnr_db(NodeSet::new())?, sqnr_db(nodes.iter().cloned().collect())?];
        Ok(Some(LiftEffect { nodes, sqnr_db, samples: samples.indices.len() }))
    }

    /// What the last convolutions and products of a detector cost.
    fn head_effect(
        &self,
        options: &QuantizeOptions,
        table: &CalibrationTable,
        pair: &Pair<'_>,
        samples: Samples<'_>,
    ) -> Result<Option<HeadEffect>, PipelineError> {
        let last = pair.last_products();
        let others: NodeSet =
            pair.operators.iter().map(|operator| operator.node.clone()).filter(|node| !last.contains(node)).collect();
        if self.session.head.is_none() || last.is_empty() || others.is_empty() {
            return Ok(None);
        }
        let start = self.start(options, table);
        let mut judge = self.judge(samples)?;
        let mut effect = |lifted: &NodeSet| -> Result<(f64, f64), PipelineError> {
            let found = judge.compare(&start.model(lifted)?)?;
            Ok((worst_sqnr(&found), found.detection.as_ref().map_or(1.0, |found| found.agreement.recall)))
        };
        let found = [effect(&NodeSet::new())?, effect(&last)?, effect(&others)?];
        Ok(Some(HeadEffect {
            nodes: last.into_iter().collect(),
            sqnr_db: found.map(|(sqnr_db, _)| sqnr_db),
            recall: found.map(|(_, recall)| recall),
            samples: samples.indices.len(),
        }))
    }

    fn start<'s>(&'s self, options: &'s QuantizeOptions, table: &'s CalibrationTable) -> Start<'s> {
        let subject = &self.session.subject;
        Start {
            model: &subject.folded,
            shapes: &subject.shapes,
            table: Some(table),
            quantize: options,
            precision: LIFT,
        }
    }

    /// Compares models with the reference.
    fn judge<'s>(&'s self, samples: Samples<'s>) -> Result<Judge<'s>, PipelineError> {
        let session = &self.session;
        let compare = CompareOptions { max_flips: 0, resamples: 0, ..session.compare_options() };
        let judged = JudgeOptions { threads: session.threads, compare, ..JudgeOptions::default() };
        let provider = session.analyst(samples.indices.len());
        let samples = session.batched(provider, samples);
        Ok(Judge::new(session.side(provider, &session.subject.float), samples, judged)?)
    }

    /// What the precision plan brings, against the same ranges without it; nothing without a plan.
    fn plan_effect(
        &self,
        options: &QuantizeOptions,
        table: &CalibrationTable,
        samples: Samples<'_>,
    ) -> Result<Option<String>, PipelineError> {
        let mut unplanned = options.clone();
        unplanned.scheme.plan = PrecisionPlan::default();
        if options.scheme.plan == unplanned.scheme.plan {
            return Ok(None);
        }
        let subject = &self.session.subject;
        let model = |options| quantize(&subject.folded, &subject.shapes, Some(table), options).map(|made| made.model);
        let without = match model(&unplanned) {
            Ok(without) => without,
            // A table that was made with the plan has no ranges where nothing was to be quantized.
            Err(error) => return Ok(Some(format!("what the plan brings was not measured: without it, {error}"))),
        };
        let mut judge = self.judge(samples)?;
        let mut sqnr =
            |model: &Model| -> Result<String, PipelineError> { Ok(decibels(worst_sqnr(&judge.compare(model)?))) };
        let (without, with) = (sqnr(&without)?, sqnr(&model(options)?)?);
        let samples = samples.indices.len();
        Ok(Some(format!(
            "with what the plan lifts the SQNR of the outputs is {with} instead of {without} ({samples} samples)"
        )))
    }

    /// What the figures suggest, with commands that work as they stand.
    ///
    /// Only where a precision failed a gate is there something for a bisection to bring about.
    pub(super) fn advice(
        &self,
        calibrated: Option<&Calibrated>,
        layers: Option<&Layers>,
        verdict: &Verdict,
    ) -> Vec<Advice> {
        let table = self.out.join("calibration.json");
        let gate = self.session.default_gate();
        let commands = |precision| {
            let (config, repeats, out, table) = (&self.session.config, "run.toml", &*self.out, &*table);
            Suggest { config, repeats, out, table, lift: LIFT, precision, gate }.commands()
        };
        let looked_into = layers.map_or(Precision::Int8, |layers| layers.precision);
        let failed = verdict.gates.iter().filter(|gate| !gate.result.passed);
        let failed: BTreeSet<&str> = failed.map(|gate| &*gate.precision).collect();
        let others = failed.iter().filter_map(|name| name.parse::<Precision>().ok());
        let others = others.filter(|precision| precision.is_quantized() && *precision != looked_into);
        let others = others.map(|precision| Advice {
            level: AdviceLevel::Warning,
            text: format!("{precision} fails a gate; a bisection finds the fewest nodes to lift"),
            nodes: Vec::new(),
            command: Some(commands(precision).bisect),
        });
        let others: Vec<_> = others.collect();
        let commands = commands(looked_into);
        let mut found: Vec<Advice> = calibrated.and_then(|found| method_advice(&found.chosen)).into_iter().collect();
        if let Some(layers) = layers {
            found.extend(about_layers(&layers.local, &layers.outputs, &commands));
            found.extend(layers.lifted.as_ref().map(|effect| about_lift(effect, LIFT.name(), &commands)));
            found.extend(layers.head.as_ref().map(|effect| about_head(effect, LIFT.name(), &commands)));
        }
        if !failed.contains(looked_into.name()) {
            found.iter_mut().filter(|a| a.command.as_ref() == Some(&commands.bisect)).for_each(|a| a.command = None);
        }
        found.extend(others);
        found
    }
}

fn decibels(db: f64) -> String {
    if db == f64::INFINITY { "infinite".to_owned() } else { format!("{db:.1} dB") }
}

/// Which way to choose ranges won, where several were measured.
fn method_advice(chosen: &Chosen) -> Option<Advice> {
    let corrected = !chosen.table.bias_corrections.is_empty();
    let name = |choice: Choice, corrected| format!("{choice}{}", if corrected { " with corrected biases" } else { "" });
    // The table in force with and without corrections is one way.
    let measured =
        chosen.judged().filter(|candidate| candidate.choice != chosen.choice || candidate.bias_correction == corrected);
    let way = |candidate: &Candidate| Way {
        name: name(candidate.choice, candidate.bias_correction),
        sqnr_db: worst_sqnr(&candidate.result),
    };
    about_method(&name(chosen.choice, corrected), &measured.map(way).collect::<Vec<_>>(), chosen.measured_on)
}
