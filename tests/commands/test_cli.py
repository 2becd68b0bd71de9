"""The command line: exit codes, one clear line for a wrong request, and commands that stay light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "mtlbench"]


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*CLI, *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


RUN = ("run", "--tasks", "glue/rte", "--out", "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--tasks", "glue"), "--methods is missing"),
        (("run", "--methods", "lora"), "--tasks is missing"),
        ((*RUN, "--methods", "lorra"), "Unknown method 'lorra'. Did you mean 'lora'?"),
        ((*RUN, "--methods", "lora[rnk=4]"), "no setting 'rnk'. Did you mean 'rank'?"),
        ((*RUN, "--methods", "lora[rank=-4]"), "-4"),
        ((*RUN, "--methods", "lora[rank=x]"), "rank must be a whole number, got 'x'"),
        (("run", "--methods", "lora", "--tasks", "glu", "--out", "out"), "Unknown suite 'glu'. Did you mean 'glue'?"),
        ((*RUN, "--methods", "lora", "--model", "demoo"), "Did you mean 'demo'?"),
        ((*RUN, "--methods", "lora", "--model", "./none"), "no model folder './none'"),
        ((*RUN, "--methods", "lora", "--data", "none"), "none"),
        ((*RUN, "--methods", "lora", "--data", "hub"), "--data"),
        ((*RUN, "--methods", "lora", "--seeds", "a"), "--seeds 'a' cannot be read"),
        ((*RUN, "--methods", "lora", "--seeds", "1,1"), "seeds must be different"),
        ((*RUN, "--methods", "lora", "--executor", "locl"), "Unknown executor 'locl'. Did you mean 'local'?"),
        (("run", "--preset", "glue/quik"), "Unknown preset 'glue/quik'. Did you mean 'glue/quick'?"),
        ((*RUN, "--methods", "lora", "--steps", "0"), "steps must be at least 1, got 0"),
        ((*RUN, "--methods", "lora", "--as", "chart"), "Unknown report 'chart'. Did you mean 'charts'?"),
        (("report", "nowhere"), "no run folder"),
        (("report",), "There is no run folder under runs/"),
        (("status", "nowhere"), "no run folder"),
        (("list", "method"), "Did you mean 'methods'?"),
        (("run", "--methods", "lora", "--tasks", "glue/rte", "--out", "file/sub"), "file"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_clear_line_and_exit_code_2(tmp_path: Path, words: tuple[str, ...], message: str):
    (tmp_path / "file").write_text("in the way")
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists(), "nothing is created for a request that is refused"


def test_a_wrong_option_is_refused_by_name(tmp_path: Path):
    done = call("run", "--method", "lora", cwd=tmp_path)
    assert done.returncode == 2 and "--methods" in done.stderr


@pytest.mark.parametrize(
    "words",
    [("--help",), ("list",), ("plan", "--methods", "peml,lora,mtl_lora,base", "--tasks", "glue", "--seeds", "0,1")],
)
def test_light_commands_load_no_torch(tmp_path: Path, words: tuple[str, ...]):
    code = (
        "import sys; from mtlbench.cli import main; sys.argv = ['mtlbench', *%r]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'lm_eval', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code % (list(words),)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "a light command creates nothing"


def test_help_imports_click_and_little_else():
    code = "import sys, mtlbench.cli; print([m for m in ('pluggy', 'json', 'rich', 'numpy', 'importlib.metadata') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['json']")


def test_list_shows_names_with_their_distribution(tmp_path: Path):
    done = call("list", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("peml", "mtl_lora", "glue", "markdown", "local", "progress"):
        assert name in done.stdout
    assert "mtlbench 0.1.0" in done.stdout


def test_a_preset_ends_in_its_reports(tmp_path: Path):
    small = ("--tasks", "glue/rte", "--methods", "base", "--seeds", "0", "--eval-rows", "8", "--train-rows", "64")
    done = call("run", "--preset", "peml/orders", *small, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| base" in done.stdout
    assert {"report.md", "charts.txt"} <= {path.name for path in (tmp_path / "out" / "report").iterdir()}
