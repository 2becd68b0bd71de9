"""Slurm: submitit's real executor over stand-ins for Slurm's commands; the records are those of the local executor."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
from holding import held_until, hold, release
from processes import alive
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Launch
from mtlbench.errors import RequestError
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.options import executor_of
from mtlbench.executors.runner import run
from mtlbench.executors.slurm import SlurmExecutor, SlurmWorkers
from mtlbench.store import RunFolder

EXECUTOR = SlurmExecutor(command=COMMAND, poll=0.5, array=2, warning=20)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("submitit")
    given = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", given.pop("PATH_FIRST") + os.pathsep + os.environ["PATH"])
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return Path(given["FAKE_SLURM"])


def go(path: Path, cells: list[Cell], executor: Any = EXECUTOR) -> tuple[int, RunFolder]:
    folder, request = toy_folder(path, cells)
    return run(folder, request, cells, executor, {}, device="cpu"), folder


def submit(path: Path, cells: list[Cell], executor: SlurmExecutor = EXECUTOR) -> tuple[RunFolder, SlurmWorkers]:
    folder, request = toy_folder(path, cells)
    workers = executor.start(Launch(folder=folder.path, request=request, workers=0, device="cpu"))
    assert isinstance(workers, SlurmWorkers)
    return folder, workers


def states(cluster: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(cluster.glob("*.state"))}


def essence(folder: RunFolder) -> dict[str, Any]:
    """The records but for what tells where and when they were made."""
    found = {}
    for key, record in folder.records().items():
        notes = {name: value for name, value in record.notes.items() if name in ("loss",)}
        found[key] = replace(record, provenance={}, notes=notes).to_json()
    return found


def test_jobs_of_an_array_share_the_cells_and_leave_the_records_of_the_local_executor(
    tmp_path: Path, cluster: Path
) -> None:
    cells = [*(toy_cell(seed, seconds=0.2) for seed in range(5)), toy_cell(5, do="fail"), toy_cell(6, do="skip")]
    folder, _ = toy_folder(tmp_path / "slurm-run", cells)
    with held_until(
        folder, cells, lambda: len(ran(folder)) == 2
    ):  # a job on its own would do all before the other starts
        code, folder = go(folder.path, cells)
    assert code == 1 and len(folder.records()) == len(ran(folder)) == 7
    assert list(states(cluster)) == ["1000_0", "1000_1"], "one submission, an array"
    wait_for(lambda: set(states(cluster).values()) == {"COMPLETED"})
    script = (cluster / "1000.script").read_text()
    assert "--job-name=mtlbench-" in script and "--time=60" in script and "--signal=USR2@20" in script
    assert "gpus" not in script, "--device cpu asks for none"
    pids = {record.notes["pid"] for record in folder.records().values() if record.status == "ok"}
    assert len(pids) == 2, "both jobs worked"
    assert list((folder.path / "claims").iterdir()) == []
    _, local = go(tmp_path / "local-run", cells, LocalExecutor(command=COMMAND))
    assert essence(folder) == essence(local)
    assert not list(folder.path.rglob("*.pkl")), "no pickle stays in a run folder"


def test_refused_submissions_are_tried_again_and_then_a_wrong_request(tmp_path: Path, cluster: Path) -> None:
    (cluster / "refuse").write_text("2")
    code, _ = go(tmp_path / "run", [toy_cell()])
    assert code == 0 and list(states(cluster)) == ["1000"]
    (cluster / "refuse").write_text("3")
    with pytest.raises(RequestError, match="refused the jobs 3 times: .*not responding"):
        submit(tmp_path / "other", [toy_cell()])


def test_jobs_of_a_command_that_was_killed_are_used_and_not_submitted_again(tmp_path: Path, cluster: Path) -> None:
    cells = [toy_cell(seed) for seed in range(4)]
    hold(toy_folder(tmp_path / "run", cells)[0], cells)
    folder, first = submit(tmp_path / "run", cells)
    wait_for(lambda: len(ran(folder)) == 2 and set(states(cluster).values()) == {"RUNNING"})
    again = EXECUTOR.start(first.launch)  # the first one is forgotten, as when its process was killed
    release(folder)
    wait_for(lambda: again.alive() == 0)
    assert list(states(cluster)) == ["1000_0", "1000_1"] and len(ran(folder)) == len(folder.records()) == 4


def test_stop_asks_the_jobs_first_and_they_give_their_cells_back(tmp_path: Path, cluster: Path) -> None:
    folder, workers = submit(tmp_path / "run", [toy_cell(0, do="hang"), toy_cell(1, do="hang")])
    wait_for(lambda: len(ran(folder)) == 2)
    pids = [claim.owner.pid for claim in folder.claims().values()]
    workers.stop(grace_s=30)
    assert not any(alive(pid) for pid in pids)
    assert list((folder.path / "claims").iterdir()) == [] and folder.records() == {}
    wait_for(lambda: "RUNNING" not in states(cluster).values())


def test_a_machine_without_slurm_is_a_wrong_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="there is no 'sbatch' on PATH"):
        EXECUTOR.check("auto")
    chosen = executor_of("slurm[partition=gpu,time=30,array=8,mem=none]")
    assert chosen == SlurmExecutor(partition="gpu", time=30, array=8)
    for words, message in [
        ("slurm[tme=3]", "no setting 'tme'. Did you mean 'time'"),
        ("slurm[time=soon]", "time must be a whole number, got 'soon'"),
        ("slurm[time]", "needs a value: time=VALUE"),
        ("slurm[time=3", "Cannot read --executor"),
        ("local[array=2]", "Executor 'local' has no setting 'array'"),
    ]:
        with pytest.raises(RequestError, match=message.replace("[", r"\[")):
            executor_of(words)


@pytest.mark.slow
def test_a_preempted_job_gives_its_cell_back_and_goes_on_later(tmp_path: Path, cluster: Path) -> None:
    import submitit

    cells = [toy_cell(seed) for seed in range(3)]
    executor = replace(EXECUTOR, array=1)
    hold(toy_folder(tmp_path / "run", cells)[0], cells)
    folder, workers = submit(tmp_path / "run", cells, executor)
    wait_for(lambda: len(ran(folder)) == 1 and folder.steps(cells[0].key))
    submitit.SlurmJob(folder=folder.path / "slurm", job_id="1000")._interrupt()
    wait_for(lambda: len((cluster / "1000.starts").read_text().split()) == 2)
    release(folder)
    wait_for(lambda: workers.alive() == 0)
    records = folder.records()
    assert {record.status for record in records.values()} == {"ok"} and len(records) == 3
    assert len(list(cluster.glob("*.script"))) == 1, "the same job, put back into the queue"
    assert ran(folder).count(cells[0].key) == 2 and len(ran(folder)) == 4
    assert list((folder.path / "claims").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_a_job_killed_with_signal_9_loses_no_cell(tmp_path: Path, cluster: Path, whole: bool) -> None:
    cells = [toy_cell(seed) for seed in range(4)]
    hold(toy_folder(tmp_path / "run", cells)[0], cells)
    folder, workers = submit(tmp_path / "run", cells)
    wait_for(lambda: len(folder.claims()) == 2 and len(ran(folder)) == 2)
    victims = [claim.owner.pid for claim in folder.claims().values()]
    job = int((cluster / "1000_0.pid").read_text())
    for pid in [job, *(victims if whole else [])]:
        os.kill(pid, signal.SIGKILL)
    release(folder)
    wait_for(lambda: workers.alive() == 0, seconds=90)
    records = folder.records()
    assert {record.status for record in records.values()} == {"ok"} and len(records) == 4
    assert "FAILED" in states(cluster).values()
    assert not any(alive(pid) for pid in victims)


@pytest.mark.slow
def test_jobs_that_slurm_no_longer_lists_have_ended(tmp_path: Path, cluster: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mtlbench.executors.slurm.LOST_S", 2.0)
    folder, workers = submit(tmp_path / "run", [toy_cell(0, seconds=4.0)])
    wait_for(lambda: ran(folder))
    (cluster / "purged").touch()
    wait_for(lambda: workers.alive() == 0)
    wait_for(lambda: len(folder.records()) == 1)
    assert len(folder.records()) == 1
