"""Rows scored for tuning come from training rows, and evaluation rows are gone before anything is made of them."""

from __future__ import annotations

import datasets
import pytest

from mtlbench.api.cell import Protocol
from mtlbench.api.task import Task
from mtlbench.data.from_train import eval_from_train_splits, holdout_splits, splits_under
from mtlbench.errors import DataError

TASK = Task(name="t", yaml="lm_eval:x.yaml", metrics=("acc",), dataset="d", config=None)


def splits(rows: int = 100) -> dict[str, datasets.Dataset]:
    return {
        "train": datasets.Dataset.from_dict({"row": [f"train {i}" for i in range(rows)]}),
        "validation": datasets.Dataset.from_dict({"row": [f"secret {i}" for i in range(30)]}),
    }


@pytest.mark.parametrize(("train_rows", "kept", "scored"), [(None, 75, 25), (40, 30, 10), (1000, 75, 25), (2, 1, 1)])
def test_training_rows_are_divided_and_no_evaluation_row_is_left(train_rows: int | None, kept: int, scored: int):
    made = eval_from_train_splits(TASK, splits(), share=0.25, train_rows=train_rows)
    train, other = set(made["train"]["row"]), set(made["validation"]["row"])
    assert (len(train), len(other)) == (kept, scored)
    assert not train & other
    assert train | other <= set(splits()["train"]["row"])


def test_every_call_scores_the_same_rows():
    first, again = (eval_from_train_splits(TASK, splits(), share=0.1, train_rows=50) for _ in range(2))
    assert first["validation"]["row"] == again["validation"]["row"]
    assert first["validation"]["row"] != [f"train {i}" for i in range(5)], "drawn, not the first ones"


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(DataError, match="1 training row"):
        eval_from_train_splits(TASK, splits(rows=1), share=0.5, train_rows=None)
    same = Task(name="t", yaml="", metrics=(), dataset="d", config=None, train_split="validation")
    with pytest.raises(DataError, match="one split"):
        eval_from_train_splits(same, splits(), share=0.5, train_rows=None)


@pytest.mark.parametrize(("rows", "held"), [(554, 56), (400, 40), (2490, 249), (635, 64), (2, 1)])
def test_a_holdout_is_the_part_of_the_training_split_that_common_splitting_gives(rows: int, held: int):
    made = holdout_splits(TASK, splits(rows=rows), share=0.1)
    train, scored = set(made["train"]["row"]), set(made["validation"]["row"])
    assert (len(train), len(scored)) == (rows - held, held)
    assert not train & scored and train | scored == {f"train {i}" for i in range(rows)}
    assert made["validation"]["row"] == holdout_splits(TASK, splits(rows=rows), share=0.1)["validation"]["row"]


def test_fewer_training_rows_leave_the_holdout_as_it_is():
    under = [splits_under(TASK, splits(rows=500), Protocol(holdout=0.1, train_rows=n)) for n in (None, 30)]
    assert under[0]["validation"]["row"] == under[1]["validation"]["row"] and len(under[1]["validation"]) == 50


def test_trials_of_a_holdout_protocol_never_see_its_evaluation_rows():
    final = splits_under(TASK, splits(rows=200), Protocol(holdout=0.1))
    trial = splits_under(TASK, splits(rows=200), Protocol(holdout=0.1, eval_from_train=0.1))
    kept, scored = set(trial["train"]["row"]), set(trial["validation"]["row"])
    assert not (kept | scored) & set(final["validation"]["row"]) and not kept & scored
    assert kept | scored == set(final["train"]["row"])


def test_a_holdout_that_cannot_be_is_refused():
    with pytest.raises(DataError, match="1 training row"):
        holdout_splits(TASK, splits(rows=1), share=0.5)
