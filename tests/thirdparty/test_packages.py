"""Packages of other people: one that is complete, one that cannot be imported, one whose name is taken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from processes import python_path

import mtlbench
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq

HERE = Path(__file__).parent


@pytest.fixture
def run(tmp_path, installed):
    """``run(package, code)`` is what ``code`` prints in a process that has ``package`` installed too."""

    def run_code(package: str, code: str) -> str:
        site = tmp_path / package
        path = installed(HERE / package, site)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": python_path(path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run_code


@pytest.fixture
def example(tmp_path, installed, monkeypatch):
    """The module of the example package."""
    monkeypatch.syspath_prepend(installed(HERE / "mtlbench-example", tmp_path / "site"))
    import mtlbench_example

    yield mtlbench_example
    del sys.modules["mtlbench_example"]


def test_the_example_is_listed_loaded_and_checked_without_torch(run):
    code = """
import sys
from mtlbench.errors import RequestError
from mtlbench.plugins import load_method, offer_of
from mtlbench.planning.settings import read_settings
print(offer_of("methods", "scaled_rows").origin, load_method("scaled_rows").name)
print(read_settings("scaled_rows", {"strength": "2"}))
for word in ("0", "-1", "nan", "inf"):
    try:
        read_settings("scaled_rows", {"strength": word})
    except RequestError as error:
        print(error)
print("torch" in sys.modules)
"""
    assert run("mtlbench-example", code).splitlines() == [
        "mtlbench-example 0.1.0 scaled_rows",
        "{'strength': 2.0}",
        *(f"scaled_rows: strength must be above 0, got {value}." for value in ("0.0", "-1.0", "nan", "inf")),
        "False",
    ]


def test_the_example_builds_into_a_wheel_with_its_module_and_entry_point(tmp_path):
    project = shutil.copytree(HERE / "mtlbench-example", tmp_path / "project")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=project, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "mtlbench_example.py" in archive.namelist()
        points = archive.read("mtlbench_example-0.1.0.dist-info/entry_points.txt").decode()
    assert "[mtlbench.methods]\nscaled_rows = mtlbench_example" in points


def test_the_example_is_a_short_file_that_imports_only_mtlbench_and_torch():
    text = (HERE / "mtlbench-example" / "mtlbench_example.py").read_text()
    assert len(text.splitlines()) < 60
    roots = {
        line.split()[1].split(".")[0] for line in text.splitlines() if line.lstrip().startswith(("import ", "from "))
    }
    assert roots - set(sys.stdlib_module_names) == {"mtlbench", "torch"}


@pytest.mark.parametrize("make", [tiny_causal, tiny_seq2seq])
def test_the_example_starts_as_the_backbone_and_learns_per_task(example, make):
    model = make()
    setup = setup_for(model, tasks=3)
    ids = torch.arange(10, 22).view(3, 4)
    words = {"input_ids": ids, "labels": ids}
    before = model(**words).logits
    example.ScaledRows().attach(model, setup)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(setup.target_modules)

    tasks = torch.tensor([2, 0, 2])
    with setup.routing.of(tasks):
        out = model(**words)
        out.loss.backward()
    torch.testing.assert_close(out.logits, before)
    for name, p in trained.items():
        assert p.grad[1].abs().max() == 0, name
        assert p.grad[0].abs().max() > 0 and p.grad[2].abs().max() > 0, name

    with torch.no_grad():
        for p in trained.values():
            p[0] += 0.1
    with setup.routing.of(tasks), torch.no_grad():
        after = model(**words).logits
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_a_package_that_cannot_be_imported_is_named_and_harms_nobody(run):
    code = """
from mtlbench.errors import PluginError
from mtlbench.plugins import load_method, offers
print(sorted({"broken", "lora"} & set(offers("methods"))))
try:
    load_method("broken")
except PluginError as error:
    print(error)
print(load_method("lora").name)
"""
    listed, error, loaded = run("broken-example", code).splitlines()
    assert listed == "['broken', 'lora']" and loaded == "lora"
    assert "broken-example 0.3.0" in error and "libmissing.so.3" in error


def test_two_packages_with_one_name_are_both_named(run):
    code = """
from mtlbench.errors import PluginError
from mtlbench.plugins import load_method
try:
    load_method("lora")
except PluginError as error:
    print(error)
print(load_method("base").name)
"""
    error, loaded = run("clash-example", code).splitlines()
    assert "clash-example 2.0.0" in error and f"mtlbench {mtlbench.__version__}" in error and loaded == "base"
