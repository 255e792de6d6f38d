//! A bisection: which layers diverge and why, the first of them, and the smallest set worth saving.

mod engine;
mod look;
mod parts;
mod plan;
mod subject;

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

pub(super) use parts::CountTrial;
pub use parts::{TrialCounter, TrialPart};
use subject::Bisection;

use super::{PipelineError, Session, Target, checkpoint::Checkpoints, page_of};
use crate::{
    analyse::{
        advice::about_layers,
        cost::Cost,
        graphwise::{TensorDivergence, shared_tensors},
        layerwise::{output_noise, worst},
        operators::Pair,
    },
    artifact::{Tool, write_atomic, write_json},
    bisect::{
        findings::{FINDINGS_FORMAT_VERSION, Findings},
        search::Strategy,
    },
    compare::Needs,
    config::RunConfig,
    onnx::Model,
    quantize::Precision,
    report::{Report, bisection_html},
};

/// Samples that local errors are measured on.
const LAYER_SAMPLES: usize = 16;
/// Samples that the effect of single operators on the outputs is measured on.
const OUTPUT_SAMPLES: usize = 8;
/// Operators whose effect on the outputs is measured; the others are ranked by their local errors.
const OUTPUT_OPERATORS: usize = 64;

/// What a bisection looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// The smallest set of nodes to lift that passes the gates.
    Plan,
    /// The first node after which the target leaves the reference.
    First,
    /// The error of every quantized operator, and where it comes from.
    Layers,
    /// Every tensor of the target against the reference, and the first that is NaN or infinite.
    Tensors,
}

/// Options of [`Session::bisect`].
#[derive(Clone, Debug)]
pub struct BisectOptions {
    /// What to look for; without, a plan where there are gates, else the first divergence of an engine or of saved outputs,
    /// layers of a model.
    pub find: Option<Find>,
    /// Precision to look into.
    pub precision: Precision,
    /// Precision that nodes are lifted to.
    pub lift: Precision,
    /// How the number of nodes to lift is found.
    pub strategy: Strategy,
    /// How nodes are lifted together: `node`, `op-type`, `block`, or a regular expression whose capture names the group.
    pub group_by: String,
    /// What lifting a node costs.
    pub cost: Cost,
    /// Plans that may be tried.
    pub max_trials: usize,
    /// Evaluation samples that plans are judged on (at most half; the others check the result) or tensors compared on.
    pub samples: usize,
    /// What to look into instead of the model quantized here, as [`Target`] reads it; not for a plan.
    pub target: Option<String>,
    /// Tensors that one probe of an engine marks as outputs, at most. Without, all that memory allows where the first divergence
    /// is looked for, else 4.
    pub probe_tensors: Option<usize>,
    /// With [`Find::First`], a tensor diverges below this SQNR in decibels.
    pub threshold_db: f64,
    /// With [`Find::First`], whether every tensor is looked at.
    pub exhaustive: bool,
}

impl Default for BisectOptions {
    fn default() -> Self {
        Self {
            find: None,
            precision: Precision::Int8,
            lift: Precision::Fp32,
            strategy: Strategy::default(),
            group_by: "node".to_owned(),
            cost: Cost::default(),
            max_trials: 64,
            samples: 200,
            target: None,
            probe_tensors: None,
            threshold_db: 10.0,
            exhaustive: false,
        }
    }
}

/// What a bisection found.
pub struct BisectOutcome {
    /// All of it.
    pub findings: Findings,
    /// Folder that holds `bisect.json`, `bisect.html`, the plan and its model.
    pub out: PathBuf,
    /// False where a plan was looked for and none passes the gates.
    pub passed: bool,
}

impl BisectOptions {
    /// What is looked for under `config`; tells before anything is opened what does not fit together.
    ///
    /// # Errors
    /// Options contradict each other or the gates of `config`.
    pub fn check(&self, config: &RunConfig) -> Result<Find, PipelineError> {
        let gates = &config.gate;
        let Self { precision, lift, target, .. } = self;
        let is_model = match target.as_deref().map(Target::parse).transpose()? {
            Some(Target::Engine(_) | Target::Saved(_)) => false,
            None | Some(Target::Model(..)) => true,
        };
        let without_gates = if is_model { Find::Layers } else { Find::First };
        let find = self.find.unwrap_or(if gates.is_empty() { without_gates } else { Find::Plan });
        ensure!(
            find != Find::Layers || is_model,
            "--find layers takes a model as its target, a file ending in .onnx; look into this one with --find first or tensors"
        );
        let is_plan = find == Find::Plan;
        let other = gates.iter().find(|gate| is_plan && !gate.is_for(precision.name()));
        if let Some(gate) = other {
            bail!(
                "gate {gate} is not for {precision}, for which a plan is looked for; set --precision, or leave it out of the gate"
            );
        }
        ensure!(!is_plan || !gates.is_empty(), "a plan needs a gate to pass; name one, as in --gate top1=0.99");
        ensure!(
            !is_plan || target.is_none(),
            "a plan is searched for the model that is quantized here; leave out --target, or look into it with --find layers"
        );
        ensure!(
            !is_plan || precision.half_type().is_none(),
            "plans are judged in ONNX Runtime, which computes 16-bit models in 32 bits on the CPU; look into {precision} with \
             --find layers, tensors or first"
        );
        ensure!(*precision != Precision::Fp32, "--precision takes int8, fp8, fp16 or bf16");
        ensure!(!lift.is_quantized(), "--lift takes fp32, fp16 or bf16, not {lift}");
        ensure!(
            precision.is_quantized() || *lift == Precision::Fp32,
            "nodes of a model in {precision} can only be lifted to fp32"
        );
        Ok(find)
    }
}

impl Session {
    /// Looks into the model in a lower precision, or into something else that was made of it, and leaves what it finds in
    /// the output folder.
    ///
    /// # Errors
    /// Options do not fit together, a gate cannot be measured on this model, something cannot be run or written, or the
    /// host stopped it.
    pub fn bisect(&self, options: &BisectOptions) -> Result<BisectOutcome, PipelineError> {
        let started = Instant::now();
        let gates = self.config.gate.clone();
        let find = options.check(&self.config)?;
        if find == Find::Plan {
            let costs = gates.iter().find(|gate| matches!(gate.metric.needs(), Needs::Times | Needs::Size));
            if let Some(gate) = costs {
                bail!(
                    "no plan can pass the gate {gate}: plans are judged by what they compute, and neither timed nor weighed"
                );
            }
        }
        self.host.stage("quantizing");
        let bisection = Bisection::open(self, options, find)?;
        let mut findings = Findings {
            format_version: FINDINGS_FORMAT_VERSION,
            tool: Tool::current(),
            model: self.config.model.as_deref().map_or_else(String::new, |path| path.display().to_string()),
            model_hash: self.subject.float.hash.clone(),
            random_data: bisection.rests_on_random_data(),
            target: options.target.clone().unwrap_or_else(|| options.precision.to_string()),
            backend: None,
            layers: Vec::new(),
            outputs: Vec::new(),
            accumulated_sqnr_db: BTreeMap::new(),
            float_ms: BTreeMap::new(),
            first: None,
            tensors: None,
            probes: None,
            plan: None,
            graph: Some(bisection.graph()?),
            advice: Vec::new(),
            seconds: 0.0,
        };
        let mut passed = true;
        match find {
            Find::First => {
                self.host.stage("looking into tensors");
                let (first, source) = bisection.first()?;
                (findings.first, findings.probes, findings.backend) = (Some(first), source.probes, source.backend);
            }
            Find::Tensors => {
                self.host.stage("looking into tensors");
                let (tensors, source) = bisection.tensors()?;
                (findings.tensors, findings.probes, findings.backend) = (Some(tensors), source.probes, source.backend);
            }
            Find::Layers => layers(&bisection, &mut findings)?,
            Find::Plan => passed = bisection.plan(&gates, &mut findings)?,
        }
        findings.seconds = started.elapsed().as_secs_f64();
        let (data, page) = (bisection.out.join("bisect.json"), bisection.out.join("bisect.html"));
        // A run's report in the same folder shows the trade-off too, and the bisection's page what the run knows.
        let report = Report::read(&bisection.out.join("report.json"));
        let report = report.ok().filter(|report| report.model.hash == findings.model_hash);
        write_json(&data, &findings)?;
        write_atomic(&page, bisection_html(&findings, report.as_ref()).map_err(PipelineError::render)?.as_bytes())?;
        self.host.wrote(&data);
        self.host.wrote(&page);
        if let Some(report) = report {
            write_atomic(&bisection.out.join("report.html"), page_of(&report, &bisection.out)?.as_bytes())?;
        }
        bisection.checkpoints.map(Checkpoints::finish).transpose()?;
        Ok(BisectOutcome { findings, out: bisection.out.to_path_buf(), passed })
    }
}

/// Local errors, their effect on the outputs, and what to say about them.
fn layers(bisection: &Bisection<'_>, findings: &mut Findings) -> Result<(), PipelineError> {
    bisection.session.host.stage("looking into layers");
    let quantized = bisection.quantized_target()?;
    let pair = Pair::new(&bisection.float, quantized)?;
    if let Some(left_out) = pair.left_out() {
        bisection.session.host.warn(&left_out);
    }
    bisection.session.host.info(&format!("measuring {} operators", pair.operators.len()));
    let session = bisection.session;
    findings.backend = Some(session.analyst(LAYER_SAMPLES).backend().to_owned());
    findings.layers = session.layerwise(&pair, bisection.first_of(LAYER_SAMPLES))?;
    let nodes = worst(&findings.layers, OUTPUT_OPERATORS);
    findings.outputs = output_noise(
        &session.runtime,
        &pair,
        &nodes,
        bisection.first_of(OUTPUT_SAMPLES),
        &session.output_noise_options(),
    )?;
    findings.accumulated_sqnr_db = accumulated(bisection, quantized, &pair)?;
    findings.advice = about_layers(&findings.layers, &findings.outputs, &bisection.commands());
    if !bisection.options.scheme.precision.is_quantized()
        || bisection.args.target.is_some() && bisection.table.is_none()
    {
        // The commands are about ranges and plans, which 16-bit floats and models of others have not.
        findings.advice.iter_mut().for_each(|advice| advice.command = None);
    }
    Ok(())
}

/// How far the result of every operator is off with all of them quantized, by node.
fn accumulated(
    bisection: &Bisection<'_>,
    quantized: &Model,
    pair: &Pair<'_>,
) -> Result<BTreeMap<String, f64>, PipelineError> {
    let of: BTreeMap<&str, &str> = pair.operators.iter().map(|own| (&*own.tensor, &*own.node)).collect();
    let mut sites = shared_tensors(&bisection.float, quantized)?;
    sites.retain(|site| of.contains_key(&*site.tensor));
    if sites.is_empty() {
        return Ok(BTreeMap::new());
    }
    let found = bisection.session.graphwise(&bisection.float, quantized, &sites, bisection.first_of(LAYER_SAMPLES))?;
    let error =
        |tensor: &TensorDivergence| Some(((*of.get(&*tensor.site.tensor)?).to_owned(), tensor.difference.sqnr_db?));
    Ok(found.tensors.iter().filter_map(error).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_goes_by_gates_for_its_own_precision() {
        let config = |gate: &str| RunConfig { gate: vec![gate.parse().unwrap()], ..RunConfig::default() };
        let check = |gate: &str| BisectOptions::default().check(&config(gate));
        for gate in ["top1=0.9", "int8:top1=0.9"] {
            assert_eq!(check(gate).unwrap(), Find::Plan);
        }
        let error = check("fp16:top1=0.9").unwrap_err().to_string();
        assert!(error.starts_with("gate fp16:top1=0.9 is not for int8, for which a plan is looked for"), "{error}");
    }
}
