"""``docs/suites.md`` says of every task what the task states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtlbench.api.task import Task
from mtlbench.conformance.suites import CHECKS
from mtlbench.plugins import load_suite, offers

PAGE = (Path(__file__).parents[2] / "docs" / "suites.md").read_text()
OURS = [name for name, found in offers("tasks").items() if found[0].distribution == "mtlbench"]
PEML = {
    "1": "glue", "2": "glue", "7": "glue", "3": "superglue", "4": "superglue", "8": "superglue", "9": "superglue",
    "11": "superglue",
}  # fmt: skip


def line(task: Task) -> str:
    numbers: dict[str, list[str]] = {}
    for table in task.tables:
        paper, _, number = table.partition("/table-")
        numbers.setdefault(paper, []).append(number)
    tables = "; ".join(f"{paper} {', '.join(found)}" for paper, found in numbers.items()) or "-"
    data = f"{task.dataset} {task.config or ''}".rstrip()
    splits, metrics = f"{task.train_split}, {task.eval_split}", ", ".join(task.metrics)
    return f"| `{task.name}` | {data} | {splits} | {metrics} | {tables} | {task.licence} | {task.source} |"


@pytest.mark.parametrize("name", sorted(set(OURS) - {"mmlu", "mmlu_5shot", "mmlu_auxiliary"}))
def test_every_task_of_a_suite_has_its_line(name):
    section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert [row for row in section.splitlines() if row.startswith("| `")] == [line(t) for t in load_suite(name).tasks]


def test_every_suite_is_in_the_overview():
    overview = PAGE.partition("\n## ")[0]
    assert all(f"`{name}`" in overview for name in OURS)


def test_every_check_is_described_as_the_command_describes_it():
    assert all(f"| `{check}` | {promise} |" in PAGE for check, promise in CHECKS.items())


def test_tables_are_stated_by_the_tasks_in_their_columns(shared_data):
    for table in json.loads((shared_data.parent / "published" / "paper_tables.json").read_text())["tables"]:
        if table["paper"].startswith("PEML") and table["table"] in PEML:
            suite = load_suite(PEML[table["table"]])
            stated = {task.name for task in suite.tasks if f"peml/table-{table['table']}" in task.tables}
            assert stated == {column.lower() for column in table["columns"]}, table["table"]
