"""Presets of paper tables: each is planned on the demo, and what cannot be had is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mtlbench.cli import cli
from mtlbench.errors import RequestError
from mtlbench.planning.plan import Plan, plan_of
from mtlbench.planning.presets import open_preset, preset
from mtlbench.store import RunFolder

PEML = [f"peml/table-{number}" for number in range(1, 12)]
TA_LORA = [f"ta_lora/table-{number}" for number in (1, 2, 3)]


def planned(name: str, **given: Any) -> Plan:
    return plan_of({"preset": name, "model": "demo", **given})


@pytest.mark.parametrize("name", PEML)
def test_each_table_of_peml_is_planned_on_the_demo(name: str):
    plan, words = planned(name), preset(name)
    protocols = {part.get("name", words["name"]) for part in words.get("parts", ({},))}
    assert {cell.protocol.name for cell in plan.cells} == protocols, "taken as they are"
    assert {cell.seed for cell in plan.cells} == {0, 1, 2} and plan.models == ("demo",)
    assert all(cell.protocol.data.startswith("demo:") for cell in plan.cells)
    assert any(cell.method == "peml" for cell in plan.cells)
    models = [part["model"] for part in words["parts"]] if "parts" in words else [words["model"]]
    assert all("/" in model for model in models), "a hub id where --model is not given"


def test_low_data_tables_use_500_and_300_rows_and_a_tenth_of_the_training_split_held_out():
    for number, rows in ((7, 500), (8, 300)):
        protocols = {cell.protocol for cell in planned(f"peml/table-{number}").cells}
        assert {(p.train_rows, p.holdout) for p in protocols} == {(rows, 0.1)}


def test_a_table_of_several_backbones_and_suites_is_one_request():
    parts = open_preset("peml/table-10", {}).parts
    assert len({part["model"] for part in parts}) == 3 and len({part["tasks"] for part in parts}) == 4
    assert len(planned("peml/table-10", seeds="0").cells) == 4, "on one backbone the parts that are alike are one"


@pytest.mark.parametrize("name", TA_LORA)
def test_each_table_of_ta_lora_is_planned_on_the_demo_with_a_method_that_is_there(name: str):
    cells = planned(name, methods="lora", seeds="0").cells
    unseen = [cell for cell in cells if cell.protocol.sources]
    assert unseen and all(len(cell.protocol.source_tasks) == 8 for cell in unseen)
    assert all(cell.tasks[:8] == cell.protocol.source_tasks and len(cell.scored) in (4, 8) for cell in unseen)
    if name == "ta_lora/table-2":
        assert [cell.protocol.k_shot for cell in cells] == ["16", "32", "64"]


def test_the_tables_of_ta_lora_name_its_settings_and_nothing_of_them_is_missing():
    plan = planned("ta_lora/table-1", seeds="0")
    assert not [note for note in plan.notes if "left out" in note]
    own = {cell.variant for cell in plan.cells if cell.method == "ta_lora"}
    assert own == {"ta_lora[layers=14,prefix_length=20]"}
    ablations = {cell.variant for cell in planned("ta_lora/table-3", seeds="0").cells}
    assert len(ablations) == 4 and "ta_lora[layers=14,prefix_length=20,zero_init=false]" in ablations


def test_methods_that_are_not_installed_are_left_out_and_named(monkeypatch: pytest.MonkeyPatch):
    words: Mapping[str, Any] = {"tasks": "glue/rte", "methods": "lora,nobody[rank=4,x=1],noone"}
    monkeypatch.setitem(_presets_of_glue(), "glue/some", words)
    plan = planned("glue/some", seeds="0")
    assert {cell.method for cell in plan.cells} == {"lora"}
    (note,) = [note for note in plan.notes if "left out" in note]
    assert "nobody" in note and "noone" in note
    assert plan.to_json()["notes"] == list(plan.notes)
    told = CliRunner().invoke(cli, ["plan", "--preset", "glue/some", "--model", "demo"])
    assert told.exit_code == 0 and note in told.stderr


def test_a_preset_without_any_installed_method_is_refused(monkeypatch: pytest.MonkeyPatch):
    words: Mapping[str, Any] = {"tasks": "glue/rte", "methods": "nobody[rank=4,x=1],lora+nobody"}
    monkeypatch.setitem(_presets_of_glue(), "glue/nobody", words)
    with pytest.raises(RequestError, match=r"None of the methods .* \(nobody\[rank=4,x=1\], lora\+nobody\)"):
        planned("glue/nobody")
    assert len(planned("glue/nobody", methods="lora").cells) == 1


def test_words_given_win_in_every_part_and_epochs_put_steps_out_of_force(monkeypatch: pytest.MonkeyPatch):
    words = {"methods": "lora", "steps": 9, "parts": ({"tasks": "glue/rte"}, {"tasks": "glue/sst2", "steps": 5})}
    monkeypatch.setitem(_presets_of_glue(), "glue/parts", words)
    assert [cell.protocol.steps for cell in planned("glue/parts").cells] == [9, 5]
    assert [cell.protocol.steps for cell in planned("glue/parts", steps=2).cells] == [2, 2]
    assert [(c.protocol.steps, c.protocol.epochs) for c in planned("glue/parts", epochs=2.0).cells] == [(None, 2.0)] * 2
    assert len(planned("glue/parts", tasks="glue/mrpc", steps=1).cells) == 1


def _presets_of_glue() -> dict[str, Any]:
    from mtlbench.plugins import load_suite

    presets = load_suite("glue").presets
    assert isinstance(presets, dict)
    return presets


SMALL = (
    "--no-base", "--model", "demo", "--seeds", "0", "--steps", "3", "--batch-size", "8", "--eval-rows", "6",
    "--workers", "1",
)  # fmt: skip


def test_the_orders_of_table_11_run_on_the_demo(tmp_path: Path):
    words = ("--evals-per-run", "1", "--train-rows", "40", "--out", str(tmp_path / "out"))
    done = CliRunner().invoke(cli, ["run", "--preset", "peml/table-11", *SMALL, *words])
    assert done.exit_code == 0, done.output
    records = RunFolder(tmp_path / "out").records().values()
    assert sorted(record.cell.variant for record in records) == [
        "peml", "peml[order=lora_then_prefix]", "peml[order=prefix_then_lora]",
    ]  # fmt: skip
    for record in records:
        assert record.status == "ok" and len(record.scores) == 5
        assert record.cell.protocol.name.startswith("peml_metric + ")


def test_few_shots_of_table_2_run_on_the_demo(tmp_path: Path):
    words = ("--methods", "mtl_lora", "--adapt-steps", "2", "--train-rows", "80", "--out", str(tmp_path / "out"))
    done = CliRunner().invoke(cli, ["run", "--preset", "ta_lora/table-2", *SMALL, *words])
    assert done.exit_code == 0, done.output
    records = RunFolder(tmp_path / "out").records().values()
    assert sorted(record.cell.protocol.k_shot for record in records) == ["16", "32", "64"]
    for record in records:
        assert record.status == "ok", record.failure
        assert set(record.scores) == set(record.cell.scored) and len(record.scores) == 8
        assert record.costs is not None and record.costs.steps == 5
        first, second = record.notes["stages"]
        assert set(first["tasks"]) == set(record.cell.protocol.source_tasks) and first["steps"] == [0, 3]
        assert set(second["tasks"]) == set(record.cell.scored) and second["steps"] == [3, 5]
