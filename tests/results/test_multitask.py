"""Rows compared with a reference: gain, negative transfer, ranks."""

from __future__ import annotations

import pytest
from record_builder import accuracy, cell, done

from mtlbench.errors import RequestError
from mtlbench.results.study import study_of

TASKS = ("a/x", "a/y", "a/z")


def records(method: str, *by_seed: tuple[float, ...], tasks: tuple[str, ...] = TASKS, first: int = 0):
    return [done(cell(method, first + at, tasks=tasks), *scores) for at, scores in enumerate(by_seed)]


def rows_of(*found, **words):
    (table,) = study_of([record for some in found for record in some], **words).tables
    return table, {row.label: row for row in table.rows}


def test_differences_gain_and_negative_transfer_are_over_common_seeds():
    table, rows = rows_of(
        records("lora_st", (50.0, 80.0, 20.0), (60.0, 80.0, 20.0), (0.0, 0.0, 0.0)),
        records("lora", (60.0, 70.0, 20.0), (70.0, 70.0, 22.0)),
    )
    assert table.reference == "lora_st" and rows["lora_st"].comparison is None
    comparison = rows["lora"].comparison
    assert comparison.seeds == (0, 1)
    assert {task: one.points for task, one in comparison.differences.items()} == {"a/x": 10.0, "a/y": -10.0, "a/z": 1.0}
    assert comparison.average.points == pytest.approx(1 / 3)
    assert comparison.gain == pytest.approx(100 * (10 / 55 - 10 / 80 + 1 / 20) / 3)
    assert (comparison.worst, comparison.worse) == ("a/y", ("a/y",))


def test_there_is_no_relative_gain_over_nothing():
    _, rows = rows_of(records("lora_st", (0.0, 80.0, 20.0)), records("lora", (60.0, 70.0, 20.0)))
    assert rows["lora"].comparison.gain is None and rows["lora"].comparison.worst == "a/y"


def test_rows_without_a_common_seed_have_no_comparison():
    _, rows = rows_of(records("lora_st", (50.0, 80.0, 20.0)), records("lora", (60.0, 70.0, 20.0), first=7))
    assert rows["lora"].comparison is None


def test_the_reference_is_the_single_task_adapter_then_lora_then_the_first_row_or_what_is_asked_for():
    def chosen(*methods, **words):
        return rows_of(*(records(m, (60.0 + at, 60.0, 60.0)) for at, m in enumerate(methods)), **words)[0].reference

    assert chosen("peml", "lora", "lora_st") == "lora_st"
    assert chosen("peml", "lora", "base") == "lora"
    assert chosen("peml", "base") == "base"
    assert chosen("peml", "lora", reference="peml") == "peml"
    assert chosen("peml") is None
    with pytest.raises(RequestError, match=r"'pemi'.*peml"):
        chosen("peml", "lora", reference="pemi")


def test_ranks_are_means_over_tasks_and_ties_share_theirs():
    _, rows = rows_of(
        records("a", (90.0, 50.0, 10.0)), records("b", (80.0, 60.0, 10.0)), records("c", (70.0, 40.0, 30.0))
    )
    assert {label: row.rank for label, row in rows.items()} == pytest.approx(
        {"a": (1 + 2 + 2.5) / 3, "b": (2 + 1 + 2.5) / 3, "c": (3 + 3 + 1) / 3}
    )


def test_rows_without_a_task_have_no_rank():
    part = done(cell("c", tasks=TASKS), 1.0, 2.0, 3.0)
    part = type(part)(**{**vars(part), "scores": {"a/x": accuracy(99.0)}})
    _, rows = rows_of(records("a", (90.0, 50.0, 10.0)), records("b", (80.0, 60.0, 10.0)), [part])
    assert rows["c"].rank is None and rows["a"].rank == 1.5
