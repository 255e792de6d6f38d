//! The smallest precision plan that passes the gates, from a closure that judges a plan.
//!
//! 1. Nothing lifted passes: there is nothing to do. Everything lifted fails: the gate is at fault.
//! 2. Candidates are ranked by sensitivity for their cost; the number of them to lift is doubled until a plan passes,
//!    then the gap is halved (or every number is tried in turn: [`Strategy::Linear`]).
//! 3. Members are put back, the expensive ones first, in runs whose length doubles on success and halves on failure.
//! 4. Each remaining member is put back alone; when none can be, the plan is 1-minimal.
//! 5. Where asked for, what remains of the budget goes to the trade-off curve: 1, 2, 4, ... of the ranking.
//!
//! Only plans that were seen to pass are ever taken, so the result passes whatever the oracle is like: with noise,
//! with pairs that only help together, or where lifting more makes things worse.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::trials::{Ledger, NodeSet, Phase, Progress, Stop, Trial, Verdict};

/// Nodes that are lifted together, or a single one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Candidate {
    /// The node's name, or the group's.
    pub name: String,
    /// The nodes.
    pub nodes: NodeSet,
    /// How much they hurt: their share of the output's noise power, or any figure at least 0 that grows with it.
    pub sensitivity: f64,
    /// What lifting them costs, above 0: time, multiply-accumulates, or 1 where only the number counts.
    pub cost: f64,
}

/// How the number of candidates to lift is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Doubling, then halving the gap: at most 2·log₂(n) trials.
    #[default]
    Binary,
    /// One more at a time: at most n trials, and the whole trade-off curve on the way.
    Linear,
}

/// Options of [`search`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SearchOptions {
    /// How the number to lift is found.
    pub strategy: Strategy,
    /// Plans that may be tried, replayed ones included.
    pub max_trials: usize,
    /// Also try 1, 2, 4, ... candidates once a plan is found, to know the whole trade-off.
    pub curve: bool,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self { strategy: Strategy::Binary, max_trials: 64, curve: false }
    }
}

/// How a search ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The gates pass with nothing lifted.
    AlreadyPasses {
        /// The empty plan.
        trial: Trial,
    },
    /// A plan passes.
    Found {
        /// The plan.
        trial: Trial,
        /// It was shown that no single candidate can be put back; false when the budget ended first.
        minimal: bool,
    },
    /// The budget ended before the number to lift was known.
    BudgetExhausted {
        /// The cheapest plan that passed.
        best: Option<Trial>,
    },
    /// Even everything lifted fails: the gate asks for more than the higher precision gives.
    GateAtFault {
        /// The plan that lifts everything.
        trial: Trial,
    },
}

/// One point of the trade-off between what is lifted and what it gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CurvePoint {
    /// Nodes lifted.
    pub lifted: usize,
    /// What they cost.
    pub cost: f64,
    /// The gate's metric.
    pub score: f64,
    /// Every gate was passed.
    pub passed: bool,
}

/// Result of [`search`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SearchResult {
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Candidates, the first to lift first.
    pub ranking: Vec<String>,
    /// Every plan tried, in order.
    pub trials: Vec<Trial>,
}

impl SearchResult {
    /// The passing plan, where there is one.
    pub fn plan(&self) -> Option<&Trial> {
        match &self.outcome {
            Outcome::AlreadyPasses { trial } | Outcome::Found { trial, .. } => Some(trial),
            Outcome::BudgetExhausted { best } => best.as_ref(),
            Outcome::GateAtFault { .. } => None,
        }
    }

    /// The trials that no other beats in both cost and score, by rising cost.
    pub fn curve(&self) -> Vec<CurvePoint> {
        let mut points: Vec<CurvePoint> = self
            .trials
            .iter()
            .filter_map(|trial| {
                let Verdict { passed, score, .. } = trial.verdict;
                Some(CurvePoint { lifted: trial.lifted.len(), cost: trial.cost, score: score?, passed })
            })
            .collect();
        points.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(b.score.total_cmp(&a.score)));
        let mut best = f64::NEG_INFINITY;
        points.retain(|point| {
            let better = point.score > best;
            best = best.max(point.score);
            better
        });
        points
    }
}

/// Finds a small set of candidates whose lifting passes, judged by `run`; `log` holds trials of an earlier search
/// over the same candidates that need not run again. `progress` sees every trial as it ends.
///
/// # Errors
/// Whatever `run` returns; trials that `progress` saw by then make the log to resume from.
pub fn search<E>(
    candidates: &[Candidate],
    options: SearchOptions,
    log: &[Trial],
    run: &mut dyn FnMut(&NodeSet) -> Result<Verdict, E>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SearchResult, E> {
    let mut ranked: Vec<&Candidate> = candidates.iter().collect();
    ranked.sort_by(|a, b| {
        // What could not be measured is suspected first.
        let gain = |c: &Candidate| {
            if c.sensitivity.is_nan() { f64::INFINITY } else { c.sensitivity / c.cost.max(f64::MIN_POSITIVE) }
        };
        gain(b).total_cmp(&gain(a)).then_with(|| a.name.cmp(&b.name))
    });
    let mut search = Search { ranked: &ranked, ledger: Ledger::new(options.max_trials, log, run, progress) };
    let outcome = match search.outcome(options.strategy) {
        Ok(outcome) => outcome,
        Err(Stop::Budget) => Outcome::BudgetExhausted { best: search.ledger.best().cloned() },
        Err(Stop::Failed(error)) => return Err(error),
    };
    if options.curve && matches!(outcome, Outcome::Found { .. }) {
        match search.curve() {
            Ok(()) | Err(Stop::Budget) => {}
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    let ranking = ranked.iter().map(|c| c.name.clone()).collect();
    Ok(SearchResult { outcome, ranking, trials: search.ledger.trials })
}

struct Search<'a, 'l, E> {
    ranked: &'a [&'a Candidate],
    ledger: Ledger<'l, E>,
}

impl<E> Search<'_, '_, E> {
    fn outcome(&mut self, strategy: Strategy) -> Result<Outcome, Stop<E>> {
        let all: Vec<usize> = (0..self.ranked.len()).collect();
        if self.passes(Phase::Nothing, &[])? {
            return Ok(Outcome::AlreadyPasses { trial: self.trial(&[]) });
        }
        if !self.passes(Phase::Everything, &all)? {
            return Ok(Outcome::GateAtFault { trial: self.trial(&all) });
        }
        let count = match strategy {
            Strategy::Binary => self.count_by_halving(&all)?,
            Strategy::Linear => self.count_one_by_one(&all)?,
        };
        let mut kept = all[..count].to_vec();
        kept.sort_by(|&a, &b| self.ranked[b].cost.total_cmp(&self.ranked[a].cost).then(b.cmp(&a)));
        let minimal = match self.shrink(&mut kept).and_then(|()| self.verify(&mut kept)) {
            Ok(()) => true,
            Err(Stop::Budget) => false,
            Err(failed) => return Err(failed),
        };
        Ok(Outcome::Found { trial: self.trial(&kept), minimal })
    }

    /// A number of candidates that passes while half the gap below it does not: `failing < passing` throughout.
    fn count_by_halving(&mut self, all: &[usize]) -> Result<usize, Stop<E>> {
        let (mut failing, mut passing) = (0, all.len());
        while 2 * failing + 1 < passing {
            let count = (2 * failing).max(1);
            if self.passes(Phase::Prefix, &all[..count])? {
                passing = count;
                break;
            }
            failing = count;
        }
        while failing + 1 < passing {
            let middle = usize::midpoint(failing, passing);
            if self.passes(Phase::Prefix, &all[..middle])? {
                passing = middle;
            } else {
                failing = middle;
            }
        }
        Ok(passing)
    }

    fn count_one_by_one(&mut self, all: &[usize]) -> Result<usize, Stop<E>> {
        for count in 1..all.len() {
            if self.passes(Phase::Prefix, &all[..count])? {
                return Ok(count);
            }
        }
        Ok(all.len())
    }

    /// Puts runs of members back while the plan passes; `kept` always is a plan that passed.
    fn shrink(&mut self, kept: &mut Vec<usize>) -> Result<(), Stop<E>> {
        let mut start = 0;
        let mut length = kept.len().div_ceil(2);
        while start < kept.len() {
            let end = (start + length).min(kept.len());
            let rest = without(kept, start..end);
            if self.passes(Phase::Shrink, &rest)? {
                *kept = rest;
                length *= 2;
            } else if end - start == 1 {
                start = end;
                length = 1;
            } else {
                length = (end - start) / 2;
            }
        }
        Ok(())
    }

    /// Puts single members back until none can be: what failed in a larger set may pass in a smaller one.
    fn verify(&mut self, kept: &mut Vec<usize>) -> Result<(), Stop<E>> {
        let mut index = 0;
        while index < kept.len() {
            let rest = without(kept, index..index + 1);
            if self.passes(Phase::Verify, &rest)? {
                *kept = rest;
                index = 0;
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// The first 1, 2, 4, ... of the ranking, for the trade-off.
    fn curve(&mut self) -> Result<(), Stop<E>> {
        let all: Vec<usize> = (0..self.ranked.len()).collect();
        let counts = std::iter::successors(Some(1), |count| Some(2 * count));
        for count in counts.take_while(|&count| count < all.len()) {
            self.passes(Phase::Curve, &all[..count])?;
        }
        Ok(())
    }

    fn passes(&mut self, phase: Phase, members: &[usize]) -> Result<bool, Stop<E>> {
        // Not `sum`, whose empty sum is -0.
        let cost = members.iter().fold(0.0, |cost, &m| cost + self.ranked[m].cost);
        self.ledger.passes(phase, self.nodes(members), cost)
    }

    fn nodes(&self, members: &[usize]) -> NodeSet {
        members.iter().flat_map(|&m| self.ranked[m].nodes.iter().cloned()).collect()
    }

    fn trial(&self, members: &[usize]) -> Trial {
        self.ledger.trial(&self.nodes(members)).expect("the plan was tried").clone()
    }
}

fn without(members: &[usize], range: Range<usize>) -> Vec<usize> {
    [&members[..range.start], &members[range.end..]].concat()
}

#[cfg(test)]
mod tests;
