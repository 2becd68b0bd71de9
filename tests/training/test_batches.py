"""Batches: the same for every method, in the shares asked for, and collated so that labels land where they belong."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from mtlbench.errors import RequestError
from mtlbench.planning.mixing import read_mixing
from mtlbench.testing import toy_rows
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import WINDOW, collate, plan_batches, planned_steps
from mtlbench.training.splits import carve

SIZES = (1000, 100, 10)
LENGTHS = [5 + (i * 7919) % 200 for i in range(1110)]


def plan(mixing="proportional", *, sizes=SIZES, steps=WINDOW * 4, batch_size=16, seed=0, by_length=False):
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    rows = [list(range(a, b)) for a, b in pairwise(bounds)]
    return plan_batches(
        rows, steps=steps, batch_size=batch_size, mixing=mixing, seed=seed, lengths=LENGTHS, by_length=by_length
    )


def task_of(row):
    return 0 if row < 1000 else 1 if row < 1100 else 2


def test_the_plan_depends_on_the_seed_and_nothing_global():
    torch.manual_seed(1)
    first = plan()
    torch.manual_seed(2)
    assert plan() == first
    assert plan(seed=1) != first
    assert [len(batch) for batch in first] == [16] * (WINDOW * 4)


@pytest.mark.parametrize(
    ("mixing", "weights"),
    [
        ("proportional", (1000, 100, 10)),
        ("uniform", (1, 1, 1)),
        ("temperature:2", (1000**0.5, 100**0.5, 10**0.5)),
        ("capped:50", (50, 50, 10)),
        ("weights:a=3,b=1,c=1", (3, 1, 1)),
    ],
)
def test_every_window_holds_the_mixture_to_the_row(mixing, weights):
    batches = plan(mixing)
    for end in range(WINDOW, len(batches) + 1, WINDOW):
        counts = Counter(task_of(row) for batch in batches[:end] for row in batch)
        for task, weight in enumerate(weights):
            assert abs(counts[task] - weight / sum(weights) * end * 16) <= 1


def test_a_task_is_visited_in_whole_passes_without_replacement():
    rows = [row for batch in plan("uniform") for row in batch]
    for task, size in enumerate(SIZES):
        counts = Counter(row for row in rows if task_of(row) == task)
        assert len(counts) == min(size, sum(counts.values()))
        assert max(counts.values()) - (min(counts.values()) if sum(counts.values()) >= size else 0) <= 1


def test_proportional_visits_every_row_once_per_epoch():
    rows = [row for batch in plan(sizes=(96, 24, 8), steps=16, batch_size=8) for row in batch]
    assert sorted(rows) == list(range(128))


def padded(batches):
    return sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)


def test_by_length_rows_of_like_length_share_a_batch_and_the_window_keeps_its_rows():
    drawn, grouped = plan(), plan(by_length=True)
    real = sum(LENGTHS[i] for batch in drawn for i in batch)
    assert padded(grouped) < 1.1 * real < 1.5 * real < padded(drawn)
    for start in range(0, len(drawn), WINDOW):
        one, other = (Counter(r for b in p[start : start + WINDOW] for r in b) for p in (drawn, grouped))
        assert one == other
    longest = [max(LENGTHS[i] for i in batch) for batch in grouped[:WINDOW]]
    assert longest != sorted(longest)


@pytest.mark.parametrize("by_length", [False, True])
def test_the_rows_of_a_step_stand_shortest_first(by_length):
    assert all(batch == sorted(batch, key=LENGTHS.__getitem__) for batch in plan(by_length=by_length))


def test_the_rows_of_a_drawn_step_are_a_random_draw_of_its_window():
    """Tasks of 64 rows each and of lengths apart: the rows of a task in a step scatter as in draws without
    replacement, while steps by length hold one task."""
    bounds = range(0, 1024, 128)
    tasks = [list(range(start, start + 128)) for start in bounds]
    lengths = [10 + 20 * (row // 128) + row % 3 for row in range(1024)]

    def counts(by_length):
        batches = plan_batches(
            tasks, steps=WINDOW, batch_size=32, mixing="proportional", seed=3, lengths=lengths, by_length=by_length
        )
        return np.array([[sum(row // 128 == task for row in batch) for task in range(8)] for batch in batches])

    drawn, grouped = counts(False), counts(True)
    assert (grouped > 0).sum(1).max() <= 2
    assert (drawn > 0).sum(1).mean() > 7.5
    # hypergeometric: 32 rows of 1024, of which 128 are of the task
    variance = 32 * (1 / 8) * (7 / 8) * (1024 - 32) / 1023
    assert 0.8 * variance < ((drawn - 4) ** 2).mean() < 1.2 * variance


@pytest.mark.parametrize("by_length", [False, True])
def test_a_fraction_holds_in_every_step(by_length):
    batches = plan("fraction", by_length=by_length)
    counts = [Counter(task_of(row) for row in batch) for batch in batches]
    assert all(count == {0: 14, 1: 1, 2: 1} for count in counts), "of 14.4, 1.4 and 0.1 rows"
    visited = Counter(row for batch in batches for row in batch)
    for task in range(3):
        times = [visited[row] for row in range(1110) if task_of(row) == task]
        assert max(times) - min(times) <= 1
    if by_length:
        assert padded(batches) < 0.8 * padded(plan("fraction"))


def test_a_fraction_of_a_batch_with_fewer_rows_than_tasks_takes_them_in_turn():
    batches = plan("fraction", sizes=(4, 4, 4), steps=6, batch_size=2)
    assert sorted(row for batch in batches for row in batch) == list(range(12))


def test_fixed_weights_of_another_number_of_tasks_are_refused():
    with pytest.raises(RequestError, match="names 2 tasks and the cell has 3"):
        plan("weights:a=1,b=1")


def test_an_empty_task_is_left_out():
    assert {row for batch in plan("uniform", sizes=(4, 0), steps=8, batch_size=4) for row in batch} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "words", ["", "even", "temperature", "temperature:0", "temperature:x", "capped:0", "capped:1.5", "capped:nan"]
)
def test_a_bad_mixing_is_named_with_what_is_known(words):
    with pytest.raises(RequestError, match="temperature:T") as caught:
        read_mixing(words)
    assert repr(words) in str(caught.value)


def test_the_budget_counts_capped_rows():
    budget = {"epochs": 2.0, "steps": None, "batch_size": 10}
    assert planned_steps(SIZES, mixing="proportional", **budget) == 222
    assert planned_steps(SIZES, mixing="capped:50", **budget) == 22
    assert planned_steps(SIZES, mixing="proportional", epochs=2.0, steps=7, batch_size=10) == 7


ROWS = [TokenRow(2, (1, 11, 12), (40, 41)), TokenRow(0, (1, 13), (42,)), TokenRow(1, (1, 14, 15, 16), (43, 44, 2))]


def collated(architecture, rows=ROWS, start=9):
    return collate(rows, architecture=architecture, pad_id=0, decoder_start_id=start, device=torch.device("cpu"))


def test_causal_labels_sit_one_before_their_tokens():
    batch = collated("causal")
    assert batch.inputs["input_ids"].tolist() == [[1, 11, 12, 40, 0, 0], [1, 13, 0, 0, 0, 0], [1, 14, 15, 16, 43, 44]]
    assert list(batch.inputs) == ["input_ids"]  # no token looks at the padding behind it
    assert batch.tasks.tolist() == [2, 0, 1]
    assert batch.label_index.tolist() == [2, 3, 7, 15, 16, 17]
    assert batch.label_ids.tolist() == [40, 41, 42, 43, 44, 2]
    assert batch.label_rows.tolist() == [0, 0, 1, 2, 2, 2]
    torch.testing.assert_close(batch.label_weights, torch.tensor([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3]))
    assert (batch.real_tokens, batch.padded_tokens, batch.rows) == (12, 18, 3)


def test_seq2seq_decoders_start_with_their_start_token():
    batch = collated("seq2seq")
    assert batch.inputs["input_ids"].tolist() == [[1, 11, 12, 0], [1, 13, 0, 0], [1, 14, 15, 16]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[9, 40, 0], [9, 0, 0], [9, 43, 44]]
    assert batch.label_index.tolist() == [0, 1, 3, 6, 7, 8]
    assert (batch.real_tokens, batch.padded_tokens) == (9 + 6, 12 + 9)


def test_a_row_without_context_or_target_is_refused():
    for row in (TokenRow(0, (), (1,)), TokenRow(0, (1,), ())):
        with pytest.raises(ValueError, match="at least one token"):
            collated("causal", [row])


def test_carved_parts_are_disjoint_complete_and_per_task():
    rows = toy_rows(tasks=2, rows=200, seed=3) + [TokenRow(2, (1, 5, i), (i, 2)) for i in range(10, 21)]
    rows += [TokenRow(3, (1, i), (i,)) for i in range(3)]
    splits = carve(rows, held_out=0.1, seed=0)
    ids = [[id(row) for row in part] for part in (splits.train, splits.stop, splits.search)]
    assert sorted(chain(*ids)) == sorted(id(row) for row in rows)
    assert Counter(row.task for row in splits.stop) == {0: 10, 1: 10, 2: 1}
    assert Counter(row.task for row in splits.search) == {0: 10, 1: 10, 2: 1}
    assert carve(rows, held_out=0.1, seed=0) == splits
    assert carve(rows, held_out=0.1, seed=1) != splits
    alone = carve([row for row in rows if row.task == 1], held_out=0.1, seed=0)
    assert alone.stop == [row for row in splits.stop if row.task == 1]


def test_nothing_is_held_out_when_nothing_is_asked():
    rows = toy_rows(tasks=2, rows=20)
    splits = carve(rows, held_out=0.0, seed=0)
    assert (splits.train, splits.stop, splits.search) == (rows, [], [])
    assert {row.task for row in carve(rows, held_out=1.0, seed=0).train} == {0, 1}
