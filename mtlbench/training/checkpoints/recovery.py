"""How a cell goes on where an earlier attempt ended: when checkpoints are written, which one is read."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from safetensors import SafetensorError

from mtlbench.errors import RequestError, StoreError
from mtlbench.files.stop_request import DRAIN_S, StopRequest
from mtlbench.training.checkpoints.checkpoint import Checkpoint, CheckpointStore, TrainingPosition

EVERY_S = 60.0
"""Seconds of training between two checkpoints."""
LARGEST_SHARE = 0.05
"""Writing checkpoints takes at most this share of the time: slow ones are written less often."""
VARIABLE = "MTLBENCH_CHECKPOINT_S"
_log = logging.getLogger(__name__)


def checkpoint_seconds(environment: Mapping[str, str] | None = None) -> float:
    """Seconds between two checkpoints, from the environment: 0 writes one after every step, ``inf`` none but on demand.

    Raises:
        RequestError: when it is no such number.
    """
    word = (os.environ if environment is None else environment).get(VARIABLE, "")
    try:
        seconds = float(word) if word else EVERY_S
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise RequestError(f"{VARIABLE}={word!r} is not a number of seconds of at least 0. Unset it, or give one.")
    return seconds


class CheckpointPolicy:
    """The checkpoints of one cell as its training sees them.

    Args:
        checkpoints: Where they are; ``None`` for a method that cannot go on from one.
        stop: Tells when the worker is asked to end.
        every_s: Seconds between two checkpoints.
        writes: Whether to; one that only reads is due when it is asked to end.
        about: Plain values to write into every checkpoint; those of the one that is gone on from are in :attr:`before`.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore | None,
        *,
        stop: StopRequest,
        every_s: float = EVERY_S,
        writes: bool = True,
        about: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.checkpoints, self.stop, self._about, self._writes = checkpoints, stop, about, writes
        self._every_s = every_s = every_s if writes else math.inf
        self._chain: list[Checkpoint] = [] if checkpoints is None else checkpoints.chain()
        self._next = time.monotonic() + every_s
        self._saved: TrainingPosition | None = None
        self.problems: list[str] = [] if checkpoints is None else list(checkpoints.refused)
        """Why a checkpoint was not used or not written."""

    @property
    def goes_on_from(self) -> list[str]:
        """Names of the files that this attempt resumes from."""
        return [saved.tensors.name for saved in self._chain]

    @property
    def before(self) -> Mapping[str, Any]:
        """What ``about`` was at the checkpoint that this attempt resumes from; empty when it starts from zero."""
        return self._chain[-1].about if self._chain else {}

    def at(self, run: int) -> Checkpoint | None:
        """Where run number ``run`` of the loop goes on, or how it ended; ``None`` when it starts."""
        return self._chain[run] if run < len(self._chain) else None

    def held(self) -> AbstractContextManager[None]:
        """Inside, a signal waits for :meth:`due`, though not for ever."""
        return self.stop.held(for_s=DRAIN_S)

    @property
    def due(self) -> bool:
        """Whether it is time to save. To be asked once per step."""
        return self.stop.requested or time.monotonic() >= self._next

    def give_up(self, reason: str) -> None:
        """Write no checkpoint from here on, and let go of those there are."""
        if self.checkpoints is not None:
            _log.warning("no checkpoints are written: %s", reason)
            self.problems.append(reason)
            if self._writes:
                self.checkpoints.clear()
            self.checkpoints = None

    def save(self, place: TrainingPosition, state: Callable[[], Any]) -> None:
        """Write a checkpoint unless this place has one. One that cannot be written is no reason to end the training."""
        if self.checkpoints is None or not self._writes or place == self._saved:
            self._next = time.monotonic() + self._every_s
            return
        began = time.monotonic()
        try:
            self.checkpoints.write(place, state(), self._about())
            self._saved = place
        except (OSError, SafetensorError, StoreError, MemoryError) as error:
            reason = f"no checkpoint after step {place.step} of run {place.run}: {type(error).__name__}: {error}"
            _log.warning("%s", reason)
            self.problems.append(reason)
        except TypeError as error:
            self.give_up(f"what the method keeps cannot be written: {error}")
        now = time.monotonic()
        self._next = now + max(self._every_s, (now - began) / LARGEST_SHARE if self._every_s else 0.0)
