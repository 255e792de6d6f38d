//! What a comparison counted, over all samples or over one part of them, and the figures of it.
//!
//! Parts are files of JSON. Joined in order they are what a single run counts, bit for bit: counts are integers, sums do
//! not depend on how samples are put together.

use std::{collections::BTreeSet, path::Path};

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{
    PipelineError, Shard, Within, describe,
    evaluation::{Counted, Evaluation},
};
use crate::{
    artifact::{ArtifactError, ContentHash, Tool, check_free, open_regular, read_json, write_json},
    compare::{Comparison, ComparisonResult, Footprint, Gate, GateResult},
    config::RunConfig,
    dataset::{PassSummary, SampleError},
};

/// What `format_version` is in the file of a part.
pub const PART_FORMAT_VERSION: u32 = 2;
/// What such a file is called.
const KIND: &str = "part of a comparison";

/// A part as it lies in its file.
#[derive(Serialize, Deserialize)]
struct Sealed<P> {
    format_version: u32,
    /// Of the part as JSON without white space.
    content_hash: ContentHash,
    part: P,
}

fn hash_of(part: &Compared) -> Result<ContentHash, PipelineError> {
    Ok(ContentHash::of_bytes(&serde_json::to_vec(part).map_err(PipelineError::render)?))
}

/// The outcome for one target.
#[derive(Debug, Serialize)]
pub struct TargetOutcome {
    /// Name of the target.
    pub target: String,
    /// What it is compared with, where that is not the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Why it was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// All figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<ComparisonResult>,
    /// The gates, with what was measured.
    pub gates: Vec<GateResult>,
}

impl TargetOutcome {
    fn new(target: &str, counted: Counts, gates: &[Gate], footprint: &Footprint) -> Self {
        let mut outcome =
            Self { target: target.to_owned(), against: None, error: None, result: None, gates: Vec::new() };
        match counted {
            Ok(counted) => {
                let result = counted.finish();
                outcome.gates = gates.iter().map(|gate| gate.evaluate(&result, footprint)).collect();
                outcome.result = Some(result);
            }
            Err(error) => outcome.error = Some(error),
        }
        outcome
    }
}

/// What a comparison found.
#[derive(Debug, Serialize)]
pub struct CompareOutcome {
    /// Whether every target ran and passed every gate; absent (null) without gates, where all ran.
    pub passed: Option<bool>,
    /// Name of the reference.
    pub reference: String,
    /// TensorRT with its version, where an engine ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensorrt: Option<String>,
    /// Whether the samples, or those that gave a model's ranges, are random numbers: it says nothing about real data.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub random_data: bool,
    /// Samples that were compared.
    pub samples: usize,
    /// Samples that could not be read, with the reasons.
    pub skipped: Vec<String>,
    /// What was asked for, and the models that engines among them were built from.
    pub targets: Vec<TargetOutcome>,
    /// Engines against the models that they were built from, in ONNX Runtime: what the engine adds to the error of
    /// quantization.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engine_errors: Vec<TargetOutcome>,
}

/// A comparison, or why it could not go on.
type Counts = Result<Comparison, String>;

/// A target as it is named in the outcome.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Compares {
    pub name: String,
    pub size_mb: Option<f64>,
    /// Gates are for what was asked for, not for what was added to explain it.
    pub gated: bool,
}

/// What is compared, before anything has run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Comparing {
    /// Hash over all that every part must have in common.
    pub context: ContentHash,
    pub reference: String,
    /// As [`CompareOutcome::tensorrt`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensorrt: Option<String>,
    /// As [`CompareOutcome::random_data`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_data: bool,
    pub targets: Vec<Compares>,
    pub gates: Vec<Gate>,
    /// Targets that are compared with each other, too.
    pub pairs: Vec<(usize, usize)>,
    /// Bad samples that are tolerated over all parts.
    pub tolerated: f64,
}

/// What a comparison counted: a whole, or part of one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Compared {
    tool: Tool,
    /// The configuration of the run that this is the evaluation of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<RunConfig>,
    /// The part, from 0, of how many.
    part: (usize, usize),
    comparing: Comparing,
    samples: usize,
    skipped: Vec<SampleError>,
    own: Comparison,
    targets: Vec<Counts>,
    pairs: Vec<Counts>,
}

impl Compared {
    pub(super) fn new(
        comparing: Comparing,
        shard: Option<&Shard>,
        counted: Counted,
        skipped: Vec<SampleError>,
    ) -> Self {
        let plain = |counts: Vec<Result<Comparison, PipelineError>>| {
            counts.into_iter().map(|counts| counts.map_err(|error| describe(&error))).collect()
        };
        Self {
            tool: Tool::current(),
            run: None,
            part: shard.map_or((0, 1), |shard| (shard.index, shard.count)),
            comparing,
            samples: counted.ids.len(),
            skipped,
            own: counted.own,
            targets: plain(counted.targets),
            pairs: plain(counted.pairs),
        }
    }

    /// The same as the evaluation of a run.
    pub(super) fn of_run(self, config: RunConfig) -> Self {
        Self { run: Some(config), ..self }
    }

    /// The configuration of the run that this is the evaluation of, if it is one.
    pub fn config(&self) -> Option<&RunConfig> {
        self.run.as_ref()
    }

    /// Hash over all that the parts have in common.
    pub(super) fn context(&self) -> &ContentHash {
        &self.comparing.context
    }

    /// Samples that were compared.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Writes a part.
    ///
    /// # Errors
    /// A target could not be run, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PipelineError> {
        let names = self.comparing.targets.iter().map(|target| &target.name);
        if let Some((name, Err(error))) = names.zip(&self.targets).find(|(_, counts)| counts.is_err()) {
            bail!("the target {name} could not be run: {error}");
        }
        let sealed = Sealed { format_version: PART_FORMAT_VERSION, content_hash: hash_of(self)?, part: self };
        Ok(write_json(path, &sealed)?)
    }

    /// Removes the part that a former job left at `path`, so that it is not joined where this job fails. Another file stays.
    ///
    /// # Errors
    /// The file is an input of this job, or cannot be removed.
    pub fn remove_former(path: &Path) -> Result<(), PipelineError> {
        let is_part = |bytes: Vec<u8>| serde_json::from_slice::<Sealed<IgnoredAny>>(&bytes).is_ok();
        // It is to be written, so it is not read as an input.
        if path.is_file() && std::fs::read(path).is_ok_and(is_part) {
            let context = || format!("cannot remove the former part {}", path.display());
            check_free(path).within(context)?;
            std::fs::remove_file(path).within(context)?;
        }
        Ok(())
    }

    /// Reads a part.
    ///
    /// # Errors
    /// The file cannot be read, is something else, or was changed after it was written.
    pub fn load(path: &Path) -> Result<Self, PipelineError> {
        let Sealed { content_hash, part, .. } = read_json::<Sealed<Self>>(path, KIND, PART_FORMAT_VERSION)?;
        let refuse = |reason: &str| {
            let reason = format!("{reason}; make this part again");
            PipelineError::from(ArtifactError::Format { path: path.to_owned(), kind: KIND, reason })
        };
        if hash_of(&part)? != content_hash {
            return Err(refuse("its content does not match its hash, so it was changed after it was written"));
        }
        let Comparing { targets, pairs, .. } = &part.comparing;
        let sound = part.part.0 < part.part.1
            && (part.targets.len(), part.pairs.len()) == (targets.len(), pairs.len())
            && pairs.iter().all(|&(a, b)| a.max(b) < targets.len());
        if !sound {
            return Err(refuse("its targets and what was counted of them do not fit together"));
        }
        Ok(part)
    }

    /// Whether a file looks like a part of a comparison: JSON, where histograms are not.
    pub fn is_at(path: &Path) -> bool {
        let mut first = [0];
        let read = open_regular(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut first));
        read.is_ok() && first == *b"{"
    }

    /// Joins all parts of one comparison, in any order.
    ///
    /// # Errors
    /// Parts are missing, twice there, or of different comparisons.
    pub fn join(mut parts: Vec<Self>) -> Result<Self, PipelineError> {
        parts.sort_by_key(|part| part.part.0);
        let mut parts = parts.into_iter();
        let Some(mut joined) = parts.next() else { bail!("there are no parts to join") };
        let count = joined.part.1;
        let missing = |index: usize| {
            PipelineError::Input(format!(
                "part {} of {count} of the comparison is missing; give all of them",
                index + 1
            ))
        };
        if joined.part.0 != 0 {
            return Err(missing(0));
        }
        for (expected, part) in (1..).zip(parts) {
            let (index, _) = part.part;
            ensure!(
                part.comparing.context == joined.comparing.context && part.part.1 == count,
                "the files are parts of different comparisons; make them with the same options, models and data"
            );
            ensure!(index + 1 != expected, "part {} of {count} would be counted twice", index + 1);
            if index != expected {
                return Err(missing(expected));
            }
            joined.append(part)?;
        }
        if joined.part.0 + 1 != count {
            return Err(missing(joined.part.0 + 1));
        }
        let bad = joined.skipped.len();
        if let Some(first) = joined.skipped.first().filter(|_| bad as f64 > joined.comparing.tolerated) {
            bail!("{bad} of the samples cannot be used, more than --max-bad allows; the first: {first}");
        }
        Ok(joined)
    }

    fn append(&mut self, later: Self) -> Result<(), PipelineError> {
        self.part.0 = later.part.0;
        self.samples += later.samples;
        self.skipped.extend(later.skipped);
        self.own.append(later.own)?;
        let others = later.targets.into_iter().chain(later.pairs);
        for (mine, other) in self.targets.iter_mut().chain(&mut self.pairs).zip(others) {
            match (mine.as_mut(), other) {
                (Ok(mine), Ok(other)) => mine.append(other)?,
                (Ok(_), Err(error)) => *mine = Err(error),
                (Err(_), _) => {}
            }
        }
        Ok(())
    }

    /// The same as one evaluation of all of `samples`, named in order.
    pub(super) fn into_evaluation<'s>(self, samples: impl Iterator<Item = &'s str>) -> Evaluation {
        let bad: BTreeSet<&str> = self.skipped.iter().map(|error| error.sample.as_str()).collect();
        let ids = samples.filter(|id| !bad.contains(id)).map(str::to_owned).collect();
        let finish = |counts: Vec<Counts>| {
            counts.into_iter().map(|counts| counts.map(Comparison::finish).map_err(PipelineError::Input)).collect()
        };
        Evaluation {
            ids,
            reference: self.own.finish(),
            targets: finish(self.targets),
            pairs: finish(self.pairs),
            summary: PassSummary { skipped: self.skipped, ..PassSummary::default() },
            fitting_batch: None,
        }
    }

    /// The figures, and those of the reference against itself.
    pub fn finish(self) -> (CompareOutcome, ComparisonResult) {
        let Comparing { reference, tensorrt, random_data, targets, gates, pairs, .. } = self.comparing;
        let mut engine_errors = Vec::new();
        for (&(source, engine), counted) in pairs.iter().zip(self.pairs) {
            let mut outcome = TargetOutcome::new(&targets[engine].name, counted, &[], &Footprint::default());
            outcome.against = Some(targets[source].name.clone());
            engine_errors.push(outcome);
        }
        let outcome = |(target, counted): (&Compares, Counts)| {
            let footprint = Footprint { size_mb: target.size_mb, ..Footprint::default() };
            TargetOutcome::new(&target.name, counted, if target.gated { &gates } else { &[] }, &footprint)
        };
        let targets: Vec<TargetOutcome> = targets.iter().zip(self.targets).map(outcome).collect();
        let failed = |outcome: &TargetOutcome| outcome.error.is_some() || outcome.gates.iter().any(|gate| !gate.passed);
        let any_failed = targets.iter().any(failed);
        let outcome = CompareOutcome {
            passed: (any_failed || !gates.is_empty()).then_some(!any_failed),
            reference,
            tensorrt,
            random_data,
            samples: self.samples,
            skipped: self.skipped.iter().map(ToString::to_string).collect(),
            targets,
            engine_errors,
        };
        (outcome, self.own.finish())
    }
}
