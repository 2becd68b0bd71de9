"""What executors are asked for: how many devices the cells of each method get."""

from __future__ import annotations

import pytest
from toy_worker import toy_cell

from mtlbench.api.executor import DevicesPerCell
from mtlbench.errors import RequestError


def test_the_words_for_devices_per_cell_are_read() -> None:
    rule = DevicesPerCell.read("2,toy=4")
    assert (rule(toy_cell()), rule(toy_cell(method="other")), str(rule)) == (4, 2, "2,toy=4")
    assert DevicesPerCell.read(str(rule)) == rule and DevicesPerCell.read("1") == DevicesPerCell()
    for words in ("0", "x", "full=", "=2", "1,,2", "-1"):
        with pytest.raises(RequestError, match="--devices-per-cell"):
            DevicesPerCell.read(words)
    with pytest.raises(RequestError, match="'toi', no method here. Did you mean 'toy'"):
        DevicesPerCell.read("toi=2").check([toy_cell()])
