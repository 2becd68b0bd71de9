"""Out of memory: how it shows, and what is given back before the same work is tried in smaller parts."""

from __future__ import annotations

import gc

import torch

_WORDS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""CUDA and other accelerators; torch's allocator of the processor; cuBLAS and cuDNN."""


class NoRoom(MemoryError):
    """There is too little memory even for the smallest part."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def free_memory(device: torch.device) -> None:
    """Give back what the allocator keeps. Call it outside the ``except``: the error holds the tensors of its frames."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
