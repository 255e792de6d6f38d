"""The smallest plan by a metric of one's own, wherever the trials run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Trial(NamedTuple):
    """What a plan was worth: its number of lifted nodes, the metric, and whether it is good enough."""

    lifted: int
    value: float
    passed: bool


#: Judges plans that lift the first k nodes of a ranking, for several k at once.
Judge = Callable[[Sequence[int]], Sequence[Trial]]


def ranking(findings: Mapping[str, Any]) -> list[str]:
    """Nodes by the noise that they alone bring to the outputs; those not measured there follow by their local noise."""
    noise = lambda entry: -(entry.get("relative_noise") or 0.0)
    first = [entry["node"] for entry in sorted(findings.get("outputs", []), key=noise)]
    rest = [entry["node"] for entry in sorted(findings["layers"], key=noise)]
    return list(dict.fromkeys(first + rest))


def smallest(count: int, judge: Judge, *, ahead: int = 1, most: int = 64) -> tuple[list[Trial], Trial | None]:
    """Halves the number of lifted nodes until the smallest that passes is known.

    Up to `ahead` plans are judged at once: those that are needed whatever the others give. The trials that are returned
    are those of one at a time, so neither they nor the plan depend on `ahead`.

    Returns:
        The trials in order, and the one that passed with the fewest nodes; None where no plan passes.
    """
    known: dict[int, Trial] = {}
    trials: list[Trial] = []

    def look(wanted: Sequence[int]) -> None:
        new = [lifted for lifted in dict.fromkeys(wanted) if lifted not in known]
        known.update({trial.lifted: trial for trial in judge(new)} if new else {})

    def tell(lifted: int) -> Trial:
        trials.append(known[lifted])
        return known[lifted]

    look([0, count] if ahead > 1 else [0])
    if tell(0).passed:
        return trials, known[0]
    look([count])
    if not tell(count).passed:
        return trials, None
    low, high = 0, count
    while high - low > 1 and len(trials) < most:
        # Nearest first: the middle, then the middles of both halves, and so on.
        spans: list[tuple[int, int]] = [(low, high)]
        wanted: list[int] = []
        while spans and len(wanted) < ahead:
            start, end = spans.pop(0)
            middle = (start + end) // 2
            if start < middle < end:
                wanted.append(middle)
                spans += [(start, middle), (middle, end)]
        look(wanted)
        while high - low > 1 and (middle := (low + high) // 2) in known and len(trials) < most:
            low, high = (low, middle) if tell(middle).passed else (middle, high)
    return trials, known[high]


def sentence(trials: Sequence[Trial], best: Trial | None, checked: Trial | None, count: int, lift: str) -> str:
    """What was found among `count` nodes, as the program says it."""
    shown = lambda trial: f" (metric {trial.value:.4g})"
    if best is None:
        last = trials[-1]
        return f"even with all {count} nodes in {lift} the gate fails{shown(last)}: it is at fault, not the quantization; lower it"
    if best.lifted == 0:
        text = f"the gate passes with nothing lifted{shown(best)}"
    else:
        text = f"lifting {best.lifted} of {count} nodes to {lift} passes{shown(best)}, after {len(trials)} trials"
    if checked is None or checked.passed:
        return text
    return f"on all samples the plan does not pass{shown(checked)}, though {text}; search on more with `samples`, or with a stricter gate"


def write_plan(nodes: Sequence[str], lift: str, path: Path) -> Path:
    """Writes a precision plan that lifts `nodes`."""
    assignments = [{"node": node, "precision": lift} for node in nodes]
    path.write_text(json.dumps({"format_version": 1, "default": None, "assignments": assignments}, indent=2) + "\n")
    return path
