"""Options of a command as keyword arguments: the same names, the same values, the same refusals.

They are read from the command itself, so that an option of the command line is one of Python on the same day.
"""

from __future__ import annotations

import inspect
import keyword
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click

from mtlbench.errors import RequestError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


def words_of(command: click.Command, *, without: Iterable[str] = ()) -> dict[str, click.Option]:
    """Keyword to option: ``--batch-size`` is ``batch_size``, and ``--as``, which Python reserves, is ``as_``.

    Args:
        without: Keywords that mean nothing in Python, such as ``json``.
    """
    words = {}
    for option in command.params:
        if isinstance(option, click.Option):
            name = max(option.opts, key=len).lstrip("-").replace("-", "_")
            name = f"{name}_" if keyword.iskeyword(name) else name
            if name not in without:
                words[name] = option
    return words


def options_of(command: click.Command, given: Mapping[str, Any], *, without: Iterable[str] = ()) -> dict[str, Any]:
    """The options of a command by the names of its parameters, with its defaults for those that are not ``given``.

    Lists become the text with commas that the command line takes: ``seeds=range(3)``, ``methods=["lora", "peml"]``.

    Raises:
        RequestError: a word is no option, or its value is none that the option takes.
    """
    words = words_of(command, without=without)
    for name in given:
        if name not in words:
            raise RequestError(f"{command.name} has no option {name!r}. {did_you_mean(name, words)}")
    context = command.make_context(command.name, [])
    options = {name: value for name, value in context.params.items() if name in {o.name for o in words.values()}}
    for name, option in words.items():
        if (value := given.get(name)) is not None:
            assert option.name is not None
            options[option.name] = _converted(context, option, value)
    return options


def with_words(command: click.Command, *, without: Iterable[str] = ()) -> Callable[[F], F]:
    """Gives a function of ``**words`` the signature and, below its docstring, the help of a command's options."""

    def add(function: F) -> F:
        words = words_of(command, without=without)
        kept = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        own = {parameter.name for parameter in kept}
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in words if name not in own
        ]
        function.__signature__ = inspect.Signature([*kept, *more])  # type: ignore[attr-defined]
        lines = [f"    {name}: {option.help or _choices(option)}" for name, option in words.items()]
        documented = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = "\n".join([documented, "", "Words of the command:", *lines])
        return function

    return add


def _choices(option: click.Option) -> str:
    return ", ".join(option.type.choices) if isinstance(option.type, click.Choice) else "as on the command line."


def _converted(context: click.Context, option: click.Option, value: Any) -> Any:
    if option.multiple:
        return option.process_value(context, [value] if isinstance(value, str) else [_plain(one) for one in value])
    value = _plain(value)
    whole = isinstance(option.type, (type(click.INT), click.IntRange))
    number = whole or isinstance(option.type, (type(click.FLOAT), click.FloatRange))
    flag = option.is_flag
    if isinstance(value, bool) != flag or (flag and not isinstance(value, bool)):
        wanted = "True or False" if flag else "a number" if number else "text"
        raise RequestError(f"{_name(option)} must be {wanted}, got {value!r}.")
    if whole and isinstance(value, float) and not (math.isfinite(value) and value == int(value)):
        raise RequestError(f"{_name(option)} must be a whole number, got {value!r}.")
    if isinstance(option.type, type(click.STRING)) and not isinstance(value, str):
        value = str(value)
    try:
        return option.process_value(context, value)
    except click.UsageError as error:
        raise RequestError(f"{_name(option)}: {error.message}") from error


def _plain(value: Any) -> Any:
    """Lists, ranges and tuples as text with commas, paths as text, anything else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple, range)):
        return ",".join(str(_plain(item)) for item in value)
    return value


def _name(option: click.Option) -> str:
    return max(option.opts, key=len)
