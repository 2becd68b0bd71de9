"""Methods of others: what a checkpoint cannot hold is found, and what they keep comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from resuming import Attempt, Crash, assert_equal, interrupted, method_of
from torch import Tensor, nn

from mtlbench.api.method import Method, Setup
from mtlbench.training.checkpoints.model_state import Unusable
from mtlbench_methods.lora import Lora


@dataclass(frozen=True, kw_only=True)
class Unaware(Lora):
    """Keeps a running mean where no checkpoint looks, and does not say that it can be resumed."""

    name: ClassVar[str] = "unaware"

    def after_step(self, model: nn.Module, step: int) -> None:
        host: Any = model
        host.mean = 0.9 * getattr(host, "mean", 0.0) + 0.1 * step


@dataclass(frozen=True, kw_only=True)
class Counting(Lora):
    """A forward that depends on how often it ran, in a plain attribute."""

    name: ClassVar[str] = "counting"

    def attach(self, model: nn.Module, setup: Setup) -> None:
        super().attach(model, setup)
        norm: Any = model.model.norm  # type: ignore[union-attr]
        norm.calls = 0

        def count(module: Any, args: Any, output: Tensor) -> Tensor:
            module.calls += module.training
            return output * (1 + 0.01 * module.calls)

        norm.register_forward_hook(count)


@dataclass(frozen=True, kw_only=True)
class Keeping(Unaware):
    """The same state, kept."""

    name: ClassVar[str] = "keeping"
    resumable: ClassVar[bool] = True

    def fit(self, model: nn.Module, trainer: Any) -> None:
        host: Any = model
        host.mean = 0.0

        class Mean:
            def state_dict(self) -> dict[str, float]:
                return {"mean": host.mean}

            def load_state_dict(self, state: dict[str, float]) -> None:
                host.mean = state["mean"]

        trainer.keep(Mean(), modules=[model])
        trainer.run()


@dataclass(frozen=True, kw_only=True)
class Inheriting(Keeping):
    """What a parent promises does not hold for a step of one's own."""

    name: ClassVar[str] = "inheriting"

    def after_step(self, model: nn.Module, step: int) -> None:
        """Something else."""


def test_who_resumes_says_so_beside_what_it_overrides():
    assert not Unaware().resumes() and not Inheriting().resumes()
    assert Keeping().resumes() and Lora().resumes() and method_of("adalora").resumes()
    assert method_of("prefixnas+adalora").resumes()
    composed = method_of("prefixnas+lora")
    object.__setattr__(composed, "members", (composed.parts()[0], Unaware()))
    assert not composed.resumes()


@pytest.mark.parametrize("method", [Unaware(), Counting()], ids=lambda m: m.name)
def test_state_kept_elsewhere_starts_from_zero_instead_of_being_lost(tmp_path: Path, method: Method):
    undisturbed = Attempt(method).run()
    with pytest.raises(Crash):
        Attempt(method, tmp_path, crash_at=9).run()
    assert list(tmp_path.glob("*")) == []
    last = Attempt(method, tmp_path).run()
    assert min(last.losses) == 1
    assert_equal(undisturbed, last)
    if method.resumes():
        assert "norm:calls" in last.recovery.problems[0]


def test_what_a_method_keeps_comes_back(tmp_path: Path):
    undisturbed = Attempt(Keeping()).run()
    with pytest.raises(Crash):
        Attempt(Keeping(), tmp_path, crash_at=9).run()
    last = Attempt(Keeping(), tmp_path).run()
    assert min(last.losses) == 9
    means: list[Any] = [attempt.loop.model.mean for attempt in (undisturbed, last)]
    assert means[0] == means[1] != 0


def test_a_checkpoint_that_does_not_fit_is_told_apart(tmp_path: Path):
    interrupted(tmp_path)
    with pytest.raises(Unusable, match="shape"):
        Attempt(Lora(rank=4), tmp_path).run()
    with pytest.raises(Unusable, match="other parameters"):
        Attempt(Lora(target="attention"), tmp_path).run()
    with pytest.raises(Unusable, match="keeps 1"):
        Attempt(Keeping(), tmp_path).run()
    with pytest.raises(Unusable, match="number of steps"):
        Attempt(Lora(), tmp_path, changes={"steps": 12}).run()
