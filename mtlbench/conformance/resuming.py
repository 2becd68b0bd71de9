"""The check that training which was interrupted ends as if it had not been."""

from __future__ import annotations

from torch import Tensor

from mtlbench.conformance.findings import Broken, NotApplicable, expect_equal
from mtlbench.conformance.lab import Lab
from mtlbench.conformance.life import STEPS, loop_of
from mtlbench.conformance.randomness import scramble
from mtlbench.files.stop_request import Stop, Stopped
from mtlbench.training.checkpoints.checkpoint import Checkpoints
from mtlbench.training.checkpoints.model_state import Unusable
from mtlbench.training.checkpoints.recovery import Recovery
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench.training.loop import OnStep

AT = STEPS // 2
"""Step after which training is interrupted."""


def resume(lab: Lab) -> None:
    """Trained in two processes, with a checkpoint between them, every parameter is bitwise what one process makes."""
    lab.need_training()
    if not lab.method.resumes():
        raise NotApplicable("it starts from zero after an interruption: no class says resumable = True")
    whole = lab.life.trained
    stop = Stop()

    def ask(step: int, losses: Tensor, tasks: Tensor) -> None:
        stop.asked = step + 1 >= AT

    first = Recovery(_files(lab), stop=stop, every_s=float("inf"))
    try:
        _train(lab, first, ask)
        raise NotApplicable(f"it trains fewer than {AT} steps")
    except Stopped:
        pass
    if first.problems:
        raise NotApplicable(f"it starts from zero after an interruption: {first.problems[0]}")
    scramble(2)
    again = Recovery(_files(lab), stop=Stop(), every_s=float("inf"))
    seen: list[int] = []
    try:
        resumed = _train(lab, again, lambda step, losses, tasks: seen.append(step + 1))
    except Unusable as error:
        raise Broken(f"the checkpoint does not fit a new model: {error}") from error
    if seen and seen[0] != AT + 1:
        raise Broken(f"interrupted after step {AT}, it goes on with step {seen[0]}")
    expect_equal(whole, resumed, "trained values", f"when training is interrupted after step {AT}")


def _files(lab: Lab) -> Checkpoints:
    return Checkpoints(lab.folder / "checkpoints", identity={})


def _train(lab: Lab, recovery: Recovery, on_step: OnStep) -> dict[str, Tensor]:
    specimen = lab.attached(noise=0.0)
    lab.method.fit(specimen.model, loop_of(lab, specimen, on_step, recovery))
    return trainable_state(specimen.model)
