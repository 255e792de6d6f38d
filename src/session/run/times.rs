//! The speed part of a run: the reference and every variant in interleaved rounds, at each batch size and thread count.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use super::{Job, Variant};
use crate::{
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, LayerTime, Purpose, Runner, onnxruntime::emulation,
    },
    bench::{self, LAYER_CALLS, Measurement, Protocol, SystemClock, Timing, slowdowns},
    dataset::{BadPolicy, PrefetchOptions},
    pass::Samples,
    quantize::Precision,
    session::{PipelineError, Session, opened::mode},
    tensor::TensorMap,
};

/// Up to so many samples are compared in calls like those that are timed: for a GPU, where a session takes seconds at its first
/// call of each shape, as long as single samples take longer than batches of them.
const FEW: usize = 1000;

/// Batch sizes that the model cannot take are known before any work is done.
pub(super) fn check(session: &Session) -> Result<(), PipelineError> {
    for &batch in &session.config.bench_batch {
        if let Some(why) = session.subject.refuses_batch(batch, &session.config.shape) {
            bail!("latency at batch {batch} was asked for, but {why}");
        }
    }
    Ok(())
}

impl Session {
    /// Batch sizes at which the latency is measured.
    pub(super) fn bench_batches(&self) -> Vec<usize> {
        match &self.config.bench_batch[..] {
            [] => vec![self.subject.usual_batch()],
            several => several.to_vec(),
        }
    }

    /// Samples in a call where `samples` of them are compared in all.
    pub(super) fn compared_at_once(&self, samples: usize) -> usize {
        let is_free = self.config.batch.is_none() && self.subject.fixed_batch().is_none();
        let timed = self.bench_batches().first().copied().filter(|&timed| timed < self.batch);
        timed.filter(|_| self.provider.gpu().is_some() && is_free && samples <= FEW).unwrap_or(self.batch)
    }
}

impl Job<'_> {
    /// Latencies of the reference, which is called by its type (`fp32`), and of every variant, called by its precision.
    pub(super) fn time(&mut self, variants: &mut [Variant]) -> Result<Option<Vec<Measurement>>, PipelineError> {
        let config = &self.session.config;
        let seconds = config.bench_seconds;
        if seconds <= 0.0 {
            return Ok(None);
        }
        let batches = self.session.bench_batches();
        let threads = match &config.bench_threads[..] {
            [] => vec![self.session.threads],
            several => several.to_vec(),
        };
        let mut inputs = Vec::new();
        for batch in batches {
            match self.first_call(batch) {
                Some(first) => inputs.push(first),
                None => self.session.host.warn(&format!(
                    "latency at batch {batch} was not measured: the evaluation data does not begin with {batch} samples of \
                     one shape"
                )),
            }
        }
        self.session.host.detail("measuring latency");
        let baseline = self.reference_name();
        let session = &mut *self.session;
        let host = session.host.clone();
        let provider = session.provider;
        let mut extra: Vec<(String, Timing, usize, Box<dyn Runner>)> = Vec::new();
        // On the CPU, comparing builds models otherwise than those who use them.
        let reused = |count: usize| count == session.threads && provider.gpu().is_some();
        for &count in threads.iter().filter(|&&count| !reused(count)) {
            let options = BuildOptions { purpose: Purpose::Deployed, ..session.build_options(count) };
            let reference = session.runtime.build(&session.subject.float, &options)?;
            extra.push((baseline.to_owned(), Timing::Measured, count, reference));
            for variant in variants.iter().filter(|variant| variant.runner.is_some()) {
                let Some(model) = variant.imitation.as_ref().or(variant.model.as_ref()) else { continue };
                let runner = session.runtime.build(model, &options)?;
                extra.push((variant.precision.to_string(), timing(variant, provider), count, runner));
            }
        }
        let mut reference = session.reference();
        let mut runners = Vec::new();
        if threads.iter().any(|&count| reused(count)) {
            runners.push((baseline.to_owned(), Timing::Measured, session.threads, RefCell::new(&mut *reference)));
            for variant in variants.iter_mut() {
                let (name, timing) = (variant.precision.to_string(), timing(variant, provider));
                if let Some(runner) = &mut variant.runner {
                    runners.push((name, timing, session.threads, RefCell::new(runner)));
                }
            }
        }
        let extra =
            extra.iter_mut().map(|(name, timing, count, runner)| (name.clone(), *timing, *count, RefCell::new(runner)));
        runners.extend(extra);
        let mut timed: Vec<bench::Timed<'_, BackendError>> = Vec::new();
        for (batch, inputs) in &inputs {
            timed.extend(runners.iter().map(|(name, timing, threads, runner)| bench::Timed {
                name: name.clone(),
                batch: *batch,
                lane: *threads,
                mode: mode(provider, *threads),
                timing: *timing,
                call: Box::new(|| {
                    runner.borrow_mut().visit(inputs, &mut |_, _| Ok(host.check()?))?;
                    Ok(None)
                }),
            }));
        }
        let protocol = Protocol::of(Duration::from_secs_f64(seconds));
        let times = bench::run(&mut timed, Some(baseline), &protocol, &SystemClock::default())?;
        drop(timed);
        drop(runners);
        drop(reference);
        if let (Some((_, inputs)), false) = (inputs.first(), slowdowns(&times, bits, |_| None).is_empty()) {
            // On a GPU a session more takes seconds until it runs; `calib bench --layer-times` is there for it.
            let on_gpu = provider.gpu().is_some();
            let layers = if on_gpu { BTreeMap::new() } else { self.layer_times(variants, threads[0], inputs)? };
            host.note_first(slowdowns(&times, bits, |name| layers.get(name).map(Vec::as_slice)));
        }
        Ok(Some(times))
    }

    /// The times of the layers of the reference and of every variant, by the name of its precision.
    fn layer_times(
        &self,
        variants: &[Variant],
        threads: usize,
        inputs: &TensorMap,
    ) -> Result<BTreeMap<String, Vec<LayerTime>>, PipelineError> {
        let session = &self.session;
        let options = BuildOptions { purpose: Purpose::Deployed, layer_times: true, ..session.build_options(threads) };
        let models = variants.iter().filter_map(|variant| Some((variant.precision.name(), variant.model.as_ref()?)));
        let mut layers = BTreeMap::new();
        for (name, model) in std::iter::once((self.reference_name(), &session.subject.float)).chain(models) {
            let times = session.runtime.build(model, &options)?.layer_times(inputs, LAYER_CALLS)?;
            layers.extend(times.map(|times| (name.to_owned(), times)));
        }
        Ok(layers)
    }

    /// The first call of `batch` samples of the evaluation, with the number of samples in it; `None` where there are too few of
    /// one shape.
    pub(super) fn first_call(&self, batch: usize) -> Option<(usize, TensorMap)> {
        self.session.subject.first_call(self.reading(batch), batch).ok().flatten()
    }

    /// Inputs of the first samples that can be read, `batch` of them in each of `count` calls at most.
    pub(super) fn first_batches(&self, batch: usize, count: usize) -> Vec<TensorMap> {
        let read = self.reading(batch).firsts(batch, count).unwrap_or_default();
        read.into_iter().map(|part| part.inputs).collect()
    }

    fn reading(&self, batch: usize) -> Samples<'_> {
        let policy = BadPolicy { max_share: 1.0, strict: false };
        let reading = PrefetchOptions { batch, threads: 1, policy, stop: self.session.host.stop(), skipped: &[] };
        Samples { dataset: &*self.session.data.collection.dataset, indices: &self.split.evaluation, reading }
    }
}

/// Bits of a value in a precision, by its name.
pub(super) fn bits(precision: &str) -> Option<u32> {
    Some(precision.parse::<Precision>().ok()?.bits())
}

fn timing(variant: &Variant, provider: ExecutionProvider) -> Timing {
    let emulated = variant.model.as_ref().is_some_and(|model| emulation(model, provider).is_some());
    if emulated { Timing::Emulated } else { Timing::Measured }
}
