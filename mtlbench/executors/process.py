"""One worker process: started in its own process group, ended together with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mtlbench.api.executor import FOREIGN_BYTES, SHARED_BY
from mtlbench.executors.slots import DeviceSlot, release
from mtlbench.executors.watch import Heartbeat
from mtlbench.files.owner import import_variables
from mtlbench.store import Claim
from mtlbench.workers.arguments import WorkerArguments, thread_variables
from mtlbench.workers.stacks import STACKS_SIGNAL

MARK = "MTLBENCH_WORKER"
"""Environment variable that a worker's children inherit; it identifies those that left the process group."""
DUMP_S = 2.0
"""Seconds that a worker may take to write its stacks."""


@dataclass
class WorkerProcess:
    """A started worker."""

    process: subprocess.Popen[bytes]
    slot: DeviceSlot
    mark: str
    heartbeat: Heartbeat
    done: int
    """Number of cells with a record when it was started."""
    leases: tuple[int, ...] = ()
    kill_at: float | None = None
    """Monotonic time at which it is killed; set when it exceeded a limit and was sent SIGTERM."""
    retired: bool = False
    """Whether it was sent SIGTERM because cells of another width need its devices."""
    claim: Claim | None = field(default=None)
    """The claim under which its cell was recorded as timed out."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self) -> bool:
        """Whether it has ended; not reaped where the system allows, so that its pid is not reused."""
        if not hasattr(os, "waitid"):
            return self.process.poll() is not None
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def is_or_started(self, pid: int) -> bool:
        """Whether ``pid`` is this process or a child: a cell on several devices has several processes."""
        return pid == self.pid or pid in marked(self.mark)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def dump_stacks(self, path: Path) -> str:
        """Make it append the stacks of its threads to ``path``, and return them; works also while it holds the GIL."""
        before = _size(path)
        if STACKS_SIGNAL is None or not path.exists():
            return ""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.process.pid, STACKS_SIGNAL)
        deadline, seen = time.monotonic() + DUMP_S, before
        while time.monotonic() < deadline:
            time.sleep(0.1)
            size = _size(path)
            if size > before and size == seen:
                break
            seen = size
        with path.open("rb") as file:
            file.seek(before)
            return file.read().decode(errors="replace")

    def end(self) -> None:
        """Kill it and its remaining children; also needed where the worker itself has ended."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        release(self.leases)
        self.leases = ()
        with contextlib.suppress(OSError):
            os.close(self.heartbeat.file)

    def ending(self) -> str:
        """How it ended: signal or exit code."""
        code = self.process.returncode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


def spawn(
    command: Sequence[str],
    arguments: WorkerArguments,
    *,
    slot: DeviceSlot,
    log: Path,
    done: int,
    base: Mapping[str, str],
    directory: Path | None = None,
    leases: tuple[int, ...] = (),
) -> WorkerProcess:
    """Start a worker: ``command`` with ``arguments`` plus device, threads, parent and heartbeat pipe.

    It inherits the environment ``base`` except for the threads and devices of ``slot``, and the open lock files
    ``leases``, so that its devices stay locked as long as it lives.
    """
    mark = uuid.uuid4().hex
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    complete = replace(arguments, device=slot.device, threads=slot.threads, parent=os.getpid(), pulse=write_end)
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, *complete.argv()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**_environment(slot, base, module="-m" in command), MARK: mark},
                pass_fds=(write_end, *leases),
                start_new_session=True,
            )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    heartbeat = Heartbeat(file=read_end, last=time.monotonic())
    return WorkerProcess(process=process, slot=slot, mark=mark, heartbeat=heartbeat, done=done, leases=leases)


def marked(mark: str) -> list[int]:
    """Pids of processes with this mark in their environment (needs ``/proc``); torchrun's ranks leave the group."""
    variable, pids = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
    return pids


def end_all(workers: Iterable[WorkerProcess]) -> None:
    """Kill workers and their children; all are signalled before the first is waited for."""
    workers = list(workers)
    for worker in workers:
        worker.signal(signal.SIGKILL)
    for worker in workers:
        worker.end()


def _environment(slot: DeviceSlot, base: Mapping[str, str], *, module: bool) -> dict[str, str]:
    told = {FOREIGN_BYTES: str(slot.foreign)} if slot.foreign else {}
    if slot.shared_by > 1:
        told[SHARED_BY] = str(slot.shared_by)
    return {
        **(_allocator(base) if slot.device == "cuda" else {}),
        # Spinning OpenMP threads make two busy processes on two cores an order of magnitude slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        **base,
        **(import_variables() if module else {}),  # a script finds its own folder
        **thread_variables(slot.threads),
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": slot.visible,
        **told,
    }


def _allocator(base: Mapping[str, str]) -> dict[str, str]:
    """Segments of device memory that grow: every step has other lengths, which would leave gaps between fixed ones."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second until torch 2.9
    return {} if any(name in base for name in names) else dict.fromkeys(names, "expandable_segments:True")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
