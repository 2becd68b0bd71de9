"""Tiny random backbones with a merging byte-level tokenizer, saved as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

TEXTS = [
    "The concert continued until 10. Question: did the rain stop? Answer: yes no True False Neither",
    "positive negative sentence Question Answer: the the of in to a and is was for that with 0.0 5.0 3.4",
] * 20


def tiny_tokenizer(*, architecture: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", "</s>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    template = "<s> $A" if architecture == "causal" else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    )
    bos = "<s>" if architecture == "causal" else None
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>", pad_token="<pad>")


def tiny_model(*, architecture: str, vocabulary: int) -> Any:
    # Seeds whose greedy continuations are text: many random models only repeat padding.
    torch.manual_seed(0 if architecture == "causal" else 2)
    if architecture == "causal":
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
            initializer_range=0.3,
        )
        return LlamaForCausalLM(config).eval()
    t5 = T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        initializer_factor=1.0,
    )
    return T5ForConditionalGeneration(t5).eval()


def tiny_backbone(folder: Path, *, architecture: str) -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = tiny_tokenizer(architecture=architecture)
    model = tiny_model(architecture=architecture, vocabulary=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
