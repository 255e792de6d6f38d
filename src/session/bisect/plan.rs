//! The search for the smallest plan, its check on other samples, and what it leaves.

use std::collections::BTreeMap;

use super::subject::Bisection;
use crate::{
    analyse::{
        cost::{Cost, macs, times},
        operators::Pair,
    },
    artifact::{ArtifactError, ContentHash},
    backend::BuildOptions,
    bisect::{
        advice::{about_check, about_search},
        findings::{Findings, PlanFindings},
        groups::{Grouping, group},
        lift::{Start, candidates, smallest_plan},
        search::{Candidate, Outcome, SearchOptions},
        trials::{Progress, TrialLog},
    },
    compare::{Footprint, Gate},
    config::UseTensorRt,
    quantize::PrecisionPlan,
    session::{
        EngineOrder, PipelineError, Within, describe,
        evaluation::{EvaluateOptions, evaluate},
    },
};

/// The evaluation samples that plans are searched on, at most so many, and the others, which check what is found.
pub(super) fn parts(evaluation: &[usize], samples: usize) -> [Vec<usize>; 2] {
    let count = samples.min(evaluation.len().div_ceil(2)).max(1);
    // Every so many-th sample, so that a folder sorted by class gives all classes to both parts.
    let step = (evaluation.len() / count).max(1);
    [true, false].map(|wanted| {
        let chosen = |at: usize| at.is_multiple_of(step) && at / step < count;
        let indices = evaluation.iter().enumerate().filter(|(at, _)| chosen(*at) == wanted);
        indices.map(|(_, &index)| index).collect()
    })
}

impl Bisection<'_> {
    /// The smallest plan; searched on some evaluation samples, checked on others. False where none passes.
    pub(super) fn plan(&self, gates: &[Gate], findings: &mut Findings) -> Result<bool, PipelineError> {
        let [search_on, check_on] = parts(&self.split.evaluation, self.args.samples);
        let session = self.session;
        // Every trial reads them.
        session.dataset().keep(&search_on);
        self.check_gates(gates, &search_on)?;
        let start = Start {
            model: &session.subject.folded,
            shapes: &session.subject.shapes,
            table: self.table.as_ref(),
            quantize: &self.options,
            precision: self.args.lift,
        };
        let mut log = self.log(gates, &search_on)?;
        let path = self.out.join("trials.json");
        let mut unsaved = None;
        let mut keep = |log: &mut TrialLog, progress: Progress<'_>| {
            session.host.trial(progress, gates);
            if !progress.replayed {
                log.trials.push(progress.trial.clone());
                unsaved = unsaved.take().or(log.save(&path).err());
            }
        };
        let options = SearchOptions { strategy: self.args.strategy, max_trials: self.args.max_trials, curve: true };
        session.host.stage("trying plans");
        findings.backend = Some(session.provider.backend().to_owned());
        let mut searching = session.judge(&search_on)?;
        let kept = || "the trials so far are kept; the same command goes on from there".to_owned();
        // Nothing is measured for a plan where none is needed.
        let (mut nodes, known) = (0, log.trials.clone());
        let mut search = smallest_plan(&mut searching, start, &[], options, &known, &mut |trial| keep(&mut log, trial))
            .within(kept)?;
        if !matches!(search.outcome, Outcome::AlreadyPasses { .. }) {
            super::layers(self, findings)?;
            // This search is what they recommend.
            let bisect = self.commands().bisect;
            for advice in &mut findings.advice {
                advice.command.take_if(|command| *command == bisect);
            }
            session.host.stage("trying plans");
            let candidates = self.candidates(findings, &mut log.costs)?;
            if self.args.cost == Cost::Time {
                findings.float_ms.clone_from(&log.costs);
            }
            nodes = candidates.iter().map(|candidate| candidate.nodes.len()).sum();
            let known = log.trials.clone();
            // The first is the one of before.
            let mut progress = |trial: Progress<'_>| {
                if trial.number > 1 {
                    keep(&mut log, trial);
                }
            };
            search = smallest_plan(&mut searching, start, &candidates, options, &known, &mut progress).within(kept)?;
        }
        drop(searching);
        if let Some(error) = unsaved {
            return Err(error.into());
        }
        let mut check = None;
        if let Some(trial) = search.plan() {
            let (plan, model) = start.plan(&trial.lifted)?;
            let random_data = plan.random_data || self.rests_on_random_data();
            PrecisionPlan { random_data, ..plan }.write(&self.out.join("plan.json"))?;
            model.save(&self.out.join("model.plan.onnx"))?;
            self.engine()?;
            if !check_on.is_empty() {
                check = Some(session.judge(&check_on)?.verdict(&model)?);
            }
            let judged = check.as_ref().unwrap_or(&trial.verdict);
            judged.notes.iter().for_each(|note| session.host.warn(&format!("the plan: {note}")));
        }
        if let Some(gate) = gates.first() {
            let (lift, undecided) = (self.args.lift.name(), self.undecided.as_deref());
            findings.advice.insert(0, about_search(&search, nodes, gate, lift, undecided, &self.commands()));
        }
        let found = PlanFindings {
            gates: gates.to_vec(),
            lift: self.args.lift,
            cost: self.args.cost,
            curve: search.curve(),
            search,
            samples: search_on.len(),
            check,
            check_samples: check_on.len(),
            undecided: self.undecided.clone(),
        };
        if let Some(failed) = about_check(&found) {
            if let Some(first) = findings.advice.first_mut() {
                first.text.push_str(&format!(", on the {} samples that it was searched on", found.samples));
                first.command = None;
            }
            findings.advice.insert(0, failed);
        }
        // A plan that only passes where it was searched is not an answer.
        Ok(findings.plan.insert(found).passed())
    }

    /// Refuses gates on what this model and its samples have not, before anything is searched.
    fn check_gates(&self, gates: &[Gate], indices: &[usize]) -> Result<(), PipelineError> {
        let session = self.session;
        let dataset = &*session.data.collection.dataset;
        let labelled = |index: &&usize| {
            dataset.label(**index).is_some() || dataset.mask_file(**index).is_some() || dataset.has_boxes(**index)
        };
        let Some(&sample) = indices.iter().find(labelled).or(indices.first()) else { return Ok(()) };
        let on_cpu = BuildOptions { threads: session.threads, ..BuildOptions::default() };
        let mut reference = session.subject.reference(session.runtime, &on_cpu)?;
        let options = EvaluateOptions { batch: 1, policy: session.policy, compare: session.compare_options() };
        let control = session.control(&|_| {});
        let mut missing = |samples: &[usize]| -> Result<Option<String>, PipelineError> {
            let evaluation = evaluate(&mut reference, &mut [], dataset, samples, &options, control)?;
            let why = gates.iter().find_map(|gate| {
                let found = gate.evaluate(&evaluation.reference, &Footprint::default());
                found.note.filter(|_| found.value.is_none() && !found.passed).map(|why| (gate, why))
            });
            Ok(why.map(|(gate, why)| {
                format!("no plan can pass the gate {gate}: {why}; gate what there is, as in sqnr_db=20")
            }))
        };
        let mut why = missing(&[sample])?;
        if why.is_some() && session.head.is_some() {
            // A picture may show nothing.
            why = missing(indices)?;
        }
        why.map_or(Ok(()), |why| Err(PipelineError::Input(why)))
    }

    /// The engine of `model.plan.onnx`, where TensorRT is at hand or asked for.
    fn engine(&self) -> Result<(), PipelineError> {
        let config = self.session.config.absolute();
        if config.tensorrt == UseTensorRt::Off {
            return Ok(());
        }
        let (model, engine) = (self.out.join("model.plan.onnx"), self.out.join("model.plan.engine"));
        let host = &self.session.host;
        let order = EngineOrder::open(&model, None).and_then(|order| {
            let order = order.for_batch(self.session.batch, &config.shape)?;
            EngineOrder { reference: config.model, data: config.data, labels: config.labels, ..order }
                .write(host, &engine)
        });
        match order {
            Ok(_) => host.info(&format!("wrote {}", engine.display())),
            Err(error) if config.tensorrt == UseTensorRt::Require => {
                return Err(error).within(|| "the plan's engine".to_owned());
            }
            Err(error) => host.info(&format!("no engine was built: {}", describe(&error))),
        }
        Ok(())
    }

    /// What may be lifted; costs that were measured are taken from `known`, and kept there.
    fn candidates(
        &self,
        findings: &Findings,
        known: &mut BTreeMap<String, f64>,
    ) -> Result<Vec<Candidate>, PipelineError> {
        let runtime = &self.session.runtime;
        let costs = match self.args.cost {
            Cost::Nodes => BTreeMap::new(),
            Cost::Macs => macs(runtime, &Pair::new(&self.float, &self.quantized)?, self.first_of(1))?,
            Cost::Time => {
                if known.is_empty() {
                    let pair = Pair::new(&self.float, &self.quantized)?;
                    *known = times(runtime, &pair, self.first_of(1), self.session.threads)?;
                }
                known.clone()
            }
        };
        let grouping = match self.args.group_by.as_str() {
            "node" => Grouping::Node,
            "op-type" => Grouping::OpType,
            "block" => Grouping::Block,
            pattern => Grouping::Regex(pattern.to_owned()),
        };
        let single = candidates(&findings.layers, &findings.outputs, &costs);
        group(&single, &grouping).map_err(|error| {
            let reason = describe(&error);
            PipelineError::Input(format!(
                "--group-by takes node, op-type, block or a regular expression, not `{}`: {reason}",
                self.args.group_by
            ))
        })
    }

    /// Trials of an earlier search under the same conditions.
    fn log(&self, gates: &[Gate], search_on: &[usize]) -> Result<TrialLog, PipelineError> {
        let session = self.session;
        let samples = session.data_hash(search_on);
        let conditions = (session.context()?, &self.table, &self.options, samples, gates, self.args.lift);
        let context = ContentHash::of_bytes(&serde_json::to_vec(&conditions).map_err(PipelineError::render)?);
        let log = match TrialLog::resume(&self.out.join("trials.json"), context.clone()) {
            Err(error @ ArtifactError::Format { .. }) => {
                session.host.info(&format!("starting a new search: {error}"));
                TrialLog::new(context)
            }
            log => log?,
        };
        Ok(TrialLog { random_data: self.rests_on_random_data(), ..log })
    }
}
