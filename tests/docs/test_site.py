"""The site: it builds without a warning, and its reference pages hold all that the code has."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from mtlbench import nn
from mtlbench.api.cell import Protocol
from mtlbench.api.hooks import EventHooks, NounHooks
from mtlbench.cli import cli
from mtlbench.planning.complete import names
from mtlbench.plugins import offers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> Iterator[dict[str, str]]:
    """The pages that the site has too: the hook of mkdocs imports the same module."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        yield importlib.import_module("docs_reference").pages()
    finally:
        sys.path.remove(str(ROOT / "tools"))


def options(command: click.Command, name: str = "") -> Iterator[tuple[str, str]]:
    for option in command.params:
        if name and isinstance(option, click.Option):
            yield from ((name, spelled) for spelled in option.opts)
    for part, found in getattr(command, "commands", {}).items():
        yield from options(found, f"{name} {part}".strip())


def section(page: str, heading: str) -> str:
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_commands_and_their_options(pages: dict[str, str]) -> None:
    page = pages["reference/commands.md"]
    missing = [(name, option) for name, option in options(cli) if f"`{option}`" not in section(page, name)]
    assert not missing
    assert "| `--steps` | `INTEGER[,...]` |  | Optimizer steps, instead of epochs; 50,100 is a sweep. |" in page
    assert "| `--held-out` | `SHARE` | 0.1 | Training rows kept for early stopping. |" in page


def test_methods_with_settings_and_meaning(pages: dict[str, str]) -> None:
    page = pages["reference/methods.md"]
    ours = [name for name, found in offers("methods").items() if found[0].distribution == "mtlbench"]
    assert not [name for name in ours if f"# {name}\n" not in page]
    assert "| `rslora` | false | `bool` | Divide `alpha` by the root of the rank" in section(page, "lora")
    assert "Hu et al. 2022" in section(page, "lora") and "`y = W x + b + s B A dropout(x)`" in section(page, "lora")


def test_fields_hooks_and_names(pages: dict[str, str]) -> None:
    assert not [f.name for f in fields(Protocol) if f"| `{f.name}` |" not in pages["reference/protocol.md"]]
    hooks = [name for kind in (NounHooks, EventHooks) for name in vars(kind) if name.startswith("mtlbench_")]
    assert not [name for name in hooks if f"### {name}\n" not in pages["reference/plugins.md"]]
    assert not [name for name in nn.__all__ if f"## {name}\n" not in pages["reference/nn.md"]]
    assert "## peml/table-2\n" in pages["reference/presets.md"] and "## glue/quick\n" in pages["reference/presets.md"]
    assert not [page for page, text in pages.items() if "``" in text.replace("```", "") or ":class:" in text]


def test_it_builds_without_a_warning(pages: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs the extra docs: pip install 'mtlbench[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # a warning ends it
    assert "mtlbench from a notebook" in (tmp_path / "site" / "tutorials" / "notebook.html").read_text()
    assert not [page for page in pages if not (tmp_path / "site" / page).with_suffix(".html").is_file()]


def test_names_complete_behind_commas_and_slashes() -> None:
    def completed(kinds: tuple[str, ...], typed: str) -> list[str]:
        context = click.Context(cli)
        return names(*kinds)(context, cli.params[0], typed)

    assert completed(("methods",), "lora,mtl_") == ["lora,mtl_lora"]
    assert "lora,lora" not in completed(("methods",), "lora,lor")
    assert completed(("tasks",), "glue/r") == ["glue/rte"]
    assert completed(("tasks",), "nothing/r") == []
    assert {"peml/table-1", "peml/table-10"} <= set(completed(("presets",), "peml/table-1"))
    assert completed(("protocols",), "stand") == ["standard"]
    assert completed(("reports", "methods"), "mark") == ["markdown"]
