"""Cells that a device failed, not they the device: they are left to workers on other devices."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mtlbench.api.cell import Cell
from mtlbench.files.owner import Owner
from mtlbench.store import Claim, RunFolder

ALONE_FOR = 2
"""Looks in a row that find no other worker, after which this one takes the cells left to others: between two cells a
worker holds no claim for a moment."""


class Elsewhere:
    """What a worker gives back, and what it leaves to others as its own device failed it.

    A cell whose device broke is tried by one other worker, on another device where there is one. A cell that found the
    device full is left to others as often as it takes: such a worker ends, and its device is not used for long.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._devices = set(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
        self._alone = 0

    def leave(self, cells: Sequence[Cell]) -> list[Cell]:
        """``cells`` without those that the devices of this worker failed, as long as other workers run cells."""
        given_back = self._folder.given_back().items()
        failed = {key for key, entries in given_back if any(self._devices & set(e["devices"]) for e in entries)}
        mine = [cell for cell in cells if cell.key not in failed]
        if len(mine) == len(cells):
            return mine
        others = any(claim.owner != Owner.current() for claim in self._folder.claims().values())
        self._alone = 0 if others or mine else self._alone + 1
        return list(cells) if self._alone >= ALONE_FOR else mine

    def first(self, claim: Claim) -> bool:
        """Whether no device broke in this cell before."""
        return not any(entry["kind"] == "device" for entry in self._folder.given_back().get(claim.key, []))

    def give_back(self, claim: Claim, *, kind: str) -> None:
        """Note that the devices of this worker failed the cell; its claim is to be released."""
        self._folder.give_back(claim, kind=kind, devices=self._devices)
