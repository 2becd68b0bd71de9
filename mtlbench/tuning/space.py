"""What is searched: the method's own space, and fields given as words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mtlbench.api.method import Method, Value
from mtlbench.errors import PluginError, RequestError, did_you_mean
from mtlbench.planning.settings import build, read_settings

DIGITS = 4
"""Significant digits of a suggested number, so that it can be read and typed again."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What Optuna may choose."""

    method: Method
    """With the settings that are fixed."""
    fields: Mapping[str, BaseDistribution]
    """Searched settings by name."""
    own: Mapping[str, BaseDistribution]
    """What the method's ``search_space`` suggests; some of it may be fixed or searched otherwise."""

    def settle(self, suggested: Mapping[str, Any]) -> dict[str, Value]:
        """Suggested values as settings: rounded as the method does, then to four significant digits, within range."""
        ours = {n for n, found in self.own.items() if self.fields.get(n) == found}
        asked = {n: suggested[n] if n in ours else _lowest(found) for n, found in self.own.items()}
        rounded = self.method.search_space(optuna.trial.FixedTrial(asked))
        return {n: _tidy(rounded[n] if n in ours else suggested[n], found) for n, found in self.fields.items()}


def search_space(name: str, words: Mapping[str, str], searches: Iterable[str]) -> Space:
    """The space of method ``name``: its own, without the settings fixed by ``words``, and with ``searches``.

    Raises:
        RequestError: a search cannot be read or does not fit the method, or nothing is left to search.
        PluginError: the method's own space is not one.
    """
    fixed = read_settings(name, words)
    method = build(name, fixed)
    own = _own_space(method)
    searched: dict[str, BaseDistribution] = {}
    for search in searches:
        field, equals, values = (part.strip() for part in search.partition("="))
        if not field or not equals:
            raise RequestError(f"--search {search!r} cannot be read. {_HOW}")
        if field in fixed:
            raise RequestError(f"--search {search!r}: --method fixes {field} to {words[field]}. Leave one of them out.")
        if field in searched:
            raise RequestError(f"--search {search!r}: {field} is searched twice.")
        searched[field] = _read(search, values, partial(_typed, name, words, field))
    searched = {**{n: found for n, found in own.items() if n not in fixed}, **searched}
    if not searched:
        raise RequestError(f"Method {name!r} has nothing to tune with these settings. {_HOW}")
    return Space(method=method, fields=searched, own=own)


def quiet_study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """A study in memory that maximises; making it logs nothing."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize", sampler=sampler)
    finally:
        optuna.logging.set_verbosity(level)


def space_words(found: BaseDistribution) -> str:
    """A range or choices, as ``--search`` takes them."""
    if isinstance(found, CategoricalDistribution):
        return ",".join(
            str(choice).lower() if isinstance(choice, bool | None) else str(choice) for choice in found.choices
        )
    assert isinstance(found, FloatDistribution | IntDistribution)
    return f"{found.low:g}:{found.high:g}{':log' if found.log else ''}"


_HOW = "Write a range or choices: --search rank=4:64:log, --search dropout=0.0,0.1,0.2."


def _own_space(method: Method) -> dict[str, BaseDistribution]:
    trial = quiet_study(optuna.samplers.RandomSampler(seed=0)).ask()
    settings = method.search_space(trial)
    if set(settings) != set(trial.distributions):
        raise PluginError(
            f"Method {method.name!r}: search_space must suggest each setting under its own name, always the same ones; "
            f"it gives {', '.join(sorted(settings)) or 'nothing'} and suggests "
            f"{', '.join(sorted(trial.distributions)) or 'nothing'}."
        )
    return dict(trial.distributions)


def _typed(name: str, words: Mapping[str, str], field: str, word: str) -> Value:
    settings = read_settings(name, {**words, field: word})
    if field not in settings:
        raise RequestError(
            f"Method {name!r} has no setting {field!r}. {did_you_mean(field, build(name, {}).settings())}"
        )
    return settings[field]


def _read(search: str, values: str, typed: Callable[[str], Value]) -> BaseDistribution:
    if ":" not in values:
        choices = [typed(word.strip()) for word in values.split(",")]
        if len(set(choices)) < max(2, len(choices)):
            raise RequestError(f"--search {search!r}: name at least two different values. {_HOW}")
        return CategoricalDistribution(choices)
    low_word, _, rest = values.partition(":")
    high_word, colon, scale = rest.partition(":")
    if colon and scale != "log":
        raise RequestError(f"--search {search!r}: after the range comes nothing or :log, not {scale!r}.")
    low, high = typed(low_word.strip()), typed(high_word.strip())
    if any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in (low, high)):
        raise RequestError(f"--search {search!r}: a range needs two numbers; name choices with commas instead.")
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if not low < high:
        raise RequestError(f"--search {search!r}: the range must rise, from low to high.")
    if scale and low <= 0:
        raise RequestError(f"--search {search!r}: a log range starts above 0.")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=bool(scale))
    return FloatDistribution(low, high, log=bool(scale))


def _lowest(found: BaseDistribution) -> Any:
    if isinstance(found, CategoricalDistribution):
        return found.choices[0]
    assert isinstance(found, FloatDistribution | IntDistribution)
    return found.low


def _tidy(value: Any, found: BaseDistribution) -> Value:
    if isinstance(found, CategoricalDistribution):
        kept: Value = value
        return kept
    assert isinstance(found, FloatDistribution | IntDistribution)
    if isinstance(found, IntDistribution):
        return min(max(int(value), found.low), found.high)
    rounded = float(f"{value:.{DIGITS if found.step is None else 12}g}")
    return min(max(rounded, found.low), found.high)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One named effort. Words that a command gives win over it."""

    trials: int
    startup: int
    """Trials drawn at random before TPE has enough results to model."""
    at_once: int
    """Trials asked before their results are known."""
    share: float
    """Share of each task's training rows that trials are scored on instead of being trained on."""
    score_rows: int | None = None
    """At most this many of those rows per task are scored; ``None`` scores all."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Protocol fields of the trials, and of the run that uses their result."""


BUDGETS: Mapping[str, Budget] = {
    # PEML, section 4: 100 trials of at most 150 epochs, stopped after 25 without a better score.
    "paper": Budget(
        trials=100,
        startup=10,
        at_once=4,
        share=0.1,
        training={"epochs": 150.0, "evals_per_run": 150, "patience": 25},
    ),
    "standard": Budget(
        trials=20,
        startup=6,
        at_once=4,
        share=0.1,
        score_rows=500,
        training={"epochs": 20.0, "evals_per_run": 20, "patience": 5},
    ),
    "quick": Budget(trials=8, startup=3, at_once=2, share=0.25, training={"epochs": 1.0, "train_rows": 200}),
}


def budget_named(name: str) -> Budget:
    """The budget ``name``.

    Raises:
        RequestError: there is none.
    """
    if name not in BUDGETS:
        raise RequestError(f"Unknown budget {name!r}. {did_you_mean(name, BUDGETS)}")
    return BUDGETS[name]
