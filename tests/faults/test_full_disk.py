"""A disk that fills up and folders that cannot be used: one clear line, nothing lost, and the same command succeeds."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bench import Bench, Tally
from fault_worker import fault_cell

from mtlbench.api.cell import Cell
from mtlbench.errors import RequestError
from mtlbench.files import failpoints
from mtlbench.files.sealed import write_new
from mtlbench.files.temporary import DiskError
from mtlbench.store import RunFolder

Make = Callable[[Sequence[Cell]], Bench]
LIMITED = (
    "import resource, signal, sys\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))\n"
    "from mtlbench.cli import main\n"
    "main()"
)
"""The command line on a disk that takes no file larger than the first word says."""


@pytest.mark.fault("F15")
@pytest.mark.repeated(2)
def test_the_disk_fills_up_under_a_worker(bench_of: Make, tally: Tally, seed: int) -> None:
    """Claims, predictions or records do not fit, whatever comes first; then there is room again."""
    bench = bench_of([fault_cell(n) for n in range(4)])
    limit = (200, 900, 1300)[seed] if seed < 3 else random.Random(seed).randint(100, 2500)
    ended = bench.worker(FAULT_FILE_BYTES=str(limit)).wait(timeout=60)
    tally.fault()
    kinds = {r.failure.kind for r in bench.folder.records().values() if r.failure is not None}
    assert kinds <= {"disk"}
    if ended != 0 and limit >= 900:
        assert "this worker ends: No room in" in bench.words() and "Traceback" not in bench.words()
    bench.finish()
    tally.results(bench)
    assert not list(bench.path.rglob("*.tmp"))


@pytest.mark.fault("F15")
@pytest.mark.parametrize("point", ["store.before_write", "store.before_link", "store.before_replace"])
def test_no_space_at_any_stage_of_a_write(bench_of: Make, tally: Tally, point: str) -> None:
    bench = bench_of([fault_cell(0)])
    path = bench.path / "records" / "x.json"
    failpoints.arm(f"{point}:full")
    with pytest.raises(DiskError, match=r"needs \d+ bytes and [\d,]+ are free.*same command again"):
        if point == "store.before_replace":
            bench.folder.put_samples("ab", [{"row": 1}])
        else:
            write_new(path, b"x" * 300)
    tally.fault()
    assert not path.exists() and not list(bench.path.rglob("*.tmp"))
    assert write_new(path, b"x" * 300), "the same call succeeds when there is room"


@pytest.mark.fault("F15")
def test_the_disk_fills_up_while_reports_are_written(bench_of: Make, tally: Tally) -> None:
    bench = bench_of([fault_cell(n) for n in range(4)])
    bench.complete()
    words = ["report", str(bench.path), "--as", "markdown,csv"]
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, "100", *words], capture_output=True, text=True, timeout=120
    )
    tally.fault()
    assert limited.returncode == 2
    assert "No room in" in limited.stderr and "are free" in limited.stderr and "Traceback" not in limited.stderr
    assert not list((bench.path / "report").iterdir())
    again = subprocess.run([sys.executable, "-m", "mtlbench", *words], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert (bench.path / "report" / "report.md").stat().st_size > 100
    tally.results(bench)


@pytest.mark.fault("F15")
def test_a_run_on_a_full_disk_says_so_in_one_line(tmp_path: Path, tally: Tally) -> None:
    words = ["run", "--methods", "base", "--tasks", "glue/rte", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "50", *words], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    tally.fault()
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "No room in" in line and "needs " in line and "are free" in line
    assert not list((tmp_path / "out" / "requests").iterdir())


@pytest.mark.fault("F19")
@pytest.mark.parametrize("name", ["with space", "ünïcode ☃ 模型", "'quoted\"", "-dash", "x" * 255, "a/" * 140 + "b"])
def test_any_folder_name_works(tmp_path: Path, tally: Tally, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(path, [fault_cell(0)])
    assert bench.worker().wait(timeout=60) == 0
    tally.fault()
    tally.results(bench)


@pytest.mark.fault("F19")
@pytest.mark.parametrize("name", ["x" * 300, "no/parent", "file", "file/inside"])
def test_a_folder_that_cannot_be_is_refused_and_nothing_is_made(tmp_path: Path, tally: Tally, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="--out"):
        RunFolder(tmp_path / name).preflight()
    tally.fault()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.fault("F19")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path, tally: Tally) -> None:
    """Asked as another user where this one may do everything."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o055)
    code = "import os, sys; from pathlib import Path; from mtlbench.store import RunFolder\n"
    code += "if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)\n"
    code += "RunFolder(Path(sys.argv[1])).preflight()"
    words = [sys.executable, "-c", code, str(closed / "run")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    tally.fault()
    assert "RequestError" in done.stderr and "cannot be used: Permission denied" in done.stderr
    assert list(closed.iterdir()) == []
