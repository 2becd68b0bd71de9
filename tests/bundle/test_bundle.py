"""Bundles: collected whole, used as they are, and whatever was lost, changed or slipped in is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtlbench.bundle.making import make
from mtlbench.cli import cli
from mtlbench.data import manifest
from mtlbench.data.choose import open_source
from mtlbench.errors import DataError, RequestError
from mtlbench.planning.plan import make_plan, resolve_tasks
from mtlbench.planning.request import Request

TASKS = "glue/rte,superglue/boolq,commonsense/boolq"
RTE = "data/nyu-mll/glue/rte/train.parquet"


def collected(folder: Path, *, tasks: str = TASKS, data: str = "demo", models: tuple[str, ...] = ("demo",)) -> Path:
    wanted, suites = resolve_tasks(tasks)
    make(folder, tasks=wanted, source=open_source(data, suites=suites), models=models, log=lambda line: None)
    return folder


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, ["bundle", *words])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collected(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    import shutil

    return Path(shutil.copytree(original, tmp_path / "bundle"))


def test_it_holds_each_split_once_a_model_with_its_tokenizer_and_a_manifest(original: Path):
    files = {path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()}
    assert files >= {
        "bundle.json",
        "data/nyu-mll/glue/rte/train.parquet",
        "data/nyu-mll/glue/rte/validation.parquet",
        "data/aps/super_glue/boolq/train.parquet",
        "models/demo/config.json",
        "models/demo/model.safetensors",
        "models/demo/tokenizer.json",
    }
    held = manifest.read(original)
    assert set(held.files) == files - {"bundle.json"} and held.tasks == TASKS.split(",")
    assert held.source == "demo" and held.models == {"demo": ""} and "datasets" in held.versions
    assert not list(manifest.problems(original)) and not list(original.parent.glob(".*.tmp"))


def test_a_plan_on_it_has_the_rows_and_the_weights_and_owns_up_to_the_demo(original: Path):
    request = Request(methods="lora", tasks=TASKS, data=str(original / "data"), model=str(original / "models" / "demo"))
    (cell,) = make_plan(request).cells
    assert cell.protocol.data.startswith("demo-folder:")
    (embedded,) = make_plan(Request(methods="lora", tasks=TASKS)).cells
    assert cell.weights == embedded.weights
    for name, task in resolve_tasks(TASKS)[0].items():
        ours = open_source(str(original / "data"), suites={}).splits(task)
        theirs = open_source("demo", suites=resolve_tasks(TASKS)[1]).splits(task)
        assert {split: rows.to_list() for split, rows in ours.items()} == {
            split: rows.to_list() for split, rows in theirs.items()
        }, name


def test_a_bundle_of_a_folder_keeps_its_bytes_and_with_them_the_keys_of_cells(original: Path, tmp_path: Path):
    again = collected(tmp_path / "again", data=str(original / "data"), models=(str(original / "models" / "demo"),))
    held, first = manifest.read(again), manifest.read(original)
    assert held.source == "folder" and held.files == first.files
    assert not list(manifest.problems(again))


def test_what_is_missing_changed_or_added_is_named(bundle: Path):
    (bundle / RTE).unlink()
    config = bundle / "models" / "demo" / "config.json"
    config.write_text(config.read_text() + " ")
    weights = bundle / "models" / "demo" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    (bundle / "data" / "extra.parquet").write_bytes(b"")
    done = call("verify", str(bundle))
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["missing", "changed", "changed", "added"]
    assert (
        lines[0] == f"missing: {RTE}" and "config.json has" in lines[1] and "model.safetensors has SHA-256" in lines[2]
    )
    assert "data/extra.parquet" in lines[3] and "4 of its files" in done.stderr


def test_a_whole_one_is_said_to_be_whole(original: Path):
    done = call("verify", str(original))
    assert done.exit_code == 0 and "all 10 files are as they were collected" in done.stdout


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "data/../../secret", "..\\secret", "C:/secret", ""])
def test_a_path_that_leads_out_is_named_and_not_opened(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    (bundle.parent / "secret").write_text("s")
    path = bundle / "bundle.json"
    body = json.loads(path.read_text())
    body["files"][name], body["bytes"][name] = "0" * 64, 1
    path.write_text(json.dumps(body))
    opened = []
    real = manifest._sha256
    monkeypatch.setattr(manifest, "_sha256", lambda path: opened.append(path) or real(path))
    found = list(manifest.problems(bundle))
    assert [line.split(":")[0] for line in found] == ["outside"] and repr(name) in found[0]
    assert all(path.resolve().is_relative_to(bundle.resolve()) for path in opened)


def test_links_are_named_and_never_followed(bundle: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    path = bundle / RTE
    path.replace(outside / "train.parquet")
    path.symlink_to(outside / "train.parquet")
    models = bundle / "models"
    models.replace(tmp_path / "models")
    models.symlink_to(tmp_path / "models", target_is_directory=True)
    (bundle / "data" / "more").symlink_to("/etc", target_is_directory=True)
    found = list(manifest.problems(bundle))
    assert f"link: {RTE} is a symbolic link or inside a linked folder" in found
    assert sum(line.startswith("link: models/demo/") for line in found) == 6
    assert "added: data/more is not in the manifest" in found and not any("/etc" in line for line in found)


def test_links_that_lead_out_of_a_source_are_refused_and_nothing_is_left(original: Path, bundle: Path, tmp_path: Path):
    path = bundle / RTE
    path.unlink()
    path.symlink_to(original / RTE)
    with pytest.raises(DataError, match=r"is a link that leads out of .*cp -rL"):
        collected(tmp_path / "new" / "out", data=str(bundle / "data"), models=())
    weights = bundle / "models" / "demo" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(original / "models" / "demo" / "model.safetensors")
    with pytest.raises(DataError, match="leads out of"):
        collected(tmp_path / "new" / "out", models=(str(bundle / "models" / "demo"),))
    assert not list((tmp_path / "new").iterdir())


def test_wrong_words_are_refused(original: Path, tmp_path: Path):
    with pytest.raises(RequestError, match="is not an empty folder"):
        collected(original)
    assert call("make", str(tmp_path / "x")).exception.__class__ is RequestError
    with pytest.raises(DataError, match=r"no bundle: bundle\.json cannot be read"):
        list(manifest.problems(tmp_path))
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        list(manifest.problems(tmp_path))
    (tmp_path / "bundle.json").write_text('{"schema": 99}')
    with pytest.raises(DataError, match="newer version"):
        list(manifest.problems(tmp_path))
    empty = tmp_path / "model"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RequestError, match="has no weights"):
        collected(tmp_path / "out", models=(str(empty),))
    with pytest.raises(DataError, match="Two models"):
        collected(tmp_path / "out", models=("demo", "demo"))


def test_the_revision_of_a_bundle_from_the_hub_reaches_who_uses_it(bundle: Path):
    path = bundle / "bundle.json"
    body = json.loads(path.read_text())
    body |= {"source": "hub", "datasets": {"nyu-mll/glue": "b" * 40}}
    path.write_text(json.dumps(body))
    tasks, _ = resolve_tasks(TASKS)
    source = open_source(str(bundle / "data"), suites={})
    assert source.revisions(list(tasks.values())) == {"nyu-mll/glue": "b" * 40}
    assert source.identity(list(tasks.values())).startswith("folder:")
