"""Metrics of one's own: what they decide, and what they may give."""

import json

import numpy as np
import pytest

import trtcalib as tc
from common import COUNT, MODEL, Unheard, scaled


def error(outputs, ids):
    """A metric that a plan of more nodes makes larger: the sharpness of the mean answer."""
    return float(np.std([output["logits"].std() for output in outputs]))


def test_a_metric_of_ones_own_is_a_gate_and_finds_a_plan(arrays, table, tmp_path):
    floats = tc.compare(MODEL, MODEL, {"input": arrays}, metric=error)["reference_metric"]

    def close(outputs, ids):
        return -abs(error(outputs, ids) - floats)

    tc.quantize(MODEL, table, tmp_path / "int8.onnx")
    found = tc.compare(MODEL, tmp_path / "int8.onnx", {"input": arrays}, metric=close, minimum=0.0)
    lost = found["targets"][0]["metric"]
    assert lost < 0 and found["reference_metric"] == 0 and not found.passed
    assert tc.compare(MODEL, tmp_path / "int8.onnx", {"input": arrays}, metric=close, minimum=lost).passed
    batches = ({"input": arrays[i : i + 16]} for i in range(0, COUNT, 16))  # read once, used for every trial
    found = tc.bisect(MODEL, table, batches, metric=close, minimum=lost / 4, out=tmp_path / "found")
    plan = found["metric_plan"]
    assert found.passed and 0 < len(plan["lifted"]) < len(found["layers"])
    assert plan["trials"][0]["value"] == lost and plan["trials"][0]["lifted"] == 0
    nodes = [assignment["node"] for assignment in json.loads(found.plan.read_text())["assignments"]]
    assert nodes == plan["lifted"]
    assert not tc.bisect(MODEL, table, {"input": arrays}, metric=close, minimum=1.0).passed
    calibrated = tc.bisect(MODEL, None, {"input": arrays}, metric=close, minimum=lost / 4)
    assert calibrated["metric_plan"] == plan
    assert repr(found) == f"Findings(layers={len(found['layers'])}, passed=True, folder={tmp_path / 'found'})"


def test_a_metric_chooses_the_method(arrays, tmp_path):
    calls = []

    def metric(outputs, ids):
        calls.append(ids)
        return float(len(calls))  # the last one is the best

    chosen = tc.calibrate(MODEL, {"input": arrays[:8]}, metric=metric)
    assert chosen.method == "minmax" and list(chosen.judged) == ["auto", "entropy", "percentile", "mse", "minmax"]


def steps(table) -> list[dict]:
    return table.to_dict()["recovered"]["steps"]


def test_a_metric_decides_which_steps_of_recovery_are_kept(arrays):
    data = {"input": arrays[:16]}
    assert any(step["kept"] for step in steps(tc.calibrate(MODEL, data)))
    seen = []

    def worse(outputs, ids):
        seen.append((len(outputs), ids, outputs[0]["logits"].shape, outputs[0]["logits"].dtype))
        return -float(len(seen))

    chosen = tc.calibrate(MODEL, data, metric=worse)
    assert steps(chosen) and not any(step["kept"] for step in steps(chosen))
    assert "metric -1 to -2" in steps(chosen)[0]["what"]
    assert seen[0] == (8, ["1", "3", "5", "7", "9", "11", "13", "15"], (20,), np.float32)


def test_what_a_metric_raises_comes_out_as_it_is(arrays, tmp_path):
    def unheard(outputs, ids):
        raise Unheard("no words")

    with pytest.raises(Unheard, match="no words"):
        tc.calibrate(MODEL, {"input": arrays[:16]}, metric=unheard)
    options = {"out": tmp_path / "out", "calib_samples": 16, "bench_seconds": 0, "tensorrt": "off", "precisions": ["int8"]}
    with pytest.raises(Unheard):
        tc.run(MODEL, {"input": arrays}, metric=unheard, **options)
    with pytest.raises(tc.CalibError, match="it gave 'much', which is not a number"):
        tc.run(MODEL, {"input": arrays}, metric=lambda outputs, ids: "much", **options)


@pytest.mark.parametrize(
    ("given", "what"), [(None, "None"), (np.ones(1), "an array of shape .1."), ("3", "'3'")], ids=["None", "array", "text"]
)
def test_a_metric_that_gives_no_number_is_said_to(arrays, table, given, what):
    data, metric = {"input": arrays[:8]}, lambda outputs, ids: given
    for call in (
        lambda: tc.compare(MODEL, MODEL, data, metric=metric),
        lambda: tc.calibrate(MODEL, data, metric=metric),
        lambda: tc.bisect(MODEL, table, data, metric=metric, minimum=0),
    ):
        with pytest.raises(tc.CalibError, match=f"metric: it gave {what}, which is not a number"):
            call()
    with pytest.raises(tc.CalibError, match="not int"):
        tc.compare(MODEL, MODEL, data, metric=3)
    for number in (np.float32(0.5), np.array(0.5), True):
        tc.compare(MODEL, MODEL, data, metric=lambda outputs, ids: number)


def test_a_target_that_does_not_run_has_no_metric(arrays, tmp_path):
    found = tc.compare(MODEL, [scaled(tmp_path), MODEL], {"input": arrays[:8]}, metric=lambda outputs, ids: 1.0, minimum=1)
    assert not found.passed
    assert [(row["metric"], row["metric_passed"]) for row in found["targets"]] == [(None, False), (1.0, True)]
    assert "input" in found["targets"][0]["error"]


def test_a_metric_that_is_nan_is_not_chosen(arrays):
    numbers = {"auto": float("nan"), "entropy": 0.5}
    tables = {method: (number, tc.CalibrationTable._temporary()) for method, number in numbers.items()}
    assert tc._chosen(tables) is tables["entropy"][1]


def test_a_metric_may_be_asked_for_among_the_gates(arrays, table, tmp_path):
    data = {"input": arrays[:16]}
    count = lambda outputs, ids: len(ids)
    for gates, minimum, passed in (
        ({"metric": 16, "top1": 0.5}, None, True),
        (["metric>=17"], None, False),
        (["metric=1.6e1"], np.float64(17), False),
        ([], 16, True),
        ({"sqnr_db": 500}, 16, True),
    ):
        found = tc.compare(MODEL, MODEL, data, metric=count, gates=gates, minimum=minimum)
        assert found.passed == passed == found["targets"][0]["metric_passed"]
    assert not tc.compare(MODEL, MODEL, data, metric=lambda outputs, ids: float("nan"), minimum=-1e9).passed
    with pytest.raises(tc.CalibError, match="is not a finite number"):
        tc.compare(MODEL, MODEL, data, metric=count, minimum=float("nan"))
    options = {"calib_samples": 8, "bench_seconds": 0, "tensorrt": "off", "precisions": ["int8"], "method": "minmax"}
    assert tc.run(MODEL, data, out=tmp_path / "run", metric=count, minimum=np.float64(8), **options).passed
    # With other gates, both decide.
    layers = {"max_trials": 3, "metric": count}
    easy = tc.bisect(MODEL, table, data, gate={"metric": 16}, **layers)
    assert easy.passed and easy["metric_plan"]["lifted"] == []
    both = tc.bisect(MODEL, table, data, gate={"metric": 16, "sqnr_db": 500}, **layers)
    assert [trial["passed"] for trial in both["metric_plan"]["trials"]][:2] == [False, True] and both["metric_plan"]["lifted"]
    with pytest.raises(tc.CalibError, match="what it must reach"):
        tc.bisect(MODEL, table, data, metric=count, gate={"top1": 0.5})


def test_a_metric_is_a_gate_of_a_run(arrays, tmp_path):
    options = {"calib_samples": 16, "bench_seconds": 0, "tensorrt": "off", "precisions": ["fp16", "int8"]}

    def mean(outputs, ids):
        assert len(outputs) == len(ids)
        return float(np.mean([output["logits"].std() for output in outputs]))

    report = tc.run(MODEL, {"input": arrays}, out=tmp_path / "a", metric=mean, minimum=0.0, **options)
    assert report.passed
    rows = {row["precision"]: row["metric"] for row in report["precisions"]}
    evaluated = [int(name) for name in report["dataset"]["evaluation"]]
    for name, target in {"fp32": MODEL, "int8": tmp_path / "a/model.int8.onnx"}.items():
        alone = tc.compare(MODEL, target, {"input": arrays[evaluated]}, metric=mean, calibration_samples=True)
        assert rows[name] == pytest.approx(alone["targets"][0]["metric"], rel=1e-6)
    assert [(gate["metric"], gate["value"]) for gate in report["verdict"]["gates"]] == [("metric", rows[name]) for name in ("fp16", "int8")]
    failed = tc.run(
        MODEL, {"input": arrays}, out=tmp_path / "b", metric=mean, gates=[f"int8:metric={rows['int8'] * 1.01}"], **options
    )
    assert not failed.passed and not json.loads((tmp_path / "b/report.json").read_text())["verdict"]["passed"]
    assert "metric" in (tmp_path / "b/report.junit.xml").read_text()
    with pytest.raises(tc.CalibError, match="trtcalib. in Python take"):
        tc.run(MODEL, {"input": arrays}, out=tmp_path / "c", gates=["metric=1"], **options)
    with pytest.raises(tc.CalibError, match="metric"):
        tc.compare(MODEL, MODEL, {"input": arrays}, gates=["metric=1"])
    with pytest.raises(tc.CalibError, match="minimum"):
        tc.run(MODEL, {"input": arrays}, out=tmp_path / "c", minimum=1, **options)
