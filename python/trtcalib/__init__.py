"""INT8 calibration and precision validation for TensorRT.

The functions do what the program ``calib`` does, on folders of images or on arrays that a program holds::

    import trtcalib as tc

    table = tc.calibrate("model.onnx", batches)
    tc.quantize("model.onnx", table, "model.int8.onnx")
    print(tc.compare("model.onnx", ["model.int8.onnx"], batches).to_dict())

Every keyword that is a key of the program's configuration file is taken by every function that it concerns
(``preset``, ``preprocess``, ``calib_samples``, ``seed``, ``batch``, ``threads``, ``provider``, ``nodes_to_exclude``,
``high_precision``, ...); ``config`` names such a file.

Warnings, notes and files written go to the logger ``trtcalib``; ``progress`` is called with
``(what, done, total)``, or is ``True`` for a bar of ``tqdm``; what it raises goes to the logger and does not end the work.
Ctrl-C stops. The interpreter's lock is released while the library works.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _trtcalib
from ._data import held
from ._libraries import name_libraries
from ._listener import Listener as _Listener, Progress
from ._metric import Gates, Metric, Run, asked, judged, own, read_outputs
from ._results import CalibrationTable, Comparison, Findings, Quantized, Report, Result, Saved, temporary_folder
from ._search import Trial, ranking, sentence, smallest, write_plan
from ._settings import PathLike, count_of, enough, limited, model_path, path_of, plain
from ._trtcalib import CalibError, DataError, ModelError, RuntimeLibraryError, __version__

__all__ = [
    "CalibError", "CalibrationTable", "Comparison", "DataError", "Findings", "ModelError", "Quantized", "Report", "Result",
    "RuntimeLibraryError", "Saved", "__version__", "bisect", "calibrate", "compare", "quantize", "run",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from . import compat as compat, ray as ray
else:

    def __getattr__(name: str) -> Any:
        # These without an import of their own; Ray takes its time.
        if name in ("compat", "ray"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


name_libraries()

_log = logging.getLogger("trtcalib")


def calibrate(
    model: PathLike,
    data: Any = None,
    *,
    method: str | None = None,
    labels: Any = None,
    samples: int | None = None,
    histograms: PathLike | None = None,
    metric: Metric | None = None,
    config: PathLike | None = None,
    progress: Progress = None,
    **settings: Any,
) -> CalibrationTable:
    """Observes the ranges of activations and chooses thresholds.

    Args:
        model: float ONNX model.
        data: folder of images (with ``preset=`` or ``preprocess=``); file of arrays (``.npz``, ``.npy``); dict from input name
            to an array of shape [samples, ...] as the model takes it, preprocessed; iterable of such dicts, of arrays for a
            model with one input, or of ``(inputs, labels)``, in batches of any size; or a reader with ``get_next()``.
            Arrays are read where they lie. Of a dict, a list or files the samples are chosen by a hash of `seed` and their
            names or numbers; of another iterable the first are taken, and it is read no further. What it gives is kept, beyond
            1 GiB in a temporary file, so that one that can be read only once serves every pass. As with files, arrays of other names than the model's inputs are not used and told of, and the only array is taken for
            the only input.
        method: ``auto`` (what measures best; the default), ``entropy``, ``percentile``, ``mse`` or ``minmax``.
        labels: right classes of arrays, [samples] integers, negative where unknown (-1, or PyTorch's -100); or a label file.
        samples: calibration samples, at most (512).
        histograms: file to write the mergeable histograms to.
        metric: a function as for `compare`, which decides instead of the error of held-out samples. ``auto`` makes a table
            with its recovery, of which a step is kept where the metric of the held-out samples (10 with
            ``effort="default"``, 50 with ``thorough``) grows by it; where it stays the same, the error decides. What a step
            does inside an operator (which range, how weights are rounded) follows that operator's own error. Every method
            makes a table, too, with recovery where ``effort=`` is given. Of all tables the one whose INT8 model gets the
            largest number on all samples is kept; ``judged`` of the table has the numbers.
        config: configuration file; keywords win over it.
        progress: called with ``(what, done, total)``; True shows a bar.
        settings: other keys of the configuration file: how pictures are prepared (``preset="imagenet"``,
            ``preprocess={"scale": 1 / 255, "mean": [...], "std": [...]}``, ``preprocessor="preprocessor_config.json"``), how the
            model runs (``provider="cuda"``, ``threads``, ``batch``), how far recovery goes (``effort="thorough"``), when it
            is enough (``gate=["sqnr_db=25"]``), whether it is for FP8 as well (``precisions=["int8", "fp8"]``), what is
            quantized (``nodes_to_exclude``), and ``seed``.

    Returns:
        The table: for the same data it has the bytes that ``calib calibrate`` writes.

    Raises:
        DataError, ModelError, RuntimeLibraryError: with the program's messages.
    """
    keys = {"model": model_path(model), "method": method, **limited(samples, settings)}
    limit = count_of(keys.get("calib_samples", enough(config)))
    keys, held_samples = _read(keys, data, labels, model, limit)
    metric = own(metric)
    if metric is not None:
        if method not in (None, "auto") or histograms is not None:
            raise CalibError("metric: it chooses the method itself, so leave `method` and `histograms` out")
        tables = {}
        for choice in _CHOICES:
            tables[choice] = table = CalibrationTable._temporary()
            text = json.dumps(keys | {"method": choice})
            _trtcalib.calibrate(text, path_of(config), held_samples, table.path, None, metric, _Listener(progress))
        options = settings | {"config": config}
        return _chosen({choice: (_worth(model, table, held_samples or data, metric, options), table) for choice, table in tables.items()})
    table = CalibrationTable._temporary()
    histogram_file = None if histograms is None else Path(histograms)
    _trtcalib.calibrate(json.dumps(keys), path_of(config), held_samples, table.path, histogram_file, None, _Listener(progress))
    return table


#: Methods that a metric chooses among; of equal ones the first.
_CHOICES = ("auto", "entropy", "percentile", "mse", "minmax")


def _chosen(candidates: Mapping[str, tuple[float, CalibrationTable]]) -> CalibrationTable:
    # max() would keep a NaN that comes first.
    method = max(candidates, key=lambda method: (not math.isnan(candidates[method][0]), candidates[method][0]))
    best = candidates[method][1]
    best.judged = {method: value for method, (value, _) in candidates.items()}
    return best


def _worth(model: PathLike, table: CalibrationTable, data: Any, metric: Metric, options: Mapping[str, Any]) -> float:
    """What the metric gives for a table's INT8 model."""
    shared = {key: options[key] for key in _DATA if key in options}
    with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
        target = Path(folder) / "model.int8.onnx"
        config = options.get("config")
        quantize(model, table, target, config=config, **{key: options[key] for key in _PLACEMENT if key in options})
        every: dict[str, Any] = {"samples": 0, "calibration_samples": True, "gates": []}
        found = compare(model, target, data, metric=metric, config=config, **every, **shared)
    return _value(found)


def _value(found: Comparison) -> float:
    """What the metric gave for the only target of a comparison."""
    target = found["targets"][0]
    if target["metric"] is None:
        raise ModelError(f"{target['target']} cannot be judged: {target['error']}")
    return target["metric"]


def quantize(
    model: PathLike,
    table: CalibrationTable | PathLike | None,
    output: PathLike,
    *,
    precision: str = "int8",
    config: PathLike | None = None,
    **settings: Any,
) -> Quantized:
    """Writes a model with explicit Q/DQ (``int8``, ``fp8``), or one converted to ``fp16`` or ``bf16``.

    Args:
        model: float ONNX model.
        table: ranges from `calibrate`, a table's file, or a TensorRT calibration cache; None for ``fp16`` and ``bf16``.
        output: model to write.
        precision: ``int8``, ``fp8``, ``fp16`` or ``bf16``.
        config: configuration file; keywords win over it.
        settings: ``high_precision="fp16"``, ``plan="plan.json"``, ``nodes_to_exclude=["..."]`` and the like.

    Returns:
        What was written: ``path``, and figures such as ``quantized_nodes`` and ``bytes``.

    Raises:
        DataError, ModelError: with the program's messages.
    """
    keys = {"model": model_path(model), **plain(settings)}
    file = _table_file(table)
    result = _trtcalib.quantize(json.dumps(keys), path_of(config), precision, file, Path(output), _Listener(None))
    return Quantized(json.loads(result))


def compare(
    reference: PathLike | Saved,
    targets: PathLike | Saved | Sequence[PathLike | Saved],
    data: Any = None,
    *,
    labels: Any = None,
    gates: Gates = None,
    metric: Metric | None = None,
    minimum: float | None = None,
    samples: int | None = None,
    calibration_samples: bool = False,
    config: PathLike | None = None,
    progress: Progress = None,
    **settings: Any,
) -> Comparison:
    """Runs the same samples through a reference and one or several targets.

    Args:
        reference: ONNX model, a SPEC of the program such as ``ort-cuda:model.onnx``, or `Saved` outputs.
        targets: models, engines (``.plan``), or `Saved` outputs.
        data: as for `calibrate`.
        labels: right classes of arrays, or a label file.
        gates: thresholds: ``["top1=0.98"]`` or ``{"top1": 0.98}``; with `metric` also ``metric``, which is `minimum`.
        metric: called with the outputs of all samples (a list of dicts from output name to an array without the batch axis)
            and their names (a list of strings: file names, or 0, 1, ... for arrays);
            its number stands in ``targets[i]["metric"]`` and in ``reference_metric``.
        minimum: a gate on `metric`: smaller numbers do not pass, nor does NaN. Let a metric that is better when it is smaller,
            as a word error rate, give its negative.
        samples: samples to compare; all without.
        calibration_samples: compare those that a target was calibrated on, too.
        config, progress, settings: as for `calibrate`; with two `Saved` outputs also ``model="model.onnx"``, the float model that
            they are of.

    Returns:
        Figures of every target, a row each in ``rows()``; ``passed`` says whether each ran and passed every gate,
        and is None without gates.

    Raises:
        DataError, ModelError, RuntimeLibraryError: with the program's messages.
    """
    metric, listener = own(metric), _Listener(progress)
    others, minimum = asked(gates, metric, minimum)
    listed, model, keys = _compared(reference, targets, {"eval_samples": samples, "gate": others, **settings})
    keys, held_samples = _read(keys, data, labels, model, count_of(samples, 0) or None)

    def call(names: list[str], save_reference: Path | None = None, save_target: Path | None = None) -> dict[str, Any]:
        text = _trtcalib.compare(
            json.dumps(keys), path_of(config), held_samples, _spec(reference), names, save_reference, save_target,
            calibration_samples, None, listener,
        )
        return json.loads(text or "{}")

    def run(name: str) -> Run:
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            files = Path(folder) / "reference.npz", Path(folder) / "target.npz"
            part = call([name], *files)
            failed = part["targets"][0].get("error") is not None
            return part, read_outputs(files[0]), None if failed else read_outputs(files[1])

    if metric is None:
        return Comparison(call(listed))
    return Comparison(judged(map(run, listed), metric, minimum))


def bisect(
    model: PathLike,
    table: CalibrationTable | PathLike | None,
    data: Any = None,
    *,
    gate: Gates = None,
    metric: Metric | None = None,
    minimum: float | None = None,
    labels: Any = None,
    out: PathLike | None = None,
    precision: str = "int8",
    lift: str = "fp32",
    max_trials: int = 64,
    samples: int = 200,
    config: PathLike | None = None,
    progress: Progress = None,
    **settings: Any,
) -> Findings:
    """Finds the layers that lose accuracy, and with a gate the smallest set to lift to a higher precision.

    Args:
        model: float ONNX model.
        table: ranges from `calibrate`; None calibrates first, by ``method="auto"`` unless the settings say otherwise.
        data: as for `calibrate`.
        gate: what the plan must pass, ``{"top1": 0.99}``; without one the layers are measured.
        metric, minimum: the same by a metric of one's own, as in `compare`: nodes are lifted in the order of the noise that
            they bring to the outputs, and the fewest are found with which the metric reaches `minimum` (or the gate
            ``metric``) and every other gate passes. The plan is checked on all samples. Where the metric gets no better with
            more nodes lifted, fewer may do than are found.
        labels: right classes of arrays, or a label file.
        out: folder for ``plan.json``, ``bisect.json`` and the model; without, one that lasts as long as the process.
        precision: what is looked into: ``int8`` or ``fp8``; without a gate also ``fp16`` or ``bf16``.
        lift: precision that nodes are lifted to.
        max_trials: plans that may be tried.
        samples: samples that plans are judged on.
        config, progress, settings: as for `calibrate`.

    Returns:
        Layers with their errors in dB (none where the gates pass with nothing lifted), how the ``plan`` was searched, and
        its file for `quantize` as the attribute ``plan``; ``passed`` says whether it passes on samples that it was not
        searched on, and with `metric` on all; it is None where none was looked for.

    Raises:
        DataError, ModelError, RuntimeLibraryError: with the program's messages.
    """
    metric = own(metric)
    others, minimum = _asked_of_plan(gate, metric, minimum)
    keys, held_samples = _read({"model": model_path(model), **settings}, data, labels, model, None)
    if metric is not None and table is None:
        shown: dict[str, Any] = {"labels": None if held_samples is not None else labels, "config": config, "progress": progress}
        table = calibrate(model, data if held_samples is None else held_samples, **shown, **settings)
    options = {"precision": precision, "lift": lift, "max_trials": max_trials, "samples": samples}
    # With a metric, plans are judged below; the library measures the layers.
    findings = _findings(keys, table, held_samples, others if metric is None else [], out, options, config, _Listener(progress))
    if metric is None:
        return findings
    plans = _Plans(model, table, findings, precision, lift, config, settings)
    shared = {"metric": metric, "minimum": minimum, "gates": others, "labels": labels, "config": config, "progress": progress}
    shared |= {"calibration_samples": True} | {key: value for key, value in settings.items() if key in _DATA}

    def judge(wanted: Sequence[int], most: int = samples) -> list[Trial]:
        trials = []
        for lifted in wanted:
            with tempfile.TemporaryDirectory(prefix="trtcalib-") as place:
                target = plans.model(lifted, Path(place) / "model.onnx")
                found = compare(model, target, data if held_samples is None else held_samples, samples=most, **shared)
            trials.append(Trial(lifted, _value(found), found.passed is not False))
        return trials

    trials, best = smallest(len(plans.nodes), judge, most=max_trials)
    return plans.finish(trials, best, lambda lifted: judge([lifted], 0)[0])


def _findings(
    keys: Mapping[str, Any], table: Any, samples: Any, gates: list[str] | None, out: PathLike | None, options: dict[str, Any],
    config: PathLike | None, listener: Any, count: Callable[[bytes, list[int]], list[str]] | None = None,
) -> Findings:
    """What the library finds; with `count`, others count the trials of its search."""
    folder = Path(out) if out is not None else temporary_folder()
    text = json.dumps({**keys, **plain({"gate": gates, "out": str(folder), "table": _table_file(table)})})
    found, folder, passed = _trtcalib.bisect(text, path_of(config), samples, options, count, listener)
    values = json.loads(found)
    return Findings(values, folder, passed if "plan" in values else None)


def _asked_of_plan(gate: Gates, metric: Metric | None, minimum: float | None) -> tuple[list[str] | None, float | None]:
    """As `asked`, where a metric alone says nothing about what is enough."""
    others, minimum = asked(gate, metric, minimum)
    if metric is not None and minimum is None:
        raise CalibError("bisect: give with `metric` what it must reach, as `minimum=` or gate={'metric': ...}")
    return others, minimum


class _Plans:
    """Plans that lift the first nodes of a ranking, and their models."""

    def __init__(
        self, model: PathLike, table: Any, findings: Findings, precision: str, lift: str, config: Any, settings: Mapping[str, Any]
    ) -> None:
        self.nodes = ranking(findings)
        self._findings, self._lift, self._model, self._table = findings, lift, model, table
        self._keys = {key: settings[key] for key in _PLACEMENT if key in settings} | {"precision": precision, "config": config}

    def model(self, lifted: int, path: Path) -> Path:
        """Writes the model of the plan that lifts so many nodes, and the plan beside it."""
        plan = write_plan(self.nodes[:lifted], self._lift, path.with_name("plan.json"))
        return quantize(self._model, self._table, path, plan=plan, **self._keys).path

    def finish(self, trials: list[Trial], best: Trial | None, check: Callable[[int], Trial]) -> Findings:
        """Writes the plan that was found and tries it on all samples."""
        folder = self._findings.folder
        found: dict[str, Any] = {"trials": [trial._asdict() for trial in trials], "lifted": None, "check": None}
        checked = None
        if best is not None:
            self.model(best.lifted, folder / "model.plan.onnx")
            checked = check(best.lifted)
            found |= {"lifted": self.nodes[: best.lifted], "check": checked._asdict()}
        passed = checked is not None and checked.passed
        text = sentence(trials, best, checked, len(self.nodes), self._lift)
        advice = {"level": "info" if passed else "problem", "text": text, "nodes": found["lifted"] or []}
        values = self._findings.to_dict()
        values |= {"plan": found, "metric_plan": found, "advice": [advice, *values["advice"]]}
        return Findings(values, folder, passed)


def run(
    model: PathLike,
    data: Any = None,
    *,
    out: PathLike,
    labels: Any = None,
    gates: Gates = None,
    metric: Metric | None = None,
    minimum: float | None = None,
    config: PathLike | None = None,
    progress: Progress = None,
    **settings: Any,
) -> Report:
    """The whole job: calibrates, quantizes, compares every precision with the float model, times, and reports.

    Args:
        model: float ONNX model.
        data: as for `calibrate`; some samples calibrate, the others judge.
        out: folder for everything that the run leaves.
        labels: right classes of arrays, or a label file.
        gates: thresholds: ``["top1=0.98", "sqnr_db=15"]`` or a dict; with `metric` also ``metric``, or ``int8:metric`` for
            one precision alone.
        metric: a function as for `compare`. It decides about the steps of recovery as for `calibrate`; its number for the
            evaluation samples stands in ``precisions[i]["metric"]``, and gates may be about it.
        minimum: the gate ``metric`` for every precision: smaller numbers do not pass.
        config, progress: as for `calibrate`.
        settings: ``precisions=["fp32", "fp16", "int8"]``, ``calib_samples``, ``eval_samples``, ``bench_seconds`` and the like.

    Returns:
        The figures of ``report.json``; ``folder`` has the files, ``passed`` is None without gates.

    Raises:
        DataError, ModelError, RuntimeLibraryError: with the program's messages. A failed gate is not an error.
    """
    metric = own(metric)
    listed, minimum = asked(gates, metric, minimum)
    if minimum is not None:
        listed = [*(listed or []), f"metric={minimum!r}"]
    keys = {"model": model_path(model), "out": str(out), "gate": listed, **settings}
    keys, held_samples = _read(keys, data, labels, model, None)
    report, folder = _trtcalib.run(json.dumps(keys), path_of(config), held_samples, metric, _Listener(progress))
    return Report(json.loads(report), Path(folder))


#: Settings that say what is quantized, and those that say how samples are read and run.
_PLACEMENT = (
    "high_precision", "nodes_to_exclude", "nodes_to_include", "op_types", "op_types_to_exclude", "per_tensor_weights", "shape"
)
_DATA = ("preset", "preprocess", "preprocessor", "batch", "threads", "provider", "shape", "max_bad", "strict", "classes")


def _table_file(table: CalibrationTable | PathLike | None) -> Path | None:
    return table.path if isinstance(table, CalibrationTable) else path_of(table)


def _spec(target: PathLike | Saved) -> str:
    return model_path(target.path if isinstance(target, Saved) else target)


def _compared(
    reference: PathLike | Saved, targets: PathLike | Saved | Sequence[PathLike | Saved], settings: Mapping[str, Any]
) -> tuple[list[str], Any, dict[str, Any]]:
    """Names of the targets, the model whose inputs the data are, and the settings of a comparison."""
    listed = [_spec(target) for target in ([targets] if isinstance(targets, (str, os.PathLike, Saved)) else targets)]
    if not listed:
        raise CalibError(f"there is nothing to compare with {_spec(reference)}; name it in `targets`")
    keys = dict(settings)
    if isinstance(reference, Saved) and "model" not in keys:
        keys["model"] = next((name for name in listed if name.endswith(".onnx")), None)
    return listed, keys.get("model") or _spec(reference), keys


def _read(keys: dict[str, Any], data: Any, labels: Any, model: Any, limit: int | None) -> tuple[dict[str, Any], Any]:
    """Settings that name the data, and the samples that Python holds."""
    keys = plain(keys)
    if data is not None and keys.get("random_data"):
        raise CalibError("random_data: data were given, too; leave one of them out")
    if isinstance(data, _trtcalib.Samples):
        return keys, data
    if data is None or isinstance(data, (str, os.PathLike)):
        if data is not None:
            keys["data"] = os.fspath(data)
        if labels is not None:
            if not isinstance(labels, (str, os.PathLike)):
                raise DataError("labels of a folder or file come from a file: give its path")
            keys["labels"] = os.fspath(labels)
        return keys, None
    return keys, held(data, labels=labels, limit=limit, inputs=_inputs(model))


def _inputs(model: Any) -> list[str]:
    """Names of a model's inputs; none for what is no ONNX model."""
    return _trtcalib.input_names(str(model).split(":", 1)[-1]) if str(model).endswith(".onnx") else []
