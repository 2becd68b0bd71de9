"""Log-likelihood requests of made-up words whose lengths are those of real tasks, and a tokenizer for them.

Lengths in bytes are those of lm-eval's prompts on the public data: prompt with answer, median and 95th percentile, and
the median answer. Prompts have lm-eval's own words around the made-up ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

BYTES = (3, 12)
"""Shortest and longest made-up word."""


@dataclass(frozen=True)
class Question:
    """How the requests of a task look."""

    median: int
    """Bytes of prompt and answer."""
    high: int
    """Their 95th percentile."""
    choices: tuple[str, ...] | tuple[int, int]
    """The answers, or how many and the median of their bytes."""
    prompt: str
    """``{}`` is where the made-up text goes."""
    inputs: bool = False
    """The choices are contexts, with one continuation."""


GLUE = {
    "cola": Question(89, 136, (" no", " yes"), "{}\nQuestion: Does this sentence make sense?\nAnswer:"),
    "sst2": Question(
        105, 205, (" negative", " positive"), "{}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    ),
    "mrpc": Question(
        319, 434, (" no", " yes"), "Sentence: {}\nQuestion: Do both sentences mean the same thing?\nAnswer:"
    ),
    "qqp": Question(
        189, 310, (" no", " yes"), "Question 1: {}\nQuestion: Do both questions ask the same thing?\nAnswer:"
    ),
    "mnli": Question(210, 413, (" True", " Neither", " False"), "{}\nQuestion: True, False or Neither?\nAnswer:"),
    "qnli": Question(273, 442, (" yes", " no"), "{}\nQuestion: Does this response answer the question?\nAnswer:"),
    "rte": Question(287, 812, (" True", " False"), "{}\nQuestion: True or False?\nAnswer:"),
    "wnli": Question(168, 344, (" False", " True"), "{}\nQuestion: True or False?\nAnswer:"),
}
COMMONSENSE = {
    "boolq": Question(618, 1241, (" no", " yes"), "{}?\nAnswer:"),
    "piqa": Question(120, 359, (2, 62), "Question: {}\nAnswer:"),
    "social_iqa": Question(132, 181, (3, 18), "Q: {}\nA:"),
    "hellaswag": Question(189, 313, (4, 58), "{}"),
    "winogrande": Question(102, 139, (2, 22), "{}", inputs=True),
    "arc_easy": Question(132, 290, (4, 20), "Question: {}\nAnswer:"),
    "arc_challenge": Question(154, 339, (4, 26), "Question: {}\nAnswer:"),
    "openbookqa": Question(68, 135, (4, 14), "{}"),
}
SUBJECTS = {"anatomy": (302, 454), "other": (360, 700)}
"""MMLU: bytes of a question with its choices, median and 95th percentile; ``other`` is a longer one than anatomy."""


class WordSampler:
    """Draws text: words with a Zipf distribution, as natural language has."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self._words = _lexicon()
        weights = 1 / (np.arange(len(self._words)) + 2.7)
        self._weights = weights / weights.sum()

    def text(self, size: float) -> str:
        """About ``size`` bytes."""
        count = max(1, round(size / 5.7))
        drawn = self.random.choice(len(self._words), size=count, p=self._weights)
        return " ".join(self._words[i] for i in drawn)

    def size(self, median: float, high: float) -> float:
        """Bytes drawn from a log-normal distribution with that median and 95th percentile."""
        spread = np.log(high / median) / 1.645
        return float(median * np.exp(spread * np.clip(self.random.standard_normal(), -2.5, 2.5)))


def mix(documents: int, *, seed: int = 0) -> list[Instance]:
    """Requests of ``documents`` documents of each task of GLUE (without STS-B) and of the commonsense suite."""
    words, made = WordSampler(seed), []
    for task, kind in {**GLUE, **COMMONSENSE}.items():
        for document in range(documents):
            pairs = _pairs(kind, words)
            made += [_request(task, document, number, pair) for number, pair in enumerate(pairs)]
    return made


def mmlu(questions: int, *, seed: int = 0) -> list[Instance]:
    """Five-shot requests of ``questions`` questions of each of :data:`SUBJECTS`."""
    words, made = WordSampler(seed), []
    for subject, (median, high) in SUBJECTS.items():
        title = subject.replace("_", " ")
        start = f"The following are multiple choice questions (with answers) about {title}.\n\n"
        shots = "".join(f"{_question(words, median, high)} {words.random.choice([*'ABCD'])}\n\n" for _ in range(5))
        for document in range(questions):
            context = start + shots + _question(words, median, high)
            made += [
                _request(f"mmlu_{subject}", document, n, (context, f" {letter}")) for n, letter in enumerate("ABCD")
            ]
    return made


def written(questions: int, *, seed: int = 0, tokens: int = 8) -> list[Instance]:
    """The same questions answered in ``tokens`` written tokens, or up to the end of the line."""
    asked = {(r.task_name, r.doc_id): r.args[0] for r in mmlu(questions, seed=seed)}
    settings = {"until": ["\n"], "max_gen_toks": tokens, "do_sample": False}
    return [
        Instance("generate_until", {}, (context, dict(settings)), 0, metadata=(task, document, 1))
        for (task, document), context in asked.items()
    ]


def make_tokenizer(vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of ``vocabulary`` entries, trained on such text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = WordSampler(seed=100)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [kind.prompt + "".join(map(str, kind.choices)) for kind in {**GLUE, **COMMONSENSE}.values()]
    texts = [words.text(400) for _ in range(3000)] + prompts * 50 + [" A B C D"] * 50 + _lexicon()
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=4096
    )


def _pairs(kind: Question, words: WordSampler) -> list[tuple[str, str]]:
    """Contexts and continuations of one document."""
    if isinstance(kind.choices[0], str):
        answers = [str(choice) for choice in kind.choices]
    else:
        count, size = int(kind.choices[0]), float(kind.choices[1])
        answers = [f" {words.text(words.size(size, 1.8 * size))}" for _ in range(count)]
    rest = max(map(len, answers)) + len(kind.prompt)
    prompt = kind.prompt.format(words.text(max(10.0, words.size(kind.median, kind.high) - rest)))
    if kind.inputs:
        names = [words.text(6) for _ in answers]
        return [(f"{prompt} {name}", answers[0]) for name in names]
    return [(prompt, answer) for answer in answers]


def _question(words: WordSampler, median: int, high: int) -> str:
    size = words.size(median, high) - 25
    choices = "\n".join(f"{letter}. {words.text(max(6.0, size / 10))}" for letter in "ABCD")
    return f"{words.text(max(20.0, size * 0.6))}\n{choices}\nAnswer:"


def _request(task: str, document: int, number: int, pair: tuple[str, str]) -> Instance:
    return Instance("loglikelihood", {}, pair, number, metadata=(task, document, 1))


@cache
def _lexicon() -> list[str]:
    """20,000 words of letters with the frequencies of English."""
    random = np.random.default_rng(7)
    letters = np.array([*"etaoinshrdlcumwfgypbvkjxqz"])
    chances = 1 / (np.arange(26) + 3.0)
    words: dict[str, None] = {}
    while len(words) < 20_000:
        length = int(np.clip(random.poisson(3.7 + len(words) / 8000) + 1, 1, BYTES[1]))
        words["".join(random.choice(letters, length, p=chances / chances.sum()))] = None
    return list(words)
