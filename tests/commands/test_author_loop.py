"""The author's loop: edit a method, run the same command, see both results; force what did not change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from processes import python_path

from mtlbench.cli import cli
from mtlbench.commands.authors.new import GROUPS
from mtlbench.store import RunFolder

WORDS = ("--methods", "my_method,base", "--tasks", "glue/wnli", "--train-rows", "8", "--eval-rows", "4", "--steps", "1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A new method's package, as `mtlbench new` writes it."""
    done = CliRunner().invoke(cli, ["new", "method", "my_method", "--to", str(tmp_path / "project")])
    assert done.exit_code == 0, done.output
    return tmp_path / "project"


def call(*words: str, cwd: Path, path: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": python_path(path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "mtlbench", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


def test_an_edited_method_is_run_again_and_an_unchanged_one_where_it_is_forced(project, tmp_path, installed):
    path = installed(project, tmp_path / "site")
    module = tmp_path / "site" / "my_method.py"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "torch.py").write_text("raise SystemExit('a file of the working folder was imported')")
    (elsewhere / "my_method.py").write_text("raise SystemExit('a working copy was imported')")

    def mtlbench(*words: str) -> str:
        done = call(*words, cwd=elsewhere, path=path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    mtlbench("run", *WORDS, "--out", "r")
    assert "2 cells: 2 done" in mtlbench("plan", *WORDS, "--out", "r")
    module.write_text(module.read_text().replace("change it into yours", "it is mine now"))
    assert "2 cells: 2 done" in mtlbench("plan", *WORDS, "--out", "r"), "a sentence is no code"
    module.write_text(module.read_text().replace("rank: int = 8", "rank: int = 4"))
    assert "2 cells: 1 to run, 1 done" in mtlbench("plan", *WORDS, "--out", "r")
    wrong = call("run", *WORDS, "--out", "r", "--again", "bas", cwd=elsewhere, path=path)
    assert wrong.returncode == 2 and "No cell is of 'bas'" in wrong.stderr
    mtlbench("run", *WORDS, "--out", "r", "--again", "base")

    folder = RunFolder(elsewhere / "r")
    records = [record.cell.method for record in folder.records().values()]
    assert sorted(records) == ["base", "my_method", "my_method"]
    (base,) = (key for key, record in folder.records().items() if record.cell.method == "base")
    assert (folder.path / "records" / f"{base}.again-1.json").exists()
    assert (folder.path / "samples" / f"{base}.again-1.parquet").exists() and folder.samples(base)
    assert not folder.problems()
    table = mtlbench("report", "r")
    assert table.count("| my_method (source ") == 2 or table.count("my_method (source ") >= 2
    assert "The code of my_method changed between these rows, its version did not: my_method (source " in table


@pytest.mark.parametrize("kind", [kind for kind in GROUPS if kind != "executor"])
def test_a_new_package_passes_check_at_once(kind: str, tmp_path, installed):
    done = CliRunner().invoke(cli, ["new", kind, f"my_{kind}", "--to", str(tmp_path / "new")])
    assert done.exit_code == 0 and f"mtlbench check my_{kind}" in done.output
    checked = call("check", f"my_{kind}", cwd=tmp_path, path=installed(tmp_path / "new", tmp_path / "site"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "  ok  " in checked.stdout and "  failed  " not in checked.stdout


@pytest.mark.slow
def test_a_new_executor_runs_a_cell(tmp_path, installed):
    CliRunner().invoke(cli, ["new", "executor", "my_executor", "--to", str(tmp_path / "new")])
    path = installed(tmp_path / "new", tmp_path / "site")
    checked = call("check", "my_executor", cwd=tmp_path, path=path)
    assert checked.returncode == 0 and "ok      run" in checked.stdout, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method", "torch"), "A module 'torch' is installed already"),
        (("method", "lora"), "A method 'lora' is installed already"),
        (("suite", "My-suite"), "'My-suite' cannot name a module"),
        (("report", "mine", "--to", "full"), "is there already"),
        (("report", "mine", "--to", "full/file/deep"), "cannot be written"),
    ],
)
def test_a_package_that_would_be_in_the_way_is_refused(words, message, tmp_path, monkeypatch):
    from mtlbench.errors import RequestError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    done = CliRunner().invoke(cli, ["new", *words])
    assert isinstance(done.exception, RequestError) and message in str(done.exception)
