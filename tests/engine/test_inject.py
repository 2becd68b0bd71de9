"""Prefix injection equals peft's prefix tuning and an explicit loop, and leaves the stock model alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mtlbench.engine.inject import PrefixSlots, StaticPrefix, attach_prefix
from mtlbench.errors import RequestError

torch.set_num_threads(1)
GOLDENS = Path(__file__).parents[1] / "goldens"
LENGTH = 5
CAUSAL = ("llama", "qwen2", "qwen3")


def build(kind: str, *, attention: str = "sdpa", layers: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    common = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers}
    common |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    common |= {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": 1}
    if kind == "t5":
        config = T5Config(
            vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=layers, num_heads=4,
            dropout_rate=0.0, decoder_start_token_id=0, eos_token_id=None, initializer_factor=1.0,
        )  # fmt: skip
        model: nn.Module = T5ForConditionalGeneration(config)
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**common, head_dim=16))
    model.set_attn_implementation(attention)
    return model.requires_grad_(False).eval()


def prefix_for(slots: PrefixSlots, *, rows: int | None = None, seed: int = 1) -> Tensor:
    layers, heads, size = slots.shape
    shape = (layers, 2, heads, LENGTH, size) if rows is None else (layers, 2, rows, heads, LENGTH, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(rows: int = 3, length: int = 7, seed: int = 2) -> Tensor:
    return torch.randint(2, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def padding(side: str) -> Tensor:
    mask = torch.ones(3, 7, dtype=torch.long)
    if side == "left":
        mask[1, :3] = 0
        mask[2, :1] = 0
    if side == "right":
        mask[1, 4:] = 0
    return mask


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def rotate(keys: Tensor, by: int, theta: float = 10000.0) -> Tensor:
    """Half-split rotary rotation by ``by`` positions; frequencies in float32, as the models keep them."""
    half = keys.shape[-1] // 2
    angle = by * (theta ** (-torch.arange(half, dtype=torch.float32) / half)).to(keys.dtype)
    a, b = keys[..., :half], keys[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def inputs(kind: str, mask: Tensor | None = None) -> dict[str, Tensor]:
    mask = padding("none") if mask is None else mask
    if kind == "t5":
        return {"input_ids": tokens(), "attention_mask": mask, "decoder_input_ids": tokens(length=6, seed=3)}
    return {"input_ids": tokens(), "attention_mask": mask, "position_ids": positions(mask)}


class Maker(nn.Module):
    """A prefix made by trainable parts, with dropout and a count of its calls."""

    def __init__(self, kv: Tensor) -> None:
        super().__init__()
        self.kv = nn.Parameter(kv)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.drop = nn.Dropout(0.5)
        self.calls = 0

    def forward(self) -> Tensor:
        self.calls += 1
        return self.drop(self.kv * self.gain)


def test_equals_the_golden_of_peft_prefix_tuning() -> None:
    golden = np.load(GOLDENS / "prefix_peft_layout.npz")
    config = json.loads((GOLDENS / "prefix_peft_layout.json").read_text())["config"]
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(**small, vocab_size=97, num_key_value_heads=2, rope_theta=config["rope_theta"])
    ).double()
    state = {k.removeprefix("model/"): torch.tensor(golden[k]) for k in golden.files if k.startswith("model/")}
    model.load_state_dict(state, strict=True)
    model.requires_grad_(False).eval()
    slots = attach_prefix(model)
    flat = torch.tensor(golden["prompt_embeddings"], requires_grad=True)
    kv = flat.view(LENGTH, 3, 2, 2, 8).permute(1, 2, 3, 0, 4)
    assert torch.equal(kv, torch.tensor(golden["kv"]))
    rotated = torch.stack([rotate(kv[:, 0], -LENGTH), kv[:, 1]], dim=1)
    torch.testing.assert_close(rotated, torch.tensor(golden["kv_noshift"]), atol=1e-12, rtol=0)
    mask, before = torch.tensor(golden["attention_mask"]), torch.tensor(golden["position_ids_before_shift"])
    for prefix, at in ((kv, before + LENGTH), (rotated, before)):  # the model's own cosines are float32: 1e-6 remain
        slots.set(prefix)
        logits = model(input_ids=torch.tensor(golden["input_ids"]), attention_mask=mask, position_ids=at).logits
        real = mask.bool()
        torch.testing.assert_close(logits[real], torch.tensor(golden["logits"])[real], atol=5e-6, rtol=0)
        (gradient,) = torch.autograd.grad((logits * torch.tensor(golden["cotangent"])).sum(), flat, retain_graph=True)
        torch.testing.assert_close(gradient, torch.tensor(golden["grad/prompt_embeddings"]), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_equals_a_cache_that_starts_with_the_prefix(kind: str, attention: str, side: str) -> None:
    """The layout of peft: the same keys in a cache, real tokens shifted by the prefix length."""
    from transformers import DynamicCache

    model, mask = build(kind, attention=attention), padding(side)
    cache = DynamicCache()
    slots = attach_prefix(model)
    kv = prefix_for(slots)
    for layer in range(slots.shape.layers):
        cache.update(*kv[layer][:, None].expand(-1, 3, -1, -1, -1), layer)
    extended = torch.cat([torch.ones(3, LENGTH, dtype=torch.long), mask], dim=1)
    shifted = positions(mask) + LENGTH
    expected = model(input_ids=tokens(), attention_mask=extended, position_ids=shifted, past_key_values=cache).logits
    slots.set(kv)
    shift = model(input_ids=tokens(), attention_mask=mask, position_ids=shifted).logits
    torch.testing.assert_close(shift[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=0)
    slots.set(torch.stack([rotate(kv[:, 0], -LENGTH), kv[:, 1]], dim=1))
    rotated = model(input_ids=tokens(), attention_mask=mask, position_ids=positions(mask)).logits
    torch.testing.assert_close(rotated[mask.bool()], expected[mask.bool()], atol=5e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [*CAUSAL, "t5"])
def test_without_a_prefix_the_model_is_the_stock_model_bit_for_bit(kind: str, attention: str) -> None:
    model = build(kind, attention=attention)
    expected = model(**inputs(kind)).logits
    slots = attach_prefix(model)
    assert torch.equal(model(**inputs(kind)).logits, expected)
    slots.set(prefix_for(slots))
    assert (model(**inputs(kind)).logits - expected).abs().max() > 1e-2
    slots.set(None)
    assert torch.equal(model(**inputs(kind)).logits, expected)


@pytest.mark.parametrize("kind", [*CAUSAL, "t5"])
def test_padding_never_shows(kind: str) -> None:
    model = build(kind)
    slots = attach_prefix(model)
    slots.set(prefix_for(slots))
    mask = padding("left")
    padded = model(**inputs(kind, mask)).logits
    for row in range(3):
        real = mask[row].bool()
        alone = {"input_ids": tokens()[row : row + 1, real]}
        if kind == "t5":
            alone["decoder_input_ids"] = tokens(length=6, seed=3)[row : row + 1]
            torch.testing.assert_close(padded[row : row + 1], model(**alone).logits, atol=2e-5, rtol=0)
        else:
            torch.testing.assert_close(padded[row, real], model(**alone).logits[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_source_runs_once_per_forward_and_drops_only_in_training(kind: str) -> None:
    model = build(kind)
    slots = attach_prefix(model)
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
@pytest.mark.parametrize("kind", [*CAUSAL, "t5"])
def test_gradients_are_the_same_with_checkpointed_layers(kind: str, attention: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = build(kind, attention=attention)
        slots = attach_prefix(model)
        maker = Maker(prefix_for(slots))
        slots.feed(maker)
        model.train()
        maker.drop.p = 0.0
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**inputs(kind, padding("left")), use_cache=False).logits.square().mean().backward()
        assert maker.calls == 1
        assert maker.kv.grad is not None and maker.kv.grad.abs().sum() > 0
        gradients.append((maker.kv.grad, maker.gain.grad))
    for plain, replayed in zip(*gradients, strict=True):
        torch.testing.assert_close(replayed, plain, atol=1e-6, rtol=1e-5)


def naive(model: nn.Module, given: dict[str, Tensor], steps: int) -> Tensor:
    """Greedy decoding without any cache."""
    given = dict(given)
    for _ in range(steps):
        ids, mask = given["input_ids"], given["attention_mask"]
        if "decoder_input_ids" in given:
            out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=given["decoder_input_ids"])
            chosen = out.logits[:, -1].argmax(-1, keepdim=True)
            given["decoder_input_ids"] = torch.cat([given["decoder_input_ids"], chosen], dim=1)
            continue
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
        given["input_ids"] = torch.cat([ids, out.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        given["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return given["decoder_input_ids"] if "decoder_input_ids" in given else given["input_ids"]


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("mode", ["dynamic", "no_cache", "static"])
@pytest.mark.parametrize("kind", [*CAUSAL, "t5"])
def test_generation_equals_a_loop_without_cache(kind: str, mode: str, per_row: bool) -> None:
    model = build(kind)
    slots = attach_prefix(model)
    slots.set(prefix_for(slots, rows=3 if per_row else None))
    how = {"dynamic": {}, "no_cache": {"use_cache": False}, "static": {"cache_implementation": "static"}}[mode]
    for side in ("none", "left"):
        given = {"input_ids": tokens(), "attention_mask": padding(side)}
        loop = dict(given)
        if kind == "t5":
            loop["decoder_input_ids"] = torch.zeros(3, 1, dtype=torch.long)
        made = model.generate(**given, max_new_tokens=6, do_sample=False, **how)
        assert torch.equal(made, naive(model, loop, 6))


@pytest.mark.parametrize("kind", [*CAUSAL, "t5"])
def test_beams_of_a_batch_equal_beams_of_each_row(kind: str) -> None:
    model = build(kind)
    slots = attach_prefix(model)
    kv, mask = prefix_for(slots, rows=3), padding("left")
    slots.set(kv)
    made = model.generate(tokens(), attention_mask=mask, max_new_tokens=5, num_beams=3, do_sample=False)
    for row in range(3):
        real = mask[row].bool()
        slots.set(kv[:, :, row])
        alone = model.generate(
            tokens()[row : row + 1, real], attention_mask=mask[row : row + 1, real], max_new_tokens=5, num_beams=3,
            use_cache=False, do_sample=False,
        )  # fmt: skip
        assert torch.equal(made[row, -5:], alone[0, -5:])


def test_a_different_prefix_per_row_equals_a_loop_over_rows() -> None:
    model = build("llama")
    slots = attach_prefix(model)
    kv = prefix_for(slots, rows=3)
    slots.set(kv)
    batch = model(**inputs("llama")).logits
    for row in range(3):
        slots.set(kv[:, :, row])
        torch.testing.assert_close(batch[row], model(**inputs("llama")).logits[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", ["relative", "zero"])
def test_t5_bias_of_the_prefix(bias: str) -> None:
    """Relative is what a decoder cache that starts with the prefix computes; eager and sdpa agree."""
    from transformers import DynamicCache, EncoderDecoderCache

    logits = {}
    for attention in ("sdpa", "eager"):
        model = build("t5", attention=attention)
        slots = attach_prefix(model, bias=bias)
        kv = prefix_for(slots)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for layer in range(slots.shape.layers):
            cache.self_attention_cache.update(*kv[layer][:, None].expand(-1, 3, -1, -1, -1), layer)
        ones = torch.ones(3, LENGTH + 6, dtype=torch.long)
        through_cache = model(**inputs("t5"), decoder_attention_mask=ones, past_key_values=cache).logits
        slots.set(kv)
        logits[attention] = model(**inputs("t5")).logits
        close = torch.allclose(logits[attention], through_cache, atol=2e-5, rtol=0)
        assert close == (bias == "relative")
    torch.testing.assert_close(logits["sdpa"], logits["eager"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("static", [False, True])
def test_t5_bias_of_the_prefix_counts_cached_tokens(static: bool) -> None:
    from transformers import DynamicCache, EncoderDecoderCache, StaticCache

    model = build("t5")
    with torch.no_grad():
        model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(10)
    slots = attach_prefix(model, bias="relative")
    slots.set(prefix_for(slots))
    given = inputs("t5")
    decoder = given.pop("decoder_input_ids")
    whole = model(**given, decoder_input_ids=decoder).logits
    own = StaticCache(config=model.decoder.config, max_cache_len=9) if static else DynamicCache()
    cache = EncoderDecoderCache(own, DynamicCache())
    for part in (decoder[:, :3], decoder[:, 3:5], decoder[:, 5:]):
        last = model(**given, decoder_input_ids=part, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(last, whole[:, 5:], atol=2e-5, rtol=0)


def test_t5_encoder_alone_and_given_encoder_outputs() -> None:
    model = build("t5")
    given = inputs("t5", padding("right"))
    encoded = model.get_encoder()(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
    slots = attach_prefix(model)
    slots.feed(StaticPrefix(prefix_for(slots)))
    whole = model(**given).logits
    again = model.get_encoder()(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
    assert torch.equal(again.last_hidden_state, encoded.last_hidden_state)
    del given["input_ids"]
    assert torch.equal(model(**given, encoder_outputs=again).logits, whole)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_bf16_model_with_a_float32_prefix(kind: str) -> None:
    model = build(kind).bfloat16()
    slots = attach_prefix(model)
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


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_copies_of_a_model_share_no_prefix(kind: str) -> None:
    model = build(kind)
    slots = attach_prefix(model)
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
    with pytest.raises(RequestError, match=r"'enc' is not supported. Known: dec"):
        attach_prefix(build("t5"), where="enc")
    with pytest.raises(RequestError, match=r"'rel' is unknown. Known: relative, zero"):
        attach_prefix(build("t5"), bias="rel")
    flash = build("llama")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(RequestError, match="'flash_attention_2'"):
        attach_prefix(flash)
    model = build("llama")
    slots = attach_prefix(model)
    with pytest.raises(RequestError, match="already has a prefix"):
        attach_prefix(model)
    with pytest.raises(ValueError, match="does not fit"):
        slots.set(torch.zeros(3, 2, 4, LENGTH, 8))
