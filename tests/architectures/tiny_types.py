"""Tiny random models of every type that the matrix of architectures tries, with the tokenizer of a demo backbone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from mtlbench.backbones.names import BACKBONES

IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SIZE = {
    "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = {**SIZE, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
GPT = {"vocab_size": 2048, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
T5 = {
    "vocab_size": 2048, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 2048, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 256,
    "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip

TYPES: Mapping[str, Mapping[str, Any]] = {
    # decoders of one kind of layer
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 16},
    "qwen2": SIZE | {"num_key_value_heads": 2},
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": {**LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {**LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "phi": {**SIZE, "partial_rotary_factor": 0.5},
    "phi3": {**SIZE, "num_key_value_heads": 2},
    "granite": {**SIZE, "num_key_value_heads": 2},
    "glm": {**LLAMA, "partial_rotary_factor": 0.5},
    "olmo": {**SIZE, "num_key_value_heads": 2},
    "olmo2": {**SIZE, "num_key_value_heads": 2},
    "olmo3": {**SIZE, "num_key_value_heads": 2, "sliding_window": 16},
    "cohere": {**SIZE, "num_key_value_heads": 2},
    "cohere2": {**SIZE, "num_key_value_heads": 2, "sliding_window": 16},
    "smollm3": {**SIZE, "num_key_value_heads": 2},
    "stablelm": {**SIZE, "num_key_value_heads": 2},
    "starcoder2": {**SIZE, "num_key_value_heads": 2},
    # older decoders
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {
        "vocab_size": 2048, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 256, "attention_types": [[["global", "local"], 1]], "window_size": 16,
    },
    "gptj": {**GPT, "rotary_dim": 4, "n_inner": 48, "tie_word_embeddings": False},
    "gpt_neox": SIZE,
    "bloom": {"vocab_size": 2048, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {
        "vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": True,
        "parallel_attn": True, "new_decoder_architecture": False, "bias": False,
    },
    "opt": {**SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "mpt": {"vocab_size": 2048, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256, "expansion_ratio": 2},
    # mixtures of experts, latent attention
    "deepseek_v2": {**SIZE, "num_key_value_heads": 4, **LATENT, "topk_method": "greedy"},
    "deepseek_v3": {**SIZE, "num_key_value_heads": 4, **LATENT},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**SIZE, "num_key_value_heads": 2, **EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**LLAMA, **EXPERTS},
    "olmoe": {**SIZE, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    # states instead of attention, and both
    "mamba": {**SIZE, "state_size": 8},
    "jamba": {
        **SIZE, "num_key_value_heads": 2, "mamba_d_state": 8, "num_experts": 4, "num_experts_per_tok": 2,
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "bamba": {**SIZE, "num_key_value_heads": 2, "attn_layer_indices": [1], **MAMBA2},
    "falcon_h1": {**LLAMA, **MAMBA2, "mamba_d_ssm": 64},
    "qwen3_next": {
        **LLAMA, **EXPERTS, "shared_expert_intermediate_size": 24, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "lfm2": {**SIZE, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    # encoder-decoders
    "t5": T5,
    "t5-gated": {**T5, "model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": T5,
    "umt5": T5,
    "bart": BART,
    "mbart": BART,
    "pegasus": BART,
    "blenderbot": BART,
    "marian": BART,
    "m2m_100": BART,
    "led": {**BART, "max_encoder_position_embeddings": 512, "max_decoder_position_embeddings": 256,
            "attention_window": 16},
    "longt5": {**T5, "local_radius": 8},
}  # fmt: skip
"""Name to the fields of its configuration that make it small; the name is the model type unless a field says another."""

UNSUITED: Mapping[str, tuple[str, str]] = {
    "bert": ("bert", "AutoModel"),
    "roberta": ("roberta", "AutoModelForMaskedLM"),
    "deberta-v2": ("deberta-v2", "AutoModel"),
    "modernbert": ("modernbert", "AutoModelForMaskedLM"),
    "bert-classifier": ("bert", "AutoModelForSequenceClassification"),
    "roberta-classifier": ("roberta", "AutoModelForSequenceClassification"),
    "llama-classifier": ("llama", "AutoModelForSequenceClassification"),
    "t5-encoder": ("t5", "T5EncoderModel"),
    "rwkv": ("rwkv", "AutoModelForCausalLM"),
    "switch": ("switch_transformers", "AutoModelForSeq2SeqLM"),
}
"""Checkpoints that were not trained to generate text, or cannot row by row: name to type and class."""


OTHERS: Mapping[str, Mapping[str, Any]] = {
    "rwkv": {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "switch_transformers": {**T5, "num_experts": 4, "expert_capacity": 64},
}


def tiny_config(name: str) -> Any:
    """The configuration of a type."""
    own = dict(TYPES.get(name) or OTHERS.get(name) or SIZE)
    return AutoConfig.for_model(own.pop("model_type", name), **{**IDS, **own})


def tiny_model(name: str, folder: Path) -> Path:
    """Write a random model of the type or checkpoint ``name`` with a tokenizer to ``folder``."""
    torch.manual_seed(0)
    kind, head = UNSUITED.get(name, (name, ""))
    config = tiny_config(kind)
    head = head or ("AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM")
    auto = getattr(transformers, head)
    model = auto.from_config(config) if head.startswith("Auto") else auto(config)
    model.save_pretrained(folder)
    demo = BACKBONES / ("demo-t5" if config.is_encoder_decoder else "demo")
    for path in demo.glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder
