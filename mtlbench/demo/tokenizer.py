"""The byte-level BPE tokenizers of the demo backbones."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mtlbench.demo.grammar import ADVERBS
from mtlbench.demo.lexicon import BAD, COLOURS, GOOD, HE_NAMES, KIND_OF, PARTS, SENSE_OF, SHE_NAMES, SHOWS, VERBS

# Words with the blank before them, single digits, runs of marks, runs of blanks: `3.8` is always `3`, `.`, `8`.
_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SENTINELS = tuple(f"<extra_id_{index}>" for index in range(16))


# Every word of the language and the words prompts are made of get an entry of their own, however rare in the text.
_PROMPTS = (
    "Question", "Answer", "Sentence", "Similarity", "Is", "Do", "Does", "Which", "sentence", "sentences", "question",
    "questions",
    "answer", "response", "mean", "same", "thing", "ask", "make", "sense", "both", "True", "False", "Neither", "yes",
    "no",
    "true", "false", "positive", "negative", "or", "and", "similarity", "answers", "stsb",
)  # fmt: skip


def _vocabulary() -> list[str]:
    verbs = (form for verb in VERBS.values() for form in (verb.base, verb.third, verb.past, verb.participle))
    words = {
        *SENSE_OF,
        *KIND_OF,
        *HE_NAMES,
        *SHE_NAMES,
        *GOOD,
        *BAD,
        *SHOWS,
        *PARTS,
        *ADVERBS,
        *COLOURS,
        *verbs,
        *_PROMPTS,
    }
    openers = (word for word in _PROMPTS if word[0].isupper())
    return [f" {word}" for word in sorted(words)] + [f"{word}" for word in (*HE_NAMES, *SHE_NAMES, *openers)]


def train_tokenizer(texts: Iterable[str], *, size: int, seq2seq: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `size` entries; with `seq2seq` it has sentinels and ends every text with `</s>`."""
    special = ["<pad>", "</s>", *(SENTINELS if seq2seq else ("<s>",))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, _vocabulary() * 30), trainer=trainer)
    if seq2seq:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token=None if seq2seq else "<s>",
        additional_special_tokens=list(SENTINELS) if seq2seq else None,
        model_max_length=1024,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
