"""On a Ray cluster: the bytes of a single process, whoever dies on the way."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import trtcalib as tc
from test_package import MODEL, ROOT, arrays, pixels, table  # noqa: F401

ray = pytest.importorskip("ray", reason="pip install trtcalib[ray]")


@pytest.fixture(scope="module")
def cluster():
    import trtcalib.ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield trtcalib.ray
    ray.shutdown()


@pytest.fixture(scope="module")
def dataset(cluster, arrays):  # noqa: F811
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"input": image, "label": index % 5, "index": index} for index, image in enumerate(arrays)]
    return ray.data.from_items(rows, override_num_blocks=len(arrays) // 4)


def test_rows_keep_their_order_whoever_is_done_first(cluster, dataset, table, tmp_path):  # noqa: F811
    def slow(batch):
        time.sleep(4 * (batch["index"][0] == 20))
        return batch

    mapped = dataset.map_batches(slow, batch_size=None)
    cluster.calibrate(MODEL, mapped, actors=2, **COLUMNS).save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()


COLUMNS = {"columns": {"input": "input"}}


def test_actors_give_the_table_of_one_process(cluster, dataset, table, tmp_path):  # noqa: F811
    cluster.calibrate(MODEL, dataset, actors=2, **COLUMNS).save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()


def spread(outputs, ids):
    return float(np.mean([output["logits"].std() for output in outputs]))


def test_candidates_are_those_of_one_process(cluster, dataset, arrays, tmp_path):  # noqa: F811
    alone = tc.calibrate(MODEL, {"input": arrays[:16]}, metric=spread, samples=16, threads=1)
    found = cluster.calibrate(MODEL, dataset, actors=2, metric=spread, samples=16, **COLUMNS)
    assert found.judged == alone.judged and len(set(found.judged.values())) > 1
    assert found.path.read_bytes() == alone.path.read_bytes()


def test_pictures_are_those_of_a_folder(cluster, tmp_path):
    import ray.data

    files = sorted((ROOT / "calib_data/images").glob("*.png"))[:12]
    for file in files:
        (tmp_path / file.name).symlink_to(file)
    images = ray.data.read_images([str(file) for file in files], mode="RGB")
    found = cluster.calibrate(MODEL, images, actors=2, method="minmax", preset="unit").to_dict()
    alone = tc.calibrate(MODEL, tmp_path, method="minmax", preset="unit").to_dict()
    assert found["tensors"] == alone["tensors"] and found["samples"] == 12
    # Of different sizes, as photos are.
    rows = [{"image": np.full((40 + index, 50, 3), 9 * index, np.uint8)} for index in range(6)]
    ragged = ray.data.from_items(rows, override_num_blocks=2)
    shaped = {"preprocess": {"resize": [64, 64]}}
    found = cluster.calibrate(MODEL, ragged, actors=2, method="minmax", **shaped).to_dict()
    alone = tc.calibrate(MODEL, [row["image"][None] for row in rows], method="minmax", **shaped).to_dict()
    assert found["tensors"] == alone["tensors"] and found["samples"] == 6


def workers() -> list[int]:
    """Processes of actors of this cluster that are at work."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::_Worker." in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def test_nothing_counts_twice_when_a_worker_dies(cluster, dataset, table, tmp_path):  # noqa: F811
    killed = []

    def kill():
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            for process in workers()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    cluster.calibrate(MODEL, dataset, actors=2, **COLUMNS).save(tmp_path / "table.json")
    thread.join()
    assert len(killed) == 1
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()


def test_figures_and_plans_are_those_of_one_process(cluster, dataset, arrays, table, tmp_path):  # noqa: F811
    model = tmp_path / "model.int8.onnx"
    tc.quantize(MODEL, table, model)
    labels = np.arange(len(arrays)) % 5
    alone = tc.compare(MODEL, model, {"input": arrays}, labels=labels, gates={"top1": 0.5}, calibration_samples=True, threads=1)
    for actors in (1, 3):
        found = cluster.compare(
            MODEL, model, dataset, actors=actors, labels="label", gates={"top1": 0.5}, calibration_samples=True, **COLUMNS
        )
        assert json.dumps(found.to_dict()) == json.dumps(alone.to_dict())
    assert found["samples"] == len(arrays) and found["targets"][0]["result"]["tasks"][0]["accuracy"]["samples"] == len(arrays)
    plans = [
        cluster.bisect(MODEL, table, dataset, gate={"sqnr_db": 30}, actors=actors, out=tmp_path / str(actors), labels="label", **COLUMNS)
        for actors in (1, 2)
    ]
    assert plans[0]["metric_plan"] == plans[1]["metric_plan"] and plans[0].passed
    assert 0 < len(plans[0]["metric_plan"]["lifted"]) < len(plans[0]["layers"])
    assert plans[0].plan.read_bytes() == plans[1].plan.read_bytes()
