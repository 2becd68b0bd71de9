"""Right and wrong answers of two methods, drawn from a world whose true difference is known."""

from __future__ import annotations

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
