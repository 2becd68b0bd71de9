"""The shapes of the demo backbones."""

from __future__ import annotations

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 2048
MAX_LENGTH = 1024


def build(tokenizer: PreTrainedTokenizerFast, *, seq2seq: bool) -> PreTrainedModel:
    """An untrained backbone: Llama (1.1 million parameters), or with `seq2seq` T5 (2.1 million)."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if seq2seq:
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=VOCABULARY,
                d_model=192,
                d_kv=32,
                d_ff=512,
                num_layers=2,
                num_decoder_layers=2,
                num_heads=6,
                dropout_rate=0.0,
                n_positions=MAX_LENGTH,
                pad_token_id=pad,
                eos_token_id=eos,
                decoder_start_token_id=pad,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=eos,
        )
    )
