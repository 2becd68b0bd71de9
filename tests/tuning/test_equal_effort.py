"""``run --tune``: every method gets the same trials, the winner stands beside the default, and nothing is taken on trust."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from record_builder import done
from tuning_builder import Killed, Runner, folder_at

from mtlbench.api.cell import Cell
from mtlbench.api.study import Table
from mtlbench.api.tuning import TunedMethod
from mtlbench.cli import cli
from mtlbench.errors import RequestError
from mtlbench.planning.request import Request
from mtlbench.results.documents import study_in
from mtlbench.results.tuned import tuning_text
from mtlbench.store import RunFolder
from mtlbench.tuning.effort import read_effort
from mtlbench.tuning.equal import EqualStudy, make_study, run_searches

TASKS = "glue/rte,glue/sst2"
BEST = {"lora": 1e-3, "mtl_lora": 8e-3}
"""Two methods that differ in nothing but the learning rate that suits them; the default is 1e-3."""


def study(methods: str = "base,lora,mtl_lora", level: str = "standard", **words: Any) -> EqualStudy:
    request = Request(methods=methods, tasks=TASKS, **{"seeds": (0, 1, 2), "protocol": {"steps": 3}, **words})
    return make_study(request, read_effort(level))


def planted(cell: Cell) -> float:
    """Up to 70 points at the best rate, falling by 12 a decade from a quarter of one on; noise of half a point by seed."""
    if cell.method == "base":
        return 40.0
    away = abs(math.log10(float(str(cell.settings.get("learning_rate", 1e-3))) / BEST[cell.method]))
    return 70.0 - 12.0 * max(0.0, away - 0.25) + 0.5 * math.sin(1 + cell.seed % 1000)


def compared(made: EqualStudy, path: Path, score: Callable[[Cell], float | None] = planted) -> list[TunedMethod]:
    """The whole comparison in a folder, with planted scores."""
    folder, trials = folder_at(path), folder_at(path / "tuning")
    found, code = run_searches(made, trials, Runner(trials, score), tell=lambda line: None)
    assert code == 0
    folder.put_searches(found)
    Runner(folder, score)([*made.untuned, *made.tuned_cells(found)])
    return found


def table_in(path: Path, **words: Any) -> Table:
    (table,) = study_in(RunFolder(path), draws=0, **words).tables
    return table


def test_methods_that_differ_only_in_their_best_rate_differ_before_tuning_and_tie_after(tmp_path: Path) -> None:
    compared(study(), tmp_path / "run")
    table = table_in(tmp_path / "run")
    rows = {row.label: row for row in table.rows}
    assert set(rows) >= {"base", "lora", "mtl_lora", "mtl_lora (tuned)"}
    means = {label: row.average.scores.mean for label, row in rows.items() if row.average}
    assert means["lora"] - means["mtl_lora"] > 5
    tuned_lora = means.get("lora (tuned)", means["lora"])
    assert abs(means["mtl_lora (tuned)"] - tuned_lora) < 1
    moved = rows["mtl_lora (tuned)"].moved
    assert moved is not None and moved.points > 5
    assert moved.interval is not None and moved.interval.low > 0
    assert rows["base"].tuned is None and rows["mtl_lora"].tuned is None


def test_every_method_gets_the_same_rates_as_often_and_its_default_first() -> None:
    made = study("lora,mtl_lora,peml,full,prefixnas+adalora", level="quick")
    rates = [[trial.get("learning_rate") for trial in search.trials] for search in made.searches]
    assert all(each == rates[0] for each in rates) and len(rates) == 5
    assert len(rates[0]) == 6 and rates[0][0] is None and all(search.trials[0] == {} for search in made.searches)
    steps = [b / a for a, b in zip(rates[0][1:], rates[0][2:], strict=False)]
    assert max(steps) / min(steps) == pytest.approx(1, rel=1e-3), "even on a logarithmic scale"
    fields = {search.template.variant: set(search.fields) for search in made.searches}
    assert fields["peml"] == {"learning_rate", "prefix_length"} and fields["lora"] == {"learning_rate"}
    of_trials = {cell.protocol for cell in made.trial_cells}
    assert len(of_trials) == 1 and next(iter(of_trials)).eval_from_train == 0.2, "all on rows kept from training"
    assert not {cell.seed for cell in made.trial_cells} & {0, 1, 2}


def test_one_lucky_trial_does_not_win(tmp_path: Path) -> None:
    made = study("lora", level="quick")
    first, lucky = made.effort.seeds[0], made.searches[0].trials[1]["learning_rate"]

    def noisy(cell: Cell) -> float:
        luck = 25 if cell.seed == first and cell.settings.get("learning_rate") == lucky else 0
        return planted(cell) + luck

    (found,) = compared(made, tmp_path / "run", noisy)
    at_lucky = next(trial for trial in found.trials if trial.learning_rate == lucky)
    assert len(at_lucky.scores) == 3, "it was among the best three on its first seed"
    assert found.winner is not None and found.winner.learning_rate != lucky


def test_killed_at_any_cell_it_goes_on_and_finds_the_same(tmp_path: Path) -> None:
    made = study("lora,mtl_lora", level="quick")
    whole = compared(made, tmp_path / "whole")
    trials, ran = folder_at(tmp_path / "trials"), []
    for dies_at in (0, 5, 4, 9, 3, None):
        runner = Runner(trials, planted, dies_at)
        try:
            found, code = run_searches(made, trials, runner, tell=lambda line: None)
        except Killed:
            ran += runner.ran
            continue
        ran += runner.ran
    assert found == whole and code == 0
    assert len(ran) == len({cell.key for cell in ran}) == 2 * made.effort.cells


def test_what_is_left_is_counted_for_each_variant_of_a_method(tmp_path: Path) -> None:
    made = study("lora,lora[rank=4]", level="quick")
    folder = folder_at(tmp_path / "trials")
    whole = len(made.expected({}))
    Runner(folder, planted)(made.trial_cells[:4])  # four of six of the first variant
    left = made.expected(folder.records())
    assert whole - len(left) == 4
    trials = [cell for cell in left if cell.protocol.tuning == "trial"]
    assert sum(cell.variant == "lora[rank=4]" for cell in trials) == made.effort.cells


def test_where_the_default_wins_its_own_row_says_so_and_nothing_is_trained_twice(tmp_path: Path) -> None:
    made = study("lora", level="quick")
    found = compared(made, tmp_path / "run", lambda cell: 60.0 if "learning_rate" not in cell.settings else 50.0)
    assert made.tuned_cells(found) == ()
    request_cells = RunFolder(tmp_path / "run").expected()
    assert {cell.variant for cell in request_cells} == {"lora"}
    table = table_in(tmp_path / "run")
    (row,) = table.rows
    assert row.tuned is not None and tuning_text(row, table) == "default (won)"


def test_a_tuned_row_without_its_study_or_with_other_settings_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    found = compared(study(), path)
    files = sorted((path / "studies").glob("*.json"))
    assert len(files) == 2
    kept = files[0].read_bytes(), files[1].read_bytes()
    for file in files:
        file.unlink()
    told = study_in(RunFolder(path), draws=0)
    assert not any("(tuned)" in row.label for table in told.tables for row in table.rows)
    assert any("which is not in studies/" in note and "mtl_lora" in note for note in told.notes)
    for file, content in zip(files, kept, strict=True):
        file.write_bytes(content)
    (mine,) = (one for one in found if one.method == "mtl_lora")
    cell = made_cell = next(c for c in study().tuned_cells(found) if c.method == "mtl_lora")
    other = replace(made_cell, settings={"learning_rate": 0.5}, seed=7)
    folder = RunFolder(path)
    folder.put_request({"data": "demo"}, [other])
    claim = folder.claim(other.key)
    assert claim is not None and folder.publish(done(other, 99.0, 99.0), claim)
    told = study_in(folder, draws=0)
    assert any("chose others for mtl_lora" in note for note in told.notes)
    assert all(row.variant != other.variant for table in told.tables for row in table.rows)
    assert mine.settings == cell.settings
    files[0].write_bytes(b"{}")
    assert any("damaged" in note for note in study_in(folder, draws=0).notes)


def test_rows_of_two_studies_never_share_a_table_and_both_have_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run"
    compared(study("mtl_lora", level="quick"), path)
    made = study("mtl_lora", level="standard")
    found, _ = run_searches(made, folder_at(path / "more"), Runner(folder_at(path / "more"), planted), tell=print)
    RunFolder(path).put_searches(found)
    Runner(RunFolder(path), planted)(made.tuned_cells(found))
    tables = study_in(RunFolder(path), draws=0).tables
    assert len(tables) == 2
    assert [{row.label for row in table.rows} for table in tables] == [{"mtl_lora", "mtl_lora (tuned)"}] * 2


def test_a_reference_names_a_method_whatever_its_settings(tmp_path: Path) -> None:
    compared(study(), tmp_path / "run")
    assert table_in(tmp_path / "run", reference="mtl_lora (tuned)").reference == "mtl_lora (tuned)"
    assert table_in(tmp_path / "run", reference="mtl_lora").reference == "mtl_lora", "its own row has that very name"
    only = tmp_path / "only"
    cells = [
        Cell(method=m, settings=s, tasks=("glue/rte",), model="demo", protocol=study().untuned[0].protocol, seed=seed)
        for m, s in (("lora", {"learning_rate": 0.002}), ("mtl_lora", {}))
        for seed in (0, 1)
    ]
    Runner(folder_at(only), planted)(cells)
    assert table_in(only, reference="lora").reference == "lora[learning_rate=0.002]"
    with pytest.raises(RequestError, match="'dora', and none is of a method of that name"):
        table_in(only, reference="dora")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "lora", "--tune", "fast"), "Unknown --tune 'fast'"),
        (("--methods", "lora", "--tune", "quick", "--tune-trials", "1"), "--tune-trials must be from 2"),
        (("--methods", "lora[learning_rate=0.01]", "--tune", "quick"), "'lora' fixes learning_rate"),
        (("--methods", "base", "--tune", "quick"), "there is nothing to tune"),
        (("--methods", "lora", "--tune", "quick", "--eval-from-train", "0.5"), "--eval-from-train cannot be given"),
        (("--methods", "lora", "--tuning", "by hand"), "There is no search 'by hand'"),
        (("--methods", "lora", "--tune", "quick", "--k-shot", "4"), "Tune with --train-rows"),
    ],
)
def test_what_cannot_be_tuned_equally_is_refused_before_anything_runs(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    shown = CliRunner().invoke(cli, ["run", *words, "--tasks", "glue/rte", "--out", str(out)])
    assert isinstance(shown.exception, RequestError) and message in str(shown.exception)
    assert not out.exists()


def test_the_command_ends_in_a_table_of_defaults_and_tuned_rows_and_again_runs_nothing(tmp_path: Path) -> None:
    words = ["run", "--methods", "lora", "--tasks", "glue/rte", "--steps", "2", "--train-rows", "40"]
    words += ["--eval-rows", "8", "--batch-size", "8", "--tune", "quick", "--tune-trials", "3"]
    words += ["--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(cli, ["plan", *words[1:]])
    words += ["--workers", "1", "--device", "cpu", "--as", "markdown,csv,html,latex,charts"]
    assert "1 method x 3 trials" in shown.output and "at most 9 cells" in shown.output
    assert "base seed 0" in shown.output, "left out only with --no-base"
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0, shown.output
    assert " tuning |" in (tmp_path / "run" / "report" / "report.md").read_text()
    trials = RunFolder(tmp_path / "run" / "tuning").records()
    assert len(trials) == 9 and {record.cell.protocol.tuning for record in trials.values()} == {"trial"}
    (file,) = (tmp_path / "run" / "studies").glob("*.json")
    body = json.loads(file.read_text())["body"]
    assert body["variant"] == "lora" and len(body["trials"]) == 3
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "held-out score" in page and (tmp_path / "run" / "report" / "chart-rates.svg").is_file()
    assert "tuning" in (tmp_path / "run" / "report" / "summary.csv").read_text().splitlines()[0].split(",")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("records/*.json")}
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("records/*.json")} == before
