"""Where the shared libraries come from that other Python packages carry."""

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


def name_libraries() -> None:
    """Names ONNX Runtime's and TensorRT-RTX's libraries in the environment, unless the user has.

    ``onnxruntime`` and ``onnxruntime-gpu`` put theirs in the same folder, so whichever is installed is taken.
    """
    runtime = _package_folder("onnxruntime")
    if runtime is not None and any((runtime / "capi").glob("libonnxruntime.so*")):
        os.environ.setdefault("ORT_DYLIB_PATH", str(runtime / "capi"))
    for name in ("tensorrt_rtx_libs",):
        folder = _package_folder(name)
        if folder is not None and any(folder.glob("libtensorrt_rtx.so*")):
            os.environ.setdefault("CALIB_TENSORRT_DIR", str(folder))
