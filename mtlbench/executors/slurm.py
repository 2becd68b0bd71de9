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

LINGER_S = 60.0
"""A preempted job gets its second signal within this time of the first."""
TRIES = 3
"""How often a submission that Slurm refuses is tried."""
LOST_S = 600.0
"""A job that Slurm says nothing about for this long has ended."""
_GOING = (
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
    """One job for each worker, those of a width as one array. A job that is preempted or runs into its time limit keeps
    what its cell has done and is put back into the queue."""

    name: ClassVar[str] = "slurm"
    settings: ClassVar[tuple[str, ...]] = (
        "array", "partition", "account", "qos", "constraint", "gres", "time", "mem", "cpus", "warning", "requeues",
        "poll",
    )  # fmt: skip
    array: int = 4
    """Jobs at most, where ``--workers`` does not say."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    """Kind of GPU as Slurm names it, such as ``gpu:h100``; the number follows from ``--devices-per-cell``."""
    time: int = 60
    """Minutes of a job."""
    mem: int | None = None
    """GB of memory of a job."""
    cpus: int = 4
    """CPU cores of a job."""
    warning: int = 90
    """Seconds before its end that a job is warned."""
    requeues: int = 20
    """How often a job that ran into its time limit goes on."""
    poll: float = 30.0
    """Seconds between two questions to the scheduler."""
    command: tuple[str, ...] = (sys.executable, "-m", "mtlbench.workers.worker")

    def start(self, launch: Launch) -> Workers:
        """Submit the jobs; those of an earlier command that still wait or run are counted in.

        Raises:
            RequestError: submitit is not installed, this is no Slurm machine, or Slurm refuses the jobs.
        """
        self.check(launch.device)
        return SlurmWorkers(self, launch, submitit=_submitit())

    def check(self, device: str) -> None:
        """Refuse a machine without submitit or Slurm's commands."""
        _submitit()
        for tool in ("sbatch", "srun", "sacct", "scontrol", "scancel"):
            if shutil.which(tool) is None:
                raise RequestError(
                    f"--executor slurm: there is no {tool!r} on PATH. Give the command on a login node of the cluster, "
                    "or use --executor local."
                )


@dataclass(frozen=True)
class _Sent:
    """A submitted job, as the run folder remembers it."""

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
        self._wanted = WorkerDemand(self.launch, self.launch.workers or self.executor.array)
        self._watcher = self.submitit.SlurmJob.watcher
        self._watcher.delay_s = self.executor.poll
        self._known: dict[str, float] = {}
        """Job id to the time Slurm last knew it, in seconds of the monotonic clock."""
        self._jobs: dict[str, _Sent] = {}
        self._ended: list[str] = []
        earlier = [sent for sent in _read_sent(self._folder) if sent.request == self.launch.request]
        for sent in earlier:
            self._watcher.register_job(sent.job)
        for sent in earlier:
            if self._state(sent.job, fresh=True) not in _GOING:
                self._ended.append(sent.job)
            else:
                _log.info("job %s of an earlier command still waits or runs: it is used", sent.job)
                self._jobs[sent.job] = sent
        self._next_number = len(earlier)
        self._fill()

    def alive(self) -> int:
        """How many jobs wait or run, after replacing those that were lost."""
        for sent in list(self._jobs.values()):
            if self._goes_on(sent.job):
                continue
            del self._jobs[sent.job]
            self._ended.append(sent.job)
            if self._wanted.asked.demand()[sent.width]:
                what = f"job {sent.job} ended ({self._state(sent.job)}) with cells left"
                if self._wanted.may_restart(what):
                    self._fill()
        if self._wanted.grew():
            self._fill()
        if self._jobs and self._wanted.done():
            return sum(self._state(job) != "PENDING" for job in self._jobs)
        return len(self._jobs)

    def stop(self, *, grace_s: float) -> None:
        """End every job: asked through a file for ``grace_s`` seconds, then cancelled; waiting ones at once."""
        jobs, self._jobs = dict(self._jobs), {}
        for sent in jobs.values():
            _stop_file(self._folder, sent.token).write_text(str(grace_s))
        deadline = time.monotonic() + grace_s
        going = [job for job in jobs if self._goes_on(job) and self._state(job) != "PENDING"]
        try:
            while going and time.monotonic() < deadline:
                time.sleep(0.2)
                going = [job for job in going if not self._result(job).exists()]
        finally:
            self._cancel(list(jobs))

    def _cancel(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            if self._goes_on(job) and not self._result(job).exists():
                self.submitit.SlurmJob(folder=self._folder, job_id=job).cancel(check=False)
        # submitit hands a job its work as a pickle; nothing here reads one, and none is left behind.
        for job in [*self._ended, *jobs]:
            for path in self._folder.glob(f"{job}_*.pkl"):
                path.unlink(missing_ok=True)

    # What Slurm knows

    def _goes_on(self, job: str) -> bool:
        if self._result(job).exists():
            return False
        state = self._state(job)
        now = time.monotonic()
        if state in _GOING:
            self._known[job] = now
            return True
        if state != "UNKNOWN":
            return False
        # Not listed yet, or no longer.
        return now - self._known.setdefault(job, now) < LOST_S

    def _state(self, job: str, *, fresh: bool = False) -> str:
        words: list[str] = str(self._watcher.get_state(job, mode="force" if fresh else "standard")).split()
        return words[0].rstrip("+") if words else "UNKNOWN"

    def _result(self, job: str) -> Path:
        path: Path = self.submitit.core.utils.JobPaths(self._folder, job_id=job).result_pickle
        return path

    # Submitting

    def _fill(self) -> None:
        more = self._wanted.widths(Counter(sent.width for sent in self._jobs.values()))
        for width, count in more.items():
            shares = shares_of(self.launch, {width: count}, command=self.executor.command, first=self._next_number)
            self._next_number += count
            for sent in self._submit(shares, width=width):
                self._jobs[sent.job] = sent

    def _submit(self, shares: Sequence[NodeShare], *, width: int) -> list[_Sent]:
        """Submit one array; a submission whose answer was lost is found again by its name."""
        token = uuid.uuid4().hex[:12]
        jobs = [_Job(share, stop=_stop_file(self._folder, token), warning_s=self.executor.warning) for share in shares]
        executor = self._executor(token, width=width)
        for attempt in range(1, TRIES + 1):
            try:
                found = [str(job.job_id) for job in executor.submit_array(jobs)]
                break
            except (self.submitit.core.utils.FailedJobError, OSError) as error:
                refused = str(error).strip().splitlines()
                if attempt == TRIES:
                    raise RequestError(
                        f"Slurm refused the jobs {TRIES} times: {refused[-1] if refused else error}. Correct the "
                        "settings of --executor 'slurm[...]', or try again later: nothing is lost."
                    ) from error
                _log.warning("Slurm refused the jobs (%s): trying again", refused[-1] if refused else error)
                time.sleep(2**attempt / 2)
        sent = [_Sent(job=job, request=self.launch.request, width=width, token=token) for job in found]
        with (self._folder / "jobs.jsonl").open("a") as file:
            file.writelines(f"{json.dumps(vars(one))}\n" for one in sent)
        _log.info("submitted %d jobs: %s", len(sent), ", ".join(found))
        return sent

    def _executor(self, token: str, *, width: int) -> Any:
        chosen = self.executor
        executor = self.submitit.SlurmExecutor(folder=self._folder, max_num_timeout=chosen.requeues)
        words: dict[str, Any] = {
            "job_name": f"mtlbench-{token}",
            "time": chosen.time,
            "cpus_per_task": chosen.cpus,
            "signal_delay_s": chosen.warning,
            "array_parallelism": self._wanted.most,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True},
        }
        words |= {
            name: value
            for name in ("partition", "account", "qos", "constraint")
            if (value := getattr(chosen, name)) is not None
        }
        if chosen.mem is not None:
            words["mem"] = f"{chosen.mem}GB"
        if self.launch.device != "cpu":
            words |= {"gres": f"{chosen.gres}:{width}"} if chosen.gres else {"gpus_per_node": width}
        executor.update_parameters(**words)
        return executor


class _Job:
    """What submitit runs on a node. It ends when the cells are done, when its stop file appears, or on a warning."""

    def __init__(self, share: NodeShare, *, stop: Path, warning_s: float) -> None:
        self._share, self._stop, self._warning_s = share, stop, warning_s
        self._node: Node | None = None
        self._warned = False

    def __call__(self) -> None:
        self._node = node = Node(self._share)
        # A preempted job hears SIGTERM, and then the signal upon which submitit puts it back into the queue.
        signal.signal(signal.SIGTERM, self._preempted)
        node.serve(until=self._asked)
        if self._warned and self._asked() is None:
            time.sleep(LINGER_S)

    def checkpoint(self, *_: Any) -> Any:
        """Keep what the cell has done; submitit calls it on its signal and then puts the job back into the queue."""
        from submitit.helpers import DelayedSubmission

        if self._node is not None:
            self._node.end(grace_s=max(5.0, self._warning_s - 15))
        return DelayedSubmission(_Job(self._share, stop=self._stop, warning_s=self._warning_s))

    def _preempted(self, number: int, frame: FrameType | None) -> None:
        self._warned = True
        if self._node is not None:
            self._node.stop(grace_s=max(5.0, self._warning_s - 15))

    def _asked(self) -> float | None:
        """The grace in seconds that the command gives when it ends the run, else ``None``."""
        try:
            return float(self._stop.read_text() or 0)
        except (OSError, ValueError):
            return None


def _stop_file(folder: Path, token: str) -> Path:
    return folder / f"{token}.stop"


def _read_sent(folder: Path) -> list[_Sent]:
    """The jobs submitted for this run folder; a torn line is left out."""
    found = []
    try:
        lines = (folder / "jobs.jsonl").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            found.append(_Sent(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


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
