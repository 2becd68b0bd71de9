"""The value of a backbone that an installed package carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PackagedBackbone:
    """A pretrained model and its tokenizer in files of an installed package; ``--model NAME`` asks for it."""

    name: str
    path: Path | None
    """The folder that ``save_pretrained`` wrote, or a GGUF file; ``None`` while the package that holds it is not
    installed."""
    install: str = ""
    """The command that installs what is missing, for messages."""
    about: str = ""
    """One line: what it is and where it comes from."""
    licence: str = ""
    demo: bool = False
    """Whether it knows generated text only: ``--data`` is then the demo, and model cards say what it is."""
