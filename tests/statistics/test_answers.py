"""Stored predictions read by columns: what metrics need, and what makes a run degenerate."""

from __future__ import annotations

import json

import pytest
from record_builder import cell, done

from mtlbench.plugins import load_report
from mtlbench.results.documents import write_reports
from mtlbench.results.study import study_of
from mtlbench.statistics.answers import answers_in
from mtlbench.store import RunFolder


def rows(task: str, *, choices: list[int], metric: str = "acc", values: list | None = None) -> list[dict]:
    """Answers to questions with two choices whose first one is right."""
    found = []
    for at, chosen in enumerate(choices):
        likelihoods = [-2.0, -2.0]
        likelihoods[chosen] = -1.0
        value = values[at] if values else float(chosen == 0)
        found.append(
            {
                "task": task,
                "doc_id": at,
                "doc_hash": f"{task}-{at}",
                "gold": "yes",
                "prediction": ("yes", "no")[chosen],
                "loglikelihoods": likelihoods,
                "correct": chosen == 0,
                "metric_values": json.dumps({metric: value}),
            }
        )
    return found


@pytest.fixture
def read(folder):
    def stored(found):
        record = done(cell(), 60.0, 20.0)
        folder.put_samples(record.key, found)
        return answers_in(folder, [record])(record.key)

    return stored


@pytest.fixture
def folder(tmp_path):
    store = RunFolder(tmp_path / "run")
    store.preflight()
    return store


def published(store, seed=0):
    """A record and its predictions, as a worker leaves them."""
    record = done(cell(seed=seed), 50.0, 50.0)
    samples = [row for task in record.cell.tasks for row in rows(task, choices=[0, 1])]
    store.put_request({"tasks": seed}, [record.cell])
    store.put_samples(record.key, samples)
    assert store.publish(record, store.claim(record.key))
    return record.key


def test_tasks_are_told_apart_and_items_keep_their_order(read):
    pairs = [[1, 0], [0, 0], [1, 1]]
    told = read([*rows("a/x", choices=[0, 1, 0]), *rows("a/y", choices=[1, 0, 0], metric="mcc", values=pairs)])
    assert list(told) == ["a/x", "a/y"]
    assert told["a/x"].items["acc"].tolist() == [1.0, 0.0, 1.0]
    assert told["a/y"].items["mcc"].tolist() == pairs
    assert (told["a/x"].count, told["a/x"].constant, told["a/x"].undefined) == (3, False, 0)


def test_equal_questions_have_equal_digests(read):
    first = read(rows("a/x", choices=[0, 1]))["a/x"].documents
    assert first == read(rows("a/x", choices=[1, 1]))["a/x"].documents
    assert first != read(rows("a/y", choices=[0, 1]))["a/y"].documents


@pytest.mark.parametrize(("choices", "constant"), [([1, 1, 1], True), ([0, 0, 0], False), ([0, 1, 1], False)])
def test_one_answer_to_everything_is_constant_unless_it_is_always_right(read, choices, constant):
    assert read(rows("a/x", choices=choices))["a/x"].constant is constant


def test_choices_are_told_by_their_place_where_every_question_has_its_own(read):
    found = rows("a/x", choices=[1, 1, 1])
    for at, row in enumerate(found):
        row["prediction"] = f"answer {at}"
    assert read(found)["a/x"].constant


def test_texts_without_an_answer_and_likelihoods_that_are_no_number_are_counted(read):
    found = rows("a/x", choices=[0, 1, 1, 1])
    for row, text in zip(found, ("42", "[invalid]", "  ", "7"), strict=True):
        row.update(prediction=text, loglikelihoods=[])
    told = read(found)["a/x"]
    assert told.unparsed == 2 and not told.constant
    found = rows("a/x", choices=[0, 1])
    found[1]["loglikelihoods"] = [float("nan"), -1.0]
    assert read(found)["a/x"].undefined == 1


def test_a_task_with_choices_and_one_with_texts_share_a_file(read):
    texts = rows("a/y", choices=[1, 1])
    for row in texts:
        row.update(prediction="[invalid]", loglikelihoods=[])
    told = read([*rows("a/x", choices=[0, 1]), *texts, *rows("a/z", choices=[1, 1])])
    assert [(one.constant, one.unparsed) for one in told.values()] == [(False, 0), (True, 2), (True, 0)]


def test_predictions_that_are_not_the_recorded_ones_are_put_away_and_named(folder):
    good, bad = published(folder), published(folder, seed=1)
    path = folder.path / "samples" / f"{bad}.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    records = folder.records()
    read = answers_in(folder, records.values())
    assert read(good) is not None and read(bad) is None and not path.exists()
    (told,) = folder.problems(records)
    assert bad in told and "lora seed 1" in told and "quarantine/" in told and "differs from that in the record" in told
    study = study_of(records.values(), predictions=read, draws=20, notes=lambda: [told])
    assert study.counts["ok"] == 2 and "not every cell has stored predictions" in "".join(study.tables[0].notes)
    assert folder.problems() == [told], "the next report says it too"


@pytest.mark.parametrize("seeds", [2, 70], ids=["read here", "read in copies"])
def test_the_report_that_finds_damaged_predictions_says_so_itself(folder, tmp_path, seeds):
    *_, bad = (published(folder, seed=seed) for seed in range(seeds))
    path = folder.path / "samples" / f"{bad}.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    write_reports(folder, [load_report("markdown")], tmp_path, draws=0, tell=lambda written: None)
    told = (tmp_path / "report.md").read_text()
    assert bad in told and "quarantine/" in told and not path.exists()


def test_predictions_of_another_cell_are_not_taken_for_its_own(folder):
    one, other = published(folder), published(folder, seed=1)
    names = [folder.path / "samples" / f"{key}.parquet" for key in (one, other)]
    changed = folder.samples(other)
    changed[0]["prediction"] = "maybe"
    folder.put_samples(other, changed)
    names[1].replace(names[0])
    assert answers_in(folder, folder.records().values())(one) is None


def test_a_record_without_a_checksum_is_held_to_the_one_inside_the_file(folder):
    record = done(cell(), 50.0, 50.0)
    assert answers_in(folder, [record])(record.key) is None
    path = folder.path / "samples" / f"{record.key}.parquet"
    path.write_bytes(b"not parquet")
    assert answers_in(folder, [record])(record.key) is None and not path.exists()


def test_predictions_that_cannot_be_understood_count_as_none(read, caplog):
    mixed = [*rows("a/x", choices=[0]), *rows("a/y", choices=[0]), *rows("a/x", choices=[1])]
    assert read(mixed) is None and "not contiguous" in caplog.text
