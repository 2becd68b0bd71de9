"""A worker of several processes: torchrun starts one rank per device of a cell, and all end together.

This process only supervises. Rank 0 (``mtlbench.workers.rank``) claims, evaluates and publishes like any worker.
Ranks report on standard output; end of file on their standard input tells them that this process is gone.
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

from mtlbench.files.stop_request import StopRequest
from mtlbench.workers.arguments import thread_variables
from mtlbench.workers.stacks import STACKS_SIGNAL

TRIES = 3
"""Ports to try."""
TEARDOWN_S = 10.0
"""Seconds that the other ranks may live after one has ended; then all are killed."""
RESEND_S = 1.0
TICK_S = 0.1
_log = logging.getLogger(__name__)


def command(argv: Sequence[str], *, processes: int, port: int) -> list[str]:
    """The torchrun command for ``processes`` ranks with the arguments ``argv``; they connect at a local ``port``."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)]
    launch += ["--max-restarts", "0", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [*launch, "-m", "mtlbench.workers.rank", *argv]


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve(
    argv: Sequence[str],
    *,
    processes: int,
    threads: int | None,
    pulse: int | None,
    stop: StopRequest,
    shard: bool = False,
    ports: Callable[[], int] = free_port,
    build: Callable[..., Sequence[str]] = command,
) -> int:
    """Run a group of processes until it ends; returns the exit code.

    If the port is taken before the processes meet, another one is tried, up to :data:`TRIES`. Stop signals are passed
    on to the ranks.

    Args:
        argv: Command line of ``mtlbench.workers.rank``.
        threads: CPU threads of each process.
        pulse: File descriptor of the heartbeat pipe.
        shard: Whether each process holds only a shard of the backbone.

    Raises:
        Stopped: a stop was requested, and the group has ended.
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
    _log.error("no free port was found in %d tries: the processes of this worker cannot connect", TRIES)
    return 1


@dataclass
class _Group:
    """The processes of one attempt."""

    process: subprocess.Popen[bytes]
    pulse: int | None
    pids: dict[int, int] = field(default_factory=dict)
    """Rank to pid."""
    met: bool = False
    """Whether the ranks have connected."""
    refused: bool = False
    """Whether a rank refused its configuration."""
    _rest: bytes = b""

    def watch(self, stop: StopRequest) -> int:
        """Return when all ranks have ended, at most :data:`TEARDOWN_S` after the first one; returns the exit code."""
        signalled_at, kill_at = 0.0, float("inf")
        while (code := self.process.poll()) is None:
            self._read()
            now = time.monotonic()
            if stop.requested and now - signalled_at > RESEND_S:
                signalled_at = now
                if not self.met:
                    return 1
                # Not to torchrun, and not SIGTERM: it would treat that as a failure and kill the other ranks.
                self.signal(signal.SIGINT)
            if any(not _exists(pid) for pid in self.pids.values()):
                kill_at = min(kill_at, now + TEARDOWN_S)
            if now > kill_at:
                _log.error("a process of this worker has ended and the others have not: killing them")
                return 1
        self._read(wait_s=0)
        return code

    def signal(self, number: int) -> None:
        """Send a signal to every rank."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def end(self) -> None:
        """Kill the remaining processes."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Torchrun makes each the leader of a session.
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()

    def _read(self, wait_s: float = TICK_S) -> None:
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
                self._receive(line)

    def _receive(self, line: bytes) -> None:
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
    """Start a group; its processes are killed at the end of the block."""
    environ = dict(os.environ)
    if threads is not None:
        environ |= thread_variables(threads)
    if sys.platform == "linux":
        # All ranks are on this machine, whose host name need not resolve.
        environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if shard:
        # Without this, glibc keeps freed blocks: as much memory as all gathered layers together.
        environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))
    if pulse is not None:
        os.set_blocking(pulse, False)
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, start_new_session=True)
    group = _Group(process, pulse)
    before = signal.getsignal(STACKS_SIGNAL) if STACKS_SIGNAL is not None else None
    if STACKS_SIGNAL is not None:
        signal.signal(STACKS_SIGNAL, lambda number, frame: group.signal(number))
    try:
        with process:
            try:
                yield group
            finally:
                group.end()
    finally:
        if STACKS_SIGNAL is not None:
            signal.signal(STACKS_SIGNAL, before)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
