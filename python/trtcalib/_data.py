"""From what Python programs hold to what a session reads: folders, arrays, iterables, calibration readers."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import _trtcalib
from ._trtcalib import DataError

_log = logging.getLogger("trtcalib")

#: Bytes of arrays that are held in memory; what comes after goes to a temporary file.
MEMORY = 1 << 30


def as_array(value: Any) -> np.ndarray:
    """A C-contiguous array, over the same memory where layout and order of bytes allow it. Tensors of PyTorch work without importing it."""
    if hasattr(value, "detach"):
        value = _tensor(value)
    try:
        array: np.ndarray = np.asarray(value) if hasattr(value, "__array__") or not _is_array(value) else np.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise DataError(f"a {type(value).__name__} cannot be read as an array: {error}") from error
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # A single value would get an axis.
    return np.ascontiguousarray(array) if array.ndim else array


def _tensor(value: Any) -> Any:
    """The array of a tensor of PyTorch. bfloat16, which NumPy lacks, becomes float32."""
    value = value.detach()
    try:
        value = value.cpu()
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":
            value = value.float()
        for lazily in ("resolve_conj", "resolve_neg"):
            value = getattr(value, lazily)() if hasattr(value, lazily) else value
        return value.numpy()
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        kind = f"a tensor of type {getattr(value, 'dtype', 'unknown')}"
        raise DataError(f"{kind} cannot be read as an array: {reason}; convert it, as with .float()") from error


def classes(given: Any, count: int) -> list[int | None]:
    """Right classes of `count` samples; None where they are unknown."""
    wanted = "give one integer a sample, negative where it is unknown, or the inputs alone, as (x for x, _ in data) does"
    if isinstance(given, Mapping):
        raise DataError(f"labels in a {type(given).__name__} are not classes; {wanted}")
    labels = np.atleast_1d(as_array(given))
    if labels.ndim > 1 and labels.size != len(labels):
        raise DataError(f"labels of shape {list(labels.shape)} are not classes; {wanted}")
    if labels.size != count:
        single = "" if np.ndim(given) else "; to a label alone belongs a batch of one, whose arrays have 1 as first axis"
        raise DataError(f"{count} samples, but {labels.size} labels; {wanted}{single}")
    values = labels.ravel().tolist()
    for index, label in enumerate(values):
        whole = isinstance(label, (int, np.integer)) or (isinstance(label, float) and label.is_integer())
        if not whole or isinstance(label, bool) or label >= 1 << 32:
            what = repr(label) if label is None or np.isscalar(label) else f"a {type(label).__name__}"
            raise DataError(f"label {index} is {what}, which is not a class; {wanted}")
    return [int(label) if label >= 0 else None for label in values]


def matched(names: Sequence[str], inputs: Sequence[str]) -> dict[str, str]:
    """The array that is taken for each input, as the program takes those of a file; tells what else is done.

    Args:
        names: names of the arrays.
        inputs: names of the model's inputs; none where they are not known, and then all arrays are taken.
    """
    if not inputs or set(inputs) == set(names):
        return {name: name for name in names}
    if set(inputs) <= set(names):
        others = "`, `".join(name for name in names if name not in inputs)
        _log.warning("the model has no inputs of the names of the arrays `%s`, which are not used", others)
        return {name: name for name in inputs}
    if len(inputs) == len(names) == 1:
        _log.warning("the only array `%s` is taken for the input `%s`", names[0], inputs[0])
        return {inputs[0]: names[0]}
    missing = "`, `".join(name for name in inputs if name not in names)
    raise DataError(f"the inputs `{missing}` are missing; the arrays are `{'`, `'.join(names)}`")


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
            # An empty dict is the end for onnxruntime, too. Inside a generator, StopIteration would be an error.
            try:
                while (feed := data.get_next()) is not None and not (isinstance(feed, Mapping) and not feed):
                    yield feed
            except StopIteration:
                return
        items: Iterable[Any] = read()
    elif _is_array(data):
        items = [data]
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        items = data
    else:
        raise DataError(
            f"data of type {type(data).__name__} cannot be read; give a folder, a dict of arrays, an iterable of dicts, "
            "or an object with get_next()"
        )
    for number, item in enumerate(items):
        # A loader gives tuples or lists; a list of numbers is an array.
        parts = item if isinstance(item, (tuple, list)) and any(map(_is_array, item)) else [item]
        if len(parts) > 2:
            raise DataError(
                f"batch {number} has {len(parts)} parts; give inputs or (inputs, labels), as ((x, y) for x, y, *_ in data) does"
            )
        yield parts[0], parts[1] if len(parts) == 2 else None


def _is_array(value: Any) -> bool:
    return isinstance(value, Mapping) or any(hasattr(value, name) for name in ("__array__", "__dlpack__", "detach"))


class _Handed:
    """What an iterable yielded, by its place in memory, to notice when it writes there again."""

    def __init__(self) -> None:
        self._arrays: dict[int, tuple[np.ndarray, bytes]] = {}

    def take(self, array: np.ndarray, kept: np.ndarray) -> bool:
        """Whether what came from the memory of `array` before is still what it was: what never changes may come often."""
        place = array.ctypes.data
        earlier, content = self._arrays.get(place, (None, b""))
        is_new = earlier is None or array.nbytes > earlier.nbytes
        if is_new and array.nbytes and not isinstance(kept, np.memmap):
            self._arrays[place] = array, _hash(array)
        return earlier is None or _hash(earlier) == content


def _hash(array: np.ndarray) -> bytes:
    return hashlib.blake2b(array.data, digest_size=16).digest()


def held(data: Any, *, labels: Any = None, limit: int | None = None, inputs: Sequence[str] = ()) -> _trtcalib.Samples:
    """Samples that a session can read as often as it needs to.

    Args:
        data: a dict of arrays whose first axis counts the samples; an iterable (a generator, a PyTorch ``DataLoader``)
            of such dicts, of arrays for the model's only input, or of ``(inputs, labels)``; or a reader with
            ``get_next()``, as onnxruntime's and Model Optimizer's. Batches may have any size.
        labels: right classes, one integer a sample; negative where it is unknown.
        limit: samples that are enough: an iterable that is not a list is read no further, and of its last batch only so many are
            taken.
        inputs: names of the model's inputs, where they are known.
    """
    spool, handed = _Spool(), _Handed()
    batches: list[dict[str, np.ndarray]] = []
    known: list[int | None] = []
    count = 0
    # What is yielded may lie in memory that the next batch is written to; what a program holds itself does not.
    yielded = not isinstance(data, (list, tuple, Mapping))
    columns: dict[tuple[str, ...], dict[str, str]] = {}
    # Of what is there as a whole a session chooses; of what comes batch by batch the first serve, however many a batch has.
    most = limit if yielded and not _is_array(data) else None
    for number, (given, its_classes) in enumerate(_batches(data)):
        if not isinstance(given, Mapping):
            if len(inputs) != 1:
                raise DataError("arrays without a name serve a model with one input only; give dicts from input name to array")
            given = {inputs[0]: given}
        if not given:
            raise DataError(f"batch {number} holds no arrays")
        arrays = {str(name): array for name, array in given.items()}
        names = tuple(arrays)
        if names not in columns:
            columns[names] = matched(names, inputs)
        batch = {}
        for name, column in columns[names].items():
            array = as_array(arrays[column])
            if array.dtype.kind not in "biuf":
                raise DataError(f"batch {number}: `{name}` is of type {array.dtype}, which no input is; convert it, as to float32")
            # What a program holds anyway needs no room.
            in_place = not yielded and (array is arrays[column] or not array.flags.owndata)
            batch[name] = array if in_place else spool.keep(array)
            if yielded and not handed.take(array, batch[name]):
                raise DataError(
                    f"batch {number} lies in the memory of an earlier one, which it has overwritten; "
                    "yield a new array each time, such as batch.copy()"
                )
        rows = {name: array.shape[0] if array.ndim else -1 for name, array in batch.items()}
        size = next(iter(rows.values()))
        if size < 0 or any(other != size for other in rows.values()):
            raise DataError(f"batch {number}: the first axis must count the samples alike; found {rows}")
        if its_classes is not None:
            known += classes(its_classes, size)
        if most is not None and count + size > most:
            size = most - count
            batch = {name: array[:size] for name, array in batch.items()}
        batches.append(batch)
        count += size
        if count == most:
            break
    if count == most:
        _log.info(
            "the first %d samples are taken, and no further ones are read; of a dict or a list they are chosen from all, by `seed`",
            count,
        )
    if hasattr(data, "get_next") or isinstance(data, Iterator):
        _log.info("the %s can be read only once: its %d samples are kept, for all passes over them", type(data).__name__, count)
    if count == 0:
        raise DataError("the data hold no samples; a generator that was read before is empty the second time")
    if labels is not None:
        # Those of samples that were not read are not needed.
        known = classes(list(np.atleast_1d(as_array(labels)))[:count] if count == most else labels, count)
    known = known[:count]
    if known and len(known) != count:
        raise DataError(f"{count} samples, but {len(known)} labels")
    return _trtcalib.Samples(batches, [str(index) for index in range(count)], known or [None] * count)
