"""Settings of a peft tuner: which there are, of what type, and the configuration made of them."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal, Union, get_args, get_origin

from mtlbench import Value
from mtlbench.errors import RequestError, did_you_mean
from mtlbench_methods.peft_catalog import DATA_STARTS, ELSEWHERE, HIDDEN, MOVING, PAPERS, PROMPT_LEARNING, REFUSED


def config_class(kind: str) -> type[Any]:
    """peft's configuration class of a tuner, such as ``VERA``.

    Raises:
        RequestError: the installed peft has no such tuner, or it cannot be a method here.
    """
    if kind in REFUSED:
        raise RequestError(f"peft's {kind} cannot be used: {REFUSED[kind]}.")
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known: dict[str, type[Any]] = {peft_type.value: found for peft_type, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        usable = sorted(set(known) - set(REFUSED))
        hint = f"Did you mean {kind.upper()!r}?" if kind.upper() in usable else did_you_mean(kind.upper(), usable)
        raise RequestError(f"peft {metadata.version('peft')} has no tuner {kind!r}. {hint}")
    if issubclass(known[kind], PromptLearningConfig):
        raise RequestError(f"peft's {kind} cannot be used: {PROMPT_LEARNING}.")
    return known[kind]


def option_types(kind: str) -> dict[str, Any]:
    """Type of every setting of a tuner that is a plain value: the fields of its configuration, less ours."""
    config = config_class(kind)
    hidden = {*HIDDEN, *_common()}
    hints = typing.get_type_hints(config)
    plain = {f.name: _plain(hints[f.name]) for f in dataclasses.fields(config) if f.init and f.name not in hidden}
    if plain.get("init_weights") in (bool, bool | None):
        del plain["init_weights"]
    return {name: hint for name, hint in plain.items() if hint is not None}


def why_hidden(kind: str, name: str) -> str | None:
    """Why a field of the tuner's configuration is no setting; ``None`` when there is no such field."""
    if name not in {f.name for f in dataclasses.fields(config_class(kind))}:
        return None
    if name in HIDDEN:
        return HIDDEN[name]
    if name in _common():
        return "the harness sets it"
    return "peft keeps it for its own tests" if name == "init_weights" else "it is no plain value"


def check_options(kind: str, options: Mapping[str, Value], *, label: str) -> None:
    """Refuse options that no backbone makes good; what depends on widths shows when attaching.

    Args:
        label: The method as messages name it.

    Raises:
        RequestError: naming the option, its value and what is allowed, or with peft's own reason.
    """
    known = option_types(kind)
    for name, value in options.items():
        if name not in known:
            raise RequestError(f"{label} has no setting {name!r}. {did_you_mean(name, known)}")
        allowed = _allowed(kind, name, value)
        if allowed is not None:
            raise RequestError(f"{label}: {name} must be {allowed}, got {value}.")
    make_config(kind, options, label=label)


def starts_at_backbone(kind: str, options: Mapping[str, Value]) -> bool:
    """Whether the function is known to be the backbone's before the first step."""
    if kind in ELSEWHERE or kind not in {*PAPERS, "LORA"}:
        return False
    if any(name.startswith("init") or (kind, name) in MOVING for name in options):
        return False
    rank = options.get("r", 0)
    return not (kind == "HRA" and isinstance(rank, int) and rank % 2)  # its reflections cancel in pairs


def make_config(kind: str, options: Mapping[str, Value], *, label: str, seed: int = 0, **ours: Any) -> Any:
    """The configuration.

    Args:
        seed: For every seed of the tuner that is not among the options.
        ours: Fields that the harness sets, such as ``target_modules``.

    Raises:
        RequestError: with peft's reason.
    """
    config = config_class(kind)
    known = {f.name for f in dataclasses.fields(config)} - {"generator_seed"}
    seeds = {name: seed % 2**31 for name in known if "seed" in name or "prng" in name}
    quiet = {"progressbar": False} if "progressbar" in known else {}
    try:
        return config(**{**seeds, **quiet, **ours, **options})
    except (ValueError, TypeError, NotImplementedError) as error:
        raise RequestError(f"{label}: {sentence(error)}") from error


def sentence(words: object) -> str:
    """What peft says, on one line, in the terms of our settings."""
    said = " ".join(str(words).split()).rstrip(".")
    return f"{said}. Choose projections with target." if "target_modules" in said else f"{said}."


def _common() -> set[str]:
    """Fields that every configuration of peft has: provenance and purpose."""
    from peft import PeftConfig

    return {f.name for f in dataclasses.fields(PeftConfig)}


def _plain(hint: Any) -> Any:
    """The part of a type that a word can spell, or ``None``."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = [o for o in options if o in (bool, int, float, str) or get_origin(o) is Literal]
    if not words:
        return None
    return Union[tuple([*words, type(None)] if type(None) in options else words)]  # noqa: UP007


def _allowed(kind: str, name: str, value: Value) -> str | None:
    """What a value should have been, or ``None`` when it will do."""
    if value in DATA_STARTS:
        return "a start that needs no data: true, gaussian, orthogonal, olora, pissa or mica"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if name.endswith("dropout"):
        return None if 0 <= value < 1 else "at least 0 and below 1"
    if isinstance(value, float):
        return None if math.isfinite(value) else "a finite number"
    default = next(f.default for f in dataclasses.fields(config_class(kind)) if f.name == name)
    least = 1 if name == "r" and default != 0 else 0
    return None if value >= least else f"a whole number of at least {least}"
