"""Tables that differ in one field alone make a curve and a table; others do not."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from record_builder import COSTS, PROTOCOL, cell, done

from mtlbench.api.record import Record
from mtlbench.api.study import Study
from mtlbench.plugins import load_report
from mtlbench.results.analyses.sweeps import sweep_columns, sweeps_in
from mtlbench.results.study import study_of

TASKS = ("glue/rte", "glue/sst2", "glue/qnli")


def at(rows: int | None, *methods: str, model: str = "demo", **fields: object) -> list[Record]:
    """Two seeds of each method, better with more rows."""
    protocol = replace(PROTOCOL, train_rows=rows, **fields)
    score = 50.0 + (rows or 0) / 100
    cells = [cell(method, seed, tasks=TASKS, protocol=protocol, model=model) for method in methods for seed in (0, 1)]
    return [done(one, *[score + one.seed] * len(TASKS)) for one in cells]


def found(*records: list[Record]) -> list:
    return sweeps_in(study_of([one for some in records for one in some]).tables)


def test_one_field_that_differs_is_a_sweep_in_the_order_of_its_values():
    (sweep,) = found(at(1000, "lora"), at(100, "lora", "peml"), at(300, "lora", "peml"))
    assert sweep.field == "train_rows" and [point.value for point in sweep.points] == [100, 300, 1000]
    assert sweep.title == "Sweep of train_rows: glue/rte, glue/sst2, glue/qnli on demo: demo data, demo backbone"
    columns = sweep_columns(sweep)
    assert [column.name for column in columns] == ["100", "300", "1000"]
    rows = {one.label: one for one in sweep.rows}
    assert [columns[n].value(rows["lora"]) for n in range(3)] == [51.5, 53.5, 60.5]
    assert columns[2].text(rows["peml"]) == "–" and columns[0].text(rows["peml"]).startswith("51.5 ± 0.7")


def test_two_fields_that_differ_together_are_none():
    assert found(at(100, "lora", steps=5), at(300, "lora", steps=9)) == []
    assert found(at(100, "lora", batch_size=8), at(100, "lora", batch_size=16)) == []


def test_one_value_is_no_sweep_and_all_rows_have_no_place():
    assert found(at(100, "lora", "peml")) == []
    assert found(at(100, "lora"), at(None, "lora")) == []
    assert [point.value for point in found(at(100, "lora"), at(None, "lora"), at(300, "lora"))[0].points] == [100, 300]


def test_a_product_of_two_fields_is_one_sweep_for_each_value_of_the_other():
    sweeps = found(*(at(rows, "lora", steps=steps) for rows in (100, 300) for steps in (5, 9)))
    assert [(one.field, one.fixed) for one in sweeps] == [
        ("train_rows", "steps=5"),
        ("train_rows", "steps=9"),
        ("steps", "train_rows=100"),
        ("steps", "train_rows=300"),
    ]


def models() -> Study:
    big = replace(COSTS, backbone_parameters=4_000_000)
    small = [done(cell("lora", seed, model="small"), 60.0 + seed, 40.0) for seed in (0, 1)]
    return study_of(small + [done(cell("lora", seed, model="a-big-one"), 70.0, 60.0, costs=big) for seed in (0, 1)])


def test_backbones_stand_at_their_parameters():
    (sweep,) = sweeps_in(models().tables)
    assert [(point.label, point.position) for point in sweep.points] == [("small", 1e6), ("a-big-one", 4e6)]
    assert any(name.endswith("sweep-model.svg") for name in load_report("charts").render(models()))


def test_every_report_shows_the_sweep():
    made = study_of([*at(100, "lora", "peml"), *at(300, "lora")])
    markdown = load_report("markdown").render(made)["report.md"]
    assert markdown.index("Sweep of train_rows") < markdown.index("\n## ")
    assert "| peml   |" in markdown
    lines = list(csv.DictReader(io.StringIO(load_report("csv").render(made)["sweeps.csv"])))
    assert [(x["label"], x["value"], x["average"]) for x in lines] == [
        ("lora", "100", "51.5"),
        ("lora", "300", "53.5"),
        ("peml", "100", "51.5"),
        ("peml", "300", ""),
    ]
    assert {x["table"] for x in lines} == {"1", "2"}
    assert "tab:sweep-1-train-rows" in load_report("latex").render(made)["tables.tex"]
    page = load_report("html").render(made)["report.html"]
    assert "<h2>Sweep of train_rows" in page and "-sweep-train_rows" in page


def test_the_curve_needs_two_values_of_a_row():
    made = study_of([*at(100, "lora", "peml"), *at(300, "lora")])
    charts = load_report("charts").render(made)
    assert any(name.endswith("sweep-train_rows.svg") for name in charts)
    assert "Not shown, with fewer than two values: peml." in str(charts["charts.txt"])
    apart = load_report("charts").render(study_of([*at(100, "lora"), *at(300, "peml")]))
    assert not any("sweep-train_rows" in name for name in apart)
    assert "no row has an average at two values" in str(apart["charts.txt"])
