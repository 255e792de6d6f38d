"""What the functions give back: plain data behind a few names, for programs and for notebooks."""

from __future__ import annotations

import html
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import _trtcalib
from ._rows import of_precision, of_target
from ._trtcalib import CalibError

_log = logging.getLogger("trtcalib")


class Saved:
    """Outputs that were saved before (``.npz``), to be compared in a model's stead."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)


class Result(Mapping[str, Any]):
    """A mapping over the figures, named as in the JSON that the programs print."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain dicts, lists, numbers and strings."""
        return self._values

    def rows(self) -> list[dict[str, Any]]:
        """What a table of it shows: one dict a row."""
        return [self._values]

    def _about(self) -> dict[str, Any]:
        """What tells one from another."""
        return self._values

    def __repr__(self) -> str:
        about = (f"{name}={_short(value)}" for name, value in self._about().items() if value is not None)
        return f"{type(self).__name__}({', '.join(about)})"

    def _repr_html_(self) -> str:
        return _table(self.rows())


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = lambda row: "".join(f"<td>{html.escape(_short(row.get(name)))}</td>" for name in names)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{cells(row)}</tr>' for row in rows)}</table>"


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (dict, list)):
        return f"{len(value)} entries"
    return str(value)


#: Folders that go with the process.
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def temporary_folder() -> Path:
    """A folder that lasts as long as the process: whoever keeps the path, and not what lies there, still has the file."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="trtcalib-"))
    return Path(_FOLDERS[-1].name)


class CalibrationTable:
    """Ranges and scales of every quantized tensor, and what brings INT8 nearer to float.

    A table is a file, ``path``. That of a table which was just made is temporary: it lasts as long as the process, and `save`
    writes it to where it stays. Pickled, as for another process, a table goes with its content.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        #: What ``metric=`` gave for every method, where one was given to `calibrate`.
        self.judged: dict[str, float] | None = None

    @classmethod
    def load(cls, path: str | Path) -> CalibrationTable:
        """Opens a table that `save` or ``calib calibrate`` wrote; what is none is a `DataError`."""
        _trtcalib.check_table(Path(path))
        return cls(path)

    @classmethod
    def _temporary(cls, content: bytes | None = None, judged: dict[str, float] | None = None) -> CalibrationTable:
        """A table whose file is written by somebody else, or holds `content`."""
        table = cls(temporary_folder() / "calibration.json")
        if content is not None:
            table.path.write_bytes(content)
        table.judged = judged
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        return CalibrationTable._temporary, (self.path.read_bytes(), self.judged)

    def save(self, path: str | Path) -> None:
        """Writes the table: the bytes that ``calib calibrate`` writes for the same data."""
        target = Path(path)
        if not target.parent.is_dir():
            raise CalibError(f"cannot write {target}: there is no folder {target.parent}")
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(self.path, partial)
        partial.replace(target)

    def save_cache(self, path: str | Path) -> None:
        """Writes the calibration cache of TensorRT 10 and older."""
        _trtcalib.write_cache(self.path, Path(path))

    def to_dict(self) -> dict[str, Any]:
        """The table as it is written: ``method``, ``samples``, ``tensors`` and more."""
        try:
            return json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            # The library says what is wrong with it.
            _trtcalib.check_table(self.path)
            raise

    @property
    def method(self) -> str:
        """Method that the thresholds were chosen by."""
        return self.to_dict()["method"]

    @property
    def tensors(self) -> dict[str, Any]:
        """``min``, ``max``, ``amax`` and more by tensor."""
        return self.to_dict()["tensors"]

    def __repr__(self) -> str:
        values = self.to_dict()
        return f"CalibrationTable({len(values['tensors'])} tensors, {values['samples']} samples, method {values['method']!r})"

    def _repr_html_(self) -> str:
        names = ("min", "max", "amax", "method", "clipped")
        rows = [{"tensor": name} | {key: t.get(key) for key in names} for name, t in self.tensors.items()]
        return f"<p>{html.escape(repr(self))}</p>{_table(rows)}"


class Quantized(Result):
    """A model that was written: ``model``, ``precision``, ``quantized_nodes``, ``bytes``, ``hash`` and more."""

    @property
    def path(self) -> Path:
        """The model's file."""
        return Path(self["model"])


class Comparison(Result):
    """Figures of every target against the reference: ``targets[i]["result"]`` has ``outputs`` and ``tasks``."""

    @property
    def passed(self) -> bool | None:
        """Whether every target ran and passed every gate; None without gates, where all ran."""
        return self["passed"]

    def _about(self) -> dict[str, Any]:
        return {"samples": self["samples"], "passed": self.passed, "targets": ", ".join(row["target"] for row in self["targets"])}

    def rows(self) -> list[dict[str, Any]]:
        """A target each: its figures, and how every gate ended."""
        return [of_target(target) for target in self["targets"]]

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{_table(self.rows())}"


class Findings(Result):
    """What a bisection found: ``layers``, ``plan`` (None where none was looked for), ``advice`` and more; files lie in `folder`."""

    def __init__(self, values: dict[str, Any], folder: Path, passed: bool | None) -> None:
        super().__init__({"layers": [], "plan": None} | values)
        self.folder = folder
        self.passed = passed
        if passed is False and self["advice"]:
            _log.warning(self["advice"][0]["text"])

    @property
    def plan(self) -> Path | None:
        """The precision plan that was found, for `quantize`."""
        path = self.folder / "plan.json"
        return path if path.exists() else None

    def _about(self) -> dict[str, Any]:
        return {"layers": len(self.rows()), "passed": self.passed, "folder": self.folder}

    def rows(self) -> list[dict[str, Any]]:
        """The layers, none where the gates passed before any was measured."""
        layers: list[dict[str, Any]] = self["layers"]
        return layers

    def _repr_html_(self) -> str:
        sentences = [repr(self), *(advice["text"] for advice in self["advice"])]
        shown = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
        return shown + (_table(self.rows()) if self.rows() else "")

    def plot(self, axes: Any = None, *, most: int = 20) -> Any:
        """Draws the layers with the lowest SQNR in dB, the worst on top; gives the axes. Needs ``trtcalib[plot]``."""
        if axes is None:
            try:
                from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]
            except ModuleNotFoundError as error:
                raise CalibError("plot: it needs matplotlib, which is not installed: pip install 'trtcalib[plot]'") from error
            axes = pyplot.figure(layout="constrained").subplots()
        measured = [layer for layer in self.rows() if layer.get("layerwise_sqnr_db") is not None]
        worst = sorted(measured, key=lambda layer: layer["layerwise_sqnr_db"])[:most]
        axes.barh([layer["node"] for layer in worst], [layer["layerwise_sqnr_db"] for layer in worst])
        axes.invert_yaxis()
        axes.set_xlabel("SQNR of the layer by itself, dB")
        return axes


class Report(Result):
    """All figures of a run, as in ``report.json``; the files lie in `folder`."""

    def __init__(self, values: dict[str, Any], folder: Path) -> None:
        super().__init__(values)
        self.folder = folder

    @property
    def passed(self) -> bool | None:
        """Whether every gate passed; None without gates."""
        return self["verdict"]["passed"]

    def _about(self) -> dict[str, Any]:
        return {"precisions": ", ".join(row["precision"] for row in self["precisions"]), "passed": self.passed, "folder": self.folder}

    def rows(self) -> list[dict[str, Any]]:
        """A precision each: its figures, and how the gates on it ended."""
        return [of_precision(found, self["verdict"].get("gates", [])) for found in self["precisions"]]

    def _repr_html_(self) -> str:
        page = html.escape(_trtcalib.report_html(self.folder / "report.json"))
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width:100%;height:40em;border:0"></iframe>'
