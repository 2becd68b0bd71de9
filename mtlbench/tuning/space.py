"""The search space: that of the method, and fields given by ``--search``; and the named budgets."""

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
"""Significant digits of a suggested number, to keep it readable."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The settings that are searched."""

    method: Method
    """The method with its fixed settings."""
    fields: Mapping[str, BaseDistribution]
    """Searched settings by name."""
    method_fields: Mapping[str, BaseDistribution]
    """Fields that the method's ``search_space`` suggests, including those that are fixed or overridden."""

    def settle(self, suggested: Mapping[str, Any]) -> dict[str, Value]:
        """Suggested values as settings: rounded by the method, then to four significant digits, within range."""
        by_method = {n for n, domain in self.method_fields.items() if self.fields.get(n) == domain}
        values = {n: suggested[n] if n in by_method else _lowest(domain) for n, domain in self.method_fields.items()}
        rounded = self.method.search_space(optuna.trial.FixedTrial(values))
        return {n: _tidy(rounded[n] if n in by_method else suggested[n], domain) for n, domain in self.fields.items()}


def search_space(name: str, raw: Mapping[str, str], searches: Iterable[str]) -> Space:
    """The space of method ``name``: that of the method without the settings fixed in ``raw``, and with ``searches``.

    Raises:
        RequestError: a search cannot be parsed or does not fit the method, or nothing is left to search.
        PluginError: the method's ``search_space`` is invalid.
    """
    fixed = read_settings(name, raw)
    method = build(name, fixed)
    suggested = method_space(method)
    searched: dict[str, BaseDistribution] = {}
    for search in searches:
        field, equals, values = (text.strip() for text in search.partition("="))
        if not field or not equals:
            raise RequestError(f"--search {search!r} cannot be read. {_HOW}")
        if field in fixed:
            raise RequestError(f"--search {search!r}: --method fixes {field} to {raw[field]}. Omit one of them.")
        if field in searched:
            raise RequestError(f"--search {search!r}: {field} is searched twice.")
        searched[field] = _parse(search, values, partial(_typed, name, raw, field))
    searched = {**{n: domain for n, domain in suggested.items() if n not in fixed}, **searched}
    if not searched:
        raise RequestError(f"Method {name!r} has nothing to tune with these settings. {_HOW}")
    return Space(method=method, fields=searched, method_fields=suggested)


def quiet_study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """An in-memory study that maximises, created without log output."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize", sampler=sampler)
    finally:
        optuna.logging.set_verbosity(level)


def space_text(domain: BaseDistribution) -> str:
    """A range or choices in the syntax of ``--search``."""
    if isinstance(domain, CategoricalDistribution):
        return ",".join(
            str(choice).lower() if isinstance(choice, bool | None) else str(choice) for choice in domain.choices
        )
    assert isinstance(domain, FloatDistribution | IntDistribution)
    return f"{domain.low:g}:{domain.high:g}{':log' if domain.log else ''}"


_HOW = "Write a range or choices: --search rank=4:64:log, --search dropout=0.0,0.1,0.2."


def method_space(method: Method) -> dict[str, BaseDistribution]:
    """The fields that a method's ``search_space`` suggests, with their domains.

    Raises:
        PluginError: it does not suggest each setting under its own name.
    """
    trial = quiet_study(optuna.samplers.RandomSampler(seed=0)).ask()
    settings = method.search_space(trial)
    if set(settings) != set(trial.distributions):
        raise PluginError(
            f"Method {method.name!r}: search_space must suggest each setting under its own name, always the same ones; "
            f"it gives {', '.join(sorted(settings)) or 'nothing'} and suggests "
            f"{', '.join(sorted(trial.distributions)) or 'nothing'}."
        )
    return dict(trial.distributions)


def _typed(name: str, raw: Mapping[str, str], field: str, text: str) -> Value:
    settings = read_settings(name, {**raw, field: text})
    if field not in settings:
        raise RequestError(
            f"Method {name!r} has no setting {field!r}. {did_you_mean(field, build(name, {}).settings())}"
        )
    return settings[field]


def _parse(search: str, values: str, typed: Callable[[str], Value]) -> BaseDistribution:
    if ":" not in values:
        choices = [typed(value.strip()) for value in values.split(",")]
        if len(set(choices)) < max(2, len(choices)):
            raise RequestError(f"--search {search!r}: name at least two different values. {_HOW}")
        return CategoricalDistribution(choices)
    low_text, _, rest = values.partition(":")
    high_text, colon, scale = rest.partition(":")
    if colon and scale != "log":
        raise RequestError(f"--search {search!r}: a range may only be followed by :log, not {scale!r}.")
    low, high = typed(low_text.strip()), typed(high_text.strip())
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


def _lowest(domain: BaseDistribution) -> Any:
    if isinstance(domain, CategoricalDistribution):
        return domain.choices[0]
    assert isinstance(domain, FloatDistribution | IntDistribution)
    return domain.low


def _tidy(value: Any, domain: BaseDistribution) -> Value:
    if isinstance(domain, CategoricalDistribution):
        choice: Value = value
        return choice
    assert isinstance(domain, FloatDistribution | IntDistribution)
    if isinstance(domain, IntDistribution):
        return min(max(int(value), domain.low), domain.high)
    rounded = float(f"{value:.{DIGITS if domain.step is None else 12}g}")
    return min(max(rounded, domain.low), domain.high)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A named budget. Options of the command override it."""

    trials: int
    startup: int
    """Trials drawn at random before TPE starts to model."""
    at_once: int
    """Trials suggested together, before any of their results is known."""
    share: float
    """Fraction of each task's training examples that trials are scored on instead of trained on."""
    score_rows: int | None = None
    """Limit on scored examples per task; ``None`` scores all."""
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
        RequestError: it is unknown.
    """
    if name not in BUDGETS:
        raise RequestError(f"Unknown budget {name!r}. {did_you_mean(name, BUDGETS)}")
    return BUDGETS[name]
