"""A device whose state is lost: after some errors of the driver, nothing that a process asks of it works any more."""

from __future__ import annotations

import torch

_WORDS = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "not supported on global/shared address space",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ECC",
    "uncorrectable NVLink",
    "context is destroyed",
    "CUDA error: unknown error",
    "HIP error: unknown error",
    "STATUS_EXECUTION_FAILED",
)
"""What CUDA and HIP call the errors that no later call of the process survives (CUDA runtime API, `cudaError_t`: "the
process must be terminated"); cuBLAS and cuDNN report them as their own failure to execute."""


def lost(error: BaseException) -> BaseException | None:
    """The error behind ``error``, or itself, that says that the state of the device is lost; ``None`` if none does."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and any(word in str(seen) for word in _WORDS):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def lost_unseen(device: torch.device) -> BaseException | None:
    """The error that waits on the device for the next call, as kernels fail after the call that started them."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return lost(error)
    return None
