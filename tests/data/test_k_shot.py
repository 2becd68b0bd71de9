"""Which training rows a cell uses: k shots by seed, of each task or of each label, and never more."""

from __future__ import annotations

from collections import Counter

import pytest
from toy_tasks import ARC, RTE, arc_rows, rte_rows, write

from mtlbench.data.choose import open_source
from mtlbench.data.k_shot import chosen_rows, read_k_shot
from mtlbench.data.lm_task import choose_rows, load_lm_task
from mtlbench.errors import DataError, RequestError


def loaded(folder, task, rows):
    write(folder, task, train=rows, validation=rows[:4])
    return load_lm_task(task, open_source(str(folder), suites={}).splits(task), name=f"toy/{task.name}")


def test_words():
    assert read_k_shot("16") == (16, False) and read_k_shot("4:class") == (4, True)
    for words in ("", "0", "-1", "x", "4:", "4:label", ":class", "1.5", "٣"):
        with pytest.raises(RequestError, match="must be K"):
            read_k_shot(words)


def test_without_shots_the_rows_are_the_same_whatever_the_seed(tmp_path):
    task = loaded(tmp_path, RTE, rte_rows(50))
    for seed in (0, 1):
        assert chosen_rows(task, limit=20, k_shot="", seed=seed) == choose_rows(50, 20)
        assert chosen_rows(task, limit=None, k_shot="", seed=seed) == list(range(50))


def test_each_seed_draws_its_shots_and_draws_them_again(tmp_path):
    task = loaded(tmp_path, RTE, rte_rows(50))
    drawn = [chosen_rows(task, limit=None, k_shot="16", seed=seed) for seed in range(5)]
    assert drawn == [chosen_rows(task, limit=None, k_shot="16", seed=seed) for seed in range(5)]
    assert all(len(set(rows)) == 16 and rows == sorted(rows) for rows in drawn)
    assert len(set(map(tuple, drawn))) == 5
    within = chosen_rows(task, limit=20, k_shot="16", seed=0)
    assert set(within) <= set(choose_rows(50, 20))


def test_shots_of_each_label_are_that_many_of_each(tmp_path):
    rows = rte_rows(60)
    for row in rows[:50]:
        row["label"] = 1
    task = loaded(tmp_path, RTE, rows)
    for seed in range(3):
        chosen = chosen_rows(task, limit=None, k_shot="5:class", seed=seed)
        assert Counter(rows[i]["label"] for i in chosen) == {0: 5, 1: 5} and chosen == sorted(chosen)


def test_too_few_rows_and_choices_without_labels_are_refused(tmp_path):
    task = loaded(tmp_path, RTE, rte_rows(10))
    with pytest.raises(DataError, match=r"'toy/rte' has 10 training rows: fewer than 16 shots"):
        chosen_rows(task, limit=None, k_shot="16", seed=0)
    with pytest.raises(DataError, match=r"has 5 training rows labelled 'True': fewer than 6"):
        chosen_rows(task, limit=None, k_shot="6:class", seed=0)
    with pytest.raises(DataError, match=r"no fixed labels.*Take k_shot=2"):
        chosen_rows(loaded(tmp_path, ARC, arc_rows(12)), limit=None, k_shot="2:class", seed=0)
