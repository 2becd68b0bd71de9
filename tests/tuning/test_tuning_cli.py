"""``mtlbench tune`` as its users meet it: the demo, real workers, a real kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import alive, stopped
from waiting import wait_for

from mtlbench.store import RunFolder

CLI = [sys.executable, "-m", "mtlbench"]
TUNE = (
    "tune", "--method", "lora", "--tasks", "glue/rte", "--budget", "quick", "--trials", "3", "--at-once", "3", "--steps", "2",
    "--train-rows", "32", "--batch-size", "8", "--search", "rank=2:4", "--workers", "1", "--device", "cpu",
)  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *words], capture_output=True, text=True, cwd=cwd, env=environment(), timeout=300)


def test_killed_with_sigkill_it_continues_and_counts_each_trial_once(tmp_path: Path):
    folder = RunFolder(tmp_path / "out")
    process = subprocess.Popen(
        [*CLI, *TUNE, "--out", "out"],
        cwd=tmp_path,
        env={**environment(), "MTLBENCH_FAILPOINT": "cell.step:stop@3"},  # the first step of the second trial
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: folder.records() and folder.claims())
    (worker,) = {claim.owner.pid for claim in folder.claims().values()}
    wait_for(lambda: stopped(worker))
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: not alive(worker))
    before = {key: record.provenance["pid"] for key, record in folder.records().items()}
    assert 1 <= len(before) < 3
    done = call(*TUNE, "--out", "out", "--to-optuna", "sqlite:///study.db", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = folder.records()
    assert len(records) == len(folder.expected()) == 3
    assert {key: records[key].provenance["pid"] for key in before} == before, "what was done is not done again"
    assert sorted(record.cell.seed for record in records.values()) == [0, 1, 2]
    for record in records.values():
        assert record.status == "ok" and {score.rows for score in record.scores.values()} == {8}
        assert sum(record.notes["rows_per_task"].values()) == 2 * 8
    scored = {tuple(row["doc_hash"] for row in folder.samples(key) or []) for key in records}
    assert len(scored) == 1, "every trial is scored on the same rows"
    best = max(records.values(), key=lambda record: (record.average or 0, -record.cell.seed))
    first, command = done.stdout.strip().splitlines()
    assert f"(trial {best.cell.seed}, {best.average:.2f} on held-out training rows)" in first
    assert f"--methods '{best.cell.variant}'" in command and "--tuning out/studies/" in command
    assert (tmp_path / "out" / "report" / "tuning-lora.md").is_file() and (tmp_path / "study.db").is_file()
    again = call(*TUNE, "--out", "out", cwd=tmp_path)
    assert again.stdout == done.stdout and "started" not in again.stderr


def test_its_workers_stay_warm_and_it_takes_the_options_of_a_run(tmp_path: Path):
    words = [*TUNE, "--at-once", "1", "--track", "tensorboard", "--silence", "300", "--cell-timeout", "300"]
    done = call(*words, "--devices-per-cell", "1,lora=1", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = sorted(RunFolder(tmp_path / "out").records().values(), key=lambda record: record.cell.seed)
    assert [record.status for record in records] == ["ok"] * 3
    assert len({record.provenance["pid"] for record in records}) == 1, "one process ran the trials of all three batches"
    outside = []
    for record in records:
        assert record.costs is not None
        outside.append(record.costs.total_seconds - record.costs.train_seconds - record.costs.eval_seconds)
    assert max(outside[1:]) < outside[0], "backbone and rows are loaded for the first one"
    assert len(list((tmp_path / "out" / "tracking" / "tensorboard").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tune", "--tasks", "glue"), "--method is missing"),
        (("tune", "--method", "lora"), "--tasks is missing"),
        ((*TUNE, "--search", "rnk=1:2", "--out", "out"), "no setting 'rnk'"),
        ((*TUNE, "--to-optuna", "none.db", "--out", "out"), "--to-optuna 'none.db'"),
        ((*TUNE, "--executor", "locl", "--out", "out"), "Unknown executor 'locl'"),
        ((*TUNE, "--devices-per-cell", "lra=2", "--out", "out"), "--devices-per-cell names 'lra'"),
        ((*TUNE, "--track", "tensorbord", "--out", "out"), "Unknown tracker 'tensorbord'"),
    ],
)
def test_a_wrong_request_is_one_clear_line_and_exit_code_2(tmp_path: Path, words: tuple[str, ...], message: str):
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())
