"""One worker process: started in a group of its own, asked for its stacks, ended with everything it started."""

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

from mtlbench.api.executor import FOREIGN_BYTES
from mtlbench.executors.slots import DeviceSlot, give_back
from mtlbench.executors.watch import Heartbeat
from mtlbench.store import Claim
from mtlbench.workers.arguments import WorkerArguments, thread_variables
from mtlbench.workers.stacks import ASK

MARK = "MTLBENCH_WORKER"
"""Environment variable that a worker's children inherit: it finds those that left the process group."""
DUMP_S = 2.0
"""How long a worker may take to write its stacks."""


@dataclass
class WorkerProcess:
    """A started worker."""

    process: subprocess.Popen[bytes]
    slot: DeviceSlot
    mark: str
    signs: Heartbeat
    done: int
    """Cells with a record when it was started."""
    leases: tuple[int, ...] = ()
    given_up: float | None = None
    """When it is killed after it was asked to end because of a limit, in seconds of the monotonic clock."""
    retired: bool = False
    """Asked to end because its devices are of more use elsewhere."""
    claim: Claim | None = field(default=None)
    """The claim under which its cell was recorded from outside."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self) -> bool:
        """Whether it has ended; where the system can, it is left unreaped, so that its number stays its own."""
        if not hasattr(os, "waitid"):
            return self.process.poll() is not None
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def is_or_started(self, pid: int) -> bool:
        """Whether ``pid`` is this process or one that it started: a cell on several devices has several."""
        return pid == self.pid or pid in marked(self.mark)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def ask_stacks(self, path: Path) -> str:
        """Make it write the stacks of its threads to ``path``, which works also while it holds Python's lock."""
        before = _size(path)
        if ASK is None or not path.exists():
            return ""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.process.pid, ASK)
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
        """Kill what is left of it and of what it started, also where the worker itself has ended."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        give_back(self.leases)
        self.leases = ()
        with contextlib.suppress(OSError):
            os.close(self.signs.file)

    def ending(self) -> str:
        """How it ended, in words."""
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
    """Start a worker: ``command`` with ``arguments``, to which device, threads, parent and pipe are added.

    ``base`` is the environment it gets, but for the threads and devices of ``slot``; ``leases`` stay open in it, so
    that its devices are held as long as it lives.
    """
    mark = uuid.uuid4().hex
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    complete = replace(arguments, device=slot.device, threads=slot.threads, parent=os.getpid(), pulse=theirs)
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, *complete.argv()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**_environment(slot, base), MARK: mark},
                pass_fds=(theirs, *leases),
                start_new_session=True,
            )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    signs = Heartbeat(file=ours, last=time.monotonic())
    return WorkerProcess(process=process, slot=slot, mark=mark, signs=signs, done=done, leases=leases)


def marked(mark: str) -> list[int]:
    """Living processes with this mark in their environment, where ``/proc`` tells; torchrun's ranks leave the group."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def end_all(workers: Iterable[WorkerProcess]) -> None:
    """Kill workers and what they started; all are signalled before the first is waited for."""
    workers = list(workers)
    for worker in workers:
        worker.signal(signal.SIGKILL)
    for worker in workers:
        worker.end()


def _environment(slot: DeviceSlot, base: Mapping[str, str]) -> dict[str, str]:
    foreign = {FOREIGN_BYTES: str(slot.foreign)} if slot.foreign else {}
    return {
        # Threads that spin while they wait make two busy processes on two cores an order of magnitude slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        **base,
        **thread_variables(slot.threads),
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": slot.visible,
        **foreign,
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
