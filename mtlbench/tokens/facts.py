"""What is known of a row beside its tokens: how much of its prompt is cut, and which question it asks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mtlbench.api.row_checks import SplitCounts
from mtlbench.data.examples import prompt_of, question, requests_of
from mtlbench.data.lm_task import quiet_lm_eval
from mtlbench.errors import DataError
from mtlbench.tokens.encode import Tokens, encode_pairs, encode_prompts, encode_texts, fit

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask

Chat = Callable[..., str] | None
"""Renders turns as a prompt, where a chat template is applied."""
Keep = Callable[[Sequence[str], Tokens, Tokens], None]
MAX_NEW_TOKENS = 256
"""lm-eval's default limit of generated tokens."""


def _drop(texts: Sequence[str], context: Tokens, answer: Tokens) -> None: ...


class RowFacts(NamedTuple):
    """Of one training or evaluation row."""

    cut: int
    """Tokens that the prompt lost on the left; of several requests of a row the most."""
    into_question: bool
    """Whether these include tokens of the question itself, not only of few-shot examples before it."""
    question: int
    """Digest of prompt and choices, without few-shot examples."""


def counts_of(facts: Sequence[RowFacts]) -> SplitCounts:
    """How many rows are cut, and how many of them lost a part of the question."""
    cut = [row for row in facts if row.cut]
    return SplitCounts(rows=len(facts), cut=len(cut), questions=sum(row.into_question for row in cut))


def question_digest(lm_task: ConfigurableTask, doc: dict[str, Any]) -> int:
    """63 bits of a digest of :func:`~mtlbench.data.examples.question`."""
    content = "\x1f".join(question(lm_task, doc)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def training_facts(
    tokenizer: Any,
    lm_task: ConfigurableTask,
    numbers: Sequence[int],
    *,
    cut: Sequence[int],
    kept: Sequence[int],
    chat: Chat = None,
    docs: Any = None,
) -> list[RowFacts]:
    """Facts of training rows, of which ``cut`` prompt tokens are lost and ``kept`` are left; ``docs`` are all examples,
    where the caller has them."""
    with quiet_lm_eval():
        docs = (lm_task.training_docs() if docs is None else docs).select(numbers)
        asked = [question_digest(lm_task, doc) for doc in docs]
        lengths = _question_lengths(tokenizer, lm_task, {at: docs[at] for at, lost in enumerate(cut) if lost}, chat)
    return [
        RowFacts(lost, bool(lost) and left < lengths[at], asked[at])
        for at, (lost, left) in enumerate(zip(cut, kept, strict=True))
    ]


def evaluation_facts(
    tokenizer: Any,
    lm_task: ConfigurableTask,
    numbers: Sequence[int],
    *,
    architecture: str,
    max_length: int,
    chat: Chat = None,
    docs: Any = None,
    keep: Keep = _drop,
) -> list[RowFacts]:
    """Facts of evaluation rows, whose requests are made as lm-eval will make them.

    Args:
        docs: All evaluation examples, where the caller has them.
        keep: Gets the texts of each request, and the tokens of its context and answer before anything is cut.

    Raises:
        DataError: an answer does not fit into ``max_length``, or leaves no room for a prompt.
    """
    rows: list[int] = []
    requests: list[Any] = []
    with quiet_lm_eval():
        docs = list((lm_task.validation_docs() if docs is None else docs).select(numbers))
        for at, doc in enumerate(docs):
            for request in _requests(lm_task, doc, chat):
                rows.append(at)
                requests.append(request)
        if lm_task.OUTPUT_TYPE == "generate_until":
            sizes = list(
                _prompt_sizes(tokenizer, requests, architecture=architecture, max_length=max_length, keep=keep)
            )
        else:
            sizes = list(
                _pair_sizes(
                    tokenizer, requests, rows, numbers, architecture=architecture, max_length=max_length, keep=keep
                )
            )
        lost = [0] * len(docs)
        left = [2**31] * len(docs)
        for at, (cut, kept) in zip(rows, sizes, strict=True):
            lost[at] = max(lost[at], cut)
            left[at] = min(left[at], kept if cut else left[at])
        lengths = _question_lengths(tokenizer, lm_task, {at: docs[at] for at, cut in enumerate(lost) if cut}, chat)
        return [
            RowFacts(cut, bool(cut) and left[at] < lengths[at], question_digest(lm_task, docs[at]))
            for at, cut in enumerate(lost)
        ]


def new_tokens(arguments: Mapping[str, Any]) -> int:
    """Tokens that lm-eval's generation arguments allow."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(dict(arguments), MAX_NEW_TOKENS)["max_gen_toks"])


def prompt_room(arguments: Mapping[str, Any], *, architecture: str, max_length: int) -> int:
    """Tokens of a prompt before a generated answer.

    Raises:
        DataError: the answer leaves none.
    """
    answer = new_tokens(arguments)
    room = max_length - answer if architecture == "causal" else max_length
    if room < 1:
        raise DataError(
            f"Generating {answer} tokens leaves no room for a prompt within --max-length {max_length}. "
            f"Raise --max-length above {answer}."
        )
    return room


def _requests(lm_task: ConfigurableTask, doc: dict[str, Any], chat: Chat) -> list[Any]:
    """Arguments of the requests of an evaluation row."""
    context = prompt_of(lm_task, doc, shots=lm_task.config.num_fewshot, chat=chat)
    made = requests_of(lm_task, doc, context, chat=chat)
    return [request.args for request in (made if isinstance(made, list) else [made])]


def _prompt_sizes(
    tokenizer: Any, requests: Sequence[Any], *, architecture: str, max_length: int, keep: Keep
) -> Iterator[tuple[int, int]]:
    """Tokens lost and kept of each prompt of a generated answer."""
    encoded = encode_prompts(tokenizer, [prompt for prompt, _ in requests], architecture=architecture)
    for prompt, arguments in requests:
        keep((prompt,), encoded[prompt], ())
        length = len(encoded[prompt])
        kept = min(length, prompt_room(arguments, architecture=architecture, max_length=max_length))
        yield length - kept, kept


def _pair_sizes(
    tokenizer: Any,
    requests: Sequence[Any],
    rows: Sequence[int],
    numbers: Sequence[int],
    *,
    architecture: str,
    max_length: int,
    keep: Keep,
) -> Iterator[tuple[int, int]]:
    """The same for the prompt of each scored answer."""
    encoded = encode_pairs(tokenizer, requests, architecture=architecture)
    for texts, (context, answer), at in zip(requests, encoded, rows, strict=True):
        keep(texts, context, answer)
        try:
            kept: Tokens = fit(context, answer, architecture=architecture, max_length=max_length)[0]
        except DataError as error:
            raise DataError(f"Evaluation row {numbers[at]}: {error}") from error
        yield len(context) - len(kept), len(kept)


def _question_lengths(
    tokenizer: Any, lm_task: ConfigurableTask, docs: Mapping[int, dict[str, Any]], chat: Chat
) -> dict[int, int]:
    """Tokens of the prompts of rows without few-shot examples; of several prompts the longest."""
    prompts: dict[int, list[str]] = {}
    for at, doc in docs.items():
        made = prompt_of(lm_task, doc, shots=0, chat=chat)
        prompts[at] = [text.rstrip() for text in ([made] if isinstance(made, str) else made)]
    encoded = encode_texts(tokenizer, (text for texts in prompts.values() for text in texts), special=False)
    return {at: max(len(encoded[text]) for text in texts) for at, texts in prompts.items()}
