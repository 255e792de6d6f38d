//! Reads samples ahead of their use: on several threads, in order, in bounded memory.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded};

use super::{Dataset, SampleError, Scene};
use crate::{
    artifact::Reading,
    tensor::{Tensor, TensorMap, stacked},
};

/// Samples that run together, in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Indices in the data set.
    pub indices: Vec<usize>,
    /// Names of the samples.
    pub ids: Vec<String>,
    /// The model's inputs, stacked along the first axis.
    pub inputs: TensorMap,
    /// Right classes of the samples, where they are known.
    pub labels: Vec<Option<u32>>,
    /// Right classes of their pixels, where they are known.
    pub masks: Vec<Option<Tensor>>,
    /// Where the pictures lie in the inputs, with their labelled boxes.
    pub scenes: Vec<Option<Scene>>,
    /// Samples in a whole batch; this one may have fewer.
    pub whole: usize,
    /// How many of the pass's samples are done with this batch: a pass over the others gives the batches after it.
    pub done: usize,
    /// The bad ones among them, since the batch before.
    pub skipped: Vec<SampleError>,
}

/// How many bad samples are tolerated.
#[derive(Clone, Copy, Debug)]
pub struct BadPolicy {
    /// Largest share of bad samples, between 0 and 1.
    pub max_share: f64,
    /// The first bad sample ends the pass.
    pub strict: bool,
}

impl BadPolicy {
    /// Whether so many bad samples are tolerated in a data set of `read`: a pass over few of them must not fail for one
    /// that is bad.
    ///
    /// # Errors
    /// They are too many.
    pub fn check(self, bad: &[SampleError], read: usize) -> Result<(), PassError> {
        let Self { max_share, strict } = self;
        match bad {
            [first, ..] if strict || bad.len() as f64 > max_share * read as f64 => Err(PassError::TooManyBad {
                bad: bad.len(),
                read,
                limit: if strict {
                    "none, as --strict asks".to_owned()
                } else {
                    format!("the {} % that --max-bad allows", (max_share * 1e6).round() / 1e4)
                },
                first: first.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// Options of [`prefetch`].
#[derive(Clone, Copy, Debug)]
pub struct PrefetchOptions<'a> {
    /// Samples in a batch; fewer where shapes change and at the end.
    pub batch: usize,
    /// Threads that read.
    pub threads: usize,
    /// How many bad samples are tolerated.
    pub policy: BadPolicy,
    /// Ends the pass early when set.
    pub stop: &'a AtomicBool,
    /// Bad samples of an earlier part of the pass, which count.
    pub skipped: &'a [SampleError],
}

/// What a pass over samples was like.
#[derive(Clone, Debug, Default)]
pub struct PassSummary {
    /// Samples that could not be used.
    pub skipped: Vec<SampleError>,
    /// Time the consumer waited for samples.
    pub waited: Duration,
    /// Time that readers spent, added over threads.
    pub reading: Duration,
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// More bad samples than tolerated.
    #[error("{bad} of the samples cannot be used, more than {limit} (of {read} in all); the first: {first}")]
    TooManyBad {
        /// Bad samples so far.
        bad: usize,
        /// Samples in the data set.
        read: usize,
        /// The limit in words.
        limit: String,
        /// The first of them.
        first: SampleError,
    },
    /// `stop` was set.
    #[error("interrupted")]
    Stopped,
}

/// Gives the batches of `indices`, in order, to `consume`, which may stop early by dropping out of the loop.
///
/// Memory holds a few batches, however many samples there are. What `consume` returns comes back with a summary of
/// the pass, or with the reason why the batches ended before the samples did.
pub fn prefetch<R>(
    dataset: &dyn Dataset,
    indices: &[usize],
    options: PrefetchOptions<'_>,
    consume: impl FnOnce(&mut (dyn Iterator<Item = Batch> + Send)) -> R,
) -> (R, Result<PassSummary, PassError>) {
    let threads = options.threads.clamp(1, 64);
    let window = (options.batch * 2).max(threads * 2);
    let next = AtomicUsize::new(0);
    let reading = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // A ticket allows one sample to be read; it comes back when that sample has been delivered in order.
        let (give_ticket, take_ticket) = bounded::<()>(window);
        let (send, receive) = bounded::<(usize, Result<Read, SampleError>)>(window);
        for _ in 0..window {
            let _ = give_ticket.send(());
        }
        for _ in 0..threads {
            let (take_ticket, send) = (take_ticket.clone(), send.clone());
            let (next, reading) = (&next, &reading);
            scope.spawn(move || {
                while take_ticket.recv().is_ok() {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&index) = indices.get(position) else { break };
                    let started = Instant::now();
                    let _reading = dataset.file(index).as_deref().map(Reading::of);
                    let read = || {
                        let (inputs, scene) = dataset.read(index)?;
                        Ok((inputs, (dataset.mask(index)?, scene)))
                    };
                    let sample = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
                        let reason = "reading it failed in a way that is a defect; please report the file".to_owned();
                        Err(SampleError { sample: dataset.id(index).to_owned(), reason })
                    });
                    reading.fetch_add(started.elapsed().as_micros() as usize, Ordering::Relaxed);
                    if send.send((position, sample)).is_err() {
                        break;
                    }
                }
            });
        }
        drop((take_ticket, send));
        let mut batches = Batches {
            dataset,
            indices,
            options,
            receive,
            give_ticket,
            arrived: BTreeMap::new(),
            position: 0,
            pending: None,
            summary: PassSummary { skipped: options.skipped.to_vec(), ..PassSummary::default() },
            told: options.skipped.len(),
            error: None,
        };
        let result = consume(&mut batches);
        let Batches { mut summary, error, .. } = batches;
        summary.reading = Duration::from_micros(reading.load(Ordering::Relaxed) as u64);
        (result, error.map_or(Ok(summary), Err))
    })
}

/// Inputs of a sample, and its label mask and scene.
type Read = (TensorMap, (Option<Tensor>, Option<Scene>));

struct Batches<'a> {
    dataset: &'a dyn Dataset,
    indices: &'a [usize],
    options: PrefetchOptions<'a>,
    receive: Receiver<(usize, Result<Read, SampleError>)>,
    give_ticket: crossbeam_channel::Sender<()>,
    arrived: BTreeMap<usize, Result<Read, SampleError>>,
    position: usize,
    /// The first sample of the next batch, when its shape did not fit the last one.
    pending: Option<(usize, Read)>,
    summary: PassSummary,
    /// Bad samples that batches have told.
    told: usize,
    error: Option<PassError>,
}

impl Batches<'_> {
    /// The next good sample with its index.
    fn next_sample(&mut self) -> Option<(usize, Read)> {
        if let Some(pending) = self.pending.take() {
            return Some(pending);
        }
        while self.position < self.indices.len() && self.error.is_none() {
            if self.options.stop.load(Ordering::Relaxed) {
                self.error = Some(PassError::Stopped);
                return None;
            }
            let started = Instant::now();
            let sample = loop {
                if let Some(sample) = self.arrived.remove(&self.position) {
                    break sample;
                }
                match self.receive.recv_timeout(Duration::from_millis(200)) {
                    Ok((position, sample)) => {
                        self.arrived.insert(position, sample);
                    }
                    Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
                        if self.options.stop.load(Ordering::Relaxed) {
                            self.error = Some(PassError::Stopped);
                            return None;
                        }
                    }
                    Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return None,
                }
            };
            self.summary.waited += started.elapsed();
            let index = self.indices[self.position];
            self.position += 1;
            let _ = self.give_ticket.try_send(());
            match sample {
                Ok(read) => return Some((index, read)),
                Err(bad) => self.skip(bad),
            }
        }
        None
    }

    fn skip(&mut self, bad: SampleError) {
        self.summary.skipped.push(bad);
        self.error = self.options.policy.check(&self.summary.skipped, self.dataset.len()).err();
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let (mut indices, mut masks, mut scenes) = (Vec::new(), Vec::new(), Vec::new());
        let mut samples: Vec<TensorMap> = Vec::new();
        while samples.len() < self.options.batch.max(1) {
            let Some((index, (inputs, (mask, scene)))) = self.next_sample() else { break };
            if samples.first().is_some_and(|first| !stackable(first, &inputs)) {
                self.pending = Some((index, (inputs, (mask, scene))));
                break;
            }
            indices.push(index);
            samples.push(inputs);
            masks.push(mask);
            scenes.push(scene);
        }
        if samples.is_empty() || self.error.is_some() {
            return None;
        }
        let ids = indices.iter().map(|&index| self.dataset.id(index).to_owned()).collect();
        let labels = indices.iter().map(|&index| self.dataset.label(index)).collect();
        let done = self.position - usize::from(self.pending.is_some());
        let skipped = self.summary.skipped[self.told..].to_vec();
        self.told = self.summary.skipped.len();
        Some(Batch {
            indices,
            ids,
            inputs: stacked(samples),
            labels,
            masks,
            scenes,
            whole: self.options.batch.max(1),
            done,
            skipped,
        })
    }
}

fn stackable(first: &TensorMap, other: &TensorMap) -> bool {
    first.len() == other.len()
        && first.iter().zip(other).all(|((a, x), (b, y))| {
            a == b
                && x.element_type() == y.element_type()
                && !x.shape().is_empty()
                && x.shape()[0] == 1
                && x.shape() == y.shape()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sample i holds the value i; every multiple of `bad` is bad; odd samples of `ragged` data are wider.
    struct Numbers {
        ids: Vec<String>,
        bad: usize,
        panics: usize,
        ragged: bool,
    }

    impl Numbers {
        fn new(count: usize) -> Self {
            Self {
                ids: (0..count).map(|i| i.to_string()).collect(),
                bad: usize::MAX,
                panics: usize::MAX,
                ragged: false,
            }
        }
    }

    impl Dataset for Numbers {
        fn len(&self) -> usize {
            self.ids.len()
        }
        fn id(&self, index: usize) -> &str {
            &self.ids[index]
        }
        fn label(&self, _index: usize) -> Option<u32> {
            None
        }
        fn mask(&self, index: usize) -> Result<Option<Tensor>, SampleError> {
            match index % self.bad {
                1 if self.bad == 50 => {
                    Err(SampleError { sample: self.ids[index].clone(), reason: "bad mask".to_owned() })
                }
                _ => Ok(Some(Tensor::from_f32(vec![1], vec![index as f32]).unwrap())),
            }
        }
        fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
            assert_ne!(index, self.panics);
            if index.is_multiple_of(self.bad) && self.bad != usize::MAX {
                return Err(SampleError { sample: self.ids[index].clone(), reason: "bad".to_owned() });
            }
            // Later samples are quicker, so that order is not given for free.
            std::thread::sleep(Duration::from_micros((50 - index as u64 % 50) * 20));
            let width = if self.ragged && index % 2 == 1 { 2 } else { 1 };
            let tensor = Tensor::from_f32(vec![1, width], vec![index as f32; width]).unwrap();
            Ok(TensorMap::from([("x".to_owned(), tensor)]))
        }
    }

    fn run(
        data: &Numbers,
        batch: usize,
        threads: usize,
        max_share: f64,
    ) -> (Vec<Batch>, Result<PassSummary, PassError>) {
        let stop = AtomicBool::new(false);
        let policy = BadPolicy { max_share, strict: false };
        let options = PrefetchOptions { batch, threads, policy, stop: &stop, skipped: &[] };
        let indices: Vec<usize> = (0..data.len()).collect();
        prefetch(data, &indices, options, |batches| batches.collect())
    }

    #[test]
    fn samples_come_in_order_whatever_the_threads() {
        for threads in [1, 3, 8] {
            let (batches, summary) = run(&Numbers::new(103), 8, threads, 0.0);
            assert!(summary.unwrap().skipped.is_empty());
            assert_eq!(batches.len(), 13);
            let values: Vec<f32> = batches.iter().flat_map(|batch| batch.inputs["x"].to_f32()).collect();
            assert_eq!(values, (0..103).map(|i| i as f32).collect::<Vec<_>>());
            assert_eq!(batches[12].inputs["x"].shape(), [7, 1]);
        }
    }

    #[test]
    fn shapes_that_differ_are_not_stacked() {
        let (batches, summary) = run(&Numbers { ragged: true, ..Numbers::new(6) }, 4, 2, 0.0);
        summary.unwrap();
        assert_eq!(batches.iter().map(|batch| batch.ids.len()).collect::<Vec<_>>(), [1; 6]);
    }

    #[test]
    fn bad_samples_are_skipped_up_to_the_limit() {
        let data = Numbers { bad: 10, ..Numbers::new(100) };
        let (batches, summary) = run(&data, 8, 4, 0.1);
        assert_eq!(summary.unwrap().skipped.len(), 10);
        assert_eq!(batches.iter().map(|batch| batch.ids.len()).sum::<usize>(), 90);
        let bad_masks = Numbers { bad: 50, ..Numbers::new(100) };
        let (batches, summary) = run(&bad_masks, 1, 4, 0.1);
        let reasons: Vec<String> = summary.unwrap().skipped.into_iter().map(|skipped| skipped.reason).collect();
        assert_eq!(reasons, ["bad", "bad mask", "bad", "bad mask"]);
        assert!(batches.iter().all(|batch| batch.masks[0].as_ref().unwrap().to_f32()[0] as usize == batch.indices[0]));
        let (_, summary) = run(&data, 8, 4, 0.05);
        assert!(matches!(summary, Err(PassError::TooManyBad { bad: 6, .. })), "{summary:?}");
    }

    #[test]
    fn a_panic_while_reading_is_a_bad_sample() {
        let (batches, summary) = run(&Numbers { panics: 3, ..Numbers::new(10) }, 2, 2, 0.5);
        assert_eq!(batches[1].indices, [2, 4]);
        let skipped = summary.unwrap().skipped;
        assert!(skipped.len() == 1 && skipped[0].reason.contains("defect"), "{skipped:?}");
    }

    #[test]
    fn a_consumer_may_leave_early_and_a_stop_ends_the_pass() {
        let data = Numbers::new(1000);
        let stop = AtomicBool::new(false);
        let policy = BadPolicy { max_share: 0.0, strict: true };
        let options = PrefetchOptions { batch: 4, threads: 4, policy, stop: &stop, skipped: &[] };
        let indices: Vec<usize> = (0..1000).collect();
        let (first, summary) = prefetch(&data, &indices, options, |batches| batches.next().map(|batch| batch.indices));
        assert_eq!(first.unwrap(), [0, 1, 2, 3]);
        summary.unwrap();
        stop.store(true, Ordering::Relaxed);
        let (rest, summary) = prefetch(&data, &indices, options, |batches| batches.count());
        assert!(rest == 0 && matches!(summary, Err(PassError::Stopped)));
    }

    #[test]
    fn a_pass_goes_on_from_any_batch() {
        for (ragged, bad) in [(false, 7), (true, 5), (true, 0)] {
            let data = Numbers { bad, ragged, ..Numbers::new(41) };
            let stop = AtomicBool::new(false);
            let policy = BadPolicy { max_share: 1.0, strict: false };
            let options = PrefetchOptions { batch: 4, threads: 3, policy, stop: &stop, skipped: &[] };
            let indices: Vec<usize> = (0..41).collect();
            let (whole, summary) = prefetch(&data, &indices, options, |batches| batches.collect::<Vec<_>>());
            let all = summary.unwrap().skipped;
            let mut skipped = Vec::new();
            for (i, batch) in whole.iter().enumerate() {
                skipped.extend(batch.skipped.clone());
                let options = PrefetchOptions { skipped: &skipped, ..options };
                let (rest, summary) =
                    prefetch(&data, &indices[batch.done..], options, |batches| batches.collect::<Vec<_>>());
                let lists = |batches: &[Batch]| batches.iter().map(|b| b.indices.clone()).collect::<Vec<_>>();
                assert_eq!(lists(&rest), lists(&whole[i + 1..]));
                assert_eq!(summary.unwrap().skipped, all);
            }
        }
    }
}
