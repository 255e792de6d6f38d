//! `calib bisect`: which layers diverge and why, the first of them, and the smallest set worth saving.

mod text;

use std::{path::PathBuf, time::Instant};

use anyhow::Context;
use serde::Serialize;

use super::{
    ExitStatus, INTERRUPTED, Printer,
    output::OutputFolder,
    settings::{Apply, Session, one_size, quantize_options},
};
use crate::{
    artifact::{ArtifactError, ContentHash, Tool, write_json},
    bisect::{
        advice::{Advice, Commands, about_layers, about_search},
        first::{FirstDivergence, FirstOptions, Scan, first_divergence},
        graphwise::{Graphwise, GraphwiseOptions, TensorDivergence, flow, graphwise, shared_tensors},
        groups::{Grouping, group},
        layerwise::{
            AnalysisError, LayerError, LayerwiseOptions, OutputNoise, Samples, layerwise, output_noise, worst,
        },
        lift::{Cost, Judge, JudgeOptions, Start, candidates, lifted_plan, macs, smallest_plan},
        operators::Pair,
        search::{CurvePoint, Outcome, SearchOptions, SearchResult},
        trials::{Progress, TrialLog, Verdict},
    },
    calibrate::{CalibrationTable, Provenance, Shards},
    cli::{BisectArgs, Find, GlobalArgs},
    compare::{CompareOptions, Gate},
    config::RunConfig,
    dataset::{PrefetchOptions, Split},
    onnx::Model,
    pipeline::calibration::hold_out,
    quantize::{Precision, QuantizeOptions},
};

/// Samples that local errors are measured on.
const LAYER_SAMPLES: usize = 16;
/// Samples that the effect of single operators on the outputs is measured on.
const OUTPUT_SAMPLES: usize = 8;
/// Operators whose effect on the outputs is measured; the others are ranked by their local errors.
const OUTPUT_OPERATORS: usize = 64;

/// Format version of `bisect.json`.
const FORMAT_VERSION: u32 = 1;

/// `bisect.json`.
#[derive(Serialize)]
struct Findings {
    format_version: u32,
    tool: Tool,
    model_hash: ContentHash,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<LayerError>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<OutputNoise>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<FirstDivergence<TensorDivergence>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Graphwise>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanFindings>,
    advice: Vec<Advice>,
    seconds: f64,
}

/// The search and its check on other samples.
#[derive(Serialize)]
struct PlanFindings {
    search: SearchResult,
    curve: Vec<CurvePoint>,
    samples: usize,
    /// The plan on samples that were not used to find it.
    check: Option<Verdict>,
    check_samples: usize,
}

/// Does the job.
pub(super) fn bisect(printer: &Printer, global: &GlobalArgs, args: &BisectArgs) -> anyhow::Result<ExitStatus> {
    let started = Instant::now();
    let config = configuration(args)?;
    let gates = config.gate.iter().map(|gate| gate.parse()).collect::<Result<Vec<Gate>, _>>()?;
    let find = args.find.unwrap_or(if gates.is_empty() { Find::Layers } else { Find::Plan });
    anyhow::ensure!(
        find != Find::Plan || !gates.is_empty(),
        "a plan needs a gate to pass; name one, as in --gate top1=0.99"
    );
    let mut bisection = Bisection::open(printer, global, args, config)?;
    let mut findings = Findings {
        format_version: FORMAT_VERSION,
        tool: Tool::current(),
        model_hash: bisection.session.subject.float.hash.clone(),
        layers: Vec::new(),
        outputs: Vec::new(),
        first: None,
        tensors: None,
        plan: None,
        advice: Vec::new(),
        seconds: 0.0,
    };
    let mut status = ExitStatus::Passed;
    match find {
        Find::First => findings.first = Some(bisection.first()?),
        Find::Tensors => findings.tensors = Some(bisection.tensors()?),
        Find::Layers => bisection.layers(&mut findings)?,
        Find::Plan => {
            bisection.layers(&mut findings)?;
            status = bisection.plan(&gates, &mut findings)?;
        }
    }
    findings.seconds = started.elapsed().as_secs_f64();
    let path = bisection.out.join("bisect.json");
    write_json(&path, &findings)?;
    printer.outcome(&findings, || text::describe(&findings))?;
    printer.note(&format!("wrote {} in {:.1} s", path.display(), findings.seconds));
    Ok(status)
}

fn configuration(args: &BisectArgs) -> anyhow::Result<RunConfig> {
    let mut config = match &args.config {
        Some(path) => RunConfig::load(path)?,
        None => RunConfig::default(),
    };
    one_size(&args.data, &args.runtime)?;
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    config.model = args.model.clone().or(config.model);
    config.out = args.out.clone().or(config.out);
    if !args.gate.is_empty() {
        config.gate.clone_from(&args.gate);
    }
    Ok(config)
}

/// A float model, its ranges, and the samples to judge on.
struct Bisection<'a> {
    printer: &'a Printer,
    args: &'a BisectArgs,
    session: Session,
    out: OutputFolder,
    split: Split,
    table: CalibrationTable,
    options: QuantizeOptions,
    lift: Precision,
    /// The float model as the quantizer leaves it (same operator set), and quantized.
    float: Model,
    quantized: Model,
}

impl<'a> Bisection<'a> {
    fn open(
        printer: &'a Printer,
        global: &GlobalArgs,
        args: &'a BisectArgs,
        config: RunConfig,
    ) -> anyhow::Result<Self> {
        let lift: Precision = args.lift.parse().map_err(anyhow::Error::msg)?;
        anyhow::ensure!(!lift.is_quantized(), "--lift takes fp32, fp16 or bf16, not {lift}");
        let out = OutputFolder::open(&config)?;
        let session = Session::open(config, global.ort_library.as_deref(), printer)?;
        let split = session.data.split(session.config.seed, session.config.calib_samples, 0);
        let options = quantize_options(&session.config, Precision::Int8)?;
        let table = if let Some(path) = &args.table {
            let table = CalibrationTable::load(path)?;
            table.check_model(&session.subject.float.hash)?;
            table
        } else {
            let table = calibrate(printer, &session, &split, &options)?;
            table.save(&out.join("calibration.json"))?;
            table
        };
        let (float, quantized) = session.subject.analysis_pair(&table, &options)?;
        Ok(Self { printer, args, session, out, split, table, options, lift, float, quantized })
    }

    fn samples<'s>(&'s self, indices: &'s [usize]) -> Samples<'s> {
        let reading = PrefetchOptions {
            batch: self.session.subject.fixed_batch().unwrap_or(1),
            threads: self.session.threads,
            policy: self.session.policy,
            stop: &INTERRUPTED,
        };
        Samples { dataset: &*self.session.data.collection.dataset, indices, reading }
    }

    fn first_of(&self, count: usize) -> Samples<'_> {
        let evaluation = &self.split.evaluation;
        self.samples(&evaluation[..evaluation.len().min(count)])
    }

    /// Local errors, their effect on the outputs, and what to say about them.
    fn layers(&self, findings: &mut Findings) -> anyhow::Result<()> {
        let (runtime, threads) = (&self.session.runtime, self.session.threads);
        let pair = Pair::new(&self.float, &self.quantized)?;
        self.printer.note(&format!("measuring {} quantized operators", pair.operators.len()));
        let options = LayerwiseOptions { threads, ..LayerwiseOptions::default() };
        findings.layers = layerwise(runtime, &pair, self.first_of(LAYER_SAMPLES), options)?;
        let nodes = worst(&findings.layers, OUTPUT_OPERATORS);
        findings.outputs = output_noise(runtime, &pair, &nodes, self.first_of(OUTPUT_SAMPLES), threads)?;
        findings.advice = about_layers(&findings.layers, &findings.outputs, &self.commands());
        Ok(())
    }

    /// The model to look into.
    fn target(&self) -> anyhow::Result<Model> {
        Ok(self.args.target.as_deref().map(Model::load).transpose()?.unwrap_or_else(|| self.quantized.clone()))
    }

    /// Every tensor.
    fn tensors(&self) -> anyhow::Result<Graphwise> {
        let target = self.target()?;
        let sites = shared_tensors(&self.float, &target)?;
        self.session.graphwise(&self.float, &target, &sites, self.first_of(self.args.samples))
    }

    /// The first node that diverges.
    fn first(&self) -> anyhow::Result<FirstDivergence<TensorDivergence>> {
        let target = &self.target()?;
        let sites = shared_tensors(&self.float, target)?;
        let options = GraphwiseOptions { threads: self.session.threads, ..GraphwiseOptions::default() };
        let mut probe = |tensors: &[String]| {
            let sites: Vec<_> = sites.iter().filter(|site| tensors.contains(&site.tensor)).cloned().collect();
            let samples = self.first_of(OUTPUT_SAMPLES);
            let found = graphwise(&self.session.runtime, &self.float, target, &sites, samples, options)?;
            self.printer.detail(&format!("probed {}", tensors.join(", ")));
            Ok::<_, AnalysisError>(found.tensors.into_iter().map(|t| (t.site.tensor.clone(), t)).collect())
        };
        let scan = if self.args.exhaustive { Scan::Exhaustive } else { Scan::Binary };
        let first = FirstOptions { scan, ..FirstOptions::default() };
        let diverged = |tensor: &TensorDivergence| tensor.diverged(self.args.threshold_db);
        Ok(first_divergence(&flow(&self.float)?, first, &diverged, &mut probe)?)
    }

    /// The smallest plan; searched on some evaluation samples, checked on others.
    fn plan(&mut self, gates: &[Gate], findings: &mut Findings) -> anyhow::Result<ExitStatus> {
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
        let judge = JudgeOptions {
            gates: gates.to_vec(),
            compare: CompareOptions { max_flips: 0, ..session.compare_options() },
            threads: session.threads,
            ..JudgeOptions::default()
        };
        let start = Start {
            model: &session.subject.folded,
            shapes: &session.subject.shapes,
            table: &self.table,
            quantize: &self.options,
            precision: self.lift,
        };
        let candidates = self.candidates(findings)?;
        let path = self.out.join("trials.json");
        let mut log = self.log(gates, &search_on)?;
        let known = log.trials.clone();
        let mut unsaved = None;
        let mut progress = |progress: Progress<'_>| {
            self.printer.note(&text::trial(progress, gates));
            if progress.replayed {
                return;
            }
            log.trials.push(progress.trial.clone());
            if let Err(error) = log.save(&path) {
                unsaved.get_or_insert(error);
            }
        };
        let options = SearchOptions { strategy: self.args.strategy.into(), max_trials: self.args.max_trials };
        let mut searching =
            Judge::new(&session.runtime, &session.subject.float, self.samples(&search_on), judge.clone())?;
        let search = smallest_plan(&mut searching, start, &candidates, options, &known, &mut progress)
            .context("the trials so far are kept; the same command goes on from there")?;
        drop(searching);
        if let Some(error) = unsaved {
            return Err(error.into());
        }
        let mut check = None;
        if let Some(trial) = search.plan() {
            let plan = lifted_plan(&self.options.scheme.plan, &trial.lifted, self.lift);
            plan.write(&self.out.join("plan.json"))?;
            let model = start.model(&trial.lifted)?;
            model.save(&self.out.join("model.plan.onnx"))?;
            if !check_on.is_empty() {
                let mut judge = Judge::new(&session.runtime, &session.subject.float, self.samples(&check_on), judge)?;
                check = Some(judge.verdict(&model)?);
            }
        }
        let nodes = candidates.iter().map(|candidate| candidate.nodes.len()).sum();
        let metric = gates.first().map_or("", |gate| gate.metric.name());
        findings.advice.insert(0, about_search(&search, nodes, metric, self.lift.name(), &self.commands()));
        // A plan that only passes where it was searched is no answer.
        let passed = matches!(search.outcome, Outcome::AlreadyPasses { .. } | Outcome::Found { .. })
            && check.as_ref().is_none_or(|check| check.passed);
        findings.plan = Some(PlanFindings {
            curve: search.curve(),
            search,
            samples: search_on.len(),
            check,
            check_samples: check_on.len(),
        });
        Ok(if passed { ExitStatus::Passed } else { ExitStatus::GateFailed })
    }

    fn candidates(&self, findings: &Findings) -> anyhow::Result<Vec<crate::bisect::search::Candidate>> {
        let costs = match self.args.cost.into() {
            Cost::Nodes => std::collections::BTreeMap::new(),
            Cost::Macs => {
                let pair = Pair::new(&self.float, &self.quantized)?;
                macs(&self.session.runtime, &pair, self.first_of(1))?
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
        let conditions = (
            &self.session.subject.float.hash,
            &self.table,
            &self.options,
            self.session.data_hash(search_on),
            gates,
            self.lift,
        );
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

    fn commands(&self) -> Commands {
        let config = &self.session.config;
        let path = |path: Option<&PathBuf>| path.map_or_else(String::new, |path| path.display().to_string());
        let (model, data) = (path(config.model.as_ref()), path(config.data.as_ref()));
        let gate = config.gate.first().map_or("top1=0.99", String::as_str);
        let out = self.out.display();
        Commands {
            run: format!("calib run --model {model} --data {data} --method minmax"),
            bisect: format!("calib bisect --model {model} --data {data} --gate {gate}"),
            quantize: format!(
                "calib quantize --model {model} --table {} --plan {out}/plan.json -o model.int8.onnx",
                self.args
                    .table
                    .as_ref()
                    .map_or_else(|| format!("{out}/calibration.json"), |table| table.display().to_string())
            ),
        }
    }
}

/// Ranges from the calibration samples.
fn calibrate(
    printer: &Printer,
    session: &Session,
    split: &Split,
    options: &QuantizeOptions,
) -> anyhow::Result<CalibrationTable> {
    let tensors = session.subject.place(&options.scheme)?.tensors_to_observe();
    let provenance = Provenance {
        model_hash: session.subject.float.hash.clone(),
        data_hash: session.data_hash(&split.calibration),
        random_data: session.config.random_data,
        shards: Shards::whole(),
    };
    let bar = printer.progress(split.calibration.len() as u64, "calibrating");
    let progress = |samples: usize| bar.inc(samples as u64);
    let observe = session.observe_options();
    let calibrator = session.calibrator(&observe, &progress);
    let indices = &split.calibration;
    let observed = calibrator.observe(&tensors, &hold_out(indices), &provenance);
    bar.finish_and_clear();
    let chosen = calibrator.choose(&observed?.histograms, indices, &session.choose_options(&options.scheme)?)?;
    printer.note(&format!("calibrated {} tensors, method {}", chosen.table.tensors.len(), chosen.choice));
    Ok(chosen.table)
}
