"""HTML from values: everything that is not :class:`Markup` is escaped, so no name or message can become markup."""

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
    """An element. Strings are escaped unless they are :class:`Markup`; iterables are flattened, ``None`` is omitted.

    ``data_value=1`` becomes ``data-value="1"``, a trailing ``_`` is dropped, ``True`` is a bare attribute, and ``None``
    or ``False`` gives no attribute.
    """
    attributes_ = "".join([_attribute(name, value) for name, value in attributes.items()]) if attributes else ""
    return Markup(f"<{tag}{attributes_}>{''.join([_inner(child) for child in children])}</{tag}>")


def join(*children: Child) -> Markup:
    """The concatenated children, escaped as in :func:`el`."""
    return Markup("".join([_inner(child) for child in children]))


def escaped(text: str) -> Markup:
    """The text as HTML; checked first, because most texts of a page need no escaping."""
    return Markup(html.escape(text, quote=True) if _UNSAFE.search(text) else text)


def _inner(child: Child) -> str:
    if isinstance(child, Markup):
        return child
    if child is None:
        return ""
    return escaped(child) if isinstance(child, str) else "".join([_inner(item) for item in child])


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    attribute_name = _attribute_name(name)
    return f" {attribute_name}" if value is True else f' {attribute_name}="{escaped(str(value))}"'


@cache
def _attribute_name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
