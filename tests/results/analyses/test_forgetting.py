"""Forgetting by hand: means, intervals over seeds, what has none, and how every report says it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from record_builder import PROTOCOL, accuracy, cell, done

from mtlbench.api.record import ProbeScore, Record
from mtlbench.api.study import Study, Table
from mtlbench.plugins import load_report
from mtlbench.results.analyses.probing import forgetting, forgetting_columns, forgetting_legend, probed
from mtlbench.results.study import study_of

TASKS = ("suite/a", "suite/b")
PROBED = replace(PROTOCOL, probe=",".join(TASKS))
WHY = "routed routes examples by their task"


def record(
    method: str, seed: int, *after: float | None, before: Sequence[float] = (80.0, 40.0), majority: float = 30.0
) -> Record:
    scores = {
        task: ProbeScore(
            before=accuracy(b, majority=majority),
            after=None if a is None else accuracy(a, majority=majority),
            refusal=WHY if a is None else "",
        )
        for task, b, a in zip(TASKS, before, after, strict=True)
    }
    return done(cell(method, seed, protocol=PROBED), 60.0, 20.0, probe=scores)


def study() -> Study:
    return study_of(
        [
            *(record("base", seed, 80.0, 40.0) for seed in (0, 1, 2)),
            *(record("lora", seed, a, 45.0) for seed, a in enumerate((70.0, 72.0, 77.0))),
            *(record("routed", seed, None, None) for seed in (0, 1, 2)),
        ]
    )


def table() -> Table:
    (only,) = study().tables
    return only


def test_forgetting_is_a_mean_over_seeds_with_students_interval():
    rows = {row.label: row for row in table().rows}
    found = forgetting(rows["lora"], ("suite/a",))
    assert found is not None and found.interval is not None
    assert found.points.values == (10.0, 8.0, 3.0) and found.points.mean == pytest.approx(7.0)
    reach = 4.302653 * (13 / 3) ** 0.5  # Student's t with 2 degrees of freedom, variance 13, 3 seeds
    assert (found.interval.low, found.interval.high) == pytest.approx((7 - reach, 7 + reach), abs=1e-4)
    both = forgetting(rows["lora"], TASKS)
    assert both is not None and both.points.values == (2.5, 1.5, -1.0)
    assert (both.before, both.after) == pytest.approx((60.0, 59.0))


def test_equal_seeds_and_one_seed_have_no_interval_and_a_refusal_no_number():
    rows = {row.label: row for row in table().rows}
    base = forgetting(rows["base"], TASKS)
    assert base is not None and base.points.mean == 0 and base.interval is None
    assert forgetting(rows["routed"], TASKS) is None
    (alone,) = study_of([record("lora", 0, 70.0, 45.0)]).tables
    one = forgetting(alone.rows[0], TASKS)
    assert one is not None and one.interval is None and "interval" not in forgetting_legend(alone)


def test_columns_and_legend():
    of = table()
    columns = {column.name: column for column in forgetting_columns(of)}
    assert list(columns) == ["a", "b", "mean"] and len(probed(of)) == 3
    rows = {row.label: row for row in of.rows}
    assert columns["b"].text(rows["lora"]) == "−5.0" and columns["b"].value(rows["lora"]) == -5.0
    assert columns["a"].text(rows["lora"]).startswith("+7.0 [−2.0, +16.0]")
    assert columns["mean"].text(rows["routed"]) == "–" and columns["mean"].value(rows["routed"]) is None
    legend = forgetting_legend(of)
    assert "Untrained: a 80.0, b 40.0." in legend and f"– {WHY}." in legend and "†" not in legend


def test_a_task_that_the_backbone_does_not_know_is_marked():
    (of,) = study_of([record("lora", 0, 70.0, 45.0, majority=50.0)]).tables
    assert "Untrained: a 80.0, b 40.0†; † at or below the majority class, so there is nothing to forget" in (
        forgetting_legend(of)
    )


def test_a_table_without_a_probe_has_no_columns():
    (of,) = study_of([done(cell(), 60.0, 20.0)]).tables
    assert forgetting_columns(of) == [] and forgetting_legend(of) == ""
    assert "forgetting.csv" not in load_report("csv").render(study_of([done(cell(), 60.0, 20.0)]))


def test_cells_with_and_without_a_probe_share_no_table():
    made = study_of([record("lora", 0, 70.0, 45.0), done(cell(), 60.0, 20.0)])
    assert len(made.tables) == 2 and any("probe=none" in one.title for one in made.tables)


def test_every_report_shows_forgetting():
    made = study()
    lines = list(csv.DictReader(io.StringIO(load_report("csv").render(made)["forgetting.csv"])))
    assert [(x["label"], x["task"]) for x in lines[:3]] == [(lines[0]["label"], t) for t in (*TASKS, "mean")]
    by_row = {(x["label"], x["task"]): x for x in lines}
    assert by_row["lora", "suite/b"]["forgetting"] == "-5.0" and by_row["lora", "suite/a"]["seeds"] == "3"
    assert by_row["routed", "mean"]["reason"] == WHY and by_row["routed", "mean"]["before"] == "60.0"
    assert "+7.0 [−2.0, +16.0]" in load_report("markdown").render(made)["report.md"]
    assert "tab:forgetting" in load_report("latex").render(made)["tables.tex"]
    page = load_report("html").render(made)["report.html"]
    assert "<h3>Forgetting</h3>" in page and "chart-1-forgetting" in page and "80.00 before training" in page
    charts = load_report("charts").render(made)
    assert "chart-forgetting.svg" in charts
    assert f"Not shown: routed ({WHY})" in str(charts["charts.txt"])
