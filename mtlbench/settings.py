"""Words in brackets to a method with settings: ``lora[rank=16,dropout=0.1]``."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from mtlbench.api.method import Method, Value
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.plugins import load_method

_WORD = re.compile(r"(?P<name>[^\[\]=,\s]+)(?:\[(?P<inner>[^\[\]]*)\])?")


def split_methods(words: str) -> list[tuple[str, dict[str, str]]]:
    """``"peml,lora[rank=16]"`` to ``[("peml", {}), ("lora", {"rank": "16"})]``.

    Raises:
        RequestError: the words are not names with optional bracketed settings.
    """
    methods: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(words):
        found = _WORD.match(words, at)
        if found is None or (found.end() < len(words) and words[found.end()] != ","):
            raise RequestError(
                f"Cannot read --methods {words!r} at {words[at:]!r}. Write names separated by commas, "
                "each with optional settings, such as peml,'lora[rank=16,alpha=32]'."
            )
        methods.append((found["name"], _pairs(found["name"], found["inner"])))
        at = found.end() + 1
    if not methods:
        raise RequestError("--methods is empty. Name at least one method; `mtlbench list methods` shows them.")
    return methods


def _pairs(method: str, inner: str | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in (inner or "").split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise RequestError(f"Setting {part.strip()!r} of method {method!r} needs a value: {part.strip()}=VALUE.")
        if name.strip() in pairs:
            raise RequestError(f"Setting {name.strip()!r} of method {method!r} is given twice.")
        pairs[name.strip()] = value.strip()
    return pairs


def read_settings(name: str, words: Mapping[str, str]) -> dict[str, Value]:
    """Typed settings for a method, checked by building it once.

    Raises:
        RequestError: an unknown setting, a value of the wrong type, or one the method refuses.
    """
    method = load_method(name)
    known = method.setting_types(words)
    settings: dict[str, Value] = {}
    for setting, word in words.items():
        if setting not in known:
            raise RequestError(f"Method {name!r} has no setting {setting!r}. {did_you_mean(setting, known)}")
        settings[setting] = _typed(name, setting, word, known[setting])
    build(name, settings)
    return settings


def build(name: str, settings: Mapping[str, Value]) -> Method:
    """The method object with these settings.

    Raises:
        RequestError: the method refuses them.
    """
    made = load_method(name).with_settings(settings)
    rate = made.learning_rate
    if rate is not None and not 0 < rate < 100:
        raise RequestError(f"Method {name!r}: learning_rate must be above 0, got {rate}.")
    return made


def _typed(method: str, setting: str, word: str, hint: Any) -> Value:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if word.lower() == "none" and type(None) in options:
        return None
    for option in options:
        if get_origin(option) is Literal and word in get_args(option):
            return word
        if option is bool and word.lower() in ("true", "false"):
            return word.lower() == "true"
        if option is str:
            return word
        if option in (int, float):
            try:
                return typing.cast(Value, option(word))
            except ValueError:
                continue
    raise RequestError(f"Method {method!r}: {setting} must be {_describe(options)}, got {word!r}.")


def _describe(options: tuple[Any, ...]) -> str:
    names = []
    for option in options:
        if option is type(None):
            names.append("none")
        elif get_origin(option) is Literal:
            names.extend(str(v) for v in get_args(option))
        else:
            names.append({int: "a whole number", float: "a number", bool: "true or false"}.get(option, str(option)))
    return " or ".join(names)
