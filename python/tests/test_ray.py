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
from common import COLUMNS, MODEL, ROOT

ray = pytest.importorskip("ray", reason="pip install trtcalib[ray]")


def test_an_example_of_the_guide(cluster, dataset, tmp_path, monkeypatch):
    text = (ROOT / "docs/cluster.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "tr.calibrate(" in code and "tr.compare(" in code and "tr.bisect(" in code
    (tmp_path / "model.onnx").write_bytes(MODEL.read_bytes())
    monkeypatch.chdir(tmp_path)
    for given, here in (("actors=8", "actors=2"), (", num_gpus=1", ""), ('"model', f'"{tmp_path}/model'), ('"top1"', '"sqnr_db"')):
        assert given in code
        code = code.replace(given, here)
    names = {"dataset": dataset}
    exec(code, names)
    assert names["result"]["samples"] and names["result"].passed and names["plan"]["plan"]["search"]["trials"]
    assert names["result"]["targets"][0]["result"]["tasks"][0]["accuracy"]["samples"]


def test_samples_are_those_that_one_process_takes(cluster, dataset, arrays, tmp_path):
    model, data = tmp_path / "int8.onnx", {"input": arrays}
    alone = tc.calibrate(MODEL, data, samples=20, seed=3, threads=1)
    found = cluster.calibrate(MODEL, dataset, actors=3, samples=20, seed=3, **COLUMNS)
    assert found.path.read_bytes() == alone.path.read_bytes()
    taken = list(alone.to_dict()["calibrated_on"])
    assert len(taken) == 20 and taken != [str(index) for index in range(20)]
    tc.quantize(MODEL, alone, model)
    options = {"samples": 10, "seed": 3, "gates": {"top1": 0.5}}
    alone = tc.compare(MODEL, model, data, labels=np.arange(len(arrays)) % 5, threads=1, **options)
    found = cluster.compare(MODEL, model, dataset, labels="label", actors=2, **options)
    assert json.dumps(found.to_dict()) == json.dumps(alone.to_dict()) and found["samples"] == 10


def workers(work: str) -> list[int]:
    """Processes of actors of this cluster, which this process has started, that do this work."""
    parent = lambda process: int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"ray::_Worker.{work}".encode() in (folder / "cmdline").read_bytes() and parent(parent(folder.name)) == os.getpid():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


@pytest.mark.parametrize("work", ["observe", "choose"])
def test_nothing_counts_twice_when_a_worker_dies(cluster, dataset, table, tmp_path, work):
    killed = []

    def kill():
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            for process in workers(work)[:1]:
                # Recovery is under way by then.
                time.sleep(0.5 * (work == "choose"))
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    cluster.calibrate(MODEL, dataset, actors=2, **COLUMNS).save(tmp_path / "table.json")
    thread.join()
    assert len(killed) == 1
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()


@pytest.mark.parametrize("metric", [None, lambda outputs, ids: 1.0], ids=["error", "metric"])
def test_recovery_asks_the_other_workers(cluster, dataset, metric):
    from trtcalib._blocks import Blocks, results

    blocks = ray.put(Blocks(dataset, MODEL, {"input": "input"}, None, None))
    worker, meeting, settings = cluster._Worker.remote(), cluster._Meeting.remote(2), {"model": str(MODEL), "threads": 1}
    part = ray.get(worker.observe.remote(json.dumps(settings), None, blocks, "1/1"))
    # Who is done without it is not waited for.
    ray.get(meeting.leave.remote(1))
    with pytest.raises(tc.CalibError, match="^recovery shared between processes: worker 2 of 2 gave it up"):
        results([worker.choose.remote(settings, None, blocks, [part], metric, 0, 2, meeting)])
    ray.kill(worker)


def bisected(search, out: Path, **options) -> dict:
    """What a bisection found and left, apart from times. Where it lies stands in what it advises, so it lies at the same place each time."""
    found = search(MODEL, gate={"sqnr_db": 30, "top1": 0.5}, out=out, seed=3, **options)
    left = {name: (out / name).read_bytes() for name in ("plan.json", "trials.json", "model.plan.onnx", "bisect.toml")}
    written = json.loads((out / "bisect.json").read_text())
    out.rename(out.with_name(f"found by {options.get('actors', 'one')}"))
    return left | {"passed": found.passed} | {"found": {key: value for key, value in found.to_dict().items() if key != "seconds"}} | {
        "written": {key: value for key, value in written.items() if key != "seconds"}
    }


def test_a_gate_finds_the_plan_of_one_process(cluster, dataset, arrays, table, tmp_path):
    labels, told = np.arange(len(arrays)) % 5, []
    options = {"table": table, "out": tmp_path / "found", "samples": 9, "max_trials": 6}
    alone = bisected(tc.bisect, data={"input": arrays}, labels=labels, threads=1, **options)
    found = bisected(cluster.bisect, dataset=dataset, labels="label", actors=2, progress=lambda *event: told.append(event), **options)
    assert found == alone and alone["found"]["plan"]["check"]
    assert [event for event in told if event[0] == "plans tried"] == [("plans tried", number, 0) for number in range(1, 8)]


def test_labels_are_a_column(cluster, dataset, arrays):
    with pytest.raises(tc.DataError, match="^labels: name a column of the data set; a ndarray names none"):
        cluster.compare(MODEL, MODEL, dataset, labels=np.arange(len(arrays)), **COLUMNS)


def test_more_actors_than_there_is_room_for_are_refused(cluster, dataset, caplog):
    with pytest.raises(tc.CalibError, match="^actors: the cluster has room for 2 actors of 1.5 CPU, not for 3; ask for fewer"):
        cluster.calibrate(MODEL, dataset, actors=3, num_cpus=1.5, **COLUMNS)
    with pytest.raises(tc.CalibError, match="room for 0 actors of 1 CPU and 1 GPU, not for 1; .*autoscaling=True"):
        cluster.compare(MODEL, MODEL, dataset, actors=1, num_gpus=1, **COLUMNS)
    with cluster._workers(40, 0.1, 0, False):
        assert "room" not in caplog.text
    with cluster._workers(5, 1, 0, True):
        assert "room for 4 actors of 1 CPU, not for 5; they wait for nodes" in caplog.text
