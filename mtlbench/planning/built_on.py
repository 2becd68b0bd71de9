"""Cells whose method starts from what another method trains, and the cell that trains it for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from mtlbench.api.cell import Cell
from mtlbench.api.method import Method, Value
from mtlbench.errors import MtlbenchError
from mtlbench.planning.settings import MethodChoice, build
from mtlbench.planning.sources import check_sources


def base_of(cell: Cell, others: Iterable[Cell]) -> Cell | None:
    """The cell of ``others`` that trains what ``cell`` is built on, or ``None``: where its method is built on none,
    where no other asks the same of data, protocol, backbone and seed, and where other code trained it."""
    wanted = _built_on(cell.method, tuple(cell.settings.items()))
    if wanted is None:
        return None
    asked = _circumstances(cell)
    return next((other for other in others if _trains(other, wanted) and _circumstances(other) == asked), None)


def ready(cells: Iterable[Cell], unfinished: Sequence[Cell]) -> list[Cell]:
    """The ``cells`` that wait for none of the ``unfinished`` ones."""
    return [cell for cell in cells if base_of(cell, unfinished) is None]


def with_bases(methods: Sequence[MethodChoice]) -> tuple[list[MethodChoice], list[str]]:
    """``methods``, after each method that several of them are built on and that is not among them; and a note on it."""
    counts = Counter(base for choice in methods if (base := choice.method.built_on) is not None)
    there = [choice.method for choice in methods]
    missing = [base for base, count in counts.items() if count > 1 and base not in there]
    added = [MethodChoice(name=base.name, settings=_explicit(base), method=base) for base in missing]
    return [*added, *methods], list(_notes(added, methods))


def _notes(added: Sequence[MethodChoice], methods: Sequence[MethodChoice]) -> Iterator[str]:
    for choice in added:
        built = sorted({other.name for other in methods if other.method.built_on == choice.method})
        yield f"{choice.name} runs too: {', '.join(built)} is built on it, and it is trained once for all of them."


def _explicit(method: Method) -> Mapping[str, Value]:
    """The settings that differ from the defaults."""
    defaults = build(method.name, {}).settings()
    return {name: value for name, value in method.settings().items() if value != defaults[name]}


def _circumstances(cell: Cell) -> tuple[object, ...]:
    """What decides a cell's numbers beside its method."""
    tasks = {name: said for name, said in cell.sources.items() if not name.startswith("methods/")}
    return (cell.tasks, cell.model, cell.weights, cell.protocol.identity(), cell.seed, tasks, not cell.sources)


def _trains(other: Cell, wanted: Method) -> bool:
    if other.method != wanted.name:
        return False
    try:
        check_sources(other)
        return build(other.method, other.settings) == wanted
    except MtlbenchError:
        return False


@lru_cache(maxsize=4096)
def _built_on(name: str, settings: tuple[tuple[str, Value], ...]) -> Method | None:
    try:
        return build(name, dict(settings)).built_on
    except MtlbenchError:  # of a plugin that is broken or gone: running the cell says so
        return None
