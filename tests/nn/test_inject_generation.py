"""Generation with a prefix equals decoding without any cache, in every mode and for every family."""

from __future__ import annotations

import pytest
import torch
from prefix_backbones import ALL, PLACES, build, naive, padding, prefix_for, tokens

from mtlbench.nn.prefixes.inject import attach_prefix

torch.set_num_threads(1)
MODES = {"dynamic": {}, "no_cache": {"use_cache": False}, "static": {"cache_implementation": "static"}}
SEARCHES = {
    "beams": {"num_beams": 3},
    "returned beams": {"num_beams": 4, "num_return_sequences": 2},
    "static beams": {"num_beams": 2, "cache_implementation": "static"},
}


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize(("kind", "where"), [*PLACES, ("t5", "dec")])
def test_greedy_decoding_equals_a_loop_without_cache(kind: str, where: str, mode: str, per_row: bool) -> None:
    model = build(kind)
    slots = attach_prefix(model, where=where)
    slots.set(prefix_for(slots, rows=3 if per_row else None))
    for side in ("none", "left"):
        given = {"input_ids": tokens(), "attention_mask": padding(side)}
        made = model.generate(**given, max_new_tokens=6, do_sample=False, **MODES[mode])
        assert torch.equal(made, naive(model, tokens(), padding(side), 6))


@pytest.mark.parametrize("search", list(SEARCHES))
@pytest.mark.parametrize(("kind", "where"), PLACES)
def test_beams_of_a_batch_equal_beams_of_each_row(kind: str, where: str, search: str) -> None:
    """With a prefix per row, which its beams share."""
    model = build(kind)
    slots = attach_prefix(model, where=where)
    kv, mask, how = prefix_for(slots, rows=3), padding("left"), SEARCHES[search]
    slots.set(kv)
    made = model.generate(tokens(), attention_mask=mask, max_new_tokens=5, do_sample=False, **how)
    kept = how.get("num_return_sequences", 1)
    assert len(made) == 3 * kept
    for row in range(3):
        real = mask[row].bool()
        slots.set(kv[:, :, row])
        alone = model.generate(
            tokens()[row : row + 1, real], attention_mask=mask[row : row + 1, real], max_new_tokens=5,
            do_sample=False, **{**how, "use_cache": False, "cache_implementation": None},
        )  # fmt: skip
        assert torch.equal(made[row * kept : (row + 1) * kept, -5:], alone[:, -5:])


@pytest.mark.parametrize(("kind", "where"), [("llama", "dec"), ("t5", ALL)])
def test_sampled_sequences_of_a_row_share_its_prefix(kind: str, where: str) -> None:
    model = build(kind)
    slots = attach_prefix(model, where=where)
    slots.set(prefix_for(slots, rows=3))
    made = []
    for cached in (True, False):
        torch.manual_seed(4)
        made.append(
            model.generate(
                tokens(), max_new_tokens=5, do_sample=True, top_k=0, num_return_sequences=2, use_cache=cached
            )
        )
    assert made[0].shape[0] == 6
    assert torch.equal(*made)
