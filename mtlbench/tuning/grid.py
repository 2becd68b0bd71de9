"""The settings of all trials of a method, known before the first one runs.

A search of equal effort does not adapt to results: trials can run in any order on any number of workers, one that fails
changes no other, and every method is tried at the same learning rates. Each further field is spread evenly too, in an
order of its own (Latin hypercube sampling: McKay, Beckman & Conover 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mtlbench.api.method import Method, Value
from mtlbench.errors import RequestError
from mtlbench.planning.settings import MethodChoice
from mtlbench.tuning.effort import RATE, Effort
from mtlbench.tuning.space import Space, method_space


def common_space(choice: MethodChoice, effort: Effort) -> Space:
    """The fields that ``choice`` leaves to a search: its own, with the learning rate over the range of all methods.

    Raises:
        RequestError: no field is left.
        PluginError: the method's ``search_space`` is invalid.
    """
    own = method_space(choice.method)
    low, high = effort.rates
    fields = {name: domain for name, domain in own.items() if name not in choice.settings}
    if RATE in fields:
        fields[RATE] = FloatDistribution(low, high, log=True)
    if not fields:
        fixed = f"fixes {', '.join(f'{name}' for name in own)}" if own else "has no field to search"
        raise RequestError(
            f"--tune: {choice.name!r} {fixed}, so its row could not be tuned as the others are. Leave the setting to "
            "the search, or take the method out of --methods."
        )
    return Space(method=choice.method, fields=fields, method_fields=own)


def trial_settings(space: Space, count: int) -> list[dict[str, Value]]:
    """Searched settings of ``count`` trials. The first is empty: the default settings."""
    points = count - 1
    columns = {
        name: [_at(domain, (at + 0.5) / points) for at in range(points)] for name, domain in space.fields.items()
    }
    for number, name in enumerate(sorted(set(columns) - {RATE})):
        order = np.random.default_rng([number, points]).permutation(points)
        columns[name] = [columns[name][at] for at in order]
    return [{}, *(space.settle({name: column[at] for name, column in columns.items()}) for at in range(points))]


def rate_of(method: Method, searched: Mapping[str, Value], default: float) -> float:
    """The peak learning rate of a trial: searched, the method's own, or the protocol's ``default``."""
    own = method.learning_rate
    rate = searched.get(RATE, default if own is None else own)
    assert isinstance(rate, int | float)
    return float(rate)


def _at(domain: BaseDistribution, share: float) -> Any:
    """The value at ``share`` of the way through a domain."""
    if isinstance(domain, CategoricalDistribution):
        return domain.choices[int(share * len(domain.choices))]
    assert isinstance(domain, FloatDistribution | IntDistribution)
    low, high = float(domain.low), float(domain.high)
    value = math.exp(math.log(low) + share * math.log(high / low)) if domain.log else low + share * (high - low)
    return round(value) if isinstance(domain, IntDistribution) else value
