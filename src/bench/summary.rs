//! Figures from times: latency, throughput, speed-up, and what makes them doubtful.

use super::{BenchError, Clock, Latency, Measurement, Phases, Protocol, SpeedUp, Target, Throughput, Times, measure};
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

    /// Summary of the samples per second of each call; `None` without calls or when the clock did not move.
    pub fn throughput(&self) -> Option<Throughput> {
        let per_second: Vec<f64> = self.latencies().iter().map(|ms| 1e3 * self.batch as f64 / ms).collect();
        let ascending = sorted(&per_second);
        let throughput = Throughput {
            median: percentile(&ascending, 50.0)?,
            mean: mean(&ascending)?,
            uncertainty: mean_uncertainty(&ascending),
            jitter: ascending.last()? - ascending.first()?,
        };
        throughput.mean.is_finite().then_some(throughput)
    }

    /// How many times faster than `reference`, from calls of the same rounds and as many samples; `None` without calls.
    pub fn speed_up(&self, reference: &Self) -> Option<SpeedUp> {
        let (ratio, interval) = paired_ratio(&reference.latencies(), &self.latencies())?;
        let samples = self.batch as f64 / reference.batch.max(1) as f64;
        Some(SpeedUp { ratio: ratio * samples, interval: interval.map(|x| x * samples) })
    }

    /// What makes the figures doubtful, in sentences.
    pub fn warnings(&self, phases: Option<&Phases>) -> Vec<String> {
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
        if let Some(phases) = phases {
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

/// Measures targets of one or several batch sizes and sums the times up.
///
/// Targets of equal batch size share their rounds; batch sizes follow each other in ascending order, which is the order
/// of the result (targets in the order given within each). Speed-ups are against the target named `reference` of the
/// same batch size.
pub fn run<E: std::error::Error>(
    targets: &mut [Target<'_, E>],
    reference: Option<&str>,
    protocol: &Protocol,
    clock: &dyn Clock,
) -> Result<Vec<Measurement>, BenchError<E>> {
    targets.sort_by_key(|target| target.batch);
    let mut measurements = Vec::with_capacity(targets.len());
    for group in targets.chunk_by_mut(|a, b| a.batch == b.batch) {
        let group = measure(group, protocol, clock)?;
        let base = reference.and_then(|name| group.iter().position(|times| times.name == name));
        for (index, times) in group.iter().enumerate() {
            let base = base.filter(|&base| base != index).map(|base| &group[base]);
            measurements.push(Measurement {
                latency: times.latency(),
                throughput: times.throughput(),
                speed_up: base.and_then(|base| times.speed_up(base)),
                warnings: times.warnings(None),
                times: times.clone(),
            });
        }
    }
    Ok(measurements)
}

#[cfg(test)]
mod tests {
    use super::super::Call;
    use super::*;

    /// (i·7919 mod 1009) / 100 + 5 milliseconds, one call after the other.
    fn times(count: u32, batch: usize, factor: f64) -> Times {
        let mut start_ms = 0.0;
        let call = |i: u32| {
            let end_ms = start_ms + factor * (f64::from(i * 7919 % 1009) / 100.0 + 5.0);
            let call = Call { start_ms, end_ms };
            start_ms = end_ms;
            call
        };
        let calls = (0..count).map(call).collect();
        Times { name: "x".to_owned(), batch, warm_up_calls: 10, settled: true, calls }
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
            let calls = recorded.lines().skip(1).map(|line| Call { start_ms: 0.0, end_ms: milliseconds(line) });
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
    }

    #[test]
    fn doubtful_times_are_pointed_out() {
        let steady = |count: u32| Times {
            calls: (0..count).map(|i| Call { start_ms: f64::from(i), end_ms: f64::from(i) + 1.0 }).collect(),
            ..times(0, 1, 1.0)
        };
        assert_eq!(steady(100).warnings(None), [""; 0]);
        assert!(steady(99).warnings(None)[0].contains("99th percentile of 99 calls"));
        assert!(times(200, 1, 1.0).warnings(None)[0].starts_with("unstable: the standard deviation is 2"));
        let unsettled = Times { settled: false, ..steady(100) };
        assert!(unsettled.warnings(None)[0].contains("had not settled after 10 warm-up calls"));
        let phases = Phases { enqueue_ms: 0.9, h2d_ms: 0.8, compute_ms: 1.0, d2h_ms: 2.0 };
        let warnings = steady(100).warnings(Some(&phases));
        assert!(
            warnings[0].starts_with("enqueue-bound") && warnings[1].contains("outputs from the device takes 2.000 ms")
        );
        assert_eq!((warnings.len(), steady(0).warnings(None)), (2, vec!["nothing was measured".to_owned()]));
    }

    #[test]
    fn batch_sizes_are_measured_apart_and_compared_within() {
        let clock = super::super::SystemClock::default();
        let log = std::cell::RefCell::new(Vec::new());
        let log = &log;
        let target = |name: &'static str, batch: usize| Target::<std::fmt::Error> {
            name: name.to_owned(),
            batch,
            call: Box::new(move || {
                log.borrow_mut().push(batch);
                Ok(())
            }),
        };
        let mut targets = vec![target("fp32", 8), target("fp32", 1), target("int8", 8), target("int8", 1)];
        let zero = std::time::Duration::ZERO;
        let protocol = Protocol { warm_up: zero, warm_up_limit: zero, duration: zero, rounds: 12 };
        let measurements = run(&mut targets, Some("fp32"), &protocol, &clock).unwrap();
        drop(targets);
        let order: Vec<_> = measurements.iter().map(|m| (m.times.name.as_str(), m.times.batch)).collect();
        assert_eq!(order, [("fp32", 1), ("int8", 1), ("fp32", 8), ("int8", 8)]);
        assert_eq!(*log.borrow(), [[1; 24], [8; 24]].concat());
        assert!(measurements[0].speed_up.is_none() && measurements[1].latency.is_some());
    }
}
