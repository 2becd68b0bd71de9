"""From option values to a checked :class:`~mtlbench.api.cell.Protocol`: a named one with single fields changed.

A named protocol is a TOML file beside this module, a file named by its path, or data of a suite or a method
(``TaskSuite.protocols``, ``Method.protocols``). ``about`` says what it is, ``base`` names one to start from, ``basis``
says of each field where a paper's value comes from, and all else are fields. A protocol that was released is not
changed: the tests hold the hash of each.
"""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Protocol
from mtlbench.api.tuning import STUDY
from mtlbench.backbones.quantization import KINDS
from mtlbench.data.k_shot import read_k_shot
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.mixing import ordered, read_mixing
from mtlbench.planning.weighting import ordered_weighting, read_balance, read_weighting
from mtlbench.plugins import carried
from mtlbench.text import one_line

STANDARD = "standard"
"""The protocol of a request that names none."""
FOLDER = Path(__file__).parent
SETTABLE = tuple(f.name for f in fields(Protocol) if f.name not in ("name", "data", "prompts"))
"""Fields that a named protocol may set."""
BASES = ("published", "official code", "assumed")
"""Where a value of a paper's protocol comes from."""
_STUDY = re.compile(STUDY + "[0-9a-f]{12}")
_BOUNDS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("train_rows", "eval_rows", "steps", "batch_size", "micro_batch", "patience"), (">= 1", "")),
    **dict.fromkeys(("evals_per_run", "weight_decay", "clip"), (">= 0", "")),
    **dict.fromkeys(("epochs", "adapt_epochs"), ("> 0", "< 1e6")),
    **dict.fromkeys(("warmup", "eval_from_train", "holdout"), (">= 0", "< 1")),
    "max_length": (">= 8", ""),
    "adapt_steps": (">= 1", ""),
    "learning_rate": ("> 0", "< 100"),
    "held_out": (">= 0", "< 0.5"),
}
"""Lowest and highest value of a field."""
_SIGNS = {">=": (operator.ge, "at least"), ">": (operator.gt, "above"), "<": (operator.lt, "below")}
_SHARES = {
    "warmup": "of the steps",
    "eval_from_train": "of the training rows",
    "holdout": "of the training rows",
    "held_out": "of the training rows",
}
_OPTIONS = {
    "optimizer": ("adamw", "adafactor", "sgd"),
    "schedule": ("cosine", "linear", "constant"),
    "batching": ("drawn", "by_length"),
    "select_by": ("loss", "metric"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantize": ("none", *KINDS),
    "attention": ("auto", "sdpa", "eager"),
}


def names() -> tuple[str, ...]:
    """The protocols that come with mtlbench."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def about(name: str) -> str:
    """What the protocol ``name`` is, in one line."""
    return str(_definition(name).get("about", ""))


def fields_of(name: str) -> dict[str, Any]:
    """The fields that the protocol ``name`` sets, those of its base included.

    Raises:
        RequestError: there is no such protocol, it sets what is no field, or its bases go in a circle.
    """
    values: dict[str, Any] = {}
    seen: list[str] = []
    current: str | None = name
    while current is not None:
        if current in seen:
            raise RequestError(f"The protocol {name!r} is based on itself: {' -> '.join([*seen, current])}.")
        seen.append(current)
        definition = dict(_definition(current))
        definition.pop("about", None)
        _check_basis(current, definition.pop("basis", {}), definition)
        base = definition.pop("base", None)
        for field in definition:
            if field not in SETTABLE:
                raise RequestError(f"The protocol {current!r} sets {field!r}. {did_you_mean(field, SETTABLE)}")
        values = overlaid(definition, values)
        current = base
    return values


def basis_of(name: str) -> dict[str, str]:
    """Where the value of each field that the protocol ``name`` sets comes from, those of its base included: one of
    :data:`BASES`. Fields without an entry are not of a paper."""
    values: dict[str, str] = {}
    current: str | None = name
    while current is not None:
        definition = _definition(current)
        values = {**definition.get("basis", {}), **values}
        current = definition.get("base")
    return values


def _check_basis(name: str, basis: Mapping[str, str], definition: Mapping[str, Any]) -> None:
    for field, value in basis.items():
        if value not in BASES or field not in definition:
            raise RequestError(
                f"The protocol {name!r}: basis of {field!r} is {value!r}. It names a field that the protocol sets and "
                f"one of {', '.join(BASES)}."
            )


def overlaid(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the fields ``given`` on top; given epochs replace the steps of the base."""
    stale = {f"{stage}steps" for stage in ("", "adapt_") if f"{stage}epochs" in given}
    return {**{name: value for name, value in base.items() if name not in stale}, **given}


def _definition(name: str) -> Mapping[str, Any]:
    if name.endswith(".toml"):
        return _read(Path(name))
    if name in names():
        return _read(FOLDER / f"{name}.toml")
    definition, known = carried("protocols", name)
    if definition is None:
        known = {*names(), *known}
        raise RequestError(f"Unknown protocol {name!r}. {did_you_mean(name, known)} Or name a file NAME.toml.")
    return definition


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"The protocol {str(path)!r} cannot be read: {error.strerror}. Name a TOML file.") from error
    except ValueError as error:
        raise RequestError(f"The protocol {str(path)!r} is no TOML: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class ProtocolChoice:
    """A named protocol with the fields that a request changes, checked; data and prompts come with the tasks."""

    name: str
    named: Protocol
    """As it is named."""
    changed: Protocol
    """With the fields of the request."""

    @property
    def sources(self) -> str:
        """The tasks to train first, as they were given: names of suites or tasks."""
        return self.changed.sources

    @property
    def probe(self) -> str:
        """The probe tasks, as they were given: names of suites or tasks."""
        return self.changed.probe

    def for_tasks(
        self,
        tasks: Sequence[str],
        *,
        data: str,
        prompts: str = "",
        sources: Sequence[str] = (),
        probe: Sequence[str] = (),
    ) -> Protocol:
        """The protocol of the cells that train ``tasks``, with a name that states every change.

        Args:
            tasks: Full names of the cell's tasks, in order.
            data: Where rows come from, with its digest.
            prompts: Identity of the prompts.
            sources: Full names of the tasks that are trained first.
            probe: Full names of the tasks that are scored before and after training.

        Raises:
            RequestError: the weights of the mixture or of the losses do not fit the tasks.
        """
        protocol = replace(self.changed, sources=",".join(sources)) if sources else self.changed
        protocol = replace(protocol, probe=",".join(probe)) if probe else protocol
        if tasks:
            weighting = ordered_weighting(protocol.task_weighting, tasks)
            protocol = replace(protocol, mixing=ordered(protocol.mixing, tasks), task_weighting=weighting)
        changes = [
            f"{field}={_label(getattr(protocol, field))}"
            for field in SETTABLE
            if getattr(protocol, field) != getattr(self.named, field)
        ]
        name = f"{self.name} + {', '.join(changes)}" if changes else self.name
        return replace(protocol, name=one_line(name, limit=200), data=data, prompts=prompts)


def choose_protocol(options: Mapping[str, Any]) -> ProtocolChoice:
    """The protocol ``options["name"]`` (:data:`STANDARD` where there is none) with the other options on top.

    Raises:
        RequestError: an option is no field or has an impossible value, or the options contradict each other.
    """
    given = dict(options)
    name = str(given.pop("name", None) or STANDARD)
    for option in given:
        if option not in SETTABLE:
            raise RequestError(f"The protocol has no field {option!r}. {did_you_mean(option, SETTABLE)}")
    base = fields_of(name)
    named = _built(name, base)
    changed = _built(name, overlaid(base, given))
    if (balancer := read_balance(changed.balance)) is not None:
        changed = replace(changed, balance=balancer.text())
    _check(changed)
    return ProtocolChoice(name=name, named=named, changed=changed)


def _built(name: str, options: Mapping[str, Any]) -> Protocol:
    """The values with the types of their fields: TOML's ``3`` is a number for ``epochs``."""
    values: dict[str, Any] = {}
    for field in fields(Protocol):
        if field.name not in options:
            continue
        value, kind = options[field.name], str(field.type)
        if kind.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wanted: Any = {"float": float, "int": int, "str": str, "bool": bool}[kind.partition(" ")[0]]
        fits = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        if not fits and not (value is None and kind.endswith("| None")):
            raise RequestError(f"{field.name} of the protocol {name!r} must be {kind}, got {value!r}.")
        values[field.name] = value
    return Protocol(**values)


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _check(protocol: Protocol) -> None:
    for name, bounds in _BOUNDS.items():
        value = getattr(protocol, name)
        for bound in filter(None, bounds if value is not None else ()):
            sign, _, limit = bound.partition(" ")
            holds, words = _SIGNS[sign]
            if not holds(value, float(limit)):
                share = f", a share {_SHARES[name]}," if name in _SHARES else ""
                raise RequestError(f"{name}{share} must be {words} {limit}, got {value}.")
    for name, options in _OPTIONS.items():
        value = getattr(protocol, name)
        if value not in options:
            raise RequestError(
                f"{name} must be one of {', '.join(options)}, got {value!r}. {did_you_mean(value, options)}"
            )
    if protocol.micro_batch is not None and protocol.batch_size % protocol.micro_batch:
        raise RequestError(f"micro_batch {protocol.micro_batch} must divide batch_size {protocol.batch_size}.")
    read_mixing(protocol.mixing)
    read_weighting(protocol.task_weighting)
    read_balance(protocol.balance)
    if protocol.tuning not in ("none", "trial") and not _STUDY.fullmatch(protocol.tuning):
        raise RequestError(
            f"tuning must be none or the id of a study, got {protocol.tuning!r}: run --tune searches by itself, and "
            "--tuning takes the files of searches by `mtlbench tune`."
        )
    _check_together(protocol)


def _check_together(protocol: Protocol) -> None:
    if protocol.held_out == 0 and protocol.evals_per_run:
        raise RequestError(
            "held_out=0 leaves no rows to stop early on: set evals_per_run=0 with it, or give held_out a share."
        )
    if protocol.balance != "none" and protocol.task_weighting != "method":
        raise RequestError(
            f"task_weighting={protocol.task_weighting!r} and balance={protocol.balance!r} both weigh the tasks: leave "
            "one of them out."
        )
    if protocol.select_by != "loss" and not protocol.evals_per_run:
        raise RequestError(
            f"select_by={protocol.select_by} chooses among scores of the validation split, and evals_per_run=0 takes "
            "none: set evals_per_run to how many there are in a run."
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
