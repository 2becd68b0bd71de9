"""What one machine offers to workers; asked without loading torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from mtlbench.errors import RequestError

_GPU = re.compile(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)")
_MIG = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


def cpus() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The NVIDIA GPUs that a process may use, as words for ``CUDA_VISIBLE_DEVICES``.

    Raises:
        RequestError: the driver's tool is there but does not answer.
    """
    tool = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if tool is None:
        return ()
    try:
        answer = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RequestError(f"{tool} -L does not answer ({error}). Repair the driver, or use --device cpu.") from error
    present = parse_gpus(answer.stdout) if answer.returncode == 0 else ()
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not present:
        return present
    # As CUDA reads it: everything after the first invalid entry is invisible.
    visible: list[str] = []
    for word in (word.strip() for word in chosen.split(",")):
        if not word or word == "-1":
            break
        visible.append(word)
    return tuple(visible)


def parse_gpus(listing: str) -> tuple[str, ...]:
    """Ids in the output of ``nvidia-smi -L``; a GPU cut into MIG devices gives those instead of itself."""
    found: list[str] = []
    whole: str | None = None
    for line in listing.splitlines():
        if gpu := _GPU.match(line):
            whole = gpu[1]
            found.append(whole)
        elif mig := _MIG.match(line):
            if found and found[-1] == whole:
                found.pop()
            found.append(mig[1])
    return tuple(found)
