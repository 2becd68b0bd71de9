"""What fault tests share: a run folder with its cells, processes that never outlive a test, and the count of results."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fault_run import RUN
from fault_worker import COMMAND, equal, undisturbed

from mtlbench.api.cell import Cell
from mtlbench.store import RunFolder
from mtlbench.workers.worker import work

_PUBLISHED = re.compile(r"INFO \S+: ([0-9a-f]{24}) .* seed \d+: ok$", re.MULTILINE)


@dataclass
class Tally:
    """Faults tried and what became of results, over all the repeats of a test."""

    tried: int = 0
    lost: int = 0
    double: int = 0

    def fault(self, count: int = 1) -> None:
        """So many faults were injected."""
        self.tried += count

    def results(self, bench: Bench) -> None:
        """Count what is lost and double in a run folder that is complete, and hold it to the undisturbed run.

        A result is lost if a worker said that it published it and it is not there, or if its cell has none or another
        one than an undisturbed run gives; it is double if it was published twice, or kept as a second one.
        """
        records = bench.folder.records()
        published = bench.published()
        wrong = {
            cell.key
            for cell in bench.cells
            if cell.key not in records or not equal(records[cell.key], undisturbed(cell))
        }
        gone = set(published) - set(records)
        twice = [key for key, count in published.items() if count > 1 + bench.removed[key]]
        conflicts = list((bench.folder.path / "conflicts").iterdir())
        self.lost += len(wrong | gone)
        self.double += len(twice) + len(conflicts)
        assert not wrong | gone, f"lost or changed: {wrong | gone}"
        assert not twice and not conflicts, f"double: {twice} {conflicts}"
        assert set(records) == {cell.key for cell in bench.cells}


@dataclass
class Bench:
    """One run folder, its cells, and the processes started on it."""

    path: Path
    cells: Sequence[Cell]
    removed: Counter[str] = field(default_factory=Counter)
    """How often the test itself destroyed the published record of a cell."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = RunFolder(self.path)
        self.folder.preflight()
        self.request = self.folder.put_request({"data": "demo"}, self.cells)

    def worker(self, **environment: str) -> subprocess.Popen[bytes]:
        """A worker process of its own, with these variables on top of the environment."""
        index = len(self.processes)
        words = ["--folder", str(self.path), "--request", self.request, "--index", str(index)]
        return self._start([*COMMAND, *words], self.folder.log(index), environment)

    def run(self, *, workers: int = 2, **environment: str) -> subprocess.Popen[bytes]:
        """A parent with its workers, as ``mtlbench run`` starts them."""
        words = [*RUN, str(self.path), self.request, str(workers)]
        return self._start(words, self.path / "logs" / f"parent-{len(self.processes)}.log", environment)

    def finish(self, *, tries: int = 6) -> None:
        """Start the same command, undisturbed, until it says that all is done."""
        for _ in range(tries):
            if self.run().wait(timeout=120) == 0:
                return
        raise AssertionError(f"not done after {tries} runs: {self.words()}")

    def complete(self) -> None:
        """Run what is missing in this process."""
        work(self.folder, self.request, run=undisturbed)

    def published(self) -> Counter[str]:
        """Cell key to how often a worker said that it published its record."""
        return Counter(_PUBLISHED.findall(self.words("worker-*.log")))

    def words(self, logs: str = "*.log") -> str:
        """What the processes logged."""
        return "\n".join(path.read_text(errors="replace") for path in sorted((self.path / "logs").glob(logs)))

    def stop(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()

    def _start(self, words: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=file, env={**os.environ, **environment}, start_new_session=True
            )
        self.processes.append(process)
        return process
