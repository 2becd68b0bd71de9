"""Workers as jobs of a Slurm cluster, submitted as an array through submitit."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from mtlbench.api.executor import Executor, Launch, Workers
from mtlbench.api.hooks import hookimpl
from mtlbench.errors import RequestError
from mtlbench.executors.cluster import WorkerDemand
from mtlbench.executors.node import Node, NodeShare, shares_of
from mtlbench.store import RunFolder

SECOND_SIGNAL_S = 60.0
"""Seconds within which a preempted job gets its second signal."""
TRIES = 3
"""Attempts at a submission that Slurm refuses."""
LOST_S = 600.0
"""A job that Slurm has not listed for this many seconds counts as ended."""
_ACTIVE = (
    "PENDING",
    "RUNNING",
    "REQUEUED",
    "REQUEUE",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "STAGE_OUT",
    "RESIZING",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlurmExecutor(Executor):
    """One job per worker, one job array per width. A job that is preempted or reaches its time limit writes a
    checkpoint and is requeued."""

    name: ClassVar[str] = "slurm"
    settings: ClassVar[tuple[str, ...]] = (
        "array", "partition", "account", "qos", "constraint", "gres", "time", "mem", "cpus", "warning", "requeues",
        "poll",
    )  # fmt: skip
    array: int = 4
    """Limit on jobs, unless ``--workers`` is given."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    """GPU type as Slurm names it, such as ``gpu:h100``; the number comes from ``--devices-per-cell``."""
    time: int = 60
    """Time limit of a job in minutes."""
    mem: int | None = None
    """Memory of a job in GB."""
    cpus: int = 4
    """CPU cores of a job."""
    warning: int = 90
    """Seconds before the time limit at which a job is signalled."""
    requeues: int = 20
    """How often a job that reached its time limit is requeued."""
    poll: float = 30.0
    """Seconds between two queries to the scheduler."""
    command: tuple[str, ...] = (sys.executable, "-m", "mtlbench.workers.worker")

    def start(self, launch: Launch) -> Workers:
        """Submit the jobs; jobs of an earlier command that still wait or run are reused.

        Raises:
            RequestError: submitit is not installed, this is no Slurm machine, or Slurm refuses the jobs.
        """
        self.check(launch.device)
        return SlurmWorkers(self, launch, submitit=_submitit())

    def check(self, device: str) -> None:
        """Reject a machine without submitit or Slurm's commands."""
        _submitit()
        for tool in ("sbatch", "srun", "sacct", "scontrol", "scancel"):
            if shutil.which(tool) is None:
                raise RequestError(
                    f"--executor slurm: there is no {tool!r} on PATH. Run the command on a login node of the cluster, "
                    "or use --executor local."
                )


@dataclass(frozen=True)
class _Sent:
    """A submitted job, as listed in the run folder."""

    job: str
    request: str
    width: int
    token: str


@dataclass
class SlurmWorkers(Workers):
    """The jobs of one launch."""

    executor: SlurmExecutor
    launch: Launch
    submitit: Any = field(kw_only=True)

    def __post_init__(self) -> None:
        self._folder = RunFolder(self.launch.folder).path.resolve() / "slurm"
        self._folder.mkdir(exist_ok=True)
        self._demand = WorkerDemand(self.launch, self.launch.workers or self.executor.array)
        self._watcher = self.submitit.SlurmJob.watcher
        self._watcher.delay_s = self.executor.poll
        self._last_listed: dict[str, float] = {}
        """Job id to the monotonic time at which Slurm last listed it."""
        self._jobs: dict[str, _Sent] = {}
        self._ended: list[str] = []
        earlier = [sent for sent in _read_sent(self._folder) if sent.request == self.launch.request]
        for sent in earlier:
            self._watcher.register_job(sent.job)
        for sent in earlier:
            if self._state(sent.job, fresh=True) not in _ACTIVE:
                self._ended.append(sent.job)
            else:
                _log.info("reusing job %s of an earlier command, which still waits or runs", sent.job)
                self._jobs[sent.job] = sent
        self._next_number = len(earlier)
        self._fill()

    def alive(self) -> int:
        """How many jobs wait or run, after replacing those that were lost."""
        for sent in list(self._jobs.values()):
            if self._active(sent.job):
                continue
            del self._jobs[sent.job]
            self._ended.append(sent.job)
            if self._demand.queue.demand()[sent.width]:
                what = f"job {sent.job} ended ({self._state(sent.job)}) with cells left"
                if self._demand.may_restart(what):
                    self._fill()
        if self._demand.grew():
            self._fill()
        if self._jobs and self._demand.done():
            return sum(self._state(job) != "PENDING" for job in self._jobs)
        return len(self._jobs)

    def stop(self, *, grace_s: float) -> None:
        """End all jobs: requested by a file for ``grace_s`` seconds, then cancelled; pending ones at once."""
        jobs, self._jobs = dict(self._jobs), {}
        for sent in jobs.values():
            _stop_file(self._folder, sent.token).write_text(str(grace_s))
        deadline = time.monotonic() + grace_s
        active = [job for job in jobs if self._active(job) and self._state(job) != "PENDING"]
        try:
            while active and time.monotonic() < deadline:
                time.sleep(0.2)
                active = [job for job in active if not self._result(job).exists()]
        finally:
            self._cancel(list(jobs))

    def _cancel(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            if self._active(job) and not self._result(job).exists():
                self.submitit.SlurmJob(folder=self._folder, job_id=job).cancel(check=False)
        # submitit passes its payload to a job as a pickle; remove them all.
        for job in [*self._ended, *jobs]:
            for path in self._folder.glob(f"{job}_*.pkl"):
                path.unlink(missing_ok=True)

    # Job states

    def _active(self, job: str) -> bool:
        if self._result(job).exists():
            return False
        state = self._state(job)
        now = time.monotonic()
        if state in _ACTIVE:
            self._last_listed[job] = now
            return True
        if state != "UNKNOWN":
            return False
        # Not listed yet, or no longer.
        return now - self._last_listed.setdefault(job, now) < LOST_S

    def _state(self, job: str, *, fresh: bool = False) -> str:
        fields: list[str] = str(self._watcher.get_state(job, mode="force" if fresh else "standard")).split()
        return fields[0].rstrip("+") if fields else "UNKNOWN"

    def _result(self, job: str) -> Path:
        path: Path = self.submitit.core.utils.JobPaths(self._folder, job_id=job).result_pickle
        return path

    # Submitting

    def _fill(self) -> None:
        counts = self._demand.widths(Counter(sent.width for sent in self._jobs.values()))
        for width, count in counts.items():
            shares = shares_of(self.launch, {width: count}, command=self.executor.command, first=self._next_number)
            self._next_number += count
            for sent in self._submit(shares, width=width):
                self._jobs[sent.job] = sent

    def _submit(self, shares: Sequence[NodeShare], *, width: int) -> list[_Sent]:
        """Submit one array, with a unique job name."""
        token = uuid.uuid4().hex[:12]
        jobs = [_Job(share, stop=_stop_file(self._folder, token), warning_s=self.executor.warning) for share in shares]
        executor = self._executor(token, width=width)
        for attempt in range(1, TRIES + 1):
            try:
                ids = [str(job.job_id) for job in executor.submit_array(jobs)]
                break
            except (self.submitit.core.utils.FailedJobError, OSError) as error:
                refused = str(error).strip().splitlines()
                if attempt == TRIES:
                    raise RequestError(
                        f"Slurm refused the jobs {TRIES} times: {refused[-1] if refused else error}. Correct the "
                        "settings of --executor 'slurm[...]', or try again later."
                    ) from error
                _log.warning("Slurm refused the jobs (%s): retrying", refused[-1] if refused else error)
                time.sleep(2**attempt / 2)
        sent = [_Sent(job=job, request=self.launch.request, width=width, token=token) for job in ids]
        with (self._folder / "jobs.jsonl").open("a") as file:
            file.writelines(f"{json.dumps(vars(one))}\n" for one in sent)
        _log.info("submitted %d jobs: %s", len(sent), ", ".join(ids))
        return sent

    def _executor(self, token: str, *, width: int) -> Any:
        settings = self.executor
        executor = self.submitit.SlurmExecutor(folder=self._folder, max_num_timeout=settings.requeues)
        parameters: dict[str, Any] = {
            "job_name": f"mtlbench-{token}",
            "time": settings.time,
            "cpus_per_task": settings.cpus,
            "signal_delay_s": settings.warning,
            "array_parallelism": self._demand.most,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True},
        }
        parameters |= {
            name: value
            for name in ("partition", "account", "qos", "constraint")
            if (value := getattr(settings, name)) is not None
        }
        if settings.mem is not None:
            parameters["mem"] = f"{settings.mem}GB"
        if self.launch.device != "cpu":
            parameters |= {"gres": f"{settings.gres}:{width}"} if settings.gres else {"gpus_per_node": width}
        executor.update_parameters(**parameters)
        return executor


class _Job:
    """Runs on a node through submitit. It ends when the cells are done, when its stop file appears, or on a signal."""

    def __init__(self, share: NodeShare, *, stop: Path, warning_s: float) -> None:
        self._share, self._stop, self._warning_s = share, stop, warning_s
        self._node: Node | None = None
        self._preempted_once = False

    def __call__(self) -> None:
        self._node = node = Node(self._share)
        # A preempted job receives SIGTERM, and then the signal on which submitit requeues it.
        signal.signal(signal.SIGTERM, self._preempted)
        node.serve(until=self._stop_requested)
        if self._preempted_once and self._stop_requested() is None:
            time.sleep(SECOND_SIGNAL_S)

    def checkpoint(self, *_: Any) -> Any:
        """Let the worker write a checkpoint; submitit calls this on its signal and then requeues the job."""
        from submitit.helpers import DelayedSubmission

        if self._node is not None:
            self._node.end(grace_s=max(5.0, self._warning_s - 15))
        return DelayedSubmission(_Job(self._share, stop=self._stop, warning_s=self._warning_s))

    def _preempted(self, number: int, frame: FrameType | None) -> None:
        self._preempted_once = True
        if self._node is not None:
            self._node.stop(grace_s=max(5.0, self._warning_s - 15))

    def _stop_requested(self) -> float | None:
        """Grace period in seconds once the command has requested the end of the run, else ``None``."""
        try:
            return float(self._stop.read_text() or 0)
        except (OSError, ValueError):
            return None


def _stop_file(folder: Path, token: str) -> Path:
    return folder / f"{token}.stop"


def _read_sent(folder: Path) -> list[_Sent]:
    """The jobs submitted for this run folder; an incomplete line is skipped."""
    sent = []
    try:
        lines = (folder / "jobs.jsonl").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            sent.append(_Sent(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return sent


def _submitit() -> Any:
    try:
        import submitit
        import submitit.core.utils
        import submitit.slurm.slurm
    except ImportError as error:
        raise RequestError(
            "--executor slurm needs submitit, which is not installed: pip install 'mtlbench[slurm]'."
        ) from error
    return submitit


@hookimpl
def mtlbench_executors() -> Iterable[Executor]:
    """The Slurm executor."""
    return (SlurmExecutor(),)
