"""Checks of invariants: unchanged backbone, parameter names, saved adapter, seed, finished model."""

from __future__ import annotations

from mtlbench.cells.guards import label_logits
from mtlbench.conformance.findings import NotApplicable, PromiseBroken, expect_equal, expect_same, some
from mtlbench.conformance.fixture import SAMPLE, Case, Fixture, begin, fit
from mtlbench.conformance.randomness import scramble
from mtlbench.training.checkpoints.state import load_adapter, saved_names, shrink, trainable_names


def attach(fixture: Fixture) -> None:
    """The method attaches."""
    fixture.attached(noise=0.0)


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
