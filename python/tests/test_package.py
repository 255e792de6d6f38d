"""The package as it is installed: the same bytes as the programs, results, errors and processes."""

import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

import trtcalib as tc
from common import COUNT, MODEL, ROOT, Unheard, program, scaled


def test_a_table_has_the_bytes_of_the_program(arrays, table, tmp_path):
    np.savez(tmp_path / "data.npz", input=arrays)
    done = program("calibrate", "--model", MODEL, "--data", tmp_path / "data.npz", "-o", tmp_path / "table.json")
    assert done.returncode == 0, done.stderr
    assert table.read_bytes() == (tmp_path / "table.json").read_bytes()
    folder = tc.calibrate(MODEL, tmp_path / "data.npz")
    folder.save(tmp_path / "again.json")
    assert table.read_bytes() == (tmp_path / "again.json").read_bytes()


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
    assert repr(tc.compare(MODEL, model, {"input": arrays})) == f"Comparison(samples={COUNT}, targets={model})"


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
    assert found.passed is None
    axes = found.plot(Axes(), most=5)
    assert len(axes.nodes) == 5 and axes.values == sorted(axes.values)
    assert axes.values[0] == min(layer["layerwise_sqnr_db"] for layer in found.rows() if layer["layerwise_sqnr_db"] is not None)
    assert "<table>" in found._repr_html_()


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
        (lambda x, folder: tc.calibrate(MODEL, iter([x]), calib_samples="12"), "`samples`: '12' is not a whole number"),
        (lambda x, folder: tc.compare(MODEL, MODEL, x, samples=-1), "`samples`: must be at least 0"),
        (lambda x, folder: tc.calibrate(onnx.load(MODEL), x), "by the path of its file, not as ModelProto: save it first"),
        (lambda x, folder: tc.compare(onnx.load(MODEL), MODEL, x), "by the path of its file"),
        (lambda x, folder: tc.calibrate(MODEL, x, random_data=True), "random_data: data were given, too"),
        (lambda x, folder: tc.calibrate(MODEL, x, progress=3), "progress: .* int is neither"),
        (lambda x, folder: tc.calibrate(MODEL, x, percentile=object()), "percentile: a object is not a setting"),
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
