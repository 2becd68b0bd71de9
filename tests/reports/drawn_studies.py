"""Studies with something to draw in every chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from record_builder import COSTS, PROTOCOL, cell, done, failed, skipped

import mtlbench
from mtlbench.api.record import Record
from mtlbench.api.study import Study
from mtlbench.results.study import study_of

TASKS = ("glue/rte", "glue/sst2", "glue/qnli")
INSTALLED = {"mtlbench": mtlbench.__version__}
"""What our own methods' records carry, so that the defaults of their settings are known."""
OPERATIONS = ("gelu-drop0.1", "relu-drop0.1", "tanh-drop0.1", "tanh-drop0.5")


def row(
    method: str, average: float, *, seeds: Sequence[int] = (0, 1), tasks: tuple[str, ...] = TASKS, **changes: Any
) -> list[Record]:
    """Records of a variant whose score is ``average`` on every task, plus the seed."""
    settings = changes.pop("settings", {})
    costs = replace(COSTS, **changes.pop("costs", {}))
    of = {"settings": settings, "tasks": tasks, "plugins": changes.pop("plugins", INSTALLED)}
    of |= {name: changes.pop(name) for name in ("model", "protocol") if name in changes}
    return [done(cell(method, s, **of), *[average + s] * len(tasks), costs=costs, **changes) for s in seeds]


def trajectory(layers: int = 2) -> dict[str, Any]:
    """Notes of a search that begins with four operations and ends with the third."""
    mixtures = [dict(zip(OPERATIONS, (0.1, 0.2, 0.4, 0.3), strict=True))] * layers
    kept = [{"relu-drop0.1": 0.3, "tanh-drop0.1": 0.7}] * layers
    return {
        "architecture": [["tanh-drop0.1"]] * layers,
        "trajectory": [
            {"step": 5, "keep": 2, "entropy": 0.92, "mixtures": mixtures},
            {"step": 9, "keep": 1, "entropy": 0.88, "mixtures": kept},
        ],
    }


def steps(key: str) -> list[Mapping[str, Any]]:
    """A step log with lines that no chart can use."""
    lines: list[Mapping[str, Any]] = [{"total": 100}, {"step": "x", "loss": 1.0}, {"step": 1, "loss": None, "tasks": 3}]
    for step in range(1, 101):
        loss = 3 * math.exp(-step / 30) + 0.5
        lines.append({"step": step, "loss": loss, "tasks": dict.fromkeys(TASKS, loss * 1.1), "seconds": step})
    return lines


def whole() -> Study:
    """A row for every chart, and rows that failed, were skipped and are missing."""
    search = {"notes": {"prefix_nas": trajectory(), "stop_losses": [[50, 0.9], [100, 0.7]]}}
    records = [
        *row("base", 50.0, costs={"trainable_parameters": 0, "train_seconds": 0.0, "tokens_per_second": 0.0}),
        *row("lora", 70.0, costs={"trainable_parameters": 160_000, "peak_memory": 600 * 2**20}),
        *row("lora", 71.0, settings={"rank": 4}, costs={"trainable_parameters": 40_000, "peak_memory": 590 * 2**20}),
        *row("lora", 69.0, settings={"rank": 64}, costs={"trainable_parameters": 640_000, "peak_memory": 700 * 2**20}),
        *row("lora", 68.0, settings={"target": "attention"}),
        *row("multilora", 72.0, settings={"rank": 8}),
        *row("multilora", 73.0, settings={"rank": 16}),
        *row("peml", 74.0, costs={"trainable_parameters": 400_000, "train_seconds": 90.0}, **search),
        failed(cell("mtl_lora", tasks=TASKS, plugins=INSTALLED)),
        skipped(cell("moelora", tasks=TASKS, plugins=INSTALLED)),
    ]
    missing = [cell("molora", tasks=TASKS, plugins=INSTALLED)]
    return study_of(records, expected=missing, steps=steps)


def several() -> Study:
    """Two tables, one of them of training rows."""
    other = replace(PROTOCOL, steps=50, eval_from_train=0.2)
    return study_of([*row("lora", 70.0), *row("lora", 60.0, protocol=other), *row("mtl_lora", 61.0, protocol=other)])


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;$x^2$\\frac"


def hostile() -> Study:
    """Names, settings, tasks, messages and notes that try to become markup, script or formulas."""
    tasks = (f"{HOSTILE}/one", "suite/two")
    notes = {HOSTILE: HOSTILE, "prefix_nas": {"by_task": {HOSTILE: trajectory(1)}}}
    told = {"tasks": tasks, "model": HOSTILE, "plugins": {HOSTILE: HOSTILE}, "settings": {HOSTILE: HOSTILE}}
    records = [
        done(cell(f"m{HOSTILE}", s, **told), 60.0, 50.0 + s, notes=notes, provenance={HOSTILE: {"a": HOSTILE}})
        for s in (0, 1)
    ]
    records += [done(cell("$a_$", s, **{**told, "settings": {"k": s}}), 50.0, 40.0) for s in (0, 1)]
    broken = failed(cell("bad", **told), message=f"{HOSTILE}\n\x00\ud800\x1b[31m", next_step=HOSTILE)
    return study_of([*records, broken], steps=lambda key: [{"step": 1, "loss": 2.0, "tasks": {HOSTILE: 1.0}}])
