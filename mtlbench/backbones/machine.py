"""Speed of the device, measured at start; the dtype that follows from it; out-of-memory errors; seeds."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtlbench.api.executor import SHARED_BY
from mtlbench.errors import RequestError

BUDGET_S = 0.02
"""Seconds to measure each dtype, after one product to warm up."""


OTHERS_SHARE, OTHERS_BYTES = 0.05, 2**30
"""Share and bytes of a device's memory that are always in use: the context of each process, what a driver reserves."""


@dataclass(frozen=True)
class Machine:
    """A device and its speed in GFLOP/s of square matrix products."""

    device: str
    name: str
    threads: int
    float32_gflops: float
    bfloat16_gflops: float


def no_gpu_why(proc: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Why torch uses no GPU where the system has an NVIDIA driver; ``None`` where it has none.

    Args:
        proc: The file by which a loaded driver shows itself.
    """
    if not proc.exists():
        return None
    if torch.version.cuda is None:
        return (
            f"an NVIDIA driver is loaded, but torch {torch.__version__} is built without CUDA. Install a build with "
            "CUDA, or say --device cpu."
        )
    return (
        f"an NVIDIA driver is loaded, but torch {torch.__version__} for CUDA {torch.version.cuda} finds no device. Its "
        "driver may be too old for it, or CUDA_VISIBLE_DEVICES hides it; see `nvidia-smi`, or say --device cpu."
    )


_UNFIT = {
    "no kernel image": "torch {torch} has no code for this GPU. It is built for {archs}; install a build for the card.",
    "kernel image is invalid": "torch {torch} has no code for this GPU. It is built for {archs}; install a build for "
    "the card.",
    "driver on your system is too old": "the NVIDIA driver is too old for torch {torch} with CUDA {cuda}. Update the "
    "driver, or install a torch for an older CUDA.",
    "driver version is insufficient": "the NVIDIA driver is too old for torch {torch} with CUDA {cuda}. Update the "
    "driver, or install a torch for an older CUDA.",
    "not compiled with CUDA": "torch {torch} is built without CUDA. Install a build with CUDA, or say --device cpu.",
}
"""Words in an error of torch to what is wrong with this installation and what to do."""


def unfit(error: BaseException) -> str | None:
    """Why this torch cannot compute on this machine's GPU, in one sentence with the fix; ``None`` for other errors."""
    if not isinstance(error, (RuntimeError, AssertionError)):
        return None
    said = next((what for words, what in _UNFIT.items() if words in str(error)), None)
    archs = ", ".join(torch.cuda.get_arch_list()) or "no GPU"
    return None if said is None else said.format(torch=torch.__version__, cuda=torch.version.cuda, archs=archs)


def probe(device: torch.device) -> Machine:
    """Measure the speed of matrix products on ``device`` in float32 and bfloat16, in about 50 ms."""
    on_cpu = device.type == "cpu"
    return Machine(
        device=str(device),
        name=(platform.processor() or platform.machine()) if on_cpu else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        float32_gflops=_rate(device, torch.float32),
        bfloat16_gflops=_rate(device, torch.bfloat16),
    )


def choose_dtype(requested: str, machine: Machine) -> torch.dtype:
    """The requested dtype; ``auto`` is bfloat16 on an accelerator where that was measured to be faster, else float32.

    Raises:
        RequestError: it is unknown.
    """
    match requested:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float16":
            return torch.float16
        case "auto":
            faster = not machine.device.startswith("cpu") and machine.bfloat16_gflops > 1.2 * machine.float32_gflops
            return torch.bfloat16 if faster else torch.float32
    raise RequestError(f"dtype={requested!r} is not known. Known: auto, float32, bfloat16, float16.")


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    size = 384 if device.type == "cpu" else 4096
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    _timed(a, b)
    end = time.perf_counter() + BUDGET_S
    while True:
        best = min(best, _timed(a, b))
        if time.perf_counter() >= end:
            return 2 * size**3 / best / 1e9


def _timed(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds of one product, with the device synchronised before and after."""
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    started = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - started


_PHRASES = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "STATUS_NOT_INITIALIZED")
"""Phrases in errors of CUDA and other accelerators, of torch's CPU allocator, and of cuBLAS and cuDNN; these two cannot
make their handles (``NOT_INITIALIZED``) where no memory is left for them."""


class NoRoom(MemoryError):
    """Memory is too small even for the smallest micro-batch."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means out of memory, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)


def free_memory(device: torch.device) -> None:
    """Release cached memory. Call it outside the ``except`` block, as the error refers to tensors in its frames.

    On a CPU the allocator of glibc gives freed pages back, which it otherwise keeps: resident memory would grow with
    whatever the process did before.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def available_memory(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of host memory that this process may still take; ``None`` where the system does not say."""
    rooms: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        fields = meminfo.read_text().split()
        rooms.append(int(fields[fields.index("MemAvailable:") + 1]) * 1024)
    with suppress(OSError, ValueError):
        most = int((group / "memory.max").read_text())  # "max" where there is no limit
        rooms.append(most - int((group / "memory.current").read_text()))
    return max(0, min(rooms)) if rooms else None


def others_hold(device: torch.device) -> int:
    """Bytes of the device's memory that other programs hold now; 0 where that is no more than a driver needs, or where
    other workers of this run share the device: what they hold is theirs."""
    if device.type != "cuda" or workers_on_device() > 1:
        return 0
    free, total = torch.cuda.mem_get_info(device)
    held = total - free - torch.cuda.memory_reserved(device)
    return held if held > max(OTHERS_SHARE * total, OTHERS_BYTES) else 0


@contextmanager
def tf32_products(on: bool) -> Iterator[None]:
    """Inside, CUDA computes float32 products and convolutions with 10 bits of mantissa, or with all 23 where not
    ``on``, whatever was set around. Other devices have no such unit."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = on
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


CONTEXT_BYTES = 600 * 2**20
"""Memory of a GPU that each process takes for itself, outside of torch's allocator: context, kernels, libraries."""


def share_of(memory: int, *, workers: int) -> int:
    """Bytes of a device with ``memory`` that each of ``workers`` processes may allocate; all of it for one."""
    return memory if workers <= 1 else max(0, memory // workers - CONTEXT_BYTES)


def workers_on_device() -> int:
    """How many workers of this run share the device of this one, itself included."""
    return int(os.environ.get(SHARED_BY, "1"))


def keep_to_share(device: torch.device) -> int:
    """Limit this process to its share of the device, and say how many workers share it.

    Memory then runs out for a cell at the same size whatever runs beside it.
    """
    workers = workers_on_device()
    if workers > 1 and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        # of a device without an index this takes the current one, which is None here and not the device
        torch.cuda.set_per_process_memory_fraction(share_of(total, workers=workers) / total, device.index)
    return workers


def axis_seed(seed: int, axis: str) -> int:
    """A seed in ``[0, 2**63)`` from the SHA-256 of ``seed`` and ``axis``.

    ``axis`` names the purpose: ``data-order``, ``split``, ``dropout``, ``search-order``, ``init/<layer name>``.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{axis}".encode()).digest()[:8], "big") >> 1
