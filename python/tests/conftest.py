"""Samples and a table for the tests of the package, and a cluster of Ray."""

import os
from pathlib import Path

import numpy as np
import pytest

import trtcalib as tc
from common import MODEL, pixels


@pytest.fixture(scope="session")
def arrays() -> np.ndarray:
    return pixels()


@pytest.fixture(scope="session")
def table(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "calibration.json"
    tc.calibrate(MODEL, {"input": arrays}).save(path)
    return path


@pytest.fixture(scope="session")
def cluster():
    ray = pytest.importorskip("ray", reason="pip install trtcalib[ray]")
    import trtcalib.ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield trtcalib.ray
    ray.shutdown()


@pytest.fixture(scope="session")
def dataset(cluster, arrays):
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"input": image, "label": index % 5, "index": index} for index, image in enumerate(arrays)]
    return ray.data.from_items(rows, override_num_blocks=len(arrays) // 4)
