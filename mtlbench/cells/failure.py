"""An exception to one failure class and one sentence that says what to do next."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError

from mtlbench.api.cell import Cell
from mtlbench.api.record import Failure, FailureClass
from mtlbench.backbones.machine import is_out_of_memory, others_hold, unfit
from mtlbench.errors import DeviceBusy, PluginError, RequestError, StoreError
from mtlbench.files.sealed import Damaged
from mtlbench.files.temporary import disk_error
from mtlbench.plugins import offer_of
from mtlbench.text import memory
from mtlbench.training.loop import DivergedError

_NEXT: dict[FailureClass, str] = {
    "oom": "Give the cell less at once: a smaller --micro-batch, --max-length, or --checkpointing.",
    "user": "Correct the request as the message says and run the same command again.",
    "disk": "Free space or raise the quota of the run folder, then run the same command again.",
    "corrupt": "Remove or restore the file that the message names, then run the same command again.",
    "plugin": "The failure is in the method's own code: `mtlbench check` finds most such faults in seconds. If it is "
    "not yours, report it to its authors with the frames of this record.",
    "device": "The worker ended, because its process cannot use the device any more, and the cell was tried again in a "
    "new one; run the same command again with CUDA_LAUNCH_BLOCKING=1 set, which makes the frames show the operation.",
    "infra": "Run the same command again; if it fails the same way, report it with the frames of this record.",
}
_LAYERS = tuple(f"mtlbench.nn.{part}" for part in ("blocks", "linears", "low_rank", "prefixes", "soft_prompts"))
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class GuardError(Exception):
    """A check made on every cell did not hold, so its scores cannot be trusted."""


def failure_of(error: BaseException, cell: Cell, *, kind: FailureClass | None = None) -> Failure:
    """The class, message and next step of an exception raised while running ``cell``; ``kind`` is a class known."""
    kind = kind or _class_of(error, cell)
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SystemExit):
        message = f"SystemExit: sys.exit({error.code!r}) was called"
    if kind in ("plugin", "oom") and (place := _place_in_method(error, cell)):
        message += f" ({place})"
    if _beyond_embedding(error):
        message += (
            ". A token or a position has no row in the embeddings of the backbone: a row, with the tokens that the "
            "method puts before it, is longer than its positions. Lower --max-length."
        )
    if (reason := unfit(error)) is not None:
        message += f". {reason[0].upper()}{reason[1:]}"
    return Failure(
        kind=kind,
        message=message,
        next_step=_NEXT[kind],
        frames=tuple(f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames),
    )


def refusal(reason: str) -> Failure:
    """Why a cell is skipped: its method refuses it."""
    return Failure(kind="refused", message=reason, next_step="Change the setting or leave the method out.")


def _class_of(error: BaseException, cell: Cell) -> FailureClass:
    if lost(error) is not None:
        return "device"
    if is_out_of_memory(error):
        return "oom"
    if (isinstance(error, OSError) and error.errno in _DISK) or disk_error(error, Path(), needed=0):
        return "disk"
    if isinstance(error, (StoreError, Damaged, SafetensorError)):
        return "corrupt"
    if isinstance(error, (RequestError, DivergedError)) or _beyond_embedding(error) or unfit(error) is not None:
        return "user"
    if isinstance(error, (PluginError, GuardError, SystemExit)):
        return "plugin"
    return "plugin" if _own_steps(error, cell) or _in_layers(error) else "infra"


def _beyond_embedding(error: BaseException) -> bool:
    """Whether an embedding of the backbone itself, in code of transformers, has no row for an index."""
    if not isinstance(error, IndexError) or "index out of range in self" not in str(error):
        return False
    step, last = error.__traceback__, ""
    while step is not None:
        name = str(step.tb_frame.f_globals.get("__name__", ""))
        last = last if name.startswith("torch.") else name
        step = step.tb_next
    return last.startswith("transformers.")


def _steps(error: BaseException) -> Iterator[tuple[str, traceback.FrameSummary]]:
    """Module and place of each step of the traceback, the outermost first."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        yield str(frame.f_globals.get("__name__", "")), traceback.FrameSummary(code.co_filename, line, code.co_name)


def _own_steps(error: BaseException, cell: Cell) -> list[traceback.FrameSummary]:
    """The steps of the traceback in the packages that own the cell's method."""
    packages = _packages_of(cell)
    return [step for module, step in _steps(error) if module.partition(".")[0] in packages]


def _in_layers(error: BaseException) -> bool:
    """Whether a layer that methods are made of raised it, as one does that gets tensors of wrong shapes."""
    ours = [module for module, _ in _steps(error) if module.partition(".")[0] == "mtlbench"]
    return bool(ours) and ours[-1].startswith(_LAYERS)


def _packages_of(cell: Cell) -> set[str]:
    packages = set()
    for name in cell.method.split("+"):
        with contextlib.suppress(PluginError, RequestError, metadata.PackageNotFoundError):
            packages.add(offer_of("methods", name).module.partition(".")[0])
    return packages


def _place_in_method(error: BaseException, cell: Cell) -> str:
    """``file.py:31 in attach``: the last step in the method's own packages; empty where there is none."""
    own = _own_steps(error, cell)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}" if own else ""


_DEVICE_ERRORS = (
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
    "contained error",
    "Invalid access of peer GPU memory",
    "memory address leak",
    "context is destroyed",
    "busy or unavailable",
    "GPU is lost",
    "fallen off the bus",
    "driver shutting down",
    "initialization error",
    "system not yet initialized",
    "fabric not ready",
    "invalid device ordinal",
    "No CUDA GPUs are available",
    "CUDA unknown error",
    "CUDA error: unknown error",
    "HIP error: unknown error",
    "STATUS_EXECUTION_FAILED",
    "STATUS_INTERNAL_ERROR",
)
"""What CUDA, HIP and the driver call errors after which a process must be ended (CUDA runtime API, `cudaError_t`), or
which say that the device cannot be had; cuBLAS and cuDNN report the former as their own failure."""


def lost(error: BaseException) -> BaseException | None:
    """The error behind ``error``, or itself, that says that the state of the device is lost; ``None`` if none does."""
    behind: BaseException | None = error
    seen: set[int] = set()  # errors may stand behind each other in a circle
    while behind is not None and id(behind) not in seen:
        if isinstance(behind, RuntimeError) and any(name in str(behind) for name in _DEVICE_ERRORS):
            return behind
        seen.add(id(behind))
        behind = behind.__cause__ or behind.__context__
    return None


def lost_unseen(device: torch.device) -> BaseException | None:
    """The error that waits on the device for the next call, as kernels fail after the call that started them.

    Whatever waiting for the device raises after a failure says that its context is gone.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return error
    return None


def check_others(error: BaseException, device: torch.device, *, steps: int) -> None:
    """Tell a device that others have filled from a cell that is too large.

    Raises:
        DeviceBusy: memory ran out before the first step, and other programs hold some of it.
    """
    if steps or not is_out_of_memory(error) or not (held := others_hold(device)):
        return
    raise DeviceBusy(
        f"memory ran out before the first step, and other programs hold {memory(held)} of the device. Its cells are "
        "left for other devices; run the same command again once it is free."
    ) from error
