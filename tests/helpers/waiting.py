"""Waiting for what other processes do, without guessing how long they take."""

from __future__ import annotations

import ast
import inspect
import linecache
import time
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from mtlbench.store import RunFolder

LOG_LINES = 15


def wait_for(holds: Callable[[], object], *, seconds: float = 60) -> None:
    """Return once ``holds()`` is true; fail when it never gets so, and say what it last saw.

    ``seconds`` is only the end of patience: no test relies on how long something takes.

    Raises:
        AssertionError: with the condition, the values of its parts, and the state of each run folder that it names.
    """
    deadline = time.monotonic() + seconds
    while not (last := holds()):
        if time.monotonic() > deadline:
            raise AssertionError("\n".join(_told(holds, last, seconds)))
        time.sleep(0.01)


def _told(holds: Callable[[], object], last: object, seconds: float) -> Iterator[str]:
    text = _text(holds)
    yield f"waited {seconds:g} s for: {text or getattr(holds, '__qualname__', repr(holds))}"
    yield f"  last value: {last!r}"
    if not isinstance(holds, FunctionType):
        return
    outside = inspect.getclosurevars(holds).nonlocals
    for part in _parts(text):
        try:
            yield f"  {part} = {eval(part, {**holds.__globals__, **outside})!r}"
        except Exception as error:  # it may have gone meanwhile
            yield f"  {part}: {error!r}"
    for name, value in outside.items():
        folder = value if isinstance(value, RunFolder) else getattr(value, "folder", None)
        if isinstance(folder, RunFolder):
            yield from _folder(name, folder)


def _text(holds: Callable[[], object]) -> str:
    """The source of a lambda's expression; empty for what is no lambda."""
    code = getattr(holds, "__code__", None)
    if code is None or code.co_name != "<lambda>":
        return ""
    places = [place for place in code.co_positions() if place[0] and place[2] is not None and place[3]]
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    except SyntaxError:
        return ""
    spans = {(first, start) for first, _, start, _ in places}
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda) and any(
            (node.body.lineno, node.body.col_offset) <= span <= (node.body.end_lineno, node.body.end_col_offset)
            for span in spans
        ):
            return ast.unparse(node.body)
    return ""


def _parts(text: str) -> Iterator[str]:
    """What the expression compares, joins or negates, and the iterables of its comprehensions."""
    if not text:
        return
    pending: list[Any] = [ast.parse(text, mode="eval").body]
    while pending:
        node = pending.pop(0)
        match node:
            case ast.BoolOp(values=values):
                pending += values
            case ast.UnaryOp(operand=operand):
                pending.append(operand)
            case ast.Compare(left=left, comparators=others):
                pending += [left, *others]
            case ast.Constant() | ast.Name():
                pass
            case ast.Call(args=[ast.GeneratorExp(generators=[first, *_])]):
                pending.append(first.iter)
            case _:
                yield ast.unparse(node)


def _folder(name: str, folder: RunFolder) -> Iterator[str]:
    """How far a run is: its records, its claims, and the ends of its logs."""
    records = {key[:8]: record.status for key, record in folder.records().items()}
    claims = {key[:8]: (claim.owner.pid, claim.deaths) for key, claim in folder.claims().items()}
    yield f"  {name}: records {records}, claims (pid, deaths) {claims}"
    for log in sorted((folder.path / "logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        yield from (f"  {log.name} | {line}" for line in lines[-LOG_LINES:])
