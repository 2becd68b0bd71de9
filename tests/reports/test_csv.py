"""The CSV report: every number comes back as it was, and text cannot run as a formula."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from record_builder import PROTOCOL, cell, done, failed, skipped

from mtlbench.api.record import TaskScore
from mtlbench.plugins import load_report
from mtlbench.results.study import study_of


def documents(records, **words) -> dict[str, list[dict[str, str]]]:
    made = load_report("csv").render(study_of(records, **words))
    return {name: list(csv.DictReader(io.StringIO(text))) for name, text in made.items()}


def test_scores_have_a_line_per_cell_and_task_and_metrics_one_per_metric():
    both = TaskScore(score=100 / 3, metrics={"acc": 0.1 + 0.2, "f1": 0.5}, rows=277, majority=52.7)
    records = [replace(done(cell(seed=s), 60.0, 20.0), scores={"glue/rte": both, "glue/cola": both}) for s in (0, 1)]
    made = documents(records)
    lines = made["scores.csv"]
    assert [(x["seed"], x["task"]) for x in lines] == [
        (seed, task) for seed in "01" for task in ("glue/rte", "glue/cola")
    ]
    assert [(x["seed"], x["task"], x["metric"]) for x in made["metrics.csv"]] == [
        (seed, task, metric) for seed in "01" for task in ("glue/rte", "glue/cola") for metric in ("acc", "f1")
    ]
    assert float(made["metrics.csv"][0]["value"]) == 100 * (0.1 + 0.2), "in percent, as scores are"
    assert [x["key"] for x in made["costs.csv"]] == [record.key for record in records]
    first = lines[0]
    assert float(first["score"]) == 100 / 3
    assert (first["rows"], first["majority"], first["status"]) == ("277", "52.7", "ok")
    assert first["key"] == records[0].key and first["protocol"] == PROTOCOL.hash()
    assert "demo data" in first["title"] and first["plugins"] == "mtlbench=0.1.0"


def test_cells_without_scores_have_a_line_with_the_reason():
    records = [failed(cell("lora", 1)), skipped(cell("peml"))]
    lines = documents(records, expected=[cell("base")])["scores.csv"]
    assert {(x["variant"], x["status"], x["reason"]) for x in lines} == {
        ("lora", "failed", "seed 1 failed: oom: CUDA out of memory"),
        ("peml", "skipped", "seed 0 skipped: refused: needs two tasks"),
        ("base", "missing", "seed 0 missing: no record yet"),
    }
    assert all(x["score"] == x["task"] == "" for x in lines)


def test_the_summary_has_a_line_per_row_and_columns_for_the_tasks_of_all_tables():
    records = [done(cell(seed=s), 60.0 + s, 20.0) for s in (0, 1)] + [done(cell(tasks=("x/y",)), 33.0)]
    lines = documents(records)["summary.csv"]
    parts = ("", "_sd", "_low", "_high", "_mark")
    columns = [f"{task}{part}" for task in ("glue/rte", "glue/cola", "x/y", "average") for part in parts]
    assert list(lines[0])[5:25] == columns
    both = next(x for x in lines if x["seeds"] == "2")
    assert (both["glue/rte"], both["average"], both["x/y"]) == ("60.5", "40.25", "")
    assert float(both["glue/rte_sd"]) == 0.5**0.5
    single = next(x for x in lines if x["seeds"] == "1")
    assert (single["x/y"], single["x/y_sd"], single["glue/rte"]) == ("33.0", "", "")
    assert both["peak_memory"] == str(512 * 2**20) and float(both["adapter_bytes"]) == 98 * 2**10


def test_odd_names_come_back_whole_and_formulas_are_disarmed():
    odd = cell('=cmd|"x",y', tasks=("@s/a", "+s/b"), settings={"k": "two\nlines"})
    made = documents([replace(done(odd, -5.0, 20.0), provenance={})])
    line = made["scores.csv"][0]
    assert line["variant"] == '\'=cmd|"x",y[k=two lines]'
    assert line["task"] == "'@s/a" and line["score"] == "-5.0"
    assert made["summary.csv"][0]["'@s/a"] == "-5.0"
