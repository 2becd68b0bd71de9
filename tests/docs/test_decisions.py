"""docs/decisions.md names everything the program decides on its own: compared with the code, not with memory."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from mtlbench.api.cell import Protocol
from mtlbench.api.record import Disturbances, Notes, Provenance

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "decisions.md").read_text()
ROOMS = ("backbones", "cells", "data", "distributed", "evaluation", "nn", "tokens", "training")
"""Rooms whose code runs in a cell."""


@pytest.mark.parametrize(("of", "where"), [(Notes, "notes"), (Disturbances, "provenance"), (Provenance, "provenance")])
def test_every_field_of_a_record_is_on_the_page(of: type, where: str) -> None:
    missing = [name for name in get_type_hints(of) if f"`{where}.{name}`" not in PAGE]
    assert not missing, f"say in docs/decisions.md what decides {missing}, or that nothing does"


def test_the_page_names_no_field_that_records_do_not_have() -> None:
    known = {f"notes.{name}" for name in get_type_hints(Notes)} | {
        f"provenance.{n}" for n in get_type_hints(Provenance)
    }
    of_methods = {"notes.prefix_nas"}
    named = set(re.findall(r"`((?:notes|provenance)\.\w+)`", PAGE))
    assert named <= known | of_methods, named - known


def warnings() -> dict[str, str]:
    """Place of each warning in :data:`ROOMS` to the fixed beginning of its text."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / "mtlbench" / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if node.func.attr != "warning" or not isinstance(node.func.value, ast.Name):
                    continue
                text = node.args[0]
                assert isinstance(text, ast.Constant), f"{path}:{node.lineno}"
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                found[place] = str(text.value).partition("%")[0].strip()
    return found


def test_every_warning_of_a_cell_is_on_the_page() -> None:
    found = warnings()
    assert len(found) >= 9
    unnamed = {
        place: text
        for place, text in found.items()
        if text
        and not any(text.startswith(named.strip()) for named in re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))
    }
    assert not unnamed, "name them in docs/decisions.md, with what follows"


def test_every_field_that_may_be_decided_by_the_program_is_on_the_page() -> None:
    auto = [field.name for field in fields(Protocol) if field.default == "auto"]
    assert set(auto) >= {"dtype"}
    assert all(f"`{name}`" in PAGE for name in (*auto, "attention", "micro_batch", "train_rows", "eval_rows"))
