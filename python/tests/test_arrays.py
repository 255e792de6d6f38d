"""Samples that a program holds: where they lie, which are taken, and what is said of it."""

import logging
import subprocess
import sys

import numpy as np
import pytest

import trtcalib as tc
from common import MODEL

#: Calibrates on all of 6000 samples and prints the bytes of the array, and by how much memory of its own grew.
MEASURE = """
import sys, threading, time
import numpy as np, trtcalib as tc
model, kind = sys.argv[1:]
def own():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous"))
x = np.full((6000, 3, 64, 64), 0.5, np.float32)
data = {"dict": {"input": x}, "list": [{"input": part} for part in np.split(x, 4)]}[kind]
options = {"method": "minmax", "threads": 1}
tc.calibrate(model, {"input": x[:64]}, **options)
before, peak, done = own(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, own())
thread = threading.Thread(target=watch)
thread.start()
tc.calibrate(model, data, samples=len(x), **options)
done.set()
thread.join()
print(x.nbytes, peak - before)
"""


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_arrays_are_not_copied_while_they_are_read(kind):
    done = subprocess.run([sys.executable, "-c", MEASURE, MODEL, kind], capture_output=True, text=True, check=True)
    held, grown = map(int, done.stdout.split())
    assert held > 290e6 and grown < held / 8, f"{grown / 1e6:.0f} MB more for arrays of {held / 1e6:.0f} MB"


def test_what_a_program_holds_needs_no_file(arrays, monkeypatch):
    monkeypatch.setattr("trtcalib._data.MEMORY", 0)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: pytest.fail("a file for what lies in memory"))
    tc.calibrate(MODEL, {"input": arrays}, method="minmax", samples=4)
    tc.calibrate(MODEL, [arrays[:2], arrays[2:4]], method="minmax")


def test_samples_of_a_list_are_those_of_a_dict(arrays, caplog):
    def taken(data):
        with caplog.at_level(logging.INFO, "trtcalib"):
            caplog.clear()
            table = tc.calibrate(MODEL, data, samples=10, method="minmax").to_dict()
        return sorted(map(int, table["calibrated_on"])), caplog.text

    chosen, told = taken({"input": arrays})
    assert chosen != list(range(10)) and "first" not in told
    assert taken([{"input": batch} for batch in np.split(arrays, 6)]) == (chosen, told)
    first, told = taken({"input": batch} for batch in np.split(arrays, 6))
    assert first == list(range(10)) and "the first 10 samples are taken, and no further ones are read" in told


def test_what_can_be_read_only_once_is_named(arrays, caplog):
    with caplog.at_level(logging.INFO, "trtcalib"):
        tc.calibrate(MODEL, ({"input": arrays[i : i + 4]} for i in (0, 4)), method="minmax")
    assert "the generator can be read only once: its 8 samples are kept" in caplog.text


def test_a_reader_may_end_as_an_iterator_does(arrays):
    class Reader:
        def __init__(self):
            self._batches = iter([{"input": arrays[:4]}])

        def get_next(self):
            return next(self._batches)

    assert tc.calibrate(MODEL, Reader(), method="minmax").to_dict()["samples"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 4, "calib_samples": 5}, "`samples` and `calib_samples` are the same; give one of them"),
        ({"table": "t.json"}, "`table` is of no use here"),
        ({"out": "out"}, "`out` is of no use here; write the table by its method save()"),
        ({"samples": 0}, "`samples`: must be at least 1"),
        ({"samples": 1.5}, "`samples`: 1.5 is not a whole number"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(arrays, options, message):
    with pytest.raises(tc.CalibError) as raised:
        tc.calibrate(MODEL, {"input": arrays}, **options)
    assert message in str(raised.value)
