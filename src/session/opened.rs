//! A session: a configuration resolved once, its model and data opened, and what its stages share.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    Control, Host, PipelineError,
    bisect::CountTrial,
    calibration::{Calibrator, ObserveOptions, judged_kinds},
    checkpoint::Checkpoints,
    data::{Data, DataSettings, Provenance, open_data, own_samples, random_data, usual_size},
    detector::{Exported, as_for_a_classifier, head, odd_classes, usual_preset},
    evaluation::{EvaluateOptions, class_names},
    events::TellTimings,
    model::Subject,
    ranges::sample_hash,
    scheme::{require_op_types, require_planned, unmatched},
};
use crate::{
    analyse::{
        graphwise::{Graphwise, GraphwiseOptions, Side, TensorSite, graphwise},
        layerwise::{LayerError, LayerwiseOptions, OutputNoiseOptions, Samples, layerwise},
        operators::Pair,
    },
    artifact::ContentHash,
    backend::{
        BuildOptions, ExecutionProvider, Runner, TensorInfo,
        onnxruntime::{OnnxRuntime, is_e4m3},
        threads_or_cores,
    },
    bench::Mode,
    compare::{CompareOptions, OutputKind, OwnMetric, heads::Head},
    config::RunConfig,
    dataset::{BadPolicy, Dataset, Preprocess, data_hash, image_size, load_classes},
    onnx::Model,
    quantize::Placement,
    recover::Peers,
};

/// Samples in one call when neither user nor model say, on the CPU and on a GPU.
const DEFAULT_BATCH: usize = 8;
const DEFAULT_CUDA_BATCH: usize = 64;
/// Most samples in one call; the queue that reads ahead has room for them.
const MAX_BATCH: usize = 1 << 20;
/// Multiply-accumulates that the cores beside a GPU do in about a second.
const CPU_WORK: f64 = 2.5e11;
/// Samples whose content is hashed to tell data sets apart, at most.
const HASHED: usize = 64;
/// Samples that the effect of single operators is measured on, at most.
const FEW_SAMPLES: usize = 16;

fn compare_options(config: &RunConfig, subject: &Subject, names: &BTreeMap<u32, String>) -> CompareOptions {
    CompareOptions {
        kinds: subject.kinds(&config.output_kind),
        top_k: config.top_k.clone(),
        class_names: class_names(names),
        ignored_label: Some(config.ignore_label),
        ..CompareOptions::default()
    }
}

/// How ONNX Runtime is called when its time is taken.
pub(super) fn mode(provider: ExecutionProvider, threads: usize) -> Mode {
    // Inputs and outputs lie in host memory, so every call on a GPU copies them.
    Mode { provider: provider.backend().to_owned(), threads, transfers: provider.gpu().is_some(), cuda_graph: false }
}

/// The float model of a configuration, its data, and the options of the stages.
pub struct Session {
    /// Who runs it.
    pub host: Host,
    pub(super) config: RunConfig,
    pub(super) runtime: OnnxRuntime,
    pub(super) subject: Subject,
    /// Runs the float model. Locked while it is compared with, beside which layers may be looked into.
    pub(super) reference: Mutex<Box<dyn Runner>>,
    pub(super) data: Data,
    pub(super) threads: usize,
    pub(super) provider: ExecutionProvider,
    pub(super) batch: usize,
    pub(super) policy: BadPolicy,
    /// The head, where the model is a detector.
    pub(super) head: Option<Head>,
    /// True when the samples are a caller's own, which cannot be told apart from other ones of the same names.
    pub(super) own_data: bool,
    /// What decides instead of the error, where the caller has a metric of its own.
    pub(super) metric: Option<OwnMetric>,
    pub(super) peers: Peers,
    /// Who counts the samples of trials, where other processes do.
    pub(super) count_trial: Option<CountTrial>,
    _told_at_the_end: TellTimings,
}

impl Session {
    /// Loads runtime, model and data. ONNX Runtime is looked for where [`search`](crate::backend::onnxruntime::search)
    /// says, unless `library` names it.
    ///
    /// # Errors
    /// The configuration names no model or no data, or what it names cannot be used.
    pub fn open(config: RunConfig, library: Option<&Path>, host: &Host) -> Result<Self, PipelineError> {
        Self::opened(config, None, library, host)
    }

    /// The same with samples of the caller's own instead of `config.data`; each must have a name that no other has. They
    /// are taken as they are, unless they are pictures ([`dataset::picture`](crate::dataset::picture)) and the configuration
    /// has a preprocessing. What is done is not kept for another run to go on with.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn with_dataset(
        config: RunConfig,
        dataset: Box<dyn Dataset>,
        library: Option<&Path>,
        host: &Host,
    ) -> Result<Self, PipelineError> {
        let config = RunConfig { data: None, labels: None, random_data: false, ..config };
        Self::opened(config, Some(dataset), library, host)
    }

    fn opened(
        config: RunConfig,
        dataset: Option<Box<dyn Dataset>>,
        library: Option<&Path>,
        host: &Host,
    ) -> Result<Self, PipelineError> {
        let host = host.afresh();
        config.validate()?;
        let Some(model) = config.model.clone() else {
            bail!(
                "no model was given; name one with --model FILE, or `model = \"...\"` in the file given with --config"
            );
        };
        if dataset.is_none() && config.data.is_none() && !config.random_data {
            return Err(PipelineError::input(
                "no data was given; name it with --data PATH (images, .npz, ...). Ranges from random numbers say nothing \
                 about accuracy, so they are used only with --random-data",
            ));
        }
        let runtime = OnnxRuntime::load(library)?;
        let provider = config.provider;
        let threads = threads_or_cores(config.threads);
        host.detail(&format!("reading {}", model.display()));
        let subject = Subject::load(runtime, &model, &config.shape)?;
        for finding in &subject.findings {
            host.warn(&format!("{}; {}", finding.message, finding.hint));
        }
        let inputs = subject.float.graph().input.iter().filter(|input| is_e4m3(input));
        let narrow: Vec<String> = inputs.map(|input| format!("`{}`", input.name())).collect();
        if !narrow.is_empty() {
            host.info(&format!(
                "{} takes 8-bit floats (E4M3): what is given in float32 is rounded to the nearest, to 448 at most",
                narrow.join(" and ")
            ));
        }
        require_op_types(&config, &subject)?;
        require_planned(&config, &subject)?;
        let mut reference =
            subject.reference(runtime, &BuildOptions { threads, provider, ..BuildOptions::default() })?;
        let batch = match (config.batch, subject.fixed_batch()) {
            // One sample at a time is what a fixed batch is filled up from, and what a whole input is.
            (Some(asked), Some(fixed)) if asked != 1 && (asked != fixed || subject.takes_whole_inputs()) => {
                ensure!(
                    subject.free_batch().is_none(),
                    "--batch {asked} was asked for, but a sample of this model is a whole call, as its batch is not the first axis of \
                     every input; leave --batch out"
                );
                let why = subject.refuses_batch(asked, &config.shape).unwrap_or_default();
                bail!("--batch {asked} was asked for, but {why}");
            }
            (asked, fixed) => {
                let default = if provider.gpu().is_some() { DEFAULT_CUDA_BATCH } else { DEFAULT_BATCH };
                asked.or(fixed).unwrap_or(default)
            }
        };
        ensure!(batch <= MAX_BATCH, "a batch of {batch} samples is more than the {MAX_BATCH} that are possible");
        let policy = BadPolicy { max_share: config.max_bad, strict: config.strict };
        let exported = Exported::of(&subject.float);
        let inputs = subject.input_specs();
        let layout = config.preprocess.as_ref().and_then(|preprocess| preprocess.layout);
        let frame = config.preprocess.as_ref().and_then(Preprocess::frame);
        let fixed = image_size(&inputs, layout).ok().and_then(|[height, width]| Some([height?, width?]));
        let usual = || Some(config.preset.as_deref().map(usual_size)?.into());
        let size = fixed.or(frame).or(exported.size).or_else(usual);
        let classes = config.classes.as_deref().map(load_classes).transpose()?;
        let head = head(&subject, &exported, size, classes.map(|names| names.len()), &config.detection)?;
        if let Some(not_judged) = exported.not_judged() {
            host.warn(not_judged);
        } else if let Some(head) = head.as_ref().filter(|head| head.unjudged > 0) {
            host.warn(&format!(
                "each box has {} values behind those of its {} classes, which are not judged: coefficients of a mask, key points, or \
                 classes beyond those that have a name; in the last case name all of them with --classes",
                head.unjudged, head.classes
            ));
        }
        let own_data = dataset.is_some();
        let mut settings = DataSettings {
            path: config.data.clone().unwrap_or_default(),
            labels: config.labels.clone(),
            classes: config.classes.clone(),
            preprocess: config.preprocess.clone(),
            preset: config.preset.clone(),
            preprocessor: config.preprocessor.clone(),
            category_ids: config.detection.category_ids.clone(),
            key_points: exported.key_points,
            detector: None,
            task: exported.task.clone().filter(|_| exported.is_detector()),
            names: exported.names.clone(),
            size: exported.size,
        };
        let data = if let Some(dataset) = dataset {
            own_samples(&subject, &settings, dataset)?
        } else if config.random_data {
            random_data(&config, &subject)?
        } else {
            settings.detector = match (&head, exported.is_detector()) {
                (_, true) => Some("yolo"),
                (Some(head), false) => Some(usual_preset(head)),
                (None, false) => None,
            };

            let evaluate =
                EvaluateOptions { batch, policy, compare: compare_options(&config, &subject, &BTreeMap::new()) };
            let control = Control { threads, stop: host.stop(), progress: &|_| {}, checkpoints: None };
            open_data(&subject, &settings, &mut reference, &evaluate, control)?
        };
        for note in &data.collection.notes {
            host.warn(note);
        }
        if let Some(odd) = head.as_ref().and_then(|head| odd_classes(head, data.collection.labelled)) {
            host.warn(&odd);
        }
        let frame = data.preprocess.as_ref().and_then(Preprocess::frame).filter(|_| fixed.is_none());
        if let Some(unfit) = frame.and_then(|frame| exported.unfit(frame)) {
            return Err(PipelineError::Input(unfit));
        }
        if let (Some(head), Some(preprocess)) = (&head, &data.preprocess)
            && let Some(how) = as_for_a_classifier(head, preprocess)
        {
            host.warn(&format!(
                "this model looks like a detector ({}), and its pictures are {how} ({}); --preset {} is usual for it",
                head.describe(),
                preprocess.describe(),
                usual_preset(head)
            ));
        }
        match &data.provenance {
            Provenance::Given(_) | Provenance::Exported(..) | Provenance::None => {}
            other => {
                host.warn(&format!("preprocessing: {}; set --preset or [preprocess] to be sure", other.describe()));
            }
        }
        Ok(Self {
            _told_at_the_end: TellTimings(host.clone()),
            host,
            config,
            runtime,
            subject,
            reference: Mutex::new(reference),
            data,
            threads,
            provider,
            batch,
            policy,
            head,
            own_data,
            metric: None,
            peers: Peers::default(),
            count_trial: None,
        })
    }

    /// Has a metric of the caller's own decide where the error against the float model does otherwise: about the steps of
    /// recovery, and among ways to choose thresholds. `run` shows it, and tests it where a gate is about it. Nothing is
    /// kept for another run to go on with.
    pub fn judge_by(&mut self, metric: OwnMetric) {
        self.metric = Some(metric);
    }

    /// Shares the candidates of recovery with other processes that choose thresholds for the same at the same time.
    pub fn share_with(&mut self, peers: Peers) {
        self.peers = peers;
    }

    /// The configuration in force.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The float model.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The samples.
    pub fn dataset(&self) -> &dyn Dataset {
        &*self.data.collection.dataset
    }

    /// ONNX Runtime, which executes.
    pub fn runtime(&self) -> OnnxRuntime {
        self.runtime
    }

    /// Threads of ONNX Runtime.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How a stage is controlled while `progress` counts samples.
    pub(super) fn control<'c>(&'c self, progress: &'c (dyn Fn(usize) + Sync)) -> Control<'c> {
        Control { threads: self.threads, stop: self.host.stop(), progress, checkpoints: None }
    }

    /// Bad samples that are tolerated over all parts of a comparison.
    pub(super) fn tolerated(&self) -> f64 {
        if self.policy.strict { 0.0 } else { self.policy.max_share * self.dataset().len() as f64 }
    }

    /// Says that the GPU's memory was too small for the batch.
    pub(super) fn warn_halved(&self, what: &str, fitting_batch: Option<usize>) {
        if let Some(batch) = fitting_batch {
            self.host.warn(&format!("the GPU ran out of memory; {what} went on with batches of {batch}"));
        }
    }

    /// Says which patterns and operator types of the configuration match nothing in the model.
    pub(super) fn warn_unmatched(&self, placement: &Placement) -> Result<(), PipelineError> {
        unmatched(&self.config, &self.subject, placement)?.iter().for_each(|warning| self.host.warn(warning));
        Ok(())
    }

    /// Index of the GPU that executes, if one does.
    pub(super) fn gpu(&self) -> Option<u32> {
        self.provider.gpu()
    }

    /// How a model is built where the session executes.
    pub(super) fn build_options(&self, threads: usize) -> BuildOptions {
        BuildOptions { threads, provider: self.provider, ..BuildOptions::default() }
    }

    /// Options of a pass over calibration samples.
    pub(super) fn observe_options(&self, provider: ExecutionProvider) -> ObserveOptions {
        let batch = if provider.gpu().is_some() { self.batch } else { self.subject.fixed_batch().unwrap_or(1) };
        ObserveOptions { batch, threads: self.threads, provider, policy: self.policy }
    }

    /// How outputs are compared.
    pub(super) fn compare_options(&self) -> CompareOptions {
        let options =
            compare_options(&self.config, &self.subject, &self.data.collection.names).with_head(self.head.as_ref());
        CompareOptions { metric: self.metric.clone(), ..options }
    }

    /// How samples are evaluated, `batch` of them in a call.
    pub(super) fn evaluate_options(&self, batch: usize) -> EvaluateOptions {
        EvaluateOptions { batch, policy: self.policy, compare: self.compare_options() }
    }

    /// Where an analysis over `samples` samples executes. A session on a GPU takes about a second until it runs, and an
    /// analysis has many of them: what a few cores do in that time is done there.
    pub(super) fn analyst(&self, samples: usize) -> ExecutionProvider {
        let work = self.subject.multiply_accumulates().map(|each| each * samples as f64);
        if work.is_some_and(|work| work <= CPU_WORK) { ExecutionProvider::Cpu } else { self.provider }
    }

    /// The runner of the float model, for as long as what this gives lives.
    pub(super) fn reference(&self) -> MutexGuard<'_, Box<dyn Runner>> {
        self.reference.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A model where it is to execute.
    pub(super) fn side<'s>(&'s self, provider: ExecutionProvider, model: &'s Model) -> Side<'s> {
        Side { backend: &self.runtime, provider, model }
    }

    /// The errors that operators make by themselves, by [`Session::analyst`].
    pub(super) fn layerwise(&self, pair: &Pair<'_>, samples: Samples<'_>) -> Result<Vec<LayerError>, PipelineError> {
        let (threads, provider) = (self.threads, self.analyst(samples.indices.len()));
        let options = LayerwiseOptions { threads, provider, ..LayerwiseOptions::default() };
        let (mut found, fitting_batch) = layerwise(&self.runtime, pair, self.batched(provider, samples), options)?;
        self.warn_halved("the errors of operators", fitting_batch);
        self.subject.name_as_given(&pair.float, &mut found)?;
        Ok(found)
    }

    /// Every tensor of `target` against the same of `reference`, by [`Session::analyst`].
    pub(super) fn graphwise(
        &self,
        reference: &Model,
        target: &Model,
        sites: &[TensorSite],
        samples: Samples<'_>,
    ) -> Result<Graphwise, PipelineError> {
        let provider = self.analyst(samples.indices.len());
        let options = GraphwiseOptions { threads: self.threads, ..GraphwiseOptions::default() };
        let sides = [self.side(provider, reference), self.side(provider, target)];
        let (found, fitting_batch) = graphwise(sides[0], sides[1], sites, self.batched(provider, samples), options)?;
        self.warn_halved("the comparison of tensors", fitting_batch);
        Ok(found)
    }

    /// What observes the model over its samples.
    pub(super) fn calibrator<'a>(
        &'a self,
        options: &'a ObserveOptions,
        progress: &'a (dyn Fn(usize) + Sync),
        checkpoints: Option<&'a Checkpoints>,
    ) -> Calibrator<'a> {
        Calibrator {
            runtime: self.runtime,
            subject: &self.subject,
            dataset: &*self.data.collection.dataset,
            options,
            control: Control { checkpoints, ..self.control(progress) },
        }
    }

    /// How it is measured what operators do to the outputs.
    pub(super) fn output_noise_options(&self) -> OutputNoiseOptions {
        let kinds = judged_kinds(&self.subject.outputs, &self.config.output_kind).into_iter();
        let ignored = kinds.filter(|(_, kind)| *kind == OutputKind::Ignored).map(|(name, _)| name).collect();
        OutputNoiseOptions {
            threads: self.threads,
            provider: self.analyst(FEW_SAMPLES),
            ignored,
            parts: self.compare_options().parts,
        }
    }

    /// A gate that this model can be measured by.
    pub(super) fn default_gate(&self) -> &'static str {
        let kinds = self.subject.kinds(&self.config.output_kind);
        let is_classification = |output: &TensorInfo| {
            let sample: Vec<usize> = output.shape.iter().skip(1).map(|extent| extent.unwrap_or(2)).collect();
            let detected = || Some(OutputKind::detect(output.element_type?, &sample));
            let kind = kinds.get(&output.name).copied().or_else(detected);
            kind == Some(OutputKind::Classification)
        };
        if self.head.is_some() {
            "detection_recall=0.9"
        } else if self.subject.outputs.iter().any(is_classification) {
            "top1=0.99"
        } else {
            "sqnr_db=20"
        }
    }

    /// The configuration with everything that was found out, to do the same again from anywhere.
    pub(super) fn repeatable(&self, out: &Path) -> RunConfig {
        let mut config = RunConfig { out: Some(out.to_owned()), ..self.config.clone() }.absolute();
        config.preprocess.clone_from(&self.data.preprocess);
        (config.preset, config.preprocessor) = (None, None);
        config
    }

    /// Hash over the names of samples, in order, and their preprocessing: the same wherever they are read from.
    pub(super) fn data_hash(&self, indices: &[usize]) -> ContentHash {
        let dataset = self.dataset();
        data_hash(indices.iter().map(|&index| (dataset.id(index), String::new())), self.data.preprocess.as_ref())
    }

    /// The same, with the sizes of all files and the content of [`HASHED`] samples, by which machines that count parts of a
    /// comparison know that they have the same data. To read all of them again would take as long as the pass itself; samples
    /// that a program gives are told apart by it.
    pub(super) fn content_hash(&self, indices: &[usize]) -> ContentHash {
        let dataset = self.dataset();
        let step = indices.len().div_ceil(HASHED).max(1);
        let samples = indices.iter().enumerate().map(|(at, &index)| {
            let bytes = dataset.file(index).and_then(|file| Some(std::fs::metadata(file).ok()?.len()));
            let is_read = at.is_multiple_of(step) && !self.own_data;
            let content = is_read.then(|| sample_hash(dataset, index)).flatten();
            (dataset.id(index), format!("{bytes:?} {content:?}"))
        });
        data_hash(samples, self.data.preprocess.as_ref())
    }
}
