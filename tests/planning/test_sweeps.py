"""Options with several values: every combination is planned once, and what is no sweep is refused before compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mtlbench.cli import cli
from mtlbench.errors import RequestError
from mtlbench.planning.plan import plan_of

ASKED: dict[str, Any] = {"methods": "base,lora", "tasks": "glue/rte", "seeds": "0,1"}


def test_the_cells_are_the_product_of_the_values():
    plan = plan_of({**ASKED, "train_rows": (100, 300), "model": "demo,demo-t5"})
    cells = {(c.method, c.seed, c.model, c.protocol.train_rows) for c in plan.cells}
    assert len(plan.cells) == len(cells) == 16
    assert {c.protocol.data for c in plan.cells} == {plan.cells[0].protocol.data}
    assert plan.to_json()["sweeps"] == {"train_rows": [100, 300], "model": ["demo", "demo-t5"]}
    assert plan.default_folder == Path("runs/glue-demo-demo-t5")


def test_a_cell_of_a_sweep_is_the_cell_of_the_single_request():
    swept = plan_of({**ASKED, "steps": (4, 8)})
    alone = [cell.key for steps in (4, 8) for cell in plan_of({**ASKED, "steps": steps}).cells]
    assert [cell.key for cell in swept.cells] == alone
    assert "sweeps" not in plan_of(ASKED).to_json()


def test_each_part_of_a_preset_is_swept():
    parts = plan_of({"preset": "peml/objective", "model": "demo", "seeds": "0"})
    swept = plan_of({"preset": "peml/objective", "model": "demo", "seeds": "0", "train_rows": (20, 40)})
    assert len(swept.cells) == 2 * len(parts.cells) > 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"train_rows": (100, 300, 100)}, "--train-rows 100,300,100: a sweep needs different values, each once"),
        ({"learning_rate": (1e-3, 0.001)}, "--learning-rate 0.001,0.001: a sweep needs different values"),
        ({"model": "demo,demo"}, "--model demo,demo: a sweep needs different values"),
        ({"model": "demo,"}, "--model demo,: a sweep needs different values"),
        ({"model": "demo,dmo"}, "There is no model 'dmo'. Did you mean 'demo'"),
        ({"model": "demo,some/model"}, "these have different data"),
        ({"epochs": (1.0, 2.0), "steps": 5}, "--epochs is ignored where --steps is given"),
        ({"train_rows": (100, 0)}, "train_rows must be at least 1, got 0"),
    ],
)
def test_what_is_no_sweep_is_refused(words: dict[str, Any], message: str):
    with pytest.raises(RequestError) as caught:
        plan_of({**ASKED, **words})
    assert message in str(caught.value)


def test_a_folder_with_a_comma_in_its_name_is_one_model(tmp_path):
    from mtlbench.planning.sweeps import sweeps_of

    (tmp_path / "a,b").mkdir()
    assert sweeps_of({"model": str(tmp_path / "a,b")}) == {}


def test_methods_with_a_rate_of_their_own_are_named():
    plan = plan_of({**ASKED, "methods": "lora,bitfit", "learning_rate": (1e-4, 1e-3)})
    assert any("and bitfit sets its own" in note for note in plan.notes)
    assert not any("sets its own" in note for note in plan_of({**ASKED, "learning_rate": (1e-4, 1e-3)}).notes)


def asked(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [*words, "--tasks", "glue/rte"])
    return done.exit_code, f"{done.output}{done.exception}"


def test_the_command_counts_the_cells_and_names_the_values():
    code, output = asked("plan", "--methods", "lora", "--no-base", "--epochs", "0.5,1", "--seeds", "0,1")
    assert code == 0, output
    assert "4 cells: 4 to run" in output and "sweep: epochs 0.5, 1: 2 combinations of 2 cells" in output
    assert "lora seed 1, epochs=0.5" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--methods", "lora", "--train-rows", "100,many"], "'many' is not a valid integer"),
        (["plan", "--methods", "lora", "--train-rows", "100,"], "'' is not a valid integer"),
        (["run", "--methods", "lora", "--train-rows", "9,8", "--tune", "quick"], "so it takes no sweep"),
        (["tune", "--method", "lora", "--model", "demo,demo-t5"], "so it takes no sweep"),
    ],
)
def test_the_command_refuses_before_anything_runs(words: list[str], message: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = asked(*words)
    assert code != 0 and message in output
    assert not list(tmp_path.iterdir())
