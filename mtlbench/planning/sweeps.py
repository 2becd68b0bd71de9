"""Sweeps: one option with several values makes a request for each, everything else equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from mtlbench.errors import RequestError

SWEPT = ("model", "train_rows", "steps", "epochs", "learning_rate")
"""Options that may have several values: the backbone, and fields of the protocol that are numbers."""
Sweeps = Mapping[str, tuple[Any, ...]]
"""Option to its values, in the order given."""


def sweeps_of(options: Mapping[str, Any]) -> Sweeps:
    """The options with several values. Those of numbers are tuples; ``model`` is text with commas.

    Raises:
        RequestError: a value occurs twice or is missing, or two of the options exclude each other.
    """
    swept = {name: value for name in SWEPT[1:] if isinstance(value := options.get(name), tuple)}
    models = _models(str(options.get("model") or ""))
    swept |= {"model": models} if len(models) > 1 else {}
    for name, values in swept.items():
        if len(set(map(_same, values))) < len(values) or not all(value != "" for value in values):
            raise RequestError(f"{_option(name)} {_text(values)}: a sweep needs different values, each once.")
    if "epochs" in swept and options.get("steps") is not None:
        raise RequestError("--epochs is ignored where --steps is given: leave one of them out.")
    return swept


def requests_of(options: Mapping[str, Any], sweeps: Sweeps) -> Iterator[Mapping[str, Any]]:
    """The options of each request: all combinations of the values."""
    for values in product(*sweeps.values()):
        yield {**options, **dict(zip(sweeps, values, strict=True))}


def refuse_sweep(options: Mapping[str, Any], command: str) -> None:
    """Refuse options with several values for a command that takes one of each.

    Raises:
        RequestError: naming them.
    """
    for name, values in sweeps_of(options).items():
        raise RequestError(
            f"{_option(name)} {_text(values)}: {command} is one study of one protocol and one backbone, so it takes no "
            "sweep. Give the command once for each value, or leave it out."
        )


def sweep_lines(sweeps: Sweeps, *, cells: int) -> list[str]:
    """What a sweep makes of a plan with so many ``cells``, for a terminal."""
    if not sweeps:
        return []
    combinations = 1
    for values in sweeps.values():
        combinations *= len(values)
    named = " x ".join(f"{name} {', '.join(map(_value, values))}" for name, values in sweeps.items())
    each = cells // combinations
    return [f"sweep: {named}: {combinations} combinations of {each} cell{'' if each == 1 else 's'}"]


def _models(text: str) -> tuple[str, ...]:
    """Names of models: a comma that is part of an existing path separates nothing."""
    if "," not in text or Path(text).exists():
        return (text,)
    return tuple(name.strip() for name in text.split(","))


def _same(value: Any) -> Any:
    """Equal for two values that mean the same: a folder however it is written."""
    return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(values: Sequence[Any]) -> str:
    return ",".join(map(_value, values))


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
