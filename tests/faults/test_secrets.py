"""Secrets of the environment and of requests reach nothing that is written or shown."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bench import Bench, Tally
from fault_worker import fault_cell

from mtlbench.api.cell import Cell
from mtlbench.files import redact
from mtlbench.plugins import offers

Make = Callable[[Sequence[Cell]], Bench]
TOKEN = "hf_" + "Zq7" * 9
PASSWORD = "correct-horse-battery"


@pytest.mark.fault("F44")
def test_a_token_reaches_no_log_no_record_and_no_report(bench_of: Make, tally: Tally) -> None:
    """A method that puts the token into its log, its notes, its failure and a traceback."""
    bench = bench_of([fault_cell(n, method=m) for n, m in enumerate(["leaks", "leaks and fails", "leaks and dies"])])
    secrets = {"HF_TOKEN": TOKEN, "MY_DB_PASSWORD": PASSWORD}
    parent = bench.run(workers=1, **secrets)
    assert parent.wait(timeout=120) == 1
    tally.fault(3)
    records = {record.cell.method: record for record in bench.folder.records().values()}
    assert records["leaks"].notes["leaked"] == f"token {redact.BLANK}, url https://{redact.BLANK}@host/x"
    assert records["leaks and fails"].failure is not None
    words = [sys.executable, "-m", "mtlbench", "report", str(bench.path), "--as", ",".join(sorted(offers("reports")))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "RuntimeError" in bench.words() and redact.BLANK in bench.words()
    for path in bench.path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert TOKEN.encode() not in data and PASSWORD.encode() not in data, path
    assert TOKEN not in done.stdout + done.stderr and PASSWORD not in done.stdout + done.stderr


@pytest.mark.fault("F44")
@pytest.mark.parametrize(
    "words",
    [
        ("run", "--methods", "lora", "--tasks", "glue/rte", "--model", f"https://user:{PASSWORD}@host/m"),
        ("run", "--methods", "lora", "--tasks", "glue/rte", "--model", f"https://host/m?token={TOKEN}"),
        ("run", "--methods", "lora", "--tasks", "glue/rte", "--data", f"https://{TOKEN}@host/d"),
        ("run", "--methods", f"lora[rank={TOKEN}]", "--tasks", "glue/rte"),
        ("run", "--methods", "lora", "--tasks", "glue/rte", "--tuning", f"with {TOKEN}"),
        ("tune", "--method", "lora", "--tasks", "glue/rte", "--to-optuna", f"nosuch://u:{PASSWORD}@h/d"),
    ],
)
def test_a_token_in_a_request_is_refused_or_blanked(tmp_path: Path, tally: Tally, words: tuple[str, ...]) -> None:
    environment = {**os.environ, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mtlbench", *words, "--out", "out"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False,
    )  # fmt: skip
    tally.fault()
    assert done.returncode == 2
    assert TOKEN not in done.stdout + done.stderr and PASSWORD not in done.stdout + done.stderr
    assert not any(TOKEN.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "text",
    ["https://huggingface.co/meta/llama", "lora[rank=16]", "token", "a@b.c", "KEY=1", "tokens_per_second 9000"],
)
def test_ordinary_texts_are_left_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "glue")
    assert redact.redact(text) == text and redact.redact("glue/rte") == "glue/rte"
