"""A cell's key follows from the source of its method: from what the code does, wherever it is, and from nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_plugins import GOOD, install

from mtlbench.api.cell import Cell
from mtlbench.errors import RequestError
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request, cells_named
from mtlbench.planning.sources import check_sources, commits_of, source_digest, source_files, sources_of
from mtlbench.plugins import offer_of
from mtlbench.store import RunFolder

MODULE = '''
"""Words."""
from lab_pkg.layers import scale
import json

class Method:
    """More words."""
    rank: int = 8
    """What the rank is."""
    presets = {"a": 1}

    def attach(self):
        from . import lazy  # a comment
        return scale * 2
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "lab_pkg"
    folder.mkdir(parents=True)
    files = {
        "__init__.py": "",
        "method.py": MODULE,
        "layers.py": "scale = 1",
        "lazy.py": "import torch\nfrom lab_pkg import deep",
        "deep/__init__.py": "from ..far import thing",
        "far.py": "thing = 1",
        "unused.py": "other = 1",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_files_are_the_module_and_what_it_imports_of_its_own_package_and_none_is_imported(package: Path):
    found = source_files("lab_pkg.method", "no-such-distribution")
    names = {"lab_pkg", "lab_pkg.method", "lab_pkg.layers", "lab_pkg.lazy", "lab_pkg.deep", "lab_pkg.far"}
    assert set(found) == names
    assert not {name for name in sys.modules if name.startswith("lab_pkg")}


def test_code_moves_the_digest_and_words_do_not(package: Path):
    def now() -> str:
        return source_digest("lab_pkg.method", "no-such-distribution")

    before = now()
    for old, new in [
        ('"""Words."""', '"""Other words."""'),
        ('"""More words."""', "# a comment in its place"),
        ('"""What the rank is."""', ""),
        ("scale * 2", "(scale   *   2)"),
        ('{"a": 1}', '{"a": 2, "b": 3}'),
    ]:
        edited(package / "method.py", old, new)
        assert now() == before, f"{old} -> {new}"
    edited(package / "unused.py", "1", "2")
    assert now() == before
    seen = {before}
    for file, old, new in [
        ("method.py", "rank: int = 8", "rank: int = 4"),
        ("far.py", "1", "1.0"),
        ("layers.py", "1", "0"),
    ]:
        edited(package / file, old, new)
        seen.add(now())
    assert len(seen) == 4
    assert source_digest("no_such_module", "none") == ""


def test_a_module_beside_it_belongs_to_it_where_the_distribution_lists_it_or_is_editable(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "one_file.py").write_text("import beside_it, click")
    (tmp_path / "beside_it.py").write_text("value = 1")
    assert set(source_files("one_file", "lab-files")) == {"one_file"}
    install(tmp_path, "lab-files", points={}, modules={})
    info = tmp_path / "lab_files-1.2.3.dist-info"
    (info / "RECORD").write_text("one_file.py,,\nbeside_it.py,,\n")
    assert set(source_files("one_file", "lab-files")) == {"one_file", "beside_it"}


def test_an_editable_install_names_its_commit_and_whether_it_is_dirty(tmp_path, monkeypatch):
    project, site = tmp_path / "a project", tmp_path / "site"
    project.mkdir()
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    install(site, "lab-editable", points={}, modules={})
    origin = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (site / "lab_editable-1.2.3.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    assert commits_of(["lab-editable", "click", "not-there"]) == {}, "not in git yet"
    (project / "code.py").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=project, check=True)
    from mtlbench.planning import sources

    sources._commit.cache_clear()
    clean = commits_of(["lab-editable"])["lab-editable"]
    assert len(clean) == 40
    (project / "code.py").write_text("2")
    sources._commit.cache_clear()
    assert commits_of(["lab-editable"]) == {"lab-editable": f"{clean}-dirty"}


def planned(methods: str = "lora", **changes: object) -> Cell:
    (cell,) = make_plan(Request(methods=methods, tasks="glue/rte", **changes)).cells
    return cell


def test_versions_are_no_part_of_a_key_and_sources_are():
    cell = planned()
    assert set(cell.sources) == {"methods/lora", "tasks/glue"}
    assert replace(cell, plugins={"mtlbench": "9"}).key == cell.key
    prompts = replace(cell.protocol, prompts=cell.protocol.prompts.replace("lm_eval ", "lm_eval 9."))
    assert replace(cell, protocol=prompts).key == cell.key
    prompts = replace(cell.protocol, prompts=f"{cell.protocol.prompts}0")
    assert replace(cell, protocol=prompts).key != cell.key
    other = replace(cell, sources={**cell.sources, "methods/lora": "0"})
    assert other.key != cell.key and other.question == cell.question
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))).key == cell.key
    assert cell.earlier().key == replace(cell.earlier(), model=cell.model).key != cell.key
    assert replace(cell.earlier(), plugins={"mtlbench": "9"}).key != cell.earlier().key
    assert set(planned("prefixnas+lora").sources) == {"methods/prefixnas", "methods/lora", "tasks/glue"}


def test_other_code_than_planned_is_not_run():
    cell = planned()
    check_sources(cell)
    check_sources(cell.earlier())
    with pytest.raises(RequestError, match=r"The source of lora is not the one that this cell was planned with"):
        check_sources(replace(cell, sources={"methods/lora": "0"}))


def test_a_key_moves_with_an_edit_at_once_in_one_process(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "lab-toy", points={"methods": {"toy": "lab_toy"}}, modules={"lab_toy": GOOD.format(name="toy")})
    before = planned("toy")
    edited(tmp_path / "lab_toy.py", "attach(self, model, setup): ...", "attach(self, model, setup): return 7")
    after = planned("toy")
    assert offer_of("methods", "toy").version == "1.2.3"
    assert before.key != after.key and before.question == after.question and before.plugins == after.plugins
    assert sources_of("toy", {}) == {"methods/toy": after.sources["methods/toy"]}
    sys.modules.pop("lab_toy")


def test_cells_are_named_by_method_variant_or_key():
    cells = make_plan(Request(methods="lora,lora[rank=4],mtl_lora", tasks="glue/rte", seeds=(0, 1))).cells
    assert {cell.variant for cell in cells_named(cells, "lora")} == {"lora", "lora[rank=4]"}
    assert [cell.seed for cell in cells_named(cells, "lora[rank=4]")] == [0, 1]
    assert cells_named(cells, f"{cells[3].key[:8]},{cells[3].key}") == (cells[3],)
    with pytest.raises(RequestError, match=r"No cell is of 'lorra'.*Did you mean 'lora'"):
        cells_named(cells, "lorra")
    with pytest.raises(RequestError, match="No cell is named"):
        cells_named(cells, ",")


def test_an_earlier_request_expects_nothing_of_code_that_was_edited_before_it_ran(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.preflight()
    old = replace(planned(), sources={"methods/lora": "0"})
    folder.put_request({}, [old])
    assert folder.expected() == [old]
    folder.put_request({}, [planned()])
    assert folder.expected() == [planned()]
    assert folder.asked_before([replace(planned(), seed=5)]) == []
