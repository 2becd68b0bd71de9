"""``--match-parameters``: the size of each method whose number of trained parameters is nearest to one budget.

A method declares its size (:attr:`~mtlbench.api.method.Method.size_field`), and the number is counted on the meta
device, so that no weight is read. What counts is what training starts with: what a search or a budget of ranks drops
on the way was trained too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from textwrap import shorten

from torch import nn

from mtlbench.api.cell import Cell
from mtlbench.api.method import Method, Setup, Value
from mtlbench.backbones.backbone import backbone_size, empty_backbone
from mtlbench.composition import Sum
from mtlbench.errors import PluginError, RequestError
from mtlbench.forecasting.memory import counts_on, empty_setup
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request, Requests
from mtlbench.planning.settings import MethodChoice, read_methods

_BUDGET = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(?P<unit>[%kKmM]?)")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6}
_FLAT = 3
"""After so many doublings of a size that train no parameter more, a method is as large as it gets."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Trained parameters that every method should come near to."""

    text: str
    """As it was given."""
    number: float
    """Of parameters, or percent of the backbone's."""
    percent: bool

    def of(self, backbone: int) -> int:
        """Parameters, on a backbone with so many."""
        return max(1, round(self.number * backbone / 100 if self.percent else self.number))


def read_budget(text: str) -> Budget:
    """``0.5%`` of the backbone, or a number such as ``1e6``, ``500k`` or ``2M``.

    Raises:
        RequestError: the text is neither.
    """
    found = _BUDGET.fullmatch(text.strip())
    percent = found is not None and found["unit"] == "%"
    number = 0.0 if found is None else float(found["number"])
    number *= 1 if found is None or percent else _UNITS[found["unit"].lower()]
    if not 0 < number < float("inf") or (percent and number > 100) or (not percent and number < 1):
        raise RequestError(
            f"--match-parameters {text!r} is no budget. Write a share of the backbone's parameters up to 100%, such as "
            "0.5%, or a number of parameters, such as 1e6 or 500k."
        )
    return Budget(text=text.strip(), number=number, percent=percent)


@dataclass(frozen=True, kw_only=True)
class MatchedMethod:
    """What became of one method of a request."""

    variant: str
    """With the settings it is run with."""
    parameters: int | None
    """That it trains; ``None`` if that cannot be counted without weights, or the backbone does not allow the method."""
    moved: Mapping[str, Value]
    """The settings that were chosen; empty for a method that cannot be matched."""
    why: str = ""
    """Why it cannot be matched."""

    def line(self, target: int) -> str:
        """One line of a plan."""
        if not self.moved or self.parameters is None:
            trains = f"; it trains {self.parameters:,}" if self.parameters else ""
            return f"{self.variant}: cannot be matched, {self.why}{trains}"
        off = 100 * (self.parameters - target) / target
        moved = " and ".join(self.moved)
        return f"{self.variant}: {self.parameters:,} parameters, {off:+.2g} % from the budget, by {moved}"


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The methods of one request at the sizes that come nearest to a budget."""

    budget: Budget
    target: int
    """The budget in parameters."""
    request: Request
    """With the chosen settings in its methods."""
    methods: tuple[MatchedMethod, ...]

    def lines(self) -> Iterator[str]:
        """For a terminal: the budget, then a line for each method."""
        share = f" ({self.budget.text})" if self.budget.percent else ""
        yield f"trained parameters matched to {self.target:,} on {self.request.model}{share}"
        for method in self.methods:
            yield f"  {method.line(self.target)}"


def match_parameters(requests: Requests, budget: Budget) -> tuple[Requests, list[Matching]]:
    """The requests with the sizes of their methods set, and how near each came.

    Raises:
        RequestError: a request cannot be planned, the budget is out of a method's reach, or a setting that would be
            chosen is given.
    """
    found = [_matched(part, budget) for part in requests.parts]
    notes = tuple(note for one in found for note in one.lines())
    told = {tuple(one.lines()): one for one in found}  # once for the parts of a sweep
    return replace(requests, parts=tuple(one.request for one in found), notes=(*requests.notes, *notes)), [
        *told.values()
    ]


def _matched(request: Request, budget: Budget) -> Matching:
    choices = read_methods(request.methods)
    cells = make_plan(request).cells[: len(choices)]
    first = cells[0]
    empty, architecture = empty_backbone(first.model, attention=first.protocol.attention)
    backbone = _Backbone(empty, architecture)
    target = budget.of(backbone_size(empty).parameters)
    methods, settled = [], []
    for choice, cell in zip(choices, cells, strict=True):
        method, sized = _match(choice, cell, backbone, target)
        methods.append(method)
        settled.append(sized)
    text = ",".join(cell.variant for cell in settled)
    return Matching(budget=budget, target=target, request=replace(request, methods=text), methods=tuple(methods))


@dataclass(frozen=True)
class _Backbone:
    """An empty backbone, which each count takes a copy of."""

    model: nn.Module
    architecture: str

    def trained(self, cell: Cell) -> int:
        return counts_on(copy.deepcopy(self.model), cell, architecture=self.architecture).training

    def setup(self, cell: Cell) -> Setup:
        return empty_setup(self.model, cell, architecture=self.architecture)


def _match(choice: MethodChoice, cell: Cell, backbone: _Backbone, target: int) -> tuple[MatchedMethod, Cell]:
    """The method at the size nearest to ``target``, and its cell."""
    prefix, part = _part(choice)
    if part is None:
        return _as_it_is(cell, backbone), cell
    setup = backbone.setup(cell)

    def at(size: int) -> Cell:
        sized = {f"{prefix}{name}": value for name, value in part.sized(size, setup).items()}
        return replace(cell, settings={**sized, **choice.settings})

    def trained(size: int) -> int | None:
        try:
            return backbone.trained(at(size))
        except RequestError:
            return None

    field = f"{prefix}{part.size_field}"
    try:
        smallest = backbone.trained(at(1))
    except RequestError as error:
        as_given = _as_it_is(cell, backbone)
        if as_given.parameters is None:
            return as_given, cell
        raise RequestError(
            f"--match-parameters moves {field} of {choice.name} from 1 on, which other settings do not allow: {error}"
        ) from error
    if smallest > target:
        raise RequestError(_out_of_reach(choice, field, at(1), smallest, target))
    size, reached, largest = nearest_size(trained, target=target, smallest=smallest, whose=f"{choice.name}, {field}")
    if largest:
        raise RequestError(_out_of_reach(choice, field, at(size), reached, target))
    chosen = at(size)
    moved = {name: value for name, value in chosen.settings.items() if name not in choice.settings}
    return MatchedMethod(variant=chosen.variant, parameters=reached, moved=moved), chosen


def _part(choice: MethodChoice) -> tuple[str, Method | None]:
    """The method whose size is moved, and what its settings begin with: of a composition the part that adapts weights,
    unless its size is given, and then the other; ``None`` if there is no such.

    Raises:
        RequestError: every size is given.
    """
    whole = choice.method
    members = sorted(whole.members, key=lambda part: part.adapts != "weights") if isinstance(whole, Sum) else [whole]
    sizes = {f"{part.name}." if isinstance(whole, Sum) else "": part for part in members if part.size_field}
    free = {prefix: part for prefix, part in sizes.items() if f"{prefix}{part.size_field}" not in choice.settings}
    if sizes and not free:
        given = " and ".join(f"{prefix}{part.size_field}" for prefix, part in sizes.items())
        raise RequestError(
            f"--match-parameters chooses {given} of {choice.name}, which is given in brackets: leave it out there."
        )
    return next(iter(free.items()), ("", None))


def _as_it_is(cell: Cell, backbone: _Backbone) -> MatchedMethod:
    """A method without a size."""
    try:
        trained = backbone.trained(cell)
    except RequestError as error:
        return _uncounted(cell, error)
    why = "as it has no setting for its size" if trained else "as it trains nothing"
    return MatchedMethod(variant=cell.variant, parameters=trained, moved={}, why=why)


def _uncounted(cell: Cell, error: RequestError) -> MatchedMethod:
    why = f"as it cannot be counted: {shorten(str(error), 200)}"
    return MatchedMethod(variant=cell.variant, parameters=None, moved={}, why=why)


def _out_of_reach(choice: MethodChoice, field: str, nearest: Cell, reached: int, target: int) -> str:
    small = reached > target
    words = f"at least {reached:,}" if small else f"at most {reached:,}"
    value = nearest.settings[field]
    moved = f"{field} moves alone: give it in brackets to move the other part. " if "+" in choice.name else ""
    return (
        f"--match-parameters: {choice.name} trains {words} parameters, with {field}={value}, and the budget is "
        f"{target:,}. {moved}Take a {'larger' if small else 'smaller'} budget, or leave {choice.name} out."
    )


def nearest_size(
    trained: Callable[[int], int | None], *, target: int, smallest: int, whose: str
) -> tuple[int, int, bool]:
    """The size whose number of parameters is nearest to ``target``, that number, and whether no size reaches
    ``target`` although it is above.

    Args:
        trained: Parameters at a size from 1 on, not falling; ``None`` for a size that is too large to be allowed.
        smallest: Parameters at size 1, at most ``target``.
        whose: Whose size, for the message.

    Raises:
        PluginError: the number falls somewhere.
    """
    low, of_low, high, of_high = 1, smallest, 2, trained(2)
    flat = 0
    while of_high is not None and of_high <= target and flat < _FLAT:
        _check_rising(low, of_low, high, of_high, whose)
        flat = flat + 1 if of_high == of_low else 0
        ahead = _between(low, of_low, high, of_high, target)
        low, of_low, high = (high, of_high, max(2 * high, ahead + 1)) if flat == 0 else (low, of_low, 2 * high)
        of_high = trained(high)
    if flat == _FLAT:
        return low, of_low, of_low < target
    step = 0
    while high - low > 1:
        guess = (low + high) // 2 if of_high is None or step % 3 == 2 else _between(low, of_low, high, of_high, target)
        size = min(max(guess if step % 3 != 1 else low + 1, low + 1), high - 1)
        count = trained(size)
        if count is not None:
            _check_rising(low, of_low, size, count, whose)
        if count is not None and count <= target:
            low, of_low = size, count
        else:
            high, of_high = size, count
        step += 1
    if of_high is None:
        return low, of_low, of_low < target
    return (low, of_low, False) if target - of_low <= of_high - target else (high, of_high, False)


def _between(low: int, of_low: int, high: int, of_high: int, target: int) -> int:
    """The size at which a straight line through two counts is at ``target``."""
    return low + (target - of_low) * (high - low) // max(1, of_high - of_low)


def _check_rising(low: int, of_low: int, high: int, of_high: int, whose: str) -> None:
    if of_high < of_low:
        raise PluginError(
            f"{whose}: {of_low:,} parameters at size {low} and {of_high:,} at {high}. The number must not fall as the "
            "size rises: see Method.sized."
        )
