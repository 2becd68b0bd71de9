"""Answers and scores of methods, drawn from worlds whose true differences are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtlbench.statistics.estimate import Measured


def answers(
    generator: np.random.Generator, *, seeds: int, examples: int, seed_sd: float, example_sd: float, noise: float
) -> np.ndarray:
    """Difference of two methods' answers ``[seeds, examples]`` in points; in the mean over worlds it is 0.

    How hard an example is counts for both, how well a method does on it (``example_sd``) for one; a seed makes a method
    better everywhere by ``seed_sd``, and ``noise`` is what a seed answers by chance.
    """
    hard = generator.normal(0.8, 1.2, examples)

    def method() -> np.ndarray:
        own = generator.normal(0, example_sd, examples)
        luck = generator.normal(0, seed_sd, (seeds, 1)) if seed_sd else 0.0
        return 100.0 * (hard + own + luck + generator.normal(0, noise, (seeds, examples)) > 0)

    return method() - method()


def measured(generator: np.random.Generator, values: np.ndarray, *, draws: int = 200) -> Measured:
    """Values ``[seeds, examples]`` with draws of the examples, as a table makes them."""
    seeds, examples = values.shape
    weights = generator.multinomial(examples, np.full(examples, 1 / examples), size=draws) / examples
    return Measured(seeds=tuple(range(seeds)), values=values.mean(1), draws=weights @ values.T, examples=examples)


def error(share: float, rounds: int) -> float:
    """Three standard errors of a share that was counted in so many rounds."""
    return 3 * (share * (1 - share) / rounds) ** 0.5


GAP = 6.3
"""Points in the average of eight tasks by which one method is truly worse, where power is measured."""
SPREAD = 2.0
"""Standard deviation in points, between seeds, of the difference of two methods' averages. With it, the rule of 0.1.0
(Student's t of each pair, corrected for all pairs) finds :data:`GAP` about as rarely as in a review of that version: in 4
to 7 % of studies of eight methods with 3 seeds, in 62 to 68 % with 5, and twice the gap in 22 to 25 % with 3."""


@dataclass(frozen=True, kw_only=True)
class World:
    """How methods vary between seeds; all are equally good, but for the last one, which may be worse by ``gap``."""

    methods: int
    seeds: int
    noisy: int = 0
    """So many of the first methods vary ``ratio`` times as much as the others."""
    ratio: float = 5.0
    flat: bool = False
    """Whether the last method but one is the same for each seed, as an untrained backbone is."""
    shared: float = 0.7
    """What a seed does to all methods but the flat one, in units of what it does to one."""
    gap: float = 0.0

    def scores(self, generator: np.random.Generator) -> np.ndarray:
        """Averages ``[methods, seeds]`` in percent."""
        own, together = np.ones(self.methods), np.ones(self.methods)
        own[: self.noisy] = self.ratio
        if self.flat:
            own[-2] = together[-2] = 0.0
        values = own[:, None] * generator.normal(size=(self.methods, self.seeds))
        values += self.shared * together[:, None] * generator.normal(size=self.seeds)
        values *= SPREAD / 2**0.5
        values[-1] -= self.gap
        return 70 + values


def column_of(scores: np.ndarray) -> dict[str, Measured]:
    """A column of a table with scores ``[methods, seeds]``."""
    return {str(at): Measured(seeds=tuple(range(len(own))), values=own) for at, own in enumerate(scores)}


def trained(
    generator: np.random.Generator,
    *,
    methods: int,
    seeds: int,
    noisy: Sequence[int] = (),
    flat: Sequence[int] = (),
    shift: float = 0.0,
    tasks: int = 8,
    examples: int = 277,
) -> np.ndarray:
    """Right and wrong answers ``[methods, seeds, tasks, examples]``; the last method is worse by ``shift`` logits.

    How hard an example is counts for all methods, how well a method does on it for one; a seed moves a method on all
    tasks and on each, five times as much for the ``noisy`` ones and not at all for the ``flat`` ones.
    """
    factor = np.ones((methods, 1, 1, 1))
    factor[list(noisy)], factor[list(flat)] = 5.0, 0.0
    logits = generator.normal(0.9, 1.2, (tasks, examples)) + generator.normal(0, 0.3, (methods, 1, tasks, examples))
    luck = generator.normal(0, 0.04, (methods, seeds, 1, 1)) + generator.normal(0, 0.1, (methods, seeds, tasks, 1))
    chance = generator.normal(0, 0.4, (methods, seeds, tasks, examples))
    logits = logits + factor * luck + np.where(factor > 0, chance, chance[:, :1])
    logits[-1] -= shift
    return 100.0 * (logits > 0)


def averages(generator: np.random.Generator, right: np.ndarray, *, draws: int = 200) -> dict[str, Measured]:
    """The column of averages of answers ``[methods, seeds, tasks, examples]``, with draws of the examples."""
    methods, seeds, tasks, examples = right.shape
    drawn = np.zeros((methods, draws, seeds))
    for task in range(tasks):
        weights = generator.multinomial(examples, np.full(examples, 1 / examples), size=draws) / examples
        drawn += np.moveaxis(right[:, :, task] @ weights.T, -1, 1) / tasks
    of_seeds = tuple(range(seeds))
    return {
        str(at): Measured(seeds=of_seeds, values=own.mean((1, 2)), draws=drawn[at], examples=tasks * examples)
        for at, own in enumerate(right)
    }
