"""Secrets out of texts: what tokens in the environment, in URLs and in hub credentials look like, blanked."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

BLANK = "[secret]"
_NAMES = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_KEY|CREDENTIALS?)(_|$)", re.IGNORECASE
)
_SHORTEST = 8
"""A value shorter than this many characters is too common a text to be blanked."""
_SHAPES = (
    re.compile(r"(?P<keep>://)[^/\s@'\"]+(?=@)"),
    re.compile(r"(?P<keep>[?&;](?:\w*token|secret|password|api_key|sig(?:nature)?)=)[^&\s'\"]+", re.IGNORECASE),
    re.compile(r"(?P<keep>\bbearer )[\w.~+/-]{8,}=*", re.IGNORECASE),
    re.compile(r"(?P<keep>\b)(?:hf|api_org)_[A-Za-z0-9]{16,}\b"),
    re.compile(r"(?P<keep>\b)(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16})\b"),
)
"""What credentials look like in URLs, headers and by their prefix."""


def redact(text: str) -> str:
    """``text`` with every value of a secret of the environment and everything shaped like a credential blanked."""
    for secret in _secrets(os.environ):
        text = text.replace(secret, BLANK)
    for shape in _SHAPES:
        text = shape.sub(rf"\g<keep>{BLANK}", text)
    return text


def redacted(value: Any) -> Any:
    """A JSON value with :func:`redact` applied to every text in it, names included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(name) if isinstance(name, str) else name: redacted(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return value


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_to_stderr(level: int, form: str) -> None:
    """Send log records and what ends the process to stderr, without secrets."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])
    sys.excepthook = _tell


def guard_terminal() -> None:
    """Let nothing that is logged, or that ends the process, show a secret; for a command that sets up no logging."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(RedactingFormatter("%(message)s"))
    sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Values of the variables whose names say that they are secret, longest first."""
    found = {value for name, value in environment.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)
