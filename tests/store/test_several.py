"""Several run folders as one: each cell once, no seed counted twice, and nothing in one table that must not be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from record_builder import PROTOCOL, cell, done, failed
from store_builder import make_folder, publish

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.errors import RequestError
from mtlbench.results.documents import study_in
from mtlbench.store import RunFolder
from mtlbench.store.several import Selection, read_results


def folder_of(path: Path, *records: Record, expected: tuple[Cell, ...] = ()) -> RunFolder:
    folder = make_folder(path)
    folder.put_request({"methods": "toy"}, [*(record.cell for record in records), *expected])
    for record in records:
        publish(folder, record)
    return folder


def on(record: Record, host: str, weights: str = "w") -> Record:
    return replace(record, provenance={"host": host, "backbone_fingerprint": weights, "dtype": "torch.float32"})


def test_seeds_of_two_machines_are_rows_of_one_table_and_no_cell_is_missing_that_the_other_has(tmp_path: Path) -> None:
    lora = [cell(seed=seed) for seed in (0, 1, 2)]
    one = folder_of(tmp_path / "one", on(done(lora[0], 60, 20), "a"), expected=tuple(lora))
    two = folder_of(tmp_path / "two", on(done(lora[1], 70, 30), "b"), expected=tuple(lora))
    study = study_in(read_results([one, two]), draws=0)
    (table,) = study.tables
    (row,) = table.rows
    assert row.seeds == (0, 1) and [missing.seed for missing in row.missing] == [2]
    assert any("machine behind times and memory differs" in note for note in table.notes)


def test_a_cell_in_both_counts_once_and_a_finished_one_stands_for_a_failed_one(tmp_path: Path) -> None:
    first, second = done(cell(seed=0), 60, 20), done(cell(seed=1), 50, 20)
    one = folder_of(tmp_path / "one", on(first, "a"), failed(cell(seed=1)))
    two = folder_of(tmp_path / "two", on(first, "b"), second)
    results = read_results([one, two])
    assert {record.status for record in results.records.values()} == {"ok"} and len(results.records) == 2
    assert results.home(first.key) is one and results.home(second.key) is two
    assert results.notes == ("2 cells found in several of the folders: each counts once.",)


def test_a_local_backbone_at_two_places_is_one_backbone(tmp_path: Path) -> None:
    here, there = (cell(model=model, weights="ab12") for model in ("/a/models/big", "/b/big"))
    one = folder_of(tmp_path / "one", done(here, 60, 20))
    two = folder_of(tmp_path / "two", done(there, 60, 20), done(replace(there, seed=1), 62, 20))
    assert len(read_results([one, two]).records) == 2
    (row,) = study_in(read_results([one, two]), draws=0).tables[0].rows
    assert row.seeds == (0, 1)


def test_other_scores_of_one_cell_are_refused_until_it_is_left_out(tmp_path: Path) -> None:
    record, other = done(cell(), 60, 20), done(cell("peml"), 50, 20)
    one, two = folder_of(tmp_path / "one", record), folder_of(tmp_path / "two", done(cell(), 61, 20), other)
    with pytest.raises(RequestError) as error:
        read_results([one, two])
    for word in (str(one.path), str(two.path), "lora, seed 0", f"--exclude {record.key[:12]}"):
        assert word in str(error.value)
    left = read_results([one, two], selection=Selection(exclude=(record.key[:12],)))
    assert list(left.records) == [other.key] and left.notes == ("Left out on request: 1 cell of lora.",)


def test_other_weights_of_one_backbone_share_no_table(tmp_path: Path) -> None:
    hub = {"model": "org/model"}
    one = folder_of(tmp_path / "one", on(done(cell(**hub), 60, 20), "a", "1111"))
    two = folder_of(tmp_path / "two", on(done(cell(seed=1, **hub), 61, 20), "b", "2222"))
    with pytest.raises(RequestError, match=r"'org/model' has other weights in .*1111.* than in .*2222"):
        read_results([one, two])
    other = replace(PROTOCOL, steps=3)
    three = folder_of(tmp_path / "three", on(done(cell(seed=1, protocol=other, **hub), 61, 20), "b", "2222"))
    assert len(study_in(read_results([one, three]), draws=0).tables) == 2, "another protocol is another table"


def test_a_folder_named_twice_is_refused(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", done(cell(), 60, 20))
    with pytest.raises(RequestError, match="named twice"):
        read_results([one, RunFolder(tmp_path / "two" / ".." / "one")])


def test_a_selection_keeps_methods_tasks_and_cells_and_says_what_it_left(tmp_path: Path) -> None:
    wide = cell("lora", settings={"rank": 4, "alpha": 8})
    other = cell("lora", tasks=("superglue/boolq",))
    records = [done(cell(), 60, 20), done(wide, 61, 21), done(cell("peml"), 62, 22), done(other, 63)]
    folder = folder_of(tmp_path / "run", *records, expected=(cell("base"),))

    def kept(**names: tuple[str, ...]) -> list[str]:
        results = read_results([folder], selection=Selection(**names))
        kept_cells = [*(record.cell for record in results.records.values()), *results.expected]
        assert bool(results.notes) == (len({one.key for one in kept_cells}) < 5)
        return sorted({f"{one.variant} {one.tasks[0]}" for one in kept_cells})

    everything = kept()
    assert len(everything) == 5
    assert kept(methods=("peml",)) == ["peml glue/rte"]
    assert kept(methods=("lora[alpha=8,rank=4]",)) == ["lora[alpha=8,rank=4] glue/rte"]
    assert len(kept(methods=("lora",))) == 3, "the name of a method is that of its variants"
    assert kept(tasks=("superglue",)) == ["lora superglue/boolq"]
    assert kept(tasks=("glue/rte", "glue/cola"), exclude=("lora", "base")) == ["peml glue/rte"]
    assert len(kept(exclude=(records[0].key[:8],))) == 4
    for names, message in (
        ({"methods": ("pelm",)}, "--methods: no cell here is called 'pelm'. Did you mean 'peml'"),
        ({"exclude": ("x",)}, "--exclude"),
        ({"tasks": ("glue/rt",)}, "Did you mean 'glue/rte'"),
        ({"tasks": ("glue/rte",)}, "Nothing is left to show"),
    ):
        with pytest.raises(RequestError) as error:
            read_results([folder], selection=Selection(**names))
        assert message in str(error.value)
