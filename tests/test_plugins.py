"""The plugin host: names from metadata, load by name, conflicts and failures that name the distribution."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mtlbench import plugins
from mtlbench.api.hooks import EventHooks, NounHooks
from mtlbench.backbones.backbone import load_backbone
from mtlbench.backbones.names import BACKBONES, weights_digest
from mtlbench.cli import cli
from mtlbench.errors import PluginError, RequestError
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request


def install(site: Path, name: str, *, points: dict[str, dict[str, str]], modules: dict[str, str]) -> None:
    """A distribution made by hand: modules and a dist-info with entry points."""
    info = site / f"{name.replace('-', '_')}-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    lines = []
    for group, offered in points.items():
        lines += [f"[mtlbench.{group}]", *(f"{k} = {v}" for k, v in offered.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(textwrap.dedent(text))


GOOD = """
    from dataclasses import dataclass
    from mtlbench import Method, hookimpl

    @dataclass(frozen=True, kw_only=True)
    class Toy(Method):
        name = "{name}"
        source = "none"
        def attach(self, model, setup): ...

    @hookimpl
    def mtlbench_methods():
        return [Toy]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for module in [
        m for m, loaded in sys.modules.items() if str(getattr(loaded, "__file__", "")).startswith(str(folder))
    ]:
        del sys.modules[module]


def test_first_party_plugins_come_in_by_entry_points():
    assert {"base", "lora", "mtl_lora", "peml"} <= set(plugins.offers("methods"))
    assert set(plugins.offers("tasks")) >= {"glue"}
    assert plugins.offer_of("methods", "lora").distribution == "mtlbench"


def test_listing_imports_no_plugin():
    code = "import sys; from mtlbench import plugins; plugins.offers('methods'); print([m for m in sys.modules if m.startswith(('mtlbench_', 'torch'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name_gives_the_nearest(site: Path):
    with pytest.raises(RequestError, match=r"Unknown method 'mtl_lorra'\. Did you mean 'mtl_lora'\?"):
        plugins.load_method("mtl_lorra")
    with pytest.raises(PluginError, match="no plugin group 'method'. Did you mean 'methods'"):
        plugins.offers("method")


def test_a_stranger_loads_like_ours(site: Path):
    install(site, "their-pkg", points={"methods": {"toy": "toy_good"}}, modules={"toy_good": GOOD.format(name="toy")})
    assert plugins.load_method("toy").name == "toy"
    assert plugins.offer_of("methods", "toy").origin == "their-pkg 1.2.3"


def test_two_packages_with_one_name_are_both_named(site: Path):
    install(
        site, "clash-pkg", points={"methods": {"lora": "toy_clash"}}, modules={"toy_clash": GOOD.format(name="lora")}
    )
    with pytest.raises(PluginError) as error:
        plugins.load_method("lora")
    assert "clash-pkg 1.2.3" in str(error.value) and "mtlbench 0.1.0" in str(error.value)
    assert "toy_clash" not in sys.modules, "a conflict is found before anything is imported"
    assert plugins.load_method("base").name == "base", "nobody else is harmed"


def test_an_import_failure_names_the_distribution_and_harms_nobody(site: Path):
    install(
        site,
        "broken-pkg",
        points={"methods": {"broken": "toy_broken"}},
        modules={"toy_broken": "import no_such_module_xyz"},
    )
    assert "broken" in plugins.offers("methods"), "listing does not import"
    with pytest.raises(PluginError, match=r"'broken' of broken-pkg 1\.2\.3 cannot be imported.*no_such_module_xyz"):
        plugins.load_method("broken")
    assert plugins.load_method("lora").name == "lora"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("", "returns nothing"),
        (GOOD.format(name="other"), "returns 'other'"),
        (GOOD.format(name="bad").replace("return [Toy]", "return [3]"), "returns 3"),
        (
            GOOD.format(name="bad").replace("def mtlbench_methods()", "def mtlbench_methods(extra)"),
            "does not fit a hook",
        ),
        (GOOD.format(name="bad").replace("(frozen=True, kw_only=True)", ""), "frozen"),
        (GOOD.format(name="bad").replace('source = "none"', ""), "source"),
        (GOOD.format(name="bad").replace("def attach(self, model, setup): ...", ""), "does not implement attach"),
        (GOOD.format(name="bad").replace("return [Toy]", "raise ValueError('boom')"), r"failed: ValueError: boom"),
    ],
)
def test_a_plugin_that_is_not_what_its_name_says_is_refused_with_its_origin(site: Path, module: str, message: str):
    install(site, "bad-pkg", points={"methods": {"bad": "toy_bad"}}, modules={"toy_bad": module})
    with pytest.raises(PluginError, match=message) as error:
        plugins.load_method("bad")
    assert "bad-pkg 1.2.3" in str(error.value)


def test_an_observer_with_a_wrong_signature_is_refused(site: Path):
    text = """
        from mtlbench import hookimpl
        @hookimpl
        def mtlbench_cell_started(cell, nonsense): ...
    """
    install(site, "obs-pkg", points={"observers": {"obs": "toy_obs"}}, modules={"toy_obs": text})
    with pytest.raises(PluginError, match="obs-pkg 1.2.3 does not fit a hook"):
        plugins.load_observer("obs")


LAB = """
    from pathlib import Path
    from mtlbench import PackagedBackbone, hookimpl

    @hookimpl
    def mtlbench_backbones():
        yield PackagedBackbone(name="labmodel", path=Path(__file__).parent / "labmodel", about="ours", licence="MIT")
        yield PackagedBackbone(name="labmissing", path=None, install="pip install lab-weights")
        yield PackagedBackbone(name="labgone", path=Path(__file__).parent / "gone")
"""


def test_a_lab_ships_its_own_backbones(site: Path):
    names = ("labmodel", "labmissing", "labgone")
    points = {"backbones": dict.fromkeys(names, "lab_backbones")}
    install(site, "lab-pkg", points=points, modules={"lab_backbones": LAB})
    shutil.copytree(BACKBONES / "demo", site / "labmodel")
    request = Request(methods="lora", tasks="glue/rte", model="labmodel", data="demo")
    (cell,) = make_plan(request).cells
    assert (cell.model, cell.weights) == ("labmodel", weights_digest("demo")), "the name is the key, not the folder"
    backbone = load_backbone("labmodel", dtype=torch.float32, attention="sdpa", device=torch.device("cpu"))
    assert backbone.parameters == 1_115_264
    assert Request(methods="lora", tasks="glue/rte", model="labmodel").data_name == "hub", "its data is no demo"
    listed = CliRunner().invoke(cli, ["list", "backbones", "-v"]).output
    assert "labmodel    lab-pkg 1.2.3" in listed and "ours; licence: MIT" in listed
    assert "not installed: pip install lab-weights" in listed
    for model, message in {
        "labmodle": r"no model 'labmodle'\. Did you mean 'labmodel'\? Known: demo, demo-t5, labgone",
        "demmo": "Did you mean 'demo'",
        "labmissing": "not installed: pip install lab-weights",
    }.items():
        with pytest.raises(RequestError, match=message):
            make_plan(Request(methods="lora", tasks="glue/rte", model=model, data="demo"))
    with pytest.raises(PluginError, match=r"'labgone' of lab-pkg 1\.2\.3 lies in .*gone', which is not there"):
        make_plan(Request(methods="lora", tasks="glue/rte", model="labgone", data="demo"))


def test_the_demo_backbones_come_in_by_the_same_road():
    assert set(plugins.offers("backbones")) >= {"demo", "demo-t5", "smollm2"}
    assert plugins.load_packaged("demo").path == BACKBONES / "demo" and plugins.load_packaged("demo").demo


def test_every_hook_is_documented_with_its_exact_signature():
    text = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
    hooks = [f for spec in (NounHooks, EventHooks) for n, f in vars(spec).items() if n.startswith("mtlbench_")]
    assert len(hooks) == 14
    for hook in hooks:
        names = ", ".join(p for p in inspect.signature(hook).parameters if p != "self")
        assert f"`{hook.__name__}({names})`" in text, f"docs/plugins.md lacks {hook.__name__}({names})"
        assert hook.__doc__
