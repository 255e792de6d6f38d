"""The package as it is installed: the same bytes as the programs, from every kind of data."""

import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

import trtcalib as tc

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "calib_data/demo.onnx"
PROGRAM = Path(sys.executable).with_name("calib")
COUNT = 48


def pixels() -> np.ndarray:
    """Preprocessed images, N x 3 x 64 x 64."""
    from PIL import Image

    files = sorted((ROOT / "calib_data/images").glob("*.png"))[:: 640 // COUNT][:COUNT]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return np.ascontiguousarray(((images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    return pixels()


@pytest.fixture(scope="module")
def table(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "calibration.json"
    tc.calibrate(MODEL, {"input": arrays}).save(path)
    return path


def program(*words, **options):
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, **options)


def test_a_table_has_the_bytes_of_the_program(arrays, table, tmp_path):
    np.savez(tmp_path / "data.npz", input=arrays)
    done = program("calibrate", "--model", MODEL, "--data", tmp_path / "data.npz", "-o", tmp_path / "table.json")
    assert done.returncode == 0, done.stderr
    assert table.read_bytes() == (tmp_path / "table.json").read_bytes()
    folder = tc.calibrate(MODEL, tmp_path / "data.npz")
    folder.save(tmp_path / "again.json")
    assert table.read_bytes() == (tmp_path / "again.json").read_bytes()


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, arrays):
        self._batches = iter(np.split(arrays, [7, 8, 30]))

    def get_next(self):
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


class Loaded:
    """As a tensor of PyTorch."""

    def __init__(self, array):
        self._array = array

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self._array


class Grown(Loaded):
    """As a tensor of PyTorch of a type that NumPy lacks, which needs its gradient, and is conjugated and negated late."""

    dtype = "torch.bfloat16"

    def __init__(self, array, lacking=("detach", "float", "resolve_conj", "resolve_neg")):
        self._array, self._lacking = array, lacking

    def _after(self, step):
        return Grown(self._array, [other for other in self._lacking if other != step])

    detach, cpu, float, resolve_conj, resolve_neg = (
        lambda self, step=step: self._after(step) for step in ("detach", "cpu", "float", "resolve_conj", "resolve_neg")
    )

    def numpy(self):
        if self._lacking:
            raise RuntimeError(f"call {self._lacking[0]} first.\nAt length:")
        return self._array


class Exchanged:
    """An array that offers itself by DLPack only."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


@pytest.mark.parametrize(
    "data",
    [
        lambda x: [{"input": batch} for batch in np.split(x, [5, 6])],
        lambda x: ({"input": batch} for batch in np.split(x, 4)),
        lambda x: ((Loaded(batch), np.zeros(len(batch), int)) for batch in np.split(x, 3)),
        lambda x: {"input": np.asfortranarray(x)},
        lambda x: [Grown(x)],
        lambda x: [Exchanged(x)],
        Reader,
    ],
    ids=["list", "generator", "tensors and labels", "other layout", "tensor of bfloat16", "DLPack", "reader"],
)
def test_every_kind_of_data_gives_the_same_table(arrays, table, tmp_path, data):
    tc.calibrate(MODEL, data(arrays)).save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()


def pictures() -> list[np.ndarray]:
    """The images as they are, 64 x 64 x 3."""
    from PIL import Image

    files = sorted((ROOT / "calib_data/images").glob("*.png"))[:: 640 // COUNT][:COUNT]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


PREPROCESS = {"preprocess": {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}}


@pytest.mark.parametrize("data", [np.stack, lambda images: [image[None] for image in images]], ids=["array", "one by one"])
def test_pictures_are_preprocessed_as_files_are(arrays, tmp_path, data):
    images = pictures()
    found = tc.calibrate(MODEL, data(images), method="minmax", **PREPROCESS).to_dict()
    plain = tc.calibrate(MODEL, {"input": arrays}, method="minmax").to_dict()
    assert found["tensors"].keys() == plain["tensors"].keys()
    for name, row in plain["tensors"].items():
        assert [found["tensors"][name][end] for end in ("min", "max")] == pytest.approx([row["min"], row["max"]], rel=1e-4, abs=1e-4)
    with pytest.raises(tc.CalibError):
        tc.calibrate(MODEL, data(images), method="minmax")


def test_tensors_of_pytorch(arrays, table, tmp_path):
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, StackDataset, TensorDataset

    images, labels = torch.from_numpy(arrays.copy()), torch.arange(COUNT)
    every = lambda data: DataLoader(data, batch_size=7, num_workers=2)
    for data in (
        every(TensorDataset(images, labels)),
        every(StackDataset(input=images, label=labels)),
        [images.clone().requires_grad_(True) * 1],
        images.to(memory_format=torch.channels_last),
        [torch.view_as_complex(torch.stack([images, -images], -1)).conj().imag],
    ):
        tc.calibrate(MODEL, data).save(tmp_path / "table.json")
        assert (tmp_path / "table.json").read_bytes() == table.read_bytes()
    short = images.bfloat16()
    assert minmax(MODEL, short) == minmax(MODEL, short.float().numpy())
    with pytest.raises(tc.DataError, match="torch.float32 .*to_dense"):
        tc.calibrate(MODEL, [images.to_sparse()])


def test_the_library_of_onnxruntime_gpu_comes_first(tmp_path):
    code = "import trtcalib, os; print(os.environ['ORT_DYLIB_PATH'])"
    named = lambda: subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={key: value for key, value in os.environ.items() if key != "ORT_DYLIB_PATH"} | {"PYTHONPATH": str(tmp_path)},
    ).stdout.strip()
    assert named().endswith("onnxruntime/capi")
    library = tmp_path / "onnxruntime/capi/libonnxruntime.so.1.99.0"
    about = tmp_path / "onnxruntime_gpu-1.99.0.dist-info"
    library.parent.mkdir(parents=True)
    about.mkdir()
    library.touch()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.99.0\n")
    (about / "RECORD").write_text("onnxruntime/capi/libonnxruntime.so.1.99.0,,\n")
    assert named() == str(library)


def test_arrays_are_read_in_place(arrays):
    from trtcalib._data import as_array

    assert as_array(arrays) is arrays
    assert all(np.shares_memory(as_array(kind(arrays)), arrays) for kind in (Loaded, Exchanged))


def test_what_does_not_fit_in_memory_goes_to_a_file(arrays, table, tmp_path, monkeypatch):
    monkeypatch.setattr("trtcalib._data.MEMORY", 3 * arrays[0].nbytes)
    tc.calibrate(MODEL, ({"input": arrays[i : i + 1]} for i in range(COUNT))).save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == table.read_bytes()


def test_an_iterable_is_read_no_further_than_needed(arrays):
    read = []

    def batches():
        for index in range(COUNT):
            read.append(index)
            yield {"input": arrays[index : index + 1]}

    twelve = tc.calibrate(MODEL, batches(), samples=12, method="minmax").to_dict()
    assert twelve["samples"] == len(read) == 12
    # The first ones serve, however many a batch has; of an array, those that the program chooses.
    fives = lambda: ((arrays[start : start + 5], np.arange(start, start + 5)[: len(arrays) - start]) for start in range(0, COUNT, 5))
    assert tc.calibrate(MODEL, fives(), samples=12, method="minmax").to_dict() == twelve
    assert tc.calibrate(MODEL, {"input": arrays}, samples=COUNT - 2, method="minmax").to_dict()["samples"] == COUNT - 2
    for data, labels in ((fives(), None), (batches(), list(range(COUNT))), ({"input": arrays}, range(COUNT))):
        found = tc.compare(MODEL, MODEL, data, labels=labels, samples=12)
        assert found["samples"] == found["targets"][0]["result"]["tasks"][0]["accuracy"]["samples"] == 12


def test_memory_that_is_written_again_is_noticed(arrays):
    buffer = np.empty((4, 3, 64, 64), np.float32)

    def batches():
        for start in range(0, 12, 4):
            buffer[:] = arrays[start : start + 4]
            yield {"input": buffer}

    with pytest.raises(tc.DataError, match="batch 1 lies in the memory of an earlier one"):
        tc.calibrate(MODEL, batches(), method="minmax")
    tc.calibrate(MODEL, [{"input": buffer}] * 2, method="minmax")  # the caller's own list


def scaled(folder: Path) -> Path:
    """A model with the inputs `x` (3 x 32 x 32) and `scale` (1)."""
    from onnx import TensorProto, helper, numpy_helper

    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", *shape])
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Mul", ["f", "scale"], ["y"], name="mul"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 3, 32, 32), value("scale", 1)], [value("y", 8)], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "scaled.onnx")
    return folder / "scaled.onnx"


def minmax(model, data) -> dict:
    return tc.calibrate(model, data, method="minmax").to_dict()


class Feeds:
    """A reader of what it is given."""

    def __init__(self, feeds, end=None):
        self._feeds, self._end = iter(feeds), end

    def get_next(self):
        return next(self._feeds, self._end)


@pytest.mark.parametrize("kind", [iter, Feeds], ids=["generator", "reader"])
def test_an_array_that_stays_as_it_is_may_come_with_every_batch(kind, tmp_path, monkeypatch):
    model, images = scaled(tmp_path), np.random.default_rng(1).normal(size=(12, 3, 32, 32)).astype(np.float32)
    scale = np.ones((4, 1), np.float32)
    whole = minmax(model, {"x": images, "scale": np.ones((12, 1), np.float32)})
    batches = lambda: [{"x": batch, "scale": scale} for batch in np.split(images, 3)]
    assert minmax(model, kind(batches())) == whole
    fewer = [{"x": images[:4], "scale": scale}, {"x": images[4:6], "scale": scale[:2]}]
    assert minmax(model, kind(fewer))["samples"] == 6

    def changing():
        for number, batch in enumerate(batches()):
            scale[0] = 1 + number // 2
            yield batch

    with pytest.raises(tc.DataError, match="batch 2 lies in the memory of an earlier one"):
        minmax(model, kind(changing()))
    buffer = np.empty((4, 3, 64, 64), np.float32)

    def overwriting():
        for number in range(2):
            buffer[:] = number
            yield {"input": buffer}

    # The first batch stays in memory; what overwrites it goes to a file.
    monkeypatch.setattr("trtcalib._data.MEMORY", buffer.nbytes)
    with pytest.raises(tc.DataError, match="batch 1 lies in the memory"):
        minmax(MODEL, kind(overwriting()))


def test_an_empty_dict_ends_a_reader(arrays, tmp_path):
    from trtcalib.compat import quantize_static

    assert minmax(MODEL, Feeds([{"input": arrays[:8]}], end={})) == minmax(MODEL, {"input": arrays[:8]})
    quantize_static(MODEL, tmp_path / "int8.onnx", Feeds([{"input": arrays[:8]}], end={}))
    assert (tmp_path / "int8.onnx").exists()


def test_arrays_find_their_inputs_as_those_of_a_file_do(arrays, tmp_path, caplog):
    plain = minmax(MODEL, {"input": arrays[:8]})
    files = [str(index) for index in range(8)]
    for data, told in (
        ({"pixels": arrays[:8]}, "`pixels` is taken for the input `input`"),
        ({"input": arrays[:8], "label": np.arange(8), "file": files}, "names of the arrays `label`, `file`, which are not used"),
        ([[arrays[:8]]], ""),
        ({"input": arrays[:8].astype(">f4")}, ""),
    ):
        caplog.clear()
        with caplog.at_level("WARNING", logger="trtcalib"):
            assert minmax(MODEL, data) == plain
        assert told in caplog.text and bool(told) == bool(caplog.text)
    with pytest.raises(tc.DataError, match="the inputs `input` are missing; the arrays are `a`, `b`"):
        tc.calibrate(MODEL, {"a": arrays, "b": arrays})


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (None, ["cat"] * 8, "label 0 is 'cat'"),
        (None, [0] * 7 + [None], "label 7 is None"),
        (None, [0, float("nan")] * 4, "label 1 is nan"),
        (None, [1.5] * 8, "label 0 is 1.5"),
        (None, [True] * 8, "label 0 is True"),
        (None, [1 << 40] * 8, "label 0 is 1099511627776"),
        (None, np.eye(8, dtype=int), "shape .8, 8."),
        (None, np.zeros((4, 2), int), "shape .4, 2."),
        (None, [1] * 7, "8 samples, but 7 labels"),
        (lambda x: [(x, ["cat"] * 8)], None, "label 0 is 'cat'"),
        (lambda x: [(x, np.arange(8), np.arange(8))], None, "batch 0 has 3 parts; give inputs or .inputs, labels."),
        (lambda x: [(x, {"boxes": x})], None, "labels in a dict are no classes; .* or the inputs alone"),
        (lambda x: [(x, [{"boxes": x}] * 8)], None, "label 0 is a dict, which is no class; .* or the inputs alone"),
        (lambda x: [(x, 3)], None, "8 samples, but 1 labels; .*a batch of one"),
        (lambda x: [Grown(x, ("to_dense",))], None, "a tensor of type torch.bfloat16 .*: call to_dense first; convert it"),
        (lambda x: {"input": [[1, 2], [3]]}, None, "cannot be read as an array"),
        (lambda x: {"input": np.array(["a"] * 8)}, None, "`input` is of type <U1"),
    ],
)
def test_what_cannot_be_used_of_data_and_labels_is_said_in_a_sentence(arrays, data, labels, message):
    given = arrays[:8] if data is None else data(arrays[:8])
    with pytest.raises(tc.DataError, match=message) as caught:
        tc.compare(MODEL, MODEL, given, labels=labels)
    assert "\n" not in str(caught.value)


def test_labels_may_be_unknown_or_whole_numbers_of_any_type(arrays):
    def known(labels):
        return tc.compare(MODEL, MODEL, arrays[:8], labels=labels)["targets"][0]["result"]["tasks"][0]["accuracy"]["samples"]

    assert known([-100, -1, 3, 4, 5, 6, 7, 8]) == 6
    assert known(np.arange(8, dtype=np.float32)) == known(np.arange(8, dtype=np.uint8)[:, None]) == 8


def test_progress_reaches_tqdm_or_says_that_it_is_missing(arrays, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(tc.CalibError, match="pip install tqdm"):
        tc.calibrate(MODEL, {"input": arrays[:2]}, method="minmax", progress=True)


def test_quantize_and_compare_with_labels_gates_and_a_metric(arrays, table, tmp_path):
    model = tmp_path / "model.int8.onnx"
    made = tc.quantize(MODEL, table, model, high_precision="fp16")
    onnx.checker.check_model(str(made.path))
    assert made["precision"] == "int8" and made["quantized_nodes"] > 10
    calls = []

    def top1(outputs, ids):
        calls.append((len(outputs), ids[:2], outputs[0]["logits"].shape))
        assert all(output.keys() == {"logits"} for output in outputs)
        return float(np.mean([output["logits"].argmax() == 3 for output in outputs]))

    labels = np.full(COUNT, 3)
    found = tc.compare(MODEL, [model], {"input": arrays}, labels=labels, gates={"top1": 0.5}, metric=top1)
    assert found.passed and found["samples"] == COUNT
    assert calls[0] == (COUNT, ["0", "1"], (20,)) and len(calls) == 2
    accuracy = found["targets"][0]["result"]["tasks"][0]["accuracy"]["top1"]
    assert found["targets"][0]["metric"] == pytest.approx(accuracy)
    assert "SQNR" in found._repr_html_()
    row = found.rows()[0]
    assert row["top1 accuracy"] == accuracy and row["top1 accuracy of the reference"] == found["reference_metric"]
    assert repr(found) == f"Comparison(samples={COUNT}, passed=True, targets={model})"
    assert not tc.compare(MODEL, model, {"input": arrays}, gates=["sqnr_db=90"]).passed


def test_saved_outputs_take_a_models_place(arrays, table, tmp_path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    np.savez(tmp_path / "saved.npz", logits=session.run(["logits"], {"input": arrays})[0])
    found = tc.compare(MODEL, tc.Saved(tmp_path / "saved.npz"), {"input": arrays}, gates=["top1=1"])
    assert found.passed


def test_a_bisection_finds_a_plan(arrays, table, tmp_path):
    found = tc.bisect(MODEL, table, {"input": arrays}, gate={"sqnr_db": 25}, out=tmp_path / "found", max_trials=20)
    assert found.plan is not None and json.loads(found.plan.read_text())["assignments"]
    # So few samples check a plan on others than it was found on; whether it holds there is the verdict.
    assert found.passed == found["plan"]["check"]["passed"]


def test_a_bisection_whose_gate_passes_at_once_shows_itself(arrays, table):
    found = tc.bisect(MODEL, table, {"input": arrays}, gate={"sqnr_db": -40})
    assert found.passed and found.rows() == found["layers"] == [] and "layers=0" in repr(found)
    assert found["plan"]["check"]["passed"]
    assert "the gate passes with nothing lifted" in found._repr_html_() and "<table>" not in found._repr_html_()


def test_layers_are_drawn_worst_first(arrays, table):
    class Axes:
        def barh(self, nodes, values):
            self.nodes, self.values = nodes, values

        def invert_yaxis(self):
            pass

        set_xlabel = lambda self, text: None

    found = tc.bisect(MODEL, table, {"input": arrays[:16]})
    axes = found.plot(Axes(), most=5)
    assert len(axes.nodes) == 5 and axes.values == sorted(axes.values)
    assert axes.values[0] == min(layer["layerwise_sqnr_db"] for layer in found.rows() if layer["layerwise_sqnr_db"] is not None)
    assert "<table>" in found._repr_html_()


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


class Unheard(Exception):
    pass


def test_what_a_metric_raises_comes_out_as_it_is(arrays, tmp_path):
    def unheard(outputs, ids):
        raise Unheard("no words")

    with pytest.raises(Unheard, match="no words"):
        tc.calibrate(MODEL, {"input": arrays[:16]}, metric=unheard)
    options = {"out": tmp_path / "out", "calib_samples": 16, "bench_seconds": 0, "tensorrt": "off", "precisions": ["int8"]}
    with pytest.raises(Unheard):
        tc.run(MODEL, {"input": arrays}, metric=unheard, **options)
    with pytest.raises(tc.CalibError, match="it gave 'much', which is no number"):
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
        with pytest.raises(tc.CalibError, match=f"metric: it gave {what}, which is no number"):
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
    with pytest.raises(tc.CalibError, match="no finite number"):
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


def test_what_no_keyword_says_the_configuration_says(arrays, tmp_path):
    file = tmp_path / "calib.toml"
    file.write_text('method = "minmax"\ncalib_samples = 520\ngate = ["top1=0.5", "sqnr_db=5000"]\neval_samples = 7\n')
    batches = ({"input": arrays[index % COUNT][None]} for index in range(530))
    made = tc.calibrate(MODEL, batches, config=file)
    assert (made.method, made.to_dict()["samples"]) == ("minmax", 520)
    assert tc.calibrate(MODEL, {"input": arrays[:8]}, config=file, method="entropy").method == "entropy"
    found = tc.compare(MODEL, MODEL, {"input": arrays}, config=file)
    assert found["samples"] == 7 and found.to_dict() == tc.compare(
        MODEL, MODEL, {"input": arrays}, samples=7, gates=["top1=0.5", "sqnr_db=5000"]
    ).to_dict()
    assert len(found["targets"][0]["gates"]) == 2
    assert tc.compare(MODEL, MODEL, {"input": arrays}, config=file, gates=[])["targets"][0]["gates"] == []


def test_the_path_of_a_table_outlives_the_table(arrays):
    code = (
        f"import gc, pickle, trtcalib as tc\npath = tc.calibrate({str(MODEL)!r}, random_data=True, samples=2, method='minmax').path\n"
        "gc.collect(); assert path.read_bytes(); print(path)\n"
    )
    path = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    assert path.is_absolute() and not path.parent.exists()  # gone with the process
    table = tc.calibrate(MODEL, {"input": arrays[:2]}, method="minmax")
    table.judged = {"minmax": 1.0}
    content, elsewhere = table.path.read_bytes(), pickle.dumps(table)
    table.path.unlink()
    again = pickle.loads(elsewhere)
    assert again.path.read_bytes() == content and again.judged == {"minmax": 1.0}


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


def test_shards_of_a_comparison_are_joined_to_the_figures_of_a_single_run(arrays, table, tmp_path):
    tc.quantize(MODEL, table, tmp_path / "int8.onnx")
    np.savez(tmp_path / "data.npz", input=arrays[:20])
    words = ["compare", "--ref", MODEL, "--target", tmp_path / "int8.onnx", "--data", tmp_path / "data.npz", "--calibration-samples", "--json"]
    whole = program(*words, "--gate", "sqnr_db=99")
    assert whole.returncode == 1, whole.stderr
    files = [tmp_path / f"{index}.json" for index in range(3)]
    for index, file in enumerate(files):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_TASK_COUNT": "3"}
        done = program(*words, "--gate", "sqnr_db=99", "--shard", "auto", "--part", file, env=environment)
        assert done.returncode == 0, done.stderr
    merged = program("merge", "--json", files[2], files[0], files[1])
    assert (merged.returncode, merged.stdout) == (1, whole.stdout), merged.stderr
    assert json.loads(merged.stdout)["samples"] == 20
    for given, message in (([0, 1], "part 3 of 3"), ([0, 1, 1, 2], "twice")):
        refused = program("merge", *(files[index] for index in given))
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    other = program(*words, "--shard", "3/3", "--part", tmp_path / "other.json")
    assert other.returncode == 0
    assert "different comparisons" in program("merge", files[0], files[1], tmp_path / "other.json").stderr


def test_warnings_go_to_logging(arrays, tmp_path, caplog):
    random = tmp_path / "random.json"
    tc.calibrate(MODEL, random_data=True, samples=4, method="minmax").save(random)
    with caplog.at_level("WARNING", logger="trtcalib"):
        tc.bisect(MODEL, random, {"input": arrays[:8]})
    assert any("random" in record.getMessage() for record in caplog.records)


EXAMPLES = {
    "from_a_loader.py": (["x.npy", "y.npy"], "passed"),
    "own_metric.py": (["data.npz"], "INT8 "),
    "reader_unchanged.py": (["data.npz"], ""),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name, arrays, tmp_path):
    np.save(tmp_path / "x.npy", np.concatenate([arrays, arrays[..., ::-1]]))  # mirrored
    labels = [int(line.split(",")[1]) for line in (ROOT / "calib_data/labels.csv").read_text().splitlines()[1:]]
    np.save(tmp_path / "y.npy", np.array((labels[:: 640 // COUNT][:COUNT]) * 2))
    np.savez(tmp_path / "data.npz", input=arrays)
    files, told = EXAMPLES[name]
    example = ROOT / "python/examples" / name
    done = subprocess.run(
        [sys.executable, example, MODEL, *(tmp_path / file for file in files), tmp_path / "int8.onnx"],
        capture_output=True, text=True,
    )
    assert done.returncode == 0 and told in done.stdout, done.stderr + done.stdout
    onnx.checker.check_model(str(tmp_path / "int8.onnx"))


def test_onnxruntimes_options_are_taken_or_refused_by_name(arrays, tmp_path):
    import inspect

    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as theirs

    from trtcalib import compat
    from trtcalib.compat import quantize_static

    mine = inspect.signature(quantize_static).parameters
    given = list(inspect.signature(theirs).parameters)
    assert given == list(mine)[: len(given)]
    code = "".join(file.read_text() for file in Path(inspect.getfile(theirs)).parent.glob("*.py"))
    options = {name for name in re.findall(r'extra_options(?:\.get\(|\[)\s*"([^"]+)"', code) if name[0].isupper()}
    options |= set(re.findall(r"^ {16}([\w.]+) = ", theirs.__doc__, re.MULTILINE))
    known = {"CalibPercentile", *compat._OPTIONS, *compat._WITHOUT_EFFECT}
    assert len(options) > 20 and options <= known, options - known
    output = tmp_path / "int8.onnx"
    quantize_static(
        onnx.load(MODEL), output, Reader(arrays), quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.Percentile, per_channel=True,
        nodes_to_exclude=["/stem/conv/Conv"], extra_options={"CalibPercentile": 99.9, "ActivationSymmetric": True},
    )
    weights = {value for node in onnx.load(output).graph.node if node.op_type == "Conv" for value in node.input}
    assert len(weights) > 10
    refused = {
        "quant_format": {"quant_format": QuantFormat.QOperator},
        "activation_type": {"activation_type": QuantType.QUInt8},
        "reduce_range": {"reduce_range": True},
        "Distribution": {"calibrate_method": CalibrationMethod.Distribution},
        "SmoothQuant=True": {"extra_options": {"SmoothQuant": True}},
        "TensorrtExecutionProvider": {"calibration_providers": ["TensorrtExecutionProvider"]},
        "options of CUDAExecutionProvider .device_id.": {"calibration_providers": [("CUDAExecutionProvider", {"device_id": 1})]},
        "CalibPercentile|percentile": {"extra_options": {"CalibPercentile": "most"}},
        "Unheard=1 is not done: no such option": {"extra_options": {"Unheard": 1}},
        "ActivationSymmetric=False is not done: .*give True": {"extra_options": {"ActivationSymmetric": False}},
        "AddQDQPairToWeight=True": {"extra_options": {"AddQDQPairToWeight": True}},
        "MatMulConstBOnly=True": {"extra_options": {"MatMulConstBOnly": True}},
    }
    for message, options in refused.items():
        with pytest.raises(tc.CalibError, match=message):
            quantize_static(MODEL, tmp_path / "no.onnx", Reader(arrays), **options)
    assert not (tmp_path / "no.onnx").exists()
    quantize_static(
        MODEL, tmp_path / "yes.onnx", Reader(arrays), calibration_providers=[("CPUExecutionProvider", {})],
        extra_options={"AddQDQPairToWeight": False, "MatMulConstBOnly": False, "CalibMaxIntermediateOutputs": 8, "DedicatedQDQPair": False},
    )


def test_percentiles_are_onnxruntimes(arrays, tmp_path):
    from trtcalib.compat import quantize_static

    def written(name, **options):
        quantize_static(MODEL, tmp_path / name, Reader(arrays), calibrate_method="Percentile", **options)
        return (tmp_path / name).read_bytes()

    plain = written("plain.onnx")
    assert plain == written("same.onnx", extra_options={"CalibPercentile": 99.999})
    assert plain != written("other.onnx", extra_options={"CalibPercentile": 99.9})


def test_weights_go_to_a_file_of_their_own_where_asked(arrays, tmp_path):
    from trtcalib.compat import quantize_static

    plain, apart = tmp_path / "plain.onnx", tmp_path / "apart.onnx"
    quantize_static(MODEL, plain, Reader(arrays))
    for _ in range(2):  # The second takes the place of the first.
        quantize_static(MODEL, apart, Reader(arrays), use_external_data_format=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apart.onnx", "apart.onnx.data", "plain.onnx"]
    assert apart.stat().st_size < plain.stat().st_size
    weights = onnx.load(apart, load_external_data=False).graph.initializer
    assert any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in weights)
    assert tc.compare(plain, apart, {"input": arrays[:8]}, gates={"sqnr_db": 200}, calibration_samples=True).passed


def test_the_demonstration_runs_from_any_folder(tmp_path):
    quick = ["--tensorrt", "off", "--bench-seconds", "0", "--method", "minmax", "--calib-samples", "16", "--eval-samples", "64"]
    done = program("demo", "here", "--", *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "here/runs/demo/report.json").read_text())
    assert report["verdict"]["passed"] and (tmp_path / "here/runs/demo/report.html").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").touch()
    assert program("demo", "other", cwd=tmp_path).returncode == 2


def test_progress_that_fails_does_not_end_the_work(arrays, caplog):
    told = []

    def fail(what, done, total):
        told.append(what)
        raise Unheard("no words")

    table = tc.calibrate(MODEL, {"input": arrays[:8]}, method="minmax", progress=fail)
    assert table.to_dict()["samples"] == 8 and len(told) == 1
    assert "no words" in caplog.text and "the work goes on" in caplog.text


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch):
    for name in ("ray", "matplotlib", "trtcalib.ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("ray", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"trtcalib\[ray\]"):
        tc.ray
    with pytest.raises(tc.CalibError, match=r"trtcalib\[plot\]"):
        tc.Findings({"layers": []}, Path(), True).plot()
    assert tc.compat.quantize_static and not hasattr(tc, "other")


def test_completion_shows_what_is_for_users():
    assert dir(tc) == sorted(tc.__all__) and all(hasattr(tc, name) for name in tc.__all__)


def test_a_run_leaves_a_report(tmp_path, arrays):
    events = []
    report = tc.run(
        MODEL, {"input": arrays}, out=tmp_path / "out", calib_samples=16, bench_seconds=0, tensorrt="off",
        precisions=["fp32", "int8"], gates=["top1=0.5"], progress=lambda *event: events.append(event),
    )
    assert report.passed and (report.folder / "report.html").exists()
    assert {row["precision"] for row in report["precisions"]} == {"fp32", "int8"}
    assert any(done == total > 0 for _, done, total in events)
    assert "<iframe" in report._repr_html_()


def test_errors_are_typed_and_say_what_to_do(arrays, tmp_path, table):
    with pytest.raises(tc.DataError, match="generator"):
        tc.calibrate(MODEL, iter([]))
    with pytest.raises(tc.DataError, match="axis"):
        tc.calibrate(scaled(tmp_path), {"x": arrays, "scale": arrays[:2]})
    with pytest.raises(tc.DataError, match="axis"):
        tc.calibrate(MODEL, {"input": np.float32(1)})
    with pytest.raises(tc.CalibError, match="unknown field|calib_sample"):
        tc.calibrate(MODEL, {"input": arrays}, calib_sample=3)
    with pytest.raises(tc.ModelError):
        tc.calibrate(tmp_path / "missing.onnx", {"input": arrays})
    with pytest.raises(tc.CalibError, match="images|arrays|input"):
        tc.calibrate(MODEL, {"wrong": arrays, "names": arrays})
    assert issubclass(tc.DataError, tc.CalibError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, folder: tc.compare(MODEL, [], x), "there is nothing to compare with .*; name it in `targets`"),
        (lambda x, folder: tc.calibrate(MODEL, x, samples=-1), "`samples`: must be at least 1"),
        (lambda x, folder: tc.calibrate(MODEL, iter([x]), calib_samples="12"), "`samples`: '12' is no whole number"),
        (lambda x, folder: tc.compare(MODEL, MODEL, x, samples=-1), "`samples`: must be at least 0"),
        (lambda x, folder: tc.calibrate(onnx.load(MODEL), x), "by the path of its file, not as ModelProto: save it first"),
        (lambda x, folder: tc.compare(onnx.load(MODEL), MODEL, x), "by the path of its file"),
        (lambda x, folder: tc.calibrate(MODEL, x, random_data=True), "random_data: data were given, too"),
        (lambda x, folder: tc.calibrate(MODEL, x, progress=3), "progress: .* int is neither"),
        (lambda x, folder: tc.calibrate(MODEL, x, percentile=object()), "percentile: a object is no setting"),
        (lambda x, folder: tc.calibrate(MODEL, x, batch="8"), "`batch`: invalid type: string"),
        (lambda x, folder: tc.calibrate(MODEL, x, method="minmax").save(folder / "no/t.json"), "there is no folder .*no$"),
        (lambda x, folder: tc.CalibrationTable.load(folder / "t.json"), "t.json"),
        (lambda x, folder: (folder / "t.json").write_text("[]") and tc.CalibrationTable.load(folder / "t.json"), "t.json"),
        (lambda x, folder: (folder / "t.json").write_text("x") and tc.CalibrationTable.load(folder / "t.json"), "t.json"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(arrays, tmp_path, call, message):
    with pytest.raises(tc.CalibError, match=message) as caught:
        call({"input": arrays[:2]}, tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_may_be_of_the_types_that_python_programs_have(arrays, table, tmp_path):
    class Elsewhere:
        def __fspath__(self):
            return str(MODEL)

    made = tc.calibrate(Elsewhere(), {"input": arrays}, samples=np.int64(12), percentile=np.float32(99.5), method="percentile")
    assert made.to_dict()["samples"] == 12 and made.to_dict()["percentile"] == 99.5
    one, many = (
        tc.quantize(MODEL, table, tmp_path / "some.onnx", nodes_to_exclude=given)["hash"] for given in ("/stem/.*", ("/stem/.*",))
    )
    assert one == many != tc.quantize(MODEL, table, tmp_path / "all.onnx")["hash"]


def test_a_process_that_was_forked_later_is_told_so(tmp_path):
    code = (
        "import multiprocessing, sys, trtcalib as tc\n"
        f"work = lambda: tc.calibrate({str(MODEL)!r}, random_data=True, samples=2, method='minmax')\n"
        "def child():\n"
        "    try: work()\n"
        "    except tc.CalibError as error: print(error, flush=True)\n"
        "    else: print('done', flush=True)\n"
        "def fork():\n"
        "    process = multiprocessing.get_context('fork').Process(target=child)\n"
        "    process.start(); process.join()\n"
        "fork(); work(); fork()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    first, second = done.stdout.splitlines()
    assert first == "done" and "was forked" in second and "spawn" in second


def test_the_interpreter_goes_on_while_the_library_works(arrays):
    ticks = []
    stop = threading.Event()

    def tick():
        while not stop.wait(0.005):
            ticks.append(1)

    thread = threading.Thread(target=tick)
    thread.start()
    tc.calibrate(MODEL, {"input": arrays})
    stop.set()
    thread.join()
    assert len(ticks) > 5


def test_ctrl_c_stops(tmp_path):
    code = (
        "import numpy as np, trtcalib as tc, os, signal, threading\n"
        # A shell that starts this in the background has it ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "x = np.zeros((20000, 3, 64, 64), np.float32) + 0.5\n"
        f"try: tc.calibrate({str(MODEL)!r}, {{'input': x}}, samples=20000)\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "stopped", done.stderr


def test_the_programs_are_installed():
    assert program("--version").stdout.startswith("calib ")
    doctor = program("doctor")
    assert doctor.returncode == 0
    assert "ok       TensorRT-RTX" in doctor.stdout or "`pip install 'trtcalib[rtx]'`" in doctor.stdout
    assert program("nonsense").returncode == 2


def test_what_is_wrong_with_a_model_or_an_array_is_said_as_the_program_says_it(tmp_path):
    with pytest.raises(tc.ModelError, match=r"nope\.onnx: No such file or directory"):
        tc.calibrate(tmp_path / "nope.onnx", {"input": np.zeros((2, 3, 64, 64), np.float32)})
    with pytest.raises(tc.DataError, match="`input`"):
        tc.calibrate(MODEL, {"input": np.zeros((2, 3, 32, 64), np.float32)})
