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
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import ray  # type: ignore[import-not-found, unused-ignore]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("trtcalib.ray needs Ray, which is not installed: pip install 'trtcalib[ray]'") from error

from . import (
    _CHOICES, _DATA, CalibError, CalibrationTable, Comparison, Findings, Metric, PathLike, Progress, Saved, Trial,
    _asked_of_plan, _chosen, _compared, _findings, _Listener, _Plans, _spec, _trtcalib, _value, _worth, smallest,
)
from . import compare as _compare
from ._blocks import Blocks, results
from ._metric import Gates, Outputs, Run, asked, judged, own, read_outputs
from ._settings import count_of, limited, model_path, path_of, plain

__all__ = ["bisect", "calibrate", "compare"]

_log = logging.getLogger("trtcalib")


@ray.remote(max_restarts=-1, max_task_retries=-1)
class _Worker:
    """Does one part a call. What a call gives does not depend on those before, so it may be made again."""

    def __init__(self) -> None:
        self._trials: _trtcalib.Trials | None = None

    def observe(self, settings: str, config: Any, blocks: Blocks, shard: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            path = Path(folder) / "part.calib"
            _trtcalib.observe(settings, config, blocks.samples(), shard, path, _Listener(None))
            return path.read_bytes()

    def compare(
        self, settings: str, config: Any, blocks: Blocks, reference: str, targets: list[str], shard: str, everything: bool,
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

    def worth(self, settings: dict[str, Any], config: Any, blocks: Blocks, made: tuple[bytes, Any], metric: Metric) -> float:
        """What the metric gives for a table that `choose` made."""
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            table = CalibrationTable(Path(folder) / "calibration.json")
            table.path.write_bytes(made[0])
            return _worth(settings["model"], table, blocks.samples(), metric, settings | {"config": config})

    def choose(
        self, settings: dict[str, Any], config: Any, blocks: Blocks, parts: list[bytes], metric: Metric | None,
        index: int, count: int, meeting: Any,
    ) -> tuple[bytes, list[Any]]:
        """The table of all parts, and what was told on the way. Candidates of recovery are shared with who does the same."""
        rounds, told, text = itertools.count(), [], json.dumps(settings)

        def exchange(found: list[float]) -> Any:
            return results([meeting.give.remote(next(rounds), index, found)])[0]

        def hear(*event: Any) -> None:
            if event[0] not in ("progress", "finished"):
                told.append(event)

        samples, peers = blocks.samples(), (index, count, exchange)
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            table = Path(folder) / "calibration.json"
            _joined(parts, lambda files: _trtcalib.merge(text, config, samples, files, table, metric, peers, hear))
            ray.get(meeting.leave.remote(index))
            return table.read_bytes(), told

    def count(self, settings: str, config: Any, blocks: Blocks, plan: bytes, chosen: list[int]) -> str:
        """What is counted of a plan's model over some samples. The session stays for the next plan, and is made again if need be."""
        if self._trials is None:
            self._trials = _trtcalib.Trials(settings, config, blocks.samples(), _Listener(None))
        return self._trials.count(plan, chosen)

    def judge(self, lifted: int, model: bytes, blocks: Blocks, options: dict[str, Any]) -> Trial:
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            target = Path(folder) / "model.onnx"
            target.write_bytes(model)
            found = _compare(options["model"], target, blocks.samples(), **options["compare"])
        return Trial(lifted, _value(found), found.passed is not False)


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
def _workers(actors: int, num_cpus: float, num_gpus: float, autoscaling: bool) -> Iterator[list[Any]]:
    """Actors while they are needed. They hold their CPUs as long, so nothing else may have to run by then."""
    if actors < 1:
        raise CalibError(f"actors: there must be one at least, not {actors}")
    each = {kind: amount for kind, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    # Ray counts in ten-thousandths.
    on = lambda node: min((int(node.get(kind, 0) / amount + 1e-6) for kind, amount in each.items()), default=actors)
    room = sum(on(node["Resources"]) for node in ray.nodes() if node["Alive"])
    if actors > room:
        wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in each.items())
        text = f"actors: the cluster has room for {room} actors of {wanted}, not for {actors}"
        if not autoscaling:
            raise CalibError(f"{text}; ask for fewer or smaller ones, or give autoscaling=True where it starts nodes that are missing")
        _log.warning("%s; they wait for nodes that it starts", text)
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
    autoscaling: bool = False,
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
        actors, num_cpus, num_gpus: workers; each takes `num_cpus` CPUs (as many threads run in it) and `num_gpus` GPUs. More than
            the nodes have room for are refused, as they would wait for ever.
        autoscaling: whether the cluster starts nodes that are missing; then actors wait for them, and a warning says so.
        samples: calibration samples, at most (512): those that `trtcalib.calibrate` takes of a dict of the same arrays. The data
            set is executed as a whole; with ``dataset.limit(512)`` only its first rows are.
        columns: column of the data set for each input. Without, columns of the names of the inputs; for a model with one
            input also the only column, or ``image``. Other columns are not used.
        labels: column of right classes, which is not an input.
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
    blocks = Blocks(dataset, model, columns, labels, names)
    file, shared = path_of(config), ray.put(blocks)
    actors = blocks.parts(actors)
    with _workers(actors, num_cpus, num_gpus, autoscaling) as workers:
        calls = [worker.observe.remote(json.dumps(keys), file, shared, f"{i + 1}/{actors}") for i, worker in enumerate(workers)]
        parts = ray.put(results(calls, listener, "parts observed"))

        # Ray ends an actor that nobody holds here.
        meetings: list[Any] = []

        def choose(keys: dict[str, Any], workers: list[Any]) -> list[Any]:
            meeting: Any = _Meeting
            meetings.append(meeting.remote(len(workers)))
            peers = len(workers), meetings[-1]
            return [worker.choose.remote(keys, file, shared, parts, metric, i, *peers) for i, worker in enumerate(workers)]

        def together(keys: dict[str, Any]) -> tuple[bytes, list[Any]]:
            (table, told), *others = results(choose(keys, workers), listener, "thresholds chosen")
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
        values = results(tries, listener, "candidates judged")
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
    autoscaling: bool = False,
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
        dataset, actors, num_cpus, num_gpus, autoscaling, columns, names: as for `calibrate`.
        labels: column of right classes; negative where unknown.
        gates, samples, calibration_samples: as for `trtcalib.compare`.
        metric, minimum: as for `trtcalib.compare`; the outputs of all samples are brought together where this runs.
        config, progress, settings: as for `trtcalib.compare`; progress is told as parts are done.
    """
    metric, listener = own(metric), _Listener(progress)
    others, minimum = asked(gates, metric, minimum)
    listed, model, given = _compared(reference, targets, {"eval_samples": samples, "gate": others, **settings})
    keys = _keys(given, num_cpus, num_gpus)
    held = Blocks(dataset, model, columns, labels, names)
    blocks, actors = ray.put(held), held.parts(actors)
    text, file = json.dumps(keys), path_of(config)
    with _workers(actors, num_cpus, num_gpus, autoscaling) as workers:

        def call(targets: list[str]) -> Run:
            calls = [
                worker.compare.remote(
                    text, file, blocks, _spec(reference), targets, f"{i + 1}/{actors}", calibration_samples, metric is not None
                )
                for i, worker in enumerate(workers)
            ]
            parts, *outputs = zip(*results(calls, listener, "parts compared"))
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
    autoscaling: bool = False,
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
    """As `trtcalib.bisect`: the same search, plan and figures, whatever the number of actors.

    With a gate, each plan is tried by all actors, each on its part of the samples, and what they count is joined exactly. With
    `metric`, several plans are tried side by side, each by one actor on all samples; those ahead of what is known are thrown away
    where they turn out not to be needed. Layers are measured where this is called.

    Args:
        model: float ONNX model, at the same path on every node.
        table: ranges from `calibrate`.
        gate, metric, minimum: what the plan must pass, as for `trtcalib.bisect`.
        dataset, actors, num_cpus, num_gpus, autoscaling, columns, labels, names: as for `compare`.
        out, precision, lift, max_trials, samples: as for `trtcalib.bisect`.
        config, progress, settings: as for `trtcalib.bisect`; progress is told of plans as they are tried, too.

    Returns:
        What `trtcalib.bisect` gives.
    """
    metric, listener = own(metric), _Listener(progress)
    gates, minimum = _asked_of_plan(gate, metric, minimum)
    if not gates and metric is None and config is None:
        raise CalibError("bisect: give a `gate`, or `metric` and `minimum`; trtcalib.bisect measures layers without")
    held = Blocks(dataset, model, columns, labels, names)
    blocks, file = ray.put(held), path_of(config)
    keys = _keys({"model": model_path(model), **settings}, num_cpus, num_gpus)
    options = {"precision": precision, "lift": lift, "max_trials": max_trials, "samples": samples}
    if metric is None:
        numbers, text = itertools.count(1), json.dumps(keys | plain({"gate": gates}))
        with _workers(actors, num_cpus, num_gpus, autoscaling) as workers:

            def count(plan: bytes, chosen: list[int]) -> list[str]:
                shared, parts = ray.put(plan), min(len(workers), len(chosen))
                cut = [chosen[len(chosen) * i // parts : len(chosen) * (i + 1) // parts] for i in range(parts)]
                counted = results([worker.count.remote(text, file, blocks, shared, part) for worker, part in zip(workers, cut)])
                listener("progress", "plans tried", next(numbers), 0)
                return counted

            return _findings(keys, table, held.samples(), gates, out, options, config, listener, count)
    findings = _findings(keys, table, held.samples(), [], out, options, config, listener)
    plans = _Plans(model, table, findings, precision, lift, config, settings)
    run = {key: keys[key] for key in _DATA if key in keys}
    with _workers(actors, num_cpus, num_gpus, autoscaling) as workers:

        def judge(wanted: Sequence[int], most: int = samples) -> list[Trial]:
            common = {"gates": gates, "metric": metric, "minimum": minimum, "samples": most, "calibration_samples": True}
            asked = {"model": model_path(model), "compare": common | {"config": config} | run}
            calls = []
            for index, lifted in enumerate(wanted):
                with tempfile.TemporaryDirectory(prefix="trtcalib-") as place:
                    bytes_of = plans.model(lifted, Path(place) / "model.onnx").read_bytes()
                calls.append(workers[index % actors].judge.remote(lifted, bytes_of, blocks, asked))
            return results(calls, listener, "plans tried")

        trials, best = smallest(len(plans.nodes), judge, ahead=actors, most=max_trials)
        return plans.finish(trials, best, lambda lifted: judge([lifted], 0)[0])
