"""Rows stay in arrays: mapped, made by one process at a time, and equal to plain rows; requests are tokenised once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import tracemalloc

import pytest
import torch

from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import load_backbone
from mtlbench.data.choose import open_source
from mtlbench.data.lm_task import load_lm_task
from mtlbench.evaluation.evaluate import evaluate
from mtlbench.plugins import load_suite
from mtlbench.tokens import cache
from mtlbench.tokens.cache import Tokenised, cached_rows
from mtlbench.tokens.encode import TokenRow
from mtlbench.tokens.facts import RowFacts
from mtlbench.tokens.requests import RequestTokens

KEY = "ef" * 32
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path))
    return tmp_path


def made(count, tokens=96):
    for number in range(count):
        yield tuple(range(number, number + tokens)), (number, 2), RowFacts(number % 3, number % 2 == 1, number << 40)


def test_stored_rows_are_plain_rows():
    rows = cached_rows(KEY, lambda: made(7)).rows(task=3, docs=range(10, 17))
    plain = [TokenRow(3, c, t, f.cut, doc) for (c, t, f), doc in zip(made(7), range(10, 17), strict=True)]
    assert rows == plain and plain == rows and rows != plain[::-1] and rows[0] != "row"
    assert [hash(row) for row in rows] == [hash(row) for row in plain] and repr(rows) == repr(plain)
    assert [(r.length, r.cut, r.doc, r.task) for r in rows] == [(r.length, r.cut, r.doc, r.task) for r in plain]
    assert all(type(token) is int for row in rows for token in (*row.context, *row.target))
    assert pickle.loads(pickle.dumps(rows)) == plain
    with pytest.raises((AttributeError, TypeError)):
        rows[0].task = 1


def test_a_row_from_the_cache_costs_less_than_half_a_kilobyte_of_its_own():
    count = 5000
    cached_rows(KEY, lambda: made(count))
    tracemalloc.start()
    rows = cached_rows(KEY, list).rows(task=0, docs=range(count))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == count and held < 512 * count


def test_without_a_cache_folder_rows_are_arrays_all_the_same(monkeypatch):
    monkeypatch.delenv("MTLBENCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("mtlbench.tokens.entries.cache_folder", lambda: None)
    assert cached_rows(KEY, lambda: made(3)) == list(made(3)) == list(cached_rows(KEY, lambda: made(3)))


def _slowly(path):
    def make():
        with (path / "makers").open("a") as makers:
            makers.write("made\n")
        for row in made(20):
            time.sleep(0.01)
            yield row

    return list(cached_rows(KEY, make)) == list(made(20))


def test_processes_that_start_together_make_an_entry_once(folder):
    with FORK.Pool(3) as pool:
        assert all(pool.map(_slowly, [folder] * 3, chunksize=1))
    assert (folder / "makers").read_text() == "made\n"
    assert not list((folder / "locks").iterdir())


def _stuck(path):
    def make():
        (path / "began").touch()
        while True:
            signal.pause()

    cached_rows(KEY, make)


def test_a_maker_that_was_killed_hinders_nobody(folder, wait_until=20):
    stuck = FORK.Process(target=_stuck, args=(folder,))
    stuck.start()
    deadline = time.monotonic() + wait_until
    while not (folder / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(stuck.pid, signal.SIGKILL)
    stuck.join()
    assert cached_rows(KEY, lambda: made(4)) == list(made(4))


@pytest.fixture(scope="module")
def loaded():
    suites = {"glue": load_suite("glue")}
    task = next(task for task in suites["glue"].tasks if task.name == "rte")
    splits = open_source("demo", suites=suites).splits(task)
    backbone = load_backbone("demo", dtype=torch.float32, attention="sdpa", device=torch.device("cpu"))
    return task, load_lm_task(task, splits, name="glue/rte"), backbone


def test_parts_change_no_row_and_no_fact(loaded, monkeypatch, folder):
    task, lm_task, backbone = loaded

    def tokenised():
        one = Tokenised(backbone)
        trained = one.training(task, lm_task, list(range(50)), index=1, max_length=24)
        return trained, one.evaluation(task, lm_task, list(range(40)), max_length=24)

    whole = tokenised()
    assert any(row.cut for row in whole[0][0]), "some rows are cut"
    monkeypatch.setattr(cache, "PART", 7)
    monkeypatch.setattr(cache, "EVALUATION_PART", 3)
    monkeypatch.setenv("MTLBENCH_CACHE", str(folder / "other"))
    assert tokenised() == whole


class Counted:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, tokenizer):
        self._tokenizer, self.texts = tokenizer, 0

    def __call__(self, texts, **more):
        self.texts += len(texts)
        return self._tokenizer(texts, **more)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def test_requests_are_tokenised_once_and_scores_are_equal_bit_for_bit(loaded):
    task, lm_task, backbone = loaded
    numbers = list(range(len(lm_task.validation_docs())))
    first, again = Tokenised(backbone), Tokenised(backbone)
    for each in (first, again):
        each.evaluation(task, lm_task, numbers, max_length=64)
    assert again.cached == len(numbers)

    def scores(known):
        tokenizer = Counted(backbone.tokenizer)
        found = evaluate(
            backbone.fresh(),
            tokenizer,
            architecture="causal",
            lm_tasks={"glue/rte": lm_task},
            task_ids={"glue/rte": 0},
            metrics={"glue/rte": task.metrics},
            routing=Routing(),
            max_length=64,
            token_budget=1024,
            eval_rows=None,
            known=known,
        )
        return found, tokenizer.texts

    fresh, texts = scores(None)
    assert texts > len(numbers)
    for known in (first.requests, again.requests):
        found, texts = scores(known)
        assert found.scores == fresh.scores and found.samples == fresh.samples
        assert texts == 0


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_known_and_unknown_requests_mix(loaded, architecture):
    from mtlbench.tokens.encode import encode_pairs, encode_prompts
    from mtlbench.tokens.requests import RequestMaker

    tokenizer = load_backbone(
        "demo" if architecture == "causal" else "demo-t5",
        dtype=torch.float32,
        attention="auto",
        device=torch.device("cpu"),
    ).tokenizer
    pairs = [("a dog ", "runs"), ("", "a"), ("the cat", " sits"), ("a dog", " runs"), ("the cat", " sits")]
    whole = encode_pairs(tokenizer, pairs, architecture=architecture)
    prompts = encode_prompts(tokenizer, ["a dog", "the cat"], architecture=architecture)
    maker = RequestMaker()
    for pair, tokens in list(zip(pairs, whole, strict=True))[::2]:
        maker.add(pair, *tokens)
    maker.add(("a dog",), prompts["a dog"], ())
    known = RequestTokens([maker.entry()])
    assert known.pairs(tokenizer, pairs, architecture=architecture) == whole
    assert known.prompts(tokenizer, ["a dog", "the cat"], architecture=architecture) == prompts
    assert RequestTokens([RequestMaker().entry()]).pairs(tokenizer, [], architecture=architecture) == []
