//! The result of a search for a plan, in a sentence.

use super::{
    findings::PlanFindings,
    search::{Outcome, SearchResult},
    trials::Verdict,
};
use crate::{
    analyse::advice::{Advice, AdviceLevel, Commands},
    compare::Gate,
    words::counted,
};

/// A sentence about the result of a search; `lift` is the higher precision's name, `gate` the first that had to pass, `undecided`
/// why no plan passes on so few samples.
pub fn about_search(
    result: &SearchResult,
    candidates: usize,
    gate: &Gate,
    lift: &str,
    undecided: Option<&str>,
    commands: &Commands,
) -> Advice {
    let trials = result.trials.len();
    let metric = gate.subject();
    let scored = |verdict: &Verdict| match verdict.score {
        Some(score) => format!("{:.4}", gate.value_of(score)),
        None if verdict.passed => "equal to the reference".to_owned(),
        None => "no figure at all".to_owned(),
    };
    let start = result.trials.first().map_or_else(String::new, |trial| scored(&trial.verdict));
    let advice = |level, text, nodes: Vec<String>, command: Option<&str>| Advice {
        level,
        text,
        nodes,
        command: command.map(str::to_owned),
    };
    let fails = matches!(result.outcome, Outcome::BudgetExhausted { .. } | Outcome::GateAtFault { .. });
    if let Some(why) = undecided.filter(|_| fails) {
        return advice(AdviceLevel::Problem, format!("{why}; give more data"), Vec::new(), None);
    }
    match &result.outcome {
        Outcome::AlreadyPasses { trial } => advice(
            AdviceLevel::Info,
            format!("the gate passes with nothing lifted ({metric} {})", scored(&trial.verdict)),
            Vec::new(),
            None,
        ),
        Outcome::Found { trial, minimal } => {
            let nodes: Vec<String> = trial.lifted.iter().cloned().collect();
            let minimal =
                if *minimal { "; none of them can be put back" } else { "; the budget ended before all were put back" };
            let text = format!(
                "lifting {} of {candidates} nodes to {lift} brings {metric} from {} to {} ({trials} trials){minimal}",
                nodes.len(),
                start,
                scored(&trial.verdict)
            );
            advice(AdviceLevel::Warning, text, nodes, Some(&commands.quantize))
        }
        Outcome::BudgetExhausted { best } => {
            let found = best.as_ref().map_or_else(
                || "no passing plan was found".to_owned(),
                |trial| format!("the best plan so far lifts {}", counted(trial.lifted.len(), "node")),
            );
            let nodes = best.iter().flat_map(|trial| trial.lifted.iter().cloned()).collect();
            advice(
                AdviceLevel::Warning,
                format!("the budget of {trials} trials ended: {found}; raise --max-trials to go on from here"),
                nodes,
                Some(&commands.bisect),
            )
        }
        Outcome::GateAtFault { trial } => advice(
            AdviceLevel::Problem,
            format!(
                "even with all {candidates} nodes in {lift} {metric} is {}: the gate is at fault, not the quantization; \
                 lower it, or lift to fp32",
                scored(&trial.verdict)
            ),
            Vec::new(),
            Some(&commands.bisect),
        ),
    }
}

/// A sentence about a plan that does not pass on the samples that it was not searched on; `None` for one that does.
pub fn about_check(plan: &PlanFindings) -> Option<Advice> {
    let check = plan.check.as_ref().filter(|check| !check.passed)?;
    let measured: Vec<String> = plan.gates.iter().map(|gate| check.measured(gate)).collect();
    let text = format!(
        "on {} samples that were not used to find it, the plan does not pass: {}; search on more with --samples, or with a \
         stricter gate",
        plan.check_samples,
        measured.join(", ")
    );
    Some(Advice { level: AdviceLevel::Problem, text, nodes: Vec::new(), command: None })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::bisect::trials::{NodeSet, Phase, Trial, Verdict, plan_hash};

    fn commands() -> Commands {
        Commands {
            run: "calib run".to_owned(),
            bisect: "calib bisect".to_owned(),
            quantize: "calib quantize".to_owned(),
        }
    }

    #[test]
    fn every_outcome_of_a_search_has_its_sentence() {
        let trial = |nodes: &[&str], score| {
            let lifted: NodeSet = nodes.iter().map(|&node| node.to_owned()).collect();
            let verdict = Verdict {
                passed: true,
                score,
                metrics: BTreeMap::new(),
                intervals: BTreeMap::new(),
                notes: Vec::new(),
            };
            Trial { plan: plan_hash(&lifted), phase: Phase::Prefix, lifted, cost: 1.0, verdict }
        };
        let about_gate = |outcome, gate: &str, scores: [Option<f64>; 2]| {
            let mut trials = vec![trial(&[], scores[0]), trial(&["a"], scores[1])];
            trials[0].verdict.passed = false;
            let result = SearchResult { outcome, ranking: Vec::new(), trials };
            about_search(&result, 50, &gate.parse().unwrap(), "fp16", None, &commands())
        };
        let about = |outcome| about_gate(outcome, "top1=0.98", [Some(0.9), Some(0.99)]);
        let drop = Outcome::Found { trial: trial(&["a"], Some(-0.0)), minimal: true };
        let drop = about_gate(drop, "map50_95_drop=0.1", [Some(-0.5), Some(-0.0)]).text;
        assert!(drop.contains("brings map50_95_drop from 0.5000 to 0.0000"), "{drop}");
        let iou = Outcome::Found { trial: trial(&["a"], None), minimal: true };
        let iou = about_gate(iou, "sqnr_db[scores]=5", [None, None]).text;
        assert!(iou.contains("brings sqnr_db[scores] from no figure at all to equal to the reference"), "{iou}");
        let found = about(Outcome::Found { trial: trial(&["a"], Some(0.99)), minimal: true });
        assert_eq!(
            found.text,
            "lifting 1 of 50 nodes to fp16 brings top1 from 0.9000 to 0.9900 (2 trials); none of them can be put back"
        );
        assert_eq!((found.nodes, found.command.as_deref()), (vec!["a".to_owned()], Some("calib quantize")));
        let fault = about(Outcome::GateAtFault { trial: trial(&["a"], Some(0.95)) });
        assert!(fault.text.contains("the gate is at fault") && fault.level == AdviceLevel::Problem);
        let exhausted = about(Outcome::BudgetExhausted { best: None });
        assert!(exhausted.text.contains("no passing plan") && exhausted.text.contains("--max-trials"));
        assert!(about(Outcome::AlreadyPasses { trial: trial(&[], None) }).text.contains("equal to the reference"));
    }

    #[test]
    fn a_plan_that_passes_only_where_it_was_searched_is_a_problem() {
        let of = |passed| {
            let verdict = json!({ "passed": passed, "score": 0.5, "metrics": { "top1": 0.5 } });
            let trial =
                json!({ "plan": "0".repeat(64), "phase": "nothing", "lifted": [], "cost": 0, "verdict": verdict });
            let search = json!({ "outcome": "already_passes", "trial": trial, "ranking": [], "trials": [trial] });
            let plan = json!({ "gates": [{ "metric": "top1", "threshold": 0.9 }], "lift": "fp32", "cost": "nodes",
                "search": search, "curve": [], "samples": 20, "check": verdict, "check_samples": 30 });
            about_check(&serde_json::from_value(plan).unwrap())
        };
        assert_eq!(of(true), None);
        let failed = of(false).unwrap();
        let text = "on 30 samples that were not used to find it, the plan does not pass: top1 0.5000; search on more";
        assert!(failed.text.starts_with(text) && failed.level == AdviceLevel::Problem, "{}", failed.text);
    }
}
