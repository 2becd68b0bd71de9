"""The untrained backbone is a row of every table that a command makes, unless it is left out by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mtlbench.cli import cli
from mtlbench.planning.plan import make_plan, plan_of
from mtlbench.planning.request import Request, Requests, read_requests, with_base
from mtlbench.results.documents import study_in
from mtlbench.store import RunFolder

SMALL = ["--steps", "2", "--train-rows", "40", "--eval-rows", "4", "--batch-size", "8"]


def planned(*words: str) -> list[str]:
    """Method and seed of each cell of a plan, in the order shown."""
    shown = CliRunner().invoke(cli, ["plan", *words])
    assert shown.exit_code == 0, shown.output
    return [line.removeprefix("to run").strip() for line in shown.stdout.splitlines() if line.startswith("to run ")]


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (["--methods", "lora"], ["base seed 0", "lora seed 0"]),
        (["--methods", "lora,base"], ["lora seed 0", "base seed 0"]),
        (["--methods", "lora", "--no-base"], ["lora seed 0"]),
        (["--methods", "base", "--no-base"], ["base seed 0"]),
        (["--methods", "lora", "--seeds", "0,1"], ["base seed 0", "lora seed 0", "base seed 1", "lora seed 1"]),
    ],
)
def test_a_plan_has_it_once_for_each_seed(words: list[str], cells: list[str]) -> None:
    assert planned(*words, "--tasks", "glue/rte") == cells


def test_every_part_of_a_preset_has_it_and_requests_of_the_program_have_not() -> None:
    opened = read_requests({"preset": "ta_lora/table-2", "model": "demo", "methods": "lora"})
    parts = with_base(opened).parts
    assert len(parts) == len(opened.parts) > 1 and all(part.methods == "base,lora" for part in parts)
    assert [cell.method for cell in make_plan(Request(methods="lora", tasks="glue/rte")).cells] == ["lora"]
    assert [cell.method for cell in plan_of({"methods": "lora", "tasks": "glue/rte"}).cells] == ["lora"]


def test_beside_settings_of_a_search_it_is_not_of_that_search() -> None:
    tuning = "study:0123456789ab"
    searched = Request(methods="lora[learning_rate=0.01]", tasks="glue/rte", protocol={"tuning": tuning, "steps": 3})
    one, other = with_base(Requests(parts=(searched,), notes=())).parts
    assert one == searched and other.methods == "base" and other.protocol == {"steps": 3}


def test_it_is_scored_and_what_an_earlier_command_asked_for_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--methods", "lora", "--tasks", "glue/rte", *SMALL, "--workers", "1", "--device", "cpu", "--out", str(out)]
    assert CliRunner().invoke(cli, ["run", *words, "--no-base"]).exit_code == 0
    (first,) = (out / "requests").iterdir()
    before = first.read_bytes()
    assert {cell.method for cell in RunFolder(out).expected()} == {"lora"}
    again = CliRunner().invoke(cli, ["run", *words])
    assert again.exit_code == 0, again.output
    assert first.read_bytes() == before
    (table,) = study_in(RunFolder(out), draws=0).tables
    assert {row.label: row.outcome for row in table.rows} == {"base": "1 of 1 seeds", "lora": "1 of 1 seeds"}
