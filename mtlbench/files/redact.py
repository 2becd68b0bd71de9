"""Redaction of secrets: values of secret environment variables, and anything shaped like a credential."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

BLANK = "[secret]"
_NAMES = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_KEY|CREDENTIALS?)(_|$)", re.IGNORECASE
)
_SHORTEST = 8
"""Values with fewer characters are not blanked: they may be common text."""
_SHAPES = (
    re.compile(r"(?P<keep>://)[^/\s@'\"]+(?=@)"),
    re.compile(r"(?P<keep>[?&;](?:\w*token|secret|password|api_key|sig(?:nature)?)=)[^&\s'\"]+", re.IGNORECASE),
    re.compile(r"(?P<keep>\bbearer )[\w.~+/-]{8,}=*", re.IGNORECASE),
    re.compile(r"(?P<keep>\b)(?:hf|api_org)_[A-Za-z0-9]{16,}\b"),
    re.compile(r"(?P<keep>\b)(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16})\b"),
)
"""Credentials in URLs and headers, and tokens with known prefixes."""


def redact(text: str) -> str:
    """``text`` without the values of secret environment variables and without anything shaped like a credential."""
    return _redact(text, _secrets(os.environ))


def _redact(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, BLANK)
    for shape in _SHAPES:
        text = shape.sub(rf"\g<keep>{BLANK}", text)
    return text


def redacted(value: Any) -> Any:
    """A JSON value with :func:`redact` applied to every string in it, keys included.

    Each distinct string is looked at once: the cells of a study are thousands of copies of the same few.
    """
    secrets = _secrets(os.environ)
    seen: dict[str, str] = {}

    def text(value: str) -> str:
        if value not in seen:
            seen[value] = _redact(value, secrets)
        return seen[value]

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return text(value)
        if isinstance(value, Mapping):
            return {text(name) if isinstance(name, str) else name: of(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [of(item) for item in value]
        return value

    return of(value)


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_to_stderr(level: int, form: str) -> None:
    """Log to stderr, uncaught exceptions included, without secrets."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])
    sys.excepthook = _print_redacted


def guard_terminal() -> None:
    """Redact log messages and uncaught exceptions; for a command that does not configure logging."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(RedactingFormatter("%(message)s"))
    sys.excepthook = _print_redacted


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _secrets(environ: Mapping[str, str]) -> list[str]:
    """Values of the variables with secret-looking names, longest first."""
    values = {value for name, value in environ.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)
