"""The product as its users meet it: the command line on the embedded demo, real workers, real records."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import python_path
from waiting import wait_for

from mtlbench.store import RunFolder

CLI = [sys.executable, "-m", "mtlbench"]
SMALL = ("--steps", "6", "--batch-size", "8", "--train-rows", "30", "--eval-rows", "12")
RUN = ("run", "--tasks", "glue/rte,glue/stsb,glue/cola", *SMALL, "--out", "out")


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", **extra}


def call(*words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *words], capture_output=True, text=True, cwd=cwd, env=env or environment(), timeout=600
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, installed) -> Path:
    """A run of all our methods and a stranger's on both embedded backbones, made once."""
    folder = tmp_path_factory.mktemp("study")
    path = installed(Path("mtlbench-example"), folder / "site")
    for model in ("demo", "demo-t5"):
        words = ("--methods", "base,lora,mtl_lora,peml,scaled_rows", "--model", model)
        done = call(*RUN, *words, cwd=folder, env=environment(PYTHONPATH=python_path(path)))
        assert done.returncode == 0, done.stderr
    return folder


def test_every_method_has_a_good_record_on_both_architectures(study: Path):
    records = RunFolder(study / "out").records().values()
    assert {(r.cell.method, r.cell.model) for r in records} == {
        (method, model)
        for method in ("base", "lora", "mtl_lora", "peml", "scaled_rows")
        for model in ("demo", "demo-t5")
    }
    for record in records:
        assert record.status == "ok" and set(record.scores) == {"glue/rte", "glue/stsb", "glue/cola"}
        assert all(record.guards.values()) and record.guards["backbone_unchanged"]
        if record.cell.method != "base":
            assert {"trained", "keys_equal", "reloaded_equal"} <= set(record.guards)
            assert record.costs is not None and record.costs.trainable_parameters > 0 and record.costs.steps == 6


def test_all_methods_saw_the_same_rows(study: Path):
    for model in ("demo", "demo-t5"):
        trained = [
            r.notes["tokens_per_task"]
            for r in RunFolder(study / "out").records().values()
            if r.cell.model == model and r.cell.method != "base"
        ]
        assert all(tokens == trained[0] for tokens in trained[1:])


def test_the_report_shows_everyone_and_says_demo_data(study: Path):
    done = call("report", "out", cwd=study)
    assert done.returncode == 0, done.stderr
    for word in ("demo data", "base", "lora", "mtl_lora", "peml", "scaled_rows", "demo-t5", "rte", "stsb", "cola"):
        assert word in done.stdout
    rows = list(csv.DictReader((study / "out" / "report" / "scores.csv").open()))
    assert {row["task"] for row in rows} >= {"glue/rte", "glue/stsb", "glue/cola"}
    assert call("report", cwd=study).returncode == 2, "no folder under runs/ here"


def test_a_stranger_is_listed_with_its_distribution(study: Path):
    done = call("list", "methods", cwd=study, env=environment(PYTHONPATH=python_path(study / "site")))
    assert "scaled_rows" in done.stdout and "mtlbench-example 0.1.0" in done.stdout


def test_the_same_command_again_does_nothing(study: Path):
    before = {p.name: p.stat().st_mtime_ns for p in (study / "out" / "records").iterdir()}
    done = call(*RUN, "--methods", "base,lora,mtl_lora,peml", "--model", "demo", cwd=study)
    assert done.returncode == 0
    assert {p.name: p.stat().st_mtime_ns for p in (study / "out" / "records").iterdir()} == before


def test_adapters_are_safetensors_and_samples_hold_every_prediction(study: Path):
    folder = RunFolder(study / "out")
    for key, record in folder.records().items():
        samples = folder.samples(key)
        assert samples is not None and len(samples) == 36
        for task, score in record.scores.items():
            mine = [s for s in samples if s["task"] == task]
            assert len(mine) == score.rows == 12
            if task == "glue/rte":
                assert score.score == pytest.approx(100 * sum(s["correct"] for s in mine) / len(mine))
        if record.cell.method != "base":
            assert (folder.adapter(key) / "adapter.safetensors").stat().st_size > 0


def test_a_killed_run_loses_nothing_and_the_next_one_completes(tmp_path: Path):
    words = (*RUN, "--methods", "base,lora,lora[rank=4],mtl_lora", "--workers", "1")
    running = subprocess.Popen(
        [*CLI, *words], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    records = tmp_path / "out" / "records"
    wait_for(lambda: list(records.glob("*.json")), seconds=300)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    worker = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and str(tmp_path) in _command(p)]
    for pid in worker:  # the worker leads a group of its own
        os.kill(pid, signal.SIGKILL)
    kept = {p.name: p.read_bytes() for p in records.glob("*.json")}
    assert kept
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    now = {p.name: p.read_bytes() for p in records.glob("*.json")}
    assert len(now) == 4 and kept.items() <= now.items()


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace")
        return words + os.readlink(process / "cwd") if "mtlbench.workers.worker" in words else ""
    except OSError:
        return ""


def test_a_failed_cell_never_stops_the_others_and_is_tried_again(tmp_path: Path, installed):
    site = tmp_path / "site"
    path = installed(Path("mtlbench-example"), site)
    text = (site / "mtlbench_example.py").read_text()
    (site / "mtlbench_example.py").write_text(text.replace("import torch  #", "raise ValueError('boom')  #"))
    words = (*RUN, "--methods", "scaled_rows,base")
    done = call(*words, cwd=tmp_path, env=environment(PYTHONPATH=python_path(path)))
    assert done.returncode == 1
    records = {r.cell.method: r for r in RunFolder(tmp_path / "out").records().values()}
    assert records["base"].status == "ok" and records["scaled_rows"].status == "failed"
    failure = records["scaled_rows"].failure
    assert failure is not None and failure.kind == "plugin" and "boom" in failure.message and failure.next_step
    report = call("report", "out", cwd=tmp_path).stdout
    assert "boom" in report and "scaled_rows" in report
    (site / "mtlbench_example.py").write_text(text)
    assert call(*words, cwd=tmp_path, env=environment(PYTHONPATH=python_path(path))).returncode == 0
    assert all(r.status == "ok" for r in RunFolder(tmp_path / "out").records().values())


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path):
    words = (*RUN[:-2], "--no-base", "--methods", "peml", "--workers", "1")
    scores = []
    for out in ("one", "two"):
        done = call(*words, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (record,) = RunFolder(tmp_path / out).records().values()
        scores.append((record.scores, json.dumps(record.notes, sort_keys=True)))
    assert scores[0] == scores[1]


def test_real_rows_train_and_score(tmp_path: Path, shared_data: Path):
    words = ("run", "--methods", "base,peml", "--tasks", "glue", *SMALL, "--data", str(shared_data), "--out", "out")
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for record in RunFolder(tmp_path / "out").records().values():
        assert len(record.scores) == 9
    report = call("report", "out", cwd=tmp_path).stdout
    assert "demo backbone" in report and "demo data" not in report.lower().replace("demo data:", "")
