"""Records of one table that were made under different circumstances: the table says which, and refuses none."""

from __future__ import annotations

from typing import Any

from record_builder import cell, done

from mtlbench.api.record import Record
from mtlbench.results.study import study_of


def made(method: str, seed: int = 0, **provenance: Any) -> Record:
    return done(cell(method, seed), 60.0, 20.0, provenance=provenance)


def notes(*records: Record) -> list[str]:
    (table,) = study_of(records).tables
    return [note for note in table.notes if "One seed" not in note and "seeds:" not in note]


def test_versions_of_libraries_that_differ_are_named_with_their_rows() -> None:
    old = {"versions": {"torch": "2.12.1", "transformers": "5.23"}}
    new = {"versions": {"torch": "2.13.0", "transformers": "5.23"}}
    told = notes(made("base", 0, **old), made("base", 1, **old), made("lora", 0, **old), made("lora", 1, **new))
    assert told == [
        "Records were made with different versions of torch: 2.12.1 (base, lora seed 0); 2.13.0 (lora seed 1)."
    ]
    assert notes(made("base", **new), made("lora", **new)) == []
    assert notes(made("base", **new), made("lora")) == [], "a record that does not say is no other version"


def test_numbers_of_devices_that_differ_are_named_with_their_rows() -> None:
    told = notes(made("lora"), made("full", processes=4))
    assert told == [
        "Cells ran on different numbers of devices, so times and memory are not comparable between them: 1 (lora); "
        "4 (full)."
    ]
    assert notes(made("lora", processes=2), made("full", processes=2)) == []


def test_cells_on_a_device_that_others_used_are_named() -> None:
    told = notes(made("lora", 0, foreign_device_bytes=3 * 2**30), made("lora", 1), made("base"), made("base", 1))
    assert len(told) == 1 and told[0].endswith("are not comparable: 3.00 GiB (lora seed 0).")


def test_what_a_record_says_is_text() -> None:
    (told,) = notes(made("lora", versions={"torch": "1\x1b[2J\n2"}), made("base", versions={"torch": "3"}))
    assert told.isprintable()
    assert notes(made("lora", versions=["torch"]), made("base", foreign_device_bytes="much")) == []


def test_only_methods_that_train_have_a_loss_to_tell_apart() -> None:
    records = [
        done(cell("base"), 60.0, 60.0, notes={"task_weighting": ""}),
        done(cell("lora"), 60.0, 60.0, notes={"task_weighting": "rows"}),
        done(cell("peml"), 60.0, 60.0, notes={"task_weighting": "tasks"}),
    ]
    (note,) = (n for n in study_of(records).tables[0].notes if "different losses" in n)
    assert "rows (lora); tasks (peml)" in note and "base" not in note
