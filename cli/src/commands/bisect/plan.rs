//! The search for the smallest plan, its check on other samples, and what it leaves.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use clap::Parser;

use super::{subject::Bisection, text};
use crate::{
    args::{Cli, Command},
    commands::{ExitStatus, build, describe, settings::control},
};
use trtcalib::{
    analyse::{
        cost::{Cost, macs, times},
        operators::Pair,
    },
    artifact::{ArtifactError, ContentHash},
    backend::ExecutionProvider,
    bisect::{
        advice::about_search,
        findings::{Findings, PlanFindings},
        groups::{Grouping, group},
        lift::{Judge, JudgeOptions, Start, candidates, smallest_plan},
        search::{Candidate, SearchOptions},
        trials::{Progress, TrialLog},
    },
    compare::{CompareOptions, Footprint, Gate},
    session::evaluation::{EvaluateOptions, evaluate},
};

impl Bisection<'_> {
    /// The smallest plan; searched on some evaluation samples, checked on others.
    pub(super) fn plan(&self, gates: &[Gate], findings: &mut Findings) -> anyhow::Result<ExitStatus> {
        let evaluation = &self.split.evaluation;
        let count = self.args.samples.min(evaluation.len().div_ceil(2)).max(1);
        // Every so many-th sample, so that a folder sorted by class gives all classes to both parts.
        let step = (evaluation.len() / count).max(1);
        let part = |wanted: bool| {
            let chosen = |at: usize| at.is_multiple_of(step) && at / step < count;
            let indices = evaluation.iter().enumerate().filter(move |(at, _)| chosen(*at) == wanted);
            indices.map(|(_, &index)| index).collect::<Vec<usize>>()
        };
        let (search_on, check_on) = (part(true), part(false));
        let session = &self.session;
        self.check_gates(gates, &search_on)?;
        let judge = JudgeOptions {
            gates: gates.to_vec(),
            compare: CompareOptions { max_flips: 0, resamples: 0, ..session.compare_options() },
            threads: session.threads,
            ..JudgeOptions::default()
        };
        let start = Start {
            model: &session.subject.folded,
            shapes: &session.subject.shapes,
            table: self.table.as_ref(),
            quantize: &self.options,
            precision: self.lift,
        };
        let mut log = self.log(gates, &search_on)?;
        let candidates = self.candidates(findings, &mut log.costs)?;
        let path = self.out.join("trials.json");
        let known = log.trials.clone();
        let mut unsaved = None;
        let mut progress = |progress: Progress<'_>| {
            self.printer.note(&text::trial(progress, gates));
            if !progress.replayed {
                log.trials.push(progress.trial.clone());
                unsaved = unsaved.take().or(log.save(&path).err());
            }
        };
        let options =
            SearchOptions { strategy: self.args.strategy.into(), max_trials: self.args.max_trials, curve: true };
        let reference = session.side(&session.subject.float);
        let mut searching = Judge::new(reference, session.batched(self.samples(&search_on)), judge.clone())?;
        let search = smallest_plan(&mut searching, start, &candidates, options, &known, &mut progress)
            .context("the trials so far are kept; the same command goes on from there")?;
        drop(searching);
        if let Some(error) = unsaved {
            return Err(error.into());
        }
        let mut check = None;
        if let Some(trial) = search.plan() {
            let (plan, model) = start.plan(&trial.lifted)?;
            plan.write(&self.out.join("plan.json"))?;
            model.save(&self.out.join("model.plan.onnx"))?;
            self.engine()?;
            if !check_on.is_empty() {
                let mut judge = Judge::new(reference, session.batched(self.samples(&check_on)), judge)?;
                check = Some(judge.verdict(&model)?);
            }
        }
        let nodes = candidates.iter().map(|candidate| candidate.nodes.len()).sum();
        let metric = gates.first().map_or("", |gate| gate.metric.name());
        findings.advice.insert(0, about_search(&search, nodes, metric, self.lift.name(), &self.commands()));
        let found = findings.plan.insert(PlanFindings {
            gates: gates.to_vec(),
            lift: self.lift,
            cost: self.args.cost.into(),
            curve: search.curve(),
            search,
            samples: search_on.len(),
            check,
            check_samples: check_on.len(),
        });
        // A plan that only passes where it was searched is no answer.
        Ok(if found.passed() { ExitStatus::Passed } else { ExitStatus::GateFailed })
    }

    /// Refuses gates on what this model and its samples have not, before anything is searched.
    fn check_gates(&self, gates: &[Gate], indices: &[usize]) -> anyhow::Result<()> {
        let session = &self.session;
        let dataset = &*session.data.collection.dataset;
        let labelled = |index: &&usize| {
            dataset.label(**index).is_some() || dataset.mask_file(**index).is_some() || dataset.has_boxes(**index)
        };
        let Some(&sample) = indices.iter().find(labelled).or(indices.first()) else { return Ok(()) };
        let mut reference = session.subject.reference(session.runtime, ExecutionProvider::Cpu, session.threads)?;
        let options = EvaluateOptions { batch: 1, policy: session.policy, compare: session.compare_options() };
        let control = control(session.threads, &|_| {});
        let evaluation = evaluate(&mut reference, &mut [], dataset, &[sample], &options, control)?;
        for gate in gates {
            let found = gate.evaluate(&evaluation.reference, &Footprint::default());
            if let (None, false, Some(why)) = (found.value, found.passed, found.note) {
                anyhow::bail!("no plan can pass the gate {gate}: {why}; gate what there is, as in sqnr_db=20");
            }
        }
        Ok(())
    }

    /// The engine of `model.plan.onnx`, where TensorRT is at hand or asked for.
    fn engine(&self) -> anyhow::Result<()> {
        let config = self.session.config.absolute();
        if config.tensorrt == "off" {
            return Ok(());
        }
        let (model, engine) = (self.out.join("model.plan.onnx"), self.out.join("model.plan.engine"));
        let text = |path: &Path| path.display().to_string();
        let mut words = vec!["calib".to_owned(), "build".to_owned()];
        let mut flag = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        flag("--model", text(&model));
        flag("--output", text(&engine));
        flag("--batch", self.session.batch.to_string());
        let given = [("--reference", &config.model), ("--data", &config.data), ("--labels", &config.labels)];
        for (name, path) in given {
            if let Some(path) = path {
                flag(name, text(path));
            }
        }
        for (input, extents) in &config.shape {
            let extents: Vec<String> = extents.iter().map(usize::to_string).collect();
            flag("--shape", format!("{input}={}", extents.join("x")));
        }
        let Command::Build(args) = Cli::try_parse_from(words)?.command else { return Ok(()) };
        match build::engine(self.printer, &args) {
            Ok(_) => self.printer.note(&format!("wrote {}", engine.display())),
            Err(error) if config.tensorrt == "require" => return Err(error.context("the plan's engine")),
            Err(error) => self.printer.note(&format!("no engine was built: {}", describe(&error))),
        }
        Ok(())
    }

    /// What may be lifted; costs that were measured are taken from `known`, and kept there.
    fn candidates(&self, findings: &Findings, known: &mut BTreeMap<String, f64>) -> anyhow::Result<Vec<Candidate>> {
        let runtime = &self.session.runtime;
        let costs = match self.args.cost.into() {
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
        group(&single, &grouping).with_context(|| {
            format!("--group-by takes node, op-type, block or a regular expression, not `{}`", self.args.group_by)
        })
    }

    /// Trials of an earlier search under the same conditions.
    fn log(&self, gates: &[Gate], search_on: &[usize]) -> anyhow::Result<TrialLog> {
        let session = &self.session;
        let samples = session.data_hash(search_on);
        let conditions = (session.context()?, &self.table, &self.options, samples, gates, self.lift);
        let context = ContentHash::of_bytes(&serde_json::to_vec(&conditions)?);
        match TrialLog::resume(&self.out.join("trials.json"), context.clone()) {
            Ok(log) => Ok(log),
            Err(error @ ArtifactError::Format { .. }) => {
                self.printer.warn(&format!("starting a new search: {error}"));
                Ok(TrialLog::new(context))
            }
            Err(error) => Err(error.into()),
        }
    }
}
