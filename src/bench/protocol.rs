//! How times are taken: warm-up until the targets settle, then rounds over all targets.
//!
//! Every round calls each target once (A B C, A B C, ...), so that a drift of the machine hits all alike and calls of
//! one round can be compared as pairs.

use std::time::{Duration, Instant};

use super::{Call, Mode, Phases, Times, Timing};
use crate::stats::median;

/// Calls in each of the two windows whose medians must agree before a target counts as settled.
const WINDOW: usize = 5;
/// Largest relative difference of the two medians.
const SETTLED_WITHIN: f64 = 0.05;

/// Tells the time since some fixed moment.
pub trait Clock {
    /// Now.
    fn now(&self) -> Duration;
}

/// The monotonic clock of the system.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// How long to warm up and to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Least time each target runs before measuring.
    pub warm_up: Duration,
    /// Time after which a target that does not settle is measured all the same, with a warning.
    pub warm_up_limit: Duration,
    /// Least time of the measurement for each target, on average over the targets.
    pub duration: Duration,
    /// Least number of rounds.
    pub rounds: usize,
}

impl Default for Protocol {
    fn default() -> Self {
        let (warm_up, warm_up_limit) = (Duration::from_millis(200), Duration::from_secs(5));
        Self { warm_up, warm_up_limit, duration: Duration::from_secs(3), rounds: 10 }
    }
}

impl Protocol {
    /// A measurement that takes hardly more than `duration` for each target: warming up takes a second at most, and few
    /// rounds are enough where a call takes long.
    pub fn of(duration: Duration) -> Self {
        Self { warm_up_limit: Duration::from_secs(1), duration, rounds: 3, ..Self::default() }
    }
}

/// Something to time. One call is one inference, its synchronization included.
pub struct Timed<'a, E> {
    /// For people.
    pub name: String,
    /// Samples in each call.
    pub batch: usize,
    /// Targets of different lanes take no turns with each other: one lane for each thread count, usually.
    pub lane: usize,
    /// How the calls are made.
    pub mode: Mode,
    /// What the times are of.
    pub timing: Timing,
    /// One inference, and its parts on a device where the backend tells them.
    pub call: Box<dyn FnMut() -> Result<Option<Phases>, E> + 'a>,
}

/// A target failed.
#[derive(Debug, thiserror::Error)]
#[error("the benchmark of {target} failed")]
pub struct BenchError<E: std::error::Error + 'static> {
    /// Name of the target.
    pub target: String,
    /// Its error.
    pub source: E,
}

/// Times all targets in interleaved rounds; the result is in their order.
pub fn measure<E: std::error::Error>(
    targets: &mut [Timed<'_, E>],
    protocol: &Protocol,
    clock: &dyn Clock,
) -> Result<Vec<Times>, BenchError<E>> {
    let warm_up = warm_up(targets, protocol, clock)?;
    let mut calls = vec![Vec::new(); targets.len()];
    let enough = protocol.duration.saturating_mul(targets.len() as u32);
    let start = clock.now();
    let mut rounds = 0;
    while !targets.is_empty() && (rounds < protocol.rounds || clock.now().saturating_sub(start) < enough) {
        for (target, calls) in targets.iter_mut().zip(&mut calls) {
            let (from, to, phases) = time(target, clock)?;
            let since = |moment: Duration| 1e3 * moment.saturating_sub(start).as_secs_f64();
            calls.push(Call { start_ms: since(from), end_ms: since(to), phases });
        }
        rounds += 1;
    }
    let times = targets.iter().zip(calls).zip(warm_up).map(|((target, calls), (warm_up_calls, settled))| Times {
        name: target.name.clone(),
        batch: target.batch,
        mode: target.mode.clone(),
        timing: target.timing,
        warm_up_calls,
        settled,
        calls,
    });
    Ok(times.collect())
}

/// Calls each target until it has settled, in turns with the others that have not; how many calls each took, and whether it did.
fn warm_up<E: std::error::Error>(
    targets: &mut [Timed<'_, E>],
    protocol: &Protocol,
    clock: &dyn Clock,
) -> Result<Vec<(usize, bool)>, BenchError<E>> {
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); targets.len()];
    let ready = |seconds: &[f64]| {
        let spent: f64 = seconds.iter().sum();
        let settled = spent >= protocol.warm_up.as_secs_f64() && settled(seconds);
        settled || spent >= protocol.warm_up_limit.as_secs_f64()
    };
    while !seconds.iter().all(|seconds| ready(seconds)) {
        for (target, seconds) in targets.iter_mut().zip(&mut seconds).filter(|(_, seconds)| !ready(seconds)) {
            let (from, to, _) = time(target, clock)?;
            seconds.push(to.saturating_sub(from).as_secs_f64());
        }
    }
    Ok(seconds.iter().map(|seconds| (seconds.len(), settled(seconds))).collect())
}

fn settled(seconds: &[f64]) -> bool {
    let Some(before) = seconds.len().checked_sub(2 * WINDOW) else { return false };
    let (earlier, later) = seconds[before..].split_at(WINDOW);
    match (median(earlier), median(later)) {
        (Some(earlier), Some(later)) => (later - earlier).abs() <= SETTLED_WITHIN * earlier,
        _ => false,
    }
}

fn time<E: std::error::Error>(
    target: &mut Timed<'_, E>,
    clock: &dyn Clock,
) -> Result<(Duration, Duration, Option<Phases>), BenchError<E>> {
    let from = clock.now();
    let phases = (target.call)().map_err(|source| BenchError { target: target.name.clone(), source })?;
    Ok((from, clock.now(), phases))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Moves only when told to.
    #[derive(Default)]
    struct Fake(Cell<Duration>);

    impl Fake {
        fn advance(&self, milliseconds: u64) {
            self.0.set(self.0.get() + Duration::from_millis(milliseconds));
        }
    }

    impl Clock for Fake {
        fn now(&self) -> Duration {
            self.0.get()
        }
    }

    fn protocol(warm_up: u64, limit: u64, duration: u64, rounds: usize) -> Protocol {
        let [warm_up, warm_up_limit, duration] = [warm_up, limit, duration].map(Duration::from_millis);
        Protocol { warm_up, warm_up_limit, duration, rounds }
    }

    fn target<'a>(
        name: &str,
        mut call: impl FnMut() -> Result<(), std::fmt::Error> + 'a,
    ) -> Timed<'a, std::fmt::Error> {
        let mode = Mode { provider: "fake".to_owned(), threads: 1, transfers: false, cuda_graph: false };
        let call = Box::new(move || call().map(|()| None));
        Timed { name: name.to_owned(), batch: 1, lane: 0, mode, timing: Timing::Measured, call }
    }

    #[test]
    fn rounds_are_interleaved_and_counted() {
        let (clock, log) = (Fake::default(), RefCell::new(String::new()));
        let call = |name: char, milliseconds: u64| {
            let (clock, log) = (&clock, &log);
            move || {
                clock.advance(milliseconds);
                log.borrow_mut().push(name);
                Ok(())
            }
        };
        let mut targets = [target("a", call('a', 1)), target("b", call('b', 4)), target("c", call('c', 10))];
        let times = measure(&mut targets, &protocol(20, 1000, 100, 10), &clock).unwrap();
        drop(targets);
        // Ten calls tell that a target has settled, and `a` has run for 20 ms after 20; then 3 × 100 ms at 15 ms a round.
        assert_eq!(*log.borrow(), ["abc".repeat(10), "a".repeat(10), "abc".repeat(20)].concat());
        for (times, (milliseconds, warm_up_calls)) in times.iter().zip([(1.0, 20), (4.0, 10), (10.0, 10)]) {
            assert_eq!((times.calls.len(), times.warm_up_calls, times.settled), (20, warm_up_calls, true));
            assert!(times.calls.iter().all(|call| (call.end_ms - call.start_ms - milliseconds).abs() < 1e-9));
        }
        assert_eq!((times[1].calls[0].start_ms, times[0].calls[1].start_ms), (1.0, 15.0));
    }

    #[test]
    fn a_target_that_does_not_settle_costs_its_own_second_alone() {
        let (clock, calls) = (Fake::default(), Cell::new(0_u64));
        let restless = || {
            calls.set(calls.get() + 1);
            clock.advance(calls.get());
            Ok(())
        };
        let slow = || {
            clock.advance(10);
            Ok(())
        };
        let mut targets = [target("restless", restless), target("slow", slow)];
        let times = measure(&mut targets, &protocol(95, 1000, 0, 1), &clock).unwrap();
        assert_eq!(times.iter().map(|times| times.settled).collect::<Vec<_>>(), [false, true]);
        assert_eq!(times[1].warm_up_calls, 10);
        assert!(clock.now() < Duration::from_millis(1250), "{:?}", clock.now());
    }

    #[test]
    fn the_count_is_reached_when_the_time_is_not_enough() {
        let clock = Fake::default();
        let mut targets = [target("slow", || {
            clock.advance(1000);
            Ok(())
        })];
        let times = measure(&mut targets, &protocol(0, 3000, 100, 7), &clock).unwrap();
        assert_eq!((times[0].calls.len(), times[0].warm_up_calls, times[0].settled), (7, 3, false));
        assert!(measure::<std::fmt::Error>(&mut [], &Protocol::default(), &clock).unwrap().is_empty());
    }

    #[test]
    fn a_measurement_takes_hardly_longer_than_it_was_asked_for() {
        for milliseconds in [15, 100, 400] {
            let clock = Fake::default();
            let call = || {
                // Never settles.
                let jitter = if clock.now().as_millis() % 2 == 0 { 0 } else { milliseconds / 2 };
                clock.advance(milliseconds + jitter + 1);
                Ok(())
            };
            let mut targets = [target("a", call), target("b", call)];
            measure(&mut targets, &Protocol::of(Duration::from_secs(2)), &clock).unwrap();
            assert!(clock.now() < Duration::from_secs(2 * (2 + 1) + 2), "{:?}", clock.now());
        }
    }

    #[test]
    fn warm_up_goes_on_while_times_fall() {
        let (clock, calls) = (Fake::default(), Cell::new(0_u64));
        let mut targets = [target("falling", || {
            calls.set(calls.get() + 1);
            clock.advance(200_u64.saturating_sub(10 * calls.get()).max(50));
            Ok(())
        })];
        let times = measure(&mut targets, &protocol(1, 100_000, 0, 1), &clock).unwrap();
        // 50 ms from the 15th call on: the medians of calls 13..=17 and 18..=22 are the first to agree.
        assert_eq!((times[0].warm_up_calls, times[0].settled), (22, true));
    }

    #[test]
    fn a_failing_target_is_named() {
        let clock = Fake::default();
        let mut targets = [target("int8", || Err(std::fmt::Error))];
        let error = measure(&mut targets, &Protocol::default(), &clock).unwrap_err();
        assert_eq!(error.to_string(), "the benchmark of int8 failed");
    }
}
