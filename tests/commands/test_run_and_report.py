"""What ``run`` says at its end, the threads of workers, and ``report`` of several folders or of some rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtlbench.cli import cli
from mtlbench.commands.shared import names_in
from mtlbench.errors import RequestError
from mtlbench.store import RunFolder

SMALL = ("--tasks", "glue/rte", "--steps", "2", "--batch-size", "8", "--train-rows", "16", "--eval-rows", "8")


def invoke(*words: object) -> Result:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders: a run in two commands, and a run of another seed."""
    path = tmp_path_factory.mktemp("runs")
    first = invoke("run", "--methods", "base", *SMALL, "--workers", "1", "--threads", "1", "--out", path / "a b")
    again = invoke("run", "--methods", "base, lora", *SMALL, "--workers", "1", "--threads", "1", "--out", path / "a b")
    assert first.exit_code == again.exit_code == 0
    (path / "first.txt").write_text(first.stdout)
    (path / "again.txt").write_text(again.stdout)
    (path / "stderr.txt").write_text(again.stderr)
    assert "had records already" not in first.stderr
    return path


def test_a_run_ends_in_its_table_and_says_what_was_there(runs: Path) -> None:
    first, again, stderr = ((runs / name).read_text() for name in ("first.txt", "again.txt", "stderr.txt"))
    assert "demo data" in first.splitlines()[0] and first.splitlines()[1].split() == ["method", "average", "glue/rte"]
    assert {line.split()[0] for line in again.splitlines()[2:4]} == {"base", "lora"}
    assert "1 of 2 cells had records already." in stderr
    assert f"mtlbench report '{runs / 'a b'}'" in stderr, "the path can be pasted"
    third = invoke("run", "--methods", "base,lora", *SMALL, "--out", runs / "a b")
    assert "All of the 2 cells had records already." in third.stderr and third.stdout == again


def test_a_report_of_some_rows_says_what_it_leaves_out(runs: Path) -> None:
    shown = invoke("report", runs / "a b", "--exclude", "base", "--to", runs / "some").stdout
    assert "Left out on request: 1 cell of base." in shown and "| base" not in shown and "| lora" in shown
    with pytest.raises(RequestError, match="Did you mean 'lora'"):
        invoke("report", runs / "a b", "--methods", "lroa", "--to", runs / "none")
    assert not (runs / "none").exists()


def test_a_cell_has_the_threads_that_were_asked_for(runs: Path) -> None:
    assert {r.provenance["threads"] for r in RunFolder(runs / "a b").records().values()} == {1}


def test_commas_in_brackets_belong_to_a_name() -> None:
    assert names_in("methods", "lora[rank=4,alpha=8], peml ,") == ("lora[rank=4,alpha=8]", "peml")
    assert names_in("methods", None) == ()
    with pytest.raises(RequestError, match="--methods is empty"):
        names_in("methods", " , ")


def test_tables_wider_than_the_terminal_go_on_below() -> None:
    from mtlbench.results.data.score_table import ScoreTable

    table = ScoreTable(
        title="wide",
        header=("method", "average", *(f"task{number}" for number in range(9))),
        rows=(("lora", *(f"{number}.0 ± 0.1" for number in range(10))),),
        best=((False, True, *(False for _ in range(9))),),
        notes=("a legend",),
    )
    lines = list(table.lines(40))
    assert all(len(line) <= 40 for line in lines) and sum(line.startswith("lora") for line in lines) == 4
    assert lines[1].split() == ["method", "average", "task0", "task1"] and "0.0 ± 0.1*" in lines[2]
    shown = [column for line in lines if line.startswith("method") for column in line.split()[1:]]
    assert shown == list(table.header[1:])
    assert len(list(table.lines(500))) == 4
