"""Prefix injection equals an explicit loop, leaves the stock model alone, and carries gradients to what makes it."""

from __future__ import annotations

import copy

import pytest
import torch
from prefix_backbones import ALL, LENGTH, PLACES, Maker, build, inputs, padding, prefix_for, tokens
from transformers import BloomConfig, BloomForCausalLM

from mtlbench.errors import RequestError
from mtlbench.nn.prefixes.inject import StaticPrefix, attach_prefix
from mtlbench.training.gradients import checkpointing

torch.set_num_threads(1)
SEQ2SEQ_WORDS = ["enc", "dec", "cross", "enc+dec", ALL]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "where"), [*PLACES, *(("t5", word) for word in SEQ2SEQ_WORDS[:-1])])
def test_without_a_prefix_the_model_is_the_stock_model_bit_for_bit(kind: str, where: str, attention: str) -> None:
    model = build(kind, attention=attention)
    expected = model(**inputs(kind)).logits
    slots = attach_prefix(model, where=where)
    assert torch.equal(model(**inputs(kind)).logits, expected)
    kv = prefix_for(slots)
    slots.set(kv)
    changed = model(**inputs(kind)).logits
    assert (changed - expected).abs().max() > 1e-2
    with slots.off():
        assert torch.equal(model(**inputs(kind)).logits, expected)
    assert torch.equal(model(**inputs(kind)).logits, changed)
    slots.set(None)
    assert torch.equal(model(**inputs(kind)).logits, expected)
    slots.feed(StaticPrefix(kv))
    for _ in range(2):
        assert torch.equal(model(**inputs(kind)).logits, changed)
        with slots.off():
            assert torch.equal(model(**inputs(kind)).logits, expected)
    slots.on = False
    slots.feed(StaticPrefix(kv))
    assert {place.stack.config._attn_implementation for place in slots.places} == {attention}
    assert torch.equal(model(**inputs(kind)).logits, expected)
    slots.on = True
    assert torch.equal(model(**inputs(kind)).logits, changed)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "where"), PLACES)
def test_padding_never_shows(kind: str, where: str, attention: str) -> None:
    model = build(kind, attention=attention)
    slots = attach_prefix(model, where=where)
    slots.set(prefix_for(slots))
    for side in ("left", "right"):
        mask = padding(side)
        padded = model(**inputs(kind, mask)).logits
        for row in range(3):
            real = mask[row].bool()
            alone = {"input_ids": tokens()[row : row + 1, real]}
            if where == ALL:
                alone["decoder_input_ids"] = tokens(length=6, seed=3)[row : row + 1]
                torch.testing.assert_close(padded[row : row + 1], model(**alone).logits, atol=2e-5, rtol=0)
            else:
                torch.testing.assert_close(padded[row, real], model(**alone).logits[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("kind", "where"), PLACES)
def test_a_different_prefix_per_row_equals_a_loop_over_rows(kind: str, where: str) -> None:
    model = build(kind)
    slots = attach_prefix(model, where=where)
    kv = prefix_for(slots, rows=3)
    slots.set(kv)
    batch = model(**inputs(kind, padding("left"))).logits
    for row in range(3):
        slots.set(kv[:, :, row])
        alone = model(**inputs(kind, padding("left"))).logits[row]
        torch.testing.assert_close(batch[row], alone, atol=2e-5, rtol=0)
    slots.set(kv[:, :, :2])
    with pytest.raises(RuntimeError, match="2 prefixes cannot serve 3 rows"):
        model(**inputs(kind))


@pytest.mark.parametrize(("kind", "where"), [("llama", "dec"), ("t5", "dec"), ("t5", ALL)])
def test_the_source_runs_once_per_forward_and_drops_only_in_training(kind: str, where: str) -> None:
    model = build(kind)
    slots = attach_prefix(model, where=where)
    maker = Maker(prefix_for(slots))
    slots.feed(maker)
    first, second = (model(**inputs(kind)).logits for _ in range(2))
    assert maker.calls == 2
    assert torch.equal(first, second)
    slots.train()
    first, second = (model(**inputs(kind)).logits for _ in range(2))
    assert not torch.equal(first, second)
    assert dict(model.named_parameters())["mtlbench_prefix.source.kv"] is maker.kv


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "where"), PLACES)
def test_gradients_are_the_same_with_checkpointed_layers(kind: str, where: str, attention: str) -> None:
    """With dropout in what makes the prefix: replayed layers see the prefix of their forward."""
    gradients = []
    for checkpointed in (False, True):
        model = build(kind, attention=attention)
        slots = attach_prefix(model, where=where)
        maker = Maker(prefix_for(slots))
        slots.feed(maker)
        model.train()
        torch.manual_seed(3)
        with checkpointing(model) if checkpointed else torch.enable_grad():
            model(**inputs(kind, padding("left")), use_cache=False).logits.square().mean().backward()
        assert maker.calls == 1
        assert (maker.kv.grad.abs().amax(dim=(1, 2, 3, 4)) > 0).all()
        gradients.append((maker.kv.grad, maker.gain.grad))
    for plain, replayed in zip(*gradients, strict=True):
        torch.testing.assert_close(replayed, plain, atol=1e-6, rtol=1e-5)


def test_checkpointing_enabled_before_the_prefix_is_attached_works_too() -> None:
    model = build("llama")
    with checkpointing(model):
        slots = attach_prefix(model)
        maker = Maker(prefix_for(slots), dropout=0.0)
        slots.feed(maker)
        model.train()
        model(**inputs("llama"), use_cache=False).logits.square().mean().backward()
    assert maker.kv.grad.abs().sum() > 0


def test_reentrant_checkpointing_takes_a_leaf_and_fails_loudly_on_a_prefix_that_is_made() -> None:
    gradients = []
    for reentrant in (False, True):
        model = build("llama").train()
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        slots = attach_prefix(model)
        kv = prefix_for(slots).requires_grad_()
        slots.set(kv)
        model(**inputs("llama"), use_cache=False).logits.square().mean().backward()
        gradients.append(kv.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
    slots.feed(Maker(prefix_for(slots)))
    with pytest.raises(RuntimeError, match="second time"):
        model(**inputs("llama"), use_cache=False).logits.square().mean().backward()


@pytest.mark.parametrize(("kind", "where"), [PLACES[0], PLACES[-1]])
def test_bf16_model_with_a_float32_prefix(kind: str, where: str) -> None:
    model = build(kind).bfloat16()
    slots = attach_prefix(model, where=where)
    kv = prefix_for(slots).requires_grad_()
    slots.set(kv)
    logits = model(**inputs(kind)).logits
    logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16
    assert kv.grad is not None and kv.grad.dtype == torch.float32 and kv.grad.isfinite().all()
    slots.set(kv.detach().bfloat16())
    assert torch.equal(model(**inputs(kind)).logits, logits)


def test_the_decoder_stack_called_alone_sees_the_prefix() -> None:
    model = build("llama")
    slots = attach_prefix(model)
    slots.feed(StaticPrefix(prefix_for(slots)))
    hidden = model.model(**inputs("llama")).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(**inputs("llama")).logits)


def test_attention_maps_have_the_prefix_in_front() -> None:
    model = build("llama", attention="eager")
    slots = attach_prefix(model)
    slots.set(prefix_for(slots))
    maps = model(**inputs("llama"), output_attentions=True).attentions
    assert [tuple(m.shape) for m in maps] == [(3, 4, 7, LENGTH + 7)] * 3
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(3, 4, 7))
    assert (maps[0][..., :LENGTH] > 0).all() and (maps[0][:, :, 0, LENGTH + 1 :] == 0).all()


@pytest.mark.parametrize(("kind", "where"), [PLACES[0], PLACES[-1]])
def test_copies_of_a_model_share_no_prefix(kind: str, where: str) -> None:
    model = build(kind)
    slots = attach_prefix(model, where=where)
    slots.feed(Maker(prefix_for(slots)))
    first = model(**inputs(kind)).logits
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})
    twin.mtlbench_prefix.feed(StaticPrefix(prefix_for(slots, seed=9)))
    assert (twin(**inputs(kind)).logits - first).abs().max() > 1e-2
    assert torch.equal(model(**inputs(kind)).logits, first)
    twin.mtlbench_prefix.source = None
    twin.mtlbench_prefix.set(None)
    assert torch.equal(model(**inputs(kind)).logits, first)


def test_backbones_that_cannot_take_a_prefix_are_refused() -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(RequestError, match=r"BloomForCausalLM.*AttentionInterface"):
        attach_prefix(bloom)
    for word in ("encoder", "", "dec+"):
        with pytest.raises(RequestError, match=r"is unknown. Known: enc, dec, cross"):
            attach_prefix(build("t5"), where=word)
    with pytest.raises(RequestError, match=r"'dec\+enc\+dec' names a place twice"):
        attach_prefix(build("t5"), where="dec+enc+dec")
    with pytest.raises(RequestError, match=r"LlamaForCausalLM .* no encoder, so there is no place 'enc' or 'cross'"):
        attach_prefix(build("llama"), where=ALL)
    with pytest.raises(RequestError, match=r"'rel' is unknown. Known: relative, zero"):
        attach_prefix(build("t5"), bias="rel")
    flash = build("llama")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(RequestError, match=r"'flash_attention_2'; prefixes run on 'sdpa' and 'eager' alone"):
        attach_prefix(flash)
    model = build("llama")
    slots = attach_prefix(model)
    with pytest.raises(RequestError, match="already has a prefix"):
        attach_prefix(model)
    with pytest.raises(ValueError, match="does not fit"):
        slots.set(torch.zeros(3, 2, 4, LENGTH, 8))
