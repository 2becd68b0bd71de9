"""Prefixes of the encoder, the decoder and its attention to the encoder equal attention written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prefix_backbones import ALL, LENGTH, Maker, build, inputs, padding, prefix_for, tokens
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    StaticCache,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from mtlbench.nn.prefixes.inject import StaticPrefix, attach_prefix

torch.set_num_threads(1)
WORDS = ["enc", "dec", "cross", "dec+enc", "cross+enc", "dec+cross", ALL]


def attention_of(model: Any, place: str) -> list[Any]:
    if place == "enc":
        return [block.layer[0].SelfAttention for block in model.encoder.block]
    if place == "dec":
        return [block.layer[0].SelfAttention for block in model.decoder.block]
    return [block.layer[1].EncDecAttention for block in model.decoder.block]


def write_out(module: Any, kv: Tensor, owner: Any) -> None:
    """Give a T5 attention a forward that has the prefix in its scores; ``owner`` gives the prefix its relative bias."""

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (module.n_heads, -1)).transpose(1, 2)

    def forward(hidden: Tensor, mask: Any = None, key_value_states: Any = None, position_bias: Any = None, **_: Any):
        read = hidden if key_value_states is None else key_value_states
        query, key, value = heads(module.q(hidden)), heads(module.k(read)), heads(module.v(read))
        length = query.shape[2]
        if position_bias is None:
            relative = module.has_relative_attention_bias
            position_bias = module.compute_bias(length, key.shape[2]) if relative else torch.zeros(1, 1, 1, 1)
        own = query @ key.mT + position_bias + (0 if mask is None else mask)
        before = query @ kv[0].mT
        if owner is not None:
            before = before + owner.compute_bias(LENGTH + length, LENGTH + length)[:, :, LENGTH:, :LENGTH]
        weights = torch.cat([before, own], dim=-1).softmax(-1)
        out = weights[..., :LENGTH] @ kv[1] + weights[..., LENGTH:] @ value
        return module.o(out.transpose(1, 2).flatten(2)), position_bias, None

    module.forward = forward


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bias", ["relative", "zero"])
@pytest.mark.parametrize("where", WORDS)
@pytest.mark.parametrize("kind", ["t5", "flan"])
def test_every_place_equals_attention_written_out(kind: str, where: str, bias: str, attention: str) -> None:
    model, expected = build(kind, attention=attention), build(kind, attention="eager")
    slots = attach_prefix(model, where=where, bias=bias)
    assert slots.where == tuple(place for place in ("enc", "dec", "cross") if place in where.split("+"))
    assert slots.shape.layers == sum(len(attention_of(model, place)) for place in slots.where)
    kv = prefix_for(slots)
    slots.set(kv)
    rest = iter(kv)
    for place in slots.where:
        layers = attention_of(expected, place)
        for module in layers:
            write_out(module, next(rest), layers[0] if place == "dec" and bias == "relative" else None)
    for side in ("left", "right"):
        given = inputs(kind, padding(side))
        difference = (model(**given).logits - expected(**given).logits).abs().max()
        assert difference < 3e-5


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("where", ["dec", ALL])
def test_the_parts_of_a_cached_sequence_equal_the_whole(where: str, static: bool) -> None:
    model = build("t5")
    with torch.no_grad():
        model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(10)
    slots = attach_prefix(model, where=where)
    slots.set(prefix_for(slots))
    given = inputs("t5", padding("left"))
    decoder = given.pop("decoder_input_ids")
    whole = model(**given, decoder_input_ids=decoder).logits
    own = StaticCache(config=model.decoder.config, max_cache_len=9) if static else DynamicCache()
    cache = EncoderDecoderCache(own, DynamicCache())
    encoded = model.get_encoder()(**given)
    for part in (decoder[:, :3], decoder[:, 3:5], decoder[:, 5:]):
        last = model(
            attention_mask=given["attention_mask"], encoder_outputs=encoded, decoder_input_ids=part,
            past_key_values=cache, use_cache=True,
        ).logits  # fmt: skip
    torch.testing.assert_close(last, whole[:, 5:], atol=2e-5, rtol=0)
    assert cache.cross_attention_cache.layers[0].keys.shape[2] == 7  # real tokens only


@pytest.mark.parametrize("where", ["dec", "enc", ALL])
def test_the_encoder_alone_sees_its_prefix_and_no_other(where: str) -> None:
    model = build("t5")
    given = inputs("t5", padding("right"))
    ids, mask = given.pop("input_ids"), given["attention_mask"]
    encoded = model.get_encoder()(input_ids=ids, attention_mask=mask)
    slots = attach_prefix(model, where=where)
    slots.feed(StaticPrefix(prefix_for(slots)))
    whole = model(input_ids=ids, **given)
    again = model.get_encoder()(input_ids=ids, attention_mask=mask)
    assert torch.equal(again.last_hidden_state, encoded.last_hidden_state) == (where == "dec")
    assert torch.equal(again.last_hidden_state, whole.encoder_last_hidden_state)
    assert torch.equal(model(**given, encoder_outputs=again).logits, whole.logits)


def test_generation_runs_the_encoder_and_its_prefix_once() -> None:
    model = build("t5")
    slots = attach_prefix(model, where=ALL)
    maker = Maker(prefix_for(slots))
    slots.feed(maker)
    runs: list[int] = []
    model.encoder.register_forward_hook(lambda *_: runs.append(maker.calls))
    model.generate(tokens(), max_new_tokens=4, do_sample=False)
    assert runs == [1]
    assert maker.calls == 5  # the encoder, and four steps of the decoder


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    """The encoder called alone afterwards makes its prefix again."""
    model = build("t5")
    slots = attach_prefix(model, where=ALL)
    maker = Maker(prefix_for(slots))
    slots.feed(maker)
    with pytest.raises(IndexError):
        model(input_ids=tokens(), decoder_input_ids=torch.full((3, 2), 999))
    model.get_encoder()(input_ids=tokens())
    assert maker.calls == 2


def test_stacks_called_one_by_one_replay_the_prefix_they_had() -> None:
    """A wrapper that passes the model's own call by: the source runs per stack, and backward is still right."""
    gradients = []
    for checkpointed in (False, True):
        model = build("t5").train()
        slots = attach_prefix(model, where=ALL)
        maker = Maker(prefix_for(slots))
        slots.feed(maker)
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        model.forward(**inputs("t5"), use_cache=False).logits.square().mean().backward()
        assert maker.calls == 2
        gradients.append(maker.kv.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_every_layer_of_umt5_has_a_bias_of_its_own() -> None:
    """Equal to a decoder cache that starts with the prefix."""
    torch.manual_seed(0)
    config = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = UMT5ForConditionalGeneration(UMT5Config(**config, dropout_rate=0.0, decoder_start_token_id=0)).eval()
    with torch.no_grad():
        for layer, module in enumerate(attention_of(model, "dec")):
            module.relative_attention_bias.weight.normal_(generator=torch.manual_seed(layer))
    slots = attach_prefix(model)
    kv = prefix_for(slots)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for layer, pair in enumerate(kv):
        cache.self_attention_cache.update(*pair[:, None].expand(-1, 3, -1, -1, -1), layer)
    ones = torch.ones(3, LENGTH + 6, dtype=torch.long)
    expected = model(**inputs("t5"), decoder_attention_mask=ones, past_key_values=cache).logits
    slots.set(kv)
    torch.testing.assert_close(model(**inputs("t5")).logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("where", ["dec", "enc", ALL])
def test_one_configuration_for_both_stacks(where: str, attention: str) -> None:
    """BART's: the stack without a prefix stays the stock one, and padding does not show."""
    torch.manual_seed(0)
    small = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    small |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.0, "init_std": 0.2}
    config = BartConfig(vocab_size=97, **small, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = BartForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    given = inputs("t5", padding("right"))
    stock = model(**given)
    slots = attach_prefix(model, where=where)
    assert slots.shape.layers == {"dec": 3, "enc": 2, ALL: 8}[where]
    slots.set(prefix_for(slots))
    out = model(**given)
    kept = torch.equal(out.encoder_last_hidden_state, stock.encoder_last_hidden_state)
    assert kept == (where == "dec")
    assert (out.logits - stock.logits).abs().max() > 1e-3
    alone = model(input_ids=tokens()[1:2, :4], decoder_input_ids=given["decoder_input_ids"][1:2]).logits
    torch.testing.assert_close(out.logits[1:2], alone, atol=2e-5, rtol=0)
    slots.set(None)
    assert torch.equal(model(**given).logits, stock.logits)
