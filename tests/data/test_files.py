"""Every form in which data sets are downloaded or saved gives the same rows, or a sentence that says what is wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest
from toy_tasks import ARC, RTE, arc_rows, rte_rows, write

from mtlbench.bundle.making import _collect_rows
from mtlbench.data.columns import LabelNamesError
from mtlbench.data.folder import FolderSource
from mtlbench.errors import DataError

ROWS = {"train": rte_rows(7), "validation": rte_rows(4, start=100)}
TRICKY = ['NA, "quoted"\nsecond line', "2020-01-01 00:00:00", "007", "", "null", "line\u2028end 问题", " blanks "]
for _row, _text in zip(ROWS["train"], TRICKY, strict=True):
    _row["sentence1"] = _text


def lines(folder: Path) -> None:
    for split, rows in ROWS.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8-sig")


def array(folder: Path) -> None:
    for split, rows in ROWS.items():
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=1))


def separated(folder: Path) -> None:
    for split, rows in ROWS.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def shards(folder: Path) -> None:
    for split, rows in ROWS.items():
        for at, low in enumerate(range(0, 6, 3)):
            part = pyarrow.Table.from_pylist(rows[low : low + 3] if low == 0 else rows[3:])
            parquet.write_table(part, folder / f"{split}-{at:05}-of-00002.parquet")


def converted(folder: Path) -> None:
    for split, rows in ROWS.items():
        (folder / split).mkdir()
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / split / "0000.parquet")


def saved(folder: Path) -> None:
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in ROWS.items()}).save_to_disk(
        str(folder), num_shards={"train": 3, "validation": 1}
    )


FORMS: dict[str, Callable[[Path], None]] = {f.__name__: f for f in (lines, array, separated, shards, converted, saved)}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_rows_of_parquet(tmp_path, form):
    folder = tmp_path / "nyu-mll/glue/rte"
    folder.mkdir(parents=True)
    FORMS[form](folder)
    source = FolderSource(tmp_path)
    source.check(RTE)
    assert {split: rows.to_list() for split, rows in source.splits(RTE).items()} == ROWS
    identity = source.identity([RTE])
    first = tmp_path / source.files(RTE)[0]
    first.write_bytes(first.read_bytes() + b" ")
    assert source.identity([RTE]) != identity


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_holds_every_form_and_keeps_the_keys(tmp_path, form):
    folder = tmp_path / "data/nyu-mll/glue/rte"
    folder.mkdir(parents=True)
    FORMS[form](folder)
    source = FolderSource(tmp_path / "data")
    _collect_rows(RTE, source, tmp_path / "bundle")
    copy = FolderSource(tmp_path / "bundle")
    assert copy.identity([RTE]) == source.identity([RTE])
    assert copy.splits(RTE)["train"].to_list() == ROWS["train"]


def test_one_parquet_file_comes_before_all_other_forms(tmp_path):
    """Folders that were read before are read as before, whatever else lies there."""
    write(tmp_path, RTE, **{split: rows[:3] for split, rows in ROWS.items()})
    before = FolderSource(tmp_path).identity([RTE])
    lines(tmp_path / "nyu-mll/glue/rte")
    assert FolderSource(tmp_path).identity([RTE]) == before
    assert len(FolderSource(tmp_path).splits(RTE)["train"]) == 3


def test_a_data_set_without_configuration_may_lie_as_on_the_hub(tmp_path):
    task = replace(RTE, dataset="some/set", config=None)
    for place in ("one/some/set/data", "two/some/set"):
        (tmp_path / place).mkdir(parents=True)
        shards(tmp_path / place)
        assert FolderSource(tmp_path / place.partition("/")[0]).splits(task)["train"].to_list() == ROWS["train"]


def test_nested_rows_are_read_from_json_lines(tmp_path):
    folder = tmp_path / ARC.dataset / str(ARC.config)
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in arc_rows(4)))
    assert FolderSource(tmp_path).splits(ARC)["train"].to_list() == arc_rows(4)


def wrong_shards(folder: Path) -> None:
    shards(folder)
    (folder / "train-00000-of-00002.parquet").unlink()


def two_forms(folder: Path) -> None:
    lines(folder)
    separated(folder)


def cut_line(folder: Path) -> None:
    lines(folder)
    path = folder / "validation.jsonl"
    path.write_bytes(path.read_bytes()[:-20])


def texts_for_labels(folder: Path) -> None:
    separated(folder)
    path = folder / "train.csv"
    path.write_text(path.read_text().replace(",0,0\n", ",entailment,0\n").replace(",0,0\r\n", ",entailment,0\r\n"))


def mixed_types(folder: Path) -> None:
    lines(folder)
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({**ROWS["train"][0], "label": "one"}) + "\n")


def null_label(folder: Path) -> None:
    lines(folder)
    with (folder / "validation.jsonl").open("a") as file:
        file.write(json.dumps({**ROWS["train"][0], "label": None}) + "\n")


def lost_arrow(folder: Path) -> None:
    saved(folder)
    next((folder / "train").glob("data-00001*.arrow")).unlink()


def half_arrow(folder: Path) -> None:
    saved(folder)
    path = next((folder / "validation").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:200])


def only_text(folder: Path) -> None:
    (folder / "train.txt").write_text("rows")


WRONG = {
    wrong_shards: r"shards of split 'train'.*not complete: number 0 of 2 is missing",
    two_forms: r"in several forms: .*train\.jsonl.*train\.csv'?\. Keep one",
    cut_line: r"validation\.jsonl', line 4 is not JSON",
    texts_for_labels: r"train\.csv' cannot be read as csv: .*entailment",
    mixed_types: r"train\.jsonl', column 'label' has values of several types",
    null_label: r"validation\.jsonl' \(split 'validation'\), row 4, column 'label'.*None",
    lost_arrow: r"data-00001-of-00003\.arrow'\. Save the data set again",
    half_arrow: r"\.arrow' cannot be read as arrow",
    only_text: r"train\.parquet'.*does not exist.*train\.jsonl.*save_to_disk wrote\. Put it there",
}


@pytest.mark.parametrize("damage", WRONG, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_said_with_the_file(tmp_path, damage):
    folder = tmp_path / "nyu-mll/glue/rte"
    folder.mkdir(parents=True)
    damage(folder)
    with pytest.raises(DataError, match=WRONG[damage]):
        FolderSource(tmp_path).check(RTE)


@pytest.mark.parametrize("names", [["not_entailment", "entailment"], ["NOT_ENTAILMENT", "Entailment", "hidden"]])
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_label_names_in_another_order_are_refused_at_the_plan(tmp_path, names, form):
    task = replace(RTE, label_names={"label": ("entailment", "not_entailment")})
    folder = tmp_path / "nyu-mll/glue/rte"
    folder.mkdir(parents=True)

    def put(label: datasets.ClassLabel) -> None:
        kind = datasets.Features(
            {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"), "label": label}
        )
        for split in ("train", "validation"):
            columns = [{k: v for k, v in row.items() if k != "idx"} for row in rte_rows(4)]
            rows = datasets.Dataset.from_list(columns, features=kind)
            if form == "saved":
                rows.save_to_disk(str(folder / split))
            else:
                rows.to_parquet(str(folder / f"{split}.parquet"))

    for accepted in (["Entailment", "not_entailment"], ["yes", "no"]):
        put(datasets.ClassLabel(names=accepted))
        FolderSource(tmp_path).check(task)
    put(datasets.ClassLabel(names=names))
    with pytest.raises(LabelNamesError, match=f"numbers its labels {', '.join(names)}, and task 'rte' needs entail"):
        FolderSource(tmp_path).check(task)
