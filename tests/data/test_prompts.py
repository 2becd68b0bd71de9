"""The identity of prompts changes with everything that makes them, and with nothing else."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from toy_tasks import RTE

from mtlbench.data.lm_task import prompt_identity


@pytest.fixture
def package(tmp_path, monkeypatch):
    root = tmp_path / "prompt_pack"
    (root / "yaml").mkdir(parents=True)
    (root / "__init__.py").touch()
    (root / "wording.py").write_text("QUESTION = 'Is it so?'\n")
    (root / "unused.py").write_text("QUESTION = 'Why?'\n")
    (root / "yaml" / "base.yaml").write_text("doc_to_target: label\n")
    (root / "yaml" / "helpers.py").write_text("from prompt_pack.wording import QUESTION\n\n\ndef text(doc): ...\n")
    (root / "yaml" / "task.yaml").write_text("include: base.yaml\ndoc_to_text: !function helpers.text\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield root
    sys.modules.pop("prompt_pack", None)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("yaml/task.yaml", True),
        ("yaml/base.yaml", True),
        ("yaml/helpers.py", True),
        ("wording.py", True),
        ("unused.py", False),
    ],
)
def test_it_follows_includes_functions_and_their_imports(package, file, counts):
    tasks = {"toy/rte": replace(RTE, yaml="prompt_pack:yaml/task.yaml")}
    before = prompt_identity(tasks)
    with (package / file).open("a") as changed:
        changed.write("# changed\n")
    assert (prompt_identity(tasks) != before) is counts


def test_where_worked_examples_come_from_counts():
    one, other = ({"glue/rte": replace(RTE, shots=2, shots_split=split)} for split in ("train", "validation"))
    assert prompt_identity(one) != prompt_identity(other)
