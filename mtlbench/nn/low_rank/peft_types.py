"""What the installed peft offers, read from its files: importing peft takes seconds and loads torch."""

from __future__ import annotations

import ast
import importlib.util
from importlib import metadata
from pathlib import Path


def peft_line() -> str:
    """One line for the list of methods: version and tuners of the installed peft."""
    version, names = metadata.version("peft"), peft_types()
    if not names:
        return f"peft {version} is installed, but utils/peft_types.py does not tell which tuners it has"
    return f"peft {version} offers: {', '.join(names)} (write peft[type=NAME]; what cannot work is refused and why)"


def peft_types() -> tuple[str, ...]:
    """Names in peft's ``PeftType``, sorted; empty when its source has another form."""
    spec = importlib.util.find_spec("peft")
    if spec is None or spec.origin is None:
        return ()
    source = Path(spec.origin).parent / "utils" / "peft_types.py"
    if not source.is_file():
        return ()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == "PeftType":
            values = [item.value for item in node.body if isinstance(item, ast.Assign)]
            return tuple(sorted(str(v.value) for v in values if isinstance(v, ast.Constant)))
    return ()
