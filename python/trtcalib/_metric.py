"""Metrics of one's own: what they are given, and what they may give."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np

from ._trtcalib import CalibError

#: Outputs of all samples, a dict each, and the names of the samples.
Outputs = tuple[list[dict[str, np.ndarray]], list[str]]
#: From the outputs of all samples and their names to a number, larger for better.
Metric = Callable[[list[dict[str, np.ndarray]], list[str]], float]
#: Figures of one target, and the outputs of reference and target; the last is None where the target did not run.
Run = tuple[dict[str, Any], Outputs, Union[Outputs, None]]

#: Thresholds: ``["top1=0.98"]`` or ``{"top1": 0.98}``; None for those of the configuration, if any.
Gates = Union[str, Sequence[str], Mapping[str, float], None]

#: Entries of saved outputs that are about them.
_ABOUT = ("samples.json", "inputs.json", "made_by.json")


class Own:
    """A metric that gives a number, or a sentence that says what else it gave."""

    def __init__(self, function: Any) -> None:
        if not callable(function):
            raise CalibError(f"metric: it is a function of (outputs, names) that gives a number, not {type(function).__name__}")
        self._function = function

    def __call__(self, outputs: list[dict[str, np.ndarray]], ids: list[str]) -> float:
        value = self._function(outputs, ids)
        shape = getattr(value, "shape", ())
        if not isinstance(value, (str, bytes)) and len(shape) == 0:
            try:
                return float(value)
            except (TypeError, ValueError):
                pass
        what = f"an array of shape {list(shape)}" if len(shape) else repr(value)
        raise CalibError(f"metric: it gave {what:.100}, which is not a number; let it return a float")


def own(metric: Metric | None) -> Own | None:
    """The metric that was given, if any."""
    return metric if metric is None or isinstance(metric, Own) else Own(metric)


def asked(gates: Gates, metric: Metric | None, minimum: float | None) -> tuple[list[str] | None, float | None]:
    """Gates on figures of the library, and what a metric of one's own must reach: `minimum`, or a gate on ``metric``."""
    if minimum is not None and metric is None:
        raise CalibError("minimum: it is a gate on `metric`, which is missing")
    bounds = [] if minimum is None else [float(minimum)]
    others: list[str] | None = None
    if gates is not None:
        if isinstance(gates, Mapping):
            gates = [f"{name}={value}" for name, value in gates.items()]
        others = [gates] if isinstance(gates, str) else list(gates)
    if metric is not None and others is not None:
        its_own = [re.fullmatch(r"\s*metric\s*>?=\s*(-?[\d.]+(?:[eE][-+]?\d+)?)\s*", gate) for gate in others]
        bounds += [float(bound[1]) for bound in its_own if bound]
        others = [gate for gate, bound in zip(others, its_own) if not bound]
    if not all(map(math.isfinite, bounds)):
        raise CalibError("minimum: what the metric must reach is not a finite number")
    return others, max(bounds, default=None)


def read_outputs(path: Path) -> Outputs:
    """Saved outputs as one dict a sample, and the names of the samples."""
    with np.load(path, allow_pickle=False) as file:
        ids = json.loads(file["samples.json"])
        arrays = {name: file[name] for name in file.files if name not in _ABOUT}
    return [{name: array[row] for name, array in arrays.items()} for row in range(len(ids))], ids


def judged(runs: Iterable[Run], metric: Metric, minimum: float | None) -> dict[str, Any]:
    """The figures of several targets with what the metric gives for each."""
    whole: dict[str, Any] = {}
    for part, reference, target in runs:
        part["reference_metric"] = metric(*reference)
        value = None if target is None else metric(*target)
        part["targets"][0]["metric"] = value
        if minimum is not None:
            # A number that is none passes nothing.
            passed = value is not None and value >= minimum
            part["targets"][0]["metric_passed"] = passed
            gate = {"metric": "metric", "direction": "at_least", "threshold": minimum, "value": value, "passed": passed}
            note = "the target did not run" if target is None else None
            part["targets"][0].setdefault("gates", []).append(gate | {"note": note})
            part["passed"] = part["passed"] is not False and passed
        if whole:
            whole["targets"] += part["targets"]
            whole["passed"] = part["passed"] if whole["passed"] is not False else False
        else:
            whole = part
    return whole
