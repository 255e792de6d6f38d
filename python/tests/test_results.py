"""What results show, and what errors say."""

import os
import subprocess
import sys

import pytest

import trtcalib as tc
from common import MODEL, Reader, program
from trtcalib._results import Comparison
from trtcalib.compat import quantize_static


@pytest.fixture(scope="module")
def quantized(table, tmp_path_factory):
    return tc.quantize(MODEL, table, tmp_path_factory.mktemp("models") / "model.int8.onnx").path


def test_a_comparison_shows_how_gates_ended(arrays, quantized):
    options = {"metric": lambda outputs, names: 0.5, "calibration_samples": True}
    found = tc.compare(MODEL, quantized, {"input": arrays}, gates={"sqnr_db": -40, "metric": 0.75}, **options)
    gate = next(gate for gate in found["targets"][0]["gates"] if gate["metric"] == "metric")
    assert (gate["threshold"], gate["value"], gate["passed"]) == (0.75, 0.5, False) and found.passed is False
    row = found.rows()[0]
    assert row["sqnr_db ≥ -40"] == "passed" and row["metric ≥ 0.75"] == "FAILED"
    assert "passed=False" in found._repr_html_() and "FAILED" in found._repr_html_()


def test_a_row_of_a_detector_has_its_precision():
    boxes = {"agreement": {"precision": 0.5, "recall": 0.25, "mean_iou": 0.75}, "reference_map50_95": 0.5}
    boxes["accuracy"] = {"figures": {"map50_95": 0.25, "map50": 0.375}}
    target = {"target": "int8", "gates": [], "result": {"outputs": [], "tasks": [], "detection": boxes}}
    assert Comparison({"samples": 1, "passed": None, "targets": [target]}).rows() == [
        {
            "target": "int8", "boxes precision": 0.5, "boxes recall": 0.25, "boxes mean_iou": 0.75, "mAP 50-95": 0.25,
            "mAP 50-95 of the reference": 0.5, "mAP 50": 0.375,
        }
    ]


def test_a_run_has_a_row_for_each_precision(arrays, tmp_path):
    options = {"calib_samples": 8, "bench_seconds": 0, "tensorrt": "off", "precisions": ["fp32", "int8"], "method": "minmax"}
    found = tc.run(MODEL, {"input": arrays}, out=tmp_path / "out", gates=["int8:sqnr_db=-40"], **options)
    float_row, int8 = found.rows()
    assert [float_row["precision"], int8["precision"]] == ["fp32", "int8"]
    assert int8["sqnr_db ≥ -40"] == "passed" and "sqnr_db ≥ -40" not in float_row and int8["quantized_nodes"] > 10


def test_a_plan_that_fails_its_check_says_so(arrays, caplog):
    ranges = tc.calibrate(MODEL, {"input": arrays[:8]}, method="minmax")
    judged = arrays[41:29:-1]
    look = lambda least: tc.bisect(MODEL, ranges, {"input": judged}, gate={"sqnr_db": least}, seed=1)
    plan = look(-40)["plan"]
    here, there = (verdict["metrics"]["sqnr_db"] for verdict in (plan["search"]["trial"]["verdict"], plan["check"]))
    assert here > there, "of these samples, those that are searched on are the easier ones"
    found = look((here + there) / 2)
    assert not found.passed and found["plan"]["check"]["passed"] is False
    first, second = (advice["text"] for advice in found["advice"])
    assert first.startswith("on 6 samples that were not used to find it, the plan does not pass: sqnr_db") and first in caplog.text
    assert second.startswith("the gate passes with nothing lifted") and second.endswith("on the 6 samples that it was searched on")


def test_a_plan_by_a_metric_has_a_sentence(arrays, table):
    found = tc.bisect(MODEL, table, {"input": arrays[:8]}, metric=lambda outputs, names: 1.0, minimum=0.5)
    assert found["plan"]["lifted"] == [] and found["plan"]["check"]["passed"]
    assert found["advice"][0]["text"] == "the gate passes with nothing lifted (metric 1)" and found._repr_html_()
    found = tc.bisect(MODEL, table, {"input": arrays[:8]}, metric=lambda outputs, names: 0.25, minimum=0.5)
    assert not found.passed and found["advice"][0]["text"].startswith("even with all 32 nodes in fp32 the gate fails (metric 0.25)")


def test_folders_that_nobody_named_go_with_the_process(tmp_path):
    code = (
        "import numpy as np, sys, trtcalib as tc\n"
        "x = {'input': np.zeros((4, 3, 64, 64), np.float32)}\n"
        "table = tc.calibrate(sys.argv[1], x, method='minmax')\n"
        "assert (tc.bisect(sys.argv[1], table, x).folder / 'bisect.json').exists()\n"
    )
    subprocess.run([sys.executable, "-c", code, MODEL], check=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert list(tmp_path.glob("trtcalib-*")) == []


def test_errors_about_tables_are_the_programs(arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("nothing")
    for name in ("missing.json", "bad.json"):
        said = program("quantize", MODEL, "--table", name, "-o", "q.onnx").stderr
        with pytest.raises(tc.DataError) as raised:
            tc.quantize(MODEL, name, "q.onnx")
        assert str(raised.value) in said
    calls = [lambda t: tc.CalibrationTable.load(t), lambda t: tc.CalibrationTable(t).method, lambda t: tc.CalibrationTable(t).tensors]
    for call in calls:
        with pytest.raises(tc.DataError, match=r"cannot read missing.json: No such file or directory"):
            call("missing.json")
    with pytest.raises(tc.CalibError, match="there is nothing to compare with .*demo.onnx; name it in `targets`"):
        tc.compare(MODEL, [], {"input": arrays})


def test_what_onnxruntime_does_without_being_told_is_done_or_told_of(arrays, tmp_path, caplog):
    quantize_static(MODEL, tmp_path / "all.onnx", Reader(arrays[:40]))
    assert "per_channel=False, as it is where nothing is said: a weight gets one scale" in caplog.text
    caplog.clear()
    found = tc.calibrate(MODEL, {"input": arrays[:40]}, method="minmax", per_tensor_weights=True)
    tc.quantize(MODEL, found, tmp_path / "same.onnx", per_tensor_weights=True)
    assert (tmp_path / "all.onnx").read_bytes() == (tmp_path / "same.onnx").read_bytes()
    node = next(iter(tc.bisect(MODEL, found, {"input": arrays[:4]})["layers"]))["node"]
    quantize_static(MODEL, tmp_path / "one.onnx", Reader(arrays[:40]), per_channel=True, nodes_to_exclude=node)
    assert "per_channel" not in caplog.text
    assert (tmp_path / "one.onnx").read_bytes() != (tmp_path / "all.onnx").read_bytes()
