//! The result of a search for a plan, in a sentence.

use super::search::{Outcome, SearchResult};
use crate::analyse::advice::{Advice, Commands, Importance};

/// A sentence about the result of a search; `lift` is the higher precision's name, `metric` the gate's.
pub fn about_search(result: &SearchResult, candidates: usize, metric: &str, lift: &str, commands: &Commands) -> Advice {
    let trials = result.trials.len();
    let start = result.trials.first().and_then(|trial| trial.verdict.score);
    let scored = |score: Option<f64>| score.map_or_else(|| "equal to the reference".to_owned(), |s| format!("{s:.4}"));
    let advice = |importance, text, nodes: Vec<String>, command: Option<&str>| Advice {
        importance,
        text,
        nodes,
        command: command.map(str::to_owned),
    };
    match &result.outcome {
        Outcome::AlreadyPasses { trial } => advice(
            Importance::Info,
            format!("the gate passes with nothing lifted ({metric} {})", scored(trial.verdict.score)),
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
                scored(start),
                scored(trial.verdict.score)
            );
            advice(Importance::Warning, text, nodes, Some(&commands.quantize))
        }
        Outcome::BudgetExhausted { best } => {
            let found = best.as_ref().map_or_else(
                || "no passing plan was found".to_owned(),
                |trial| format!("the best plan so far lifts {} nodes", trial.lifted.len()),
            );
            let nodes = best.iter().flat_map(|trial| trial.lifted.iter().cloned()).collect();
            advice(
                Importance::Warning,
                format!("the budget of {trials} trials ended: {found}; raise --max-trials to go on from here"),
                nodes,
                Some(&commands.bisect),
            )
        }
        Outcome::GateAtFault { trial } => advice(
            Importance::Problem,
            format!(
                "even with all {candidates} nodes in {lift} {metric} is {}: the gate is at fault, not the quantization; \
                 lower it, or lift to fp32",
                scored(trial.verdict.score)
            ),
            Vec::new(),
            Some(&commands.bisect),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
            let verdict = Verdict { passed: true, score, metrics: BTreeMap::new(), intervals: BTreeMap::new() };
            Trial { plan: plan_hash(&lifted), phase: Phase::Prefix, lifted, cost: 1.0, verdict }
        };
        let about = |outcome| {
            let result = SearchResult {
                outcome,
                ranking: Vec::new(),
                trials: vec![trial(&[], Some(0.9)), trial(&["a"], Some(0.99))],
            };
            about_search(&result, 50, "top1", "fp16", &commands())
        };
        let found = about(Outcome::Found { trial: trial(&["a"], Some(0.99)), minimal: true });
        assert_eq!(
            found.text,
            "lifting 1 of 50 nodes to fp16 brings top1 from 0.9000 to 0.9900 (2 trials); none of them can be put back"
        );
        assert_eq!((found.nodes, found.command.as_deref()), (vec!["a".to_owned()], Some("calib quantize")));
        let fault = about(Outcome::GateAtFault { trial: trial(&["a"], Some(0.95)) });
        assert!(fault.text.contains("the gate is at fault") && fault.importance == Importance::Problem);
        let exhausted = about(Outcome::BudgetExhausted { best: None });
        assert!(exhausted.text.contains("no passing plan") && exhausted.text.contains("--max-trials"));
        assert!(about(Outcome::AlreadyPasses { trial: trial(&[], None) }).text.contains("equal to the reference"));
    }
}
