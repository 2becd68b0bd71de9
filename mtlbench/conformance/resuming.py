"""The check that resumed training ends like uninterrupted training."""

from __future__ import annotations

from torch import Tensor

from mtlbench.conformance.findings import NotApplicable, PromiseBroken, expect_equal
from mtlbench.conformance.fixture import STEPS, Fixture, loop_of
from mtlbench.conformance.randomness import scramble
from mtlbench.files.stop_request import Stop, Stopped
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.model_state import Unusable
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench.training.loop import OnStep

AT = STEPS // 2
"""Step after which training is interrupted."""


def resume(fixture: Fixture) -> None:
    """Training in two parts, with a checkpoint between them, gives bitwise the parameters of uninterrupted training."""
    fixture.need_training()
    if not fixture.method.resumes():
        raise NotApplicable("it restarts from the beginning after an interruption: no class says resumable = True")
    whole = fixture.trained.trained
    stop = Stop()

    def ask(step: int, losses: Tensor, tasks: Tensor) -> None:
        stop.asked = step + 1 >= AT

    first = CheckpointPolicy(_files(fixture), stop=stop, every_s=float("inf"))
    try:
        _train(fixture, first, ask)
        raise NotApplicable(f"it trains fewer than {AT} steps")
    except Stopped:
        pass
    if first.problems:
        raise NotApplicable(f"it restarts from the beginning after an interruption: {first.problems[0]}")
    scramble(2)
    again = CheckpointPolicy(_files(fixture), stop=Stop(), every_s=float("inf"))
    seen: list[int] = []
    try:
        resumed = _train(fixture, again, lambda step, losses, tasks: seen.append(step + 1))
    except Unusable as error:
        raise PromiseBroken(f"the checkpoint does not fit a new model: {error}") from error
    if seen and seen[0] != AT + 1:
        raise PromiseBroken(f"interrupted after step {AT}, it is resumed at step {seen[0]}")
    expect_equal(whole, resumed, "trained values", f"when training is interrupted after step {AT}")


def _files(fixture: Fixture) -> CheckpointStore:
    return CheckpointStore(fixture.folder / "checkpoints", identity={})


def _train(fixture: Fixture, recovery: CheckpointPolicy, on_step: OnStep) -> dict[str, Tensor]:
    case = fixture.attached(noise=0.0)
    fixture.method.fit(case.model, loop_of(fixture, case, on_step, recovery))
    return trainable_state(case.model)
