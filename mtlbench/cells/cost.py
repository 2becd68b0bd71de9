"""What a cell costs, measured: peak memory of this cell alone, parameters, bytes on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

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
