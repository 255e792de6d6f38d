//! The steps of recovery, one after the other: each is tried, measured on held-out samples, and kept or not.

use std::{collections::BTreeMap, time::Instant};

use super::{
    CLEARLY_BETTER, DESCENDED_ON, DESCENT_MARGIN_DB, Judge, MARGIN_DB, Peers, RANKED_ON, Reached, RecoverError,
    RecoverOptions,
    descent::Descent,
    errors::Objectives,
    lifting,
    network::Network,
    patches::Patches,
    ranges, rank,
    state::{State, whole_correction},
    walk::{Answered, Tasks, Walked, walk},
};
use crate::{
    calibrate::{CalibrationTable, Lifted, Recovered, RecoveryStep, Rounding, Shift, StepKind},
    compare::{Answers, OwnMetric, Parts},
    tensor::TensorMap,
};

/// The steps so far.
pub(super) struct Steps<'a> {
    pub network: Network<'a>,
    pub patches: Patches,
    pub samples: Vec<TensorMap>,
    pub fit: usize,
    pub state: State,
    /// The outputs of the state so far.
    pub before: Objectives,
    pub rows: Vec<RecoveryStep>,
    /// Whether biases are corrected, so that later steps correct them anew.
    pub biases: bool,
    pub parts: Parts,
    pub peers: Peers,
    pub judge: Option<Judge>,
    /// What the judge gives for the state so far.
    pub value: Option<f64>,
    pub reached: Option<&'a Reached<'a>>,
    /// Whether the state so far is near enough.
    pub is_reached: bool,
}

impl Steps<'_> {
    /// Measures the state so far on held-out samples.
    pub fn measure(&mut self) -> Result<(), RecoverError> {
        let Walked { objectives, answers } = self.measured(&self.state)?;
        (self.before, self.value) = (objectives, self.judged(&answers)?);
        self.is_reached = self.reaches(&answers)?;
        Ok(())
    }

    /// The outputs of held-out samples as `state` makes them.
    fn measured(&self, state: &State) -> Result<Walked, RecoverError> {
        let held_out = if self.fit < self.samples.len() { &self.samples[self.fit..] } else { &self.samples[..] };
        let tasks = Tasks { parts: self.parts.clone(), answers: self.wants_answers(), ..Tasks::default() };
        walk(&self.network, held_out, 0, &mut state.clone(), &tasks, &self.patches)
    }

    fn wants_answers(&self) -> bool {
        self.judge.is_some() || self.reached.is_some()
    }

    /// What the judge says to the quantized outputs of the held-out calls.
    fn judged(&self, answers: &Answered) -> Result<Option<f64>, RecoverError> {
        let Some(judge) = &self.judge else { return Ok(None) };
        let named = judge.ids.iter().cloned().zip(answers.quantized.iter().cloned());
        let named = named.map(|(ids, outputs)| Answers { ids, outputs });
        Ok(Some(judge.metric.value(named.collect())?))
    }

    /// Whether these outputs are near enough.
    fn reaches(&self, answers: &Answered) -> Result<bool, RecoverError> {
        Ok(self.reached.map_or(Ok(false), |reached| reached(&answers.float, &answers.quantized))?)
    }

    /// Tries a step, or some at once, and keeps it where the outputs gain; returns whether it was kept.
    pub fn try_out(&mut self, steps: &[StepKind], tasks: Tasks) -> Result<bool, RecoverError> {
        self.try_from(steps, self.state.clone(), tasks)
    }

    /// The same from another state. Biases are corrected anew in every step, once they have proved worth it.
    fn try_from(&mut self, steps: &[StepKind], mut next: State, tasks: Tasks) -> Result<bool, RecoverError> {
        let started = Instant::now();
        let (biases, answers) = (tasks.biases || self.biases, self.wants_answers());
        let tasks = Tasks { biases, answers, parts: self.parts.clone(), peers: self.peers.clone(), ..tasks };
        let Walked { objectives, answers } =
            walk(&self.network, &self.samples, self.fit, &mut next, &tasks, &self.patches)?;
        let (before_db, after_db) = (self.before.decibels(), objectives.decibels());
        let value = self.judged(&answers)?;
        let margin = if steps == [StepKind::Descent] { DESCENT_MARGIN_DB } else { MARGIN_DB };
        let gains = match (before_db, after_db) {
            (Some(before), Some(after)) => after > before + margin,
            _ => false,
        };
        let metric = self.value.zip(value);
        // Of what the metric does not tell apart, the error tells which is better.
        let kept = metric.and_then(|(before, after)| OwnMetric::prefers(before, after)).unwrap_or(gains);
        let what = changes(&self.state, &next);
        let what = metric.map_or(what.clone(), |(before, after)| format!("{what}; metric {before} to {after}"));
        let what = match (kept, &*what) {
            (true, _) | (_, NOTHING) => what,
            _ => format!("{what}; not kept, for held-out samples do not gain by it"),
        };
        let gain_interval_db = objectives.gain_interval(&self.before, 0.95);
        let name = steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let seconds = started.elapsed().as_secs_f64();
        self.rows.push(RecoveryStep { name, kept, before_db, after_db, gain_interval_db, seconds, what });
        if kept {
            (self.state, self.before, self.value) = (next, objectives, value);
            self.is_reached = self.reaches(&answers)?;
        }
        Ok(kept)
    }

    /// Chooses the ranges of the `most` tensors that matter most among `candidates`, by the outputs of the model.
    pub fn descend(&mut self, candidates: &BTreeMap<String, Vec<Shift>>, most: usize) -> Result<(), RecoverError> {
        let started = Instant::now();
        let mut next = self.state.clone();
        let few = &self.samples[..self.fit.min(DESCENDED_ON)];
        Descent::new(&self.network, few, &mut next, &self.parts, &self.peers)?.descend(candidates, most)?;
        if next.ranges == self.state.ranges {
            return Ok(());
        }
        let choosing = started.elapsed().as_secs_f64();
        self.try_from(&[StepKind::Descent], next, Tasks::default())?;
        if let Some(row) = self.rows.last_mut() {
            row.seconds += choosing;
        }
        Ok(())
    }

    /// Leaves operators in the high precision where that is worth most.
    pub fn lift(&mut self, budget: f64, most: usize) -> Result<Vec<Lifted>, RecoverError> {
        let started = Instant::now();
        let few = self.samples.len().min(RANKED_ON);
        let ranked = rank::rank(&self.network, &self.samples[..few], &self.state, &self.parts, &self.peers)?;
        let picked = lifting::pick(&ranked, budget, most);
        let (noise, macs) = ranked.iter().fold((0.0, 0.0), |(noise, macs), one| (noise + one.noise, macs + one.macs));
        if picked.is_empty() {
            return Ok(Vec::new());
        }
        let mut next = self.state.clone();
        next.lifted.extend(picked.iter().map(|&index| ranked[index].node.clone()));
        let ranking = started.elapsed().as_secs_f64();
        let kept = self.try_from(&[StepKind::Lifting], next, Tasks::default())?;
        if let Some(row) = self.rows.last_mut() {
            row.seconds += ranking;
        }
        let lifted = |&index: &usize| {
            let one = &ranked[index];
            Lifted { node: one.node.clone(), noise: one.noise / noise, macs: one.macs / macs }
        };
        Ok(if kept { picked.iter().map(lifted).collect() } else { Vec::new() })
    }

    /// Says that nothing more was tried, where that was why.
    pub fn tell_reached(&mut self) {
        if self.is_reached {
            let what = "they hold at 95 % on held-out samples, so that nothing more was tried".to_owned();
            self.rows.push(RecoveryStep {
                name: Recovered::GATES.to_owned(),
                kept: true,
                what,
                ..RecoveryStep::default()
            });
        }
    }

    /// Whether what the methods alone give has to be taken, for the steps are not clearly better.
    pub fn yields_to(&mut self, rival: &CalibrationTable) -> Result<bool, RecoverError> {
        let started = Instant::now();
        let state = State { biases: rival.bias_corrections.clone(), ..State::of(rival, self.state.floats) };
        let objectives = self.measured(&state)?.objectives;
        let gain = self.before.gain_interval(&objectives, CLEARLY_BETTER);
        let kept = gain.is_none_or(|[low, _]| low <= 0.0);
        let what = format!(
            "{} alone{}{}",
            rival.method,
            if rival.bias_corrections.is_empty() { "" } else { ", with corrected biases" },
            if kept { "; the steps are not clearly better on so few samples" } else { "" },
        );
        self.rows.push(RecoveryStep {
            name: Recovered::METHODS.to_owned(),
            kept,
            before_db: self.before.decibels(),
            after_db: objectives.decibels(),
            gain_interval_db: objectives.gain_interval(&self.before, 0.95),
            seconds: started.elapsed().as_secs_f64(),
            what,
        });
        Ok(kept)
    }

    /// What the methods alone give, with the steps that were tried in vain.
    pub fn without_steps(mut self, rival: CalibrationTable, options: &RecoverOptions) -> CalibrationTable {
        self.rows.iter_mut().filter(|row| row.name != Recovered::METHODS).for_each(|row| row.kept = false);
        let RecoverOptions { effort, deploy_to, shift, .. } = *options;
        let recovered = Recovered { effort, deploy_to, shift, steps: self.rows, ..Recovered::default() };
        CalibrationTable { recovered: Some(recovered), ..rival }
    }

    pub fn into_table(
        self,
        table: &CalibrationTable,
        plain: &BTreeMap<String, Shift>,
        lifted: Vec<Lifted>,
        options: &RecoverOptions,
    ) -> Result<CalibrationTable, RecoverError> {
        let mut table = table.clone();
        for (name, range) in &mut table.tensors {
            // The range around 0 stays for plans that need it: where a consumer cannot take the shift back.
            if let Some(own) = plain.get(name) {
                range.method = ranges::nearest_method(&range.candidates, own.amax, range.method);
                range.amax = own.amax;
            }
        }
        for operator in self.network.units.iter().filter_map(|unit| unit.operator.as_ref()) {
            if let Some(whole) = whole_correction(operator, &self.state)? {
                table.bias_corrections.insert(operator.node.clone(), whole);
            }
        }
        let State { ranges, equalized, rounding, .. } = self.state;
        let moved = |differences: &Vec<i8>| differences.iter().any(|&difference| difference != 0);
        table.recovered = Some(Recovered {
            effort: options.effort,
            deploy_to: options.deploy_to,
            shift: options.shift,
            shifts: ranges.into_iter().filter(|(_, range)| range.offset != 0.0).collect(),
            equalized,
            rounding: (rounding.into_iter().filter(|(_, differences)| moved(differences)))
                .map(|(weight, differences)| (weight, Rounding::new(&differences)))
                .collect(),
            lifted,
            steps: self.rows,
        });
        Ok(table)
    }
}

/// What a step changed that changed nothing.
const NOTHING: &str = "nothing";

/// What a step changed, in words.
fn changes(before: &State, after: &State) -> String {
    let count = |number: usize, one: &str, many: &str| match number {
        0 => None,
        1 => Some(format!("1 {one}")),
        number => Some(format!("{number} {many}")),
    };
    let ranges = after.ranges.iter().filter(|(name, range)| before.ranges.get(*name) != Some(range));
    let (shifted, moved): (Vec<_>, Vec<_>) = ranges.partition(|(_, range)| range.offset != 0.0);
    let equalized = after.equalized.len() - before.equalized.len();
    let biases = after.biases.iter().filter(|(name, values)| before.biases.get(*name) != Some(values)).count();
    let weights = after.rounding.len().saturating_sub(before.rounding.len());
    let parts = [
        count(moved.len(), "range", "ranges"),
        count(equalized, "activation equalized", "activations equalized"),
        count(shifted.len(), "activation shifted", "activations shifted"),
        count(biases, "bias", "biases"),
        count(weights, "weight rounded anew", "weights rounded anew"),
        count(after.lifted.len() - before.lifted.len(), "node lifted", "nodes lifted"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { NOTHING.to_owned() } else { parts.join(", ") }
}
