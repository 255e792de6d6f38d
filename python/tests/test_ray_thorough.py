"""On a Ray cluster, what takes minutes: order, metrics, candidates and plans are those of a single process."""

import json
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest

import trtcalib as tc
from test_package import MODEL, ROOT, arrays, table  # noqa: F401
from test_ray import COLUMNS, cluster, dataset  # noqa: F401


@contextmanager
def within(seconds: int):
    """What hangs fails."""

    def late(number, frame):
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_rows_keep_their_order_whoever_is_done_first(cluster, dataset, table, tmp_path):  # noqa: F811
    def slow(batch):
        time.sleep(4 * (batch["index"][0] == 20))
        return batch

    mapped = dataset.map_batches(slow, batch_size=None)
    cluster.calibrate(MODEL, mapped, actors=2, **COLUMNS).save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()


def test_a_data_set_is_executed_before_actors_take_all_processors(cluster, dataset, table, tmp_path):  # noqa: F811
    for attempt in range(2):
        lazy = dataset.map(lambda row: row)
        with within(240):
            found = cluster.bisect(MODEL, table, lazy, gate={"sqnr_db": 30}, actors=4, labels="label", max_trials=3)
        assert len(found["metric_plan"]["trials"]) == 3
        try:
            cluster.compare(MODEL, tmp_path / f"missing{attempt}.onnx", dataset, actors=4)
        except tc.ModelError as error:
            kept = error  # whose traceback must not keep the actors
    assert "missing1" in str(kept)


def weighted(outputs, ids):
    """Depends on the order of the samples."""
    assert all(output.keys() == {"logits"} for output in outputs)
    return float(sum(int(name) * float(output["logits"].max()) * (row + 1) for row, (name, output) in enumerate(zip(ids, outputs))))


def test_a_metric_judges_the_outputs_of_all_actors(cluster, dataset, arrays, table, tmp_path):  # noqa: F811
    model, saved = tmp_path / "model.int8.onnx", tmp_path / "saved.npz"
    tc.quantize(MODEL, table, model)
    options = {"metric": weighted, "calibration_samples": True}
    alone = tc.compare(MODEL, [model, MODEL], {"input": arrays}, threads=1, minimum=0, **options)
    told = []
    found = cluster.compare(
        MODEL, [model, MODEL], dataset, actors=3, gates={"metric": 0}, progress=lambda *event: told.append(event), **options, **COLUMNS
    )
    assert json.dumps(found.to_dict()) == json.dumps(alone.to_dict()) and found.passed
    assert told == [("parts compared", done, 3) for done in (1, 2, 3)] * 2
    numbers = [alone["reference_metric"], *(target["metric"] for target in alone["targets"])]
    assert numbers[0] == numbers[2] != numbers[1]
    with pytest.raises(tc.CalibError, match="minimum"):
        cluster.compare(MODEL, model, dataset, minimum=0)
    outputs = tc.compare(MODEL, MODEL, {"input": arrays}, metric=lambda outputs, ids: np.savez(saved, logits=[o["logits"] for o in outputs]) or 0)
    assert outputs.passed
    one = cluster.compare(MODEL, tc.Saved(saved), dataset, **COLUMNS)
    assert one.to_dict() == cluster.compare(MODEL, [tc.Saved(saved)], dataset, **COLUMNS).to_dict() and one["samples"] == len(arrays)


def spread(outputs, ids):
    return float(np.mean([output["logits"].std() for output in outputs]))


def test_candidates_are_those_of_one_process(cluster, dataset, arrays, tmp_path):  # noqa: F811
    alone = tc.calibrate(MODEL, {"input": arrays}, metric=spread, samples=16, threads=1)
    found = cluster.calibrate(MODEL, dataset, actors=2, metric=spread, samples=16, **COLUMNS)
    assert found.judged == alone.judged and len(set(found.judged.values())) > 1
    assert found.path.read_bytes() == alone.path.read_bytes()


def test_a_metric_finds_the_plan_of_one_process(cluster, dataset, arrays, table, tmp_path):  # noqa: F811
    data, model = {"input": arrays}, tmp_path / "int8.onnx"
    floats = tc.compare(MODEL, MODEL, data, metric=spread, threads=1)["reference_metric"]
    close = lambda outputs, ids: -abs(spread(outputs, ids) - floats)
    tc.quantize(MODEL, table, model)
    lost = tc.compare(MODEL, model, data, metric=close, threads=1, calibration_samples=True)["targets"][0]["metric"]
    alone = tc.bisect(MODEL, table, data, metric=close, minimum=lost / 4, max_trials=5, threads=1)
    found = cluster.bisect(MODEL, table, dataset, metric=close, gate={"metric": lost / 4}, max_trials=5, actors=2, **COLUMNS)
    assert found["metric_plan"] == alone["metric_plan"] and found["metric_plan"]["lifted"]
    assert found["metric_plan"]["trials"][0]["value"] == lost


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


def test_actors_give_the_table_of_one_process(cluster, dataset, table, tmp_path):  # noqa: F811
    told = []
    cluster.calibrate(MODEL, dataset, actors=2, labels="label", progress=lambda *event: told.append(event)).save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()
    assert told == [(what, done, 2) for what in ("parts observed", "thresholds chosen") for done in (1, 2)]


def mine(outputs, ids):
    raise ValueError("no words")


def test_what_an_actor_raises_is_raised_as_it_was(cluster, dataset, table):  # noqa: F811
    with pytest.raises(tc.CalibError) as caught:
        cluster.calibrate(MODEL, dataset, actors=2, columns={"input": "index"}, max_bad=0)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and "`input`" in str(caught.value)
    with pytest.raises(tc.CalibError, match="^metric: it gave None, which is no number"):
        cluster.calibrate(MODEL, dataset, actors=2, metric=lambda outputs, ids: None, samples=8)
    for call in (
        lambda: cluster.calibrate(MODEL, dataset, actors=2, metric=mine, samples=8),
        lambda: cluster.bisect(MODEL, table, dataset, actors=2, metric=mine, minimum=1),
    ):
        with pytest.raises(ValueError) as raised:
            call()
        assert type(raised.value) is ValueError and str(raised.value) == "no words"
    with pytest.raises(tc.CalibError, match="give a `gate`"):
        cluster.bisect(MODEL, table, dataset)
    with pytest.raises(tc.CalibError, match="what it must reach"):
        cluster.bisect(MODEL, table, dataset, metric=mine)
    for options, message in (
        ({"labels": "class"}, "no column `class`; it has `input`, `label`, `index`"),
        ({"columns": {"input": "pixels"}}, "no column `pixels`"),
        ({"labels": "input"}, "labels of shape"),
    ):
        with pytest.raises(tc.DataError, match=message):
            cluster.compare(MODEL, MODEL, dataset, **options)


def test_there_may_be_more_actors_than_samples(cluster, dataset):
    assert cluster.calibrate(MODEL, dataset.limit(1), actors=2, method="minmax").to_dict()["samples"] == 1
    with pytest.raises(tc.CalibError, match="actors"):
        cluster.calibrate(MODEL, dataset, actors=0)


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
