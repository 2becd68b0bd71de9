"""Rows that do not hold what a task reads are refused by file, column and row."""

from __future__ import annotations

import pyarrow
import pytest
from toy_tasks import ARC, RTE, arc_rows, rte_rows, write

from mtlbench.api.task import Task, TaskSuite
from mtlbench.data.choose import open_source
from mtlbench.errors import DataError

STORY = Task(
    name="story",
    yaml="",
    metrics=(),
    dataset="toy/story",
    config=None,
    columns={"endings": "texts", "idx.question": "number", "label": ("0", "1")},
)


def story(count: int = 4, **changed) -> list[dict]:
    return [{"endings": ["a", "b"], "idx": {"question": i}, "label": "1"} | changed for i in range(count)]


def broken(folder, task: Task, rows: list[dict], row: int, **changed) -> str:
    """What is said of rows of which one is changed, when they are read."""
    rows[row] = rows[row] | changed
    write(folder, task, train=rows, validation=rows)
    with pytest.raises(DataError) as error:
        open_source(str(folder), suites={}).splits(task)
    return str(error.value)


@pytest.mark.parametrize(
    ("task", "rows", "column", "value", "told"),
    [
        (RTE, rte_rows, "label", 2, "2 is not one of 0, 1"),
        (RTE, rte_rows, "label", None, "None is not one of 0, 1"),
        (RTE, rte_rows, "sentence1", None, "None is not text"),
        (STORY, story, "label", "", "'' is not one of '0', '1'"),
        (STORY, story, "endings", [], "[] is not a list of texts"),
        (STORY, story, "endings", None, "None is not a list of texts"),
        (STORY, story, "endings", ["a", None], "['a', None] is not a list of texts"),
    ],
)
def test_a_wrong_value_is_named_with_file_column_and_row(tmp_path, task, rows, column, value, told):
    said = broken(tmp_path, task, rows(4), 2, **{column: value})
    assert f"row 2, column {column!r}" in said and told in said
    assert f"{task.dataset}/{task.config or 'default'}/train.parquet" in said


def test_a_wrong_value_inside_a_structure_is_named(tmp_path):
    assert "row 1, column 'idx.question'" in broken(tmp_path, STORY, story(), 1, idx={"question": None})


@pytest.mark.parametrize(
    ("task", "rows", "column", "value", "type_"),
    [
        (RTE, rte_rows, "label", "yes", "string"),
        (RTE, rte_rows, "label", 0.5, "double"),
        (RTE, rte_rows, "sentence2", 7, "int64"),
        (STORY, story, "endings", "a", "string"),
        (STORY, story, "label", 1, "int64"),
        (ARC, arc_rows, "answerKey", 1, "int64"),
    ],
)
def test_a_column_of_another_type_is_refused_before_any_row_is_read(tmp_path, task, rows, column, value, type_):
    changed = [row | {column: value} for row in rows(3)]
    write(tmp_path, task, train=changed, validation=changed)
    with pytest.raises(DataError, match=rf"train\.parquet.*column '{column}'.*its type is {type_}"):
        open_source(str(tmp_path), suites={}).check(task)


def test_a_structure_without_a_field_lacks_the_column(tmp_path):
    rows = [row | {"idx": {"answer": 1}} for row in story()]
    write(tmp_path, STORY, train=rows, validation=rows)
    with pytest.raises(DataError, match=r"lacks the column 'idx\.question'"):
        open_source(str(tmp_path), suites={}).check(STORY)


def test_labels_are_checked_when_a_run_is_planned_and_texts_when_it_reads_them(tmp_path):
    rows = rte_rows(4)
    rows[3] |= {"label": 5, "sentence1": None}
    write(tmp_path, RTE, train=rows, validation=rte_rows(2))
    with pytest.raises(DataError, match="row 3, column 'label'"):
        open_source(str(tmp_path), suites={}).check(RTE)


def test_rows_of_several_chunks_are_counted_through(tmp_path):
    from mtlbench.data.columns import check_values

    parts = [
        pyarrow.Table.from_pylist(story(3)),
        pyarrow.Table.from_pylist([*story(1), *story(1, endings=["a", None])]),
    ]
    with pytest.raises(DataError, match="row 4, column 'endings'"):
        check_values(STORY, pyarrow.concat_tables(parts), where="here", split="train")


def test_demo_rows_are_checked_alike():
    suite = TaskSuite(name="toy", title="Toy", tasks=(RTE,), demo=lambda *_: [{**rte_rows(1)[0], "label": 9}],
        demo_fingerprint=lambda: "1")  # fmt: skip
    with pytest.raises(DataError, match="demo of suite 'toy'.*row 0, column 'label'"):
        open_source("demo", suites={"toy": suite}).splits(RTE)
