"""Sources find rows, or say before any compute what is missing and where."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from processes import python_path
from toy_tasks import ARC, RTE, SUITE, rte_rows, write

from mtlbench.api.task import TaskSuite
from mtlbench.data.choose import open_source
from mtlbench.data.source import find_task
from mtlbench.errors import DataError

NONE = {}
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, RTE, train=rte_rows(6), validation=rte_rows(4, start=100))


def opened(folder):
    return open_source(str(folder), suites=NONE)


def test_a_folder_gives_the_two_splits_of_the_task_and_no_other(folder):
    write(folder, RTE, test=rte_rows(2))
    splits = opened(folder).splits(RTE)
    assert set(splits) == {"train", "validation"}
    assert splits["train"].to_list() == rte_rows(6)
    assert splits["validation"]["idx"][:] == [100, 101, 102, 103]


def test_a_changed_file_is_read_again_and_changes_the_identity(folder):
    """`load_dataset` would give the first rows for ever: its cache of a folder is keyed by the README header."""
    before = opened(folder).identity([RTE])
    assert opened(folder).splits(RTE)["train"]["idx"][0] == 0
    write(folder, RTE, train=rte_rows(6, start=50))
    assert opened(folder).splits(RTE)["train"]["idx"][0] == 50
    assert opened(folder).identity([RTE]) != before


def test_the_identity_of_a_folder_depends_on_used_files_only_and_not_on_where_it_lies(folder, tmp_path_factory):
    before = opened(folder).identity([RTE])
    assert before.startswith("folder:")
    write(folder, RTE, test=rte_rows(2))
    twin = write(tmp_path_factory.mktemp("twin"), RTE, train=rte_rows(6), validation=rte_rows(4, start=100))
    assert opened(folder).identity([RTE, RTE]) == opened(twin).identity([RTE]) == before


def test_a_task_without_configuration_lies_under_default(tmp_path):
    task = replace(RTE, dataset="baber/piqa", config=None)
    write(tmp_path, task, train=rte_rows(2), validation=rte_rows(2))
    assert (tmp_path / "baber/piqa/default/train.parquet").is_file()
    assert len(opened(tmp_path).splits(task)["train"]) == 2


def test_a_missing_folder_names_the_nearest_parent(tmp_path):
    with pytest.raises(DataError, match="no data folder") as error:
        opened(tmp_path / "a" / "b")
    assert repr(str(tmp_path)) in str(error.value)


def test_a_missing_split_names_the_file_and_the_closest_split(folder):
    with pytest.raises(DataError, match=r"rte/validation_matched\.parquet.*Did you mean 'validation'"):
        opened(folder).check(replace(RTE, eval_split="validation_matched"))


def test_a_missing_data_set_names_the_file(folder):
    with pytest.raises(DataError, match=r"allenai/ai2_arc/ARC-Easy/train\.parquet"):
        opened(folder).check(ARC)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_column_of_either_split_is_named(folder, split):
    write(folder, RTE, **{split: [{"sentence1": "a", "label": 0}]})
    with pytest.raises(DataError, match=rf"{split}\.parquet.*lacks the column 'sentence2'.*label, sentence1"):
        opened(folder).check(RTE)


def test_an_empty_split_is_an_error(folder):
    empty = pyarrow.Table.from_pylist(rte_rows(1)).slice(0, 0)
    parquet.write_table(empty, folder / "nyu-mll/glue/rte/validation.parquet")
    with pytest.raises(DataError, match="'validation' of task 'rte' is empty"):
        opened(folder).check(RTE)


def test_a_broken_file_is_named(folder):
    (folder / "nyu-mll/glue/rte/train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"train\.parquet.*cannot be read as parquet"):
        opened(folder).check(RTE)


def demo_suite(rows, fingerprint="1"):
    return TaskSuite(
        name="toy", title="Toy", tasks=(RTE,), demo=lambda *words: rows(*words), demo_fingerprint=lambda: fingerprint
    )


def test_the_demo_asks_the_suite_for_both_splits():
    asked = []

    def rows(dataset, config, split):
        asked.append((dataset, config, split))
        return rte_rows(3)

    source = open_source("demo", suites={"toy": demo_suite(rows)})
    source.check(RTE)
    assert asked == []
    assert source.splits(RTE)["validation"].to_list() == rte_rows(3)
    assert asked == [("nyu-mll/glue", "rte", "train"), ("nyu-mll/glue", "rte", "validation")]


def test_the_identity_of_the_demo_follows_the_fingerprint_of_the_suites_used():
    suites = {"toy": demo_suite(rte_rows), "other": replace(SUITE, name="other", tasks=(ARC,))}
    first = open_source("demo", suites=suites).identity([RTE])
    assert first.startswith("demo:")
    assert open_source("demo", suites={"toy": demo_suite(rte_rows)}).identity([RTE]) == first
    assert open_source("demo", suites={"toy": demo_suite(rte_rows, "2")}).identity([RTE]) != first


def test_a_suite_without_demo_is_an_error():
    with pytest.raises(DataError, match=r"'toy' has no demo data.*--data DIR"):
        open_source("demo", suites={"toy": SUITE}).check(RTE)


def test_demo_rows_without_a_column_are_an_error():
    source = open_source("demo", suites={"toy": demo_suite(lambda *_: [{"label": 1}])})
    with pytest.raises(DataError, match="lacks the columns 'sentence1', 'sentence2'"):
        source.splits(RTE)


def test_the_hub_names_what_can_be_done_without_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    # The client reads HF_ENDPOINT once, at import: a port nobody listens on stands for a machine without network.
    code = (
        "from toy_tasks import RTE\n"
        "from mtlbench.data.choose import open_source\n"
        "from mtlbench.errors import DataError\n"
        "try:\n    open_source('hub', suites={}).check(RTE)\n"
        "except DataError as error:\n    print(error)\n"
    )
    env = {"PYTHONPATH": python_path(HELPERS), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_DATASETS_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    for word in ("nyu-mll/glue", "cannot be reached", "--data DIR", "--model demo"):
        assert word in done.stdout


def test_a_data_set_cached_from_the_hub_needs_no_network(monkeypatch, tmp_path):
    found = tmp_path / "nyu-mll___glue" / "rte" / "0.0.0" / "abc"
    found.mkdir(parents=True)
    (found / "dataset_info.json").write_text("{}")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    open_source("hub", suites=NONE).check(RTE)


def test_a_folder_in_the_way_of_a_hub_id_is_an_error(monkeypatch, folder):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="would be read instead of the hub"):
        open_source("hub", suites=NONE).check(RTE)


def test_find_task_knows_full_names_and_suggests():
    assert find_task({"toy": SUITE}, "toy/rte") is RTE
    with pytest.raises(DataError, match="Did you mean 'toy/rte'"):
        find_task({"toy": SUITE}, "toy/rtee")


def test_checking_data_loads_neither_torch_nor_datasets(folder):
    code = (
        "import sys\nfrom toy_tasks import RTE\nfrom mtlbench.data.choose import open_source\n"
        f"s = open_source({str(folder)!r}, suites={{}})\ns.check(RTE)\ns.identity([RTE])\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'lm_eval'} & set(sys.modules)))"
    )
    env = {"PYTHONPATH": python_path(HELPERS)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
