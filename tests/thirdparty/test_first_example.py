"""The first example of docs/plugins.md, as printed: it builds, is listed, keeps every promise and trains."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")


def first_block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    assert found is not None
    return found[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of the example, after a first run in it."""
    folder = tmp_path / "project"
    (folder / "runs" / "records").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(first_block("toml"))
    (folder / "my_method.py").write_text(first_block("python"))
    return folder


def test_the_wheel_holds_the_module_and_its_entry_point_and_no_runs(project, tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=project, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "my_method.py" in archive.namelist()
        assert not [name for name in archive.namelist() if "runs" in name]
        points = archive.read("my_method-0.1.0.dist-info/entry_points.txt").decode()
    assert "[mtlbench.methods]\nmy_method = my_method" in points


def test_it_is_listed_checked_and_trained(project, tmp_path, installed):
    path = os.pathsep.join([installed(project, tmp_path / "site"), os.environ.get("PYTHONPATH", "")])

    def mtlbench(*words: str) -> str:
        command = [sys.executable, "-m", "mtlbench", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "my-method 0.1.0 (my_method)" in mtlbench("list", "methods")
    checked = mtlbench("check", "my_method,my_method[rank=4]")
    assert "failed" not in checked and "ok" in checked
    small = ("--tasks", "glue/rte", "--train-rows", "32", "--eval-rows", "8", "--steps", "2")
    mtlbench("run", "--methods", "my_method", "--no-base", *small)
    assert "my_method" in mtlbench("report")
