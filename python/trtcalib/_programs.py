"""The programs ``calib`` and ``compare`` of the wheel: the same code as the binaries."""

import sys
from typing import NoReturn

from . import _trtcalib
from ._libraries import name_libraries


def calib() -> NoReturn:
    """Runs ``calib`` with the words of the command line."""
    name_libraries()
    sys.exit(_trtcalib.calib_program(["calib", *sys.argv[1:]]))


def compare() -> NoReturn:
    """Runs ``compare`` with the words of the command line."""
    name_libraries()
    sys.exit(_trtcalib.compare_program(["compare", *sys.argv[1:]]))
