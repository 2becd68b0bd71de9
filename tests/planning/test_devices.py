"""What executors are asked for: how many devices the cells of each method get."""

from __future__ import annotations

import pytest
from toy_worker import toy_cell

from mtlbench.api.executor import DevicesPerCell
from mtlbench.errors import RequestError
from mtlbench.planning.request import check_devices, read_devices


def test_the_words_for_devices_per_cell_are_read() -> None:
    rule = read_devices("2,toy=4")
    assert (rule(toy_cell()), rule(toy_cell(method="other")), str(rule)) == (4, 2, "2,toy=4")
    assert read_devices(str(rule)) == rule and read_devices("1") == DevicesPerCell()
    for words in ("0", "x", "full=", "=2", "1,,2", "-1"):
        with pytest.raises(RequestError, match="--devices-per-cell"):
            read_devices(words)
    with pytest.raises(RequestError, match="'toi', no method here. Did you mean 'toy'"):
        check_devices(read_devices("toi=2"), [toy_cell()])
