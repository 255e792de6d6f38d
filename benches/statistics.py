"""Figures of recorded latencies by NumPy and SciPy, which the tests of `calib bench` compare its own with.

usage: python benches/statistics.py tests/fixtures/bench/latencies.csv > tests/fixtures/bench/expected.json

latencies.csv holds the calls of two targets, measured in interleaved rounds by `calib bench --export-times` at batch 8.
NumPy 2.4 and SciPy 1.17 made the committed file.
"""

import json
import sys

import numpy as np
from scipy import stats

BATCH = 8


def figures(ms):
    """Latency and throughput as `calib bench` reports them."""
    order = np.sort(ms)
    # Ranks of the distribution-free interval: the binomial distribution of how many values lie below the percentile.
    low, high = stats.binom.ppf([0.025, 0.975], len(ms), 0.99).astype(int)
    fps = 1e3 * BATCH / ms
    # All samples by all the time; the interval is that of the mean time, carried over.
    mean = len(ms) * BATCH / (np.sum(ms) / 1e3)
    interval = stats.ttest_1samp(ms, 0.0).confidence_interval(0.95)
    return {
        "latency": {
            "median": np.median(ms),
            "mean": np.mean(ms),
            "std": np.std(ms, ddof=1),
            "jitter": np.ptp(ms),
            "p90": np.percentile(ms, 90),
            "p95": np.percentile(ms, 95),
            "p99": np.percentile(ms, 99),
            "p99_uncertainty": (order[min(high, len(ms) - 1)] - order[low - 1]) / 2,
        },
        "throughput": {
            "median": np.median(fps),
            "mean": mean,
            "uncertainty": mean * (interval.high - interval.low) / 2 / np.mean(ms),
            "jitter": np.ptp(fps),
        },
    }


def main():
    reference, target = np.loadtxt(sys.argv[1], delimiter=",", skiprows=1, unpack=True)
    ratio = lambda a, b, axis=-1: np.median(a, axis=axis) / np.median(b, axis=axis)
    interval = stats.bootstrap(
        (reference, target), ratio, paired=True, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    result = {
        "batch": BATCH,
        "reference": figures(reference),
        "target": figures(target),
        "speed_up": {"ratio": ratio(reference, target), "interval": [interval.low, interval.high]},
    }
    print(json.dumps(result, indent=2))


main()
