"""What a cell costs, measured: peak memory of this cell alone, parameters, bytes on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlbench.api.record import Costs
from mtlbench.training.progress import TrainingProgress

logger = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """A peak of memory in bytes; ``None`` where earlier cells of the process may have had a higher one."""

    amount: int | None
    kind: str
    """``device`` for an accelerator's allocator, ``process`` for resident memory."""


def reset_peak(device: torch.device) -> bool:
    """Start a new peak; ``False`` when this system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")  # Linux: resets the high-water mark of resident memory
    except OSError:
        logger.warning("peak memory is not measured: %s cannot be written on this system", _CLEAR)
        return False
    return True


def read_peak(device: torch.device, *, was_reset: bool) -> Peak:
    """The peak since :func:`reset_peak`."""
    if device.type == "cuda":
        return Peak(torch.cuda.max_memory_allocated(device), "device")
    if not was_reset:
        return Peak(None, "process")
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return Peak(int(line.split()[1]) * 1024, "process")
    return Peak(None, "process")


def trainable_count(model: nn.Module) -> int:
    """Parameters that require gradients, tied ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def pruned_count(model: nn.Module) -> int:
    """Parameters that require gradients and yet are no part of the result, as modules that prune them say."""
    counts = (getattr(module, "pruned_parameters", None) for module in model.modules())
    return sum(int(count()) for count in counts if callable(count))


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0


def training_costs(done: TrainingProgress, base: Costs | None, *, seconds: float) -> dict[str, Any]:
    """The costs of training by field, and the whole time: what the cell itself did, in ``seconds``, or that of ``base``
    where it took over another cell's training. Whole times then count that training, as if it had been its own."""
    if base is not None:
        names = ("train_seconds", "steps", "train_rows", "train_tokens", "padded_tokens", "tokens_per_second")
        return {**{name: getattr(base, name) for name in names}, "total_seconds": base.train_seconds + seconds}
    return {
        "train_seconds": done.seconds,
        "steps": done.steps,
        "train_rows": done.rows,
        "train_tokens": done.real_tokens,
        "padded_tokens": done.padded_tokens,
        "tokens_per_second": done.real_tokens / done.seconds if done.seconds else 0.0,
        "total_seconds": seconds,
    }
