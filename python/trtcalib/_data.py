"""From what Python programs hold to what a session reads: folders, arrays, iterables, calibration readers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from . import _trtcalib
from ._trtcalib import DataError

#: Bytes of arrays that are held in memory; what comes after goes to a temporary file.
MEMORY = 1 << 30


def as_array(value: Any) -> np.ndarray:
    """A C-contiguous array over the same memory where the layout allows it. Tensors of PyTorch work without importing it."""
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu().numpy()
        except TypeError as error:
            raise DataError(f"a tensor of type {value.dtype} cannot be read as an array; convert it with .float()") from error
    array: np.ndarray = np.asarray(value)
    # A single value would get an axis.
    return np.ascontiguousarray(array) if array.ndim else array


class _Spool:
    """Keeps arrays: in memory up to `MEMORY`, then in a temporary file that goes with the process."""

    def __init__(self) -> None:
        self._held = 0
        self._file: Any = None

    def keep(self, array: np.ndarray) -> np.ndarray:
        if self._held + array.nbytes <= MEMORY or array.nbytes == 0:
            self._held += array.nbytes
            return array
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="trtcalib-")
        start = self._file.seek(0, os.SEEK_END)
        padding = -start % 64
        self._file.write(b"\0" * padding)
        array.tofile(self._file)
        self._file.flush()
        return np.memmap(self._file, dtype=array.dtype, mode="r", offset=start + padding, shape=array.shape)


def _batches(data: Any) -> Iterator[tuple[Any, Any]]:
    """(inputs, labels) of every batch."""
    if hasattr(data, "get_next"):
        def read() -> Iterator[Any]:
            while (feed := data.get_next()) is not None:
                yield feed
        items: Iterable[Any] = read()
    elif isinstance(data, Mapping) or hasattr(data, "__array__") or hasattr(data, "detach"):
        items = [data]
    elif isinstance(data, Iterable):
        items = data
    else:
        raise DataError(
            f"data of type {type(data).__name__} cannot be read; give a folder, a dict of arrays, an iterable of dicts, "
            "or an object with get_next()"
        )
    for item in items:
        inputs, labels = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        yield inputs, labels


def held(data: Any, *, labels: Any = None, limit: int | None = None, input_name: str | None = None) -> _trtcalib.Samples:
    """Samples that a session can read as often as it needs to.

    Args:
        data: a dict of arrays whose first axis counts the samples; an iterable (a generator, a PyTorch ``DataLoader``)
            of such dicts, of arrays for the model's only input, or of ``(inputs, labels)``; or a reader with
            ``get_next()``, as onnxruntime's and Model Optimizer's. Batches may have any size.
        labels: right classes, one integer a sample; ``-1`` where it is unknown.
        limit: samples that are enough: an iterable is read no further.
        input_name: name of the model's only input, for arrays without one.
    """
    spool = _Spool()
    batches: list[dict[str, np.ndarray]] = []
    classes: list[int] = []
    count = 0
    # What is yielded may lie in memory that the next batch is written to; what a program holds itself does not.
    yielded = not isinstance(data, (list, tuple, Mapping))
    places: set[int] = set()
    for inputs, given in _batches(data):
        if not isinstance(inputs, Mapping):
            if input_name is None:
                raise DataError("arrays without a name serve a model with one input only; give dicts from input name to array")
            inputs = {input_name: inputs}
        batch = {str(name): spool.keep(as_array(value)) for name, value in inputs.items()}
        if not batch:
            raise DataError(f"batch {len(batches)} holds no arrays")
        rows = {name: array.shape[0] if array.ndim else -1 for name, array in batch.items()}
        size = next(iter(rows.values()))
        if size < 0 or any(other != size for other in rows.values()):
            raise DataError(f"batch {len(batches)}: the first axis must count the samples alike; found {rows}")
        if yielded:
            here = [array.ctypes.data for array in batch.values() if array.nbytes and not isinstance(array, np.memmap)]
            if not places.isdisjoint(here):
                raise DataError(
                    f"batch {len(batches)} lies in the memory of an earlier one, which it has overwritten; "
                    "yield a new array each time, such as batch.copy()"
                )
            places.update(here)
        batches.append(batch)
        count += size
        if given is not None:
            classes.extend(int(label) for label in np.atleast_1d(as_array(given)).ravel())
        if limit is not None and count >= limit:
            break
    if count == 0:
        raise DataError("the data hold no samples; a generator that was read before is empty the second time")
    if labels is not None:
        classes = [int(label) for label in as_array(labels).ravel()]
    if classes and len(classes) != count:
        raise DataError(f"{count} samples, but {len(classes)} labels")
    known = [label if label >= 0 else None for label in classes] if classes else [None] * count
    return _trtcalib.Samples(batches, [str(index) for index in range(count)], known)
