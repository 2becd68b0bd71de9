"""Architectures: what each kind of layer needs, on tiny random models; all of the matrix in the slow test."""

from __future__ import annotations

import json

import pytest
from matrix import PAGE
from tiny_types import TYPES, UNSUITED, tiny_model
from trying import METHODS, tried

from mtlbench.errors import RequestError
from mtlbench.planning.plan import plan_of

OK = {
    "gpt2": "base full lora ta_lora houlsby bitfit prompt_tuning",  # Conv1D, fused projections
    "bloom": "base bitfit",  # eager attention of its own
    "gemma2": "prefix",  # eager attention, softcap
    "gpt_oss": "mtl_lora houlsby",  # attention sinks, a mixture that gives two tensors
    "gpt_neox": "ta_lora",  # queries, keys and values head by head
    "phi3": "ta_lora ia3",  # queries, keys and values in one
    "olmo2": "ta_lora",  # a norm over the keys of all heads
    "deepseek_v3": "mtl_lora",  # latent attention: one more dimension
    "qwen2_moe": "mtl_lora",  # a shared expert that gets tokens in one line
    "opt": "houlsby",  # feed-forward blocks that do
    "falcon": "dora",  # sums into the output of a linear
    "jamba": "lora",  # states beside attention
    "mbart": "prefix",  # an encoder whose attention knows no layer
    "umt5": "mtl_lora",  # cross-attention that takes the encoder's shape for the decoder's
}
REFUSED = {
    "mamba": ("prefix", "every layer needs it"),
    "bloom": ("prefix", "not dispatched"),
    "deepseek_v3": ("prefix", "compressed"),
}


@pytest.mark.parametrize("name", OK)
def test_methods_train_and_score_on_it(name):
    for one in tried(name, OK[name].split()):
        assert one.status == "ok", f"{one.method}: {one.reason}"
        notes, guards = one.record.notes, one.record.guards
        assert all(guards.values())
        assert ("attention" in notes) == (name in ("bloom", "gemma2", "gpt_oss"))
        assert notes["row_layout"] if one.method != "base" else True
        if name in ("jamba", "qwen2_moe"):
            assert "experts" in notes["not_adapted"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_its_reason(name):
    method, words = REFUSED[name]
    (one,) = tried(name, [method])
    assert one.status == "refused" and words in one.reason


@pytest.mark.parametrize("name", UNSUITED)
def test_a_checkpoint_that_generates_no_text_is_refused_before_any_worker(name, tmp_path):
    model = tiny_model(name, tmp_path)
    kind = json.loads((model / "config.json").read_text())["model_type"]
    with pytest.raises(RequestError, match=kind) as refused:
        plan_of({"methods": "base", "tasks": "glue/rte", "data": "demo", "model": str(model)})
    assert "generates text" in str(refused.value)


def test_the_plan_tells_of_eager_attention_and_of_experts(tmp_path):
    words = {"methods": "lora", "tasks": "glue/rte", "data": "demo", "model": str(tiny_model("gpt_oss", tmp_path))}
    notes = " ".join(plan_of(words).notes)
    assert "eager attention is used" in notes and "experts of gpt_oss" in notes
    with pytest.raises(RequestError, match="gpt_oss has no sdpa attention"):
        plan_of({**words, "attention": "sdpa"})


def test_auto_has_the_key_that_sdpa_had():
    words = {"methods": "lora", "tasks": "glue/rte", "data": "demo", "model": "demo"}
    keys = [plan_of(words | given).cells[0].key for given in ({}, {"attention": "sdpa"}, {"attention": "eager"})]
    assert keys[0] == keys[1] != keys[2]


def test_the_page_has_every_type_and_method():
    """`make matrix` writes it."""
    lines = PAGE.read_text().splitlines()
    head = next(line for line in lines if line.startswith("| type |"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["type", *METHODS]
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    named = {row[0].strip(): row for row in rows}
    assert {*TYPES, *UNSUITED} <= named.keys()
    assert not [row for row in rows if "failed" in "".join(row[1:])]


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_no_cell_of_the_matrix_fails(name):
    failed = {one.method: one.reason for one in tried(name) if one.status == "failed"}
    assert not failed
