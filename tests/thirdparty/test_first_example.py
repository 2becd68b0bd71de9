"""The examples of docs/plugins.md, as printed: they are installed, keep every promise, and the first one trains."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from mtlbench.api.executor import Launch
from mtlbench.api.study import Comparison, Entry, Flag, Interval, Problem, Row, RowCosts, Spread, Study, Table
from mtlbench.backbones.names import check_model
from mtlbench.conformance.kit import CHECKS
from mtlbench.errors import PluginError, RequestError
from mtlbench.executors.options import executor_of
from mtlbench.planning.plan import plan_of
from mtlbench.planning.sources import check_sources
from mtlbench.planning.weighting import read_balance
from mtlbench.testing import check_executor, check_observer, check_report

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


BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
KINDS = {
    "reports": "json_board",
    "observers": "line_log",
    "executors": "plain",
    "backbones": "labmodel",
    "balancers": "even_norms",
}


def test_every_example_of_the_page_is_tried_here():
    """The first block is the method, the second its test, which the checks below make needless."""
    hooks = [re.findall(r"^def (mtlbench_\w+|test_\w+)", block, re.M) for block in BLOCKS]
    assert hooks == [
        ["mtlbench_methods"],
        ["test_my_method_keeps_its_promises"],
        ["mtlbench_backbones"],
        ["mtlbench_reports"],
        ["mtlbench_run_started", "mtlbench_step_logged"],
        ["mtlbench_balancers"],
        ["mtlbench_executors"],
    ]


@pytest.fixture
def page_package(tmp_path, installed, monkeypatch):
    """``page_package(group)``: the example of that group is installed as its package would be."""

    def install(group: str, mark: str) -> None:
        (block,) = [block for block in BLOCKS if re.search(mark, block)]
        name, folder = KINDS[group], tmp_path / group
        folder.mkdir()
        (folder / f"{name}.py").write_text(block)
        points = f'[project]\nname = "{name}"\nversion = "1.0"\n[project.entry-points."mtlbench.{group}"]\n'
        (folder / "pyproject.toml").write_text(f'{points}{name} = "{name}"\n')
        monkeypatch.syspath_prepend(installed(folder, tmp_path / f"site-{group}"))

    yield install
    for name in KINDS.values():
        sys.modules.pop(name, None)


def test_the_report_and_the_observer_of_the_page_pass_their_checks(page_package, capsys):
    page_package("reports", "mtlbench_reports")
    check_report("json_board")
    page_package("observers", "mtlbench_run_started")
    check_observer("line_log")
    assert "2 cells" in capsys.readouterr().err


def test_the_balancer_of_the_page_weighs_and_is_part_of_keys(page_package):
    page_package("balancers", "mtlbench_balancers")
    balancer = read_balance("even_norms[power=0.5]")
    weights = balancer.start(2).weights(torch.tensor([[1.0, 0.0], [0.0, 9.0]]), [0, 1])
    assert weights.tolist() == pytest.approx([2**0.5 / 2, (2 / 3) ** 0.5 / 2])
    plain, balanced = (
        plan_of({"tasks": "glue/rte", "model": "demo", "methods": "lora", "balance": text}).cells[0]
        for text in ("gradvac", "even_norms")
    )
    assert "balancers/even_norms" in balanced.sources and not any("balancers" in name for name in plain.sources)
    check_sources(balanced)
    with pytest.raises(RequestError, match="The source of even_norms is not the one"):
        check_sources(replace(balanced, sources={**balanced.sources, "balancers/even_norms": "0"}))


def test_the_backbone_and_the_executor_of_the_page_load(page_package):
    page_package("backbones", "mtlbench_backbones")
    with pytest.raises(PluginError, match="'labmodel' of labmodel 1.0 lies in .*labmodel', which is not there"):
        check_model("labmodel")
    page_package("executors", "mtlbench_executors")
    assert executor_of("plain").check("cpu") is None


@pytest.mark.slow
def test_the_executor_of_the_page_runs_a_cell(page_package, monkeypatch):
    page_package("executors", "mtlbench_executors")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    check_executor("plain")


@pytest.mark.parametrize("of", [Study, Table, Row, Entry, Spread, Interval, RowCosts, Problem, Flag, Comparison])
def test_every_field_that_a_report_gets_is_on_the_page(of: type):
    missing = [field.name for field in fields(of) if f"`{of.__name__}.{field.name}`" not in PAGE]
    assert not missing


def test_every_field_of_a_launch_is_on_the_page():
    table = PAGE.partition("| of `Launch` |")[2].partition("\n\n")[0]
    assert [f.name for f in fields(Launch) if f"`{f.name}`" not in table] == []


def test_every_check_of_a_method_is_on_the_page():
    assert re.findall(r"^\| `(\w+)` \|", PAGE.partition("| check | promise |")[2].partition("\n\n")[0], re.M) == [
        check.name for check in CHECKS
    ]
