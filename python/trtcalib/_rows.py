"""Lines of tables: what of the figures of a target or of a precision fits in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def _shares(figures: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    return {
        f"{name} {what}": value for name, value in (figures or {}).items() if isinstance(value, float) and name != "mcnemar_p"
    }


def _maps(figures: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """Shares of pixels."""
    return {f"{name}{what}": value for name, value in (figures or {}).items() if isinstance(value, float)}


def _boxes(detection: Mapping[str, Any] | None) -> dict[str, Any]:
    if detection is None:
        return {}
    row = {f"boxes {name}": detection["agreement"].get(name) for name in ("precision", "recall", "mean_iou")}
    accuracy = detection.get("accuracy")
    if accuracy is not None:
        figures = accuracy["figures"]
        row |= {"mAP 50-95": figures.get("map50_95"), "mAP 50-95 of the reference": detection.get("reference_map50_95")}
        row["mAP 50"] = figures.get("map50")
    return row


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{output['name']} SQNR dB": output.get("sqnr_db") for output in outputs}


def gates(tested: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How gates ended, by what they ask for."""
    row: dict[str, Any] = {}
    for gate in tested:
        part = f"[{gate['part']}]" if gate.get("part") else ""
        sign = "≥" if gate["direction"] == "at_least" else "≤"
        row[f"{gate['metric']}{part} {sign} {gate['threshold']:g}"] = "passed" if gate["passed"] else "FAILED"
    return row


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def of_target(target: Mapping[str, Any]) -> dict[str, Any]:
    """A target of a comparison."""
    result = target.get("result") or {}
    row = {"target": target["target"], "error": target.get("error"), "metric": target.get("metric")}
    row |= _outputs(result.get("outputs", []))
    for task in result.get("tasks", []):
        row |= _shares(task.get("agreement"), "agreement") | _shares(task.get("accuracy"), "accuracy")
        row |= _shares(task.get("reference_accuracy"), "accuracy of the reference")
        row |= _maps(task.get("segmentation"), "") | _maps(task.get("reference_segmentation"), " of the reference")
    return _known(row | _boxes(result.get("detection")) | gates(target.get("gates", [])))


def of_precision(found: Mapping[str, Any], tested: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A precision of a run, and of all gates those that are about it."""
    row = {name: found.get(name) for name in ("precision", "backend", "error", "metric", "quantized_nodes")}
    row |= _outputs(found.get("outputs", [])) | _shares(found.get("agreement"), "agreement")
    row |= _shares(found.get("accuracy"), "accuracy") | _maps(found.get("segmentation"), "") | _boxes(found.get("detection"))
    row["bytes"] = (found.get("artifact") or {}).get("bytes")
    row["median ms"] = (found.get("latency_ms") or {}).get("median")
    its_own = [gate for gate in tested if all(gate[key] == found[key] for key in ("precision", "backend"))]
    return _known(row | gates(its_own))
