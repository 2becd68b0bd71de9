"""Global random states: set for a check and restored afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def scramble(seed: int) -> None:
    """Set every global random state: of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def scrambled(seed: int) -> Iterator[None]:
    """Context in which all global random states are those of ``seed``; restored afterwards."""
    numbers, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        scramble(seed)
        try:
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(python)
