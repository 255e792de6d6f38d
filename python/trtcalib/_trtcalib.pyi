"""The library's session: settings go in as JSON with the keys of the configuration file, results come back as JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__version__: str

#: Called with (kind, text, done, total).
_Listener = Callable[[str, str, int, int], None]
#: Called with the outputs of all samples and their names.
_Metric = Callable[[list[dict[str, np.ndarray[Any, Any]]], list[str]], float]
_Arrays = dict[str, np.ndarray[Any, Any]]

class CalibError(Exception): ...
class ModelError(CalibError): ...
class DataError(CalibError): ...
class RuntimeLibraryError(CalibError): ...

class Samples:
    def __new__(
        cls,
        batches: Sequence[_Arrays | tuple[int, Callable[[], _Arrays]]],
        ids: Sequence[str],
        labels: Sequence[int | None],
    ) -> Samples: ...
    def __len__(self) -> int: ...

class Trials:
    def __new__(cls, settings_json: str, file: Path | None, samples: Samples | None, listener: _Listener | None) -> Trials: ...
    def count(self, model: bytes, samples: Sequence[int]) -> str: ...

def calibrate(
    settings_json: str,
    file: Path | None,
    samples: Samples | None,
    table: Path,
    histograms: Path | None,
    metric: _Metric | None,
    listener: _Listener | None,
) -> None: ...
def observe(
    settings_json: str, file: Path | None, samples: Samples | None, shard: str, histograms: Path, listener: _Listener | None
) -> None: ...
def merge(
    settings_json: str,
    file: Path | None,
    samples: Samples | None,
    histograms: Sequence[Path],
    table: Path,
    metric: _Metric | None,
    peers: tuple[int, int, Callable[[list[float]], list[list[float]]]] | None,
    listener: _Listener | None,
) -> None: ...
def check_table(table: Path) -> None: ...
def write_cache(table: Path, cache: Path) -> None: ...
def quantize(
    settings_json: str, file: Path | None, precision: str, table: Path | None, output: Path, listener: _Listener | None
) -> str: ...
def compare(
    settings_json: str,
    file: Path | None,
    samples: Samples | None,
    reference: str,
    targets: Sequence[str],
    save_reference: Path | None,
    save_target: Path | None,
    calibration_samples: bool,
    part: tuple[str, Path] | None,
    listener: _Listener | None,
) -> str | None: ...
def join(parts: Sequence[Path], listener: _Listener | None) -> str: ...
def bisect(
    settings_json: str,
    file: Path | None,
    samples: Samples | None,
    options: dict[str, Any],
    count: Callable[[bytes, list[int]], list[str]] | None,
    listener: _Listener | None,
) -> tuple[str, Path, bool]: ...
def run(
    settings_json: str, file: Path | None, samples: Samples | None, metric: _Metric | None, listener: _Listener | None
) -> tuple[str, Path]: ...
def input_names(model: str | Path) -> list[str]: ...
def report_html(path: Path) -> str: ...
def calib_program(words: Sequence[str]) -> int: ...
def compare_program(words: Sequence[str]) -> int: ...
