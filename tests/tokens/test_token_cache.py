"""Tokenised rows are kept under all they depend on, whole or not at all, and made again when damaged."""

from __future__ import annotations

import multiprocessing
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_backbones import tiny_tokenizer

from mtlbench.backbones.backbone import load_backbone
from mtlbench.data.cache import cache_folder, cached_table
from mtlbench.data.choose import open_source
from mtlbench.data.lm_task import load_lm_task
from mtlbench.plugins import load_suite
from mtlbench.tokens import cache as tokenised
from mtlbench.tokens.cache import Tokenised, cached_rows
from mtlbench.tokens.facts import RowFacts
from mtlbench.tokens.keys import rows_key, tokenizer_digest

NONE = RowFacts(0, False, 1)
PAIRS = [((1, 2, 3), (4,), NONE), ((5,), (6, 7), RowFacts(3, True, 2**62)), ((), (8,), RowFacts(1, False, 0))]
KEY = "ab" * 32


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path))
    return tmp_path


def entry(folder):
    (path,) = folder.rglob("*.safetensors")
    return path


def never():
    raise AssertionError("made again")


def test_rows_come_back_as_they_were(folder):
    assert cached_rows(KEY, lambda: PAIRS) == PAIRS
    assert cached_rows(KEY, never) == PAIRS
    assert cached_rows("cd" * 32, list) == []
    assert cached_rows("cd" * 32, never) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other"])
def test_a_damaged_entry_is_told_and_made_again(folder, caplog, damage):
    cached_rows(KEY, lambda: PAIRS)
    path = entry(folder)
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"cut": content[:-5], "empty": b"", "flipped": flipped, "other": b"{}" * 50}[damage])
    other = [((9,), (9,), NONE)]
    assert cached_rows(KEY, lambda: other) == other
    assert str(path) in caplog.text
    assert cached_rows(KEY, never) == other


def test_nothing_half_written_is_left_or_read(folder):
    cached_rows(KEY, lambda: PAIRS)
    (folder / "tokens" / KEY[:2] / ".half.part").write_bytes(b"x")
    assert cached_rows(KEY, never) == PAIRS
    assert [p.suffix for p in (folder / "tokens" / KEY[:2]).iterdir() if not p.name.startswith(".")] == [".safetensors"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_to_costs_a_warning(folder, caplog):
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert cached_rows(KEY, lambda: PAIRS) == PAIRS
    assert "nothing is cached" in caplog.text


def test_a_file_in_the_place_of_the_folder_costs_a_warning(folder, caplog):
    (folder / "tokens").write_text("")
    assert cached_rows(KEY, lambda: PAIRS) == PAIRS
    assert "nothing is cached" in caplog.text


def _many(number):
    return cached_rows(KEY, lambda: [((number,) * 2000, (1,), NONE)] * 50) and cached_rows(KEY, never)


def test_writers_at_the_same_time_leave_one_whole_entry(folder):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(_many, [7] * 12)
    assert {tuple(rows) for rows in found} == {(((7,) * 2000, (1,), NONE),) * 50}
    assert [p.name for p in entry(folder).parent.iterdir()] == [f"{KEY}.safetensors"]


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("MTLBENCH_CACHE", "/a/b")
    assert cache_folder() == Path("/a/b")
    monkeypatch.delenv("MTLBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/mtlbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/mtlbench")


def test_a_generated_table_is_kept_with_its_types(folder):
    rows = [{"text": "a", "label": 1, "choices": {"text": ["x", "y"]}, "score": 0.5}]
    made = cached_table("k", lambda: rows)
    again = cached_table("k", never)
    assert again.schema.equals(made.schema)
    assert again.to_pylist() == rows
    path = folder / "rows" / "k.parquet"
    path.write_bytes(path.read_bytes()[:40])
    assert cached_table("k", lambda: rows).to_pylist() == rows
    assert cached_table("k", never).to_pylist() == rows


@pytest.fixture(scope="module")
def glue():
    suites = {"glue": load_suite("glue")}
    by_name = {task.name: task for task in suites["glue"].tasks}
    source = open_source("demo", suites=suites)
    splits = {name: source.splits(by_name[name]) for name in ("rte", "wnli")}
    return by_name, splits


def key_of(task, splits, rows=range(20), tokenizer="t", **changes):
    cut = {"architecture": "causal", "max_length": 64, "append_eos": False, **changes}
    return rows_key(task, load_lm_task(task, splits, name=f"any/{task.name}"), list(rows), tokenizer=tokenizer, **cut)


def test_a_key_holds_all_that_tokens_depend_on(glue):
    by_name, splits = glue
    rte = by_name["rte"]
    key = key_of(rte, splits["rte"])
    assert key == key_of(rte, splits["rte"])
    edited = splits["rte"]["train"].to_list()
    edited[3]["sentence1"] += "."
    import datasets

    others = [
        key_of(by_name["wnli"], splits["wnli"]),
        key_of(rte, splits["rte"], rows=range(1, 21)),
        key_of(rte, splits["rte"], rows=[*range(19, -1, -1)]),
        key_of(rte, splits["rte"], tokenizer="u"),
        key_of(rte, splits["rte"], architecture="seq2seq"),
        key_of(rte, splits["rte"], max_length=65),
        key_of(rte, splits["rte"], append_eos=True),
        key_of(rte, splits["rte"], evaluation=True),
        key_of(replace(rte, shots=2), splits["rte"]),
        key_of(rte, {**splits["rte"], "train": datasets.Dataset.from_list(edited)}),
        key_of(replace(rte, yaml=by_name["mrpc"].yaml), splits["rte"]),
    ]
    assert len({key, *others}) == len(others) + 1


def test_a_key_says_nothing_of_where_the_rows_lie(glue):
    by_name, splits = glue
    import datasets

    moved = {name: datasets.Dataset.from_list(rows.to_list()) for name, rows in splits["rte"].items()}
    assert key_of(by_name["rte"], moved) == key_of(by_name["rte"], splits["rte"])


def test_a_key_depends_on_the_versions_of_what_makes_tokens(glue, monkeypatch):
    by_name, splits = glue
    key = key_of(by_name["rte"], splits["rte"])
    real = tokenised.rows_key.__globals__["metadata"].version
    monkeypatch.setattr("importlib.metadata.version", lambda name: real(name) + ("x" if name == "tokenizers" else ""))
    assert key_of(by_name["rte"], splits["rte"]) != key


def test_tokenizers_are_told_apart():
    one, other = tiny_tokenizer(architecture="causal"), tiny_tokenizer(architecture="seq2seq")
    digest = tokenizer_digest(one)
    assert digest == tokenizer_digest(tiny_tokenizer(architecture="causal")) != tokenizer_digest(other)
    one(["a b"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_digest(one) == digest
    one.add_tokens(["newword"])
    assert tokenizer_digest(one) != digest
    assert tokenizer_digest(object()) is None


def test_a_second_study_tokenises_nothing(glue, monkeypatch):
    import torch

    by_name, splits = glue
    lm_task = load_lm_task(by_name["rte"], splits["rte"], name="glue/rte")
    backbone = load_backbone("demo", dtype=torch.float32, attention="sdpa", device=torch.device("cpu"))
    first, facts = Tokenised(backbone).training(by_name["rte"], lm_task, range(30), index=0, max_length=64)
    scored = Tokenised(backbone).evaluation(by_name["rte"], lm_task, range(10), max_length=64)
    monkeypatch.setattr(tokenised, "training_pairs", lambda *_: never())
    monkeypatch.setattr(tokenised, "evaluation_facts", lambda *_, **__: never())
    again, kept = Tokenised(backbone).training(by_name["rte"], lm_task, range(30), index=4, max_length=64)
    assert kept == facts and [row.cut for row in again] == [each.cut for each in facts]
    assert Tokenised(backbone).evaluation(by_name["rte"], lm_task, range(10), max_length=64) == scored
    assert [(row.context, row.target) for row in again] == [(row.context, row.target) for row in first]
    assert {row.task for row in again} == {4}
    assert all(isinstance(token, int) for row in again for token in row.context)
