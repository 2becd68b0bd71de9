"""What the training loop writes into a checkpoint, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from mtlbench.api.method import Stateful
from mtlbench.distributed.ranks import ALONE, Ranks
from mtlbench.training.checkpoints.checkpoint import TrainingPosition
from mtlbench.training.checkpoints.model_state import ModelState, Unusable, random_states, set_random_states
from mtlbench.training.checkpoints.recovery import CheckpointPolicy


class TrainerState:
    """The model, what methods keep, random states, and what the loop adds. Does nothing without ``recovery``.

    All ``ranks`` pause after the same step, and end after the same one.
    """

    def __init__(
        self, model: nn.Module, recovery: CheckpointPolicy | None, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self._model, self._recovery, self._device, self._ranks = model, recovery, device, ranks
        self._state: ModelState | None = None
        self._kept: list[Stateful] = []
        self._modules: list[nn.Module] = []

    def keep(self, holder: Stateful, modules: Iterable[nn.Module]) -> None:
        """Save ``holder`` too; it takes care of the plain attributes of ``modules``."""
        self._kept.append(holder)
        self._modules.extend(modules)

    def held(self) -> AbstractContextManager[None]:
        """Inside, a request to end waits for the next savepoint."""
        return nullcontext() if self._recovery is None else self._recovery.held()

    @property
    def due(self) -> bool:
        """Whether to save now."""
        return self._recovery is not None and self._ranks.any(self._recovery.due)

    def stop_requested(self) -> bool:
        """Whether the worker was."""
        return self._recovery is not None and self._recovery.stop.requested

    def end_if_asked(self) -> None:
        """Raise :class:`~mtlbench.files.stop_request.Stopped` if the worker was asked to end."""
        if self._recovery is not None and self._ranks.any(self._recovery.stop.requested):
            self._recovery.stop.stop_now()

    def begin_run(self) -> None:
        """Look at the model before a run changes it."""
        if self._recovery is not None:
            self._state = self._state or ModelState(self._model)
            self._state.begin_run()

    def save(self, place: TrainingPosition, loop: Callable[[], Mapping[str, Any]]) -> None:
        """Write a checkpoint with the state of the ``loop``; none from here on if it would miss what changed."""
        if self._recovery is None or self._state is None:
            return
        state = self._state
        forgotten = state.forgotten(self._modules)
        if forgotten is not None:
            self._recovery.give_up(f"the attribute {forgotten} changes in training and nothing keeps it")
        self._recovery.save(
            place,
            lambda: {
                "model": state.read(),
                "kept": [holder.state_dict() for holder in self._kept],
                "random": random_states(self._device),
                "loop": dict(loop()),
            },
        )

    def load(self, run: int, *, ended: bool) -> Mapping[str, Any] | None:
        """Put back what an earlier attempt saved at the end of run number ``run``, or inside it; the loop's state.

        ``None`` when there is no such checkpoint.

        Raises:
            Unusable: it does not fit.
        """
        saved = self._recovery.at(run) if self._recovery is not None else None
        if saved is None or saved.place.ended != ended:
            return None
        state = saved.state()
        if len(state["kept"]) != len(self._kept):
            raise Unusable(f"the method keeps {len(self._kept)} things, the checkpoint has {len(state['kept'])}")
        self._state = self._state or ModelState(self._model)
        for holder, own in zip(self._kept, state["kept"], strict=True):
            holder.load_state_dict(own)
        self._state.write(state["model"])
        set_random_states(state["random"], self._device)
        loop: Mapping[str, Any] = state["loop"]
        return loop
