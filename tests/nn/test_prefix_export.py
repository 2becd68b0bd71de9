"""A prefix written for peft gives the same logits and the same text in plain peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from prefix_backbones import CAUSAL, LENGTH, build, inputs, padding, positions, prefix_for, tokens
from tiny_backbones import tiny_backbone, tiny_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from mtlbench.api.routing import Routing
from mtlbench.errors import PluginError
from mtlbench.evaluation.lm import RoutedLM
from mtlbench.nn.linears import projection_names
from mtlbench.nn.low_rank.layer import Factors, LowRankLinear, adapt, merge_low_rank
from mtlbench.nn.prefixes.export import export_prefix, save_merged
from mtlbench.nn.prefixes.inject import StaticPrefix, attach_prefix

torch.set_num_threads(1)
KINDS = [
    *((kind, 3) for kind in CAUSAL),
    *(("t5", layers) for layers in (1, 2, 3, 4)),
    *(("flan", layers) for layers in (2, 3)),
]
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


def assert_same_function(model: Any, reloaded: Any) -> None:
    """Logits with padding on either side, and cached decoding of left-padded rows, greedy and with beams."""
    kind = "t5" if model.config.is_encoder_decoder else "llama"
    for side in ("none", "left", "right"):
        mask = padding(side)
        real = slice(None) if kind == "t5" else mask.bool()
        given = inputs(kind, mask)
        assert_close(model(**given).logits[real], reloaded(**given).logits[real])
    given = {"input_ids": tokens(), "attention_mask": padding("left"), "max_new_tokens": 6, "do_sample": False}
    for how in ({}, {"num_beams": 3}):
        assert torch.equal(model.generate(**given, **how), reloaded.generate(**given, **how))


def frozen(make: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return make(config).eval().requires_grad_(False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_plain_peft_gives_the_same_function(kind: str, layers: int, attention: str, tmp_path: Path) -> None:
    model = build(kind, layers=layers, attention=attention)
    slots = attach_prefix(model)
    kv = prefix_for(slots)
    slots.feed(StaticPrefix(kv))
    before = model(**inputs(kind)).logits
    export_prefix(model, kv, tmp_path)
    assert torch.equal(model(**inputs(kind)).logits, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    reloaded = PeftModel.from_pretrained(build(kind, layers=layers, attention=attention), tmp_path).eval()
    assert_same_function(model, reloaded)
    assert reloaded.peft_config["default"].num_layers == len(kv) * (1 if kind in CAUSAL else 2)


@pytest.mark.parametrize("rope", list(ROPES))
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_keys_turn_by_the_angles_of_the_model(kind: str, rope: str, tmp_path: Path) -> None:
    config = {"rope_parameters": {"rope_type": rope, "rope_theta": 500.0, **ROPES[rope]}}
    config["max_position_embeddings"] = 256
    model = build(kind, **config)
    slots = attach_prefix(model)
    kv = prefix_for(slots)
    slots.set(kv)
    export_prefix(model, kv, tmp_path)
    assert_same_function(model, PeftModel.from_pretrained(build(kind, **config), tmp_path).eval())


def test_sixteen_bits(tmp_path: Path) -> None:
    """Keys are turned in float32 before they are rounded: what remains is the rounding of the keys."""
    model = build("llama").bfloat16()
    slots = attach_prefix(model)
    kv = prefix_for(slots)
    slots.set(kv)
    export_prefix(model, kv, tmp_path)
    reloaded = PeftModel.from_pretrained(build("llama").bfloat16(), tmp_path).eval()
    ours, theirs = model(**inputs("llama")).logits, reloaded(**inputs("llama")).logits
    assert (ours - theirs).abs().max() <= 5e-2 * ours.abs().max()


@pytest.mark.parametrize("kind", [*CAUSAL, "t5", "flan"])
def test_a_base_whose_low_rank_part_was_merged(kind: str, tmp_path: Path) -> None:
    """As after training: the merged backbone is an ordinary folder, the prefix an ordinary adapter for it."""
    model = build(kind)

    def make(name: str, base: nn.Linear) -> LowRankLinear:
        draw = torch.manual_seed(len(name))
        start = {"down": torch.randn(2, base.in_features, generator=draw), "up": torch.ones(base.out_features, 2) / 9}
        return LowRankLinear(base, start, lambda p, rows: Factors(down=p["down"], up=p["up"]))

    adapt(model, projection_names(model), make)
    slots = attach_prefix(model)
    kv = prefix_for(slots)
    slots.feed(StaticPrefix(kv))
    with pytest.raises(PluginError, match=r"holds more than its backbone.*Merge its adapters"):
        save_merged(model, tmp_path / "merged")
    merge_low_rank(model)
    save_merged(model, tmp_path / "merged")
    export_prefix(model, kv, tmp_path / "prefix", base=tmp_path / "merged")
    auto = AutoModelForCausalLM if kind in CAUSAL else AutoModelForSeq2SeqLM
    base = auto.from_pretrained(tmp_path / "merged").eval().requires_grad_(False)
    assert set(base.state_dict()) == set(build(kind).state_dict())
    with slots.off():
        merged = model(**inputs(kind)).logits
        assert torch.equal(base(**inputs(kind)).logits, merged)
    assert (build(kind)(**inputs(kind)).logits - merged).abs().max() > 1e-2
    reloaded = PeftModel.from_pretrained(base, tmp_path / "prefix").eval()
    assert reloaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "merged")
    assert_same_function(model, reloaded)


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_lm_eval_gives_the_same_scores_and_text(architecture: str, tmp_path: Path) -> None:
    """Its stock model class on plain peft against ours on the injected prefix, in batches of one and of all."""
    model, tokenizer = tiny_backbone(tmp_path / "base", architecture=architecture)
    slots = attach_prefix(model)
    kv = prefix_for(slots, seed=6)  # one that makes the tiny T5 write something
    slots.set(kv)
    export_prefix(model, kv, tmp_path / "prefix")
    plain = tiny_model(architecture=architecture, vocabulary=len(tokenizer))
    reloaded = PeftModel.from_pretrained(plain, tmp_path / "prefix").eval()
    texts = ["the rain did stop", "yes", "Question: did the concert go on until 10?"]
    pairs = [(text, answer) for text in texts for answer in (" yes", " no")]
    scored = [Instance("loglikelihood", {}, pair, i, metadata=("t", i, 1)) for i, pair in enumerate(pairs)]
    until = {"until": [], "max_gen_toks": 6}
    written = [Instance("generate_until", {}, (text, until), i, metadata=("t", i, 1)) for i, text in enumerate(texts)]
    ours = RoutedLM(
        model,
        tokenizer,
        architecture=architecture,
        routing=Routing(),
        task_ids={"t": 0},
        max_length=100,
        token_budget=999,
    )
    mine = ours.generate_until(written)
    assert any(mine)
    for batch in (1, 4):
        theirs = HFLM(pretrained=reloaded, tokenizer=tokenizer, backend=architecture, batch_size=batch, max_length=100)
        for (one, _), (other, _) in zip(ours.loglikelihood(scored), theirs.loglikelihood(scored), strict=True):
            assert abs(one - other) < 1e-4
        other = theirs.generate_until(written)
        if architecture == "seq2seq":  # it counts the encoder's tokens to the limit and so writes more
            other = [text[: len(start)] for text, start in zip(other, mine, strict=True)]
        assert mine == other


SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BART |= {"vocab_size": 97, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
LONG = {"factor": 2.0, "long_factor": [4.0] * 4, "short_factor": [1.0] * 4, "original_max_position_embeddings": 64}
REFUSED: dict[str, tuple[Any, str]] = {
    "dynamic": (
        lambda: build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "rope_type 'dynamic' has angles that depend on the length",
    ),
    "longrope": (
        lambda: build("llama", rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **LONG}),
        "rope_type 'longrope' has angles that depend on the length",
    ),
    "window": (lambda: frozen(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=8)), "a window of tokens"),
    "learned": (
        lambda: frozen(OPTForCausalLM, OPTConfig(vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32)),
        "undone for rotary positions alone",
    ),
    "partial": (lambda: frozen(PhiForCausalLM, PhiConfig(**SMALL)), "only a part of each key"),
    "interleaved": (lambda: frozen(CohereForCausalLM, CohereConfig(**SMALL)), "layer 0 does not turn its keys"),
    "some layers without": (
        lambda: frozen(SmolLM3ForCausalLM, SmolLM3Config(**SMALL)), "layer 3 does not turn its keys"
    ),
    "learned in the decoder": (
        lambda: frozen(BartForConditionalGeneration, BartConfig(**BART)), "its decoder's are learned"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_positions_that_peft_cannot_move_are_refused(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    model = make()
    slots = attach_prefix(model)
    slots.set(prefix_for(slots))
    with pytest.raises(PluginError, match=f"no standard form: .*{reason}"):
        export_prefix(model, prefix_for(slots), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if make is not REFUSED["learned in the decoder"][0]:
        mask = padding("none")
        model(input_ids=tokens(), attention_mask=mask, position_ids=positions(mask))  # the prefix itself works


@pytest.mark.parametrize(
    ("where", "bias", "rows", "reason"),
    [
        ("enc", "relative", None, "peft has no prefix for enc, only for dec"),
        ("dec+cross", "relative", None, r"peft has no prefix for dec\+cross"),
        ("dec", "zero", None, "bias=zero"),
        ("dec", "relative", 3, "one prefix for all rows"),
    ],
)
def test_prefixes_that_peft_does_not_have_are_refused(
    where: str, bias: str, rows: int | None, reason: str, tmp_path: Path
) -> None:
    model = build("t5")
    slots = attach_prefix(model, where=where, bias=bias)
    with pytest.raises(PluginError, match=f"no standard form: .*{reason}"):
        export_prefix(model, prefix_for(slots, rows=rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prefix_of_another_shape_is_an_error(tmp_path: Path) -> None:
    model = build("llama")
    attach_prefix(model)
    with pytest.raises(ValueError, match="does not fit"):
        export_prefix(model, torch.zeros(2, 2, 2, LENGTH, 8), tmp_path)
