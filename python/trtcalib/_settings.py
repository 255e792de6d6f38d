"""From what a caller gives as a setting to what the library reads as JSON."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np

from ._trtcalib import CalibError, ModelError

PathLike = Union[str, "os.PathLike[str]"]


def enough(config: PathLike | None) -> int | None:
    """Calibration samples where no keyword says how many; what a configuration says is not known here."""
    return 512 if config is None else None


def limited(samples: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a calibration, with the number of samples where one was given."""
    for name, instead in _NOT_OF_CALIBRATION.items():
        if settings.get(name) is not None:
            raise CalibError(f"calibrate: `{name}` is of no use here; {instead}")
    if samples is None:
        return dict(settings)
    if settings.get("calib_samples") is not None:
        raise CalibError("`samples` and `calib_samples` are the same; give one of them")
    return {**settings, "calib_samples": samples}


#: Settings that would be passed over, and what to do instead.
_NOT_OF_CALIBRATION = {
    "table": "a table is what calibrate makes",
    "out": "write the table by its method save()",
}


def count_of(samples: Any, least: int = 1) -> int | None:
    """A number of samples that was given, if any."""
    try:
        count = None if samples is None else operator.index(samples)
    except TypeError as error:
        raise CalibError(f"`samples`: {samples!r} is not a whole number") from error
    if count is not None and count < least:
        raise CalibError(f"`samples`: must be at least {least}")
    return count


def model_path(model: Any) -> str:
    """The path of a model, which a model in memory has not."""
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(f"a model is given by the path of its file, not as {type(model).__name__}: save it first")
    return os.fspath(model)


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them, without those that are None: paths, numbers of NumPy and tuples are taken, too."""
    return {name: _one(name, value) for name, value in settings.items() if value is not None}


def _one(name: str, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _one(name, each) for key, each in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_one(name, each) for each in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise CalibError(f"{name}: a {type(value).__name__} is not a setting")


def path_of(path: PathLike | None) -> Path | None:
    """A path that may be left out."""
    return None if path is None else Path(path)
