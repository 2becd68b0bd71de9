"""Whether a checkpoint was trained to generate text, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.compat import is_type, types_that_generate

_OTHER_HEADS = (
    "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM", "PreTraining",
    "NextSentencePrediction", "EncoderModel", "ImageClassification", "AudioClassification", "CTC", "RewardModel",
)  # fmt: skip
"""Ends of the names of classes whose head is no language model's."""
_HEADS = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "MTModel", "DoubleHeadsModel", "WithLMHeadModel")
_ENCODERS = frozenset({
    "albert", "bert", "bert-generation", "big_bird", "camembert", "canine", "convbert", "data2vec-text", "deberta",
    "deberta-v2", "distilbert", "electra", "ernie", "esm", "eurobert", "flaubert", "funnel", "ibert", "layoutlm",
    "layoutlmv2", "layoutlmv3", "longformer", "luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra",
    "nezha", "nomic_bert", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "yoso",
})  # fmt: skip
"""Types that read a text in both directions; some can be made a decoder, which their configuration then says."""
_CAPACITY = frozenset({"switch_transformers", "nllb-moe"})
"""Types whose experts take so many tokens of a batch and drop the rest."""


def why_not_generating(config: Mapping[str, Any]) -> str | None:
    """Why the model of ``config``, the content of a config.json, generates no text; ``None`` where it may.

    transformers would load such a checkpoint all the same: with a head of random weights, or with attention that it
    never had.
    """
    kind, classes = str(config.get("model_type", "")), [str(name) for name in config.get("architectures") or []]
    named = f"{kind or 'its type is unknown'}{', ' + classes[0] if classes else ''}"
    other = next((name for name in classes if name.endswith(_OTHER_HEADS)), None)
    if other is not None and not any(name.endswith(_HEADS) for name in classes):
        return f"({named}) was trained with another head than a language model's"
    if kind in _ENCODERS and not (config.get("is_decoder") or config.get("is_encoder_decoder")):
        return f"({named}) reads a text in both directions and does not continue it"
    if kind in _CAPACITY:
        return f"({named}) drops tokens beyond its experts' capacity, so a row's score depends on the rest of its batch"
    if kind == "rwkv":
        return f"({named}) reads padding as text in transformers, so what it generates depends on its batch"
    if is_type(kind) and (known := types_that_generate()) and kind not in known:
        return f"({named}) is neither a causal language model nor an encoder-decoder"
    return None
