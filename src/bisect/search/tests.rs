//! The search on synthetic oracles.

use std::{collections::BTreeMap, convert::Infallible};

use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::bisect::trials::TrialLog;

fn candidates(sensitivities: &[f64]) -> Vec<Candidate> {
    sensitivities
        .iter()
        .enumerate()
        .map(|(i, &sensitivity)| Candidate {
            name: format!("n{i:02}"),
            nodes: NodeSet::from([format!("n{i:02}")]),
            sensitivity,
            cost: 1.0,
        })
        .collect()
}

fn names(members: &[usize]) -> NodeSet {
    members.iter().map(|i| format!("n{i:02}")).collect()
}

fn verdict(passed: bool, score: f64) -> Verdict {
    Verdict { passed, score: Some(score), metrics: BTreeMap::new(), intervals: BTreeMap::new(), notes: Vec::new() }
}

/// Searches with an oracle that says whether a set passes; returns the result and how often the oracle was asked.
fn run(
    candidates: &[Candidate],
    options: SearchOptions,
    log: &[Trial],
    passes: &mut dyn FnMut(&NodeSet) -> bool,
) -> (SearchResult, usize) {
    let mut asked = 0;
    let mut oracle = |set: &NodeSet| {
        asked += 1;
        Ok::<_, Infallible>(verdict(passes(set), set.len() as f64))
    };
    let result = search(candidates, options, log, &mut oracle, &mut |_| {}).unwrap();
    (result, asked)
}

fn options(strategy: Strategy, max_trials: usize) -> SearchOptions {
    SearchOptions { strategy, max_trials, curve: false }
}

#[test]
fn a_planted_pair_is_found_exactly_wherever_it_is_ranked() {
    for strategy in [Strategy::Binary, Strategy::Linear] {
        for (a, b) in [(0, 1), (0, 59), (17, 31), (58, 59)] {
            let ranked: Vec<f64> = (0..60).map(|i| f64::from(60 - i)).collect();
            let pair = names(&[a, b]);
            let (result, asked) =
                run(&candidates(&ranked), options(strategy, 200), &[], &mut |set| set.is_superset(&pair));
            let Outcome::Found { trial, minimal: true } = &result.outcome else { panic!("{:?}", result.outcome) };
            assert_eq!(trial.lifted, pair);
            assert_eq!(asked, result.trials.len());
            if strategy == Strategy::Binary {
                assert!(asked <= 40, "{asked} trials for the pair {a}, {b}");
            }
        }
    }
}

#[test]
fn a_pair_ranked_first_takes_a_handful_of_trials() {
    let ranked: Vec<f64> = (0..500).map(|i| f64::from(500 - i)).collect();
    let pair = names(&[0, 1]);
    // Nothing, everything, one, two, the second alone; the first alone is already known.
    let (_, asked) = run(&candidates(&ranked), SearchOptions::default(), &[], &mut |set| set.is_superset(&pair));
    assert_eq!(asked, 5);
}

#[test]
fn nothing_to_do_and_nothing_to_be_done_are_told_apart() {
    let three = candidates(&[3.0, 2.0, 1.0]);
    let (result, asked) = run(&three, SearchOptions::default(), &[], &mut |_| true);
    assert!(matches!(&result.outcome, Outcome::AlreadyPasses { trial } if trial.lifted.is_empty()));
    assert_eq!(asked, 1);
    let (result, asked) = run(&three, SearchOptions::default(), &[], &mut |_| false);
    assert!(matches!(&result.outcome, Outcome::GateAtFault { trial } if trial.lifted.len() == 3));
    assert_eq!(asked, 2);
    let (result, _) = run(&[], SearchOptions::default(), &[], &mut |_| false);
    assert!(matches!(result.outcome, Outcome::GateAtFault { .. }));
}

#[test]
fn of_interchangeable_members_the_expensive_one_is_put_back() {
    let mut five = candidates(&[5.0, 4.0, 3.0, 2.0, 1.0]);
    for (candidate, cost) in five.iter_mut().zip([1.0, 9.0, 2.0, 1.0, 1.0]) {
        candidate.cost = cost;
        candidate.sensitivity *= cost; // the ranking stays
    }
    // The first, and one of the second and the third.
    let mut passes = |set: &NodeSet| set.contains("n00") && (set.contains("n01") || set.contains("n02"));
    // One by one from the top stops at the expensive one, which alone will do ...
    let (result, _) = run(&five, options(Strategy::Linear, 50), &[], &mut passes);
    assert_eq!(result.plan().unwrap().lifted, names(&[0, 1]));
    // ... and with its price in the ranking it is not even tried.
    five[1].sensitivity = 4.0;
    let (result, _) = run(&five, options(Strategy::Linear, 50), &[], &mut passes);
    assert_eq!(result.plan().unwrap().lifted, names(&[0, 2]));
    assert_eq!(result.plan().unwrap().cost, 3.0);
    // Where four are reached together, those that are not needed leave by their price.
    five[1].sensitivity = 36.0;
    let mut fourth_and_one = |set: &NodeSet| set.contains("n03") && set.len() >= 2;
    let (result, _) = run(&five, SearchOptions::default(), &[], &mut fourth_and_one);
    assert_eq!(result.plan().unwrap().lifted, names(&[0, 3]));
}

#[test]
fn members_of_a_group_are_lifted_and_put_back_together() {
    let mut groups = candidates(&[1.0, 2.0]);
    groups[0].nodes = ["a", "b"].map(String::from).into();
    groups[1].nodes = ["c", "d"].map(String::from).into();
    let (result, _) = run(&groups, SearchOptions::default(), &[], &mut |set| set.contains("b"));
    assert_eq!(result.plan().unwrap().lifted, groups[0].nodes);
    assert_eq!(result.ranking, ["n01", "n00"]);
}

#[test]
fn an_interrupted_search_resumes_without_running_a_trial_twice() {
    let ten = candidates(&[1.0; 10]);
    let needed = names(&[2, 5, 9]);
    let mut passes = |set: &NodeSet| set.is_superset(&needed);
    let (whole, total) = run(&ten, SearchOptions::default(), &[], &mut passes);
    for interrupted_after in 0..total {
        let mut log = TrialLog::new(crate::artifact::ContentHash::of_bytes(b"context"));
        let mut left: usize = interrupted_after;
        let mut oracle = |set: &NodeSet| {
            left = left.checked_sub(1).ok_or("interrupted")?;
            Ok::<_, &str>(verdict(needed.is_subset(set), set.len() as f64))
        };
        let mut record = |p: Progress<'_>| log.trials.push(p.trial.clone());
        let error = search(&ten, SearchOptions::default(), &[], &mut oracle, &mut record);
        assert_eq!(error.unwrap_err(), "interrupted");
        let log: TrialLog = serde_json::from_str(&serde_json::to_string(&log).unwrap()).unwrap();
        let (resumed, asked) = run(&ten, SearchOptions::default(), &log.trials, &mut passes);
        assert_eq!(resumed, whole);
        assert_eq!(asked, total - interrupted_after);
    }
}

#[test]
fn a_log_of_another_context_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trials.json");
    let [a, b] = [b"a", b"b"].map(|bytes| crate::artifact::ContentHash::of_bytes(bytes));
    TrialLog::new(a.clone()).save(&path).unwrap();
    assert_eq!(TrialLog::resume(&path, a.clone()).unwrap(), TrialLog::new(a));
    let error = TrialLog::resume(&path, b).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
}

#[test]
fn the_curve_keeps_what_no_other_trial_beats() {
    let ten = candidates(&[1.0; 10]);
    // The score counts members but a second one spoils it.
    let mut oracle = |set: &NodeSet| {
        let score = set.len() as f64 - if set.contains("n01") { 3.0 } else { 0.0 };
        Ok::<_, Infallible>(verdict(set.len() >= 5, score))
    };
    let result = search(&ten, options(Strategy::Linear, 9), &[], &mut oracle, &mut |_| {}).unwrap();
    let points: Vec<_> = result.curve().iter().map(|p| (p.lifted, p.score, p.passed)).collect();
    // Lifted 2 to 4 score -1 to 1, no more than 1 does; then 5 with and without n01, and everything.
    assert_eq!(points[..2], [(0, 0.0, false), (1, 1.0, false)]);
    assert_eq!(points.last(), Some(&(10, 7.0, true)));
    assert!(points.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1), "{points:?}");
}

#[test]
fn what_could_not_be_measured_is_ranked_first() {
    let (result, _) = run(&candidates(&[1.0, f64::NAN, 2.0]), SearchOptions::default(), &[], &mut |_| true);
    assert_eq!(result.ranking, ["n01", "n02", "n00"]);
}

/// A deterministic coin for a set, so that an oracle can be noisy and yet the same in every run.
fn coin(set: &NodeSet, seed: u64) -> f64 {
    let hash = blake3::keyed_hash(&[seed as u8; 32], format!("{set:?}").as_bytes());
    f64::from(u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]])) / 65535.0
}

proptest! {
    /// Whatever the oracle, if lifting everything passes then so does the result, within the budget; and where the
    /// result is called minimal, no member can be put back.
    #[test]
    fn any_oracle_that_passes_with_everything_lifted_gets_a_passing_plan(
        count in 1_usize..40, seed in any::<u64>(), bias in 0.0..1.0_f64, max_trials in 2_usize..90, linear: bool,
    ) {
        let sensitivities: Vec<f64> = (0..count).map(|i| coin(&names(&[i]), seed)).collect();
        let all = candidates(&sensitivities);
        let mut passes = |set: &NodeSet| {
            set.len() == count || !set.is_empty() && coin(set, seed) < bias * set.len() as f64 / count as f64
        };
        let strategy = if linear { Strategy::Linear } else { Strategy::Binary };
        let (result, asked) = run(&all, options(strategy, max_trials), &[], &mut passes);
        prop_assert!(asked <= max_trials);
        prop_assert_eq!(asked, result.trials.len());
        let plan = result.plan().expect("everything lifted was tried and passed").clone();
        prop_assert!(plan.verdict.passed && passes(&plan.lifted));
        if matches!(result.outcome, Outcome::Found { minimal: true, .. }) {
            for member in &plan.lifted {
                let mut rest = plan.lifted.clone();
                rest.remove(member);
                prop_assert!(!passes(&rest), "{} can be put back", member);
            }
        }
        let (again, _) = run(&all, options(strategy, max_trials), &[], &mut passes);
        prop_assert_eq!(result, again);
    }

    /// On a monotone oracle the needed set is found exactly, and in fewer trials than one a candidate and member.
    #[test]
    fn a_needed_set_is_found_exactly(needed in prop::collection::btree_set(0_usize..60, 1..12), seed in any::<u64>()) {
        let needed = names(&needed.into_iter().collect::<Vec<_>>());
        let sensitivities: Vec<f64> = (0..60).map(|i| coin(&names(&[i]), seed)).collect();
        let (result, asked) = run(&candidates(&sensitivities), options(Strategy::Binary, usize::MAX), &[], &mut |set| {
            set.is_superset(&needed)
        });
        prop_assert_eq!(&result.plan().unwrap().lifted, &needed);
        prop_assert!(asked <= 20 + 10 * needed.len(), "{} trials for {}", asked, needed.len());
    }
}

#[test]
fn the_curve_takes_what_the_budget_leaves_and_changes_no_plan() {
    let ranked: Vec<f64> = (0..60).map(|i| f64::from(60 - i)).collect();
    let pair = names(&[0, 2]);
    let search = |max_trials, curve| {
        let options = SearchOptions { strategy: Strategy::Binary, max_trials, curve };
        run(&candidates(&ranked), options, &[], &mut |set| set.is_superset(&pair))
    };
    let (plain, asked) = search(64, false);
    let (whole, asked_more) = search(64, true);
    assert_eq!(whole.outcome, plain.outcome);
    // 1, 2 and 4 of the ranking were tried on the way; 8, 16 and 32 are new.
    assert_eq!(asked_more, asked + 3);
    let lifted: Vec<usize> = whole.curve().iter().map(|point| point.lifted).collect();
    assert!([0, 1, 2, 4, 8, 16, 32, 60].iter().all(|count| lifted.contains(count)), "{lifted:?}");
    for budget in 1..asked_more {
        let (short, asked) = search(budget, true);
        assert!(asked <= budget && short.trials.len() <= budget);
    }
    let (short, _) = search(asked + 1, true);
    assert_eq!((short.outcome, short.trials.len()), (plain.outcome, asked + 1));
}
