"""Every kind of data: which are read, which are not, and what is said of them."""

import numpy as np
import pytest

import trtcalib as tc
from common import COUNT, MODEL, ROOT, Feeds, Reader, minmax, scaled


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
        (lambda x: [(x, {"boxes": x})], None, "labels in a dict are not classes; .* or the inputs alone"),
        (lambda x: [(x, [{"boxes": x}] * 8)], None, "label 0 is a dict, which is not a class; .* or the inputs alone"),
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
