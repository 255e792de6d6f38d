"""Calibration, comparison and the search for a plan on a Ray cluster.

Blocks of a ``ray.data.Dataset`` stay in Ray's object store; each actor takes its part of the samples, and what the parts
counted is joined exactly: the table and every figure have the bytes of a single process's. An actor that dies is started
again and its part is done again, so nothing counts twice. Needs ``pip install trtcalib[ray]``.

The model, and the models that are compared, lie at the same path on every node.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import posixpath
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import ray  # type: ignore[import-not-found, unused-ignore]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("trtcalib.ray needs Ray, which is not installed: pip install 'trtcalib[ray]'") from error

from . import (
    _CHOICES, _DATA, CalibError, CalibrationTable, Comparison, DataError, Findings, Metric, PathLike, Progress, Saved, Trial,
    _asked_of_plan, _chosen, _compared, _inputs, _Listener, _Plans, _spec, _trtcalib, _value, _worth, smallest,
)
from . import bisect as _bisect
from . import compare as _compare
from ._data import as_array, classes, matched
from ._metric import Gates, Outputs, Run, asked, judged, own, read_outputs
from ._results import temporary_folder
from ._settings import count_of, limited, model_path, path_of, plain

__all__ = ["bisect", "calibrate", "compare"]

_log = logging.getLogger("trtcalib")


class _Blocks:
    """A data set's blocks by reference, which columns are inputs and labels, and what its samples are called."""

    def __init__(
        self, dataset: Any, model: Any, columns: Mapping[str, str] | None, labels: str | None, names: str | None
    ) -> None:
        if not hasattr(dataset, "to_numpy_refs"):
            kind = type(dataset).__name__
            raise DataError(f"a {kind} is no ray.data.Dataset: make one, as by ray.data.from_numpy, or give it to trtcalib itself")
        # Samples are told apart by their place, so blocks must come as they lie, not as they are done.
        running = dataset.context.execution_options
        before, running.preserve_order = running.preserve_order, True
        try:
            self._refs = dataset.to_numpy_refs()
        finally:
            running.preserve_order = before
        about = ray.remote(_about).options(num_cpus=0)
        told = _results([about.remote(ref, labels, names) for ref in self._refs])
        self._counts = [count for _, count, _, _ in told]
        # An empty block knows no columns.
        there: list[str] = next((there for there, count, _, _ in told if count), [])
        if not there:
            raise DataError("the data set holds no rows")
        self._labels = [label for _, _, given, _ in told for label in given]
        self._ids = _ids([name for *_, given in told for name in given], sum(self._counts), names is None)
        if columns is None:
            inputs = _inputs(model)
            others = [name for name in there if name not in (labels, names)]
            # As `ray.data.read_images` calls it.
            is_picture = len(inputs) == 1 and inputs[0] not in others and "image" in others
            columns = matched(["image"] if is_picture else others, inputs)
        for column in columns.values():
            if column not in there:
                raise DataError(f"columns: the data set has no column `{column}`; it has `{'`, `'.join(there)}`")
        self._columns = dict(columns)

    def parts(self, actors: int) -> int:
        """Parts that so many actors take: none without samples."""
        return min(actors, sum(self._counts))

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

        places = [(ref, row) for ref, count in zip(self._refs, self._counts) for row in range(count)]
        ids = self._ids or [str(index) for index in range(len(places))]
        # As those of a folder, samples with names come in the order of their names.
        order = sorted(range(len(ids)), key=ids.__getitem__) if self._ids else range(len(ids))
        batches = [(1, loader(*places[index])) for index in order]
        return _trtcalib.Samples(batches, [ids[index] for index in order], [self._labels[index] for index in order])


def _about(
    block: Mapping[str, Any], labels: str | None, names: str | None
) -> tuple[list[str], int, list[int | None], list[str]]:
    """Columns of a block, its rows, their labels, and their names if they have any."""
    count = len(next(iter(block.values()))) if block else 0
    if count == 0:
        return list(block), 0, [], []
    for what, column in (("labels", labels), ("names", names)):
        if column is not None and column not in block:
            raise DataError(f"{what}: the data set has no column `{column}`; it has `{'`, `'.join(block)}`")
    # As `ray.data.read_images(include_paths=True)` calls them.
    named = "path" if names is None and block.keys() >= {"image", "path"} else names
    its_names = [] if named is None else [str(name) for name in block[named]]
    return list(block), count, [None] * count if labels is None else classes(block[labels], count), its_names


def _ids(given: list[str], count: int, are_paths: bool) -> list[str]:
    """Names of samples as those of files in a folder: paths from the innermost folder on that holds them all."""
    if are_paths and given:
        given = [path.lstrip("/") for path in given]
        folder = posixpath.commonpath([posixpath.dirname(path) for path in given])
        given = [posixpath.relpath(path, folder or ".") for path in given]
    if given and len(given) != count:
        raise DataError(f"names: {len(given)} of {count} rows have one")
    if len(set(given)) < len(given):
        twice = next(name for name, times in Counter(given).items() if times > 1)
        reason = "drop the column `path`, or name" if are_paths else "name"
        raise DataError(f"names: `{twice}` stands in several rows; {reason} a column whose values differ")
    return given


def _results(calls: Sequence[Any], listener: Callable[..., None] = _Listener(None), what: str = "") -> list[Any]:
    """What calls of workers give, in their order; what one raised is raised as it was."""
    found: dict[Any, Any] = {}
    waiting = list(calls)
    try:
        while waiting:
            ready, waiting = ray.wait(waiting)
            found |= zip(ready, ray.get(ready))
            listener("progress", what, len(found), len(calls))
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, CalibError):
            # The message says it all; where in which process says nothing.
            raise cause from None
        if isinstance(cause, Exception) and not isinstance(cause, ray.exceptions.RayError):
            raise cause from error
        raise
    listener("finished", what, 0, 0)
    return [found[call] for call in calls]


@ray.remote(max_restarts=-1, max_task_retries=-1)
class _Worker:
    """Does one part a call. What it gives is a file's bytes and nothing is kept, so a call may be made again."""

    def observe(self, settings: str, config: Any, blocks: _Blocks, shard: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            path = Path(folder) / "part.calib"
            _trtcalib.observe(settings, config, blocks.samples(), shard, path, _Listener(None))
            return path.read_bytes()

    def compare(
        self, settings: str, config: Any, blocks: _Blocks, reference: str, targets: list[str], shard: str, everything: bool,
        keep: bool,
    ) -> tuple[bytes, Outputs | None, Outputs | None]:
        """What a part counted; with `keep`, the outputs of the reference and of the first target as well."""
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            path = Path(folder) / "part.json"
            first, second = (Path(folder) / name if keep else None for name in ("reference.npz", "target.npz"))
            listener = _Listener(None)
            _trtcalib.compare(
                settings, config, blocks.samples(), reference, targets, first, second, everything, (shard, path), listener
            )
            outputs, others = (None if saved is None else read_outputs(saved) for saved in (first, second))
            return path.read_bytes(), outputs, others

    def worth(self, settings: dict[str, Any], config: Any, blocks: _Blocks, made: tuple[bytes, Any], metric: Metric) -> float:
        """What the metric gives for a table that `choose` made."""
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            table = CalibrationTable(Path(folder) / "calibration.json")
            table.path.write_bytes(made[0])
            return _worth(settings["model"], table, blocks.samples(), metric, settings | {"config": config})

    def choose(
        self, settings: dict[str, Any], config: Any, blocks: _Blocks, parts: list[bytes], metric: Metric | None,
        index: int, count: int, meeting: Any,
    ) -> tuple[bytes, list[Any]]:
        """The table of all parts, and what was told on the way. Candidates of recovery are shared with who does the same."""
        rounds, told, text = itertools.count(), [], json.dumps(settings)

        def exchange(found: list[float]) -> Any:
            return _results([meeting.give.remote(next(rounds), index, found)])[0]

        def hear(*event: Any) -> None:
            if event[0] not in ("progress", "finished"):
                told.append(event)

        samples, peers = blocks.samples(), (index, count, exchange)
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            table = Path(folder) / "calibration.json"
            _joined(parts, lambda files: _trtcalib.merge(text, config, samples, files, table, metric, peers, hear))
            ray.get(meeting.leave.remote(index))
            return table.read_bytes(), told

    def judge(self, lifted: int, model: bytes, blocks: _Blocks, options: dict[str, Any]) -> Trial:
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            target = Path(folder) / "model.onnx"
            target.write_bytes(model)
            found = _compare(options["model"], target, blocks.samples(), **options["compare"])
        return Trial(lifted, None if options["compare"]["metric"] is None else _value(found), found.passed is not False)


@ray.remote(num_cpus=0)
class _Meeting:
    """Where workers learn what all have found. One that begins again is given what it was given before."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._rounds: dict[int, dict[int, list[float]]] = {}
        self._left: set[int] = set()
        self._changed = asyncio.Condition()

    async def give(self, number: int, worker: int, found: list[float]) -> list[list[float]]:
        all_found = self._rounds.setdefault(number, {})
        async with self._changed:
            all_found.setdefault(worker, found)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(all_found) == self._workers or self._left)
        if len(all_found) < self._workers:
            who = f"worker {min(self._left) + 1} of {self._workers}"
            raise CalibError(f"{who} gave it up, as where memory is short; try again with actors=1")
        return [all_found[worker] for worker in range(self._workers)]

    async def leave(self, worker: int) -> None:
        async with self._changed:
            self._left.add(worker)
            self._changed.notify_all()


@contextmanager
def _workers(actors: int, num_cpus: float, num_gpus: float) -> Iterator[list[Any]]:
    """Actors while they are needed. They hold their CPUs as long, so nothing else may have to run by then."""
    if actors < 1:
        raise CalibError(f"actors: there must be one at least, not {actors}")
    for kind, each in (("CPU", num_cpus), ("GPU", num_gpus)):
        there = ray.cluster_resources().get(kind, 0)
        if actors * each > there:
            _log.warning("%d actors of %g %s each wait for more than the %g of the cluster", actors, each, kind, there)
    worker: Any = _Worker
    started = [worker.options(num_cpus=num_cpus, num_gpus=num_gpus).remote() for _ in range(actors)]
    try:
        yield started
    finally:
        # A traceback that somebody keeps would keep them, too.
        for one in started:
            ray.kill(one)


def _keys(settings: Mapping[str, Any], num_cpus: float, num_gpus: float) -> dict[str, Any]:
    """Settings of workers: each uses what it was given."""
    keys = plain(settings)
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
    labels: str | None = None,
    names: str | None = None,
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
        actors, num_cpus, num_gpus: workers; each takes `num_cpus` CPUs (as many threads run in it) and `num_gpus` GPUs.
        samples: calibration samples, at most (512): those that `trtcalib.calibrate` takes of a dict of the same arrays. The data
            set is executed as a whole; with ``dataset.limit(512)`` only its first rows are.
        columns: column of the data set for each input. Without, columns of the names of the inputs; for a model with one
            input also the only column, or ``image``. Other columns are not used.
        labels: column of right classes, which is no input.
        names: column of the samples' names, which differ. Samples then are chosen by name, and come in the order of their names,
            as those of a folder. Without, the names are the paths that ``ray.data.read_images(include_paths=True)`` gives, from
            the innermost folder on that holds them all, and without these the numbers of the rows.
        metric: chooses the method, as for `trtcalib.calibrate`; tables are judged side by side. With one or without, workers
            recover the same model side by side, and each tries its part of the ranges and roundings in question.
        config, progress: as for `trtcalib.calibrate`; progress is told as parts are done.
        settings: as for `trtcalib.calibrate`.
    """
    keys = _keys({"model": model_path(model), **limited(samples, settings)}, num_cpus, num_gpus)
    metric, listener = own(metric), _Listener(progress)
    if metric is not None and settings.get("method") not in (None, "auto"):
        raise CalibError("metric: it chooses the method itself, so leave `method` out")
    count_of(keys.get("calib_samples"))
    blocks = _Blocks(dataset, model, columns, labels, names)
    file, shared = path_of(config), ray.put(blocks)
    actors = blocks.parts(actors)
    with _workers(actors, num_cpus, num_gpus) as workers:
        calls = [worker.observe.remote(json.dumps(keys), file, shared, f"{i + 1}/{actors}") for i, worker in enumerate(workers)]
        parts = ray.put(_results(calls, listener, "parts observed"))

        # Ray ends an actor that nobody holds here.
        meetings: list[Any] = []

        def choose(keys: dict[str, Any], workers: list[Any]) -> list[Any]:
            meeting: Any = _Meeting
            meetings.append(meeting.remote(len(workers)))
            peers = len(workers), meetings[-1]
            return [worker.choose.remote(keys, file, shared, parts, metric, i, *peers) for i, worker in enumerate(workers)]

        def together(keys: dict[str, Any]) -> tuple[bytes, list[Any]]:
            (table, told), *others = _results(choose(keys, workers), listener, "thresholds chosen")
            for event in told:
                listener(*event)
            if any(other != table for other, _ in others):
                _log.warning("the actors do not compute alike, as on processors of several kinds; the table is that of the first")
            return table, told

        if metric is None:
            return CalibrationTable._temporary(together(keys)[0])
        # The counts are the same for every method. What may be recovered has candidates for all; the rest is made side by side.
        recovers = _CHOICES if "effort" in keys or config is not None else _CHOICES[:1]
        made = {method: ray.put(together(keys | {"method": method})) for method in recovers}
        tries = []
        for index, method in enumerate(_CHOICES):
            worker, its_keys = workers[index % actors], keys | {"method": method}
            if method not in made:
                made[method] = choose(its_keys, [worker])[0]
            tries.append(worker.worth.remote(its_keys, file, shared, made[method], metric))
        values = _results(tries, listener, "candidates judged")
        tables = [CalibrationTable._temporary(table) for table, _ in ray.get(list(made.values()))]
    return _chosen(dict(zip(_CHOICES, zip(values, tables))))


def compare(
    reference: PathLike | Saved,
    targets: PathLike | Saved | Sequence[PathLike | Saved],
    dataset: Any,
    *,
    actors: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    columns: Mapping[str, str] | None = None,
    labels: str | None = None,
    names: str | None = None,
    gates: Gates = None,
    metric: Metric | None = None,
    minimum: float | None = None,
    samples: int | None = None,
    calibration_samples: bool = False,
    config: PathLike | None = None,
    progress: Progress = None,
    **settings: Any,
) -> Comparison:
    """As `trtcalib.compare`, with the samples compared by `actors` workers; every figure has the bytes of one process's.

    Args:
        reference, targets: models, or `trtcalib.Saved` outputs, at the same path on every node.
        dataset, actors, num_cpus, num_gpus, columns, names: as for `calibrate`.
        labels: column of right classes; negative where unknown.
        gates, samples, calibration_samples: as for `trtcalib.compare`.
        metric, minimum: as for `trtcalib.compare`; the outputs of all samples are brought together where this runs.
        config, progress, settings: as for `trtcalib.compare`; progress is told as parts are done.
    """
    metric, listener = own(metric), _Listener(progress)
    others, minimum = asked(gates, metric, minimum)
    listed, model, given = _compared(reference, targets, {"eval_samples": samples, "gate": others, **settings})
    keys = _keys(given, num_cpus, num_gpus)
    held = _Blocks(dataset, model, columns, labels, names)
    blocks, actors = ray.put(held), held.parts(actors)
    text, file = json.dumps(keys), path_of(config)
    with _workers(actors, num_cpus, num_gpus) as workers:

        def call(targets: list[str]) -> Run:
            calls = [
                worker.compare.remote(
                    text, file, blocks, _spec(reference), targets, f"{i + 1}/{actors}", calibration_samples, metric is not None
                )
                for i, worker in enumerate(workers)
            ]
            parts, *outputs = zip(*_results(calls, listener, "parts compared"))
            figures = json.loads(_joined(parts, lambda files: _trtcalib.join(files, None)))
            return figures, *(([], []) if metric is None else _together(each) for each in outputs)

        if metric is None:
            return Comparison(call(listed)[0])
        return Comparison(judged((call([name]) for name in listed), metric, minimum))


def _together(parts: Sequence[Outputs]) -> Outputs:
    """Outputs of parts, which are stretches of the samples in order."""
    return [sample for outputs, _ in parts for sample in outputs], [name for _, ids in parts for name in ids]


def bisect(
    model: PathLike,
    table: CalibrationTable | PathLike,
    dataset: Any,
    *,
    gate: Gates = None,
    metric: Metric | None = None,
    minimum: float | None = None,
    actors: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    columns: Mapping[str, str] | None = None,
    labels: str | None = None,
    names: str | None = None,
    out: PathLike | None = None,
    precision: str = "int8",
    lift: str = "fp32",
    max_trials: int = 64,
    samples: int = 200,
    config: PathLike | None = None,
    progress: Progress = None,
    **settings: Any,
) -> Findings:
    """The fewest layers to lift, in the order of the noise that they bring; trials run side by side on the actors.

    This is the search of `trtcalib.bisect` with ``metric=``, for gates, too: nodes are ranked by the noise that each brings to
    the outputs, the first so many are lifted, and their number is halved until the fewest that pass are known. With a gate,
    `trtcalib.bisect` searches otherwise (it puts nodes back, and checks on samples that it did not search on) and may find
    another plan. Plan and trials are those of one actor, whatever their number: trials ahead of what is known are thrown
    away where they turn out not to be needed.

    Args:
        model: float ONNX model, at the same path on every node.
        table: ranges from `calibrate`.
        gate, metric, minimum: what the plan must pass, as for `trtcalib.bisect`.
        dataset, actors, num_cpus, num_gpus, columns, labels, names: as for `compare`.
        out, precision, lift, max_trials: as for `trtcalib.bisect`.
        samples: samples that plans are judged on; the one that is found is checked on all.
        config, progress, settings: as for `trtcalib.bisect`; trials are told as they are done.

    Returns:
        Layers with their errors in dB; ``plan`` has ``trials``, the nodes that are ``lifted`` and the ``check`` on all samples.
    """
    metric, listener = own(metric), _Listener(progress)
    gates, minimum = _asked_of_plan(gate, metric, minimum)
    if not gates and metric is None:
        raise CalibError("bisect: give a `gate`, or `metric` and `minimum`; trtcalib.bisect measures layers without")
    folder = Path(out) if out is not None else temporary_folder()
    held = _Blocks(dataset, model, columns, labels, names)
    keys = _keys(settings, num_cpus, num_gpus)
    findings = _bisect(
        model, table, held.samples(), gate=[], out=folder, precision=precision, lift=lift, config=config, progress=progress, **keys
    )
    plans = _Plans(model, table, findings, precision, lift, config, settings)
    blocks = ray.put(held)
    run = {key: keys[key] for key in _DATA if key in keys}
    with _workers(actors, num_cpus, num_gpus) as workers:

        def judge(wanted: Sequence[int], most: int = samples) -> list[Trial]:
            common = {"gates": gates, "metric": metric, "minimum": minimum, "samples": most, "calibration_samples": True}
            options = {"model": model_path(model), "compare": common | {"config": config} | run}
            calls = []
            for index, lifted in enumerate(wanted):
                with tempfile.TemporaryDirectory(prefix="trtcalib-") as place:
                    bytes_of = plans.model(lifted, Path(place) / "model.onnx").read_bytes()
                calls.append(workers[index % actors].judge.remote(lifted, bytes_of, blocks, options))
            return _results(calls, listener, "plans tried")

        trials, best = smallest(len(plans.nodes), judge, ahead=actors, most=max_trials)
        return plans.finish(folder, trials, best, lambda lifted: judge([lifted], 0)[0])
