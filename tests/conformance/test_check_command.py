"""``mtlbench check``: one line per check, and the exit code says how it went."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import python_path

from mtlbench.conformance.kit import CHECKS

PROJECT = """
[project]
name = "odd-method"
version = "1.0"

[project.entry-points."mtlbench.methods"]
odd = "odd_method"
"""
MODULE = '''
from dataclasses import dataclass

import torch

from mtlbench import Method, hookimpl


@dataclass(frozen=True, kw_only=True)
class Odd(Method):
    """Says that it is routed and is not."""

    name = "odd"
    source = "a test"
    task_routed = True

    def attach(self, model, setup):
        head = model.get_output_embeddings()
        model.register_parameter("shift", torch.nn.Parameter(torch.zeros(head.out_features)))
        head.register_forward_hook(lambda module, inputs, output: output + model.shift)


@hookimpl
def mtlbench_methods():
    return [Odd]
'''


def check(words: str, *, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": python_path(path)}
    command = [sys.executable, "-m", "mtlbench", "check", words]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_names_with_settings_print_one_line_per_check_and_backbone():
    done = check("lora[rank=4],base")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    titles = [f"{name} on {backbone}" for name in ("lora[rank=4]", "base") for backbone in ("tiny Llama", "tiny T5")]
    assert [line for line in lines if not line.startswith("  ")] == titles
    assert [line.split()[1] for line in lines if line.startswith("  ")] == [check.name for check in CHECKS] * 4
    assert "  skipped keys                the method adds no trainable parameters" in lines
    assert "  skipped absent_tasks        the method is not task_routed" in lines
    assert not done.stderr


def test_a_broken_method_of_a_stranger_ends_with_1_and_says_what_to_change(installed, tmp_path: Path):
    package = tmp_path / "odd"
    package.mkdir()
    (package / "pyproject.toml").write_text(PROJECT)
    (package / "odd_method.py").write_text(MODULE)
    done = check("odd", path=installed(package, tmp_path / "site"))
    assert done.returncode == 1, done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("  failed")]
    assert [line.split()[1] for line in failed] == ["routing", "imports"] * 2
    assert all("Set task_routed to what the layers do" in line for line in failed[::2])
    assert all("importing odd_method loads torch. Planning imports every method" in line for line in failed[1::2])


def test_a_method_of_which_no_promise_was_examined_ends_with_1_and_names_settings_that_fit():
    done = check("c3a", path=os.environ.get("PYTHONPATH", ""))
    assert done.returncode == 1, done.stderr
    assert "c3a: no promise was examined: refused: " in done.stdout.splitlines()[-1]
    assert done.stdout.endswith("Check it with settings that fit, such as c3a[block_size=8].\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lorra", "Unknown method or suite 'lorra'. Did you mean 'lora'?"),
        ("base,lora[rnk=4]", "no setting 'rnk'. Did you mean 'rank'?"),
        ("lora[rank=0]", "rank"),
    ],
)
def test_a_wrong_name_or_setting_ends_with_2_before_anything_runs(words: str, message: str):
    done = check(words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout and len(done.stderr.splitlines()) == 1
