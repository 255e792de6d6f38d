//! What was tried and how it went: the cache, the budget and the resumable log of a search.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::{self, ArtifactError, ContentHash, Tool},
    compare::Gate,
};

/// Names of nodes.
pub type NodeSet = BTreeSet<String>;

/// How a plan did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Verdict {
    /// Every gate was passed.
    pub passed: bool,
    /// The metric of the gate that is hardest to pass, larger is better; absent when it is not finite.
    pub score: Option<f64>,
    /// Every metric measured, by name; only finite ones.
    pub metrics: BTreeMap<String, f64>,
    /// The 95 % intervals of those that have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub intervals: BTreeMap<String, [f64; 2]>,
    /// What has to be known of these figures: values that they leave out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Verdict {
    /// What a plan gives by the metric of a gate. No difference at all has no finite value of some metrics.
    pub fn measured(&self, gate: &Gate) -> String {
        let name = gate.subject();
        match self.metrics.get(&name) {
            Some(value) => format!("{name} {value:.4}"),
            None if self.passed => format!("{name} equal to the reference"),
            None => format!("{name} -"),
        }
    }
}

/// Why a plan was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing lifted: is there anything to do?
    Nothing,
    /// Everything lifted: can the gate be passed at all?
    Everything,
    /// The first so many of the ranking.
    Prefix,
    /// Some put back, to make the set smaller.
    Shrink,
    /// One put back, to show that none can be.
    Verify,
    /// Some of the ranking, to know the trade-off.
    Curve,
}

/// One plan and its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Trial {
    /// [`plan_hash`] of `lifted`.
    pub plan: ContentHash,
    /// Why it was tried.
    pub phase: Phase,
    /// Nodes in the higher precision.
    pub lifted: NodeSet,
    /// Sum of the costs of the candidates lifted.
    pub cost: f64,
    /// How it did.
    pub verdict: Verdict,
}

/// Identity of a plan: BLAKE3 over the names of the lifted nodes in order, each behind its length.
pub fn plan_hash(lifted: &NodeSet) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    for name in lifted {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
    }
    ContentHash::from(hasher)
}

/// Format version of [`TrialLog`].
pub const LOG_FORMAT_VERSION: u32 = 1;

/// The trials of a search on disk; a later search over the same context replays them instead of running them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TrialLog {
    /// [`LOG_FORMAT_VERSION`].
    pub format_version: u32,
    /// What wrote the log.
    pub tool: Tool,
    /// Hash over everything a verdict depends on besides the plan: model, table, samples, gates, precision.
    pub context: ContentHash,
    /// Measured costs by node: a later search must rank as this one did.
    #[serde(default)]
    pub costs: BTreeMap<String, f64>,
    /// Whether the samples, or those that gave the ranges, are random numbers: it says nothing about real data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_data: bool,
    /// In the order they ran.
    pub trials: Vec<Trial>,
}

impl TrialLog {
    /// An empty log.
    pub fn new(context: ContentHash) -> Self {
        let (format_version, tool) = (LOG_FORMAT_VERSION, Tool::current());
        Self { format_version, tool, context, costs: BTreeMap::new(), random_data: false, trials: Vec::new() }
    }

    /// Reads the log at `path`; an empty one when there is no file.
    ///
    /// # Errors
    /// The file is unreadable, or was written in another context: its verdicts would not hold here.
    pub fn resume(path: &Path, context: ContentHash) -> Result<Self, ArtifactError> {
        if !path.exists() {
            return Ok(Self::new(context));
        }
        artifact::renews(path);
        let log: Self = artifact::read_json(path, "trial log", LOG_FORMAT_VERSION)?;
        if log.context != context {
            return Err(ArtifactError::Format {
                path: path.to_owned(),
                kind: "trial log of this search",
                reason: "its trials ran with another model, table, data, gate or precision; remove the file or \
                         write to another folder"
                    .to_owned(),
            });
        }
        Ok(log)
    }

    /// Writes the log, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), ArtifactError> {
        artifact::write_json(path, self)
    }
}

/// A trial as it ends, for those who watch.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What was tried.
    pub trial: &'a Trial,
    /// Trials so far, this one included.
    pub number: usize,
    /// The verdict came from the log.
    pub replayed: bool,
}

/// Why a search cannot go on.
pub(super) enum Stop<E> {
    /// The next plan would be one more than the budget.
    Budget,
    /// The oracle failed.
    Failed(E),
}

impl<E> From<E> for Stop<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}

/// Runs plans: each once, never more than the budget, those of the log without running them.
pub(super) struct Ledger<'a, E> {
    pub budget: usize,
    pub log: BTreeMap<ContentHash, Verdict>,
    pub run: &'a mut dyn FnMut(&NodeSet) -> Result<Verdict, E>,
    pub progress: &'a mut dyn FnMut(Progress<'_>),
    pub trials: Vec<Trial>,
    index: BTreeMap<ContentHash, usize>,
}

impl<'a, E> Ledger<'a, E> {
    pub fn new(
        budget: usize,
        log: &[Trial],
        run: &'a mut dyn FnMut(&NodeSet) -> Result<Verdict, E>,
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        let log = log.iter().map(|trial| (plan_hash(&trial.lifted), trial.verdict.clone())).collect();
        Self { budget, log, run, progress, trials: Vec::new(), index: BTreeMap::new() }
    }

    /// Whether the plan passes. A replayed trial counts against the budget like any other, so that a resumed search
    /// ends exactly like one that was never interrupted.
    pub fn passes(&mut self, phase: Phase, lifted: NodeSet, cost: f64) -> Result<bool, Stop<E>> {
        let plan = plan_hash(&lifted);
        if let Some(&index) = self.index.get(&plan) {
            return Ok(self.trials[index].verdict.passed);
        }
        if self.trials.len() >= self.budget {
            return Err(Stop::Budget);
        }
        let known = self.log.remove(&plan);
        let replayed = known.is_some();
        let verdict = match known {
            Some(verdict) => verdict,
            None => (self.run)(&lifted)?,
        };
        let trial = Trial { plan: plan.clone(), phase, lifted, cost, verdict };
        (self.progress)(Progress { trial: &trial, number: self.trials.len() + 1, replayed });
        let passed = trial.verdict.passed;
        self.index.insert(plan, self.trials.len());
        self.trials.push(trial);
        Ok(passed)
    }

    /// The trial of a plan that was tried.
    pub fn trial(&self, lifted: &NodeSet) -> Option<&Trial> {
        self.index.get(&plan_hash(lifted)).map(|&index| &self.trials[index])
    }

    /// The cheapest plan that passed; of equals the one with fewest nodes, then the earliest.
    pub fn best(&self) -> Option<&Trial> {
        let key = |t: &Trial| (t.cost, t.lifted.len());
        self.trials
            .iter()
            .filter(|trial| trial.verdict.passed)
            .min_by(|a, b| key(a).0.total_cmp(&key(b).0).then(key(a).1.cmp(&key(b).1)))
    }
}
