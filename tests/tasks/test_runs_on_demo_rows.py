"""Every suite as its users run it: by name and in mixes, on demo rows and real ones, with a score better than chance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench.api.record import Record
from mtlbench.plugins import load_suite
from mtlbench.store import RunFolder

FEW = ("--steps", "3", "--batch-size", "8", "--train-rows", "12", "--eval-rows", "5")
MIX = "superglue,commonsense,glue/rte,mmlu/anatomy,mmlu_5shot/anatomy,mmlu_auxiliary"


def run(folder: Path, *words: str) -> list[Record]:
    command = [sys.executable, "-m", "mtlbench", "run", "--no-base", "--workers", "1", "--out", "out", *words]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return list(RunFolder(folder / "out").records().values())


@pytest.mark.parametrize("model", ["demo", "demo-t5"])
def test_all_kinds_of_task_train_and_score_in_one_mix(tmp_path, model):
    (record,) = run(tmp_path, "--methods", "lora", "--tasks", MIX, "--model", model, *FEW)
    assert len(record.scores) == 8 + 8 + 1 + 1 + 1 + 1
    assert all(score.rows == 5 and 0 <= score.score <= 100 for score in record.scores.values())
    assert (
        set(record.scores["superglue/multirc"].metrics)
        == set(record.scores["superglue/record"].metrics)
        == {"f1", "em"}
    )
    assert set(record.scores["superglue/cb"].metrics) == {"acc", "f1"}
    samples = RunFolder(tmp_path / "out").samples(record.cell.key)
    assert len(samples) == 5 * 20


@pytest.mark.parametrize("suite", ["clue16", "attempt21", "commonsense_170k", "mmlu_superglue"])
def test_every_task_of_the_paper_suites_trains_and_scores_in_one_cell(tmp_path, suite):
    words = ("--steps", "2", "--batch-size", "16", "--train-rows", "10", "--eval-rows", "3")
    (record,) = run(tmp_path, "--methods", "lora", "--tasks", suite, *words)
    assert record.status == "ok"
    assert set(record.scores) == {f"{suite}/{task.name}" for task in load_suite(suite).tasks}
    assert all(
        score.rows == 3 and 0 <= score.score <= 100
        for name, score in record.scores.items()
        if "stsb" not in name and "cola" not in name
    )


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["clue16", "commonsense_170k"])
def test_the_paper_suites_train_and_score_on_an_encoder_decoder(tmp_path, suite):
    (record,) = run(tmp_path, "--methods", "lora", "--tasks", suite, "--model", "demo-t5", *FEW)
    assert record.status == "ok" and len(record.scores) == len(load_suite(suite).tasks)


@pytest.mark.slow
def test_all_subjects_of_mmlu_train_and_score_in_one_cell(tmp_path):
    (record,) = run(tmp_path, "--methods", "lora", "--tasks", "mmlu", "--steps", "2", "--eval-rows", "2")
    assert len(record.scores) == 57 and record.status == "ok"


def test_a_trained_adapter_answers_better_than_chance_and_than_the_backbone(tmp_path):
    records = run(tmp_path, "--methods", "base,lora", "--tasks", "commonsense/arc_challenge,superglue/boolq")
    scores = {record.cell.method: record.scores for record in records}
    for task in ("commonsense/arc_challenge", "superglue/boolq"):
        trained, majority = scores["lora"][task].score, scores["lora"][task].majority
        assert trained > majority + 10 and trained > scores["base"][task].score + 10


def test_real_rows_of_every_suite_train_and_score(tmp_path, shared_data):
    words = ("--tasks", "superglue,commonsense,mmlu/anatomy,mmlu_5shot/virology", *FEW)
    (record,) = run(tmp_path, "--methods", "lora", *words, "--data", str(shared_data), "--max-length", "1024")
    assert record.status == "ok" and len(record.scores) == 18


def test_real_rows_of_the_paper_suites_train_and_score(tmp_path, shared_data):
    """All that have samples, each in one cell."""
    absent = {"amazon", "cote_mfw", "cote_bd"}
    chinese = [f"clue16/{task.name}" for task in load_suite("clue16").tasks if task.name not in absent]
    english = [f"attempt21/{name}" for name in ("yelp", "scitail", "paws")]
    mixed = [f"mmlu_superglue/{name}" for name in ("boolq", "multirc", "rte", "wic")]
    tasks = [*chinese, *english, *mixed, "commonsense_170k"]
    words = ("--tasks", ",".join(tasks), "--data", str(shared_data), "--max-length", "1024", *FEW)
    (record,) = run(tmp_path, "--methods", "lora", *words)
    assert record.status == "ok" and len(record.scores) == 13 + 3 + 4 + 8
