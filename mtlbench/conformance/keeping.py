"""Checks of what a method leaves alone and what it leaves behind: backbone, names, adapter, seed, finished model."""

from __future__ import annotations

from mtlbench.cells.guards import label_logits
from mtlbench.conformance.findings import Broken, NotApplicable, expect_equal, expect_same, some
from mtlbench.conformance.lab import Lab, Specimen
from mtlbench.conformance.life import SAMPLE, begin, fit
from mtlbench.conformance.randomness import scramble
from mtlbench.training.checkpoints.state import load_adapter, saved_names, shrink, trainable_names


def attach(lab: Lab) -> None:
    """The method attaches."""
    lab.attached(noise=0.0)


def backbone(lab: Lab) -> None:
    """Every frozen tensor keeps its bytes from attach to finish."""
    for stage, names in lab.life.changed.items():
        if names:
            raise Broken(f"{stage} wrote into frozen tensors of the backbone: {some(names)}")


def keys(lab: Lab) -> None:
    """What attach makes trainable, what trains and what is saved are one set of parameters."""
    lab.need_training()
    life = lab.life
    trained = set(life.trained)
    if life.saved_logits is None:
        raise NotApplicable("saving raised an error: see the check reload")
    saved, attached = set(saved_names(lab.folder)), set(trainable_names(_again(lab).model))
    for one, names, other, others in (
        ("attached", attached, "trained", trained),
        ("trained", trained, "attached", attached),
        ("trained", trained, "saved", saved),
        ("saved", saved, "trained", trained),
    ):
        if names - others:
            raise Broken(f"{one} but not {other}: {some(names - others)}")
    stuck = (trained & life.watch.fed) - life.watch.moved
    if stuck:
        raise Broken(f"gets gradients but never moves: {some(stuck)}")


def reload(lab: Lab) -> None:
    """The saved adapter, read into a new model, gives the same logits."""
    lab.need_training()
    life = lab.life
    life.reraise("save")
    logits = life.saved
    scramble(1)
    again = _again(lab)
    if set(trainable_names(again.model)) != set(saved_names(lab.folder)):
        raise NotApplicable("the saved names do not fit a new model: see the check keys")
    load_adapter(again.model, lab.folder)
    found = label_logits(again.model, lab.batch(SAMPLE), again.setup.routing)
    expect_same(logits, found, "logits before saving and after loading")


def same_seed(lab: Lab) -> None:
    """The same seed gives the same numbers, whatever the global random state."""
    lab.need_training()
    first, trained = lab.life, lab.life.trained
    scramble(1)
    second = begin(lab)
    expect_equal(first.start, second.start, "initial values", "when the global random state does")
    fit(lab, second)
    expect_equal(trained, second.trained, "trained values", "when the global random state does")


def finish(lab: Lab) -> None:
    """Merging or collapsing keeps the function."""
    life = lab.life
    life.reraise("finish")
    expect_same(life.saved, life.finished, "logits before and after finish")


def _again(lab: Lab) -> Specimen:
    """A new model with the method attached, in the form that was saved."""
    specimen = lab.attached(noise=0.0)
    shrink(specimen.model, saved_names(lab.folder))
    return specimen
