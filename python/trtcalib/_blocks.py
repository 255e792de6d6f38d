"""A ``ray.data.Dataset`` as samples of the library, and what is waited for on a cluster."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray  # type: ignore[import-not-found, unused-ignore]

from . import CalibError, DataError, _inputs, _Listener, _trtcalib
from ._data import as_array, classes, matched


class Blocks:
    """A data set's blocks by reference, which columns are inputs and labels, and what its samples are called."""

    def __init__(
        self, dataset: Any, model: Any, columns: Mapping[str, str] | None, labels: str | None, names: str | None
    ) -> None:
        if not hasattr(dataset, "to_numpy_refs"):
            kind = type(dataset).__name__
            raise DataError(f"a {kind} is not a ray.data.Dataset: make one, as by ray.data.from_numpy, or give it to trtcalib itself")
        for what, column in (("labels", labels), ("names", names)):
            if column is not None and not isinstance(column, str):
                raise DataError(f"{what}: name a column of the data set; a {type(column).__name__} names none")
        # Samples are told apart by their place, so blocks must come as they lie, not as they are done.
        running = dataset.context.execution_options
        before, running.preserve_order = running.preserve_order, True
        try:
            self._refs = dataset.to_numpy_refs()
        finally:
            running.preserve_order = before
        about = ray.remote(_about).options(num_cpus=0)
        told = results([about.remote(ref, labels, names) for ref in self._refs])
        self._counts = [count for _, count, _, _ in told]
        # An empty block knows no columns.
        there: list[str] = next((there for there, count, _, _ in told if count), [])
        if not there:
            raise DataError("the data set holds no rows")
        self._labels = [label for _, _, given, _ in told for label in given]
        self._ids = sample_names([name for *_, given in told for name in given], sum(self._counts), names is None)
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


def sample_names(given: list[str], count: int, are_paths: bool) -> list[str]:
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


def results(calls: Sequence[Any], listener: Callable[..., None] = _Listener(None), what: str = "") -> list[Any]:
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
