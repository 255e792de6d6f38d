"""Where the shared libraries come from that other Python packages carry."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path


def _package_folder(name: str) -> Path | None:
    """Folder of an installed package, found without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _gpu_runtime() -> Path | None:
    """The library of ``onnxruntime-gpu``, which puts it into the same folder as ``onnxruntime`` does, under its version.

    Whoever installed it wants it, also where a dependency brought the other one along.
    """
    try:
        files = importlib.metadata.files("onnxruntime-gpu") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name.startswith("libonnxruntime.so"))
    return next((path for path in found if path.is_file()), None)


def name_libraries() -> None:
    """Names ONNX Runtime's and TensorRT-RTX's libraries in the environment, unless the user has.

    Also asks ONNX Runtime for no telemetry: the database that 1.31 keeps in the cache folder can end processes that
    end at the same time.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    runtime = _gpu_runtime()
    if runtime is None:
        package = _package_folder("onnxruntime")
        runtime = package / "capi" if package is not None else None
    if runtime is not None and (runtime.is_file() or any(runtime.glob("libonnxruntime.so*"))):
        os.environ.setdefault("ORT_DYLIB_PATH", str(runtime))
    for name in ("tensorrt_rtx_libs",):
        folder = _package_folder(name)
        if folder is not None and any(folder.glob("libtensorrt_rtx.so*")):
            os.environ.setdefault("CALIB_TENSORRT_DIR", str(folder))
