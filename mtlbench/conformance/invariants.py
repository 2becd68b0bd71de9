"""Checks of invariants: unchanged backbone, parameter names, saved adapter, seed, resumption, finished model."""

from __future__ import annotations

from torch import Tensor

from mtlbench.cells.guards import label_logits
from mtlbench.conformance.findings import NotApplicable, PromiseBroken, expect_equal, expect_same, some
from mtlbench.conformance.fixture import NOISE, SAMPLE, STEPS, Case, Fixture, begin, fit, loop_of, scramble
from mtlbench.files.stop_request import Stopped, StopRequest
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.model_state import Unusable
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import load_adapter, saved_names, shrink, trainable_names, trainable_state
from mtlbench.training.loop import OnStep

AT = STEPS // 2
"""Step after which training is interrupted."""


def attach(fixture: Fixture) -> None:
    """The method attaches, lets no weight of the backbone train, and the model gives numbers."""
    case = fixture.attached(noise=0.0)
    frozen = {p.data_ptr() for p in case.backbone.model.parameters() if p.numel()}
    own = [n for n, p in case.model.named_parameters() if p.requires_grad and p.numel() and p.data_ptr() in frozen]
    if own:
        raise PromiseBroken(
            f"it lets weights of the backbone itself require gradients, which all cells share: {some(own)}. Set "
            "requires_grad only on parameters of your own, or train a copy in its place (nn.Parameter(weight.clone()))"
        )
    for name, p in case.model.named_parameters():
        if p.requires_grad and not bool(p.isfinite().all()):
            raise PromiseBroken(f"the initial value of {name} holds nan or infinite numbers")
    for noise in (0.0, NOISE):
        fixture.move(case.model, noise)
        if not bool(label_logits(case.model, fixture.batch(SAMPLE), case.setup.routing).isfinite().all()):
            when = "before the first step" if not noise else "once its parameters have moved"
            raise PromiseBroken(f"the logits are nan or infinite {when}")


def backbone(fixture: Fixture) -> None:
    """Every frozen tensor keeps its bytes from attach to finish."""
    for stage, names in fixture.trained.changed.items():
        if names:
            raise PromiseBroken(f"{stage} wrote into frozen tensors of the backbone: {some(names)}")


def keys(fixture: Fixture) -> None:
    """The parameters that attach makes trainable, that are trained and that are saved are the same set."""
    fixture.need_training()
    training = fixture.trained
    trained = set(training.trained)
    if training.saved_logits is None:
        raise NotApplicable("saving raised an error: see the check reload")
    saved, attached = set(saved_names(fixture.folder)), set(trainable_names(_again(fixture).model))
    for one, names, other, others in (
        ("attached", attached, "trained", trained),
        ("trained", trained, "attached", attached),
        ("trained", trained, "saved", saved),
        ("saved", saved, "trained", trained),
    ):
        if names - others:
            raise PromiseBroken(f"{one} but not {other}: {some(names - others)}")
    stuck = (trained & training.watch.fed) - training.watch.moved
    if stuck:
        raise PromiseBroken(f"gets gradients but never moves: {some(stuck)}")


def reload(fixture: Fixture) -> None:
    """The saved adapter, loaded into a new model, gives the same logits."""
    fixture.need_training()
    training = fixture.trained
    training.reraise("save")
    logits = training.saved
    scramble(1)
    again = _again(fixture)
    if set(trainable_names(again.model)) != set(saved_names(fixture.folder)):
        raise NotApplicable("the saved names do not fit a new model: see the check keys")
    load_adapter(again.model, fixture.folder)
    loaded = label_logits(again.model, fixture.batch(SAMPLE), again.setup.routing)
    expect_same(logits, loaded, "logits before saving and after loading")


def same_seed(fixture: Fixture) -> None:
    """The same seed gives the same numbers, independent of the global random state."""
    fixture.need_training()
    first, trained = fixture.trained, fixture.trained.trained
    scramble(1)
    second = begin(fixture)
    expect_equal(first.start, second.start, "initial values", "when the global random state does")
    fit(fixture, second)
    expect_equal(trained, second.trained, "trained values", "when the global random state does")


def finish(fixture: Fixture) -> None:
    """Merging or collapsing does not change the logits."""
    training = fixture.trained
    training.reraise("finish")
    expect_same(training.saved, training.finished, "logits before and after finish")


def _again(fixture: Fixture) -> Case:
    """A new model with the method attached, shrunk to the saved parameters."""
    case = fixture.attached(noise=0.0)
    shrink(case.model, saved_names(fixture.folder))
    return case


def resume(fixture: Fixture) -> None:
    """Training in two parts, with a checkpoint between them, gives bitwise the parameters of uninterrupted training."""
    fixture.need_training()
    if not fixture.method.resumes():
        raise NotApplicable("it restarts from the beginning after an interruption: no class says resumable = True")
    whole = fixture.trained.trained
    stop = StopRequest()

    def ask(step: int, losses: Tensor, tasks: Tensor) -> None:
        stop.requested = step + 1 >= AT

    first = CheckpointPolicy(_files(fixture), stop=stop, every_s=float("inf"))
    try:
        _train(fixture, first, ask)
        raise NotApplicable(f"it trains fewer than {AT} steps")
    except Stopped:
        pass
    if first.problems:
        raise NotApplicable(f"it restarts from the beginning after an interruption: {first.problems[0]}")
    scramble(2)
    again = CheckpointPolicy(_files(fixture), stop=StopRequest(), every_s=float("inf"))
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
