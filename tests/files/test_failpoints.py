"""Fail points: named wrongly they are an error, and those named are those there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtlbench.errors import RequestError
from mtlbench.files import failpoints

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_a_fail_point_that_does_not_exist_is_an_error_and_one_acts_at_its_hit_alone() -> None:
    for words, told in [
        ("store.befor_link:kill", "store.before_link"),
        ("cell.step:kil", "kill"),
        ("cell.step", "ACTION"),
    ]:
        with pytest.raises(RequestError, match=told):
            failpoints.arm(words)
    failpoints.arm("cell.step:raise@3")
    failpoints.reach("cell.step")
    failpoints.reach("cell.trained")
    failpoints.reach("cell.step")
    with pytest.raises(failpoints.FailPoint):
        failpoints.reach("cell.step")
    failpoints.reach("cell.step")


def test_every_fail_point_that_is_named_is_called_and_the_other_way_round() -> None:
    called = set()
    for path in (ROOT / "mtlbench").rglob("*.py"):
        called |= set(re.findall(r'reach\("([a-z_.]+)"\)', path.read_text()))
    assert sorted(called) == sorted(failpoints.POINTS), "each once"
