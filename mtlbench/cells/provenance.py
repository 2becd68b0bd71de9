"""What a record holds beside scores and costs: how training went, what the model reports, where it ran."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mtlbench.api.executor import FOREIGN_BYTES
from mtlbench.api.record import BalanceNote, Notes, Provenance, Record
from mtlbench.api.row_checks import RowCheck
from mtlbench.backbones.backbone import Backbone
from mtlbench.backbones.layers import expert_weights
from mtlbench.cells.bench import Bench
from mtlbench.compat import attention_of
from mtlbench.nn.attachments import states_of
from mtlbench.nn.blocks.sublayers import AfterBlock
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.progress import TrainingProgress

_PACKAGES = ("mtlbench", "torch", "transformers", "peft", "lm_eval", "datasets", "numpy")


_OF_TRAINING = [
    "parameters_at_once",
    "best_step",
    "stopped_early",
    "stop_losses",
    "stop_scores",
    "validation_examples",
    "row_layout",
    "task_weighting",
    "balance",
    "tasks_per_step",
    "largest_share_of_step",
    "rows_per_task",
    "tokens_per_task",
    "stages",
]


def notes_of(
    model: nn.Module,
    done: TrainingProgress,
    tasks: Sequence[str],
    *,
    attached: int,
    checks: Mapping[str, RowCheck],
    stop: Sequence[TokenRow],
) -> Notes:
    """The notes of a cell that trained the full names ``tasks`` and ``attached`` so many parameters.

    ``checks`` are what was counted of the rows of each task, ``stop`` is the early-stopping split. Modules and
    attached states with a method ``notes`` add their own.
    """
    notes: Notes = {
        "parameters_attached": attached,
        "parameters_at_once": done.parameters,
        "best_step": done.best_step,
        "stopped_early": done.stopped_early,
        "stop_losses": done.stop_losses,
        "row_layout": done.row_layout,
        "task_weighting": done.task_weighting,
        "tasks_per_step": done.tasks_per_step,
        "largest_share_of_step": done.largest_share_of_step,
        "rows_per_task": {tasks[i]: n for i, n in sorted(done.rows_per_task.items())},
        "row_checks": {task: check.to_json() for task, check in checks.items()},
        "tokens_per_task": {tasks[i]: n for i, n in sorted(done.tokens_per_task.items())},
    }
    if done.balance is not None:
        notes["balance"] = _balance_note(done.balance, tasks)
    if done.stop_scores:
        notes["stop_scores"] = done.stop_scores
    if done.steps:
        of_task = Counter(row.task for row in stop)
        notes["validation_examples"] = {task: of_task[at] for at, task in enumerate(tasks)}
    if len(done.stages) > 1:
        notes["stages"] = [
            {
                "tasks": [tasks[task] for task in stage.tasks],
                "steps": [stage.first_step, stage.steps],
                "best_step": stage.best_step,
                "stopped_early": stage.stopped_early,
            }
            for stage in done.stages
        ]
    for module in (*model.modules(), *states_of(model)):
        reported = getattr(module, "notes", None)
        if callable(reported):
            notes = cast(Notes, {**notes, **reported()})
    return notes


def inherited(base: Record) -> Notes:
    """The notes of ``base`` on its training, for a cell that took it over."""
    return cast(Notes, {name: value for name, value in base.notes.items() if name in _OF_TRAINING})


def _balance_note(summary: Mapping[str, Any], tasks: Sequence[str]) -> BalanceNote:
    note: BalanceNote = {
        "balancer": summary["balancer"],
        "weights": dict(zip(tasks, summary["weights"], strict=True)),
    }
    if "cosines" in summary:
        note["cosines"] = {
            task: dict(zip(tasks, line, strict=True)) for task, line in zip(tasks, summary["cosines"], strict=True)
        }
    return note


def backbone_notes(model: nn.Module, backbone: Backbone, *, requested: str) -> Notes:
    """What the backbone with a method attached does not allow: torch's attention kernel, adapters in experts."""
    notes: Notes = {}
    host: Any = backbone.model
    kind = attention_of(host.get_decoder().config)
    if requested == "auto" and kind != "sdpa":
        notes["attention"] = f"{kind}, as {type(host).__name__} has no sdpa"
    trained = [name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("mtlbench_")]
    experts = [p for p in expert_weights(model).values() if not p.requires_grad]
    if trained and experts and not any(isinstance(module, AfterBlock) for module in model.modules()):
        share = sum(p.numel() for p in experts) / max(1, backbone.parameters)
        notes["not_adapted"] = f"experts of its mixture-of-experts layers, {share:.0%} of the backbone"
    return notes


def provenance_of(bench: Bench) -> Provenance:
    """Versions, system, process and machine."""
    provenance: Provenance = {
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "pid": os.getpid(),
        "device": bench.machine.name,
        "threads": bench.machine.threads,
        "float32_gflops": round(bench.machine.float32_gflops, 1),
        "bfloat16_gflops": round(bench.machine.bfloat16_gflops, 1),
    }
    provenance |= gpu_facts(bench.device)
    if bench.device_why is not None:
        provenance["device_why"] = bench.device_why
    if bench.workers_per_device > 1:
        provenance["workers_per_device"] = bench.workers_per_device
    if foreign := os.environ.get(FOREIGN_BYTES):
        provenance["foreign_device_bytes"] = int(foreign)
    return provenance


def gpu_facts(device: torch.device, version: Path = Path("/proc/driver/nvidia/version")) -> Provenance:
    """UUID, driver and CUDA version of an accelerator; nothing of a CPU. ``version`` is the file of the driver."""
    facts: Provenance = {}
    if device.type != "cuda":
        return facts
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is not None:
        facts["gpu_uuid"] = f"GPU-{uuid}"
    with suppress(OSError):
        if found := re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", version.read_text()):
            facts["driver"] = found[1]
    if (cuda := torch.version.cuda) is not None:
        facts["cuda"] = cuda
    return facts
