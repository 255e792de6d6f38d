"""Drop-in for ``onnxruntime.quantization``: an existing script changes one import.

``quantize_static`` takes the same arguments. What TensorRT cannot run (asymmetric activations, QOperator format, UINT8)
is refused by name, with what to say instead, or told of; nothing is ignored.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import _PLACEMENT, CalibError, calibrate, quantize

__all__ = ["quantize_static"]

_log = logging.getLogger("trtcalib")

_METHODS = {"MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile", "auto": "auto"}
#: Options of ``extra_options``: values that ask for what is done anyway, and why others cannot be had.
_OPTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "ActivationSymmetric": ((True,), "TensorRT quantizes activations around 0; give True"),
    "ActivationRestrictedAsymmetric": ((False,), "it is for UINT8 activations, which TensorRT does not run"),
    "WeightSymmetric": ((True,), "TensorRT quantizes weights around 0; give True"),
    "MinimumRealRange": ((None,), "it is for QNN; ranges are those that the data show"),
    "TensorQuantOverrides": (({},), "ranges stand in the table of trtcalib.calibrate; change them there, for trtcalib.quantize"),
    "CalibMovingAverage": ((False,), "all samples count alike"),
    "CalibStridedMinMax": ((None,), "all samples are looked at"),
    "SmoothQuant": ((False,), "with calibrate_method=\"auto\", channels are equalized where held-out samples gain by it"),
    "BlockSize": ((0,), "weights have a scale for each output channel, not for blocks"),
    "AddQDQPairToWeight": ((False,), "weights are stored quantized, with a DequantizeLinear"),
    "OpTypesToExcludeOutputQuantization": (([],), "inputs are quantized; name the operators that read the tensor in nodes_to_exclude"),
    "QDQKeepRemovableActivations": ((True,), "Relu and Clip stay where they are, as TensorRT fuses them; give True"),
    "QDQOpTypePerChannelSupportToAxis": (({},), "TensorRT takes scales along the output channels of weights"),
    "QuantizeBias": ((False,), "TensorRT takes biases in float; give False"),
    "UseQDQContribOps": ((False,), "TensorRT reads the operators of the ONNX standard, not those of com.microsoft"),
    "MatMulConstBOnly": ((False,), "name products of two activations in nodes_to_exclude"),
    "EnableSubgraph": ((False,), "bodies of If, Loop and Scan stay in float"),
    "ForceQuantizeNoInputCheck": ((False,), "operators that move values only are quantized with what they feed"),
    "DefaultTensorType": ((), "types of tensors are those that the model tells"),
    "extra.Sigmoid.nnapi": ((False,), "it is for Android's NNAPI"),
}
#: Options that change no number whatever their value: by what onnxruntime says of them, without others that are refused, as
#: ranges are symmetric and biases in float, and as who reads a tensor shares its QuantizeLinear, but no DequantizeLinear.
_WITHOUT_EFFECT = (
    "CalibMaxIntermediateOutputs", "CalibMovingAverageConstant", "CalibTensorRangeSymmetric", "DedicatedQDQPair",
    "QDQDisableWeightAdjustForInt32Bias", "SmoothQuantAlpha", "SmoothQuantFolding",
)


def quantize_static(
    model_input: Any,
    model_output: Any,
    calibration_data_reader: Any = None,
    quant_format: Any = None,
    op_types_to_quantize: Sequence[str] | None = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    activation_type: Any = None,
    weight_type: Any = None,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    calibrate_method: Any = "MinMax",
    calibration_providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    extra_options: dict[str, Any] | None = None,
    calibration_cache_path: Any = None,
) -> None:
    """Calibrates with a reader and writes a model with explicit Q/DQ that TensorRT takes.

    Args:
        model_input: float ONNX model: a path, or a ``ModelProto``.
        model_output: model to write.
        calibration_data_reader: object with ``get_next()``.
        quant_format: ``QuantFormat.QDQ``.
        op_types_to_quantize: operator types; others stay in float.
        per_channel: False, the default there: a weight gets one scale, and a warning says that True, a scale for each output channel,
            loses less; TensorRT takes both.
        reduce_range: False: TensorRT needs no 7-bit weights.
        activation_type, weight_type: ``QuantType.QInt8``, or ``QFLOAT8E4M3FN`` for both.
        nodes_to_quantize, nodes_to_exclude: names of nodes.
        use_external_data_format: weights go to ``<model_output>.data``, by the package ``onnx``. Without, they do where the
            model is over 2 GB or comes with such a file.
        calibrate_method: MinMax, as there where it is left out, Entropy or Percentile (99.999, as there, unless
            ``CalibPercentile`` says otherwise); or ``"auto"``, what measures best.
        calibration_providers: ``["CPUExecutionProvider"]`` or ``["CUDAExecutionProvider"]``, without options.
        extra_options: ``CalibPercentile`` is applied, options that ask for what is done anyway are taken, others refused with
            the reason.
            ``MatMulConstBOnly=False``, the default, lets products of two activations be quantized: those that TensorRT
            runs faster so.
        calibration_cache_path: None: ranges are kept in tables, which `trtcalib.calibrate` makes.

    Raises:
        CalibError: an argument asks for what TensorRT cannot run.
    """
    if _name(quant_format) not in (None, "QDQ"):
        raise CalibError("quant_format: TensorRT reads Q/DQ models only; give QuantFormat.QDQ")
    if calibration_data_reader is None:
        raise CalibError("calibration_data_reader: ranges come from data; give a reader (calibration_cache_path is not read)")
    if calibration_cache_path is not None:
        raise CalibError(
            "calibration_cache_path: onnxruntime's cache is not written; trtcalib.calibrate keeps ranges in a table to use again"
        )
    if not per_channel:
        _log.warning(
            "per_channel=False, as it is where nothing is said: a weight gets one scale; with True each of its output channels gets one, "
            "which loses less, and TensorRT takes both"
        )
    if reduce_range:
        raise CalibError("reduce_range: TensorRT's INT8 kernels need no 7-bit weights; leave it out")
    if use_external_data_format and importlib.util.find_spec("onnx") is None:
        raise CalibError("use_external_data_format: it needs the package onnx: pip install onnx, or leave it out")
    types = {_name(activation_type) or "QInt8", _name(weight_type) or "QInt8"}
    precisions = {"QInt8": "int8", "QFLOAT8E4M3FN": "fp8"}
    if len(types) != 1 or not types <= precisions.keys():
        raise CalibError(
            f"activation_type and weight_type {sorted(types)}: TensorRT takes symmetric QInt8 for both, or QFLOAT8E4M3FN for both"
        )
    providers = {_provider(provider) for provider in calibration_providers or ["CPUExecutionProvider"]}
    if not providers <= {"CPUExecutionProvider", "CUDAExecutionProvider"}:
        raise CalibError(f"calibration_providers {sorted(providers)}: CPUExecutionProvider and CUDAExecutionProvider are known")
    provider = "cuda" if "CUDAExecutionProvider" in providers else "cpu"
    settings: dict[str, Any] = {"provider": provider, "per_tensor_weights": not per_channel}
    if op_types_to_quantize:
        settings["op_types"] = _listed(op_types_to_quantize)
    for key, names in (("nodes_to_include", nodes_to_quantize), ("nodes_to_exclude", nodes_to_exclude)):
        if names:
            settings[key] = [f"^{re.escape(name)}$" for name in _listed(names)]
    method = _name(calibrate_method) or "auto"
    if method not in _METHODS:
        raise CalibError(f"calibrate_method {method}: {', '.join(_METHODS)} are known; `auto` measures them all")
    if method == "Percentile":
        settings["percentile"] = 99.999
    for name, value in (extra_options or {}).items():
        if name == "CalibPercentile":
            settings["percentile"] = value
        elif name not in _WITHOUT_EFFECT:
            taken, reason = _OPTIONS.get(name, ((), "no such option is known here; leave it out"))
            if value not in taken:
                raise CalibError(f"extra_options: {name}={value!r} is not done: {reason}")
    with tempfile.TemporaryDirectory(prefix="trtcalib-") as folder:
        model = _file(model_input, Path(folder))
        # Placement options say what is quantized; the table is made for that.
        table = calibrate(model, calibration_data_reader, method=_METHODS[method], samples=1 << 30, **settings)
        placement = {key: settings[key] for key in _PLACEMENT if key in settings}
        target = Path(folder) / "quantized.onnx" if use_external_data_format else Path(model_output)
        quantize(model, table, target, precision=precisions[types.pop()], **placement)
        if use_external_data_format:
            _save_externally(target, Path(model_output))


def _provider(given: str | tuple[str, dict[str, Any]]) -> str:
    """Name of an execution provider, which may come with options."""
    name, options = (given, None) if isinstance(given, str) else given
    if options:
        raise CalibError(f"calibration_providers: options of {name} ({', '.join(options)}) are not taken; leave them out")
    return name


def _save_externally(model: Path, output: Path) -> None:
    """Writes a model with its weights in a file of their own, under the name that onnxruntime gives it."""
    import onnx  # type: ignore[import-untyped, import-not-found, unused-ignore]

    data = output.with_name(f"{output.name}.data")
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        partial = Path(folder) / output.name
        onnx.save_model(onnx.load(model), partial, save_as_external_data=True, location=data.name)
        # At no moment does a model lie beside the data of another.
        output.unlink(missing_ok=True)
        weights = partial.with_name(data.name)
        if weights.exists():  # onnx leaves small ones where they are
            weights.replace(data)
        partial.replace(output)


def _listed(names: str | Sequence[str]) -> list[str]:
    """One name for a list of names."""
    return [names] if isinstance(names, str) else list(names)


def _name(choice: Any) -> str | None:
    """Name of an enumerator, or the text that stands for it."""
    return None if choice is None else str(getattr(choice, "name", choice))


def _file(model: Any, folder: Path) -> Path:
    if isinstance(model, (str, Path)):
        return Path(model)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
