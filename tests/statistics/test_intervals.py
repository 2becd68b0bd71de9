"""Holm's correction, and an interval as it is printed."""

from __future__ import annotations

import pytest

from mtlbench.api.study import Interval
from mtlbench.statistics.estimate import holm


def test_holm_is_step_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_ends_belong_to_an_interval():
    interval = Interval(mean=1.0, low=0.5, high=1.5, p=0.1, seeds=3, examples=None)
    assert 0.5 in interval and 1.5 in interval and 1.51 not in interval
    assert str(interval) == "1.00 [0.50, 1.50]"
