"""Scripts for onnxruntime's quantization run with one import changed."""

import re
from pathlib import Path

import onnx
import pytest

import trtcalib as tc
from common import MODEL, Reader


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
