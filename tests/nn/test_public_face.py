"""The toolkit of method authors: lazy, complete, described on its page, and all that our own methods use."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mtlbench
from mtlbench import nn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "nn.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
METHODS = sorted((ROOT / "methods" / "mtlbench_methods").glob("*.py"))
OPEN = {"mtlbench", "mtlbench.nn", "mtlbench.errors"}
"""What a method may import of the package."""


def run_code(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("line", ["import mtlbench.nn", "from mtlbench import nn", "import mtlbench; mtlbench.nn"])
def test_importing_the_toolkit_loads_no_torch(line):
    assert run_code(f"import sys\n{line}\nprint('torch' in sys.modules)") == "False"


def test_a_name_loads_torch_on_first_use():
    assert run_code("import sys\nfrom mtlbench import nn\nnn.Factors\nprint('torch' in sys.modules)") == "True"


def test_every_public_name_exists_and_is_called_in_its_own_module_what_it_is_called_here():
    for name in nn.__all__:
        found = getattr(nn, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert found.__name__ == name
            assert found.__module__.startswith("mtlbench.nn.")
            assert found.__doc__, name


def test_the_lists_of_names_agree():
    assert sorted(nn.__all__) == sorted(nn._HOMES)
    assert len(nn.__all__) == len(set(nn.__all__))
    assert set(nn.__all__) <= set(dir(nn))
    assert set(mtlbench.__all__) <= set(dir(mtlbench))
    assert all(hasattr(mtlbench, name) for name in mtlbench.__all__)


def test_types_and_runtime_agree_on_where_each_name_lives():
    tree = ast.parse(Path(nn.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mtlbench.nn.")
        for alias in node.names
    }
    assert imported == {name: f"mtlbench.nn.{home}" for name, home in nn._HOMES.items()}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'mtlbench.nn' has no attribute 'nonsense'"):
        nn.__getattr__("nonsense")


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_methods_import_nothing_deeper_of_mtlbench_also_inside_functions(path):
    deeper = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        deeper += [name for name in names if name.split(".")[0] == "mtlbench" and name not in OPEN]
    assert not deeper


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_methods_use_public_names_alone(path):
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn"
    }
    assert used <= set(nn.__all__)


def test_the_contract_of_methods_covers_every_module_of_the_package():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = [c for c in contracts if c.get("source_modules") == ["mtlbench_methods"]]
    package = ROOT / "mtlbench"
    present = {
        ".".join(("mtlbench", *path.relative_to(package).with_suffix("").parts))
        for folder in (package, package / "nn")
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    faces = {name for name in present if name.endswith("__init__")}
    assert set(contract["forbidden_modules"]) == present - faces - OPEN


def test_the_page_names_every_public_name_and_uses_it_in_an_example():
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S)
    described = set(re.findall(r"`(\w+)", prose))
    used = {
        node.attr
        for block in BLOCKS
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn"
    }
    assert set(nn.__all__) - described == set(), "not described on docs/nn.md"
    assert set(nn.__all__) - used == set(), "in no example of docs/nn.md"
    assert used <= set(nn.__all__)


def test_the_examples_of_the_page_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS, start=1):
        exec(compile(block, f"docs/nn.md, example {number}", "exec"), names)
    assert len(BLOCKS) > 5
