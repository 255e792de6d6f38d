"""Calibration, comparison and the search for a plan on a Ray cluster.

Blocks of a ``ray.data.Dataset`` stay in Ray's object store; each actor takes its part of the samples, and what the parts
counted is joined exactly: the table and every figure have the bytes of a single process's. An actor that dies is started
again and its part is done again, so nothing counts twice. Needs ``pip install trtcalib[ray]``.

The model, and the models that are compared, lie at the same path on every node.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray  # type: ignore[import-not-found, unused-ignore]

from . import (
    _CHOICES, _DATA, CalibError, CalibrationTable, Comparison, Findings, Metric, PathLike, Progress, Trial, _chosen, _gates, _limited, _Listener,
    _only_input, _path, _Plans, _spec, _strings, _trtcalib, _worth, smallest,
)
from . import bisect as _bisect
from . import compare as _compare
from ._data import as_array

__all__ = ["bisect", "calibrate", "compare"]


class _Blocks:
    """A data set's blocks by reference, and which columns are inputs and labels."""

    def __init__(self, dataset: Any, model: Any, columns: Mapping[str, str] | None, labels: str | None, limit: int | None) -> None:
        # Samples are told apart by their place, so blocks must come as they lie, not as they are done.
        running = dataset.context.execution_options
        before, running.preserve_order = running.preserve_order, True
        try:
            self._refs = (dataset if limit is None else dataset.limit(limit)).to_numpy_refs()
        finally:
            running.preserve_order = before
        if not self._refs:
            raise CalibError("the data set holds no rows")
        about = ray.remote(_about).options(num_cpus=0)
        told = ray.get([about.remote(ref, labels) for ref in self._refs])
        self._counts = [count for _, count, _ in told]
        # An empty block knows no columns.
        names = [name for name in next((names for names, count, _ in told if count), []) if name != labels]
        self._labels = [label for _, _, given in told for label in given] if labels is not None else None
        if columns is None:
            only = _only_input(model)
            # As `ray.data.read_images` calls it.
            pictures = "image" if "image" in names and only not in names else None
            column = names[0] if len(names) == 1 else pictures
            columns = {only: column} if only is not None and column is not None else {name: name for name in names}
        self._columns = dict(columns)

    def samples(self) -> _trtcalib.Samples:
        """Samples whose arrays are fetched when they are asked for."""

        # Samples are read in order: the block of the last one serves the next.
        last: dict[Any, dict[str, Any]] = {}

        def loader(ref: Any, row: int) -> Callable[[], dict[str, Any]]:
            def load() -> dict[str, Any]:
                block = last.get(ref)
                if block is None:
                    block = ray.get(ref)
                    last.clear()
                    last[ref] = block
                # Rows may be of different sizes, as pictures are.
                return {name: as_array(block[column][row])[None] for name, column in self._columns.items()}

            return load

        total = sum(self._counts)
        places = [(ref, row) for ref, count in zip(self._refs, self._counts) for row in range(count)]
        batches = [(1, loader(ref, row)) for ref, row in places]
        return _trtcalib.Samples(batches, [str(index) for index in range(total)], self._labels or [None] * total)


def _about(block: Mapping[str, Any], labels: str | None) -> tuple[list[str], int, list[int | None]]:
    """Columns of a block, its rows, and their labels."""
    count = len(next(iter(block.values()))) if block else 0
    known = [None if label < 0 else int(label) for label in block[labels]] if labels is not None and count else []
    return list(block), count, known


@ray.remote(max_restarts=-1, max_task_retries=-1)
class _Worker:
    """Does one part a call. What it gives is a file's bytes and nothing is kept, so a call may be made again."""

    def observe(self, settings: str, config: Any, blocks: _Blocks, shard: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            path = Path(folder) / "part.calib"
            _trtcalib.observe(settings, config, blocks.samples(), shard, path, _Listener(None))
            return path.read_bytes()

    def compare(self, settings: str, config: Any, blocks: _Blocks, reference: str, targets: list[str], shard: str, everything: bool) -> bytes:
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            path = Path(folder) / "part.json"
            listener = _Listener(None)
            _trtcalib.compare(
                settings, config, blocks.samples(), reference, targets, None, None, everything, (shard, path), listener
            )
            return path.read_bytes()

    def candidate(
        self, model: str, settings: dict[str, Any], config: Any, blocks: _Blocks, parts: list[bytes], metric: Metric
    ) -> tuple[float, bytes]:
        table, samples = CalibrationTable._temporary(), blocks.samples()
        text, listener = json.dumps(settings), _Listener(None)
        _joined(parts, lambda files: _trtcalib.merge(text, config, samples, files, table.path, metric, listener))
        return _worth(model, table, samples, metric, settings | {"config": config}), table.path.read_bytes()

    def judge(self, lifted: int, model: bytes, blocks: _Blocks, options: dict[str, Any]) -> Trial:
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            target = Path(folder) / "model.onnx"
            target.write_bytes(model)
            found = _compare(options["model"], target, blocks.samples(), **options["compare"])
        return Trial(lifted, found["targets"][0].get("metric"), found.passed)


def _workers(actors: int, num_cpus: float, num_gpus: float) -> list[Any]:
    if actors < 1:
        raise CalibError(f"actors: there must be one at least, not {actors}")
    worker: Any = _Worker
    return [worker.options(num_cpus=num_cpus, num_gpus=num_gpus).remote() for _ in range(actors)]


def _keys(settings: Mapping[str, Any], num_cpus: float, num_gpus: float) -> dict[str, Any]:
    """Settings of workers: each uses what it was given."""
    keys = _strings(settings)
    keys.setdefault("threads", max(1, int(num_cpus)))
    if num_gpus:
        keys.setdefault("provider", "cuda")
    return keys


def _joined(parts: Sequence[bytes], join: Callable[[list[Path]], Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
        files = [Path(folder) / f"{index}.part" for index in range(len(parts))]
        for path, part in zip(files, parts):
            path.write_bytes(part)
        return join(files)


def calibrate(
    model: PathLike,
    dataset: Any,
    *,
    actors: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    samples: int | None = None,
    columns: Mapping[str, str] | None = None,
    metric: Metric | None = None,
    config: PathLike | None = None,
    progress: Progress = None,
    **settings: Any,
) -> CalibrationTable:
    """As `trtcalib.calibrate`, with the samples observed by `actors` workers.

    Args:
        model: float ONNX model, at the same path on every node.
        dataset: ``ray.data.Dataset`` whose rows hold the model's inputs as arrays without the batch axis; or, with ``preset=``,
            ``preprocess=`` or ``preprocessor=``, pictures (height × width × 3, ``uint8``, of any size, as
            ``ray.data.read_images`` gives them), which become inputs as files of pictures do. Rows are taken in order; one
            that was materialized before keeps the order that Ray gave it then.
        actors: workers; each takes `num_cpus` CPUs (as many threads run in it) and `num_gpus` GPUs.
        samples: calibration samples, at most (512): the first rows of the data set.
        columns: column of the data set for each input; their own names without, and for a model with one input the only
            column, or ``image``.
        metric: chooses the method, as for `trtcalib.calibrate`; the candidates are made and judged side by side.
        settings: as for `trtcalib.calibrate`.
    """
    keys = _keys({"model": str(model), **_limited(samples), **settings}, num_cpus, num_gpus)
    blocks = _Blocks(dataset, model, columns, None, keys.get("calib_samples", 512))
    text, file, shared = json.dumps(keys), _path(config), ray.put(blocks)
    workers = _workers(actors, num_cpus, num_gpus)
    calls = [worker.observe.remote(text, file, shared, f"{i + 1}/{actors}") for i, worker in enumerate(workers)]
    parts = ray.get(calls)
    if metric is not None:
        if "method" in settings:
            raise CalibError("metric: it chooses the method itself, so leave `method` out")
        # The counts are the same for every method.
        tries = [
            workers[index % actors].candidate.remote(str(model), keys | {"method": method}, file, shared, parts, metric)
            for index, method in enumerate(_CHOICES)
        ]
        return _chosen({method: (value, _table(bytes_of)) for method, (value, bytes_of) in zip(_CHOICES, ray.get(tries))})
    table = CalibrationTable._temporary()
    listener = _Listener(progress)
    _joined(parts, lambda files: _trtcalib.merge(text, file, blocks.samples(), files, table.path, None, listener))
    return table


def _table(content: bytes) -> CalibrationTable:
    table = CalibrationTable._temporary()
    table.path.write_bytes(content)
    return table


def compare(
    reference: PathLike,
    targets: PathLike | Sequence[PathLike],
    dataset: Any,
    *,
    actors: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    columns: Mapping[str, str] | None = None,
    labels: str | None = None,
    gates: Sequence[str] | Mapping[str, float] = (),
    samples: int = 0,
    calibration_samples: bool = False,
    config: PathLike | None = None,
    **settings: Any,
) -> Comparison:
    """As `trtcalib.compare`, with the samples compared by `actors` workers; every figure has the bytes of one process's.

    Args:
        reference, targets: models at the same path on every node.
        dataset, actors, columns: as for `calibrate`.
        labels: column of right classes; negative where unknown.
        gates, samples, calibration_samples: as for `trtcalib.compare`.
    """
    listed = [targets] if isinstance(targets, (str, Path)) else list(targets)
    keys = _keys({"eval_samples": samples, "gate": _gates(gates), **settings}, num_cpus, num_gpus)
    blocks = ray.put(_Blocks(dataset, keys.get("model") or reference, columns, labels, None))
    names, text, file = [_spec(target) for target in listed], json.dumps(keys), _path(config)
    calls = [
        worker.compare.remote(text, file, blocks, _spec(reference), names, f"{i + 1}/{actors}", calibration_samples)
        for i, worker in enumerate(_workers(actors, num_cpus, num_gpus))
    ]
    return Comparison(json.loads(_joined(ray.get(calls), lambda files: _trtcalib.join(files, None))))


def bisect(
    model: PathLike,
    table: CalibrationTable | PathLike,
    dataset: Any,
    *,
    gate: Sequence[str] | Mapping[str, float] = (),
    metric: Metric | None = None,
    minimum: float | None = None,
    actors: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    columns: Mapping[str, str] | None = None,
    labels: str | None = None,
    out: PathLike | None = None,
    precision: str = "int8",
    lift: str = "fp32",
    max_trials: int = 64,
    samples: int = 200,
    config: PathLike | None = None,
    **settings: Any,
) -> Findings:
    """The fewest layers to lift, in the order of the noise that they bring; trials run side by side on the actors.

    The plan and its trials are those of one actor, whatever their number: trials ahead of what is known are thrown away
    where they turn out not to be needed.

    Args:
        table: ranges from `calibrate`.
        gate: what the plan must pass; or `metric` and `minimum`, as for `trtcalib.bisect`.
        dataset, actors, columns, labels: as for `compare`.
        samples: samples that plans are judged on; the one that is found is checked on all.
    """
    if bool(gate) == (metric is not None) or (metric is None) != (minimum is None):
        raise CalibError("bisect: give either `gate`, or `metric` and `minimum`")
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="trtcalib-"))
    workers = _workers(actors, num_cpus, num_gpus)
    held = _Blocks(dataset, model, columns, labels, None)
    keys = _keys(settings, num_cpus, num_gpus)
    findings = _bisect(model, table, held.samples(), out=folder, precision=precision, lift=lift, config=config, **keys)
    plans = _Plans(model, table, findings, precision, lift, config, settings)
    blocks = ray.put(held)
    run = {key: keys[key] for key in _DATA if key in keys}

    def judge(wanted: Sequence[int], most: int = samples) -> list[Trial]:
        common = {"gates": gate, "metric": metric, "minimum": minimum, "samples": most, "calibration_samples": True}
        options = {"model": str(model), "compare": common | {"config": config} | run}
        calls = []
        for index, lifted in enumerate(wanted):
            with tempfile.TemporaryDirectory(prefix="trtcalib-") as place:
                bytes_of = plans.model(lifted, Path(place) / "model.onnx").read_bytes()
            calls.append(workers[index % actors].judge.remote(lifted, bytes_of, blocks, options))
        return ray.get(calls)

    trials, best = smallest(len(plans.nodes), judge, ahead=actors, most=max_trials)
    return plans.finish(folder, trials, best, lambda lifted: judge([lifted], 0)[0])
