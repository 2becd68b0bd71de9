"""A worker that is several processes: torchrun starts one for each device of a cell, all end together.

This process only watches. The first of the others (``mtlbench.workers.rank``) claims, evaluates and publishes like
any worker.
What they say comes over their standard output; that their standard input ends tells them that this process is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mtlbench.files.stop_request import Stop
from mtlbench.workers.arguments import thread_variables
from mtlbench.workers.stacks import ASK

TRIES = 3
"""Ports that are tried."""
TEARDOWN_S = 10.0
"""How long the others may live when one process has ended; then all are killed."""
ASK_AGAIN_S = 1.0
TICK_S = 0.1
_log = logging.getLogger(__name__)


def command(argv: Sequence[str], *, processes: int, port: int) -> list[str]:
    """The command that starts ``processes`` ranks with ``argv``, which meet at ``port`` of this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)]
    launch += ["--max-restarts", "0", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [*launch, "-m", "mtlbench.workers.rank", *argv]


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def serve(
    argv: Sequence[str],
    *,
    processes: int,
    threads: int | None,
    pulse: int | None,
    stop: Stop,
    shard: bool = False,
    ports: Callable[[], int] = free_port,
    build: Callable[..., Sequence[str]] = command,
) -> int:
    """Run a group of processes to its end; gives the exit code.

    Where the port is taken before the processes meet, another one is tried, at most :data:`TRIES`. Signals that ask to
    end are passed on.

    Args:
        argv: Command line of ``mtlbench.workers.rank``.
        threads: CPU threads of each process.
        pulse: Open file for signs of life.
        shard: Whether each process keeps only a part of the backbone.

    Raises:
        Stopped: the worker was asked to end, and the group has.
    """
    for trial in range(1, TRIES + 1):
        port = ports()
        launch = build(argv, processes=processes, port=port)
        with stop.held(), _started(launch, threads=threads, pulse=pulse, shard=shard) as group:
            code = group.watch(stop)
        stop.check()
        if group.met or group.refused or not _taken(port):
            return code
        _log.warning("port %d is taken by another program (try %d of %d)", port, trial, TRIES)
    _log.error("no free port was found in %d tries: the processes of this worker cannot meet", TRIES)
    return 1


@dataclass
class _Group:
    """The processes of one try."""

    process: subprocess.Popen[bytes]
    pulse: int | None
    pids: dict[int, int] = field(default_factory=dict)
    """Rank to process."""
    met: bool = False
    refused: bool = False
    _rest: bytes = b""

    def watch(self, stop: Stop) -> int:
        """Return when all have ended, within :data:`TEARDOWN_S` of the first that did."""
        asked_at, killed_at = 0.0, float("inf")
        while (code := self.process.poll()) is None:
            self._listen()
            now = time.monotonic()
            if stop.asked and now - asked_at > ASK_AGAIN_S:
                asked_at = now
                if not self.met:
                    return 1
                # Torchrun would take SIGTERM for a failure and kill the others; and it is not asked.
                self.signal(signal.SIGINT)
            if any(not _there(pid) for pid in self.pids.values()):
                killed_at = min(killed_at, now + TEARDOWN_S)
            if now > killed_at:
                _log.error("a process of this worker has ended and the others have not: they are killed")
                return 1
        self._listen(wait_s=0)
        return code

    def signal(self, number: int) -> None:
        """Send a signal to every rank."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def end(self) -> None:
        """Kill what is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Torchrun makes each the leader of a session.
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()

    def _listen(self, wait_s: float = TICK_S) -> None:
        assert self.process.stdout is not None
        file = self.process.stdout.fileno()
        while select.select([file], [], [], wait_s)[0]:
            data = os.read(file, 65536)
            if not data:
                time.sleep(wait_s)
                return
            wait_s = 0
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._hear(line)

    def _hear(self, line: bytes) -> None:
        match line.split():
            case [b"rank", rank, pid]:
                self.pids[int(rank)] = int(pid)
            case [b"met"]:
                self.met = True
            case [b"refused"]:
                self.refused = True
            case [b"cell" | b"on" | b"idle", *_] if self.pulse is not None:
                with contextlib.suppress(OSError):
                    os.write(self.pulse, line + b"\n")


@contextlib.contextmanager
def _started(argv: Sequence[str], *, threads: int | None, pulse: int | None, shard: bool) -> Iterator[_Group]:
    """A group that is gone at the end of the block."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= thread_variables(threads)
    if sys.platform == "linux":
        # All are on this machine, whose name need not lead to an address.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if shard:
        # glibc keeps smaller blocks that are given back: as much as all gathered layers together, without this
        environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))
    if pulse is not None:
        os.set_blocking(pulse, False)
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    group = _Group(process, pulse)
    before = signal.getsignal(ASK) if ASK is not None else None
    if ASK is not None:
        signal.signal(ASK, lambda number, frame: group.signal(number))
    try:
        with process:
            try:
                yield group
            finally:
                group.end()
    finally:
        if ASK is not None:
            signal.signal(ASK, before)


def _there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _taken(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
