"""What a test says that waited in vain."""

from __future__ import annotations

import re

import pytest
from store_builder import make_folder
from waiting import wait_for


def test_waiting_in_vain_says_what_was_seen_last(tmp_path) -> None:
    folder, wanted = make_folder(tmp_path / "run"), 2
    folder.log(0).write_text("first\nlast words\n")
    with pytest.raises(AssertionError) as caught:
        wait_for(lambda: folder.path.exists() and len(folder.records()) == wanted, seconds=0)
    assert str(caught.value).splitlines() == [
        "waited 0 s for: folder.path.exists() and len(folder.records()) == wanted",
        "  last value: False",
        "  folder.path.exists() = True",
        "  len(folder.records()) = 0",
        "  folder: records {}, claims (pid, deaths) {}",
        "  worker-0.log | first",
        "  worker-0.log | last words",
    ]


def test_of_two_conditions_in_a_line_the_right_one_is_named() -> None:
    conditions = [lambda: [] == [1], lambda: sum([]) > 1]
    for condition, text in zip(conditions, ("[] == [1]", "sum([]) > 1"), strict=True):
        with pytest.raises(AssertionError, match="for: " + re.escape(text)):
            wait_for(condition, seconds=0)


def test_what_goes_away_while_it_is_described_is_no_error() -> None:
    values = iter([0])
    with pytest.raises(AssertionError, match=r"next\(values\): StopIteration\(\)"):
        wait_for(lambda: next(values) == 1, seconds=0)
