"""The soak: 200 tiny cells under random faults end in exactly the records of an undisturbed run.

``python tests/faults/soak.py --seconds 600`` prints what was done and writes it into docs/reliability.md; exit code 1
when a result is lost, double or another one than undisturbed. ``--seed`` chooses the faults.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

import blocks
from bench import Bench
from fault_worker import equal, fault_cell
from processes import alive, children
from waiting import wait_for

from mtlbench.files.temporary import temporary_path

CELLS, WORKERS = 200, 3
SHARE = 0.35
"""Of the worker time there is, so much would be training in an undisturbed run: the rest is for what faults undo."""
PAUSE_S = (0.3, 2.5)
NOBODY = 2**22 + 1
"""A number that no process has."""
ARMED = tuple(
    f"{point}:{action}"
    for action, points in {
        "kill": "store.before_write store.before_link store.after_link store.before_replace store.quarantined "
        "worker.claimed worker.computed worker.published cell.step cell.saved",
        "exit": "worker.computed cell.trained store.before_link",
        "raise": "worker.claimed cell.step",
        "term": "cell.step worker.published",
        "oom": "cell.step",
        "full": "store.before_write store.before_link cell.evaluated",
    }.items()
    for point in points.split()
)


@dataclass
class Soak:
    """One run folder and the faults done to it."""

    bench: Bench
    dice: random.Random
    done: Counter[str] = field(default_factory=Counter)
    parents: list[int] = field(default_factory=list)
    """Places in ``bench.processes`` of the parents that may run."""
    frozen: dict[int, float] = field(default_factory=dict)
    """Process to the time it goes on."""

    def disturb(self, until: float) -> None:
        """Keep a parent running and do something to it, its workers or its files, again and again."""
        faults: dict[Callable[[], bool], int] = {
            lambda: self._signal_worker(signal.SIGKILL): 6,
            lambda: self._signal_worker(signal.SIGTERM): 3,
            lambda: self._freeze(self._workers()): 4,
            lambda: self._freeze(self._parents()): 1,
            lambda: self._signal_parent(signal.SIGKILL): 2,
            lambda: self._signal_parent(signal.SIGTERM): 1,
            lambda: self._signal_parent(signal.SIGINT): 1,
            self._everything: 1,
            self._second_parent: 1,
            lambda: self._mangle("torn record", lambda path, data: path.write_bytes(data[: self._below(data)])): 4,
            lambda: self._mangle("flipped bit in a record", self._flip): 4,
            lambda: self._mangle("deleted record", lambda path, data: path.unlink()): 1,
            lambda: self._mangle("directory in place of a record", _directory): 1,
            self._garbage: 1,
        }  # fmt: skip
        while time.monotonic() < until:
            self._go_on(time.monotonic())
            if not self._parents():
                self._start()
            self.dice.choices(list(faults), weights=list(faults.values()))[0]()
            time.sleep(self.dice.uniform(*PAUSE_S))
        self._go_on(float("inf"))

    def _start(self) -> None:
        environment: dict[str, str] = {}
        kind = self.dice.random()
        if kind < 0.6:
            armed = self.dice.choice(ARMED)
            environment["MTLBENCH_FAILPOINT"] = f"{armed}@{self.dice.randint(1, 8)}"
            environment["MTLBENCH_FAILPOINT_ONCE"] = str(self.bench.path / f"fired-{len(self.bench.processes)}")
        elif kind < 0.75:
            environment["FAULT_FILE_BYTES"] = str(self.dice.randint(200, 2500))
            self.done["full disk (files limited)"] += 1
        self.bench.run(workers=WORKERS, **environment)
        self.parents.append(len(self.bench.processes) - 1)

    def _parents(self) -> list[int]:
        self.parents = [n for n in self.parents if self.bench.processes[n].poll() is None]
        return [self.bench.processes[n].pid for n in self.parents]

    def _workers(self) -> list[int]:
        return [pid for parent in self._parents() for pid in children(parent)]

    def _signal_worker(self, number: signal.Signals) -> bool:
        return self._signal(self._workers(), number, f"{number.name} of a worker")

    def _signal_parent(self, number: signal.Signals) -> bool:
        return self._signal(self._parents(), number, f"{number.name} of the parent")

    def _signal(self, pids: list[int], number: signal.Signals, what: str) -> bool:
        if not pids:
            return False
        try:
            os.kill(self.dice.choice(pids), number)
        except ProcessLookupError:
            return False
        self.done[what] += 1
        return True

    def _freeze(self, pids: list[int]) -> bool:
        free = [pid for pid in pids if pid not in self.frozen]
        if not free:
            return False
        pid = self.dice.choice(free)
        self.frozen[pid] = time.monotonic() + self.dice.uniform(0.5, 8)
        return self._signal([pid], signal.SIGSTOP, "SIGSTOP, later SIGCONT")

    def _go_on(self, now: float) -> None:
        for pid in [pid for pid, at in self.frozen.items() if at <= now]:
            del self.frozen[pid]
            if alive(pid):
                os.kill(pid, signal.SIGCONT)

    def _everything(self) -> bool:
        pids = [*self._workers(), *self._parents()]
        for pid in pids:
            self._signal([pid], signal.SIGKILL, "SIGKILL of everything")
        return bool(pids)

    def _second_parent(self) -> bool:
        if len(self._parents()) != 1:
            return False
        self.bench.run(workers=1)
        self.parents.append(len(self.bench.processes) - 1)
        self.done["a second run on the same folder"] += 1
        return True

    def _mangle(self, what: str, change: Callable[[Path, bytes], object]) -> bool:
        paths = [p for p in sorted((self.bench.path / "records").glob("[!.]*.json")) if "failed" not in p.name]
        if not paths:
            return False
        path = self.dice.choice(paths)
        data = path.read_bytes() if path.is_file() else b""
        if not data:
            return False
        # Before the change: the record may be published again at once.
        self.bench.removed[path.stem] += 1
        try:
            change(path, data)
        except OSError:
            return False
        self.done[what] += 1
        return True

    def _below(self, data: bytes) -> int:
        return self.dice.randrange(len(data))

    def _flip(self, path: Path, data: bytes) -> None:
        bit = self.dice.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))

    def _garbage(self) -> bool:
        for name in ("records", "claims", "samples", "requests"):
            left = temporary_path(self.bench.path / name)
            left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{NOBODY}-")).write_bytes(b"half")
        key = self.dice.choice(self.bench.cells).key
        (self.bench.path / "records" / f"copy of {key}.json").write_bytes(b'{"body": ')
        self.done["garbage in the folders"] += 1
        return True


def _directory(path: Path, data: bytes) -> None:
    path.unlink()
    path.mkdir()


def orphans(path: Path) -> list[int]:
    """Processes whose command line names the run folder."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes()
        except OSError:
            continue
        if str(path).encode() in words and int(line.parent.name) != os.getpid():
            found.append(int(line.parent.name))
    return found


def soak(path: Path, *, seconds: float, seed: int) -> tuple[str, bool]:
    """Disturb for ``seconds``, let it finish, compare; gives a report and whether it is clean."""
    length = SHARE * seconds * min(WORKERS, 2) / CELLS
    cells = [fault_cell(n, seconds=round(length, 3)) for n in range(CELLS)]
    plain = Bench(path / "undisturbed", cells)
    os.environ["FAULT_FAST"] = "1"
    plain.finish()
    del os.environ["FAULT_FAST"]
    disturbed = Soak(Bench(path / "disturbed", cells), random.Random(seed))
    bench, began = disturbed.bench, time.monotonic()
    disturbed.disturb(began + seconds)
    before = len(bench.folder.records())
    for process in bench.processes:
        process.wait(timeout=600)
    bench.finish(tries=12)
    wait_for(lambda: not orphans(path), seconds=30)
    records, wanted, published = bench.folder.records(), plain.folder.records(), bench.published()
    lost = [key for key in wanted if key not in records or not equal(records[key], wanted[key])]
    double = [key for key, count in published.items() if count > 1 + bench.removed[key]]
    double += [path.name for path in (bench.path / "conflicts").iterdir()]
    left = [*(bench.path / "claims").iterdir(), *bench.path.rglob("*.tmp")]
    fired = len(list(bench.path.glob("fired-*")))
    faults = Counter({**disturbed.done, "fail points that fired": fired})
    clean = not lost and not double and not left and set(records) == {cell.key for cell in cells}
    lines = [
        f"{CELLS} cells, {seconds:.0f} s of faults, seed {seed}: {sum(faults.values())} faults, "
        f"{len(bench.processes)} runs started, {sum(published.values())} results published, "
        f"{sum(bench.removed.values())} of them destroyed on purpose, {before} good at the end of the faults.",
        "",
        f"**Results lost: {len(lost)}. Results double: {len(double)}. Claims and temporary files left: {len(left)}. "
        "Processes left: 0.**",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in sorted(faults.items())),
    ]
    return "\n".join(lines), clean


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the figures into docs/reliability.md")
    given = parser.parse_args()
    path = Path(tempfile.mkdtemp(prefix="mtlbench-soak-"))
    told, clean = soak(path, seconds=given.seconds, seed=given.seed)
    print(told)
    if given.write:
        blocks.put("soak", told)
    if clean:
        shutil.rmtree(path)
    else:
        print(f"look into {path}", file=sys.stderr)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
