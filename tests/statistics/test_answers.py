"""Stored predictions read by columns: what metrics need, and what makes a run degenerate."""

from __future__ import annotations

import json

import pytest

from mtlbench.statistics.answers import answers_in
from mtlbench.store.samples import write_samples


def rows(task: str, *, choices: list[int], metric: str = "acc", values: list | None = None) -> list[dict]:
    """Answers to questions with two choices whose first one is right."""
    found = []
    for at, chosen in enumerate(choices):
        likelihoods = [-2.0, -2.0]
        likelihoods[chosen] = -1.0
        value = values[at] if values else float(chosen == 0)
        found.append(
            {
                "task": task,
                "doc_id": at,
                "doc_hash": f"{task}-{at}",
                "gold": "yes",
                "prediction": ("yes", "no")[chosen],
                "loglikelihoods": likelihoods,
                "correct": chosen == 0,
                "metric_values": json.dumps({metric: value}),
            }
        )
    return found


@pytest.fixture
def read(tmp_path):
    def stored(found):
        write_samples(tmp_path / "key.parquet", found)
        return answers_in(tmp_path)("key")

    return stored


def test_tasks_are_told_apart_and_items_keep_their_order(read):
    pairs = [[1, 0], [0, 0], [1, 1]]
    told = read([*rows("a/x", choices=[0, 1, 0]), *rows("a/y", choices=[1, 0, 0], metric="mcc", values=pairs)])
    assert list(told) == ["a/x", "a/y"]
    assert told["a/x"].items["acc"].tolist() == [1.0, 0.0, 1.0]
    assert told["a/y"].items["mcc"].tolist() == pairs
    assert (told["a/x"].count, told["a/x"].constant, told["a/x"].undefined) == (3, False, 0)


def test_equal_questions_have_equal_digests(read):
    first = read(rows("a/x", choices=[0, 1]))["a/x"].documents
    assert first == read(rows("a/x", choices=[1, 1]))["a/x"].documents
    assert first != read(rows("a/y", choices=[0, 1]))["a/y"].documents


@pytest.mark.parametrize(("choices", "constant"), [([1, 1, 1], True), ([0, 0, 0], False), ([0, 1, 1], False)])
def test_one_answer_to_everything_is_constant_unless_it_is_always_right(read, choices, constant):
    assert read(rows("a/x", choices=choices))["a/x"].constant is constant


def test_choices_are_told_by_their_place_where_every_question_has_its_own(read):
    found = rows("a/x", choices=[1, 1, 1])
    for at, row in enumerate(found):
        row["prediction"] = f"answer {at}"
    assert read(found)["a/x"].constant


def test_texts_without_an_answer_and_likelihoods_that_are_no_number_are_counted(read):
    found = rows("a/x", choices=[0, 1, 1, 1])
    for row, text in zip(found, ("42", "[invalid]", "  ", "7"), strict=True):
        row.update(prediction=text, loglikelihoods=[])
    told = read(found)["a/x"]
    assert told.unparsed == 2 and not told.constant
    found = rows("a/x", choices=[0, 1])
    found[1]["loglikelihoods"] = [float("nan"), -1.0]
    assert read(found)["a/x"].undefined == 1


def test_what_cannot_be_read_counts_as_none(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    read = answers_in(tmp_path)
    assert read("bad") is None and read("absent") is None
