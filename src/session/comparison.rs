//! A comparison: the same samples through a reference and one or several targets.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{
    PipelineError, Session, Shard, Target, Within,
    compared::{CompareOutcome, Compared, Compares, Comparing},
    describe,
    evaluation::{EvaluateOptions, Outputs, count},
    ranges::same_samples,
    target::{OpenTarget, fill_from_sidecar, warn_of_cache},
};
use crate::{
    artifact::{ArtifactError, ContentHash},
    backend::{
        BuildOptions, ExecutionProvider,
        tensorrt::{EngineSidecar, RunnerOptions},
    },
    compare::{Gate, Needs, SavedOutputs},
    config::RunConfig,
    onnx::Model,
    quantize::{calibrated_on, of_random_data},
};

/// What is compared, and with what.
#[derive(Clone, Debug, Default)]
pub struct CompareRequest {
    /// What to compare with, as [`Target`] reads it.
    pub reference: String,
    /// What is compared, as [`Target`] reads it.
    pub targets: Vec<String>,
    /// Float model that tells inputs and data; without it the file of the reference, or what the engine's sidecar names, or
    /// the first target's file, or the configuration's.
    pub model: Option<PathBuf>,
    /// Samples; 0 for all.
    pub samples: usize,
    /// Thresholds for every target.
    pub gates: Vec<Gate>,
    /// Whether samples that a target was calibrated on are compared, too.
    pub calibration_samples: bool,
    /// File (`.npz`) for the reference's outputs.
    pub save_reference: Option<PathBuf>,
    /// File (`.npz`) for the first target's outputs.
    pub save_target: Option<PathBuf>,
    /// File that keeps the kernels which TensorRT-RTX compiles for this GPU.
    pub runtime_cache: Option<PathBuf>,
}

/// What follows where the model of an engine cannot be compared as well.
const UNTOLD: &str = "what the engine adds is not told apart from the error of that model";

impl CompareRequest {
    fn named(&self) -> Result<(Target, Vec<Target>), PipelineError> {
        let targets = self.targets.iter().map(|target| Target::parse(target)).collect::<Result<_, _>>()?;
        Ok((Target::parse(&self.reference)?, targets))
    }

    /// Takes model, data and labels from what is compared, where `config` does not name them.
    ///
    /// # Errors
    /// Something that is compared cannot be read, or nothing tells the float model.
    pub fn complete(&self, config: &mut RunConfig) -> Result<(), PipelineError> {
        check_gates(&self.gates)?;
        let (reference, targets) = self.named()?;
        let fallback = config.model.take();
        config.model = self.model.clone().or_else(|| float_model(&reference, &targets));
        for target in [&reference].into_iter().chain(&targets) {
            fill_from_sidecar(config, target)?;
        }
        config.model = config.model.take().or(fallback);
        ensure!(
            config.model.is_some(),
            "which float model `ort` stands for is not known; name it with --model FILE, or write --ref ort:FILE.onnx"
        );
        Ok(())
    }
}

impl Session {
    /// Adds the Q/DQ model of every engine that was built from one, to be run by ONNX Runtime: the error of quantization
    /// without the engine's own. Gives the pairs of both.
    fn add_sources(
        &self,
        targets: &mut Vec<Target>,
        names: &mut Vec<String>,
    ) -> Result<Vec<(usize, usize)>, PipelineError> {
        let mut pairs = Vec::new();
        for engine in 0..targets.len() {
            let Target::Engine(path) = &targets[engine] else { continue };
            let Some(sidecar) = EngineSidecar::beside(path)? else { continue };
            let (plan, model) = (path.display(), sidecar.model.display());
            let changed = || format!("{plan}: {model} was changed since it was built from it (its hash is another)");
            if self.config.model.as_ref() == Some(&sidecar.model) {
                if self.subject.float.hash != sidecar.model_hash {
                    self.host.warn(&format!("{}: two models are compared; build the engine again", changed()));
                }
                continue;
            }
            if sidecar.reference.is_none() {
                continue;
            }
            if !sidecar.model.exists() {
                self.host.warn(&format!("{plan}: {model}, from which it was built, is not there, so {UNTOLD}"));
                continue;
            }
            if Model::load(&sidecar.model).is_ok_and(|model| model.hash != sidecar.model_hash) {
                self.host.warn(&format!("{}, so {UNTOLD}; build the engine again", changed()));
                continue;
            }
            let source = Target::Model(Some(sidecar.model.clone()), self.provider);
            let index = targets.iter().position(|target| *target == source).unwrap_or_else(|| {
                names.push(format!("ort:{}", sidecar.model.display()));
                targets.push(source);
                targets.len() - 1
            });
            pairs.push((index, engine));
        }
        Ok(pairs)
    }

    /// Compares targets with a reference over the session's samples. Engines that were built from a quantized model are
    /// compared with that model in ONNX Runtime as well.
    ///
    /// # Errors
    /// Something cannot be opened, or the reference cannot be run; a target that cannot is told in its outcome.
    pub fn compare(&self, request: &CompareRequest) -> Result<CompareOutcome, PipelineError> {
        let (outcome, reference) = self.compared(request, None)?.finish();
        self.label_warnings(&reference).iter().for_each(|warning| self.host.warn(warning));
        Ok(outcome)
    }

    /// The same up to what is counted, over all samples or over the part of one machine.
    ///
    /// # Errors
    /// As [`Session::compare`].
    pub fn compared(&self, request: &CompareRequest, shard: Option<&Shard>) -> Result<Compared, PipelineError> {
        let (reference_target, asked) = request.named()?;
        let reference_target = reference_target.on(self.provider);
        let mut asked: Vec<Target> = asked.into_iter().map(|target| target.on(self.provider)).collect();
        let has_engine = asked.iter().chain([&reference_target]).any(Target::is_engine);
        if has_engine {
            warn_of_cache(&self.host, request.runtime_cache.as_ref())?;
        }
        let makers =
            asked.iter().chain([&reference_target]).map(Target::made_by).collect::<Result<BTreeSet<_>, _>>()?;
        let makers: Vec<String> = makers.into_iter().flatten().collect();
        let tensorrt = (!makers.is_empty()).then(|| makers.join(", "));
        let mut names = request.targets.clone();
        let pairs = self.add_sources(&mut asked, &mut names)?;
        let (indices, of_random) = self.compared_samples(request, &reference_target, &asked)?;
        self.check_gates(&request.gates, &indices)?;
        let engine = RunnerOptions { runtime_cache: request.runtime_cache.clone(), ..RunnerOptions::default() };
        // An engine has samples come as it takes them.
        let build = BuildOptions { side_by_side: !has_engine, ..self.build_options(self.threads) };
        let (mut reference, outputs) =
            reference_target.open(self, (&build, &engine), request.save_reference.as_deref())?;
        self.check_gated_outputs(&request.gates, &outputs)?;
        let mut targets = Vec::new();
        let mut compares = Vec::new();
        let mut places = Vec::new();
        for (index, (named, name)) in asked.iter().zip(&names).enumerate() {
            let save = request.save_target.as_deref().filter(|_| index == 0);
            let gated = index < request.targets.len();
            let side = match named.open(self, (&build, &engine), save).within(|| format!("target {name}")) {
                // A model that was added to explain an engine's error: BF16 does not run on the CPU.
                Err(error) if !gated => {
                    let reason = describe(&error);
                    self.host
                        .warn(&format!("{name}, from which an engine was built, is left out, so {UNTOLD}: {reason}"));
                    places.push(None);
                    continue;
                }
                side => side?.0,
            };
            places.push(Some(targets.len()));
            targets.push(side);
            compares.push(Compares { name: name.clone(), size_mb: named.size_mb(), gated });
        }
        let pairs: Vec<_> =
            pairs.iter().filter_map(|&(model, engine)| Some((places[model]?, places[engine]?))).collect();
        self.host.stage("comparing");
        let options = self.evaluate_options(self.batch);
        let mine = &indices[shard.map_or(0..indices.len(), |shard| shard.range(indices.len()))];
        let work = self.host.begin("comparing", mine.len());
        let progress = |samples: usize| work.advance(samples);
        let control = self.control(&progress);
        let mut sides: Vec<&mut dyn Outputs> = targets.iter_mut().map(OpenTarget::outputs).collect();
        let (counted, ran) = count(reference.outputs(), &mut sides, &pairs, self.dataset(), mine, &options, control)?;
        drop(work);
        self.warn_halved("the comparison", ran.fitting_batch);
        reference.finish()?;
        for (target, counted) in targets.into_iter().zip(&counted.targets) {
            if counted.is_ok() { target.finish()? } else { self.warn_unsaved(target) }
        }
        let comparing = Comparing {
            context: self.compared_context(request, &reference_target, &asked, &indices, &options)?,
            reference: request.reference.clone(),
            tensorrt,
            random_data: self.config.random_data || of_random,
            targets: compares,
            gates: request.gates.clone(),
            pairs,
            tolerated: self.tolerated(),
        };
        Ok(Compared::new(comparing, shard, counted, ran.summary.skipped))
    }

    /// Says that a target that failed on its way leaves no file: one with a part of the samples would pass for all of them.
    fn warn_unsaved(&self, target: OpenTarget) {
        if let OpenTarget::Recorded(_, path) = target {
            let path = path.display();
            self.host
                .warn(&format!("{path} is not written: the target failed before it gave the outputs of all samples"));
        }
    }

    /// Hash over all that the parts of one comparison have in common.
    fn compared_context(
        &self,
        request: &CompareRequest,
        reference: &Target,
        targets: &[Target],
        indices: &[usize],
        options: &EvaluateOptions,
    ) -> Result<ContentHash, PipelineError> {
        let file = |target: &Target| match target.file() {
            None => Ok(self.subject.float.hash.clone()),
            Some(path) => {
                ContentHash::of_file(path).map_err(|source| ArtifactError::Read { path: path.to_owned(), source })
            }
        };
        let files = std::iter::once(reference).chain(targets).map(file).collect::<Result<Vec<_>, _>>()?;
        let data = self.content_hash(indices);
        let common = (&self.subject.float.hash, data, &request.reference, &request.targets, files, &request.gates);
        let common = serde_json::to_vec(&(common, &options.compare, self.provider));
        Ok(ContentHash::of_bytes(&common.map_err(|error| PipelineError::Input(error.to_string()))?))
    }
}

impl Session {
    /// Outputs that were saved; tells how their rows are taken where they name no samples.
    pub(super) fn open_saved(&self, path: &Path) -> Result<SavedOutputs, PipelineError> {
        let saved = SavedOutputs::open_beside(path, self.dataset().len())?;
        saved.taken_for(self.dataset().len())?.iter().for_each(|taken| self.host.info(taken));
        Ok(saved)
    }

    /// The samples to compare: those that saved outputs are there of, and not those that a target was calibrated on, which it
    /// knows better than others. And whether one was calibrated on random numbers.
    fn compared_samples(
        &self,
        request: &CompareRequest,
        reference: &Target,
        targets: &[Target],
    ) -> Result<(Vec<usize>, bool), PipelineError> {
        let dataset = self.dataset();
        let count = dataset.len();
        let (mut known, mut of_random): (BTreeMap<String, String>, bool) = Default::default();
        for target in targets.iter().chain([reference]) {
            let Target::Model(Some(path), _) = target else { continue };
            let model = Model::load(path)?;
            if of_random_data(&model) {
                of_random = true;
                self.host.warn(&format!(
                    "{} was calibrated on random numbers: its figures say nothing of the model on real data",
                    path.display()
                ));
            }
            if !request.calibration_samples && !self.config.random_data {
                known.extend(calibrated_on(&model));
            }
        }
        let saved = [reference].into_iter().chain(targets).filter_map(|target| match target {
            Target::Saved(path) => Some(self.open_saved(path)),
            _ => None,
        });
        let saved = saved.collect::<Result<Vec<_>, _>>()?;
        let is_saved = |index: &usize| saved.iter().all(|saved| saved.holds(*index, dataset.id(*index)));
        // Where none is left, running says which one is missing.
        let any_saved = (0..count).any(|index| is_saved(&index));
        let is_there = |index: &usize| !any_saved || is_saved(index);
        let asked = if request.samples == 0 { count } else { request.samples.min(count) };
        // In the order of a split, which larger numbers only add to; what is not needed is not read.
        let first = |most: usize| {
            if asked == count { (0..count).collect() } else { self.data.split(self.config.seed, 0, most).evaluation }
        };
        let (mut calibrated, mut others, mut most) = (BTreeSet::new(), BTreeSet::new(), asked);
        let left_out = loop {
            let is_new = |index: &usize| !calibrated.contains(index) && !others.contains(index);
            let new: Vec<usize> = first(most).into_iter().filter(is_new).collect();
            let same = same_samples(dataset, &known, &new);
            others.extend(new.into_iter().filter(|index| !same.contains(index)));
            calibrated.extend(same);
            let there = others.iter().filter(|index| is_there(index)).count();
            if there >= asked || most == count {
                break others.len() - there;
            }
            most = (most + asked - there).min(count);
        };
        if others.is_empty() && !calibrated.is_empty() {
            self.host.warn(
                "a target was calibrated on all of these samples, so that none is left out: its figures are better here than on \
                 others; give other data",
            );
            others.extend(first(asked));
        } else if !calibrated.is_empty() {
            self.host.info(&format!(
                "{} samples that a target was calibrated on are left out; --calibration-samples compares them, too",
                calibrated.len()
            ));
        }
        if calibrated.is_empty() {
            self.warn_of_names(&known, &others);
        }
        others.retain(is_there);
        if left_out > 0 && request.samples > others.len() {
            self.host.info(&format!("{} samples are compared: there are saved outputs of no more", others.len()));
        }
        Ok((Vec::from_iter(others), of_random))
    }

    /// Warns of samples that have the names of those that a target was calibrated on, and other content.
    fn warn_of_names(&self, known: &BTreeMap<String, String>, samples: &BTreeSet<usize>) {
        // Rows of arrays have numbers for names, which say nothing.
        let is_known = |name: &str| known.contains_key(name) && name.parse::<usize>().is_err();
        let named = samples.iter().filter(|&&index| is_known(self.dataset().id(index))).count();
        if named > 0 {
            self.host.warn(&format!(
                "{named} samples are named as those that a target was calibrated on and have other content, so they are compared, \
                 too; where they are the same pictures, decoded on Ray there or here, its figures are better than on others: \
                 compare there, or leave them out"
            ));
        }
    }
}

/// Refuses gates that cannot be tested here.
fn check_gates(gates: &[Gate]) -> Result<(), PipelineError> {
    for gate in gates {
        ensure!(
            gate.metric.needs() != Needs::Times,
            "gate {gate}: compare measures no times; `calib run` judges them, and `calib bench` shows them"
        );
        ensure!(
            gate.precision.is_none(),
            "gate {gate}: a target's precision is not known here; compare it by itself with {}, or use `calib run`",
            Gate { precision: None, ..gate.clone() }
        );
    }
    Ok(())
}

/// The model that tells inputs and data: the reference's file, or the engine's sidecar, or the first target's file.
fn float_model(reference: &Target, targets: &[Target]) -> Option<PathBuf> {
    let file = |target: &Target| match target {
        Target::Model(path, _) => path.clone(),
        Target::Saved(_) | Target::Engine(_) => None,
    };
    file(reference).or_else(|| {
        if *reference == Target::Model(None, ExecutionProvider::Cpu) { None } else { targets.iter().find_map(file) }
    })
}
