"""From the text of ``--methods`` to methods with typed settings: ``lora[rank=16,dropout=0.1]``."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from mtlbench.api.method import Method, Value
from mtlbench.composition import Sum
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.plugins import load_method

_NAME = re.compile(r"(?P<name>[^\[\]=,+\s]*)(?:\[(?P<inner>[^\[\]]*)\])?")
_AROUND = re.compile(r" *([,+]) *(?![^\[\]]*\])")
"""A comma or plus between methods, with the blanks around it; other white space is no part of a name."""


@dataclass(frozen=True, kw_only=True)
class MethodChoice:
    """A method that a request names."""

    name: str
    """Of one method, or of several joined by ``+``."""
    settings: Mapping[str, Value]
    """Settings that are given explicitly."""
    method: Method
    """Built with these settings."""


def read_methods(text: str) -> list[MethodChoice]:
    """The methods of ``text``, in order, each built once.

    Raises:
        RequestError: the text cannot be read, a method or a setting is unknown, or a method refuses its settings.
    """
    return [_chosen(name, options) for name, options in split_methods(text)]


def split_methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """``"peml,lora[rank=16]"`` to ``[("peml", {}), ("lora", {"rank": "16"})]``.

    Methods joined by ``+`` are one: ``"prefixnas+lora[rank=4]+[order=in_turn]"`` gives the name ``prefixnas+lora`` and
    the settings ``lora.rank`` and ``order``.

    Raises:
        RequestError: the text is not names with optional bracketed settings.
    """
    methods: list[tuple[str, dict[str, str]]] = []
    text = _AROUND.sub(r"\1", text.strip(" "))
    at = 0
    while at < len(text):
        members: list[str] = []
        settings: dict[str, str] = {}
        while True:
            match = _NAME.match(text, at)
            of_composition = match is not None and not match["name"] and match["inner"] is not None and len(members) > 1
            if match is None or not (match["name"] or of_composition):
                raise _unreadable(text, at)
            at = match.end()
            pairs = _pairs(match["name"] or "+".join(members), match["inner"])
            if match["name"]:
                members.append(match["name"])
            prefix = f"{match['name']}." if match["name"] else ""
            settings.update({f"{prefix}{name}": value for name, value in pairs.items()})
            if at == len(text) or text[at] == ",":
                break
            if text[at] != "+" or of_composition:
                raise _unreadable(text, at)
            at += 1
        if len(members) == 1:
            settings = {name.partition(".")[2]: value for name, value in settings.items()}
        methods.append(("+".join(members), settings))
        at += 1
    if not methods:
        raise RequestError("--methods is empty. Name at least one method; `mtlbench list methods` shows them.")
    return methods


def _unreadable(text: str, at: int) -> RequestError:
    return RequestError(
        f"Cannot read --methods {text!r} at {text[at:]!r}. Write names separated by commas, each with optional "
        "settings, such as peml,'lora[rank=16,alpha=32]'; methods joined by '+' are trained as one."
    )


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


def read_settings(name: str, options: Mapping[str, str]) -> dict[str, Value]:
    """Typed settings for a method, checked by building it once.

    Args:
        options: Setting to its value as text.

    Raises:
        RequestError: an unknown setting, a value of the wrong type, or one the method refuses.
    """
    return dict(_chosen(name, options).settings)


def _chosen(name: str, options: Mapping[str, str]) -> MethodChoice:
    settings = _member_settings(name, options) if "+" in name else _own_settings(name, options)
    return MethodChoice(name=name, settings=settings, method=build(name, settings))


def _own_settings(name: str, options: Mapping[str, str]) -> dict[str, Value]:
    known = load_method(name).setting_types(options)
    settings: dict[str, Value] = {}
    for setting, value in options.items():
        if setting not in known:
            raise RequestError(f"Method {name!r} has no setting {setting!r}. {did_you_mean(setting, known)}")
        settings[setting] = typed(f"Method {name!r}", setting, value, known[setting])
    return settings


def build(name: str, settings: Mapping[str, Value]) -> Method:
    """The method object with these settings.

    Raises:
        RequestError: the method refuses them.
    """
    if "+" in name:
        return _build_sum(name, settings)
    made = load_method(name).with_settings(settings)
    rate = made.learning_rate
    if rate is not None and not 0 < rate < 100:
        raise RequestError(f"Method {name!r}: learning_rate must be above 0, got {rate}.")
    return made


def _member_settings(name: str, options: Mapping[str, str]) -> dict[str, Value]:
    """Settings of methods joined by ``+``, as ``member.setting``; without a member they are the composition's own."""
    settings: dict[str, Value] = {}
    for member in name.split("+"):
        of_member = {key.partition(".")[2]: value for key, value in options.items() if key.startswith(f"{member}.")}
        settings.update({f"{member}.{key}": value for key, value in read_settings(member, of_member).items()})
    known = Sum.setting_types({})
    for setting, value in options.items():
        if "." in setting:
            continue
        if setting not in known:
            raise RequestError(f"A composition has no setting {setting!r}. {did_you_mean(setting, known)}")
        settings[setting] = typed(f"Method {name!r}", setting, value, known[setting])
    return settings


def _build_sum(name: str, settings: Mapping[str, Value]) -> Sum:
    def of_member(member: str) -> dict[str, Value]:
        return {key.partition(".")[2]: v for key, v in settings.items() if key.startswith(f"{member}.")}

    members = tuple(build(member, of_member(member)) for member in name.split("+"))
    return Sum(members=members, **dict[str, Any]({key: v for key, v in settings.items() if "." not in key}))


def typed(whose: str, setting: str, text: str, hint: Any) -> Value:
    """The value that ``text`` stands for in a setting with the type ``hint``.

    Raises:
        RequestError: it stands for none; ``whose`` begins the message.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if text.lower() == "none" and type(None) in options:
        return None
    for option in options:
        if get_origin(option) is Literal and text in get_args(option):
            return text
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if option is str:
            return text
        if option in (int, float):
            try:
                return typing.cast(Value, option(text))
            except ValueError:
                continue
    raise RequestError(f"{whose}: {setting} must be {_describe(options)}, got {text!r}.")


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
