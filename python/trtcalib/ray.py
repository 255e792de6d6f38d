"""Calibration on a Ray cluster: blocks of a ``ray.data.Dataset`` go to actors, and their histograms add up exactly.

The table has the bytes of a single process's, since a histogram depends on the set of its values only. Needs
``pip install trtcalib[ray]``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import ray

from . import CalibrationTable, PathLike, Progress, _Listener, _limited, _only_input, _path, _strings, _trtcalib
from ._data import as_array

__all__ = ["calibrate"]


def _rows(block: dict[str, Any]) -> int:
    return len(next(iter(block.values())))


def _samples(refs: list[Any], counts: list[int], columns: dict[str, str], limit: int) -> _trtcalib.Samples:
    """Samples whose arrays stay in Ray's object store until they are asked for."""

    def loader(ref: Any, count: int):
        return lambda: {name: as_array(ray.get(ref)[column])[:count] for name, column in columns.items()}

    batches, total = [], 0
    for ref, count in zip(refs, counts):
        count = min(count, limit - total)
        if count > 0:
            batches.append((count, loader(ref, count)))
            total += count
    return _trtcalib.Samples(batches, [str(index) for index in range(total)], [None] * total)


@ray.remote(max_restarts=-1, max_task_retries=-1)
class _Worker:
    """Observes one shard a call; a call that died with its worker is made again, and nothing counts twice."""

    def observe(self, settings: str, config: Any, refs: Any, counts: list[int], columns: dict[str, str], limit: int, shard: str) -> bytes:
        samples = _samples(refs, counts, columns, limit)
        with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
            path = Path(folder) / "part.calib"
            _trtcalib.observe(settings, config, samples, shard, path, _Listener(None))
            return path.read_bytes()


def calibrate(
    model: PathLike,
    dataset: Any,
    *,
    actors: int = 2,
    num_gpus: float = 0,
    samples: int | None = None,
    columns: dict[str, str] | None = None,
    config: PathLike | None = None,
    progress: Progress = None,
    **settings: Any,
) -> CalibrationTable:
    """As `trtcalib.calibrate`, with the samples observed by `actors` workers.

    Args:
        model: float ONNX model, at the same path on every node.
        dataset: ``ray.data.Dataset`` whose rows hold the model's inputs as arrays without the batch axis.
        actors: workers; each takes one CPU, or `num_gpus` GPUs.
        columns: column of the data set for each input; their own names without.
        samples: calibration samples, at most (512): the first rows of the data set.
    """
    keys = _strings({"model": str(model), **_limited(samples), **settings})
    limit = keys.get("calib_samples", 512)
    if num_gpus:
        keys.setdefault("provider", "cuda")
    refs = dataset.limit(limit).to_numpy_refs()
    counts = ray.get([ray.remote(_rows).remote(ref) for ref in refs])
    if columns is None:
        names = list(ray.get(refs[0]))
        only = _only_input(model)
        columns = {only: names[0]} if only is not None and len(names) == 1 else {name: name for name in names}
    text, file = json.dumps(keys), _path(config)
    workers = [_Worker.options(num_cpus=1, num_gpus=num_gpus).remote() for _ in range(actors)]
    # A list in a list: the references themselves travel, not what they stand for.
    call = lambda i, worker: worker.observe.remote(text, file, [*refs], counts, columns, limit, f"{i + 1}/{actors}")
    parts = ray.get([call(i, worker) for i, worker in enumerate(workers)])
    table = CalibrationTable._temporary()
    with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
        files = [Path(folder) / f"{i}.calib" for i in range(actors)]
        for path, part in zip(files, parts):
            path.write_bytes(part)
        held = _samples(refs, counts, columns, limit)
        _trtcalib.merge(text, file, held, files, table.path, _Listener(progress))
    return table
