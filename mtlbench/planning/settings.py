"""Words in brackets to a method with settings: ``lora[rank=16,dropout=0.1]``."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from mtlbench.api.method import Method, Value
from mtlbench.composition import Sum
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.plugins import load_method

_NAME = re.compile(r"(?P<name>[^\[\]=,+\s]*)(?:\[(?P<inner>[^\[\]]*)\])?")


def split_methods(words: str) -> list[tuple[str, dict[str, str]]]:
    """``"peml,lora[rank=16]"`` to ``[("peml", {}), ("lora", {"rank": "16"})]``.

    Methods joined by ``+`` are one: ``"prefixnas+lora[rank=4]+[order=in_turn]"`` gives the name ``prefixnas+lora`` and
    the settings ``lora.rank`` and ``order``.

    Raises:
        RequestError: the words are not names with optional bracketed settings.
    """
    methods: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(words):
        members: list[str] = []
        settings: dict[str, str] = {}
        while True:
            found = _NAME.match(words, at)
            own = found is not None and not found["name"] and found["inner"] is not None and len(members) > 1
            if found is None or not (found["name"] or own):
                raise _unreadable(words, at)
            at = found.end()
            pairs = _pairs(found["name"] or "+".join(members), found["inner"])
            if found["name"]:
                members.append(found["name"])
            prefix = f"{found['name']}." if found["name"] else ""
            settings.update({f"{prefix}{name}": value for name, value in pairs.items()})
            if at == len(words) or words[at] == ",":
                break
            if words[at] != "+" or own:
                raise _unreadable(words, at)
            at += 1
        if len(members) == 1:
            settings = {name.partition(".")[2]: value for name, value in settings.items()}
        methods.append(("+".join(members), settings))
        at += 1
    if not methods:
        raise RequestError("--methods is empty. Name at least one method; `mtlbench list methods` shows them.")
    return methods


def _unreadable(words: str, at: int) -> RequestError:
    return RequestError(
        f"Cannot read --methods {words!r} at {words[at:]!r}. Write names separated by commas, each with optional "
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


def read_settings(name: str, words: Mapping[str, str]) -> dict[str, Value]:
    """Typed settings for a method, checked by building it once.

    Raises:
        RequestError: an unknown setting, a value of the wrong type, or one the method refuses.
    """
    if "+" in name:
        return _read_members(name, words)
    method = load_method(name)
    known = method.setting_types(words)
    settings: dict[str, Value] = {}
    for setting, word in words.items():
        if setting not in known:
            raise RequestError(f"Method {name!r} has no setting {setting!r}. {did_you_mean(setting, known)}")
        settings[setting] = typed(f"Method {name!r}", setting, word, known[setting])
    build(name, settings)
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


def _read_members(name: str, words: Mapping[str, str]) -> dict[str, Value]:
    """Settings of methods joined by ``+``, as ``member.setting``; without a member they are the composition's own."""
    settings: dict[str, Value] = {}
    for member in name.split("+"):
        own = {word.partition(".")[2]: value for word, value in words.items() if word.startswith(f"{member}.")}
        settings.update({f"{member}.{key}": value for key, value in read_settings(member, own).items()})
    known = Sum.setting_types({})
    for word, value in words.items():
        if "." in word:
            continue
        if word not in known:
            raise RequestError(f"A composition has no setting {word!r}. {did_you_mean(word, known)}")
        settings[word] = typed(f"Method {name!r}", word, value, known[word])
    build(name, settings)
    return settings


def _build_sum(name: str, settings: Mapping[str, Value]) -> Sum:
    def own(member: str) -> dict[str, Value]:
        return {key.partition(".")[2]: v for key, v in settings.items() if key.startswith(f"{member}.")}

    members = tuple(build(member, own(member)) for member in name.split("+"))
    return Sum(members=members, **dict[str, Any]({key: v for key, v in settings.items() if "." not in key}))


def typed(whose: str, setting: str, word: str, hint: Any) -> Value:
    """The value that ``word`` means for a setting with the type ``hint``.

    Raises:
        RequestError: it means none; ``whose`` begins the message.
    """
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
    raise RequestError(f"{whose}: {setting} must be {_describe(options)}, got {word!r}.")


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
