"""Prompts pass through the very projections and norms that make keys and values, however a backbone has them."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from mtlbench.backbones.layers import linears_for_conv1d
from mtlbench.nn.prefixes.places import find_places, shape_of
from mtlbench.nn.prefixes.prompts import PromptProjections

SIZE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
TYPES = {
    "llama": SIZE,
    "qwen3": {**SIZE, "head_dim": 8},
    "olmo2": SIZE,
    "cohere": {**SIZE, "use_qk_norm": True},
    "phi": {**SIZE, "qk_layernorm": True},
    "stablelm": {**SIZE, "qk_layernorm": True},
    "phi3": SIZE,
    "gpt_neox": {k: v for k, v in SIZE.items() if k != "num_key_value_heads"},
    "gpt2": GPT,
    "gpt_bigcode": {**GPT, "multi_query": True},
    "gpt_bigcode-heads": {**GPT, "model_type": "gpt_bigcode", "multi_query": False},
}


@pytest.mark.parametrize("name", TYPES)
def test_keys_and_values_of_a_prompt_are_those_that_attention_gets(name):
    words = dict(TYPES[name])
    config = AutoConfig.for_model(words.pop("model_type", name), **words)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for p in model.parameters():  # biases and norms that an untrained model has at zero and one
        p.data.add_(0.1 * torch.randn_like(p))
    linears_for_conv1d(model)
    places = find_places(model, ("dec",))
    heads = shape_of(places).kv_heads
    prompts, seen = torch.randn(2, 3, config.hidden_size), {}

    def look(module, query, key, value, mask, **_):
        seen[module.layer_idx] = torch.stack([key, value])
        return torch.zeros_like(query).transpose(1, 2), None

    def give(module, args, kwargs):
        own = prompts[module.layer_idx].unsqueeze(1)
        return ((own, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": own})

    AttentionInterface.register("look", look)
    model.config._attn_implementation = "look"
    for module in places[0].layers:
        module.register_forward_pre_hook(give, with_kwargs=True)
    projections = PromptProjections(places, heads=heads)
    with torch.no_grad():
        model(input_ids=torch.ones(3, 1, dtype=torch.int64), use_cache=False)  # position 0, where nothing rotates
        flat = projections.linear(prompts, bias=True)
        found = projections.by_head(flat.unsqueeze(2))
    for layer, pair in seen.items():
        torch.testing.assert_close(found[layer, :, 0], pair[:, :, :, 0].transpose(1, 2))
