//! `bisect.html`: what lifting nodes gives, which layers hurt and why, and where the target leaves the reference.

use std::collections::{BTreeMap, BTreeSet};

use askama::Template;

use super::{
    Report,
    assemble::{figure, figures, is_share, shown_beside},
    charts, format,
    graph::Picture,
    html::{Chart, Hint, nonce},
    metrics::decibels,
    table::{Cell, Column, Table, Tone},
};
use crate::{
    analyse::{
        advice::Advice,
        cost::Cost,
        graphwise::{Graphwise, TensorDivergence},
        layerwise::{ActivationError, LayerError, OutputNoise},
    },
    bisect::{
        findings::{Findings, PlanFindings},
        probes::ProbeReport,
        search::Outcome,
        trials::{Phase, Trial, Verdict},
    },
    compare::{Direction, Gate},
    words::counted,
};

/// The page of a bisection. `run` is that of the same model in whose folder it lies: where that looked into the same
/// precision, the picture has what it knows of nodes.
pub fn bisection_html(findings: &Findings, run: Option<&Report>) -> Result<String, askama::Error> {
    let is_of = |report: &&Report| {
        report.model.hash == findings.model_hash
            && report.layers_of().is_some_and(|row| row.precision == findings.target)
    };
    let run = run.filter(is_of);
    let model = format::file_name(&findings.model);
    let layers = layers(findings);
    let op_types: BTreeSet<&str> = findings.layers.iter().map(|layer| layer.op_type.as_str()).collect();
    Page {
        nonce: nonce(&format!("{findings:?}")),
        findings,
        model,
        verdict: findings.plan.as_ref().map(verdict),
        plan: findings.plan.as_ref().map(Plan::new),
        op_types: op_types.into_iter().collect(),
        profile: profile(findings),
        layers: &layers,
        tensors: tensors(findings),
        network: Picture::of_findings(findings, run),
        told_by: run.map(|report| report.created.as_str()),
        first: first(findings),
        looked: looked(findings),
        hints: Hint::once(findings.advice.iter().map(hint).collect()),
        seconds: format::seconds(findings.seconds),
    }
    .render()
}

#[derive(Template)]
#[template(path = "bisection.html")]
struct Page<'a> {
    nonce: String,
    findings: &'a Findings,
    model: &'a str,
    network: Option<Picture>,
    /// When the run ended whose knowledge the picture shows too.
    told_by: Option<&'a str>,
    /// Whether a plan passes, what to call it if none does, and the sentence.
    verdict: Option<(bool, &'static str, String)>,
    plan: Option<Plan<'a>>,
    profile: (Chart, Vec<(&'a str, String)>),
    op_types: Vec<&'a str>,
    layers: &'a Table,
    tensors: Table,
    first: Option<String>,
    looked: Vec<String>,
    hints: Vec<Hint<'a>>,
    seconds: String,
}

fn hint(advice: &Advice) -> Hint<'_> {
    Hint::new(advice.level, &advice.text, &advice.nodes, advice.command.as_deref())
}

/// The search as a page shows it.
pub(super) struct Plan<'a> {
    pub lifted: Vec<&'a str>,
    pub charts: Vec<Chart>,
    trials: Table,
    /// How the search went.
    pub sentence: String,
}

/// A value of a gate's metric; see [`shown_beside`].
fn beside(gate: &Gate, value: f64) -> String {
    shown_beside(gate.metric, value, gate.threshold)
}

fn value(verdict: &Verdict, gate: &Gate) -> Option<f64> {
    verdict.metrics.get(&gate.subject()).copied()
}

/// `top1 99.0 % (at least 98.5 %)` for every gate.
fn measured(gates: &[Gate], verdict: &Verdict) -> String {
    let one = |gate: &Gate| {
        let side = if gate.metric.direction() == Direction::AtLeast { "at least" } else { "at most" };
        let value = value(verdict, gate).map_or_else(|| "not finite".to_owned(), |value| beside(gate, value));
        let interval = verdict.intervals.get(&gate.subject());
        let interval = interval.map(|&interval| format!("{}, ", figures(gate.metric, interval)));
        let threshold = figure(gate.metric, gate.threshold);
        format!("{} {value} ({}{side} {threshold})", gate.subject(), interval.unwrap_or_default())
    };
    gates.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// See [`Page::verdict`].
fn verdict(plan: &PlanFindings) -> (bool, &'static str, String) {
    let count = |nodes| counted(nodes, "node");
    let gates = |trial: &Trial| measured(&plan.gates, &trial.verdict);
    let (lift, samples) = (plan.lift, plan.samples);
    let mut text = match &plan.search.outcome {
        Outcome::AlreadyPasses { trial } => {
            format!("Nothing has to be lifted: {} on {samples} samples.", gates(trial))
        }
        Outcome::Found { trial, minimal } => format!(
            "Lifting {} to {lift} passes where it was searched: {} on {samples} samples. {}",
            count(trial.lifted.len()),
            gates(trial),
            if *minimal { "None of them can be put back." } else { "The budget ended before all were put back." }
        ),
        Outcome::BudgetExhausted { best: Some(trial) } => format!(
            "The budget of trials ended. The best plan so far lifts {} to {lift}: {} on {samples} samples.",
            count(trial.lifted.len()),
            gates(trial)
        ),
        Outcome::BudgetExhausted { best: None } => "The budget of trials ended before a plan passed.".to_owned(),
        Outcome::GateAtFault { trial } => format!(
            "Even with {} in {lift} the gate fails: {} on {samples} samples. {}.",
            count(trial.lifted.len()),
            gates(trial),
            plan.undecided.as_deref().unwrap_or("The gate is at fault, not the quantization")
        ),
    };
    if let Some(check) = &plan.check {
        let word = if check.passed { "passes" } else { "does not pass" };
        text += &format!(" On {} other samples it {word}: {}.", plan.check_samples, measured(&plan.gates, check));
    }
    let stamp = if plan.check.as_ref().is_some_and(|check| !check.passed) { "Not confirmed" } else { "No plan" };
    (plan.passed(), stamp, text)
}

impl<'a> Plan<'a> {
    pub fn new(plan: &'a PlanFindings) -> Self {
        let lifted = plan.search.plan().map(|trial| trial.lifted.iter().map(String::as_str).collect());
        Self {
            lifted: lifted.unwrap_or_default(),
            charts: tradeoffs(plan),
            trials: trials(plan),
            sentence: verdict(plan).2,
        }
    }
}

/// Each gate's metric over the nodes lifted, and over what they cost where that is another thing.
fn tradeoffs(plan: &PlanFindings) -> Vec<Chart> {
    let all = plan.search.trials.iter().map(|trial| trial.cost).fold(0.0, f64::max);
    let chart = |gate: &Gate, x_name, counts: bool| {
        let tried = |trial: &Trial| {
            let x = if counts { trial.lifted.len() as f64 } else { 100.0 * trial.cost / all };
            let chosen = plan.search.plan().is_some_and(|chosen| chosen.plan == trial.plan);
            Some(charts::Tried { x, value: value(&trial.verdict, gate)?, passed: trial.verdict.passed, chosen })
        };
        let tried: Vec<_> = plan.search.trials.iter().filter_map(tried).collect();
        let axes = charts::Axes {
            x_name,
            counts,
            value_name: gate.metric.name(),
            share: is_share(gate.metric),
            more_is_better: gate.metric.direction() == Direction::AtLeast,
            threshold: gate.threshold,
        };
        Chart::half(280, |size| charts::tradeoff(&tried, &axes, size))
    };
    let mut charts = Vec::new();
    for gate in &plan.gates {
        charts.push(chart(gate, "nodes lifted", true));
        match plan.cost {
            Cost::Nodes => {}
            Cost::Macs => charts.push(chart(gate, "multiply-accumulates lifted, % of all", false)),
            Cost::Time => charts.push(chart(gate, "time of the nodes lifted, % of all", false)),
        }
    }
    charts.retain(|chart| !chart.wide.is_empty());
    charts
}

fn trials(plan: &PlanFindings) -> Table {
    let mut columns = vec![
        Column::number("Trial", "trial", "In the order they ran"),
        Column::text("Why", "phase"),
        Column::number("Lifted", "lifted", "Nodes in the higher precision"),
    ];
    if plan.cost != Cost::Nodes {
        columns.push(Column::number("Cost", "cost", "Sum over the nodes lifted"));
    }
    columns.extend(plan.gates.iter().map(|g| Column::number(g.metric.name(), g.metric.name(), g.metric.description())));
    columns.push(Column::text("Result", "result"));
    let row = |(i, trial): (usize, &Trial)| {
        let why = match trial.phase {
            Phase::Nothing => "nothing lifted",
            Phase::Everything => "everything lifted",
            Phase::Prefix => "the worst of the ranking",
            Phase::Shrink => "some put back",
            Phase::Verify => "one put back",
            Phase::Curve => "for the curve",
        };
        let lifted = trial.lifted.len();
        let mut row = vec![Cell::number(i as f64 + 1.0, (i + 1).to_string()), Cell::text(why)];
        row.push(Cell::number(lifted as f64, lifted.to_string()));
        if plan.cost != Cost::Nodes {
            row.push(Cell::number(trial.cost, format::significant(trial.cost, 3)));
        }
        let metric = |gate: &Gate| {
            let interval = trial.verdict.intervals.get(&gate.subject());
            let interval = interval.map_or_else(String::new, |&interval| figures(gate.metric, interval));
            let cell = |value| Cell::number(value, beside(gate, value)).note(interval);
            value(&trial.verdict, gate).map_or_else(Cell::missing, cell)
        };
        row.extend(plan.gates.iter().map(metric));
        let (word, tone) = if trial.verdict.passed { ("passed", Tone::Good) } else { ("failed", Tone::Bad) };
        row.push(Cell::text(word).tone(tone));
        row
    };
    Table { columns, rows: plan.search.trials.iter().enumerate().map(row).collect() }
}

/// SQNR of every layer or tensor, in the order of execution, and the lowest of them.
fn profile(findings: &Findings) -> (Chart, Vec<(&str, String)>) {
    let (title, all): (_, Vec<(&str, Option<f64>)>) = if let Some(graphwise) = &findings.tensors {
        let tensors = graphwise.tensors.iter();
        ("graphwise SQNR (dB) of each tensor", tensors.map(|t| (&*t.site.tensor, t.difference.sqnr_db)).collect())
    } else {
        let layers = findings.layers.iter();
        ("layerwise SQNR (dB): each operator alone", layers.map(|l| (&*l.node, l.layerwise_sqnr_db)).collect())
    };
    let panels = [charts::Panel { title, sqnr_db: all.iter().map(|(_, db)| *db).collect() }];
    let numbered = charts::lowest(&panels[0].sqnr_db);
    let lowest = numbered.iter().filter_map(|&i| Some((all[i].0, format::decibels(all[i].1?)))).collect();
    (Chart::new(240, |size| charts::profile(&panels, &numbered, size)), lowest)
}

/// SQNR as a cell with its tone.
fn sqnr(db: Option<f64>) -> Cell {
    db.map_or_else(Cell::missing, |db| decibels(db).tone(if db < 10.0 { Tone::Bad } else { Tone::Plain }))
}

/// Operators, those first that hurt the outputs most.
fn layers(findings: &Findings) -> Table {
    let columns = vec![
        Column::number("#", "index", "Place in the order of execution"),
        Column::text("Node", "node"),
        Column::text("Operator", "op_type"),
        Column::number("Outputs", "outputs_sqnr_db", "SQNR of the model's outputs with only this operator quantized"),
        Column::number("Result", "layerwise_sqnr_db", "SQNR of the operator's own result from float inputs"),
        Column::number("Added up", "accumulated_sqnr_db", "SQNR of the operator's result with all of them quantized"),
        Column::number(
            "Float ms",
            "float_ms",
            "Median time of the operator in float, alone on this machine's processor",
        ),
        Column::number(
            "Weights",
            "weight_sqnr_db",
            "SQNR of the operator's own result with only the weights quantized",
        ),
        Column::number("Activations", "activation_sqnr_db", "The same with only its activations quantized"),
        Column::number("Saturated", "saturated", "Largest share of an input's values beyond its range"),
        Column::number(
            "… of its noise",
            "saturation_noise",
            "Share of that input's noise that saturation makes; rounding makes the rest",
        ),
        Column::number(
            "Worst channel",
            "worst_channel_share",
            "Share of the noise that the worst output channel carries",
        ),
    ];
    let outputs: BTreeMap<&str, &OutputNoise> = findings.outputs.iter().map(|o| (o.node.as_str(), o)).collect();
    let row = |(i, layer): (usize, &LayerError)| {
        let share = |value: f64| Cell::number(value, format::small_share(value));
        let saturated = layer.activations.iter().max_by(|a, b| a.saturated.total_cmp(&b.saturated));
        let of = |figure: fn(&ActivationError) -> f64| saturated.map_or_else(Cell::missing, |a| share(figure(a)));
        vec![
            Cell::number(i as f64 + 1.0, (i + 1).to_string()),
            Cell::text(&layer.node),
            Cell::text(&layer.op_type),
            sqnr(outputs.get(layer.node.as_str()).and_then(|output| output.sqnr_db)),
            sqnr(layer.layerwise_sqnr_db),
            sqnr(findings.accumulated_sqnr_db.get(&layer.node).copied()),
            findings
                .float_ms
                .get(&layer.node)
                .map_or_else(Cell::missing, |&ms| Cell::number(ms, format::significant(ms, 3))),
            sqnr(layer.weight_sqnr_db),
            sqnr(layer.activation_sqnr_db),
            of(|a| a.saturated),
            of(|a| a.saturation_noise),
            layer.worst_channel.map_or_else(Cell::missing, |worst| {
                share(worst.noise_share).note(format!("{} of {}", worst.channel, worst.of))
            }),
        ]
    };
    let mut rows: Vec<_> = findings.layers.iter().enumerate().map(row).collect();
    // Where the effect on the outputs was not measured, it is less than of those where it was.
    let key = |row: &[Cell]| (row[3].value.unwrap_or(f64::INFINITY), row[4].value.unwrap_or(f64::INFINITY));
    rows.sort_by(|a, b| key(a).0.total_cmp(&key(b).0).then(key(a).1.total_cmp(&key(b).1)));
    let mut table = Table { columns, rows };
    table.drop_empty_columns();
    table
}

/// Tensors in the order of execution.
fn tensors(findings: &Findings) -> Table {
    let columns = vec![
        Column::number("#", "index", "Place in the order of execution"),
        Column::text("Tensor", "tensor"),
        Column::text("Made by", "node"),
        Column::text("Operator", "op_type"),
        Column::number("SQNR", "sqnr_db", "Of the target's tensor against the reference's"),
        Column::number("Cosine", "cosine", "Of the angle between both"),
        Column::number("Max |Δ|", "max_abs", "Largest absolute difference"),
        Column::number("Saturated", "saturated", "Share of the values beyond the quantizer's range"),
        Column::number("Not finite", "non_finite", "Values that are NaN or infinite in the target only"),
        Column::number("Not equal", "unequal", "Values of a tensor of integers that are not equal"),
    ];
    let row = |(i, tensor): (usize, &TensorDivergence)| {
        let TensorDivergence { site, difference } = tensor;
        let non_finite = difference.non_finite.differing as f64;
        let compared = |cell: Cell| if difference.count > 0 { cell } else { Cell::missing() };
        vec![
            Cell::number(i as f64 + 1.0, (i + 1).to_string()),
            Cell::text(&site.tensor),
            Cell::text(&site.node),
            Cell::text(&site.op_type),
            sqnr(difference.sqnr_db),
            compared(Cell::number(difference.cosine, format!("{:.5}", difference.cosine))),
            compared(Cell::number(difference.max_abs, format::significant(difference.max_abs, 3))),
            difference.saturated.map_or_else(Cell::missing, |share| Cell::number(share, format::small_share(share))),
            Cell::number(non_finite, format!("{non_finite:.0}")).tone(if non_finite > 0.0 {
                Tone::Bad
            } else {
                Tone::Dim
            }),
            difference.unequal.map_or_else(Cell::missing, |unequal| Cell::number(unequal as f64, unequal.to_string())),
        ]
    };
    let all = findings.tensors.as_ref().map_or(&[][..], |graphwise| &graphwise.tensors);
    let mut table = Table { columns, rows: all.iter().enumerate().map(row).collect() };
    table.drop_empty_columns();
    table
}

/// What one should know of how tensors were looked at.
fn looked(findings: &Findings) -> Vec<String> {
    let instead = findings.first.iter().filter_map(|first| first.culprit.as_ref()?.instead());
    let probes = findings.probes.iter().flat_map(ProbeReport::sentences);
    instead.chain(probes).chain(findings.tensors.iter().flat_map(Graphwise::notes)).collect()
}

fn first(findings: &Findings) -> Option<String> {
    let first = findings.first.as_ref()?;
    let probes = format!("{} probes of {} tensors", first.probes, first.compared());
    Some(match &first.culprit {
        None => format!("Nothing probed is beyond the threshold ({probes})."),
        Some(culprit) => {
            let difference = &culprit.divergence.difference;
            let found = match &difference.shape_mismatch {
                Some(mismatch) => mismatch.to_string(),
                None => format!(
                    "{} and {} values that are not finite",
                    difference.figure(),
                    difference.non_finite.differing
                ),
            };
            format!(
                "The first divergence is at `{}` ({}): its tensor `{}` has {found}, while its inputs agree ({probes}).",
                culprit.node, culprit.divergence.site.op_type, culprit.tensor
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn trial(phase: &str, lifted: &[&str], sqnr_db: f64) -> Value {
        let passed = sqnr_db >= 24.0;
        let verdict = json!({ "passed": passed, "score": sqnr_db, "metrics": { "sqnr_db": sqnr_db } });
        let plan = "0".repeat(63) + &lifted.len().to_string();
        json!({ "plan": plan, "phase": phase, "lifted": lifted, "cost": lifted.len(), "verdict": verdict })
    }

    /// A search that lifted `<b>a`, one of two operators; its check on other samples gives `check_db`.
    fn findings(check_db: f64) -> Findings {
        let layer = |node: &str, db: f64| {
            json!({ "node": node, "op_type": "Conv", "tensor": "t", "layerwise_sqnr_db": db, "dead_channels": [],
                "worst_channel": { "channel": 7, "of": 32, "noise_share": 0.5 },
                "activations": [{ "tensor": "x", "saturated": 0.001, "saturation_noise": 0.75, "dead_channels": [] }] })
        };
        let trials =
            [trial("nothing", &[], 12.0), trial("everything", &["<b>a", "c"], 40.0), trial("prefix", &["<b>a"], 30.0)];
        let check = &trial("verify", &[], check_db)["verdict"];
        let value = json!({
            "format_version": 1, "tool": { "name": "calib", "version": "0" }, "model": "nets/m.onnx",
            "model_hash": "0".repeat(64), "target": "int8", "seconds": 3.0,
            "layers": [layer("c", 30.0), layer("<b>a", 5.0)],
            "outputs": [{ "node": "<b>a", "relative_noise": 0.1, "sqnr_db": 10.0 }],
            "plan": { "gates": [{ "metric": "sqnr_db", "threshold": 24.0 }], "lift": "fp16", "cost": "macs", "samples": 50,
                "curve": [], "check": check, "check_samples": 100,
                "search": { "outcome": "found", "trial": &trials[2], "minimal": true, "ranking": ["<b>a", "c"], "trials": trials } },
            "probes": { "builds": 3, "disturbances": [
                { "marked": ["<b>t"], "output": "y", "sqnr_db": 3.0, "marked_sqnr_db": null }] },
            "advice": [{ "level": "warning", "text": "lift `<b>a`", "nodes": ["<b>a", "c"], "command": "calib quantize" }],
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_verdict_says_what_passes_and_on_which_samples() {
        let of = |check_db| verdict(findings(check_db).plan.as_ref().unwrap());
        let (passed, _, text) = of(26.0);
        assert_eq!(
            (passed, text.as_str()),
            (
                true,
                "Lifting 1 node to fp16 passes where it was searched: sqnr_db 30.0\u{a0}dB (at least 24.0\u{a0}dB) on 50 \
                 samples. None of them can be put back. On 100 other samples it passes: sqnr_db 26.0\u{a0}dB (at least \
                 24.0\u{a0}dB)."
            )
        );
        let (passed, stamp, text) = of(23.996);
        assert_eq!((passed, stamp), (false, "Not confirmed"));
        assert!(text.contains("it does not pass: sqnr_db 23.996\u{a0}dB (at"), "{text}");
        let mut none = findings(0.0).plan.unwrap();
        none.check = None;
        none.search.outcome = Outcome::GateAtFault { trial: none.search.trials[1].clone() };
        let (passed, stamp, text) = verdict(&none);
        assert!(
            (passed, stamp) == (false, "No plan") && text.contains("with 2 nodes in fp16 the gate fails"),
            "{text}"
        );
    }

    #[test]
    fn the_page_has_the_curve_the_trials_and_the_layers_that_hurt_first() {
        let findings = findings(26.0);
        let plan = findings.plan.as_ref().unwrap();
        let charts = tradeoffs(plan);
        assert_eq!(charts.len(), 2, "over nodes, and over multiply-accumulates");
        // Three plans, a ring around the chosen one.
        assert!(charts.iter().all(|chart| chart.wide.matches("<circle").count() == 4));
        assert_eq!(
            trials(plan).csv().unwrap(),
            "trial,phase,lifted,cost,sqnr_db,result\n1,nothing lifted,0,0,12,failed\n2,everything lifted,2,2,40,passed\n\
             3,the worst of the ranking,1,1,30,passed\n"
        );
        let csv = layers(&findings).csv().unwrap();
        assert!(csv.lines().nth(1).unwrap().starts_with("2,<b>a,Conv,10,5,"), "{csv}");
        let page = bisection_html(&findings, None).unwrap();
        assert!(page.contains("3 engines were built") && page.contains("<code>&#60;b&#62;t</code> changes the engine"));
        assert!(!page.contains("<b>a") && !page.contains("<b>t") && page.matches("<script").count() == 1);
        // What the advice's text names already is not listed below it again.
        let advice = page.split("class=\"advice\"").nth(1).unwrap();
        assert_eq!(
            (advice.matches("&#60;b&#62;a").count(), advice.matches("<code>c</code>").count()),
            (1, 1),
            "{advice}"
        );
    }
}
