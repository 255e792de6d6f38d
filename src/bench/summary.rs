//! Figures from times: latency, throughput, speed-up, and what makes them doubtful.

use super::{
    BenchError, Clock, Latency, Measurement, Phases, Protocol, SpeedUp, Throughput, Timed, Times, Timing, measure,
};
use crate::stats::{mean, mean_uncertainty, paired_ratio, percentile, percentile_interval, sorted, std_dev};

/// Standard deviation over median from which times count as unstable.
const UNSTABLE_FROM: f64 = 0.05;
/// Share of the compute time from which something else may bound the throughput.
const BOUND_FROM: f64 = 0.8;
/// Calls below which the 99th percentile is little more than the maximum.
const P99_CALLS: usize = 100;

impl Times {
    /// Duration of each call in milliseconds.
    pub fn latencies(&self) -> Vec<f64> {
        self.calls.iter().map(|call| call.end_ms - call.start_ms).collect()
    }

    /// Summary of the durations; `None` without calls.
    pub fn latency(&self) -> Option<Latency> {
        let ascending = sorted(&self.latencies());
        let [low, high] = percentile_interval(&ascending, 99.0)?;
        Some(Latency {
            median: percentile(&ascending, 50.0)?,
            median_interval: percentile_interval(&ascending, 50.0),
            mean: mean(&ascending)?,
            std: std_dev(&ascending),
            jitter: ascending.last()? - ascending.first()?,
            p90: percentile(&ascending, 90.0)?,
            p95: percentile(&ascending, 95.0)?,
            p99: percentile(&ascending, 99.0)?,
            p99_uncertainty: 0.5 * (high - low),
            count: ascending.len(),
            batch: self.batch,
        })
    }

    /// Summary of the samples per second; `None` without calls or when the clock did not move. The mean is the number of
    /// samples by the time that their calls took together, as trtexec has it: a mean of the calls' rates would hide slow
    /// calls.
    pub fn throughput(&self) -> Option<Throughput> {
        let latencies = self.latencies();
        let samples = 1e3 * self.batch as f64;
        let ascending = sorted(&latencies.iter().map(|ms| samples / ms).collect::<Vec<_>>());
        let call_ms = mean(&latencies)?;
        let throughput = Throughput {
            median: percentile(&ascending, 50.0)?,
            mean: samples / call_ms,
            uncertainty: samples / call_ms * mean_uncertainty(&latencies) / call_ms,
            jitter: ascending.last()? - ascending.first()?,
        };
        throughput.mean.is_finite().then_some(throughput)
    }

    /// How many times faster than `reference`, from calls of the same rounds and as many samples; `None` without calls,
    /// and where one of both is emulated.
    pub fn speed_up(&self, reference: &Self) -> Option<SpeedUp> {
        if [self.timing, reference.timing].contains(&Timing::Emulated) {
            return None;
        }
        let (ratio, interval) = paired_ratio(&reference.latencies(), &self.latencies())?;
        let samples = self.batch as f64 / reference.batch.max(1) as f64;
        Some(SpeedUp { ratio: ratio * samples, interval: interval.map(|x| x * samples) })
    }

    /// Medians of the parts of a call on a device; `None` unless every call has them.
    pub fn phases(&self) -> Option<Phases> {
        Phases::medians(&self.calls.iter().map(|call| call.phases).collect::<Option<Vec<_>>>()?)
    }

    /// What makes the figures doubtful, in sentences.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let Some(latency) = self.latency() else { return vec!["nothing was measured".to_owned()] };
        let variation = latency.std / latency.median;
        if variation > UNSTABLE_FROM {
            warnings.push(format!(
                "unstable: the standard deviation is {:.1} % of the median; close other programs and fix the clocks",
                100.0 * variation
            ));
        }
        if !self.settled {
            warnings.push(format!("times had not settled after {} warm-up calls; warm up longer", self.warm_up_calls));
        }
        if latency.count < P99_CALLS {
            let count = latency.count;
            warnings.push(format!("the 99th percentile of {count} calls is close to their maximum; measure longer"));
        }
        if let Some(phases) = self.phases() {
            warnings.extend(phases.warnings());
        }
        warnings
    }
}

impl Phases {
    /// The median of each part over several calls; `None` without calls.
    pub fn medians(calls: &[Self]) -> Option<Self> {
        let median = |part: fn(&Self) -> f64| percentile(&sorted(&calls.iter().map(part).collect::<Vec<_>>()), 50.0);
        Some(Self {
            enqueue_ms: median(|call| call.enqueue_ms)?,
            h2d_ms: median(|call| call.h2d_ms)?,
            compute_ms: median(|call| call.compute_ms)?,
            d2h_ms: median(|call| call.d2h_ms)?,
        })
    }

    /// What bounds the throughput besides the computation, in sentences.
    pub fn warnings(&self) -> Vec<String> {
        let transfers = "keep data on the device, or take transfers out of the measurement";
        let bounds = [
            (self.enqueue_ms, "enqueue-bound: launching the work", "use a CUDA graph or a larger batch"),
            (self.h2d_ms, "transfer-bound: copying the inputs to the device", transfers),
            (self.d2h_ms, "transfer-bound: copying the outputs from the device", transfers),
        ];
        let bounding = bounds.iter().filter(|(ms, ..)| *ms > BOUND_FROM * self.compute_ms);
        let text = |(ms, what, hint): &(f64, &str, &str)| {
            format!("{what} takes {ms:.3} ms beside {:.3} ms of computation; {hint}", self.compute_ms)
        };
        bounding.map(text).collect()
    }
}

/// Measures targets of one or several batch sizes and thread counts and sums the times up.
///
/// Targets of equal batch size and lane share their rounds; the sizes follow each other in ascending order, the lanes
/// within each, which is the order of the result (targets in the order given within both). Speed-ups are against the
/// target named `reference` of the same size and lane.
pub fn run<E: std::error::Error>(
    targets: &mut [Timed<'_, E>],
    reference: Option<&str>,
    protocol: &Protocol,
    clock: &dyn Clock,
) -> Result<Vec<Measurement>, BenchError<E>> {
    targets.sort_by_key(|target| (target.batch, target.lane));
    let mut measurements = Vec::with_capacity(targets.len());
    for group in targets.chunk_by_mut(|a, b| (a.batch, a.lane) == (b.batch, b.lane)) {
        let group = measure(group, protocol, clock)?;
        let base = reference.and_then(|name| group.iter().position(|times| times.name == name));
        for (index, times) in group.iter().enumerate() {
            let base = base.filter(|&base| base != index).map(|base| &group[base]);
            measurements.push(Measurement {
                latency: times.latency(),
                throughput: times.throughput(),
                speed_up: base.and_then(|base| times.speed_up(base)),
                warnings: times.warnings(),
                times: times.clone(),
            });
        }
    }
    Ok(measurements)
}

#[cfg(test)]
mod tests {
    use super::super::{Call, Mode};
    use super::*;

    /// (i·7919 mod 1009) / 100 + 5 milliseconds, one call after the other.
    fn times(count: u32, batch: usize, factor: f64) -> Times {
        let mut start_ms = 0.0;
        let call = |i: u32| {
            let end_ms = start_ms + factor * (f64::from(i * 7919 % 1009) / 100.0 + 5.0);
            let call = Call { start_ms, end_ms, phases: None };
            start_ms = end_ms;
            call
        };
        let calls = (0..count).map(call).collect();
        Times {
            name: "x".to_owned(),
            batch,
            mode: mode(1),
            timing: Timing::Measured,
            warm_up_calls: 10,
            settled: true,
            calls,
        }
    }

    fn mode(threads: usize) -> Mode {
        Mode { provider: "fake".to_owned(), threads, transfers: false, cuda_graph: false }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} is not {b}");
    }

    /// Recorded calls of two targets, and what `benches/statistics.py` says about them with NumPy and SciPy.
    #[test]
    fn figures_match_numpy_and_scipy_on_recorded_calls() {
        let recorded = include_str!("../../tests/fixtures/bench/latencies.csv");
        let expected = include_str!("../../tests/fixtures/bench/expected.json");
        let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
        let batch = expected["batch"].as_u64().unwrap() as usize;
        let recorded_of = |column: usize| {
            let milliseconds = |line: &str| line.split(',').nth(column).unwrap().parse().unwrap();
            let calls =
                recorded.lines().skip(1).map(|line| Call { start_ms: 0.0, end_ms: milliseconds(line), phases: None });
            Times { calls: calls.collect(), ..times(0, batch, 1.0) }
        };
        let (reference, target) = (recorded_of(0), recorded_of(1));
        for (name, times) in [("reference", &reference), ("target", &target)] {
            let latency = serde_json::to_value(times.latency().unwrap()).unwrap();
            let throughput = serde_json::to_value(times.throughput().unwrap()).unwrap();
            for (kind, found) in [("latency", latency), ("throughput", throughput)] {
                let expected = expected[name][kind].as_object().unwrap();
                assert!(expected.len() >= 4);
                for (figure, value) in expected {
                    close(found[figure].as_f64().unwrap(), value.as_f64().unwrap());
                }
            }
        }
        let speed_up = target.speed_up(&reference).unwrap();
        close(speed_up.ratio, expected["speed_up"]["ratio"].as_f64().unwrap());
        // Two bootstraps with other random numbers: their bounds agree to a few per cent.
        for (found, expected) in speed_up.interval.iter().zip(expected["speed_up"]["interval"].as_array().unwrap()) {
            assert!((found / expected.as_f64().unwrap() - 1.0).abs() < 0.03, "{speed_up:?}");
        }
    }

    #[test]
    fn speed_up_is_per_sample() {
        let (slow, fast) = (times(100, 1, 3.0), times(100, 2, 1.0));
        let speed_up = fast.speed_up(&slow).unwrap();
        close(speed_up.ratio, 6.0);
        assert!(speed_up.interval[0] < 6.0 && speed_up.interval[1] > 6.0, "{speed_up:?}");
        assert_eq!(fast.speed_up(&times(0, 1, 1.0)), None);
        let emulated = Times { timing: Timing::Emulated, ..fast.clone() };
        assert_eq!((emulated.speed_up(&slow), slow.speed_up(&emulated)), (None, None));
    }

    #[test]
    fn doubtful_times_are_pointed_out() {
        let with = |count: u32, phases: Option<Phases>| Times {
            calls: (0..count).map(|i| Call { start_ms: f64::from(i), end_ms: f64::from(i) + 1.0, phases }).collect(),
            ..times(0, 1, 1.0)
        };
        let steady = |count: u32| with(count, None);
        assert_eq!(steady(100).warnings(), [""; 0]);
        assert!(steady(99).warnings()[0].contains("99th percentile of 99 calls"));
        assert!(times(200, 1, 1.0).warnings()[0].starts_with("unstable: the standard deviation is 2"));
        let unsettled = Times { settled: false, ..steady(100) };
        assert!(unsettled.warnings()[0].contains("had not settled after 10 warm-up calls"));
        let phases = Phases { enqueue_ms: 0.9, h2d_ms: 0.8, compute_ms: 1.0, d2h_ms: 2.0 };
        let warnings = with(100, Some(phases)).warnings();
        assert!(
            warnings[0].starts_with("enqueue-bound") && warnings[1].contains("outputs from the device takes 2.000 ms")
        );
        assert_eq!((warnings.len(), steady(0).warnings()), (2, vec!["nothing was measured".to_owned()]));
    }

    #[test]
    fn batch_sizes_and_thread_counts_are_measured_apart_and_compared_within() {
        let clock = super::super::SystemClock::default();
        let log = std::cell::RefCell::new(Vec::new());
        let log = &log;
        let target = |name: &'static str, batch: usize, threads: usize| Timed::<std::fmt::Error> {
            name: name.to_owned(),
            batch,
            lane: threads,
            mode: mode(threads),
            timing: Timing::Measured,
            call: Box::new(move || {
                log.borrow_mut().push((name, batch, threads));
                Ok(None)
            }),
        };
        let cases = [("fp32", 8, 1), ("fp32", 1, 2), ("fp32", 1, 1), ("int8", 8, 1), ("int8", 1, 2), ("int8", 1, 1)];
        let mut targets: Vec<_> = cases.iter().map(|&(name, batch, threads)| target(name, batch, threads)).collect();
        let zero = std::time::Duration::ZERO;
        let protocol = Protocol { warm_up: zero, warm_up_limit: zero, duration: zero, rounds: 12 };
        let measurements = run(&mut targets, Some("fp32"), &protocol, &clock).unwrap();
        drop(targets);
        let expected =
            [(1, 1), (1, 2), (8, 1)].map(|(batch, threads)| [("fp32", batch, threads), ("int8", batch, threads)]);
        let order: Vec<_> =
            measurements.iter().map(|m| &m.times).map(|t| (&*t.name, t.batch, t.mode.threads)).collect();
        assert_eq!(order, expected.concat());
        let rounds: Vec<_> = expected.iter().flat_map(|round| round.repeat(12)).collect();
        assert_eq!(*log.borrow(), rounds);
        assert!(measurements[0].speed_up.is_none() && measurements[1].latency.is_some());
    }
}
