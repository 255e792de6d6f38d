"""Who hears what a session tells: the logger `trtcalib`, and a callable or a bar of tqdm for progress."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any, Union

from ._trtcalib import CalibError

_log = logging.getLogger("trtcalib")
Progress = Union[bool, Callable[[str, int, int], None], None]


class Listener:
    """Hears what a session tells."""

    def __init__(self, progress: Progress) -> None:
        if progress is True and importlib.util.find_spec("tqdm") is None:
            raise CalibError("progress=True shows bars of tqdm, which is not installed: pip install tqdm, or give a callable")
        if progress and progress is not True and not callable(progress):
            raise CalibError(f"progress: it is called with (what, done, total), or is True; {type(progress).__name__} is neither")
        self._progress: Any = _bar if progress is True else progress or None
        self._bars: dict[str, Any] = {}

    def __call__(self, kind: str, text: str, done: int, total: int) -> None:
        if kind == "progress":
            if self._progress is _bar:
                self._advance(text, done, total)
            elif self._progress is not None:
                self._tell(text, done, total)
        elif kind == "finished":
            bar = self._bars.pop(text, None)
            if bar is not None:
                bar.close()
        elif kind == "warning":
            _log.warning(text)
        elif kind in ("note", "info"):
            _log.info(text)
        else:
            _log.debug("%s: %s", kind, text)

    def _tell(self, what: str, done: int, total: int) -> None:
        try:
            self._progress(what, done, total)
        except Exception:
            self._progress = None
            _log.exception("progress is told no more, as its callable failed; the work goes on")

    def _advance(self, what: str, done: int, total: int) -> None:
        if what not in self._bars:
            from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

            self._bars[what] = tqdm(total=total or None, desc=what)
        self._bars[what].update(done - self._bars[what].n)


def _bar(what: str, done: int, total: int) -> None:
    """Stands for a bar of tqdm."""
