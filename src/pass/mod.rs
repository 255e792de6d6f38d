//! These samples, in this order, through these sources of outputs.
//!
//! A pass reads ahead, fills batches up where a model fixes them or a device rounds by them, halves batches that do not fit
//! into memory, sends inputs ahead to a device, stops when it is told to, tells its progress and where it stands. Whoever
//! wants the outputs is a [`Consumer`]: it gets them where they lie ([`Tensors`]), and says only
//! what it does with them.

mod ahead;
mod halving;
mod outputs;

use std::{
    marker::PhantomData,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use self::outputs::{Outputs, Part, Running, Taking};
use self::{ahead::send_ahead, halving::in_parts, outputs::Lane};
use crate::{
    backend::{BackendError, Given, Runner, Sent, Tensors},
    dataset::{Batch, Dataset, PassError, PassSummary, PrefetchOptions, SampleError, prefetch},
    tensor::part as part_of,
};

static PASSES_MADE: AtomicU64 = AtomicU64::new(0);

/// Passes over samples that this process has begun so far.
pub fn passes_made() -> u64 {
    PASSES_MADE.load(Ordering::Relaxed)
}

/// Samples of a data set and how they are read.
#[derive(Clone, Copy)]
pub struct Samples<'a> {
    /// The data.
    pub dataset: &'a dyn Dataset,
    /// Which of its samples, in this order.
    pub indices: &'a [usize],
    /// How they are read; no figure depends on it. A model that fixes its batch gets as many at least.
    pub reading: PrefetchOptions<'a>,
}

/// How far a pass has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Samples that are done, bad ones included.
    pub done: usize,
    /// The bad ones.
    pub skipped: Vec<SampleError>,
    /// The good ones.
    pub good: usize,
}

/// What a pass was like.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// What reading was like.
    pub summary: PassSummary,
    /// Samples that went through, in this call.
    pub samples: usize,
    /// The batch that had to be cut down to for lack of memory, if any had.
    pub fitting_batch: Option<usize>,
    /// Time in which models ran and their outputs were used.
    pub busy: Duration,
    /// Time in which that waited for samples.
    pub waited: Duration,
    /// Whether a device did the work.
    pub on_device: bool,
}

impl Ran {
    /// Adds another pass.
    pub fn add(&mut self, other: Self) {
        self.summary.skipped.extend(other.summary.skipped);
        self.summary.waited += other.summary.waited;
        self.summary.reading += other.summary.reading;
        self.samples += other.samples;
        self.fitting_batch = self.fitting_batch.into_iter().chain(other.fitting_batch).min();
        self.busy += other.busy;
        self.waited += other.waited;
        self.on_device |= other.on_device;
    }

    /// Share of the time in which models ran or their outputs were used, between 0 and 1.
    pub fn utilisation(&self) -> f64 {
        let total = (self.busy + self.waited).as_secs_f64();
        if total > 0.0 { self.busy.as_secs_f64() / total } else { 0.0 }
    }
}

/// Does something with the outputs of samples.
pub trait Consumer {
    /// Why it cannot.
    type Error: From<BackendError> + From<PassError>;

    /// Takes what every source gave for a part; `None` for sources that are not wanted or failed.
    ///
    /// # Errors
    /// Whatever ends the pass.
    fn take(&mut self, part: &Part<'_>, given: &[Option<&Given<'_>>]) -> Result<(), Self::Error>;

    /// Called when a batch is done: the moment to keep what there is.
    ///
    /// # Errors
    /// Whatever ends the pass.
    fn done(&mut self, _at: &Position) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Whether a source is to run.
    fn wants(&self, _source: usize) -> bool {
        true
    }

    /// Called when a source failed; to go on without it is to return nothing.
    ///
    /// # Errors
    /// Whatever ends the pass.
    fn failed(&mut self, _source: usize, error: BackendError) -> Result<(), Self::Error> {
        Err(error.into())
    }

    /// Whether an error of [`Self::take`] is want of memory that left no trace, so that halves may be taken instead.
    fn may_repeat(&self, _error: &Self::Error) -> bool {
        false
    }

    /// Whether fillers would count, as outputs are sums over a batch. Samples that do not fill a batch then run one by one,
    /// as [`Part::copies`] of themselves.
    fn sums_up(&self) -> bool {
        false
    }
}

/// A closure as a [`Consumer`].
struct Each<F, E> {
    take: F,
    sums_up: bool,
    error: PhantomData<fn() -> E>,
}

impl<E: From<BackendError> + From<PassError>, F: FnMut(&Part<'_>, &[Option<&Given<'_>>]) -> Result<(), E>> Consumer
    for Each<F, E>
{
    type Error = E;

    fn take(&mut self, part: &Part<'_>, given: &[Option<&Given<'_>>]) -> Result<(), E> {
        (self.take)(part, given)
    }

    fn sums_up(&self) -> bool {
        self.sums_up
    }
}

impl Samples<'_> {
    /// All samples through `sources`, to `consumer`.
    ///
    /// # Errors
    /// As `consumer`; too many samples cannot be read, or the user stopped.
    pub fn run<C: Consumer>(self, sources: &mut [&mut dyn Outputs], consumer: &mut C) -> Result<Ran, C::Error> {
        self.go_on(&mut Position::default(), &|_| {}, sources, consumer)
    }

    /// Every part through one runner, to a closure.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn each<E: From<BackendError> + From<PassError>>(
        self,
        runner: &mut dyn Runner,
        take: impl FnMut(&Part<'_>, &Tensors<'_>) -> Result<(), E>,
    ) -> Result<Ran, E> {
        self.through(runner, false, take)
    }

    /// The same where outputs are sums over a batch (see [`Consumer::sums_up`]).
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn each_sum<E: From<BackendError> + From<PassError>>(
        self,
        runner: &mut dyn Runner,
        take: impl FnMut(&Part<'_>, &Tensors<'_>) -> Result<(), E>,
    ) -> Result<Ran, E> {
        self.through(runner, true, take)
    }

    fn through<E: From<BackendError> + From<PassError>>(
        self,
        runner: &mut dyn Runner,
        sums_up: bool,
        mut take: impl FnMut(&Part<'_>, &Tensors<'_>) -> Result<(), E>,
    ) -> Result<Ran, E> {
        let take = |part: &Part<'_>, given: &[Option<&Given<'_>>]| {
            given.iter().flatten().try_for_each(|given| take(part, &given.outputs))
        };
        self.run(&mut [&mut Running(runner)], &mut Each { take, sums_up, error: PhantomData })
    }

    /// The samples behind `at`, which is brought up to date after every batch; `progress` is told how many are done since
    /// the last call.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn go_on<C: Consumer>(
        self,
        at: &mut Position,
        progress: &(dyn Fn(usize) + Sync),
        sources: &mut [&mut dyn Outputs],
        consumer: &mut C,
    ) -> Result<Ran, C::Error> {
        PASSES_MADE.fetch_add(1, Ordering::Relaxed);
        let mut lanes: Vec<Lane<'_>> = sources.iter_mut().map(|source| Lane::new(&mut **source)).collect();
        for lane in &mut lanes {
            lane.taking.fills &= !consumer.sums_up();
        }
        let fixed = lanes.iter().filter_map(|lane| lane.taking.fixed).min();
        let fixed = fixed.map(|fixed| fixed.max(1));
        // Not where others would have to take more samples in a call than they were meant to.
        let at_once = lanes.iter().map(|lane| lane.taking.at_once).filter(|&many| many > 0);
        let at_once = at_once.clone().max().filter(|_| fixed.is_none() && at_once.min() > Some(1));
        let sender = lanes.iter().find_map(|lane| Some((lane.accelerator()?, lane.taking)));
        let mut pass = Pass { lanes, consumer, fixed, most: fixed.unwrap_or(usize::MAX) };
        let known = at.skipped.clone();
        let (begin, good) = (at.done, at.good);
        let rest = self.indices.get(begin..).unwrap_or_default();
        let batch = self.reading.batch.max(fixed.or(at_once).unwrap_or(1));
        let reading = PrefetchOptions { batch, skipped: &known, ..self.reading };
        let mut busy = Duration::ZERO;
        let mut waited = None;
        let (outcome, summary) = prefetch(self.dataset, rest, reading, |batches| {
            let mut work = |mut batch: Batch, sent: Option<Sent>| {
                // Batches that were read or sent ahead may be there still.
                if self.reading.stop.load(Ordering::Relaxed) {
                    return Err(C::Error::from(PassError::Stopped));
                }
                let started = Instant::now();
                let sent = pass.batch(&batch, at.good, sent)?;
                busy += started.elapsed();
                progress(batch.ids.len());
                at.done = begin + batch.done;
                at.good += batch.ids.len();
                at.skipped.append(&mut batch.skipped);
                pass.consumer.done(at)?;
                Ok(sent)
            };
            match &sender {
                Some((device, taking)) => {
                    let send = |batch: &Batch, used| {
                        let rows = taking.rows(batch.ids.len(), batch.whole);
                        // Who needs what could not be sent sends it again, and tells why it fails.
                        device.send(&batch.inputs, rows, used).ok()
                    };
                    waited = Some(send_ahead(batches, send, work)?);
                }
                None => {
                    for batch in batches {
                        work(batch, None)?;
                    }
                }
            }
            Ok::<_, C::Error>(())
        });
        outcome?;
        let summary = summary?;
        // Bad samples behind the last batch came with none.
        at.skipped.clone_from(&summary.skipped);
        at.done = self.indices.len();
        Ok(Ran {
            samples: at.good - good,
            fitting_batch: Some(pass.most).filter(|_| fixed.is_none()).filter(|&most| most < usize::MAX),
            busy,
            waited: waited.unwrap_or(summary.waited),
            on_device: sender.is_some(),
            summary,
        })
    }

    /// The first batch of `batch` samples; `None` where there are not as many of one shape.
    ///
    /// # Errors
    /// Too many samples cannot be read, or the user stopped.
    pub fn first(self, batch: usize) -> Result<Option<Batch>, PassError> {
        Ok(self.firsts(batch, 1)?.pop())
    }

    /// The first `count` batches of as many samples each that can be read; fewer where there are no more.
    ///
    /// # Errors
    /// More samples cannot be read than the policy allows.
    pub fn firsts(self, batch: usize, count: usize) -> Result<Vec<Batch>, PassError> {
        let reading = PrefetchOptions { batch, ..self.reading };
        let (first, summary) =
            prefetch(self.dataset, self.indices, reading, |batches| batches.take(count).collect::<Vec<_>>());
        summary?;
        Ok(first.into_iter().filter(|part| part.ids.len() == batch).collect())
    }
}

/// Why a part did not go through.
enum Failure<E> {
    /// It may in halves.
    TooLarge,
    Other(E),
}

/// The sources and the consumer of one pass.
struct Pass<'a, 'c, C> {
    lanes: Vec<Lane<'a>>,
    consumer: &'c mut C,
    /// Samples of every batch, where a model fixes it.
    fixed: Option<usize>,
    /// Samples that fit into one call, as far as is known.
    most: usize,
}

impl<C: Consumer> Pass<'_, '_, C> {
    /// Takes a batch through, whole or in parts. Returns the inputs that were sent, unless they have to make room.
    fn batch(&mut self, batch: &Batch, first: usize, mut sent: Option<Sent>) -> Result<Option<Sent>, C::Error> {
        let samples = batch.ids.len();
        let mut most = self.most;
        let worked = in_parts(
            &mut most,
            samples,
            |failure| matches!(failure, Failure::TooLarge),
            |range, most| {
                let mine = sent.take().filter(|_| range.len() == samples);
                let whole = batch.whole.min(most);
                // Not one by one where every batch is as large as it has to be.
                let alone = self.consumer.sums_up() && self.fixed.is_some_and(|fixed| range.len() < fixed);
                let step = if alone { 1 } else { range.len() };
                for start in range.clone().step_by(step.max(1)) {
                    let taken = self.part(batch, start..start + step, first, whole, mine.as_ref().filter(|_| !alone));
                    if let Err(Failure::TooLarge) = taken {
                        self.lanes.iter_mut().for_each(Lane::release);
                    }
                    taken?;
                }
                sent = mine;
                Ok(())
            },
        );
        self.most = most;
        match worked {
            Ok(()) => Ok(sent),
            Err(Failure::Other(error)) => Err(error),
            // A single sample is never too large for halves.
            Err(Failure::TooLarge) => Err(BackendError::from(crate::backend::cuda::CudaError::OutOfMemory).into()),
        }
    }

    fn part(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
        first: usize,
        whole: usize,
        sent: Option<&Sent>,
    ) -> Result<(), Failure<C::Error>> {
        let Some(inputs) = part_of(&batch.inputs, batch.ids.len(), range.clone()) else {
            let name = batch.inputs.keys().cloned().collect::<Vec<_>>().join(", ");
            let reason =
                format!("a batch of {} samples does not fit and cannot be taken apart; use --batch 1", batch.ids.len());
            return Err(Failure::Other(BackendError::Input { name, reason }.into()));
        };
        let mut part = Part::of(batch, range, first, &inputs);
        let rows = self.lanes.first().and_then(|lane| lane.taking.rows(part.rows(), whole));
        part.copies = 1 + rows.unwrap_or(0).saturating_sub(part.rows());
        let may_halve = self.fixed.is_none() && part.ids.len() > 1;
        through(&mut self.lanes, &[], &Call { part, whole, sent, may_halve }, self.consumer)
    }
}

/// One part on its way.
struct Call<'a> {
    part: Part<'a>,
    whole: usize,
    sent: Option<&'a Sent>,
    may_halve: bool,
}

/// Runs the first source while all before it still show what they gave, and the others inside of it; the consumer takes
/// all of it in the innermost call, when nothing can fail any more.
fn through<C: Consumer>(
    lanes: &mut [Lane<'_>],
    before: &[Option<&Given<'_>>],
    call: &Call<'_>,
    consumer: &mut C,
) -> Result<(), Failure<C::Error>> {
    let Some((lane, others)) = lanes.split_first_mut() else {
        return consumer.take(&call.part, before).map_err(|error| {
            if call.may_halve && consumer.may_repeat(&error) { Failure::TooLarge } else { Failure::Other(error) }
        });
    };
    let number = before.len();
    let without = |others: &mut [Lane<'_>], consumer: &mut C| {
        let mut all = before.to_vec();
        all.push(None);
        through(others, &all, call, consumer)
    };
    if !consumer.wants(number) {
        return without(others, consumer);
    }
    let mut after = None;
    let gave = lane.give(&call.part, call.whole, call.sent, &mut |given| {
        let mut all = before.to_vec();
        all.push(Some(given));
        let outcome = after.insert(through(others, &all, call, consumer));
        // A runner that is told so gives up what it holds.
        if outcome.is_ok() { Ok(()) } else { Err("given up".into()) }
    });
    match (gave, after) {
        (Ok(()), Some(outcome)) | (Err(_), Some(outcome @ Err(_))) => outcome,
        (Err(error), Some(Ok(()))) => Err(Failure::Other(error.into())),
        (Err(error), None) if call.may_halve && error.is_out_of_memory() => Err(Failure::TooLarge),
        (Err(error), None) => {
            consumer.failed(number, error).map_err(Failure::Other)?;
            without(others, consumer)
        }
        (Ok(()), None) => {
            let reason = "it gave nothing to look at".to_owned();
            Err(Failure::Other(BackendError::Run { runtime: "the backend", reason }.into()))
        }
    }
}
