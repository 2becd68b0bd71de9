"""docs/schemas.md against real outputs: no field that is not on the page, none of another type, none that is missing."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from foreign_files import write_foreign

import mtlbench
from mtlbench.api.cell import canonical, digest
from mtlbench.cli import cli
from mtlbench.interface.study import SAMPLE
from mtlbench.results.data.tidy import OF_A_STUDY

PAGE = (Path(__file__).parents[2] / "docs" / "schemas.md").read_text(encoding="utf-8")
TYPES = {
    "text": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
    "empty": lambda value: value == "",
}


@dataclass(frozen=True)
class Field:
    """A line of a table of the page."""

    pattern: re.Pattern[str]
    kinds: tuple[str, ...]
    optional: bool
    opaque: bool


def fields(section: str) -> dict[str, Field]:
    """The table under a heading."""
    after = re.split(rf"^#+ {re.escape(section)}$", PAGE, flags=re.MULTILINE)[1]
    body = re.split(r"^#+ ", after, flags=re.MULTILINE)[0]
    found = {}
    for name, kind in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", body, re.MULTILINE):
        kinds = kind.partition(",")[0].strip()
        parts = [_part(part) for part in re.split(r"(\W|_)", name)]
        found[name] = Field(
            re.compile("".join(parts)), tuple(kinds.split(" or ")), "may be absent" in kind, "object" in kinds
        )
    assert found, section
    return found


def _part(part: str) -> str:
    if part == "TASK":
        return r"(?:glue/[a-z]+|average)"
    return r"[^\n]+" if re.fullmatch(r"[A-Z]+", part) else re.escape(part)


def leaves(value: Any, known: dict[str, Field], path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values, not deeper than the page goes."""
    field = of(path, known)
    if isinstance(value, dict) and not (field and field.opaque) and path and not value:
        return  # nothing in it
    if isinstance(value, dict) and not (field and field.opaque):
        for name, item in value.items():
            yield from leaves(item, known, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and field is None:
        for item in value:
            yield from leaves(item, known, f"{path}[]")
    elif value is None and field is None and any(name.startswith(f"{path}.") for name in known):
        return  # an object that is null as a whole
    else:
        yield path, value


def of(path: str, known: dict[str, Field]) -> Field | None:
    return next((field for field in known.values() if field.pattern.fullmatch(path)), None)


def problems(section: str, values: list[Any]) -> list[str]:
    """What of the values is not as the page says."""
    known, seen, wrong = fields(section), set(), []
    for value in values:
        for path, item in leaves(value, known):
            field = of(path, known)
            if field is None:
                wrong.append(f"{path} is not on the page")
                continue
            seen.add(field.pattern)
            if not any(fits(item, kind) for kind in field.kinds):
                wrong.append(f"{path} is {item!r}, the page says {' or '.join(field.kinds)}")
    missing = [name for name, field in known.items() if field.pattern not in seen and not field.optional]
    return [*dict.fromkeys(wrong), *(f"{name} is on the page and nowhere else" for name in missing)]


def fits(value: Any, kind: str) -> bool:
    if kind.startswith("list of "):
        return isinstance(value, list) and all(fits(item, kind.removeprefix("list of ")) for item in value)
    return bool(TYPES[kind](value))


def invoke(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


REQUEST = ("--methods", "base,lora", "--tasks", "glue/rte,glue/stsb", "--seeds", "0-1")
BUDGET = ("--steps", "3", "--batch-size", "8", "--train-rows", "24", "--eval-rows", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schemas") / "run"
    code, output = invoke("run", *REQUEST, *BUDGET, "--workers", "1", "--out", path)
    assert code == 0 and "average" in output, "a run ends in its table"
    foreign = write_foreign(path.parent)
    assert invoke("report", path, "--as", "csv", "--foreign", ",".join(map(str, foreign)))[0] == 0
    return path


def sealed(paths: Iterator[Path]) -> list[Any]:
    bodies = []
    for path in paths:
        content = json.loads(path.read_text())
        assert set(content) == {"body", "sha256"} and content["sha256"] == digest(content["body"], length=64)
        assert canonical(content["body"]) in path.read_text()
        bodies.append(content["body"])
    assert bodies
    return bodies


def test_the_check_finds_what_is_wrong() -> None:
    """A page that says too little, too much or something else is found out."""
    good = {"schema": 1, "id": "a", "created": "b", "words": {}, "cells": [{}]}
    assert problems("Requests", [good]) == []
    assert problems("Requests", [{**good, "more": 1}]) == ["more is not on the page"]
    assert problems("Requests", [{**good, "id": 3}]) == ["id is 3, the page says text"]
    assert problems("Requests", [{"schema": 1, "words": {}, "created": "b", "cells": [{}]}]) == [
        "id is on the page and nowhere else"
    ]


def test_records_and_requests(folder: Path) -> None:
    records = sealed((folder / "records").glob("*.json"))
    assert problems("Records", records) == []
    assert problems("Requests", sealed((folder / "requests").glob("*.json"))) == []


def test_samples_can_be_read_as_one_table_with_the_key_of_each_cell(folder: Path) -> None:
    assert problems("Samples", pq.read_table(folder / "samples").to_pylist()) == []
    assert tuple(fields("Samples")) == SAMPLE
    keys = {path.stem for path in (folder / "samples").glob("*.parquet")}
    assert set(pq.read_table(folder / "samples")["key"].to_pylist()) == keys and len(keys) == 4


def test_step_logs_are_json_from_the_first_line_on(folder: Path) -> None:
    logs = [path.read_text().splitlines() for path in (folder / "steps").glob("*.jsonl")]
    values = [json.loads(line) for log in logs for line in log]
    assert all("started" in json.loads(log[0]) for log in logs)
    assert problems("Step logs", values) == [] and sum("step" in value for value in values) == 6


@pytest.mark.parametrize("name", [*OF_A_STUDY, "summary"])
def test_csv_files(folder: Path, name: str) -> None:
    known = fields(f"{name}.csv")
    text = (folder / "report" / f"{name}.csv").read_text()
    header, *lines = csv.reader(io.StringIO(text))
    if name in OF_A_STUDY:
        assert header == list(known) == [column.name for column in OF_A_STUDY[name]]
    rows = [{n: read(value, of(n, known)) for n, value in zip(header, line, strict=True)} for line in lines]
    assert rows and all(" " not in column for column in header)
    assert problems(f"{name}.csv", rows) == []


def test_columns_of_what_only_some_studies_have() -> None:
    from mtlbench_reports.csv import _BALANCE, _FORGETTING, _SWEEPS

    assert tuple(fields("forgetting.csv")) == _FORGETTING and tuple(fields("sweeps.csv")) == _SWEEPS
    assert tuple(fields("balance.csv")) == _BALANCE


def read(text: str, field: Field | None) -> Any:
    """The number that a csv file writes, where the page says that it is one."""
    if field is None or not text or not {"number", "integer"} & set(field.kinds):
        return text
    return float(text) if "number" in field.kinds else int(text)


def test_the_mean_over_the_scores_of_a_row_is_what_the_table_shows(folder: Path) -> None:
    study = mtlbench.load(folder)
    means = study.scores().groupby("label")["score"].mean()
    (table,) = study.tables
    assert means.to_dict() == pytest.approx({row.label: row.average.scores.mean for row in table.rows if row.average})
    metrics = study.metrics()
    assert {"acc", "pearson", "spearman"} <= set(metrics["metric"]), "a task with two metrics is among them"
    metrics = metrics[~metrics["metric"].isin(["ece", "brier"])]
    pairs = metrics.groupby(["key", "task"])["value"].mean()
    assert pairs.to_dict() == pytest.approx(study.scores().set_index(["key", "task"])["score"].to_dict())


def test_json_of_commands(folder: Path, tmp_path: Path) -> None:
    def printed(*words: object) -> Any:
        code, output = invoke(*words, "--json")
        assert code == 0 and len(output.splitlines()) == 1
        return json.loads(output)

    before = sorted(folder.rglob("*"))
    listed = printed("list")
    assert problems("list --json", [listed]) == []
    planned = printed("plan", *REQUEST, *BUDGET, "--out", folder)
    fresh = printed("plan", *REQUEST, "--out", tmp_path / "new")
    status = printed("status", folder)
    assert planned["counts"]["ok"] == status["counts"]["ok"] == 4 and fresh["counts"]["missing"] == 4
    assert problems("plan --json and status --json", [planned, fresh, status]) == []
    report = printed("report", folder, "--foreign", ",".join(map(str, sorted(folder.parent.glob("*.json")))))
    assert problems("report --json", [report]) == []
    for name in OF_A_STUDY:
        rows = [{column: "" if value is None else value for column, value in row.items()} for row in report[name]]
        assert problems(f"{name}.csv", rows) == []
    assert problems("compare --json", [printed("compare", folder, folder)]) == []
    assert sorted(folder.rglob("*")) == before, "--json writes nothing"
