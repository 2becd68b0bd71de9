"""Injection equals peft's prefix tuning where peft can express it, and lives with low-rank adapters on the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig, get_peft_model
from prefix_backbones import (
    ALL,
    CAUSAL,
    LENGTH,
    Maker,
    build,
    inputs,
    naive,
    padding,
    positions,
    prefix_for,
    rotated,
    tokens,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mtlbench.nn.linears import projection_names
from mtlbench.nn.low_rank.layer import Factors, LowRankLinear, adapt, merge_low_rank
from mtlbench.nn.prefixes.inject import PrefixSlots, StaticPrefix, attach_prefix
from mtlbench.training.gradients import checkpointing

torch.set_num_threads(1)
GOLDENS = Path(__file__).parents[1] / "goldens"


def through_peft(model: Any, slots: PrefixSlots, kv: Tensor) -> tuple[Any, Tensor]:
    """``model`` under peft's prefix tuning with the weights of ``kv [layers, 2, heads, length, size]``."""
    layers, heads, size = slots.shape
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    sizes = {"num_virtual_tokens": LENGTH, "num_layers": layers, "token_dim": heads * size}
    wrapped = get_peft_model(model, PrefixTuningConfig(task_type=kind, **sizes, num_attention_heads=heads))
    weight = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(kv.permute(3, 0, 1, 2, 4).reshape(LENGTH, -1))
    return wrapped.eval(), weight


def pairs_of_t5(kv: Tensor) -> Tensor:
    """What decoder layer l sees when peft is given ``kv``: pair 2l, counted around."""
    layers = len(kv)
    return kv[[(2 * layer) % layers for layer in range(layers)]]


def gradient(logits: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(logits.float().square().mean(), of)
    return found


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
    torch.testing.assert_close(rotated(kv, -LENGTH), torch.tensor(golden["kv_noshift"]), atol=1e-12, rtol=0)
    mask, before = torch.tensor(golden["attention_mask"]), torch.tensor(golden["position_ids_before_shift"])
    # the model's own cosines are float32: 1e-6 remain
    for prefix, at in ((kv, before + LENGTH), (rotated(kv, -LENGTH), before)):
        slots.set(prefix)
        logits = model(input_ids=torch.tensor(golden["input_ids"]), attention_mask=mask, position_ids=at).logits
        real = mask.bool()
        torch.testing.assert_close(logits[real], torch.tensor(golden["logits"])[real], atol=5e-6, rtol=0)
        (found,) = torch.autograd.grad((logits * torch.tensor(golden["cotangent"])).sum(), flat, retain_graph=True)
        torch.testing.assert_close(found, torch.tensor(golden["grad/prompt_embeddings"]), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_equals_peft_prefix_tuning(kind: str, attention: str, dtype: torch.dtype) -> None:
    """Bit for bit, gradients too, with tokens shifted as peft does; else with the keys rotated back."""
    model = build(kind, attention=attention).to(dtype)
    slots = attach_prefix(model)
    kv = prefix_for(slots).requires_grad_()
    wrapped, weight = through_peft(build(kind, attention=attention).to(dtype), slots, kv)
    for side in ("none", "left", "right"):
        mask = padding(side)
        real, given = mask.bool(), {"input_ids": tokens(), "attention_mask": mask}
        expected = wrapped(**given, position_ids=positions(mask)).logits[real]
        slots.set(kv)
        shifted = model(**given, position_ids=positions(mask) + LENGTH).logits[real]
        assert torch.equal(shifted, expected)
        layers, heads, size = slots.shape
        theirs = gradient(expected, weight).view(LENGTH, layers, 2, heads, size).permute(1, 2, 3, 0, 4)
        assert torch.equal(gradient(shifted, kv), theirs)
        slots.set(rotated(kv, -LENGTH))
        here = model(**given, position_ids=positions(mask)).logits[real]
        tolerance = 2e-6 if dtype == torch.float32 else 5e-2
        assert (here - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_equals_what_peft_makes_of_a_t5_prefix(layers: int, attention: str, dtype: torch.dtype) -> None:
    """Its layers share pairs when they are even in number, and the other pairs get no gradient."""
    model = build("t5", attention=attention, layers=layers).to(dtype)
    slots = attach_prefix(model)
    kv = prefix_for(slots).requires_grad_()
    wrapped, weight = through_peft(build("t5", attention=attention, layers=layers).to(dtype), slots, kv)
    given = inputs("t5", padding("left"))
    expected = wrapped(**given).logits
    slots.set(pairs_of_t5(kv))
    logits = model(**given).logits
    assert torch.equal(logits, expected)
    _, heads, size = slots.shape
    theirs = gradient(expected, weight).view(LENGTH, layers, 2, heads, size).permute(1, 2, 3, 0, 4)
    ours = gradient(logits, kv)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
    live = theirs.abs().amax(dim=(1, 2, 3, 4)) > 0
    assert live.tolist() == [layers % 2 == 1 or pair % 2 == 0 for pair in range(layers)]
    made = model.generate(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=6)
    theirs = wrapped.generate(input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=6)
    assert torch.equal(made, theirs)


def with_ours(model: Any) -> Any:
    def make(name: str, base: torch.nn.Linear) -> LowRankLinear:
        draw = torch.manual_seed(len(name))
        start = {
            "down": torch.randn(2, base.in_features, generator=draw),
            "up": torch.zeros(base.out_features, 2),
        }
        return LowRankLinear(base, start, lambda p, rows: Factors(down=p["down"], up=p["up"]))

    adapt(model, projection_names(model), make)
    return model


def with_lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=list(projection_names(model))))


def with_adalora(model: Any) -> Any:
    ranks = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1, "total_step": 10}
    return get_peft_model(model, AdaLoraConfig(**ranks, target_modules=list(projection_names(model))))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("add", [with_ours, with_lora, with_adalora])
@pytest.mark.parametrize(("kind", "where"), [("qwen3", "dec"), ("flan", ALL)])
def test_trains_beside_low_rank_adapters_and_survives_their_merge(
    kind: str, where: str, add: Any, checkpointed: bool
) -> None:
    model = build(kind)
    torch.manual_seed(1)
    whole = add(model)  # peft freezes everything but its own: the prefix comes after
    slots = attach_prefix(model, where=where)
    maker = Maker(prefix_for(slots), dropout=0.0)
    slots.feed(maker)
    given = inputs(kind, padding("left"))
    labels = tokens(length=given.get("decoder_input_ids", tokens()).shape[1], seed=6)
    trained = {name: p for name, p in whole.named_parameters() if p.requires_grad}
    assert any("lora" in name or name.endswith(".up") for name in trained)
    assert any(name.endswith("mtlbench_prefix.source.kv") for name in trained)
    start = {name: p.detach().clone() for name, p in trained.items()}
    optimizer, losses = torch.optim.Adam(trained.values(), lr=2e-2), []
    whole.train()
    for step in range(10):
        with checkpointing(model) if checkpointed else torch.enable_grad():
            logits = whole(**given, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            loss.backward()
        optimizer.step()
        if add is with_adalora:
            whole.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    moved = {name for name, p in trained.items() if not torch.equal(p, start[name])}
    assert moved >= {name for name in trained if "ranknum" not in name and "lora_E" not in name}
    whole.eval()
    slots.feed(StaticPrefix(maker().detach()))
    before = whole(**given).logits
    if add is with_ours:
        merge_low_rank(model)
    else:
        whole.merge_and_unload()
    after = model(**given).logits
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    if where == "dec":
        made = model.generate(tokens(), attention_mask=padding("left"), max_new_tokens=4, do_sample=False)
        assert torch.equal(made, naive(model, tokens(), padding("left"), 4))


def test_two_prefix_modules_of_peft_would_freeze_the_adapter_ours_does_not() -> None:
    """Why injection is not peft's: nesting a prefix in peft freezes LoRA without a word."""
    nested, _ = through_peft(with_lora(build("llama")), attach_prefix(build("llama")), torch.zeros(3, 2, 2, LENGTH, 8))
    assert not [name for name, p in nested.named_parameters() if p.requires_grad and "lora" in name]
    model = build("llama")
    whole = with_lora(model)
    attach_prefix(model)
    assert [name for name, p in whole.named_parameters() if p.requires_grad and "lora" in name]
