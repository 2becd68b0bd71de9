"""Words to the methods to check, without torch."""

from __future__ import annotations

from mtlbench.api.method import Method
from mtlbench.plugins import offers
from mtlbench.settings import build, read_settings, split_methods


def methods_named(words: str) -> dict[str, Method]:
    """``"peml,lora[rank=4]"`` to the two methods, by what they are called in the words.

    Raises:
        RequestError: for an unknown method or setting, or one the method refuses.
    """
    methods: dict[str, Method] = {}
    for name, settings in split_methods(words):
        inner = ",".join(f"{setting}={word}" for setting, word in settings.items())
        methods[f"{name}[{inner}]" if inner else name] = build(name, read_settings(name, settings))
    return methods


def is_suite(name: str) -> bool:
    """Whether this is the name of a suite, and of no method."""
    return name in offers("tasks") and name not in offers("methods")
