"""On a Ray cluster, what takes minutes: order, metrics, candidates and plans are those of a single process."""

import json
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest

import trtcalib as tc
from common import COLUMNS, MODEL, ROOT
from test_ray import bisected


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


def test_rows_keep_their_order_whoever_is_done_first(cluster, dataset, table, tmp_path):
    def slow(batch):
        time.sleep(4 * (batch["index"][0] == 20))
        return batch

    mapped = dataset.map_batches(slow, batch_size=None)
    cluster.calibrate(MODEL, mapped, actors=2, **COLUMNS).save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()


def test_a_data_set_is_executed_before_actors_take_all_processors(cluster, dataset, table, tmp_path):
    for attempt in range(2):
        lazy = dataset.map(lambda row: row)
        with within(240):
            found = cluster.bisect(MODEL, table, lazy, gate={"sqnr_db": 30}, actors=4, labels="label", max_trials=3)
        assert len(found["plan"]["search"]["trials"]) == 3
        try:
            cluster.compare(MODEL, tmp_path / f"missing{attempt}.onnx", dataset, actors=4)
        except tc.ModelError as error:
            kept = error  # whose traceback must not keep the actors
    assert "missing1" in str(kept)


def weighted(outputs, ids):
    """Depends on the order of the samples."""
    assert all(output.keys() == {"logits"} for output in outputs)
    return float(sum(int(name) * float(output["logits"].max()) * (row + 1) for row, (name, output) in enumerate(zip(ids, outputs))))


def test_a_metric_judges_the_outputs_of_all_actors(cluster, dataset, arrays, table, tmp_path):
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
    assert outputs["targets"][0]["metric"] == 0
    one = cluster.compare(MODEL, tc.Saved(saved), dataset, **COLUMNS)
    assert one.to_dict() == cluster.compare(MODEL, [tc.Saved(saved)], dataset, **COLUMNS).to_dict() and one["samples"] == len(arrays)


def spread(outputs, ids):
    return float(np.mean([output["logits"].std() for output in outputs]))


def test_candidates_are_those_of_one_process(cluster, dataset, arrays, tmp_path):
    alone = tc.calibrate(MODEL, {"input": arrays}, metric=spread, samples=16, threads=1)
    told = []
    options = {"actors": 2, "metric": spread, "samples": 16, "progress": lambda *event: told.append(event)}
    found = cluster.calibrate(MODEL, dataset, **options, **COLUMNS)
    assert found.judged == alone.judged and len(set(found.judged.values())) > 1
    assert found.path.read_bytes() == alone.path.read_bytes()
    chosen = [("thresholds chosen", done, 2) for done in (1, 2)]
    assert told == [("parts observed", done, 2) for done in (1, 2)] + chosen + [("candidates judged", done, 5) for done in range(1, 6)]
    # Where every method is recovered, all of them are by all actors.
    alone = tc.calibrate(MODEL, {"input": arrays}, metric=spread, samples=16, threads=1, effort="fast")
    told.clear()
    found = cluster.calibrate(MODEL, dataset, **options, effort="fast", **COLUMNS)
    assert found.judged == alone.judged and found.path.read_bytes() == alone.path.read_bytes()
    assert [event for event in told if event[0] == "thresholds chosen"] == 5 * chosen


def test_a_metric_finds_the_plan_of_one_process(cluster, dataset, arrays, table, tmp_path):
    data, model = {"input": arrays}, tmp_path / "int8.onnx"
    floats = tc.compare(MODEL, MODEL, data, metric=spread, threads=1)["reference_metric"]
    close = lambda outputs, ids: -abs(spread(outputs, ids) - floats)
    tc.quantize(MODEL, table, model)
    lost = tc.compare(MODEL, model, data, metric=close, threads=1, calibration_samples=True)["targets"][0]["metric"]
    alone = tc.bisect(MODEL, table, data, metric=close, minimum=lost / 4, max_trials=5, threads=1)
    found = cluster.bisect(MODEL, table, dataset, metric=close, gate={"metric": lost / 4}, max_trials=5, actors=2, **COLUMNS)
    assert found["metric_plan"] == alone["metric_plan"] and found["metric_plan"]["lifted"]
    assert found["metric_plan"]["trials"][0]["value"] == lost


def test_figures_and_plans_are_those_of_one_process(cluster, dataset, arrays, table, tmp_path):
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


def test_plans_are_those_of_one_process_with_any_number_of_actors(cluster, dataset, arrays, table, tmp_path):
    options = {"table": table, "out": tmp_path / "found", "max_trials": 64}
    alone = bisected(tc.bisect, data={"input": arrays}, labels=np.arange(len(arrays)) % 5, threads=1, **options)
    assert len(alone["found"]["plan"]["search"]["trials"]) > 10
    for actors in (1, 3):
        assert bisected(cluster.bisect, dataset=dataset, labels="label", actors=actors, **options) == alone


def test_actors_give_the_table_of_one_process(cluster, dataset, table, tmp_path):
    told = []
    cluster.calibrate(MODEL, dataset, actors=2, labels="label", progress=lambda *event: told.append(event)).save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()
    assert told == [(what, done, 2) for what in ("parts observed", "thresholds chosen") for done in (1, 2)]


def mine(outputs, ids):
    raise ValueError("no words")


def test_what_an_actor_raises_is_raised_as_it_was(cluster, dataset, table):
    with pytest.raises(tc.CalibError) as caught:
        cluster.calibrate(MODEL, dataset, actors=2, columns={"input": "index"}, max_bad=0)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and "`input`" in str(caught.value)
    with pytest.raises(tc.CalibError, match="^metric: it gave None, which is not a number"):
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


def test_samples_may_have_names(cluster, tmp_path):
    import ray.data
    from trtcalib._blocks import sample_names

    assert sample_names(["/data/cat/1.png", "/data/dog/1.png"], 2, True) == ["cat/1.png", "dog/1.png"]
    assert sample_names(["bucket/a.png"], 1, True) == ["a.png"] and sample_names(["/x/a", "b"], 2, False) == ["/x/a", "b"]
    with pytest.raises(tc.DataError, match="^names: `a` stands in several rows; name a column whose values differ"):
        sample_names(["a", "b", "a"], 3, False)
    with pytest.raises(tc.DataError, match="^names: `a` stands in several rows; drop the column `path`, or name"):
        sample_names(["/x/a", "/x/a"], 2, True)
    rows = [{"input": np.full((3, 64, 64), index, np.float32), "file": f"{9 - index}.png"} for index in range(6)]
    dataset = ray.data.from_items(rows, override_num_blocks=2)
    found = cluster.calibrate(MODEL, dataset, actors=2, method="minmax", names="file", samples=3).to_dict()
    assert len(found["calibrated_on"]) == 3 and all(name.endswith(".png") for name in found["calibrated_on"])
    with pytest.raises(tc.DataError, match="^names: the data set has no column `name`; it has `input`, `file`"):
        cluster.calibrate(MODEL, dataset, method="minmax", names="name")


def test_there_may_be_more_actors_than_samples(cluster, dataset, arrays):
    # One sample to fit on and one held out: the second actor has none.
    alone = tc.calibrate(MODEL, {"input": arrays[:2]}, threads=1)
    assert cluster.calibrate(MODEL, dataset.limit(2), actors=2).path.read_bytes() == alone.path.read_bytes()
    assert cluster.calibrate(MODEL, dataset.limit(1), actors=2, method="minmax").to_dict()["samples"] == 1
    with pytest.raises(tc.CalibError, match="actors"):
        cluster.calibrate(MODEL, dataset, actors=0)
    with pytest.raises(tc.DataError, match="a dict is not a ray.data.Dataset: make one"):
        cluster.calibrate(MODEL, {"input": arrays})


def test_pictures_are_those_of_a_folder(cluster, tmp_path, caplog):
    import ray.data

    files = sorted((ROOT / "calib_data/images").glob("*.png"))[:12]
    for file in files:
        (tmp_path / file.name).symlink_to(file)
    images = ray.data.read_images([str(file) for file in files], mode="RGB")
    found = cluster.calibrate(MODEL, images, actors=2, method="minmax", preset="unit").to_dict()
    alone = tc.calibrate(MODEL, tmp_path, method="minmax", preset="unit").to_dict()
    assert found["tensors"] == alone["tensors"] and found["samples"] == 12
    # With their paths, samples are called as those of the folder are: the same ones are chosen, whatever their order.
    named = ray.data.read_images([str(file) for file in reversed(files)], mode="RGB", include_paths=True)
    options = {"samples": 5, "preset": "unit"}
    tables = tc.calibrate(MODEL, tmp_path, threads=1, **options), cluster.calibrate(MODEL, named, actors=2, **options)
    # The hash of a sample is that of its file there, and of its pixels here.
    alone, found = ({**table.to_dict(), "calibrated_on": list(table.to_dict()["calibrated_on"])} for table in tables)
    assert json.dumps(found) == json.dumps(alone) and set(alone["calibrated_on"]) < {file.name for file in files}
    for table, model in zip(tables, ("alone.onnx", "found.onnx")):
        tc.quantize(MODEL, table, tmp_path / model)
    for own in ({}, {"metric": lambda outputs, ids: float(ids == sorted(ids))}):
        alone = tc.compare(MODEL, tmp_path / "alone.onnx", tmp_path, threads=1, preset="unit", **own)
        found = cluster.compare(MODEL, tmp_path / "found.onnx", named, preset="unit", **own)
        assert json.dumps(found["targets"][0]["result"]) == json.dumps(alone["targets"][0]["result"]) and found["samples"] == 7
    assert found["targets"][0]["metric"] == 1
    with caplog.at_level("WARNING", "trtcalib"):
        assert tc.compare(MODEL, tmp_path / "found.onnx", tmp_path, preset="unit")["samples"] == 12
    assert "5 samples are named as those that a target was calibrated on" in caplog.text
    # Of different sizes, as photos are.
    rows = [{"image": np.full((40 + index, 50, 3), 9 * index, np.uint8)} for index in range(6)]
    ragged = ray.data.from_items(rows, override_num_blocks=2)
    shaped = {"preprocess": {"resize": [64, 64]}}
    found = cluster.calibrate(MODEL, ragged, actors=2, method="minmax", **shaped).to_dict()
    alone = tc.calibrate(MODEL, [row["image"][None] for row in rows], method="minmax", **shaped).to_dict()
    assert found["tensors"] == alone["tensors"] and found["samples"] == 6
