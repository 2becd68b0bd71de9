"""HTML from values: everything that is not markup already is escaped, so no name or message can become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from functools import cache

Attribute = str | int | float | bool | None
Child = str | None | Iterable["Child"]


_UNSAFE = re.compile("[&<>\"']")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def el(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """An element. Strings are escaped unless they are :class:`Markup`; iterables are flattened, ``None`` is left out.

    ``data_value=1`` becomes ``data-value="1"``, a trailing ``_`` is dropped, ``True`` is a bare attribute, and ``None``
    or ``False`` is none.
    """
    told = "".join([_attribute(name, value) for name, value in attributes.items()]) if attributes else ""
    return Markup(f"<{tag}{told}>{''.join([_inner(child) for child in children])}</{tag}>")


def join(*children: Child) -> Markup:
    """The children one after another, escaped as in :func:`el`."""
    return Markup("".join([_inner(child) for child in children]))


def escaped(text: str) -> Markup:
    """The text as HTML; most of a page's texts need no change, and looking for that is all they cost."""
    return Markup(html.escape(text, quote=True) if _UNSAFE.search(text) else text)


def _inner(child: Child) -> str:
    if isinstance(child, Markup):
        return child
    if child is None:
        return ""
    return escaped(child) if isinstance(child, str) else "".join([_inner(part) for part in child])


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    word = _word(name)
    return f" {word}" if value is True else f' {word}="{escaped(str(value))}"'


@cache
def _word(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
