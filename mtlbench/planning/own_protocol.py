"""From words to a checked protocol: a named one, what is changed, and the data and prompts of the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from mtlbench.api.cell import Protocol
from mtlbench.data.k_shot import read_k_shot
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.mixing import ordered, read_mixing
from mtlbench.planning.protocols import SETTABLE, STANDARD, fields_of, overlaid
from mtlbench.text import one_line

_AT_LEAST: dict[str, float] = {
    "max_length": 8, "train_rows": 1, "eval_rows": 1, "steps": 1, "batch_size": 1, "micro_batch": 1,
    "evals_per_run": 0, "patience": 1, "weight_decay": 0, "clip": 0, "warmup": 0, "adapt_steps": 1,
}  # fmt: skip
_OPTIONS = {
    "optimizer": ("adamw", "adafactor", "sgd"),
    "schedule": ("cosine", "linear", "constant"),
    "batching": ("drawn", "by_length"),
    "dtype": ("auto", "float32", "bfloat16"),
    "attention": ("sdpa", "eager"),
}


def make_protocol(words: Mapping[str, Any], *, data: str, prompts: str = "", tasks: Sequence[str] = ()) -> Protocol:
    """The protocol ``words["name"]`` (:data:`STANDARD` where there is none) with the other words on top.

    Its name says what was changed: ``peml_holdout + steps=10``.

    Args:
        tasks: Full names of the cell's tasks, in order.

    Raises:
        RequestError: a word is no field or has an impossible value, or the words contradict each other.
    """
    given = dict(words)
    name = str(given.pop("name", None) or STANDARD)
    for word in given:
        if word not in SETTABLE:
            raise RequestError(f"The protocol has no field {word!r}. {did_you_mean(word, SETTABLE)}")
    base = fields_of(name)
    named = _built(name, base)
    protocol = _built(name, overlaid(base, given))
    _check(protocol)
    if tasks:
        protocol = replace(protocol, mixing=ordered(protocol.mixing, tasks))
    changes = [f"{field}={_word(getattr(protocol, field))}" for field in SETTABLE if _differ(field, protocol, named)]
    label = f"{name} + {', '.join(changes)}" if changes else name
    return replace(protocol, name=one_line(label, limit=200), data=data, prompts=prompts)


def _built(name: str, words: Mapping[str, Any]) -> Protocol:
    """The values with the types of their fields: TOML's ``3`` is a number for ``epochs``."""
    values: dict[str, Any] = {}
    for field in fields(Protocol):
        if field.name not in words:
            continue
        value, kind = words[field.name], str(field.type)
        if kind.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wanted: Any = {"float": float, "int": int, "str": str, "bool": bool}[kind.partition(" ")[0]]
        fits = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        if not fits and not (value is None and kind.endswith("| None")):
            raise RequestError(f"{field.name} of the protocol {name!r} must be {kind}, got {value!r}.")
        values[field.name] = value
    return Protocol(**values)


def _differ(field: str, one: Protocol, other: Protocol) -> bool:
    return bool(getattr(one, field) != getattr(other, field))


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _check(protocol: Protocol) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(protocol, name)
        if value is not None and not value >= least:
            raise RequestError(f"{name} must be at least {least:g}, got {value}.")
    for name, options in _OPTIONS.items():
        value = getattr(protocol, name)
        if value not in options:
            raise RequestError(
                f"{name} must be one of {', '.join(options)}, got {value!r}. {did_you_mean(value, options)}"
            )
    if not 0 < protocol.learning_rate < 100:
        raise RequestError(f"learning_rate must be above 0, got {protocol.learning_rate}.")
    for name in ("epochs", "adapt_epochs"):
        value = getattr(protocol, name)
        if value is not None and not 0 < value < 1e6:
            raise RequestError(f"{name} must be above 0, got {value}.")
    for name in ("eval_from_train", "holdout"):
        if not 0 <= getattr(protocol, name) < 1:
            raise RequestError(f"{name} is a share of the training rows below 1, got {getattr(protocol, name)}.")
    if not 0 <= protocol.held_out < 0.5:
        raise RequestError(f"held_out must be at least 0 and below 0.5, got {protocol.held_out}.")
    if not protocol.warmup < 1:
        raise RequestError(f"warmup is a share of the steps below 1, got {protocol.warmup}.")
    if protocol.micro_batch is not None and protocol.batch_size % protocol.micro_batch:
        raise RequestError(f"micro_batch {protocol.micro_batch} must divide batch_size {protocol.batch_size}.")
    read_mixing(protocol.mixing)
    if not protocol.tuning or one_line(protocol.tuning, limit=80) != protocol.tuning:
        raise RequestError(f"tuning must be one line of at most 80 characters, got {protocol.tuning!r}.")
    _check_together(protocol)


def _check_together(protocol: Protocol) -> None:
    if protocol.held_out == 0 and protocol.evals_per_run:
        raise RequestError(
            "held_out=0 leaves no rows to stop early on: set evals_per_run=0 with it, or give held_out a share."
        )
    if protocol.k_shot:
        read_k_shot(protocol.k_shot)
        if protocol.eval_from_train:
            raise RequestError(
                f"k_shot={protocol.k_shot} cannot be scored on training rows: that takes more labels than the shots. "
                "Tune with --train-rows, and run the result with --k-shot."
            )
    if (protocol.adapt_epochs or protocol.adapt_steps) and not protocol.sources:
        raise RequestError("adapt_epochs and adapt_steps are the budget after the sources: give --sources too.")
